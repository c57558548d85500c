//! Doors stay shut, and what is sent stays within its bounds: the inputs that broke them once, each by the
//! public way in.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::cloud::cloud;
use tests::{Gateway, binary, both, eventually, gateway, output, tool};

/// What one input may add to the memory of a gateway that idles.
const PEAK_BYTES: u64 = 200 << 20;

fn http(gateway: &Gateway) -> SocketAddr {
    gateway.get("/v1/status")["addresses"]["http"].as_str().unwrap().parse().unwrap()
}

/// A request with headers of its own; the status of the answer.
fn request(to: SocketAddr, head: &str, body: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
        .write_all(format!("{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).as_bytes())
        .unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

fn user(gateway: &Gateway, arguments: &[&str], password: &str) {
    let data = format!("gateway.data_dir={}", gateway.directory.path().join("data").display());
    let mut command = Command::new(binary("tidegate"));
    let mut child = command.arg("user").args(arguments).args(["--set", &data]).stdin(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    assert!(child.wait().unwrap().success());
}

/// A SenML pack whose base unit is as long as the message, line protocol whose measurement is, trees of
/// nothing, lines of nothing: each is answered, with little memory.
#[test]
fn no_message_takes_more_memory_than_its_share() {
    let gateway = gateway().start();
    let unit = "x".repeat(1 << 20);
    let senml = format!(r#"[{{"bn":"a:","bu":"{unit}","n":"t","v":1}}{}]"#, r#",{"n":"t","v":1}"#.repeat(50_000));
    let measurement = format!("{} {}", "m".repeat(1 << 20), "f=1,".repeat(1 << 19));
    let cbor = [&[0x9b, 0, 0, 0, 0, 0, 0xf0, 0, 0][..], &[0; 15 << 20]].concat();
    let inputs: [(&str, &str, Vec<u8>); 7] = [
        ("/v1/readings", "application/senml+json", senml.into_bytes()),
        ("/api/v2/write", "text/plain", measurement.into_bytes()),
        ("/v1/readings", "application/cbor", cbor),
        ("/api/v2/write", "text/plain", b"x\n".repeat(8 << 20)),
        ("/api/v2/write", "text/plain", b"m v=1\n".repeat(16 << 20 >> 3)),
        ("/api/v2/write", "text/plain", [b"m ".to_vec(), b"a=1,".repeat((4 << 20) - 1)].concat()),
        ("/v1/readings", "application/json", [b"[".repeat(8 << 20), b"]".to_vec()].concat()),
    ];
    let idle = gateway.peak_bytes();
    for (path, content_type, body) in inputs {
        let begin = String::from_utf8_lossy(&body[..20]).into_owned();
        let (status, said) = gateway.post(path, content_type, &body);
        let said: String = said.chars().take(200).collect();
        assert!((200..500).contains(&status), "{path} {begin}: {status} {said}");
        let added = gateway.peak_bytes() - idle;
        println!("{path} {content_type} {begin:?}: {status}, {} MiB more than idle", added >> 20);
        assert!(added < PEAK_BYTES, "{path} {begin}: {added} bytes");
    }
    // The same pack over MQTT: the gateway lives, and goes on.
    let pack = format!(
        r#"[{{"bn":"a:","bu":"{}","n":"t","v":1}}{}]"#,
        "x".repeat(1 << 20),
        r#",{"n":"t","v":1}"#.repeat(50_000)
    );
    let file = gateway.directory.path().join("pack");
    std::fs::write(&file, pack).unwrap();
    let mut publish = tool("mosquitto_pub", "mosquitto-clients");
    output(publish.args(gateway.mosquitto()).args(["-q", "1", "-t", "devices/a", "-f"]).arg(&file));
    assert!(gateway.peak_bytes() - idle < PEAK_BYTES);
}

/// Bodies that are announced and do not come hold nobody up.
#[test]
fn whoever_announces_and_does_not_send_holds_nobody_up() {
    let gateway = gateway().start();
    let to = http(&gateway);
    let half: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(to).unwrap();
            let head = "POST /v1/readings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000000\r\n\r\n{";
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let body = r#"{"device":"a","metric":"m","value":1}"#;
    assert_eq!(gateway.post("/v1/readings", "application/json", body.as_bytes()).0, 200);
    drop(half);
}

/// Half requests from one address take no more than its share, and MQTT gets in.
#[test]
fn half_requests_leave_room_for_others() {
    let gateway = gateway().set("http.max_connections", "64").start();
    let to = http(&gateway);
    let half: Vec<TcpStream> = (0..200)
        .filter_map(|_| {
            let mut stream = TcpStream::connect(to).ok()?;
            stream.write_all(b"GET /v1/st").ok()?;
            Some(stream)
        })
        .collect();
    gateway.publish(&["-q", "1", "-t", "devices/a/t", "-m", "1"]);
    drop(half);
    eventually("the seats are free again", || {
        let mut stream = TcpStream::connect(to).ok()?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.contains(" 200 ").then_some(())
    });
}

#[test]
fn one_client_cannot_use_up_the_names_of_all() {
    let gateway = gateway().set("limits.devices", "400").start();
    let names = |prefix: &str| {
        let reading = |i: usize| format!(r#"{{"device":"{prefix}{i}","metric":"m","value":1}}"#);
        format!("[{}]", (0..1_000).map(reading).collect::<Vec<_>>().join(","))
    };
    let (_, said) = gateway.post("/v1/readings", "application/json", names("hog").as_bytes());
    assert!(said.contains("limits.client_share"), "{}", &said[..300]);
    let devices = gateway.get("/v1/status")["devices"].as_u64().unwrap();
    assert!((100..=200).contains(&devices), "{devices}");
}

#[test]
fn the_last_user_leaves_and_the_door_stays_shut() {
    let gateway = gateway().set("http.listen", "127.0.0.1:0").start();
    user(&gateway, &["add", "ann"], "s3cret");
    gateway.signal(rustix::process::Signal::HUP);
    eventually("somebody is asked for", || (gateway.try_get("/v1/devices").0 == 401).then_some(()));
    // She is connected when she is removed: MQTT 5, clean start, user name and password.
    let mqtt: SocketAddr = gateway.mqtt;
    let mut phone = TcpStream::connect(mqtt).unwrap();
    phone.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    phone.write_all(b"\x10\x1c\0\x04MQTT\x05\xc2\0\0\0\0\x02me\0\x03ann\0\x06s3cret").unwrap();
    let mut connack = [0; 4];
    phone.read_exact(&mut connack).unwrap();
    assert_eq!((connack[0], connack[3]), (0x20, 0), "{connack:x?}");
    user(&gateway, &["remove", "ann"], "");
    gateway.signal(rustix::process::Signal::HUP);
    eventually("the log says that nobody is left", || gateway.log().contains("nobody is left").then_some(()));
    assert_eq!(gateway.try_get("/v1/devices").0, 401);
    let mut publish = tool("mosquitto_pub", "mosquitto-clients");
    publish.args(gateway.mosquitto()).args(["-q", "1", "-t", "devices/a/t", "-m", "1"]);
    assert!(!publish.output().unwrap().status.success(), "nobody comes in without a name");
    let mut rest = Vec::new();
    phone.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(&[0xe0, 2, 0x87, 0]), "her connection was ended: {rest:x?}");
}

#[test]
fn guesses_are_slowed_counted_and_logged() {
    let gateway = gateway().start();
    let to = http(&gateway);
    user(&gateway, &["add", "ann"], "s3cret");
    gateway.signal(rustix::process::Signal::HUP);
    eventually("somebody is asked for", || (gateway.try_get("/v1/devices").0 == 401).then_some(()));
    let ask = |login: &str| {
        request(to, &format!("GET /v1/devices HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {login}"), b"")
    };
    // ann:guess
    let guesses: Vec<u16> = (0..10).map(|_| ask("YW5uOmd1ZXNz")).collect();
    assert!(guesses.contains(&429), "{guesses:?}");
    assert!(gateway.log().contains("a login was wrong"), "{}", gateway.log());
}

#[test]
fn pages_from_elsewhere_and_names_that_are_not_ours_lead_nowhere() {
    let gateway = gateway().start();
    let to = http(&gateway);
    let body = br#"{"device":"a","metric":"m","value":1}"#;
    let post = |headers: &str| request(to, &format!("POST /v1/readings HTTP/1.1\r\n{headers}"), body);
    let json = "Content-Type: application/json";
    assert_eq!(post(&format!("Host: localhost\r\n{json}")), 200);
    assert_eq!(post(&format!("Host: localhost\r\n{json}\r\nOrigin: http://evil.example")), 403);
    assert_eq!(post(&format!("Host: localhost\r\n{json}\r\nSec-Fetch-Site: cross-site")), 403);
    assert_eq!(post("Host: localhost\r\nContent-Type: application/x-www-form-urlencoded"), 415);
    assert_eq!(post("Host: localhost\r\nContent-Type: text/plain"), 415);
    assert_eq!(post(&format!("Host: rebound.example:8080\r\n{json}")), 421);
    assert_eq!(request(to, "GET /v1/devices HTTP/1.1\r\nHost: rebound.example", b""), 421);
}

#[test]
fn check_names_what_run_would_refuse() {
    let directory = tempfile::tempdir().unwrap();
    let plan = gateway().set("mqtt.listen", "0.0.0.0:1883");
    let said = plan.command(directory.path()).arg("check").output().unwrap();
    assert_eq!(said.status.code(), Some(2), "{}", both(&said));
    assert!(both(&said).contains("would let anybody"), "{}", both(&said));
    let mut good = gateway().set("time.zone", "America/New_York").command(directory.path());
    assert_eq!(output(good.arg("check")).trim(), "the configuration is good");
}

#[test]
fn what_is_written_is_for_its_owner_only() {
    let gateway = gateway().start();
    gateway.publish(&["-q", "1", "-t", "devices/a/t", "-m", "1"]);
    let data = gateway.directory.path().join("data");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
}

/// A store that is not what its log expects is not opened over.
#[test]
fn a_store_that_does_not_fit_its_log_is_left_alone() {
    let mut gateway = gateway().start();
    gateway.publish(&["-q", "1", "-t", "devices/a/t", "-m", "1"]);
    gateway.stop();
    let data = gateway.directory.path().join("data");
    let (store, log) = (data.join("tidegate.db"), data.join("tidegate.db-wal"));
    let backup = std::fs::read(&store).unwrap();
    gateway.start();
    gateway.publish(&["-q", "1", "-t", "devices/a/t", "-m", "2"]);
    gateway.kill();
    let (kept, commits) = (std::fs::read(&store).unwrap(), std::fs::read(&log).unwrap());
    assert!(!commits.is_empty());
    let zeros = vec![0; kept.len()];
    for (what, put, needle) in [
        ("an older file", Some(&backup), "is older than"),
        ("a file of zeros", Some(&zeros), "tidegate doctor --salvage"),
        ("an empty file", Some(&Vec::new()), "holds commits for it"),
        ("no file", None, "holds commits for it"),
    ] {
        match put {
            Some(bytes) => std::fs::write(&store, bytes).unwrap(),
            None => std::fs::remove_file(&store).unwrap(),
        }
        let output = tests::gateway().command(gateway.directory.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{what}: {}", both(&output));
        assert!(both(&output).contains(needle), "{what}: {}", both(&output));
        assert_eq!(std::fs::read(&log).unwrap(), commits, "{what}: the log is as it was");
    }
    std::fs::write(&store, kept).unwrap();
    gateway.start();
    assert_eq!(gateway.get("/v1/devices/a")["readings"], 2, "the right file is opened again");
}

#[test]
fn the_cloud_checks_where_its_map_and_its_shards_are() {
    let refused = |settings: &[&str]| {
        let mut command = Command::new(binary("tidegate-cloud"));
        for setting in settings {
            command.args(["--set", setting]);
        }
        let output = command.arg("check").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{settings:?}: {}", both(&output));
        both(&output)
    };
    let said =
        refused(&["cloud.coordinator=zookeeper", r#"cloud.shards=["postgres://u:secret@h:port/d", "sqlite:../x"]"#]);
    assert!(said.contains("cloud.coordinator") && said.contains(r#""zookeeper" is not a coordinator"#), "{said}");
    assert!(said.contains("shard-000") && said.contains("port") && !said.contains("secret"), "{said}");
    assert!(said.contains("shard-001") && said.contains("is not below cloud.data_dir"), "{said}");
    let said = refused(&["cloud.coordinator=etcd://h:2379", r#"cloud.shards=["sqlite:x.db"]"#]);
    assert!(said.contains("an SQLite shard has one daemon"), "{said}");
}

/// A peer that says nothing, or only begins to speak HTTP/2, keeps no seat at the cloud.
#[test]
fn a_peer_that_never_opens_gives_its_seat_back() {
    let cloud = cloud().start();
    let to = cloud.endpoint().trim_start_matches("http://").to_owned();
    let begun: Vec<TcpStream> = [&b""[..], b"PRI * HTTP/2.0"]
        .into_iter()
        .map(|bytes| {
            let mut stream = TcpStream::connect(&to).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.write_all(bytes).unwrap();
            stream
        })
        .collect();
    for mut stream in begun {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the connection ends");
    }
}

/// Whatever stands in a path, the answer is one that a program can read.
#[test]
fn a_path_that_cannot_be_read_gets_an_answer_like_any_other() {
    let gateway = gateway().start();
    for path in ["/v1/devices/%FF", "/v1/devices/a%00b", "/v1/devices/%2E%2E", "/v1/nothing"] {
        let (status, answer) = gateway.try_get(path);
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{path}: {answer}"));
        assert_eq!(answer["status"], status, "{path}: {answer}");
        assert!(status == 400 || status == 404, "{path}: {answer}");
    }
}

#[test]
fn the_cloud_asks_whoever_changes_it() {
    let cloud = cloud().start();
    let to = cloud.http;
    let post = |headers: &str, body: &str| {
        request(
            to,
            &format!("POST /v1/shards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json{headers}"),
            body.as_bytes(),
        )
    };
    assert_eq!(post("", r#"{"name":"x","url":"sqlite:x.db"}"#), 401);
    let token = std::fs::read_to_string(cloud.directory.path().join("cloud/admin.token")).unwrap();
    let bearer = format!("\r\nAuthorization: Bearer {token}");
    for url in ["sqlite:../x.db", "sqlite:/tmp/x.db", "sqlite:a/../../x.db", "sqlite:"] {
        assert_eq!(post(&bearer, &format!(r#"{{"name":"x","url":"{url}"}}"#)), 400, "{url}");
    }
    assert_eq!(post(&format!("{bearer}\r\nOrigin: http://evil.example"), r#"{"name":"x","url":"sqlite:x.db"}"#), 403);
    assert_eq!(post(&bearer, r#"{"name":"x","url":"sqlite:x.db"}"#), 200);
    assert!(!cloud.directory.path().join("x.db").exists());
    let listed = cloud.verb(&["shards", "list"]);
    assert!(listed.contains("x.db"), "the verbs find the token themselves: {listed}");
}
