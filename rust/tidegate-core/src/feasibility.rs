//! Whether what is to be sent again and again can be sent at all, and how long one round of it takes.
//!
//! Demand comes in groups: so many units a second that some backends may serve. It can be met only if no set of backends is asked, by the
//! groups that may go nowhere else, for more than its limits admit in the long run; and by Hall's theorem (in its form for flows) that
//! is also enough, as far as limits of whole backends go. A limit of a scope is one more such condition for each value of the scope.
//! Concurrency is no limit here: what it admits depends on how long the servers take.

use std::collections::{BTreeMap, BTreeSet};

use crate::limit::{Limit, bound};
use crate::time::Span;

/// Of more groups than this, only each by itself and all together are looked at: the unions of `n` sets are 2^n.
const MOST_SETS: usize = 12;

/// What backends of one quota admit together.
#[derive(Clone, Debug, Default)]
pub struct Supply {
    /// How often they have it: once an account.
    pub accounts: u32,
    /// The limits of all that is sent.
    pub limits: Vec<Limit>,
    /// The limits of each value of a scope, by the name of the scope.
    pub scoped: Vec<(String, Vec<Limit>)>,
}

/// What is to be sent again and again, alike.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// Which supplies may serve it, by their index; ascending.
    pub supplies: Vec<u32>,
    /// Units a second.
    pub rate: f64,
    /// Units in one round.
    pub units: u64,
    /// Its scopes: name and value.
    pub scopes: Vec<(String, String)>,
}

/// What asks for most of what it may have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bottleneck {
    /// The supplies.
    pub supplies: Vec<u32>,
    /// The scope, if it is one: name and value.
    pub scope: Option<(String, String)>,
    /// Units a second that are asked for.
    pub demand: f64,
    /// Units a second that are admitted.
    pub supply: f64,
}

/// How demand and supply stand to each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Feasibility {
    /// The set of backends, or the scope, that is used most; none without limits.
    pub bottleneck: Option<Bottleneck>,
    /// How long one round takes at least, from idle; none when a part of it can never be sent.
    pub round: Option<Span>,
}

impl Feasibility {
    /// How much of what is admitted is asked for: above 1 it cannot be met, and an interval longer by this factor could.
    pub fn load(&self) -> f64 {
        self.bottleneck.as_ref().map_or(0.0, |worst| worst.demand / worst.supply)
    }
}

/// Limits that hold for some of the demand, together.
struct Condition<'a> {
    supplies: Vec<u32>,
    scope: Option<(&'a str, &'a str)>,
    demand: f64,
    units: u64,
    /// Each with how often it is there.
    limits: Vec<(u32, &'a [Limit])>,
}

impl Condition<'_> {
    /// Units a second in the long run.
    fn supply(&self) -> f64 {
        let least = |limits: &[Limit]| bound::rate_of_all(limits).unwrap_or(f64::INFINITY);
        self.limits.iter().map(|(times, limits)| f64::from(*times) * least(limits)).sum()
    }

    /// Units that go through by then, from idle.
    fn by(&self, horizon: Span) -> u64 {
        let once = |limits: &[Limit]| bound::allowed_by_all(limits, horizon).unwrap_or(u64::MAX);
        let admitted = self.limits.iter().map(|(times, limits)| once(limits).saturating_mul((*times).into()));
        admitted.fold(0, u64::saturating_add)
    }

    /// The least span in which all its units go through.
    fn round(&self) -> Option<Span> {
        let enough = |nanos: u64| self.by(Span::from_nanos(nanos)) >= self.units;
        if enough(0) {
            return Some(Span::ZERO);
        }
        let mut most = 1_u64 << 30;
        while !enough(most) {
            most = most.checked_mul(2)?;
        }
        let mut least = most / 2;
        while most - least > 1 {
            let middle = least + (most - least) / 2;
            if enough(middle) { most = middle } else { least = middle }
        }
        Some(Span::from_nanos(most))
    }
}

