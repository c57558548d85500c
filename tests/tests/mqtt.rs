//! MQTT by hand: what well-behaved clients never send, and what the standard says of it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tests::{Gateway, eventually, gateway};

struct Client(TcpStream);

impl Client {
    fn open(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(gateway.mqtt).unwrap();
        stream.set_read_timeout(Some(tests::PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(stream)
    }

    fn connect(gateway: &Gateway, version: u8, id: &str, clean: bool) -> Self {
        let mut client = Client::open(gateway);
        client.send(&connect(version, id, clean, 0));
        let answer = client.packet();
        assert_eq!((answer[0], answer[2], answer[3]), (0x20, 0, 0), "{answer:x?}");
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next packet, all its bytes.
    fn packet(&mut self) -> Vec<u8> {
        let mut packet = vec![0; 2];
        self.0.read_exact(&mut packet).unwrap();
        assert!(packet[1] < 0x80, "short packets only");
        let mut rest = vec![0; usize::from(packet[1])];
        self.0.read_exact(&mut rest).unwrap();
        packet.extend(rest);
        packet
    }

    /// Everything until the server closes.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => rest,
            Err(e) => panic!("the server did not close: {e}"),
        }
    }
}

fn connect(version: u8, id: &str, clean: bool, keep_alive: u16) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', version, if clean { 2 } else { 0 }];
    body.extend(keep_alive.to_be_bytes());
    if version == 5 {
        // Session expiry 100 s for a session that is to stay.
        if clean { body.push(0) } else { body.extend([5, 0x11, 0, 0, 0, 100]) }
    }
    body.extend((id.len() as u16).to_be_bytes());
    body.extend(id.as_bytes());
    [vec![0x10, body.len() as u8], body].concat()
}

fn publish(version: u8, flags: u8, topic: &str, pkid: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    if flags & 6 != 0 {
        body.extend(pkid.to_be_bytes());
    }
    if version == 5 {
        body.push(0);
    }
    body.extend(payload);
    [vec![0x30 | flags, body.len() as u8], body].concat()
}

fn still_serves(gateway: &Gateway) {
    gateway.publish(&["-q", "1", "-t", "devices/after/t", "-m", "1"]);
}

#[test]
fn hostile_bytes_end_their_connection_and_nothing_else() {
    let gateway = gateway().start();
    let good = connect(4, "x", true, 0);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("not MQTT", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("PUBLISH first", publish(4, 0, "a", 0, b"1")),
        ("reserved CONNECT flag", {
            let mut c = good.clone();
            c[9] |= 1;
            c
        }),
        ("will QoS 3", {
            let mut c = good.clone();
            c[9] |= 0x1c;
            c
        }),
        ("remaining length of five bytes", [&good[..], &[0x30, 0xff, 0xff, 0xff, 0xff, 0x01]].concat()),
        ("packet too large", [&good[..], &[0x30, 0xff, 0xff, 0xff, 0x7f]].concat()),
        ("bytes behind CONNECT's payload", {
            let mut c = good.clone();
            c[1] += 1;
            c.push(0);
            c
        }),
        ("CONNECT that is cut short", {
            let mut c = good.clone();
            c[9] |= 0x80;
            c
        }),
        ("second CONNECT", [&good[..], &good[..]].concat()),
        ("QoS 3", [&good[..], &publish(4, 6, "a", 1, b"1")].concat()),
        ("identifier 0", [&good[..], &publish(4, 2, "a", 0, b"1")].concat()),
        ("wildcard topic", [&good[..], &publish(4, 0, "a/#", 0, b"1")].concat()),
        ("empty topic", [&good[..], &publish(4, 0, "", 0, b"1")].concat()),
        ("NUL in topic", [&good[..], &publish(4, 0, "a\0b", 0, b"1")].concat()),
        ("topic not UTF-8", [&good[..], &[0x30, 5, 0, 2, 0xff, 0xfe, b'1']].concat()),
        ("topic longer than packet", [&good[..], &[0x30, 3, 0, 9, b'a']].concat()),
        ("SUBSCRIBE without filter", [&good[..], &[0x82, 2, 0, 1]].concat()),
        ("SUBSCRIBE with wrong flags", [&good[..], &[0x80, 6, 0, 1, 0, 1, b'a', 0]].concat()),
        ("CONNACK from a client", [&good[..], &[0x20, 2, 0, 0]].concat()),
        ("type 0", [&good[..], &[0x00, 0]].concat()),
        ("AUTH in 3.1.1", [&good[..], &[0xf0, 0]].concat()),
    ];
    for (name, bytes) in cases {
        let mut client = Client::open(&gateway);
        client.send(&bytes);
        client.rest();
        println!("{name}: closed");
        still_serves(&gateway);
    }
}

