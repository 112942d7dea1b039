//! The most that can go through a limit, in closed form: what utilisation is measured against.
//!
//! Both count from idle at the beginning of a finite horizon, its last instant included, for a client that always has something to
//! send. Of several limits at once the least is a bound.

use super::{Kind, Limit, Margin, Paced, state, unknown};
use crate::time::{Instant, Span};

/// Units that a server with this limit lets through within `horizon`, at best.
///
/// A window lets `amount` through at the beginning and every period from there, at the best phase; a bucket its burst and then one
/// unit an emission interval; a counter as a bucket that holds `amount`. One of an unknown kind is taken for a window.
///
/// # Example
/// ```
/// use tidegate_core::limit::{Limit, bound};
/// use tidegate_core::time::Span;
///
/// let window = Limit::window(50, Span::from_secs(5)).unwrap();
/// assert_eq!(bound::allowed(&window, Span::from_secs(32)), 350);
/// ```
pub fn allowed(limit: &Limit, horizon: Span) -> u64 {
    let (amount, period) = (limit.amount(), limit.period());
    match limit.kind() {
        Kind::Window | Kind::Unknown => windows(amount, period, horizon),
        Kind::Aligned => u64::from(amount) * boundaries(limit, Span::ZERO, horizon),
        Kind::Bucket | Kind::Leaky | Kind::Counter => u64::from(limit.burst()) + steps(horizon, amount, period),
    }
}

/// Units that the policy of this limit sends within `horizon` when every message is answered after `round_trip`, and nothing else
/// holds it back.
///
/// A unit of a window comes round once in its period, its margin and a round trip. A bucket loses nothing while a round trip fits
/// in `burst - 1` intervals, and else lets its burst through once in an interval, its margin and a round trip. For round trips that differ,
/// give their mean: it is exact for windows (Little's law); a bucket that cannot keep up sends somewhat less, since the answers of
/// one burst do not come evenly.
pub fn reachable(limit: &Limit, margin: Margin, round_trip: Span, horizon: Span) -> u64 {
    let (amount, period) = (limit.amount(), limit.period());
    let bucket = |amount, burst, margin: Margin| {
        let interval = margin.interval(amount, period);
        let lost = round_trip + margin.floor();
        let busy = interval.times(u64::from(burst) - 1) >= lost;
        if busy { u64::from(burst) + steps(horizon - lost, 1, interval) } else { windows(burst, lost + interval, horizon) }
    };
    let window = windows(amount, margin.hold(period) + round_trip, horizon);
    match limit.kind() {
        Kind::Window => window,
        Kind::Aligned => {
            let (_, tolerance) = limit.boundary();
            u64::from(amount) * boundaries(limit, tolerance, horizon)
        }
        Kind::Bucket | Kind::Leaky => bucket(amount, limit.burst(), margin),
        Kind::Counter => {
            let (_, burst) = Paced::pace(amount, period, state::reach(period));
            bucket(amount - (burst - 1), burst, margin.slower(Paced::SLOWER_PPM))
        }
        Kind::Unknown => window.min(bucket(amount, unknown::BURST.min(amount), margin)),
    }
}

/// The least of [`allowed`] over several limits at once, but for aligned windows: of these, every long one also lets through no more than the
/// short ones do that overlap it.
pub fn allowed_by_all(limits: &[Limit], horizon: Span) -> Option<u64> {
    let least = limits.iter().map(|limit| allowed(limit, horizon)).min()?;
    let nested = |long: &Limit| limits.iter().map(|short| nested(long, short, Span::ZERO, horizon)).min();
    let aligned = limits.iter().all(|limit| limit.kind() == Kind::Aligned);
    Some(if aligned { limits.iter().filter_map(nested).fold(least, u64::min) } else { least })
}

/// The least of [`reachable`] over several limits at once, with the same exception.
pub fn reachable_by_all(limits: &[Limit], margin: Margin, round_trip: Span, horizon: Span) -> Option<u64> {
    let least = limits.iter().map(|limit| reachable(limit, margin, round_trip, horizon)).min()?;
    Some(
        allowed_by_all(limits, horizon)
            .filter(|_| limits.iter().all(|limit| limit.kind() == Kind::Aligned))
            .map_or(least, |all| all.min(least)),
    )
}

/// Units of `long`, window by window, when each is also limited by the windows of `short` that overlap it.
fn nested(long: &Limit, short: &Limit, late: Span, horizon: Span) -> u64 {
    let begun = |limit: &Limit, by: Span| boundaries(limit, late, by);
    let (period, phase) = (long.period(), long.boundary().0.since(Instant::ORIGIN).as_nanos() % long.period().as_nanos());
    let mut units = 0;
    let mut start = Span::ZERO;
    while start <= horizon {
        let next = if start == Span::ZERO && phase > 0 { Span::from_nanos(phase) } else { start + period };
        let last = horizon.min(next - Span::from_nanos(1));
        let overlapping = begun(short, last) - begun(short, start) + 1;
        units += u64::from(long.amount()).min(u64::from(short.amount()).saturating_mul(overlapping));
        start = next;
    }
    units
}

