//! Frames and packets of MQTT 3.1.1 and 5.0.
//!
//! Arrives: bytes of a stream. Leaves: frames, and of PUBLISH and the acknowledgements, which
//! are nearly all of the traffic, parsed fields that borrow from the stream. CONNECT,
//! SUBSCRIBE and UNSUBSCRIBE go through rumqttd's codec once their flags and properties have
//! been checked here, because the codec believes what it reads. Always holds: no panic on any
//! bytes; a [`Violation`] names the reason code that MQTT 5 has for it. Source: OASIS MQTT
//! Version 3.1.1 and 5.0; section numbers are those of 5.0.

use super::properties;
use bytes::BytesMut;
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::v5::V5;
use rumqttd::protocol::{Packet, Protocol};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.1.1, protocol level 4.
    V4,
    /// 5.0, protocol level 5.
    V5,
}

/// Packet types (section 2.1.2).
pub(crate) mod kind {
    #![allow(missing_docs, reason = "the names are those of the standard")]
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const DISCONNECT: u8 = 14;
}

/// Reason codes (section 2.4).
pub(crate) mod reason {
    #![allow(missing_docs, reason = "the names are those of the standard")]
    pub(crate) const NORMAL: u8 = 0x00;
    pub(crate) const WITH_WILL: u8 = 0x04;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    pub(crate) const UNSUPPORTED_VERSION: u8 = 0x84;
    pub(crate) const CLIENT_ID_INVALID: u8 = 0x85;
    pub(crate) const BAD_LOGIN: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const BUSY: u8 = 0x89;
    pub(crate) const SHUTTING_DOWN: u8 = 0x8b;
    pub(crate) const BAD_METHOD: u8 = 0x8c;
    pub(crate) const KEEP_ALIVE: u8 = 0x8d;
    pub(crate) const TAKEN_OVER: u8 = 0x8e;
    pub(crate) const TOPIC_INVALID: u8 = 0x90;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x93;
    pub(crate) const ALIAS_INVALID: u8 = 0x94;
    pub(crate) const TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA: u8 = 0x97;

    /// The label of a counter.
    pub(crate) fn name(code: u8) -> &'static str {
        match code {
            MALFORMED => "malformed_packet",
            PROTOCOL_ERROR => "protocol_error",
            UNSUPPORTED_VERSION => "unsupported_protocol_version",
            CLIENT_ID_INVALID => "client_identifier_not_valid",
            BAD_LOGIN => "bad_user_name_or_password",
            NOT_AUTHORIZED => "not_authorized",
            BUSY => "server_busy",
            BAD_METHOD => "bad_authentication_method",
            TAKEN_OVER => "session_taken_over",
            TOPIC_INVALID => "topic_name_invalid",
            TOO_LARGE => "packet_too_large",
            QUOTA => "quota_exceeded",
            _ => "other",
        }
    }
}

/// Something a client must not send; it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} (reason code {code:#04x})")]
pub(crate) struct Violation {
    /// What MQTT 5 calls it.
    pub code: u8,
    /// In words, for the log.
    pub what: &'static str,
}

/// A malformed packet.
pub(super) const fn malformed(what: &'static str) -> Violation {
    Violation { code: reason::MALFORMED, what }
}

/// A well-formed packet out of place.
pub(super) const fn protocol_error(what: &'static str) -> Violation {
    Violation { code: reason::PROTOCOL_ERROR, what }
}

/// One packet of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// See [`kind`].
    pub kind: u8,
    /// The low bits of the first byte.
    pub flags: u8,
    /// All that follows the fixed header.
    pub body: &'a [u8],
    /// The packet as it came.
    pub raw: &'a [u8],
}

/// The first packet of `bytes`; `None` if it is not complete yet.
#[inline]
pub(crate) fn frame(bytes: &[u8], max: usize) -> Result<Option<Frame<'_>>, Violation> {
    let Some((header, length)) = header(bytes, max)? else { return Ok(None) };
    let (kind, flags) = (bytes[0] >> 4, bytes[0] & 0x0f);
    Ok(bytes.get(..header + length).map(|raw| Frame { kind, flags, body: &raw[header..], raw }))
}

/// How long the first packet of `bytes` is, as far as they tell: at least one byte more.
pub(crate) fn needed(bytes: &[u8]) -> usize {
    match header(bytes, usize::MAX) {
        Ok(Some((header, length))) => header + length,
        _ => bytes.len() + 1,
    }
}

