//! The deterministic engine of Tidegate.
//!
//! Nothing here reads a clock, sleeps, logs, does I/O or knows Python. Every operation that depends on time is given an
//! [`Instant`](time::Instant), and randomness comes from a seed, so that the same calls give the same decisions.
//!
//! A *request* waits in a *class* until a *backend* whose *quota* has room takes it as a *lease*; see [`engine`] for its life, and
//! the other modules for one noun each.

#![forbid(unsafe_code)]

pub mod collector;
pub mod engine;
pub mod feasibility;
pub mod health;
pub mod latency;
pub mod ledger;
pub mod limit;
pub mod limiter;
pub mod optimum;
pub mod queue;
pub mod retry;
pub mod retry_after;
pub mod route;
pub mod sim;
mod steps;
mod sync;
pub mod time;
pub mod wheel;
