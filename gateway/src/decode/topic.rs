//! Topic patterns: which topics are readings, and of whom.
//!
//! A pattern is a topic whose levels are literal, `+`, `{device}` or `{metric}`; a last `#`
//! stands for any rest. A topic that no pattern matches is ordinary publish/subscribe traffic.

use super::{Format, Target};

/// What a level of a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Literal(Box<str>),
    Any,
    Device,
    Metric,
    Rest,
}

/// A compiled `[[ingest]]` rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    levels: Vec<Level>,
    device: Option<Box<str>>,
    metric: Option<Box<str>>,
    /// How payloads on matching topics are read.
    pub format: Format,
}

/// Why a pattern is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No level at all.
    #[error("the pattern is empty")]
    Empty,
    /// `#` before the end, or a wildcard or capture that shares its level.
    #[error("level {0:?} must be literal, +, {{device}}, {{metric}}, or # at the end")]
    Level(String),
    /// The same capture twice, or a capture beside the same fixed name.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// Nobody to attribute readings to.
    #[error("no {{device}} in the pattern: add it, or set device = \"...\" beside the topic")]
    NoDevice,
}

impl Rule {
    /// Compiles a pattern; `device` and `metric` fix what the pattern does not capture.
    pub fn new(
        pattern: &str,
        device: Option<&str>,
        metric: Option<&str>,
        format: Format,
    ) -> Result<Self, PatternError> {
        if pattern.is_empty() {
            return Err(PatternError::Empty);
        }
        let texts: Vec<&str> = pattern.split('/').collect();
        let mut levels = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            levels.push(match *text {
                "+" => Level::Any,
                "{device}" => Level::Device,
                "{metric}" => Level::Metric,
                "#" if i + 1 == texts.len() => Level::Rest,
                literal if literal.contains(['+', '#', '{', '}']) => return Err(PatternError::Level(literal.into())),
                literal => Level::Literal(literal.into()),
            });
        }
        let given = |level: Level, fixed: Option<&str>| {
            levels.iter().filter(|l| **l == level).count() + usize::from(fixed.is_some())
        };
        match (given(Level::Device, device), given(Level::Metric, metric)) {
            (0, _) => Err(PatternError::NoDevice),
            (2.., _) => Err(PatternError::Twice("device")),
            (_, 2..) => Err(PatternError::Twice("metric")),
            _ => Ok(Rule { levels, device: device.map(Into::into), metric: metric.map(Into::into), format }),
        }
    }

    /// Whom a topic speaks of, if it matches.
    pub fn matches<'a>(&'a self, topic: &'a str) -> Option<Target<'a>> {
        let mut target = Target { device: self.device.as_deref(), metric: self.metric.as_deref() };
        let mut texts = topic.split('/');
        for level in &self.levels {
            if *level == Level::Rest {
                return Some(target);
            }
            let text = texts.next()?;
            match level {
                Level::Literal(literal) if **literal != *text => return None,
                Level::Device => target.device = Some(text),
                Level::Metric => target.metric = Some(text),
                _ => {}
            }
        }
        texts.next().is_none().then_some(target)
    }
}

/// All rules, the first match counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// Whom a topic speaks of and how its payload is read; `None` for other traffic.
    pub fn route<'a>(&'a self, topic: &'a str) -> Option<(Target<'a>, Format)> {
        if topic.starts_with('$') {
            return None;
        }
        self.0.iter().find_map(|rule| Some((rule.matches(topic)?, rule.format)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target<'a>(device: &'a str, metric: Option<&'a str>) -> Option<Target<'a>> {
        Some(Target { device: Some(device), metric })
    }

    #[test]
    fn captures_name_device_and_metric() {
        let rule = Rule::new("devices/{device}/{metric}", None, None, Format::Auto).unwrap();
        assert_eq!(rule.matches("devices/a/t"), target("a", Some("t")));
        assert_eq!(rule.matches("devices/a"), None);
        assert_eq!(rule.matches("devices/a/t/x"), None);
        assert_eq!(rule.matches("Devices/a/t"), None);
    }

    #[test]
    fn wildcards_skip_levels_and_fixed_names_fill_in() {
        let rule = Rule::new("+/sensor/{metric}/#", Some("house"), None, Format::Text).unwrap();
        assert_eq!(rule.matches("esp/sensor/t/state"), target("house", Some("t")));
        assert_eq!(rule.matches("esp/sensor/t"), target("house", Some("t")));
    }

    #[test]
    fn a_pattern_that_says_too_much_or_too_little_is_refused() {
        let new = |pattern, device| Rule::new(pattern, device, None, Format::Auto);
        assert_eq!(new("", None), Err(PatternError::Empty));
        assert_eq!(new("a/{metric}", None), Err(PatternError::NoDevice));
        assert_eq!(new("{device}/{device}", None), Err(PatternError::Twice("device")));
        assert_eq!(new("{device}", Some("x")), Err(PatternError::Twice("device")));
        assert_eq!(new("a/#/{device}", None), Err(PatternError::Level("#".into())));
        assert_eq!(new("a+/{device}", None), Err(PatternError::Level("a+".into())));
    }
}
