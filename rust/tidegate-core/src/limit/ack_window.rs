//! A window whose clock starts at the acknowledgement.

use std::collections::VecDeque;

use super::{Eligible, Margin, Policy};
use crate::time::{Instant, Span};

/// Up to this amount every release is remembered to the nanosecond, 16 bytes each.
const EXACT: u32 = 4096;
/// Above it, releases are rounded up to this many steps a period, at a loss of at most 0.4 % of the rate.
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
    amount: u32,
    /// From an acknowledgement to the release: the period and its margin.
    hold: Span,
    /// Releases are rounded up to multiples of this; 1 ns when they are exact.
    step: u64,
    /// Units sent and not acknowledged.
    in_flight: u32,
    /// Sum of `releases`.
    held: u32,
    /// When acknowledged units become free: strictly ascending instants, costs of at least 1. Those that have passed
    /// are dropped by the next send.
    releases: VecDeque<(Instant, u32)>,
    /// The latest instant given to `send`.
    latest: Instant,
}

impl AckWindow {
    /// A window in which nothing is used yet. `amount` and `period` are those of the server.
    pub fn new(amount: u32, period: Span, margin: Margin) -> AckWindow {
        let step = if amount <= EXACT { 1 } else { period.as_nanos().div_ceil(STEPS).max(1) };
        AckWindow {
            amount,
            hold: margin.hold(period),
            step,
            in_flight: 0,
            held: 0,
            releases: VecDeque::new(),
            latest: Instant::ORIGIN,
        }
    }

    fn release(&self, at: Instant) -> Instant {
        let exact = at.max(self.latest) + self.hold;
        match exact.as_nanos().checked_next_multiple_of(self.step) {
            Some(rounded) => Instant::from_nanos(rounded),
            None => Instant::FAR,
        }
    }
}

impl Policy for AckWindow {
    /// # Complexity
    /// Constant while there is room or `cost` is 1; else linear in the releases that make up `cost`.
    #[inline]
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        if cost > self.amount {
            return Eligible::Never;
        }
        let room = self.amount - cost;
        if self.in_flight > room {
            return Eligible::OnAck;
        }
        let mut held = self.held;
        if held <= room - self.in_flight {
            return Eligible::Now;
        }
        for &(release, units) in &self.releases {
            held -= units;
            if held <= room - self.in_flight {
                return if release <= now.max(self.latest) { Eligible::Now } else { Eligible::At(release) };
            }
        }
        Eligible::OnAck
    }

    /// # Complexity
    /// Constant, amortised over the releases that have passed.
    #[inline]
    fn send(&mut self, now: Instant, cost: u32) {
        self.latest = self.latest.max(now);
        while let Some(&(release, units)) = self.releases.front() {
            if release > self.latest {
                break;
            }
            self.held -= units;
            self.releases.pop_front();
        }
        self.in_flight = self.in_flight.saturating_add(cost);
    }

    /// # Complexity
    /// Constant when acknowledgements come in order; else linear in the releases after this one.
    #[inline]
    fn ack(&mut self, at: Instant, cost: u32) {
        debug_assert!(cost <= self.in_flight, "acknowledged more than was sent");
        self.in_flight = self.in_flight.saturating_sub(cost);
        let cost = cost.min(u32::MAX - self.held);
        if cost == 0 {
            return;
        }
        self.held += cost;
        let release = self.release(at);
        let mut index = self.releases.len();
        while let Some(before) = index.checked_sub(1) {
            let (other, units) = &mut self.releases[before];
            if *other == release {
                *units += cost;
                return;
            }
            if *other < release {
                break;
            }
            index = before;
        }
        self.releases.insert(index, (release, cost));
    }

    #[inline]
    fn refund(&mut self, cost: u32) {
        debug_assert!(cost <= self.in_flight, "refunded more than was sent");
        self.in_flight = self.in_flight.saturating_sub(cost);
    }

    /// # Complexity
    /// Linear in the releases that passed since the last send.
    fn used(&self, now: Instant) -> u32 {
        let now = now.max(self.latest);
        let passed = self.releases.iter().take_while(|(release, _)| *release <= now);
        let freed: u32 = passed.map(|(_, units)| units).sum();
        self.in_flight.saturating_add(self.held - freed)
    }

    fn capacity(&self) -> u32 {
        self.amount
    }
}
