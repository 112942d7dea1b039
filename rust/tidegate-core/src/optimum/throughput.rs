//! The most that can go through several backends.
//!
//! As a fluid: so many requests a second of each group to each backend, and their sums within what is asked for, what limits admit and what
//! concurrency leaves (Little's law). A linear programme; its prices say what holds back.

use super::simplex;
use crate::limit::{Limit, bound};
use crate::time::Span;

/// What backends of one quota may do together.
#[derive(Clone, Debug, Default)]
pub struct Supply {
    /// How often they have it: once an account.
    pub accounts: u32,
    /// The limits of all that is sent.
    pub limits: Vec<Limit>,
    /// Attempts at once; `None` for no cap.
    pub concurrency: Option<u32>,
}

/// Where requests go.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// What it spends, by its index.
    pub supply: u32,
    /// How long an attempt takes on average.
    pub latency: Span,
}

/// Requests that are alike.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Which backends may serve them, by their index.
    pub backends: Vec<u32>,
    /// How many come in a second, above 0; infinite for as many as go through.
    pub rate: f64,
    /// What each costs, at least 1.
    pub cost: u32,
}

/// What of a supply holds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Its limits.
    Limits,
    /// Its concurrency.
    Concurrency,
}

/// Something without which more would go through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Binding {
    /// Whose, by its index.
    pub supply: u32,
    /// What.
    pub hold: Hold,
    /// How many requests a second more one unit a second more would bring; or, for concurrency, one attempt at once more.
    pub price: f64,
}

/// The most that can go through.
#[derive(Clone, Debug, PartialEq)]
pub struct Throughput {
    /// Requests a second; infinite without limits.
    pub rate: f64,
    /// What holds back, by supply. Empty when all that is asked for goes through.
    pub binding: Vec<Binding>,
}

/// The most that can go through: in the long run, or on average over a `horizon` from idle, its last instant included.
///
/// # Example
/// ```
/// use tidegate_core::limit::Limit;
/// use tidegate_core::optimum::{Backend, Demand, Supply, throughput};
/// use tidegate_core::time::Span;
///
/// let supply = |amount| {
///     let limits = vec![Limit::window(amount, Span::from_secs(1)).unwrap()];
///     Supply { accounts: 1, limits, concurrency: None }
/// };
/// let backend = |supply| Backend { supply, latency: Span::ZERO };
/// let demand = |backends: &[u32], rate| Demand { backends: backends.to_vec(), rate, cost: 1 };
/// let found = throughput(&[supply(10), supply(1)], &[backend(0), backend(1)], &[demand(&[0, 1], 8.0), demand(&[1], 2.0)], None);
/// assert_eq!((found.rate, found.binding.len()), (9.0, 1));
/// ```
///
/// # Panics
/// When an index leads nowhere.
pub fn throughput(supplies: &[Supply], backends: &[Backend], demands: &[Demand], horizon: Option<Span>) -> Throughput {
    let seconds = horizon.map_or(1.0, |horizon| horizon.as_nanos() as f64 / 1e9);
    // A column for each demand and each backend that may serve it.
    let each =
        |(index, demand): (usize, &Demand)| demand.backends.iter().map(move |&backend| (index, backend as usize)).collect();
    let columns: Vec<(usize, usize)> = demands.iter().enumerate().flat_map(|pair| -> Vec<_> { each(pair) }).collect();
    let row = |coefficient: &dyn Fn(usize, usize) -> f64, right: f64| {
        (columns.iter().map(|&(demand, backend)| coefficient(demand, backend)).collect::<Vec<_>>(), right)
    };
    let mut rows = Vec::new();
    for (index, demand) in demands.iter().enumerate().filter(|(_, demand)| demand.rate.is_finite()) {
        rows.push(row(&|of, _| f64::from(u8::from(of == index)), demand.rate * seconds));
    }
    let asked = rows.len();
    let mut holds = Vec::new();
    for (index, supply) in supplies.iter().enumerate() {
        let spends = |backend: usize| backends[backend].supply as usize == index;
        let accounts = f64::from(supply.accounts);
        if let Some(units) = supply.units(horizon) {
            rows.push(row(&|demand, to| if spends(to) { f64::from(demands[demand].cost) } else { 0.0 }, accounts * units));
            holds.push((index as u32, Hold::Limits));
        }
        let latency = |backend: usize| backends[backend].latency.as_nanos() as f64 / 1e9;
        let longest = (0..backends.len()).filter(|backend| spends(*backend)).map(latency).fold(0.0, f64::max);
        if let Some(concurrency) = supply.concurrency
            && longest > 0.0
        {
            // What is sent at the end runs on beyond it.
            let time = horizon.map_or(1.0, |_| seconds + longest);
            let most = accounts * f64::from(concurrency) * time;
            rows.push(row(&|_, to| if spends(to) { latency(to) } else { 0.0 }, most));
            holds.push((index as u32, Hold::Concurrency));
        }
    }
    let Some(found) = simplex::maximise(columns.len(), &rows) else {
        return Throughput { rate: f64::INFINITY, binding: Vec::new() };
    };
    let binding = holds.iter().zip(&found.prices[asked..]).filter(|(_, price)| **price > 0.0);
    let binding = binding.map(|(&(supply, hold), &price)| Binding { supply, hold, price }).collect();
    Throughput { rate: found.value / seconds, binding }
}

