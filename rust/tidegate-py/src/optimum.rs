//! What nobody could do better, from Python's words to the core's and back.

use pyo3::prelude::*;
use tidegate_core::limit::Limit;
use tidegate_core::optimum::{self, Backend, Binding, Demand, Hold, Pool, Supply, Way};
use tidegate_core::time::{Instant, Span};

use crate::clock::Clock;
use crate::convert::span_or_none;
use crate::quota::QuotaOptions;

/// What a backend spends, by its place among the supplies, and seconds that an attempt takes.
type Place = (u32, f64);
/// Which backends may serve it, requests a second, and what each costs.
type Group = (Vec<u32>, f64, u32);
/// The place of a supply, whether its concurrency holds back or its limits do, and the price.
type Held = (u32, bool, f64);
/// When it comes, its deadline, and which backends may serve it.
type Timed = (f64, f64, Vec<u32>);

/// The most that goes through `tidegate.BackendQuota`s, each so many times: requests a second, and what holds back.
#[pyfunction]
#[pyo3(signature = (supplies, backends, demands, horizon, /))]
pub(crate) fn throughput_bound(
    py: Python<'_>,
    supplies: Vec<(QuotaOptions, u32)>,
    backends: Vec<Place>,
    demands: Vec<Group>,
    horizon: Option<f64>,
) -> PyResult<(f64, Vec<Held>)> {
    let supply = |(quota, accounts): (QuotaOptions, u32)| {
        let (limits, _) = quota.declared(py, &Clock::at_its_origin())?;
        Ok(Supply { accounts, limits, concurrency: quota.concurrency })
    };
    let supplies = supplies.into_iter().map(supply).collect::<PyResult<Vec<_>>>()?;
    let backend = |(supply, latency): Place| Backend { supply, latency: span_or_none(latency) };
    let backends: Vec<Backend> = backends.into_iter().map(backend).collect();
    let demand = |(backends, rate, cost): Group| Demand { backends, rate, cost };
    let demands: Vec<Demand> = demands.into_iter().map(demand).collect();
    let horizon = horizon.map(span_or_none);
    let found = py.detach(|| optimum::throughput(&supplies, &backends, &demands, horizon));
    let binding = |Binding { supply, hold, price }: Binding| (supply, hold == Hold::Concurrency, price);
    Ok((found.rate, found.binding.into_iter().map(binding).collect()))
}

/// Most permits that are counted one by one.
const MOST_PERMITS: u64 = 20_000_000;

/// How many of these requests are late at least, when each attempt takes as long as its backend says; nothing if that were too many permits to look
/// at, which is then how many.
#[pyfunction]
#[pyo3(signature = (supplies, backends, requests, /))]
pub(crate) fn deadline_bound(
    py: Python<'_>,
    supplies: Vec<(QuotaOptions, u32)>,
    backends: Vec<Place>,
    requests: Vec<Timed>,
) -> PyResult<(Option<u64>, u64)> {
    // Rounded so that nobody is late by that.
    let nanos = |seconds: f64| (seconds * 1e9) as u64;
    let latency = |(supply, seconds): Place| (supply, Span::from_nanos(nanos(seconds)));
    let latencies: Vec<(u32, Span)> = backends.into_iter().map(latency).collect();
    let pool = |(index, (quota, accounts)): (usize, (QuotaOptions, u32))| {
        let (mut limits, _) = quota.declared(py, &Clock::at_its_origin())?;
        // At most so many begin while one runs.
        let shortest = latencies.iter().filter(|(supply, _)| *supply as usize == index).map(|(_, latency)| *latency).min();
        let at_once = quota.concurrency.zip(shortest).and_then(|(most, shortest)| Limit::window(most, shortest).ok());
        limits.extend(at_once);
        Ok(Pool { accounts, limits })
    };
    let pools = supplies.into_iter().enumerate().map(pool).collect::<PyResult<Vec<_>>>()?;
    let ways = |(from, deadline, backends): Timed| -> Vec<Way> {
        let (from, deadline) = (Instant::from_nanos(nanos(from)), Instant::ORIGIN + span_or_none(deadline));
        let way = |backend: u32| {
            let (pool, latency) = latencies[backend as usize];
            (from + latency <= deadline).then(|| Way { pool, from, until: deadline - latency })
        };
        backends.into_iter().filter_map(way).collect()
    };
    let requests: Vec<Vec<Way>> = requests.into_iter().map(ways).collect();
    Ok(py.detach(|| {
        let permits = optimum::permits(&pools, &requests);
        ((permits <= MOST_PERMITS).then(|| optimum::misses(&pools, &requests)), permits)
    }))
}
