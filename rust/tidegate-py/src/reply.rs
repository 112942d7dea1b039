//! How a request ended.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{PyTraverseError, PyVisit};
use tidegate_core::collector::Ended;
use tidegate_core::engine::Waits;
use tidegate_core::time::{Instant, Span};

use crate::convert::seconds;
use crate::shell::shell;

/// What a consumer is told of a request that has ended.
pub(crate) struct Settled {
    pub(crate) target: Py<PyAny>,
    /// A value, or an error of ours.
    pub(crate) result: Result<Py<PyAny>, Py<PyAny>>,
    pub(crate) backend: Option<Py<PyString>>,
    pub(crate) attempts: u32,
    pub(crate) waits: Waits,
    /// From acceptance to the end of the last attempt.
    pub(crate) age: Span,
    pub(crate) ended_at: Instant,
    /// As a collector counts it.
    pub(crate) ended: Ended,
    /// When a collector planned it for; [`Instant::FAR`] for one of no collector.
    pub(crate) planned: Instant,
}

impl Settled {
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.target)?;
        let (Ok(result) | Err(result)) = &self.result;
        visit.call(result)
    }
}

/// How a request ended.
///
/// Attributes:
///     target: What was submitted.
///     ok: Whether it has a value.
///     value: What the handler returned. Of a failed reply, raises its error.
///     error: The error that it ended with; None when it is ok.
///     backend: Name of the backend of its last attempt; None when there was none.
///     attempts: Attempts that counted.
///     waits: Seconds by cause: `queue` (others went first), `limit` (no room in any backend's limits), `concurrency` (all in use), `backoff`
///         (between attempts), `attempt` (the handler ran), `consumer` (until the reply was taken). They add up to the time from
///         acceptance to this reply; limit and concurrency are measured to 1 ms.
///     scheduled_for: The instant for which a collector planned it, on the clock of `loop.time()`; None otherwise.
#[pyclass(frozen, module = "tidegate")]
pub(crate) struct Reply {
    settled: Settled,
    /// Between the end of the last attempt and the consumer.
    consumer: Span,
    scheduled_for: Option<f64>,
}

impl Reply {
    pub(crate) fn new(settled: Settled, now: Instant) -> Reply {
        let consumer = now.since(settled.ended_at);
        Reply { settled, consumer, scheduled_for: None }
    }

    /// The same, planned by a collector for this instant of the loop's clock.
    pub(crate) fn scheduled_for(self, instant: f64) -> Reply {
        Reply { scheduled_for: Some(instant), ..self }
    }
}

#[pymethods]
impl Reply {
    #[getter]
    fn target(&self, py: Python<'_>) -> Py<PyAny> {
        self.settled.target.clone_ref(py)
    }

    #[getter(scheduled_for)]
    fn planned(&self) -> Option<f64> {
        self.scheduled_for
    }

    #[getter]
    fn ok(&self) -> bool {
        self.settled.result.is_ok()
    }

    #[getter]
    fn value(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match &self.settled.result {
            Ok(value) => Ok(value.clone_ref(py)),
            Err(error) => Err(PyErr::from_value(error.bind(py).clone())),
        }
    }

    #[getter]
    fn error(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.settled.result.as_ref().err().map(|error| error.clone_ref(py))
    }

    #[getter]
    fn backend(&self, py: Python<'_>) -> Option<Py<PyString>> {
        self.settled.backend.as_ref().map(|name| name.clone_ref(py))
    }

    #[getter]
    fn attempts(&self) -> u32 {
        self.settled.attempts
    }

    #[getter]
    fn waits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Waits { limit, concurrency, backoff, attempt } = self.settled.waits;
        let queue = self.settled.age.since_parts([limit, concurrency, backoff, attempt]);
        let waits = PyDict::new(py);
        for (cause, span) in [
            ("queue", queue),
            ("limit", limit),
            ("concurrency", concurrency),
            ("backoff", backoff),
            ("attempt", attempt),
            ("consumer", self.consumer),
        ] {
            waits.set_item(cause, seconds(span))?;
        }
        Ok(waits)
    }

    /// `raise reply.error` makes a circle: the error's traceback refers to the frame, and the frame to this reply.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.settled.traverse(&visit)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let target = shell(py)?.call_method1("shown", (&self.settled.target,))?;
        let how = match &self.settled.result {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.bind(py).get_type().name()?.to_string(),
        };
        let backend = self.settled.backend.as_ref().map_or_else(String::new, |name| format!(" by {name}"));
        let plural = if self.settled.attempts == 1 { "" } else { "s" };
        Ok(format!("<Reply {target}: {how}{backend}, {} attempt{plural}>", self.settled.attempts))
    }
}

/// What remains of a span.
trait Remainder {
    fn since_parts(self, parts: [Span; 4]) -> Span;
}

impl Remainder for Span {
    fn since_parts(self, parts: [Span; 4]) -> Span {
        parts.into_iter().fold(self, |rest, part| rest - part)
    }
}
