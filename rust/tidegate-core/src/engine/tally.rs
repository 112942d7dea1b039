//! What was sent of what the limits allowed, while something waited.

use crate::limit::{Limit, bound};
use crate::time::{Instant, Span};

/// What a server began to allow so shortly ago counts only as far as it was used: it takes a round trip and a timer to send it.
const GRACE: Span = Span::from_millis(250);

/// The counts of the backends that spend the same accounts. Kept by the first of those.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Backends for which something waits.
    wanting: u32,
    /// When the first of them began to, if there is one: up to when `wanted` is settled.
    since: Instant,
    /// Time during which something waited.
    wanted: Span,
    /// Units sent and not rejected.
    sent: u64,
}

/// Units that were sent, and units that could have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Units that were sent and, as far as is known, not rejected; at most what could have been.
    pub used: u64,
    /// Units that the declared limits let through in the time during which something waited, as if that had been one stretch from idle.
    pub possible: u64,
}

impl Tally {
    #[inline]
    pub(super) fn sent(&mut self, cost: u32) {
        self.sent += u64::from(cost);
    }

    /// Units that were not sent after all, or that the server rejected.
    pub(super) fn lost(&mut self, cost: u32) {
        self.sent = self.sent.saturating_sub(u64::from(cost));
    }

    /// Something waits for one of the backends from now on, or nothing any more.
    #[inline]
    pub(super) fn note_demand(&mut self, now: Instant, wants: bool) {
        if wants {
            if self.wanting == 0 {
                self.since = now;
            }
            self.wanting += 1;
        } else {
            self.wanting -= 1;
            if self.wanting == 0 {
                self.wanted = self.wanted + now.since(self.since);
            }
        }
    }

    /// Counts anew: the limits are others from now on.
    pub(super) fn restart(&mut self, now: Instant) {
        *self = Tally { wanting: self.wanting, since: now, ..Tally::default() };
    }

    /// Of `accounts` accounts with these limits; nothing without limits, or if nothing has waited.
    pub(super) fn share(&self, now: Instant, limits: &[Limit], accounts: u32) -> Option<Share> {
        let ongoing = if self.wanting > 0 { now.since(self.since) } else { Span::ZERO };
        let wanted = self.wanted + ongoing;
        let allowed = |horizon| Some(bound::allowed_by_all(limits, horizon)?.saturating_mul(u64::from(accounts)));
        if self.sent == 0 && wanted == Span::ZERO {
            return None;
        }
        let used = self.sent.min(allowed(wanted)?);
        Some(Share { used, possible: allowed(wanted - GRACE)?.max(used) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Span = Span::from_secs(1);

    fn at(millis: u64) -> Instant {
        Instant::ORIGIN + Span::from_millis(millis)
    }

    fn share(tally: &Tally, millis: u64) -> Option<(u64, u64)> {
        let limits = [Limit::window(10, SECOND).unwrap(), Limit::window(1000, SECOND.times(60)).unwrap()];
        tally.share(at(millis), &limits, 1).map(|share| (share.used, share.possible))
    }

    #[test]
    fn only_time_in_which_something_waits_counts() {
        let mut tally = Tally::default();
        assert_eq!(share(&tally, 5000), None);
        tally.note_demand(at(5000), true);
        tally.note_demand(at(5100), true);
        tally.sent(8);
        assert_eq!(share(&tally, 6000), Some((8, 10)));
        assert_eq!(share(&tally, 6250), Some((8, 20)));
        tally.note_demand(at(6300), false);
        tally.note_demand(at(6400), false);
        assert_eq!(share(&tally, 60_000), Some((8, 20)));
        tally.note_demand(at(60_000), true);
        tally.sent(15);
        assert_eq!(share(&tally, 60_600), Some((23, 23)));
        tally.lost(3);
        assert_eq!(share(&tally, 60_850), Some((20, 30)));
        tally.restart(at(61_000));
        assert_eq!(share(&tally, 61_500), Some((0, 10)));
    }

    #[test]
    fn what_goes_at_once_was_all_that_was_possible() {
        let mut tally = Tally::default();
        for second in 0..100 {
            tally.note_demand(at(1000 * second), true);
            tally.sent(1);
            tally.note_demand(at(1000 * second), false);
        }
        assert_eq!(share(&tally, 100_000), Some((10, 10)));
    }

    #[test]
    fn several_accounts_allow_as_many_times_as_much() {
        let mut tally = Tally::default();
        tally.note_demand(at(0), true);
        tally.sent(25);
        let limits = [Limit::window(10, SECOND).unwrap()];
        assert_eq!(tally.share(at(500), &limits, 3), Some(Share { used: 25, possible: 30 }));
        assert_eq!(tally.share(at(500), &[], 3), None);
    }
}
