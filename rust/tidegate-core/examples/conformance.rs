//! Prints what every kind of limit comes to against every kind of server: `conformance [--quick] [SEEDS] [PART]`, where a part is
//! `declared`, `undeclared` or `jitter`.
//!
//! Fails when a declared kind was rejected or fell short of what its policy could reach.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use tidegate_core::limit::{Jitter, Kind};
use tidegate_core::sim::{Case, DELAYS, Delay, Outcome, Serving, Shape};
use tidegate_core::time::Span;

/// Of what the policy of a declared kind could reach, at least.
const DECLARED: f64 = 0.995;
/// The same of the policy that an undeclared one has settled at.
const UNDECLARED: f64 = 0.95;
/// Rejections until then, above the messages in flight at the first one.
const MORE: u64 = 10;

fn main() -> ExitCode {
    let (mut seeds, mut part) = (20, None);
    for argument in std::env::args().skip(1) {
        match (argument.as_str(), argument.parse()) {
            ("--quick", _) => seeds = 1,
            (_, Ok(number)) => seeds = number,
            ("declared" | "undeclared" | "jitter", _) => part = Some(argument),
            _ => panic!("{argument}: neither a number of seeds nor a part: declared, undeclared, jitter"),
        }
    }
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    println!("# Conformance\n");
    println!(
        "Seven strict servers against a client that always has something to send, in virtual time; printed by `make conformance`."
    );
    println!("Worst of {seeds} seeds; each runs for ten minutes, but at least four periods (undeclared: eight).\n");
    println!(
        "Lines: a constant 80 ms to the server; 0-80 ms to the server, uniform; 25-65 ms each way, uniform; heavy tail: each way 10 ms +"
    );
    println!("30 ms * exp(N(0, 1)). Aligned windows are known to 5 ms, and their phase differs by seed.");
    println!("What comes of other limiters on this grid is in [conformance of peers](conformance-peers.md).");
    let mut conforms = !wanted("declared") || declared(seeds);
    for (title, tells, counts_rejected) in [
        ("no `Retry-After`", false, false),
        ("an exact `Retry-After`", true, false),
        ("no `Retry-After`, and rejected messages count", false, true),
        ("an exact `Retry-After`, and rejected messages count", true, true),
    ] {
        if wanted("undeclared") {
            undeclared(title, tells, counts_rejected, seeds);
        }
    }
    conforms &= !wanted("jitter") || credited(seeds);
    if conforms { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn rows() -> Vec<(Serving, Shape)> {
    let shapes = |serving: Serving| if serving == Serving::Concurrency { &Shape::ALL[..1] } else { &Shape::ALL[..] };
    Serving::ALL.into_iter().flat_map(|serving| shapes(serving).iter().map(move |&shape| (serving, shape))).collect()
}

/// Every line of every row, `seeds` times, on all processors.
fn grid(
    rows: &[(Serving, Shape)],
    lines: &[(&str, Delay)],
    seeds: u64,
    case: impl Fn(Case) -> Case + Sync,
) -> Vec<Vec<Vec<Outcome>>> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (sender, next, case) = (sender.clone(), &next, &case);
            scope.spawn(move || {
                loop {
                    let cell = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(serving, shape)) = rows.get(cell / lines.len()) else { return };
                    let delay = lines[cell % lines.len()].1;
                    let jitter = Jitter::None;
                    let case =
                        case(Case { serving, shape, delay, jitter, is_declared: true, tells: false, counts_rejected: false });
                    let outcomes: Vec<Outcome> = (0..seeds).map(|seed| case.run(seed)).collect();
                    sender.send((cell, outcomes)).expect("it is read below");
                }
            });
        }
        drop(sender);
        let mut table = vec![vec![Vec::new(); lines.len()]; rows.len()];
        for (cell, outcomes) in receiver {
            table[cell / lines.len()][cell % lines.len()] = outcomes;
        }
        table
    })
}

fn print(rows: &[(Serving, Shape)], lines: &[(&str, Delay)], cells: &[Vec<String>]) {
    println!("| server | limit | {} |", lines.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" | "));
    println!("|---|---|{}", "---|".repeat(lines.len()));
    for ((serving, shape), cells) in rows.iter().zip(cells) {
        let text = if *serving == Serving::Concurrency { "32 at once, 50 ms each" } else { shape.text };
        println!("| {serving} | {text} | {} |", cells.join(" | "));
    }
}

fn least(outcomes: &[Outcome], share: impl Fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(share).fold(f64::INFINITY, f64::min)
}

fn percent(share: f64) -> String {
    // Rounded down: 99.5 is at least that.
    format!("{:.1}", (share * 1000.0).floor() / 10.0)
}

/// Whether all cells are as required.
fn declared(seeds: u64) -> bool {
    println!("\n## Declared kinds\n");
    println!(
        "Messages let through in % of what the policy can reach on that line (`limit::bound`), and in brackets of what a perfect client"
    );
    println!(
        "gets through; then rejections, if there were any. Required: no rejection, and 99.5 % of what the policy can reach.\n"
    );
    let rows = rows();
    let (mut cells, mut short, mut rejected) = (0, 0, 0);
    let mut cell = |outcomes: &Vec<Outcome>| {
        let rejections: u64 = outcomes.iter().map(|outcome| outcome.report.rejected).sum();
        let share = least(outcomes, Outcome::of_reachable);
        cells += 1;
        short += usize::from(share < DECLARED);
        rejected += rejections;
        let mark = if share < DECLARED { " below" } else { "" };
        let rejections = if rejections > 0 { format!(", {rejections} rejected") } else { String::new() };
        format!("{} ({}){mark}{rejections}", percent(share), percent(least(outcomes, Outcome::of_allowed)))
    };
    let table = grid(&rows, &DELAYS, seeds, |case| case);
    let table: Vec<Vec<String>> = table.iter().map(|row| row.iter().map(&mut cell).collect()).collect();
    print(&rows, &DELAYS, &table);
    println!("\n{} of {cells} cells reach 99.5 %; {rejected} rejections in all.", cells - short);
    short == 0 && rejected == 0
}

