//! The fewest requests that can be late.

use super::{matching, permit};
use crate::limit::Limit;
use crate::time::Instant;

/// What a server allows those who go there.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// How often: once an account.
    pub accounts: u32,
    /// What it counts by; nothing for one that lets everything through.
    pub limits: Vec<Limit>,
}

/// A way in which a request would be answered in time: a server counts it at some instant from `from` to `until`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Whose limits it spends, by its index.
    pub pool: u32,
    /// When it came, and how long it takes to the server.
    pub from: Instant,
    /// Its deadline, less what the answer takes.
    pub until: Instant,
}

/// How many of `requests`, each with all ways in which it could be answered in time, are late at least; each costs one unit.
///
/// The largest matching of requests with permits, by the slowest limit of each pool. No schedule has fewer late. A bucket's permits come at fixed
/// instants here and last for as long as they would fill it, which is a little more than it admits; those of aligned windows are exact.
///
/// The earliest deadline first, without those who cannot make it, is no bound for such servers, though it is one for permits that come at fixed
/// instants: it may spend a unit on a request that can wait, and then have none for two that come before the next.
///
/// # Complexity
/// Nearly linear in requests, ways and permits, times the rounds of the matching: some tens at most with all that was tried.
///
/// # Example
/// ```
/// use tidegate_core::limit::Limit;
/// use tidegate_core::optimum::{Pool, Way, misses};
/// use tidegate_core::time::{Instant, Span};
///
/// let pool = Pool { accounts: 1, limits: vec![Limit::leaky(1, Span::from_secs(1)).unwrap()] };
/// let until = |secs| vec![Way { pool: 0, from: Instant::ORIGIN, until: Instant::ORIGIN + Span::from_secs(secs) }];
/// assert_eq!(misses(&[pool], &[until(1), until(0), until(1)]), 1);
/// ```
///
/// # Panics
/// When a pool does not exist.
pub fn misses(pools: &[Pool], requests: &[Vec<Way>]) -> u64 {
    let end = end(requests);
    let (mut lives, mut places) = (Vec::new(), Vec::new());
    for pool in pools {
        let first = lives.len();
        let scarcest = pool.scarcest(end);
        lives.extend(scarcest.into_iter().flat_map(|limit| permit::permits(limit, pool.accounts, end)));
        places.push(scarcest.map(|_| first..lives.len()));
    }
    let possible = |way: &&Way| way.from <= way.until;
    let is_free = |ways: &Vec<Way>| ways.iter().filter(possible).any(|way| places[way.pool as usize].is_none());
    let range = |way: &Way| {
        let place = places[way.pool as usize].clone().expect("a pool without limits was looked for");
        let own = &lives[place.clone()];
        let first = place.start + own.partition_point(|life| life.until < way.from);
        let last = place.start + own.partition_point(|life| life.from <= way.until);
        [first as u32, last.max(first) as u32]
    };
    let limited = requests.iter().filter(|ways| !is_free(ways));
    let mut urgent: Vec<&Vec<Way>> = limited.collect();
    urgent.sort_by_key(|ways| ways.iter().map(|way| way.until).max());
    let of: Vec<Vec<[u32; 2]>> = urgent.iter().map(|ways| ways.iter().filter(possible).map(range).collect()).collect();
    (of.len() - matching::size(&of, lives.len())) as u64
}

/// How many permits [`misses`] would look at, about: it takes some 30 bytes for each.
pub fn permits(pools: &[Pool], requests: &[Vec<Way>]) -> u64 {
    let end = end(requests);
    let count = |pool: &Pool| pool.scarcest(end).map_or(0, |limit| permit::count(limit, pool.accounts, end));
    pools.iter().map(count).fold(0, u64::saturating_add)
}

fn end(requests: &[Vec<Way>]) -> Instant {
    requests.iter().flatten().map(|way| way.until).max().unwrap_or(Instant::ORIGIN)
}

impl Pool {
    /// The limit that admits least by then. Any of them is a bound.
    fn scarcest(&self, end: Instant) -> Option<&Limit> {
        self.limits.iter().min_by_key(|limit| permit::count(limit, self.accounts, end))
    }
}
