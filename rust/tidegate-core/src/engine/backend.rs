//! One upstream as the engine sees it, and the sets of backends that a request may go to.

use std::collections::BTreeSet;

use super::BackendId;
use super::account::Accounts;
use super::eligibility::Presence;
use super::lease::Timed;
use super::scope::ScopedLimits;
use crate::latency::Latency;
use crate::limit::{Eligible, Limit};
use crate::queue::{FlowHeaps, Key, ReadyHeap};
use crate::time::{Instant, Span};

/// Whose quota a backend spends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spends {
    /// That of its own accounts, so many of them, at least one. Each has the backend's limits and concurrency to itself.
    Own(u32),
    /// That of an earlier backend: the same accounts, limits and concurrency.
    Shared(BackendId),
}

/// What the engine needs to know of a backend.
#[derive(Clone, Debug)]
pub struct BackendSpec {
    /// What its server allows each account.
    pub limits: Vec<Limit>,
    /// What it allows each value of a scope, on each account; a scope is named once.
    pub scoped: Vec<ScopedLimits>,
    /// Attempts at once on each account, at least 1; `None` for no cap.
    pub concurrency: Option<u32>,
    /// Whose limits and concurrency these are.
    pub spends: Spends,
    /// Longest attempt; `None` for no end.
    pub timeout: Option<Span>,
    /// Its share among ready backends; > 0.
    pub weight: f64,
    /// What its server may remember of an earlier client.
    pub cold_start: ColdStart,
}

/// What is assumed of a server that may remember who was there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColdStart {
    /// It counts nothing: all that it allows may go at once.
    #[default]
    AssumeEmpty,
    /// It has just counted all that it allows.
    AssumeFull,
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
    /// What its limits do not admit until then.
    pub(super) cost: u32,
    /// The head for whose cost it is kept. Another head lifts the block.
    pub(super) reserved_for: Option<Key>,
}

impl Blocked {
    /// By its concurrency cap.
    pub(super) const FULL: Blocked = Blocked { cause: Cause::Concurrency, until: None, cost: 0, reserved_for: None };

    /// By its limits, which are not `eligible` now for `cost`; nothing if they are.
    #[inline]
    pub(super) fn by(eligible: Eligible, cost: u32, reserved_for: Option<Key>) -> Option<Blocked> {
        let until = match eligible {
            Eligible::Now => return None,
            Eligible::At(at) | Eligible::Closed(at) => Some(at),
            Eligible::OnAck | Eligible::Never => None,
        };
        Some(Blocked { cause: Cause::Limit, until, cost, reserved_for })
    }

    /// Whether it ends before its timer says so, now that its limits are `eligible` for its cost.
    #[inline]
    pub(super) fn ends_earlier(self, eligible: Eligible) -> bool {
        match eligible {
            Eligible::Now => true,
            Eligible::At(at) | Eligible::Closed(at) => self.until.is_none_or(|until| at < until),
            Eligible::OnAck | Eligible::Never => false,
        }
    }
}

/// The scope that the shells take from a target's URL.
const HOST: &str = "host";

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) presence: Presence,
    pub(super) accounts: Accounts,
    /// That on its first account.
    pub(super) first_ward: u32,
    /// From sending to headers.
    pub(super) latency: Latency,
    pub(super) timeout: Option<Span>,
    pub(super) weight: f64,
    /// Its place in the order of preference, and what a request costs there, in seconds.
    pub(super) rank: u16,
    pub(super) price: f64,
    /// Leases that run, strays included.
    pub(super) in_flight: u32,
    /// Of those, leases whose request has moved on.
    pub(super) strays: u32,
    /// Sent so far, and of those the ones that its server rejected.
    pub(super) messages: u64,
    pub(super) rejections: u64,
    /// The classes that wait for it; under the fair order, the flows.
    pub(super) waiting: ReadyHeap,
    /// Under the fair order, the classes of each flow.
    pub(super) by_flow: FlowHeaps,
    /// Something waits for it, as far as the tally of its accounts knows.
    pub(super) wanted: bool,
    pub(super) timed: Timed,
    /// A timer is armed for the oldest of `timed`, or for one before it.
    pub(super) watched: bool,
    /// Its accounts have limits by scope.
    pub(super) is_scoped: bool,
    /// One of them counts by host: it is the hosts that fail, not the backend.
    pub(super) is_many_hosts: bool,
    /// Classes that no account admits which was open, while another was not.
    pub(super) elsewhere: BTreeSet<u32>,
    /// Those of its accounts that are kept for the cost of a head.
    pub(super) reserved: Vec<u32>,
    /// The sets that contain it.
    pub(super) sets: Vec<u32>,
}

