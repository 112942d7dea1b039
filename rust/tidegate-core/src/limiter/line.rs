//! One state of the limits, and those who wait for it.

use std::collections::BTreeMap;

use super::{LimiterError, Turn};
use crate::limit::{Eligible, Limit, Margin, Quota};
use crate::time::Instant;

/// The limits as they stand, in flight and in line included; first in, first out.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) quota: Quota,
    /// Those who wait, with their costs, in the order of their numbers.
    waiting: BTreeMap<u64, u32>,
    /// Those who were admitted and have not claimed it yet, with their costs; a part of `in_flight`.
    admitted: BTreeMap<u64, u32>,
    /// Units that are charged and whose clocks have not started.
    in_flight: u32,
    /// Which head was told to ask again, and when.
    told: Option<(u64, Instant)>,
}

impl Line {
    pub(super) fn new(limits: &[Limit], margin: Margin) -> Line {
        let (waiting, admitted) = (BTreeMap::new(), BTreeMap::new());
        Line { quota: Quota::new(limits, margin), waiting, admitted, in_flight: 0, told: None }
    }

    /// Whether a cost can be admitted ever.
    pub(super) fn check(&self, cost: u32) -> Result<(), LimiterError> {
        let largest = self.quota.capacity();
        if cost <= largest { Ok(()) } else { Err(LimiterError::CostExceedsBurst { cost, largest }) }
    }

    /// Whether nobody waits and nothing is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0
    }

    /// Whether it cannot be told from a new one.
    pub(super) fn is_as_new(&self, now: Instant) -> bool {
        self.is_quiet() && self.quota.usage(now).all(|usage| usage.used == 0)
    }

    /// Charges a cost if it conforms and nobody waits.
    pub(super) fn enter(&mut self, now: Instant, cost: u32) -> Result<bool, LimiterError> {
        self.check(cost)?;
        Ok(self.waiting.is_empty() && self.admit(now, cost))
    }

    /// Charges a cost if it conforms.
    fn admit(&mut self, now: Instant, cost: u32) -> bool {
        let conforms = self.quota.next_eligible(now, cost).eligible == Eligible::Now;
        if conforms {
            self.quota.send(now, cost);
            self.in_flight = self.in_flight.saturating_add(cost);
        }
        conforms
    }

    /// Starts the clocks of units in flight.
    pub(super) fn anchor(&mut self, now: Instant, cost: u32) {
        let cost = cost.min(self.in_flight);
        self.in_flight -= cost;
        acknowledge(&mut self.quota, now, cost);
    }

    pub(super) fn stand(&mut self, waiter: u64, cost: u32) {
        self.waiting.insert(waiter, cost);
    }

    pub(super) fn claim(&mut self, waiter: u64) -> Option<u32> {
        self.admitted.remove(&waiter)
    }

    pub(super) fn leave(&mut self, now: Instant, waiter: u64) {
        if self.waiting.remove(&waiter).is_none()
            && let Some(cost) = self.admitted.remove(&waiter)
        {
            self.in_flight -= cost;
            self.quota.refund(now, cost);
        }
    }

    /// The head asks, as it was told to.
    pub(super) fn asked(&mut self, now: Instant) -> Turn {
        self.told = None;
        self.turn(now)
    }

    /// Admits from the head as many as conform.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        let mut turn = Turn::default();
        while let Some((&waiter, &cost)) = self.waiting.first_key_value() {
            match self.quota.next_eligible(now, cost).eligible {
                Eligible::Now => {
                    self.waiting.pop_first();
                    self.admit(now, cost);
                    self.admitted.insert(waiter, cost);
                    turn.admitted.push(waiter);
                }
                Eligible::Never => {
                    self.waiting.pop_first();
                    turn.refused.push(waiter);
                }
                Eligible::At(at) | Eligible::Closed(at) => {
                    if self.told.replace((waiter, at)) != Some((waiter, at)) {
                        turn.next = Some((waiter, at.since(now)));
                    }
                    return turn;
                }
                Eligible::OnAck => break,
            }
        }
        self.told = None;
        turn
    }

    /// When a cost would be admitted that came now, if all in flight were anchored now and nobody left.
    pub(super) fn expected(&self, now: Instant, cost: u32) -> Instant {
        let mut quota = self.quota.clone();
        acknowledge(&mut quota, now, self.in_flight);
        let mut at = now;
        for &cost in self.waiting.values().chain([&cost]) {
            while let Eligible::At(later) | Eligible::Closed(later) = quota.next_eligible(at, cost).eligible {
                at = later;
            }
            quota.send(at, cost);
            acknowledge(&mut quota, at, cost);
        }
        at
    }

    pub(super) fn set_limits(&mut self, now: Instant, limits: &[Limit], margin: Margin) {
        self.quota.set_margin(margin);
        self.quota = self.quota.with_limits(now, limits, self.in_flight, self.in_flight);
    }
}

/// The server has counted these units by `now`, however it anchors them.
fn acknowledge(quota: &mut Quota, now: Instant, cost: u32) {
    quota.ack(now, cost);
    if quota.waits_for_finish() {
        quota.finish(now, cost);
    }
}