/// `amount` at once, and again after every `period`.
fn windows(amount: u32, period: Span, horizon: Span) -> u64 {
    u64::from(amount) * (horizon.as_nanos() / period.as_nanos() + 1)
}

/// How many of `amount` even steps a period there are within `horizon`.
fn steps(horizon: Span, amount: u32, period: Span) -> u64 {
    let count = u128::from(horizon.as_nanos()) * u128::from(amount) / u128::from(period.as_nanos());
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Messages that are sent within `horizon` when `concurrency` of them may be on their way at once, each for `round_trip`.
pub fn at_once(concurrency: u32, round_trip: Span, horizon: Span) -> u64 {
    let rounds = horizon.as_nanos().checked_div(round_trip.as_nanos()).map_or(u64::MAX, |rounds| rounds.saturating_add(1));
    u64::from(concurrency).saturating_mul(rounds)
}

/// How many of a limit's windows begin by the end of `horizon`, `late` later than they do; the one at the origin included.
fn boundaries(limit: &Limit, late: Span, horizon: Span) -> u64 {
    let (period, first) =
        (limit.period().as_nanos(), limit.boundary().0.since(Instant::ORIGIN).as_nanos() % limit.period().as_nanos());
    let first = if first == 0 { period } else { first };
    let begun = (horizon - late).as_nanos().checked_sub(first).map_or(0, |since| since / period + 1);
    1 + begun
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Span = Span::from_secs(1);

    #[test]
    fn what_a_server_allows() {
        let horizon = Span::from_secs(600);
        let at = |nanos| Instant::from_nanos(nanos);
        for (limit, units) in [
            (Limit::window(10, SECOND), 6010),
            (Limit::aligned(10, SECOND, at(0), Span::ZERO), 6010),
            (Limit::aligned(10, SECOND, at(1), Span::ZERO), 6010),
            (Limit::aligned(10, Span::from_secs(601), at(300), Span::ZERO), 20),
            (Limit::bucket(100, SECOND, 6), 60_006),
            (Limit::leaky(10, SECOND), 6001),
            (Limit::counter(10, SECOND), 6010),
        ] {
            assert_eq!(allowed(&limit.unwrap(), horizon), units, "{limit:?}");
        }
    }

    #[test]
    fn long_windows_hold_no_more_than_the_short_ones_that_overlap_them() {
        let minute = |count: u64| Span::from_secs(60 * count);
        let aligned = |amount, period, at: u64| {
            Limit::aligned(amount, period, Instant::from_nanos(at * 1_000_000_000), Span::ZERO).unwrap()
        };
        // Until the first hour begins after ten and a half minutes, there are twelve windows of a minute, both ends included.
        let limits = [aligned(100, minute(1), 15), aligned(3000, minute(60), 630)];
        let horizon = minute(60) + Span::from_secs(629);
        assert_eq!(allowed_by_all(&limits, horizon), Some(1200 + 3000));
        assert_eq!(allowed_by_all(&limits, horizon + SECOND), Some(1200 + 3000 + 100));
        assert_eq!(allowed_by_all(&[], horizon), None);
        let windows = [Limit::window(100, minute(1)).unwrap(), Limit::window(3000, minute(60)).unwrap()];
        assert_eq!(allowed_by_all(&windows, minute(10)), Some(1100));
    }

    #[test]
    fn what_concurrency_allows() {
        assert_eq!(at_once(32, Span::from_millis(50), SECOND), 32 * 21);
        assert_eq!(at_once(1, Span::from_secs(2), SECOND), 1);
        assert_eq!(at_once(5, Span::ZERO, SECOND), u64::MAX);
    }

    #[test]
    fn what_round_trips_cost() {
        let (horizon, trip) = (Span::from_secs(600), Span::from_millis(90));
        let at = |limit: Result<Limit, _>| reachable(&limit.unwrap(), Margin::NONE, trip, horizon);
        assert_eq!(at(Limit::window(10, SECOND)), 10 * (600_000 / 1090 + 1));
        assert_eq!(at(Limit::bucket(100, SECOND, 6)), 6 * (600_000 / 100 + 1));
        assert_eq!(at(Limit::bucket(100, SECOND, 10)), 10 + 59_991);
        assert_eq!(at(Limit::leaky(10, SECOND)), 600_000 / 190 + 1);
        assert_eq!(at(Limit::unknown(100, SECOND)), 5 * (600_000 / 100 + 1));
        assert_eq!(at(Limit::aligned(10, SECOND, Instant::ORIGIN, Span::ZERO)), 6010);
    }
}
