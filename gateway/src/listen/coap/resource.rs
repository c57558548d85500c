//! What a CoAP request asks for.
//!
//! Arrives: a request. Leaves: an [`Ask`], or the code that refuses it. Pure; sections are
//! those of RFC 7252.

use crate::decode::Format;
use coap_lite::{CoapOption, MessageClass, Packet, RequestType, ResponseType};

/// Content formats (section 12.3; RFC 8428, section 12.3).
pub(super) mod format {
    pub(in super::super) const TEXT: u16 = 0;
    pub(in super::super) const LINK: u16 = 40;
    pub(in super::super) const OCTETS: u16 = 42;
    pub(in super::super) const JSON: u16 = 50;
    pub(in super::super) const CBOR: u16 = 60;
    pub(in super::super) const SENML_JSON: u16 = 110;
    pub(in super::super) const SENML_CBOR: u16 = 112;
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// Store readings.
    Store { device: String, metric: Option<String>, format: Format },
    /// The latest value, perhaps to be observed.
    Latest {
        device: String,
        metric: String,
        /// `Some(true)` registers, `Some(false)` deregisters.
        observe: Option<bool>,
        accept: Option<u16>,
    },
    /// The gateway's clock.
    Time { accept: Option<u16> },
    /// The list of resources.
    WellKnown { query: Vec<String>, accept: Option<u16> },
}

/// A refusal: its code and what to do.
pub(super) type Refusal = (ResponseType, String);

fn refuse(code: ResponseType, detail: impl Into<String>) -> Refusal {
    (code, detail.into())
}

/// Reads a request.
pub(super) fn read(request: &Packet) -> Result<Ask, Refusal> {
    let MessageClass::Request(method) = request.header.code else {
        return Err(refuse(ResponseType::MethodNotAllowed, "unknown method"));
    };
    check_options(request)?;
    let path = texts(request, CoapOption::UriPath)?;
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let accept = number(request, CoapOption::Accept)?;
    let not_allowed = || refuse(ResponseType::MethodNotAllowed, "the resource does not take this method");
    match (path.as_slice(), method) {
        (["devices", device, metric], RequestType::Get) => {
            let (device, metric) = ((*device).to_owned(), (*metric).to_owned());
            Ok(Ask::Latest { device, metric, observe: observe(request), accept })
        }
        (["devices", device, metric], RequestType::Post | RequestType::Put) => {
            Ok(Ask::Store { device: (*device).into(), metric: Some((*metric).into()), format: content(request)? })
        }
        (["devices", device], RequestType::Post | RequestType::Put) => {
            Ok(Ask::Store { device: (*device).into(), metric: None, format: content(request)? })
        }
        (["time"], RequestType::Get) => Ok(Ask::Time { accept }),
        ([".well-known", "core"], RequestType::Get) => {
            Ok(Ask::WellKnown { query: texts(request, CoapOption::UriQuery)?, accept })
        }
        (["devices", _] | ["devices", _, _] | ["time"] | [".well-known", "core"], _) => Err(not_allowed()),
        _ => Err(refuse(ResponseType::NotFound, "no such resource; GET /.well-known/core lists them")),
    }
}

