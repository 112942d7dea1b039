//! From a lease to what becomes of its request: acknowledgement, extra messages, outcome, time-out.

use super::account::Extra;
use super::backend::{Blocked, Cause};
use super::event::{Action, Ending, Event};
use super::lease::LeaseId;
use super::request::{Avoid, Handle, State, Waits};
use super::{BackendId, Engine, Timer};
use crate::health::Sign;
use crate::limit::GateState;
use crate::time::{Instant, Span};

/// What one attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has a value.
    Ok,
    /// The server rejected it for its limits: it waits and costs no attempt.
    Limited,
    /// The backend failed: it is retried.
    Failed,
    /// The request itself is at fault, or was given up: it is not retried.
    Neutral,
    /// It ended between two messages, nothing having failed, for another account may be open: it waits and costs no attempt.
    PutBack,
}

impl Outcome {
    /// What a reply with this status means, when it is not a value.
    ///
    /// 429, and 503 with `Retry-After`, are rejections; other server errors and 408 are failures; the rest is the caller's.
    pub const fn of_status(status: u16, has_retry_after: bool) -> Outcome {
        match status {
            429 => Outcome::Limited,
            503 if has_retry_after => Outcome::Limited,
            408 | 500..=599 => Outcome::Failed,
            _ => Outcome::Neutral,
        }
    }
}

/// What the response headers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status, when there is one.
    pub status: Option<u16>,
    /// How long the server asks us to wait.
    pub retry_after: Option<Span>,
    /// The failure was on this side of the line: no name was found, no proxy was there.
    pub is_local: bool,
}

impl Answer {
    /// Without a status, that the server asks us to wait says it.
    fn is_rejection(self) -> bool {
        let waits = self.retry_after.is_some();
        self.status.map_or(waits, |status| Outcome::of_status(status, waits) == Outcome::Limited)
    }
}

/// What becomes of a request when its attempt is over. All but the first two end it.
#[derive(Clone, Copy, Debug)]
pub enum Finished {
    /// The attempt had been given up before: its request moved on then. Also when there is no such lease.
    Stray,
    /// It waits for another attempt. `failed`: this one is to be noted among its attempts.
    Again {
        /// Whether the attempt counts.
        failed: bool,
    },
    /// It has a value. Unless it is held, it counts as delivered.
    Done {
        /// What its time went to, this attempt included.
        waits: Waits,
        /// From acceptance until now.
        age: Span,
        /// Attempts it took.
        attempts: u32,
    },
    /// Its attempt was given up before anything was sent, or is not to be repeated since the engine winds down: it counts as cancelled.
    GivenUp {
        /// What its time went to.
        waits: Waits,
        /// From acceptance until now.
        age: Span,
    },
    /// It ends without a value.
    Dead {
        /// What its time went to, this attempt included.
        waits: Waits,
        /// From acceptance until now.
        age: Span,
        /// Attempts it took.
        attempts: u32,
    },
}

/// Whether an attempt may send one more message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recharge {
    /// Now; it is charged.
    Granted,
    /// [`Action::Recharged`] will say when.
    Waits,
    /// It costs more than a limit ever admits; the most that is admitted.
    Never(u32),
    /// The attempt is over, or was given up.
    Gone,
}

impl Engine {
    /// Response headers arrived for an attempt: the clocks of what it sent start. Saying it again changes nothing, unless the
    /// attempt has sent more since.
    #[inline]
    pub fn ack(&mut self, now: Instant, lease: LeaseId, answer: Answer) {
        let Some(index) = self.leases.find(lease) else { return };
        self.answered(now, index, answer.is_rejection(), answer.retry_after);
    }

    /// The request of an attempt; nothing once that is over or was given up.
    pub fn request_of(&self, lease: LeaseId) -> Option<Handle> {
        let slot = self.leases.get(self.leases.find(lease)?).request?;
        Some(self.requests.handle(slot))
    }

