//! The options of a request, checked once and used for many.

use pyo3::prelude::*;
use tidegate_core::engine::{ClassId, Flags, Submission};
use tidegate_core::time::{Instant, Span};

/// Checked options of a request: see `Core.terms`.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct Terms {
    pub(crate) class: ClassId,
    pub(crate) priority: u8,
    pub(crate) timeout: Option<Span>,
    pub(crate) flags: Flags,
}

impl Terms {
    #[inline]
    pub(crate) fn submission(&self, now: Instant, held: bool) -> Submission {
        Submission {
            class: self.class,
            priority: self.priority,
            deadline: self.timeout.map_or(Instant::FAR, |timeout| now + timeout),
            flags: Flags { held, ..self.flags },
        }
    }
}
