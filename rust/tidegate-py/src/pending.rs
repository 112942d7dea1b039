//! What Python gave for a request that is pending, and who is told when it has ended.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};
use pyo3::{PyTraverseError, PyVisit};
use tidegate_core::engine::{Handle, Waits};
use tidegate_core::time::{Instant, Span};

use crate::convert::seconds;
use crate::reply::{Reply, Settled};
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
            Listener::Ticket(_) | Listener::Nobody => false,
        }
    }
}

/// A failed attempt: its backend and its error.
pub(crate) type Failure = (Py<PyString>, Py<PyAny>);

/// What Python gave for a request that is pending, and the errors of its attempts so far.
pub(crate) struct Pending {
    pub(crate) target: Py<PyAny>,
    pub(crate) listener: Listener,
    /// Runs its attempts instead of its backend's runner.
    pub(crate) runner: Option<Py<PyAny>>,
    #[expect(clippy::box_collection, reason = "one word a request: most never fail")]
    failures: Option<Box<Vec<Failure>>>,
}

impl Pending {
    pub(crate) fn new(target: Py<PyAny>, listener: Listener, runner: Option<Py<PyAny>>) -> Pending {
        Pending { target, listener, runner, failures: None }
    }

    pub(crate) fn note_failure(&mut self, backend: Py<PyString>, error: Py<PyAny>) {
        self.failures.get_or_insert_default().push((backend, error));
    }

    pub(crate) fn last_backend(&self, py: Python<'_>) -> Option<Py<PyString>> {
        self.failures.as_ref()?.last().map(|(backend, _)| backend.clone_ref(py))
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.target)?;
        visit.call(&self.runner)?;
        match &self.listener {
            Listener::Nobody => {}
            Listener::Ticket(ticket) => visit.call(ticket)?,
            Listener::Stream(stream, _) => visit.call(stream)?,
            Listener::Future(future) => visit.call(future)?,
        }
        self.failures.iter().flat_map(|failures| failures.iter()).try_for_each(|(_, error)| visit.call(error))
    }
}

/// How a request ended: with a value, or in this way and perhaps with what its last handler raised.
pub(crate) enum End {
    Value(Py<PyAny>),
    Error(&'static str, Option<Py<PyAny>>),
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
    /// Tells who listens. Runs Python code.
    pub(crate) fn tell(self, py: Python<'_>, ended_at: Instant) -> PyResult<()> {
        let Conclusion { pending, end, held, backend, attempts, waits, age } = self;
        let Pending { target, listener, failures, .. } = pending;
        let result = match end {
            End::Value(value) => Ok(value),
            End::Error(ending, error) => {
                let failures = PyList::new(py, failures.map_or_else(Vec::new, |failures| *failures))?;
                Err(shell(py)?.call_method1("error_of", (ending, &target, failures, error, &backend, seconds(age)))?.unbind())
            }
        };
        let settled = Settled { target, result, backend, attempts, waits, age, ended_at };
        match listener {
            Listener::Nobody => {}
            Listener::Ticket(ticket) => ticket.get().settle(py, settled),
            Listener::Stream(stream, index) => stream.get().push(py, index, Item { settled, held }),
            Listener::Future(future) => {
                let reply = Py::new(py, Reply::new(settled, ended_at))?;
                shell(py)?.call_method1("resolve", (future, reply))?;
            }
        }
        Ok(())
    }
}
