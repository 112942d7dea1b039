//! What the lock guards: the engine, and Python's side of requests, backends and workers.
//!
//! Nothing here runs Python code. Objects to be called or dropped are returned.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;

use pyo3::prelude::*;
use pyo3::types::PyString;
use tidegate_core::engine::{
    Action, Answer, BackendId, Ended, Ending, Engine, Event, Finished, Handle, LeaseId, Outcome, Scope, Slice, Staffing, Stage,
    Submission,
};
use tidegate_core::health::Phase;
use tidegate_core::queue::ingress::Consumer;
use tidegate_core::time::{Instant, Span};

use crate::convert::seconds;
use crate::pending::{Conclusion, End, Joined, Listener, Pending};
use crate::quota;
use crate::request::{Attempt, Old, Request};
use crate::scopes::Scopes;
use crate::stream::Stream;
use crate::terms::Terms;
use crate::ticket::Ticket;

/// A request from another thread.
pub(crate) struct Foreign {
    pub(crate) target: Py<PyAny>,
    pub(crate) future: Py<PyAny>,
    pub(crate) terms: Py<Terms>,
}

pub(crate) struct Backend {
    pub(crate) name: Py<PyString>,
    pub(crate) runner: Py<PyAny>,
    /// It may be named: it was not removed.
    pub(crate) is_here: bool,
    /// As declared; none when it has a single one without a name.
    pub(crate) accounts: Vec<Py<PyAny>>,
}

#[derive(Clone, Copy)]
struct Running {
    lease: LeaseId,
    request: Handle,
    backend: BackendId,
}

#[derive(Default)]
struct Worker {
    running: Option<Running>,
    /// The object of its last attempt.
    request: Option<Py<Request>>,
    /// It was called to work, and has not asked for any yet.
    coming: bool,
    /// Its task was cancelled: it takes nothing more, for the next request would get what the handler made of that.
    retired: bool,
}

/// The next attempt of a worker.
pub(crate) enum Next {
    /// There is none. The object of the last one is of no use.
    Nothing(Option<Py<Request>>),
    /// It is in the object of the last one, which held this.
    Again(Py<Request>, Old),
    /// It is to be made an object of. That of the last one is of no use.
    New(Attempt, Option<Py<Request>>),
}

/// How to ask for a pump: from the loop's thread, from another.
pub(crate) struct Wake {
    pub(crate) here: Py<PyAny>,
    pub(crate) elsewhere: Py<PyAny>,
    /// The loop's thread.
    pub(crate) owner: ThreadId,
}

/// What an ended attempt leaves: a request to conclude, and an object that nobody wants.
type Finish = (Option<Conclusion>, Option<Py<PyAny>>);

/// A change of state: its kind, the backend, seconds that it lasts, and a step of the kind ladder: the ordinal of the limit, the kinds
/// before and after, units used.
pub(crate) type Change = (
    &'static str,
    Option<Py<PyString>>,
    Option<f64>,
    Option<(u16, &'static str, &'static str, u32)>,
    Option<(String, String)>,
    Evidence,
);

/// Which account of a backend, and of how many attempts so many failed; of how many backends so many do.
pub(crate) type Evidence = (Option<u32>, Option<(u32, u32)>);

/// What a pump found to do.
pub(crate) struct News {
    /// Workers whose attempts were given up.
    pub(crate) interrupt: Vec<u32>,
    pub(crate) staffing: Staffing,
    /// The loop's timer is to be armed anew, this far ahead.
    pub(crate) wait: Option<Span>,
    pub(crate) idle: bool,
    pub(crate) events: Vec<Change>,
    /// Attempts that timed out: their requests, and where.
    pub(crate) timed_out: Vec<(Handle, Py<PyString>, Span)>,
    /// To be called: whether an extra message that was waited for may be sent now, or never.
    pub(crate) grants: Vec<(Py<PyAny>, bool)>,
    /// Requests from other threads that came too late.
    pub(crate) refused: Vec<Foreign>,
}