/// Compares demand and supply.
///
/// # Example
/// ```
/// use tidegate_core::feasibility::{Demand, Supply, feasibility};
/// use tidegate_core::limit::Limit;
/// use tidegate_core::time::Span;
///
/// let supply = Supply { accounts: 1, limits: vec![Limit::window(100, Span::from_secs(60)).unwrap()], scoped: vec![] };
/// // 200 targets every 30 s.
/// let demand = Demand { supplies: vec![0], rate: 200.0 / 30.0, units: 200, scopes: vec![] };
/// let found = feasibility(&[supply], &[demand]);
/// assert_eq!(found.load(), 4.0);
/// assert_eq!(found.round, Some(Span::from_secs(60)));
/// ```
pub fn feasibility(supplies: &[Supply], demands: &[Demand]) -> Feasibility {
    let conditions = of_backends(supplies, demands).into_iter().chain(of_scopes(supplies, demands));
    let mut worst: Option<(f64, Condition<'_>)> = None;
    let mut round = Some(Span::ZERO);
    for condition in conditions.filter(|condition| condition.units > 0) {
        round = round.and_then(|so_far| condition.round().map(|own| own.max(so_far)));
        let supply = condition.supply();
        let load = condition.demand / supply;
        if supply.is_finite() && worst.as_ref().is_none_or(|(most, _)| load > *most) {
            worst = Some((load, condition));
        }
    }
    let bottleneck = worst.map(|(_, condition)| Bottleneck {
        supply: condition.supply(),
        scope: condition.scope.map(|(name, value)| (name.to_owned(), value.to_owned())),
        supplies: condition.supplies,
        demand: condition.demand,
    });
    Feasibility { bottleneck, round }
}

/// For each set of backends: what may go nowhere else.
fn of_backends<'a>(supplies: &'a [Supply], demands: &[Demand]) -> Vec<Condition<'a>> {
    conditions(None, &demands.iter().collect::<Vec<_>>(), |index| {
        let Supply { accounts, limits, .. } = &supplies[index as usize];
        Some((*accounts, limits))
    })
}

/// For each value of a scope and each set of backends that all limit it: what goes to it and may go nowhere else.
fn of_scopes<'a>(supplies: &'a [Supply], demands: &'a [Demand]) -> Vec<Condition<'a>> {
    let mut to_each: BTreeMap<(&str, &str), Vec<&Demand>> = BTreeMap::new();
    for demand in demands {
        for (name, value) in &demand.scopes {
            to_each.entry((name, value)).or_default().push(demand);
        }
    }
    let of_one = |((name, value), demands): ((&'a str, &'a str), Vec<&Demand>)| {
        conditions(Some((name, value)), &demands, |index| {
            let Supply { accounts, scoped, .. } = &supplies[index as usize];
            let (_, limits) = scoped.iter().find(|(scope, _)| scope == name)?;
            Some((*accounts, limits))
        })
    };
    to_each.into_iter().flat_map(of_one).collect()
}

