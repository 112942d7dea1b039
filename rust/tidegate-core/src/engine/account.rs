//! One instance of a quota: what one account may do at a server. A backend has one, or several to choose from; backends of a group
//! share theirs.

use std::collections::{BTreeSet, VecDeque};
use std::ops::{Bound, Range};

use super::backend::{Blocked, Cause};
use super::lease::{LeaseId, OnTheWay};
use super::tally::Tally;
use crate::limit::{Limit, Margin, Quota};
use crate::time::{Instant, Span};
use crate::wheel::TimerId;

/// Failures in a row beyond which an account looks no busier.
const MOST_FAILURES: u32 = 1000;
/// Failures in a row after which an account rests, if there are others.
const TOLERATED: u32 = 5;
/// The first rest; each further one is twice as long.
const REST: Span = Span::from_secs(1);
const LONGEST_REST: Span = Span::from_secs(60);

/// One more message that a running attempt wants to send.
#[derive(Debug)]
pub(super) struct Extra {
    pub(super) lease: LeaseId,
    pub(super) cost: u32,
    /// What it is charged to besides its account, held.
    pub(super) scopes: Box<[u32]>,
    /// The one of them that has no room for it.
    pub(super) waits_for: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Account {
    pub(super) quota: Quota,
    pub(super) concurrency: u32,
    /// Leases that run on it, strays included.
    pub(super) in_flight: u32,
    /// Attempts that failed on it one after the other, none having succeeded since; at most [`MOST_FAILURES`].
    failures: u32,
    /// Rests that it has had since an attempt succeeded, and the end of the last one.
    rests: u32,
    rests_until: Instant,
    /// `None`: open. Invariant: an account whose `in_flight` has reached its `concurrency` is blocked.
    pub(super) blocked: Option<Blocked>,
    pub(super) timer: Option<TimerId>,
    /// Running attempts that wait to send one more message, ahead of the queue.
    pub(super) recharges: VecDeque<Extra>,
    /// What each value of a scope may do on it at first, by the number of the scope.
    pub(super) scoped: Box<[(u16, Quota)]>,
    /// The scope of which a message was rejected last, and when.
    pub(super) rejected_scope: Option<(u32, Instant)>,
    /// Longest time seen between a send and its headers.
    pub(super) longest_latency: Span,
    /// When nothing was left of its limits, if the server may remember what was sent before us.
    pub(super) used_up_at: Option<Instant>,
    /// The backends that send on it.
    pub(super) backends: Vec<u16>,
    /// They have others to choose from.
    pub(super) has_siblings: bool,
    /// Of all accounts of its backends, kept by the first.
    pub(super) tally: Tally,
}

impl Account {
    pub(super) fn new(
        limits: &[Limit],
        scoped: &[(u16, Quota)],
        concurrency: Option<u32>,
        backend: u16,
        has_siblings: bool,
        used_up_at: Option<Instant>,
    ) -> Account {
        Account {
            quota: new_quota(limits, used_up_at),
            used_up_at,
            concurrency: concurrency.unwrap_or(u32::MAX),
            in_flight: 0,
            failures: 0,
            rests: 0,
            rests_until: Instant::ORIGIN,
            blocked: None,
            timer: None,
            recharges: VecDeque::new(),
            scoped: scoped.into(),
            rejected_scope: None,
            longest_latency: Span::ZERO,
            backends: vec![backend],
            has_siblings,
            tally: Tally::default(),
        }
    }

    /// The largest cost that it ever admits.
    pub(super) fn capacity(&self) -> u32 {
        self.scoped.iter().map(|(_, fresh)| fresh.capacity()).fold(self.quota.capacity(), u32::min)
    }

    /// The cap on its concurrency, if there is one.
    pub(super) fn cap(&self) -> Option<u32> {
        (self.concurrency < u32::MAX).then_some(self.concurrency)
    }

    /// Replaces the limits and the cap. What has been sent counts against the new ones too.
    pub(super) fn set_quota(&mut self, now: Instant, limits: &[Limit], concurrency: Option<u32>, on_the_way: OnTheWay) {
        self.quota = self.quota.with_limits(now, limits, on_the_way.unacked, on_the_way.unfinished);
        self.concurrency = concurrency.unwrap_or(u32::MAX);
    }

    /// How busy it is to who chooses among accounts: what failed on it counts as if it still ran, so that one which fails at once is
    /// not the least busy of all.
    #[inline]
    pub(super) fn load(&self) -> u32 {
        self.in_flight.saturating_add(self.failures)
    }

    /// An attempt on it has succeeded.
    pub(super) fn succeeded(&mut self) {
        (self.failures, self.rests) = (0, 0);
    }

    /// An attempt on it that started at `started` has failed. What was under way when a rest began says nothing new. Without `rests` its
    /// health is watched otherwise.
    pub(super) fn failed(&mut self, now: Instant, started: Instant, rests: bool) {
        self.failures = (self.failures + 1).min(MOST_FAILURES);
        if rests && self.failures >= TOLERATED && (self.rests == 0 || started >= self.rests_until) {
            self.rests_until = now + REST.times(1 << self.rests.min(16)).min(LONGEST_REST);
            self.rests += 1;
        }
    }

    /// What blocks it for failing again and again: its rest, then the one attempt that shows whether it works.
    #[inline]
    pub(super) fn resting(&self, now: Instant) -> Option<Blocked> {
        if self.rests == 0 {
            return None;
        }
        let until = (now < self.rests_until).then_some(self.rests_until);
        match until {
            Some(_) => Some(Blocked { cause: Cause::Limit, until, cost: 1, reserved_for: None }),
            None => (self.in_flight > 0).then_some(Blocked::FULL),
        }
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.in_flight >= self.concurrency
    }

