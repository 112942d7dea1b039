//! Prints what ways to choose among unequal backends come to: `balancing [SEEDS]`.
#![allow(clippy::print_stdout)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use tidegate_core::sim::balance::{Best, Choice, Policy, Report, Scenario, Site, best};
use tidegate_core::time::Span;

const LOADS: [f64; 4] = [0.7, 0.9, 0.98, 1.1];
const MINUTES: u64 = 30;
const HORIZON: Span = Span::from_secs(60 * MINUTES);

/// Goals of Tidegate, earliest deadline first: requests that are late at this load, and of what could be let through at all.
const MOST_MISSES: (f64, f64) = (0.98, 0.003);
const LEAST_SHARE: f64 = 0.99;

const POLICIES: [(&str, Policy); 11] = [
    ("round robin", early(Choice::RoundRobin)),
    ("at random, by rate", early(Choice::Weighted)),
    ("two choices, least requests", early(Choice::LeastOfTwo)),
    ("two choices, peak EWMA", early(Choice::FastestOfTwo)),
    ("all choices, peak EWMA", early(Choice::Fastest)),
    ("the same, drops what is late", dropping(Choice::Fastest)),
    ("earliest finish", early(Choice::EarliestFinish)),
    ("the same, drops what is late", dropping(Choice::EarliestFinish)),
    ("one queue, latencies known", Policy::Fitting),
    ("**Tidegate**, first in first out", Policy::Strict),
    ("**Tidegate**, earliest deadline first", Policy::Deadline),
];

const fn early(choice: Choice) -> Policy {
    Policy::Early { choice, drops: false }
}

const fn dropping(choice: Choice) -> Policy {
    Policy::Early { choice, drops: true }
}

fn main() {
    let seeds = std::env::args().nth(1).map_or(20, |text| text.parse().expect("the number of seeds"));
    println!("# Balancing\n");
    println!(
        "Ways to choose among four unequal backends, for requests that come at random (Poisson), each with a deadline: all against the same"
    );
    println!(
        "strict servers and the same arrivals, in virtual time; printed by `make balancing`. {seeds} seeds of {MINUTES} minutes each, and what was"
    );
    println!("underway then.\n");
    println!("| backend | rate | burst | round trip, median |\n|---|---|---|---|");
    for (site, name) in Site::ALL.iter().zip(["A", "B", "C", "D"]) {
        println!("| {name} | {}/s | {} | {} s |", site.rate, site.burst, seconds(site.median));
    }
    let (least, most) = Scenario::SLACK;
    println!(
        "\nThe servers are token buckets. Round trips are log-normal (sigma {}), half of each on the way there, and drawn for each request and",
        Scenario::SIGMA
    );
    println!(
        "backend: all policies meet the same luck. A deadline is {} to {} s after its request came, uniform. Any backend may serve any request. Load",
        seconds(least),
        seconds(most)
    );
    println!("is what is asked for, of what all four admit in the long run.\n");
    println!(
        "The first policies choose a backend when a request comes, and have a queue for each. They keep limits as Tidegate does, so that what"
    );
    println!(
        "differs is who goes where, and when. *One queue, latencies known* is what a client could do that knows all but the future: each backend takes"
    );
    println!("the earliest deadline that it meets 99 times of 100.\n");
    println!(
        "*Let through* is what servers let through within the time; the bound is fluid, from idle (`optimum::throughput`). A *miss* is a request"
    );
    println!(
        "that has no answer by its deadline; the bound is what somebody would miss who knows all arrivals and round trips beforehand"
    );
    println!(
        "(`optimum::misses`). *Waits* are those of what was sent, until it was: who drops what is late, or sends it last, waits less.\n"
    );
    let (tables, bounds) = grid(seeds);
    for ((load, row), bounds) in LOADS.iter().zip(&tables).zip(&bounds) {
        print(*load, row, bounds);
    }
    goals(&tables, &bounds);
}

