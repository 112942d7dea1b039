//! What Python gave for a request that is pending, and who is told when it has ended.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};
use pyo3::{PyTraverseError, PyVisit};
use tidegate_core::collector::Ended;
use tidegate_core::engine::{Handle, Waits};
use tidegate_core::time::{Instant, Span};

use crate::convert::seconds;
use crate::reply::{Reply, Settled};
use crate::scopes::Scopes;
use crate::shell::shell;
use crate::stream::{Item, Stream};
use crate::ticket::Ticket;

/// Who is told how a request ended.
pub(crate) enum Listener {
    /// Who listened has left.
    Nobody,
    Ticket(Py<Ticket>),
    /// A stream, and the place of the request in it.
    Stream(Py<Stream>, u64),
    /// A `concurrent.futures.Future`.
    Future(Py<PyAny>),
}

impl Listener {
    pub(crate) fn is(&self, other: &Bound<'_, PyAny>) -> bool {
        match self {
            Listener::Stream(stream, _) => stream.as_ptr() == other.as_ptr(),
            Listener::Future(future) => future.as_ptr() == other.as_ptr(),
            Listener::Ticket(ticket) => ticket.as_ptr() == other.as_ptr(),
            Listener::Nobody => false,
        }
    }

    fn tell(self, py: Python<'_>, settled: Settled, held: Option<Handle>) -> PyResult<()> {
        match self {
            Listener::Nobody => {}
            Listener::Ticket(ticket) => ticket.get().settle(py, settled),
            Listener::Stream(stream, index) => stream.get().push(py, index, Item { settled, held })?,
            Listener::Future(future) => {
                let ended_at = settled.ended_at;
                let reply = Py::new(py, Reply::new(settled, ended_at))?;
                shell(py)?.call_method1("resolve", (future, reply))?;
            }
        }
        Ok(())
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Listener::Nobody => Ok(()),
            Listener::Ticket(ticket) => visit.call(ticket),
            Listener::Stream(stream, _) => visit.call(stream),
            Listener::Future(future) => visit.call(future),
        }
    }
}

/// A submission that joined a request: its own target, and who is told.
pub(crate) type Joined = (Py<PyAny>, Listener);

/// A failed attempt: its backend and its error.
pub(crate) type Failure = (Py<PyString>, Py<PyAny>);

/// What only some requests have.
#[derive(Default)]
struct Extras {
    /// Runs its attempts instead of its backend's runner.
    runner: Option<Py<PyAny>>,
    /// When a collector planned it for.
    planned: Option<Instant>,
    /// The errors of its attempts so far.
    failures: Vec<Failure>,
    /// What it is known by.
    unique: Option<Arc<str>>,
    /// Another submission has joined it, if only for a while.
    was_joined: bool,
    joined: Vec<Joined>,
    /// What its last attempt left for the next one.
    checkpoint: Option<Py<PyAny>>,
}

/// What Python gave for a request that is pending, and the errors of its attempts so far.
pub(crate) struct Pending {
    pub(crate) target: Py<PyAny>,
    pub(crate) listener: Listener,
    pub(crate) scopes: Scopes,
    extras: Option<Box<Extras>>,
}

/// There may be a million of them.
const _: () = assert!(size_of::<Pending>() <= 48);

impl Pending {
    pub(crate) fn new(target: Py<PyAny>, listener: Listener, runner: Option<Py<PyAny>>, scopes: Scopes) -> Pending {
        let mut pending = Pending { target, listener, scopes, extras: None };
        if runner.is_some() {
            pending.extras_mut().runner = runner;
        }
        pending
    }

    fn extras_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// The same, known by a name.
    pub(crate) fn known_by(mut self, unique: Arc<str>) -> Pending {
        self.extras_mut().unique = Some(unique);
        self
    }

    /// The same, planned by a collector for this instant.
    pub(crate) fn planned_for(mut self, planned: Instant) -> Pending {
        self.extras_mut().planned = Some(planned);
        self
    }

    /// What runs its attempts instead of its backend's runner.
    #[inline]
    pub(crate) fn runner(&self) -> Option<&Py<PyAny>> {
        self.extras.as_ref()?.runner.as_ref()
    }

    /// When a collector planned it for; [`Instant::FAR`] for one of no collector.
    #[inline]
    pub(crate) fn planned(&self) -> Instant {
        self.extras.as_ref().and_then(|extras| extras.planned).unwrap_or(Instant::FAR)
    }

    /// What it is known by.
    #[inline]
    pub(crate) fn unique(&self) -> Option<&str> {
        self.extras.as_ref()?.unique.as_deref()
    }