    /// How many attempts could start on it now, at most; at least one when it is open, for its limits were not asked about a head.
    pub(super) fn slots(&self, now: Instant) -> usize {
        if self.blocked.is_some() {
            return 0;
        }
        self.concurrency.saturating_sub(self.in_flight).min(self.quota.headroom(now).max(1)) as usize
    }

    #[inline]
    pub(super) fn cause(&self) -> Option<Cause> {
        self.blocked.map(|blocked| blocked.cause)
    }
}

/// A quota of which nothing is used, or all is since an instant.
pub(super) fn new_quota(limits: &[Limit], used_up_at: Option<Instant>) -> Quota {
    let margin = Margin::default();
    used_up_at.map_or_else(|| Quota::new(limits, margin), |at| Quota::used_up(limits, margin, at))
}

/// The load that stands for the place of an account to avoid.
const LAST: u32 = u32::MAX;

/// The accounts of one backend, and which of them are open.
#[derive(Debug)]
pub(super) struct Accounts {
    /// In order of declaration, by their places among all accounts of the engine, which follow each other.
    first: u32,
    count: u32,
    /// Why none is open: a limit of at least one, else their concurrency.
    blocked: Option<Cause>,
    /// Of several; a single one needs no bookkeeping.
    several: Option<Box<Several>>,
}

#[derive(Debug)]
struct Several {
    /// The open ones by their load.
    open: BTreeSet<(u32, u32)>,
    /// Blocked by a limit. The others are at their concurrency cap.
    limited: u32,
}

impl Accounts {
    /// With all of them open and nothing in flight: what is otherwise is to be told by [`change`](Accounts::change).
    pub(super) fn new(first: u32, count: u32) -> Accounts {
        let open = || (first..first + count).map(|account| (0, account)).collect();
        let several = (count > 1).then(|| Box::new(Several { open: open(), limited: 0 }));
        Accounts { first, count, blocked: None, several }
    }

    /// Their places among all accounts.
    #[inline]
    pub(super) fn all(&self) -> Range<u32> {
        self.first..self.first + self.count
    }

    /// As `all`, to index by.
    #[inline]
    pub(super) fn span(&self) -> Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }

    /// Whether there is a choice.
    #[inline]
    pub(super) fn are_several(&self) -> bool {
        self.several.is_some()
    }

    /// The only one, if it is open.
    #[inline]
    pub(super) fn only(&self) -> Option<u32> {
        self.blocked.is_none().then_some(self.first)
    }

    /// The open one with the least load, of equal ones that which was declared first. That to `avoid`, with its load, comes last.
    #[inline]
    pub(super) fn least(&self, avoid: Option<(u32, u32)>) -> Option<u32> {
        match &self.several {
            None => self.blocked.is_none().then_some(self.first),
            Some(several) => several.next(None, avoid).map(|(_, account)| account),
        }
    }

    /// The open one that comes after `before` in the order of [`least`](Accounts::least), with its load there.
    pub(super) fn next_open(&self, before: Option<(u32, u32)>, avoid: Option<(u32, u32)>) -> Option<(u32, u32)> {
        match &self.several {
            None => (before.is_none() && self.blocked.is_none()).then_some((0, self.first)),
            Some(several) => several.next(before, avoid),
        }
    }

    /// Whether one of them is not open.
    pub(super) fn is_any_blocked(&self) -> bool {
        self.several.as_ref().map_or(self.blocked.is_some(), |several| several.open.len() < self.count as usize)
    }

    /// Why none is open.
    #[inline]
    pub(super) fn blocked(&self) -> Option<Cause> {
        self.blocked
    }

    /// What blocked an account `before` now, and what does from now on. Returns the same of the backend.
    #[inline]
    pub(super) fn change(
        &mut self,
        account: u32,
        load: u32,
        before: Option<Cause>,
        after: Option<Cause>,
    ) -> (Option<Cause>, Option<Cause>) {
        let now = self.several.as_mut().map_or(after, |several| several.change(account, load, before, after));
        (std::mem::replace(&mut self.blocked, now), now)
    }

    /// An account has another load.
    pub(super) fn moved(&mut self, account: u32, before: u32, after: u32) {
        if let Some(several) = &mut self.several
            && several.open.remove(&(before, account))
        {
            several.open.insert((after, account));
        }
    }
}

impl Several {
    #[inline]
    fn next(&self, before: Option<(u32, u32)>, avoid: Option<(u32, u32)>) -> Option<(u32, u32)> {
        if before.is_some_and(|(load, _)| load == LAST) {
            return None;
        }
        let after = before.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.open.range((after, Bound::Unbounded)).find(|&&place| Some(place) != avoid).copied();
        next.or_else(|| avoid.filter(|place| self.open.contains(place)).map(|(_, account)| (LAST, account)))
    }

    /// Apart, so that nothing is laid out for it where there is one account.
    #[inline(never)]
    fn change(&mut self, account: u32, load: u32, before: Option<Cause>, after: Option<Cause>) -> Option<Cause> {
        let limited = |cause| u32::from(cause == Some(Cause::Limit));
        self.limited = self.limited + limited(after) - limited(before);
        if before.is_none() {
            self.open.remove(&(load, account));
        }
        if after.is_none() {
            self.open.insert((load, account));
        }
        match (self.open.is_empty(), self.limited) {
            (false, _) => None,
            (true, 0) => Some(Cause::Concurrency),
            (true, _) => Some(Cause::Limit),
        }
    }
}
