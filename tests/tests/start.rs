//! Starting, refusing to start, stopping, reading again.

use rustix::process::Signal;
use std::io::Write;
use std::process::{Command, Stdio};
use tests::{Gateway, binary, both, eventually, gateway, output, tool};

fn refused(plan: &tests::Plan) -> (i32, String) {
    let directory = tempfile::tempdir().unwrap();
    let output = plan.command(directory.path()).output().unwrap();
    (output.status.code().unwrap(), both(&output))
}

#[test]
fn bad_configuration_is_exit_code_2_with_every_problem_at_once() {
    let (code, said) = refused(&gateway().set("mqtt.lisen", "x").set("window.length", "soon"));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("did you mean mqtt.listen?") && said.contains("window.length"), "{said}");
    let output = Command::new(binary("tidegate")).arg("--nonsense").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let apart = ["--set", "gateway.data_dir=/nowhere", "check", "--set", "window.length=1m"];
    let output = Command::new(binary("tidegate")).args(apart).output().unwrap();
    assert!(output.status.code() == Some(2) && both(&output).contains("in one place"), "{}", both(&output));
}

#[test]
fn nobody_gets_in_from_beyond_loopback_by_default() {
    let (code, said) = refused(&gateway().set("mqtt.listen", "0.0.0.0:0").set("coap.listen", "0.0.0.0:0"));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("tidegate user add") && said.contains("coap.allow_anonymous = true"), "{said}");
}

#[test]
fn a_second_gateway_on_the_same_directory_is_refused() {
    let first = gateway().start();
    let output = gateway().command(first.directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(both(&output).contains("in use by another gateway"), "{}", both(&output));
}

#[test]
fn a_foreign_or_newer_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let db = rusqlite::Connection::open(data.join("tidegate.db")).unwrap();
    db.execute_batch("CREATE TABLE mine (x)").unwrap();
    let output = gateway().command(directory.path()).output().unwrap();
    assert!(both(&output).contains("not a Tidegate store"), "{}", both(&output));
    db.execute_batch("PRAGMA application_id = 0x54494445; PRAGMA user_version = 99").unwrap();
    let output = gateway().command(directory.path()).output().unwrap();
    assert!(both(&output).contains("run a newer tidegate"), "{}", both(&output));
}

#[test]
fn sigterm_drains_and_exits_0_and_the_id_is_kept() {
    let mut gateway = gateway().start();
    gateway.publish(&["-q", "1", "-t", "devices/a/t", "-m", "1"]);
    let id = gateway.get("/v1/status")["id"].clone();
    assert!(gateway.stop().success(), "{}", gateway.log());
    gateway.start();
    assert_eq!(gateway.get("/v1/status")["id"], id);
    assert_eq!(gateway.get("/v1/devices/a")["readings"], 1);
}

