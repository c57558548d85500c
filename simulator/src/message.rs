//! A message: what travels to the gateway in one piece, and what the ledger will say about it.
//!
//! Arrives: a device's readings in text form with their time stamp. Leaves: topic, payload, the ids
//! under which the ledger knows the readings, and the ledger lines that announce them.
//! Always holds: ids are unique within a run, and the value in the ledger is character for character
//! the value in the payload. Deliberately absent: protocols. MQTT and CoAP address the same names.

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::clock;

/// How a payload is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// A plain value on devices/{device}/{metric}, without a time
    Number,
    /// {"value": ..., "time": ...} on devices/{device}/{metric}
    Json,
    /// One object with all metrics of the tick and "time" on devices/{device}
    Object,
}

/// How a time stamp is written into a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stamp {
    Rfc3339,
    /// An epoch number, where its magnitude says microseconds beyond doubt; else RFC 3339.
    EpochMicros,
}

/// One message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// `devices/{device}` or `devices/{device}/{metric}`: the MQTT topic and the CoAP path.
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) is_json: bool,
    /// The ledger's ids of the readings inside.
    pub(crate) ids: RangeInclusive<u64>,
    /// The ledger's `S` lines, owed before the first byte leaves; empty once they are written.
    pub(crate) record: String,
    /// A fault: the driver sends this message a second time on purpose.
    pub(crate) twice: bool,
    /// This is such a second time: its acknowledgement proves nothing new and is not counted.
    pub(crate) copy: bool,
}

impl Message {
    /// How many readings the message carries.
    pub(crate) fn reading_count(&self) -> u64 {
        self.ids.end() - self.ids.start() + 1
    }

    /// The same message again, as a stuttering device would send it.
    pub(crate) fn to_copy(&self) -> Self {
        Self { record: String::new(), twice: false, copy: true, ..self.clone() }
    }
}

/// Writes messages. Cheap to clone; clones share the id counter.
#[derive(Debug, Clone)]
pub(crate) struct Composer {
    next_id: Arc<AtomicU64>,
    /// The protocol and its quality of service as the ledger names them, such as `mqtt/1`.
    service: &'static str,
    /// Whether anybody wants ledger lines.
    keeps_record: bool,
}

impl Composer {
    pub(crate) fn new(next_id: Arc<AtomicU64>, service: &'static str, keeps_record: bool) -> Self {
        Self { next_id, service, keeps_record }
    }

    /// One bare value, which the gateway will stamp on arrival.
    pub(crate) fn number(&self, device: &str, metric: &str, value: &str) -> Message {
        let payload = Bytes::copy_from_slice(value.as_bytes());
        self.message(format!("devices/{device}/{metric}"), payload, false, device, None, &[(metric, value)])
    }

    /// One value with its time.
    pub(crate) fn stamped(&self, device: &str, metric: &str, value: &str, time_us: i64, stamp: Stamp) -> Message {
        let mut payload = String::with_capacity(56 + value.len());
        payload.push_str("{\"value\":");
        payload.push_str(value);
        close_with_time(&mut payload, time_us, stamp);
        let topic = format!("devices/{device}/{metric}");
        self.message(topic, payload.into(), true, device, Some(time_us), &[(metric, value)])
    }

    /// All values of one tick with their common time.
    pub(crate) fn object(&self, device: &str, values: &[(&str, &str)], time_us: i64, stamp: Stamp) -> Message {
        let mut payload = String::with_capacity(48 + 24 * values.len());
        for (place, (metric, value)) in values.iter().enumerate() {
            payload.push_str(if place == 0 { "{\"" } else { ",\"" });
            payload.push_str(metric);
            payload.push_str("\":");
            payload.push_str(value);
        }
        close_with_time(&mut payload, time_us, stamp);
        self.message(format!("devices/{device}"), payload.into(), true, device, Some(time_us), values)
    }

    fn message(
        &self,
        topic: String,
        payload: Bytes,
        is_json: bool,
        device: &str,
        time_us: Option<i64>,
        values: &[(&str, &str)],
    ) -> Message {
        assert!(!values.is_empty(), "a message carries at least one reading");
        let count = values.len() as u64;
        let first = self.next_id.fetch_add(count, Ordering::Relaxed);
        let mut record = String::new();
        if self.keeps_record {
            for (id, (metric, value)) in (first..).zip(values) {
                write!(record, "S\t{id}\t{device}\t{metric}\t").expect("writing to a string cannot fail");
                match time_us {
                    Some(time_us) => write!(record, "{time_us}").expect("writing to a string cannot fail"),
                    None => record.push('-'),
                }
                writeln!(record, "\t{value}\t{}", self.service).expect("writing to a string cannot fail");
            }
        }
        let ids = first..=first + count - 1;
        Message { topic, payload, is_json, ids, record, twice: false, copy: false }
    }
}

fn close_with_time(payload: &mut String, time_us: i64, stamp: Stamp) {
    payload.push_str(",\"time\":");
    if stamp == Stamp::EpochMicros && clock::reads_as_epoch_us(time_us) {
        write!(payload, "{time_us}").expect("writing to a string cannot fail");
    } else {
        payload.push('"');
        clock::write_rfc3339(payload, time_us);
        payload.push('"');
    }
    payload.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composer() -> Composer {
        Composer::new(Arc::new(AtomicU64::new(1)), "mqtt/1", true)
    }

    #[test]
    fn a_stamped_value_keeps_its_text_form() {
        let message = composer().stamped("d", "power", "21.50", 1_700_000_000_000_001, Stamp::EpochMicros);
        assert_eq!(message.topic, "devices/d/power");
        assert_eq!(&message.payload[..], br#"{"value":21.50,"time":1700000000000001}"#);
        assert_eq!(message.record, "S\t1\td\tpower\t1700000000000001\t21.50\tmqtt/1\n");
    }

    #[test]
    fn an_object_has_one_id_and_one_ledger_line_per_reading() {
        let values = [("temperature", "21.50"), ("humidity", "40.1")];
        let message = composer().object("d", &values, 0, Stamp::EpochMicros);
        assert_eq!(message.topic, "devices/d");
        let payload: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(payload["time"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(payload["humidity"], 40.1);
        assert_eq!(message.ids, 1..=2);
        assert_eq!(message.record.lines().count(), 2);
    }

    #[test]
    fn a_bare_value_is_recorded_without_a_time() {
        let message = composer().number("d", "contact", "true");
        assert_eq!(&message.payload[..], b"true");
        assert_eq!(message.record, "S\t1\td\tcontact\t-\ttrue\tmqtt/1\n");
    }
}
