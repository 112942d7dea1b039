//! The gate that a server's rejection closes.
//!
//! ```text
//!              rejected                      until passes
//!   Open ----------------------> Closed -------------------> reopening, nothing out
//!    ^                             ^  ^                         |            ^
//!    | the probe is accepted       |  | rejected                | send       | the probe is refunded
//!    |                             |  |                         v            | or unanswered
//!    +-----------------------------|--+-------------------- reopening, one probe out
//! ```
//!
//! Messages are told apart by the instant at which they were sent: one sent before a closure says nothing about what
//! comes after it. A closure lasts at least 1 ns, so no message from before it shares an instant with its probe.

use super::Eligible;
use crate::time::{Instant, Span};

/// Where the gate of a quota stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Messages go as the limits allow.
    Open,
    /// The server rejected a message: nothing goes until this instant.
    Closed(Instant),
    /// A closure has passed. One message goes as a probe, the others wait for its acknowledgement.
    Reopening,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Gate {
    /// `since`: when the probe was sent that opened it; the origin if it was never closed.
    Open { since: Instant },
    /// Closed before `until`, reopening with nothing out from then on.
    Closed { until: Instant },
    /// Reopening; the message sent at `sent` is the probe.
    Probing { sent: Instant },
}

impl Gate {
    pub(super) const OPEN: Gate = Gate::Open { since: Instant::ORIGIN };

    pub(super) fn state(&self, now: Instant) -> GateState {
        match *self {
            Gate::Open { .. } => GateState::Open,
            Gate::Closed { until } if now < until => GateState::Closed(until),
            Gate::Closed { .. } | Gate::Probing { .. } => GateState::Reopening,
        }
    }

    /// `Now`, `Closed` or `OnAck`.
    #[inline]
    pub(super) fn next_eligible(&self, now: Instant) -> Eligible {
        match *self {
            Gate::Open { .. } => Eligible::Now,
            Gate::Closed { until } if now < until => Eligible::Closed(until),
            Gate::Closed { .. } => Eligible::Now,
            Gate::Probing { .. } => Eligible::OnAck,
        }
    }

    /// A message goes out. One that is sent into a closure, ahead of the queue, is not its probe.
    #[inline]
    pub(super) fn send(&mut self, now: Instant) {
        if let Gate::Closed { until } = *self
            && now >= until
        {
            *self = Gate::Probing { sent: now };
        }
    }

    /// The server rejected the message sent at `sent`. Returns the end of the closure if it moved.
    ///
    /// A rejection of a message that was sent before an accepted probe is old news, and ignored.
    pub(super) fn rejected(&mut self, now: Instant, sent: Instant, closed: Span) -> Option<Instant> {
        let end = now + closed.max(Span::from_nanos(1));
        let until = match *self {
            Gate::Open { since } if sent < since => return None,
            Gate::Closed { until } if end <= until => return None,
            Gate::Open { .. } | Gate::Closed { .. } | Gate::Probing { .. } => end,
        };
        *self = Gate::Closed { until };
        Some(until)
    }

    /// The server accepted the message sent at `sent`. Returns whether that opened the gate.
    #[inline]
    pub(super) fn accepted(&mut self, sent: Instant) -> bool {
        match *self {
            Gate::Probing { sent: probe } if sent >= probe => {
                *self = Gate::Open { since: probe };
                true
            }
            _ => false,
        }
    }

    /// The message sent at `sent` will tell nothing: it was refunded, or ended without headers.
    #[inline]
    pub(super) fn unanswered(&mut self, sent: Instant) {
        if let Gate::Probing { sent: probe } = *self
            && sent == probe
        {
            *self = Gate::Closed { until: probe };
        }
    }
}
