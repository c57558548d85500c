//! The two MQTT versions behind one small vocabulary.
//!
//! Arrives: what a publishing client wants to say, and bytes from a broker. Leaves: bytes, and the
//! few answers that a publisher cares about. Always holds: a reason code at or above 0x80 is a
//! refusal, never an acknowledgement. The packets are rumqttc's codec for 3.1.1 and for 5.0.
//! Deliberately absent: rumqttc's event loop. It forgets unacknowledged messages when a reconnect
//! finds no session, and flushes the socket for every message, so its acknowledgements can neither be
//! vouched for nor counted at speed; [`super::session`] does both in the open.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{self, QoS, v4};
use rumqttc::v5::mqttbytes as v5bytes;
use rumqttc::v5::mqttbytes::v5;

use crate::message::Message;

/// The largest packet accepted from a broker, and the largest sent.
const PACKET_BYTES_MAX: u32 = 16 << 20;
/// How long a broker keeps a 5.0 session for a client that means to come back.
const SESSION_EXPIRY_S: u32 = 3_600;

/// The protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    V4,
    V5,
}

/// Who connects.
#[derive(Debug, Clone)]
pub(crate) struct Hello<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) login: Option<&'a (String, String)>,
    pub(crate) is_clean: bool,
    pub(crate) keep_alive_s: u16,
}

/// What a broker's packet means to a publisher.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Welcome {
        session_present: bool,
        receive_max: u16,
    },
    Unwelcome {
        reason: String,
        for_good: bool,
    },
    /// PUBACK.
    Acked {
        pkid: u16,
    },
    /// PUBREC: committed, and waiting for our PUBREL.
    Received {
        pkid: u16,
    },
    /// PUBCOMP.
    Completed {
        pkid: u16,
    },
    /// A PUBACK or PUBREC that says no.
    Refused {
        pkid: u16,
        reason: String,
    },
    /// DISCONNECT from the broker (5.0).
    Goodbye {
        reason: String,
    },
    /// PINGRESP and whatever else does not concern a publisher.
    Other,
}

/// Why bytes are not MQTT.
#[derive(Debug, thiserror::Error)]
#[error("the broker sent bytes that are not MQTT: {0}")]
pub(crate) struct WireError(String);

impl Wire {
    pub(crate) fn connect(self, hello: &Hello<'_>, out: &mut BytesMut) {
        let client_id = hello.client_id.to_owned();
        let written = match self {
            Self::V4 => {
                let mut connect = v4::Connect::new(client_id);
                connect.keep_alive = hello.keep_alive_s;
                connect.clean_session = hello.is_clean;
                connect.login = hello.login.map(|(name, password)| v4::Login::new(name, password));
                connect.write(out).map_err(|error| error.to_string())
            }
            Self::V5 => {
                let mut properties = v5::ConnectProperties::new();
                properties.session_expiry_interval = (!hello.is_clean).then_some(SESSION_EXPIRY_S);
                properties.max_packet_size = Some(PACKET_BYTES_MAX);
                let connect = v5::Connect {
                    keep_alive: hello.keep_alive_s,
                    client_id,
                    clean_start: hello.is_clean,
                    properties: Some(properties),
                };
                let login = hello.login.map(|(name, password)| v5::Login::new(name, password));
                connect.write(&None, &login, out).map_err(|error| error.to_string())
            }
        };
        written.expect("a CONNECT is far below every size limit");
    }

    /// Appends a PUBLISH. The message lends its topic and gets it back.
    pub(crate) fn publish(self, message: &mut Message, qos: u8, pkid: u16, dup: bool, out: &mut BytesMut) {
        let topic = std::mem::take(&mut message.topic);
        let payload = message.payload.clone();
        message.topic = match self {
            Self::V4 => {
                let qos = mqttbytes::qos(qos).expect("the command line allows 0, 1 and 2");
                let publish = v4::Publish { dup, qos, retain: false, topic, pkid, payload };
                publish.write(out).expect("a reading is far below every size limit");
                publish.topic
            }
            Self::V5 => {
                let qos = v5bytes::qos(qos).expect("the command line allows 0, 1 and 2");
                let wire_topic = Bytes::copy_from_slice(topic.as_bytes());
                let publish =
                    v5::Publish { dup, qos, retain: false, topic: wire_topic, pkid, payload, properties: None };
                publish.write(out).expect("a reading is far below every size limit");
                topic
            }
        };
    }

