//! The engine behind one lock, with what Python gave for each request beside it.
//!
//! Ground rules. The lock is held for a few hundred nanoseconds at a time and never while Python code may run: what is called or dropped
//! is carried out of the locked section first. Targets, consumers and errors live here, by the slot of their request; the engine knows
//! numbers. `wake` is called at most once a batch: `pump_due` stays raised from the call until the pump has run.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use tidegate_core::engine::{
    Action, Answer, BackendId, BackendSpec, BackendState, ClassId, Ended, Ending, Engine, Event, Finished, Flags, Handle,
    LeaseId, Leased, Options, Outcome, Recharge, Slice, Stage, Waits,
};
use tidegate_core::limit::{Eligible, Kind, Limit};
use tidegate_core::queue::ingress::{self, Consumer, Producer, Room};
use tidegate_core::retry::Retry;
use tidegate_core::time::{Instant, Span};

use crate::clock::{Clock, ManualClock};
use crate::convert::{self, seconds};
use crate::error;
use crate::reply::Settled;
use crate::request::Request;
use crate::stream::{Item, Stream};
use crate::terms::Terms;
use crate::ticket::Ticket;

/// The Python side that waits for what Rust hands out.
pub(crate) fn shell(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static SHELL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let module = SHELL.get_or_try_init(py, || py.import("tidegate._waiting").map(|module| module.into_any().unbind()))?;
    Ok(module.bind(py))
}

/// Who is told how a request ended.
enum Listener {
    Nobody,
    Ticket(Py<Ticket>),
    Stream(Py<Stream>, u64),
    /// A `concurrent.futures.Future`.
    Future(Py<PyAny>),
}

/// What Python gave for a request that is pending.
struct Slot {
    target: Py<PyAny>,
    listener: Listener,
    /// Runs its attempts instead of its backend's runner.
    runner: Option<Py<PyAny>>,
    /// Failed attempts so far: backend and error.
    attempts: Option<Box<Vec<(Py<PyString>, Py<PyAny>)>>>,
}

/// A request from another thread.
struct Foreign {
    target: Py<PyAny>,
    future: Py<PyAny>,
    terms: Py<Terms>,
}

struct Backend {
    name: Py<PyString>,
    runner: Py<PyAny>,
}

#[derive(Default)]
struct Worker {
    running: Option<(LeaseId, Handle, u16)>,
    slice: Slice,
    /// Its task was cancelled: it may run nothing more.
    tainted: bool,
}

/// A reply that was ready when the lock was let go.
enum Conclusion {
    Nothing,
    Value {
        slot: Slot,
        held: Option<Handle>,
        value: Py<PyAny>,
        backend: Py<PyString>,
        waits: Waits,
        age: Span,
        attempts: u32,
    },
    Error {
        slot: Slot,
        ending: &'static str,
        error: Option<Py<PyAny>>,
        backend: Option<Py<PyString>>,
        waits: Waits,
        age: Span,
        attempts: u32,
    },
}

struct State {
    engine: Engine,
    slots: Vec<Option<Slot>>,
    backends: Vec<Backend>,
    workers: Vec<Worker>,
    free_workers: Vec<u32>,
    ingress: Consumer<Foreign>,
    /// For each attempt that waits to send more: what is called when it may, in the order in which it asked.
    grants: HashMap<u64, Vec<Py<PyAny>>>,
    /// Told when a pump is due, on the loop and from elsewhere.
    wake: Option<(Py<PyAny>, Py<PyAny>)>,
    pump_due: bool,
    /// When the loop's timer will pump; [`Instant::FAR`] without one.
    timer_at: Instant,
    /// Somebody waits until nothing is queued or leased.
    idle_watched: bool,
    /// Somebody waits for room.
    room_watched: bool,
}

/// The engine of one scheduler. See `_core.pyi`.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct Core {
    state: Mutex<State>,
    clock: Clock,
    room: Room,
    producer: Producer<Foreign>,
    /// The loop's clock when the engine's stood at its origin, and the thread that owns the loop.
    home: std::sync::OnceLock<(f64, ThreadId)>,
}

