//! One client session: which packet identifier stands for which message.
//!
//! Arrives: messages to publish and a broker's answers. Leaves: bytes to write, and what each answer
//! means for which message. Always holds: an acknowledgement counts only for the message that holds
//! its packet identifier in this very session, an identifier is free again only when its exchange is
//! complete, and identifiers rotate so that one is not reused at once. After a reconnect everything
//! open is sent again in its original order. Deliberately absent: sockets, clocks and the ledger.

use std::collections::VecDeque;

use bytes::BytesMut;
use tokio::time::Instant;

use super::wire::{Answer, Wire, is_acknowledged};
use crate::message::Message;

/// What an answer meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The gateway has committed this message.
    Acked {
        message: Message,
        sent_at: Instant,
    },
    /// The gateway will not have it.
    Refused {
        message: Message,
        reason: String,
    },
    Nothing,
    /// The broker answered something that was never asked: the connection cannot be trusted further.
    Nonsense {
        reason: String,
    },
}

/// A message on its way.
#[derive(Debug)]
struct Slot {
    message: Message,
    sequence: u64,
    sent_at: Instant,
    /// PUBREC came and was reported; only PUBCOMP is awaited.
    released: bool,
}

/// The open exchanges of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    wire: Wire,
    qos: u8,
    inflight_max: usize,
    /// At most this many by the broker's word (5.0), renewed with every connection.
    receive_max: usize,
    /// Indexed by packet identifier minus one.
    slots: Vec<Option<Slot>>,
    free: VecDeque<u16>,
    next_sequence: u64,
}

impl Session {
    pub(crate) fn new(wire: Wire, qos: u8, inflight_max: u16) -> Self {
        let identifiers = inflight_max.saturating_mul(2).max(16);
        Self {
            wire,
            qos,
            inflight_max: usize::from(inflight_max),
            receive_max: usize::from(u16::MAX),
            slots: (0..identifiers).map(|_| None).collect(),
            free: (1..=identifiers).collect(),
            next_sequence: 0,
        }
    }

