//! Accounts of one backend, and backends that share theirs: who is charged, who is blocked, who goes first.

mod common;

use common::{MS, SECOND, TICK, at, cases, engine, plain, retry, spec, submit, take_all};
use proptest::prelude::*;
use tidegate_core::engine::{
    Answer, BackendId, BackendSpec, BackendState, ClassId, Engine, Event, Leased, Outcome, ScopedLimits, Spends, Submission,
};
use tidegate_core::limit::{Eligible, Limit, Margin, Quota};
use tidegate_core::time::{Instant, Span};

const OK: Answer = Answer { status: Some(200), retry_after: None, is_local: false };
const REJECTED: Answer = Answer { status: Some(429), retry_after: None, is_local: false };

fn window(amount: u32, seconds: u64) -> Limit {
    Limit::window(amount, Span::from_secs(seconds)).unwrap()
}

fn own(count: u32, limits: &[Limit], concurrency: Option<u32>) -> BackendSpec {
    BackendSpec { spends: Spends::Own(count), ..spec(limits, concurrency) }
}

fn shared(with: BackendId, limits: &[Limit], concurrency: Option<u32>) -> BackendSpec {
    BackendSpec { spends: Spends::Shared(with), ..spec(limits, concurrency) }
}

fn of(specs: &[BackendSpec]) -> (Engine, Vec<BackendId>) {
    let mut engine = engine(retry(1, Span::ZERO));
    let backends = specs.iter().map(|spec| engine.add_backend(Instant::ORIGIN, spec)).collect();
    (engine, backends)
}

fn class(engine: &mut Engine, backends: &[BackendId], cost: u32) -> ClassId {
    engine.class(Instant::ORIGIN, backends, cost).unwrap()
}

fn accounts(leased: &[Leased]) -> Vec<u32> {
    leased.iter().map(|leased| leased.account).collect()
}

fn used(engine: &Engine, backend: BackendId, now: u64) -> Vec<u32> {
    engine.status(backend, at(now)).limits().map(|(_, usage)| usage.used).collect()
}

#[test]
fn each_account_has_the_quota_to_itself_and_the_least_busy_goes_first() {
    let (mut engine, backends) = of(&[own(3, &[window(2, 1)], None)]);
    let any = class(&mut engine, &backends, 1);
    for _ in 0..7 {
        submit(&mut engine, at(0), &plain(any));
    }
    let running = take_all(&mut engine, at(0));
    assert_eq!(accounts(&running), [0, 1, 2, 0, 1, 2]);
    assert_eq!(used(&engine, backends[0], 0), [2, 2, 2]);
    engine.finish(at(0), running[4].lease, Outcome::Ok, OK, false);
    assert!(engine.take(at(0)).is_none());
    let second = engine.next_wake().unwrap();
    assert_eq!(accounts(&take_all(&mut engine, second)), [1]);
}

#[test]
fn a_rejection_closes_one_account_only() {
    let (mut engine, backends) = of(&[own(2, &[window(2, 1)], None)]);
    let any = class(&mut engine, &backends, 1);
    for _ in 0..4 {
        submit(&mut engine, at(0), &plain(any));
    }
    let first = engine.take(at(0)).unwrap();
    engine.ack(at(0), first.lease, REJECTED);
    assert!(matches!(engine.pop_event(), Some(Event::LimitClosed { backend: BackendId(0), .. })));
    assert_eq!(engine.status(backends[0], at(0)).state(), BackendState::Open);
    assert_eq!(accounts(&take_all(&mut engine, at(0))), [1, 1]);
    assert!(matches!(engine.status(backends[0], at(0)).state(), BackendState::Limited(None)), "the other one waits for headers");
}