impl Core {
    fn lock(&self) -> PyResult<MutexGuard<'_, State>> {
        self.state.lock().map_err(|_| error::poisoned())
    }

    #[inline]
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(crate) fn loop_time(&self, at: Instant) -> f64 {
        let origin = self.home.get().map_or(0.0, |(origin, _)| *origin);
        origin + seconds(at.since(Instant::ORIGIN))
    }

    /// Runs `act` under the lock; afterwards asks the loop for a pump if one has become due.
    #[inline]
    fn with<T>(&self, py: Python<'_>, act: impl FnOnce(&mut State) -> T) -> PyResult<T> {
        let (out, wake) = {
            let mut state = self.lock()?;
            let out = act(&mut state);
            (out, state.pump_wanted(py))
        };
        if let Some((here, elsewhere)) = wake {
            let at_home = self.home.get().is_none_or(|(_, owner)| *owner == thread::current().id());
            if at_home {
                here.call0(py)?
            } else {
                elsewhere.call0(py)?
            };
        }
        Ok(out)
    }

    pub(crate) fn ack(&self, py: Python<'_>, lease: LeaseId, answer: Answer) -> PyResult<()> {
        let now = self.now();
        self.with(py, |state| state.engine.ack(now, lease, answer))
    }

    pub(crate) fn recharge(&self, py: Python<'_>, lease: LeaseId, cost: u32, grant: Py<PyAny>) -> PyResult<bool> {
        let now = self.now();
        let answer = self.with(py, |state| {
            let answer = state.engine.recharge(now, lease, cost);
            if answer == Recharge::Waits {
                state.grants.entry(lease.to_bits()).or_default().push(grant);
            }
            answer
        })?;
        match answer {
            Recharge::Granted => Ok(true),
            Recharge::Waits => Ok(false),
            Recharge::Never(largest) => {
                Err(error::class(py, tidegate_core::engine::ClassError::CostExceedsBurst { cost, largest }, "the backend"))
            }
            Recharge::Gone => Err(PyRuntimeError::new_err("this attempt is over: it can send nothing more")),
        }
    }

    /// A message that an attempt asked to send is not sent after all: `grant` is what was to be called, or has been.
    pub(crate) fn withdraw(&self, py: Python<'_>, lease: LeaseId, cost: u32, grant: &Bound<'_, PyAny>) -> PyResult<()> {
        let now = self.now();
        let dropped = self.with(py, |state| {
            let waiting = state.grants.get_mut(&lease.to_bits());
            let nth = waiting.as_ref().and_then(|waiting| waiting.iter().position(|each| each.is(grant)));
            match nth {
                Some(nth) => state.engine.withdraw(now, lease, nth, cost),
                None => state.engine.unsend(now, lease, cost),
            }
            waiting.zip(nth).map(|(waiting, nth)| waiting.remove(nth))
        })?;
        drop(dropped);
        Ok(())
    }

    pub(crate) fn cancel(&self, py: Python<'_>, handle: Handle) -> PyResult<bool> {
        let now = self.now();
        let (cancelled, conclusions) = self.with(py, |state| {
            let cancelled = state.engine.cancel(now, handle);
            (cancelled, if cancelled { state.conclude_ended(py) } else { Vec::new() })
        })?;
        self.tell_all(py, conclusions)?;
        Ok(cancelled)
    }

    pub(crate) fn deliver(&self, py: Python<'_>, handle: Handle) -> PyResult<()> {
        self.with(py, |state| state.engine.deliver(handle))
    }

    /// Cancels what is pending for one listener.
    pub(crate) fn cancel_for(&self, py: Python<'_>, listener: &Bound<'_, PyAny>) -> PyResult<()> {
        let now = self.now();
        let conclusions = self.with(py, |state| {
            let theirs = |slot: &Slot| match &slot.listener {
                Listener::Stream(stream, _) => stream.as_ptr() == listener.as_ptr(),
                Listener::Future(future) => future.as_ptr() == listener.as_ptr(),
                Listener::Ticket(_) | Listener::Nobody => false,
            };
            let found: Vec<u32> =
                (0u32..).zip(&state.slots).filter(|(_, s)| s.as_ref().is_some_and(theirs)).map(|(i, _)| i).collect();
            for index in found {
                if let Some(slot) = state.slots[index as usize].as_mut() {
                    // The listener has left: nobody is told.
                    slot.listener = Listener::Nobody;
                }
                if let Some(handle) = state.engine.handle_at(index) {
                    state.engine.cancel(now, handle);
                }
            }
            state.conclude_ended(py)
        })?;
        self.tell_all(py, conclusions)
    }

    fn tell_all(&self, py: Python<'_>, conclusions: Vec<Conclusion>) -> PyResult<()> {
        for conclusion in conclusions {
            self.tell(py, conclusion)?;
        }
        Ok(())
    }

    /// Hands a reply to who listens.
    fn tell(&self, py: Python<'_>, conclusion: Conclusion) -> PyResult<()> {
        let ended_at = self.now();
        let (slot, held, settled) = match conclusion {
            Conclusion::Nothing => return Ok(()),
            Conclusion::Value { slot, held, value, backend, waits, age, attempts } => {
                let Slot { target, listener, .. } = slot;
                let settled = Settled { target, result: Ok(value), backend: Some(backend), attempts, waits, age, ended_at };
                (listener, held, settled)
            }
            Conclusion::Error { slot, ending, error, backend, waits, age, attempts } => {
                let Slot { target, listener, attempts: past, .. } = slot;
                let past = PyList::new(py, past.map_or_else(Vec::new, |past| *past))?;
                let error = shell(py)?.call_method1("error_of", (ending, &target, past, error, &backend, seconds(age)))?.unbind();
                let settled = Settled { target, result: Err(error), backend, attempts, waits, age, ended_at };
                (listener, None, settled)
            }
        };
        match slot {
            Listener::Nobody => {}
            Listener::Ticket(ticket) => ticket.get().settle(py, settled),
            Listener::Stream(stream, index) => stream.get().push(py, index, Item { settled, held }),
            Listener::Future(future) => {
                let reply = Py::new(py, crate::reply::Reply::new(settled, ended_at))?;
                shell(py)?.call_method1("resolve", (future, reply))?;
            }
        }
        Ok(())
    }

    fn request(slf: &Bound<'_, Core>, next: Option<Next>) -> PyResult<Option<Py<Request>>> {
        let Some(Next { leased, target, backend, runner }) = next else { return Ok(None) };
        let Leased { lease, attempt, priority, deadline, .. } = leased;
        let core = slf.clone().unbind();
        Py::new(slf.py(), Request { core, lease, target, backend, runner, attempt, priority, deadline }).map(Some)
    }
}

