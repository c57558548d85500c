//! Questions about windows.
//!
//! Arrives: what a person asks. Leaves: the same with types, and rows of an answer
//! ([`answer`]). Deliberately absent: where summaries and readings come from.

/// Rows, from cells.
pub mod answer;

pub use answer::{Answer, Row, is_count};
use model::aggregate::{Stat, Window, glob, glob_metric};
use model::tags::tag;
use model::time::window_start;
use model::{Micros, time};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Of which series.
    pub filter: Filter,
    /// Over which range.
    pub range: Range,
    /// In which windows, clipped at the range's edges.
    pub window: Window,
    /// From one window's start to the next, for windows that overlap or leave gaps.
    pub every_us: Option<Micros>,
    /// Which statistics.
    pub stats: Vec<Stat>,
    /// What is answered together.
    pub group_by: Vec<GroupBy>,
    /// Also windows without readings.
    pub fill: bool,
    /// At most so many rows.
    pub limit: usize,
    /// Only rows behind this one: its group and the start of its window.
    pub after: Option<(Vec<Option<String>>, Micros)>,
}

impl Question {
    /// The quantiles among the statistics.
    pub fn quantiles(&self) -> Vec<f64> {
        let quantile = |stat: &Stat| match stat {
            Stat::Quantile(q) => Some(*q),
            _ => None,
        };
        self.stats.iter().filter_map(quantile).collect()
    }

    /// The length of a window and the way to the next; `None` for one window over all.
    pub fn grid(&self) -> Option<(Micros, Micros)> {
        match self.window {
            Window::All => None,
            Window::Tumbling(length_us) => Some((length_us, self.every_us.unwrap_or(length_us))),
        }
    }

    /// The start of the first window that touches the range.
    pub fn first_start_us(&self) -> Micros {
        let Some((length_us, every_us)) = self.grid() else { return self.range.from_us };
        window_start(self.range.from_us - length_us, every_us) + every_us
    }
}

/// Which series, by patterns; none means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Device ids or globs.
    pub devices: Vec<String>,
    /// Metric names or globs.
    pub metrics: Vec<String>,
    /// Tags, each with values or globs of which one has to match.
    pub tags: Vec<(String, Vec<String>)>,
}

impl Filter {
    /// True if the filter lets a series through.
    pub fn matches(&self, device: &str, metric: &str) -> bool {
        (self.devices.is_empty() || self.devices.iter().any(|pattern| glob(pattern, device))) && self.wants(metric)
    }

    /// True if the filter lets a metric through.
    pub fn wants(&self, metric: &str) -> bool {
        let has = |(name, patterns): &(String, Vec<String>)| {
            tag(metric, name).is_some_and(|value| patterns.iter().any(|pattern| glob(pattern, &value)))
        };
        (self.metrics.is_empty() || self.metrics.iter().any(|pattern| glob_metric(pattern, metric)))
            && self.tags.iter().all(has)
    }
}

/// A range of event times, `[from, to)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first microsecond in it.
    pub from_us: Micros,
    /// The first one behind it.
    pub to_us: Micros,
}

impl Range {
    /// A range within the times that can be written.
    pub fn within(from_us: Micros, to_us: Micros) -> Self {
        let clamp = |us: Micros| us.clamp(time::FIRST_US, time::LAST_US + 1);
        Range { from_us: clamp(from_us), to_us: clamp(to_us) }
    }
}

/// What is answered together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GroupBy {
    /// Each device by itself.
    Device,
    /// Each metric by itself.
    Metric,
    /// Each gateway by itself; only the cloud knows several.
    Gateway,
    /// Devices with the same value of this label; those without it have null.
    Label(String),
    /// Metrics with the same value of this tag; those without it have null.
    Tag(String),
}

impl GroupBy {
    /// What a metric says itself: its name, or a tag of it.
    pub fn of_metric(&self, metric: &Arc<str>) -> Option<Arc<str>> {
        match self {
            GroupBy::Metric => Some(Arc::clone(metric)),
            GroupBy::Tag(name) => tag(metric, name).map(|value| (*value).into()),
            _ => None,
        }
    }
}

