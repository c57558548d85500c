//! Whole runs against imaginary gateways that note what they committed. The one thing to prove: the
//! ledger claims an acknowledgement for exactly what was acknowledged, whatever breaks in between.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard};

use bytes::BytesMut;
use coap_lite::{CoapOption, MessageClass, MessageType, Packet as CoapPacket, ResponseType};
use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet, PubAck, PubComp, PubRec};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::*;
use crate::fault::{Faulty, Odds};
use crate::ledger::Ledger;
use crate::ledger::read::{self, Entry};
use crate::message::Composer;
use crate::report::Tally;

const READINGS: u64 = 500;

/// Says `READINGS` messages as fast as they are taken; a reading's value is its id.
struct Talker {
    composer: Composer,
    said: u64,
}

impl Source for Talker {
    fn next(&mut self, _now: Instant) -> Next {
        if self.said == READINGS {
            return Next::Over;
        }
        self.said += 1;
        Next::Message(self.composer.number("d", "m", &self.said.to_string()))
    }

    fn finish(&mut self) {
        self.said = READINGS;
    }
}

/// What an imaginary gateway has acknowledged.
#[derive(Clone, Default)]
struct Committed(Arc<Mutex<HashSet<String>>>);

impl Committed {
    fn values(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap()
    }

    fn add(&self, payload: &[u8]) {
        self.values().insert(String::from_utf8(payload.to_vec()).unwrap());
    }
}

struct Stage {
    _folder: TempDir,
    path: PathBuf,
    book: Book,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let ledger = Some(Ledger::create(&path, 1).unwrap());
        Self { _folder: folder, path, book: Book { tally: Arc::new(Tally::new()), ledger } }
    }

    fn source(&self, service: &'static str) -> Box<dyn Source> {
        let composer = Composer::new(Arc::new(AtomicU64::new(1)), service, true);
        let odds = Odds { duplicate: 0.1, disorder: 0.0 };
        Box::new(Faulty::new(Talker { composer, said: 0 }, odds, 7))
    }

    /// Plays one link to its end and reads its ledger.
    async fn played(&self, link: Link) -> Vec<Entry> {
        let played = play(vec![link], self.book.clone(), CancellationToken::new(), async {});
        tokio::time::timeout(Duration::from_secs(60), played).await.expect("the run ends").unwrap();
        self.book.ledger.as_ref().unwrap().close().unwrap();
        read::load(&self.path).unwrap()
    }

    fn mqtt(&self, address: String, qos: u8) -> Link {
        let target = mqtt::Target { address, login: None, wire: wire::Wire::V4, qos, inflight_max: 20, cut_per_s: 0.0 };
        let source = self.source(["mqtt/0", "mqtt/1", "mqtt/2"][usize::from(qos)]);
        Link::Mqtt(mqtt::MqttLink { target: Arc::new(target), client_id: "c".to_owned(), source })
    }
}

/// A broker that hangs up in the middle of every batch, after committing some of it.
async fn serve_flaky_mqtt(listener: TcpListener, committed: Committed) {
    let mut session: HashSet<u16> = HashSet::new();
    for patience in [3, 40, 41, 80, 100, usize::MAX] {
        let (stream, _) = listener.accept().await.unwrap();
        serve_mqtt(stream, patience, &mut session, &committed).await;
    }
}

