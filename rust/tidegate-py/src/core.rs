//! The engine behind one lock.
//!
//! Ground rules. The lock is held for a few hundred nanoseconds at a time and never while Python code may run: what is called or dropped
//! is carried out of the locked section first. The wake-up is called at most once a batch, outside of the lock as well.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use tidegate_core::engine::{
    Answer, BackendId, BackendSpec, BackendState, ClassError, ColdStart, Engine, Flags, Handle, LeaseId, Options, Outcome,
    Recharge, Spends,
};
use tidegate_core::health::{Monitor, Phase};
use tidegate_core::limit::{Eligible, Usage};
use tidegate_core::queue::Order;
use tidegate_core::queue::ingress::{self, Producer, Room};
use tidegate_core::retry::Retry;
use tidegate_core::route::Adaptive;
use tidegate_core::time::{Instant, Span};

use crate::clock::{Clock, ManualClock};
use crate::convert::{self, seconds};
use crate::error;
use crate::pending::{Conclusion, Listener, Pending};
use crate::quota::{self, QuotaOptions};
use crate::request::Request;
use crate::schedule::Begun;
use crate::scopes::Scopes;
use crate::shell::shell;
use crate::state::{Backend, Foreign, News, Next, State, Wake};
use crate::stream::Stream;
use crate::terms::{Start, Terms};
use crate::ticket::Ticket;

/// The engine of one scheduler. See `_core.pyi`.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct Core {
    state: Mutex<State>,
    clock: Clock,
    room: Room,
    producer: Producer<Foreign>,
    /// The loop's clock when the engine's stood at its origin. It is the same for all loops: theirs is the monotonic one.
    origin: OnceLock<f64>,
}

/// A `tidegate.Backend`.
#[derive(FromPyObject)]
struct BackendOptions {
    name: String,
    quota: QuotaOptions,
    timeout: Option<f64>,
    accounts: Option<Vec<Py<PyAny>>>,
    weight: f64,
    cold_start: String,
}

/// A `tidegate.Retry`.
#[derive(FromPyObject)]
struct RetryOptions {
    attempts: u32,
    base: f64,
    cap: f64,
    budget: f64,
}

/// A `tidegate.Order`.
#[derive(FromPyObject)]
pub(crate) enum OrderOptions {
    Name(String),
    Aging { step: f64 },
    Fair { weights: HashMap<String, f64> },
}

impl OrderOptions {
    pub(crate) fn declared(self) -> Order {
        match self {
            OrderOptions::Name(name) if name == "edf" => Order::Deadline,
            OrderOptions::Name(_) => Order::Strict,
            OrderOptions::Aging { step } => Order::Aging(convert::span(step).unwrap_or(Span::ZERO)),
            OrderOptions::Fair { weights } => {
                Order::Fair(weights.into_iter().map(|(name, weight)| (name.into(), weight)).collect())
            }
        }
    }
}