pub(crate) struct State {
    pub(crate) engine: Engine,
    /// By the slot of the request.
    pending: Vec<Option<Pending>>,
    /// The requests of threads, by the address of the future that waits for each.
    futures: HashMap<usize, Handle>,
    /// The requests that a submission may join, by what they are known by.
    uniques: HashMap<Arc<str>, Handle>,
    pub(crate) backends: Vec<Backend>,
    /// By the name of a group, the first of its backends.
    pub(crate) groups: HashMap<String, BackendId>,
    workers: Vec<Worker>,
    free_workers: Vec<u32>,
    /// The worker that asked last, and for how long no other one did: as long as it has not suspended, if it is not the only one.
    turn: u32,
    slice: Slice,
    ingress: Consumer<Foreign>,
    /// By lease: whom to call when its extra messages may be sent, in the order in which they were asked for.
    grants: HashMap<u64, Vec<Py<PyAny>>>,
    /// Those of attempts that are over: to be told that they never may.
    void: Vec<Py<PyAny>>,
    pub(crate) wake: Option<Wake>,
    /// A pump has been asked for and has not begun.
    pump_due: bool,
    /// When polls of a collector fall due; [`Instant::FAR`] when none will.
    pub(crate) alarm: Instant,
    /// When the loop's timer will pump; [`Instant::FAR`] without one.
    timer_at: Instant,
    /// Somebody waits until nothing is queued or leased.
    pub(crate) idle_watched: bool,
    /// Somebody waits for room.
    pub(crate) room_watched: bool,
}

impl State {
    pub(crate) fn new(engine: Engine, ingress: Consumer<Foreign>) -> State {
        State {
            engine,
            pending: Vec::new(),
            futures: HashMap::new(),
            uniques: HashMap::new(),
            backends: Vec::new(),
            groups: HashMap::new(),
            workers: Vec::new(),
            free_workers: Vec::new(),
            turn: 0,
            slice: Slice::default(),
            ingress,
            grants: HashMap::new(),
            void: Vec::new(),
            wake: None,
            pump_due: false,
            alarm: Instant::FAR,
            timer_at: Instant::FAR,
            idle_watched: false,
            room_watched: false,
        }
    }

    /// Asks this loop for its pumps from now on. What was asked of the one before, which is returned, may never come.
    pub(crate) fn open(&mut self, wake: Wake) -> Option<Wake> {
        (self.pump_due, self.timer_at) = (false, Instant::FAR);
        self.wake.replace(wake)
    }

    /// The wake-up to call, when a pump has become due and none is on its way.
    #[inline]
    pub(crate) fn pump_wanted(&mut self) -> Option<&Wake> {
        if self.pump_due {
            return None;
        }
        let engine = &self.engine;
        let due = engine.has_news()
            || !self.void.is_empty()
            || engine.wants_workers()
            || self.next_wake().is_some_and(|wake| wake < self.timer_at)
            || (self.idle_watched && engine.is_idle())
            || (self.room_watched && (engine.room().has_room() || !engine.is_accepting()));
        if !due {
            return None;
        }
        let wake = self.wake.as_ref()?;
        self.pump_due = true;
        Some(wake)
    }