#[test]
fn backends_that_share_an_account_share_its_limits_concurrency_and_closure() {
    let limits = [window(3, 1)];
    let (mut engine, backends) = of(&[own(1, &limits, Some(2)), shared(BackendId(0), &limits, Some(2))]);
    let classes: Vec<ClassId> = backends.iter().map(|&backend| class(&mut engine, &[backend], 1)).collect();
    for _ in 0..2 {
        for &class in &classes {
            submit(&mut engine, at(0), &plain(class));
        }
    }
    let running = take_all(&mut engine, at(0));
    assert_eq!(
        running.iter().map(|leased| leased.backend.0).collect::<Vec<_>>(),
        [0, 1],
        "in the order of submission, two at once"
    );
    assert_eq!(engine.status(backends[1], at(0)).state(), BackendState::Full);
    engine.finish(at(0), running[0].lease, Outcome::Ok, OK, false);
    let third = take_all(&mut engine, at(0));
    assert_eq!(third.len(), 1);
    assert_eq!((used(&engine, backends[0], 0), used(&engine, backends[1], 0)), (vec![3], vec![3]));
    engine.finish(at(0), running[1].lease, Outcome::Limited, REJECTED, false);
    for &backend in &backends {
        assert!(matches!(engine.status(backend, at(0)).state(), BackendState::Closed(_)), "a group closes together");
    }
}

#[test]
fn a_large_cost_keeps_an_account_until_it_fits_and_goes_elsewhere_when_that_is_sooner() {
    let (mut engine, backends) = of(&[own(2, &[window(4, 1)], None)]);
    let (small, large) = (class(&mut engine, &backends, 1), class(&mut engine, &backends, 4));
    for _ in 0..2 {
        submit(&mut engine, at(0), &plain(small));
    }
    let small_ones = take_all(&mut engine, at(0));
    assert_eq!(accounts(&small_ones), [0, 1]);
    submit(&mut engine, at(0), &plain(large));
    submit(&mut engine, at(0), &plain(small));
    assert!(engine.take(at(0)).is_none(), "both accounts are kept for the large one");
    engine.finish(at(0), small_ones[1].lease, Outcome::Neutral, Answer::default(), true);
    let next = take_all(&mut engine, at(0));
    assert_eq!(accounts(&next), [1, 0], "the large one goes where nothing was sent, and the small one where it was kept out");
}

#[test]
fn a_more_urgent_head_of_another_backend_lifts_what_is_kept_on_their_account() {
    let limits = [window(4, 1)];
    let (mut engine, backends) = of(&[own(1, &limits, None), shared(BackendId(0), &limits, None)]);
    let (small, large) = (class(&mut engine, &backends[1..], 1), class(&mut engine, &backends[..1], 4));
    submit(&mut engine, at(0), &plain(small));
    assert!(engine.take(at(0)).is_some());
    submit(&mut engine, at(0), &plain(large));
    submit(&mut engine, at(0), &plain(small));
    assert!(engine.take(at(0)).is_none());
    let urgent = submit(&mut engine, at(0), &tidegate_core::engine::Submission { priority: 0, ..plain(small) });
    assert_eq!(engine.take(at(0)).map(|leased| leased.request), Some(urgent));
    assert!(engine.take(at(0)).is_none());
}

/// What one account may do and does, written down plainly.
struct Account {
    quota: Quota,
    concurrency: usize,
    running: usize,
    failures: usize,
}

impl Account {
    fn admits(&self, now: Instant) -> bool {
        self.running < self.concurrency && self.quota.next_eligible(now, 1).eligible == Eligible::Now
    }
}

#[derive(Clone, Debug)]
enum Op {
    Submit(usize),
    Take,
    Ack(usize, bool),
    Finish(usize, bool),
    Fail(usize),
    Unsent(usize),
    Pass(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0usize..8).prop_map(Op::Submit),
        8 => Just(Op::Take),
        2 => (0usize..8, prop::bool::weighted(0.15)).prop_map(|(nth, rejected)| Op::Ack(nth, rejected)),
        4 => (0usize..8, prop::bool::weighted(0.15)).prop_map(|(nth, rejected)| Op::Finish(nth, rejected)),
        1 => (0usize..8).prop_map(Op::Unsent),
        2 => (0usize..8).prop_map(Op::Fail),
        3 => (0u64..700).prop_map(Op::Pass),
    ];
    prop::collection::vec(op, 1..120)
}

