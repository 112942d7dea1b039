//! Prints what ways to choose among unequal backends come to: `balancing [SEEDS]`.
#![allow(clippy::print_stdout)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use tidegate_core::sim::balance::{Choice, Policy, Report, Scenario, Site};
use tidegate_core::time::Span;

const LOADS: [f64; 4] = [0.7, 0.9, 0.98, 1.1];
const MINUTES: u64 = 30;
const HORIZON: Span = Span::from_secs(60 * MINUTES);

const POLICIES: [(&str, Policy); 11] = [
    ("round robin", early(Choice::RoundRobin)),
    ("at random, by rate", early(Choice::Weighted)),
    ("two choices, least requests", early(Choice::LeastOfTwo)),
    ("two choices, peak EWMA", early(Choice::FastestOfTwo)),
    ("all choices, peak EWMA", early(Choice::Fastest)),
    ("the same, drops what is late", dropping(Choice::Fastest)),
    ("earliest finish", early(Choice::EarliestFinish)),
    ("the same, drops what is late", dropping(Choice::EarliestFinish)),
    ("**Tidegate**, first in first out", Policy::Strict),
    ("**Tidegate**, earliest deadline first", Policy::Deadline),
    ("", Policy::Deadline),
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
    println!("Four unequal backends, requests that come at random, each with a deadline; in virtual time; printed by `make balancing`.");
    println!("Sums over {seeds} seeds of {MINUTES} minutes each, and what was underway then.\n");
    println!("| backend | rate | burst | median of a round trip |\n|---|---|---|---|");
    for (site, name) in Site::ALL.iter().zip(["A", "B", "C", "D"]) {
        let seconds = site.median.as_nanos() as f64 / 1e9;
        println!("| {name} | {}/s | {} | {seconds} s |", site.rate, site.burst);
    }
    println!("\nRound trips are log-normal (sigma {}), half of each on the way there. A deadline is 1 to 10 s after its request came,", Scenario::SIGMA);
    println!("uniform. Any backend may serve any request.\n");
    let tables = grid(seeds);
    for (load, row) in LOADS.iter().zip(&tables) {
        print(*load, row, seeds);
    }
}

/// Every policy at every load, all seeds, on all processors.
fn grid(seeds: u64) -> Vec<Vec<Vec<Report>>> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let count = POLICIES.len() - 1;
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let cell = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&load) = LOADS.get(cell / count) else { return };
                    let policy = POLICIES[cell % count].1;
                    let reports: Vec<Report> =
                        (0..seeds).map(|seed| policy.run(Scenario { load, horizon: HORIZON, seed })).collect();
                    sender.send((cell, reports)).expect("it is read below");
                }
            });
        }
        drop(sender);
        let mut table = vec![vec![Vec::new(); count]; LOADS.len()];
        for (cell, reports) in receiver {
            table[cell / count][cell % count] = reports;
        }
        table
    })
}

fn print(load: f64, row: &[Vec<Report>], seeds: u64) {
    println!("## Load {load}\n");
    println!("| policy | let through | wait, median | wait, 99th | misses | 429s |\n|---|---|---|---|---|---|");
    for ((name, _), reports) in POLICIES.iter().zip(row) {
        let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
        let mut waits: Vec<Span> = reports.iter().flat_map(|report| report.waits.iter().copied()).collect();
        waits.sort_unstable();
        let wait = |share: f64| waits[(waits.len() as f64 * share) as usize].as_nanos() as f64 / 1e9;
        let rate = sum(|report| report.served) as f64 / (seeds * MINUTES * 60) as f64;
        let misses = 100.0 * sum(Report::misses) as f64 / sum(|report| report.requests) as f64;
        println!("| {name} | {rate:.3}/s | {:.2} s | {:.2} s | {misses:.2} % | {} |", wait(0.5), wait(0.99), sum(|report| report.rejected));
    }
    println!();
}