impl Supply {
    /// What the limits of one account admit: in a second of the long run, or within a horizon.
    fn units(&self, horizon: Option<Span>) -> Option<f64> {
        match horizon {
            None => bound::rate_of_all(&self.limits),
            Some(horizon) => bound::allowed_by_all(&self.limits, horizon).map(|units| units as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Of equal costs it is the least cut: what may only go to some set of backends is held back by them, the rest is not.
        #[test]
        fn equal_costs_are_a_flow(
            amounts in prop::collection::vec(1u32..20, 4),
            asked in prop::collection::vec((1u32..16, 1u32..20), 0..5),
        ) {
            let supplies: Vec<_> = amounts.iter().map(|amount| bucket(*amount, 1)).collect();
            let backends: Vec<_> = (0..4).map(|index| backend(index, 0)).collect();
            let set = |bits: u32| (0..4).filter(|index| bits & (1 << index) != 0).collect::<Vec<u32>>();
            let demands: Vec<_> = asked.iter().map(|&(bits, rate)| demand(&set(bits), rate.into())).collect();
            let cut = |bits: u32| {
                let held: u32 = set(bits).iter().map(|index| amounts[*index as usize]).sum();
                held + asked.iter().filter(|(own, _)| own & !bits != 0).map(|(_, rate)| rate).sum::<u32>()
            };
            let least = (0..16).map(cut).min().unwrap();
            prop_assert_eq!(throughput(&supplies, &backends, &demands, None).rate, f64::from(least));
        }
    }

    fn bucket(amount: u32, burst: u32) -> Supply {
        let limits = vec![Limit::bucket(amount, Span::from_secs(1), burst).unwrap()];
        Supply { accounts: 1, limits, concurrency: None }
    }

    fn backend(supply: u32, millis: u64) -> Backend {
        Backend { supply, latency: Span::from_millis(millis) }
    }

    fn demand(backends: &[u32], rate: f64) -> Demand {
        Demand { backends: backends.to_vec(), rate, cost: 1 }
    }

    #[test]
    fn flexible_requests_use_all_there_is() {
        let supplies = [bucket(10, 50), bucket(5, 5), bucket(1, 1), bucket(2, 10)];
        let backends: Vec<_> = (0..4).map(|index| backend(index, 100)).collect();
        let most = |rate, horizon| throughput(&supplies, &backends, &[demand(&[0, 1, 2, 3], rate)], horizon);
        assert_eq!((most(17.0, None).rate, most(17.0, None).binding), (17.0, vec![]));
        let full = most(19.8, None);
        assert_eq!((full.rate, full.binding.len()), (18.0, 4));
        assert!(full.binding.iter().all(|binding| binding.price == 1.0 && binding.hold == Hold::Limits));
        assert_eq!(most(f64::INFINITY, None).rate, 18.0);
        assert_eq!(most(100.0, Some(Span::from_secs(10))).rate, 18.0 + 6.6);
    }

    #[test]
    fn concurrency_holds_back_by_latency_and_a_quota_may_be_shared() {
        let capped = Supply { concurrency: Some(2), ..bucket(100, 1) };
        let found = throughput(std::slice::from_ref(&capped), &[backend(0, 100)], &[demand(&[0], 50.0)], None);
        assert_eq!((found.rate, found.binding[0].hold), (20.0, Hold::Concurrency));
        assert!((found.binding[0].price - 10.0).abs() < 1e-9);
        // The fast one of two that share a quota is worth more of it.
        let shared = [backend(0, 100), backend(0, 400)];
        let found = throughput(std::slice::from_ref(&capped), &shared, &[demand(&[0], 8.0), demand(&[1], 8.0)], None);
        assert!((found.rate - 11.0).abs() < 1e-9, "{found:?}");
        let twice = Supply { accounts: 2, ..capped };
        assert_eq!(throughput(&[twice], &[backend(0, 100)], &[demand(&[0], 50.0)], None).rate, 40.0);
    }

    #[test]
    fn what_costs_more_gives_way() {
        let demands = [Demand { cost: 5, ..demand(&[0], 2.0) }, demand(&[0], 8.0)];
        assert!((throughput(&[bucket(10, 10)], &[backend(0, 0)], &demands, None).rate - 8.4).abs() < 1e-9);
        let free = Supply { accounts: 1, limits: vec![], concurrency: None };
        assert_eq!(throughput(std::slice::from_ref(&free), &[backend(0, 0)], &demands, None).rate, 10.0);
        assert_eq!(throughput(&[free], &[backend(0, 0)], &[demand(&[0], f64::INFINITY)], None).rate, f64::INFINITY);
    }
}
