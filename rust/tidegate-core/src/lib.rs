//! The deterministic engine of Tidegate.
//!
//! Nothing here reads a clock, sleeps, logs, does I/O or knows Python. Every operation that depends on time is given an
//! [`Instant`](time::Instant), and randomness comes from a seed, so that the same calls give the same decisions.

#![forbid(unsafe_code)]

pub mod limit;
pub mod retry_after;
pub mod time;
pub mod wheel;