    /// When something happens by itself.
    #[inline]
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let alarm = (self.alarm < Instant::FAR).then_some(self.alarm);
        self.engine.next_wake().into_iter().chain(alarm).min()
    }

    /// Has a submission served by the request that is known by the same name, whose part it is to become; nothing when there is none.
    pub(crate) fn join(&mut self, now: Instant, terms: &Terms, submission: &Submission<'_>) -> Option<(Handle, &mut Pending)> {
        let &handle = self.uniques.get(terms.unique.as_ref()?)?;
        if !self.engine.join(now, handle, submission) {
            return None;
        }
        Some((handle, self.pending[handle.slot() as usize].as_mut()?))
    }

    /// Whether a submission on these terms would join a request, which takes no place.
    pub(crate) fn would_join(&self, terms: &Terms) -> bool {
        terms.unique.as_ref().is_some_and(|unique| self.uniques.contains_key(unique))
    }

    /// Keeps what Python gave for a request that was just accepted on these terms.
    #[inline]
    pub(crate) fn keep_on(&mut self, terms: &Terms, handle: Handle, pending: Pending) {
        match &terms.unique {
            None => self.keep(handle, pending),
            Some(unique) => {
                self.uniques.insert(unique.clone(), handle);
                self.keep(handle, pending.known_by(unique.clone()));
            }
        }
    }

    /// Keeps what Python gave for a request that was just accepted.
    #[inline]
    fn keep(&mut self, handle: Handle, pending: Pending) {
        let slot = handle.slot() as usize;
        if self.pending.len() <= slot {
            self.pending.resize_with(slot + 1, || None);
        }
        debug_assert!(self.pending[slot].is_none(), "a slot is free until its request was concluded");
        self.pending[slot] = Some(pending);
    }

    /// What Python gave for a request that has ended.
    #[inline]
    fn let_go(&mut self, request: Handle) -> Option<Pending> {
        let pending = self.pending[request.slot() as usize].take()?;
        for listener in pending.listeners() {
            if let Listener::Future(future) = listener {
                self.futures.remove(&(future.as_ptr() as usize));
            }
        }
        // Another request may be known by that name since this one has ended.
        if let Some(unique) = pending.unique()
            && self.uniques.get(unique) == Some(&request)
        {
            self.uniques.remove(unique);
        }
        Some(pending)
    }

    /// Takes a ticket from a request that others wait for too: what it is told. Nothing when it is the only one, or no part of it.
    pub(crate) fn leave_to_others(&mut self, now: Instant, request: Handle, ticket: &Bound<'_, Ticket>) -> Option<Conclusion> {
        self.engine.age(now, request)?;
        let pending = self.pending[request.slot() as usize].as_mut()?;
        if pending.listeners().count() < 2 {
            return None;
        }
        let (target, listener) = pending.leave(ticket.as_any()).pop()?;
        let pending = Pending::new(target, listener, None, Scopes::default());
        Some(Conclusion::without_value(pending, "cancelled"))
    }

    /// Slots of the requests that nobody but `listener` waits for, and its parts of any: it is told nothing any more.
    ///
    /// # Complexity
    /// Constant for a future; linear in all that is pending for a stream.
    pub(crate) fn forsake(&mut self, listener: &Bound<'_, PyAny>) -> (Vec<u32>, Vec<Joined>) {
        let one = self.futures.remove(&(listener.as_ptr() as usize)).map(Handle::slot);
        if one.is_none() && !listener.is_instance_of::<Stream>() {
            return (Vec::new(), Vec::new());
        }
        let slots = one.map_or(0..self.pending.len() as u32, |slot| slot..slot + 1);
        let (mut theirs, mut left) = (Vec::new(), Vec::new());
        for slot in slots {
            if let Some(pending) = &mut self.pending[slot as usize] {
                let parts = pending.leave(listener);
                if !parts.is_empty() && pending.listeners().next().is_none() {
                    theirs.push(slot);
                }
                left.extend(parts);
            }
        }
        (theirs, left)
    }

    /// What the attempts of a request have left; nothing when this one is over or was given up.
    pub(crate) fn checkpoint(&self, py: Python<'_>, lease: LeaseId) -> Option<Py<PyAny>> {
        let request = self.engine.request_of(lease)?;
        let checkpoint = self.pending[request.slot() as usize].as_ref()?.checkpoint()?;
        Some(checkpoint.clone_ref(py))
    }

    /// Leaves something for the next attempt, unless this one is over or was given up. Returns what is of no use any more.
    pub(crate) fn leave_checkpoint(&mut self, lease: LeaseId, checkpoint: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        let request = self.engine.request_of(lease);
        match request.and_then(|request| self.pending[request.slot() as usize].as_mut()) {
            Some(pending) => pending.leave_checkpoint(checkpoint),
            None => checkpoint,
        }
    }

    pub(crate) fn note_failure(&mut self, request: Handle, backend: Py<PyString>, error: Py<PyAny>) {
        if let Some(Some(pending)) = self.pending.get_mut(request.slot() as usize) {
            pending.note_failure(backend, error);
        }
    }

    pub(crate) fn hire(&mut self) -> u32 {
        let worker = self.free_workers.pop().unwrap_or(self.workers.len() as u32);
        let hired = Worker { coming: true, ..Worker::default() };
        match self.workers.get_mut(worker as usize) {
            Some(place) => *place = hired,
            None => self.workers.push(hired),
        }
        worker
    }

    /// A worker takes nothing more.
    pub(crate) fn retire(&mut self, worker: u32) {
        self.workers[worker as usize].retired = true;
    }

    /// A worker's task has ended. `dismissed`: because a pump sent it home. Returns the object of its last attempt.
    pub(crate) fn leave(&mut self, worker: u32, dismissed: bool) -> Option<Py<Request>> {
        self.free_workers.push(worker);
        let place = &mut self.workers[worker as usize];
        if std::mem::take(&mut place.coming) {
            self.engine.worker_came(false);
        }
        if !dismissed {
            self.engine.worker_left(worker);
        }
        place.request.take()
    }

    /// A worker found nothing. True: it sleeps until the pump names it. False: it lets others run and takes again. None: it leaves.
    pub(crate) fn park(&mut self, now: Instant, worker: u32) -> Option<bool> {
        if self.workers[worker as usize].retired {
            return None;
        }
        self.slice.restart(now);
        if self.engine.may_run() {
            return Some(false);
        }
        self.engine.park(now, worker);
        Some(true)
    }

    /// The next attempt for a worker.
    #[inline]
    pub(crate) fn next(&mut self, py: Python<'_>, worker: u32, now: Instant) -> Next {
        if std::mem::replace(&mut self.turn, worker) != worker {
            self.slice.restart(now);
        }
        let place = &mut self.workers[worker as usize];
        if place.retired || self.slice.is_over(now) {
            return Next::Nothing(place.request.take());
        }
        let leased = self.engine.take(now);
        if std::mem::take(&mut place.coming) {
            self.engine.worker_came(leased.is_some());
        }
        let Some(leased) = leased else { return Next::Nothing(place.request.take()) };
        place.running = Some(Running { lease: leased.lease, request: leased.request, backend: leased.backend });
        let pending = self.pending[leased.request.slot() as usize].as_ref().expect("a leased request is pending");
        let backend = &self.backends[usize::from(leased.backend.0)];
        let (target, name, account) = (&pending.target, &backend.name, backend.accounts.get(leased.account as usize));
        let runner = pending.runner().unwrap_or(&backend.runner);
        if let Some(last) = &place.request
            && let Some(old) = Request::renew(py, last, &leased, pending, name, runner, account)
        {
            return Next::Again(last.clone_ref(py), old);
        }
        let (target, backend, runner) = (target.clone_ref(py), name.clone_ref(py), runner.clone_ref(py));
        let account = account.map(|account| account.clone_ref(py));
        let (scopes, planned) = (pending.scopes.clone(), pending.planned());
        Next::New(Attempt { leased, target, backend, runner, account, scopes, planned }, place.request.take())
    }

    /// Keeps the object of a worker's attempt, to be used again.
    pub(crate) fn remember(&mut self, worker: u32, request: Py<Request>) {
        self.workers[worker as usize].request = Some(request);
    }

    /// Ends a worker's attempt, with its value or its error.
    #[inline]
    pub(crate) fn finish(
        &mut self,
        py: Python<'_>,
        now: Instant,
        worker: u32,
        attempt: (Outcome, Answer, bool),
        result: Py<PyAny>,
    ) -> Finish {
        let Some(running) = self.workers[worker as usize].running.take() else { return (None, Some(result)) };
        let (outcome, answer, unsent) = attempt;
        let finished = self.engine.finish(now, running.lease, outcome, answer, unsent);
        self.conclude(py, finished, running, result)
    }

    /// Separates a worker from its attempt, whose thread runs on: the lease is to be released when it has returned.
    pub(crate) fn abandon(&mut self, py: Python<'_>, now: Instant, worker: u32, error: Py<PyAny>) -> Option<(LeaseId, Finish)> {
        let running = self.workers[worker as usize].running.take()?;
        let finished = self.engine.abandon(now, running.lease);
        Some((running.lease, self.conclude(py, finished, running, error)))
    }

    #[inline]
    fn conclude(&mut self, py: Python<'_>, finished: Finished, running: Running, result: Py<PyAny>) -> Finish {
        let Running { request, backend, lease } = running;
        if !self.grants.is_empty() {
            self.void.extend(self.grants.remove(&lease.to_bits()).unwrap_or_default());
        }
        let (end, attempts, waits, age) = match finished {
            Finished::Stray | Finished::Again { failed: false } => return (None, Some(result)),
            Finished::Again { failed: true } => {
                let name = self.backends[usize::from(backend.0)].name.clone_ref(py);
                self.note_failure(request, name, result);
                return (None, None);
            }
            Finished::Done { waits, age, attempts } => (End::Value(result), attempts, waits, age),
            Finished::Dead { waits, age, attempts } => (End::Error("dead", Some(result)), attempts, waits, age),
            Finished::GivenUp { waits, age } => (End::Error("cancelled", None), 0, waits, age),
        };
        let Some(pending) = self.let_go(request) else { return (None, None) };
        let is_held = matches!(end, End::Value(_)) && matches!(pending.listener, Listener::Stream(..)) && !pending.was_joined();
        let held = is_held.then_some(request);
        let backend = Some(self.backends[usize::from(backend.0)].name.clone_ref(py));
        (Some(Conclusion { pending, end, held, backend, attempts, waits, age }), None)
    }

    /// Takes out the requests that the engine has ended by itself.
    pub(crate) fn conclude_ended(&mut self, py: Python<'_>) -> Vec<Conclusion> {
        let mut conclusions = Vec::new();
        while let Some(Ended { request, ending, waits, age, failed }) = self.engine.pop_ended() {
            let Some(pending) = self.let_go(request) else { continue };
            let reason = ending;
            let ending = match reason {
                Ending::Expired(Stage::Queued) => "expired while queued",
                Ending::Expired(Stage::Leased) => "expired while leased",
                Ending::Cancelled => "cancelled",
                Ending::Closed => "closed",
                Ending::Dead => "dead",
                Ending::Unserved(_) => "unserved",
            };
            let name = |id: BackendId| self.backends[usize::from(id.0)].name.clone_ref(py);
            let backend = if let Ending::Unserved(lost) = reason { Some(name(lost)) } else { pending.last_backend(py) };
            let end = End::Error(ending, None);
            conclusions.push(Conclusion { pending, end, held: None, backend, attempts: failed, waits, age });
        }
        conclusions
    }

    /// Takes out all that is pending, whatever the engine thinks of it.
    pub(crate) fn conclude_all(&mut self) -> Vec<Conclusion> {
        let broken = |pending| Conclusion::without_value(pending, "broken");
        self.pending.iter_mut().filter_map(Option::take).map(broken).collect()
    }

    /// Lets time pass, and finds out what there is to do. `armed`: the loop's timer has not fired.
    pub(crate) fn pump(&mut self, py: Python<'_>, now: Instant, armed: bool) -> News {
        self.pump_due = false;
        let refused = self.take_in(now);
        self.engine.tick(now);
        let staffing = self.engine.staff(now);
        for &worker in &staffing.wake {
            self.workers[worker as usize].coming = true;
        }
        let (mut interrupt, mut timed_out) = (Vec::new(), Vec::new());
        let mut grants: Vec<_> = self.void.drain(..).map(|grant| (grant, false)).collect();
        while let Some(action) = self.engine.pop_action() {
            match action {
                Action::Interrupt { lease } => {
                    let waiting = self.grants.remove(&lease.to_bits()).unwrap_or_default();
                    grants.extend(waiting.into_iter().map(|grant| (grant, false)));
                    // It may have returned since: then its worker runs something else, or nothing.
                    let theirs = |worker: &Worker| worker.running.is_some_and(|running| running.lease == lease);
                    if let Some(worker) = self.workers.iter().position(theirs) {
                        self.workers[worker].retired = true;
                        interrupt.push(worker as u32);
                    }
                }
                Action::TimedOut { request, backend, timeout } => {
                    timed_out.push((request, self.backends[usize::from(backend.0)].name.clone_ref(py), timeout));
                }
                Action::Recharged { lease } => {
                    let waiting = self.grants.get_mut(&lease.to_bits()).filter(|waiting| !waiting.is_empty());
                    grants.extend(waiting.map(|waiting| (waiting.remove(0), true)));
                }
            }
        }
        let pair = |scope: Option<Scope>| scope.map(|scope| (scope.name.to_string(), scope.value.to_string()));
        let mut events = Vec::new();
        while let Some(event) = self.engine.pop_event() {
            let name = |id: BackendId| self.backends[usize::from(id.0)].name.clone_ref(py);
            let none: Evidence = (None, None);
            events.push(match event {
                Event::LimitClosed { backend, scope, until } => {
                    ("limit_closed", Some(name(backend)), Some(seconds(until.since(now))), None, pair(scope), none)
                }
                Event::LimitReopened { backend, scope } => ("limit_reopened", Some(name(backend)), None, None, pair(scope), none),
                Event::LimitStepped { backend, scope, step } => {
                    let step = (step.limit, quota::word(step.from), quota::word(step.to), step.used);
                    ("limit_stepped", Some(name(backend)), None, Some(step), pair(scope), none)
                }
                Event::BackendGone { backend } => ("backend_gone", Some(name(backend)), None, None, None, none),
                Event::HealthChanged { backend, account, turn } => {
                    let (kind, until) = match turn.phase {
                        Phase::Open { until } => ("backend_down", Some(seconds(until.since(now)))),
                        Phase::Up => ("backend_up", None),
                        Phase::Probe { .. } | Phase::Ramp { .. } => ("backend_recovering", None),
                    };
                    (kind, Some(name(backend)), until, None, None, (account, Some((turn.failed, turn.attempts))))
                }
                Event::OwnFault { backends, of } => ("own_fault", None, None, None, None, (None, Some((backends, of)))),
                Event::OwnFaultOver => ("own_fault_over", None, None, None, None, none),
                _ => continue,
            });
        }
        // A timer that fires before anything is due costs one pump, and to move it each time costs more.
        let before = if armed { self.timer_at } else { Instant::FAR };
        let wake = self.next_wake().filter(|wake| *wake < before);
        self.timer_at = wake.unwrap_or(before);
        let idle = self.engine.is_idle();
        self.idle_watched &= !idle;
        self.room_watched &= !self.engine.room().has_room();
        let wait = wake.map(|wake| wake.since(now));
        News { interrupt, staffing, wait, idle, events, timed_out, grants, refused }
    }

    /// Accepts what other threads have handed in; returns what came too late.
    pub(crate) fn take_in(&mut self, now: Instant) -> Vec<Foreign> {
        let mut refused = Vec::new();
        let handed_in: Vec<Foreign> = self.ingress.drain().collect();
        for foreign in handed_in {
            if self.engine.is_accepting() {
                let Foreign { target, future, terms } = foreign;
                let terms = terms.get();
                let scopes = terms.scopes.borrowed();
                let (submission, address) = (terms.submission(now, false, &scopes), future.as_ptr() as usize);
                let handle = if let Some((handle, pending)) = self.join(now, terms, &submission) {
                    pending.join((target, Listener::Future(future)));
                    self.engine.room().release(1);
                    handle
                } else {
                    let handle = self.engine.submit(now, &submission);
                    self.keep_on(terms, handle, Pending::new(target, Listener::Future(future), None, terms.scopes.clone()));
                    handle
                };
                self.futures.insert(address, handle);
            } else {
                self.engine.room().release(1);
                refused.push(foreign);
            }
        }
        refused
    }

    /// Waits for an extra message to be granted.
    pub(crate) fn expect_grant(&mut self, lease: LeaseId, grant: Py<PyAny>) {
        self.grants.entry(lease.to_bits()).or_default().push(grant);
    }

    /// Takes back an extra message that was asked for. Returns its grant, if that has not been called.
    pub(crate) fn withdraw(&mut self, now: Instant, lease: LeaseId, cost: u32, grant: &Bound<'_, PyAny>) -> Option<Py<PyAny>> {
        let waiting = self.grants.get_mut(&lease.to_bits());
        let nth = waiting.as_ref().and_then(|waiting| waiting.iter().position(|each| each.is(grant)));
        match nth {
            Some(nth) => self.engine.withdraw(now, lease, nth, cost),
            None => self.engine.unsend(now, lease, cost),
        }
        waiting.zip(nth).map(|(waiting, nth)| waiting.remove(nth))
    }

    pub(crate) fn traverse(&self, visit: &pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        self.pending.iter().flatten().try_for_each(|pending| pending.traverse(visit))?;
        for Backend { runner, accounts, .. } in &self.backends {
            visit.call(runner)?;
            accounts.iter().try_for_each(|account| visit.call(account))?;
        }
        self.workers.iter().try_for_each(|worker| visit.call(&worker.request))?;
        if let Some(Wake { here, elsewhere, .. }) = &self.wake {
            visit.call(here)?;
            visit.call(elsewhere)?;
        }
        self.grants.values().flatten().chain(&self.void).try_for_each(|grant| visit.call(grant))
    }

    /// Takes out all that could be part of a cycle.
    pub(crate) fn clear(&mut self) -> impl Sized + use<> {
        (
            std::mem::take(&mut self.pending),
            std::mem::take(&mut self.backends),
            self.workers.iter_mut().map(|worker| worker.request.take()).collect::<Vec<_>>(),
            self.wake.take(),
            std::mem::take(&mut self.grants),
            std::mem::take(&mut self.void),
        )
    }
}