/// A lease with what its request is made of.
struct Next {
    leased: Leased,
    target: Py<PyAny>,
    backend: Py<PyString>,
    runner: Py<PyAny>,
}

impl State {
    /// The wake-up to call, when a pump has become due and none is on its way.
    #[inline]
    fn pump_wanted(&mut self, py: Python<'_>) -> Option<(Py<PyAny>, Py<PyAny>)> {
        if self.pump_due {
            return None;
        }
        let engine = &self.engine;
        let due = engine.has_news()
            || engine.wants_workers()
            || engine.next_wake().is_some_and(|wake| wake < self.timer_at)
            || (self.idle_watched && engine.is_idle())
            || (self.room_watched && (engine.room().has_room() || !engine.is_accepting()));
        if !due {
            return None;
        }
        let (here, elsewhere) = self.wake.as_ref()?;
        self.pump_due = true;
        Some((here.clone_ref(py), elsewhere.clone_ref(py)))
    }

    fn put(&mut self, handle: Handle, slot: Slot) {
        let index = handle.slot() as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        debug_assert!(self.slots[index].is_none());
        self.slots[index] = Some(slot);
    }

    fn take_slot(&mut self, handle: Handle) -> Option<Slot> {
        self.slots.get_mut(handle.slot() as usize)?.take()
    }

    /// The next attempt for a worker.
    #[inline]
    fn next(&mut self, py: Python<'_>, worker: u32, now: Instant) -> Option<Next> {
        let place = &mut self.workers[worker as usize];
        if place.tainted || place.slice.is_over(now) {
            return None;
        }
        let leased = self.engine.take(now)?;
        let place = &mut self.workers[worker as usize];
        place.running = Some((leased.lease, leased.request, leased.backend.0));
        let slot = self.slots[leased.request.slot() as usize].as_ref()?;
        let backend = &self.backends[usize::from(leased.backend.0)];
        Some(Next {
            leased,
            target: slot.target.clone_ref(py),
            backend: backend.name.clone_ref(py),
            runner: slot.runner.as_ref().unwrap_or(&backend.runner).clone_ref(py),
        })
    }

    /// Ends a worker's attempt. What comes back is dropped or told outside of the lock.
    #[inline]
    fn finish(
        &mut self,
        py: Python<'_>,
        now: Instant,
        worker: u32,
        outcome: Outcome,
        answer: Answer,
        unsent: bool,
        value: Py<PyAny>,
    ) -> (Conclusion, Option<Py<PyAny>>) {
        let Some((lease, request, backend)) = self.workers[worker as usize].running.take() else {
            return (Conclusion::Nothing, Some(value));
        };
        self.grants.remove(&lease.to_bits());
        let finished = self.engine.finish(now, lease, outcome, answer, unsent);
        self.conclude(py, finished, request, backend, value)
    }

