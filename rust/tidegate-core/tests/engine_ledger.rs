//! The ledger, the leases and the handles under random interleavings of every event.

mod common;

use std::collections::BTreeMap;

use common::{MS, NORMAL, SECOND, TICK, at, cases, spec, submit, take_all};
use proptest::prelude::*;
use tidegate_core::engine::{
    Action, Answer, BackendId, BackendSpec, ClassId, Ended, Ending, Engine, Event, Finished, Flags, Handle, Spends,
};
use tidegate_core::engine::{LeaseId, Options, Outcome, Recharge, Stage, Submission, Waits};
use tidegate_core::ledger::Ledger;
use tidegate_core::limit::Limit;
use tidegate_core::queue::Order;
use tidegate_core::retry::Retry;
use tidegate_core::time::{Instant, Span};

// ---------------------------------------------------------------------------------------------------------------------
// The model: what the owner of an engine can know from the answers that it was given.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the queue, postponed, or in a backoff.
    Queued,
    Leased(LeaseId),
    Done,
    Delivered,
    Dead,
    Expired,
    Cancelled,
}

impl State {
    fn is_pending(self) -> bool {
        matches!(self, State::Queued | State::Leased(_) | State::Done)
    }
}

#[derive(Debug)]
struct Request {
    handle: Handle,
    accepted_at: Instant,
    deadline: Instant,
    not_before: Instant,
    priority: u8,
    flags: Flags,
    state: State,
    failed: u32,
    /// Time with an attempt running.
    attempt: Span,
    cancelled: bool,
}

impl Request {
    fn expires_at(&self) -> Instant {
        if self.flags.lenient { Instant::FAR } else { self.deadline }
    }
}

#[derive(Debug)]
struct Attempt {
    request: usize,
    backend: usize,
    started_at: Instant,
    /// Of its last message.
    rejected: bool,
    waits_to_recharge: bool,
    stray: bool,
    finished: bool,
}

#[derive(Debug)]
struct Run {
    engine: Engine,
    specs: Vec<BackendSpec>,
    backends: Vec<BackendId>,
    classes: Vec<ClassId>,
    most_attempts: u32,
    now: Instant,
    requests: Vec<Request>,
    by_handle: BTreeMap<Handle, usize>,
    /// In the order in which they began, finished ones included.
    leases: Vec<LeaseId>,
    attempts: BTreeMap<u64, Attempt>,
    /// Backends that were reported as closed and not as reopened since.
    closed: Vec<bool>,
    is_closed: bool,
    /// All news is read after every step.
    prompt: bool,
    /// All news had been read before the last step: the model was up to date.
    informed: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    Tick,
    Class(u8, u32),
    Submit {
        class: usize,
        priority: u8,
        deadline: Option<u64>,
        not_before: u64,
        flow: usize,
        flags: Flags,
    },
    /// One more submission, with this priority, deadline and instant to wait for, of a request that was accepted.
    Join(usize, u8, Option<u64>, u64),
    Take,
    Ask,
    Ack(usize, Answer),
    Recharge(usize, u32),
    Finish(usize, Outcome, Answer, bool),
    Abandon(usize),
    /// Finishes once more an attempt that has been.
    Again(usize, Outcome),
    Cancel(usize),
    Deliver(usize),
    StopAccepting,
    Close,
}

impl Run {
    fn new(order: Order, specs: Vec<BackendSpec>, classes: &[(u8, u32)], retry: Retry) -> Run {
        let mut engine = Engine::new(&Options { capacity: 64, order, retry, seed: 5 }, Instant::ORIGIN);
        let backends: Vec<BackendId> = specs.iter().map(|spec| engine.add_backend(Instant::ORIGIN, spec)).collect();
        let mut run = Run {
            engine,
            closed: vec![false; specs.len()],
            specs,
            backends,
            classes: Vec::new(),
            most_attempts: retry.attempts,
            now: Instant::ORIGIN,
            requests: Vec::new(),
            by_handle: BTreeMap::new(),
            leases: Vec::new(),
            attempts: BTreeMap::new(),
            is_closed: false,
            prompt: true,
            informed: true,
        };
        run.class(0xff, 1);
        for (bits, cost) in classes {
            run.class(*bits, *cost);
        }
        run
    }

