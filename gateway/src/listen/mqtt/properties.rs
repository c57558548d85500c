//! Properties of MQTT 5.0 packets (section 2.2.2).
//!
//! Arrives: the bytes of a property list. Leaves: the word that it holds only what its packet
//! allows, each at most once, or a [`Violation`]; and the few values that are needed here.
//! The rest is passed on as it came.

use super::packet::{Violation, malformed, protocol_error};

/// Payload format, expiry, content type, response topic and correlation data pass through.
pub(super) const PUBLISH: &[u8] = &[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26];
pub(super) const WILL: &[u8] = &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26];
pub(super) const CONNECT: &[u8] = &[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27];
pub(super) const SUBSCRIBE: &[u8] = &[SUBSCRIPTION_ID, 0x26];
pub(super) const UNSUBSCRIBE: &[u8] = &[0x26];
pub(super) const ACKNOWLEDGEMENT: &[u8] = &[0x1f, 0x26];
pub(super) const DISCONNECT: &[u8] = &[0x11, 0x1f, 0x26];
pub(super) const SUBSCRIPTION_ID: u8 = 0x0b;
/// Message expiry interval, in seconds.
pub(super) const EXPIRY: u8 = 0x02;
const TOPIC_ALIAS: u8 = 0x23;
const RESPONSE_TOPIC: u8 = 0x08;
const PAYLOAD_FORMAT: u8 = 0x01;
const USER: u8 = 0x26;

/// Takes a property list, its length before it.
#[inline]
pub(super) fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_variable(rest)? as usize;
    let (list, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(list)
}

/// Accepts a list that holds only `allowed` properties, each but the user's at most once.
pub(super) fn check(list: &[u8], allowed: &[u8]) -> Result<(), Violation> {
    walk(list, allowed, |_, _| Ok(()))
}

/// Checks the properties of a CONNECT (section 3.1.2.11).
pub(super) fn check_connect(list: &[u8]) -> Result<(), Violation> {
    let (mut method, mut data) = (false, false);
    walk(list, CONNECT, |id, whole| {
        match id {
            0x15 => method = true,
            0x16 => data = true,
            // Request problem and response information.
            0x17 | 0x19 if whole[1] > 1 => return Err(protocol_error("a flag that is neither 0 nor 1")),
            _ => {}
        }
        Ok(())
    })?;
    if data && !method { Err(protocol_error("authentication data without a method")) } else { Ok(()) }
}

/// Checks the properties of a will (section 3.1.3.2).
pub(super) fn check_will(list: &[u8]) -> Result<(), Violation> {
    walk(list, WILL, |id, whole| match id {
        RESPONSE_TOPIC if whole[3..].iter().any(|b| b"+#\0".contains(b)) => {
            Err(protocol_error("response topic with wildcards"))
        }
        PAYLOAD_FORMAT if whole[1] > 1 => Err(protocol_error("payload format is neither 0 nor 1")),
        _ => Ok(()),
    })
}

/// What a PUBLISH's properties say to the gateway.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PublishProperties {
    /// The topic's alias.
    pub(super) alias: Option<u16>,
    /// Seconds after which the message has lost its meaning.
    pub(super) expiry_s: Option<u32>,
    /// All but the alias and the expiry, to be passed on.
    pub(super) forward: Vec<u8>,
}