    /// Whether another submission has joined it.
    #[inline]
    pub(crate) fn was_joined(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.was_joined)
    }

    /// One more submission is served by it.
    pub(crate) fn join(&mut self, joined: Joined) {
        let extras = self.extras_mut();
        extras.was_joined = true;
        extras.joined.push(joined);
    }

    /// All who listen.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Listener> {
        let joined = self.extras.iter().flat_map(|extras| &extras.joined).map(|(_, listener)| listener);
        std::iter::once(&self.listener).chain(joined).filter(|listener| !matches!(listener, Listener::Nobody))
    }

    /// Takes out those of the submissions that `listener` waits for.
    pub(crate) fn leave(&mut self, listener: &Bound<'_, PyAny>) -> Vec<Joined> {
        let mut left = Vec::new();
        if self.listener.is(listener) {
            let first = std::mem::replace(&mut self.listener, Listener::Nobody);
            left.push((self.target.clone_ref(listener.py()), first));
        }
        if let Some(extras) = &mut self.extras {
            left.extend(extras.joined.extract_if(.., |(_, joined)| joined.is(listener)));
        }
        left
    }

    /// What its attempts have left.
    pub(crate) fn checkpoint(&self) -> Option<&Py<PyAny>> {
        self.extras.as_ref()?.checkpoint.as_ref()
    }

    /// Leaves something for the next attempt; returns what was left before.
    pub(crate) fn leave_checkpoint(&mut self, checkpoint: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        match &mut self.extras {
            None if checkpoint.is_none() => None,
            _ => std::mem::replace(&mut self.extras_mut().checkpoint, checkpoint),
        }
    }

    pub(crate) fn note_failure(&mut self, backend: Py<PyString>, error: Py<PyAny>) {
        self.extras_mut().failures.push((backend, error));
    }

    pub(crate) fn last_backend(&self, py: Python<'_>) -> Option<Py<PyString>> {
        self.extras.as_ref()?.failures.last().map(|(backend, _)| backend.clone_ref(py))
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.target)?;
        self.listener.traverse(visit)?;
        let Some(extras) = &self.extras else { return Ok(()) };
        visit.call(&extras.runner)?;
        visit.call(&extras.checkpoint)?;
        for (target, listener) in &extras.joined {
            visit.call(target)?;
            listener.traverse(visit)?;
        }
        extras.failures.iter().try_for_each(|(_, error)| visit.call(error))
    }
}

/// How a request ended: with a value, or in this way and perhaps with what its last handler raised.
pub(crate) enum End {
    Value(Py<PyAny>),
    Error(&'static str, Option<Py<PyAny>>),
}

impl End {
    fn as_counted(&self) -> Ended {
        match self {
            End::Value(_) => Ended::Delivered,
            End::Error("expired while queued" | "expired while leased", _) => Ended::Expired,
            End::Error("cancelled" | "closed", _) => Ended::Cancelled,
            End::Error(..) => Ended::Failed,
        }
    }

    fn clone_ref(&self, py: Python<'_>) -> End {
        match self {
            End::Value(value) => End::Value(value.clone_ref(py)),
            End::Error(ending, error) => End::Error(ending, error.as_ref().map(|error| error.clone_ref(py))),
        }
    }
}

/// A request that has ended, on its way from the lock to its listener.
pub(crate) struct Conclusion {
    pub(crate) pending: Pending,
    pub(crate) end: End,
    /// It stays done until its consumer has had it.
    pub(crate) held: Option<Handle>,
    pub(crate) backend: Option<Py<PyString>>,
    pub(crate) attempts: u32,
    pub(crate) waits: Waits,
    pub(crate) age: Span,
}

impl Conclusion {
    /// Of a submission that ended in this way before it had an attempt, or of which nothing more is known.
    pub(crate) fn without_value(pending: Pending, ending: &'static str) -> Conclusion {
        let (end, waits, age) = (End::Error(ending, None), Waits::default(), Span::ZERO);
        Conclusion { pending, end, held: None, backend: None, attempts: 0, waits, age }
    }

    /// Tells all who listen; the times and attempts are those of the request, whoever joined it when. Runs Python code.
    pub(crate) fn tell(self, py: Python<'_>, ended_at: Instant) -> PyResult<()> {
        let Conclusion { mut pending, end, held, backend, attempts, waits, age } = self;
        let planned = pending.planned();
        let Extras { joined, failures, .. } = pending.extras.take().map_or_else(Extras::default, |extras| *extras);
        let failures = if matches!(end, End::Error(..)) { failures } else { Vec::new() };
        let told = |(target, listener): Joined, end: End, failures: Vec<Failure>, backend: Option<Py<PyString>>| {
            let ended = end.as_counted();
            let result = match end {
                End::Value(value) => Ok(value),
                End::Error(ending, error) => {
                    let failures = PyList::new(py, failures)?;
                    Err(shell(py)?.call_method1("error_of", (ending, &target, failures, error, &backend, seconds(age)))?.unbind())
                }
            };
            listener.tell(py, Settled { target, result, backend, attempts, waits, age, ended_at, ended, planned }, held)
        };
        // One that cannot be told does not keep the others from being told.
        let mut all = Ok(());
        for part in joined {
            let failed = failures.iter().map(|(name, error)| (name.clone_ref(py), error.clone_ref(py))).collect();
            all = all.and(told(part, end.clone_ref(py), failed, backend.as_ref().map(|name| name.clone_ref(py))));
        }
        all.and(told((pending.target, pending.listener), end, failures, backend))
    }
}