/// Answers `patience` packets, then commits one more and hangs up without saying so.
async fn serve_mqtt(mut stream: TcpStream, patience: usize, session: &mut HashSet<u16>, committed: &Committed) {
    let (mut inbox, mut outbox, mut answered) = (BytesMut::new(), BytesMut::new(), 0);
    loop {
        while let Ok(packet) = Packet::read(&mut inbox, 1 << 20) {
            answered += 1;
            if answered > patience {
                return;
            }
            match packet {
                Packet::Connect(connect) => {
                    let present = !connect.clean_session && !session.is_empty();
                    ConnAck::new(ConnectReturnCode::Success, present).write(&mut outbox).unwrap();
                }
                Packet::Publish(publish) if publish.qos as u8 == 1 => {
                    committed.add(&publish.payload);
                    PubAck::new(publish.pkid).write(&mut outbox).unwrap();
                }
                Packet::Publish(publish) => {
                    if session.insert(publish.pkid) {
                        committed.add(&publish.payload);
                    }
                    PubRec::new(publish.pkid).write(&mut outbox).unwrap();
                }
                Packet::PubRel(release) => {
                    session.remove(&release.pkid);
                    PubComp::new(release.pkid).write(&mut outbox).unwrap();
                }
                _ => return,
            }
        }
        stream.write_all_buf(&mut outbox).await.unwrap();
        if stream.read_buf(&mut inbox).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// A server that never hears every tenth request, is busy for another, and refuses the value 13.
async fn serve_flaky_coap(socket: UdpSocket, committed: Committed) {
    let (mut datagram, mut heard) = ([0; 2_048], 0);
    loop {
        let (length, peer) = socket.recv_from(&mut datagram).await.unwrap();
        let request = CoapPacket::from_bytes(&datagram[..length]).unwrap();
        assert_eq!(request.get_option(CoapOption::UriPath).unwrap().len(), 3);
        heard += 1;
        let code = match heard % 100 {
            10 => continue,
            20 => ResponseType::ServiceUnavailable,
            _ if request.payload == b"13" => ResponseType::BadRequest,
            _ => ResponseType::Changed,
        };
        if code == ResponseType::Changed {
            committed.add(&request.payload);
        }
        let mut response = CoapPacket::new();
        response.header.set_type(MessageType::Acknowledgement);
        response.header.code = MessageClass::Response(code);
        response.header.message_id = request.header.message_id;
        response.set_token(request.get_token().to_vec());
        socket.send_to(&response.to_bytes().unwrap(), peer).await.unwrap();
    }
}

async fn flaky_mqtt(qos: u8) -> (Vec<Entry>, Committed, Stage) {
    let (stage, committed) = (Stage::new(), Committed::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(serve_flaky_mqtt(listener, committed.clone()));
    let entries = stage.played(stage.mqtt(address, qos)).await;
    (entries, committed, stage)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reading_is_acknowledged_in_the_end_however_often_the_broker_hangs_up() {
    for qos in [1, 2] {
        let (entries, committed, stage) = flaky_mqtt(qos).await;
        assert_eq!(entries.len() as u64, READINGS, "QoS {qos}");
        assert!(entries.iter().all(|entry| entry.acked_line.is_some()), "QoS {qos}");
        assert_eq!(committed.values().len() as u64, READINGS, "QoS {qos}");
        assert!(stage.book.tally.reconnects.load(std::sync::atomic::Ordering::Relaxed) >= 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_claims_only_what_a_dying_broker_committed() {
    let (stage, committed) = (Stage::new(), Committed::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server_committed = committed.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve_mqtt(stream, 60, &mut HashSet::new(), &server_committed).await;
        // From here on nobody listens any more.
    });
    let link = stage.mqtt(address, 1);
    let stop = CancellationToken::new();
    let played = tokio::spawn(play(vec![link], stage.book.clone(), stop, async {}));
    tokio::time::sleep(Duration::from_millis(500)).await;
    played.abort();
    stage.book.ledger.as_ref().unwrap().close().unwrap();

    let entries = read::load(&stage.path).unwrap();
    let acked: Vec<&Entry> = entries.iter().filter(|entry| entry.acked_line.is_some()).collect();
    assert!(!acked.is_empty() && acked.len() < entries.len(), "{} of {}", acked.len(), entries.len());
    let committed = committed.values();
    assert!(acked.iter().all(|entry| committed.contains(&entry.value)), "claimed without a commit");
    let sent: HashSet<&String> = entries.iter().map(|entry| &entry.value).collect();
    assert!(committed.iter().all(|value| sent.contains(value)), "committed without having been sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn coap_survives_loss_and_a_busy_server_and_counts_a_refusal() {
    let (stage, committed) = (Stage::new(), Committed::default());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = coap::Target { address: socket.local_addr().unwrap().to_string(), inflight_max: 20 };
    tokio::spawn(serve_flaky_coap(socket, committed.clone()));
    let link = Link::Coap(coap::CoapLink { target: Arc::new(target), source: stage.source("coap/con") });
    let entries = stage.played(link).await;

    let unacked: Vec<&str> =
        entries.iter().filter(|entry| entry.acked_line.is_none()).map(|entry| entry.value.as_str()).collect();
    assert_eq!(unacked, ["13"], "only the refused one");
    assert_eq!(committed.values().len() as u64, READINGS - 1);
    assert_eq!(stage.book.tally.errors.load(std::sync::atomic::Ordering::Relaxed), 1);
}