impl FromStr for GroupBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "device" => Ok(GroupBy::Device),
            "metric" => Ok(GroupBy::Metric),
            "gateway" => Ok(GroupBy::Gateway),
            _ => match text.split_once(':') {
                Some(("label", name)) if !name.is_empty() => Ok(GroupBy::Label(name.to_owned())),
                Some(("tag", name)) if !name.is_empty() => Ok(GroupBy::Tag(name.to_owned())),
                _ => Err(format!("{text:?} is not device, metric, gateway, label:NAME or tag:NAME")),
            },
        }
    }
}

impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupBy::Device => f.write_str("device"),
            GroupBy::Metric => f.write_str("metric"),
            GroupBy::Gateway => f.write_str("gateway"),
            GroupBy::Label(name) => write!(f, "label:{name}"),
            GroupBy::Tag(name) => write!(f, "tag:{name}"),
        }
    }
}

/// What the members of a group share, in the order of `group_by`.
pub type GroupKey = Vec<Option<Arc<str>>>;

/// Windows that start in `[from_us, to_us)`.
#[derive(Debug, Clone, Copy)]
pub struct Starts {
    /// The earliest start.
    pub from_us: Micros,
    /// Behind the latest.
    pub to_us: Micros,
}

/// A time parameter: RFC 3339, a date, an epoch number, `now`, `now-1h`, `now+5m` or `-1h`.
pub fn parse_time(text: &str, now_us: Micros) -> Result<Micros, String> {
    let bad = || format!("{text:?} is no time: write RFC 3339, a date, an epoch number, now, or for example now-1h");
    if text.starts_with('-') && text.ends_with(|c: char| c.is_ascii_alphabetic()) {
        return parse_time(&format!("now{text}"), now_us);
    }
    if let Some(offset) = text.strip_prefix("now") {
        let Some(sign) = offset.chars().next() else { return Ok(now_us) };
        let span = humantime::parse_duration(offset[sign.len_utf8()..].trim()).map_err(|_| bad())?;
        let span_us = i64::try_from(span.as_micros()).map_err(|_| bad())?;
        return match sign {
            '-' => Ok(now_us.saturating_sub(span_us)),
            // A plus sign that was not percent-encoded arrives as a space.
            '+' | ' ' => Ok(now_us.saturating_add(span_us)),
            _ => Err(bad()),
        };
    }
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let year = text.get(..4).and_then(|year| year.parse::<u16>().ok());
    if digits && matches!(text.len(), 4 | 6 | 8) && year.is_some_and(|year| (1900..2200).contains(&year)) {
        return Err(format!("{text:?} may be a date as well as seconds since 1970: write it as 2024-05-01"));
    }
    let utc = jiff::tz::TimeZone::UTC;
    time::parse(text, &utc)
        .or_else(|_| match text.rsplit_once(' ') {
            Some((stamp, offset)) => time::parse(&format!("{stamp}+{offset}"), &utc),
            None => time::parse(text, &utc),
        })
        .map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now_us = 1_700_000_000_000_000;
        for (text, want) in [
            ("now", now_us),
            ("now-1h", now_us - 3_600_000_000),
            ("now+5m", now_us + 300_000_000),
            ("now 5m", now_us + 300_000_000),
            ("2023-11-14T22:13:20Z", now_us),
            ("2023-11-15T00:13:20+02:00", now_us),
            ("2023-11-15T00:13:20 02:00", now_us),
            ("1700000000", now_us),
            ("-1h", now_us - 3_600_000_000),
            ("2023-11-14", now_us - 80_000_000_000),
        ] {
            assert_eq!(parse_time(text, now_us), Ok(want), "{text}");
        }
        for text in ["", "now*2", "now-x", "tomorrow", "é", "nowé", "2024", "20240501"] {
            assert!(parse_time(text, now_us).is_err(), "{text}");
        }
    }
}