/// How many accounts of its own (0: those of the first backend), limits, concurrency.
type Declared = (u32, Vec<(u32, u64)>, u32);

fn backends() -> impl Strategy<Value = Vec<Declared>> {
    let backend = (0u32..4, prop::collection::vec((1u32..4, 1u64..3), 0..3), 1u32..4);
    prop::collection::vec(backend, 1..4)
}

proptest! {
    #![proptest_config(cases(400))]

    /// Whatever happens, an attempt goes to an account that admits it, of those of its backend to the least busy one that does;
    /// and when nothing goes, no account of a backend with work admits any.
    #[test]
    fn every_account_is_used_and_none_is_overrun(specs in backends(), ops in ops()) {
        let mut engine = engine(retry(1, Span::ZERO));
        let mut model: Vec<Account> = Vec::new();
        let mut theirs: Vec<std::ops::Range<usize>> = Vec::new();
        for (count, limits, concurrency) in &specs {
            let limits: Vec<Limit> = limits.iter().map(|&(amount, seconds)| window(amount, seconds)).collect();
            if *count == 0 && !theirs.is_empty() {
                theirs.push(theirs[0].clone());
                engine.add_backend(Instant::ORIGIN, &shared(BackendId(0), &limits, Some(*concurrency)));
            } else {
                let count = (*count).max(1);
                theirs.push(model.len()..model.len() + count as usize);
                let account = || Account { quota: Quota::new(&limits, Margin::default()), concurrency: *concurrency as usize, running: 0, failures: 0 };
                model.extend(std::iter::repeat_with(account).take(count as usize));
                engine.add_backend(Instant::ORIGIN, &own(count, &limits, Some(*concurrency)));
            }
        }
        let classes: Vec<ClassId> = (0..specs.len()).map(|id| class(&mut engine, &[BackendId(id as u16)], 1)).collect();
        let (mut now, mut waiting) = (Instant::ORIGIN, vec![0usize; specs.len()]);
        let mut running: Vec<(Leased, usize, Instant, bool)> = Vec::new();
        for op in ops {
            match op {
                Op::Submit(nth) => {
                    let id = nth % specs.len();
                    submit(&mut engine, now, &plain(classes[id]));
                    waiting[id] += 1;
                }
                Op::Pass(millis) => now = now + Span::from_millis(millis),
                Op::Take => {
                    // A timer may come a tick late.
                    let before = at(now.since(Instant::ORIGIN).as_nanos().saturating_sub(TICK));
                    let open = |account: &usize| {
                        // One that fails again and again rests, and may go or not.
                        let is_well = model[*account].failures < 5;
                        is_well && model[*account].admits(before) && model[*account].admits(now)
                    };
                    match engine.take(now) {
                        None => for (id, &waiting) in waiting.iter().enumerate() {
                            prop_assert!(waiting == 0 || !theirs[id].clone().any(|account| open(&account)), "backend {} has work and room", id);
                        },
                        Some(leased) => {
                            let id = usize::from(leased.backend.0);
                            waiting[id] -= 1;
                            let chosen = theirs[id].start + leased.account as usize;
                            prop_assert!(model[chosen].admits(now));
                            let load = |account: usize| (model[account].running + model[account].failures, account);
                            prop_assert!(theirs[id].clone().filter(open).all(|other| load(chosen) <= load(other)));
                            model[chosen].quota.send(now, 1);
                            model[chosen].running += 1;
                            running.push((leased, chosen, now, false));
                        }
                    }
                }
                Op::Ack(nth, rejected) if nth < running.len() => {
                    let (leased, account, sent, acked) = running[nth];
                    if acked {
                        continue;
                    }
                    engine.ack(now, leased.lease, if rejected { REJECTED } else { OK });
                    answered(&mut model[account], now, sent, rejected, true);
                    if rejected {
                        let (leased, account, ..) = running.swap_remove(nth);
                        engine.finish(now, leased.lease, Outcome::Neutral, Answer::default(), false);
                        model[account].running -= 1;
                    } else {
                        running[nth].3 = true;
                    }
                }
                Op::Finish(nth, rejected) if nth < running.len() => {
                    let (leased, account, sent, acked) = running.swap_remove(nth);
                    // A rejected request waits again; here it is given up, to keep the model small.
                    let rejected = rejected && !acked;
                    if rejected {
                        engine.ack(now, leased.lease, REJECTED);
                        engine.finish(now, leased.lease, Outcome::Neutral, Answer::default(), false);
                    } else {
                        engine.finish(now, leased.lease, Outcome::Ok, OK, false);
                        model[account].failures = 0;
                    }
                    answered(&mut model[account], now, sent, rejected, !acked);
                    model[account].running -= 1;
                }
                Op::Fail(nth) if nth < running.len() => {
                    let (leased, account, sent, acked) = running.swap_remove(nth);
                    engine.ack(now, leased.lease, OK);
                    engine.finish(now, leased.lease, Outcome::Failed, Answer::default(), false);
                    answered(&mut model[account], now, sent, false, !acked);
                    model[account].running -= 1;
                    model[account].failures += 1;
                }
                Op::Unsent(nth) if nth < running.len() && !running[nth].3 => {
                    let (leased, account, sent, _) = running.swap_remove(nth);
                    engine.finish(now, leased.lease, Outcome::Neutral, Answer::default(), true);
                    model[account].quota.refund(sent, 1);
                    model[account].running -= 1;
                }
                _ => {}
            }
        }
        let ledger = engine.ledger();
        prop_assert_eq!(ledger.queued as usize, waiting.iter().sum::<usize>());
        prop_assert_eq!(ledger.leased as usize, running.len());
    }
}

