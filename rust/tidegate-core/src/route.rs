//! Which of the backends that are ready serves a request.

use std::fmt;

use crate::health::Health;
use crate::latency::Latency;
use crate::time::Instant;

/// A backend that could take the request now.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Attempts running on it.
    pub in_flight: u32,
    /// Its share when several are ready; > 0.
    pub weight: f64,
    /// What a request there costs on top, in seconds: so much longer an answer may take elsewhere.
    pub price: f64,
    /// How much longer others may have to wait that have fewer backends to go to, in seconds.
    pub scarcity: f64,
    /// From sending to headers.
    pub latency: &'a Latency,
    /// How it does on the account that would be used.
    pub health: &'a Health,
    /// The request's last attempt failed here.
    pub failed: bool,
    /// The submitter wants it here.
    pub preferred: bool,
    /// Its place in the order of preference; those of the least place go first.
    pub rank: u16,
}

/// How a backend is chosen among those that are ready, that did not just fail, that are preferred, and that come first in the order of
/// preference: as far as all that leaves several.
pub trait Strategy: fmt::Debug + Send + Sync {
    /// What it costs to send a request there; the least is chosen. Where nothing is known of some candidate, `quickest` is the shortest latency
    /// known of the others, in seconds.
    fn cost(&self, now: Instant, candidate: &Candidate<'_>, quickest: f64) -> f64;

    /// Whether it goes by what backends have done and what is asked of them. If not, `quickest` and [`Candidate::scarcity`] are not worked
    /// out, and no request leaves a backend alone that would answer after its deadline.
    fn learns(&self) -> bool {
        false
    }
}

/// The least attempts in flight by weight. It asks nothing of the past.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastInFlight;

impl Strategy for LeastInFlight {
    #[inline]
    fn cost(&self, _: Instant, candidate: &Candidate<'_>, _: f64) -> f64 {
        f64::from(candidate.in_flight) / candidate.weight
    }
}

/// The least seconds until an answer is expected: the latency of late times requests by weight, the likelihood of a failure times what
/// trying again takes, the price, and what others may lose. A backend of which nothing is known is tried as soon as nothing runs on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adaptive;

/// What trying again costs at least, in seconds: the mean of the first backoff.
const RETRY: f64 = 0.25;

impl Strategy for Adaptive {
    fn cost(&self, now: Instant, candidate: &Candidate<'_>, quickest: f64) -> f64 {
        let latency = match candidate.latency.read(now) {
            Some(known) => known,
            None if candidate.in_flight == 0 => 0.0,
            None => quickest,
        };
        let answer = latency * (f64::from(candidate.in_flight) + 1.0) / candidate.weight;
        answer + candidate.health.risk(now) * (RETRY + latency) + candidate.price + candidate.scarcity
    }