#[test]
fn mqtt_5_is_told_the_reason() {
    let gateway = gateway().set("mqtt.max_packet", "1 KiB").start();
    for (bytes, code) in [
        (publish(5, 0, "a/+", 0, b"1"), 0x90),
        (vec![0x30, 0xff, 0x7f], 0x95),
        (vec![0x30, 6, 0, 1, b'a', 2, 0x01, 7], 0x82),
        (vec![0x30, 7, 0, 0, 3, 0x23, 0, 0, b'1'], 0x94),
        (vec![0x10, 0], 0x82),
    ] {
        let mut client = Client::connect(&gateway, 5, "x", true);
        client.send(&bytes);
        let rest = client.rest();
        assert_eq!(rest, [0xe0, 2, code, 0], "{bytes:x?}");
    }
    let mut client = Client::open(&gateway);
    client.send(&connect(6, "x", true, 0));
    assert_eq!(client.rest(), [0x20, 2, 0, 1], "an unknown version is refused as 3.1.1 does");
}

/// A CONNECT with these properties.
fn connect_with(properties: &[u8], id: &str) -> Vec<u8> {
    let mut body = b"\0\x04MQTT\x05\x02\0\0".to_vec();
    body.push(properties.len() as u8);
    body.extend(properties);
    body.extend((id.len() as u16).to_be_bytes());
    body.extend(id.as_bytes());
    [vec![0x10, body.len() as u8], body].concat()
}

/// Table 2-4, as far as it is CONNECT's, with values that are not 0.
#[test]
fn whoever_speaks_the_protocol_gets_in_and_a_refusal_says_why() {
    let gateway = gateway().start();
    for (i, properties) in [
        &[0x11, 0, 0, 0, 60][..],
        &[0x21, 0, 10],
        &[0x22, 0, 10],
        &[0x27, 0, 0, 16, 0],
        &[0x19, 1],
        &[0x17, 1],
        &[0x26, 0, 1, b'k', 0, 1, b'v', 0x26, 0, 1, b'k', 0, 1, b'w'],
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Client::open(&gateway);
        client.send(&connect_with(properties, &format!("c{i}")));
        let answer = client.packet();
        assert_eq!((answer[0], answer[3]), (0x20, 0), "{properties:x?}: {answer:x?}");
    }
    for (properties, code) in [
        (&[0x21, 0, 0][..], 0x82),
        (&[0x21, 0, 1, 0x21, 0, 1], 0x82),
        (&[0x17, 2], 0x82),
        (&[0x16, 0, 1, b'x'], 0x82),
        (&[0x21, 0], 0x81),
    ] {
        let mut client = Client::open(&gateway);
        client.send(&connect_with(properties, "refused-one"));
        assert_eq!(client.rest(), [0x20, 3, 0, code, 0], "{properties:x?}");
    }
    let log = gateway.log();
    assert!(log.contains("a client was refused") && log.contains("refused-one"), "{log}");
    assert!(gateway.metric("tidegate_refused_connects_total{reason=\"protocol_error\"}") >= 4.0);
    // MQTT 3.1, and bridges, which set the level's highest bit.
    for (name, level) in [("MQIsdp", 3_u8), ("MQIsdp", 0x83), ("MQTT", 0x84), ("MQTT", 4)] {
        let mut body = (name.len() as u16).to_be_bytes().to_vec();
        body.extend(name.as_bytes());
        body.extend([level, 2, 0, 60, 0, 1, b'b']);
        let mut client = Client::open(&gateway);
        client.send(&[vec![0x10, body.len() as u8], body].concat());
        assert_eq!(client.packet(), [0x20, 2, 0, 0], "{name} {level:#x}");
        // What a bridge publishes does not come back to it.
        client.send(&[0x82, 8, 0, 1, 0, 3, b'b', b'/', b'#', 0]);
        assert_eq!(client.packet(), [0x90, 3, 0, 1, 0]);
        client.send(&publish(4, 2, "b/x", 2, b"1"));
        if level < 0x80 {
            assert_eq!(client.packet()[0], 0x30, "{name} {level:#x}");
        }
        assert_eq!(client.packet(), [0x40, 2, 0, 2], "{name} {level:#x}");
        client.send(&[0xc0, 0]);
        assert_eq!(client.packet(), [0xd0, 0], "{name} {level:#x}: nothing else came");
        client.send(&[0xe0, 0]);
    }
}

