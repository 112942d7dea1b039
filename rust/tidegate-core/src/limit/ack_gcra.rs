//! GCRA whose clock starts at the acknowledgement.

use super::schedule::Schedule;
use super::{Eligible, Margin, Policy};
use crate::time::{Instant, Span};

/// `amount` units per `period` on average and at most `burst` at once, as the server sees them.
///
/// The virtual-scheduling form of ITU-T I.371, with the unknown arrival of a message replaced by a pessimistic twin: it
/// occupies the bucket until its acknowledgement, and has arrived just then. The theoretical arrival time (TAT) is
/// monotone in the arrivals, so what conforms here conforms at the server, whatever the delays. An acknowledgement that
/// lies in the future leaves its units occupied until then; it does not hold back the rest of the bucket.
///
/// The margin stretches the emission interval by its ppm, and reads every acknowledgement its floor later. The latter
/// costs no rate while a round trip and the floor fit in `burst - 1` intervals, for then the bucket is busy when the
/// acknowledgement is read and the TAT moves on from itself: the schedule is shifted once, not stretched. A burst of 1
/// has no such slack, and pays the round trip and the floor on every message.
///
/// Time does not run backwards here: an acknowledgement from before the latest send counts as that send.
#[derive(Clone, Debug)]
pub struct AckGcra {
    /// Emission interval of one unit, rounded up; at least 1 ns.
    interval: Span,
    burst: u32,
    /// By how much later an acknowledgement is read.
    floor: Span,
    /// When the units that have arrived are due if spaced evenly. In the past when the bucket is idle.
    tat: Instant,
    /// Up to how far behind an entry of `arrivals` a unit joins it: as long as the units before it take, or not at all.
    reach: Span,
    /// Units sent that have not arrived, those of `arrivals` included.
    pending: u32,
    /// Acknowledged units by the instant of their arrival, all after `tat` when they were added. Those that have come
    /// are applied by the next send. At most one entry a busy period of the bucket, unless they came out of order.
    arrivals: Schedule,
    /// The latest instant given to `send`.
    latest: Instant,
}

impl AckGcra {
    /// A full bucket. `amount`, `period` and `burst` are those of the server; at least 1.
    pub fn new(amount: u32, period: Span, burst: u32, margin: Margin) -> AckGcra {
        let interval = margin.interval(amount, period);
        AckGcra {
            interval,
            reach: interval,
            burst,
            floor: margin.floor(),
            tat: Instant::ORIGIN,
            pending: 0,
            arrivals: Schedule::default(),
            latest: Instant::ORIGIN,
        }
    }

    /// The same with nothing left at `now` and `in_flight` units on their way.
    #[must_use]
    pub(super) fn emptied(mut self, now: Instant, in_flight: u32) -> AckGcra {
        self.tat = now + self.interval.times(u64::from(self.burst));
        self.send(now, in_flight);
        self
    }

    /// One unit is left at `at`, and no more, whatever has arrived by then.
    pub(super) fn drain_to_one(&mut self, at: Instant) {
        while let Some((_, units)) = self.arrivals.pop(at) {
            self.pending = self.pending.saturating_sub(units);
        }
        self.tat = at + self.interval.times(u64::from(self.burst - 1));
    }

    /// With the same units used at `now`, of another rate and burst.
    #[must_use]
    pub(super) fn refitted(&self, now: Instant, interval: Span, burst: u32) -> AckGcra {
        let due = u128::from(self.tat.since(now).as_nanos());
        let due = (due * u128::from(interval.as_nanos())).div_ceil(u128::from(self.interval.as_nanos()));
        let tat = now + Span::from_nanos(u64::try_from(due).unwrap_or(u64::MAX));
        let reach = if self.reach == Span::ZERO { Span::ZERO } else { interval };
        AckGcra { interval, reach, burst, tat, ..self.clone() }
    }

    /// The same, with every arrival remembered to the nanosecond: it may be taken back.
    #[must_use]
    pub(super) fn exact(self) -> AckGcra {
        AckGcra { reach: Span::ZERO, ..self }
    }

    /// Units that were acknowledged for `due`, when that had not come, are in flight again. Returns whether there were as many. There are
    /// none when that was too soon to matter.
    pub(super) fn take_back(&mut self, due: Instant, cost: u32) -> bool {
        self.arrivals.take(due + self.floor, cost)
    }

    /// How many thousandths of the rate round trips cost.
    pub(super) fn lost_milli(&self, round_trip: Span) -> u64 {
        let (burst, once) = (self.interval.times(u64::from(self.burst)), round_trip + self.floor + self.interval);
        1000 - (burst.times(1000).as_nanos() / once.as_nanos()).min(1000)
    }

