//! The time as it has run since the machine was started, and what a leap of it says.
//!
//! A receive time is the *epoch* of the boot plus the time since then. Arrives: samples of both
//! clocks. Leaves: corrections, once the clock has been set: which receive times were wrong,
//! and by how much. Always holds: only times are corrected that nobody vouched for; where the
//! clock was known to be unset nothing is corrected before it is right; a clock that is put back
//! corrects nothing if a time has been shown twice by that. Pure.

use super::RELEASE_US;
use crate::readings::{Readings, flag};
use model::Micros;
use model::time::{self, SECOND_US};
use serde::{Deserialize, Serialize};

/// A smaller leap is none: clocks are put right by a second now and then.
pub(super) const STEP_US: Micros = 10 * SECOND_US;
/// A clock that has run for so long without anybody's objection is believed.
pub(super) const BELIEVED_AFTER_US: Micros = 24 * 3_600 * SECOND_US;
/// A clock of which nobody said that it was unset was not further behind.
const BEHIND_MAX_US: Micros = 400 * BELIEVED_AFTER_US;
/// How far a time that the gateway gave may be ahead of its clock.
const AHEAD_US: Micros = SECOND_US;
/// Stretches of wrong time that are remembered.
const STRETCHES_MAX: usize = 16;

/// Receive times that were wrong: those of unstamped readings that are flagged
/// [`flag::CLOCK_UNSET`] and lie in a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Correction {
    /// The first wrong time.
    pub from_us: Micros,
    /// The end of the wrong times.
    pub to_us: Micros,
    /// How much later it was. With 0 they were right after all.
    pub shift_us: Micros,
    /// Commits before this one are of earlier starts, and stay as they are.
    pub from_seq: i64,
}

impl Correction {
    /// True if the time of this reading was wrong.
    pub fn concerns(&self, time_us: Micros, flags: u8) -> bool {
        flags & (flag::CLOCK_UNSET | flag::STAMPED) == flag::CLOCK_UNSET
            && self.shift_us != 0
            && (self.from_us..self.to_us).contains(&time_us)
    }

    /// Puts readings right that are not stored yet.
    pub fn apply(&self, readings: &mut Readings) {
        for (time_us, flags) in readings.time_us.iter_mut().zip(&mut readings.flags) {
            if self.concerns(*time_us, *flags) {
                *time_us += self.shift_us;
                *flags &= !flag::CLOCK_UNSET;
            }
        }
    }
}

/// Times that were shown while the clock was known to be unset, by the epoch they are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stretch {
    from_us: Micros,
    to_us: Micros,
    epoch_us: Micros,
    from_seq: i64,
}

impl Stretch {
    /// Nothing is moved where wrong times and right ones could not be told apart.
    fn corrected(&self, epoch_us: Micros) -> Correction {
        let shift_us = epoch_us - self.epoch_us;
        let is_clear = shift_us >= STEP_US || -shift_us >= (self.to_us - self.from_us).max(STEP_US);
        Correction { shift_us: if is_clear { shift_us } else { 0 }, ..self.given_up() }
    }

    fn given_up(&self) -> Correction {
        Correction { from_us: self.from_us, to_us: self.to_us, shift_us: 0, from_seq: self.from_seq }
    }
}

/// What a restart has to know of a clock that is unset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unset {
    boot: String,
    from_us: Micros,
    epoch_us: Micros,
    from_seq: i64,
    earlier: Vec<Stretch>,
}

impl Unset {
    /// True if it is the same but for the slow changes of a clock that is slewed.
    pub(super) fn is_like(&self, other: &Unset) -> bool {
        self.from_us == other.from_us && self.earlier == other.earlier
    }

    /// True if times in `[from_us, to_us)` may be wrong, so long after the machine was started.
    pub(super) fn touches(&self, from_us: Micros, to_us: Micros, boot_us: Micros) -> bool {
        // By the time as it runs: the wall clock may have been set a moment ago.
        let current = (self.from_us, (self.epoch_us + boot_us).max(self.from_us) + STEP_US);
        let earlier = self.earlier.iter().map(|stretch| (stretch.from_us, stretch.to_us));
        earlier.chain([current]).any(|(begin_us, end_us)| begin_us < to_us && from_us < end_us)
    }
}