/// The lengths of the fixed header and of what follows it (section 2.1.4).
#[inline]
fn header(bytes: &[u8], max: usize) -> Result<Option<(usize, usize)>, Violation> {
    let mut length = 0_usize;
    for i in 1..5 {
        let Some(&byte) = bytes.get(i) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * (i - 1));
        if byte < 0x80 {
            if i + 1 + length > max {
                return Err(Violation { code: reason::TOO_LARGE, what: "packet larger than mqtt.max_packet" });
            }
            return Ok(Some((i + 1, length)));
        }
    }
    Err(malformed("remaining length of more than four bytes"))
}

/// A PUBLISH packet (section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    /// Sent before, says the client.
    pub dup: bool,
    /// 0 to 2.
    pub qos: u8,
    /// To be retained.
    pub retain: bool,
    /// The packet identifier; 0 at QoS 0.
    pub pkid: u16,
    /// The topic, not yet checked to be UTF-8.
    pub topic: &'a [u8],
    /// The properties without their length; empty in 3.1.1.
    pub properties: &'a [u8],
    /// The rest.
    pub payload: &'a [u8],
}

/// Reads a PUBLISH packet.
#[inline]
pub(crate) fn publish<'a>(version: Version, frame: &Frame<'a>) -> Result<Publish<'a>, Violation> {
    let (dup, qos, retain) = (frame.flags & 8 != 0, (frame.flags >> 1) & 3, frame.flags & 1 != 0);
    if qos == 3 {
        return Err(malformed("PUBLISH with QoS 3"));
    }
    if dup && qos == 0 {
        return Err(malformed("PUBLISH with DUP at QoS 0"));
    }
    let mut rest = frame.body;
    let topic = take_bytes(&mut rest).ok_or(malformed("PUBLISH without a whole topic"))?;
    let pkid = if qos > 0 { take_pkid(&mut rest)? } else { 0 };
    let properties = match version {
        Version::V4 => &[],
        Version::V5 => properties::take(&mut rest).ok_or(malformed("PUBLISH without whole properties"))?,
    };
    Ok(Publish { dup, qos, retain, pkid, topic, properties, payload: rest })
}

/// Reads PUBACK, PUBREC, PUBREL or PUBCOMP: its packet identifier and reason code.
pub(crate) fn acknowledgement(version: Version, frame: &Frame<'_>) -> Result<(u16, u8), Violation> {
    let wanted = if frame.kind == kind::PUBREL { 2 } else { 0 };
    if frame.flags != wanted {
        return Err(malformed("reserved flags of an acknowledgement"));
    }
    let mut rest = frame.body;
    let pkid = take_pkid(&mut rest)?;
    match (version, rest) {
        (_, []) => Ok((pkid, 0)),
        (Version::V4, _) => Err(malformed("acknowledgement of more than two bytes")),
        (Version::V5, [code]) => Ok((pkid, *code)),
        (Version::V5, [code, rest @ ..]) => {
            let mut rest = rest;
            let own = properties::take(&mut rest).ok_or(malformed("acknowledgement without whole properties"))?;
            properties::check(own, properties::ACKNOWLEDGEMENT)?;
            Ok((pkid, *code))
        }
    }
}

/// Reads DISCONNECT: its reason code and session expiry.
pub(crate) fn disconnect(version: Version, frame: &Frame<'_>) -> Result<u8, Violation> {
    if frame.flags != 0 {
        return Err(malformed("reserved flags of DISCONNECT"));
    }
    match (version, frame.body) {
        (_, []) => Ok(reason::NORMAL),
        (Version::V4, _) => Err(malformed("DISCONNECT with a body")),
        (Version::V5, [code]) => Ok(*code),
        (Version::V5, [code, rest @ ..]) => {
            let mut rest = rest;
            let own = properties::take(&mut rest).ok_or(malformed("DISCONNECT without whole properties"))?;
            properties::check(own, properties::DISCONNECT)?;
            Ok(*code)
        }
    }
}

/// How a CONNECT packet begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The protocol that it asks for; 3.1 is spoken like 3.1.1.
    pub version: Version,
    /// It is another broker's bridge, which says so by the level's highest bit: what it sends is not sent back to
    /// it, and retained messages stay marked.
    pub is_bridge: bool,
}

