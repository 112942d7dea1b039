//! What a server allows, as permits: each can be used once, between two instants.

use crate::limit::{Kind, Limit};
use crate::time::{Instant, Span};

/// When a permit can be used, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) from: Instant,
    pub(super) until: Instant,
}

/// The permits of a limit that begin by `end`, each `times`, in the order of both of their ends.
///
/// Every use that a server admits from idle can be matched with these, one for one. A bucket's units each last until the bucket would flow
/// over by them: between any two instants as many permits live as it can let through there, so that Hall's condition holds. What
/// a window, or a counter, admits, a bucket admits that holds as much as it.
pub(super) fn permits(limit: &Limit, times: u32, end: Instant) -> Vec<Life> {
    let (amount, period) = (u64::from(limit.amount()), limit.period());
    let mut lives = Vec::new();
    if limit.kind() == Kind::Aligned {
        let phase = limit.boundary().0.as_nanos() % period.as_nanos();
        let (mut from, mut next) = (0, if phase == 0 { period.as_nanos() } else { phase });
        while from <= end.as_nanos() {
            let life = Life { from: Instant::from_nanos(from), until: Instant::from_nanos(next - 1) };
            lives.extend(std::iter::repeat_n(life, limit.amount() as usize * times as usize));
            (from, next) = (next, next + period.as_nanos());
        }
        return lives;
    }
    let burst = u64::from(limit.burst());
    let after = |units: u64, up: u128| {
        let nanos = (u128::from(units) * u128::from(period.as_nanos()) + up * u128::from(amount - 1)) / u128::from(amount);
        Instant::ORIGIN + Span::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    };
    for unit in 0.. {
        let from = after((unit + 1_u64).saturating_sub(burst), 0);
        if from > end {
            return lives;
        }
        lives.extend(std::iter::repeat_n(Life { from, until: after(unit + 1, 1) }, times as usize));
    }
    lives
}

/// How many there are, at most.
pub(super) fn count(limit: &Limit, times: u32, end: Instant) -> u64 {
    let used = u128::from(end.as_nanos()) * u128::from(limit.amount()) / u128::from(limit.period().as_nanos());
    let most = u64::try_from(used).unwrap_or(u64::MAX).saturating_add(u64::from(limit.burst()) + u64::from(limit.amount()));
    most.saturating_mul(u64::from(times))
}
