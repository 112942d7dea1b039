//! What a handler gets: one attempt of one request.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use tidegate_core::engine::LeaseId;
use tidegate_core::time::Instant;

use crate::convert;
use crate::core::Core;

/// One attempt of a request: see `tidegate.Request`.
#[pyclass(frozen, module = "tidegate", freelist = 256)]
pub(crate) struct Request {
    pub(crate) core: Py<Core>,
    pub(crate) lease: LeaseId,
    pub(crate) target: Py<PyAny>,
    pub(crate) backend: Py<PyString>,
    pub(crate) runner: Py<PyAny>,
    pub(crate) attempt: u32,
    pub(crate) priority: u8,
    pub(crate) deadline: Instant,
}

#[pymethods]
impl Request {
    #[getter]
    fn target(&self, py: Python<'_>) -> Py<PyAny> {
        self.target.clone_ref(py)
    }

    #[getter]
    fn backend(&self, py: Python<'_>) -> Py<PyString> {
        self.backend.clone_ref(py)
    }

    #[getter]
    fn account(&self) -> Option<Py<PyAny>> {
        None
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
    fn scopes<'py>(&self, py: Python<'py>) -> Bound<'py, PyDict> {
        PyDict::new(py)
    }

    #[getter]
    fn scheduled_for(&self) -> Option<f64> {
        None
    }

    /// The coroutine function that runs this attempt.
    #[getter]
    fn _runner(&self, py: Python<'_>) -> Py<PyAny> {
        self.runner.clone_ref(py)
    }

    #[pyo3(signature = (status=None, headers=None, *, retry_after=None))]
    fn ack(
        &self,
        py: Python<'_>,
        status: Option<u16>,
        headers: Option<&Bound<'_, PyAny>>,
        retry_after: Option<f64>,
    ) -> PyResult<()> {
        self.core.get().ack(py, self.lease, convert::answer(status, headers, retry_after))
    }

    /// Asks to send one more message; `grant` is a callable that will be called, on the loop, when it may be. True: now.
    #[pyo3(signature = (cost, grant, /))]
    fn _recharge(&self, py: Python<'_>, cost: u32, grant: Py<PyAny>) -> PyResult<bool> {
        self.core.get().recharge(py, self.lease, cost, grant)
    }

    /// Takes back a message that was asked for: it is not sent.
    #[pyo3(signature = (cost, grant, /))]
    fn _withdraw(&self, py: Python<'_>, cost: u32, grant: &Bound<'_, PyAny>) -> PyResult<()> {
        self.core.get().withdraw(py, self.lease, cost, grant)
    }

    #[pyo3(signature = (cost=1))]
    fn recharge<'py>(slf: &Bound<'py, Self>, cost: u32) -> PyResult<Bound<'py, PyAny>> {
        crate::core::shell(slf.py())?.call_method1("recharge", (slf, cost))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let target = self.target.bind(py).repr()?;
        Ok(format!("<Request {target} at {}, attempt {}>", self.backend, self.attempt))
    }
}
