//! Evenly paced messages, for servers that count approximately.

use super::{AckGcra, Eligible, Margin, Policy};
use crate::time::{Instant, Span};

/// `amount` units per `period`, paced so evenly that a sliding-window counter admits them.
///
/// Such a counter estimates the last `period` as its previous window, weighed by how much of it is still within reach, plus its
/// current one, and rejects at an estimate of `amount`. Arrivals of which any span `l` has at most `burst + l / T` never get there if
/// `T >= period / (amount - burst + 1)`: with the fraction `f` of the current window gone, it holds at most `burst + f period / T`,
/// both together at most `burst + (1 + f) period / T`, so the estimate before one more is at most `burst + period / T - 1`. An
/// [`AckGcra`] makes sure of such arrivals, whatever the delays.
///
/// Of the bursts, the one is taken that loses least for messages in flight for `reach`: then
/// `T = (period + reach) / amount`, and `burst - 1` intervals are as long as `reach`. Longer ones cost rate, never a rejection.
///
/// A cost above the burst goes when nothing else counts, and is paid off afterwards: there is no smaller message to send.
#[derive(Clone, Debug)]
pub struct Paced {
    bucket: AckGcra,
    burst: u32,
    capacity: u32,
}

impl Paced {
    /// By how many millionths the period is stretched on top of the margin, for servers that weigh in whole numbers.
    pub(super) const SLOWER_PPM: u32 = 2_000;

    /// Nothing is due yet. `amount` and `period` are those of the server, at least 1; `reach` is how long messages usually are in
    /// flight.
    pub fn new(amount: u32, period: Span, reach: Span, margin: Margin) -> Paced {
        let extra = Paced::extra(amount, period, reach);
        let margin = margin.slower(Paced::SLOWER_PPM);
        let bucket = AckGcra::new(amount - extra, period, 1 + extra, margin);
        Paced { bucket, burst: 1 + extra, capacity: amount }
    }

    /// One message at a time, each an emission interval after the headers of the last: what every server that lets `amount` through in
    /// `period` admits, at the price of a round trip a message.
    pub fn single(amount: u32, period: Span, margin: Margin) -> Paced {
        let margin = margin.slower(Paced::SLOWER_PPM);
        Paced { bucket: AckGcra::new(amount, period, 1, margin), burst: 1, capacity: amount }
    }

    /// Units above the first that may be in flight: `reach / T`, rounded up, but less than half of them all.
    fn extra(amount: u32, period: Span, reach: Span) -> u32 {
        let (amount_wide, period, reach) = (u128::from(amount), u128::from(period.as_nanos()), u128::from(reach.as_nanos()));
        let extra = (reach * amount_wide).div_ceil((period + reach).max(1));
        u32::try_from(extra).unwrap_or(u32::MAX).min((amount - 1) / 2)
    }

    /// The emission interval without margins, and the burst, for limits of this size.
    pub fn pace(amount: u32, period: Span, reach: Span) -> (Span, u32) {
        let extra = Paced::extra(amount, period, reach);
        let interval = period.as_nanos().div_ceil(u64::from(amount - extra));
        (Span::from_nanos(interval), 1 + extra)
    }

    /// The same with nothing left at `now` and `in_flight` units on their way, admitting costs up to `capacity`.
    #[must_use]
    pub(super) fn emptied(mut self, now: Instant, in_flight: u32, capacity: u32) -> Paced {
        self.bucket = self.bucket.emptied(now, in_flight);
        self.capacity = capacity;
        self
    }

    /// The same, of a bucket whose acknowledgements may be taken back.
    #[must_use]
    pub(super) fn exact(self) -> Paced {
        Paced { bucket: self.bucket.exact(), ..self }
    }

    /// As for its bucket.
    pub(super) fn take_back(&mut self, due: Instant, cost: u32) -> bool {
        self.bucket.take_back(due, cost)
    }

    /// As for its bucket.
    pub(super) fn lost_milli(&self, round_trip: Span) -> u64 {
        self.bucket.lost_milli(round_trip)
    }

    /// One unit is left at `at`, and no more.
    pub(super) fn drain_to_one(&mut self, at: Instant) {
        self.bucket.drain_to_one(at);
    }
}

impl Policy for Paced {
    #[inline]
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        if cost > self.capacity {
            return Eligible::Never;
        }
        self.bucket.next_eligible(now, cost.min(self.burst))
    }

    #[inline]
    fn send(&mut self, now: Instant, cost: u32) {
        self.bucket.send(now, cost);
    }

    #[inline]
    fn ack(&mut self, at: Instant, cost: u32) {
        self.bucket.ack(at, cost);
    }

    #[inline]
    fn refund(&mut self, cost: u32) {
        self.bucket.refund(cost);
    }

    fn used(&self, now: Instant) -> u32 {
        self.bucket.used(now)
    }

    fn available(&self, now: Instant) -> u32 {
        self.bucket.available(now)
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn in_flight(&self) -> u32 {
        self.bucket.in_flight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn the_pace_leaves_room_for_what_is_in_flight() {
        let ms = Span::from_millis;
        assert_eq!(Paced::pace(100, ms(1000), ms(100)), (Span::from_nanos(11_111_112), 11));
        assert_eq!(Paced::pace(10, ms(1000), ms(100)), (Span::from_nanos(111_111_112), 2));
        assert_eq!(Paced::pace(100, ms(60_000), ms(100)), (Span::from_nanos(606_060_607), 2));
        assert_eq!(Paced::pace(1, ms(1000), ms(100)), (ms(1000), 1));
        assert_eq!(Paced::pace(2, ms(1000), ms(100)), (ms(500), 1));
        assert_eq!(Paced::pace(10, ms(1), ms(100)), (Span::from_nanos(166_667), 5));
    }

    #[test]
    fn a_cost_above_the_burst_is_paid_off_afterwards() {
        let mut paced = Paced::new(10, Span::from_nanos(900), Span::from_nanos(1), Margin::new(Span::ZERO, 0));
        assert_eq!(paced.next_eligible(at(0), 11), Eligible::Never);
        assert_eq!(paced.next_eligible(at(0), 8), Eligible::Now);
        paced.send(at(0), 8);
        paced.ack(at(0), 8);
        // 8 units of 100.2 ns, of which two may go ahead.
        assert_eq!(paced.next_eligible(at(0), 1), Eligible::At(at(8 * 101 - 101)));
        assert_eq!(paced.next_eligible(at(0), 8), Eligible::At(at(8 * 101)));
        assert_eq!((paced.used(at(0)), paced.available(at(0)), paced.available(at(707))), (8, 0, 1));
    }

    #[test]
    fn one_at_a_time_waits_for_headers_and_an_interval() {
        let mut paced = Paced::single(10, Span::from_nanos(1000), Margin::NONE);
        paced.send(at(0), 1);
        assert_eq!(paced.next_eligible(at(400), 1), Eligible::OnAck);
        paced.ack(at(500), 1);
        assert_eq!(paced.next_eligible(at(500), 1), Eligible::At(at(601)));
    }
}