fn answered(account: &mut Account, now: Instant, sent: Instant, rejected: bool, first: bool) {
    if first {
        account.quota.ack(now, 1);
    }
    if rejected {
        account.quota.rejected(now, sent, None);
    } else {
        account.quota.accepted(sent);
    }
}

#[test]
fn a_retry_avoids_the_account_that_failed_while_another_has_room() {
    for scoped in [false, true] {
        let mut engine = engine(retry(3, Span::ZERO));
        let limits = if scoped { vec![] } else { vec![window(1, 60)] };
        let by_host = if scoped { vec![ScopedLimits { scope: "host".into(), limits: vec![window(1, 60)] }] } else { vec![] };
        let backend = engine.add_backend(Instant::ORIGIN, &BackendSpec { scoped: by_host, ..own(3, &limits, None) });
        let any = class(&mut engine, &[backend], 1);
        submit(&mut engine, at(0), &Submission { scopes: &[("host", "x")], ..plain(any) });
        let mut seen = Vec::new();
        for second in 0..3 {
            let now = at(second * SECOND);
            let leased = engine.take(now).unwrap();
            seen.push(leased.account);
            engine.finish(now, leased.lease, Outcome::Failed, Answer::default(), false);
        }
        assert_eq!(seen, [0, 1, 2], "by scope: {scoped}");
    }
}

#[test]
fn the_account_that_failed_is_avoided_and_not_refused() {
    let mut engine = engine(retry(2, Span::ZERO));
    let backend = engine.add_backend(Instant::ORIGIN, &own(2, &[], Some(1)));
    let any = class(&mut engine, &[backend], 1);
    submit(&mut engine, at(0), &plain(any));
    submit(&mut engine, at(0), &plain(any));
    let running = take_all(&mut engine, at(0));
    assert_eq!(accounts(&running), [0, 1]);
    engine.finish(at(SECOND), running[0].lease, Outcome::Failed, Answer::default(), false);
    assert_eq!(accounts(&take_all(&mut engine, at(2 * SECOND))), [0], "the other one is full");
}

