//! What a client's packets mean.
//!
//! Arrives: frames of one connection, in order. Leaves: rows for the journal, answers, and
//! the steps to take once the commit is on disk. Always holds: an acknowledgement is a step,
//! never sent from here, also for what is rejected or no reading at all, so that
//! acknowledgements keep the order of arrival; a repetition of a stored QoS 2 message is
//! acknowledged and not stored again. Deliberately absent for now: subscriptions that outlive
//! their connection, shared subscriptions, delivery at QoS 2.

use super::connection::Connection;
use super::packet::{self, Frame, Version, Violation, kind, malformed, protocol_error, reason};
use super::properties;
use super::router::{Delivery, Publication, Subscription};
use super::{Receipt, Shared, Step};
use crate::journal::{Inbound, Parcel, Retain};
use crate::listen;
use crate::listen::admit::{Arrival, Routes};
use crate::metrics::Protocol as Counted;
use bytes::Bytes;
use rumqttd::protocol::{
    Filter, Packet, QoS, RetainForwardRule, SubAck, SubscribeReasonCode, UnsubAck, UnsubAckReason,
};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Topic aliases that a client may use.
pub(super) const ALIASES_MAX: u16 = 64;

/// One client's side of the conversation, after CONNECT.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: usize,
    pub(super) connection: Arc<Connection>,
    pub(super) version: Version,
    pub(super) client: Arc<str>,
    /// QoS 2 identifiers outlive the connection.
    pub(super) persistent: bool,
    pub(super) will: Option<Publication>,
    pub(super) filters: HashSet<String>,
    pub(super) aliases: HashMap<u16, Box<str>>,
    /// QoS 2 identifiers that are stored and not released, with a hash of their message.
    pub(super) inbound: HashMap<u16, u64>,
    /// Those of an earlier connection: the client may have forgotten them.
    pub(super) inherited: HashSet<u16>,
    pub(super) steps: SmallVec<[Step; 2]>,
}

/// What becomes of the connection after a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// It goes on.
    Continue,
    /// The client said goodbye.
    Goodbye,
}

impl Session {
    /// Takes one frame.
    pub(super) fn frame(
        &mut self,
        frame: &Frame<'_>,
        arrival: Arrival,
        routes: &mut Routes,
        parcel: &mut Parcel,
    ) -> Result<Flow, Violation> {
        match frame.kind {
            kind::PUBLISH => self.publish(frame, arrival, routes, parcel)?,
            kind::PUBACK => self.connection.acknowledged(packet::acknowledgement(self.version, frame)?.0),
            kind::PUBREL => self.release(packet::acknowledgement(self.version, frame)?.0, parcel),
            // Nothing is delivered at QoS 2, so these answer nothing; they harm nothing either.
            kind::PUBREC | kind::PUBCOMP => {
                packet::acknowledgement(self.version, frame)?;
            }
            kind::SUBSCRIBE => self.subscribe(frame)?,
            kind::UNSUBSCRIBE => self.unsubscribe(frame)?,
            kind::PINGREQ if frame.flags == 0 && frame.body.is_empty() => self.connection.send(&[0xd0, 0]),
            kind::PINGREQ => return Err(malformed("PINGREQ with flags or a body")),
            kind::DISCONNECT => {
                if packet::disconnect(self.version, frame)? != reason::WITH_WILL {
                    self.will = None;
                }
                return Ok(Flow::Goodbye);
            }
            kind::CONNECT => return Err(protocol_error("second CONNECT")),
            _ => return Err(protocol_error("packet that only a server sends")),
        }
        Ok(Flow::Continue)
    }

    #[inline]
    fn publish(
        &mut self,
        frame: &Frame<'_>,
        arrival: Arrival,
        routes: &mut Routes,
        parcel: &mut Parcel,
    ) -> Result<(), Violation> {
        let publish = packet::publish(self.version, frame)?;
        let mut alias = None;
        let mut forward = Bytes::new();
        if !publish.properties.is_empty() {
            let own = properties::publish(publish.properties)?;
            alias = own.alias;
            forward = own.forward.into();
        }
        let named;
        let topic = if let Some(alias) = alias {
            named = self.resolve_alias(alias, publish.topic)?;
            &*named
        } else {
            checked_topic(publish.topic)?
        };
        self.shared.admission.metrics.messages(Counted::Mqtt).inc();
        if publish.qos < 2 || self.is_new(&publish, topic, parcel) {
            self.shared.admission.publication(routes, topic, publish.payload, arrival, parcel);
            if publish.retain || self.shared.router.has_subscribers() {
                self.pass_on(&publish, topic, forward, parcel);
            }
        }
        match publish.qos {
            0 => {}
            1 => self.steps.push(Step::Acknowledge(kind::PUBACK, publish.pkid)),
            _ => self.steps.push(Step::Acknowledge(kind::PUBREC, publish.pkid)),
        }
        Ok(())
    }