/// The protocol that a CONNECT packet asks for; an error is answered as 3.1.1 does.
pub(crate) fn connect_version(frame: &Frame<'_>) -> Result<Option<Hello>, Violation> {
    if frame.kind != kind::CONNECT {
        return Err(protocol_error("first packet is not CONNECT"));
    }
    if frame.flags != 0 {
        return Err(malformed("reserved flags of CONNECT"));
    }
    let mut rest = frame.body;
    let name = take_bytes(&mut rest).ok_or(malformed("CONNECT without protocol name"))?;
    let (&level, rest) = rest.split_first().ok_or(malformed("CONNECT without protocol level"))?;
    let (is_bridge, level) = (level & BRIDGE != 0, level & !BRIDGE);
    let version = match (name, level) {
        (b"MQTT", 4) | (b"MQIsdp", 3) => Version::V4,
        (b"MQTT", 5) => Version::V5,
        (b"MQTT" | b"MQIsdp", _) => return Ok(None),
        _ => return Err(malformed("protocol name is not MQTT")),
    };
    let &flags = rest.first().ok_or(malformed("CONNECT without flags"))?;
    let (will, user, password) = (flags & 0x04 != 0, flags & 0x80 != 0, flags & 0x40 != 0);
    if flags & 1 != 0 {
        return Err(malformed("reserved flag of CONNECT"));
    }
    if !will && flags & 0x38 != 0 || flags & 0x18 == 0x18 {
        return Err(malformed("will flags of CONNECT"));
    }
    if version == Version::V4 && password && !user {
        return Err(malformed("CONNECT with a password and no user name"));
    }
    let mut rest = rest.get(3..).ok_or(malformed("CONNECT without keep-alive"))?;
    if version == Version::V5 {
        let own = properties::take(&mut rest).ok_or(malformed("CONNECT without whole properties"))?;
        properties::check_connect(own)?;
    }
    take_bytes(&mut rest).ok_or(malformed("CONNECT without client identifier"))?;
    if will && version == Version::V5 {
        let own = properties::take(&mut rest).ok_or(malformed("will without whole properties"))?;
        properties::check_will(own)?;
    }
    let texts = if will { 2 } else { 0 } + usize::from(user) + usize::from(password);
    for _ in 0..texts {
        take_bytes(&mut rest).ok_or(malformed("CONNECT that is cut short"))?;
    }
    if !rest.is_empty() {
        return Err(malformed("bytes behind CONNECT's payload"));
    }
    Ok(Some(Hello { version, is_bridge }))
}

/// Set in the protocol level by bridges.
const BRIDGE: u8 = 0x80;

/// The protocol that a CONNECT packet asks for, as far as it can be told of one that is malformed.
pub(crate) fn connect_seems(frame: &Frame<'_>) -> Version {
    let mut rest = frame.body;
    let is_v5 = take_bytes(&mut rest) == Some(b"MQTT") && rest.first().is_some_and(|level| level & !BRIDGE == 5);
    if is_v5 { Version::V5 } else { Version::V4 }
}

/// The client identifier of a CONNECT packet, as far as it can be told of one that is refused.
pub(crate) fn connect_client<'a>(frame: &Frame<'a>) -> Option<&'a str> {
    let mut rest = frame.body;
    take_bytes(&mut rest)?;
    rest = rest.get(4..)?;
    if connect_seems(frame) == Version::V5 {
        properties::take(&mut rest)?;
    }
    std::str::from_utf8(take_bytes(&mut rest)?).ok()
}

/// Decodes a CONNECT packet that has been checked, whatever its protocol is called.
pub(crate) fn decode_connect(version: Version, frame: &Frame<'_>) -> Result<Packet, Violation> {
    let mut rest = frame.body;
    take_bytes(&mut rest).ok_or(malformed("CONNECT without protocol name"))?;
    let level = if version == Version::V5 { 5 } else { 4 };
    if frame.body.starts_with(b"\x00\x04MQTT") && rest.first() == Some(&level) {
        return decode(version, frame);
    }
    // Written again as the codec knows it.
    let mut body = b"\x00\x04MQTT".to_vec();
    body.push(level);
    body.extend(rest.get(1..).unwrap_or_default());
    let mut raw = vec![kind::CONNECT << 4];
    put_length(&mut raw, body.len());
    raw.extend(&body);
    decode(version, &Frame { kind: frame.kind, flags: frame.flags, body: &body, raw: &raw })
}

