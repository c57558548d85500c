//! Tags within a metric's name, as Graphite spells them: `cpu.usage_idle;cpu=cpu0;mode=user`.
//!
//! A point of line protocol is told apart by its measurement, all its tags and its field. The device is
//! one of the tags; measurement, field and the other tags, sorted, are the metric. Always holds:
//! different points have different names ([`push_name`] and [`push_tag`] percent-encode what would
//! separate), and a name that is not spelled so has no tags.

use std::borrow::Cow;

/// Appends a measurement or a field: `;` would begin a tag, and `.` ends a measurement.
pub fn push_name(out: &mut String, name: &str, is_measurement: bool) {
    push(out, name, if is_measurement { &[';', '.'] } else { &[';'] });
}

/// Appends a tag.
pub fn push_tag(out: &mut String, key: &str, value: &str) {
    out.push(';');
    push(out, key, &[';', '=']);
    out.push('=');
    push(out, value, &[';']);
}

fn push(out: &mut String, text: &str, separators: &[char]) {
    for (at, c) in text.char_indices() {
        if separators.contains(&c) || (c == '%' && encoded(&text[at..]).is_some()) {
            out.push_str(&format!("%{:02X}", c as u32));
        } else {
            out.push(c);
        }
    }
}

/// The character that a text begins with, percent-encoded.
fn encoded(text: &str) -> Option<char> {
    let digits = text.strip_prefix('%')?.get(..2)?;
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten().filter(u8::is_ascii).map(char::from)
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match encoded(rest) {
            Some(c) => {
                out.push(c);
                3
            }
            None => {
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    Cow::Owned(out)
}

/// The name before its tags; all of it where it has none.
pub fn base(metric: &str) -> &str {
    match metric.split_once(';') {
        Some((base, tags)) if !base.is_empty() && tags.split(';').all(|tag| tag.find('=').is_some_and(|at| at > 0)) => {
            base
        }
        _ => metric,
    }
}

/// All tags, as they were before they were encoded.
pub fn tags(metric: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let rest = metric.get(base(metric).len() + 1..).unwrap_or_default();
    rest.split(';').filter_map(|tag| tag.split_once('=')).map(|(key, value)| (decode(key), decode(value)))
}

/// The value of one tag.
pub fn tag<'m>(metric: &'m str, name: &str) -> Option<Cow<'m, str>> {
    tags(metric).find(|(key, _)| key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_are_part_of_the_name_and_can_be_read_back() {
        let metric = "cpu.usage_idle;cpu=cpu0;mode=a=b";
        assert_eq!(base(metric), "cpu.usage_idle");
        assert_eq!(tag(metric, "cpu").as_deref(), Some("cpu0"));
        assert_eq!(tag(metric, "mode").as_deref(), Some("a=b"));
        assert_eq!(tag(metric, "host"), None);
        for plain in ["t", "a;b", "a;=b", ";a=b", "a;", "a;b=c;"] {
            assert_eq!(base(plain), plain);
            assert_eq!(tags(plain).count(), 0, "{plain}");
        }
        assert_eq!(tag("a;b=", "b").as_deref(), Some(""));
    }

    proptest! {
        #[test]
        fn different_points_have_different_names(
            a in ("[ab.;=%23B5]{1,4}", "[ab.;=%23B]{1,4}", "[ab;=%3BD]{1,3}", "[ab;=%3BD]{0,3}"),
            b in ("[ab.;=%23B5]{1,4}", "[ab.;=%23B]{1,4}", "[ab;=%3BD]{1,3}", "[ab;=%3BD]{0,3}"),
        ) {
            let name = |(measurement, field, key, value): &(String, String, String, String)| {
                let mut out = String::new();
                push_name(&mut out, measurement, true);
                out.push('.');
                push_name(&mut out, field, false);
                push_tag(&mut out, key, value);
                out
            };
            prop_assert_eq!(a == b, name(&a) == name(&b));
            let spelled = name(&a);
            prop_assert_eq!(tags(&spelled).collect::<Vec<_>>(), vec![(Cow::Borrowed(&*a.2), Cow::Borrowed(&*a.3))]);
        }
    }
}