    /// A running attempt wants to send one more message of `cost`, which its limits must admit, ahead of the queue.
    /// What it sent before counts as acknowledged. `scopes` as in [`Submission`](super::Submission); what is not named is as before.
    pub fn recharge(&mut self, now: Instant, lease: LeaseId, cost: u32, scopes: &[(&str, &str)]) -> Recharge {
        let Some(index) = self.leases.find(lease) else { return Recharge::Gone };
        let running = self.leases.get(index);
        if running.request.is_none() {
            return Recharge::Gone;
        }
        let account = running.account;
        let capacity = self.accounts[account as usize].capacity();
        if cost > capacity {
            return Recharge::Never(capacity);
        }
        self.answered(now, index, false, None);
        self.completed(now, now, index);
        let before = std::mem::take(&mut self.leases.get_mut(index).scopes);
        let scopes = self.hold_said(account, scopes, &before);
        self.leases.get_mut(index).scopes = before;
        self.accounts[account as usize].recharges.push_back(Extra { lease, cost, scopes, waits_for: None });
        let waited = self.actions.len();
        self.block_for_recharge(now, account);
        let mine = |action: &Action| matches!(action, Action::Recharged { lease: granted } if *granted == lease);
        match self.actions.iter().skip(waited).position(mine) {
            Some(at) => {
                self.actions.remove(waited + at);
                Recharge::Granted
            }
            None => Recharge::Waits,
        }
    }

    /// A message that an attempt asked to send is not sent after all. It is the `nth`, from 0, of those that it waits for or
    /// has been granted without the shell having read so.
    pub fn withdraw(&mut self, now: Instant, lease: LeaseId, nth: usize, cost: u32) {
        let Some(index) = self.leases.find(lease) else { return };
        let mine = |action: &Action| matches!(action, Action::Recharged { lease: granted } if *granted == lease);
        let granted = self.actions.iter().filter(|action| mine(action)).count();
        if nth < granted {
            let at = (0..self.actions.len()).filter(|&at| mine(&self.actions[at])).nth(nth);
            at.map(|at| self.actions.remove(at));
            self.unsend(now, lease, cost);
            return;
        }
        let account = self.leases.get(index).account;
        let recharges = &mut self.accounts[account as usize].recharges;
        let at = (0..recharges.len()).filter(|&at| recharges[at].lease == lease).nth(nth - granted);
        if let Some(extra) = at.and_then(|at| recharges.remove(at)) {
            self.forget_extra(now, &extra);
            self.reopen(now, account);
        }
    }

    /// The last message that an attempt was granted is not sent after all: its charge is taken back, unless it was acknowledged
    /// meanwhile.
    pub fn unsend(&mut self, now: Instant, lease: LeaseId, cost: u32) {
        let Some(index) = self.leases.find(lease) else { return };
        let lease = self.leases.get_mut(index);
        if lease.unacked < cost {
            return;
        }
        lease.unacked -= cost;
        lease.unfinished -= cost;
        let (account, sent_at) = (lease.account, lease.sent_at);
        self.refund(now, index, sent_at, cost);
        if self.accounts[account as usize].cause() == Some(Cause::Limit) {
            self.reopen(now, account);
        }
    }

    /// The handler of an attempt has returned: its concurrency is free. `unsent`: no byte of it left this machine.
    ///
    /// A value, a rejection or a status means that headers have arrived, now if not before. What else is not acknowledged by
    /// now stays without an answer.
    #[inline]
    pub fn finish(&mut self, now: Instant, lease: LeaseId, outcome: Outcome, answer: Answer, unsent: bool) -> Finished {
        let Some(index) = self.leases.find(lease) else { return Finished::Stray };
        let running = self.leases.get(index);
        let (id, account, request) = (running.backend, running.account, running.request);
        let dropped = self.drop_recharges(now, account, lease);
        let running = self.leases.get(index);
        if unsent && running.unacked > 0 {
            let (sent_at, unacked) = (running.sent_at, running.unacked);
            let lease = self.leases.get_mut(index);
            lease.unacked = 0;
            lease.unfinished -= unacked;
            self.refund(now, index, sent_at, unacked);
            self.limit_changed(now, account);
        } else if request.is_none() {
            // What it sent is settled, but a rejection is news all the same.
            if outcome == Outcome::Limited {
                self.answered(now, index, true, answer.retry_after);
            }
        } else if matches!(outcome, Outcome::Ok | Outcome::Limited) || answer.status.is_some() {
            self.answered(now, index, outcome == Outcome::Limited, answer.retry_after);
        } else {
            self.unanswered(now, index);
        }
        self.completed(now, now, index);
        let rejected = self.leases.get(index).rejected;
        if (self.monitor.enabled || self.learns) && request.is_some() {
            self.judge_end(now, index, outcome, answer, unsent);
        }
        self.leases.remove_timed(&mut self.backends[usize::from(id)].timed, index);
        let finished = match request {
            None => {
                self.backends[usize::from(id)].strays -= 1;
                Finished::Stray
            }
            Some(slot) => match outcome {
                Outcome::Ok if rejected => self.limited(now, slot, index),
                Outcome::Ok => {
                    self.note_load(now, index, account, false);
                    self.succeeded(now, slot, index)
                }
                Outcome::Limited | Outcome::PutBack => self.limited(now, slot, index),
                Outcome::Failed => {
                    self.note_load(now, index, account, true);
                    self.failed(now, slot, index, answer.is_local)
                }
                Outcome::Neutral if unsent => self.given_up(now, slot, index),
                Outcome::Neutral => self.die(now, slot, index),
            },
        };
        let scopes = self.leases.remove(index);
        if !scopes.is_empty() {
            self.release_scopes(now, scopes);
        }
        self.vacate(account, id);
        if dropped {
            self.reopen(now, account);
        } else if self.accounts[account as usize].cause() == Some(Cause::Concurrency) {
            self.unfill(now, account);
        }
        if self.leaving > 0 {
            self.note_gone(now, id);
        }
        finished
    }

