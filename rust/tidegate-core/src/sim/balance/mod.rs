//! Ways to choose among unequal backends, each against the same strict servers and the same arrivals.
//!
//! Four token buckets, requests that come at random, each with a deadline, and log-normal round trips, half of them on the way there. What a
//! message takes is drawn for its request and backend, so that all policies meet the same luck, and so does whoever knows it beforehand: no policy
//! can be better than [`best`].

mod best;
mod early;
mod fitting;
mod late;
mod scenario;
mod wire;

pub use best::{Best, best};
pub use early::Choice;
pub use scenario::{Arrival, Scenario, Site};

use crate::queue::Order;
use crate::time::Span;

/// Who decides where a request goes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// A queue for each backend, chosen when a request comes; `drops` those whose deadline has passed.
    Early {
        /// How.
        choice: Choice,
        /// It sends nothing whose deadline has passed.
        drops: bool,
    },
    /// One queue for a client that knows how long backends take: each takes the earliest deadline that it meets 99 times of 100.
    Fitting,
    /// The engine, first in first out.
    Strict,
    /// The engine, the earliest deadline first.
    Deadline,
}

impl Policy {
    /// Tries it.
    pub fn run(self, scenario: Scenario) -> Report {
        let wire = wire::Wire::new(scenario);
        match self {
            Policy::Early { choice, drops } => wire.run(&mut early::Early::new(choice, drops, scenario.seed)),
            Policy::Fitting => wire.run(&mut fitting::Fitting::new()),
            Policy::Strict => wire.run(&mut late::Late::new(Order::Strict, scenario.seed)),
            Policy::Deadline => wire.run(&mut late::Late::new(Order::Deadline, scenario.seed)),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests that came.
    pub requests: u64,
    /// Of them, those whose answer was there by the deadline.
    pub in_time: u64,
    /// Messages that servers let through within the horizon.
    pub served: u64,
    /// Messages that they did not let through.
    pub rejected: u64,
    /// How long each message that was sent had waited, in ascending order.
    pub waits: Vec<Span>,
}

impl Report {
    /// Requests that had no answer by their deadline.
    pub fn misses(&self) -> u64 {
        self.requests - self.in_time
    }
}