/// What the store says at the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// No right time is earlier: there are commits from then.
    pub floor_us: Micros,
    /// The first commit of this start.
    pub from_seq: i64,
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Since the Unix epoch.
    pub(super) wall_us: Micros,
    /// Since the machine was started.
    pub(super) boot_us: Micros,
    /// The kernel says that the clock is synchronised.
    pub(super) synchronized: bool,
    /// A service is there that has yet to set it.
    pub(super) awaited: bool,
}

/// How the time has run.
#[derive(Debug)]
pub(super) struct Line {
    boot: String,
    /// No right time is earlier: the store has commits from then.
    floor_us: Micros,
    /// The time at which the machine was started, by the wall clock.
    epoch_us: Micros,
    /// When the clock began to run like this, by both clocks.
    from_us: Micros,
    began_boot_us: Micros,
    /// When it was last looked at.
    seen_boot_us: Micros,
    /// The first commit of this line.
    from_seq: i64,
    earlier: Vec<Stretch>,
    pub(super) vouched: bool,
    pub(super) unset: bool,
}

impl Line {
    /// Begins now; `before` is what the last start left of an unset clock. Times of a boot that
    /// ended before its clock was set are what they are: nobody will ever know better.
    pub(super) fn new(boot: String, start: Start, now: Sample, before: Option<Unset>) -> (Self, Vec<Correction>) {
        let Start { floor_us, from_seq } = start;
        let epoch_us = now.wall_us - now.boot_us;
        let mut line = Line {
            boot,
            floor_us,
            epoch_us,
            from_us: now.wall_us,
            began_boot_us: now.boot_us,
            seen_boot_us: now.boot_us,
            from_seq,
            earlier: Vec::new(),
            vouched: false,
            unset: true,
        };
        let mut given_up = Vec::new();
        match before {
            Some(before) if before.boot == line.boot => {
                line.earlier = before.earlier;
                line.from_seq = before.from_seq;
                if (epoch_us - before.epoch_us).abs() < STEP_US {
                    line.from_us = before.from_us;
                    line.began_boot_us = before.from_us - before.epoch_us;
                } else {
                    line.remember(before.from_us, before.epoch_us + now.boot_us, before.epoch_us);
                }
            }
            Some(before) => {
                let (from_us, to_us) = (before.from_us, before.from_us + 2 * BELIEVED_AFTER_US);
                given_up.extend(before.earlier.iter().map(Stretch::given_up));
                given_up.push(Correction { from_us, to_us, shift_us: 0, from_seq: before.from_seq });
            }
            None => {}
        }
        line.judge(now);
        (line, given_up)
    }

    fn judge(&mut self, now: Sample) {
        let believed = now.synchronized || now.boot_us - self.began_boot_us >= BELIEVED_AFTER_US;
        self.vouched |= believed && now.wall_us >= RELEASE_US;
        let doubted = now.awaited || now.wall_us < self.floor_us.saturating_sub(STEP_US);
        self.unset = now.wall_us < RELEASE_US || doubted && !self.vouched;
    }

    /// Times assigned to a burst may be a little ahead.
    fn remember(&mut self, from_us: Micros, to_us: Micros, epoch_us: Micros) {
        let to_us = to_us + AHEAD_US;
        if self.earlier.len() < STRETCHES_MAX {
            self.earlier.push(Stretch { from_us, to_us, epoch_us, from_seq: self.from_seq });
        }
    }