#[test]
fn a_message_whose_names_have_no_room_is_refused_and_its_own_is_no_news() {
    let gateway = gateway().set("limits.devices", "1").start();
    let mut client = Client::connect(&gateway, 5, "x", true);
    client.send(&publish(5, 2, "devices/a/t", 1, b"1"));
    assert_eq!(client.packet(), [0x40, 2, 0, 1]);
    client.send(&publish(5, 2, "devices/b/t", 2, b"1"));
    assert_eq!(client.packet(), [0x40, 3, 0, 2, 0x97]);
    // A retained message, and right behind it a subscription: it comes once, as a retained one.
    let mut both = publish(5, 3, "own/t", 3, b"1");
    both.extend([0x82, 11, 0, 4, 0, 0, 5, b'o', b'w', b'n', b'/', b'#', 0]);
    client.send(&both);
    assert_eq!(client.packet(), [0x40, 2, 0, 3]);
    assert_eq!(client.packet(), [0x90, 4, 0, 4, 0, 0]);
    assert_eq!(client.packet()[0], 0x31, "retained");
    client.send(&[0xc0, 0]);
    assert_eq!(client.packet(), [0xd0, 0], "nothing else came");
}

#[test]
fn a_filter_of_sixty_thousand_levels_is_refused() {
    let gateway = gateway().start();
    let mut client = Client::connect(&gateway, 4, "deep", true);
    let filter = "/".repeat(65_535);
    let mut packet = vec![0x82, 0x84, 0x80, 0x04, 0, 1, 0xff, 0xff];
    packet.extend(filter.as_bytes());
    packet.push(0);
    client.send(&packet);
    assert_eq!(client.packet(), [0x90, 3, 0, 1, 0x80]);
    still_serves(&gateway);
}

#[test]
fn acknowledgements_keep_the_order_of_arrival_rejects_and_foreign_topics_included() {
    let gateway = gateway().start();
    for version in [4, 5] {
        let mut client = Client::connect(&gateway, version, "orderly", true);
        let mut all = Vec::new();
        for pkid in 1..=30_u16 {
            let (topic, payload): (&str, &[u8]) = match pkid % 3 {
                0 => ("devices/a/t", b"1.5"),
                1 => ("other/topic", b"anything"),
                _ => ("devices/a", b"{broken"),
            };
            let flags = if pkid % 5 == 0 { 4 } else { 2 };
            all.extend(publish(version, flags, topic, pkid, payload));
        }
        client.send(&all);
        for pkid in 1..=30_u16 {
            let kind = if pkid % 5 == 0 { 0x50 } else { 0x40 };
            assert_eq!(client.packet(), [kind, 2, 0, pkid as u8]);
        }
    }
    assert_eq!(gateway.get("/v1/rejects")["rows"].as_array().unwrap().len(), 20);
}

