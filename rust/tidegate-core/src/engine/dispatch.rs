//! From the queue to a lease: which head goes next, and to which backend.

use super::backend::{Blocked, Cause};
use super::event::{Ending, Stage};
use super::lease::LeaseId;
use super::request::{Handle, State};
use super::{BackendId, Engine, Timer};
use crate::limit::Eligible;
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
            if let Some((slot, backend)) = self.place(now, class) {
                return Some(self.lease(now, slot, backend));
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
            let slots = backend.concurrency.saturating_sub(backend.in_flight).min(backend.quota.headroom(now).max(1)) as usize;
            // No more classes than slots are looked at: each holds at least one request.
            let lengths = backend.waiting.classes().take(slots).map(|class| self.classes[class as usize].queue.len());
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

    /// The head of `class`, and the backend that takes it now. If there is none, those of its set that were open are blocked when
    /// this returns, or the head is expired since it cannot go before its deadline: look again.
    #[inline]
    fn place(&mut self, now: Instant, class: u32) -> Option<(u32, u16)> {
        let waiting = &self.classes[class as usize];
        let (set, cost) = (waiting.set, waiting.cost);
        let slot = waiting.queue.head(&self.requests)?;
        let deadline = self.requests.get(slot).deadline;
        if deadline <= now {
            // Its timer fires a fraction of a tick later.
            self.abort(now, slot, Ending::Expired(Stage::Queued));
            return None;
        }
        let mut ready = 0u32;
        let mut last = 0u16;
        for index in 0..self.sets[set as usize].backends.len() {
            let id = self.sets[set as usize].backends[index];
            let backend = &self.backends[usize::from(id)];
            if backend.blocked.is_some() {
                continue;
            }
            // A head of cost 1 waits for what any other would wait for too; a larger one is what the room is kept for.
            let reserved_for = (cost > 1).then(|| self.key(class, slot));
            match Blocked::by(backend.quota.next_eligible(now, cost).eligible, cost, reserved_for) {
                Some(blocked) => self.block(now, id, blocked),
                None => {
                    ready += 1;
                    last = id;
                }
            }
        }
        if ready == 1 {
            return Some((slot, last));
        }
        if ready == 0 {
            if deadline < Instant::FAR && self.is_hopeless(now, set, cost, deadline) {
                self.abort(now, slot, Ending::Expired(Stage::Queued));
            }
            return None;
        }
        let avoid = self.requests.history(slot).and_then(|history| history.avoid);
        let candidates = self.sets[set as usize].backends.iter().filter_map(|&id| {
            let backend = &self.backends[usize::from(id)];
            backend.blocked.is_none().then(|| Candidate {
                backend: id,
                in_flight: backend.in_flight,
                weight: backend.weight,
                failed: avoid == Some(id),
            })
        });
        route::choose(candidates).map(|backend| (slot, backend))
    }

    /// Whether the limits of every backend of a set admit a cost only after `deadline`. Service time is not estimated.
    fn is_hopeless(&self, now: Instant, set: u32, cost: u32, deadline: Instant) -> bool {
        self.sets[set as usize].backends.iter().all(|&id| {
            let verdict = self.backends[usize::from(id)].quota.next_eligible(now, cost);
            matches!(verdict.eligible, Eligible::At(at) | Eligible::Closed(at) if at >= deadline)
        })
    }

    #[inline]
    fn lease(&mut self, now: Instant, slot: u32, id: u16) -> Leased {
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

        let lease = self.leases.insert(slot, id, cost, now, blocked);
        let backend = &mut self.backends[usize::from(id)];
        backend.quota.send(now, cost);
        backend.in_flight += 1;
        let (full, timeout) = (backend.is_full(), backend.timeout);
        let entry = self.requests.get_mut(slot);
        entry.state = State::Leased;
        entry.lease = lease;
        let (priority, deadline, untimed) = (entry.node.place().band(), entry.deadline, entry.flags.untimed);
        if let Some(timeout) = timeout
            && !untimed
        {
            self.leases.add_timed(&mut backend.timed, lease);
            // A timer that is armed already was for an older attempt: it looks for the oldest when it fires.
            if !std::mem::replace(&mut backend.watched, true) {
                self.wheel.arm(now + timeout, Timer::Attempt(id));
            }
        }
        self.ledger.leased += 1;
        if full {
            self.fill(now, id);
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
            attempt: failed + 1,
            priority,
            deadline,
        }
    }

    /// Puts a request into its class: at the end of its band, or where its key belongs if it comes `back`.
    #[inline]
    pub(super) fn enqueue(&mut self, now: Instant, slot: u32, back: bool) {
        let class = self.requests.get(slot).class;
        let waiting = &mut self.classes[class as usize];
        let mark = self.sets[waiting.set as usize].mark(now);
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
        for index in 0..self.sets[set].backends.len() {
            let id = self.sets[set].backends[index];
            let backend = &mut self.backends[usize::from(id)];
            match key {
                Some(key) => backend.waiting.set(class, key),
                None => backend.waiting.remove(class),
            }
            if let Some(Blocked { reserved_for: Some(reserved), .. }) = backend.blocked
                && backend.waiting.least().map(|(key, _)| key) != Some(reserved)
            {
                self.reopen(now, id);
            } else {
                self.note_ready(id);
            }
        }
    }

    #[inline]
    fn note_ready(&mut self, id: u16) {
        let backend = &self.backends[usize::from(id)];
        let (word, bit) = (usize::from(id) / 64, 1u64 << (id % 64));
        if backend.blocked.is_none() && !backend.waiting.is_empty() {
            self.ready[word] |= bit;
        } else {
            self.ready[word] &= !bit;
        }
    }

    /// Time since this waiting request joined its queue during which all its backends were blocked: by limits, by concurrency.
    #[inline]
    pub(super) fn blocked_since(&self, now: Instant, slot: u32) -> (Span, Span) {
        let entry = self.requests.get(slot);
        let set = self.classes[entry.class as usize].set;
        let (limit, concurrency) = entry.mark.until(self.sets[set as usize].mark(now));
        // Marks are coarse: what they tell apart may be longer than the wait.
        let since = self.requests.history(slot).map_or(entry.joined_at, |history| history.waiting_since);
        let waited = now.since(since);
        let limit = limit.min(waited);
        (limit, concurrency.min(waited - limit))
    }

    /// A backend that was open has reached its concurrency cap.
    #[inline]
    fn fill(&mut self, now: Instant, id: u16) {
        let backend = &mut self.backends[usize::from(id)];
        debug_assert!(backend.blocked.is_none() && backend.timer.is_none());
        backend.blocked = Some(Blocked::FULL);
        for &set in &backend.sets {
            self.sets[set as usize].change(now, None, Some(Cause::Concurrency));
        }
        self.note_ready(id);
    }

    /// Takes nothing more from the queue to this backend until its timer, or an event, reopens it.
    fn block(&mut self, now: Instant, id: u16, blocked: Blocked) {
        let backend = &mut self.backends[usize::from(id)];
        let before = backend.blocked.replace(blocked);
        if let Some(timer) = backend.timer.take() {
            self.wheel.disarm(timer);
        }
        backend.timer = blocked.until.map(|until| self.wheel.arm(until, Timer::Backend(id)));
        let before = before.map(|before| before.cause);
        if before != Some(blocked.cause) {
            for &set in &backend.sets {
                self.sets[set as usize].change(now, before, Some(blocked.cause));
            }
        }
        self.note_ready(id);
    }

    /// Looks at a blocked backend again: first at the attempts that wait to send one more message, then at its concurrency.
    #[inline]
    pub(super) fn reopen(&mut self, now: Instant, id: u16) {
        if let Some(blocked) = self.serve_recharges(now, id) {
            self.block(now, id, blocked);
            return;
        }
        let backend = &mut self.backends[usize::from(id)];
        if backend.is_full() {
            self.block(now, id, Blocked::FULL);
            return;
        }
        if let Some(before) = backend.blocked.take() {
            if let Some(timer) = backend.timer.take() {
                self.wheel.disarm(timer);
            }
            for &set in &backend.sets {
                self.sets[set as usize].change(now, Some(before.cause), None);
            }
        }
        self.note_ready(id);
    }

    /// Blocks a backend for the attempts ahead of the queue.
    pub(super) fn block_for_recharge(&mut self, now: Instant, id: u16) {
        if let Some(blocked) = self.serve_recharges(now, id) {
            self.block(now, id, blocked);
        }
    }
}
