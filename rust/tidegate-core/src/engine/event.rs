//! What the engine has to tell: requests that ended, things to do, changes of state.

use super::BackendId;
use super::lease::LeaseId;
use super::request::{Handle, Waits};
use super::scope::Scope;
use crate::health::Turn;
use crate::limit::Step;
use crate::time::{Instant, Span};

/// Where a request was when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waited.
    Queued,
    /// An attempt was running.
    Leased,
}

/// Why a request ended other than by what its attempt returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its deadline came, or could not be met any more.
    Expired(Stage),
    /// It was cancelled.
    Cancelled,
    /// The engine was closed.
    Closed,
    /// Its last attempt timed out.
    Dead,
    /// No backend is left that could serve it; this one could have.
    Unserved(BackendId),
}

/// A request that ended without the shell having said so.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Which; its slot is free once this was popped.
    pub request: Handle,
    /// Why.
    pub ending: Ending,
    /// What its time went to.
    pub waits: Waits,
    /// From acceptance to its end.
    pub age: Span,
    /// Attempts that failed, a timed-out one included.
    pub failed: u32,
}

/// Something for the shell to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Interrupt the handler of this attempt; its request has moved on.
    Interrupt {
        /// The attempt, a stray by now.
        lease: LeaseId,
    },
    /// The attempt timed out: note it among the attempts of `request`, which has not ended by it.
    TimedOut {
        /// The request that failed an attempt.
        request: Handle,
        /// Where.
        backend: BackendId,
        /// How long the attempt was given.
        timeout: Span,
    },
    /// The extra message that this attempt asked for may be sent now.
    Recharged {
        /// The attempt.
        lease: LeaseId,
    },
}

/// A change of state of a limit or a backend.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A server rejected a message: its quota is closed. Rejections of what was in flight then may put the end off, and are no
    /// events.
    LimitClosed {
        /// Whose.
        backend: BackendId,
        /// Whose limits these are, when each value of a scope has its own.
        scope: Option<Scope>,
        /// Until when; one message goes first then.
        until: Instant,
    },
    /// A server rejected a message that conformed, and nobody has said how it counts: a limit is treated as a stricter kind.
    LimitStepped {
        /// Whose.
        backend: BackendId,
        /// Whose limits these are, when each value of a scope has its own.
        scope: Option<Scope>,
        /// Which limit, from what to what.
        step: Step,
    },
    /// A backend, or one of its accounts, has begun to fail, is tried again, or works again.
    HealthChanged {
        /// Which.
        backend: BackendId,
        /// Its account, from 0; `None` when it has only one.
        account: Option<u32>,
        /// How it stands from now on, and for what.
        turn: Turn,
    },
    /// More than half of all backends fail on this side of the line at once: none is held back for that.
    OwnFault {
        /// How many.
        backends: u32,
        /// Of how many.
        of: u32,
    },
    /// One has answered again.
    OwnFaultOver,
    /// Nothing runs any more on a backend that was removed.
    BackendGone {
        /// Which.
        backend: BackendId,
    },
    /// The first message after a closure was accepted.
    LimitReopened {
        /// Whose.
        backend: BackendId,
        /// Whose limits these are, when each value of a scope has its own.
        scope: Option<Scope>,
    },
}