fn undeclared(title: &str, tells: bool, counts_rejected: bool, seeds: u64) {
    println!("\n## Undeclared kinds, {title}\n");
    println!(
        "Rejections until the ladder has settled / messages in flight at the first one, what the limits are treated as in the end, and what"
    );
    println!(
        "is let through from then on, in % of what those policies can reach. Goals: at most {MORE} rejections more than were in flight, and"
    );
    println!(
        "{} %. A seed may end on another rung than the one named, which is that of the seed with the most rejections.\n",
        UNDECLARED * 100.0
    );
    let rows: Vec<_> = rows().into_iter().filter(|(serving, _)| *serving != Serving::Concurrency).collect();
    let (mut cells, mut many, mut short) = (0, 0, 0);
    let mut cell = |outcomes: &Vec<Outcome>| {
        let share = least(outcomes, Outcome::of_reachable_since);
        let more = |outcome: &&Outcome| outcome.report.rejected as i64 - outcome.report.in_flight_then as i64;
        let worst = outcomes.iter().max_by_key(|outcome| (more(outcome), outcome.report.rejected)).expect("a seed");
        let over = more(&worst) > MORE as i64;
        cells += 1;
        many += usize::from(over);
        short += usize::from(share < UNDECLARED);
        let kinds: Vec<String> = worst.treated_as.iter().map(|limit| name(limit.kind())).collect();
        let to = if worst.report.steps.is_empty() { String::new() } else { format!(" {}", kinds.join(" + ")) };
        let marks = [(over, " many"), (share < UNDECLARED, " below")].map(|(holds, mark)| if holds { mark } else { "" }).concat();
        let (share, of_allowed) = (percent(share), percent(least(outcomes, Outcome::of_allowed)));
        format!("{}/{}{to} {share} ({of_allowed}){marks}", worst.report.rejected, worst.report.in_flight_then)
    };
    let table = grid(&rows, &DELAYS, seeds, |case| Case { is_declared: false, tells, counts_rejected, ..case });
    let table: Vec<Vec<String>> = table.iter().map(|row| row.iter().map(&mut cell).collect()).collect();
    print(&rows, &DELAYS, &table);
    println!("\n{} of {cells} cells meet the goal for rejections, {} the one for use.", cells - many, cells - short);
}

/// Whether no client was rejected that knows its line.
fn credited(seeds: u64) -> bool {
    println!("\n## Jitter credit\n");
    println!(
        "Messages let through in % of what a perfect client gets through, for declared kinds: on acknowledgements alone; where it is known by"
    );
    println!(
        "how much the ways to the server differ (a heavy tail has no bound); with `auto`, which finds that out. Then rejections, if there were any."
    );
    println!("The last line takes 120 ms to the server for a thousand messages, then 40 ms for a thousand, and so on.\n");
    let jumping = Delay::Jumping(Span::from_millis(40), Span::from_millis(120));
    let lines: Vec<(&str, Delay)> = DELAYS.into_iter().chain([("jumps", jumping)]).collect();
    let serving = |row: &(Serving, Shape)| {
        let (serving, shape) = row;
        match serving {
            Serving::Log => shape.burst.is_none(),
            Serving::TokenBucket => shape.burst.is_some(),
            Serving::Gcra => shape.burst.is_none(),
            Serving::Counter => true,
            _ => false,
        }
    };
    let rows: Vec<_> = rows().into_iter().filter(serving).collect();
    let modes =
        [|_: Case| Jitter::None, |case: Case| case.delay.jitter().map_or(Jitter::None, Jitter::Known), |_: Case| Jitter::Auto];
    let tables = modes.map(|mode| grid(&rows, &lines, seeds, |case| Case { jitter: mode(case), ..case }));
    let mut rejected = [0; 3];
    let mut cell = |row: usize, line: usize| {
        let mut mode = |mode: usize| {
            let outcomes: &Vec<Outcome> = &tables[mode][row][line];
            let rejections: u64 = outcomes.iter().map(|outcome| outcome.report.rejected).sum();
            rejected[mode] += rejections;
            let share = percent(least(outcomes, Outcome::of_allowed));
            if rejections > 0 { format!("{share} ({rejections} rejected)") } else { share }
        };
        let known = if lines[line].1.jitter().is_some() { mode(1) } else { "-".to_owned() };
        format!("{} / {known} / {}", mode(0), mode(2))
    };
    let table: Vec<Vec<String>> = (0..rows.len()).map(|row| (0..lines.len()).map(|line| cell(row, line)).collect()).collect();
    print(&rows, &lines, &table);
    let [none, known, auto] = rejected;
    println!("\nRejections in all: {none} without, {known} with a known bound, {auto} with `auto`.");
    none + known == 0
}

fn name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}