    /// How many messages are open.
    pub(crate) fn open_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.open_count() < self.inflight_max.min(self.receive_max)
    }

    /// Writes a PUBLISH and, unless it is of QoS 0, remembers it until its acknowledgement.
    pub(crate) fn publish(&mut self, mut message: Message, now: Instant, out: &mut BytesMut) {
        if !is_acknowledged(self.qos) {
            self.wire.publish(&mut message, self.qos, 0, false, out);
            return;
        }
        assert!(self.has_room(), "a message is taken only when there is room for it");
        let pkid = self.free.pop_front().expect("there are more identifiers than room");
        self.wire.publish(&mut message, self.qos, pkid, false, out);
        let slot = Slot { message, sequence: self.next_sequence, sent_at: now, released: false };
        self.next_sequence += 1;
        self.slots[usize::from(pkid) - 1] = Some(slot);
    }

    /// Takes a broker's answer; what it asks for in turn is written to `out`.
    pub(crate) fn answer(&mut self, answer: Answer, out: &mut BytesMut) -> Meaning {
        let nonsense =
            |what: &str, pkid| Meaning::Nonsense { reason: format!("{what} for packet {pkid}, which is not open") };
        match answer {
            Answer::Acked { pkid } if self.qos == 1 => match self.complete(pkid) {
                Some(slot) => Meaning::Acked { message: slot.message, sent_at: slot.sent_at },
                None => nonsense("PUBACK", pkid),
            },
            Answer::Received { pkid } if self.qos == 2 => match self.slot(pkid) {
                Some(slot) => {
                    let (message, sent_at) = (slot.message.clone(), slot.sent_at);
                    let again = std::mem::replace(&mut slot.released, true);
                    self.wire.release(pkid, out);
                    if again { Meaning::Nothing } else { Meaning::Acked { message, sent_at } }
                }
                None => nonsense("PUBREC", pkid),
            },
            Answer::Completed { pkid } if self.qos == 2 => match self.slot(pkid).is_some_and(|slot| slot.released) {
                true => {
                    self.complete(pkid);
                    Meaning::Nothing
                }
                false => nonsense("PUBCOMP", pkid),
            },
            Answer::Refused { pkid, reason } => match self.complete(pkid) {
                Some(slot) => Meaning::Refused { message: slot.message, reason },
                None => nonsense("a refusal", pkid),
            },
            Answer::Acked { .. } | Answer::Received { .. } | Answer::Completed { .. } => {
                Meaning::Nonsense { reason: format!("{answer:?} does not belong to QoS {}", self.qos) }
            }
            _ => Meaning::Nothing,
        }
    }

    /// Continues on a new connection: writes everything open again, in its original order, and calls
    /// `again` for each message that the broker may take for a new one.
    pub(crate) fn resume(
        &mut self,
        session_present: bool,
        receive_max: u16,
        out: &mut BytesMut,
        mut again: impl FnMut(&Message),
    ) {
        self.receive_max = usize::from(receive_max);
        let mut open: Vec<(u64, u16)> =
            (1..).zip(&self.slots).filter_map(|(pkid, slot)| Some((slot.as_ref()?.sequence, pkid))).collect();
        open.sort_unstable();
        for (_, pkid) in open {
            let (wire, qos) = (self.wire, self.qos);
            let slot = self.slot(pkid).expect("the slot was found open");
            match (slot.released, session_present) {
                (true, true) => wire.release(pkid, out),
                // Committed, and the broker has forgotten the identifier: the exchange is complete.
                (true, false) => drop(self.complete(pkid)),
                (false, _) => {
                    // Only QoS 2 within one session is recognised as the same message.
                    if !(session_present && qos == 2) {
                        again(&slot.message);
                    }
                    wire.publish(&mut slot.message, qos, pkid, session_present, out);
                }
            }
        }
    }

    fn slot(&mut self, pkid: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(pkid).checked_sub(1)?)?.as_mut()
    }

    fn complete(&mut self, pkid: u16) -> Option<Slot> {
        let slot = self.slots.get_mut(usize::from(pkid).checked_sub(1)?)?.take()?;
        self.free.push_back(pkid);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use rumqttc::mqttbytes::v4::{Packet, Publish};

    use super::*;
    use crate::message::Composer;

    /// A session with messages 0, 1 and 2 open, and the packets it has written so far.
    fn three_open(qos: u8) -> (Session, BytesMut) {
        let composer = Composer::new(Arc::new(AtomicU64::new(0)), "mqtt/1", false);
        let (mut session, mut out) = (Session::new(Wire::V4, qos, 3), BytesMut::new());
        for value in ["0", "1", "2"] {
            session.publish(composer.number("d", "m", value), Instant::now(), &mut out);
        }
        (session, out)
    }

    fn publishes(out: &mut BytesMut) -> Vec<Publish> {
        std::iter::from_fn(|| Packet::read(out, 1 << 20).ok())
            .map(|packet| match packet {
                Packet::Publish(publish) => publish,
                other => panic!("unexpected {other:?}"),
            })
            .collect()
    }

    fn acked_id(meaning: Meaning) -> u64 {
        match meaning {
            Meaning::Acked { message, .. } => *message.ids.start(),
            other => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn an_acknowledgement_counts_for_the_message_that_holds_the_identifier() {
        let (mut session, mut out) = three_open(1);
        let sent = publishes(&mut out);
        assert!(!session.has_room());
        let answer = Answer::Acked { pkid: sent[1].pkid };
        assert_eq!(acked_id(session.answer(answer, &mut out)), 1);
        assert_eq!(session.open_count(), 2);
        let answer = Answer::Acked { pkid: sent[1].pkid };
        assert!(matches!(session.answer(answer, &mut out), Meaning::Nonsense { .. }), "acknowledged twice");
    }

    #[test]
    fn a_fresh_session_gets_everything_open_again_in_order() {
        let (mut session, mut out) = three_open(1);
        let sent = publishes(&mut out);
        session.answer(Answer::Acked { pkid: sent[0].pkid }, &mut out);
        let mut again = Vec::new();
        session.resume(false, u16::MAX, &mut out, |message| again.push(*message.ids.start()));
        assert_eq!(again, [1, 2]);
        let resent = publishes(&mut out);
        assert!(resent.iter().all(|publish| !publish.dup), "nothing was delivered in this session before");
        assert_eq!(acked_id(session.answer(Answer::Acked { pkid: resent[0].pkid }, &mut out)), 1);
    }

    #[test]
    fn qos_2_is_acknowledged_once_at_pubrec_and_done_at_pubcomp() {
        let (mut session, mut out) = three_open(2);
        let pkid = publishes(&mut out)[0].pkid;
        assert_eq!(acked_id(session.answer(Answer::Received { pkid }, &mut out)), 0);
        assert_eq!(Packet::read(&mut out, 1 << 20).unwrap(), Packet::PubRel(rumqttc::PubRel::new(pkid)));
        assert_eq!(session.answer(Answer::Received { pkid }, &mut out), Meaning::Nothing);
        assert_eq!(session.open_count(), 3);
        assert_eq!(session.answer(Answer::Completed { pkid }, &mut out), Meaning::Nothing);
        assert_eq!(session.open_count(), 2);
    }

    #[test]
    fn a_kept_qos_2_session_resumes_with_dup_and_pubrel() {
        let (mut session, mut out) = three_open(2);
        let sent = publishes(&mut out);
        session.answer(Answer::Received { pkid: sent[1].pkid }, &mut out);
        out.clear();
        session.resume(true, u16::MAX, &mut out, |message| panic!("{message:?} is no new message"));
        let packets: Vec<Packet> = std::iter::from_fn(|| Packet::read(&mut out, 1 << 20).ok()).collect();
        assert!(matches!(&packets[0], Packet::Publish(publish) if publish.dup && publish.pkid == sent[0].pkid));
        assert_eq!(packets[1], Packet::PubRel(rumqttc::PubRel::new(sent[1].pkid)));
        assert!(matches!(&packets[2], Packet::Publish(publish) if publish.dup && publish.pkid == sent[2].pkid));
    }

    #[test]
    fn a_lost_qos_2_session_does_not_repeat_what_was_committed() {
        let (mut session, mut out) = three_open(2);
        let sent = publishes(&mut out);
        session.answer(Answer::Received { pkid: sent[1].pkid }, &mut out);
        out.clear();
        let mut again = Vec::new();
        session.resume(false, u16::MAX, &mut out, |message| again.push(*message.ids.start()));
        assert_eq!(again, [0, 2]);
        assert_eq!(session.open_count(), 2);
    }

    #[test]
    fn identifiers_rotate() {
        let (mut session, mut out) = three_open(1);
        let first = publishes(&mut out)[0].pkid;
        session.answer(Answer::Acked { pkid: first }, &mut out);
        let composer = Composer::new(Arc::new(AtomicU64::new(9)), "mqtt/1", false);
        session.publish(composer.number("d", "m", "3"), Instant::now(), &mut out);
        assert_ne!(publishes(&mut out)[0].pkid, first);
    }
}
