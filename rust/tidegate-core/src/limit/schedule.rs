//! Units that become something else at known instants.

use std::collections::VecDeque;

use crate::time::{Instant, Span};

/// Instants in strictly ascending order, with the units that wait for each; 16 bytes an instant.
///
/// One instant needs no more than the schedule itself: among many states, few have seen a second one.
#[derive(Clone, Debug, Default)]
pub(super) enum Schedule {
    #[default]
    Empty,
    One(Instant, u32),
    /// Stays so, empty or not.
    #[expect(clippy::box_collection, reason = "so that the schedule of most states is small")]
    Many(Box<VecDeque<(Instant, u32)>>),
}

impl Schedule {
    /// Adds `units`, at least 1, for `at`. They join those of the entry before them if that one lies at most `reach` a unit
    /// of its own ahead: the caller knows that they may as well come early.
    ///
    /// # Complexity
    /// Constant when instants come in order; else linear in the entries after this one.
    #[inline]
    pub(super) fn add(&mut self, at: Instant, units: u32, reach: Span) {
        match self {
            Schedule::Empty => *self = Schedule::One(at, units),
            Schedule::One(..) => self.add_to_one(at, units, reach),
            Schedule::Many(entries) => match entries.back_mut() {
                Some(last) if at < last.0 => add_before(entries, at, units, reach),
                Some(last) if joins(last, at, reach) => last.1 = last.1.saturating_add(units),
                _ => entries.push_back((at, units)),
            },
        }
    }

    fn add_to_one(&mut self, at: Instant, units: u32, reach: Span) {
        let Schedule::One(first, theirs) = *self else { return };
        if at >= first && joins(&(first, theirs), at, reach) {
            *self = Schedule::One(first, theirs.saturating_add(units));
        } else {
            let mut entries = Box::new(VecDeque::from([(first, theirs)]));
            add_before(&mut entries, at, units, reach);
            *self = Schedule::Many(entries);
        }
    }

    /// Takes the first entry if its instant has come.
    #[inline]
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, u32)> {
        match self {
            Schedule::Empty => None,
            Schedule::One(at, units) => {
                let first = (*at, *units);
                (first.0 <= now).then(|| {
                    *self = Schedule::Empty;
                    first
                })
            }
            Schedule::Many(entries) => {
                let &first = entries.front()?;
                if first.0 <= now { entries.pop_front() } else { None }
            }
        }
    }

    /// Takes `units` out that wait for exactly `at`. Returns whether there were as many.
    ///
    /// # Complexity
    /// Logarithmic in the entries, and linear in them when none is left for that instant.
    pub(super) fn take(&mut self, at: Instant, units: u32) -> bool {
        match self {
            Schedule::One(first, theirs) if *first == at && units <= *theirs => {
                *theirs -= units;
                if *theirs == 0 {
                    *self = Schedule::Empty;
                }
                true
            }
            Schedule::Empty | Schedule::One(..) => false,
            Schedule::Many(entries) => {
                let Ok(index) = entries.binary_search_by_key(&at, |entry| entry.0) else { return false };
                let Some(left) = entries[index].1.checked_sub(units) else { return false };
                entries[index].1 = left;
                if left == 0 {
                    entries.remove(index);
                }
                true
            }
        }
    }

    /// The entries in their order.
    #[inline]
    pub(super) fn iter(&self) -> impl Iterator<Item = (Instant, u32)> + '_ {
        let (one, many) = match self {
            Schedule::Empty => (None, None),
            Schedule::One(at, units) => (Some((*at, *units)), None),
            Schedule::Many(entries) => (None, Some(entries)),
        };
        one.into_iter().chain(many.into_iter().flat_map(|entries| entries.iter().copied()))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.iter().count()
    }
}

#[cold]
fn add_before(entries: &mut VecDeque<(Instant, u32)>, at: Instant, units: u32, reach: Span) {
    let later = entries.iter().rev().take_while(|entry| at < entry.0).count();
    let index = entries.len() - later;
    match index.checked_sub(1).map(|before| &mut entries[before]) {
        Some(before) if joins(before, at, reach) => before.1 = before.1.saturating_add(units),
        _ => entries.insert(index, (at, units)),
    }
}

#[inline]
fn joins(before: &(Instant, u32), at: Instant, reach: Span) -> bool {
    at.since(before.0) <= reach.times(u64::from(before.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn entries_are_ordered_and_joined_within_reach_of_the_one_before() {
        let mut schedule = Schedule::default();
        for nanos in [30, 10, 50, 20, 30, 11] {
            schedule.add(at(nanos), 1, Span::ZERO);
        }
        let ordered = [(10, 1), (11, 1), (20, 1), (30, 2), (50, 1)];
        assert!(schedule.iter().eq(ordered.map(|(nanos, units)| (at(nanos), units))));
        schedule.add(at(38), 1, Span::from_nanos(4));
        schedule.add(at(43), 1, Span::from_nanos(4));
        assert_eq!(schedule.iter().nth(3), Some((at(30), 3)));
        assert_eq!(schedule.iter().nth(4), Some((at(43), 1)));
    }

    #[test]
    fn units_are_taken_out_of_their_instant_only() {
        let mut schedule = Schedule::default();
        schedule.add(at(10), 3, Span::ZERO);
        schedule.add(at(20), 1, Span::ZERO);
        assert!(!schedule.take(at(11), 1));
        assert!(!schedule.take(at(20), 2));
        assert!(schedule.take(at(10), 2) && schedule.take(at(10), 1) && schedule.take(at(20), 1));
        assert_eq!(schedule.len(), 0);
    }

    #[test]
    fn an_entry_is_taken_when_its_instant_has_come() {
        let mut schedule = Schedule::default();
        schedule.add(at(10), 3, Span::ZERO);
        assert_eq!(schedule.pop(at(9)), None);
        assert_eq!(schedule.pop(at(10)), Some((at(10), 3)));
        assert_eq!(schedule.pop(at(10)), None);
    }
}