#[test]
fn a_repeated_qos_2_message_is_stored_once_also_after_a_kill() {
    let mut gateway = gateway().start();
    let message = publish(4, 4, "devices/a/t", 7, b"1.5");
    let again = publish(4, 0x0c, "devices/a/t", 7, b"1.5");
    let mut client = Client::connect(&gateway, 4, "exact", false);
    client.send(&message);
    assert_eq!(client.packet(), [0x50, 2, 0, 7]);
    client.send(&again);
    assert_eq!(client.packet(), [0x50, 2, 0, 7]);
    gateway.kill();
    gateway.start();
    let mut client = Client::connect(&gateway, 4, "exact", false);
    client.send(&again);
    assert_eq!(client.packet(), [0x50, 2, 0, 7]);
    assert_eq!(gateway.rows("/v1/readings?device=a").len(), 1);
    client.send(&[0x62, 2, 0, 7]);
    assert_eq!(client.packet(), [0x70, 2, 0, 7]);
    client.send(&message);
    assert_eq!(client.packet(), [0x50, 2, 0, 7]);
    assert_eq!(gateway.rows("/v1/readings?device=a").len(), 2, "released, the identifier is free for a new message");
    // A client that was told that there is no session begins again with its identifiers.
    let mut client = Client::connect(&gateway, 4, "exact", false);
    client.send(&message);
    assert_eq!(client.packet(), [0x50, 2, 0, 7]);
    assert_eq!(gateway.rows("/v1/readings?device=a").len(), 3, "without DUP it is a new message");
}

#[test]
fn a_second_connection_takes_the_session_over() {
    let gateway = gateway().start();
    let mut first = Client::connect(&gateway, 5, "same", true);
    let mut second = Client::connect(&gateway, 5, "same", true);
    assert_eq!(first.rest(), [0xe0, 2, 0x8e, 0]);
    second.send(&[0xc0, 0]);
    assert_eq!(second.packet(), [0xd0, 0]);
}

#[test]
fn keep_alive_ends_silent_connections_and_zero_never_does() {
    let gateway = gateway().start();
    let mut silent = Client::open(&gateway);
    silent.send(&connect(5, "silent", true, 1));
    let mut patient = Client::connect(&gateway, 4, "patient", true);
    silent.packet();
    assert_eq!(silent.rest(), [0xe0, 2, 0x8d, 0]);
    patient.send(&[0xc0, 0]);
    assert_eq!(patient.packet(), [0xd0, 0]);
}

#[test]
fn a_connection_that_never_says_connect_is_closed() {
    let gateway = gateway().set("mqtt.connect_timeout", "1s").start();
    let mut client = Client::open(&gateway);
    client.send(&[0x10]);
    assert!(client.rest().is_empty());
}

#[test]
fn one_connection_more_than_the_limit_is_refused_and_then_let_in() {
    let gateway = gateway().set("mqtt.max_connections", "2").start();
    let first = Client::connect(&gateway, 4, "a", true);
    let _second = Client::connect(&gateway, 4, "b", true);
    let mut third = Client::open(&gateway);
    third.send(&connect(4, "c", true, 0));
    assert_eq!(third.rest(), [0x20, 2, 0, 3]);
    drop(first);
    eventually("there is room again", || {
        let mut client = Client::open(&gateway);
        client.send(&connect(4, "c", true, 0));
        (client.packet() == [0x20, 2, 0, 0]).then_some(())
    });
}

#[test]
fn a_packet_in_single_bytes_is_a_packet() {
    let gateway = gateway().start();
    let mut client = Client::open(&gateway);
    for byte in connect(4, "slow", true, 0).into_iter().chain(publish(4, 2, "devices/slow/t", 1, b"9.5")) {
        client.send(&[byte]);
    }
    assert_eq!(client.packet(), [0x20, 2, 0, 0]);
    assert_eq!(client.packet(), [0x40, 2, 0, 1]);
    assert_eq!(gateway.rows("/v1/readings?device=slow").len(), 1);
}