#[test]
fn an_account_that_fails_at_once_does_not_take_all_requests() {
    let (mut engine, backends) = of(&[own(3, &[], Some(4))]);
    let any = class(&mut engine, &backends, 1);
    let mut taken = [0; 3];
    let mut running = std::collections::VecDeque::new();
    for nth in 0..300u64 {
        let now = at(nth * MS);
        submit(&mut engine, now, &plain(any));
        let leased = engine.take(now).unwrap();
        taken[leased.account as usize] += 1;
        if leased.account == 0 {
            engine.finish(now, leased.lease, Outcome::Failed, Answer::default(), false);
        } else {
            running.push_back(leased);
        }
        if running.len() > 5 {
            engine.finish(now, running.pop_front().unwrap().lease, Outcome::Ok, OK, false);
        }
    }
    assert_eq!(taken.iter().sum::<u32>(), 300);
    assert!(taken[0] < 5, "{taken:?}");

    // When the others are full it is asked again, and once it works it is as good as any.
    let mut ask = || {
        submit(&mut engine, at(SECOND), &plain(any));
        engine.take(at(SECOND)).unwrap()
    };
    let again = std::iter::repeat_with(&mut ask).find(|leased| leased.account == 0).unwrap();
    engine.finish(at(SECOND), again.lease, Outcome::Ok, OK, false);
    submit(&mut engine, at(SECOND), &plain(any));
    assert_eq!(engine.take(at(SECOND)).unwrap().account, 0);
}

#[test]
fn an_account_that_fails_again_and_again_rests_and_is_tried_one_at_a_time() {
    for scoped in [false, true] {
        let mut engine = engine(retry(1, Span::ZERO));
        let by_host = if scoped { vec![ScopedLimits { scope: "host".into(), limits: vec![window(900, 1)] }] } else { vec![] };
        let backend = engine.add_backend(Instant::ORIGIN, &BackendSpec { scoped: by_host, ..own(2, &[window(10, 1)], Some(8)) });
        let any = class(&mut engine, &[backend], 1);
        for _ in 0..10_000 {
            submit(&mut engine, at(0), &Submission { scopes: &[("host", "x")], ..plain(any) });
        }
        // The first one is dead until the 50th second: nothing that it is sent works, and the other one has never room enough.
        let (mut to_dead, mut together, mut others) = (Vec::new(), 0, 0);
        for tenth in 0..700u64 {
            let now = at(tenth * SECOND / 10 + TICK);
            let running = take_all(&mut engine, now);
            let dead: Vec<&Leased> = running.iter().filter(|leased| leased.account == 0).collect();
            if tenth > 0 && tenth < 500 {
                together = together.max(dead.len());
            }
            to_dead.extend(dead.iter().map(|_| tenth / 10));
            others += running.len() - dead.len();
            for leased in &running {
                let failed = leased.account == 0 && tenth < 500;
                engine.finish(now, leased.lease, if failed { Outcome::Failed } else { Outcome::Ok }, OK, false);
            }
        }
        let before = to_dead.iter().filter(|&&second| second < 50).count();
        assert!(before <= 8 + 6, "8 at once at first, then after 1, 2, 4, 8, 16 and 32 s: {before}");
        assert_eq!(together, 1, "one shows whether it works");
        let after = to_dead.len() - before;
        assert!(others > 600, "{others}");
        assert!(after > 40, "it is as good as any once it works: {after}");
    }
}

#[test]
fn the_cost_of_a_dispatch_does_not_grow_with_the_accounts() {
    // Counted in what the engine looks at, not in time: 500 accounts, all blocked but one, and a take asks that one only.
    let (mut engine, backends) = of(&[own(500, &[window(1, 3600)], None)]);
    let any = class(&mut engine, &backends, 1);
    for _ in 0..501 {
        submit(&mut engine, at(0), &plain(any));
    }
    let running = take_all(&mut engine, at(0));
    assert_eq!(accounts(&running), (0..500).collect::<Vec<_>>());
    for leased in &running {
        engine.finish(at(MS), leased.lease, Outcome::Ok, OK, false);
    }
    assert!(engine.take(at(SECOND)).is_none());
    assert_eq!(engine.timers(), 500, "one for each that is blocked");
    let reopened = engine.next_wake().unwrap();
    assert!(reopened > at(3600 * SECOND));
    assert_eq!(take_all(&mut engine, reopened).len(), 1);
}
