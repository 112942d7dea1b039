//! How the engine stands, for humans and tests.

use super::backend::{Backend, Blocked, Cause};
use super::{BackendId, Engine};
use crate::limit::{GateState, Usage};
use crate::time::Instant;

/// What a backend does with requests that wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// It takes them.
    Open,
    /// A limit has no room; until when, if that is known.
    Limited(Option<Instant>),
    /// All its concurrency is in use.
    Full,
    /// Its server rejected a message; until when.
    Closed(Instant),
}

/// A backend at one moment.
#[derive(Clone, Copy, Debug)]
pub struct BackendStatus<'a> {
    backend: &'a Backend,
    now: Instant,
}

impl<'a> BackendStatus<'a> {
    /// What it does with requests that wait for it.
    pub fn state(&self) -> BackendState {
        if let GateState::Closed(until) = self.backend.quota.gate(self.now) {
            return BackendState::Closed(until);
        }
        match self.backend.blocked {
            None => BackendState::Open,
            Some(Blocked { cause: Cause::Concurrency, .. }) => BackendState::Full,
            Some(Blocked { cause: Cause::Limit, until, .. }) => BackendState::Limited(until),
        }
    }

    /// Attempts whose handlers have not returned.
    pub fn in_flight(&self) -> u32 {
        self.backend.in_flight
    }

    /// Of those, the ones that were given up.
    pub fn strays(&self) -> u32 {
        self.backend.strays
    }

    /// How each of its limits stands.
    pub fn limits(&self) -> impl Iterator<Item = Usage<'a>> + use<'a> {
        self.backend.quota.usage(self.now)
    }
}

impl Engine {
    /// How a backend stands.
    pub fn status(&self, id: BackendId, now: Instant) -> BackendStatus<'_> {
        BackendStatus { backend: &self.backends[usize::from(id.0)], now }
    }
}
