//! What a handler gets: one attempt of one request.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{PyTraverseError, PyVisit};
use tidegate_core::engine::{LeaseId, Leased};
use tidegate_core::time::Instant;

use crate::convert;
use crate::core::Core;
use crate::pending::Pending;
use crate::scopes::Scopes;
use crate::shell::shell;

/// What a handler gets: one attempt of one request.
///
/// Attributes:
///     target: What was submitted.
///     backend: Name of the backend that serves it.
///     account: The account chosen; None for a backend without accounts.
///     attempt: Which attempt it is, from 1. One that a limit rejected is not counted; one that failed while its backend was down costs the
///         request none of its attempts, and is.
///     priority: 0 (most urgent) to 255.
///     deadline: When the request is worthless, on the clock of `loop.time()`; None for never.
///     scopes: The scopes that the request carries.
///     scheduled_for: The instant for which a collector planned it; None otherwise.
///     checkpoint: Any object that this attempt leaves for the next one of the same request; None until one was left. May be set in any
///         thread, has no effect once the attempt is over, and is gone when the request ends.
///     ended: Whether the attempt is over or was given up: its request was cancelled or is past its deadline, the attempt timed out, or
///         the scheduler was closed. For a handler in a thread, which nobody interrupts, to look at between two pieces of work.
#[pyclass(frozen, module = "tidegate", freelist = 256)]
pub(crate) struct Request {
    pub(crate) core: Py<Core>,
    pub(crate) lease: LeaseId,
    // Python reads these three without a call.
    #[pyo3(get)]
    pub(crate) target: Py<PyAny>,
    #[pyo3(get)]
    pub(crate) backend: Py<PyString>,
    /// The coroutine function that runs this attempt.
    #[pyo3(get, name = "_runner")]
    pub(crate) runner: Py<PyAny>,
    pub(crate) account: Option<Py<PyAny>>,
    pub(crate) attempt: u32,
    pub(crate) priority: u8,
    pub(crate) deadline: Instant,
    pub(crate) scopes: Scopes,
    pub(crate) planned: Instant,
}

/// An attempt for which an object is to be made.
pub(crate) struct Attempt {
    pub(crate) leased: Leased,
    pub(crate) target: Py<PyAny>,
    pub(crate) backend: Py<PyString>,
    pub(crate) runner: Py<PyAny>,
    pub(crate) account: Option<Py<PyAny>>,
    pub(crate) scopes: Scopes,
    pub(crate) planned: Instant,
}

/// What an object held of its last attempt: target, backend, runner, account. To be dropped where Python code may run.
pub(crate) type Old = (Option<Py<PyAny>>, Option<Py<PyString>>, Option<Py<PyAny>>, Option<Py<PyAny>>);

impl Request {
    pub(crate) fn new(core: Py<Core>, attempt: Attempt) -> Request {
        let Attempt { leased, target, backend, runner, account, scopes, planned } = attempt;
        let Leased { lease, attempt, priority, deadline, .. } = leased;
        Request { core, lease, target, backend, runner, account, attempt, priority, deadline, scopes, planned }
    }

    /// Uses the object of an attempt that is over for the next one, if nobody has it but its worker; nothing otherwise. To make a new
    /// object and to free this one costs half as much as all that the engine does.
    ///
    /// `last` is our own reference. The worker's coroutine has another, in a variable that it does not read before it
    /// has been given a new value. So two references mean that nobody sees the object, and more that somebody kept it.
    #[inline]
    pub(crate) fn renew(
        py: Python<'_>,
        last: &Py<Request>,
        leased: &Leased,
        pending: &Pending,
        backend: &Py<PyString>,
        runner: &Py<PyAny>,
        account: Option<&Py<PyAny>>,
    ) -> Option<Old> {
        let object = last.as_ptr();
        // SAFETY: a live object, and we are attached.
        if unsafe { pyo3::ffi::Py_REFCNT(object) } != 2 {
            return None;
        }
        let offset = std::ptr::from_ref(last.get()).addr() - object.addr();
        // SAFETY: the fields of the class, inside of the object. Nobody else can reach them while we hold the interpreter's lock: the two
        // references are accounted for, and no Python code runs in here.
        let place = unsafe { &mut *object.byte_add(offset).cast::<Request>() };
        let Leased { lease, attempt, priority, deadline, .. } = *leased;
        (place.lease, place.attempt, place.priority, place.deadline) = (lease, attempt, priority, deadline);
        place.scopes.clone_from(&pending.scopes);
        place.planned = pending.planned();
        Some((
            replaced(py, &mut place.target, &pending.target),
            replaced(py, &mut place.backend, backend),
            replaced(py, &mut place.runner, runner),
            std::mem::replace(&mut place.account, account.map(|account| account.clone_ref(py))),
        ))
    }
}

/// Puts `new` in its place, unless it is there; returns what was.
#[inline]
fn replaced<T>(py: Python<'_>, place: &mut Py<T>, new: &Py<T>) -> Option<Py<T>> {
    (!place.is(new)).then(|| std::mem::replace(place, new.clone_ref(py)))
}

#[pymethods]
impl Request {
    #[getter]
    fn account(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.account.as_ref().map(|account| account.clone_ref(py))
    }

