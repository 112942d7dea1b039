//! Units that are occupied from their send until an instant that is known at their acknowledgement.

use super::Eligible;
use super::schedule::Schedule;
use crate::time::{Instant, Span};

/// At most `amount` units occupied at once. Two policies differ only in when an acknowledged unit is free again.
///
/// Time does not run backwards here: nothing happens before the latest send.
#[derive(Clone, Debug)]
pub(super) struct Occupancy {
    amount: u32,
    /// Units sent and not acknowledged.
    in_flight: u32,
    /// Sum of `releases`.
    held: u32,
    /// When acknowledged units become free, all after `latest`: those that have are dropped by the next send.
    releases: Schedule,
    /// The latest instant given to `send`.
    latest: Instant,
}

impl Occupancy {
    pub(super) fn new(amount: u32) -> Occupancy {
        Occupancy { amount, in_flight: 0, held: 0, releases: Schedule::default(), latest: Instant::ORIGIN }
    }

    /// The same units occupied, of another amount.
    pub(super) fn refitted(&self, amount: u32) -> Occupancy {
        Occupancy { amount, ..self.clone() }
    }

    pub(super) fn amount(&self) -> u32 {
        self.amount
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// `at`, or the latest send if that was later.
    #[inline]
    pub(super) fn not_before_latest(&self, at: Instant) -> Instant {
        at.max(self.latest)
    }

    /// The release that makes the first `units` of those held free.
    #[cold]
    fn freed(&self, units: u32) -> Option<Instant> {
        let mut freed = 0;
        let reached = |entry: &(Instant, u32)| {
            freed += entry.1;
            freed >= units
        };
        self.releases.iter().find(reached).map(|entry| entry.0)
    }

    /// # Complexity
    /// Constant while there is room or `cost` is 1; else linear in the releases that make up `cost`.
    #[inline]
    pub(super) fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        let Some(room) = self.amount.checked_sub(cost) else {
            return Eligible::Never;
        };
        match room.checked_sub(self.in_flight) {
            None => Eligible::OnAck,
            Some(room) if self.held <= room => Eligible::Now,
            Some(room) => match self.freed(self.held - room) {
                Some(at) if at > now => Eligible::At(at),
                _ => Eligible::Now,
            },
        }
    }

    /// # Complexity
    /// Constant, amortised over the releases that have passed.
    #[inline]
    pub(super) fn send(&mut self, now: Instant, cost: u32) {
        self.latest = self.latest.max(now);
        while let Some((_, units)) = self.releases.pop(self.latest) {
            self.held -= units;
        }
        self.in_flight = self.in_flight.saturating_add(cost);
    }

    /// `cost` units were acknowledged, and are free again at `release`.
    ///
    /// # Complexity
    /// Constant when releases come in order; else linear in those after this one.
    #[inline]
    pub(super) fn ack(&mut self, release: Instant, cost: u32) {
        debug_assert!(cost <= self.in_flight, "acknowledged more than was sent");
        self.in_flight = self.in_flight.saturating_sub(cost);
        let cost = cost.min(u32::MAX - self.held);
        if cost > 0 {
            self.held += cost;
            self.releases.add(release, cost, Span::ZERO);
        }
    }

    /// `cost` units that are to be free at `release` are in flight again. Returns whether there were as many; if not nothing changes.
    pub(super) fn take_back(&mut self, release: Instant, cost: u32) -> bool {
        let taken = self.releases.take(release, cost);
        if taken {
            self.held -= cost;
            self.in_flight = self.in_flight.saturating_add(cost);
        }
        taken
    }

    #[inline]
    pub(super) fn refund(&mut self, cost: u32) {
        debug_assert!(cost <= self.in_flight, "refunded more than was sent");
        self.in_flight = self.in_flight.saturating_sub(cost);
    }

    /// # Complexity
    /// Linear in the releases that passed since the last send.
    pub(super) fn used(&self, now: Instant) -> u32 {
        let passed = self.releases.iter().take_while(|(at, _)| *at <= now);
        let freed: u32 = passed.map(|(_, units)| units).sum();
        self.in_flight.saturating_add(self.held - freed)
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.releases.len()
    }
}