/// Reads SUBSCRIBE or UNSUBSCRIBE, whose flags must be 2 and whose identifier not 0.
pub(crate) fn check_subscription(version: Version, frame: &Frame<'_>) -> Result<(), Violation> {
    if frame.flags != 2 {
        return Err(malformed("reserved flags of a subscription"));
    }
    let mut rest = frame.body;
    take_pkid(&mut rest)?;
    if version == Version::V5 {
        let own = properties::take(&mut rest).ok_or(malformed("subscription without whole properties"))?;
        let allowed = if frame.kind == kind::SUBSCRIBE { properties::SUBSCRIBE } else { properties::UNSUBSCRIBE };
        properties::check(own, allowed)?;
    }
    if rest.is_empty() {
        return Err(protocol_error("subscription without a filter"));
    }
    while !rest.is_empty() {
        take_bytes(&mut rest).ok_or(malformed("subscription without a whole filter"))?;
        if frame.kind == kind::SUBSCRIBE {
            let (&options, after) = rest.split_first().ok_or(malformed("subscription without options"))?;
            let reserved = if version == Version::V4 { 0xfc } else { 0xc0 };
            if options & reserved != 0 || options & 3 == 3 || options & 0x30 == 0x30 {
                return Err(malformed("reserved subscription options"));
            }
            rest = after;
        }
    }
    Ok(())
}

/// Decodes a whole frame that has been checked here with rumqttd's codec.
pub(crate) fn decode(version: Version, frame: &Frame<'_>) -> Result<Packet, Violation> {
    let mut bytes = BytesMut::from(frame.raw);
    let read = || match version {
        Version::V4 => V4.read_mut(&mut bytes, usize::MAX),
        Version::V5 => V5.read_mut(&mut bytes, usize::MAX),
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(packet)) => Ok(packet),
        Ok(Err(_)) | Err(_) => Err(malformed("packet that the codec cannot read")),
    }
}

/// Encodes a packet with rumqttd's codec.
pub(crate) fn encode(version: Version, packet: Packet) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let written = match version {
        Version::V4 => V4.write(packet, &mut bytes),
        Version::V5 => V5.write(packet, &mut bytes),
    };
    debug_assert!(written.is_ok());
    bytes.to_vec()
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<2>()?;
    let (bytes, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    *rest = after;
    Some(bytes)
}

fn take_pkid(rest: &mut &[u8]) -> Result<u16, Violation> {
    let (pkid, after) = rest.split_first_chunk::<2>().ok_or(malformed("packet without identifier"))?;
    *rest = after;
    match u16::from_be_bytes(*pkid) {
        0 => Err(protocol_error("packet identifier 0")),
        pkid => Ok(pkid),
    }
}

/// Appends PUBACK, PUBREC, PUBREL or PUBCOMP with reason "success", which both versions write
/// in the same four bytes.
#[inline]
pub(crate) fn put_acknowledgement(out: &mut Vec<u8>, kind: u8, pkid: u16) {
    let flags = if kind == kind::PUBREL { 2 } else { 0 };
    let [high, low] = pkid.to_be_bytes();
    out.extend([kind << 4 | flags, 2, high, low]);
}

/// Appends a variable byte integer (section 1.5.5).
pub(crate) fn put_length(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// What a PUBLISH to a subscriber is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The properties as they came, without their length.
    pub properties: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
    /// 0 or 1.
    pub qos: u8,
    /// Sent because it was retained, or retain is kept as published.
    pub retain: bool,
    /// 0 at QoS 0.
    pub pkid: u16,
    /// Seconds until the message expires.
    pub expiry_s: Option<u32>,
    /// Identifiers of the subscriptions that matched.
    pub subscriptions: &'a [u32],
}

