//! What nobody could do better: the most that can go through several backends, and the fewest requests that can be late.
//!
//! What a run is measured against. Both hold for whoever knows beforehand what will come and how long it will take, and are taken
//! from what servers allow: what a client keeps back in order not to be rejected shows as a loss.

mod lateness;
mod matching;
mod permit;
mod simplex;
mod throughput;

pub use lateness::{Pool, Way, misses, permits};
pub use throughput::{Backend, Binding, Demand, Hold, Supply, Throughput, throughput};
