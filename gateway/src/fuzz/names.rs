//! Names, tags, times, patterns: what is written must be read back as the same.

use super::NOW_US;
use crate::decode::Format;
use crate::decode::topic::Rule;
use daemon::aggregates::{GroupBy, parse_time};
use model::aggregate::{Stat, Window, glob, glob_metric};
use model::identity::NAME_BYTES_MAX;
use model::tags::{base, push_name, push_tag, tags};
use model::time;

/// No longer than a request's head may be.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// Texts, each on a line.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(&data[..data.len().min(TEXT_BYTES_MAX)]) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (a, b, c, d) = (next(), next(), next(), next());
    spelled(a, b, c, d);
    patterns(a, b);
    times(a);
    grammar(a);
    rules(a, b);
}

/// A point of line protocol has a name, and its tags can be read from it.
fn spelled(measurement: &str, field: &str, key: &str, value: &str) {
    if [measurement, field, key].iter().any(|part| part.is_empty()) {
        return;
    }
    let mut name = String::new();
    push_name(&mut name, measurement, true);
    name.push('.');
    push_name(&mut name, field, false);
    let plain = name.clone();
    push_tag(&mut name, key, value);
    assert_eq!(base(&name), plain);
    let read: Vec<_> = tags(&name).collect();
    assert_eq!(read.len(), 1);
    assert_eq!((&*read[0].0, &*read[0].1), (key, value));
    assert!(glob_metric(&plain, &name) && glob(&name, &name));
}

fn patterns(pattern: &str, text: &str) {
    assert!(glob(pattern, pattern) && glob("*", text));
    let text = &text[..text.floor_char_boundary(NAME_BYTES_MAX)];
    glob(pattern, text);
    glob_metric(pattern, text);
    let _ = tags(pattern).count();
}

fn times(text: &str) {
    let zone = super::zone(true);
    if let Ok((us, later)) = time::parse_local(text, &zone) {
        assert!((time::FIRST_US..=time::LAST_US).contains(&us), "{us}");
        assert!(later.is_none_or(|later| later > us), "{us} {later:?}");
        assert_eq!(time::parse(&time::format(us), &zone), Ok(us), "{text}");
    }
    let _ = parse_time(text, NOW_US);
}

fn grammar(text: &str) {
    if let Ok(stat) = text.parse::<Stat>() {
        assert_eq!(stat.to_string().parse::<Stat>().map(|stat| stat.to_string()), Ok(stat.to_string()));
    }
    if let Ok(Window::Tumbling(us)) = text.parse::<Window>() {
        assert!(us > 0 && us % time::SECOND_US == 0);
    }
    if let Ok(group_by) = text.parse::<GroupBy>() {
        assert_eq!(group_by.to_string(), text);
    }
}

fn rules(pattern: &str, topic: &str) {
    if let Ok(rule) = Rule::new(pattern, None, None, Format::Auto)
        && let Some(target) = rule.matches(topic)
    {
        assert!(target.device.is_some_and(|device| topic.contains(device)));
    }
}
