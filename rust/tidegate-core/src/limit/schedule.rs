//! Units that become something else at known instants.

use std::collections::VecDeque;
use std::collections::vec_deque::Iter;

use crate::time::{Instant, Span};

/// Instants in strictly ascending order, with the units that wait for each; 16 bytes an instant.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule(VecDeque<(Instant, u32)>);

impl Schedule {
    /// Adds `units`, at least 1, for `at`. They join those of the entry before them if that one lies at most `reach` a unit
    /// of its own ahead: the caller knows that they may as well come early.
    ///
    /// # Complexity
    /// Constant when instants come in order; else linear in the entries after this one.
    #[inline]
    pub(super) fn add(&mut self, at: Instant, units: u32, reach: Span) {
        match self.0.back_mut() {
            Some(last) if at < last.0 => self.add_before(at, units, reach),
            Some(last) if joins(last, at, reach) => last.1 = last.1.saturating_add(units),
            _ => self.0.push_back((at, units)),
        }
    }

    #[cold]
    fn add_before(&mut self, at: Instant, units: u32, reach: Span) {
        let later = self.0.iter().rev().take_while(|entry| at < entry.0).count();
        let index = self.0.len() - later;
        match index.checked_sub(1).map(|before| &mut self.0[before]) {
            Some(before) if joins(before, at, reach) => before.1 = before.1.saturating_add(units),
            _ => self.0.insert(index, (at, units)),
        }
    }

    /// Takes the first entry if its instant has come.
    #[inline]
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, u32)> {
        let &first = self.0.front()?;
        if first.0 > now {
            return None;
        }
        self.0.pop_front();
        Some(first)
    }

    /// Takes `units` out that wait for exactly `at`. Returns whether there were as many.
    ///
    /// # Complexity
    /// Logarithmic in the entries, and linear in them when none is left for that instant.
    pub(super) fn take(&mut self, at: Instant, units: u32) -> bool {
        let Ok(index) = self.0.binary_search_by_key(&at, |entry| entry.0) else { return false };
        let Some(left) = self.0[index].1.checked_sub(units) else { return false };
        self.0[index].1 = left;
        if left == 0 {
            self.0.remove(index);
        }
        true
    }

    /// The entries in their order.
    #[inline]
    pub(super) fn iter(&self) -> Iter<'_, (Instant, u32)> {
        self.0.iter()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
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
        assert!(schedule.iter().copied().eq(ordered.map(|(nanos, units)| (at(nanos), units))));
        schedule.add(at(38), 1, Span::from_nanos(4));
        schedule.add(at(43), 1, Span::from_nanos(4));
        assert_eq!(schedule.iter().nth(3), Some(&(at(30), 3)));
        assert_eq!(schedule.iter().nth(4), Some(&(at(43), 1)));
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
