//! The state of one limit, whatever its kind.

use std::ops::{Deref, DerefMut};
use std::slice;

use super::{AckGcra, AckWindow, Eligible, Jitter, Kind, Limit, Margin, Paced, PhaseWindow, Policy, Unknown};
use crate::time::{Instant, Span};

/// How long messages are taken to be in flight where a policy must know in advance: a round trip across an ocean.
const REACH: Span = Span::from_millis(100);

/// An enum and not a trait object: the hot path asks every limit of a quota.
#[derive(Clone, Debug)]
pub(super) enum State {
    Window(AckWindow),
    Bucket(AckGcra),
    Aligned(PhaseWindow),
    Paced(Paced),
    /// Boxed, so that the others stay small.
    Unknown(Box<Unknown>),
}

/// The states of the limits of a quota. One needs no memory of its own: each value of a scope has some.
#[derive(Clone, Debug)]
pub(super) enum States {
    One(State),
    Several(Box<[State]>),
}

impl FromIterator<State> for States {
    fn from_iter<I: IntoIterator<Item = State>>(states: I) -> States {
        let mut states: Vec<State> = states.into_iter().collect();
        if states.len() == 1
            && let Some(only) = states.pop()
        {
            return States::One(only);
        }
        States::Several(states.into())
    }
}

impl Deref for States {
    type Target = [State];

    #[inline]
    fn deref(&self) -> &[State] {
        match self {
            States::One(only) => slice::from_ref(only),
            States::Several(states) => states,
        }
    }
}

impl DerefMut for States {
    #[inline]
    fn deref_mut(&mut self) -> &mut [State] {
        match self {
            States::One(only) => slice::from_mut(only),
            States::Several(states) => states,
        }
    }
}

impl State {
    pub(super) fn new(limit: &Limit, margin: Margin) -> State {
        let (amount, period) = (limit.amount(), limit.period());
        let state = match limit.kind() {
            Kind::Window => State::Window(AckWindow::new(amount, period, margin)),
            Kind::Bucket | Kind::Leaky => State::Bucket(AckGcra::new(amount, period, limit.burst(), margin)),
            Kind::Aligned => {
                let (boundary, tolerance) = limit.boundary();
                State::Aligned(PhaseWindow::new(amount, period, boundary, tolerance.max(margin.hold(period) - period)))
            }
            Kind::Counter => State::Paced(Paced::new(amount, period, reach(period), margin)),
            Kind::Unknown => State::Unknown(Box::new(Unknown::new(amount, period, amount, margin))),
        };
        state.exact_for(limit)
    }

    /// What is acknowledged by jitter credit may be so again, earlier.
    fn exact_for(self, limit: &Limit) -> State {
        match self {
            _ if limit.jitter() == Jitter::None => self,
            State::Bucket(bucket) => State::Bucket(bucket.exact()),
            State::Paced(paced) => State::Paced(paced.exact()),
            State::Unknown(unknown) => State::Unknown(Box::new(unknown.exact())),
            State::Window(_) | State::Aligned(_) => self,
        }
    }

    /// Units that were acknowledged for `due`, when that had not come, were so at `at` already.
    pub(super) fn hasten(&mut self, due: Instant, at: Instant, cost: u32) {
        if let State::Unknown(unknown) = self {
            unknown.hasten(due, at, cost);
        } else if self.take_back(due, cost) {
            self.ack(at, cost);
        }
    }

    /// Units that were acknowledged for `due`, when that had not come, never left this machine. They stay charged for a while where it has
    /// been forgotten when they came.
    pub(super) fn retract(&mut self, due: Instant, cost: u32) {
        if let State::Unknown(unknown) = self {
            unknown.retract(due, cost);
        } else if self.take_back(due, cost) {
            self.refund(cost);
        }
    }

    fn take_back(&mut self, due: Instant, cost: u32) -> bool {
        match self {
            State::Window(window) => window.take_back(due, cost),
            State::Bucket(bucket) => bucket.take_back(due, cost),
            State::Paced(paced) => paced.take_back(due, cost),
            State::Aligned(_) | State::Unknown(_) => false,
        }
    }

