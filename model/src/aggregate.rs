//! The grammar of `/v1/aggregates`: which windows, which statistics, which names.
//!
//! Arrives: the texts of a question. Leaves: typed parts, or an error that says what is
//! allowed. Deliberately absent: how a question is answered.

use crate::time::{Micros, SECOND_US};
use std::fmt;
use std::str::FromStr;

/// A statistic over the numbers of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stat {
    /// How many numbers.
    Count,
    /// How many state texts.
    TextCount,
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// The earliest reading, a number or a text.
    First,
    /// The latest reading, a number or a text.
    Last,
    /// Sample standard deviation (n - 1).
    Stddev,
    /// Nearest-rank quantile, 0 to 1.
    Quantile(f64),
}

/// What a question names that the grammar does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Not one of the statistics.
    #[error(
        "unknown statistic {0:?}: use count, text_count, sum, mean, min, max, first, last, stddev or a percentile such as p95 or p99.9"
    )]
    Stat(String),
    /// A window that is too long.
    #[error("window {0:?} is longer than 3660 days: use \"all\" with from and to")]
    Long(String),
    /// Not a window.
    #[error("window {0:?} is neither \"all\" nor a whole multiple of a second such as 30s, 5m, 1h or 1d")]
    Window(String),
}

impl FromStr for Stat {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        Ok(match text {
            "count" => Stat::Count,
            "text_count" => Stat::TextCount,
            "sum" => Stat::Sum,
            "mean" => Stat::Mean,
            "min" => Stat::Min,
            "max" => Stat::Max,
            "first" => Stat::First,
            "last" => Stat::Last,
            "stddev" => Stat::Stddev,
            _ => Stat::Quantile(percentile(text).ok_or_else(|| GrammarError::Stat(text.into()))?),
        })
    }
}

fn percentile(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('p')?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let percent: f64 = plain.then(|| digits.parse().ok())??;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

impl fmt::Display for Stat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stat::Count => f.write_str("count"),
            Stat::TextCount => f.write_str("text_count"),
            Stat::Sum => f.write_str("sum"),
            Stat::Mean => f.write_str("mean"),
            Stat::Min => f.write_str("min"),
            Stat::Max => f.write_str("max"),
            Stat::First => f.write_str("first"),
            Stat::Last => f.write_str("last"),
            Stat::Stddev => f.write_str("stddev"),
            Stat::Quantile(q) => write!(f, "p{}", (q * 1e8).round() / 1e6),
        }
    }
}

/// The length of the windows that an answer is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The whole range is one window.
    All,
    /// Epoch-aligned windows of this many microseconds, a whole number of seconds.
    Tumbling(Micros),
}

/// The longest window.
const LONGEST_S: i64 = 3_660 * 86_400;

impl FromStr for Window {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        if text == "all" {
            return Ok(Window::All);
        }
        let bad = || GrammarError::Window(text.into());
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit_s: i64 = match &text[split..] {
            "s" | "" => 1,
            "m" | "min" => 60,
            "h" => 3_600,
            "d" => 86_400,
            "w" => 604_800,
            _ => return Err(bad()),
        };
        let number: i64 = text[..split].parse().map_err(|_| bad())?;
        let seconds = number.saturating_mul(unit_s);
        if seconds > LONGEST_S {
            return Err(GrammarError::Long(text.into()));
        }
        if seconds <= 0 {
            return Err(bad());
        }
        Ok(Window::Tumbling(seconds * SECOND_US))
    }
}

/// True if `pattern` may name other texts than itself.
pub fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '\\'])
}

/// Matches `*` (any run, also empty) and `?` (one character); a backslash takes the next character as it is, and
/// everything else is itself. A text always matches itself, so that a name can be asked for as it is shown.
pub fn glob(pattern: &str, text: &str) -> bool {
    pattern == text || (is_glob(pattern) && matches(pattern, text))
}

/// The same for metrics: a pattern without tags also matches the name before a metric's tags.
pub fn glob_metric(pattern: &str, metric: &str) -> bool {
    glob(pattern, metric) || (!pattern.contains(';') && glob(pattern, crate::tags::base(metric)))
}

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Run,
    One,
    Literal(char),
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            '*' => Piece::Run,
            '?' => Piece::One,
            '\\' => Piece::Literal(chars.next().unwrap_or('\\')),
            c => Piece::Literal(c),
        });
    }
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pieces.get(p) {
            Some(Piece::Run) => {
                star = Some((p, t));
                p += 1;
            }
            Some(&piece) if piece == Piece::One || piece == Piece::Literal(text[t]) => {
                p += 1;
                t += 1;
            }
            // Give the last star one more character and try again.
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    (p, t) = (*at + 1, *from);
                }
                None => return false,
            },
        }
    }
    pieces[p..].iter().all(|&piece| piece == Piece::Run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_and_written_back() {
        for text in
            ["count", "text_count", "sum", "mean", "min", "max", "first", "last", "stddev", "p50", "p99.9", "p0.1"]
        {
            assert_eq!(text.parse::<Stat>().unwrap().to_string(), text);
        }
        assert_eq!("p95".parse(), Ok(Stat::Quantile(0.95)));
        for text in ["p", "p101", "p-1", "median", "pinf", "p9e1"] {
            assert!(text.parse::<Stat>().is_err(), "{text}");
        }
    }

    #[test]
    fn windows_are_whole_seconds_or_all() {
        assert_eq!("all".parse(), Ok(Window::All));
        assert_eq!("90".parse(), Ok(Window::Tumbling(90 * SECOND_US)));
        assert_eq!("1d".parse(), Ok(Window::Tumbling(86_400 * SECOND_US)));
        for text in ["0s", "1.5s", "250ms", "m", "-5m", "", "99999999999999d"] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }

    #[test]
    fn globs_match_like_a_shell() {
        for (pattern, text, want) in [
            ("*", "", true),
            ("sim-*", "sim-12", true),
            ("sim-??", "sim-1", false),
            ("*-north-*", "a-north-b", true),
            ("*a*b", "xaxxab", true),
            ("a", "ab", false),
            ("kü?he", "küche", true),
            ("what?", "what?", true),
            ("what\\?", "what?", true),
            ("what\\?", "whats", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("a\\b", "a\\b", true),
        ] {
            assert_eq!(glob(pattern, text), want, "{pattern} {text}");
        }
    }
}