    /// The shell gives an attempt up while its handler still runs (a thread cannot be stopped): its request ends dead, the
    /// lease goes on as a stray until it is finished.
    pub fn abandon(&mut self, now: Instant, lease: LeaseId) -> Finished {
        let Some(index) = self.leases.find(lease) else { return Finished::Stray };
        let Some(slot) = self.leases.get(index).request else { return Finished::Stray };
        let finished = self.die(now, slot, index);
        self.detach(now, index);
        finished
    }

    #[inline]
    fn succeeded(&mut self, now: Instant, slot: u32, lease: u32) -> Finished {
        let waits = self.waits_with(now, slot, lease);
        let failed = self.requests.history(slot).map_or(0, |history| history.failed);
        let age = self.requests.age(now, slot);
        self.ledger.leased -= 1;
        let entry = self.requests.get_mut(slot);
        if entry.flags.held {
            entry.state = State::Done;
            if let Some(timer) = entry.timer.take() {
                self.wheel.disarm(timer);
            }
            self.ledger.done += 1;
        } else {
            self.ledger.delivered += 1;
            self.release(slot);
        }
        Finished::Done { waits, age, attempts: failed + 1 }
    }

    fn limited(&mut self, now: Instant, slot: u32, lease: u32) -> Finished {
        if self.requests.get(slot).flags.lasting {
            return self.die(now, slot, lease);
        }
        if self.winding_down {
            return self.given_up(now, slot, lease);
        }
        self.put_back(now, slot, lease);
        Finished::Again { failed: false }
    }

    /// A leased request waits again, at its old place; its attempt costs it none.
    pub(super) fn put_back(&mut self, now: Instant, slot: u32, lease: u32) {
        let waits = self.waits_with(now, slot, lease);
        let history = self.requests.history_mut(slot);
        history.attempted = true;
        history.waits = waits;
        history.waiting_since = now;
        self.ledger.leased -= 1;
        self.enqueue(now, slot, true);
    }

    /// What the end of an attempt says of its backend.
    fn judge_end(&mut self, now: Instant, index: u32, outcome: Outcome, answer: Answer, unsent: bool) {
        let lease = self.leases.get(index);
        let id = lease.backend;
        let sign = match outcome {
            _ if unsent => Sign::Nothing,
            _ if lease.rejected => Sign::Rejects,
            Outcome::Ok => Sign::Works,
            Outcome::Limited => Sign::Rejects,
            Outcome::PutBack => Sign::Nothing,
            Outcome::Failed if answer.is_local && self.failed_here(now, id, lease.account) => Sign::Nothing,
            Outcome::Failed => self.sign_of_failure(index),
            // It has answered.
            Outcome::Neutral if answer.status.is_some() => Sign::Works,
            Outcome::Neutral => Sign::Nothing,
        };
        match outcome {
            Outcome::Failed if sign != Sign::Nothing => self.penalise(now, id, answer.retry_after),
            _ if sign == Sign::Rejects => self.penalise(now, id, answer.retry_after),
            _ => {}
        }
        self.judge(now, index, sign);
    }

