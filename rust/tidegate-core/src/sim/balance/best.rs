//! What no policy could do better.

use super::{Arrival, Scenario, Site};
use crate::optimum::{Backend, Demand, Pool, Supply, Way, misses, throughput};

/// What is possible in a scenario, for who knows beforehand what will come and how long everything will take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Messages that servers let through within the horizon, at most.
    pub served: f64,
    /// Requests that have no answer by their deadline, at least.
    pub misses: u64,
}

/// The bounds of a scenario.
pub fn best(scenario: Scenario) -> Best {
    let arrivals = scenario.arrivals();
    let seconds = scenario.horizon.as_nanos() as f64 / 1e9;
    let supply = |site: &Site| Supply { accounts: 1, limits: vec![site.limit()], concurrency: None };
    let backend = |(supply, site): (usize, &Site)| Backend { supply: supply as u32, latency: site.median };
    let all = (0..Site::ALL.len() as u32).collect();
    let fluid = throughput(
        &Site::ALL.iter().map(supply).collect::<Vec<_>>(),
        &Site::ALL.iter().enumerate().map(backend).collect::<Vec<_>>(),
        &[Demand { backends: all, rate: arrivals.len() as f64 / seconds, cost: 1 }],
        Some(scenario.horizon),
    );
    let pools = Site::ALL.map(|site| Pool { accounts: 1, limits: vec![site.limit()] });
    let ways = |(nth, arrival): (usize, &Arrival)| -> Vec<Way> {
        let way = |site: usize| {
            let there = scenario.way(nth as u32, site);
            // A late answer is none, so the way back begins no later than this.
            Way { pool: site as u32, from: arrival.at + there, until: arrival.deadline - there }
        };
        (0..Site::ALL.len()).map(way).collect()
    };
    let requests: Vec<_> = arrivals.iter().enumerate().map(ways).collect();
    Best { served: fluid.rate * seconds, misses: misses(&pools, &requests) }
}