    /// Emission interval of one unit; at least 1 ns.
    pub(crate) fn interval(&self) -> Span {
        self.interval
    }

    /// The TAT, if at `now` nothing is in flight or has yet to arrive: it is then all that the bucket remembers.
    pub(crate) fn settled(&mut self, now: Instant) -> Option<Instant> {
        self.send(now, 0);
        (self.pending == 0).then_some(self.tat)
    }

    /// Goes on from this TAT, which was kept elsewhere since the bucket was [`settled`](AckGcra::settled).
    pub(crate) fn resume(&mut self, tat: Instant) {
        self.tat = tat;
    }

    /// The TAT after units that were due at `tat` are joined by `units` that arrive at `arrival`.
    #[inline]
    fn advance(&self, tat: Instant, arrival: Instant, units: u32) -> Instant {
        tat.max(arrival) + self.interval.times(u64::from(units))
    }

    /// When a cost that leaves `room` in the bucket conforms after units due at `tat` and `pending` ones, unless these
    /// are too many: when max(tat, t) + (pending + cost) * interval <= t + burst * interval.
    #[inline]
    fn earliest(&self, room: u32, tat: Instant, pending: u32) -> Option<Instant> {
        let slack = room.checked_sub(pending)?;
        Some(tat - self.interval.times(u64::from(slack)))
    }

    /// The same when there are too many pending: after the first arrival that makes room.
    ///
    /// Where there is room already, arrivals change nothing: their units move from the pending ones to the TAT.
    #[cold]
    fn freed(&self, room: u32) -> Option<Instant> {
        let (mut tat, mut pending) = (self.tat, self.pending);
        self.arrivals.iter().find_map(|(arrival, units)| {
            tat = self.advance(tat, arrival, units);
            pending = pending.saturating_sub(units);
            self.earliest(room, tat, pending)
        })
    }
}

