//! Every answer equals a recomputation made elsewhere, from the file that was sent.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use tests::{Gateway, gateway, output, root, seed, simulator, verify};

const DAY_S: i64 = 86_400;
const QUESTION: &str = "/v1/aggregates?device=office&metric=temperature&from=2013-07-01T00:00:00Z\
    &to=2014-06-01T00:00:00Z&window=1d&stats=count,mean,min,max,stddev,p95";

/// The recorded office, or where it is not at hand, a year of hours that looks like it.
fn recording(directory: &Path) -> PathBuf {
    let recorded = root().join("../shared/data/ambient_temperature.csv");
    if recorded.exists() {
        return recorded;
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut text = String::from("timestamp,value\n");
    let begin = "2013-07-04T00:00:00Z".parse::<jiff::Timestamp>().unwrap().as_second();
    for hour in (0..7_800).filter(|hour| !(2_000..2_300).contains(hour)) {
        let time = jiff::Timestamp::from_second(begin + hour * 3_600).unwrap();
        let value = 70.0 + (hour as f64 / 24.0).sin() * 4.0 + random.random_range(-1.0..1.0);
        writeln!(text, "{},{value:.8}", time.strftime("%Y-%m-%d %H:%M:%S")).unwrap();
    }
    let path = directory.join("office.csv");
    std::fs::write(&path, text).unwrap();
    path
}

fn readings(file: &Path) -> BTreeMap<i64, f64> {
    let text = std::fs::read_to_string(file).unwrap();
    let line = |line: &str| {
        let (time, value) = line.split_once(',').unwrap();
        let time: jiff::civil::DateTime = time.parse().unwrap();
        (time.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp().as_second(), value.parse().unwrap())
    };
    text.lines().skip(1).map(line).collect()
}

fn close(got: &Value, want: f64, tolerance: f64) {
    let got = got.as_f64().unwrap();
    assert!((got - want).abs() <= tolerance, "got {got}, want {want}");
}

fn check_days(gateway: &Gateway, readings: &BTreeMap<i64, f64>) {
    let mut days: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    readings.iter().for_each(|(time_s, value)| days.entry(time_s - time_s.rem_euclid(DAY_S)).or_default().push(*value));
    let rows = gateway.rows(QUESTION);
    assert_eq!(rows.len(), days.len());
    for (row, (start_s, values)) in rows.iter().zip(&days) {
        let start: jiff::Timestamp = row["start"].as_str().unwrap().parse().unwrap();
        assert_eq!(start.as_second(), *start_s);
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        assert_eq!(row["count"].as_u64(), Some(values.len() as u64));
        assert_eq!(row["min"].as_f64(), sorted.first().copied());
        assert_eq!(row["max"].as_f64(), sorted.last().copied());
        assert_eq!(row["p95"].as_f64(), Some(sorted[(0.95 * n).ceil() as usize - 1]));
        close(&row["mean"], mean, 1e-9 * mean.abs());
        if values.len() > 1 {
            let stddev = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            close(&row["stddev"], stddev, 1e-9 * sorted[sorted.len() - 1]);
        } else {
            assert!(row["stddev"].is_null());
        }
    }
}

fn replay(gateway: &Gateway, file: &Path, more: &[&str]) {
    let mut command = simulator("replay");
    command.arg(file).args(["--device", "office", "--metric", "temperature", "--mqtt", &gateway.mqtt.to_string()]);
    output(command.args(more));
}

#[test]
fn a_recorded_year_is_answered_by_the_day_also_after_a_restart_and_twice_and_shuffled() {
    let directory = tempfile::tempdir().unwrap();
    let file = recording(directory.path());
    let readings = readings(&file);
    let mut gateway = gateway().set("archive.delay", "1s").start();
    replay(&gateway, &file, &[]);
    check_days(&gateway, &readings);
    folded(&gateway);
    check_days(&gateway, &readings);
    gateway.restart();
    check_days(&gateway, &readings);
    replay(&gateway, &file, &[]);
    check_days(&gateway, &readings);
    replay(&gateway, &file, &["--shuffle", "--seed", &seed().to_string()]);
    check_days(&gateway, &readings);
    gateway.kill();
    gateway.start();
    check_days(&gateway, &readings);
    folded(&gateway);
    check_days(&gateway, &readings);
}

/// Waits until all that has been committed is in chunks.
fn folded(gateway: &Gateway) {
    tests::eventually("everything is folded", || {
        let store = gateway.get("/v1/status")["store"].clone();
        (store["archived_seq"] == store["last_seq"]).then_some(())
    });
}

#[test]
fn a_shuffled_year_into_an_empty_store_is_answered_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let file = recording(directory.path());
    let gateway = gateway().set("archive.delay", "1s").start();
    let ledger = directory.path().join("ledger");
    let ledger_text = ledger.display().to_string();
    replay(
        &gateway,
        &file,
        &["--shuffle", "--duplicate", "0.2", "--seed", &seed().to_string(), "--ledger", &ledger_text],
    );
    check_days(&gateway, &readings(&file));
    verify(&gateway, &ledger);
}