    /// What a failure says. A request that fails twice running at the same backend may be at fault itself: that is no news.
    fn sign_of_failure(&self, index: u32) -> Sign {
        let lease = self.leases.get(index);
        let history = lease.request.and_then(|slot| self.requests.history(slot));
        let is_again = history.is_some_and(|history| {
            history.avoid.is_some_and(|avoid| (avoid.backend, avoid.account) == (lease.backend, lease.account))
        });
        if is_again && !lease.trial.is_on_trial() { Sign::Nothing } else { Sign::Fails }
    }

    fn failed(&mut self, now: Instant, slot: u32, lease: u32, is_local: bool) -> Finished {
        let leased = self.leases.get(lease);
        let (id, account) = (leased.backend, leased.account);
        let is_own_fault = is_local && self.own_fault.tried_again_at.is_some();
        let is_lasting = self.requests.get(slot).flags.lasting;
        if !is_lasting && !self.winding_down && (is_own_fault || self.is_on_trial(id, account)) {
            return self.failed_on_trial(now, slot, lease);
        }
        let failed = self.requests.history(slot).map_or(0, |history| history.failed) + 1;
        if self.is_last_attempt(slot, failed) {
            return self.die(now, slot, lease);
        }
        if self.winding_down {
            return self.given_up(now, slot, lease);
        }
        let waits = self.waits_with(now, slot, lease);
        let history = self.requests.history_mut(slot);
        history.attempted = true;
        history.waits = waits;
        history.failed = failed;
        history.avoid = Some(Avoid { backend: id, account });
        history.waiting_since = now;
        let backoff = self.retry.backoff(failed, &mut self.random);
        self.delay(slot, now + backoff, State::Delayed);
        Finished::Again { failed: true }
    }

    /// An attempt failed at a backend that is known not to work, or while nothing does: it costs none. The request goes elsewhere at once
    /// if it can. Else it lets others be tried first: it may be the one that the backend fails on.
    fn failed_on_trial(&mut self, now: Instant, slot: u32, lease: u32) -> Finished {
        let waits = self.waits_with(now, slot, lease);
        let leased = self.leases.get(lease);
        let (id, account) = (leased.backend, leased.account);
        let tried_again_at = self.own_fault.tried_again_at.max(self.tried_again_at(id, account));
        let history = self.requests.history_mut(slot);
        history.attempted = true;
        history.waits = waits;
        history.free = history.free.saturating_add(1);
        history.avoid = Some(Avoid { backend: id, account });
        history.waiting_since = now;
        let backoff = self.retry.backoff(1, &mut self.random);
        let set = self.classes[self.requests.get(slot).class as usize].set;
        let goes_elsewhere = self.sets[set as usize].backends.iter().any(|&other| self.works(other));
        if goes_elsewhere {
            self.ledger.leased -= 1;
            self.enqueue(now, slot, true);
        } else {
            self.delay(slot, tried_again_at.unwrap_or(now) + backoff, State::Held);
        }
        Finished::Again { failed: false }
    }

    /// A request that was leased waits until then, out of its queue.
    fn delay(&mut self, slot: u32, until: Instant, state: State) {
        let entry = self.requests.get_mut(slot);
        entry.state = state;
        if let Some(timer) = entry.timer.take() {
            self.wheel.disarm(timer);
        }
        entry.timer = Some(self.wheel.arm(until.min(entry.expires_at()), Timer::Request(slot)));
        self.ledger.leased -= 1;
        self.ledger.queued += 1;
    }

    fn given_up(&mut self, now: Instant, slot: u32, lease: u32) -> Finished {
        let waits = self.waits_with(now, slot, lease);
        let age = self.requests.age(now, slot);
        self.ledger.leased -= 1;
        self.ledger.cancelled += 1;
        self.release(slot);
        Finished::GivenUp { waits, age }
    }

    /// Whether a request has had all the attempts that it may have, `failed` in all.
    fn is_last_attempt(&self, slot: u32, failed: u32) -> bool {
        failed >= self.retry.attempts || self.requests.get(slot).flags.lasting
    }

    fn die(&mut self, now: Instant, slot: u32, lease: u32) -> Finished {
        let waits = self.waits_with(now, slot, lease);
        let failed = self.requests.history(slot).map_or(0, |history| history.failed);
        let age = self.requests.age(now, slot);
        self.ledger.leased -= 1;
        self.ledger.dead += 1;
        self.release(slot);
        Finished::Dead { waits, age, attempts: failed + 1 }
    }