    fn learns(&self) -> bool {
        true
    }
}

/// What a latency counts of which nothing at all is known, in seconds: any, since all count the same.
const UNKNOWN: f64 = 1.0;

/// The place among the candidates of the one that did not just fail, waits for its one probe (it would never recover beside one that is
/// quicker), is preferred, comes first in the order of preference, costs least, was
/// declared first.
pub fn choose<'a>(
    strategy: &dyn Strategy,
    now: Instant,
    candidates: impl Iterator<Item = Candidate<'a>> + Clone,
) -> Option<usize> {
    let quickest = if strategy.learns() && candidates.clone().any(|one| !one.latency.is_known()) {
        candidates.clone().filter_map(|one| one.latency.read(now)).reduce(f64::min).unwrap_or(UNKNOWN)
    } else {
        UNKNOWN
    };
    let order = |(index, one): (usize, Candidate<'_>)| {
        ((one.failed, !one.health.awaits_probe(), !one.preferred, one.rank), strategy.cost(now, &one, quickest), index)
    };
    let least = |best: (_, f64, _), next: (_, f64, _)| if (next.0, next.1) < (best.0, best.1) { next } else { best };
    candidates.enumerate().map(order).reduce(least).map(|(_, _, index)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Monitor, Sign};
    use crate::retry::Random;
    use crate::time::Span;

    type Past = (Latency, Health);

    /// One that answered once, after so long.
    fn after(seconds: f64) -> Past {
        let mut past = Past::default();
        past.0.observe(Instant::ORIGIN, Span::from_nanos((seconds * 1e9) as u64));
        past
    }

    fn candidate((latency, health): &Past, in_flight: u32) -> Candidate<'_> {
        Candidate { in_flight, weight: 1.0, price: 0.0, scarcity: 0.0, latency, health, failed: false, preferred: false, rank: 0 }
    }

    fn pick(strategy: &dyn Strategy, list: &[Candidate<'_>]) -> Option<usize> {
        choose(strategy, Instant::ORIGIN, list.iter().copied())
    }

    #[test]
    fn least_in_flight_by_weight_then_declaration() {
        let past = Past::default();
        let heavy = Candidate { weight: 4.0, ..candidate(&past, 4) };
        assert_eq!(pick(&LeastInFlight, &[]), None);
        assert_eq!(pick(&LeastInFlight, &[candidate(&past, 2), candidate(&past, 1)]), Some(1));
        assert_eq!(pick(&LeastInFlight, &[heavy, candidate(&past, 2)]), Some(0));
        assert_eq!(pick(&LeastInFlight, &[candidate(&past, 1), candidate(&past, 1)]), Some(0));
    }

    #[test]
    fn one_that_waits_for_its_probe_goes_before_a_quicker_one() {
        let (quick, mut sick) = (after(0.1), after(9.0));
        let (monitor, mut random) = (Monitor::default(), Random::new(1));
        let mut until = None;
        while until.is_none() {
            let fails = (Sign::Fails, false, true);
            until = sick.1.ended(Instant::ORIGIN, fails, (0.0, false), &monitor, &mut random);
        }
        sick.1.tick(Instant::ORIGIN + Span::from_secs(10), &monitor);
        assert_eq!(pick(&Adaptive, &[candidate(&quick, 0), candidate(&sick, 0)]), Some(1));
        let failed = Candidate { failed: true, ..candidate(&sick, 0) };
        assert_eq!(pick(&Adaptive, &[candidate(&quick, 0), failed]), Some(0));
    }

    #[test]
    fn a_failure_then_the_preference_then_the_rank_go_before_the_cost() {
        let past = Past::default();
        let at = |in_flight| candidate(&past, in_flight);
        let failed = |one| Candidate { failed: true, ..one };
        let preferred = |one| Candidate { preferred: true, ..one };
        let ranked = |rank, one| Candidate { rank, ..one };
        for strategy in [&LeastInFlight as &dyn Strategy, &Adaptive] {
            assert_eq!(pick(strategy, &[failed(at(0)), at(9)]), Some(1));
            assert_eq!(pick(strategy, &[failed(at(0))]), Some(0), "avoided but not refused");
            assert_eq!(pick(strategy, &[at(0), preferred(at(9))]), Some(1));
            assert_eq!(pick(strategy, &[at(0), failed(preferred(at(9)))]), Some(0));
            assert_eq!(pick(strategy, &[ranked(1, at(0)), ranked(0, at(9))]), Some(1));
            assert_eq!(pick(strategy, &[ranked(1, preferred(at(9))), ranked(0, at(0))]), Some(0));
        }
    }

    #[test]
    fn latency_times_requests_by_weight() {
        let (quick, slow) = (after(0.1), after(0.45));
        let wide = |in_flight| Candidate { weight: 2.0, ..candidate(&slow, in_flight) };
        assert_eq!(pick(&Adaptive, &[candidate(&slow, 0), candidate(&quick, 3)]), Some(1));
        assert_eq!(pick(&Adaptive, &[candidate(&slow, 0), candidate(&quick, 4)]), Some(0));
        assert_eq!(pick(&Adaptive, &[wide(0), candidate(&quick, 2)]), Some(0));
        assert_eq!(pick(&Adaptive, &[wide(1), candidate(&quick, 3)]), Some(1));
    }

    #[test]
    fn the_unknown_is_tried_once_and_then_counts_as_the_quickest() {
        let (quick, slow, fresh) = (after(0.1), after(1.0), Past::default());
        assert_eq!(pick(&Adaptive, &[candidate(&quick, 0), candidate(&fresh, 0)]), Some(1));
        assert_eq!(pick(&Adaptive, &[candidate(&quick, 0), candidate(&fresh, 1)]), Some(0));
        assert_eq!(pick(&Adaptive, &[candidate(&quick, 2), candidate(&fresh, 1), candidate(&slow, 0)]), Some(1));
        assert_eq!(pick(&Adaptive, &[candidate(&fresh, 2), candidate(&fresh, 1)]), Some(1));
    }

    #[test]
    fn a_price_is_worth_so_many_seconds() {
        let past = after(0.1);
        let paid = Candidate { price: 0.25, ..candidate(&past, 0) };
        assert_eq!(pick(&Adaptive, &[paid, candidate(&past, 1)]), Some(1));
        assert_eq!(pick(&Adaptive, &[paid, candidate(&past, 3)]), Some(0));
    }

    #[test]
    fn who_fails_is_avoided_as_far_as_trying_again_costs() {
        let good = after(0.1);
        let mut bad = good;
        for _ in 0..20 {
            bad.1.ended(Instant::ORIGIN, (Sign::Fails, false, true), (0.0, false), &Monitor::default(), &mut Random::new(1));
        }
        assert!(bad.1.risk(Instant::ORIGIN) > 0.9);
        assert_eq!(pick(&Adaptive, &[candidate(&bad, 0), candidate(&good, 3)]), Some(1));
        assert_eq!(pick(&Adaptive, &[candidate(&bad, 0), candidate(&good, 4)]), Some(0));
    }
}
