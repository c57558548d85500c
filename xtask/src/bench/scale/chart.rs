//! Summaries stored over time, as text. Pure.

use super::tally::Second;
use std::fmt::Write;

/// Characters of a bar that is as long as the cloud can do.
const WIDTH: f64 = 40.0;
/// Lines, about.
const LINES: usize = 14;

/// One line for each stretch of time: `#` is fresh, `-` is old. Each simulated gateway stands for
/// `sample` of them.
pub(super) fn chart(seconds: &[Second], sample: f64, summaries_per_change: f64, capacity: f64) -> String {
    let minutes = [1, 2, 5, 10, 15, 30, 60, 120, 240];
    let fits = |minutes: &&usize| seconds.len() <= **minutes * 60 * LINES;
    let stretch = minutes.iter().find(fits).unwrap_or(&480) * 60;
    let mut text = String::new();
    // A rest of a few seconds says nothing.
    let whole = seconds.chunks(stretch).filter(|chunk| chunk.len() * 10 >= stretch);
    for (n, stretch_of) in whole.enumerate() {
        let per_s = |of: fn(&Second) -> f64| sample * stretch_of.iter().map(of).sum::<f64>() / stretch_of.len() as f64;
        let fresh = per_s(|second| f64::from(second.fresh)) * summaries_per_change;
        let old = per_s(|second| f64::from(second.old)) * summaries_per_change;
        let bar = |rate: f64, of: &str| of.repeat((rate / capacity * WIDTH).round() as usize);
        let (from, bars) = (n * stretch / 60, bar(fresh, "#") + &bar(old, "-"));
        let pushes = per_s(|second| f64::from(second.pushes));
        let _ = writeln!(
            text,
            "  {:>3}:{:02} {bars:<41} {:>6.2} M/s, {pushes:>6.0} pushes/s",
            from / 60,
            from % 60,
            (fresh + old) / 1e6
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_rates() {
        let second = |fresh, old| Second { fresh, old, pushes: 4, ..Second::default() };
        let seconds: Vec<Second> = (0..120).map(|n| if n < 60 { second(2, 2) } else { second(1, 0) }).collect();
        let expected = "    0:00 ####################--------------------    8.00 M/s,      8 pushes/s
    0:01 ##########                                  2.00 M/s,      8 pushes/s\n";
        assert_eq!(chart(&seconds, 2.0, 1e6, 8e6), expected);
    }
}
