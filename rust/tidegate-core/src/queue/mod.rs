//! Where requests wait: exact order, O(1) cancel, nothing allocated for each request.
//!
//! An [`Order`] says what a [`Key`] is made of. A [`Class`] holds requests that compete for the same things, in order of their keys; a
//! [`ReadyHeap`] finds the class whose head is least; [`Flows`] keep the order among those who share. A [`RequestQueue`] is all of that for one consumer. [`ingress`] is the lock-free way in from other threads; everything else has one owner.

mod class;
mod fair;
mod heap;
pub mod ingress;
mod order;
mod request_queue;

pub use class::{Class, Node, Nodes};
pub use fair::Flows;
pub use heap::{FlowHeaps, ReadyHeap};
pub use order::{Key, Order, Place, Rule};
pub use request_queue::RequestQueue;
