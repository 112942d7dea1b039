//! Windows whose boundaries are known.

use super::occupancy::Occupancy;
use super::{Eligible, Policy};
use crate::time::{Instant, Span};

/// At most `amount` units in each window of `period`, whose boundaries are those instants that lie a multiple of `period`
/// from one that is known to `tolerance`.
///
/// A unit is occupied from its send. It may have been counted in any window that was open between its send and its
/// acknowledgement, so it is free at the end of the last of them: a whole window's worth goes at once behind each boundary,
/// whatever the delays, and round trips cost nothing while they are shorter than the rest of the window.
///
/// Such servers: Envoy's rate limit service, whose windows begin at multiples of their unit in Unix time; bucket4j's *intervally aligned*
/// refill.
#[derive(Clone, Debug)]
pub struct PhaseWindow {
    units: Occupancy,
    period: Span,
    /// From the origin of the clock to the first boundary; shorter than the period.
    phase: Span,
    /// By how much a boundary of the server's may come earlier or later than ours; at most an eighth of the period.
    tolerance: Span,
}

impl PhaseWindow {
    /// Windows in which nothing is used yet. `amount` and `period` are those of the server, `boundary` any instant at which one of its
    /// windows begins; a `tolerance` above an eighth of the period is cut to that.
    ///
    /// # Panics
    /// When `period` is zero.
    pub fn new(amount: u32, period: Span, boundary: Instant, tolerance: Span) -> PhaseWindow {
        let phase = Span::from_nanos(boundary.as_nanos() % period.as_nanos());
        let tolerance = tolerance.min(Span::from_nanos(period.as_nanos() / 8));
        PhaseWindow { units: Occupancy::new(amount), period, phase, tolerance }
    }

    /// The first boundary after `at`.
    fn boundary_after(&self, at: Instant) -> Instant {
        let (period, phase) = (self.period.as_nanos(), self.phase.as_nanos());
        match at.as_nanos().checked_sub(phase) {
            None => Instant::from_nanos(phase),
            Some(since) => at + Span::from_nanos(period - since % period),
        }
    }
}

impl Policy for PhaseWindow {
    /// # Complexity
    /// Constant while there is room; else linear in the windows in which units are held, of which there are two unless
    /// acknowledgements lie ahead.
    #[inline]
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        self.units.next_eligible(now, cost)
    }

    #[inline]
    fn send(&mut self, now: Instant, cost: u32) {
        self.units.send(now, cost);
    }

    #[inline]
    fn ack(&mut self, at: Instant, cost: u32) {
        let counted_by = self.units.not_before_latest(at) + self.tolerance;
        self.units.ack(self.boundary_after(counted_by) + self.tolerance, cost);
    }

    #[inline]
    fn refund(&mut self, cost: u32) {
        self.units.refund(cost);
    }

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

    /// Windows of 1000 ns that begin at 300, 1300, ...
    fn window(amount: u32, tolerance: u64) -> PhaseWindow {
        PhaseWindow::new(amount, Span::from_nanos(1000), at(7300), Span::from_nanos(tolerance))
    }

    #[test]
    fn a_unit_is_free_at_the_boundary_after_its_acknowledgement() {
        let mut window = window(2, 0);
        window.send(at(100), 1);
        assert_eq!(window.next_eligible(at(100), 2), Eligible::OnAck);
        window.ack(at(299), 1);
        assert_eq!(window.next_eligible(at(299), 2), Eligible::At(at(300)));
        window.send(at(300), 2);
        window.ack(at(300), 1);
        window.ack(at(1299), 1);
        assert_eq!(window.next_eligible(at(1299), 2), Eligible::At(at(1300)));
        assert_eq!(window.next_eligible(at(1300), 2), Eligible::Now);
    }

    #[test]
    fn a_reply_behind_the_boundary_occupies_both_windows() {
        let mut window = window(1, 0);
        window.send(at(1200), 1);
        window.ack(at(1301), 1);
        assert_eq!(window.next_eligible(at(1301), 1), Eligible::At(at(2300)));
    }

    #[test]
    fn the_tolerance_holds_on_both_sides_of_a_boundary() {
        let mut window = window(1, 50);
        window.send(at(400), 1);
        window.ack(at(1249), 1);
        assert_eq!(window.next_eligible(at(1249), 1), Eligible::At(at(1350)));
        window.send(at(1350), 1);
        window.ack(at(2250), 1);
        assert_eq!(window.next_eligible(at(2250), 1), Eligible::At(at(3350)));
    }
}
