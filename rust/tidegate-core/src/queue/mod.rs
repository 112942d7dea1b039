//! Where requests wait: exact order, O(1) cancel, nothing allocated for each request.
//!
//! A [`Class`] holds requests that compete for the same things, in order of their keys. A [`ReadyHeap`] finds the class whose
//! head is least. [`ingress`] is the lock-free way in from other threads; everything else has one owner.

mod class;
mod heap;
pub mod ingress;

pub use class::{Class, Key, Node, Nodes};
pub use heap::ReadyHeap;
