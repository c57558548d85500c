//! A conversation with an imagined server on an imagined clock.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::message::{Composer, Stamp};

fn message() -> Message {
    let composer = Composer::new(Arc::new(AtomicU64::new(1)), "coap/con", false);
    composer.stamped("raum ü", "power", "2.50", 1_700_000_000_000_000, Stamp::EpochMicros)
}

/// One exchange, started at the returned time with the shortest timeout, and its request.
fn started() -> (Exchanges, Instant, Packet) {
    let now = Instant::now();
    let mut exchanges = Exchanges::new(65_535, 7);
    let request = Packet::from_bytes(exchanges.start(message(), now, 1.0)).unwrap();
    (exchanges, now, request)
}

fn response(kind: MessageType, code: ResponseType, mid: u16, request: &Packet) -> Vec<u8> {
    let mut packet = Packet::new();
    packet.header.set_type(kind);
    packet.header.code = MessageClass::Response(code);
    packet.header.message_id = mid;
    packet.set_token(request.get_token().to_vec());
    packet.to_bytes().unwrap()
}

#[test]
fn a_request_names_device_and_metric_in_its_path() {
    let (_, _, request) = started();
    let path: Vec<&[u8]> = request.get_option(CoapOption::UriPath).unwrap().iter().map(Vec::as_slice).collect();
    assert_eq!(path, ["devices".as_bytes(), "raum ü".as_bytes(), "power".as_bytes()]);
    assert_eq!(request.get_content_format(), Some(ContentFormat::ApplicationJSON));
    assert_eq!(request.payload, br#"{"value":2.50,"time":1700000000000000}"#);
}

#[test]
fn silence_is_answered_by_four_retransmissions_at_doubling_intervals_and_then_given_up() {
    let (mut exchanges, start, _) = started();
    let mut resent_at_s = Vec::new();
    let given_up_at = loop {
        let now = exchanges.next_due().expect("the exchange is open");
        let given_up = exchanges.overdue(now, |_| resent_at_s.push((now - start).as_secs()));
        if !given_up.is_empty() {
            assert_eq!(given_up, [message()]);
            break now;
        }
    };
    assert_eq!(resent_at_s, [2, 6, 14, 30]);
    assert_eq!((given_up_at - start).as_secs(), 62, "MAX_TRANSMIT_WAIT of the shortest spread");
    assert_eq!(exchanges.open_count(), 0);
}

#[test]
fn a_retransmission_is_the_same_datagram() {
    let (mut exchanges, start, request) = started();
    let mut resent = Vec::new();
    exchanges.overdue(start + Duration::from_secs(2), |datagram| resent.push(datagram.to_vec()));
    assert_eq!(resent, [request.to_bytes().unwrap()]);
}

#[test]
fn a_piggybacked_2_04_acknowledges_once() {
    let (mut exchanges, start, request) = started();
    let answer = response(MessageType::Acknowledgement, ResponseType::Changed, 65_535, &request);
    let (reply, meaning) = exchanges.receive(&answer, start);
    assert_eq!((reply, meaning), (None, Meaning::Acked { message: message(), sent_at: start }));
    assert_eq!(exchanges.receive(&answer, start), (None, Meaning::Nothing));
}

#[test]
fn a_foreign_token_acknowledges_nothing() {
    let (mut exchanges, start, mut request) = started();
    request.set_token(vec![1]);
    let answer = response(MessageType::Acknowledgement, ResponseType::Changed, 65_535, &request);
    assert_eq!(exchanges.receive(&answer, start).1, Meaning::Nothing);
    assert_eq!(exchanges.open_count(), 1);
}

#[test]
fn a_separate_response_is_awaited_without_retransmission_and_acknowledged() {
    let (mut exchanges, start, request) = started();
    exchanges.receive(&empty(MessageType::Acknowledgement, 65_535), start);
    let later = start + Duration::from_secs(20);
    assert!(exchanges.overdue(later, |_| panic!("the server has it already")).is_empty());
    let answer = response(MessageType::Confirmable, ResponseType::Changed, 99, &request);
    let (reply, meaning) = exchanges.receive(&answer, later);
    assert_eq!(reply, Some(empty(MessageType::Acknowledgement, 99)));
    assert!(matches!(meaning, Meaning::Acked { .. }));
}

#[test]
fn any_other_answer_is_a_refusal_and_5_03_a_request_to_wait() {
    for (code, refused) in
        [(ResponseType::Created, true), (ResponseType::BadRequest, true), (ResponseType::ServiceUnavailable, false)]
    {
        let (mut exchanges, start, request) = started();
        let answer = response(MessageType::Acknowledgement, code, 65_535, &request);
        match exchanges.receive(&answer, start).1 {
            Meaning::Refused { .. } => assert!(refused, "{code:?}"),
            Meaning::Unavailable { pause, .. } => assert!(!refused && pause.as_secs() == 1),
            other => panic!("{other:?}"),
        }
    }
    let (mut exchanges, start, _) = started();
    let (_, meaning) = exchanges.receive(&empty(MessageType::Reset, 65_535), start);
    assert!(matches!(meaning, Meaning::Refused { .. }));
}

#[test]
fn identifiers_wrap_around_and_an_endpoint_wears_out_before_they_repeat() {
    let (mut exchanges, start, _) = started();
    let second = Packet::from_bytes(exchanges.start(message(), start, 1.5)).unwrap();
    assert_eq!(second.header.message_id, 0);
    exchanges.started_count = EXCHANGES_PER_ENDPOINT;
    assert!(exchanges.is_worn());
}
