//! Event times.
//!
//! A time is a whole number of microseconds since 1970-01-01T00:00:00Z; finer stamps are
//! floored. Windows are aligned to the epoch. Deliberately absent: what time it is now.

use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, civil};
use std::borrow::Cow;

/// Microseconds since the Unix epoch.
pub type Micros = i64;

/// One second.
pub const SECOND_US: Micros = 1_000_000;
/// The first time a device with a set clock plausibly stamps: 2000-01-01T00:00:00Z.
pub const PLAUSIBLE_FROM_US: Micros = 946_684_800 * SECOND_US;
/// The last time that can be written as RFC 3339: 9999-12-30T22:00:00Z.
pub const LAST_US: Micros = 253_402_207_200 * SECOND_US;
/// The first: 0000-01-01T00:00:00Z.
pub const FIRST_US: Micros = -62_167_219_200 * SECOND_US;

/// Why a stamp cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Neither RFC 3339 nor a number.
    #[error("time {0:?} is neither RFC 3339 nor an epoch number")]
    Unreadable(String),
    /// A date that the calendar or RFC 3339 cannot hold.
    #[error("time {0} is outside the years 0000 to 9999")]
    OutOfRange(String),
    /// Digits that may be a date as well as an epoch number.
    #[error("time {0} may be a date without separators or an epoch number: send RFC 3339")]
    Ambiguous(String),
}

/// Reads an epoch number, its unit told by its magnitude: seconds below 1e11 (year 5138),
/// then milliseconds below 1e14, microseconds below 1e17, nanoseconds above.
pub fn from_epoch(number: f64) -> Result<Micros, TimeError> {
    let magnitude = number.abs();
    // A date without separators, or a time after the year 2286: neither is believed.
    if (1e13..1e14).contains(&magnitude) || (1e16..1e17).contains(&magnitude) {
        return Err(TimeError::Ambiguous(number.to_string()));
    }
    let us = match magnitude {
        m if m < 1e11 => number * 1e6,
        m if m < 1e14 => number * 1e3,
        m if m < 1e17 => number,
        _ => number / 1e3,
    };
    // A decimal such as 1680962879.62 is not exact in binary: round what is within the
    // precision of an f64 (a quarter of a microsecond around now), floor what is not.
    let rounded = us.round();
    let us = if (us - rounded).abs() < 0.3 { rounded } else { us.floor() };
    in_range(us as i128, || number.to_string())
}

/// Reads a whole number that may also be a date without separators, `20240501120000`, taken in `zone`: as
/// milliseconds that would be after the year 2286. Twelve digits that are a date, too, are neither.
pub fn from_digits(number: i64, zone: &TimeZone) -> Result<(Micros, Option<Micros>), TimeError> {
    const MILLIS_OF_14_DIGITS: i64 = 10_000_000_000_000;
    let part = |divisor: i64, modulus: i64| i8::try_from(number / divisor % modulus).unwrap_or(-1);
    let local = |year: i64| {
        let year = i16::try_from(year).ok()?;
        let (month, day) = (part(100_000_000, 100), part(1_000_000, 100));
        civil::DateTime::new(year, month, day, part(10_000, 100), part(100, 100), part(1, 100), 0).ok()
    };
    match number {
        MILLIS_OF_14_DIGITS..100_000_000_000_000 => {
            let date = local(number / 10_000_000_000).ok_or_else(|| TimeError::Ambiguous(number.to_string()))?;
            from_local(date, zone, &number.to_string())
        }
        // The same with milliseconds; as microseconds that would be after 2286, too.
        10_000_000_000_000_000..100_000_000_000_000_000 => {
            let (us, later) = from_digits(number / 1_000, zone)?;
            let more_us = number % 1_000 * 1_000;
            Ok((us + more_us, later.map(|us| us + more_us)))
        }
        100_000_000_000..1_000_000_000_000
            if local(2000 + number / 10_000_000_000).is_some() || is_date_of(number / 10_000, number % 10_000) =>
        {
            Err(TimeError::Ambiguous(number.to_string()))
        }
        _ => from_epoch_integer(number).map(|us| (us, None)),
    }
}

