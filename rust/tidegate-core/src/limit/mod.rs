//! What a server allows us: the policies, each a small state machine that is asked "when may this be sent?".
//!
//! Every policy follows one protocol, driven by its only owner:
//! [`next_eligible`](Policy::next_eligible) asks, [`send`](Policy::send) charges a message that goes out now,
//! [`ack`](Policy::ack) starts its clock when the response headers arrive, [`refund`](Policy::refund) takes a
//! charge back when nothing was sent.

mod ack_gcra;
mod ack_window;
pub mod bound;
mod credit;
mod declared;
mod gate;
mod ladder;
mod line;
mod occupancy;
mod paced;
mod phase_window;
mod quota;
mod schedule;
mod shared_gcra;
mod state;
mod unknown;

pub use ack_gcra::AckGcra;
pub use ack_window::AckWindow;
pub use declared::{Anchor, Jitter, Kind, Limit, LimitError, Margin};
pub use gate::GateState;
pub use paced::Paced;
pub use phase_window::PhaseWindow;
pub use quota::{Quota, Step, Usage, Verdict};
pub use shared_gcra::SharedGcra;
pub use unknown::Unknown;

use crate::time::Instant;

/// When a message of some cost may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligible {
    /// It conforms now.
    Now,
    /// It conforms at this instant and not before, if nothing else happens.
    At(Instant),
    /// Only an acknowledgement of something in flight can make room.
    OnAck,
    /// The limit is closed by the server until this instant.
    Closed(Instant),
    /// Its cost is larger than the limit can ever hold.
    Never,
}

impl Eligible {
    /// Orders what limits say by how much it holds a message back.
    #[inline]
    fn rank(self) -> (u8, Instant) {
        match self {
            Eligible::Now => (0, Instant::ORIGIN),
            Eligible::At(at) => (1, at),
            Eligible::OnAck => (2, Instant::ORIGIN),
            Eligible::Closed(until) => (3, until),
            Eligible::Never => (4, Instant::ORIGIN),
        }
    }

    /// Whether it is known that it is not before this instant.
    pub(crate) fn is_past(self, deadline: Instant) -> bool {
        matches!(self, Eligible::At(at) | Eligible::Closed(at) if at >= deadline)
    }

    /// When both admit.
    fn later(self, other: Eligible) -> Eligible {
        if other.rank() > self.rank() { other } else { self }
    }
}

/// One limit's state. See the module for the protocol.
pub trait Policy {
    /// When a message of `cost` units may be sent, asked at `now`; changes nothing.
    fn next_eligible(&self, now: Instant, cost: u32) -> Eligible;
    /// Charges `cost` units for a message that is sent at `now`. The caller has asked `next_eligible` first.
    fn send(&mut self, now: Instant, cost: u32);
    /// Starts the clock of `cost` units that were sent: the server has counted them by `at`.
    /// `at` may lie in the future (an attempt that ended without headers).
    fn ack(&mut self, at: Instant, cost: u32);
    /// Takes back `cost` units that were charged by `send` and never left this machine.
    fn refund(&mut self, cost: u32);
    /// Units that count against the limit at `now`, those in flight included.
    fn used(&self, now: Instant) -> u32;
    /// Units that may be sent at `now`.
    fn available(&self, now: Instant) -> u32 {
        self.capacity().saturating_sub(self.used(now))
    }
    /// The largest cost that can ever be admitted.
    fn capacity(&self) -> u32;
    /// Units sent and not acknowledged.
    fn in_flight(&self) -> u32;
}