    pub(crate) fn release(self, pkid: u16, out: &mut BytesMut) {
        let written = match self {
            Self::V4 => v4::PubRel::new(pkid).write(out).map_err(|error| error.to_string()),
            Self::V5 => v5::PubRel::new(pkid, None).write(out).map_err(|error| error.to_string()),
        };
        written.expect("a PUBREL has a fixed size");
    }

    pub(crate) fn ping(self, out: &mut BytesMut) {
        // PINGREQ is the same two bytes in both versions.
        v4::PingReq.write(out).expect("a PINGREQ has a fixed size");
    }

    pub(crate) fn disconnect(self, out: &mut BytesMut) {
        // Without a reason a DISCONNECT is the same two bytes in both versions.
        v4::Disconnect.write(out).expect("a DISCONNECT has a fixed size");
    }

    /// Takes the next whole packet out of `input`.
    pub(crate) fn read(self, input: &mut BytesMut) -> Result<Option<Answer>, WireError> {
        match self {
            Self::V4 => match v4::Packet::read(input, PACKET_BYTES_MAX as usize) {
                Ok(packet) => Ok(Some(from_v4(packet))),
                Err(mqttbytes::Error::InsufficientBytes(_)) => Ok(None),
                Err(error) => Err(WireError(error.to_string())),
            },
            Self::V5 => match v5::Packet::read(input, Some(PACKET_BYTES_MAX)) {
                Ok(packet) => Ok(Some(from_v5(packet))),
                Err(v5bytes::Error::InsufficientBytes(_)) => Ok(None),
                Err(error) => Err(WireError(error.to_string())),
            },
        }
    }
}

fn from_v4(packet: v4::Packet) -> Answer {
    match packet {
        v4::Packet::PubAck(ack) => Answer::Acked { pkid: ack.pkid },
        v4::Packet::PubRec(ack) => Answer::Received { pkid: ack.pkid },
        v4::Packet::PubComp(ack) => Answer::Completed { pkid: ack.pkid },
        v4::Packet::ConnAck(ack) => match ack.code {
            v4::ConnectReturnCode::Success => {
                Answer::Welcome { session_present: ack.session_present, receive_max: u16::MAX }
            }
            code => Answer::Unwelcome {
                reason: format!("{code:?}"),
                for_good: code != v4::ConnectReturnCode::ServiceUnavailable,
            },
        },
        _ => Answer::Other,
    }
}

fn from_v5(packet: v5::Packet) -> Answer {
    use v5::{ConnectReturnCode as Code, PubAckReason, PubRecReason};
    match packet {
        v5::Packet::PubAck(ack) => match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Answer::Acked { pkid: ack.pkid },
            reason => Answer::Refused { pkid: ack.pkid, reason: format!("{reason:?}") },
        },
        v5::Packet::PubRec(ack) => match ack.reason {
            PubRecReason::Success | PubRecReason::NoMatchingSubscribers => Answer::Received { pkid: ack.pkid },
            reason => Answer::Refused { pkid: ack.pkid, reason: format!("{reason:?}") },
        },
        v5::Packet::PubComp(ack) => Answer::Completed { pkid: ack.pkid },
        v5::Packet::ConnAck(ack) => match ack.code {
            Code::Success => Answer::Welcome {
                session_present: ack.session_present,
                receive_max: ack.properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
            },
            code => {
                let for_now = [Code::ServerUnavailable, Code::ServerBusy, Code::ConnectionRateExceeded];
                Answer::Unwelcome { reason: format!("{code:?}"), for_good: !for_now.contains(&code) }
            }
        },
        v5::Packet::Disconnect(goodbye) => Answer::Goodbye { reason: format!("{:?}", goodbye.reason_code) },
        _ => Answer::Other,
    }
}

/// Whether a quality of service is acknowledged at all.
pub(crate) fn is_acknowledged(qos: u8) -> bool {
    mqttbytes::qos(qos).is_ok_and(|qos| qos != QoS::AtMostOnce)
}
