//! What a client's packets mean.
//!
//! Arrives: frames of one connection, in order. Leaves: rows for the journal, answers, and
//! the steps to take once the commit is on disk. Always holds: an acknowledgement is a step,
//! never sent from here, also for what is rejected or no reading at all, so that
//! acknowledgements keep the order of arrival; a repetition of a stored QoS 2 message is
//! acknowledged and not stored again. Deliberately absent for now: subscriptions that outlive
//! their connection, shared subscriptions, delivery at QoS 2.

use super::budget::Charge;
use super::clients::{Identifiers, Seated};
use super::connection::Connection;
use super::packet::{self, Frame, Version, Violation, kind, malformed, protocol_error, reason};
use super::properties;
use super::retained::{self, Publication};
use super::router::{Delivery, Subscription};
use super::{Receipt, Shared, Step, Subscribing, Unsubscribing, Wish};
use crate::decode::{Reason, Reject};
use crate::journal::{Inbound, Parcel};
use crate::listen;
use crate::listen::admit::{Arrival, Origin, Routes};
use crate::metrics::Protocol as Counted;
use bytes::Bytes;
use model::Micros;
use model::time::SECOND_US;
use rumqttd::protocol::{Filter, Packet, SubscribeReasonCode};
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
    pub(super) is_bridge: bool,
    pub(super) client: Arc<str>,
    /// The user, or else the address: new names are rationed by it.
    pub(super) origin: Arc<str>,
    /// The right to serve the client, given up at the end.
    pub(super) seated: Option<Seated>,
    /// QoS 2 identifiers outlive the connection.
    pub(super) persistent: bool,
    pub(super) will: Option<Will>,
    pub(super) filters: HashSet<String>,
    pub(super) aliases: HashMap<u16, Box<str>>,
    /// QoS 2 identifiers that are stored and not released.
    pub(super) inbound: Identifiers,
    /// Those of an earlier connection: the client may have forgotten them.
    pub(super) inherited: HashSet<u16>,
    /// What they take.
    pub(super) filter_bytes: usize,
    /// For all that is kept of the client.
    pub(super) charge: Charge,
    pub(super) steps: SmallVec<[Step; 2]>,
}

/// What is published if the client does not say goodbye.
pub(super) struct Will {
    pub(super) publication: Publication,
    /// Counts from when it is published (section 3.1.3.2.4).
    pub(super) expiry_s: Option<u32>,
}

