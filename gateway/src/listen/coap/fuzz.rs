//! Datagrams of a few clients, without a socket; what they store is committed at once.
//!
//! Always holds: what leaves can be read; nobody gets more than a little more than three times what it sent, before it
//! has shown that it receives; notifications that nobody acknowledges end.

use super::{Datagrams, Endpoint, reach, read};
use crate::config::Config;
use crate::fuzz::{admission, at_once, choice, site, zone};
use crate::journal::{Committed, Parcel};
use crate::listen::{Receipt, lock};
use crate::live::{Event, Live};
use coap_lite::CoapOption;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What diagnostic texts may come to, however short a request is.
const SMALL_ANSWER: usize = 256;

/// Datagrams, each behind its source and its length. First byte: nothing yet.
pub fn coap(data: &[u8]) {
    let (_, mut rest) = choice(data);
    let live = Arc::new(Live::default());
    let site = site(admission(zone(false)), &live);
    let mut config = Config::default().coap;
    (config.max_observers, config.max_exchanges) = (8, 32);
    let mut endpoint = Endpoint::over(Datagrams::Kept(Default::default()), &config, &site, live);
    while let Some((&[source, high, low], after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (datagram, after) = after.split_at(length);
        rest = after;
        let from = SocketAddr::from(([127, 0, 0, 1 + source % 2], 5_000 + u16::from(source / 2 % 2)));
        take(&mut endpoint, datagram, from);
    }
    let mut now = Instant::now();
    for _ in 0..8 {
        now += Duration::from_secs(60);
        endpoint.notify(|_| true);
        assert!(endpoint.observers.retransmit(now).len() <= config.max_observers);
    }
}

fn take(endpoint: &mut Endpoint, datagram: &[u8], from: SocketAddr) {
    at_once(endpoint.datagram(datagram, from));
    let site = Arc::clone(&endpoint.site);
    if site.intake.depth() > 0 {
        let Parcel { readings, receipts, .. } = site.intake.take(Duration::ZERO, Parcel::default()).parcel;
        let received_us = site.engine.now_us();
        site.engine.catalog().note(&readings, received_us);
        receipts.into_iter().for_each(|(_, receipt)| match receipt {
            Receipt::Call(call) => call(),
            Receipt::Mqtt(_) => unreachable!("nobody speaks MQTT here"),
        });
        check(endpoint, datagram, from);
        endpoint.event(Ok(Event::Readings(Committed { seq: 1, received_us, readings: Arc::new(readings) })));
    }
    check(endpoint, datagram, from);
}

/// Looks at what has been sent and forgets it.
fn check(endpoint: &Endpoint, datagram: &[u8], from: SocketAddr) {
    let Datagrams::Kept(kept) = &endpoint.wire.socket else { return };
    for (to, packet) in std::mem::take(&mut *lock(kept)) {
        let Ok(answer) = read(&packet) else { panic!("an answer that cannot be read: {packet:?}") };
        let is_notification = answer.get_first_option(CoapOption::Observe).is_some();
        if !is_notification {
            assert_eq!(to, from);
            let is_stranger = endpoint.reach.room(from, datagram.len(), Instant::now()).is_some();
            let most = (datagram.len() * 3).max(SMALL_ANSWER);
            assert!(!is_stranger || packet.len() <= most, "{} bytes for {}", packet.len(), datagram.len());
        }
        let echo = answer.get_first_option(CoapOption::Unknown(reach::ECHO));
        assert!(echo.is_none_or(|value| value.len() == 8));
    }
}
