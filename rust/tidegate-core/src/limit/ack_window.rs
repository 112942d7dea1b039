//! A window whose clock starts at the acknowledgement.

use super::occupancy::Occupancy;
use super::{Eligible, Margin, Policy};
use crate::time::{Instant, Span};

/// Up to this amount every release is remembered to the nanosecond, 16 bytes each.
const EXACT: u32 = 4096;
/// Above it, a release is rounded up to one of this many steps a period, which costs at most 0.4 % of the rate.
const STEPS: u64 = 256;

/// At most `amount` units in any window of `period`, as the server sees them.
///
/// A unit is occupied from its send, and free again one period after its acknowledgement. The server has counted it by
/// then, and counts the next one after we send it, so two that share a unit are a whole period apart at the server
/// however long either travelled: no bound on jitter is needed. This covers a sliding log as well as fixed windows of
/// any phase.
///
/// Time does not run backwards here: an acknowledgement from before the latest send counts as that send.
#[derive(Clone, Debug)]
pub struct AckWindow {
    units: Occupancy,
    /// From an acknowledgement to the release: the period and its margin.
    hold: Span,
    /// Releases are rounded up to multiples of this; 1 ns when they are exact.
    step: u64,
}

impl AckWindow {
    /// A window in which nothing is used yet. `amount` and `period` are those of the server.
    pub fn new(amount: u32, period: Span, margin: Margin) -> AckWindow {
        AckWindow { units: Occupancy::new(amount), hold: margin.hold(period), step: step(amount, period) }
    }

    /// With the same units used, of another amount. Releases that are known already stay as they are.
    #[must_use]
    pub(super) fn refitted(&self, amount: u32, period: Span) -> AckWindow {
        AckWindow { units: self.units.refitted(amount), hold: self.hold, step: step(amount, period) }
    }

    /// Units that were acknowledged for `due`, when that had not come, are in flight again. Returns whether there were as many.
    pub(super) fn take_back(&mut self, due: Instant, cost: u32) -> bool {
        let release = self.rounded(due + self.hold);
        self.units.take_back(release, cost)
    }

    /// How many thousandths of the rate round trips cost.
    pub(super) fn lost_milli(&self, round_trip: Span) -> u64 {
        round_trip.times(1000).as_nanos() / (self.hold + round_trip).as_nanos()
    }

    #[inline]
    fn release(&self, at: Instant) -> Instant {
        self.rounded(self.units.not_before_latest(at) + self.hold)
    }

    #[inline]
    fn rounded(&self, exact: Instant) -> Instant {
        if self.step == 1 {
            return exact;
        }
        let rounded = exact.as_nanos().checked_next_multiple_of(self.step);
        rounded.map_or(Instant::FAR, Instant::from_nanos)
    }
}

fn step(amount: u32, period: Span) -> u64 {
    if amount <= EXACT { 1 } else { period.as_nanos().div_ceil(STEPS).max(1) }
}

