//! A part of what `make balancing` prints, with its goals.

use tidegate_core::sim::balance::{Best, Choice, Policy, Report, Scenario, best};
use tidegate_core::time::Span;

/// Of all requests, those that are late at a load of 0.98: the goal.
const MOST_MISSES: f64 = 0.003;
/// Of the fluid bound, what is let through: the goal.
const LEAST_SHARE: f64 = 0.99;

fn scenarios(load: f64) -> impl Iterator<Item = Scenario> {
    (0..6).map(move |seed| Scenario { load, horizon: Span::from_secs(600), seed })
}

fn tried(policy: Policy, load: f64) -> Vec<Report> {
    scenarios(load).map(|scenario| policy.run(scenario)).collect()
}

fn sum(reports: &[Report], of: fn(&Report) -> u64) -> f64 {
    reports.iter().map(of).sum::<u64>() as f64
}

/// Of all requests, those that are late.
fn misses(reports: &[Report]) -> f64 {
    sum(reports, Report::misses) / sum(reports, |report| report.requests)
}

/// Of what could be let through, what was; and of all requests, those that are late however well one does. Nothing is rejected, and nobody
/// does better than the best.
fn compared(reports: &[Report], load: f64) -> (f64, f64) {
    let bounds: Vec<Best> = scenarios(load).map(best).collect();
    for (report, bound) in reports.iter().zip(&bounds) {
        assert!(report.misses() >= bound.misses && report.served as f64 <= bound.served, "{load}: better than the best");
        assert_eq!(report.rejected, 0);
    }
    let share = sum(reports, |report| report.served) / bounds.iter().map(|bound| bound.served).sum::<f64>();
    (share, bounds.iter().map(|bound| bound.misses).sum::<u64>() as f64 / sum(reports, |report| report.requests))
}

/// The bounds are bounds, and near to what can be done without knowing the future.
#[test]
fn who_knows_latencies_comes_near_to_the_bounds() {
    for (load, least, near) in [(0.98, 0.0..0.001, 0.001), (1.1, 0.07..0.1, 0.015)] {
        let reports = tried(Policy::Fitting, load);
        let (share, bound) = compared(&reports, load);
        assert!(share >= LEAST_SHARE, "{load}: {share}");
        assert!(least.contains(&bound), "what is asked for beyond what there is: {bound}");
        assert!(misses(&reports) <= bound + near, "{load}: {} {bound}", misses(&reports));
    }
}

/// Near its limits the engine uses nearly all of them and misses few deadlines: fewer than any balancer with a queue a backend.
#[test]
fn the_engine_misses_few_near_its_limits() {
    let engine = tried(Policy::Deadline, 0.98);
    let (share, _) = compared(&engine, 0.98);
    assert!(share >= LEAST_SHARE, "{share}");
    assert!(misses(&engine) <= MOST_MISSES, "{}", misses(&engine));
    for choice in [Choice::Weighted, Choice::FastestOfTwo, Choice::EarliestFinish] {
        let early = tried(Policy::Early { choice, drops: false }, 0.98);
        assert!(misses(&engine) < misses(&early) / 2.0, "{choice:?}: {} {}", misses(&engine), misses(&early));
    }
}

/// As long as the page runs: the goal is met there too.
#[test]
fn the_engine_misses_few_in_half_an_hour() {
    let run = |seed| Policy::Deadline.run(Scenario { load: 0.98, horizon: Span::from_secs(1800), seed });
    let reports: Vec<Report> = (0..20).map(run).collect();
    assert!(misses(&reports) <= MOST_MISSES, "{}", misses(&reports));
}

/// Beyond its limits it does not spend permits on what comes too late: it is near to who knows latencies, and uses all that there is.
#[test]
fn the_engine_is_near_the_bounds_beyond_its_limits() {
    for policy in [Policy::Deadline, Policy::Strict] {
        let engine = tried(policy, 1.1);
        let (share, bound) = compared(&engine, 1.1);
        assert!(share >= LEAST_SHARE, "{policy:?}: {share}");
        assert!(misses(&engine) <= bound + 0.015, "{policy:?}: {} {bound}", misses(&engine));
    }
}

/// The same twice.
#[test]
fn it_is_the_same_each_time() {
    let scenario = Scenario { load: 1.1, horizon: Span::from_secs(60), seed: 5 };
    for policy in [Policy::Deadline, Policy::Strict, Policy::Early { choice: Choice::FastestOfTwo, drops: true }] {
        assert_eq!(policy.run(scenario), policy.run(scenario));
    }
}