impl Backend {
    pub(super) fn new(spec: &BackendSpec, accounts: Accounts, first_ward: u32) -> Backend {
        Backend {
            presence: Presence::Here,
            accounts,
            first_ward,
            latency: Latency::default(),
            timeout: spec.timeout,
            weight: spec.weight,
            rank: 0,
            price: 0.0,
            in_flight: 0,
            strays: 0,
            messages: 0,
            rejections: 0,
            waiting: ReadyHeap::default(),
            by_flow: FlowHeaps::default(),
            wanted: false,
            timed: Timed::NONE,
            watched: false,
            is_scoped: !spec.scoped.is_empty(),
            is_many_hosts: is_many_hosts(&spec.scoped),
            elsewhere: BTreeSet::new(),
            reserved: Vec::new(),
            sets: Vec::new(),
        }
    }

    /// Whether new requests may go to it.
    pub(super) fn takes_new(&self) -> bool {
        self.presence == Presence::Here
    }
}

/// Whether limits count by the host of a URL.
pub(super) fn is_many_hosts(scoped: &[ScopedLimits]) -> bool {
    scoped.iter().any(|limits| &*limits.scope == HOST)
}

/// An interned set of backends, with clocks of the time during which none of them was open.
#[derive(Debug)]
pub(super) struct BackendSet {
    pub(super) backends: Box<[u16]>,
    /// Classes that wait for it.
    pub(super) classes: u32,
    /// When something last began to wait for it, or had waited.
    pub(super) used_at: Instant,
    open: u32,
    /// Blocked by a limit. The others are at their concurrency cap.
    limited: u32,
    /// When a backend of the set last opened, closed or changed its cause: up to when the clocks are settled.
    changed_at: Instant,
    limit: Span,
    concurrency: Span,
}

impl BackendSet {
    /// With all of its backends open: those that are not are to be told by [`change`](BackendSet::change).
    pub(super) fn new(backends: Box<[u16]>, now: Instant) -> BackendSet {
        let open = backends.len() as u32;
        BackendSet {
            backends,
            classes: 0,
            used_at: now,
            open,
            limited: 0,
            changed_at: now,
            limit: Span::ZERO,
            concurrency: Span::ZERO,
        }
    }

    /// One of other backends, all of them open, whose clocks go on from here.
    pub(super) fn continued(&self, now: Instant, backends: Box<[u16]>) -> BackendSet {
        let (limit, concurrency) = self.clocks(now);
        BackendSet { limit, concurrency, ..BackendSet::new(backends, now) }
    }

    /// What blocked a backend of the set `before` now, and what does from now on.
    #[inline]
    pub(super) fn change(&mut self, now: Instant, before: Option<Cause>, after: Option<Cause>) {
        if self.open == 0 {
            (self.limit, self.concurrency) = self.clocks(now);
        }
        self.changed_at = now;
        match before {
            None => self.open -= 1,
            Some(Cause::Limit) => self.limited -= 1,
            Some(Cause::Concurrency) => {}
        }
        match after {
            None => self.open += 1,
            Some(Cause::Limit) => self.limited += 1,
            Some(Cause::Concurrency) => {}
        }
    }

    /// Time during which every backend was blocked.
    pub(super) fn blocked(&self, now: Instant) -> Span {
        let (limit, concurrency) = self.clocks(now);
        limit + concurrency
    }

    /// Time during which every backend was blocked: at least one by a limit, or all by concurrency.
    #[inline]
    pub(super) fn clocks(&self, now: Instant) -> (Span, Span) {
        let blocked = if self.open == 0 { now.since(self.changed_at) } else { Span::ZERO };
        if self.limited > 0 { (self.limit + blocked, self.concurrency) } else { (self.limit, self.concurrency + blocked) }
    }
}
