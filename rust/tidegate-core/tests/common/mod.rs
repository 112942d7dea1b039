//! What these tests share. Each of them uses a part.
#![allow(dead_code)]

use proptest::prelude::*;
use tidegate_core::engine::{BackendId, ClassId};
use tidegate_core::engine::{BackendSpec, ColdStart, Engine, Flags, Handle, Leased, Options, Spends, Submission};
use tidegate_core::limit::Limit;
use tidegate_core::queue::Order;
use tidegate_core::retry::Retry;
use tidegate_core::time::{Instant, Span};

pub(crate) mod servers;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1000 * MS;
/// The resolution of the engine's timers: at multiples of it they are exact.
pub(crate) const TICK: u64 = 1 << 16;

pub(crate) fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

/// As many cases as `PROPTEST_CASES` says, else `cases`.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").map_or(cases, |text| text.parse().unwrap()),
        ..ProptestConfig::default()
    }
}

/// Up to `attempts` at once, each after a backoff of at most `base`; the budget holds none of the few of a test back.
pub(crate) fn retry(attempts: u32, base: Span) -> Retry {
    Retry { attempts, base, cap: Span::from_secs(60), budget_milli: 1_000_000 }
}

pub(crate) fn engine(retry: Retry) -> Engine {
    engine_in_order(Order::Strict, retry)
}

pub(crate) fn engine_in_order(order: Order, retry: Retry) -> Engine {
    Engine::new(&Options { capacity: 1_000_000, order, retry, seed: 1 }, Instant::ORIGIN)
}

pub(crate) fn spec(limits: &[Limit], concurrency: Option<u32>) -> BackendSpec {
    BackendSpec {
        limits: limits.to_vec(),
        scoped: Vec::new(),
        concurrency,
        spends: Spends::Own(1),
        timeout: None,
        weight: 1.0,
        cold_start: ColdStart::AssumeEmpty,
    }
}

pub(crate) const NORMAL: u8 = 128;

/// A request of normal priority with no end.
pub(crate) fn plain(class: ClassId) -> Submission<'static> {
    Submission {
        class,
        priority: NORMAL,
        deadline: Instant::FAR,
        not_before: Instant::ORIGIN,
        flow: "",
        scopes: &[],
        flags: Flags::default(),
    }
}

/// Reserves a place and submits.
pub(crate) fn submit(engine: &mut Engine, now: Instant, submission: &Submission<'_>) -> Handle {
    assert_eq!(engine.room().reserve(1), 1);
    engine.submit(now, submission)
}

/// An engine with one backend, and the class of those that cost 1 there.
pub(crate) fn single(retry: Retry, spec: &BackendSpec) -> (Engine, BackendId, ClassId) {
    let mut engine = engine(retry);
    let backend = engine.add_backend(Instant::ORIGIN, spec);
    let class = engine.class(Instant::ORIGIN, &[backend], 1).unwrap();
    (engine, backend, class)
}

/// All that can go now.
pub(crate) fn take_all(engine: &mut Engine, now: Instant) -> Vec<Leased> {
    std::iter::from_fn(|| engine.take(now)).collect()
}

/// Follows the wake-ups until something can go.
pub(crate) fn wait(engine: &mut Engine, mut now: Instant) -> (Instant, Leased) {
    loop {
        if let Some(leased) = engine.take(now) {
            return (now, leased);
        }
        now = engine.next_wake().expect("nothing will ever go");
    }
}
