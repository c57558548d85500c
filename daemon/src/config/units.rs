//! Durations and sizes as people write them: `"250ms"`, `"7d"`, `"64 MiB"`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;
use std::time::Duration;

/// A duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Span {
    /// Of so many seconds.
    pub const fn seconds(n: u64) -> Self {
        Span(Duration::from_secs(n))
    }

    /// Of so many days.
    pub const fn days(n: u64) -> Self {
        Span::seconds(n * 86_400)
    }

    /// Of so many milliseconds.
    pub const fn millis(n: u64) -> Self {
        Span(Duration::from_millis(n))
    }

    /// In microseconds.
    pub fn micros(self) -> i64 {
        i64::try_from(self.0.as_micros()).unwrap_or(i64::MAX)
    }
}

impl Size {
    /// Of so many KiB.
    pub const fn kib(n: u64) -> Self {
        Size(n << 10)
    }

    /// Of so many MiB.
    pub const fn mib(n: u64) -> Self {
        Size(n << 20)
    }

    /// As a memory size.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Duration::ZERO => f.write_str("0ms"),
            other => f.write_str(&humantime::format_duration(other).to_string().replace(' ', "")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(text.trim()).map(Span).map_err(|_| {
            D::Error::custom(format!("{text:?} is no duration: write for example \"250ms\", \"10s\", \"5m\" or \"7d\""))
        })
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        match text.trim().parse::<bytesize::ByteSize>() {
            Ok(size) => Ok(Size(size.as_u64())),
            Err(_) => {
                Err(D::Error::custom(format!("{text:?} is no size: write for example \"512 KiB\" or \"64 MiB\"")))
            }
        }
    }
}