    /// Times out the attempts that have run for as long as their backend allows, and watches the oldest of the others.
    pub(super) fn time_out_oldest(&mut self, now: Instant, id: u16) {
        let Some(timeout) = self.backends[usize::from(id)].timeout else { return };
        while let Some(oldest) = self.backends[usize::from(id)].timed.oldest() {
            let due = self.leases.get(oldest).started_at + timeout;
            if due > now {
                self.wheel.arm(due, Timer::Attempt(id));
                self.backends[usize::from(id)].watched = true;
                return;
            }
            self.time_out(now, oldest);
        }
    }

    /// The attempt has run for as long as its backend allows: its request fails this attempt, the handler is interrupted.
    fn time_out(&mut self, now: Instant, index: u32) {
        let lease = self.leases.get(index);
        let Some(slot) = lease.request else { return };
        let backend = BackendId(lease.backend);
        let timeout = now.since(lease.started_at);
        let account = lease.account;
        self.note_load(now, index, account, true);
        let request = self.requests.handle(slot);
        self.actions.push_back(Action::TimedOut { request, backend, timeout });
        let sign = self.sign_of_failure(index);
        self.penalise(now, backend.0, None);
        self.judge(now, index, sign);
        let failed = self.requests.history(slot).map_or(0, |history| history.failed) + 1;
        let lease = self.leases.get(index);
        let costs_nothing = self.is_on_trial(lease.backend, lease.account) && !self.requests.get(slot).flags.lasting;
        if self.winding_down && !self.is_last_attempt(slot, failed) {
            self.abort(now, slot, Ending::Cancelled);
        } else if costs_nothing || !self.is_last_attempt(slot, failed) {
            self.failed(now, slot, index, false);
            self.detach(now, index);
        } else {
            self.requests.history_mut(slot).failed = failed;
            self.abort(now, slot, Ending::Dead);
        }
    }

    /// Separates an attempt from its request. It keeps its concurrency until its handler returns.
    pub(super) fn detach(&mut self, now: Instant, index: u32) {
        self.judge(now, index, Sign::Nothing);
        let lease = self.leases.get_mut(index);
        lease.request = None;
        let account = lease.account;
        let backend = &mut self.backends[usize::from(lease.backend)];
        backend.strays += 1;
        self.leases.remove_timed(&mut backend.timed, index);
        let lease = self.leases.id(index);
        let dropped = self.drop_recharges(now, account, lease);
        self.unanswered(now, index);
        let longest = self.accounts[account as usize].longest_latency;
        self.completed(now, now + longest, index);
        if dropped {
            self.reopen(now, account);
        }
        self.actions.push_back(Action::Interrupt { lease });
    }

    /// What a leased request's time went to, its running attempt included.
    #[inline]
    pub(super) fn waits_with(&self, now: Instant, slot: u32, lease: u32) -> Waits {
        let lease = self.leases.get(lease);
        let (limit, concurrency) = lease.blocked;
        let this = Waits { limit, concurrency, backoff: Span::ZERO, attempt: now.since(lease.started_at) };
        self.requests.history(slot).map_or(this, |history| history.waits + this)
    }

    /// The server has answered what an attempt sent: its clocks start, and the gate learns of it. Only then may others go.
    #[inline]
    fn answered(&mut self, now: Instant, index: u32, rejection: bool, retry_after: Option<Span>) {
        let lease = self.leases.get_mut(index);
        let (backend, account, sent_at) = (BackendId(lease.backend), lease.account, lease.sent_at);
        let unacked = std::mem::take(&mut lease.unacked);
        // The acknowledgement and the outcome of one attempt are one rejection.
        let was_rejected = lease.rejected;
        lease.rejected |= rejection;
        let is_scoped = !lease.scopes.is_empty();
        let charged = &mut self.accounts[account as usize];
        if unacked > 0 {
            charged.longest_latency = charged.longest_latency.max(now.since(sent_at));
            charged.quota.ack_sent(now, sent_at, unacked);
            if !rejection {
                self.observe_latency(now, backend.0, now.since(sent_at));
            }
        }
        let charged = &mut self.accounts[account as usize];
        if was_rejected {
            // It has been told.
        } else if rejection {
            self.tally(account).lost(unacked);
            self.backends[usize::from(backend.0)].rejections += 1;
            if self.is_of_account(now, index) {
                self.rejected(now, sent_at, retry_after, (backend, account, None));
            } else {
                // It says nothing about the limits that it was charged to besides.
                self.accounts[account as usize].quota.unanswered(sent_at);
            }
        } else if charged.quota.accepted(sent_at) {
            self.push_event(Event::LimitReopened { backend, scope: None });
        }
        if is_scoped {
            self.scopes_answered(now, index, unacked, (!was_rejected).then_some((rejection, retry_after)));
        }
        self.limit_changed(now, account);
        if is_scoped {
            self.scopes_changed(now, index);
        }
    }

