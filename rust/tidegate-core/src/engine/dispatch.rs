//! From the queue to a lease: which head goes next, and to which backend.

use super::account::Account;
use super::backend::{Blocked, Cause};
use super::event::{Ending, Stage};
use super::lease::LeaseId;
use super::request::{Handle, Mark, State};
use super::tally::Tally;
use super::{BackendId, Engine, Timer, Waiting};
use crate::queue::{Key, Nodes};
use crate::route::{self, Candidate};
use crate::time::{Instant, Span};

/// An attempt to run now. All that it costs has been charged.
#[derive(Clone, Copy, Debug)]
pub struct Leased {
    /// The attempt.
    pub lease: LeaseId,
    /// The request it is for.
    pub request: Handle,
    /// Where it goes.
    pub backend: BackendId,
    /// On which of the backend's accounts, from 0.
    pub account: u32,
    /// Which attempt it is, from 1. Attempts that a limit rejected are not counted.
    pub attempt: u32,
    /// Of its request.
    pub priority: u8,
    /// Of its request; [`Instant::FAR`] for none.
    pub deadline: Instant,
}

impl Engine {
    /// The most urgent request that a backend may take now, as a new attempt; nothing when none may.
    ///
    /// # Complexity
    /// O(open backends + backends of the request's set x log classes).
    #[inline]
    pub fn take(&mut self, now: Instant) -> Option<Leased> {
        self.tick(now);
        loop {
            let class = self.least_class()?;
            if let Some((slot, place)) = self.place(now, class) {
                return Some(self.lease(now, slot, place));
            }
        }
    }

    /// Whether a backend is open and has a class waiting. Whether its limits have room for the head is not known yet.
    #[inline]
    pub fn may_run(&self) -> bool {
        self.ready.iter().any(|&word| word != 0)
    }

    /// How many attempts could start now: at most what waits and what open backends have room for.
    ///
    /// An estimate, to wake workers by: 0 exactly when `take` would return nothing.
    pub fn demand(&mut self, now: Instant) -> usize {
        self.tick(now);
        // Heads whose limits have no room block their backends here, so that nobody is woken for them.
        while let Some(class) = self.least_class() {
            if self.place(now, class).is_some() {
                break;
            }
        }
        let mut demand = 0usize;
        for id in self.ready_backends() {
            let backend = &self.backends[id];
            let slots =
                self.accounts[backend.accounts.span()].iter().map(|account| account.slots(now)).fold(0, usize::saturating_add);
            // No more classes than slots are looked at: each holds at least one request.
            let length = |class: u32| {
                let all = self.classes[class as usize].queue.len();
                let places = backend.accounts.all();
                let room = |account| self.scope_room(now, class, account);
                if backend.is_scoped { all.min(places.map(room).fold(0, usize::saturating_add)) } else { all }
            };
            let lengths = backend.waiting.classes().take(slots).map(length);
            demand = demand.saturating_add(slots.min(lengths.sum()));
        }
        // A class that several backends wait for was counted by each.
        usize::try_from(self.ledger.queued).map_or(demand, |queued| demand.min(queued))
    }

