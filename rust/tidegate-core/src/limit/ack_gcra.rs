//! GCRA whose clock starts at the acknowledgement.

use super::{Eligible, Margin, Policy};
use crate::time::{Instant, Span};

/// `amount` units per `period` on average and at most `burst` at once, as the server sees them.
///
/// The virtual-scheduling form of ITU-T I.371, with the unknown arrival of a message replaced by a pessimistic twin: in
/// flight it still occupies the bucket, from its acknowledgement on it has arrived just then. The theoretical arrival
/// time (TAT) is monotone in the arrivals, so what conforms here conforms at the server, whatever the delays.
///
/// The margin stretches the emission interval by its ppm, and reads every acknowledgement its floor later. The latter
/// shifts the whole schedule once, when the bucket leaves idleness, and costs no rate while the acknowledgements come
/// before the TAT: while a round trip and the floor fit in `(burst - 1)` intervals. A burst of 1 has no such slack and
/// pays both on every message.
#[derive(Clone, Debug)]
pub struct AckGcra {
    /// Emission interval of one unit, rounded up; at least 1 ns.
    interval: Span,
    burst: u32,
    /// Read instead of an acknowledgement: this much later.
    floor: Span,
    /// When the acknowledged units are due if spaced evenly. In the past when the bucket is idle.
    tat: Instant,
    /// Units sent and not acknowledged.
    pending: u32,
    /// The latest instant given to `send`.
    latest: Instant,
}

impl AckGcra {
    /// A full bucket. `amount`, `period` and `burst` are those of the server.
    pub fn new(amount: u32, period: Span, burst: u32, margin: Margin) -> AckGcra {
        AckGcra {
            interval: margin.interval(amount, period),
            burst,
            floor: margin.floor(),
            tat: Instant::ORIGIN,
            pending: 0,
            latest: Instant::ORIGIN,
        }
    }
}

impl Policy for AckGcra {
    /// # Complexity
    /// Constant.
    #[inline]
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        if cost > self.burst {
            return Eligible::Never;
        }
        let Some(slack) = (self.burst - cost).checked_sub(self.pending) else {
            return Eligible::OnAck;
        };
        let earliest = self.tat - self.interval.times(u64::from(slack));
        if earliest <= now.max(self.latest) { Eligible::Now } else { Eligible::At(earliest) }
    }

    #[inline]
    fn send(&mut self, now: Instant, cost: u32) {
        self.latest = self.latest.max(now);
        self.pending = self.pending.saturating_add(cost);
    }

    #[inline]
    fn ack(&mut self, at: Instant, cost: u32) {
        debug_assert!(cost <= self.pending, "acknowledged more than was sent");
        self.pending = self.pending.saturating_sub(cost);
        let arrival = at.max(self.latest) + self.floor;
        self.tat = self.tat.max(arrival) + self.interval.times(u64::from(cost));
    }

    #[inline]
    fn refund(&mut self, cost: u32) {
        debug_assert!(cost <= self.pending, "refunded more than was sent");
        self.pending = self.pending.saturating_sub(cost);
    }

    fn used(&self, now: Instant) -> u32 {
        let ahead = self.tat.since(now.max(self.latest));
        let units = ahead.as_nanos().div_ceil(self.interval.as_nanos());
        self.pending.saturating_add(u32::try_from(units).unwrap_or(u32::MAX))
    }

    fn capacity(&self) -> u32 {
        self.burst
    }
}
