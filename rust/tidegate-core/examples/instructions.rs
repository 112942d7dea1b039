//! A load for an instruction counter: `instructions <operation> <count>`. See `bench/instructions.sh`, which runs it at two counts and takes
//! the difference.

use std::env;
use std::hint::black_box;
use std::process::ExitCode;

use tidegate_core::engine::{
    Answer, BackendId, BackendSpec, ClassId, ColdStart, Engine, Finished, Flags, Leased, Options, Outcome, Spends, Submission,
};
use tidegate_core::limit::Limit;
use tidegate_core::queue::Order;
use tidegate_core::retry::Retry;
use tidegate_core::route::Adaptive;
use tidegate_core::time::{Instant, Span};

/// Attempts at once.
const AT_ONCE: u32 = 64;
/// A limit that never holds anything back.
const UNREACHED: u32 = 1_000_000_000;
/// The clock moves by this much with every call.
const STEP: Span = Span::from_nanos(300);

struct Load {
    engine: Engine,
    class: ClassId,
    now: Instant,
}

impl Load {
    fn new(backends: usize, limits: usize) -> Load {
        let options = Options {
            capacity: usize::MAX / 2,
            order: Order::Strict,
            retry: Retry { attempts: 4, base: Span::from_millis(500), cap: Span::from_secs(60), budget_milli: 100 },
            seed: 1,
        };
        let now = Instant::ORIGIN;
        let mut engine = Engine::new(&options, now);
        let all = [Limit::window(UNREACHED, Span::from_secs(1)), Limit::bucket(UNREACHED, Span::from_secs(1), UNREACHED)];
        let spec = BackendSpec {
            limits: all.into_iter().take(limits).collect::<Result<_, _>>().expect("valid limits"),
            concurrency: Some(AT_ONCE),
            scoped: Vec::new(),
            spends: Spends::Own(1),
            timeout: Some(Span::from_secs(60)),
            weight: 1.0,
            cold_start: ColdStart::AssumeEmpty,
        };
        let ids: Vec<BackendId> = (0..backends).map(|_| engine.add_backend(Instant::ORIGIN, &spec)).collect();
        let class = engine.class(now, &ids, 1).expect("the backends admit a cost of 1");
        Load { engine, class, now }
    }

    fn adaptive(mut self) -> Load {
        self.engine.balance(Box::new(Adaptive));
        self
    }

    fn submit(&mut self, timeout: Option<Span>, held: bool) {
        self.now = self.now + STEP;
        assert_eq!(self.engine.room().reserve(1), 1);
        let deadline = timeout.map_or(Instant::FAR, |timeout| self.now + timeout);
        let flags = Flags { held, ..Flags::default() };
        black_box(self.engine.submit(
            self.now,
            &Submission { class: self.class, priority: 128, deadline, not_before: Instant::ORIGIN, flow: "", scopes: &[], flags },
        ));
    }

    fn submit_all(&mut self, count: u32, timeout: Option<Span>, held: bool) {
        for _ in 0..count {
            self.submit(timeout, held);
        }
    }

    /// Takes and finishes all that waits, with 64 attempts running at any time; what each was.
    fn drain(&mut self, outcome: Outcome) {
        let mut running = Vec::with_capacity(AT_ONCE as usize);
        let mut next = 0;
        while let Some(leased) = self.take() {
            running.push(leased);
            if running.len() == AT_ONCE as usize {
                let done: Leased = running.swap_remove(next % AT_ONCE as usize);
                next += 7;
                self.finish(&done, outcome);
            }
        }
        for leased in running {
            self.finish(&leased, outcome);
        }
    }

    fn take(&mut self) -> Option<Leased> {
        self.now = self.now + STEP;
        black_box(self.engine.take(self.now))
    }

    fn finish(&mut self, leased: &Leased, outcome: Outcome) {
        let finished = black_box(self.engine.finish(self.now, leased.lease, outcome, Answer::default(), false));
        if let Finished::Done { .. } = finished {
            self.engine.deliver(leased.request);
        }
    }
}

fn run(operation: &str, count: u32) -> Option<()> {
    let minute = Some(Span::from_secs(60));
    let (mut load, timeout, held, outcome) = match operation {
        "submit" | "cycle" => (Load::new(1, 1), None, false, Outcome::Ok),
        "submit-timeout" | "cycle-timeout" => (Load::new(1, 1), minute, false, Outcome::Ok),
        "cycle-held" => (Load::new(1, 1), None, true, Outcome::Ok),
        "cycle-two-limits" => (Load::new(1, 2), None, false, Outcome::Ok),
        "cycle-three-backends" => (Load::new(3, 1), None, false, Outcome::Ok),
        "cycle-adaptive" => (Load::new(1, 1).adaptive(), None, false, Outcome::Ok),
        "cycle-adaptive-timeout" => (Load::new(1, 1).adaptive(), minute, false, Outcome::Ok),
        "cycle-three-adaptive" => (Load::new(3, 1).adaptive(), None, false, Outcome::Ok),
        "cycle-three-adaptive-timeout" => (Load::new(3, 1).adaptive(), minute, false, Outcome::Ok),
        "cycle-dead" => (Load::new(1, 1), None, false, Outcome::Neutral),
        _ => return None,
    };
    load.submit_all(count, timeout, held);
    if operation.starts_with("cycle") {
        load.drain(outcome);
        assert!(load.engine.is_idle());
    }
    Some(())
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let operation = arguments.next().unwrap_or_default();
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(0);
    if run(&operation, count).is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
