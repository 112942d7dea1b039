//! What a backend allows, from Python's words to the core's.

use pyo3::prelude::*;
use pyo3::types::PyString;
use tidegate_core::engine::ScopedLimits;
use tidegate_core::limit::{self, Anchor, Jitter, Kind, Limit, Margin};
use tidegate_core::time::Span;

use crate::clock::Clock;
use crate::{convert, error};

/// A `tidegate.Limit`.
#[derive(FromPyObject)]
pub(crate) struct LimitOptions {
    kind: String,
    guessed: bool,
    amount: u32,
    period: f64,
    burst: Option<u32>,
    anchor: String,
    per: Option<String>,
    aligned: bool,
    jitter: Option<JitterOption>,
}

/// What a `tidegate.Limit` says of the line: seconds, or `"auto"`.
#[derive(FromPyObject)]
enum JitterOption {
    Known(f64),
    Auto(#[allow(dead_code)] String),
}

/// A `tidegate.BackendQuota`.
#[derive(FromPyObject)]
pub(crate) struct QuotaOptions {
    limits: Vec<LimitOptions>,
    pub(crate) concurrency: Option<u32>,
    pub(crate) group: Option<String>,
}

impl QuotaOptions {
    /// Its limits, for an engine on this clock: of all, and of each value of a scope.
    pub(crate) fn declared(&self, py: Python<'_>, clock: &Clock) -> PyResult<(Vec<Limit>, Vec<ScopedLimits>)> {
        let (mut limits, mut scoped) = (Vec::new(), Vec::<ScopedLimits>::new());
        for options in &self.limits {
            let limit = options.declared(py, clock)?;
            match &options.per {
                None => limits.push(limit),
                Some(per) => match scoped.iter_mut().find(|scoped| *scoped.scope == **per) {
                    Some(scoped) => scoped.limits.push(limit),
                    None => scoped.push(ScopedLimits { scope: per.as_str().into(), limits: vec![limit] }),
                },
            }
        }
        Ok((limits, scoped))
    }
}

impl LimitOptions {
    pub(crate) fn declared(&self, py: Python<'_>, clock: &Clock) -> PyResult<Limit> {
        let &LimitOptions { amount, period, burst, .. } = self;
        let span = convert::span(period).unwrap_or(Span::ZERO);
        let limit = match self.kind.as_str() {
            "bucket" => Limit::bucket(amount, span, burst.unwrap_or(amount)),
            "leaky" => Limit::leaky(amount, span),
            "counter" => Limit::counter(amount, span),
            "unknown" => Limit::unknown(amount, span),
            _ if self.aligned => Limit::aligned(amount, span, clock.boundary(span), Limit::CLOCKS_AGREE_TO),
            _ => Limit::window(amount, span),
        };
        let limit = limit.map_err(|refused| {
            let text = PyString::new(py, &format!("{amount}/{period}s"));
            error::config("quota", text.as_any(), &format!("{refused}; give a smaller amount, period or burst"))
        })?;
        let limit = limit.jittered(match &self.jitter {
            None => Jitter::None,
            Some(JitterOption::Known(seconds)) => Jitter::Known(convert::span(*seconds).unwrap_or(Span::from_nanos(u64::MAX))),
            Some(JitterOption::Auto(_)) => Jitter::Auto,
        });
        let limit = limit.anchored(if self.anchor == "finish" { Anchor::Finish } else { Anchor::Headers });
        Ok(if self.guessed { limit.guessed() } else { limit })
    }
}

/// The most that a `tidegate.BackendQuota` lets through within `horizon` seconds, from idle: the server when there is no round trip, else a client
/// whose messages are each answered after `round_trip` seconds. Nothing when there is no bound.
#[pyfunction]
#[pyo3(signature = (quota, horizon, round_trip, /))]
pub(crate) fn bound(py: Python<'_>, quota: QuotaOptions, horizon: f64, round_trip: Option<f64>) -> PyResult<Option<u64>> {
    let (limits, _) = quota.declared(py, &Clock::at_its_origin())?;
    let horizon = convert::span_or_none(horizon);
    let Some(trip) = round_trip.map(convert::span_or_none) else { return Ok(limit::bound::allowed_by_all(&limits, horizon)) };
    let by_limits = limit::bound::reachable_by_all(&limits, Margin::default(), trip, horizon);
    let at_once = quota.concurrency.map(|concurrency| limit::bound::at_once(concurrency, trip, horizon));
    Ok(by_limits.into_iter().chain(at_once).min().filter(|units| *units < u64::MAX))
}

/// A kind, as `tidegate.Limit` has it.
pub(crate) fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Bucket => "bucket",
        Kind::Leaky => "leaky",
        Kind::Counter => "counter",
        Kind::Unknown => "unknown",
        _ => "window",
    }
}
