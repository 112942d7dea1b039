//! Loads with limits by scope: `scopes dispatch <strict|fair> <hosts> <accounts> <count>` for an instruction counter, and
//! `scopes memory <bucket|window> <hosts>`, which prints how many bytes the state of a host takes. See `bench/instructions.sh`.

use std::env;
use std::fs;
use std::hint::black_box;
use std::io::{self, Write};
use std::process::ExitCode;

use tidegate_core::engine::{
    Answer, BackendSpec, ClassId, ColdStart, Engine, Flags, Leased, Options, Outcome, ScopedLimits, Spends, Submission,
};
use tidegate_core::limit::Limit;
use tidegate_core::queue::Order;
use tidegate_core::retry::Retry;
use tidegate_core::time::{Instant, Span};

/// Dispatches that there are requests for, besides one of each host.
const MOST: usize = 12_000;
/// Each host takes one message in this time from each account.
const PERIOD: Span = Span::from_secs(10);
/// On Linux on most machines.
const PAGE: usize = 4096;

struct Load {
    engine: Engine,
    class: ClassId,
    now: Instant,
}

impl Load {
    fn new(order: Order, accounts: u32, limit: Limit) -> Load {
        let options = Options {
            capacity: usize::MAX / 2,
            order,
            retry: Retry { attempts: 4, base: Span::from_millis(500), cap: Span::from_secs(60), budget_milli: 100 },
            seed: 1,
        };
        let now = Instant::ORIGIN;
        let mut engine = Engine::new(&options, now);
        let spec = BackendSpec {
            limits: vec![Limit::bucket(1_000_000_000, Span::from_secs(1), 1_000_000_000).expect("a valid limit")],
            concurrency: None,
            scoped: vec![ScopedLimits { scope: "host".into(), limits: vec![limit] }],
            spends: Spends::Own(accounts),
            timeout: Some(Span::from_secs(60)),
            weight: 1.0,
            cold_start: ColdStart::AssumeEmpty,
        };
        let id = engine.add_backend(now, &spec);
        let class = engine.class(now, &[id], 1).expect("the backend admits a cost of 1");
        Load { engine, class, now }
    }

    fn submit(&mut self, host: usize) {
        assert_eq!(self.engine.room().reserve(1), 1);
        let name = format!("host-{host:07}.example.org");
        let scopes = [("host", name.as_str())];
        let flags = Flags::default();
        let submission = Submission {
            class: self.class,
            priority: 128,
            deadline: Instant::FAR,
            not_before: self.now,
            flow: "",
            scopes: &scopes,
            flags,
        };
        black_box(self.engine.submit(self.now, &submission));
    }

    fn take(&mut self) -> Option<Leased> {
        black_box(self.engine.take(self.now))
    }

    fn finish(&mut self, leased: &Leased) {
        black_box(self.engine.finish(self.now, leased.lease, Outcome::Ok, Answer::default(), false));
    }
}

/// All hosts have requests waiting, and one host after the other gets room for one: each has been sent one before the others are counted.
fn dispatch(order: Order, hosts: usize, accounts: u32, count: usize) {
    let mut load = Load::new(order, accounts, Limit::bucket(1, PERIOD, 1).expect("a valid limit"));
    for _ in 0..MOST / hosts + 2 {
        for host in 0..hosts {
            load.submit(host);
        }
    }
    let pause = Span::from_nanos(PERIOD.as_nanos() / hosts as u64);
    let mut done = 0;
    while done < hosts + count {
        load.now = load.now + pause;
        if let Some(leased) = load.take() {
            load.finish(&leased);
            done += 1;
        }
    }
}

/// Each host is sent one message: it has a state, and nothing waits for it.
fn memory(hosts: usize, limit: Limit) -> io::Result<usize> {
    let mut load = Load::new(Order::Strict, 1, limit);
    // What there is one of, and what a request leaves behind, is not counted.
    load.submit(0);
    let first = load.take().expect("nothing is in its way");
    load.finish(&first);
    let before = resident()?;
    for host in 1..=hosts {
        load.submit(host);
        let leased = load.take().expect("nothing is in its way");
        load.finish(&leased);
    }
    assert_eq!(load.engine.scopes(), hosts + 1);
    Ok((resident()? - before) / hosts)
}

/// Bytes of this process that are in memory.
fn resident() -> io::Result<usize> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.map(|pages| pages * PAGE).ok_or_else(|| io::Error::other("/proc/self/statm has no second field"))
}

fn main() -> io::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |nth: usize| arguments.get(nth).and_then(|text| text.parse::<u32>().ok()).unwrap_or(1);
    match arguments[..] {
        ["dispatch", order, ..] => {
            let order = if order == "fair" { Order::Fair(Vec::new()) } else { Order::Strict };
            dispatch(order, number(2) as usize, number(3), number(4) as usize);
        }
        ["memory", kind, ..] => {
            let hour = Span::from_secs(3600);
            let limit = if kind == "window" { Limit::window(10, hour) } else { Limit::bucket(10, hour, 10) };
            writeln!(io::stdout(), "{}", memory(number(2) as usize, limit.expect("a valid limit"))?)?;
        }
        _ => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}
