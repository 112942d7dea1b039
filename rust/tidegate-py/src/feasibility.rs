//! Whether what a collector is to send can be sent, from Python's words to the core's and back.

use pyo3::prelude::*;
use tidegate_core::feasibility::{Bottleneck, Demand, Supply, feasibility as compare};

use crate::clock::Clock;
use crate::convert::seconds;
use crate::quota::QuotaOptions;

/// The supplies that may serve it, units a second, units in one round, scopes.
type Group = (Vec<u32>, f64, u64, Vec<(String, String)>);
/// The supplies, the scope if it is one, and units a second that are asked for and admitted.
type Narrow = (Vec<u32>, Option<(String, String)>, f64, f64);

/// Compares what `tidegate.BackendQuota`s admit, each so many times, with what is asked for. The bottleneck, the load, and how many seconds one
/// round takes at least; nothing where there is none.
#[pyfunction]
#[pyo3(signature = (supplies, demands, /))]
pub(crate) fn feasibility(
    py: Python<'_>,
    supplies: Vec<(QuotaOptions, u32)>,
    demands: Vec<Group>,
) -> PyResult<(Option<Narrow>, f64, Option<f64>)> {
    let supply = |(quota, accounts): (QuotaOptions, u32)| {
        let (limits, scoped) = quota.declared(py, &Clock::at_its_origin())?;
        let scoped = scoped.into_iter().map(|scoped| (scoped.scope.into(), scoped.limits)).collect();
        Ok(Supply { accounts, limits, scoped })
    };
    let supplies = supplies.into_iter().map(supply).collect::<PyResult<Vec<_>>>()?;
    let demand = |(supplies, rate, units, scopes): Group| Demand { supplies, rate, units, scopes };
    let demands: Vec<Demand> = demands.into_iter().map(demand).collect();
    let found = compare(&supplies, &demands);
    let load = found.load();
    let narrow = found.bottleneck.map(|Bottleneck { supplies, scope, demand, supply }| (supplies, scope, demand, supply));
    Ok((narrow, load, found.round.map(seconds)))
}
