//! What the cloud holds is what the gateways hold, whatever goes down in between.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tests::cloud::{agree, cloud, drained, same_answers};
use tests::{Background, Gateway, both, eventually, gateway, seed, simulator, verify};

/// A fleet towards a gateway, with its ledger.
fn fleet(gateway: &Gateway, ledger: &Path, seconds: u64, options: &[&str]) -> Background {
    let mut fleet = simulator("run");
    fleet.args(["--mqtt", &gateway.mqtt.to_string(), "--coap", &gateway.coap.to_string(), "--protocol", "mix"]);
    fleet.args(["--seconds", &seconds.to_string()]).args(options).arg("--ledger").arg(ledger);
    Background::start(&mut fleet)
}

/// A gateway under load; the cloud is down for a while, the gateway is killed meanwhile, and
/// the cloud once more in the middle of catching up. In the end all agree with the ledger.
#[test]
fn outages_and_kills_at_both_ends_lose_and_double_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let outage_s: u64 = std::env::var("TIDEGATE_TEST_OUTAGE_S").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let mut cloud = cloud().start();
    let mut gateway = gateway()
        .set("window.length", "1s")
        .set("window.lateness", "1s")
        .set("uplink.batch", "200")
        .forwarding_to(&[&cloud])
        .start();
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let load = ["--devices", "40", "--rate", "1000", "--duplicate", "0.01", "--disorder", "0.02"];
    let fleet = fleet(&gateway, &ledger, outage_s + 15, &load);
    eventually("the first summaries arrive", || (cloud.count() > 500).then_some(()));
    cloud.kill();
    let waiting = |gateway: &Gateway| gateway.get("/v1/status")["uplink"]["backlog"].as_u64().unwrap();
    std::thread::sleep(Duration::from_secs(outage_s / 2));
    gateway.kill();
    gateway.start();
    std::thread::sleep(Duration::from_secs(outage_s / 2));
    let backlog = eventually("a backlog builds up", || Some(waiting(&gateway)).filter(|&n| n > 3));
    let status = gateway.get("/v1/status")["uplink"].clone();
    assert!(status["last_error"].is_string() && status["oldest_unsent_age_s"].as_i64() >= Some(1), "{status}");
    println!("backlog after the outage: {backlog} changes");
    cloud.start();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(random.random_range(100..900)));
        cloud.kill();
        cloud.start();
    }
    gateway.kill();
    gateway.start();
    fleet.finish(Duration::from_secs(120));
    verify(&gateway, &ledger);
    drained(&gateway);
    agree(&gateway, &cloud);
    for window in ["1s", "1m", "all"] {
        same_answers(&gateway, &cloud, window, None);
    }
    let here = gateway.get("/v1/aggregates?stats=count&group_by=all")["rows"][0]["count"].as_u64();
    assert_eq!(Some(cloud.count()), here);
}

/// The same body over HTTP, in order, to one of two endpoints of which the other is down.
#[test]
fn pushes_over_http_go_around_an_endpoint_that_is_down() {
    let cloud = cloud().start();
    let down = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoints = format!("[\"http://{down}\", \"{}?weight=2\"]", cloud.url("/v1/push"));
    let gateway = gateway()
        .set("window.length", "1s")
        .set("window.lateness", "0s")
        .forwarding_to(&[])
        .set("uplink.endpoints", &endpoints)
        .set("uplink.order", "in-order")
        .start();
    // The sender cuts in half what is told to be too large.
    let too_large = ureq::post(cloud.url("/v1/push")).send(&vec![0; (9 << 20) + 1][..]);
    assert!(matches!(too_large, Err(ureq::Error::StatusCode(413))), "{too_large:?}");
    post(&gateway, "press", tests::now_s() - 600, 300);
    eventually("they arrive", || (cloud.count() == 300).then_some(()));
    drained(&gateway);
    agree(&gateway, &cloud);
    let breakers = gateway.get("/v1/status")["uplink"]["endpoints"].clone();
    assert_eq!(breakers[1]["breaker"], "closed", "{breakers}");
}