    fn resolve_alias(&mut self, alias: u16, topic: &[u8]) -> Result<Box<str>, Violation> {
        let invalid = Violation { code: reason::ALIAS_INVALID, what: "topic alias 0, too high, or not set" };
        if alias == 0 || alias > ALIASES_MAX {
            return Err(invalid);
        }
        if !topic.is_empty() {
            self.aliases.insert(alias, checked_topic(topic)?.into());
        }
        self.aliases.get(&alias).cloned().ok_or(invalid)
    }

    /// True if a QoS 2 message is not the repetition of one that is stored. A client that
    /// forgot its state may use an identifier again for another message, without DUP; then the
    /// new one counts.
    fn is_new(&mut self, publish: &packet::Publish<'_>, topic: &str, parcel: &mut Parcel) -> bool {
        let mut hash = Xxh3::new();
        hash.update(topic.as_bytes());
        hash.update(&[0]);
        hash.update(publish.payload);
        let hash = hash.digest();
        let inherited = self.inherited.remove(&publish.pkid);
        if self.inbound.get(&publish.pkid) == Some(&hash) && (publish.dup || !inherited) {
            return false;
        }
        self.inbound.insert(publish.pkid, hash);
        if self.persistent {
            let client = Arc::clone(&self.client);
            parcel.inbound.push(Inbound::Stored { client, pkid: publish.pkid, hash });
        }
        true
    }

    fn release(&mut self, pkid: u16, parcel: &mut Parcel) {
        if self.inbound.remove(&pkid).is_some() && self.persistent {
            parcel.inbound.push(Inbound::Released { client: Arc::clone(&self.client), pkid });
        }
        self.steps.push(Step::Acknowledge(kind::PUBCOMP, pkid));
    }

    fn pass_on(&mut self, publish: &packet::Publish<'_>, topic: &str, properties: Bytes, parcel: &mut Parcel) {
        let publication = Publication {
            topic: topic.into(),
            properties,
            payload: Bytes::copy_from_slice(publish.payload),
            qos: publish.qos,
            retain: publish.retain,
            keep: false,
            from: self.connection.id,
        };
        self.pass_on_publication(publication, parcel);
    }

    /// Keeps a publication with the next commit if it is retained, and passes it on after it.
    pub(super) fn pass_on_publication(&mut self, mut publication: Publication, parcel: &mut Parcel) {
        let removal = publication.payload.is_empty();
        if publication.retain && (removal || self.shared.router.may_retain(&publication.topic, publication.bytes())) {
            publication.keep = true;
            let kept = (publication.qos, publication.properties.clone(), publication.payload.clone());
            parcel.retain.push(Retain { topic: publication.topic.clone(), message: (!removal).then_some(kept) });
        } else if publication.retain {
            tracing::warn!(
                topic = &*publication.topic,
                "not retained: limits.retained or limits.retained_memory reached"
            );
        }
        parcel.carried += publication.bytes();
        self.steps.push(Step::Publish(Arc::new(publication)));
    }

    /// Turns what the frames so far asked for into one receipt of the parcel.
    pub(super) fn settle(&mut self, parcel: &mut Parcel) {
        if !self.steps.is_empty() {
            let steps = std::mem::take(&mut self.steps);
            let receipt = Receipt { connection: Arc::clone(&self.connection), steps };
            parcel.receipts.push((self.desk, listen::Receipt::Mqtt(receipt)));
        }
    }

