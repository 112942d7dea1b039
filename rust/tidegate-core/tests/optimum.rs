//! The bounds against all schedules of a few requests on strict servers.

use proptest::prelude::*;
use tidegate_core::limit::{Limit, LimitError};
use tidegate_core::optimum::{Pool, Way, misses};
use tidegate_core::sim::{Rule, Server, Verdict};
use tidegate_core::time::{Instant, Span};

const PERIOD: Span = Span::from_nanos(1200);

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

/// A limit, and a server that counts by it.
#[derive(Clone, Debug)]
struct Side {
    limits: Vec<Limit>,
    rules: Vec<Rule>,
}

fn aligned() -> impl Strategy<Value = (Result<Limit, LimitError>, Rule)> {
    (1u32..4, 0u64..1200).prop_map(|(amount, phase)| {
        (Limit::aligned(amount, PERIOD, at(phase), Span::ZERO), Rule::aligned(amount, PERIOD, Span::from_nanos(phase)))
    })
}

/// Amounts divide the period, so that no interval is rounded.
fn side() -> impl Strategy<Value = Side> {
    let amount = || prop::sample::select(vec![1u32, 2, 3]);
    let one = prop_oneof![
        (amount(), 1u32..4)
            .prop_map(|(amount, burst)| { (Limit::bucket(amount, PERIOD, burst), Rule::token_bucket(amount, PERIOD, burst)) }),
        amount().prop_map(|amount| (Limit::window(amount, PERIOD), Rule::log(amount, PERIOD))),
        amount().prop_map(|amount| (Limit::counter(amount, PERIOD), Rule::counter(amount, PERIOD, Span::ZERO))),
        aligned(),
    ];
    prop::collection::vec(one, 1..3).prop_map(|both| {
        let (limits, rules): (Vec<_>, Vec<_>) = both.into_iter().unzip();
        Side { limits: limits.into_iter().map(Result::unwrap).collect(), rules }
    })
}

/// When a server first lets a message through, from `from` on.
fn earliest(server: &mut Server, from: Instant) -> Instant {
    let mut now = from;
    while let Verdict::Rejected(wait) = server.arrive(now, 1) {
        now = now + wait.expect("it has a rate");
    }
    now
}

/// Of these ways to one server, how many can be taken at most: all orders, each as early as it may.
fn most_at(server: &Server, ways: &[Way], now: Instant) -> usize {
    let rest = |without: usize| [&ways[..without], &ways[without + 1..]].concat();
    let first = |index: usize| {
        let mut server = server.clone();
        let when = earliest(&mut server, now.max(ways[index].from));
        if when > ways[index].until { 0 } else { 1 + most_at(&server, &rest(index), when) }
    };
    (0..ways.len()).map(first).max().unwrap_or(0)
}

/// Requests that are late in the best of all schedules.
fn least_late(sides: &[Side], requests: &[Vec<Way>]) -> u64 {
    let choices = sides.len() as u32;
    let all = (0..choices.pow(requests.len() as u32)).map(|mut code| {
        let mut given = vec![Vec::new(); sides.len()];
        for ways in requests {
            let pool = code % choices;
            code /= choices;
            given[pool as usize].extend(ways.iter().find(|way| way.pool == pool));
        }
        let served = |(side, ways): (&Side, &Vec<Way>)| most_at(&Server::new(side.rules.clone()), ways, Instant::ORIGIN);
        requests.len() - sides.iter().zip(&given).map(served).sum::<usize>()
    });
    all.min().unwrap_or(0) as u64
}

fn pools(sides: &[Side]) -> Vec<Pool> {
    sides.iter().map(|side| Pool { accounts: 1, limits: side.limits.clone() }).collect()
}

fn way(pool: u32) -> impl Strategy<Value = Way> {
    (0u64..3000, 0u64..2000).prop_map(move |(from, length)| Way { pool, from: at(from), until: at(from + length) })
}

proptest! {
    /// No schedule on strict servers has fewer late than the bound says.
    #[test]
    fn no_schedule_is_better(
        sides in prop::collection::vec(side(), 2),
        requests in prop::collection::vec((prop::option::of(way(0)), prop::option::of(way(1))), 1..6),
    ) {
        let requests: Vec<Vec<Way>> =
            requests.into_iter().map(|(one, other)| one.into_iter().chain(other).collect()).collect();
        let (bound, truth) = (misses(&pools(&sides), &requests), least_late(&sides, &requests));
        prop_assert!(bound <= truth, "{} > {}", bound, truth);
        // Permits forget at most what a bucket loses while it is full.
        prop_assert!(truth <= bound + 2, "{} <= {}", bound, truth);
    }

    /// Where permits come at fixed instants it is exact.
    #[test]
    fn aligned_windows_are_exact(
        sides in prop::collection::vec(aligned(), 2),
        requests in prop::collection::vec((prop::option::of(way(0)), prop::option::of(way(1))), 1..6),
    ) {
        let sides: Vec<Side> =
            sides.into_iter().map(|(limit, rule)| Side { limits: vec![limit.unwrap()], rules: vec![rule] }).collect();
        let requests: Vec<Vec<Way>> =
            requests.into_iter().map(|(one, other)| one.into_iter().chain(other).collect()).collect();
        prop_assert_eq!(misses(&pools(&sides), &requests), least_late(&sides, &requests));
    }
}

#[test]
fn what_has_no_way_is_late_and_what_has_no_limit_is_not() {
    let second = Span::from_secs(1);
    let strict = Pool { accounts: 2, limits: vec![Limit::leaky(1, second).unwrap()] };
    let free = Pool { accounts: 1, limits: vec![] };
    let at_once = |pool| Way { pool, from: at(5), until: at(5) };
    let never = Way { pool: 1, from: at(5), until: at(4) };
    let requests = [vec![], vec![never], vec![at_once(0)], vec![at_once(0)], vec![at_once(0)], vec![at_once(0), at_once(1)]];
    assert_eq!(misses(&[strict.clone(), free], &requests), 2 + 1);
    assert_eq!(misses(&[strict], &requests[2..5]), 1);
    assert_eq!(misses(&[], &[vec![]]), 1);
}
