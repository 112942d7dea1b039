//! An accepted request, for who submitted it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use tidegate_core::engine::Handle;

use crate::core::Core;
use crate::reply::{Reply, Settled};
use crate::shell::shell;

enum State {
    Pending {
        waiters: Vec<Py<PyAny>>,
    },
    /// The reply is made when somebody asks for it.
    Settled(Option<Settled>),
    Read(Py<Reply>),
}

// Out of the garbage collector's sight: a scheduler settles its tickets when it is left, which is what breaks the cycle through it,
// and a million tickets would cost every collection.
/// An accepted request. Awaiting it, any number of times and from any task of the loop, gives its `Reply` or raises its error.
///
/// Attributes:
///     id: Number of the request, unique among those pending; tickets that joined it by `unique=` have the same.
///
/// Cancellation: cancelling who awaits a ticket does not cancel its request; `cancel` does.
#[pyclass(frozen, module = "tidegate")]
pub(crate) struct Ticket {
    core: Py<Core>,
    /// [`Handle::to_bits`] of its request, once that has been accepted.
    request: AtomicU64,
    state: Mutex<State>,
}

impl Ticket {
    /// A ticket for a request that is about to be accepted.
    pub(crate) fn new(core: &Bound<'_, Core>) -> PyResult<Py<Ticket>> {
        let state = Mutex::new(State::Pending { waiters: Vec::new() });
        let ticket = Py::new(core.py(), Ticket { core: core.clone().unbind(), request: AtomicU64::new(0), state })?;
        // SAFETY: a live object that nobody else has seen, and we are attached. Being untracked is allowed for any object, and asked twice
        // is no error: the collector then never looks at it, and it is freed by its reference count alone.
        unsafe { pyo3::ffi::PyObject_GC_UnTrack(ticket.as_ptr().cast()) };
        Ok(ticket)
    }

    /// Its request was accepted.
    pub(crate) fn name(&self, request: Handle) {
        // ORDERING: Relaxed; the number stands for itself, and nobody is given a ticket without one.
        self.request.store(request.to_bits(), Ordering::Relaxed);
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps what became of the request and wakes who awaits it.
    pub(crate) fn settle(&self, py: Python<'_>, settled: Settled) {
        let before = self.with(|state| match state {
            State::Pending { .. } => std::mem::replace(state, State::Settled(Some(settled))),
            // Forgotten.
            _ => State::Settled(Some(settled)),
        });
        if let State::Pending { waiters } = before {
            for waiter in &waiters {
                // One whose task was cancelled meanwhile refuses.
                let _ = waiter.call_method1(py, "set_result", (py.None(),));
            }
        }
    }
}

/// A failed reply that nobody has read is said once, when nobody can read it any more.
impl Drop for Ticket {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Settled(Some(settled)) = state
            && let Err(error) = &settled.result
        {
            Python::try_attach(|py| shell(py)?.call_method1("log_unheard", (error,)).map(drop));
        }
    }
}

#[pymethods]
impl Ticket {
    #[getter]
    fn id(&self) -> u64 {
        self.request.load(Ordering::Relaxed)
    }

    /// Whether the request has ended.
    fn done(&self) -> bool {
        self.with(|state| !matches!(state, State::Pending { .. }))
    }

    /// Cancel the request, whatever it is doing: it ends with `RequestCancelledError`. False when it has ended. One that others have
    /// joined by `unique=` goes on for them.
    fn cancel(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let ticket = slf.get();
        if ticket.done() {
            return Ok(false);
        }
        ticket.core.get().cancel_ticket(Handle::from_bits(ticket.id()), slf)
    }

    /// Adds a future that is resolved when the request has ended; false when it has.
    #[pyo3(signature = (future, /))]
    fn _wait(&self, future: Py<PyAny>) -> bool {
        self.with(|state| match state {
            State::Pending { waiters } => {
                waiters.push(future);
                true
            }
            _ => false,
        })
    }

    /// Takes back a future that nobody waits for any more.
    #[pyo3(signature = (future, /))]
    fn _unwait(&self, future: &Bound<'_, PyAny>) {
        self.with(|state| {
            if let State::Pending { waiters } = state {
                // The caller has one more reference: nothing is freed under the lock.
                waiters.retain(|waiter| !waiter.is(future));
            }
        });
    }

    /// Its owner hears of the error elsewhere.
    fn _forget(&self) {
        let dropped = self.with(|state| std::mem::replace(state, State::Settled(None)));
        drop(dropped);
    }

    /// The reply of a request that has ended.
    fn _reply(&self, py: Python<'_>) -> PyResult<Option<Py<Reply>>> {
        let now = self.core.get().now();
        let settled = self.with(|state| match state {
            State::Settled(settled) => settled.take(),
            _ => None,
        });
        if let Some(settled) = settled {
            let reply = Py::new(py, Reply::new(settled, now))?;
            self.with(|state| *state = State::Read(reply.clone_ref(py)));
            return Ok(Some(reply));
        }
        Ok(self.with(|state| match state {
            State::Read(reply) => Some(reply.clone_ref(py)),
            _ => None,
        }))
    }

    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        shell(slf.py())?.call_method1("reply_of", (slf,))?.call_method0("__await__")
    }

    fn __repr__(&self) -> String {
        let state = if self.done() { "done" } else { "pending" };
        format!("<Ticket {:#x}: {state}>", self.id())
    }
}