    /// Looks at both clocks, some times a second; corrections come out once the time is right.
    pub(super) fn observe(&mut self, now: Sample) -> Vec<Correction> {
        let epoch_us = now.wall_us - now.boot_us;
        let leap_us = epoch_us - self.epoch_us;
        let (was_unset, was_vouched) = (self.unset, self.vouched);
        if leap_us.abs() >= STEP_US {
            let behind = leap_us > 0 && leap_us <= BEHIND_MAX_US && !was_vouched;
            if was_unset || behind {
                self.remember(self.from_us, self.epoch_us + now.boot_us, self.epoch_us);
            }
            // It may have leapt right after it was last looked at.
            self.from_us = now.wall_us - (now.boot_us - self.seen_boot_us);
            self.began_boot_us = self.seen_boot_us;
            // Whoever vouched for it before a leap does not vouch for what it shows now.
            self.vouched = false;
        }
        (self.epoch_us, self.seen_boot_us) = (epoch_us, now.boot_us);
        self.judge(now);
        if self.unset {
            return Vec::new();
        }
        let mut corrections: Vec<Correction> =
            self.earlier.drain(..).map(|stretch| stretch.corrected(epoch_us)).collect();
        if was_unset && leap_us.abs() < STEP_US {
            let (from_us, to_us, from_seq) = (self.from_us, now.wall_us, self.from_seq);
            corrections.push(Correction { from_us, to_us, shift_us: 0, from_seq });
        }
        corrections
    }

    /// Why the clock is not believed.
    pub(super) fn doubt(&self, now: Sample) -> String {
        let floor_us = self.floor_us;
        match now {
            _ if now.wall_us < RELEASE_US => format!("it shows {}", time::format(now.wall_us)),
            _ if now.awaited => "a time service has yet to set it".into(),
            _ => {
                format!(
                    "it shows {}, and the store has readings received at {}",
                    time::format(now.wall_us),
                    time::format(floor_us)
                )
            }
        }
    }

