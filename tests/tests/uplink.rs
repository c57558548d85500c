//! The uplink towards a cloud that is a few lines of this test: it refuses what it cannot read, and
//! lets a batch wait.

use model::{Micros, Sketch, Summary, Value};
use prost::Message;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tests::eventually;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uplink::{Balance, Identity, Options, Portion, Saved, Source, SourceError, Status, Tls, Uplink};
use wire::proto::{PushReply, PushRequest, ShardEcho};
use wire::{Batch, Device, Window};

/// Changes, each of which is a window of a device of its own.
struct Changes(watch::Sender<u64>);

fn window(change: u64) -> (Device, Window) {
    let start_us = change as Micros * 60_000_000;
    let summary = Summary {
        count: 1,
        texts: 0,
        sum: 1.0,
        m2: 0.0,
        min: 1.0,
        max: 1.0,
        first: (start_us, Value::Number(1.0)),
        last: (start_us, Value::Number(1.0)),
        sketch: Sketch::of([1.0]),
    };
    let device = Device { id: format!("c{change}").into(), labels: None };
    let metrics = BTreeMap::from([("m".into(), summary)]);
    (device, Window { device: 0, start_us, length_us: 60_000_000, revision: 1, metrics })
}

impl Source for Changes {
    fn latest(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn read(&self, changes: Range<u64>, summaries: usize) -> Result<Portion, SourceError> {
        let until = changes.end.min(changes.start + summaries as u64);
        let mut batch = Batch::default();
        for (at, change) in (changes.start..until).enumerate() {
            let (device, window) = window(change);
            batch.devices.push(device);
            batch.windows.push(Window { device: at as u32, ..window });
        }
        Ok(Portion { batch, until })
    }

    fn made_us(&self, _: u64) -> Option<Micros> {
        None
    }

    fn saved(&self) -> Result<Vec<u8>, SourceError> {
        Ok(Vec::new())
    }

    fn save(&self, _: Saved) -> Result<(), SourceError> {
        Ok(())
    }

    fn sent_since(&self, _: u64) -> Result<Option<Vec<Range<u64>>>, SourceError> {
        Ok(Some(Vec::new()))
    }

    fn everything_again(&self) -> Result<(), SourceError> {
        Ok(())
    }

    fn complete_us(&self) -> Micros {
        0
    }

    fn now_us(&self) -> Micros {
        0
    }
}

/// What a cloud answers to a push: a status.
type Answer = Arc<dyn Fn(&PushRequest, &Batch) -> u16 + Send + Sync>;

fn cloud(answer: Answer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || serve(&stream, &answer));
        }
    });
    address
}

fn serve(stream: &TcpStream, answer: &Answer) -> Option<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|&n| n > 0)?;
            if let Some(given) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = given.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let request = PushRequest::decode(&body[..]).unwrap();
        let batch =
            if request.summaries.is_empty() { Batch::default() } else { Batch::decode(&request.summaries).unwrap() };
        let status = answer(&request, &batch);
        let shards = vec![ShardEcho { shard: "s".into(), highest: request.batch, recent: 1 }];
        let reply = PushReply { shards, in_flight: 32, ..PushReply::default() }.encode_to_vec();
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", reply.len());
        writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&reply)).ok()?;
    }
}

/// Runs an uplink over so many changes until `until`.
async fn run(
    changes: u64,
    batch: usize,
    answer: Answer,
    until: impl Fn(&Status) -> bool + Send + 'static,
) -> Arc<Status> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = Options {
        endpoints: vec![format!("http://{}/v1/push", cloud(answer)).parse().unwrap()],
        balance: Balance::default(),
        in_order: false,
        token: None,
        tls: Tls::default(),
        in_flight: 32,
        batch,
        catch_up: 0,
        jitter: Duration::ZERO,
        heartbeat: Duration::from_secs(60),
        timeout: Duration::from_secs(60),
    };
    let identity = Identity { gateway: "g".into(), incarnation: 1, starts: 1, session: 1, version: "test" };
    let status = Arc::new(Status::default());
    let uplink =
        Uplink::new(options, identity, Arc::new(Changes(watch::channel(changes).0)), Arc::clone(&status)).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(uplink.run(stop.clone()));
    let watched = Arc::clone(&status);
    let waited =
        tokio::task::spawn_blocking(move || eventually("the uplink gets there", || until(&watched).then_some(())));
    waited.await.unwrap();
    stop.cancel();
    running.await.unwrap();
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_cloud_cannot_read_holds_up_no_other() {
    let seen: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let (taken, bad) = (Arc::clone(&seen), ["c13", "c70"]);
    let answer: Answer = Arc::new(move |_, batch| {
        if batch.devices.iter().any(|device| bad.contains(&&*device.id)) {
            return 422;
        }
        let mut taken = taken.lock().unwrap();
        batch.devices.iter().for_each(|device| *taken.entry(device.id.to_string()).or_default() += 1);
        200
    });
    let status = run(100, 40, answer, |status| status.get().backlog == 0 && status.get().batches > 0).await;
    assert_eq!(status.get().set_aside, 2);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 98, "{seen:?}");
    assert!(seen.values().all(|&many| many == 1), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_batch_is_not_overtaken_by_more_than_a_shard_remembers() {
    let highest: Arc<Mutex<(u64, bool)>> = Arc::default();
    let quick = Arc::clone(&highest);
    let answer: Answer = Arc::new(move |request, _| {
        if request.batch == 1 {
            // Until nothing more comes.
            let mut before = 0;
            loop {
                std::thread::sleep(Duration::from_millis(300));
                let now = quick.lock().unwrap().0;
                if now == before && now > 0 {
                    break;
                }
                before = now;
            }
            quick.lock().unwrap().1 = true;
            return 200;
        }
        let mut quick = quick.lock().unwrap();
        if !quick.1 {
            assert!(request.batch < 64, "batch {} while 1 is under way", request.batch);
            quick.0 = quick.0.max(request.batch);
        }
        200
    });
    let status = run(300, 1, answer, |status| status.get().backlog == 0 && status.get().batches > 0).await;
    assert_eq!(status.get().batches, 300);
    let (held, _) = *highest.lock().unwrap();
    println!("{held} batches while the first was under way");
    assert!((16..64).contains(&held), "{held}");
}
