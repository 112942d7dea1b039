//! The core's reference servers, for tests in Python.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use tidegate_core::sim::{Rule, Server, Verdict};
use tidegate_core::time::{Instant, Span};

use crate::convert;

/// One rule, as `tidegate.testing.servers` has checked it: its kind, amount, period, burst and phase.
#[derive(FromPyObject)]
struct RuleOptions(String, u32, f64, u32, f64);

struct Counted {
    server: Server,
    accepted: u64,
    rejected: u64,
    /// The latest arrival: servers' clocks do not step back.
    latest: Instant,
}

/// A strict server in virtual time. See `tidegate.testing.servers`.
#[pyclass(frozen, name = "Server", module = "tidegate._core")]
pub(crate) struct ReferenceServer(Mutex<Counted>);

impl ReferenceServer {
    fn with<T>(&self, act: impl FnOnce(&mut Counted) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl ReferenceServer {
    #[new]
    #[pyo3(signature = (rules, counts_rejected, /))]
    fn new(rules: Vec<RuleOptions>, counts_rejected: bool) -> ReferenceServer {
        let rule = |RuleOptions(kind, amount, period, burst, phase): RuleOptions| {
            let period = convert::span_or_none(period).max(Span::from_nanos(1));
            let phase = convert::span_or_none(phase);
            match kind.as_str() {
                "anchored" => Rule::anchored(amount, period),
                "aligned" => Rule::aligned(amount, period, phase),
                "bucket" => Rule::token_bucket(amount, period, burst),
                "gcra" => Rule::gcra(amount, period, burst),
                "counter" => Rule::counter(amount, period, phase),
                "concurrency" => Rule::concurrency(amount),
                _ => Rule::log(amount, period),
            }
        };
        let server = Server::new(rules.into_iter().map(rule).collect());
        let server = if counts_rejected { server.counting_rejected() } else { server };
        ReferenceServer(Mutex::new(Counted { server, accepted: 0, rejected: 0, latest: Instant::ORIGIN }))
    }

    /// Whether a message that arrives at this instant, in nanoseconds, is accepted; else seconds until it would be, if that is known.
    #[pyo3(signature = (nanos, cost, /))]
    fn receive(&self, nanos: u64, cost: u32) -> (bool, Option<f64>) {
        self.with(|counted| {
            counted.latest = counted.latest.max(Instant::from_nanos(nanos));
            match counted.server.arrive(counted.latest, cost) {
                Verdict::Accepted => {
                    counted.accepted += 1;
                    (true, None)
                }
                Verdict::Rejected(wait) => {
                    counted.rejected += 1;
                    (false, wait.map(convert::seconds))
                }
            }
        })
    }

    /// A message that was accepted is served.
    fn leave(&self) {
        self.with(|counted| counted.server.leave());
    }

    /// Messages accepted and rejected so far.
    fn counts(&self) -> (u64, u64) {
        self.with(|counted| (counted.accepted, counted.rejected))
    }
}
