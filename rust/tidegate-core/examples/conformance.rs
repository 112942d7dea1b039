//! Prints what every kind of limit comes to against every kind of server: `conformance [--quick] [SEEDS]`.
#![allow(clippy::print_stdout)]

use tidegate_core::sim::{Case, DELAYS, Outcome, Serving, Shape};

fn main() {
    let mut seeds = 20;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => seeds = 1,
            number => seeds = number.parse().expect("a number of seeds"),
        }
    }
    println!("# Conformance\n");
    println!(
        "Seven strict servers against a client that always has something to send, in virtual time; printed by `make conformance`."
    );
    println!("Worst of {seeds} seeds; each runs for ten minutes, but at least four periods (undeclared: eight).\n");
    println!(
        "Lines: a constant 80 ms to the server; 0-80 ms to the server, uniform; 25-65 ms each way, uniform; heavy tail: each way 10 ms +"
    );
    println!("30 ms * exp(N(0, 1)). Aligned windows are known to 5 ms, and their phase differs by seed.");
    declared(seeds);
    for (title, tells, counts_rejected) in [
        ("no `Retry-After`", false, false),
        ("an exact `Retry-After`", true, false),
        ("no `Retry-After`, and rejected messages count", false, true),
    ] {
        undeclared(title, tells, counts_rejected, if tells || counts_rejected { seeds.min(5) } else { seeds });
    }
}

fn case(serving: Serving, shape: Shape, line: usize) -> Case {
    Case { serving, shape, delay: DELAYS[line].1, is_declared: true, tells: false, counts_rejected: false }
}

fn rows() -> impl Iterator<Item = (Serving, Shape)> {
    let shapes = |serving: &Serving| if *serving == Serving::Concurrency { &Shape::ALL[..1] } else { &Shape::ALL[..] };
    Serving::ALL.into_iter().flat_map(move |serving| shapes(&serving).iter().map(move |&shape| (serving, shape)))
}

fn heading() {
    let names: Vec<&str> = DELAYS.iter().map(|(name, _)| *name).collect();
    println!("| server | limit | {} |", names.join(" | "));
    println!("|---|---|{}", "---|".repeat(names.len()));
}

fn print(serving: Serving, shape: Shape, cells: &[String]) {
    let text = if serving == Serving::Concurrency { "32 at once, 50 ms each" } else { shape.text };
    println!("| {serving} | {text} | {} |", cells.join(" | "));
}

fn least(outcomes: &[Outcome], share: impl Fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(share).fold(f64::INFINITY, f64::min)
}

fn percent(share: f64) -> String {
    // Rounded down: 99.5 is at least that.
    format!("{:.1}", (share * 1000.0).floor() / 10.0)
}

fn declared(seeds: u64) {
    println!("\n## Declared kinds\n");
    println!(
        "Messages let through in % of the bound of the policy (a message in flight occupies its unit: `limit::bound::reachable`), and in brackets"
    );
    println!(
        "of what a perfect client gets through (`allowed`); then rejections, if there were any. Required: no rejection, and 99.5 % of the bound.\n"
    );
    heading();
    let (mut cells, mut short, mut rejected) = (0, 0, 0);
    for (serving, shape) in rows() {
        let row: Vec<String> = (0..DELAYS.len())
            .map(|line| {
                let outcomes: Vec<Outcome> = (0..seeds).map(|seed| case(serving, shape, line).run(seed)).collect();
                let rejections: u64 = outcomes.iter().map(|outcome| outcome.report.rejected).sum();
                let share = least(&outcomes, Outcome::of_reachable);
                cells += 1;
                short += usize::from(share < 0.995);
                rejected += rejections;
                let mark = if share < 0.995 { " below" } else { "" };
                let rejections = if rejections > 0 { format!(", {rejections} rejected") } else { String::new() };
                format!("{} ({}){mark}{rejections}", percent(share), percent(least(&outcomes, Outcome::of_allowed)))
            })
            .collect();
        print(serving, shape, &row);
    }
    println!("\n{} of {cells} cells reach 99.5 % of the bound; {rejected} rejections in all.", cells - short);
}

fn undeclared(title: &str, tells: bool, counts_rejected: bool, seeds: u64) {
    println!("\n## Undeclared kinds, {title}\n");
    println!(
        "Rejections until the ladder has settled / messages in flight at the first one, what the limit is treated as in the end, and what is let"
    );
    println!(
        "through from then on, in % of the bound of the declared kind. Goals: at most ten more than were in flight, and 95 %. Worst of {seeds} seeds.\n"
    );
    heading();
    let (mut cells, mut many, mut short) = (0, 0, 0);
    for (serving, shape) in rows().filter(|(serving, _)| *serving != Serving::Concurrency) {
        let row: Vec<String> = (0..DELAYS.len())
            .map(|line| {
                let case = Case { is_declared: false, tells, counts_rejected, ..case(serving, shape, line) };
                let outcomes: Vec<Outcome> = (0..seeds).map(|seed| case.run(seed)).collect();
                let share = least(&outcomes, Outcome::of_reachable_since);
                let worst = outcomes.iter().max_by_key(|outcome| outcome.report.rejected).expect("a seed");
                let over = outcomes.iter().any(|outcome| outcome.report.rejected > outcome.report.in_flight_then + 10);
                cells += 1;
                many += usize::from(over);
                short += usize::from(share < 0.95);
                let to = worst.report.steps.last().map_or(String::new(), |(_, kind)| format!(" {kind:?}").to_lowercase());
                let marks =
                    [(over, " many"), (share < 0.95, " below")].map(|(holds, mark)| if holds { mark } else { "" }).concat();
                format!("{}/{}{to} {}{marks}", worst.report.rejected, worst.report.in_flight_then, percent(share))
            })
            .collect();
        print(serving, shape, &row);
    }
    println!("\n{} of {cells} cells meet the goal for rejections, {} the one for use.", cells - many, cells - short);
}
