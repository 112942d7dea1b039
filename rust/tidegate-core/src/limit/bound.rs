//! The most that can go through a limit: what utilisation is measured against. In closed form, but for buckets whose round trips differ.
//!
//! All count from idle at the beginning of a finite horizon, its last instant included, for a client that always has something to
//! send. Of several limits at once the least is a bound.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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
/// give their mean: it is exact for windows (Little's law); a bucket sends somewhat less, since the answers of one burst do not come
/// evenly ([`reachable_on`] says how much). An aligned window loses its first boundary if that comes within two round trips.
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
            let tolerance = tolerance(limit, margin);
            // What is sent at once and answered behind the first boundary holds its units over that.
            let lost = boundaries(limit, tolerance, round_trip.times(2)) - 1;
            u64::from(amount) * (boundaries(limit, tolerance, horizon) - lost.min(1))
        }
        Kind::Bucket | Kind::Leaky => bucket(amount, limit.burst(), margin),
        Kind::Counter => {
            let (_, burst) = Paced::pace(amount, period, state::reach(period));
            bucket(amount - (burst - 1), burst, margin.slower(Paced::SLOWER_PPM))
        }
        Kind::Unknown => window.min(bucket(amount, unknown::BURST.min(amount), margin)),
    }
}

/// The same where round trips differ: `mean` is their mean, `round_trips` gives that of each message in the order of sending.
///
/// The units of a bucket go round one by one: each is away for its round trip and the margin, and then waits until those that were back
/// before it have been refilled, an interval each.
///
/// # Complexity
/// Linear in what is sent through buckets, times the logarithm of their burst.
pub fn reachable_on(limit: &Limit, margin: Margin, mean: Span, round_trips: impl FnMut() -> Span, horizon: Span) -> u64 {
    let (amount, period) = (limit.amount(), limit.period());
    let (amount, burst, margin) = match limit.kind() {
        Kind::Window | Kind::Aligned => return reachable(limit, margin, mean, horizon),
        Kind::Bucket | Kind::Leaky => (amount, limit.burst(), margin),
        Kind::Counter => {
            let (_, burst) = Paced::pace(amount, period, state::reach(period));
            (amount - (burst - 1), burst, margin.slower(Paced::SLOWER_PPM))
        }
        Kind::Unknown => (amount, unknown::BURST.min(amount), margin),
    };
    cycles(margin.interval(amount, period), burst, margin.floor(), round_trips, horizon)
        .min(reachable(limit, margin, mean, horizon))
}

/// The units of a bucket, going round.
fn cycles(interval: Span, burst: u32, late: Span, mut round_trips: impl FnMut() -> Span, horizon: Span) -> u64 {
    let end = Instant::ORIGIN + horizon;
    let mut away = BinaryHeap::new();
    let (mut sent, mut now, mut refilled) = (0, Instant::ORIGIN, Instant::ORIGIN);
    loop {
        if sent >= u64::from(burst) {
            let Reverse(back) = away.pop().expect("as many as the burst are away");
            refilled = refilled.max(back) + interval;
            now = now.max(refilled);
        }
        if now > end {
            return sent;
        }
        sent += 1;
        away.push(Reverse(now + round_trips() + late));
    }
}

/// Units a second that all of several limits admit in the long run; nothing without limits.
pub fn rate_of_all(limits: &[Limit]) -> Option<f64> {
    let rate = |limit: &Limit| f64::from(limit.amount()) / (limit.period().as_nanos() as f64 / 1e9);
    limits.iter().map(rate).reduce(f64::min)
}

/// The least of [`allowed`] over several limits at once, but for aligned windows: of these, every long one also lets through no more than the
/// short ones do that overlap it.
pub fn allowed_by_all(limits: &[Limit], horizon: Span) -> Option<u64> {
    let least = limits.iter().map(|limit| allowed(limit, horizon)).min()?;
    Some(nested_in_all(limits, |_| Span::ZERO, Span::ZERO, horizon).fold(least, u64::min))
}

/// The least of [`reachable`] over several limits at once, with the same exception.
pub fn reachable_by_all(limits: &[Limit], margin: Margin, round_trip: Span, horizon: Span) -> Option<u64> {
    let least = limits.iter().map(|limit| reachable(limit, margin, round_trip, horizon)).min()?;
    Some(nested_in_all(limits, |limit| tolerance(limit, margin), round_trip, horizon).fold(least, u64::min))
}

/// By how much an aligned window may be seen to begin late.
fn tolerance(limit: &Limit, margin: Margin) -> Span {
    let eighth = Span::from_nanos(limit.period().as_nanos() / 8);
    limit.boundary().1.max(margin.hold(limit.period()) - limit.period()).min(eighth)
}

/// Of each long and short window; nothing unless all are aligned.
fn nested_in_all(
    limits: &[Limit],
    late: impl Fn(&Limit) -> Span + Copy,
    round_trip: Span,
    horizon: Span,
) -> impl Iterator<Item = u64> {
    let aligned = limits.iter().all(|limit| limit.kind() == Kind::Aligned);
    let pairs = limits.iter().flat_map(move |long| limits.iter().map(move |short| (long, short)));
    pairs.filter(move |_| aligned).map(move |(long, short)| nested(long, short, late, round_trip, horizon))
}

/// Units of `long`, window by window, when each is also limited by the windows of `short` that overlap it.
///
/// A window is entered `late`. What is sent within two round trips and twice that before the end of one may count for the next as well.
fn nested(long: &Limit, short: &Limit, late: impl Fn(&Limit) -> Span, round_trip: Span, horizon: Span) -> u64 {
    let begun = |by: Span| boundaries(short, late(short), by);
    let (period, phase) = (long.period(), long.boundary().0.since(Instant::ORIGIN).as_nanos() % long.period().as_nanos());
    let (mut units, mut start, mut entered) = (0, Span::ZERO, Span::ZERO);
    while entered <= horizon {
        let next = if start == Span::ZERO && phase > 0 { Span::from_nanos(phase) } else { start + period };
        let before = next - (late(long) + round_trip).times(2) - Span::from_nanos(1);
        let last = if next > horizon { horizon } else { before.max(entered) };
        let first = (entered + (late(short) + round_trip).times(2)).min(last);
        units += u64::from(long.amount()).min(u64::from(short.amount()).saturating_mul(begun(last) - begun(first) + 1));
        start = next;
        entered = start + late(long);
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
    fn round_trips_that_differ_cost_no_less_than_their_mean() {
        let (horizon, ms) = (Span::from_secs(600), Span::from_millis);
        let limit = Limit::bucket(100, SECOND, 6).unwrap();
        let same = reachable_on(&limit, Margin::NONE, ms(90), || ms(90), horizon);
        assert!(reachable(&limit, Margin::NONE, ms(90), horizon) - same < 6, "{same}");
        let mut sent = 0;
        let mut by_six = || {
            sent += 1;
            ms(if sent % 12 < 6 { 80 } else { 0 })
        };
        let differing = reachable_on(&limit, Margin::NONE, ms(40), &mut by_six, horizon);
        assert_eq!(reachable(&limit, Margin::NONE, ms(40), horizon), 6 + 59_996);
        assert!((45_000..59_000).contains(&differing), "{differing}");
        let window = Limit::window(10, SECOND).unwrap();
        assert_eq!(reachable_on(&window, Margin::NONE, ms(90), by_six, horizon), 10 * (600_000 / 1090 + 1));
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
