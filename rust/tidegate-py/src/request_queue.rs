//! The order of a queue alone; what waits in it, Python keeps by handle.

use std::sync::{Mutex, MutexGuard};
use std::time;

use pyo3::prelude::*;
use tidegate_core::queue::RequestQueue as Inner;
use tidegate_core::time::Instant;

use crate::convert;
use crate::core::OrderOptions;
use crate::error;

/// The order of a `tidegate.RequestQueue`. See `_core.pyi`.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct RequestQueue {
    inner: Mutex<Inner>,
    origin: time::Instant,
}

impl RequestQueue {
    fn lock(&self) -> PyResult<MutexGuard<'_, Inner>> {
        self.inner.lock().map_err(|_| error::broken())
    }
}

#[pymethods]
impl RequestQueue {
    #[new]
    #[pyo3(signature = (capacity, order, /))]
    fn new(capacity: usize, order: OrderOptions) -> RequestQueue {
        RequestQueue { inner: Mutex::new(Inner::new(capacity, &order.declared())), origin: time::Instant::now() }
    }

    /// A handle, or None when the queue is full.
    #[pyo3(signature = (priority, timeout, flow, /))]
    fn push(
        &self,
        priority: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
        flow: &Bound<'_, PyAny>,
    ) -> PyResult<Option<u64>> {
        let (band, flow) = (convert::priority(priority)?, convert::flow(flow)?);
        // 584 years fit.
        let now = Instant::from_nanos(self.origin.elapsed().as_nanos() as u64);
        let deadline = timeout.map(convert::timeout).transpose()?.map_or(Instant::FAR, |timeout| now + timeout);
        Ok(self.lock()?.push(now, band, deadline, flow.as_deref().unwrap_or_default()))
    }

    fn pop(&self) -> PyResult<Option<u64>> {
        Ok(self.lock()?.pop())
    }

    fn peek(&self) -> PyResult<Option<u64>> {
        Ok(self.lock()?.peek())
    }

    #[pyo3(signature = (handle, /))]
    fn cancel(&self, handle: u64) -> PyResult<bool> {
        Ok(self.lock()?.cancel(handle))
    }
}
