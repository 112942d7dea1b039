//! What it takes to know when a million targets are due, each once a second: `collector [targets] [seconds]` prints processor seconds of one
//! core, the polls, and how late they were, as a line of JSON. Each poll ends as it begins, so that nothing but the schedule is measured.

use std::env::args;
use std::fs::read_to_string;
use std::thread::sleep;
use std::time::{Duration, Instant as Clock};

use tidegate_core::collector::{Collector, Ended, Overrun};
use tidegate_core::time::{Instant, Span};

/// As often as a loop's timer can fire.
const TICK: Duration = Duration::from_millis(1);

/// Seconds of processor time of this process, as Linux counts them.
fn processor() -> f64 {
    let stat = read_to_string("/proc/self/schedstat").expect("Linux counts processor time of a thread");
    stat.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).expect("nanoseconds come first") / 1e9
}

#[expect(clippy::print_stdout, reason = "it is a program")]
fn main() {
    let mut given = args().skip(1).map(|number| number.parse::<u64>().expect("a number"));
    let (targets, seconds) = (given.next().unwrap_or(1_000_000), given.next().unwrap_or(10));
    let mut collector = Collector::new(Overrun::Coalesce, true);
    for key in 0..targets {
        collector.add(Instant::ORIGIN, key, Span::from_secs(1)).expect("keys differ");
    }
    let origin = Clock::now();
    let now = || Instant::from_nanos(origin.elapsed().as_nanos() as u64);
    // Sorting a million targets takes a while; what falls due meanwhile would be late.
    collector.start(now() + Span::from_secs(2), 0);
    let before = processor();
    let begun = now();
    let end = begun + Span::from_secs(seconds);
    while now() < end {
        sleep(TICK);
        let now = now();
        while let Some(poll) = collector.take_due(now) {
            collector.ended(now, poll.target, Ended::Delivered, now.since(poll.planned));
        }
    }
    let used = processor() - before;
    let spent = now().since(begun).as_nanos() as f64 / 1e9;
    let (counts, lag) = (collector.statistics().counts(), collector.statistics().lag());
    let millis = |span: Span| span.as_nanos() as f64 / 1e6;
    println!(
        r#"{{"targets": {targets}, "share": {:.4}, "polls": {}, "coalesced": {}, "lag_p50_ms": {:.3}, "lag_p99_ms": {:.3}, "lag_max_ms": {:.3}}}"#,
        used / spent,
        counts.delivered,
        counts.coalesced,
        millis(lag.p50),
        millis(lag.p99),
        millis(lag.max),
    );
}
