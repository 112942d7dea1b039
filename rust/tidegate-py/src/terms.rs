//! The options of a request, checked once and used for many.

use pyo3::prelude::*;
use tidegate_core::engine::{ClassId, Flags, Submission};
use tidegate_core::time::{Instant, Span};

use crate::convert;

/// Checked options of a request: see `Core.terms`.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct Terms {
    pub(crate) class: ClassId,
    pub(crate) priority: u8,
    pub(crate) timeout: Option<Span>,
    pub(crate) flow: Option<Box<str>>,
    pub(crate) flags: Flags,
}

impl Terms {
    #[inline]
    pub(crate) fn submission(&self, now: Instant, held: bool) -> Submission<'_> {
        Submission {
            class: self.class,
            priority: self.priority,
            deadline: self.timeout.map_or(Instant::FAR, |timeout| now + timeout),
            not_before: now,
            flow: self.flow.as_deref().unwrap_or_default(),
            flags: Flags { held, ..self.flags },
        }
    }
}

#[pymethods]
impl Terms {
    /// The same for the requests of a flow: what is particular to each is checked apart, for the rest is the same for many.
    #[pyo3(signature = (flow, /))]
    fn own(&self, flow: &Bound<'_, PyAny>) -> PyResult<Terms> {
        let &Terms { class, priority, timeout, flags, .. } = self;
        Ok(Terms { class, priority, timeout, flow: convert::flow(flow)?, flags })
    }
}