/// True for a year, month and day, and an hour and minute, all in digits.
fn is_date_of(day: i64, minute: i64) -> bool {
    let part = |n: i64| i8::try_from(n).unwrap_or(-1);
    let is_day =
        civil::Date::new(i16::try_from(day / 10_000).unwrap_or(-1), part(day / 100 % 100), part(day % 100)).is_ok();
    is_day && (1900..2200).contains(&(day / 10_000)) && minute / 100 < 24 && minute % 100 < 60
}

/// Reads a whole epoch number; like [`from_epoch`] but exact beyond 2^53.
pub fn from_epoch_integer(number: i64) -> Result<Micros, TimeError> {
    let wide = i128::from(number);
    let us = match wide.unsigned_abs() {
        m if m < 100_000_000_000 => wide * 1_000_000,
        m if m < 100_000_000_000_000 => wide * 1_000,
        m if m < 100_000_000_000_000_000 => wide,
        _ => wide.div_euclid(1_000),
    };
    in_range(us, || number.to_string())
}

fn in_range(us: i128, text: impl Fn() -> String) -> Result<Micros, TimeError> {
    match i64::try_from(us) {
        Ok(us) if (FIRST_US..=LAST_US).contains(&us) => Ok(us),
        _ => Err(TimeError::OutOfRange(text())),
    }
}

/// Reads RFC 3339, an epoch number, or a local stamp without offset, taken in `zone`: one that
/// clocks show twice as the earlier, one that they skip as if they had not been put forward.
pub fn parse(text: &str, zone: &TimeZone) -> Result<Micros, TimeError> {
    parse_local(text, zone).map(|(us, _)| us)
}

/// The same, and for a local stamp that clocks show twice also the later time.
pub fn parse_local(text: &str, zone: &TimeZone) -> Result<(Micros, Option<Micros>), TimeError> {
    let text = text.trim();
    let of = |timestamp: Timestamp| in_range(timestamp.as_nanosecond().div_euclid(1_000), || text.into());
    if let Ok(number) = text.parse::<i64>() {
        return from_digits(number, zone);
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return of(timestamp).map(|us| (us, None));
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        if text.contains(':')
            && let Ok(local) = text.parse::<civil::DateTime>()
        {
            return from_local(local, zone, text);
        }
        if text.len() == 10
            && text.contains('-')
            && let Ok(date) = text.parse::<civil::Date>()
        {
            return from_local(date.to_datetime(civil::Time::midnight()), zone, text);
        }
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && text.bytes().all(|b| b"0123456789.+-eE".contains(&b)) => {
            from_epoch(number).map(|us| (us, None))
        }
        _ => Err(TimeError::Unreadable(shorten(text).into_owned())),
    }
}

fn from_local(local: civil::DateTime, zone: &TimeZone, text: &str) -> Result<(Micros, Option<Micros>), TimeError> {
    let of = |timestamp: Timestamp| in_range(timestamp.as_nanosecond().div_euclid(1_000), || text.into());
    let ambiguous = zone.to_ambiguous_timestamp(local);
    let later = if matches!(ambiguous.offset(), AmbiguousOffset::Fold { .. }) { ambiguous.later().ok() } else { None };
    let first = ambiguous.compatible().map_err(|_| TimeError::OutOfRange(text.into()))?;
    Ok((of(first)?, later.map(of).transpose()?))
}

fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(40) {
        Some((at, _)) => Cow::Owned(format!("{}…", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

/// Writes RFC 3339 in UTC, with as many decimals as the time has.
pub fn format(us: Micros) -> String {
    match Timestamp::from_microsecond(us) {
        Ok(timestamp) => timestamp.to_string(),
        Err(_) => us.to_string(),
    }
}

/// The start of the epoch-aligned window of `length_us` that holds `us`.
pub fn window_start(us: Micros, length_us: Micros) -> Micros {
    us - us.rem_euclid(length_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> Result<Micros, TimeError> {
        parse(text, &TimeZone::UTC)
    }

    #[test]
    fn one_instant_has_many_spellings() {
        let want = Ok(1_680_962_879_620_000);
        assert_eq!(utc("2023-04-08T14:07:59.62Z"), want);
        assert_eq!(utc("2023-04-08 16:07:59.62+02:00"), want);
        assert_eq!(utc("1680962879.62"), want);
        assert_eq!(utc("1680962879620"), want);
        assert_eq!(utc("1680962879620000"), want);
        assert_eq!(utc("1680962879620000000"), want);
        assert_eq!(from_epoch(1_680_962_879.62), want);
    }

    #[test]
    fn digits_are_a_date_only_where_nothing_else_is_meant() {
        for (text, want) in [
            ("20240501120000", Some("2024-05-01T12:00:00Z")),
            ("20240501T120000Z", Some("2024-05-01T12:00:00Z")),
            ("2024-05-01", Some("2024-05-01T00:00:00Z")),
            ("1714564800000", Some("2024-05-01T12:00:00Z")),
            ("946684800000", Some("2000-01-01T00:00:00Z")),
            ("20241301120000", None),
            ("240501120000", None),
            ("202405011200", None),
            ("20240501120000123", Some("2024-05-01T12:00:00.123Z")),
            ("20240501120000.5", None),
            ("1714564800000000", Some("2024-05-01T12:00:00Z")),
        ] {
            assert_eq!(utc(text).ok().map(format).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn a_stamp_without_offset_is_taken_in_the_given_zone() {
        assert_eq!(utc("2017-02-16T10:13:52").map(format), Ok("2017-02-16T10:13:52Z".into()));
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let there = parse("2017-02-16T10:13:52", &zone).map(format);
        assert_eq!(there, Ok("2017-02-16T09:13:52Z".into()));
    }

    #[test]
    fn a_leap_second_is_the_second_before_it() {
        assert_eq!(utc("2016-12-31T23:59:60Z").map(format), Ok("2016-12-31T23:59:59Z".into()));
        assert_eq!(utc("2016-12-31T23:59:60").map(format), Ok("2016-12-31T23:59:59Z".into()));
    }

    #[test]
    fn hours_that_clocks_skip_and_show_twice_are_read_as_people_mean_them() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let local = |text: &str| parse_local(text, &berlin).map(|(us, later)| (format(us), later.map(format))).unwrap();
        assert_eq!(local("2026-07-01T12:00:00"), ("2026-07-01T10:00:00Z".into(), None));
        assert_eq!(local("2026-03-29T02:30:00"), ("2026-03-29T01:30:00Z".into(), None));
        assert_eq!(local("2026-10-25T02:30:00"), ("2026-10-25T00:30:00Z".into(), Some("2026-10-25T01:30:00Z".into())));
        assert_eq!(local("2026-10-25T02:30:00+02:00"), ("2026-10-25T00:30:00Z".into(), None));
    }

    #[test]
    fn nonsense_is_named_not_guessed() {
        for text in ["", "yesterday", "inf", "nan", "2017-02-30T00:00:00Z", "10:13"] {
            assert!(utc(text).is_err(), "{text:?}");
        }
        assert!(matches!(utc("1e30"), Err(TimeError::OutOfRange(_))));
    }

    #[test]
    fn windows_before_the_epoch_are_aligned_too() {
        assert_eq!(window_start(-1, 60 * SECOND_US), -60 * SECOND_US);
        assert_eq!(window_start(60 * SECOND_US, 60 * SECOND_US), 60 * SECOND_US);
    }
}