    /// The same for the scopes that an attempt is charged to; what the server said of it, if that is news.
    fn scopes_answered(&mut self, now: Instant, index: u32, unacked: u32, news: Option<(bool, Option<Span>)>) {
        let lease = self.leases.get_mut(index);
        let (backend, account, sent_at) = (BackendId(lease.backend), lease.account, lease.sent_at);
        let scopes = std::mem::take(&mut lease.scopes);
        for &scope in &scopes {
            let quota = &mut self.scopes.get_mut(scope).quota;
            if unacked > 0 {
                quota.ack_sent(now, sent_at, unacked);
            }
            match news {
                Some((true, retry_after)) => self.rejected(now, sent_at, retry_after, (backend, account, Some(scope))),
                Some((false, _)) if quota.accepted(sent_at) => {
                    let scope = Some(self.scopes.scope(scope));
                    self.push_event(Event::LimitReopened { backend, scope });
                }
                _ => {}
            }
        }
        self.leases.get_mut(index).scopes = scopes;
    }

    /// The server rejected a message: the quota of an account, or of a scope on it, closes.
    fn rejected(
        &mut self,
        now: Instant,
        sent_at: Instant,
        retry_after: Option<Span>,
        (backend, account, scope): (BackendId, u32, Option<u32>),
    ) {
        let quota = match scope {
            None => &mut self.accounts[account as usize].quota,
            Some(scope) => &mut self.scopes.get_mut(scope).quota,
        };
        let step = quota.climb(now, sent_at);
        let is_closed = matches!(quota.gate(now), GateState::Closed(_));
        let closed = quota.rejected(now, sent_at, retry_after).filter(|_| !is_closed);
        let scope = scope.map(|scope| self.scopes.scope(scope));
        if let Some(step) = step {
            self.push_event(Event::LimitStepped { backend, scope: scope.clone(), step });
        }
        if let Some(until) = closed {
            self.push_event(Event::LimitClosed { backend, scope, until });
        }
    }

    /// Takes back what an attempt was charged for a message that did not leave this machine.
    fn refund(&mut self, now: Instant, index: u32, sent_at: Instant, cost: u32) {
        let lease = self.leases.get(index);
        let account = lease.account;
        self.backends[usize::from(lease.backend)].messages -= 1;
        self.accounts[account as usize].quota.refund(sent_at, cost);
        for &scope in &lease.scopes {
            self.scopes.get_mut(scope).quota.refund(sent_at, cost);
        }
        self.tally(account).lost(cost);
        self.scopes_changed(now, index);
    }

    /// What an attempt sent gets no answer: charged as if its headers came as late as any have.
    fn unanswered(&mut self, now: Instant, index: u32) {
        let lease = self.leases.get_mut(index);
        let unacked = std::mem::take(&mut lease.unacked);
        if unacked == 0 {
            return;
        }
        let (account, sent_at) = (lease.account, lease.sent_at);
        let charged = &mut self.accounts[account as usize];
        let counted_by = now + charged.longest_latency;
        charged.quota.ack_sent(counted_by, sent_at, unacked);
        charged.quota.unanswered(sent_at);
        for &scope in &lease.scopes {
            let quota = &mut self.scopes.get_mut(scope).quota;
            quota.ack_sent(counted_by, sent_at, unacked);
            quota.unanswered(sent_at);
        }
        self.completed(now, counted_by, index);
        self.limit_changed(now, account);
        self.scopes_changed(now, index);
    }

    /// What an attempt sent is over, counted by `at`: the clocks that are anchored at the finish start.
    #[inline]
    fn completed(&mut self, now: Instant, at: Instant, index: u32) {
        let lease = self.leases.get_mut(index);
        let (account, started_at, unfinished) = (lease.account, lease.started_at, std::mem::take(&mut lease.unfinished));
        let charged = &mut self.accounts[account as usize];
        let waits = |scope: &u32| self.scopes.get(*scope).quota.waits_for_finish();
        if unfinished == 0 || !(charged.quota.waits_for_finish() || lease.scopes.iter().any(waits)) {
            return;
        }
        charged.longest_latency = charged.longest_latency.max(now.since(started_at));
        charged.quota.finish(at, unfinished);
        for &scope in &lease.scopes {
            self.scopes.get_mut(scope).quota.finish(at, unfinished);
        }
        self.limit_changed(now, account);
        self.scopes_changed(now, index);
    }