    fn ready_backends(&self) -> impl Iterator<Item = usize> + '_ {
        self.ready.iter().enumerate().flat_map(|(word, &bits)| {
            let mut bits = bits;
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros();
                (bits != 0).then(|| {
                    bits &= bits - 1;
                    word * 64 + bit as usize
                })
            })
        })
    }

    /// The class with the least head among those that wait for an open backend.
    #[inline]
    fn least_class(&self) -> Option<u32> {
        let mut least: Option<(Key, u32)> = None;
        for id in self.ready_backends() {
            let head = self.backends[id].waiting.least();
            if least.is_none() || head < least {
                least = head;
            }
        }
        least.map(|(_, class)| class)
    }

    /// The head of `class`, and the backend and account that take it now. If there is none, those of its set that were open are
    /// blocked when this returns, or the head is expired since it cannot go before its deadline: look again.
    #[inline]
    fn place(&mut self, now: Instant, class: u32) -> Option<(u32, (u16, u32))> {
        let waiting = &self.classes[class as usize];
        let set = waiting.set;
        let slot = waiting.queue.head(&self.requests)?;
        let deadline = self.requests.get(slot).expires_at();
        if deadline <= now {
            // Its timer fires a fraction of a tick later.
            self.abort(now, slot, Ending::Expired(Stage::Queued));
            return None;
        }
        let mut ready = 0u32;
        self.found.clear();
        let mut last = None;
        for index in 0..self.sets[set as usize].backends.len() {
            let id = self.sets[set as usize].backends[index];
            if let Some(account) = self.open_account(now, id, class, slot) {
                ready += 1;
                if let Some(first) = last.replace((id, account)) {
                    self.found.push(first);
                }
            }
        }
        if ready == 1 {
            return last.map(|place| (slot, place));
        }
        if ready == 0 {
            if deadline < Instant::FAR && self.is_hopeless(now, class, deadline) {
                self.abort(now, slot, Ending::Expired(Stage::Queued));
            }
            return None;
        }
        let avoid = self.requests.history(slot).and_then(|history| history.avoid);
        self.found.extend(last);
        let candidates = self.found.iter().map(|&(id, _)| {
            let backend = &self.backends[usize::from(id)];
            Candidate { backend: id, in_flight: backend.in_flight, weight: backend.weight, failed: avoid == Some(id) }
        });
        let chosen = route::choose(candidates)?;
        self.found.iter().find(|(id, _)| *id == chosen).map(|&place| (slot, place))
    }

    /// The open account of a backend with the least in flight that admits the head in `slot`. Those that do not are blocked.
    #[inline]
    fn open_account(&mut self, now: Instant, id: u16, class: u32, slot: u32) -> Option<u32> {
        if self.backends[usize::from(id)].is_scoped {
            return self.open_account_in_scope(now, id, class, slot);
        }
        let cost = self.classes[class as usize].cost;
        loop {
            let account = self.backends[usize::from(id)].accounts.least()?;
            // A head of cost 1 waits for what any other would wait for too; a larger one is what the room is kept for.
            let reserved_for = (cost > 1).then(|| self.key(class, slot));
            match Blocked::by(self.accounts[account as usize].quota.next_eligible(now, cost).eligible, cost, reserved_for) {
                Some(blocked) => self.block(now, account, blocked),
                None => return Some(account),
            }
        }
    }

    /// Whether the limits of every backend of a set admit a cost only after `deadline`. Service time is not estimated.
    fn is_hopeless(&self, now: Instant, class: u32, deadline: Instant) -> bool {
        let &Waiting { set, cost, .. } = &self.classes[class as usize];
        let is_late = |account: u32| {
            let verdict = self.accounts[account as usize].quota.next_eligible(now, cost);
            verdict.eligible.is_past(deadline) || self.is_scope_late(now, class, account, cost, deadline)
        };
        let mut accounts = self.sets[set as usize].backends.iter().flat_map(|&id| self.backends[usize::from(id)].accounts.all());
        accounts.all(is_late)
    }

    #[inline]
    fn lease(&mut self, now: Instant, slot: u32, (id, account): (u16, u32)) -> Leased {
        let class = self.requests.get(slot).class;
        let waiting = &mut self.classes[class as usize];
        let cost = waiting.cost;
        let head = waiting.queue.pop(&mut self.requests);
        debug_assert_eq!(head, Some(slot));
        self.ledger.queued -= 1;
        if self.flows.is_some() {
            self.flow_served(now, class, slot, id);
        }
        self.head_changed(now, class);
        let blocked = self.blocked_since(now, slot);

        let scopes = if self.backends[usize::from(id)].is_scoped {
            let scopes = self.hold_scopes(class, account);
            for &scope in &scopes {
                self.scopes.get_mut(scope).quota.send(now, cost);
            }
            scopes
        } else {
            Box::default()
        };
        let lease = self.leases.insert(slot, (id, account, scopes), cost, now, blocked);
        let charged = &mut self.accounts[account as usize];
        charged.quota.send(now, cost);
        let full = self.occupy(account, id);
        let backend = &mut self.backends[usize::from(id)];
        let timeout = backend.timeout;
        let first = backend.accounts.all().start;
        let ordinal = account - first;
        self.accounts[first as usize].tally.sent(cost);
        let entry = self.requests.get_mut(slot);
        entry.state = State::Leased;
        entry.lease = lease;
        let (priority, deadline, lasting) = (entry.node.place().band(), entry.deadline, entry.flags.lasting);
        if let Some(timeout) = timeout
            && !lasting
        {
            self.leases.add_timed(&mut backend.timed, lease);
            // A timer that is armed already was for an older attempt: it looks for the oldest when it fires.
            if !std::mem::replace(&mut backend.watched, true) {
                self.wheel.arm(now + timeout, Timer::Attempt(id));
            }
        }
        self.ledger.leased += 1;
        if full {
            self.fill(now, account);
        }
        let (attempted, failed) = self.requests.history(slot).map_or((false, 0), |history| (history.attempted, history.failed));
        if !attempted {
            self.budget.deposit();
            if !self.overdrawn.is_empty() {
                self.spend_budget(now);
            }
        }
        Leased {
            lease: self.leases.id(lease),
            request: self.requests.handle(slot),
            backend: BackendId(id),
            account: ordinal,
            attempt: failed + 1,
            priority,
            deadline,
        }
    }

    /// Puts a request into its class: at the end of its band, or where its key belongs if it comes `back`.
    #[inline]
    pub(super) fn enqueue(&mut self, now: Instant, slot: u32, back: bool) {
        let class = self.requests.get(slot).class;
        let mark = self.mark(now, class);
        let waiting = &mut self.classes[class as usize];
        let entry = self.requests.get_mut(slot);
        entry.mark = mark;
        entry.state = State::Queued;
        self.ledger.queued += 1;
        if let Some(flows) = &mut self.flows {
            flows.enter(waiting.flow, entry.node.place().band());
        }
        let leads = if back {
            waiting.queue.set_aside(&mut self.requests, slot)
        } else if self.requests.rule().is_first_in_first_out() {
            waiting.queue.push(&mut self.requests, slot)
        } else {
            waiting.queue.insert(&mut self.requests, slot)
        };
        if leads {
            self.head_changed(now, class);
        }
        if self.sets[self.classes[class as usize].set as usize].backends.is_empty() {
            self.unserved(now, slot);
        }
    }

    /// Takes a request out of its class.
    #[inline]
    pub(super) fn dequeue(&mut self, now: Instant, slot: u32) {
        let class = self.requests.get(slot).class;
        let waiting = &mut self.classes[class as usize];
        let head = waiting.queue.head(&self.requests);
        waiting.queue.remove(&mut self.requests, slot);
        self.ledger.queued -= 1;
        if let Some(flows) = &mut self.flows {
            flows.leave(waiting.flow, self.requests.node(slot).place().band());
        }
        if head == Some(slot) {
            self.head_changed(now, class);
        }
    }

    /// Tells the heaps of all backends of a class that its head is another one.
    #[inline]
    pub(super) fn head_changed(&mut self, now: Instant, class: u32) {
        let waiting = &self.classes[class as usize];
        let set = waiting.set as usize;
        let key = waiting.queue.head(&self.requests).map(|slot| self.key(class, slot));
        let scoped = waiting.scoped.is_some();
        for index in 0..self.sets[set].backends.len() {
            let id = self.sets[set].backends[index];
            let backend = &mut self.backends[usize::from(id)];
            if scoped && self.classes[class as usize].scoped.as_ref().is_some_and(|scoped| scoped.is_parked_at(id)) {
                continue;
            }
            match key {
                Some(key) => backend.waiting.set(class, key),
                None => backend.waiting.remove(class),
            }
            self.head_changed_at(now, id);
        }
        if scoped {
            self.parked_head_changed(now, class);
        }
    }

    /// A backend may have another least head, or none any more.
    #[inline]
    pub(super) fn head_changed_at(&mut self, now: Instant, id: u16) {
        let backend = &mut self.backends[usize::from(id)];
        let wanted = !backend.waiting.is_empty();
        let ready = backend.accounts.blocked().is_none() && wanted;
        note_ready(&mut self.ready, id, ready);
        if wanted != std::mem::replace(&mut backend.wanted, wanted) {
            self.accounts[backend.accounts.all().start as usize].tally.note_demand(now, wanted);
        }
        if !backend.reserved.is_empty() {
            self.lift_reservations(now, id);
        }
    }

    /// Opens the accounts of a backend that are kept for a head which is not the least any more.
    fn lift_reservations(&mut self, now: Instant, id: u16) {
        for account in self.backends[usize::from(id)].reserved.clone() {
            let Account { blocked, backends, .. } = &self.accounts[account as usize];
            let reserved = blocked.and_then(|blocked| blocked.reserved_for);
            let heads = backends.iter().filter_map(|&id| self.backends[usize::from(id)].waiting.least());
            if heads.map(|(key, _)| key).min() != reserved {
                self.reopen(now, account);
            }
        }
    }

    /// A reading of the clocks of a class.
    #[inline]
    fn mark(&self, now: Instant, class: u32) -> Mark {
        let waiting = &self.classes[class as usize];
        let (limit, concurrency) = self.sets[waiting.set as usize].clocks(now);
        let held = if waiting.scoped.is_some() { self.held(now, class) } else { Span::ZERO };
        Mark::new(limit + held, concurrency)
    }

    /// Time since this waiting request joined its queue during which all its backends were blocked: by limits, by concurrency.
    #[inline]
    pub(super) fn blocked_since(&self, now: Instant, slot: u32) -> (Span, Span) {
        let entry = self.requests.get(slot);
        let (limit, concurrency) = entry.mark.until(self.mark(now, entry.class));
        // Marks are coarse: what they tell apart may be longer than the wait.
        let since = self.requests.history(slot).map_or(entry.joined_at, |history| history.waiting_since);
        let waited = now.since(since);
        let limit = limit.min(waited);
        (limit, concurrency.min(waited - limit))
    }

    /// The counts of the backends that send on an account.
    pub(super) fn tally(&mut self, account: u32) -> &mut Tally {
        let backend = self.accounts[account as usize].backends[0];
        let first = self.backends[usize::from(backend)].accounts.all().start;
        &mut self.accounts[first as usize].tally
    }

    /// One more attempt of a backend runs on an account; whether that fills it.
    #[inline]
    fn occupy(&mut self, account: u32, id: u16) -> bool {
        let backend = &mut self.backends[usize::from(id)];
        backend.in_flight += 1;
        backend.messages += 1;
        let in_flight = self.accounts[account as usize].in_flight;
        self.set_in_flight(account, in_flight + 1);
        self.accounts[account as usize].is_full()
    }

    /// An attempt of a backend that ran on an account is over.
    #[inline]
    pub(super) fn vacate(&mut self, account: u32, id: u16) {
        self.backends[usize::from(id)].in_flight -= 1;
        let in_flight = self.accounts[account as usize].in_flight;
        self.set_in_flight(account, in_flight - 1);
    }

    #[inline]
    fn set_in_flight(&mut self, account: u32, in_flight: u32) {
        let place = &mut self.accounts[account as usize];
        let before = std::mem::replace(&mut place.in_flight, in_flight);
        if place.has_siblings {
            for &id in &place.backends {
                self.backends[usize::from(id)].accounts.moved(account, before, in_flight);
            }
        }
    }

    /// An account that was open has reached its concurrency cap.
    #[inline]
    fn fill(&mut self, now: Instant, account: u32) {
        let place = &mut self.accounts[account as usize];
        debug_assert!(place.blocked.is_none() && place.timer.is_none());
        place.blocked = Some(Blocked::FULL);
        self.cause_changed(now, account, None, Some(Cause::Concurrency));
    }

    /// An attempt of an account that had reached its concurrency cap is over.
    #[inline]
    pub(super) fn unfill(&mut self, now: Instant, account: u32) {
        let place = &mut self.accounts[account as usize];
        if place.recharges.is_empty() && !place.is_full() {
            debug_assert!(place.timer.is_none());
            place.blocked = None;
            self.cause_changed(now, account, Some(Cause::Concurrency), None);
        } else {
            self.reopen(now, account);
        }
    }

    /// Takes nothing more from the queue to this account until its timer, or an event, reopens it.
    #[inline]
    pub(super) fn block(&mut self, now: Instant, account: u32, blocked: Blocked) {
        self.change(now, account, Some(blocked));
    }

    /// Looks at a blocked account again: first at the attempts that wait to send one more message, then at its concurrency.
    #[inline]
    pub(super) fn reopen(&mut self, now: Instant, account: u32) {
        let blocked = self.serve_recharges(now, account);
        let full = || self.accounts[account as usize].is_full().then_some(Blocked::FULL);
        let blocked = blocked.or_else(full);
        self.change(now, account, blocked);
    }

    /// Blocks an account for the attempts ahead of the queue.
    pub(super) fn block_for_recharge(&mut self, now: Instant, account: u32) {
        if let Some(blocked) = self.serve_recharges(now, account) {
            self.block(now, account, blocked);
        }
    }

    /// What blocks an account from now on, if anything.
    fn change(&mut self, now: Instant, account: u32, blocked: Option<Blocked>) {
        let place = &mut self.accounts[account as usize];
        let before = std::mem::replace(&mut place.blocked, blocked);
        if let Some(timer) = place.timer.take() {
            self.wheel.disarm(timer);
        }
        if let Some(until) = blocked.and_then(|blocked| blocked.until) {
            place.timer = Some(self.wheel.arm(until, Timer::Account(account)));
        }
        let reserved = |blocked: Option<Blocked>| blocked.is_some_and(|blocked| blocked.reserved_for.is_some());
        if reserved(before) != reserved(blocked) {
            self.note_reserved(account, reserved(blocked));
        }
        let (before, after) = (before.map(|blocked| blocked.cause), blocked.map(|blocked| blocked.cause));
        if before != after {
            self.cause_changed(now, account, before, after);
        }
    }

    /// Tells the backends of an account, and their sets, what blocks it now.
    #[inline]
    fn cause_changed(&mut self, now: Instant, account: u32, before: Option<Cause>, after: Option<Cause>) {
        let Account { in_flight, backends, .. } = &self.accounts[account as usize];
        let mut elsewhere = false;
        for &id in backends {
            let backend = &mut self.backends[usize::from(id)];
            elsewhere |= after.is_none() && !backend.elsewhere.is_empty();
            let (was, is) = backend.accounts.change(account, *in_flight, before, after);
            if was != is {
                for &set in &backend.sets {
                    self.sets[set as usize].change(now, was, is);
                }
                let ready = is.is_none() && !backend.waiting.is_empty();
                note_ready(&mut self.ready, id, ready);
            }
        }
        if elsewhere {
            for id in self.accounts[account as usize].backends.clone() {
                self.unpark_elsewhere(now, id);
            }
        }
    }

    fn note_reserved(&mut self, account: u32, reserved: bool) {
        for &id in &self.accounts[account as usize].backends {
            let all = &mut self.backends[usize::from(id)].reserved;
            if reserved {
                all.push(account);
            } else {
                all.retain(|&other| other != account);
            }
        }
    }
}

/// Whether a backend is open and has a class waiting.
#[inline]
fn note_ready(words: &mut [u64], id: u16, ready: bool) {
    let (word, bit) = (&mut words[usize::from(id) / 64], 1u64 << (id % 64));
    if ready {
        *word |= bit;
    } else {
        *word &= !bit;
    }
}