impl Policy for AckGcra {
    /// # Complexity
    /// Constant, but linear in the arrivals while the units of their messages fill the bucket.
    #[inline]
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        let Some(room) = self.burst.checked_sub(cost) else {
            return Eligible::Never;
        };
        match self.earliest(room, self.tat, self.pending).or_else(|| self.freed(room)) {
            None => Eligible::OnAck,
            Some(at) if at <= now.max(self.latest) => Eligible::Now,
            Some(at) => Eligible::At(at),
        }
    }

    /// # Complexity
    /// Constant, amortised over the arrivals that have come.
    #[inline]
    fn send(&mut self, now: Instant, cost: u32) {
        self.latest = self.latest.max(now);
        while let Some((arrival, units)) = self.arrivals.pop(self.latest) {
            self.tat = self.advance(self.tat, arrival, units);
            self.pending = self.pending.saturating_sub(units);
        }
        self.pending = self.pending.saturating_add(cost);
    }

    /// # Complexity
    /// Constant when acknowledgements come in order; else linear in the arrivals after this one.
    #[inline]
    fn ack(&mut self, at: Instant, cost: u32) {
        debug_assert!(cost <= self.pending, "acknowledged more than was sent");
        let arrival = at.max(self.latest) + self.floor;
        if arrival <= self.tat {
            // Until then the TAT is what binds, and it is the same whether these units still occupy or are due after it.
            self.tat = self.advance(self.tat, arrival, cost);
            self.pending = self.pending.saturating_sub(cost);
        } else if cost > 0 {
            // Likewise for units that arrive while those of the entry before them are being worked off.
            self.arrivals.add(arrival, cost, self.reach);
        }
    }

    #[inline]
    fn refund(&mut self, cost: u32) {
        debug_assert!(cost <= self.pending, "refunded more than was sent");
        self.pending = self.pending.saturating_sub(cost);
    }

    /// # Complexity
    /// Linear in the arrivals that came since the last send.
    fn used(&self, now: Instant) -> u32 {
        let now = now.max(self.latest);
        let (mut tat, mut pending) = (self.tat, self.pending);
        for (arrival, units) in self.arrivals.iter().take_while(|(at, _)| *at <= now) {
            tat = self.advance(tat, arrival, units);
            pending = pending.saturating_sub(units);
        }
        let due = tat.since(now).as_nanos().div_ceil(self.interval.as_nanos());
        pending.saturating_add(u32::try_from(due).unwrap_or(u32::MAX))
    }

    fn capacity(&self) -> u32 {
        self.burst
    }

    fn in_flight(&self) -> u32 {
        self.pending - self.arrivals.iter().map(|(_, units)| units).sum::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    /// An emission interval of 100 ns and no margin.
    fn bucket(burst: u32) -> AckGcra {
        AckGcra::new(10, Span::from_nanos(1000), burst, Margin::NONE)
    }

    fn pass(bucket: &mut AckGcra, nanos: u64, cost: u32) {
        assert_eq!(bucket.next_eligible(at(nanos), cost), Eligible::Now);
        bucket.send(at(nanos), cost);
        bucket.ack(at(nanos), cost);
    }

    #[test]
    fn is_gcra_when_acknowledgements_are_immediate() {
        let mut bucket = bucket(5);
        for _ in 0..5 {
            pass(&mut bucket, 0, 1);
        }
        assert_eq!(bucket.next_eligible(at(0), 1), Eligible::At(at(100)));
        assert_eq!(bucket.next_eligible(at(99), 1), Eligible::At(at(100)));
        pass(&mut bucket, 100, 1);
        assert_eq!(bucket.next_eligible(at(100), 3), Eligible::At(at(400)));
        assert_eq!(bucket.next_eligible(at(100), 6), Eligible::Never);
        assert_eq!(bucket.capacity() - bucket.used(at(100)), 0);
        assert_eq!(bucket.capacity() - bucket.used(at(199)), 0);
        assert_eq!(bucket.capacity() - bucket.used(at(200)), 1);
        assert_eq!(bucket.capacity() - bucket.used(at(1000)), 5);
    }

    #[test]
    fn the_clock_starts_at_the_acknowledgement() {
        let mut bucket = bucket(2);
        bucket.send(at(0), 1);
        bucket.send(at(0), 1);
        assert_eq!(bucket.next_eligible(at(0), 1), Eligible::OnAck);
        bucket.ack(at(50), 1);
        assert_eq!(bucket.next_eligible(at(50), 1), Eligible::At(at(150)));
        bucket.ack(at(60), 1);
        assert_eq!(bucket.next_eligible(at(60), 1), Eligible::At(at(150)));
        assert_eq!(bucket.next_eligible(at(60), 2), Eligible::At(at(250)));
    }

    #[test]
    fn an_acknowledgement_in_the_future_holds_back_its_own_units_only() {
        let mut bucket = bucket(3);
        bucket.send(at(0), 1);
        bucket.ack(at(10_000), 1);
        pass(&mut bucket, 20, 2);
        assert_eq!(bucket.next_eligible(at(20), 1), Eligible::At(at(120)));
        assert_eq!(bucket.next_eligible(at(20), 2), Eligible::At(at(220)));
        assert_eq!(bucket.next_eligible(at(20), 3), Eligible::At(at(10_100)));
        assert_eq!(bucket.used(at(9_999)), 1);
        assert_eq!(bucket.used(at(10_000)), 1);
        assert_eq!(bucket.used(at(10_100)), 0);
    }

    #[test]
    fn the_floor_shifts_a_busy_bucket_once() {
        let margin = Margin::new(Span::from_nanos(30), 0);
        let mut bucket = AckGcra::new(10, Span::from_nanos(1000), 2, margin);
        pass(&mut bucket, 0, 2);
        let mut now = 0;
        for round in 1..50 {
            let Eligible::At(next) = bucket.next_eligible(at(now), 1) else {
                panic!("the bucket is empty");
            };
            now = next.as_nanos();
            assert_eq!(now, 30 + 100 * round);
            pass(&mut bucket, now, 1);
        }
    }

    #[test]
    fn drift_stretches_the_interval() {
        let margin = Margin::new(Span::ZERO, 200);
        let mut bucket = AckGcra::new(10, Span::from_secs(1), 1, margin);
        pass(&mut bucket, 0, 1);
        assert_eq!(bucket.next_eligible(at(0), 1), Eligible::At(at(100_020_000)));
    }

    #[test]
    fn a_refund_leaves_no_trace() {
        let mut bucket = bucket(2);
        bucket.send(at(0), 2);
        bucket.refund(2);
        assert_eq!(bucket.used(at(0)), 0);
        assert_eq!(bucket.next_eligible(at(0), 2), Eligible::Now);
    }

    #[test]
    fn entries_are_one_a_busy_period() {
        let mut bucket = bucket(1000);
        bucket.send(at(0), 1000);
        for nanos in 1..=1000 {
            bucket.ack(at(nanos), 1);
        }
        assert_eq!(bucket.arrivals.len(), 1);
    }

    #[test]
    fn a_clock_that_steps_back_admits_nothing_more() {
        let mut bucket = bucket(1);
        bucket.send(at(1000), 1);
        bucket.ack(at(0), 1);
        assert_eq!(bucket.next_eligible(at(0), 1), Eligible::At(at(1100)));
    }
}
