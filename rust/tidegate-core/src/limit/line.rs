//! What round trips tell of a line: by how much they differ, if that has a bound.

use crate::time::Span;

/// Round trips that are remembered.
const REMEMBERED: usize = 512;
/// Fewer say nothing.
const ENOUGH: usize = 256;
/// They are looked at each time that so many have come.
const EVERY: u32 = 64;

/// The last round trips of a line.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    round_trips: Vec<Span>,
    next: usize,
    /// Since it was last asked for.
    since: u32,
    /// Of all that came until then, or after.
    longest: Span,
}

/// What is believed of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    /// By how much ways to the server differ at most.
    pub(super) spread: Span,
    /// The mean round trip.
    pub(super) mean: Span,
}

impl Line {
    /// Notes a round trip. Returns whether it is time to ask for the [`bound`](Line::bound) again: now and then, and when it is longer than
    /// all that are remembered.
    pub(super) fn observe(&mut self, round_trip: Span) -> bool {
        let is_longest = round_trip > self.longest;
        self.longest = self.longest.max(round_trip);
        if self.round_trips.len() < REMEMBERED {
            self.round_trips.push(round_trip);
        } else {
            self.round_trips[self.next] = round_trip;
            self.next = (self.next + 1) % REMEMBERED;
        }
        self.since += 1;
        let is_time = self.since >= EVERY || is_longest;
        if is_time {
            self.since = 0;
            self.longest = self.round_trips.iter().copied().max().unwrap_or(Span::ZERO);
        }
        is_time
    }

    /// By how much the ways to the server differ, with a quarter as margin; nothing if too few are known, or if those that are longer than
    /// half of the range are rare: such a line has a tail of which the end has not been seen.
    pub(super) fn bound(&self) -> Option<Bound> {
        if self.round_trips.len() < ENOUGH {
            return None;
        }
        let (least, most) = (*self.round_trips.iter().min()?, *self.round_trips.iter().max()?);
        let range = (most - least).as_nanos();
        let middle = least + Span::from_nanos(range / 2);
        let above = self.round_trips.iter().filter(|round_trip| **round_trip > middle).count();
        if range > 0 && above * 10 < self.round_trips.len() {
            return None;
        }
        let sum: u64 = self.round_trips.iter().map(|round_trip| round_trip.as_nanos()).fold(0, u64::saturating_add);
        let mean = Span::from_nanos(sum / self.round_trips.len() as u64);
        Some(Bound { spread: Span::from_nanos(range + range / 4), mean })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(round_trips: impl IntoIterator<Item = u64>) -> Line {
        let mut line = Line::default();
        round_trips.into_iter().for_each(|ms| {
            line.observe(Span::from_millis(ms));
        });
        line
    }

    #[test]
    fn an_even_line_is_bounded_by_its_range_and_a_quarter() {
        let even = line((0..1000).map(|nth| 40 + nth * 7 % 41));
        let bound = even.bound().unwrap();
        assert_eq!(bound.spread, Span::from_millis(50));
        assert!(bound.mean >= Span::from_millis(59) && bound.mean <= Span::from_millis(61));
        let constant = line([80; 300]).bound().unwrap();
        assert_eq!((constant.spread, constant.mean), (Span::ZERO, Span::from_millis(80)));
    }

    #[test]
    fn a_line_of_which_little_is_known_or_with_a_tail_has_no_bound() {
        assert_eq!(line([80; 255]).bound(), None);
        assert_eq!(line((0..600).map(|nth| if nth % 20 == 0 { 200 } else { 80 })).bound(), None);
        assert!(line((0..600).map(|nth| if nth == 0 { 200 } else { 80 })).bound().is_some(), "long ago");
    }

    #[test]
    fn a_longer_round_trip_than_all_before_is_news_at_once() {
        let mut line = line([80; 300]);
        assert!(line.observe(Span::from_millis(81)));
        assert!(!line.observe(Span::from_millis(81)));
    }
}
