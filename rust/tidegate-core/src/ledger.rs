//! What became of every request, counted.

/// The counts of one scheduler. At every instant `accepted = delivered + dead + expired + cancelled + pending`.
///
/// The counts on both sides are kept apart, each at the place where it happens, so that the identity is a check and not a definition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Requests ever accepted.
    pub accepted: u64,
    /// Ended with a value that the consumer took.
    pub delivered: u64,
    /// Ended without a value: not retryable, or out of attempts.
    pub dead: u64,
    /// Ended by their deadline.
    pub expired: u64,
    /// Ended by a cancel or by closing.
    pub cancelled: u64,
    /// Waiting for a permit, a backoff included.
    pub queued: u64,
    /// With an attempt running.
    pub leased: u64,
    /// With a value that the consumer has not taken yet.
    pub done: u64,
}

impl Ledger {
    /// Accepted and not ended.
    pub const fn pending(&self) -> u64 {
        self.queued + self.leased + self.done
    }

    /// Whether the identity holds.
    pub const fn balanced(&self) -> bool {
        self.accepted == self.delivered + self.dead + self.expired + self.cancelled + self.pending()
    }
}