    fn subscribe(&mut self, frame: &Frame<'_>) -> Result<(), Violation> {
        packet::check_subscription(self.version, frame)?;
        let Packet::Subscribe(subscribe, properties) = packet::decode(self.version, frame)? else {
            return Err(malformed("SUBSCRIBE that is none"));
        };
        let id = properties.and_then(|p| p.id).and_then(|id| u32::try_from(id).ok());
        if subscribe.filters.len() > self.shared.limits.subscriptions {
            return Err(Violation { code: reason::QUOTA, what: "more filters than mqtt.max_subscriptions" });
        }
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        let mut retained = HashMap::new();
        for filter in &subscribe.filters {
            codes.push(self.subscribe_one(filter, id, &mut retained));
        }
        let answer = SubAck { pkid: subscribe.pkid, return_codes: codes };
        self.connection.send(&packet::encode(self.version, Packet::SubAck(answer, None)));
        for (filter, qos) in retained {
            self.send_retained(filter, qos, id);
        }
        Ok(())
    }

    fn send_retained(&self, filter: &str, qos: u8, id: Option<u32>) {
        for publication in self.shared.router.retained_for(filter) {
            let qos = qos.min(publication.qos);
            let delivery = Delivery { qos, retain: true, ids: id.into_iter().collect() };
            if self.connection.send_publication(&publication, &delivery) {
                self.connection.flush();
            }
            if self.connection.closing().is_some() {
                return;
            }
        }
    }

    /// Subscribes, and notes whose retained messages are wanted, each filter once.
    fn subscribe_one<'a>(
        &mut self,
        filter: &'a Filter,
        id: Option<u32>,
        retained: &mut HashMap<&'a str, u8>,
    ) -> SubscribeReasonCode {
        // MQTT 3.1.1 knows one failure code only.
        let failure = |code| if self.version == Version::V4 { SubscribeReasonCode::Failure } else { code };
        if !packet::filter_is_valid(&filter.path) {
            return failure(SubscribeReasonCode::TopicFilterInvalid);
        }
        if filter.path.starts_with("$share/") {
            return failure(SubscribeReasonCode::SharedSubscriptionsNotSupported);
        }
        if !self.filters.contains(&filter.path) && self.filters.len() >= self.shared.limits.subscriptions {
            return failure(SubscribeReasonCode::QuotaExceeded);
        }
        let qos = (filter.qos as u8).min(1);
        let new = self.shared.router.subscribe(
            &filter.path,
            Subscription {
                to: Arc::clone(&self.connection),
                qos,
                no_local: filter.nolocal,
                retain_as_published: filter.preserve_retain,
                id,
            },
        );
        self.filters.insert(filter.path.clone());
        let wanted = match filter.retain_forward_rule {
            RetainForwardRule::OnEverySubscribe => true,
            RetainForwardRule::OnNewSubscribe => new,
            RetainForwardRule::Never => false,
        };
        if wanted {
            retained.insert(&filter.path, qos);
        }
        SubscribeReasonCode::Success(if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce })
    }

    fn unsubscribe(&mut self, frame: &Frame<'_>) -> Result<(), Violation> {
        packet::check_subscription(self.version, frame)?;
        let Packet::Unsubscribe(unsubscribe, _) = packet::decode(self.version, frame)? else {
            return Err(malformed("UNSUBSCRIBE that is none"));
        };
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            self.filters.remove(filter);
            let found = self.shared.router.unsubscribe(filter, self.connection.id);
            reasons.push(if found { UnsubAckReason::Success } else { UnsubAckReason::NoSubscriptionExisted });
        }
        let answer = UnsubAck { pkid: unsubscribe.pkid, reasons };
        self.connection.send(&packet::encode(self.version, Packet::UnsubAck(answer, None)));
        Ok(())
    }

    /// The connection is over: subscriptions go, and the will is published unless the client
    /// said goodbye.
    pub(super) fn end(&mut self, arrival: Arrival, routes: &mut Routes, parcel: &mut Parcel) {
        for filter in self.filters.drain() {
            self.shared.router.unsubscribe(&filter, self.connection.id);
        }
        if let Some(will) = self.will.take() {
            self.shared.admission.publication(routes, &will.topic, &will.payload, arrival, parcel);
            self.pass_on_publication(will, parcel);
            self.settle(parcel);
        }
    }
}

fn checked_topic(topic: &[u8]) -> Result<&str, Violation> {
    match std::str::from_utf8(topic) {
        Ok(topic) if packet::topic_is_valid(topic) => Ok(topic),
        Ok(_) => Err(Violation { code: reason::TOPIC_INVALID, what: "topic empty or with wildcards" }),
        Err(_) => Err(malformed("topic is not UTF-8")),
    }
}