fn add_user(gateway: &Gateway, name: &str, password: &str) {
    let data = format!("gateway.data_dir={}", gateway.directory.path().join("data").display());
    let mut command = Command::new(binary("tidegate"));
    let mut child = command.args(["user", "add", name, "--set", &data]).stdin(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn users_are_asked_for_on_every_protocol_and_read_again_on_sighup() {
    let mut gateway = gateway().start();
    add_user(&gateway, "ann", "s3cret");
    gateway.restart();
    let publish = |gateway: &Gateway, login: &[&str]| {
        let mut command = tool("mosquitto_pub", "mosquitto-clients");
        command.args(gateway.mosquitto()).args(["-q", "1", "-t", "devices/a/t", "-m", "1"]).args(login);
        command.output().unwrap().status.success()
    };
    assert!(!publish(&gateway, &[]));
    assert!(!publish(&gateway, &["-u", "ann", "-P", "wrong"]));
    assert!(publish(&gateway, &["-u", "ann", "-P", "s3cret"]));
    assert_eq!(gateway.try_get("/v1/devices").0, 401);
    assert_eq!(gateway.try_get("/healthz").0, 200);
    let mut curl = tool("curl", "curl");
    let said = output(curl.args(["-sS", "-u", "ann:s3cret", &gateway.url("/v1/devices/a")]));
    assert!(said.contains("\"readings\":1"), "{said}");
    assert!(!publish(&gateway, &["-u", "bob", "-P", "other"]));
    add_user(&gateway, "bob", "other");
    gateway.signal(Signal::HUP);
    eventually("bob may come in", || publish(&gateway, &["-u", "bob", "-P", "other"]).then_some(()));
}

#[test]
fn an_ingest_rule_maps_foreign_topics() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    std::fs::write(&file, "[[ingest]]\ntopic = \"{device}/sensor/{metric}/state\"\n").unwrap();
    let data = std::sync::Arc::new(directory);
    let mut command = gateway().command(data.path());
    command.arg("check").arg("--config").arg(&file);
    assert_eq!(output(&mut command).trim(), "the configuration is good");
}

#[test]
fn a_damaged_store_is_named_and_what_can_be_read_is_saved() {
    let mut gateway = gateway().set("archive.delay", "100ms").set("window.length", "1s").start();
    for i in 0..40 {
        let lines: Vec<String> = (0..50)
            .map(|j| {
                let time = 1_700_000_000_000_000_i64 + (i * 50 + j) * 1_000_000;
                format!(r#"{{"device":"d{}","metric":"m","value":{j},"time":{time}}}"#, j % 5)
            })
            .collect();
        assert_eq!(gateway.post("/v1/readings", "application/x-ndjson", lines.join("\n").as_bytes()).0, 200);
    }
    let data = gateway.directory.path().join("data");
    let (code, told) = doctor(&data, &[]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("nothing is wrong"), "{told}");
    assert!(gateway.stop().success());
    {
        // A page goes bad: one batch or chunk is not what it was.
        let db = rusqlite::Connection::open(data.join("tidegate.db")).unwrap();
        let hurt = |table: &str, key: &str| {
            let sql = format!(
                "UPDATE {table} SET body = zeroblob(length(body)) WHERE {key} = (SELECT min({key}) FROM {table})"
            );
            db.execute(&sql, []).unwrap()
        };
        assert!(hurt("batch", "seq") + hurt("chunk", "id") > 0);
    }
    let (home, told) = salvaged(&data);
    assert!(told.contains("is left behind"), "{told}");
    let saved = tests::gateway().start_in(std::sync::Arc::new(home));
    let counted: u64 = saved.rows("/v1/aggregates?stats=count").iter().map(|row| row["count"].as_u64().unwrap()).sum();
    assert!((1_000..2_000).contains(&counted), "{counted} of 2,000 readings");
    assert_eq!(saved.get("/v1/devices/d3")["id"], "d3");
}

fn doctor(data: &std::path::Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(tests::binary("tidegate"));
    command.arg("--set").arg(format!("gateway.data_dir={}", data.display())).arg("doctor").args(more);
    let output = command.output().unwrap();
    (output.status.code(), tests::both(&output))
}

/// A directory with what can be saved of a store that the doctor finds something wrong with,
/// and what it told.
fn salvaged(data: &std::path::Path) -> (tempfile::TempDir, String) {
    let (code, told) = doctor(data, &[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("PROBLEM") && told.contains("--salvage"), "{told}");
    let home = tempfile::tempdir().unwrap();
    let (code, told) = doctor(data, &["--salvage", &home.path().join("data").display().to_string()]);
    assert_eq!(code, Some(0), "{told}");
    (home, told)
}

/// Readings in order of time, one a second, whose values say which they are.
fn post_numbers(gateway: &tests::Gateway, numbers: std::ops::Range<i64>) {
    let line = |n: i64| {
        // Not to be compressed away.
        let value = n as f64 + f64::from((n as u32).wrapping_mul(2_654_435_761)) / 1e10;
        format!(r#"{{"device":"d{}","metric":"m","value":{value},"time":{}}}"#, n % 5, 1_709_251_200 + n)
    };
    let body: Vec<String> = numbers.map(line).collect();
    let (status, answer) = gateway.post("/v1/readings", "application/x-ndjson", body.join("\n").as_bytes());
    assert_eq!(status, 200, "{answer}");
}

fn numbers(gateway: &tests::Gateway) -> Vec<i64> {
    let rows = gateway.rows("/v1/readings?from=2024-03-01T00:00:00Z&to=2024-03-03T00:00:00Z&limit=10000");
    rows.iter().map(|row| row["value"].as_f64().unwrap().floor() as i64).collect()
}

#[test]
fn pages_of_a_damaged_file_are_named_and_the_rest_is_saved() {
    let seed = tests::seed();
    let mut gateway = gateway().start();
    let data = gateway.directory.path().join("data");
    for at in 0..60 {
        post_numbers(&gateway, at * 1_000..(at + 1) * 1_000);
    }
    assert!(gateway.stop().success());
    let file = data.join("tidegate.db");
    let definitions = pages_of_definitions(&file);
    let mut bytes = std::fs::read(&file).unwrap();
    let pages = bytes.len() / 4_096;
    // A tenth of the pages, but not those which say what the tables are.
    for (i, page) in (30..pages).filter(|page| !definitions.contains(page)).step_by(10).enumerate() {
        let at = page * 4_096 + (seed as usize + i * 97) % 3_000;
        bytes[at..at + 600].fill(0xA5);
    }
    std::fs::write(&file, bytes).unwrap();
    let (home, told) = salvaged(&data);
    let saved = tests::gateway().start_in(std::sync::Arc::new(home));
    let kept = numbers(&saved);
    assert!(kept.len() > 20_000 && kept.len() < 60_000, "{} of 60,000 readings\n{told}", kept.len());
    println!("{} of 60,000 readings saved from {pages} pages", kept.len());
    let (code, told) = doctor(&saved.directory.path().join("data"), &[]);
    assert_eq!(code, Some(0), "{told}");
}

/// The pages that define the tables, counted from 0, but for the first one.
fn pages_of_definitions(file: &std::path::Path) -> Vec<usize> {
    let db = rusqlite::Connection::open(file).unwrap();
    let mut pages = db.prepare("SELECT pageno - 1 FROM dbstat WHERE name = 'sqlite_schema' AND pageno > 1").unwrap();
    pages.query_map([], |row| row.get::<_, u32>(0)).unwrap().map(|page| page.unwrap() as usize).collect()
}

#[test]
fn what_a_damaged_page_of_definitions_leaves_is_saved_and_the_rest_is_named() {
    let seed = tests::seed() as usize;
    let mut gateway = gateway().start();
    let data = gateway.directory.path().join("data");
    post_numbers(&gateway, 0..1_000);
    assert!(gateway.stop().success());
    let file = data.join("tidegate.db");
    let whole = std::fs::read(&file).unwrap();
    let mut all = 0;
    for page in pages_of_definitions(&file) {
        for (at, length) in [(0, 4_096), (seed % 3_496, 600), (seed % 4_095, 1)] {
            let mut bytes = whole.clone();
            bytes[page * 4_096 + at..][..length].fill(0xA5);
            std::fs::write(&file, bytes).unwrap();
            let (code, told) = doctor(&data, &[]);
            if length < 4_096 && code == Some(0) {
                continue; // Bytes that nothing uses.
            }
            let (home, told) = (salvaged(&data).0, told);
            let saved = tests::gateway().start_in(std::sync::Arc::new(home));
            match numbers(&saved).len() {
                1_000 => all += 1,
                kept => assert!(kept == 0 && told.contains("PROBLEM "), "{kept} of 1,000 readings\n{told}"),
            }
        }
    }
    println!("all readings were saved {all} times");
}

#[test]
fn a_truncated_log_loses_the_last_commits_and_nothing_before_them() {
    let mut gateway = gateway().start();
    let data = gateway.directory.path().join("data");
    for at in 0..200 {
        post_numbers(&gateway, at * 20..(at + 1) * 20);
    }
    gateway.kill();
    let log = data.join("tidegate.db-wal");
    let length = log.metadata().unwrap().len();
    std::fs::File::options().write(true).open(&log).unwrap().set_len(length / 2 + 1_234).unwrap();
    gateway.start();
    let kept = numbers(&gateway);
    assert!(kept.len() < 4_000 && !kept.is_empty() && kept.len().is_multiple_of(20), "{}", kept.len());
    assert!(kept.iter().enumerate().all(|(at, &n)| at as i64 == n), "the first commits, whole");
    post_numbers(&gateway, 3_980..4_000);
    let (code, told) = doctor(&data, &[]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("nothing is wrong"), "{told}");
}