/// Checks and splits the properties of a PUBLISH.
pub(super) fn publish(list: &[u8]) -> Result<PublishProperties, Violation> {
    let mut out = PublishProperties::default();
    walk(list, PUBLISH, |id, whole| {
        match id {
            EXPIRY => out.expiry_s = whole[1..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
            TOPIC_ALIAS => out.alias = Some(u16::from_be_bytes([whole[1], whole[2]])),
            RESPONSE_TOPIC if whole[3..].iter().any(|b| b"+#\0".contains(b)) => {
                return Err(protocol_error("response topic with wildcards"));
            }
            PAYLOAD_FORMAT if whole[1] > 1 => return Err(protocol_error("payload format is neither 0 nor 1")),
            _ => out.forward.extend(whole),
        }
        Ok(())
    })?;
    Ok(out)
}

fn walk(
    mut list: &[u8],
    allowed: &[u8],
    mut each: impl FnMut(u8, &[u8]) -> Result<(), Violation>,
) -> Result<(), Violation> {
    let mut seen = 0_u64;
    while let Some(&id) = list.first() {
        if !allowed.contains(&id) {
            return Err(protocol_error("property that its packet does not allow"));
        }
        if id != USER && seen & 1 << id != 0 {
            return Err(protocol_error("property given twice"));
        }
        seen |= 1 << id;
        let length = value_length(id, &list[1..]).ok_or(malformed("property cut short"))?;
        let (whole, after) = list.split_at_checked(1 + length).ok_or(malformed("property cut short"))?;
        if !texts_are_utf8(id, &whole[1..]) {
            return Err(malformed("property that is not UTF-8"));
        }
        each(id, whole)?;
        list = after;
    }
    Ok(())
}

/// Texts are UTF-8 without null characters (section 1.5.4), also those that are passed on.
fn texts_are_utf8(id: u8, mut value: &[u8]) -> bool {
    let texts = match id {
        0x03 | RESPONSE_TOPIC | 0x15 | 0x1f => 1,
        USER => 2,
        _ => 0,
    };
    (0..texts).all(|_| {
        let Some((text, rest)) = value
            .split_at_checked(2)
            .and_then(|(length, rest)| rest.split_at_checked(usize::from(u16::from_be_bytes([length[0], length[1]]))))
        else {
            return false;
        };
        value = rest;
        std::str::from_utf8(text).is_ok_and(|text| !text.contains('\0'))
    })
}

/// How long the value of a property is (table 2-4).
fn value_length(id: u8, rest: &[u8]) -> Option<usize> {
    let text = |rest: &[u8]| Some(2 + usize::from(u16::from_be_bytes(*rest.first_chunk::<2>()?)));
    match id {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => Some(1),
        // Receive maximum, topic alias maximum, server keep alive.
        0x13 | 0x21 | 0x22 | TOPIC_ALIAS => Some(2),
        0x02 | 0x11 | 0x18 | 0x27 => Some(4),
        SUBSCRIPTION_ID => {
            let mut after = rest;
            let id = take_variable(&mut after)?;
            (id > 0).then(|| rest.len() - after.len())
        }
        USER => {
            let key = text(rest)?;
            Some(key + text(rest.get(key..)?)?)
        }
        _ => text(rest),
    }
}

fn take_variable(rest: &mut &[u8]) -> Option<u32> {
    let mut n = 0_u32;
    for i in 0..4 {
        let byte = *rest.get(i)?;
        n |= u32::from(byte & 0x7f) << (7 * i as u32);
        if byte < 0x80 {
            *rest = &rest[i + 1..];
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::packet::reason;
    use super::*;

    /// Table 2-4, each with a value that is not 0.
    #[test]
    fn every_property_is_as_long_as_the_standard_says() {
        let (byte, two, four) = (&[1][..], &[0, 10][..], &[0, 0, 1, 0][..]);
        let (text, pair) = (&[0, 3, b'a', b'b', b'c'][..], &[0, 1, b'k', 0, 1, b'v'][..]);
        for (id, value) in [
            (0x01, byte),
            (0x02, four),
            (0x03, text),
            (0x08, text),
            (0x09, text),
            (0x0b, &[0x80, 1]),
            (0x11, four),
            (0x12, text),
            (0x13, two),
            (0x15, text),
            (0x16, text),
            (0x17, byte),
            (0x18, four),
            (0x19, byte),
            (0x1a, text),
            (0x1c, text),
            (0x1f, text),
            (0x21, two),
            (0x22, two),
            (0x23, two),
            (0x24, byte),
            (0x25, byte),
            (0x26, pair),
            (0x27, four),
            (0x28, byte),
            (0x29, byte),
            (0x2a, byte),
        ] {
            let followed: Vec<u8> = value.iter().copied().chain([0x7e; 9]).collect();
            assert_eq!(value_length(id, &followed), Some(value.len()), "{id:#x}");
            let whole: Vec<u8> = [id].into_iter().chain(value.iter().copied()).collect();
            assert_eq!(check(&whole, &[id]), Ok(()), "{id:#x}");
            assert!(check(&whole[..whole.len() - 1], &[id]).is_err(), "{id:#x}");
        }
    }

    #[test]
    fn alias_and_expiry_are_taken_out_and_the_rest_is_passed_on() {
        let list = [0x01, 1, 0x23, 0, 5, 0x02, 0, 0, 1, 0, 0x26, 0, 1, b'k', 0, 1, b'v'];
        let got = publish(&list).unwrap();
        assert_eq!((got.alias, got.expiry_s), (Some(5), Some(256)));
        assert_eq!(got.forward, [0x01, 1, 0x26, 0, 1, b'k', 0, 1, b'v']);
    }

    #[test]
    fn what_is_repeated_foreign_or_short_is_a_violation() {
        assert_eq!(publish(&[0x01, 1, 0x01, 1]).unwrap_err().code, reason::PROTOCOL_ERROR);
        assert_eq!(publish(&[0x0b, 1]).unwrap_err().code, reason::PROTOCOL_ERROR);
        assert_eq!(publish(&[0x23, 0]).unwrap_err().code, reason::MALFORMED);
        assert_eq!(publish(&[0x03, 0, 2, 0xc3, 0x28]).unwrap_err().code, reason::MALFORMED);
        assert_eq!(publish(&[0x26, 0, 1, b'k', 0, 1, 0]).unwrap_err().code, reason::MALFORMED);
        assert_eq!(publish(&[0x7e]).unwrap_err().code, reason::PROTOCOL_ERROR);
        assert_eq!(check(&[0x0b, 0], SUBSCRIBE).unwrap_err().code, reason::MALFORMED);
        assert!(check(&[0x26, 0, 0, 0, 0, 0x26, 0, 0, 0, 0], UNSUBSCRIBE).is_ok());
    }
}