    /// How many thousandths of the rate round trips cost.
    pub(super) fn lost_milli(&self, round_trip: Span) -> u64 {
        match self {
            State::Window(window) => window.lost_milli(round_trip),
            State::Bucket(bucket) => bucket.lost_milli(round_trip),
            State::Paced(paced) => paced.lost_milli(round_trip),
            State::Unknown(unknown) => unknown.lost_milli(round_trip),
            State::Aligned(_) => 0,
        }
    }

    /// As it stands, for a limit of the same kind and period but another amount or burst; nothing when that cannot be told.
    pub(super) fn refitted(&self, now: Instant, limit: &Limit, margin: Margin) -> Option<State> {
        let (amount, period) = (limit.amount(), limit.period());
        match self {
            State::Window(window) => Some(State::Window(window.refitted(amount, period))),
            State::Bucket(bucket) => Some(State::Bucket(bucket.refitted(now, margin.interval(amount, period), limit.burst()))),
            State::Aligned(_) | State::Paced(_) | State::Unknown(_) => None,
        }
    }

    /// A limit of which `arrived` units came to the server just now, and `in_flight` more are on their way.
    pub(super) fn carried(limit: &Limit, margin: Margin, now: Instant, arrived: u32, in_flight: u32) -> State {
        let mut state = State::new(limit, margin);
        state.send(now, arrived.saturating_add(in_flight));
        state.ack(now, arrived);
        state
    }

    /// Takes the place of another state of the same limit at `now`, with nothing left and `in_flight` units on their way.
    pub(super) fn on_rung(rung: Kind, limit: &Limit, margin: Margin, now: Instant, in_flight: u32) -> State {
        let (amount, period, capacity) = (limit.amount(), limit.period(), limit.capacity());
        let state = match rung {
            Kind::Counter => State::Paced(Paced::new(amount, period, reach(period), margin).emptied(now, in_flight, capacity)),
            Kind::Leaky => State::Paced(Paced::single(amount, period, margin).emptied(now, in_flight, capacity)),
            _ => State::Unknown(Box::new(Unknown::new(amount, period, capacity, margin).emptied(now, in_flight))),
        };
        state.exact_for(limit)
    }

    /// A rung of the ladder goes on from its slowest: one unit is left at `at`, and no more.
    pub(super) fn drain_to_one(&mut self, at: Instant) {
        match self {
            State::Paced(paced) => paced.drain_to_one(at),
            State::Unknown(unknown) => unknown.drain_to_one(at),
            State::Window(_) | State::Bucket(_) | State::Aligned(_) => {}
        }
    }
}

/// Of a short period, a round trip would take all; of those a quarter is spared at most.
pub(super) fn reach(period: Span) -> Span {
    REACH.min(Span::from_nanos(period.as_nanos() / 4))
}

macro_rules! each {
    ($state:expr, $policy:ident => $body:expr) => {
        match $state {
            State::Window($policy) => $body,
            State::Bucket($policy) => $body,
            State::Aligned($policy) => $body,
            State::Paced($policy) => $body,
            State::Unknown($policy) => $body,
        }
    };
}

impl Policy for State {
    #[inline]
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible {
        each!(self, policy => policy.next_eligible(now, cost))
    }

    #[inline]
    fn send(&mut self, now: Instant, cost: u32) {
        each!(self, policy => policy.send(now, cost));
    }

    #[inline]
    fn ack(&mut self, at: Instant, cost: u32) {
        each!(self, policy => policy.ack(at, cost));
    }

    #[inline]
    fn refund(&mut self, cost: u32) {
        each!(self, policy => policy.refund(cost));
    }

    fn used(&self, now: Instant) -> u32 {
        each!(self, policy => policy.used(now))
    }

    fn available(&self, now: Instant) -> u32 {
        each!(self, policy => policy.available(now))
    }

    fn capacity(&self) -> u32 {
        each!(self, policy => policy.capacity())
    }

    fn in_flight(&self) -> u32 {
        each!(self, policy => policy.in_flight())
    }
}
