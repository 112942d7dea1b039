//! From the queue to a lease: which head goes next, and to which backend.

use super::account::Account;
use super::backend::{Blocked, Cause};
use super::event::{Ending, Stage};
use super::lease::LeaseId;
use super::request::{Handle, History, Mark, State};
use super::scope::Scoped;
use super::tally::Tally;
use super::ward::Ward;
use super::{BackendId, Engine, Timer, Waiting};
use crate::queue::{Key, Nodes};
use crate::route::{self, Candidate};
use crate::steps;
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
    /// Which attempt it is, from 1. Those that a limit rejected are not counted; those that failed while the backend was down are.
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
        let is_ready = |id: usize| self.ready[id / 64] & (1 << (id % 64)) != 0;
        for (id, backend) in self.backends.iter().enumerate().filter(|(id, _)| is_ready(*id)) {
            let of_ward = |ward: &Ward| {
                let slots = self.accounts[ward.account as usize].slots(now);
                if ward.barred { 0 } else { slots.min(ward.room()) }
            };
            let slots = self.wards_of(id as u16).map(of_ward).fold(0, usize::saturating_add);
            // No more classes than slots are looked at: each holds at least one request.
            let length = |class: u32| {
                let all = self.classes[class as usize].queue.len();
                let places = backend.accounts.all();
                let room = |account| self.scope_room(now, class, account);
                if backend.is_scoped { all.min(places.map(room).fold(0, usize::saturating_add)) } else { all }
            };
            let lengths = self.classes_at(backend).take(slots).map(length);
            demand = demand.saturating_add(slots.min(lengths.sum()));
        }
        // A class that several backends wait for was counted by each.
        usize::try_from(self.ledger.queued).map_or(demand, |queued| demand.min(queued))
    }

    /// The class with the least head among those that wait for an open backend.
    #[inline]
    fn least_class(&self) -> Option<u32> {
        let mut least: Option<(Key, u32)> = None;
        for (word, &bits) in self.ready.iter().enumerate() {
            let mut bits = bits;
            while bits != 0 {
                let head = self.least_at(word * 64 + bits.trailing_zeros() as usize);
                if least.is_none() || head < least {
                    least = head;
                }
                bits &= bits - 1;
            }
        }
        least.map(|(_, class)| class)
    }

    /// The head of `class`, or the first behind it that fits, and the backend and account that take it now. If there is none, those of its set that were open are
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
        let place = match *self.sets[set as usize].backends {
            [only] => {
                let account = self.open_account(now, only, class, slot);
                let is_late = |_: &u32| self.learns && deadline < Instant::FAR && !self.is_in_time(now, only, deadline);
                match account.filter(is_late) {
                    None => account.map(|account| (slot, (only, account))),
                    Some(account) => Some((self.fitting(now, class, only).unwrap_or(slot), (only, account))),
                }
            }
            _ => self.choose(now, class, slot),
        };
        if place.is_none() && deadline < Instant::FAR && self.is_hopeless(now, class, deadline) {
            self.abort(now, slot, Ending::Expired(Stage::Queued));
        }
        place
    }

    /// Of several backends, and their accounts that take the head in `slot` now, the one that it goes to, or that the first one behind it goes to
    /// that fits.
    fn choose(&mut self, now: Instant, class: u32, mut slot: u32) -> Option<(u32, (u16, u32))> {
        let &Waiting { set, preferred, .. } = &self.classes[class as usize];
        self.found.clear();
        for index in 0..self.sets[set as usize].backends.len() {
            let id = self.sets[set as usize].backends[index];
            if let Some(account) = self.open_account(now, id, class, slot) {
                self.found.push((id, account));
            }
        }
        if self.learns && self.requests.get(slot).deadline < Instant::FAR && !self.found.is_empty() {
            slot = self.fit_found(now, class, slot);
        }
        if let [only] = *self.found {
            return Some((slot, only));
        }
        let avoid = self.requests.history(slot).and_then(|history| history.avoid).map(|avoid| avoid.backend);
        let candidates = self.found.iter().map(|&(id, account)| {
            let backend = &self.backends[usize::from(id)];
            Candidate {
                in_flight: backend.in_flight,
                weight: backend.weight,
                price: backend.price,
                scarcity: if self.learns && self.sets.len() > 1 { self.scarcity(now, id, account, set) } else { 0.0 },
                latency: &backend.latency,
                health: &self.wards[self.ward_of(id, account)].health,
                failed: avoid == Some(id),
                preferred: preferred == Some(id),
                rank: backend.rank,
            }
        });
        route::choose(&*self.strategy, now, candidates).map(|index| (slot, self.found[index]))
    }

    /// The open account of a backend with the least load that admits the head in `slot`, rather not the one where its last attempt
    /// failed. Those that do not are blocked.
    #[inline]
    fn open_account(&mut self, now: Instant, id: u16, class: u32, slot: u32) -> Option<u32> {
        if self.backends[usize::from(id)].is_scoped {
            return self.open_account_in_scope(now, id, class, slot);
        }
        if self.backends[usize::from(id)].accounts.are_several() {
            return self.open_one_of_several(now, id, class, slot);
        }
        steps::add(1);
        let account = self.backends[usize::from(id)].accounts.only()?;
        self.admits(now, account, class, slot).then_some(account)
    }

    #[inline(never)]
    fn open_one_of_several(&mut self, now: Instant, id: u16, class: u32, slot: u32) -> Option<u32> {
        let avoid = self.avoided(id, slot);
        loop {
            steps::add(1);
            let account = self.backends[usize::from(id)].accounts.least(avoid)?;
            if let Some(blocked) = self.accounts[account as usize].resting(now) {
                self.block(now, account, blocked);
            } else if self.admits(now, account, class, slot) {
                return Some(account);
            }
        }
    }

    /// Whether the limits of an open account admit the head in `slot` now. If not, it is blocked.
    #[inline]
    fn admits(&mut self, now: Instant, account: u32, class: u32, slot: u32) -> bool {
        let cost = self.classes[class as usize].cost;
        // A head of cost 1 waits for what any other would wait for too; a larger one is what the room is kept for.
        let reserved_for = (cost > 1).then(|| self.key(class, slot));
        match Blocked::by(self.accounts[account as usize].quota.next_eligible(now, cost).eligible, cost, reserved_for) {
            Some(blocked) => {
                self.block(now, account, blocked);
                false
            }
            None => true,
        }
    }

    /// The account on which the last attempt of a request failed, with its load, if a backend has others.
    #[inline]
    pub(super) fn avoided(&self, id: u16, slot: u32) -> Option<(u32, u32)> {
        if !self.backends[usize::from(id)].accounts.are_several() {
            return None;
        }
        let account = self.requests.history(slot)?.avoid?.account;
        Some((self.accounts[account as usize].load(), account))
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
        self.sets[waiting.set as usize].used_at = now;
        let cost = waiting.cost;
        waiting.queue.take(&mut self.requests, slot);
        self.ledger.queued -= 1;
        if self.flows.is_some() {
            self.flow_served(now, class, slot, id);
        }
        self.head_changed(now, class);
        let blocked = self.blocked_since(now, slot);

        let scopes =
            if self.backends[usize::from(id)].is_scoped { self.charge_scopes(now, class, account) } else { Box::default() };
        let trial = self.trial(now, id, account);
        let lease = self.leases.insert(slot, (id, account, scopes, trial), cost, now, blocked);
        let backend = &mut self.backends[usize::from(id)];
        backend.in_flight += 1;
        backend.messages += 1;
        let (first, timeout) = (backend.accounts.all().start, backend.timeout);
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
        self.accounts[first as usize].tally.sent(cost);
        self.accounts[account as usize].quota.send(now, cost);
        let full = self.occupy(account);
        self.ledger.leased += 1;
        if full {
            self.fill(now, account);
        }
        let earlier = |history: &History| (history.attempted, history.failed + history.free);
        let (attempted, failed) = self.requests.history(slot).map_or((false, 0), earlier);
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
            account: account - first,
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
        let set = &mut self.sets[waiting.set as usize];
        set.used_at = now;
        if self.learns && !back {
            set.asked.add(now, waiting.cost);
        }
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
        let head = waiting.queue.head(&self.requests);
        for index in 0..self.sets[set].backends.len() {
            let id = self.sets[set].backends[index];
            steps::add(1);
            let is_parked = |scoped: &Scoped| scoped.is_parked_at(id);
            if !self.classes[class as usize].scoped.as_deref().is_some_and(is_parked) {
                self.wait_at(id, class, head);
                self.head_changed_at(now, id);
            }
        }
        if self.classes[class as usize].scoped.is_some() {
            self.parked_head_changed(now, class);
        }
    }

    /// A backend may have another least head, or none any more.
    #[inline]
    pub(super) fn head_changed_at(&mut self, now: Instant, id: u16) {
        let backend = &mut self.backends[usize::from(id)];
        let wanted = !backend.waiting.is_empty();
        if wanted != std::mem::replace(&mut backend.wanted, wanted) {
            note_ready(&mut self.ready, id, backend.accounts.blocked().is_none() && wanted);
            self.accounts[backend.accounts.all().start as usize].tally.note_demand(now, wanted);
        }
        if !backend.reserved.is_empty() {
            self.lift_reservations(now, id);
        }
    }

    /// Opens the accounts of a backend that are kept for a head which is not the least any more.
    #[inline(never)]
    fn lift_reservations(&mut self, now: Instant, id: u16) {
        for account in self.backends[usize::from(id)].reserved.clone() {
            let Account { blocked, backends, .. } = &self.accounts[account as usize];
            let reserved = blocked.and_then(|blocked| blocked.reserved_for);
            let heads = backends.iter().filter_map(|&id| self.least_at(usize::from(id)));
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

    /// One more attempt runs on an account; whether that fills it.
    #[inline]
    fn occupy(&mut self, account: u32) -> bool {
        let place = &mut self.accounts[account as usize];
        let before = place.load();
        place.in_flight += 1;
        let full = place.is_full();
        if place.has_siblings {
            self.note_moved(account, before);
        }
        full
    }

    /// An attempt of a backend that ran on an account is over.
    #[inline]
    pub(super) fn vacate(&mut self, account: u32, id: u16) {
        self.backends[usize::from(id)].in_flight -= 1;
        let place = &mut self.accounts[account as usize];
        let before = place.load();
        place.in_flight -= 1;
        if place.has_siblings {
            self.note_moved(account, before);
        }
    }

    /// An attempt on an account has succeeded, or failed: where there are others to choose from, that tells something of its own.
    #[inline]
    pub(super) fn note_load(&mut self, now: Instant, index: u32, account: u32, failed: bool) {
        if self.accounts[account as usize].has_siblings {
            self.note_load_among(now, index, account, failed);
        }
    }

    #[inline(never)]
    fn note_load_among(&mut self, now: Instant, index: u32, account: u32, failed: bool) {
        let started_at = self.leases.get(index).started_at;
        let place = &mut self.accounts[account as usize];
        let before = place.load();
        if failed {
            place.failed(now, started_at, !self.monitor.enabled);
        } else {
            place.succeeded();
        }
        if place.load() != before {
            self.note_moved(account, before);
        }
    }

    /// Tells the backends of an account that it has another load than it had `before`.
    fn note_moved(&mut self, account: u32, before: u32) {
        let account_now = &self.accounts[account as usize];
        let after = account_now.load();
        for &id in &account_now.backends {
            self.backends[usize::from(id)].accounts.moved(account, before, after);
        }
    }

    /// An account that was open has reached its concurrency cap.
    #[inline(never)]
    fn fill(&mut self, now: Instant, account: u32) {
        let place = &mut self.accounts[account as usize];
        debug_assert!(place.blocked.is_none() && place.timer.is_none());
        place.blocked = Some(Blocked::FULL);
        self.cause_changed(now, account, None, Some(Cause::Concurrency));
    }

    /// An attempt of an account that had reached its concurrency cap is over.
    #[inline(never)]
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

    /// Tells the backends of an account, and their sets, what blocks it now. Inlined where both causes are known: at a full account, twice a
    /// request.
    #[inline(always)]
    fn cause_changed(&mut self, now: Instant, account: u32, before: Option<Cause>, after: Option<Cause>) {
        let mut elsewhere = false;
        for nth in 0..self.accounts[account as usize].backends.len() {
            let id = self.accounts[account as usize].backends[nth];
            elsewhere |= !self.backends[usize::from(id)].elsewhere.is_empty();
            if !self.wards[self.ward_of(id, account)].barred {
                self.cause_changed_at(now, id, account, before, after);
            }
        }
        if after.is_none() && elsewhere {
            self.unpark_elsewhere(now, account);
        }
    }

    /// Tells one backend of an account, and its sets, what keeps it from taking anything there.
    #[inline(always)]
    pub(super) fn cause_changed_at(&mut self, now: Instant, id: u16, account: u32, before: Option<Cause>, after: Option<Cause>) {
        let load = self.accounts[account as usize].load();
        let backend = &mut self.backends[usize::from(id)];
        let (was, is) = backend.accounts.change(account, load, before, after);
        if was != is {
            for &set in &backend.sets {
                self.sets[set as usize].change(now, was, is);
            }
            note_ready(&mut self.ready, id, is.is_none() && backend.wanted);
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