    #[getter]
    fn attempt(&self) -> u32 {
        self.attempt
    }

    #[getter]
    fn priority(&self) -> u8 {
        self.priority
    }

    #[getter]
    fn deadline(&self) -> Option<f64> {
        (self.deadline < Instant::FAR).then(|| self.core.get().loop_time(self.deadline))
    }

    #[getter]
    fn scopes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.scopes.as_dict(py)
    }

    #[getter]
    fn scheduled_for(&self) -> Option<f64> {
        (self.planned < Instant::FAR).then(|| self.core.get().loop_time(self.planned))
    }

    #[getter]
    fn checkpoint(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.core.get().checkpoint(py, self.lease)
    }

    #[setter]
    fn set_checkpoint(&self, checkpoint: Option<Py<PyAny>>) -> PyResult<()> {
        self.core.get().leave_checkpoint(self.lease, checkpoint)
    }

    #[getter]
    fn ended(&self) -> PyResult<bool> {
        self.core.get().is_over(self.lease)
    }

    /// Say that response headers arrived: the clocks of the limits start now.
    ///
    /// Without it they start when the handler ends, which is safe but wastes the time in between. A status of 429, or 503 with
    /// `Retry-After`, closes the backend's limits; so does `retry_after` without a status. Saying it twice changes nothing.
    ///
    /// Args:
    ///     status: HTTP status, or what corresponds to it.
    ///     headers: Response headers; with a status, `Retry-After` is read, as seconds or as a date, and waits of more than 24 hours are cut to that.
    ///     retry_after: Seconds that the server asks us to wait, from elsewhere than the headers.
    ///
    /// Raises:
    ///     ConfigError: The status is no integer, or `retry_after` no number. What a server may have said does not raise.
    ///
    /// Thread safety: any thread.
    #[pyo3(signature = (status=None, headers=None, *, retry_after=None))]
    fn ack(
        &self,
        py: Python<'_>,
        status: Option<&Bound<'_, PyAny>>,
        headers: Option<&Bound<'_, PyAny>>,
        retry_after: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let status = status.map(convert::status).transpose()?.flatten();
        let retry_after = retry_after.map(convert::retry_after).transpose()?;
        // Without its status a response may be a redirect, whose `Retry-After` is no rejection.
        let headers = headers.filter(|_| status.is_some());
        self.core.get().ack(py, self.lease, convert::answer(status, headers, retry_after))
    }

    /// Asks to send one more message; `grant` is a callable that will be called, on the loop, when it may be. True: now.
    #[pyo3(signature = (cost, scopes, grant, /))]
    fn _recharge(&self, py: Python<'_>, cost: u32, scopes: Option<&Bound<'_, PyAny>>, grant: Py<PyAny>) -> PyResult<bool> {
        let scopes = scopes.map_or_else(|| Ok(Scopes::default()), Scopes::of)?;
        self.core.get().recharge(py, self.lease, cost, &scopes, grant)
    }

    /// Takes back a message that was asked for: it is not sent.
    #[pyo3(signature = (cost, grant, /))]
    fn _withdraw(&self, cost: u32, grant: &Bound<'_, PyAny>) -> PyResult<()> {
        self.core.get().withdraw(self.lease, cost, grant)
    }

    /// Wait until one more message may be sent for this attempt (a redirect, another page), and charge it.
    ///
    /// It goes ahead of the requests that wait, and takes no concurrency. What was sent before counts as acknowledged.
    ///
    /// Args:
    ///     cost: Units of each limit, at least 1.
    ///     scopes: The scopes of this message, where they differ from those of the one before, such as `{"host": "example.org"}`.
    ///
    /// Raises:
    ///     ConfigError: The cost is no positive integer, or the scopes are no mapping of texts.
    ///     CostExceedsBurstError: The backend never admits that cost.
    ///
    /// Cancellation: nothing is charged.
    #[pyo3(signature = (cost=None, *, scopes=None), text_signature = "(self, cost=1, *, scopes=None)")]
    fn recharge<'py>(
        slf: &Bound<'py, Self>,
        cost: Option<&Bound<'py, PyAny>>,
        scopes: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let cost = cost.map_or(Ok(1), convert::cost)?;
        shell(slf.py())?.call_method1("recharge", (slf, cost, scopes))
    }

    /// The same from a handler's thread: blocks it until one more message may be sent.
    #[pyo3(signature = (cost=None, *, scopes=None), text_signature = "(self, cost=1, *, scopes=None)")]
    fn recharge_blocking(
        slf: &Bound<'_, Self>,
        cost: Option<&Bound<'_, PyAny>>,
        scopes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let cost = cost.map_or(Ok(1), convert::cost)?;
        shell(slf.py())?.call_method1("recharge_blocking", (slf, cost, scopes)).map(drop)
    }

    /// A worker keeps the object of its last attempt: a circle, with the core.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        visit.call(&self.target)?;
        visit.call(&self.runner)?;
        visit.call(&self.account)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let target = shell(py)?.call_method1("shown", (&self.target,))?;
        Ok(format!("<Request {target} at {}, attempt {}>", self.backend, self.attempt))
    }
}
