//! A closed-loop MQTT load: so many connections with so many messages in flight each.
//!
//! One thread, one epoll, packets made beforehand: the client should cost little beside the
//! server that is measured. Latency is from the write of a PUBLISH to the read of its PUBACK.

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What the load came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Messages acknowledged while measuring.
    pub(crate) acknowledged: u64,
    /// How long that was.
    pub(crate) elapsed: Duration,
    /// Acknowledgement latency in microseconds.
    pub(crate) latency_us: Histogram<u64>,
}

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Payload {
    /// `21.57`, on the metric's own topic.
    Number,
    /// `{"time":...,"value":21.57}`, on the metric's own topic.
    Stamped,
    /// Five metrics and a time.
    Object,
    /// Two records, the first with base name and base time.
    Senml,
}

impl Payload {
    pub(crate) const ALL: [Payload; 4] = [Payload::Number, Payload::Stamped, Payload::Object, Payload::Senml];

    /// Readings of a message.
    pub(crate) fn readings(self) -> u64 {
        match self {
            Payload::Number | Payload::Stamped => 1,
            Payload::Object => 5,
            Payload::Senml => 2,
        }
    }

    fn topic(self, id: &str) -> String {
        match self {
            Payload::Number | Payload::Stamped => format!("devices/{id}/temperature"),
            Payload::Object | Payload::Senml => format!("devices/{id}"),
        }
    }

    /// Appends a plausible payload, taken at a time of its own.
    fn write(self, out: &mut Vec<u8>, hundredths: u64, time_us: u64) {
        let (whole, rest) = (hundredths / 100, hundredths % 100);
        let (seconds, micros) = (time_us / 1_000_000, time_us % 1_000_000);
        let written = match self {
            Payload::Number => {
                let digit = |n: u64| b'0' + (n % 10) as u8;
                out.extend([digit(whole / 10), digit(whole), b'.', digit(rest / 10), digit(rest)]);
                Ok(())
            }
            Payload::Stamped => write!(out, r#"{{"time":{time_us},"value":{whole}.{rest:02}}}"#),
            Payload::Object => write!(
                out,
                r#"{{"time":{time_us},"temperature":{whole}.{rest:02},"humidity":48.{rest:02},"pressure":1013.{rest:02},"battery":3.61,"rssi":-{}}}"#,
                60 + rest / 10
            ),
            Payload::Senml => write!(
                out,
                r#"[{{"bn":"urn:dev:ow:10e2073a0108006:","bt":{seconds}.{micros:06},"n":"temperature","u":"Cel","v":{whole}.{rest:02}}},{{"n":"humidity","u":"%RH","v":48.{rest:02}}}]"#
            ),
        };
        debug_assert!(written.is_ok(), "memory takes everything");
    }
}

struct Client {
    stream: TcpStream,
    topic: String,
    payload: Payload,
    /// The time of the first message, in µs.
    begin_us: u64,
    body: Vec<u8>,
    next: u64,
    sent: VecDeque<Instant>,
    out: Vec<u8>,
    partial: usize,
}

/// Runs the load; `measuring` is called when the warm-up is over.
pub(crate) fn run(
    address: SocketAddr,
    connections: usize,
    inflight: usize,
    payload: Payload,
    warm_up: Duration,
    duration: Duration,
    measuring: impl FnOnce(),
) -> Result<Outcome> {
    let mut poll = Poll::new()?;
    let mut clients = connect(&poll, address, connections, payload)?;
    let mut latency_us = Histogram::new_with_max(60_000_000, 3)?;
    let mut events = Events::with_capacity(4_096);
    let mut buffer = vec![0; 64 << 10];
    for client in &mut clients {
        client.publish(inflight, Instant::now());
        client.flush()?;
    }
    let begin = Instant::now() + warm_up;
    let (mut acknowledged, mut measuring) = (0_u64, Some(measuring));
    loop {
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
        let now = Instant::now();
        if now >= begin
            && let Some(measuring) = measuring.take()
        {
            measuring();
            acknowledged = 0;
            latency_us.reset();
        }
        if now >= begin + duration {
            return Ok(Outcome { acknowledged, elapsed: now - begin, latency_us });
        }
        for event in &events {
            let client = &mut clients[event.token().0];
            if event.is_readable() {
                let got = client.read(&mut buffer, &mut latency_us)?;
                acknowledged += got as u64;
                client.publish(got, Instant::now());
            }
            client.flush()?;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the gateway under load has the same clock")]
fn connect(poll: &Poll, address: SocketAddr, connections: usize, payload: Payload) -> Result<Vec<Client>> {
    let begin_us = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros() as u64;
    let mut clients = Vec::with_capacity(connections);
    for i in 0..connections {
        let mut stream = std::net::TcpStream::connect(address).with_context(|| format!("connection {i}"))?;
        stream.set_nodelay(true)?;
        let id = format!("bench-{i}");
        let mut connect =
            vec![0x10, (12 + id.len()) as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, id.len() as u8];
        connect.extend(id.as_bytes());
        stream.write_all(&connect)?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        ensure!(answer == [0x20, 2, 0, 0], "connection {i} was refused: {answer:?}");
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(i), Interest::READABLE | Interest::WRITABLE)?;
        clients.push(Client {
            stream,
            topic: payload.topic(&id),
            payload,
            begin_us,
            body: Vec::new(),
            next: 0,
            sent: VecDeque::new(),
            out: Vec::new(),
            partial: 0,
        });
    }
    Ok(clients)
}

impl Client {
    /// Appends PUBLISH packets at QoS 1.
    fn publish(&mut self, messages: usize, now: Instant) {
        for _ in 0..messages {
            let pkid = (self.next % 60_000 + 1) as u16;
            let hundredths = 2_000 + (self.next * 7) % 300;
            self.next += 1;
            self.sent.push_back(now);
            self.body.clear();
            // A microsecond apart: each is a reading of its own, and none is of the future.
            self.payload.write(&mut self.body, hundredths, self.begin_us + self.next);
            let length = 2 + self.topic.len() + 2 + self.body.len();
            self.out.push(0x32);
            if length >= 0x80 {
                self.out.push(length as u8 | 0x80);
            }
            self.out.push((length >> if length < 0x80 { 0 } else { 7 }) as u8);
            self.out.extend((self.topic.len() as u16).to_be_bytes());
            self.out.extend(self.topic.as_bytes());
            self.out.extend(pkid.to_be_bytes());
            self.out.extend(&self.body);
        }
    }

    fn flush(&mut self) -> Result<()> {
        let mut written = 0;
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        self.out.drain(..written);
        Ok(())
    }

    /// Reads PUBACKs, all of four bytes.
    fn read(&mut self, buffer: &mut [u8], latency_us: &mut Histogram<u64>) -> Result<usize> {
        let mut acknowledged = 0;
        loop {
            match self.stream.read(buffer) {
                Ok(0) => anyhow::bail!("the server closed a connection"),
                Ok(n) => {
                    self.partial += n;
                    let now = Instant::now();
                    for _ in 0..self.partial / 4 {
                        let sent = self.sent.pop_front().context("an acknowledgement of nothing")?;
                        latency_us.saturating_record((now - sent).as_micros() as u64);
                        acknowledged += 1;
                    }
                    self.partial %= 4;
                    if n < buffer.len() {
                        return Ok(acknowledged);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(acknowledged),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
