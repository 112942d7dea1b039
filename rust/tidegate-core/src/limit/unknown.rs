//! What conforms to windows and to buckets alike, for servers of which neither is known.

use super::{AckGcra, AckWindow, Eligible, Margin, Policy};
use crate::time::Instant;
use crate::time::Span;

/// Most units back to back from idle: what the smallest buckets in use hold.
pub(super) const BURST: u32 = 5;

/// A window of `amount` per `period`, and a bucket of the same rate that holds five.
///
/// What conforms to both is admitted by a sliding log, by fixed windows of any phase, and by any bucket that holds at least as much. Not
/// by a bucket that holds less, nor always by a sliding-window counter; for these there is [`Paced`](super::Paced).
///
/// A cost above the burst goes when the bucket is full, and is paid off afterwards: there is no smaller message to send.
#[derive(Clone, Debug)]
pub struct Unknown {
    window: AckWindow,
    bucket: AckGcra,
    burst: u32,
    capacity: u32,
}

impl Unknown {
    /// Nothing is used yet. `amount` and `period` are those of the server, at least 1; costs up to `capacity` are admitted.
    pub fn new(amount: u32, period: Span, capacity: u32, margin: Margin) -> Unknown {
        let burst = BURST.min(capacity);
        let window = AckWindow::new(amount, period, margin);
        Unknown { window, bucket: AckGcra::new(amount, period, burst, margin), burst, capacity }
    }

    /// The same with an empty bucket at `now`, and `in_flight` units on their way.
    #[must_use]
    pub(super) fn emptied(mut self, now: Instant, in_flight: u32) -> Unknown {
        self.window.send(now, in_flight);
        self.bucket = self.bucket.emptied(now, in_flight);
        self
    }

    /// The same, of a bucket whose acknowledgements may be taken back.
    #[must_use]
    pub(super) fn exact(self) -> Unknown {
        Unknown { bucket: self.bucket.exact(), ..self }
    }

    /// Units that were acknowledged for `due`, when that had not come, were so at `at` already.
    pub(super) fn hasten(&mut self, due: Instant, at: Instant, cost: u32) {
        if self.window.take_back(due, cost) {
            self.window.ack(at, cost);
        }
        if self.bucket.take_back(due, cost) {
            self.bucket.ack(at, cost);
        }
    }

    /// Units that were acknowledged for `due`, when that had not come, never left this machine.
    pub(super) fn retract(&mut self, due: Instant, cost: u32) {
        if self.window.take_back(due, cost) {
            self.window.refund(cost);
        }
        if self.bucket.take_back(due, cost) {
            self.bucket.refund(cost);
        }
    }

    /// As for the one of both that loses more.
    pub(super) fn lost_milli(&self, round_trip: Span) -> u64 {
        self.window.lost_milli(round_trip).max(self.bucket.lost_milli(round_trip))
    }

    /// One unit is left in the bucket at `at`, and no more.
    pub(super) fn drain_to_one(&mut self, at: Instant) {
        self.bucket.drain_to_one(at);
    }
}

impl Policy for Unknown {
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        if cost > self.capacity {
            return Eligible::Never;
        }
        let window = self.window.next_eligible(now, cost.min(self.window.capacity()));
        window.later(self.bucket.next_eligible(now, cost.min(self.burst)))
    }

    fn send(&mut self, now: Instant, cost: u32) {
        self.window.send(now, cost);
        self.bucket.send(now, cost);
    }

    fn ack(&mut self, at: Instant, cost: u32) {
        self.window.ack(at, cost);
        self.bucket.ack(at, cost);
    }

    fn refund(&mut self, cost: u32) {
        self.window.refund(cost);
        self.bucket.refund(cost);
    }

    fn used(&self, now: Instant) -> u32 {
        self.window.used(now)
    }

    fn available(&self, now: Instant) -> u32 {
        self.window.available(now).min(self.bucket.available(now))
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn in_flight(&self) -> u32 {
        self.window.in_flight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn five_go_at_once_and_the_rest_evenly_within_the_window() {
        let mut unknown = Unknown::new(7, Span::from_nanos(700), 7, Margin::NONE);
        for _ in 0..5 {
            assert_eq!(unknown.next_eligible(at(0), 1), Eligible::Now);
            unknown.send(at(0), 1);
            unknown.ack(at(0), 1);
        }
        assert_eq!(unknown.next_eligible(at(0), 1), Eligible::At(at(100)));
        assert_eq!((unknown.used(at(0)), unknown.available(at(0)), unknown.available(at(200))), (5, 0, 2));
        unknown.send(at(200), 2);
        unknown.ack(at(250), 2);
        assert_eq!(unknown.next_eligible(at(250), 1), Eligible::At(at(700)), "the window is full until then");
    }

    #[test]
    fn an_amount_below_five_is_the_burst() {
        let mut unknown = Unknown::new(2, Span::from_nanos(1000), 2, Margin::NONE);
        unknown.send(at(0), 2);
        unknown.ack(at(0), 2);
        assert_eq!(unknown.next_eligible(at(0), 1), Eligible::At(at(1000)));
    }

    #[test]
    fn a_cost_above_the_burst_is_paid_off_afterwards() {
        let mut unknown = Unknown::new(100, Span::from_nanos(10_000), 100, Margin::NONE);
        assert_eq!(unknown.next_eligible(at(0), 101), Eligible::Never);
        assert_eq!(unknown.next_eligible(at(0), 20), Eligible::Now);
        unknown.send(at(0), 20);
        unknown.ack(at(0), 20);
        assert_eq!(unknown.next_eligible(at(0), 1), Eligible::At(at(1600)));
    }
}