/// One reading a second of a device.
fn post(gateway: &Gateway, device: &str, from_s: i64, seconds: i64) {
    let reading = |second: i64| {
        let time = from_s + second;
        json!({"device": device, "metric": "m", "value": (second % 17) as f64 / 10.0, "time": time})
    };
    let body = json!({"readings": (0..seconds).map(reading).collect::<Vec<_>>()}).to_string();
    let (status, answer) = gateway.post("/v1/readings", "application/json", body.as_bytes());
    assert_eq!(status, 200, "{answer}");
}

/// Readings from before there was an uplink, of days that are folded already, late ones, labels:
/// all of it gets there.
#[test]
fn what_was_there_before_the_uplink_and_what_comes_late_is_sent() {
    let mut gateway = gateway().set("window.length", "1m").set("archive.delay", "1s").start();
    let old_s = (tests::now_s() / 86_400 - 5) * 86_400;
    post(&gateway, "old", old_s, 3_000);
    post(&gateway, "new", tests::now_s() - 3_600, 1_800);
    let labels = |site: &str| {
        let url = gateway.url("/v1/devices/old/labels");
        ureq::put(url).send_json(json!({"site": site})).unwrap();
    };
    labels("north");
    let revised = |gateway: &Gateway| gateway.get("/v1/status")["windows"]["dirty"] == 0;
    eventually("windows close", || (gateway.summaries(60)?.len() >= 80 && revised(&gateway)).then_some(()));
    let cloud = cloud().start();
    for (key, value) in [("uplink.endpoints", format!("[{:?}]", cloud.endpoint())), ("uplink.jitter", "0s".into())] {
        gateway.set(key, &value);
    }
    gateway.restart();
    eventually("what was there arrives", || (cloud.count() == 4_800).then_some(()));
    post(&gateway, "old", old_s + 30_000, 60);
    eventually("what is late arrives", || (cloud.count() == 4_860).then_some(()));
    drained(&gateway);
    agree(&gateway, &cloud);
    for window in ["1m", "1h", "1d", "all"] {
        same_answers(&gateway, &cloud, window, None);
    }
    let by_site = || cloud.get("/v1/aggregates?group_by=label:site,gateway&stats=count")["rows"].clone();
    eventually("labels arrive", || {
        let rows = by_site();
        let north = rows.as_array()?.iter().find(|row| row["label:site"] == "north")?.clone();
        (north["count"] == 3_060 && north["gateway"].is_string()).then_some(())
    });
}

/// A copy of the store is refused while the original sends, with a remedy; a restored backup is not.
#[test]
fn a_clone_is_refused_and_a_restored_backup_is_not() {
    let cloud = cloud().start();
    let plan = gateway().set("window.length", "1s").set("window.lateness", "0s").forwarding_to(&[&cloud]);
    let mut original = plan.clone().start();
    post(&original, "d", tests::now_s() - 100, 50);
    eventually("they arrive", || (cloud.count() == 50).then_some(()));
    drained(&original);
    assert!(original.stop().success());
    let copy_to = |name: &str| {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("data")).unwrap();
        std::fs::copy(original.directory.path().join(name), directory.path().join("data/tidegate.db")).unwrap();
        Arc::new(directory)
    };
    let clone = copy_to("data/tidegate.db");
    let mut command = Command::new(tests::binary("tidegate"));
    command.arg("--set").arg(format!("gateway.data_dir={}", original.directory.path().join("data").display()));
    let backup = original.directory.path().join("backup.db");
    let made = command.arg("backup").arg(&backup).output().unwrap();
    assert!(made.status.success(), "{}", both(&made));
    let restored = copy_to("backup.db");
    original.start();
    let error = |gateway: &Gateway| gateway.get("/v1/status")["uplink"]["last_error"].clone();
    eventually("the original is heard", || original.get("/v1/status")["uplink"]["last_answer"].as_str().map(drop));
    let clone = plan.clone().start_in(clone);
    eventually("the clone is refused", || {
        error(&clone).as_str().filter(|text| text.contains("another gateway.id")).map(drop)
    });
    eventually("and so is the original, which is known by nothing but the id", || {
        error(&original).as_str().filter(|text| text.contains("two stores send under the id")).map(drop)
    });
    drop(clone);
    drop(original);
    let restored = plan.start_in(restored);
    post(&restored, "d", tests::now_s() - 40, 10);
    eventually("the restored one is taken", || (cloud.count() == 60).then_some(()));
    agree(&restored, &cloud);
}