impl Core {
    fn lock(&self) -> PyResult<MutexGuard<'_, State>> {
        self.state.lock().map_err(|_| error::broken())
    }

    #[inline]
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(crate) fn loop_time(&self, at: Instant) -> f64 {
        let origin = self.origin.get().copied().unwrap_or_default();
        origin + seconds(at.since(Instant::ORIGIN))
    }

    fn at_loop_time(&self, time: f64) -> Instant {
        let origin = self.origin.get().copied().unwrap_or_default();
        Instant::ORIGIN + convert::span_or_none(time - origin)
    }

    /// Runs `act` under the lock; afterwards asks the loop for a pump if one has become due.
    #[inline]
    fn with<T>(&self, py: Python<'_>, act: impl FnOnce(&mut State) -> T) -> PyResult<T> {
        let (out, wake) = {
            let mut state = self.lock()?;
            let out = act(&mut state);
            let at_home = |wake: &Wake| wake.owner == thread::current().id();
            let wake = state.pump_wanted().map(|wake| if at_home(wake) { &wake.here } else { &wake.elsewhere }.clone_ref(py));
            (out, wake)
        };
        if let Some(wake) = wake {
            wake.call0(py)?;
        }
        Ok(out)
    }

    /// The backends that may be named, in order of declaration.
    fn known(&self) -> PyResult<Vec<(BackendId, String)>> {
        let state = self.lock()?;
        let here = state.backends.iter().enumerate().filter(|(_, backend)| backend.is_here);
        Ok(here.map(|(id, backend)| (BackendId(id as u16), backend.name.to_string())).collect())
    }

    /// As `with`, for the backend of this name that was not removed.
    fn with_named(&self, py: Python<'_>, name: &str, act: impl FnOnce(&mut State, BackendId)) -> PyResult<()> {
        let found = self.known()?.into_iter().find(|(_, known)| known == name);
        let (id, _) = found.ok_or_else(error::broken)?;
        self.with(py, |state| act(state, id))
    }

    /// As `with`, and tells the listeners of the requests that ended by it.
    fn with_endings<T>(&self, py: Python<'_>, act: impl FnOnce(&mut State) -> T) -> PyResult<T> {
        let (out, conclusions) = self.with(py, |state| (act(state), state.conclude_ended(py)))?;
        self.tell(py, conclusions)?;
        Ok(out)
    }

    fn tell(&self, py: Python<'_>, conclusions: impl IntoIterator<Item = Conclusion>) -> PyResult<()> {
        // One that cannot be told does not keep the others from being told.
        let mut all = Ok(());
        for conclusion in conclusions {
            all = all.and(conclusion.tell(py, self.now()));
        }
        all
    }

    pub(crate) fn ack(&self, py: Python<'_>, lease: LeaseId, answer: Answer) -> PyResult<()> {
        let now = self.now();
        self.with(py, |state| state.engine.ack(now, lease, answer))
    }

    /// Whether the attempt may send one more message now; otherwise `grant` is called when it may.
    pub(crate) fn recharge(
        &self,
        py: Python<'_>,
        lease: LeaseId,
        cost: u32,
        scopes: &Scopes,
        grant: Py<PyAny>,
    ) -> PyResult<bool> {
        let now = self.now();
        let answer = self.with(py, |state| {
            let answer = state.engine.recharge(now, lease, cost, &scopes.borrowed());
            if answer == Recharge::Waits {
                state.expect_grant(lease, grant);
            }
            answer
        })?;
        match answer {
            Recharge::Granted => Ok(true),
            Recharge::Waits => Ok(false),
            Recharge::Never(largest) => Err(error::class(py, ClassError::CostExceedsBurst { cost, largest }, "the backend")),
            Recharge::Gone => Err(PyRuntimeError::new_err("this attempt is over: it can send nothing more")),
        }
    }

    /// A message that an attempt asked to send is not sent after all: `grant` is what was to be called, or has been.
    pub(crate) fn withdraw(&self, lease: LeaseId, cost: u32, grant: &Bound<'_, PyAny>) -> PyResult<()> {
        let now = self.now();
        let dropped = self.with(grant.py(), |state| state.withdraw(now, lease, cost, grant))?;
        drop(dropped);
        Ok(())
    }

    /// Whether an attempt is over or was given up.
    pub(crate) fn is_over(&self, lease: LeaseId) -> PyResult<bool> {
        Ok(self.lock()?.engine.request_of(lease).is_none())
    }

    /// What the attempts of a request have left.
    pub(crate) fn checkpoint(&self, py: Python<'_>, lease: LeaseId) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.lock()?.checkpoint(py, lease))
    }

    /// Leaves something for the next attempt of the same request.
    pub(crate) fn leave_checkpoint(&self, lease: LeaseId, checkpoint: Option<Py<PyAny>>) -> PyResult<()> {
        let unwanted = self.lock()?.leave_checkpoint(lease, checkpoint);
        drop(unwanted);
        Ok(())
    }

    pub(crate) fn cancel(&self, py: Python<'_>, handle: Handle) -> PyResult<bool> {
        let now = self.now();
        self.with_endings(py, |state| state.engine.cancel(now, handle))
    }

    /// Cancels a request for the holder of one ticket: if others wait for it too, it goes on for them.
    pub(crate) fn cancel_ticket(&self, handle: Handle, ticket: &Bound<'_, Ticket>) -> PyResult<bool> {
        let py = ticket.py();
        let now = self.now();
        match self.with(py, |state| state.leave_to_others(now, handle, ticket))? {
            None => self.cancel(py, handle),
            Some(conclusion) => self.tell(py, [conclusion]).map(|()| true),
        }
    }

    /// The consumer has had these values.
    pub(crate) fn deliver(&self, py: Python<'_>, had: impl IntoIterator<Item = Handle>) -> PyResult<()> {
        self.with(py, |state| had.into_iter().for_each(|handle| state.engine.deliver(handle)))
    }

    /// Places for up to `wanted` requests.
    ///
    /// # Errors
    /// `SchedulerClosedError` when none are accepted any more.
    pub(crate) fn reserve(&self, py: Python<'_>, wanted: usize) -> PyResult<usize> {
        if self.lock()?.engine.is_accepting() { Ok(self.room.reserve(wanted)) } else { Err(error::closed(py)) }
    }

    /// Accepts as many of the first `most` targets as there is room for; returns how many. `listener` makes no objects, for the
    /// collector may run then, and finalizers that call in here.
    ///
    /// # Errors
    /// `SchedulerClosedError` when none are accepted any more.
    fn accept(
        &self,
        targets: &Bound<'_, PyList>,
        most: usize,
        terms: &Terms,
        runner: Option<&Py<PyAny>>,
        held: bool,
        mut listener: impl FnMut(usize, Handle) -> Listener,
    ) -> PyResult<usize> {
        let py = targets.py();
        let now = self.now();
        let scopes = terms.scopes.borrowed();
        let submission = terms.submission(now, held, &scopes);
        let accepted = self.with(py, |state| {
            if !state.engine.is_accepting() {
                return None;
            }
            // One that joins another takes no place.
            let granted = if terms.unique.is_some() { most } else { self.room.reserve(most) };
            for (nth, target) in targets.iter().take(granted).enumerate() {
                if terms.unique.is_some() {
                    if let Some((handle, pending)) = state.join(now, terms, &submission) {
                        pending.join((target.unbind(), listener(nth, handle)));
                        continue;
                    }
                    if self.room.reserve(1) == 0 {
                        return Some(nth);
                    }
                }
                let handle = state.engine.submit(now, &submission);
                let runner = runner.map(|runner| runner.clone_ref(py));
                state.keep_on(terms, handle, Pending::new(target.unbind(), listener(nth, handle), runner, terms.scopes.clone()));
            }
            Some(granted)
        })?;
        accepted.ok_or_else(|| error::closed(py))
    }

    /// Gives back places that were reserved.
    pub(crate) fn vacate(&self, places: usize) {
        self.room.release(places);
    }

    /// Accepts the polls of a collector, whose places are reserved. One whose terms have no timeout is late when the next one of its target
    /// is planned, and does not expire; a timeout counts from when it was planned.
    pub(crate) fn poll(
        &self,
        py: Python<'_>,
        now: Instant,
        polls: Vec<Begun>,
        stream: &Bound<'_, Stream>,
        runner: Option<&Py<PyAny>>,
    ) -> PyResult<()> {
        stream.get().expect(polls.len());
        self.with(py, |state| {
            for (poll, target, terms) in polls {
                let terms = terms.get();
                let scopes = terms.scopes.borrowed();
                let mut submission = terms.submission(now, true, &scopes);
                submission.deadline = poll.planned + terms.timeout.unwrap_or(poll.period);
                submission.flags.lenient = terms.timeout.is_none();
                let handle = state.engine.submit(now, &submission);
                let listener = Listener::Stream(stream.clone().unbind(), poll.target.into());
                let runner = runner.map(|runner| runner.clone_ref(py));
                state.keep_on(
                    terms,
                    handle,
                    Pending::new(target, listener, runner, terms.scopes.clone()).planned_for(poll.planned),
                );
            }
        })
    }

    /// Has the loop pumped by then, to begin polls.
    pub(crate) fn alarm_by(&self, py: Python<'_>, at: Instant) -> PyResult<()> {
        self.with(py, |state| state.alarm = state.alarm.min(at))
    }

    /// Unix time of the clock's origin, in nanoseconds.
    pub(crate) fn unix_origin(&self) -> u64 {
        self.clock.unix_origin()
    }

    fn request(slf: &Bound<'_, Core>, worker: u32, next: Next) -> PyResult<Option<Py<Request>>> {
        let py = slf.py();
        match next {
            Next::Nothing(unused) => {
                drop(unused);
                Ok(None)
            }
            Next::Again(request, old) => {
                drop(old);
                Ok(Some(request))
            }
            Next::New(attempt, unused) => {
                drop(unused);
                let request = Py::new(py, Request::new(slf.clone().unbind(), attempt))?;
                slf.get().lock()?.remember(worker, request.clone_ref(py));
                Ok(Some(request))
            }
        }
    }
}

