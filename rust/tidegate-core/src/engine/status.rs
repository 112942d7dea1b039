//! How the engine stands, for humans and tests.

use std::collections::HashMap;

use super::account::Account;
use super::backend::{Backend, Blocked, Cause};
use super::eligibility::Presence;
use super::scope::Scopes;
use super::tally::Share;
use super::ward::Ward;
use super::{BackendId, Engine};
use crate::health::{Monitor, Phase};
use crate::limit::{GateState, Limit, Usage};
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
    /// It does not work; until when nothing is sent to it, if that is known.
    Down(Option<Instant>),
    /// It was removed, and serves what no other one can, or what still runs.
    Draining,
}

/// A backend at one moment.
#[derive(Clone, Copy, Debug)]
pub struct BackendStatus<'a> {
    backend: &'a Backend,
    accounts: &'a [Account],
    wards: &'a [Ward],
    monitor: &'a Monitor,
    /// The number of the first of them.
    first: u32,
    scopes: &'a Scopes,
    now: Instant,
}

/// A limit that each value of a scope has to itself, on one account: all the values that have a state.
#[derive(Clone, Copy, Debug)]
pub struct ScopedUsage<'a> {
    /// The account's ordinal, from 0.
    pub account: usize,
    /// Of what it is.
    pub scope: &'a str,
    /// As declared.
    pub limit: &'a Limit,
    /// Values that have sent something lately.
    pub values: usize,
    /// Of those, the ones that requests wait for.
    pub blocked: usize,
    /// How it stands for the value that has used most of it; nothing when none has a state.
    pub most: Option<Usage<'a>>,
}

impl<'a> BackendStatus<'a> {
    /// It was removed, and nothing runs on it any more.
    pub fn is_gone(&self) -> bool {
        self.backend.presence == Presence::Gone
    }

    /// What it does with requests that wait for it: as the account that takes them first.
    pub fn state(&self) -> BackendState {
        if self.backend.presence != Presence::Here {
            return BackendState::Draining;
        }
        if !self.wards.iter().any(Ward::is_trusted) {
            let until = self.wards.iter().map(|ward| ward.tried_again_at()).min().flatten();
            return BackendState::Down(until);
        }
        let state = |account: &Account| match (account.quota.gate(self.now), account.blocked) {
            (GateState::Closed(until), _) => BackendState::Closed(until),
            (_, None) => BackendState::Open,
            (_, Some(Blocked { cause: Cause::Concurrency, .. })) => BackendState::Full,
            (_, Some(Blocked { cause: Cause::Limit, until, .. })) => BackendState::Limited(until),
        };
        let rank = |state: &BackendState| match *state {
            BackendState::Open => (0, None),
            BackendState::Limited(None) => (1, None),
            BackendState::Full => (2, None),
            BackendState::Limited(until) => (3, until),
            BackendState::Closed(until) => (4, Some(until)),
            BackendState::Down(until) => (5, until),
            BackendState::Draining => (6, None),
        };
        self.accounts.iter().map(state).min_by_key(rank).unwrap_or(BackendState::Full)
    }

    /// Attempts whose handlers have not returned.
    pub fn in_flight(&self) -> u32 {
        self.backend.in_flight
    }

    /// Of those, the ones that were given up.
    pub fn strays(&self) -> u32 {
        self.backend.strays
    }

    /// How it is doing on each account: where it stands, and its score.
    pub fn health(&self) -> impl Iterator<Item = (Phase, f64)> + use<'a> {
        let &BackendStatus { wards, monitor, now, .. } = self;
        wards.iter().map(move |ward| (ward.health.phase(), ward.health.score(now, monitor)))
    }

    /// Seconds that it takes to answer, if that is known.
    pub fn latency(&self) -> Option<f64> {
        self.backend.latency.read(self.now)
    }

    /// Messages that were sent so far, those that were rejected included.
    pub fn messages(&self) -> u64 {
        self.backend.messages
    }

    /// Of those, the ones that its server rejected for its limits.
    pub fn rejections(&self) -> u64 {
        self.backend.rejections
    }

    /// How each limit by scope of each account stands.
    ///
    /// # Complexity
    /// Linear in the values of all scopes.
    pub fn scoped(&self) -> impl Iterator<Item = ScopedUsage<'a>> + use<'a> {
        let &BackendStatus { first, scopes, now, accounts, .. } = self;
        let mut rows: Vec<ScopedUsage<'a>> = Vec::new();
        // Where the rows of a scope on an account begin.
        let mut starts: HashMap<(u32, u16), usize> = HashMap::new();
        for (account, place) in accounts.iter().enumerate() {
            for (name, fresh) in &place.scoped {
                starts.insert((first + account as u32, *name), rows.len());
                let scope = scopes.named(*name);
                rows.extend(fresh.limits().map(|limit| ScopedUsage { account, scope, limit, values: 0, blocked: 0, most: None }));
            }
        }
        for (_, allotment) in scopes.live() {
            let Some(&start) = starts.get(&(allotment.account, allotment.name)) else { continue };
            for (row, usage) in rows[start..].iter_mut().zip(allotment.quota.usage(now)) {
                row.values += 1;
                row.blocked += usize::from(allotment.is_blocked());
                if row.most.is_none_or(|most| most.used <= usage.used) {
                    row.most = Some(usage);
                }
            }
        }
        rows.into_iter()
    }

    /// What was sent of what its declared limits allowed while something waited, since they were last changed; nothing without limits, or as
    /// long as nothing has waited. Of backends that spend the same quota, together.
    pub fn share(&self) -> Option<Share> {
        let (first, count) = (self.accounts.first()?, self.accounts.len() as u32);
        let limits: Vec<Limit> = first.quota.limits().copied().collect();
        first.tally.share(self.now, &limits, count)
    }

    /// How each limit of each account stands; the account's ordinal, from 0, comes first.
    pub fn limits(&self) -> impl Iterator<Item = (usize, Usage<'a>)> + use<'a> {
        let now = self.now;
        let usage = move |(nth, account): (usize, &'a Account)| account.quota.usage(now).map(move |usage| (nth, usage));
        self.accounts.iter().enumerate().flat_map(usage)
    }
}

impl Engine {
    /// How a backend stands.
    pub fn status(&self, id: BackendId, now: Instant) -> BackendStatus<'_> {
        let backend = &self.backends[usize::from(id.0)];
        let (accounts, first) = (&self.accounts[backend.accounts.span()], backend.accounts.all().start);
        let first_ward = backend.first_ward as usize;
        let wards = &self.wards[first_ward..first_ward + accounts.len()];
        BackendStatus { backend, accounts, wards, monitor: &self.monitor, first, scopes: &self.scopes, now }
    }
}
