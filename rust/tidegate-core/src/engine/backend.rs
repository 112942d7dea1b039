//! One upstream as the engine sees it, and the sets of backends that a request may go to.

use std::collections::VecDeque;

use super::lease::LeaseId;
use super::request::Mark;
use crate::limit::{Limit, Margin, Quota};
use crate::queue::{Key, ReadyHeap};
use crate::time::{Instant, Span};
use crate::wheel::TimerId;

/// What the engine needs to know of a backend.
#[derive(Clone, Debug)]
pub struct BackendSpec {
    /// What its server allows.
    pub limits: Vec<Limit>,
    /// Attempts at once; `None` for no cap.
    pub concurrency: Option<u32>,
    /// Longest attempt; `None` for no end.
    pub timeout: Option<Span>,
    /// Its share among ready backends; > 0.
    pub weight: f64,
}

/// Why a backend takes nothing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A limit has no room, or its gate is closed.
    Limit,
    /// All its concurrency is in use.
    Concurrency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    pub(super) cause: Cause,
    /// When its timer reopens it; `None` when only an event can.
    pub(super) until: Option<Instant>,
    /// The head for whose cost it is kept. Another head lifts the block.
    pub(super) reserved_for: Option<Key>,
}

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) quota: Quota,
    pub(super) concurrency: u32,
    pub(super) timeout: Option<Span>,
    pub(super) weight: f64,
    /// Leases that run, strays included.
    pub(super) in_flight: u32,
    /// Of those, leases whose request has moved on.
    pub(super) strays: u32,
    pub(super) waiting: ReadyHeap,
    /// `None`: open. Invariant: a backend whose `in_flight` has reached its `concurrency` is blocked.
    pub(super) blocked: Option<Blocked>,
    pub(super) timer: Option<TimerId>,
    /// Running attempts that wait to send one more message, ahead of the queue.
    pub(super) recharges: VecDeque<(LeaseId, u32)>,
    /// Longest time seen between a send and its headers.
    pub(super) longest_latency: Span,
    /// The sets that contain it.
    pub(super) sets: Vec<u32>,
}

impl Backend {
    pub(super) fn new(spec: &BackendSpec) -> Backend {
        Backend {
            quota: Quota::new(&spec.limits, Margin::default()),
            concurrency: spec.concurrency.unwrap_or(u32::MAX),
            timeout: spec.timeout,
            weight: spec.weight,
            in_flight: 0,
            strays: 0,
            waiting: ReadyHeap::default(),
            blocked: None,
            timer: None,
            recharges: VecDeque::new(),
            longest_latency: Span::ZERO,
            sets: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.in_flight >= self.concurrency
    }
}

/// An interned set of backends, with clocks of the time during which none of them was open.
#[derive(Debug)]
pub(super) struct BackendSet {
    pub(super) backends: Box<[u16]>,
    open: u32,
    /// Since when, and why, none is open.
    blocked: Option<(Instant, Cause)>,
    limit: Span,
    concurrency: Span,
}

impl BackendSet {
    pub(super) fn new(backends: Box<[u16]>, open: u32, now: Instant) -> BackendSet {
        let blocked = (open == 0).then_some((now, Cause::Limit));
        BackendSet { backends, open, blocked, limit: Span::ZERO, concurrency: Span::ZERO }
    }

    #[inline]
    pub(super) fn one_opened(&mut self, now: Instant) {
        self.open += 1;
        if let Some((since, cause)) = self.blocked.take() {
            *self.clock(cause) = *self.clock(cause) + now.since(since);
        }
    }

    /// `cause`: why the last one closed, should none be left.
    #[inline]
    pub(super) fn one_blocked(&mut self, now: Instant, cause: Cause) {
        self.open -= 1;
        if self.open == 0 {
            self.blocked = Some((now, cause));
        }
    }

    /// A backend that stays blocked is blocked by something else from now on.
    pub(super) fn cause_changed(&mut self, now: Instant, cause: Cause) {
        if let Some((since, old)) = self.blocked {
            self.blocked = Some((now, cause));
            *self.clock(old) = *self.clock(old) + now.since(since);
        }
    }

    #[inline]
    pub(super) fn mark(&self, now: Instant) -> Mark {
        let running = |cause| match self.blocked {
            Some((since, current)) if current == cause => now.since(since),
            _ => Span::ZERO,
        };
        Mark::new(self.limit + running(Cause::Limit), self.concurrency + running(Cause::Concurrency))
    }

    #[inline]
    fn clock(&mut self, cause: Cause) -> &mut Span {
        match cause {
            Cause::Limit => &mut self.limit,
            Cause::Concurrency => &mut self.concurrency,
        }
    }
}