#[test]
fn subscriptions_follow_the_rules_of_both_versions() {
    let gateway = gateway().start();
    let mut v5 = Client::connect(&gateway, 5, "five", true);
    let filters: [(&str, u8); 4] = [("a/+", 1), ("a/#", 0x04), ("a#", 0), ("$share/g/a", 0)];
    let mut body = vec![0, 9, 2, 0x0b, 5];
    for (filter, options) in filters {
        body.extend((filter.len() as u16).to_be_bytes());
        body.extend(filter.as_bytes());
        body.push(options);
    }
    v5.send(&[vec![0x82, body.len() as u8], body].concat());
    assert_eq!(v5.packet(), [0x90, 7, 0, 9, 0, 1, 0, 0x8f, 0x9e]);
    v5.send(&publish(5, 2, "a/b", 3, b"x"));
    // Once, at the higher QoS, with both identifiers but not for the no-local filter.
    let mut got = [v5.packet(), v5.packet()];
    got.sort();
    assert_eq!(got[0], [0x32, 11, 0, 3, b'a', b'/', b'b', 0, 1, 2, 0x0b, 5, b'x']);
    assert_eq!(got[1], [0x40, 2, 0, 3]);
    let mut v4 = Client::connect(&gateway, 4, "four", true);
    v4.send(&[0x82, 7, 0, 1, 0, 2, b'q', b'#', 2]);
    assert_eq!(v4.packet(), [0x90, 3, 0, 1, 0x80]);
    v4.send(&[0x82, 6, 0, 2, 0, 1, b'q', 2]);
    assert_eq!(v4.packet(), [0x90, 3, 0, 2, 1], "QoS 2 is granted as 1");
    v4.send(&[0xa2, 5, 0, 3, 0, 1, b'q']);
    assert_eq!(v4.packet(), [0xb0, 2, 0, 3]);
    v4.0.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    gateway.publish(&["-q", "1", "-t", "q", "-m", "x"]);
    assert_eq!(v4.0.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_client_gets_no_packet_larger_than_it_takes() {
    let gateway = gateway().start();
    let mut small = Client::open(&gateway);
    // MQTT 5 with a maximum packet size of 30 bytes.
    small.send(b"\x10\x16\0\x04MQTT\x05\x02\0\0\x05\x27\0\0\0\x1e\0\x04tiny");
    assert_eq!(small.packet()[0], 0x20);
    small.send(&[0x82, 7, 0, 1, 0, 0, 1, b't', 1]);
    assert_eq!(small.packet(), [0x90, 4, 0, 1, 0, 1]);
    gateway.publish(&["-q", "1", "-t", "t", "-m", "a payload that makes the packet larger than thirty bytes"]);
    gateway.publish(&["-q", "1", "-t", "t", "-m", "small"]);
    assert_eq!(small.packet(), [&[0x32, 11, 0, 1, b't', 0, 2, 0][..], b"small"].concat());
}

#[test]
fn unfinished_packets_of_all_connections_are_bounded() {
    let gateway = gateway().set("mqtt.assembly_memory", "1 MiB").start();
    let mut hoarders: Vec<Client> = (0..30).map(|i| Client::connect(&gateway, 4, &format!("h{i}"), true)).collect();
    let mut closed = 0;
    for client in &mut hoarders {
        // A packet of 1 MiB whose end never comes.
        let begin = [&[0x30, 0x80, 0x80, 0x40, 0, 1, b'a'][..], &[b'x'; 200_000]].concat();
        let _ = client.0.write_all(&begin);
    }
    eventually("some are closed", || {
        let open = gateway.get("/v1/status")["connections"].as_u64()?;
        closed = hoarders.len() as u64 - open;
        (closed >= 20).then_some(())
    });
    still_serves(&gateway);
}

#[test]
fn a_subscription_is_shown_more_retained_messages_than_its_queue_holds() {
    let gateway = gateway().set("mqtt.subscriber_queue", "4 KiB").set("mqtt.max_inflight", "5").start();
    let mut publisher = Client::connect(&gateway, 4, "publisher", true);
    for i in 0..300_u16 {
        publisher.send(&publish(4, 3, &format!("kept/{i:03}"), i + 1, &[b'x'; 80]));
        assert_eq!(publisher.packet()[0], 0x40);
    }
    let mut subscriber = Client::connect(&gateway, 4, "subscriber", true);
    subscriber.send(&[0x82, 11, 0, 1, 0, 6, b'k', b'e', b'p', b't', b'/', b'#', 1]);
    assert_eq!(subscriber.packet(), [0x90, 3, 0, 1, 1]);
    for i in 0..300 {
        let shown = subscriber.packet();
        assert_eq!(&shown[4..12], format!("kept/{i:03}").as_bytes());
        subscriber.send(&[0x40, 2, shown[12], shown[13]]);
    }
}

#[test]
fn a_message_is_passed_on_with_the_time_it_has_left_and_not_when_it_has_none() {
    let gateway = gateway().start();
    let retain = |topic: &str, expiry_s: &str| {
        let property = ["-D", "publish", "message-expiry-interval", expiry_s];
        gateway.publish(&[&["-V", "5", "-q", "1", "-r", "-t", topic, "-m", "x"], &property[..]].concat());
    };
    retain("long", "1000");
    retain("short", "1");
    eventually("the short one has expired", || {
        let mut client = Client::connect(&gateway, 5, "reader", true);
        client.send(&[0x82, 7, 0, 1, 0, 0, 1, b'#', 0]);
        assert_eq!(client.packet(), [0x90, 4, 0, 1, 0, 0]);
        let long = client.packet();
        assert_eq!((&long[4..8], long[8], long[9]), (&b"long"[..], 5, 0x02));
        let left_s = u32::from_be_bytes([long[10], long[11], long[12], long[13]]);
        assert!((900..=1_000).contains(&left_s), "{left_s}");
        client.send(&[0xc0, 0]);
        (client.packet() == [0xd0, 0]).then_some(())
    });
}

#[test]
fn who_takes_a_session_over_finds_the_will_of_the_one_before_published() {
    let gateway = gateway().start();
    let mut watcher = Client::connect(&gateway, 4, "watcher", true);
    watcher.send(&[0x82, 9, 0, 1, 0, 4, b'w', b'i', b'l', b'l', 0]);
    assert_eq!(watcher.packet(), [0x90, 3, 0, 1, 0]);
    let mut first = Client::open(&gateway);
    first.send(b"\x10\x1a\0\x04MQTT\x04\x06\0\0\0\x04same\0\x04will\0\x02by");
    assert_eq!(first.packet(), [0x20, 2, 0, 0]);
    let mut second = Client::connect(&gateway, 4, "same", true);
    second.send(&publish(4, 2, "will", 1, b"after"));
    assert_eq!(second.packet(), [0x40, 2, 0, 1]);
    assert_eq!(watcher.packet(), publish(4, 0, "will", 0, b"by"));
    assert_eq!(watcher.packet(), publish(4, 0, "will", 0, b"after"));
    first.rest();
}

#[test]
fn qos_2_messages_that_are_never_released_are_bounded() {
    let gateway = gateway().set("mqtt.receive_maximum", "3").start();
    let mut client = Client::connect(&gateway, 5, "hoarder", false);
    for pkid in 1..=3 {
        client.send(&publish(5, 4, "devices/h/t", pkid, b"1"));
        assert_eq!(client.packet(), [0x50, 2, 0, pkid as u8]);
    }
    client.send(&publish(5, 4, "devices/h/t", 4, b"1"));
    assert_eq!(client.rest(), [0xe0, 2, 0x93, 0]);
}