    #[inline]
    fn conclude(
        &mut self,
        py: Python<'_>,
        finished: Finished,
        request: Handle,
        backend: u16,
        value: Py<PyAny>,
    ) -> (Conclusion, Option<Py<PyAny>>) {
        let name = self.backends[usize::from(backend)].name.clone_ref(py);
        match finished {
            Finished::Stray => (Conclusion::Nothing, Some(value)),
            Finished::Again { failed } => {
                if failed && let Some(slot) = self.slots[request.slot() as usize].as_mut() {
                    slot.attempts.get_or_insert_default().push((name, value));
                    return (Conclusion::Nothing, None);
                }
                (Conclusion::Nothing, Some(value))
            }
            Finished::Done { waits, age, attempts } => match self.take_slot(request) {
                None => (Conclusion::Nothing, Some(value)),
                Some(slot) => {
                    let held = matches!(slot.listener, Listener::Stream(..)).then_some(request);
                    (Conclusion::Value { slot, held, value, backend: name, waits, age, attempts }, None)
                }
            },
            Finished::Dead { waits, age, attempts } => match self.take_slot(request) {
                None => (Conclusion::Nothing, Some(value)),
                Some(slot) => {
                    let (error, backend) = (Some(value), Some(name));
                    (Conclusion::Error { slot, ending: "dead", error, backend, waits, age, attempts }, None)
                }
            },
            Finished::GivenUp { waits, age } => match self.take_slot(request) {
                None => (Conclusion::Nothing, Some(value)),
                Some(slot) => {
                    let ending = "cancelled";
                    (Conclusion::Error { slot, ending, error: None, backend: Some(name), waits, age, attempts: 0 }, Some(value))
                }
            },
        }
    }

    /// Takes out the requests that the engine has ended by itself, and notes the attempts that timed out before.
    fn conclude_ended(&mut self, py: Python<'_>) -> Vec<Conclusion> {
        let mut conclusions = Vec::new();
        while let Some(ended) = self.engine.pop_ended() {
            let Ended { request, ending, waits, age, failed } = ended;
            let Some(slot) = self.take_slot(request) else { continue };
            let ending = match ending {
                Ending::Expired(Stage::Queued) => "expired while queued",
                Ending::Expired(Stage::Leased) => "expired while leased",
                Ending::Cancelled => "cancelled",
                Ending::Closed => "closed",
                Ending::Dead => "dead",
            };
            let backend = slot.attempts.as_ref().and_then(|past| past.last()).map(|(name, _)| name.clone_ref(py));
            conclusions.push(Conclusion::Error { slot, ending, error: None, backend, waits, age, attempts: failed });
        }
        conclusions
    }

    fn describe_limit(py: Python<'_>, usage: &tidegate_core::limit::Usage<'_>, now: Instant) -> PyResult<Py<PyAny>> {
        let limit = usage.limit;
        let kind = match limit.kind() {
            Kind::Window => "window",
            Kind::Bucket => "bucket",
            _ => "other",
        };
        let next = match usage.next_eligible {
            Eligible::Now => Some(0.0),
            Eligible::At(at) | Eligible::Closed(at) => Some(seconds(at.since(now))),
            Eligible::OnAck | Eligible::Never => None,
        };
        let period = seconds(limit.period());
        let row = (limit.amount(), period, kind, limit.burst(), usage.used, usage.available, next);
        Ok(row.into_pyobject(py)?.into_any().unbind())
    }
}