/// For each union of the sets that are asked for, if `limits` knows some for all of it: what may go nowhere else.
fn conditions<'a>(
    scope: Option<(&'a str, &'a str)>,
    demands: &[&Demand],
    limits: impl Fn(u32) -> Option<(u32, &'a [Limit])>,
) -> Vec<Condition<'a>> {
    let sets: BTreeSet<&[u32]> = demands.iter().map(|demand| &*demand.supplies).collect();
    let mut unions: BTreeSet<BTreeSet<u32>> = BTreeSet::new();
    for set in &sets {
        let set: BTreeSet<u32> = set.iter().copied().collect();
        if sets.len() <= MOST_SETS {
            let larger: Vec<_> = unions.iter().map(|union| union | &set).collect();
            unions.extend(larger);
        }
        unions.insert(set);
    }
    unions.insert(sets.iter().flat_map(|set| set.iter().copied()).collect());
    let condition = |union: BTreeSet<u32>| {
        let inside = demands.iter().filter(|demand| demand.supplies.iter().all(|supply| union.contains(supply)));
        let (demand, units) = inside.fold((0.0, 0), |(rate, units), demand| (rate + demand.rate, units + demand.units));
        let limits = union.iter().map(|index| limits(*index)).collect::<Option<_>>()?;
        Some(Condition { limits, supplies: union.into_iter().collect(), scope, demand, units })
    };
    unions.into_iter().filter_map(condition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(amount: u32, secs: u64) -> Limit {
        Limit::window(amount, Span::from_secs(secs)).unwrap()
    }

    fn supply(limits: Vec<Limit>) -> Supply {
        Supply { accounts: 1, limits, scoped: vec![] }
    }

    fn demand(supplies: &[u32], rate: f64, units: u64) -> Demand {
        Demand { supplies: supplies.to_vec(), rate, units, scopes: vec![] }
    }

    #[test]
    fn the_long_run_is_that_of_the_slowest_limit() {
        let found = feasibility(&[supply(vec![window(100, 60), window(3000, 3600)])], &[demand(&[0], 100.0 / 30.0, 100)]);
        assert_eq!(found.load(), 4.0);
        assert_eq!(found.round, Some(Span::ZERO), "a window is open from the start");
    }

    #[test]
    fn a_group_that_may_go_nowhere_else_is_the_bottleneck_though_there_is_enough_in_all() {
        let supplies = [supply(vec![window(10, 1)]), supply(vec![window(1, 1)])];
        let found = feasibility(&supplies, &[demand(&[0, 1], 5.0, 5), demand(&[1], 2.0, 2)]);
        let worst = found.bottleneck.as_ref().unwrap();
        assert_eq!((&*worst.supplies, found.load()), (&[1][..], 2.0));
        assert_eq!(found.round, Some(Span::from_secs(1)));
    }

    #[test]
    fn two_groups_may_ask_too_much_together_of_what_is_enough_for_each() {
        let supplies = [supply(vec![window(2, 1)]), supply(vec![window(2, 1)]), supply(vec![window(100, 1)])];
        let found = feasibility(&supplies, &[demand(&[0, 1], 3.5, 7), demand(&[0], 1.5, 1), demand(&[2], 1.0, 1)]);
        assert_eq!(found.bottleneck.as_ref().unwrap().supplies, [0, 1]);
        assert_eq!(found.load(), 1.25);
    }

    #[test]
    fn a_scope_that_every_backend_limits_may_be_the_bottleneck() {
        let mut limited = supply(vec![]);
        limited.scoped.push(("host".into(), vec![window(1, 1)]));
        let at = |value: &str, rate| Demand { scopes: vec![("host".into(), value.into())], ..demand(&[0], rate, 4) };
        let found = feasibility(&[limited], &[at("a", 0.5), at("b", 3.0)]);
        let worst = found.bottleneck.as_ref().unwrap();
        assert_eq!(worst.scope, Some(("host".into(), "b".into())));
        assert_eq!((found.load(), found.round), (3.0, Some(Span::from_secs(3))));
    }

    #[test]
    fn two_groups_may_ask_too_much_of_a_scope_together() {
        let limited = || Supply { scoped: vec![("host".into(), vec![window(1, 1)])], ..supply(vec![]) };
        let to = |supplies: &[u32], rate| Demand { scopes: vec![("host".into(), "a".into())], ..demand(supplies, rate, 4) };
        let asked = [to(&[0], 0.9), to(&[0, 1], 1.5)];
        let found = feasibility(&[limited(), limited()], &asked);
        let worst = found.bottleneck.as_ref().unwrap();
        assert_eq!((&*worst.supplies, worst.scope.as_ref().unwrap().1.as_str()), (&[0, 1][..], "a"));
        assert_eq!((found.load(), found.round), (1.2, Some(Span::from_secs(3))));
        let one_is_free = feasibility(&[limited(), supply(vec![])], &asked);
        assert_eq!((&*one_is_free.bottleneck.as_ref().unwrap().supplies, one_is_free.load()), (&[0][..], 0.9));
    }

    #[test]
    fn accounts_multiply_and_no_limit_is_no_bottleneck() {
        let three = Supply { accounts: 3, ..supply(vec![window(1, 1)]) };
        assert_eq!(feasibility(&[three], &[demand(&[0], 6.0, 6)]).load(), 2.0);
        let free = feasibility(&[supply(vec![])], &[demand(&[0], 6.0, 6)]);
        assert_eq!((free.bottleneck.clone(), free.load(), free.round), (None, 0.0, Some(Span::ZERO)));
    }
}
