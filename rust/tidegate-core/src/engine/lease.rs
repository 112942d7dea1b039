//! The record of an attempt.

use super::ward::Trial;
use crate::time::{Instant, Span};

/// Names an attempt until the shell has finished it, and never another one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(u64);

impl LeaseId {
    /// As one number.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// From [`to_bits`](LeaseId::to_bits).
    #[inline]
    pub const fn from_bits(bits: u64) -> LeaseId {
        LeaseId(bits)
    }
}

#[derive(Debug)]
pub(super) struct Lease {
    generation: u32,
    /// Its request's slot; `None` when the request has moved on and this lease is a stray, or when the place is free.
    pub(super) request: Option<u32>,
    live: bool,
    pub(super) backend: u16,
    /// What it is charged to.
    pub(super) account: u32,
    /// Units sent and not yet acknowledged.
    pub(super) unacked: u32,
    /// Units sent that limits anchored at the finish still wait for.
    pub(super) unfinished: u32,
    /// What its last message was charged to besides its account, held.
    pub(super) scopes: Box<[u32]>,
    /// The server has rejected the last message of this attempt: counted once.
    pub(super) rejected: bool,
    pub(super) trial: Trial,
    pub(super) started_at: Instant,
    /// When its last message was sent.
    pub(super) sent_at: Instant,
    /// Neighbours in the [`Timed`] list of its backend.
    older: u32,
    newer: u32,
    /// Blocked time of the wait that this attempt ended.
    pub(super) blocked: (Span, Span),
}

/// Units on their way: whose headers have not come, and whose attempts are not over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OnTheWay {
    pub(super) unacked: u32,
    pub(super) unfinished: u32,
}

impl OnTheWay {
    pub(super) fn add(&mut self, lease: &Lease) {
        self.unacked += lease.unacked;
        self.unfinished += lease.unfinished;
    }
}

/// No lease: the end of a [`Timed`] list.
const NIL: u32 = u32::MAX;
/// In `older`: the lease is in no list.
const UNTIMED: u32 = u32::MAX - 1;

/// The attempts of one backend that have a timeout, in the order in which they started. It is the same for all of them, so it is in this order
/// that they time out, and only the oldest needs a timer.
#[derive(Debug)]
pub(super) struct Timed {
    oldest: u32,
    newest: u32,
}

impl Timed {
    pub(super) const NONE: Timed = Timed { oldest: NIL, newest: NIL };

    #[inline]
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }
}

#[derive(Debug, Default)]
pub(super) struct Leases {
    leases: Vec<Lease>,
    free: Vec<u32>,
}

impl Leases {
    #[inline]
    pub(super) fn insert(
        &mut self,
        request: u32,
        (backend, account, scopes, trial): (u16, u32, Box<[u32]>, Trial),
        cost: u32,
        now: Instant,
        blocked: (Span, Span),
    ) -> u32 {
        let lease = move |generation| Lease {
            generation,
            request: Some(request),
            live: true,
            backend,
            account,
            unacked: cost,
            unfinished: cost,
            scopes,
            rejected: false,
            trial,
            started_at: now,
            sent_at: now,
            older: UNTIMED,
            newer: NIL,
            blocked,
        };
        if let Some(index) = self.free.pop() {
            let place = &mut self.leases[index as usize];
            *place = lease(place.generation);
            index
        } else {
            self.leases.push(lease(0));
            (self.leases.len() - 1) as u32
        }
    }

    /// Frees its place; returns the scopes that it held.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) -> Box<[u32]> {
        let lease = &mut self.leases[index as usize];
        lease.generation = lease.generation.wrapping_add(1);
        lease.live = false;
        lease.request = None;
        let scopes = std::mem::take(&mut lease.scopes);
        self.free.push(index);
        scopes
    }

    /// Adds an attempt that has just started to the list of its backend.
    #[inline]
    pub(super) fn add_timed(&mut self, timed: &mut Timed, index: u32) {
        let older = std::mem::replace(&mut timed.newest, index);
        self.leases[index as usize].older = older;
        match older {
            NIL => timed.oldest = index,
            _ => self.leases[older as usize].newer = index,
        }
    }

    /// Takes an attempt out of the list of its backend, if it is in.
    #[inline]
    pub(super) fn remove_timed(&mut self, timed: &mut Timed, index: u32) {
        let lease = &mut self.leases[index as usize];
        let older = std::mem::replace(&mut lease.older, UNTIMED);
        let newer = std::mem::replace(&mut lease.newer, NIL);
        match older {
            UNTIMED => return,
            NIL => timed.oldest = newer,
            _ => self.leases[older as usize].newer = newer,
        }
        match newer {
            NIL => timed.newest = older,
            _ => self.leases[newer as usize].older = older,
        }
    }

    #[inline]
    pub(super) fn id(&self, index: u32) -> LeaseId {
        LeaseId((u64::from(self.leases[index as usize].generation) << 32) | u64::from(index))
    }

    #[inline]
    pub(super) fn find(&self, id: LeaseId) -> Option<u32> {
        let index = id.0 as u32;
        let lease = self.leases.get(index as usize)?;
        (lease.live && self.id(index) == id).then_some(index)
    }

    /// Those that are charged to an account.
    pub(super) fn charged_to(&self, account: u32) -> impl Iterator<Item = &Lease> {
        self.leases.iter().filter(move |lease| lease.live && lease.account == account)
    }

    /// Those whose handlers run at a backend.
    pub(super) fn running_on(&self, backend: u16) -> Vec<u32> {
        let theirs = |(index, lease): (usize, &Lease)| (lease.live && lease.backend == backend).then_some(index as u32);
        self.leases.iter().enumerate().filter_map(theirs).collect()
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> &Lease {
        &self.leases[index as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> &mut Lease {
        &mut self.leases[index as usize]
    }
}