/// Every policy at every load, all seeds, and the bounds of every load, on all processors.
fn grid(seeds: u64) -> (Vec<Vec<Vec<Report>>>, Vec<Vec<Best>>) {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    // The bounds are one more column.
    let width = POLICIES.len() + 1;
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let cell = next.fetch_add(1, Ordering::Relaxed);
                    let (row, column) = (cell / width, cell % width);
                    let Some(&load) = LOADS.get(row) else { return };
                    let scenarios = (0..seeds).map(|seed| Scenario { load, horizon: HORIZON, seed });
                    let found = match POLICIES.get(column) {
                        Some((_, policy)) => (scenarios.map(|scenario| policy.run(scenario)).collect(), vec![]),
                        None => (vec![], scenarios.map(best).collect()),
                    };
                    sender.send((row, column, found)).expect("it is read below");
                }
            });
        }
        drop(sender);
        let mut tables = vec![vec![Vec::new(); POLICIES.len()]; LOADS.len()];
        let mut bounds = vec![Vec::new(); LOADS.len()];
        for (row, column, (reports, best)) in receiver {
            match tables[row].get_mut(column) {
                Some(cell) => *cell = reports,
                None => bounds[row] = best,
            }
        }
        (tables, bounds)
    })
}

fn sum(reports: &[Report], of: fn(&Report) -> u64) -> f64 {
    reports.iter().map(of).sum::<u64>() as f64
}

/// Of all requests, those that are late.
fn misses(reports: &[Report]) -> f64 {
    sum(reports, Report::misses) / sum(reports, |report| report.requests)
}

fn least_misses(reports: &[Report], bounds: &[Best]) -> f64 {
    bounds.iter().map(|bound| bound.misses).sum::<u64>() as f64 / sum(reports, |report| report.requests)
}

/// What was let through, of what could have been.
fn share(reports: &[Report], bounds: &[Best]) -> f64 {
    sum(reports, |report| report.served) / bounds.iter().map(|bound| bound.served).sum::<f64>()
}

fn seconds(span: Span) -> f64 {
    span.as_nanos() as f64 / 1e9
}

fn print(load: f64, row: &[Vec<Report>], bounds: &[Best]) {
    let time = bounds.len() as f64 * seconds(HORIZON);
    let most = bounds.iter().map(|bound| bound.served).sum::<f64>() / time;
    let least = 100.0 * least_misses(&row[0], bounds);
    println!("## Load {load}\n");
    println!("Bounds: {most:.2}/s let through, {least:.2} % missed.\n");
    println!("| policy | let through | of the bound | wait, median | wait, 99th | misses | above the bound | 429s |");
    println!("|---|---|---|---|---|---|---|---|");
    for ((name, _), reports) in POLICIES.iter().zip(row) {
        let mut waits: Vec<Span> = reports.iter().flat_map(|report| report.waits.iter().copied()).collect();
        waits.sort_unstable();
        let wait = |share: f64| seconds(waits[(waits.len() as f64 * share) as usize]);
        let (rate, share) = (sum(reports, |report| report.served) / time, 100.0 * share(reports, bounds));
        let misses = 100.0 * misses(reports);
        print!("| {name} | {rate:.2}/s | {share:.1} % | {:.2} s | {:.2} s ", wait(0.5), wait(0.99));
        println!("| {misses:.2} % | {:.2} % | {} |", misses - least, sum(reports, |report| report.rejected));
    }
    println!();
}

/// How Tidegate, earliest deadline first, stands to what it should do.
fn goals(tables: &[Vec<Vec<Report>>], bounds: &[Vec<Best>]) {
    let ours = POLICIES.len() - 1;
    let of = |load: f64| LOADS.iter().position(|one| *one == load).expect("a goal is for one of the loads");
    let verdict = |is_met: bool| if is_met { "met" } else { "**missed**" };
    println!("## Goals\n");
    println!("| Tidegate, earliest deadline first | goal | is | |\n|---|---|---|---|");
    let (load, most) = MOST_MISSES;
    let found = misses(&tables[of(load)][ours]);
    println!("| misses at load {load} | at most {:.1} % | {:.2} % | {} |", 100.0 * most, 100.0 * found, verdict(found <= most));
    let least = tables.iter().zip(bounds).map(|(row, bounds)| share(&row[ours], bounds)).fold(f64::INFINITY, f64::min);
    let is_met = verdict(least >= LEAST_SHARE);
    println!(
        "| let through, of the bound, at the worst load | at least {:.0} % | {:.1} % | {is_met} |",
        100.0 * LEAST_SHARE,
        100.0 * least
    );
    let full = LOADS.len() - 1;
    let row = &tables[full];
    let (bound, known) = (100.0 * least_misses(&row[ours], &bounds[full]), 100.0 * misses(&row[ours - 2]));
    let found = 100.0 * misses(&row[ours]);
    println!("| misses at load {} | near {bound:.2} %; latencies known: {known:.2} % | {found:.2} % | |", LOADS[full]);
}