type LimitSpec = (String, u32, f64, u32);

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (capacity, seed, retry, clock, /))]
    fn new(capacity: usize, seed: u64, retry: (u32, f64, f64, f64), clock: Option<&Bound<'_, ManualClock>>) -> Core {
        let (attempts, base, cap, budget) = retry;
        let span = |seconds| convert::span(seconds).unwrap_or(Span::ZERO);
        let retry = Retry { attempts, base: span(base), cap: span(cap), budget_milli: (budget * 1000.0).round() as u32 };
        let clock = Clock::new(clock.map(Bound::get));
        let engine = Engine::new(&Options { capacity, retry, seed }, clock.now());
        let room = engine.room().clone();
        let (producer, consumer) = ingress::ingress();
        let state = State {
            engine,
            slots: Vec::new(),
            backends: Vec::new(),
            workers: Vec::new(),
            free_workers: Vec::new(),
            ingress: consumer,
            grants: HashMap::new(),
            wake: None,
            pump_due: false,
            timer_at: Instant::FAR,
            idle_watched: false,
            room_watched: false,
        };
        Core { state: Mutex::new(state), clock, room, producer, home: std::sync::OnceLock::new() }
    }

    #[pyo3(signature = (name, runner, limits, concurrency, timeout, weight, /))]
    fn add_backend(
        &self,
        py: Python<'_>,
        name: &str,
        runner: Py<PyAny>,
        limits: Vec<LimitSpec>,
        concurrency: Option<u32>,
        timeout: Option<f64>,
        weight: f64,
    ) -> PyResult<()> {
        let declared = limits.iter().map(|(kind, amount, period, burst)| {
            let period = convert::span(*period).unwrap_or(Span::ZERO);
            let limit = if kind == "bucket" { Limit::bucket(*amount, period, *burst) } else { Limit::window(*amount, period) };
            limit.map_err(|error| {
                let shown = PyString::new(py, &format!("{amount}/{}s", seconds(period)));
                error::config("quota", shown.as_any(), &format!("{error}; give a smaller period or burst"))
            })
        });
        let limits = declared.collect::<PyResult<Vec<Limit>>>()?;
        let spec = BackendSpec { limits, concurrency, timeout: timeout.and_then(convert::span), weight };
        let name = convert::interned(py, name);
        self.with(py, |state| {
            state.engine.add_backend(&spec);
            state.backends.push(Backend { name, runner });
        })
    }

    /// Checks the options of a request.
    #[pyo3(signature = (priority, timeout, cost, backends, once=false, untimed=false, /))]
    fn terms(
        &self,
        py: Python<'_>,
        priority: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
        cost: &Bound<'_, PyAny>,
        backends: Option<&Bound<'_, PyAny>>,
        once: bool,
        untimed: bool,
    ) -> PyResult<Terms> {
        let level: u8 = priority.extract().map_err(|_| {
            error::config("priority", priority, "give an integer from 0 (most urgent) to 255; see tidegate.Priority")
        })?;
        let timeout = match timeout {
            None => None,
            Some(value) => match convert::extract_span(value) {
                Ok(Some(span)) if span > Span::ZERO => Some(span),
                _ => return Err(error::config("timeout", value, "give seconds above 0, a timedelta, or None for no deadline")),
            },
        };
        let units: u32 = match cost.extract() {
            Ok(units) if units > 0 => units,
            _ => return Err(error::config("cost", cost, "give an integer of at least 1")),
        };
        let chosen: Option<Vec<Bound<'_, PyAny>>> = match backends {
            None => None,
            Some(names) if names.is_instance_of::<PyString>() => Some(vec![names.clone()]),
            Some(names) => {
                let listed = names.try_iter().and_then(|names| names.collect::<PyResult<Vec<_>>>());
                let listed =
                    listed.map_err(|_| error::config("backends", names, "give the names of backends, or None for all"))?;
                if listed.is_empty() {
                    return Err(error::config("backends", names, "give at least one name, or None for all backends"));
                }
                Some(listed)
            }
        };
        let now = self.now();
        let state = self.lock()?;
        let known: Vec<String> = state.backends.iter().map(|backend| backend.name.to_string()).collect();
        drop(state);
        let ids: Vec<BackendId> = match &chosen {
            None => (0..known.len()).map(|id| BackendId(id as u16)).collect(),
            Some(names) => names
                .iter()
                .map(|name| {
                    let text = name.str()?.to_string();
                    known.iter().position(|known| *known == text).map(|id| BackendId(id as u16)).ok_or_else(|| {
                        let way_out = format!("there is no such backend; there are {}", known.join(", "));
                        error::config("backends", name, &way_out)
                    })
                })
                .collect::<PyResult<_>>()?,
        };
        let class: Result<ClassId, _> = self.lock()?.engine.class(now, &ids, units);
        let class = class.map_err(|refused| {
            let names: Vec<&str> = ids.iter().map(|id| known[usize::from(id.0)].as_str()).collect();
            error::class(py, refused, &names.join(", "))
        })?;
        Ok(Terms { class, priority: level, timeout, flags: Flags { held: false, once, untimed } })
    }

    /// Says how to ask for a pump, and how the loop's clock stands.
    #[pyo3(signature = (wake, wake_threadsafe, loop_time, /))]
    fn open(&self, py: Python<'_>, wake: Py<PyAny>, wake_threadsafe: Py<PyAny>, loop_time: f64) -> PyResult<()> {
        let origin = loop_time - seconds(self.now().since(Instant::ORIGIN));
        let _ = self.home.set((origin, thread::current().id()));
        self.with(py, |state| state.wake = Some((wake, wake_threadsafe)))
    }

    /// Accepts as many of the targets as there is room for, from the first, and returns a ticket for each.
    #[pyo3(signature = (targets, terms, runner=None, /))]
    fn submit(
        slf: &Bound<'_, Self>,
        targets: &Bound<'_, PyList>,
        terms: &Bound<'_, Terms>,
        runner: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyList>> {
        let py = slf.py();
        let core = slf.get();
        let granted = core.reserve(targets.len())?;
        let now = core.now();
        let submission = terms.get().submission(now, false);
        let mut tickets = Vec::with_capacity(granted);
        core.with(py, |state| {
            for target in targets.iter().take(granted) {
                let handle = state.engine.submit(now, &submission);
                let ticket = Py::new(py, Ticket::new(slf.clone().unbind(), handle))?;
                let listener = Listener::Ticket(ticket.clone_ref(py));
                let runner = runner.as_ref().map(|runner| runner.clone_ref(py));
                state.put(handle, Slot { target: target.unbind(), listener, runner, attempts: None });
                tickets.push(ticket);
            }
            Ok::<_, PyErr>(())
        })??;
        Ok(PyList::new(py, tickets)?.unbind())
    }

    /// Accepts as many of the targets as there is room for, from the first, for a stream; returns how many.
    #[pyo3(signature = (targets, terms, stream, index, runner=None, /))]
    fn submit_for(
        slf: &Bound<'_, Self>,
        targets: &Bound<'_, PyList>,
        terms: &Bound<'_, Terms>,
        stream: &Bound<'_, Stream>,
        index: u64,
        runner: Option<Py<PyAny>>,
    ) -> PyResult<usize> {
        let py = slf.py();
        let core = slf.get();
        let granted = core.reserve(targets.len())?;
        let now = core.now();
        let submission = terms.get().submission(now, true);
        core.with(py, |state| {
            for (target, index) in targets.iter().take(granted).zip(index..) {
                let handle = state.engine.submit(now, &submission);
                let listener = Listener::Stream(stream.clone().unbind(), index);
                let runner = runner.as_ref().map(|runner| runner.clone_ref(py));
                state.put(handle, Slot { target: target.unbind(), listener, runner, attempts: None });
            }
        })?;
        Ok(granted)
    }

    /// Accepts a request from any thread; false when there is no room. Its reply goes to a `concurrent.futures.Future`.
    #[pyo3(signature = (target, terms, future, /))]
    fn submit_threadsafe(&self, py: Python<'_>, target: Py<PyAny>, terms: Py<Terms>, future: Py<PyAny>) -> PyResult<bool> {
        if self.room.reserve(1) == 0 {
            return Ok(false);
        }
        match self.producer.push(Foreign { target, future, terms }) {
            Ok(true) => {
                let wake = {
                    let state = self.lock()?;
                    state.wake.as_ref().map(|(_, elsewhere)| elsewhere.clone_ref(py))
                };
                if let Some(wake) = wake {
                    wake.call0(py)?;
                }
                Ok(true)
            }
            Ok(false) => Ok(true),
            Err(_) => {
                self.room.release(1);
                Err(error::poisoned())
            }
        }
    }

    /// Cancels what a stream or a future waits for.
    #[pyo3(signature = (listener, /))]
    fn cancel_listener(&self, py: Python<'_>, listener: &Bound<'_, PyAny>) -> PyResult<()> {
        self.cancel_for(py, listener)
    }

    /// A worker's number.
    fn hire(&self, py: Python<'_>) -> PyResult<u32> {
        let now = self.now();
        self.with(py, |state| {
            let worker = state.free_workers.pop().unwrap_or_else(|| {
                state.workers.push(Worker::default());
                (state.workers.len() - 1) as u32
            });
            let place = &mut state.workers[worker as usize];
            *place = Worker::default();
            place.slice.restart(now);
            worker
        })
    }

    /// A worker's task has ended. `dismissed`: because the pump sent it home.
    #[pyo3(signature = (worker, dismissed, /))]
    fn leave(&self, py: Python<'_>, worker: u32, dismissed: bool) -> PyResult<()> {
        self.with(py, |state| {
            state.free_workers.push(worker);
            if !dismissed {
                state.engine.worker_left(worker);
            }
        })
    }

    /// The next attempt for a worker, or nothing: then it parks.
    #[pyo3(signature = (worker, /))]
    fn take(slf: &Bound<'_, Self>, worker: u32) -> PyResult<Option<Py<Request>>> {
        let core = slf.get();
        let now = core.now();
        let next = core.with(slf.py(), |state| state.next(slf.py(), worker, now))?;
        Core::request(slf, next)
    }

    /// A worker's attempt has returned this value; the next attempt, or nothing: then it parks.
    #[pyo3(signature = (worker, value, /))]
    fn finish_and_take(slf: &Bound<'_, Self>, worker: u32, value: Py<PyAny>) -> PyResult<Option<Py<Request>>> {
        let py = slf.py();
        let core = slf.get();
        let now = core.now();
        let (conclusion, unused, next) = core.with(py, |state| {
            let (conclusion, unused) = state.finish(py, now, worker, Outcome::Ok, Answer::default(), false, value);
            (conclusion, unused, state.next(py, worker, now))
        })?;
        drop(unused);
        core.tell(py, conclusion)?;
        Core::request(slf, next)
    }

    /// A worker's attempt ended otherwise than with a plain value. With the outcome OK, `error` is the value.
    #[pyo3(signature = (worker, outcome, error, status, headers, unsent, /))]
    fn fail(
        &self,
        py: Python<'_>,
        worker: u32,
        outcome: u8,
        error: Py<PyAny>,
        status: Option<u16>,
        headers: Option<&Bound<'_, PyAny>>,
        unsent: bool,
    ) -> PyResult<()> {
        let now = self.now();
        let outcome = convert::outcome(outcome);
        let answer = convert::answer(status, headers, None);
        let (conclusion, unused) = self.with(py, |state| state.finish(py, now, worker, outcome, answer, unsent, error))?;
        drop(unused);
        self.tell(py, conclusion)
    }

    /// A worker leaves its attempt while the handler's thread still runs. Returns the lease, to be released when it has returned.
    #[pyo3(signature = (worker, error, /))]
    fn abandon(&self, py: Python<'_>, worker: u32, error: Py<PyAny>) -> PyResult<Option<u64>> {
        let now = self.now();
        let abandoned = self.with(py, |state| {
            let (lease, request, backend) = state.workers[worker as usize].running.take()?;
            let finished = state.engine.abandon(now, lease);
            Some((lease, state.conclude(py, finished, request, backend, error)))
        })?;
        let Some((lease, (conclusion, unused))) = abandoned else { return Ok(None) };
        drop(unused);
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

    /// A worker found nothing. True: it sleeps until the pump names it. False: it lets others run and takes again. None: it leaves.
    #[pyo3(signature = (worker, /))]
    fn park(&self, py: Python<'_>, worker: u32) -> PyResult<Option<bool>> {
        let now = self.now();
        self.with(py, |state| {
            let place = &mut state.workers[worker as usize];
            if place.tainted {
                return None;
            }
            place.slice.restart(now);
            if state.engine.may_run() {
                return Some(false);
            }
            state.engine.park(now, worker);
            Some(true)
        })
    }

    /// Lets time pass and says what there is to do:
    /// `(interrupt, wake, dismiss, hire, seconds until the next pump or None, idle, events)`.
    fn pump<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let core = slf.get();
        let now = core.now();
        let mut refused = Vec::new();
        let (interrupts, timed_out, granted, staffing, wait, idle, events) = {
            let mut guard = core.lock()?;
            let state = &mut *guard;
            state.pump_due = false;
            let foreign: Vec<Foreign> = state.ingress.drain().collect();
            for Foreign { target, future, terms } in foreign {
                if !state.engine.is_accepting() {
                    state.engine.room().release(1);
                    refused.push((target, future));
                    continue;
                }
                let handle = state.engine.submit(now, &terms.get().submission(now, false));
                state.put(handle, Slot { target, listener: Listener::Future(future), runner: None, attempts: None });
            }
            state.engine.tick(now);
            let staffing = state.engine.staff(now);
            let (mut interrupts, mut timed_out, mut granted) = (Vec::new(), Vec::new(), Vec::new());
            while let Some(action) = state.engine.pop_action() {
                match action {
                    Action::Interrupt { lease } => {
                        let theirs = |worker: &Worker| worker.running.is_some_and(|(running, _, _)| running == lease);
                        if let Some(worker) = state.workers.iter().position(theirs) {
                            state.workers[worker].tainted = true;
                            interrupts.push(worker as u32);
                        }
                    }
                    Action::TimedOut { request, backend, timeout } => {
                        let name = state.backends[usize::from(backend.0)].name.clone_ref(py);
                        timed_out.push((request, name, timeout));
                    }
                    Action::Recharged { lease } => {
                        let waiting = state.grants.get_mut(&lease.to_bits()).filter(|waiting| !waiting.is_empty());
                        granted.extend(waiting.map(|waiting| waiting.remove(0)));
                    }
                }
            }
            let events: Vec<(&str, Py<PyString>, Option<f64>)> = std::iter::from_fn(|| state.engine.pop_event())
                .filter_map(|event| {
                    let name = |id: BackendId| state.backends[usize::from(id.0)].name.clone_ref(py);
                    match event {
                        Event::LimitClosed { backend, until } => {
                            Some(("limit_closed", name(backend), Some(seconds(until.since(now)))))
                        }
                        Event::LimitReopened { backend } => Some(("limit_reopened", name(backend), None)),
                        _ => None,
                    }
                })
                .collect();
            let wake = state.engine.next_wake();
            state.timer_at = wake.unwrap_or(Instant::FAR);
            let idle = state.engine.is_idle();
            if idle {
                state.idle_watched = false;
            }
            if state.engine.room().has_room() {
                state.room_watched = false;
            }
            let wait = wake.map(|wake| seconds(wake.since(now)));
            (interrupts, timed_out, granted, staffing, wait, idle, events)
        };
        // Errors are made by Python code, so outside of the lock, and before the requests that ended by them are concluded.
        for (request, backend, timeout) in timed_out {
            let error = shell(py)?.call_method1("attempt_timed_out", (&backend, seconds(timeout)))?.unbind();
            let mut guard = core.lock()?;
            if let Some(Some(slot)) = guard.slots.get_mut(request.slot() as usize) {
                slot.attempts.get_or_insert_default().push((backend, error));
            }
        }
        let conclusions = core.lock()?.conclude_ended(py);
        core.tell_all(py, conclusions)?;
        for (target, future) in refused {
            shell(py)?.call_method1("refuse", (future, target))?;
        }
        for grant in granted {
            grant.call0(py)?;
        }
        (interrupts, staffing.wake, staffing.dismiss, staffing.hire, wait, idle, events).into_pyobject(py)
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

    /// Ends all that is pending.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let now = self.now();
        let conclusions = self.with(py, |state| {
            state.engine.close(now);
            state.conclude_ended(py)
        })?;
        self.tell_all(py, conclusions)
    }

    /// Seconds until something happens by itself; nothing when nothing will.
    fn next_wake_ns(&self) -> PyResult<Option<u64>> {
        Ok(self.lock()?.engine.next_wake().map(Instant::as_nanos))
    }

    /// `(accepted, delivered, dead, expired, cancelled, queued, leased, done)`.
    fn ledger(&self) -> PyResult<(u64, u64, u64, u64, u64, u64, u64, u64)> {
        let ledger = self.lock()?.engine.ledger();
        Ok((
            ledger.accepted,
            ledger.delivered,
            ledger.dead,
            ledger.expired,
            ledger.cancelled,
            ledger.queued,
            ledger.leased,
            ledger.done,
        ))
    }

    /// How many workers there are.
    fn workers(&self) -> PyResult<usize> {
        Ok(self.lock()?.engine.workers())
    }

    /// For each backend `(name, state, seconds until it may change or None, in flight, strays, limits)`.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let now = self.now();
        let state = self.lock()?;
        let rows = PyList::empty(py);
        for (id, backend) in state.backends.iter().enumerate() {
            let status = state.engine.status(BackendId(id as u16), now);
            let limits = status.limits().map(|usage| State::describe_limit(py, &usage, now)).collect::<PyResult<Vec<_>>>()?;
            let (name, until) = match status.state() {
                BackendState::Open => ("open", Some(0.0)),
                BackendState::Limited(until) => ("limited", until.map(|until| seconds(until.since(now)))),
                BackendState::Full => ("full", None),
                BackendState::Closed(until) => ("closed", Some(seconds(until.since(now)))),
            };
            rows.append((backend.name.clone_ref(py), name, until, status.in_flight(), status.strays(), limits))?;
        }
        Ok(rows)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Another thread in the middle of a call: it holds references that the collector cannot see, so nothing here is garbage.
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        for slot in state.slots.iter().flatten() {
            visit.call(&slot.target)?;
            visit.call(&slot.runner)?;
            match &slot.listener {
                Listener::Nobody => {}
                Listener::Ticket(ticket) => visit.call(ticket)?,
                Listener::Stream(stream, _) => visit.call(stream)?,
                Listener::Future(future) => visit.call(future)?,
            }
            for (_, error) in slot.attempts.iter().flat_map(|past| past.iter()) {
                visit.call(error)?;
            }
        }
        for backend in &state.backends {
            visit.call(&backend.runner)?;
        }
        if let Some((here, elsewhere)) = &state.wake {
            visit.call(here)?;
            visit.call(elsewhere)?;
        }
        state.grants.values().flatten().try_for_each(|grant| visit.call(grant))
    }

    fn __clear__(&self) {
        let Ok(mut state) = self.state.try_lock() else { return };
        let dropped = (
            std::mem::take(&mut state.slots),
            std::mem::take(&mut state.backends),
            state.wake.take(),
            std::mem::take(&mut state.grants),
        );
        drop(state);
        drop(dropped);
    }
}

impl Core {
    /// Places for up to `wanted` requests.
    ///
    /// # Errors
    /// `SchedulerClosedError` when none are accepted any more.
    fn reserve(&self, wanted: usize) -> PyResult<usize> {
        if self.lock()?.engine.is_accepting() { Ok(self.room.reserve(wanted)) } else { Err(error::closed()) }
    }
}