/// Tells threads that their requests came too late.
fn refuse(py: Python<'_>, refused: Vec<Foreign>) -> PyResult<()> {
    refused.into_iter().try_for_each(|foreign| {
        shell(py)?.call_method1("refuse", (foreign.future, foreign.target))?;
        Ok(())
    })
}

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (capacity, order, seed, retry, clock, /))]
    fn new(capacity: usize, order: OrderOptions, seed: u64, retry: RetryOptions, clock: Option<&Bound<'_, ManualClock>>) -> Core {
        let span = |seconds| convert::span(seconds).unwrap_or(Span::ZERO);
        let retry = Retry {
            attempts: retry.attempts,
            base: span(retry.base),
            cap: span(retry.cap),
            budget_milli: (retry.budget * 1000.0).round() as u32,
        };
        let clock = Clock::new(clock.map(Bound::get));
        let engine = Engine::new(&Options { capacity, order: order.declared(), retry, seed }, clock.now());
        let room = engine.room().clone();
        let (producer, consumer) = ingress::ingress();
        Core { state: Mutex::new(State::new(engine, consumer)), clock, room, producer, origin: OnceLock::new() }
    }

    /// Has the health of backends watched: seconds of the first pause at most, of any, of any for one without a substitute, and of the ramp.
    #[pyo3(signature = (base, cap, sole_cap, ramp, /))]
    fn watch_health(&self, base: f64, cap: f64, sole_cap: f64, ramp: f64) -> PyResult<()> {
        let span = |seconds| convert::span(seconds).unwrap_or(Span::ZERO);
        let (base, cap, sole_cap, ramp) = (span(base), span(cap), span(sole_cap), span(ramp));
        self.lock()?.engine.watch_health(Monitor { enabled: true, base, cap, sole_cap, ramp });
        Ok(())
    }

    /// Has backends chosen by how long they take and how often they fail, and by what a request costs there; not by load alone.
    fn adapt(&self) -> PyResult<()> {
        self.lock()?.engine.balance(Box::new(Adaptive));
        Ok(())
    }

    /// Adds a `tidegate.Backend`, whose attempts `runner` runs, with its place in the order of preference and its price in seconds.
    #[pyo3(signature = (backend, runner, rank=0, price=0.0, /))]
    fn add_backend(&self, py: Python<'_>, backend: BackendOptions, runner: Py<PyAny>, rank: u16, price: f64) -> PyResult<()> {
        let BackendOptions { name, quota, timeout, accounts, weight, cold_start } = backend;
        let cold_start = if cold_start == "assume_full" { ColdStart::AssumeFull } else { ColdStart::AssumeEmpty };
        let (limits, scoped) = quota.declared(py, &self.clock)?;
        let QuotaOptions { concurrency, group, .. } = quota;
        let accounts = accounts.unwrap_or_default();
        let name = convert::interned(py, &name);
        let now = self.now();
        self.with(py, |state| {
            let shared = group.as_ref().and_then(|group| state.groups.get(group));
            let spends = shared.map_or(Spends::Own(accounts.len().max(1) as u32), |&with| Spends::Shared(with));
            let spec =
                BackendSpec { limits, scoped, concurrency, spends, timeout: timeout.and_then(convert::span), weight, cold_start };
            let id = state.engine.add_backend(now, &spec);
            state.engine.set_standing(id, rank, price);
            state.backends.push(Backend { name, runner, is_here: true, accounts });
            if let Some(group) = group {
                state.groups.entry(group).or_insert(id);
            }
        })
    }

    /// Removes the backend of this name: see `Engine::remove_backend`. What ended by it is told at the next pump.
    #[pyo3(signature = (name, drain, /))]
    fn remove_backend(&self, py: Python<'_>, name: &str, drain: bool) -> PyResult<()> {
        let now = self.now();
        self.with_named(py, name, |state, id| {
            state.backends[usize::from(id.0)].is_here = false;
            state.engine.remove_backend(now, id, drain);
        })
    }

    /// Replaces what the backend of this name, and those of its group, may do.
    #[pyo3(signature = (name, quota, /))]
    fn set_quota(&self, py: Python<'_>, name: &str, quota: QuotaOptions) -> PyResult<()> {
        let (limits, scoped) = quota.declared(py, &self.clock)?;
        let now = self.now();
        self.with_named(py, name, |state, id| state.engine.set_quota(now, id, &limits, &scoped, quota.concurrency))
    }

    /// Checks the options of a request. `lasting`: it is never retried, and no attempt timeout applies.
    #[pyo3(signature = (priority, timeout, cost, backends, prefer=None, lasting=false, /))]
    fn terms(
        &self,
        priority: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
        cost: &Bound<'_, PyAny>,
        backends: Option<&Bound<'_, PyAny>>,
        prefer: Option<&Bound<'_, PyAny>>,
        lasting: bool,
    ) -> PyResult<Terms> {
        let py = priority.py();
        let known = self.known()?;
        let chosen = backends.map(|backends| convert::chosen(&known, backends)).transpose()?;
        let prefer = prefer.map(|name| convert::preferred(&known, chosen.as_deref(), name)).transpose()?;
        let priority = convert::priority(priority)?;
        let timeout = timeout.map(convert::timeout).transpose()?;
        let cost = convert::cost(cost)?;
        let now = self.now();
        let class = match &chosen {
            None => self.lock()?.engine.class_of_any(now, cost),
            Some(ids) => self.lock()?.engine.class(now, ids, cost),
        };
        let class = class.map_err(|refused| {
            let is_meant = |id: &BackendId| chosen.as_ref().is_none_or(|ids| ids.contains(id));
            let names: Vec<&str> = known.iter().filter(|(id, _)| is_meant(id)).map(|(_, name)| name.as_str()).collect();
            error::class(py, refused, &names.join(", "))
        })?;
        let class = match prefer {
            None => class,
            Some(id) => self.lock()?.engine.preferring(class, id),
        };
        let flags = Flags { lasting, ..Flags::default() };
        Ok(Terms {
            class,
            priority,
            timeout,
            start: Start::After(Span::ZERO),
            flow: None,
            scopes: Scopes::default(),
            unique: None,
            flags,
        })
    }

    /// The same for some requests: what is particular to each is checked apart, for the rest is the same for many.
    #[pyo3(signature = (terms, flow, not_before, unique, scopes, /))]
    fn own(
        &self,
        terms: &Bound<'_, Terms>,
        flow: &Bound<'_, PyAny>,
        not_before: &Bound<'_, PyAny>,
        unique: &Bound<'_, PyAny>,
        scopes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Terms> {
        let said = scopes.map_or_else(|| Ok(Scopes::default()), Scopes::of)?;
        let &Terms { class, priority, timeout, flags, .. } = terms.get();
        let start = convert::start(not_before, |time| self.at_loop_time(time), |unix| self.clock.at_unix(unix))?;
        let unsaid = self.lock()?.engine.unsaid_scope(class, |name| said.has(name)).map(str::to_owned);
        if let Some(name) = unsaid {
            let none = terms.py().None();
            let way_out = format!("a limit counts per {name}; give scopes={{'{name}': ...}}");
            return Err(error::config("scopes", scopes.unwrap_or(none.bind(terms.py())), &way_out));
        }
        let (flow, unique) = (convert::flow(flow)?, convert::unique(unique)?);
        Ok(Terms { class, priority, timeout, start, flow, scopes: said, unique, flags })
    }

    /// Whether a request on these terms would join another one, which takes no place.
    #[pyo3(signature = (terms, /))]
    fn would_join(&self, terms: &Bound<'_, Terms>) -> PyResult<bool> {
        Ok(terms.get().unique.is_some() && self.lock()?.would_join(terms.get()))
    }

    /// Says how to ask for a pump, on the loop's thread and on another, and how the loop's clock stands. A second time: on another loop.
    #[pyo3(signature = (here, elsewhere, loop_time, /))]
    fn open(&self, py: Python<'_>, here: Py<PyAny>, elsewhere: Py<PyAny>, loop_time: f64) -> PyResult<()> {
        let origin = loop_time - seconds(self.now().since(Instant::ORIGIN));
        let _ = self.origin.set(origin);
        let wake = Wake { here, elsewhere, owner: thread::current().id() };
        let before = self.with(py, |state| state.open(wake))?;
        drop(before);
        Ok(())
    }

    /// Accepts as many of the targets as there is room for, from the first, and returns a ticket for each.
    #[pyo3(signature = (targets, terms, runner=None, /))]
    fn submit<'py>(
        slf: &Bound<'py, Self>,
        targets: &Bound<'py, PyList>,
        terms: &Bound<'py, Terms>,
        runner: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let py = slf.py();
        let core = slf.get();
        let most = if terms.get().unique.is_some() { targets.len() } else { targets.len().min(core.room.free()) };
        let mut tickets = (0..most).map(|_| Ticket::new(slf)).collect::<PyResult<Vec<_>>>()?;
        let accepted = core.accept(targets, most, terms.get(), runner.as_ref(), false, |nth, request| {
            let ticket = &tickets[nth];
            ticket.get().name(request);
            Listener::Ticket(ticket.clone_ref(py))
        })?;
        tickets.truncate(accepted);
        PyList::new(py, tickets)
    }

    /// Accepts as many of the targets as there is room for, from the first, for a stream; returns how many. `index` is the first one's place.
    #[pyo3(signature = (targets, terms, stream, index, runner=None, /))]
    fn submit_for(
        &self,
        targets: &Bound<'_, PyList>,
        terms: &Bound<'_, Terms>,
        stream: &Bound<'_, Stream>,
        index: u64,
        runner: Option<Py<PyAny>>,
    ) -> PyResult<usize> {
        let accepted = self.accept(targets, targets.len(), terms.get(), runner.as_ref(), true, |nth, _| {
            Listener::Stream(stream.clone().unbind(), index + nth as u64)
        })?;
        stream.get().expect(accepted);
        Ok(accepted)
    }

    /// Accepts a request from any thread; false when there is no room. Its reply goes to a `concurrent.futures.Future`.
    #[pyo3(signature = (target, terms, future, /))]
    fn submit_threadsafe(&self, py: Python<'_>, target: Py<PyAny>, terms: Py<Terms>, future: Py<PyAny>) -> PyResult<bool> {
        if self.reserve(py, 1)? == 0 {
            return Ok(false);
        }
        let first = self.producer.push(Foreign { target, future, terms }).map_err(|_| error::broken())?;
        let now = self.now();
        let (wake, refused) = {
            let mut state = self.lock()?;
            if state.engine.is_accepting() {
                let wake = if first { state.wake.as_ref() } else { None };
                (wake.map(|wake| wake.elsewhere.clone_ref(py)), Vec::new())
            } else {
                // Closed since its place was reserved: the last pump may have been.
                (None, state.take_in(now))
            }
        };
        wake.map(|wake| wake.call0(py)).transpose()?;
        refuse(py, refused)?;
        Ok(true)
    }

    /// Cancels what a stream or a future waits for; it is told nothing.
    #[pyo3(signature = (listener, /))]
    pub(crate) fn cancel_for(&self, listener: &Bound<'_, PyAny>) -> PyResult<()> {
        let now = self.now();
        self.with_endings(listener.py(), |state| {
            let (slots, left) = state.forsake(listener);
            for slot in slots {
                if let Some(handle) = state.engine.handle_at(slot) {
                    state.engine.cancel(now, handle);
                }
            }
            left
        })
        .map(drop)
    }

    /// A new worker's number.
    fn hire(&self, py: Python<'_>) -> PyResult<u32> {
        self.with(py, State::hire)
    }

    /// A worker's task was cancelled: it takes nothing more, and leaves.
    #[pyo3(signature = (worker, /))]
    fn retire(&self, py: Python<'_>, worker: u32) -> PyResult<()> {
        self.with(py, |state| state.retire(worker))
    }

    /// A worker's task has ended. `dismissed`: because a pump sent it home.
    #[pyo3(signature = (worker, dismissed, /))]
    fn leave(&self, py: Python<'_>, worker: u32, dismissed: bool) -> PyResult<()> {
        let unused = self.with(py, |state| state.leave(worker, dismissed))?;
        drop(unused);
        Ok(())
    }

    /// A worker found nothing. True: it sleeps until a pump names it. False: it lets others run and takes again. None: it leaves.
    #[pyo3(signature = (worker, /))]
    fn park(&self, py: Python<'_>, worker: u32) -> PyResult<Option<bool>> {
        let now = self.now();
        self.with(py, |state| state.park(now, worker))
    }

    /// The next attempt for a worker, or nothing: then it parks.
    #[pyo3(signature = (worker, /))]
    fn take(slf: &Bound<'_, Self>, worker: u32) -> PyResult<Option<Py<Request>>> {
        let py = slf.py();
        let now = slf.get().now();
        let next = slf.get().with(py, |state| state.next(py, worker, now))?;
        Core::request(slf, worker, next)
    }

    /// A worker's attempt has returned this value; the next attempt, or nothing: then it parks.
    #[pyo3(signature = (worker, value, /))]
    fn finish_and_take(slf: &Bound<'_, Self>, worker: u32, value: Py<PyAny>) -> PyResult<Option<Py<Request>>> {
        let py = slf.py();
        let core = slf.get();
        let now = core.now();
        let ((conclusion, unwanted), next) = core.with(py, |state| {
            let finish = state.finish(py, now, worker, (Outcome::Ok, Answer::default(), false), value);
            (finish, state.next(py, worker, now))
        })?;
        drop(unwanted);
        if let Some(conclusion) = conclusion {
            conclusion.tell(py, now)?;
        }
        Core::request(slf, worker, next)
    }

    /// A worker's attempt ended otherwise than with a plain value. With the outcome OK, `result` is its value.
    #[pyo3(signature = (worker, outcome, result, status=None, headers=None, is_local=false, /))]
    fn finish(
        &self,
        worker: u32,
        outcome: u8,
        result: &Bound<'_, PyAny>,
        status: Option<u16>,
        headers: Option<&Bound<'_, PyAny>>,
        is_local: bool,
    ) -> PyResult<()> {
        let answer = Answer { is_local, ..convert::answer(status, headers, None) };
        let attempt = (convert::outcome(outcome), answer, false);
        self.end_attempt(worker, attempt, result)
    }

    /// A worker's attempt was given up before anything was sent: what it was charged is given back.
    #[pyo3(signature = (worker, error, /))]
    fn give_up(&self, worker: u32, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.end_attempt(worker, (Outcome::Neutral, Answer::default(), true), error)
    }

    /// A worker's attempt ended between two messages: its request waits again.
    #[pyo3(signature = (worker, error, /))]
    fn put_back(&self, worker: u32, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.end_attempt(worker, (Outcome::PutBack, Answer::default(), false), error)
    }

    /// A worker leaves its attempt while the handler's thread runs on. The lease, to be released when it has returned.
    #[pyo3(signature = (worker, error, /))]
    fn abandon(&self, py: Python<'_>, worker: u32, error: Py<PyAny>) -> PyResult<Option<u64>> {
        let now = self.now();
        let Some((lease, (conclusion, unwanted))) = self.with(py, |state| state.abandon(py, now, worker, error))? else {
            return Ok(None);
        };
        drop(unwanted);
        self.tell(py, conclusion)?;
        Ok(Some(lease.to_bits()))
    }

    /// The handler of an abandoned attempt has returned at last.
    #[pyo3(signature = (lease, /))]
    fn release(&self, py: Python<'_>, lease: u64) -> PyResult<()> {
        let now = self.now();
        self.with(py, |state| {
            state.engine.finish(now, LeaseId::from_bits(lease), Outcome::Neutral, Answer::default(), false);
        })
    }

    /// Lets time pass and says what there is to do:
    /// `(interrupt, wake, dismiss, hire, seconds to arm the timer anew or None, idle, events)`. `armed`: the timer has not fired.
    #[pyo3(signature = (armed, /))]
    fn pump<'py>(&self, py: Python<'py>, armed: bool) -> PyResult<Bound<'py, PyTuple>> {
        let now = self.now();
        let news = self.lock()?.pump(py, now, armed);
        let News { interrupt, staffing, wait, idle, events, timed_out, grants, refused } = news;
        // Errors are made by Python code, so outside of the lock, and before the requests that ended by them are concluded.
        for (request, backend, timeout) in timed_out {
            let error = shell(py)?.call_method1("attempt_timed_out", (&backend, seconds(timeout)))?.unbind();
            self.lock()?.note_failure(request, backend, error);
        }
        let conclusions = self.lock()?.conclude_ended(py);
        self.tell(py, conclusions)?;
        refuse(py, refused)?;
        for (grant, given) in grants {
            grant.call1(py, (given,))?;
        }
        let wait = wait.map(seconds);
        (interrupt, staffing.wake, staffing.dismiss, staffing.hire, wait, idle, events).into_pyobject(py)
    }

    /// Asks for a pump once nothing is queued or leased.
    fn watch_idle(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |state| state.idle_watched = true)
    }

    /// Asks for a pump once there is room.
    fn watch_room(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |state| state.room_watched = true)
    }

    /// Whether one more request would be accepted now.
    fn has_room(&self) -> bool {
        self.room.has_room()
    }

    /// Whether requests are accepted at all.
    fn is_accepting(&self) -> PyResult<bool> {
        Ok(self.lock()?.engine.is_accepting())
    }

    /// Whether nothing is queued or leased.
    fn is_idle(&self) -> PyResult<bool> {
        Ok(self.lock()?.engine.is_idle())
    }

    /// Accepts nothing more.
    fn stop_accepting(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |state| state.engine.stop_accepting())
    }

    /// Accepts nothing more, cancels what waits, and lets the attempts that run be the last of their requests.
    fn wind_down(&self, py: Python<'_>) -> PyResult<()> {
        let now = self.now();
        self.with_endings(py, |state| state.engine.wind_down(now))
    }

    /// Ends all that is pending.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let now = self.now();
        self.with_endings(py, |state| state.engine.close(now))
    }

    /// After a panic under the lock: tells everybody who waits, and lets them go. Otherwise does nothing.
    fn give_up_if_broken(&self, py: Python<'_>) -> PyResult<()> {
        let conclusions = match self.state.lock() {
            Ok(_) => return Ok(()),
            // Whatever state the engine was left in, it is not asked again.
            Err(poisoned) => poisoned.into_inner().conclude_all(),
        };
        self.tell(py, conclusions)
    }

    /// When, on the engine's clock, something happens by itself; nothing when nothing will.
    fn next_wake_ns(&self) -> PyResult<Option<u64>> {
        Ok(self.lock()?.engine.next_wake().map(Instant::as_nanos))
    }

    /// The same, polls that fall due included.
    fn next_turn_ns(&self) -> PyResult<Option<u64>> {
        Ok(self.lock()?.next_wake().map(Instant::as_nanos))
    }

    /// Forgets when polls fall due: they are asked now.
    fn forget_alarm(&self) -> PyResult<()> {
        self.lock()?.alarm = Instant::FAR;
        Ok(())
    }

    /// `[accepted, delivered, dead, expired, cancelled, queued, leased, done]`.
    fn ledger(&self) -> PyResult<[u64; 8]> {
        let counts = self.lock()?.engine.ledger();
        let ended = [counts.delivered, counts.dead, counts.expired, counts.cancelled];
        let [delivered, dead, expired, cancelled] = ended;
        Ok([counts.accepted, delivered, dead, expired, cancelled, counts.queued, counts.leased, counts.done])
    }

    /// How many workers there are.
    fn workers(&self) -> PyResult<usize> {
        Ok(self.lock()?.engine.workers())
    }

    /// For each backend on which something may run `(name, state, seconds until it may change or None, in flight, strays, share
    /// of what was possible or None, limits)`, and for each limit
    /// `(account from 0, kind as it now is, used, available, seconds until it admits a cost of 1 or None)`.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let now = self.now();
        let until = |at: Instant| seconds(at.since(now));
        let state = self.lock()?;
        let rows = state.backends.iter().enumerate().filter_map(|(id, backend)| {
            let status = state.engine.status(BackendId(id as u16), now);
            if status.is_gone() {
                return None;
            }
            let row = |usage: Usage<'_>| {
                let next = match usage.next_eligible {
                    Eligible::Now => Some(0.0),
                    Eligible::At(at) | Eligible::Closed(at) => Some(until(at)),
                    Eligible::OnAck | Eligible::Never => None,
                };
                (quota::word(usage.treated_as), usage.used, usage.available, next)
            };
            let limits: Vec<_> = status.limits().map(|(account, usage)| (account, row(usage))).collect();
            let scoped: Vec<_> = status
                .scoped()
                .map(|scoped| {
                    let full = (quota::word(scoped.limit.kind()), 0, scoped.limit.capacity(), Some(0.0));
                    (scoped.account, scoped.most.map_or(full, row), scoped.values, scoped.blocked)
                })
                .collect();
            let (word, change) = match status.state() {
                BackendState::Open => ("open", Some(0.0)),
                BackendState::Limited(at) => ("limited", at.map(until)),
                BackendState::Full => ("full", None),
                BackendState::Closed(at) => ("closed", Some(until(at))),
                BackendState::Down(at) => ("down", at.map(until)),
                BackendState::Draining => ("draining", None),
            };
            let health: Vec<_> = status
                .health()
                .map(|(phase, score)| {
                    let tried_again = if let Phase::Open { until: at } = phase { Some(until(at)) } else { None };
                    (convert::phase(phase), score, tried_again)
                })
                .collect();
            let share = status.share().map(|share| share.used as f64 / share.possible as f64);
            let sent = (status.messages(), status.rejections());
            let counts = (status.in_flight(), status.strays(), sent.0, sent.1);
            Some((backend.name.clone_ref(py), (word, change), counts, share, (health, status.latency()), limits, scoped))
        });
        let rows: Vec<_> = rows.collect();
        drop(state);
        PyList::new(py, rows)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Another thread in the middle of a call holds references that the collector cannot see: nothing here is garbage then.
        self.state.try_lock().map_or(Ok(()), |state| state.traverse(&visit))
    }

    fn __clear__(&self) {
        let dropped = self.state.try_lock().map(|mut state| state.clear());
        drop(dropped);
    }
}

impl Core {
    fn end_attempt(&self, worker: u32, attempt: (Outcome, Answer, bool), result: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = result.py();
        let now = self.now();
        let result = result.clone().unbind();
        let (conclusion, unwanted) = self.with(py, |state| state.finish(py, now, worker, attempt, result))?;
        drop(unwanted);
        self.tell(py, conclusion)
    }
}
