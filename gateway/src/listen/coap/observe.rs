//! Who watches which latest value (RFC 7641).
//!
//! Arrives: registrations, changes, resets, the time. Leaves: which observers to notify and
//! how. Always holds: bounded; an observer that resets a notification, or never acknowledges
//! a confirmable one, is forgotten. Pure: no socket, no clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Non-confirmable notifications are at least so far apart; more frequent ones are confirmable, so that the client's
/// acknowledgements set the pace (section 4.5.1).
const APART: Duration = Duration::from_secs(3);
/// So many observations any address may have; further ones as many as are free.
const FEW: usize = 16;
/// Notifications are confirmable this often, to learn whether anybody still listens.
const CONFIRM_EVERY: Duration = Duration::from_secs(60);
/// ACK_TIMEOUT, doubled for each of MAX_RETRANSMIT repetitions (RFC 7252, section 4.8).
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const RETRANSMIT_MAX: u32 = 4;

/// An observer: its endpoint and the token of its request.
pub(super) type Key = (SocketAddr, Vec<u8>);

#[derive(Debug)]
struct Observer {
    series: u32,
    /// The content format of its notifications, which must not change (section 4.2).
    accept: Option<u16>,
    /// A newer value waits for the acknowledgement of one under way.
    behind: bool,
    message_id: u16,
    confirmed: Instant,
    sent: Option<Instant>,
    unconfirmed: Option<Unconfirmed>,
}

#[derive(Debug)]
struct Unconfirmed {
    packet: Vec<u8>,
    due: Instant,
    tries: u32,
}

/// A notification to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notification {
    pub(super) to: Key,
    pub(super) series: u32,
    pub(super) accept: Option<u16>,
    pub(super) sequence: u32,
    pub(super) confirmable: bool,
}

/// All observers.
#[derive(Debug)]
pub(super) struct Observers {
    by_key: HashMap<Key, Observer>,
    max: usize,
    /// One for all: it grows also across a deregistration (section 4.4).
    sequence: u32,
}

impl Observers {
    /// No observers yet; sequence numbers go on from `sequence`, which later starts exceed.
    pub(super) fn new(max: usize, sequence: u32) -> Self {
        Observers { by_key: HashMap::new(), max, sequence }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = (self.sequence + 1) & 0xff_ffff;
        self.sequence
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Registers, or renews; the sequence number for the answer, or nothing if there are too many.
    pub(super) fn register(&mut self, key: Key, series: u32, accept: Option<u16>, now: Instant) -> Option<u32> {
        if !self.by_key.contains_key(&key) {
            let free = self.max.saturating_sub(self.by_key.len());
            let own = self.by_key.keys().filter(|known| known.0.ip() == key.0.ip()).count();
            if free == 0 || (own >= FEW && own >= free) {
                return None;
            }
        }
        let observer =
            Observer { series, accept, behind: false, message_id: 0, confirmed: now, sent: None, unconfirmed: None };
        self.by_key.insert(key, observer);
        Some(self.next_sequence())
    }

    pub(super) fn deregister(&mut self, key: &Key) {
        self.by_key.remove(key);
    }

    /// Whom to notify of new values of the series for which `changed` says so.
    pub(super) fn notify(&mut self, changed: impl Fn(u32) -> bool, now: Instant) -> Vec<Notification> {
        let sequence = self.next_sequence();
        let mut out = Vec::new();
        for (key, observer) in self.by_key.iter_mut().filter(|(_, observer)| changed(observer.series)) {
            // While one waits for its acknowledgement, newer values wait too (section 4.5.1).
            observer.behind = observer.unconfirmed.is_some();
            if !observer.behind {
                out.push(notification(key, observer, sequence, now));
            }
        }
        out
    }

    /// A notification has been sent; a confirmable one is kept until it is acknowledged.
    pub(super) fn sent(&mut self, key: &Key, message_id: u16, confirmable: Option<Vec<u8>>, now: Instant) {
        if let Some(observer) = self.by_key.get_mut(key) {
            observer.message_id = message_id;
            observer.sent = Some(now);
            observer.unconfirmed = confirmable.map(|packet| Unconfirmed { packet, due: now + ACK_TIMEOUT, tries: 0 });
        }
    }

    /// An empty acknowledgement; what to send if a newer value has waited for it.
    pub(super) fn acknowledged(&mut self, from: SocketAddr, message_id: u16, now: Instant) -> Option<Notification> {
        let sequence = self.next_sequence();
        let mut all = self.by_key.iter_mut();
        let (key, observer) = all.find(|(key, o)| key.0 == from && o.message_id == message_id)?;
        observer.confirmed = now;
        observer.unconfirmed = None;
        std::mem::take(&mut observer.behind).then(|| notification(key, observer, sequence, now))
    }

    /// A reset: the client does not know what it is notified of (section 3.6).
    pub(super) fn reset(&mut self, from: SocketAddr, message_id: u16) {
        self.by_key.retain(|key, observer| key.0 != from || observer.message_id != message_id);
    }

    /// Packets to send again, and observers that are given up.
    pub(super) fn retransmit(&mut self, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut out = Vec::new();
        self.by_key.retain(|key, observer| {
            let Some(unconfirmed) = observer.unconfirmed.as_mut().filter(|u| u.due <= now) else { return true };
            if unconfirmed.tries >= RETRANSMIT_MAX {
                return false;
            }
            unconfirmed.tries += 1;
            unconfirmed.due = now + ACK_TIMEOUT * 2_u32.pow(unconfirmed.tries);
            out.push((key.0, unconfirmed.packet.clone()));
            true
        });
        out
    }
}

fn notification(key: &Key, observer: &Observer, sequence: u32, now: Instant) -> Notification {
    let is_soon = observer.sent.is_some_and(|sent| now - sent < APART);
    let confirmable = is_soon || now - observer.confirmed >= CONFIRM_EVERY;
    Notification { to: key.clone(), series: observer.series, accept: observer.accept, sequence, confirmable }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        (SocketAddr::from(([127, 0, 0, 1], port)), vec![1])
    }