    fn class(&mut self, bits: u8, cost: u32) {
        let chosen: Vec<BackendId> = self.backends.iter().copied().filter(|id| bits >> id.0 & 1 == 1).collect();
        if let Ok(class) = self.engine.class(self.now, &chosen, cost) {
            self.classes.push(class);
        }
    }

    fn outstanding(&self, index: usize) -> Option<LeaseId> {
        let outstanding: Vec<&LeaseId> = self.leases.iter().filter(|lease| !self.attempts[&lease.to_bits()].finished).collect();
        outstanding.get(index % outstanding.len().max(1)).copied().copied()
    }

    fn attempt(&mut self, lease: LeaseId) -> &mut Attempt {
        self.attempts.get_mut(&lease.to_bits()).unwrap()
    }

    /// What a request's waits are, once it has ended at `self.now`.
    fn check_waits(&self, index: usize, waits: Waits, age: Span) -> Result<(), TestCaseError> {
        let request = &self.requests[index];
        let sum = waits.limit + waits.concurrency + waits.backoff + waits.attempt;
        prop_assert!(sum <= age, "{waits:?} add up to more than {age:?}");
        if self.prompt {
            prop_assert_eq!(age, self.now.since(request.accepted_at));
            // What a value waits for its consumer is no part of its waits, and a cancel then reports none of them.
            if request.state != State::Done {
                prop_assert_eq!(waits.attempt, request.attempt);
            }
        }
        Ok(())
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let now = self.now;
        self.informed = !self.engine.has_news();
        match *op {
            Op::Pass(nanos) => self.now = now + Span::from_nanos(nanos),
            Op::Tick => self.engine.tick(now),
            Op::Class(bits, cost) => self.class(bits, cost),
            Op::Submit { class, priority, deadline, not_before, flow, flags } => {
                if !self.engine.is_accepting() || self.engine.room().reserve(1) == 0 {
                    return Ok(());
                }
                let deadline = deadline.map_or(Instant::FAR, |span| now + Span::from_nanos(span));
                let submission = Submission {
                    class: self.classes[class % self.classes.len()],
                    priority,
                    deadline,
                    not_before: now + Span::from_nanos(not_before),
                    flow: ["", "a", "b", "c"][flow],
                    scopes: &[],
                    flags,
                };
                let handle = self.engine.submit(now, &submission);
                prop_assert!(self.by_handle.insert(handle, self.requests.len()).is_none(), "a handle was used twice");
                let (failed, attempt, cancelled, state) = (0, Span::ZERO, false, State::Queued);
                let not_before = submission.not_before;
                let request = Request {
                    handle,
                    accepted_at: now,
                    deadline,
                    not_before,
                    priority,
                    flags,
                    state,
                    failed,
                    attempt,
                    cancelled,
                };
                self.requests.push(request);
            }
            Op::Join(index, priority, deadline, not_before) => {
                let count = self.requests.len().max(1);
                let Some(request) = self.requests.get_mut(index % count) else { return Ok(()) };
                let deadline = deadline.map_or(Instant::FAR, |span| now + Span::from_nanos(span));
                let not_before = now + Span::from_nanos(not_before);
                let submission = Submission { priority, deadline, not_before, ..common::plain(self.classes[0]) };
                let joined = self.engine.join(now, request.handle, &submission);
                let can_be = matches!(request.state, State::Queued | State::Leased(_));
                prop_assert!(joined == can_be || !self.informed);
                prop_assert!(!joined || request.state.is_pending());
                if joined {
                    request.flags.held = false;
                    request.deadline = request.deadline.min(deadline);
                    request.flags.lenient = false;
                    request.not_before = request.not_before.min(not_before);
                    request.priority = request.priority.min(priority);
                }
            }
            Op::Take => {
                if let Some(leased) = self.engine.take(now) {
                    let index = self.by_handle[&leased.request];
                    let request = &mut self.requests[index];
                    // An attempt that timed out just now may be followed by the next one at once.
                    let informed = !self.engine.has_news();
                    prop_assert!(request.state == State::Queued || !informed, "{:?} was taken", request.state);
                    prop_assert!(request.state.is_pending() && request.expires_at() > now);
                    prop_assert_eq!((leased.deadline, leased.priority), (request.deadline, request.priority));
                    prop_assert!(request.not_before <= now);
                    if informed {
                        prop_assert_eq!(leased.attempt, request.failed + 1);
                    }
                    request.state = State::Leased(leased.lease);
                    let attempt = Attempt {
                        request: index,
                        backend: usize::from(leased.backend.0),
                        started_at: now,
                        rejected: false,
                        waits_to_recharge: false,
                        stray: false,
                        finished: false,
                    };
                    prop_assert!(self.attempts.insert(leased.lease.to_bits(), attempt).is_none(), "a lease was used twice");
                    self.leases.push(leased.lease);
                }
            }
            Op::Ask => {
                if self.engine.demand(now) == 0 {
                    prop_assert!(!self.engine.may_run());
                    prop_assert!(self.engine.take(now).is_none());
                } else {
                    prop_assert!(self.engine.may_run());
                    self.step(&Op::Take)?;
                }
            }
            Op::Ack(index, answer) => {
                let Some(&lease) = self.leases.get(index % self.leases.len().max(1)) else { return Ok(()) };
                if self.attempt(lease).waits_to_recharge {
                    // Of which message this is the answer depends on whether it has been let go.
                    self.drain()?;
                }
                self.engine.ack(now, lease, answer);
                let rejected =
                    answer.status == Some(429) || (matches!(answer.status, None | Some(503)) && answer.retry_after.is_some());
                self.attempt(lease).rejected |= rejected;
            }
            Op::Recharge(index, cost) => {
                let Some(&lease) = self.leases.get(index % self.leases.len().max(1)) else { return Ok(()) };
                let informed = self.informed;
                let attempt = self.attempts.get_mut(&lease.to_bits()).unwrap();
                if attempt.waits_to_recharge {
                    return Ok(());
                }
                match self.engine.recharge(now, lease, cost, &[]) {
                    Recharge::Granted => attempt.rejected = false,
                    Recharge::Waits => attempt.waits_to_recharge = true,
                    Recharge::Never(most) => prop_assert!(most < cost),
                    Recharge::Gone => prop_assert!(attempt.finished || attempt.stray || !informed),
                }
            }
            Op::Finish(index, outcome, answer, unsent) => {
                if let Some(lease) = self.outstanding(index) {
                    self.finish(lease, outcome, answer, unsent)?;
                }
            }
            Op::Abandon(index) => {
                let Some(lease) = self.outstanding(index) else { return Ok(()) };
                let informed = self.informed;
                match self.engine.abandon(now, lease) {
                    Finished::Stray => prop_assert!(self.attempt(lease).stray || !informed),
                    Finished::Dead { waits, age, .. } => {
                        let started_at = self.attempt(lease).started_at;
                        let index = self.attempt(lease).request;
                        // The interrupt that follows ends the attempt once more, which then has no request.
                        self.requests[index].attempt = self.requests[index].attempt + now.since(started_at);
                        self.check_waits(index, waits, age)?;
                        self.requests[index].state = State::Dead;
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            Op::Again(index, outcome) => {
                let Some(&lease) = self.leases.get(index % self.leases.len().max(1)) else { return Ok(()) };
                if self.attempt(lease).finished {
                    let before = self.engine.ledger();
                    let finished = self.engine.finish(now, lease, outcome, Answer::default(), false);
                    prop_assert!(matches!(finished, Finished::Stray));
                    prop_assert_eq!(self.engine.ledger(), before);
                }
            }
            Op::Cancel(index) => {
                let count = self.requests.len().max(1);
                let Some(request) = self.requests.get_mut(index % count) else { return Ok(()) };
                let cancelled = self.engine.cancel(now, request.handle);
                prop_assert!(!cancelled || request.state.is_pending());
                prop_assert!(cancelled || !request.state.is_pending() || !self.informed);
                request.cancelled |= cancelled;
            }
            Op::Deliver(index) => {
                let count = self.requests.len().max(1);
                let Some(request) = self.requests.get_mut(index % count) else { return Ok(()) };
                let before = self.engine.ledger().delivered;
                self.engine.deliver(request.handle);
                // A value whose request was just cancelled is nobody's.
                let delivered = request.state == State::Done && !request.cancelled;
                prop_assert_eq!(self.engine.ledger().delivered - before, u64::from(delivered));
                if delivered {
                    request.state = State::Delivered;
                }
            }
            Op::StopAccepting => {
                self.engine.stop_accepting();
                prop_assert!(!self.engine.is_accepting());
            }
            Op::Close => {
                self.engine.close(now);
                self.is_closed = true;
                prop_assert!(!self.engine.is_accepting() && self.engine.is_idle());
            }
        }
        Ok(())
    }

    fn finish(&mut self, lease: LeaseId, outcome: Outcome, answer: Answer, unsent: bool) -> Result<(), TestCaseError> {
        let now = self.now;
        // If not, a message that was let go or a time-out may be unknown as yet.
        let informed = !self.engine.has_news();
        let finished = self.engine.finish(now, lease, outcome, answer, unsent);
        let attempt = self.attempts.get_mut(&lease.to_bits()).unwrap();
        attempt.finished = true;
        if matches!(finished, Finished::Stray) {
            prop_assert!(attempt.stray || !informed);
            return Ok(());
        }
        prop_assert!(!attempt.stray);
        let index = attempt.request;
        let request = &mut self.requests[index];
        prop_assert_eq!(request.state, State::Leased(lease));
        request.attempt = request.attempt + now.since(attempt.started_at);
        let limited = matches!(outcome, Outcome::Limited | Outcome::PutBack) || (outcome == Outcome::Ok && attempt.rejected);
        let is_last = request.flags.lasting || request.failed + 1 >= self.most_attempts;
        let (state, waits, age, attempts) = match finished {
            Finished::Stray => unreachable!(),
            Finished::Again { failed } => {
                prop_assert!(!request.flags.lasting);
                let expected = if failed { outcome == Outcome::Failed && !is_last } else { limited };
                prop_assert!(expected || !informed);
                request.failed += u32::from(failed);
                request.state = State::Queued;
                return Ok(());
            }
            Finished::Done { waits, age, attempts } => {
                prop_assert!(outcome == Outcome::Ok && !(limited && informed));
                (if request.flags.held { State::Done } else { State::Delivered }, waits, age, attempts)
            }
            Finished::GivenUp { waits, age } => {
                prop_assert!(outcome == Outcome::Neutral && unsent);
                (State::Cancelled, waits, age, request.failed + 1)
            }
            Finished::Dead { waits, age, attempts } => {
                let expected = match outcome {
                    Outcome::Ok | Outcome::Limited | Outcome::PutBack => limited && request.flags.lasting,
                    Outcome::Failed => is_last,
                    Outcome::Neutral => !unsent,
                };
                prop_assert!(expected || !informed);
                (State::Dead, waits, age, attempts)
            }
        };
        prop_assert!(attempts == request.failed + 1 || !informed);
        self.check_waits(index, waits, age)?;
        self.requests[index].state = state;
        Ok(())
    }

    /// Reads all news.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        let actions: Vec<Action> = std::iter::from_fn(|| self.engine.pop_action()).collect();
        let ended: Vec<Ended> = std::iter::from_fn(|| self.engine.pop_ended()).collect();
        for action in &actions {
            match *action {
                Action::TimedOut { request, backend, timeout } => {
                    let request = &mut self.requests[self.by_handle[&request]];
                    prop_assert!(!request.flags.lasting);
                    prop_assert!(self.specs[usize::from(backend.0)].timeout.is_some_and(|least| timeout >= least));
                    request.failed += 1;
                }
                Action::Recharged { lease } => {
                    let attempt = self.attempt(lease);
                    prop_assert!(attempt.waits_to_recharge);
                    attempt.waits_to_recharge = false;
                    attempt.rejected = false;
                }
                Action::Interrupt { lease } => {
                    let now = self.now;
                    let attempt = self.attempts.get_mut(&lease.to_bits()).unwrap();
                    prop_assert!(!attempt.stray, "an attempt was interrupted twice");
                    attempt.stray = true;
                    let request = &mut self.requests[attempt.request];
                    request.attempt = request.attempt + now.since(attempt.started_at);
                    if request.state == State::Leased(lease) && !ended.iter().any(|ended| ended.request == request.handle) {
                        request.state = State::Queued;
                    }
                }
            }
        }
        for ended in ended {
            let index = self.by_handle[&ended.request];
            let request = &self.requests[index];
            prop_assert!(request.state.is_pending(), "{:?} and then {:?}", request.state, ended.ending);
            prop_assert_eq!(ended.failed, if request.state == State::Done { ended.failed } else { request.failed });
            self.check_waits(index, ended.waits, ended.age)?;
            let request = &mut self.requests[index];
            match ended.ending {
                Ending::Expired(stage) => {
                    prop_assert!(request.expires_at() < Instant::FAR && request.state != State::Done);
                    prop_assert!(stage == Stage::Queued || request.expires_at() <= self.now);
                    if self.informed {
                        let timed_out = |action: &Action| matches!(action, Action::TimedOut { request: timed_out, .. } if *timed_out == request.handle);
                        let leased = matches!(request.state, State::Leased(_)) && !actions.iter().any(timed_out);
                        prop_assert_eq!(stage == Stage::Leased, leased);
                    }
                    request.state = State::Expired;
                }
                Ending::Cancelled | Ending::Closed => {
                    let expected = if ended.ending == Ending::Cancelled { request.cancelled } else { self.is_closed };
                    prop_assert!(expected);
                    request.state = State::Cancelled;
                }
                Ending::Dead => {
                    prop_assert!(request.flags.lasting || request.failed >= self.most_attempts);
                    request.state = State::Dead;
                }
                Ending::Unserved(_) => prop_assert!(false, "no backend goes here"),
            }
        }
        while let Some(event) = self.engine.pop_event() {
            match event {
                Event::LimitClosed { backend, .. } => self.closed[usize::from(backend.0)] = true,
                Event::LimitReopened { backend, scope: None } => {
                    let closed = std::mem::replace(&mut self.closed[usize::from(backend.0)], false);
                    prop_assert!(closed, "reopened what was not closed");
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(!self.engine.has_news());
        Ok(())
    }

    /// What holds after every step.
    fn check(&self) -> Result<(), TestCaseError> {
        let ledger = self.engine.ledger();
        prop_assert!(ledger.balanced(), "{ledger:?}");
        prop_assert_eq!(ledger.pending(), self.engine.room().taken() as u64);
        prop_assert_eq!(ledger.accepted, self.requests.len() as u64);
        for (index, spec) in self.specs.iter().enumerate() {
            let status = self.engine.status(self.backends[index], self.now);
            let mine = || self.attempts.values().filter(|attempt| attempt.backend == index && !attempt.finished);
            prop_assert_eq!(status.in_flight() as usize, mine().count());
            prop_assert!(spec.concurrency.is_none_or(|cap| status.in_flight() <= cap));
            if !self.engine.has_news() {
                prop_assert_eq!(status.strays() as usize, mine().filter(|attempt| attempt.stray).count());
            }
        }
        if !self.engine.has_news() {
            let count = |state: State| self.requests.iter().filter(|request| request.state == state).count() as u64;
            let leased = |request: &&Request| matches!(request.state, State::Leased(_));
            let expected = Ledger {
                accepted: self.requests.len() as u64,
                delivered: count(State::Delivered),
                dead: count(State::Dead),
                expired: count(State::Expired),
                cancelled: count(State::Cancelled),
                queued: count(State::Queued),
                leased: self.requests.iter().filter(leased).count() as u64,
                done: count(State::Done),
            };
            prop_assert_eq!(ledger, expected);
            prop_assert_eq!(self.engine.is_idle(), expected.queued + expected.leased == 0);
        }
        Ok(())
    }

    /// After a tick nothing is overdue by more than the resolution of the timers.
    fn check_overdue(&self) -> Result<(), TestCaseError> {
        let overdue = |instant: Instant| instant + Span::from_nanos(TICK) <= self.now;
        for request in &self.requests {
            let waits_for_time = matches!(request.state, State::Queued | State::Leased(_));
            prop_assert!(!waits_for_time || !overdue(request.expires_at()));
        }
        for attempt in self.attempts.values().filter(|attempt| !attempt.finished && !attempt.stray) {
            if let Some(timeout) = self.specs[attempt.backend].timeout
                && !self.requests[attempt.request].flags.lasting
            {
                prop_assert!(!overdue(attempt.started_at + timeout));
            }
        }
        Ok(())
    }

    /// Lets everything come to its end, with handlers that succeed and time that only moves to the next wake-up.
    fn finish_all(&mut self) -> Result<(), TestCaseError> {
        let success = Answer { status: Some(200), retry_after: None, is_local: false };
        for _ in 0..10_000 {
            self.engine.tick(self.now);
            self.drain()?;
            self.check()?;
            while let Some(lease) = self.outstanding(0) {
                self.finish(lease, Outcome::Ok, success, false)?;
                self.drain()?;
            }
            let before = self.leases.len();
            while self.engine.demand(self.now) > 0 {
                self.step(&Op::Take)?;
                self.drain()?;
            }
            // Asking what could run may have found requests that cannot.
            self.drain()?;
            if self.leases.len() > before {
                continue;
            }
            for index in 0..self.requests.len() {
                self.step(&Op::Deliver(index))?;
            }
            match self.engine.next_wake() {
                Some(wake) => self.now = self.now.max(wake),
                None => break,
            }
        }
        self.check()?;
        prop_assert_eq!(self.engine.ledger().pending(), 0);
        prop_assert_eq!((self.engine.next_wake(), self.engine.timers(), self.engine.may_run()), (None, 0, false));
        for id in &self.backends {
            let status = self.engine.status(*id, self.now);
            prop_assert_eq!((status.in_flight(), status.strays()), (0, 0));
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What happens.

fn op() -> impl Strategy<Value = Op> {
    let time = || prop_oneof![Just(0), 1u64..1000, TICK / 2..5 * TICK, 0..100 * MS, 0..5 * SECOND];
    let pass = prop_oneof![12 => time(), 2 => 0..4000 * SECOND, 1 => 0..365 * 86_400 * SECOND];
    let retry_after = || prop_oneof![3 => Just(None), 1 => Just(Some(0)), 2 => (0..20 * SECOND).prop_map(Some)];
    let status =
        prop_oneof![3 => Just(None), 3 => Just(Some(200)), 1 => Just(Some(429)), 1 => Just(Some(503)), 1 => Just(Some(500))];
    let answer = (status, retry_after())
        .prop_map(|(status, retry_after)| Answer { status, retry_after: retry_after.map(Span::from_nanos), is_local: false })
        .boxed();
    let outcome = || prop_oneof![4 => Just(Outcome::Ok), 2 => Just(Outcome::Limited), 3 => Just(Outcome::Failed), 1 => Just(Outcome::Neutral), 1 => Just(Outcome::PutBack)];
    let flags = (prop::bool::weighted(0.4), prop::bool::weighted(0.2), prop::bool::weighted(0.2))
        .prop_map(|(held, lasting, lenient)| Flags { held, lasting, lenient });
    let index = || 0usize..1000;
    let priority = || prop_oneof![Just(0), Just(NORMAL), any::<u8>()];
    let deadline = || prop::option::weighted(0.3, time());
    let not_before = || prop_oneof![3 => Just(0), 1 => time()];
    let submit = (index(), priority(), deadline(), not_before(), 0usize..4, flags).prop_map(
        |(class, priority, deadline, not_before, flow, flags)| Op::Submit { class, priority, deadline, not_before, flow, flags },
    );
    let join = (index(), priority(), deadline(), not_before())
        .prop_map(|(index, priority, deadline, not_before)| Op::Join(index, priority, deadline, not_before));
    prop_oneof![
        120 => pass.prop_map(Op::Pass),
        40 => Just(Op::Tick),
        4 => (any::<u8>(), 1u32..5).prop_map(|(bits, cost)| Op::Class(bits, cost)),
        160 => submit,
        30 => join,
        160 => Just(Op::Take),
        40 => Just(Op::Ask),
        60 => (index(), answer.clone()).prop_map(|(index, answer)| Op::Ack(index, answer)),
        40 => (index(), 1u32..4).prop_map(|(index, cost)| Op::Recharge(index, cost)),
        120 => (index(), outcome(), answer, prop::bool::weighted(0.15))
            .prop_map(|(index, outcome, answer, unsent)| Op::Finish(index, outcome, answer, unsent)),
        10 => index().prop_map(Op::Abandon),
        10 => (index(), outcome()).prop_map(|(index, outcome)| Op::Again(index, outcome)),
        40 => index().prop_map(Op::Cancel),
        40 => index().prop_map(Op::Deliver),
        2 => Just(Op::StopAccepting),
        2 => Just(Op::Close),
    ]
}

fn limit() -> impl Strategy<Value = Limit> {
    let period = prop_oneof![1u64..1000, MS..50 * MS, SECOND..100 * SECOND];
    (any::<bool>(), 1u32..8, period, 1u32..8).prop_map(|(window, amount, period, burst)| {
        let period = Span::from_nanos(period);
        if window { Limit::window(amount, period) } else { Limit::bucket(amount, period, burst) }.unwrap()
    })
}

fn backend() -> impl Strategy<Value = BackendSpec> {
    let limits = prop::collection::vec(limit(), 0..3);
    let timeout = prop::option::weighted(0.6, prop_oneof![Just(0), 0..MS, 0..100 * MS, 0..10 * SECOND]);
    (limits, prop::option::weighted(0.8, 1u32..4), timeout).prop_map(|(limits, concurrency, timeout)| BackendSpec {
        scoped: Vec::new(),
        spends: Spends::Own(1),
        timeout: timeout.map(Span::from_nanos),
        ..spec(&limits, concurrency)
    })
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::Strict),
        (0..SECOND).prop_map(|nanos| Order::Aging(Span::from_nanos(nanos))),
        Just(Order::Deadline),
        Just(Order::Fair(vec![("a".into(), 3.0), ("b".into(), 0.1)])),
    ]
}

fn retry() -> impl Strategy<Value = Retry> {
    let base = prop_oneof![Just(0), 0..SECOND].prop_map(Span::from_nanos);
    (1u32..5, base, 0u32..1000).prop_map(|(attempts, base, budget_milli)| Retry {
        attempts,
        base,
        cap: Span::from_secs(60),
        budget_milli,
    })
}

proptest! {
    #![proptest_config(cases(300))]

    /// After every event the ledger balances and equals what its owner has been told; every place in the room is a pending request;
    /// in flight are exactly the attempts whose handlers have not returned, never more than the concurrency; every request ends once
    /// and its handle names nothing after; waits never exceed the age; and in the end nothing is left, not even a timer.
    #[test]
    fn the_ledger_is_exact_under_any_interleaving(
        order in order(),
        specs in prop::collection::vec(backend(), 1..5),
        classes in prop::collection::vec((1u8.., 1u32..5), 0..4),
        retry in retry(),
        ops in prop::collection::vec((op(), prop::bool::weighted(0.7)), 1..200),
        prompt in any::<bool>(),
    ) {
        let mut run = Run::new(order, specs, &classes, retry);
        run.prompt = prompt;
        for (op, drain) in &ops {
            run.step(op)?;
            if prompt || *drain {
                run.drain()?;
            }
            run.check()?;
            if matches!(op, Op::Tick | Op::Take | Op::Ask) && !run.engine.has_news() {
                run.check_overdue()?;
            }
        }
        run.finish_all()?;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Single facts.

const NEVER: Retry = Retry { attempts: 1, base: Span::ZERO, cap: Span::ZERO, budget_milli: 0 };

/// A request that has ended keeps its slot, and its handle is refused, until its owner has been told.
#[test]
fn an_ended_request_keeps_its_slot_until_it_is_reported() {
    let (mut engine, _, class) = common::single(NEVER, &spec(&[], None));
    let first = submit(&mut engine, at(0), &Submission { deadline: at(SECOND), ..common::plain(class) });
    engine.tick(at(2 * SECOND));
    assert_eq!((engine.ledger().expired, engine.room().taken()), (1, 0));
    assert!(!engine.cancel(at(2 * SECOND), first));
    engine.deliver(first);
    let second = submit(&mut engine, at(2 * SECOND), &common::plain(class));
    assert_ne!(first.slot(), second.slot());
    assert_eq!(engine.pop_ended().map(|ended| ended.request), Some(first));
    let third = submit(&mut engine, at(2 * SECOND), &common::plain(class));
    assert_eq!(first.slot(), third.slot());
    assert_ne!(first, third);
    assert!(!engine.cancel(at(2 * SECOND), first));
    assert!(engine.cancel(at(2 * SECOND), third));
}

/// Closing ends what waits and interrupts what runs, and leaves values that exist to their consumers.
#[test]
fn close_ends_all_but_values() {
    let (mut engine, backend, class) = common::single(NEVER, &spec(&[], Some(2)));
    let held = Submission { flags: Flags { held: true, ..Flags::default() }, ..common::plain(class) };
    let requests: Vec<Handle> = (0..4).map(|_| submit(&mut engine, at(0), &held)).collect();
    let leases = take_all(&mut engine, at(0));
    engine.finish(at(10), leases[0].lease, Outcome::Ok, Answer::default(), false);
    engine.close(at(20));
    let endings: Vec<_> = std::iter::from_fn(|| engine.pop_ended()).map(|ended| (ended.request, ended.ending)).collect();
    assert_eq!(endings, requests[1..].iter().map(|request| (*request, Ending::Closed)).collect::<Vec<_>>());
    assert_eq!(engine.pop_action(), Some(Action::Interrupt { lease: leases[1].lease }));
    assert_eq!((engine.ledger().cancelled, engine.ledger().done, engine.status(backend, at(20)).strays()), (3, 1, 1));
    engine.deliver(requests[0]);
    assert_eq!((engine.ledger().delivered, engine.ledger().pending()), (1, 0));
    assert!(matches!(engine.finish(at(30), leases[1].lease, Outcome::Ok, Answer::default(), false), Finished::Stray));
    assert_eq!(engine.status(backend, at(30)).in_flight(), 0);
}

/// A wait is blamed on a limit while one blocks any of the backends and none is open, on concurrency while all are at their cap.
#[test]
fn waits_name_what_the_request_waited_for() {
    let mut engine = common::engine(NEVER);
    let limited = engine.add_backend(Instant::ORIGIN, &spec(&[Limit::window(1, Span::from_secs(10)).unwrap()], None));
    let capped = engine.add_backend(Instant::ORIGIN, &spec(&[], Some(1)));
    let class = engine.class(at(0), &[limited, capped], 1).unwrap();
    let requests: Vec<Handle> = (0..3).map(|_| submit(&mut engine, at(0), &common::plain(class))).collect();
    let leases = take_all(&mut engine, at(0));
    assert_eq!(leases.iter().map(|leased| leased.backend).collect::<Vec<_>>(), [limited, capped]);
    // Blocked by the limit, which an acknowledgement has yet to start, and by the cap.
    engine.ack(at(SECOND), leases[0].lease, Answer::default());
    assert!(engine.take(at(SECOND)).is_none());
    // The cap opens after 4 s; the last request waits with an open backend for 2 s until a worker comes.
    engine.finish(at(4 * SECOND), leases[1].lease, Outcome::Ok, Answer::default(), false);
    let last = engine.take(at(6 * SECOND)).unwrap();
    assert_eq!((last.request, last.backend), (requests[2], capped));
    match engine.finish(at(7 * SECOND), last.lease, Outcome::Ok, Answer::default(), false) {
        Finished::Done { waits, age, attempts: 1 } => {
            let near = |span: Span, nanos: u64| span.as_nanos().abs_diff(nanos) <= 2 * MS;
            assert!(near(waits.limit, 4 * SECOND) && waits.concurrency == Span::ZERO, "{waits:?}");
            assert_eq!((waits.backoff, waits.attempt, age), (Span::ZERO, Span::from_secs(1), Span::from_secs(7)));
        }
        other => panic!("{other:?}"),
    }
}