    /// What a restart has to know.
    pub(super) fn kept(&self) -> Option<Unset> {
        self.unset.then(|| Unset {
            boot: self.boot.clone(),
            from_us: self.from_us,
            epoch_us: self.epoch_us,
            from_seq: self.from_seq,
            earlier: self.earlier.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: Micros = RELEASE_US + 300 * BELIEVED_AFTER_US;
    const HOUR_US: Micros = 3_600 * SECOND_US;

    fn at(wall_us: Micros, boot_s: Micros) -> Sample {
        Sample { wall_us, boot_us: boot_s * SECOND_US, synchronized: false, awaited: false }
    }

    fn line(floor_us: Micros, now: Sample) -> Line {
        Line::new("b".into(), Start { floor_us, from_seq: 5 }, now, None).0
    }

    #[test]
    fn a_boot_in_1970_is_corrected_when_the_clock_is_set() {
        let mut line = line(Micros::MIN, at(20 * SECOND_US, 20));
        assert!(line.unset && line.observe(at(80 * SECOND_US, 80)).is_empty());
        // Set at 100 s of uptime, seen half a second later.
        let got = line.observe(at(NOW_US, 100));
        let want = Correction {
            from_us: 20 * SECOND_US,
            to_us: 101 * SECOND_US,
            shift_us: NOW_US - 100 * SECOND_US,
            from_seq: 5,
        };
        assert_eq!(got, [want]);
        assert!(!line.unset && !line.vouched && line.kept().is_none());
        assert!(line.observe(at(NOW_US + SECOND_US, 101)).is_empty());
    }

    #[test]
    fn stages_on_the_way_to_the_right_time_are_all_corrected_to_it() {
        let floor_us = NOW_US - HOUR_US;
        let mut line = line(floor_us, at(20 * SECOND_US, 20));
        let last_week = NOW_US - 7 * BELIEVED_AFTER_US;
        assert!(line.observe(at(last_week, 30)).is_empty() && line.unset, "behind what the store has");
        let got = line.observe(at(NOW_US, 50));
        let shifts: Vec<Micros> = got.iter().map(|correction| correction.shift_us).collect();
        assert_eq!(shifts, [NOW_US - 50 * SECOND_US, NOW_US - last_week - 20 * SECOND_US]);
        assert_eq!(got[1].from_us, last_week - 10 * SECOND_US, "since it was last looked at");
    }

    #[test]
    fn a_leap_forward_of_a_clock_that_nobody_vouches_for_corrects_this_run() {
        let begin_us = NOW_US - 7 * BELIEVED_AFTER_US;
        let mut line = line(Micros::MIN, at(begin_us, 20));
        assert!(!line.unset);
        let got = line.observe(at(NOW_US, 30));
        assert_eq!((got.len(), got[0].from_us, got[0].to_us), (1, begin_us, begin_us + 11 * SECOND_US));
        // Too far to be a clock that was merely behind.
        assert!(line.observe(at(NOW_US + 3_000 * BELIEVED_AFTER_US, 40)).is_empty());
        assert!(line.observe(at(NOW_US, 50)).is_empty(), "and back");
    }

    #[test]
    fn a_clock_that_is_vouched_for_was_right() {
        let mut line = line(Micros::MIN, at(NOW_US, 20));
        line.observe(Sample { synchronized: true, ..at(NOW_US + SECOND_US, 21) });
        assert!(line.vouched && line.observe(at(NOW_US + HOUR_US, 22)).is_empty());
        assert!(!line.vouched, "what it shows after a leap is another matter");
    }

    #[test]
    fn a_clock_that_was_behind_the_store_and_has_caught_up_was_right() {
        let mut line = line(NOW_US + 60 * SECOND_US, at(NOW_US, 20));
        assert!(line.unset);
        assert!(line.observe(at(NOW_US + 30 * SECOND_US, 50)).is_empty());
        let got = line.observe(at(NOW_US + 60 * SECOND_US, 80));
        assert_eq!(got, [Correction { from_us: NOW_US, to_us: NOW_US + 60 * SECOND_US, shift_us: 0, from_seq: 5 }]);
        assert!(!line.unset);
    }

    #[test]
    fn what_a_service_has_yet_to_set_is_believed_after_a_day_but_1970_never() {
        let awaited = |wall_us, boot_s| Sample { awaited: true, ..at(wall_us, boot_s) };
        let mut line = line(Micros::MIN, awaited(NOW_US, 20));
        assert!(line.unset);
        assert_eq!(line.observe(awaited(NOW_US + BELIEVED_AFTER_US, 20 + 86_400)).len(), 1);
        assert!(line.vouched && !line.unset);
        let mut line = self::line(Micros::MIN, at(0, 0));
        assert!(line.observe(at(9 * BELIEVED_AFTER_US, 9 * 86_400)).is_empty());
        assert!(line.unset && !line.vouched);
    }

    #[test]
    fn a_restart_goes_on_with_the_boot_it_is_in() {
        let line = line(Micros::MIN, at(20 * SECOND_US, 20));
        let kept = line.kept();
        // The clock is set while the gateway does not run.
        let later = Start { floor_us: Micros::MIN, from_seq: 9 };
        let (mut next, given_up) = Line::new("b".into(), later, at(NOW_US, 100), kept.clone());
        assert_eq!((given_up.len(), next.from_seq), (0, 5));
        let got = next.observe(at(NOW_US, 100));
        assert_eq!(got[0].shift_us, NOW_US - 100 * SECOND_US);
        assert_eq!((got[0].from_us, got[0].to_us), (20 * SECOND_US, 101 * SECOND_US));
        // It runs on.
        let (next, _) = Line::new("b".into(), later, at(60 * SECOND_US, 60), kept.clone());
        assert_eq!(next.kept().map(|unset| unset.from_us), Some(20 * SECOND_US));
        // Another boot.
        let (next, given_up) = Line::new("c".into(), later, at(5 * SECOND_US, 5), kept);
        assert_eq!(next.kept().map(|unset| unset.from_us), Some(5 * SECOND_US));
        assert_eq!((given_up[0].from_us, given_up[0].shift_us, given_up.len()), (20 * SECOND_US, 0, 1));
    }
}