#[test]
fn summaries_follow_late_readings_and_say_so_by_their_revision() {
    let gateway = gateway().set("window.length", "1h").set("archive.delay", "200ms").start();
    let send = |hour: u32, value: f64| {
        let time = format!("2024-03-01T{hour:02}:30:00Z");
        let body = format!(r#"{{"readings":[{{"device":"d","metric":"m","value":{value},"time":"{time}"}}]}}"#);
        assert_eq!(gateway.post("/v1/readings", "application/json", body.as_bytes()).0, 200);
    };
    (0..4).for_each(|hour| send(hour, 1.0));
    let summary = |hour: u32| -> Option<(u32, u64, f64)> {
        let start_us = 1_709_251_200_000_000 + i64::from(hour) * 3_600_000_000;
        let stored = gateway.summaries(3_600)?.into_iter().find(|stored| stored.start_us == start_us)?;
        Some((stored.revision, stored.summary.count, stored.summary.sum))
    };
    tests::eventually("the first window closes", || (summary(1)? == (1, 1, 1.0)).then_some(()));
    let late = r#"{"readings":[{"device":"d","metric":"m","value":5,"time":"2024-03-01T01:40:00Z"}]}"#;
    gateway.post("/v1/readings", "application/json", late.as_bytes());
    tests::eventually("the window is revised", || (summary(1)? == (2, 2, 6.0)).then_some(()));
    assert_eq!(summary(0), Some((1, 1, 1.0)), "other windows stay");
    // The same reading once more changes nothing, so the revision stays.
    gateway.post("/v1/readings", "application/json", late.as_bytes());
    tests::eventually("it has been looked at", || {
        (gateway.metric("tidegate_windows_recomputed_total") >= 2.0).then_some(())
    });
    assert_eq!(summary(1), Some((2, 2, 6.0)));
}

#[test]
fn windows_are_clipped_filled_paged_and_complete_as_documented() {
    let gateway = gateway().start();
    let reading = |second: u32, value: &str| {
        format!(r#"{{"device":"d","metric":"m","value":{value},"time":"2024-03-01T00:00:{second:02}Z"}}"#)
    };
    let lines: Vec<String> = [(5, "1"), (15, "\"dry\""), (25, "3"), (45, "true")].map(|(s, v)| reading(s, v)).into();
    let (status, answer) = gateway.post("/v1/readings", "application/x-ndjson", lines.join("\n").as_bytes());
    assert_eq!((status, answer.as_str()), (200, r#"{"accepted":4,"rejected":[]}"#));
    let range = "/v1/aggregates?device=d&from=2024-03-01T00:00:07Z&to=2024-03-01T00:00:47Z";
    let rows = gateway.rows(&format!("{range}&window=20s&fill=null&stats=count,text_count,sum,first,last&limit=1"));
    let seen: Vec<String> = rows
        .iter()
        .map(|r| {
            format!(
                "{} {} {} {} {} {} {}",
                r["start"], r["end"], r["count"], r["text_count"], r["sum"], r["first"], r["last"]
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            r#""2024-03-01T00:00:07Z" "2024-03-01T00:00:20Z" 0 1 null "dry" "dry""#,
            r#""2024-03-01T00:00:20Z" "2024-03-01T00:00:40Z" 1 0 3.0 3.0 3.0"#,
            r#""2024-03-01T00:00:40Z" "2024-03-01T00:00:47Z" 1 0 1.0 1.0 1.0"#,
        ]
    );
    let whole = gateway.rows(&format!("{range}&stats=count,stddev,p50"));
    assert_eq!((whole.len(), whole[0]["count"].as_u64(), whole[0]["p50"].as_f64()), (1, Some(2), Some(1.0)));
    let (_, csv) = {
        let mut answer =
            ureq::get(gateway.url(&format!("{range}&window=40s"))).header("accept", "text/csv").call().unwrap();
        (0, answer.body_mut().read_to_string().unwrap())
    };
    assert!(csv.starts_with("device,metric,start,end,count,mean,min,max,complete,resolution_s\r\nd,m,"), "{csv}");
    assert!(gateway.rows("/v1/aggregates?device=nobody&from=now-1h&to=now&window=1m").is_empty());
}

#[test]
fn windows_overlap_and_series_are_grouped_as_asked() {
    let gateway = gateway().start();
    let reading = |(device, metric, minute, value): (&str, &str, u32, f64)| {
        let time = format!("2024-03-01T00:{minute:02}:30Z");
        format!(r#"{{"device":"{device}","metric":"{metric}","value":{value},"time":"{time}"}}"#)
    };
    let lines = [("a", "t", 0, 1.0), ("a", "t", 1, 2.0), ("a", "t", 2, 6.0), ("b", "t", 1, 4.0), ("b", "h", 1, 50.0)];
    let body = lines.map(reading).join("\n");
    assert_eq!(gateway.post("/v1/readings", "application/x-ndjson", body.as_bytes()).0, 200);
    let show = |path: &str, fields: &[&str]| -> Vec<String> {
        let field = |row: &Value, name: &&str| row[*name].to_string().replace('"', "").replace("2024-03-01T", "");
        let line = |row: &Value| fields.iter().map(|name| field(row, name)).collect::<Vec<_>>().join(" ");
        gateway.rows(path).iter().map(line).collect()
    };
    let range = "from=2024-03-01T00:00:00Z&to=2024-03-01T00:04:00Z";
    let hopping = format!("/v1/aggregates?device=a&{range}&window=2m&every=1m&stats=count,mean,p50&limit=2");
    assert_eq!(
        show(&hopping, &["start", "end", "count", "mean", "p50"]),
        [
            "00:00:00Z 00:01:00Z 1 1.0 1.0",
            "00:00:00Z 00:02:00Z 2 1.5 1.0",
            "00:01:00Z 00:03:00Z 2 4.0 2.0",
            "00:02:00Z 00:04:00Z 1 6.0 6.0",
        ]
    );
    let metrics = format!("/v1/aggregates?{range}&window=1m&group_by=metric&stats=count,max,p95&limit=1");
    assert_eq!(
        show(&metrics, &["metric", "start", "count", "max", "p95"]),
        ["h 00:01:00Z 1 50.0 50.0", "t 00:00:00Z 1 1.0 1.0", "t 00:01:00Z 2 4.0 4.0", "t 00:02:00Z 1 6.0 6.0"]
    );
    assert_eq!(show(&format!("/v1/aggregates?{range}&group_by=all&stats=count,sum"), &["count", "sum"]), ["5 63.0"]);
    let label = |device: &str, body: &str| {
        let url = gateway.url(&format!("/v1/devices/{device}/labels"));
        let answer = ureq::put(&url).config().http_status_as_error(false).build().send(body.as_bytes()).unwrap();
        answer.status().as_u16()
    };
    assert_eq!(label("a", r#"{"site":"north","room":"4"}"#), 200);
    assert_eq!(label("nobody", r#"{"site":"north"}"#), 404);
    assert_eq!(label("a", r#"{"site":4}"#), 400);
    let sites = format!("/v1/aggregates?{range}&group_by=label:site&stats=count&limit=1");
    assert_eq!(show(&sites, &["label:site", "count"]), ["null 2", "north 3"]);
    assert_eq!(gateway.get("/v1/devices/a")["labels"]["room"], "4");
    let mut gateway = gateway;
    gateway.kill();
    gateway.start();
    assert_eq!(gateway.get("/v1/devices/a")["labels"]["site"], "north");
    assert_eq!(gateway.try_get("/v1/aggregates?every=1m").0, 400);
    assert_eq!(gateway.try_get("/v1/aggregates?group_by=site").0, 400);
}

#[test]
fn a_question_larger_than_its_memory_is_split_and_stays_right() {
    let gateway = gateway().set("query.memory", "1 MiB").start();
    let (mut random, mut ndjson) = (StdRng::seed_from_u64(seed()), String::new());
    let mut sum = 0.0;
    let n = 40_000_u32;
    for i in 0..n {
        let value = f64::from(random.next_u32() % 10_000) / 100.0;
        sum += value;
        let (device, time) = (i % 3, 1_700_000_000_000_000_i64 + i64::from(i) * 10_000);
        writeln!(ndjson, r#"{{"device":"d{device}","metric":"m","value":{value},"time":{time}}}"#).unwrap();
    }
    assert_eq!(gateway.post("/v1/readings", "application/x-ndjson", ndjson.as_bytes()).0, 200);
    let rows = gateway.rows("/v1/aggregates?stats=count,sum,p50,min");
    let total: f64 = rows.iter().map(|row| row["sum"].as_f64().unwrap()).sum();
    assert_eq!(rows.iter().map(|row| row["count"].as_u64().unwrap()).sum::<u64>(), u64::from(n));
    assert!((total - sum).abs() < 1e-9 * sum);
    let minutes = gateway.rows("/v1/aggregates?device=d0&window=1m&stats=count");
    assert_eq!(minutes.iter().map(|row| row["count"].as_u64().unwrap()).sum::<u64>(), u64::from(n.div_ceil(3)));
    assert_eq!(gateway.rows("/v1/readings?device=d1&limit=5000").len() as u32, n / 3);
}

/// Bytes of an answer in the form asked for.
fn fetch(gateway: &Gateway, path: &str, form: &str) -> Vec<u8> {
    let mut answer = ureq::get(gateway.url(path)).header("accept", form).call().unwrap();
    assert_eq!(answer.headers()["content-type"], form);
    answer.body_mut().read_to_vec().unwrap()
}

#[test]
fn answers_and_exports_are_tables_for_dataframe_tools_and_a_backup_is_a_store() {
    let gateway = gateway().set("archive.delay", "1s").start();
    let mut lines = Vec::new();
    for i in 0..3_000_i64 {
        let time = jiff::Timestamp::from_second(1_709_251_200 + i * 60).unwrap();
        lines.push(format!(r#"{{"device":"d{}","metric":"m","value":{},"time":"{time}"}}"#, i % 2, i as f64 / 4.0));
    }
    lines.push(r#"{"device":"d0","metric":"state","value":"dry, cold","time":"2024-03-01T00:00:05Z"}"#.into());
    assert_eq!(gateway.post("/v1/readings", "application/x-ndjson", lines.join("\n").as_bytes()).0, 200);
    let arrow = fetch(&gateway, "/v1/readings?device=d1&limit=2000", "application/vnd.apache.arrow.stream");
    let tables: Vec<_> = arrow_ipc::reader::StreamReader::try_new(&arrow[..], None).unwrap().collect();
    assert_eq!(tables.iter().map(|table| table.as_ref().unwrap().num_rows()).sum::<usize>(), 1_500);
    let parquet = fetch(&gateway, "/v1/aggregates?window=1h&stats=count,mean,p95", "application/vnd.apache.parquet");
    let rows = |bytes: Vec<u8>| {
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes::Bytes::from(bytes), 10_000);
        reader.unwrap().map(|table| table.unwrap().num_rows()).sum::<usize>()
    };
    assert_eq!(rows(parquet), gateway.rows("/v1/aggregates?window=1h").len());
    let (status, detail) = {
        let request = ureq::get(gateway.url("/v1/devices")).header("accept", "application/vnd.apache.parquet");
        let mut answer = request.config().http_status_as_error(false).build().call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    assert_eq!(status, 406, "{detail}");
    // Also while it runs, with a part in chunks and a part in batches.
    folded(&gateway);
    let late = r#"{"device":"d0","metric":"m","value":-1,"time":"2024-03-01T00:00:01Z"}"#;
    gateway.post("/v1/readings", "application/x-ndjson", late.as_bytes());
    let out = tempfile::tempdir().unwrap();
    let data = format!("gateway.data_dir={}", gateway.directory.path().join("data").display());
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(tests::binary("tidegate"));
        tests::output(command.args(["--set", &data]).args(arguments))
    };
    for format in ["parquet", "csv"] {
        let told = run(&["export", "--format", format, "--out", &out.path().display().to_string()]);
        assert_eq!(told.lines().count(), 3, "{told}");
    }
    let read = |name: &str| std::fs::read(out.path().join(name)).unwrap();
    assert_eq!(rows(read("date=2024-03-02/readings.parquet")), 1_440);
    let csv = String::from_utf8(read("date=2024-03-01/readings.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 1_440 + 2);
    assert!(csv.contains("\nd0,state,2024-03-01T00:00:05Z,,\"dry, cold\"\n"), "{}", &csv[..300]);
    let copy = out.path().join("copy/data");
    std::fs::create_dir_all(&copy).unwrap();
    run(&["backup", &copy.join("tidegate.db").display().to_string()]);
    let path = "/v1/aggregates?stats=count,sum,first,last&window=1h";
    let before = gateway.rows(path);
    let home = tempfile::tempdir().unwrap();
    std::fs::rename(&copy, home.path().join("data")).unwrap();
    let restored = tests::gateway().start_in(std::sync::Arc::new(home));
    assert_eq!(restored.rows(path), before);
}