/// A critical option that is not understood refuses the request (section 5.4.1).
fn check_options(request: &Packet) -> Result<(), Refusal> {
    for (&number, values) in request.options() {
        let known = matches!(number, 3 | 7 | 11 | 15 | 17 | 23 | 27);
        let repeatable = matches!(number, 11 | 15);
        match number {
            35 | 39 => return Err(refuse(ResponseType::ProxyingNotSupported, "this is no proxy")),
            _ if number % 2 == 1 && (!known || (values.len() > 1 && !repeatable)) => {
                return Err(refuse(ResponseType::BadOption, format!("critical option {number} is not understood")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn texts(request: &Packet, option: CoapOption) -> Result<Vec<String>, Refusal> {
    let values = request.get_option(option).into_iter().flatten();
    let text = |value: &Vec<u8>| String::from_utf8(value.clone());
    values.map(text).collect::<Result<_, _>>().map_err(|_| refuse(ResponseType::BadOption, "a text that is not UTF-8"))
}

fn number(request: &Packet, option: CoapOption) -> Result<Option<u16>, Refusal> {
    match request.get_first_option(option).map(Vec::as_slice) {
        None => Ok(None),
        Some([]) => Ok(Some(0)),
        Some([n]) => Ok(Some(u16::from(*n))),
        Some([high, low]) => Ok(Some(u16::from_be_bytes([*high, *low]))),
        Some(_) => Err(refuse(ResponseType::BadOption, "a number of more than two bytes")),
    }
}

fn observe(request: &Packet) -> Option<bool> {
    match request.get_first_option(CoapOption::Observe).map(Vec::as_slice) {
        Some([] | [0]) => Some(true),
        Some([1]) => Some(false),
        _ => None,
    }
}

fn content(request: &Packet) -> Result<Format, Refusal> {
    match number(request, CoapOption::ContentFormat)? {
        None | Some(format::TEXT | format::OCTETS) => Ok(Format::Auto),
        Some(format::JSON) => Ok(Format::Json),
        Some(format::CBOR) => Ok(Format::Cbor),
        Some(format::SENML_JSON | format::SENML_CBOR) => Ok(Format::Senml),
        Some(other) => Err(refuse(
            ResponseType::UnsupportedContentFormat,
            format!("content format {other} is not taken: send 0, 50, 60, 110 or 112"),
        )),
    }
}

/// The links of RFC 6690, of those devices and metrics that match the query (section 4.1 there).
pub(super) fn links<'a>(series: impl Iterator<Item = (&'a str, &'a str)>, query: &[String]) -> String {
    let fixed = [
        ("/time".to_owned(), "</time>;rt=\"tidegate.time\";ct=\"0 50 60\"".to_owned()),
        ("/.well-known/core".to_owned(), "</.well-known/core>;ct=40".to_owned()),
    ];
    let latest = series.map(|(device, metric)| {
        let path = format!("/devices/{}/{}", escape(device), escape(metric));
        let link = format!("<{path}>;rt=\"tidegate.latest\";ct=\"0 50 60\";obs");
        (path, link)
    });
    let wanted = |(path, link): &(String, String)| {
        query.iter().all(|filter| match filter.split_once('=') {
            Some(("href", pattern)) => starts_or_equals(path, pattern),
            Some(("rt", pattern)) => {
                let rt = link.split("rt=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
                starts_or_equals(rt, pattern)
            }
            Some(("obs", _)) => link.ends_with(";obs"),
            _ => filter != "obs" || link.ends_with(";obs"),
        })
    };
    let links: Vec<String> = fixed.into_iter().chain(latest).filter(wanted).map(|(_, link)| link).collect();
    links.join(",")
}

fn starts_or_equals(text: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => text == pattern,
    }
}

/// Percent-encodes what a path segment of a URI may not hold (RFC 3986, section 3.3).
fn escape(segment: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&()*+;=:@".contains(&b);
    segment.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: RequestType, path: &[&str], options: &[(u16, &[u8])]) -> Packet {
        let mut packet = Packet::new();
        packet.header.code = MessageClass::Request(method);
        path.iter().for_each(|part| packet.add_option(CoapOption::UriPath, part.as_bytes().to_vec()));
        options.iter().for_each(|(number, value)| packet.add_option((*number).into(), value.to_vec()));
        packet
    }

    fn code(packet: &Packet) -> ResponseType {
        read(packet).unwrap_err().0
    }

    #[test]
    fn requests_are_told_apart_and_refused_with_the_right_code() {
        use RequestType::{Delete, Get, Post, Put};
        assert!(matches!(read(&request(Post, &["devices", "a"], &[(12, &[50])])), Ok(Ask::Store { metric: None, .. })));
        assert!(matches!(read(&request(Put, &["devices", "a", "t"], &[])), Ok(Ask::Store { metric: Some(_), .. })));
        let latest = read(&request(Get, &["devices", "a", "t"], &[(6, &[])]));
        assert!(matches!(latest, Ok(Ask::Latest { observe: Some(true), .. })));
        assert_eq!(code(&request(Get, &["nothing"], &[])), ResponseType::NotFound);
        assert_eq!(code(&request(Delete, &["time"], &[])), ResponseType::MethodNotAllowed);
        assert!(matches!(read(&request(Put, &["devices", "a"], &[])), Ok(Ask::Store { metric: None, .. })));
        assert_eq!(code(&request(Get, &["time"], &[(9, &[1])])), ResponseType::BadOption);
        assert_eq!(code(&request(Get, &["time"], &[(35, b"x")])), ResponseType::ProxyingNotSupported);
        assert_eq!(code(&request(Post, &["devices", "a"], &[(12, &[41])])), ResponseType::UnsupportedContentFormat);
    }

    #[test]
    fn links_are_filtered_by_query() {
        let series = [("a b", "t"), ("c", "h")];
        let all = links(series.into_iter(), &[]);
        assert!(all.contains("</devices/a%20b/t>;rt=\"tidegate.latest\""), "{all}");
        assert_eq!(links(series.into_iter(), &["href=/devices/c/*".into()]).matches('<').count(), 1);
        assert_eq!(links(series.into_iter(), &["rt=tidegate.time".into()]).matches('<').count(), 1);
        assert_eq!(links(series.into_iter(), &["obs".into()]).matches('<').count(), 2);
    }
}