/// Retained messages looked up at once.
const SHOWN_AT_ONCE: usize = 64;
/// Pages of them looked up before others have their turn.
const PAGES_AT_ONCE: usize = 4;
/// Memory of a QoS 2 identifier, roughly.
const IDENTIFIER_BYTES: usize = 32;

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
        let mut expiry_s = None;
        if !publish.properties.is_empty() {
            let own = properties::publish(publish.properties)?;
            alias = own.alias;
            forward = own.forward.into();
            expiry_s = own.expiry_s;
        }
        let named;
        let topic = if let Some(alias) = alias {
            named = self.resolve_alias(alias, publish.topic)?;
            &*named
        } else {
            checked_topic(publish.topic)?
        };
        self.shared.admission.metrics.messages(Counted::Mqtt).inc();
        let mut refused = None;
        if publish.qos < 2 || self.is_new(&publish, topic, parcel)? {
            let origin = Origin { source: topic, client: &self.origin };
            refused = self.shared.admission.publication(routes, origin, publish.payload, arrival, parcel);
            // A subscription of the client's own may still wait for its commit.
            if publish.retain || !self.filters.is_empty() || self.shared.router.has_subscribers() {
                let publication = Publication {
                    topic: topic.into(),
                    properties: forward,
                    payload: Bytes::copy_from_slice(publish.payload),
                    qos: publish.qos,
                    retain: publish.retain,
                    expires_us: expires_us(expiry_s, arrival),
                    from: self.connection.id,
                };
                self.pass_on(publication, parcel);
            }
        }
        match publish.qos {
            0 => {}
            1 => self.steps.push(match refused {
                // What would have been kept, if there were room for its names, may be sent again; what cannot be
                // decoded must not.
                Some(Reject { reason: Reason::Limit, .. }) if self.version == Version::V5 => {
                    Step::Refuse(publish.pkid, reason::QUOTA)
                }
                _ => Step::Acknowledge(kind::PUBACK, publish.pkid),
            }),
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
            self.weigh()?;
        }
        self.aliases.get(&alias).cloned().ok_or(invalid)
    }

    /// True if a QoS 2 message is not the repetition of one that is stored. A client that
    /// forgot its state may use an identifier again for another message, without DUP; then the
    /// new one counts.
    fn is_new(&mut self, publish: &packet::Publish<'_>, topic: &str, parcel: &mut Parcel) -> Result<bool, Violation> {
        let mut hash = Xxh3::new();
        hash.update(topic.as_bytes());
        hash.update(&[0]);
        hash.update(publish.payload);
        let hash = hash.digest();
        let inherited = self.inherited.remove(&publish.pkid);
        if self.inbound.get(&publish.pkid) == Some(&hash) && (publish.dup || !inherited) {
            return Ok(false);
        }
        if self.inbound.len() >= self.shared.limits.receive_maximum && !self.inbound.contains_key(&publish.pkid) {
            let what = "more QoS 2 messages unreleased than mqtt.receive_maximum";
            return Err(Violation { code: reason::RECEIVE_MAXIMUM, what });
        }
        self.inbound.insert(publish.pkid, hash);
        self.weigh()?;
        if self.persistent {
            let client = Arc::clone(&self.client);
            parcel.inbound.push(Inbound::Stored { client, pkid: publish.pkid, hash });
        }
        Ok(true)
    }

    /// Accounts for what is kept for as long as the connection lasts.
    pub(super) fn weigh(&mut self) -> Result<(), Violation> {
        let will = self.will.as_ref().map_or(0, |will| will.publication.bytes());
        let aliases: usize = self.aliases.values().map(|topic| topic.len() + 32).sum();
        let names = self.client.len() * 3 + self.origin.len();
        self.charge.set(will + aliases + names + self.filter_bytes + self.inbound.len() * IDENTIFIER_BYTES)
    }

    fn release(&mut self, pkid: u16, parcel: &mut Parcel) {
        if self.inbound.remove(&pkid).is_some() && self.persistent {
            parcel.inbound.push(Inbound::Released { client: Arc::clone(&self.client), pkid });
        }
        self.steps.push(Step::Acknowledge(kind::PUBCOMP, pkid));
    }

    /// Keeps a publication with the next commit if it is retained, and passes it on after it.
    pub(super) fn pass_on(&mut self, publication: Publication, parcel: &mut Parcel) {
        let publication = Arc::new(publication);
        parcel.carried += publication.bytes();
        if publication.retain {
            let removal = publication.payload.is_empty();
            if removal || self.shared.retained.has_room(&publication.topic, publication.bytes()) {
                parcel.retain.push(Arc::clone(&publication));
            } else {
                retained::tell_full(&publication.topic);
            }
        }
        self.steps.push(Step::Publish(publication));
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
        let wish = |filter| self.wish(filter, id);
        let filters = subscribe.filters.iter().map(wish).collect();
        let subscribing = Subscribing { pkid: subscribe.pkid, filters };
        self.steps.push(Step::Subscribe(Box::new(subscribing)));
        Ok(())
    }

    /// Sends what retained messages the client has room for, for a little while; the rest follow as it takes
    /// them. True if there is more to do at once.
    pub(super) fn show_retained(&mut self) -> bool {
        for _ in 0..PAGES_AT_ONCE {
            let mut showings = self.connection.showings();
            let Some(mut showing) = showings.pop_front() else { return false };
            drop(showings);
            let page = self.shared.retained.page(&showing.filter, showing.after.as_deref(), SHOWN_AT_ONCE);
            let mut is_full = false;
            for publication in page.messages {
                if !self.connection.has_room() {
                    is_full = true;
                    break;
                }
                let qos = showing.qos.min(publication.qos);
                let delivery = Delivery { qos, retain: true, ids: showing.id.into_iter().collect() };
                if self.connection.send_publication(&publication, &delivery) {
                    self.connection.flush();
                }
                showing.after = Some(publication.topic.clone());
            }
            if is_full || page.more_behind.is_some() {
                if !is_full {
                    showing.after = page.more_behind;
                }
                let mut showings = self.connection.showings();
                // Unless it has been asked for anew meanwhile.
                if showings.iter().all(|other| other.filter != showing.filter) {
                    showings.push_front(showing);
                }
            }
            if is_full {
                return false;
            }
        }
        !self.connection.showings().is_empty()
    }

    /// What becomes of one filter of a SUBSCRIBE.
    fn wish(&mut self, filter: &Filter, id: Option<u32>) -> Result<Wish, SubscribeReasonCode> {
        // MQTT 3.1.1 knows one failure code only.
        let version = self.version;
        let failure = |code| if version == Version::V4 { SubscribeReasonCode::Failure } else { code };
        if !packet::filter_is_valid(&filter.path) {
            return Err(failure(SubscribeReasonCode::TopicFilterInvalid));
        }
        if filter.path.starts_with("$share/") {
            return Err(failure(SubscribeReasonCode::SharedSubscriptionsNotSupported));
        }
        if !self.filters.contains(&filter.path) {
            if self.filters.len() >= self.shared.limits.subscriptions {
                return Err(failure(SubscribeReasonCode::QuotaExceeded));
            }
            self.filters.insert(filter.path.clone());
            self.filter_bytes += filter_bytes(&filter.path);
            if self.weigh().is_err() {
                self.filters.remove(&filter.path);
                self.filter_bytes -= filter_bytes(&filter.path);
                let _ = self.weigh();
                return Err(failure(SubscribeReasonCode::QuotaExceeded));
            }
        }
        let subscription = Subscription {
            to: Arc::clone(&self.connection),
            qos: (filter.qos as u8).min(1),
            no_local: filter.nolocal || self.is_bridge,
            retain_as_published: filter.preserve_retain || self.is_bridge,
            id,
        };
        Ok(Wish { filter: filter.path.clone(), subscription, retained: filter.retain_forward_rule.clone() })
    }

    fn unsubscribe(&mut self, frame: &Frame<'_>) -> Result<(), Violation> {
        packet::check_subscription(self.version, frame)?;
        let Packet::Unsubscribe(unsubscribe, _) = packet::decode(self.version, frame)? else {
            return Err(malformed("UNSUBSCRIBE that is none"));
        };
        for filter in &unsubscribe.filters {
            if self.filters.remove(filter) {
                self.filter_bytes -= filter_bytes(filter);
            }
        }
        self.weigh()?;
        let unsubscribing = Unsubscribing { pkid: unsubscribe.pkid, filters: unsubscribe.filters };
        self.steps.push(Step::Unsubscribe(Box::new(unsubscribing)));
        Ok(())
    }

    /// The connection is over: subscriptions go, and the will is published unless the client
    /// said goodbye.
    pub(super) fn end(&mut self, arrival: Arrival, routes: &mut Routes, parcel: &mut Parcel) {
        self.connection.end();
        // Whoever was thrown out leaves nothing behind.
        if self.connection.closing() == Some(reason::NOT_AUTHORIZED) {
            self.will = None;
        }
        for filter in self.filters.drain() {
            self.shared.router.unsubscribe(&filter, self.connection.id);
        }
        if let Some(Will { publication: mut will, expiry_s }) = self.will.take() {
            will.expires_us = expires_us(expiry_s, arrival);
            let origin = Origin { source: &will.topic, client: &self.origin };
            self.shared.admission.publication(routes, origin, &will.payload, arrival, parcel);
            self.pass_on(will, parcel);
            self.settle(parcel);
        }
    }
}

/// What a filter takes, in the session and in the tree of all.
fn filter_bytes(filter: &str) -> usize {
    filter.len() * 3 + filter.split('/').count() * 64 + 128
}

fn expires_us(expiry_s: Option<u32>, arrival: Arrival) -> Option<Micros> {
    expiry_s.map(|s| arrival.now_us + Micros::from(s) * SECOND_US)
}

fn checked_topic(topic: &[u8]) -> Result<&str, Violation> {
    match std::str::from_utf8(topic) {
        Ok(topic) if packet::topic_is_valid(topic) => Ok(topic),
        Ok(_) => Err(Violation { code: reason::TOPIC_INVALID, what: "topic empty or with wildcards" }),
        Err(_) => Err(malformed("topic is not UTF-8")),
    }
}