impl Policy for AckWindow {
    /// # Complexity
    /// Constant while there is room or `cost` is 1; else linear in the releases that make up `cost`.
    #[inline]
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        self.units.next_eligible(now, cost)
    }

    /// # Complexity
    /// Constant, amortised over the releases that have passed.
    #[inline]
    fn send(&mut self, now: Instant, cost: u32) {
        self.units.send(now, cost);
    }

    /// # Complexity
    /// Constant when acknowledgements come in order; else linear in the releases after this one.
    #[inline]
    fn ack(&mut self, at: Instant, cost: u32) {
        self.units.ack(self.release(at), cost);
    }

    #[inline]
    fn refund(&mut self, cost: u32) {
        self.units.refund(cost);
    }

    /// # Complexity
    /// Linear in the releases that passed since the last send.
    fn used(&self, now: Instant) -> u32 {
        self.units.used(now)
    }

    fn capacity(&self) -> u32 {
        self.units.amount()
    }

    fn in_flight(&self) -> u32 {
        self.units.in_flight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn window(amount: u32) -> AckWindow {
        AckWindow::new(amount, Span::from_nanos(1000), Margin::NONE)
    }

    #[test]
    fn a_unit_is_free_one_period_after_its_acknowledgement() {
        let mut window = window(2);
        window.send(at(0), 1);
        window.send(at(10), 1);
        assert_eq!(window.next_eligible(at(20), 1), Eligible::OnAck);
        window.ack(at(40), 1);
        assert_eq!(window.next_eligible(at(50), 2), Eligible::OnAck);
        window.ack(at(90), 1);
        assert_eq!(window.next_eligible(at(100), 1), Eligible::At(at(1040)));
        assert_eq!(window.next_eligible(at(100), 2), Eligible::At(at(1090)));
        assert_eq!(window.next_eligible(at(1039), 1), Eligible::At(at(1040)));
        assert_eq!(window.next_eligible(at(1040), 1), Eligible::Now);
        assert_eq!(window.next_eligible(at(1040), 2), Eligible::At(at(1090)));
        assert_eq!(window.next_eligible(at(1090), 2), Eligible::Now);
        assert_eq!(window.next_eligible(at(1090), 3), Eligible::Never);
        let used = [0, 1039, 1040, 1090].map(|nanos| window.used(at(nanos)));
        assert_eq!(used, [2, 2, 1, 0]);
    }

    #[test]
    fn a_lost_reply_occupies_its_unit_only() {
        let mut window = window(2);
        window.send(at(0), 1);
        window.send(at(10), 1);
        window.ack(at(90), 1);
        assert_eq!(window.next_eligible(at(100), 1), Eligible::At(at(1090)));
        window.ack(at(60_000), 1);
        assert_eq!(window.next_eligible(at(100), 1), Eligible::At(at(1090)));
        window.send(at(1090), 1);
        window.ack(at(1100), 1);
        assert_eq!(window.next_eligible(at(1100), 1), Eligible::At(at(2100)));
    }

    #[test]
    fn a_release_has_the_larger_of_floor_and_drift_as_its_margin() {
        for (floor, ppm, release) in [(7, 0, 1007), (7, 6000, 1007), (7, 9000, 1009), (0, 1, 1001)] {
            let margin = Margin::new(Span::from_nanos(floor), ppm);
            let mut window = AckWindow::new(1, Span::from_nanos(1000), margin);
            window.send(at(0), 1);
            window.ack(at(0), 1);
            assert_eq!(window.next_eligible(at(0), 1), Eligible::At(at(release)));
        }
    }

    #[test]
    fn releases_of_a_large_amount_are_rounded_up_to_steps() {
        let period = Span::from_secs(60);
        let mut window = AckWindow::new(1_000_000, period, Margin::NONE);
        let step = 60_000_000_000_u64.div_ceil(STEPS);
        for unit in 0..100_000 {
            let now = at(unit * 600_000);
            window.send(now, 10);
            window.ack(now, 10);
        }
        assert!(window.units.entries() <= STEPS as usize + 1);
        let Eligible::At(free) = window.next_eligible(at(0), 1) else {
            panic!("the window is full");
        };
        assert_eq!(free.as_nanos() % step, 0);
        assert!(free >= at(0) + period && free < at(0) + period + Span::from_nanos(step));
    }

    #[test]
    fn a_clock_that_steps_back_admits_nothing_more() {
        let mut window = window(1);
        window.send(at(5000), 1);
        window.ack(at(0), 1);
        assert_eq!(window.next_eligible(at(0), 1), Eligible::At(at(6000)));
        window.send(at(6000), 1);
        assert_eq!(window.next_eligible(at(0), 1), Eligible::OnAck);
    }

    #[test]
    fn a_refund_leaves_no_trace() {
        let mut window = window(2);
        window.send(at(0), 2);
        window.refund(2);
        assert_eq!(window.used(at(0)), 0);
        assert_eq!(window.next_eligible(at(0), 2), Eligible::Now);
    }
}
