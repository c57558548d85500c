//! Time in steps, and what is due in each.
//!
//! Arrives: events with the step they are due in. Leaves: step after step, the events of each in
//! the order in which they came. Always holds: nothing is due in the step that it is made in, and
//! nothing is due later than [`HORIZON`]: who wants to wait longer is woken, looks, and waits
//! again. Pure.

/// A step of time: 10 ms.
pub(super) type Step = u32;

/// Steps in a second.
pub(super) const PER_S: Step = 100;
/// Steps in which something can be due: five minutes and a half.
pub(super) const HORIZON: usize = 32_768;

/// Steps in some milliseconds, at least one.
pub(super) fn of_ms(ms: f64) -> Step {
    ((ms * f64::from(PER_S) / 1e3).round() as Step).max(1)
}

/// Seconds in some steps.
pub(super) fn seconds(steps: Step) -> f64 {
    f64::from(steps) / f64::from(PER_S)
}

/// What is due when.
#[derive(Debug)]
pub(super) struct Wheel<Event> {
    now: Step,
    due: Vec<Vec<Event>>,
}

impl<Event> Wheel<Event> {
    pub(super) fn new(now: Step) -> Self {
        Wheel { now, due: (0..HORIZON).map(|_| Vec::new()).collect() }
    }

    /// The step in which an event that is wanted at `at` will be due.
    pub(super) fn within(&self, at: Step) -> Step {
        at.clamp(self.now + 1, self.now + HORIZON as Step - 1)
    }

    /// Makes an event due, at a step that [`Wheel::within`] allows.
    pub(super) fn add(&mut self, at: Step, event: Event) {
        debug_assert_eq!(at, self.within(at), "an event is due now or too late");
        self.due[at as usize % HORIZON].push(event);
    }

    /// The next step and what is due in it; `spent` is an empty list to go on with.
    pub(super) fn advance(&mut self, spent: Vec<Event>) -> (Step, Vec<Event>) {
        debug_assert!(spent.is_empty());
        self.now += 1;
        (self.now, std::mem::replace(&mut self.due[self.now as usize % HORIZON], spent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_their_step_and_order() {
        let mut wheel = Wheel::new(5);
        wheel.add(7, 'b');
        wheel.add(7, 'c');
        wheel.add(6, 'a');
        wheel.add(wheel.within(1_000_000), 'z');
        assert_eq!(wheel.advance(Vec::new()), (6, vec!['a']));
        assert_eq!(wheel.advance(Vec::new()), (7, vec!['b', 'c']));
        let last = (8..).map(|_| wheel.advance(Vec::new())).find(|(_, events)| !events.is_empty());
        assert_eq!(last, Some((5 + HORIZON as Step - 1, vec!['z'])));
    }

    #[test]
    fn milliseconds_are_steps_of_at_least_one() {
        assert_eq!((of_ms(0.0), of_ms(24.0), of_ms(1_000.0)), (1, 2, PER_S));
    }
}