/// Shards that are put back to an earlier state are noticed, and sent what they lack.
#[test]
fn a_cloud_that_is_restored_from_a_backup_gets_what_it_lacks() {
    let mut cloud = cloud().start();
    let gateway = gateway().set("window.length", "1s").set("window.lateness", "0s").forwarding_to(&[&cloud]).start();
    let now_s = tests::now_s();
    let many = |from_s: i64| (0..20).for_each(|n| post(&gateway, &format!("d{n}"), from_s, 20));
    many(now_s - 1_000);
    eventually("they arrive", || (cloud.count() == 400).then_some(()));
    drained(&gateway);
    cloud.stop();
    let data = cloud.directory.path().join("cloud");
    let backup = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copy(&data, backup.path());
    cloud.start();
    for step in 1..4 {
        many(now_s - 1_000 + step * 100);
        eventually("they arrive", || (cloud.count() == 400 + 400 * step as u64).then_some(()));
    }
    drained(&gateway);
    cloud.kill();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    copy(backup.path(), &data);
    cloud.start();
    assert!(cloud.count() < 1_600);
    eventually("what it lacks is sent again", || (cloud.count() == 1_600).then_some(()));
    drained(&gateway);
    agree(&gateway, &cloud);
    assert!(gateway.get("/v1/status")["uplink"]["replays"].as_u64() >= Some(1));
}

/// A certificate authority and what it signs, as PEM files.
struct Authority {
    directory: tempfile::TempDir,
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        Authority { directory: tempfile::tempdir().unwrap(), certificate, issuer: rcgen::Issuer::new(parameters, key) }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn ca(&self) -> String {
        self.write("ca.pem", &self.certificate.pem())
    }

    /// A certificate for a name, and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let signed =
            rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (self.write(&format!("{name}.pem"), &signed.pem()), self.write(&format!("{name}.key"), &key.serialize_pem()))
    }
}

