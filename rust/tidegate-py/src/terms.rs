//! The options of a request, checked once and used for many.

use std::sync::Arc;

use pyo3::prelude::*;
use tidegate_core::engine::{ClassId, Flags, Submission};
use tidegate_core::time::{Instant, Span};

use crate::scopes::Scopes;

/// When a request may go.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Not before this instant.
    At(Instant),
    /// Not before so long after it was accepted.
    After(Span),
}

/// Checked options of a request: see `Core.terms` and `Core.own`.
#[pyclass(frozen, module = "tidegate._core")]
pub(crate) struct Terms {
    pub(crate) class: ClassId,
    pub(crate) priority: u8,
    pub(crate) timeout: Option<Span>,
    pub(crate) start: Start,
    pub(crate) flow: Option<Box<str>>,
    pub(crate) scopes: Scopes,
    /// What it is known by: another one by the same name joins it.
    pub(crate) unique: Option<Arc<str>>,
    pub(crate) flags: Flags,
}

impl Terms {
    #[inline]
    pub(crate) fn submission<'a>(&'a self, now: Instant, held: bool, scopes: &'a [(&'a str, &'a str)]) -> Submission<'a> {
        Submission {
            class: self.class,
            priority: self.priority,
            deadline: self.timeout.map_or(Instant::FAR, |timeout| now + timeout),
            not_before: match self.start {
                Start::At(instant) => instant,
                Start::After(span) => now + span,
            },
            flow: self.flow.as_deref().unwrap_or_default(),
            scopes,
            flags: Flags { held, ..self.flags },
        }
    }
}