    /// Something happened to the quotas of the scopes that an attempt is charged to.
    #[inline]
    fn scopes_changed(&mut self, now: Instant, index: u32) {
        for nth in 0..self.leases.get(index).scopes.len() {
            self.scope_changed(now, self.leases.get(index).scopes[nth]);
        }
    }

    /// Something happened to a quota: what it holds back may go earlier than it was told.
    #[inline]
    fn limit_changed(&mut self, now: Instant, account: u32) {
        let changed = &self.accounts[account as usize];
        let Some(blocked) = changed.blocked.filter(|blocked| blocked.cause == Cause::Limit) else { return };
        if blocked.ends_earlier(changed.quota.next_eligible(now, blocked.cost).eligible) {
            self.reopen(now, account);
        }
    }

    /// Grants what the limits admit of the messages that running attempts wait to send. If some must wait on, what the
    /// account is blocked by for their sake. One that only a scope of its own has no room for holds nobody else up.
    #[inline]
    pub(super) fn serve_recharges(&mut self, now: Instant, account: u32) -> Option<Blocked> {
        let mut at = 0;
        while let Some(extra) = self.accounts[account as usize].recharges.get(at) {
            if extra.waits_for.is_some() {
                at += 1;
                continue;
            }
            let cost = extra.cost;
            let quota = &self.accounts[account as usize].quota;
            if let Some(blocked) = Blocked::by(quota.next_eligible(now, cost).eligible, cost, None) {
                return Some(blocked);
            }
            let Some(extra) = self.accounts[account as usize].recharges.remove(at) else { break };
            match self.scope_of_extra_in_the_way(now, &extra.scopes, cost) {
                Some(scope) => {
                    let waiting = Extra { waits_for: Some(scope), ..extra };
                    self.accounts[account as usize].recharges.insert(at, waiting);
                    at += 1;
                }
                None => self.grant(now, account, extra),
            }
        }
        None
    }

    /// An attempt may send the message that it asked for.
    fn grant(&mut self, now: Instant, account: u32, extra: Extra) {
        let Extra { lease, cost, scopes, .. } = extra;
        self.accounts[account as usize].quota.send(now, cost);
        self.tally(account).sent(cost);
        for &scope in &scopes {
            self.scopes.get_mut(scope).quota.send(now, cost);
        }
        let mut released = scopes;
        if let Some(index) = self.leases.find(lease) {
            let lease = self.leases.get_mut(index);
            self.backends[usize::from(lease.backend)].messages += 1;
            lease.unacked += cost;
            lease.unfinished += cost;
            lease.sent_at = now;
            lease.rejected = false;
            std::mem::swap(&mut lease.scopes, &mut released);
        }
        for scope in released {
            self.release_scope(now, scope);
        }
        self.actions.push_back(Action::Recharged { lease });
    }

    /// An attempt that is over sends nothing more; to be called before its end is settled, which may grant it something. Whether it
    /// waited to: then its account is to be reopened once all is settled.
    #[inline]
    fn drop_recharges(&mut self, now: Instant, account: u32, lease: LeaseId) -> bool {
        !self.accounts[account as usize].recharges.is_empty() && self.drop_recharges_of(now, account, lease)
    }

    #[inline(never)]
    fn drop_recharges_of(&mut self, now: Instant, account: u32, lease: LeaseId) -> bool {
        let mut dropped = false;
        while let Some(at) = self.accounts[account as usize].recharges.iter().position(|extra| extra.lease == lease) {
            dropped = true;
            if let Some(extra) = self.accounts[account as usize].recharges.remove(at) {
                self.forget_extra(now, &extra);
            }
        }
        dropped
    }

    /// A message that was asked for is not sent.
    fn forget_extra(&mut self, now: Instant, extra: &Extra) {
        if let Some(scope) = extra.waits_for {
            self.extra_left(now, scope);
        }
        for &scope in &extra.scopes {
            self.release_scope(now, scope);
        }
    }
}