/// Over TLS, who has a certificate of its own name may push, and who has another one may not;
/// over HTTPS a token does the same.
#[test]
fn gateways_show_a_certificate_or_a_token_of_their_own() {
    let authority = Authority::new();
    let (server_cert, server_key) = authority.sign("localhost");
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut add = Command::new(tests::binary("tidegate-cloud"));
    add.arg("--set").arg(format!("cloud.data_dir={}", directory.path().join("cloud").display()));
    let token = tests::output(add.args(["user", "add", "gw-token", "--token"]));
    let token_file = authority.write("token", &token);
    let mut add = Command::new(tests::binary("tidegate-cloud"));
    add.arg("--set").arg(format!("cloud.data_dir={}", directory.path().join("cloud").display()));
    let reader = tests::output(add.args(["user", "add", "reader", "--token", "--role", "read"]));
    let cloud = cloud()
        .set("cloud.tls.cert", &server_cert)
        .set("cloud.tls.key", &server_key)
        .set("cloud.tls.client_ca", &authority.ca())
        .start_in(directory);
    let (cert, key) = authority.sign("gw-cert");
    let plan = gateway().set("window.length", "1s").set("window.lateness", "0s").forwarding_to(&[]);
    let by_certificate = plan
        .clone()
        .set("uplink.endpoints", &format!("[\"https://localhost:{}\"]", cloud.grpc.port()))
        .set("uplink.tls.ca", &authority.ca())
        .set("uplink.tls.cert", &cert)
        .set("uplink.tls.key", &key);
    let by_token =
        plan.set("uplink.endpoints", &format!("[\"{}\"]", cloud.url("/v1/push"))).set("uplink.token_file", &token_file);
    // Who is not known is told so before anything of a push is read.
    let mut stranger = TcpStream::connect(cloud.http).unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stranger.write_all(b"POST /v1/push HTTP/1.1\r\nHost: cloud\r\nContent-Length: 8000000\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stranger.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
    let now_s = tests::now_s();
    let error = |gateway: &Gateway| gateway.get("/v1/status")["uplink"]["last_error"].as_str().map(str::to_owned);
    let refused = |gateway: &Gateway, why: &str| {
        post(gateway, "d", now_s - 100, 10);
        let error = eventually("it is refused", || error(gateway));
        assert!(error.contains(why), "{error}");
    };
    let right = [by_certificate.clone().set("gateway.id", "gw-cert"), by_token.clone().set("gateway.id", "gw-token")];
    let right = right.map(|plan| plan.start());
    right.iter().for_each(|gateway| post(gateway, "d", now_s - 100, 10));
    let own = format!("Bearer {}", token.trim());
    let status = |path: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(cloud.url(path)).header("authorization", &own).call().unwrap().status().as_u16()
    };
    // A gateway's token is for its own windows, not for the fleet.
    assert_eq!(status("/v1/aggregates"), 403);
    assert_eq!(status("/v1/summaries?gateway=other"), 403);
    assert_eq!(status("/v1/summaries?gateway=gw-token"), 200);
    let bearer = format!("Bearer {}", reader.trim());
    let count = || {
        let url = cloud.url("/v1/aggregates?stats=count&group_by=gateway");
        let text = ureq::get(url).header("authorization", &bearer).call().unwrap().body_mut().read_to_string().unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["rows"].as_array().unwrap().len()
    };
    eventually("both are taken", || (count() == 2).then_some(()));
    refused(&by_certificate.clone().set("gateway.id", "other").start(), "gw-cert's, not \"other\"'s");
    refused(&by_token.set("gateway.id", "other").start(), "the token is \"gw-token\"'s, not \"other\"'s");
    let plain = gateway().forwarding_to(&[]).set("uplink.endpoints", &format!("[\"http://{}\"]", cloud.grpc)).start();
    eventually("without TLS it does not get through", || error(&plain));
    assert_eq!(count(), 2);
    // The cloud's certificate is renewed, by another authority.
    let other = Authority::new();
    let (new_cert, new_key) = other.sign("localhost");
    std::fs::copy(new_cert, &server_cert).unwrap();
    std::fs::copy(new_key, &server_key).unwrap();
    cloud.signal(Signal::HUP);
    eventually("it is read again", || cloud.log().contains("read again").then_some(()));
    let (cert, key) = authority.sign("gw-later");
    let later = by_certificate
        .set("uplink.tls.ca", &other.ca())
        .set("uplink.tls.cert", &cert)
        .set("uplink.tls.key", &key)
        .set("gateway.id", "gw-later")
        .start();
    post(&later, "d", now_s - 100, 10);
    eventually("who knows the new authority is taken", || (count() == 3).then_some(()));
}