    #[test]
    fn observers_are_notified_in_growing_sequence_until_they_reset() {
        let (mut observers, now) = (Observers::new(10, 0), Instant::now());
        let first = observers.register(key(1), 7, None, now).unwrap();
        assert!(observers.notify(|series| series == 8, now).is_empty());
        let sent = observers.notify(|series| series == 7, now);
        assert!(sent[0].sequence > first && !sent[0].confirmable);
        observers.sent(&key(1), 55, None, now);
        observers.reset(key(1).0, 54);
        assert!(!observers.is_empty());
        observers.reset(key(1).0, 55);
        assert!(observers.is_empty());
    }

    #[test]
    fn a_confirmable_notification_is_repeated_and_then_its_observer_given_up() {
        let (mut observers, start) = (Observers::new(10, 0), Instant::now());
        observers.register(key(1), 7, None, start);
        let mut now = start + CONFIRM_EVERY;
        assert!(observers.notify(|_| true, now)[0].confirmable);
        observers.sent(&key(1), 9, Some(b"packet".to_vec()), now);
        assert!(observers.notify(|_| true, now).is_empty(), "newer values wait");
        let mut repeated = 0;
        while !observers.is_empty() {
            now += Duration::from_secs(1);
            repeated += observers.retransmit(now).len();
        }
        assert_eq!(repeated, 4);
        assert!(now - start > CONFIRM_EVERY + Duration::from_secs(60));
    }

    #[test]
    fn an_acknowledgement_lets_newer_values_go() {
        let (mut observers, start) = (Observers::new(10, 0), Instant::now());
        observers.register(key(1), 7, None, start);
        let now = start + CONFIRM_EVERY;
        observers.sent(&key(1), 9, Some(b"packet".to_vec()), now);
        assert_eq!(observers.acknowledged(key(1).0, 8, now), None);
        assert_eq!(observers.acknowledged(key(1).0, 9, now), None, "nothing has waited");
        observers.sent(&key(1), 10, Some(b"packet".to_vec()), now);
        assert!(observers.notify(|_| true, now).is_empty());
        assert_eq!(observers.acknowledged(key(1).0, 10, now).map(|n| n.series), Some(7));
        assert_eq!(observers.notify(|_| true, now).len(), 1);
    }

    #[test]
    fn one_more_than_the_bound_is_not_registered() {
        let (mut observers, now) = (Observers::new(1, 0), Instant::now());
        assert!(observers.register(key(1), 7, None, now).is_some());
        assert!(observers.register(key(2), 7, None, now).is_none());
        assert!(observers.register(key(1), 7, None, now).is_some());
    }
}
