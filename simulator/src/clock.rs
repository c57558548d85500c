//! The simulator's only look at the wall clock, and how times and durations are written.
//!
//! Arrives: text from arguments, CSV files and answers. Leaves: whole microseconds since the Unix
//! epoch (UTC), the only form of time inside the simulator, and RFC 3339 text.
//! Always holds: writing a time and reading it again gives the same microsecond.
//! Deliberately absent: time zones other than UTC and explicit offsets.

use std::fmt::Write;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Below this magnitude an epoch number counts seconds, below a thousand times it milliseconds, and so on.
const SECONDS_MAX: f64 = 1e11;

/// Why a piece of text is not a time.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a time (RFC 3339, \"YYYY-MM-DD HH:MM:SS\" in UTC, an epoch number, or now-1h)")]
pub(crate) struct TimeError(String);

/// The wall clock in microseconds since the Unix epoch.
#[allow(clippy::disallowed_methods, reason = "this is the simulator's one place that asks")]
pub(crate) fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// Reads a time: RFC 3339, `YYYY-MM-DD HH:MM:SS` taken as UTC, an epoch number in s, ms, us or ns
/// (told apart by magnitude), `now`, or `now-DURATION`.
pub(crate) fn parse_time(text: &str) -> Result<i64, TimeError> {
    let text = text.trim();
    let unreadable = || TimeError(text.to_owned());
    if let Some(rest) = text.strip_prefix("now") {
        return parse_relative(rest).ok_or_else(unreadable);
    }
    if let Some(epoch_us) = parse_epoch(text) {
        return Ok(epoch_us);
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp.as_microsecond());
    }
    let civil: DateTime = text.parse().map_err(|_| unreadable())?;
    let zoned = civil.to_zoned(TimeZone::UTC).map_err(|_| unreadable())?;
    Ok(zoned.timestamp().as_microsecond())
}

fn parse_relative(rest: &str) -> Option<i64> {
    let before = match rest.trim() {
        "" => Duration::ZERO,
        other => humantime::parse_duration(other.strip_prefix('-')?.trim()).ok()?,
    };
    Some(now_us() - i64::try_from(before.as_micros()).ok()?)
}

fn parse_epoch(text: &str) -> Option<i64> {
    let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite())?;
    // Whole numbers stay integers: an f64 cannot hold today's nanoseconds.
    let scaled = |micros_per_unit: i64| match text.parse::<i64>() {
        Ok(whole) => whole.checked_mul(micros_per_unit),
        Err(_) => Some((number * micros_per_unit as f64).round() as i64),
    };
    match number.abs() {
        magnitude if magnitude < SECONDS_MAX => scaled(1_000_000),
        magnitude if magnitude < SECONDS_MAX * 1e3 => scaled(1_000),
        magnitude if magnitude < SECONDS_MAX * 1e6 => scaled(1),
        _ => text.parse::<i64>().ok().map(|nanos| nanos.div_euclid(1_000)),
    }
}

/// Whether an epoch number in microseconds is told apart from milliseconds by its magnitude.
pub(crate) fn reads_as_epoch_us(time_us: i64) -> bool {
    (SECONDS_MAX * 1e3..SECONDS_MAX * 1e6).contains(&(time_us as f64))
}

/// Appends a time as RFC 3339 in UTC with microseconds.
pub(crate) fn write_rfc3339(out: &mut String, time_us: i64) {
    let timestamp = Timestamp::from_microsecond(time_us).unwrap_or(Timestamp::MAX);
    write!(out, "{timestamp:.6}").expect("writing to a string cannot fail");
}

/// A time as RFC 3339 in UTC with microseconds.
pub(crate) fn rfc3339(time_us: i64) -> String {
    let mut text = String::with_capacity(28);
    write_rfc3339(&mut text, time_us);
    text
}

/// Reads a duration as the configuration writes it: `250ms`, `10s`, `1m`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("\"{text}\" is not a duration such as 250ms, 10s, 1m or 7d: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON_US: i64 = 1_396_353_600_000_000;

    #[test]
    fn every_notation_of_one_moment_reads_the_same() {
        for text in [
            "2014-04-01T12:00:00Z",
            "2014-04-01T14:00:00+02:00",
            "2014-04-01 12:00:00",
            "1396353600",
            "1396353600.0",
            "1396353600000",
            "1396353600000000",
            "1396353600000000000",
        ] {
            assert_eq!(parse_time(text).unwrap(), NOON_US, "{text}");
        }
    }

    #[test]
    fn a_time_survives_being_written_and_read() {
        for time_us in [0, -1, NOON_US + 1, 1_763_652_591_123_456] {
            assert_eq!(parse_time(&rfc3339(time_us)).unwrap(), time_us);
        }
        assert_eq!(rfc3339(NOON_US + 7), "2014-04-01T12:00:00.000007Z");
    }

    #[test]
    fn nonsense_is_named_in_the_error() {
        for text in ["yesterday", "", "nan", "now+1h", "2014-13-01 00:00:00"] {
            let message = parse_time(text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("\"{text}\" is not a time")), "{message}");
        }
    }

    #[test]
    fn early_epoch_microseconds_would_be_mistaken_for_milliseconds() {
        assert!(reads_as_epoch_us(NOON_US));
        assert!(!reads_as_epoch_us(1_000_000_000));
        assert!(!reads_as_epoch_us(-NOON_US));
    }
}