/// A shard whose server is down keeps neither the daemon from starting nor the others from working.
#[test]
fn a_daemon_starts_and_serves_though_a_shard_is_down() {
    let down = tests::postgres::free_port();
    let shards = format!(r#"["sqlite:a.db", "far=postgres://nobody@127.0.0.1:{down}/none"]"#);
    let cloud = cloud().set("cloud.shards", &shards).start();
    let gateway = gateway()
        .set("gateway.id", "gw-1")
        .set("window.length", "1s")
        .set("window.lateness", "0s")
        .set("uplink.batch", "1")
        .set("uplink.timeout", "8s")
        .forwarding_to(&[&cloud])
        .start();
    let reading = |n: usize| json!({"device": format!("d{n}"), "metric": "m", "value": n, "time": tests::now_s() - 60});
    let body = json!({"readings": (0..6).map(reading).collect::<Vec<_>>()}).to_string();
    assert_eq!(gateway.post("/v1/readings", "application/json", body.as_bytes()).0, 200);
    let places: Vec<String> = (0..6)
        .map(|n| cloud.get(&format!("/v1/placement?device=d{n}&gateway=gw-1"))["shard"].as_str().unwrap().to_owned())
        .collect();
    assert!(places.iter().any(|place| place == "far") && places.iter().any(|place| place == "shard-000"), "{places:?}");
    let error = eventually("the gateway is told which shard is down", || {
        let status = gateway.get("/v1/status")["uplink"].clone();
        status["last_error"].as_str().filter(|error| error.contains("shard far")).map(str::to_owned)
    });
    println!("{error}");
    let answer = cloud.get("/v1/aggregates?stats=count&group_by=all");
    assert_eq!((&answer["partial"], &answer["missing"][0]["shard"]), (&json!(true), &json!("far")), "{answer}");
    eventually("what belongs there waits", || {
        (gateway.get("/v1/status")["uplink"]["backlog"].as_u64() > Some(0)).then_some(())
    });
}

/// Both daemons' documents describe what they answer, field by field.
#[test]
fn answers_are_what_the_openapi_documents_say() {
    let cloud = cloud().start();
    let gateway = gateway()
        .set("window.length", "1s")
        .set("window.lateness", "0s")
        .set("gateway.id", "gw-1")
        .forwarding_to(&[&cloud]);
    let gateway = gateway.start();
    let now_s = tests::now_s();
    let readings: Vec<_> =
        (0..3).map(|n| json!({"device": "d", "metric": "m", "value": n, "time": now_s - 60 + n})).collect();
    let body = json!({"readings": readings}).to_string();
    assert_eq!(gateway.post("/v1/readings", "application/json", body.as_bytes()).0, 200);
    assert_ne!(gateway.post("/v1/readings", "application/json", b"{\"nonsense\"").0, 200);
    eventually("they arrive", || (cloud.count() == 3).then_some(()));
    drained(&gateway);
    eventually("it is heard", || {
        cloud.get("/v1/gateways")["rows"].as_array().filter(|rows| !rows.is_empty()).map(drop)
    });

    let mut wrong = Vec::new();
    let document = cloud.get("/openapi.json");
    for (path, query) in [
        ("/v1/aggregates", "?window=1s&stats=count,mean,first,p95&limit=1"),
        ("/v1/aggregates", "?group_by=gateway"),
        ("/v1/devices", ""),
        ("/v1/gateways", ""),
        ("/v1/summaries", "?gateway=gw-1&limit=2"),
        ("/v1/shards", ""),
        ("/v1/placement", "?device=d"),
        ("/v1/placement", "?device=d&gateway=gw-1"),
        ("/v1/moves", ""),
        ("/v1/status", ""),
        ("/openapi.json", ""),
    ] {
        wrong.extend(tests::schema::violations(&document, path, "get", &cloud.get(&format!("{path}{query}"))));
    }
    let token = std::fs::read_to_string(cloud.directory.path().join("cloud/admin.token")).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    let answer = |url: String, body: Option<serde_json::Value>| -> serde_json::Value {
        let mut sent = match body {
            Some(body) => ureq::post(url).header("authorization", &bearer).send_json(body),
            None => ureq::delete(url).header("authorization", &bearer).call(),
        }
        .unwrap();
        sent.body_mut().read_json().unwrap()
    };
    let more = json!({"name": "third", "url": "sqlite:third.db"});
    for (path, resource, method, body) in [
        ("/v1/shards", "/v1/shards", "post", Some(more)),
        ("/v1/moves", "/v1/moves", "post", Some(json!({}))),
        ("/v1/moves", "/v1/moves", "delete", None),
        ("/v1/gateways/{gateway}/accept", "/v1/gateways/gw-1/accept", "post", Some(json!({}))),
        ("/v1/gateways/{gateway}", "/v1/gateways/gw-1", "delete", None),
    ] {
        wrong.extend(tests::schema::violations(&document, path, method, &answer(cloud.url(resource), body)));
    }
    let document = gateway.get("/openapi.json");
    for (path, query) in [
        ("/v1/readings", "?limit=2"),
        ("/v1/aggregates", "?window=1s&stats=count,mean,first,p95&limit=1"),
        ("/v1/devices", ""),
        ("/v1/rejects", ""),
        ("/v1/status", ""),
        ("/v1/sniff", ""),
    ] {
        wrong.extend(tests::schema::violations(&document, path, "get", &gateway.get(&format!("{path}{query}"))));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