impl Outgoing<'_> {
    /// Appends the packet.
    pub(crate) fn put(&self, version: Version, out: &mut Vec<u8>) {
        let mut own = Vec::new();
        if version == Version::V5 {
            if let Some(expiry_s) = self.expiry_s {
                own.push(properties::EXPIRY);
                own.extend(expiry_s.to_be_bytes());
            }
            for &id in self.subscriptions {
                own.push(properties::SUBSCRIPTION_ID);
                put_length(&mut own, id as usize);
            }
        }
        let properties = if version == Version::V5 { self.properties } else { &[] };
        let property_bytes = own.len() + properties.len();
        let mut length = 2 + self.topic.len() + self.payload.len() + if self.qos > 0 { 2 } else { 0 };
        if version == Version::V5 {
            length += property_bytes + length_bytes(property_bytes);
        }
        out.push(kind::PUBLISH << 4 | self.qos << 1 | u8::from(self.retain));
        put_length(out, length);
        out.extend((self.topic.len() as u16).to_be_bytes());
        out.extend(self.topic.as_bytes());
        if self.qos > 0 {
            out.extend(self.pkid.to_be_bytes());
        }
        if version == Version::V5 {
            put_length(out, property_bytes);
            out.extend(own);
            out.extend(properties);
        }
        out.extend(self.payload);
    }
}

fn length_bytes(n: usize) -> usize {
    match n {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Levels of a topic or filter; walking one costs stack and memory for each.
const LEVELS_MAX: usize = 128;

fn has_too_many_levels(text: &str) -> bool {
    text.len() >= LEVELS_MAX && text.bytes().filter(|&b| b == b'/').count() >= LEVELS_MAX
}

/// True for a topic that may be published to (section 4.7).
pub(crate) fn topic_is_valid(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0']) && !has_too_many_levels(topic)
}

/// True for a filter that may be subscribed to (section 4.7).
pub(crate) fn filter_is_valid(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    if filter.is_empty() || filter.contains('\0') || has_too_many_levels(filter) {
        return false;
    }
    while let Some(level) = levels.next() {
        let last = levels.peek().is_none();
        match level {
            "#" if !last => return false,
            "#" | "+" => {}
            other if other.contains(['#', '+']) => return false,
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_publish_is_read_as_it_was_written() {
        for version in [Version::V4, Version::V5] {
            for qos in [0, 1] {
                let payload = vec![b'x'; 300];
                let pkid = u16::from(qos) * 7;
                let sent = Outgoing {
                    topic: "a/ü",
                    properties: &[],
                    payload: &payload,
                    qos,
                    retain: true,
                    pkid,
                    expiry_s: None,
                    subscriptions: &[],
                };
                let mut bytes = Vec::new();
                sent.put(version, &mut bytes);
                let frame = frame(&bytes, 1_000).unwrap().unwrap();
                assert_eq!(frame.raw.len(), bytes.len());
                let got = publish(version, &frame).unwrap();
                assert_eq!((got.topic, got.payload, got.qos), ("a/ü".as_bytes(), &payload[..], qos));
                assert_eq!((got.pkid, got.retain, got.properties), (pkid, true, &[][..]));
            }
        }
    }

    #[test]
    fn lengths_of_five_bytes_and_beyond_the_limit_are_violations() {
        assert_eq!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff], 100).unwrap_err().code, reason::MALFORMED);
        assert_eq!(frame(&[0x30, 0x7f], 100).unwrap_err().code, reason::TOO_LARGE);
        assert_eq!(frame(&[0x30, 0x05, 0, 1], 100), Ok(None));
        assert_eq!(frame(&[], 100), Ok(None));
    }

    #[test]
    fn filters_and_topics_follow_section_4_7() {
        for good in ["#", "+", "/", "a/+/b", "a/#", "+/+/#", "a//b", "$SYS/#"] {
            assert!(filter_is_valid(good), "{good}");
        }
        let deep = "/".repeat(65_535);
        for bad in [&*deep, "", "a#", "#/a", "a+/b", "a/b#", "a\0"] {
            assert!(!filter_is_valid(bad), "{bad}");
        }
        assert!(topic_is_valid("a/b") && !topic_is_valid("a/+") && !topic_is_valid("") && !topic_is_valid("a/#"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), first in any::<u8>()) {
            let mut whole = vec![first, bytes.len() as u8];
            whole.extend(&bytes);
            if let Ok(Some(frame)) = frame(&whole, 1_000) {
                let _ = connect_version(&frame);
                for version in [Version::V4, Version::V5] {
                    let _ = publish(version, &frame);
                    let _ = acknowledgement(version, &frame);
                    let _ = disconnect(version, &frame);
                    let _ = check_subscription(version, &frame);
                    let _ = decode(version, &frame);
                }
            }
        }
    }
}
