//! Backends that come and go, and quotas that change, while requests wait and run.

mod common;

use std::collections::BTreeMap;

use common::{MS, SECOND, TICK, at, cases, engine, plain, retry, spec, submit, take_all, wait};
use proptest::prelude::*;
use tidegate_core::engine::{
    Action, Answer, BackendId, BackendState, ClassError, ClassId, Ended, Ending, Engine, Event, Finished, Leased, Outcome,
};
use tidegate_core::limit::Limit;
use tidegate_core::time::{Instant, Span};

const OK: Answer = Answer { status: Some(200), retry_after: None, is_local: false };

fn window(amount: u32, seconds: u64) -> Limit {
    Limit::window(amount, Span::from_secs(seconds)).unwrap()
}

fn any(engine: &mut Engine) -> ClassId {
    engine.class_of_any(Instant::ORIGIN, 1).unwrap()
}

fn only(engine: &mut Engine, backend: BackendId) -> ClassId {
    engine.class(Instant::ORIGIN, &[backend], 1).unwrap()
}

fn with_backends(limits: &[&[Limit]]) -> (Engine, Vec<BackendId>) {
    let mut engine = engine(retry(2, Span::ZERO));
    let backends = limits.iter().map(|limits| engine.add_backend(at(0), &spec(limits, None))).collect();
    (engine, backends)
}

fn finish(engine: &mut Engine, now: Instant, leased: &Leased) -> Finished {
    engine.finish(now, leased.lease, Outcome::Ok, OK, false)
}

fn ended(engine: &mut Engine) -> Vec<Ended> {
    std::iter::from_fn(|| engine.pop_ended()).collect()
}

fn gone(engine: &mut Engine) -> Vec<u16> {
    let event = |event| if let Event::BackendGone { backend } = event { Some(backend.0) } else { None };
    std::iter::from_fn(|| engine.pop_event()).filter_map(event).collect()
}

fn backends_of(leased: &[Leased]) -> Vec<u16> {
    leased.iter().map(|leased| leased.backend.0).collect()
}

#[test]
fn what_waits_for_any_backend_goes_to_one_that_comes() {
    let (mut engine, backends) = with_backends(&[&[window(1, 3600)]]);
    let (any, first) = (any(&mut engine), only(&mut engine, backends[0]));
    for class in [any, first, any, first] {
        submit(&mut engine, at(0), &plain(class));
    }
    assert_eq!(backends_of(&take_all(&mut engine, at(0))), [0]);
    let second = engine.add_backend(at(MS), &spec(&[], Some(1)));
    let leased = take_all(&mut engine, at(MS));
    assert_eq!(backends_of(&leased), [second.0], "one of any, and none that named the first");
    assert_eq!(engine.ledger().queued, 2);
}

#[test]
fn without_a_backend_nothing_is_accepted_until_one_comes() {
    let mut engine = engine(retry(1, Span::ZERO));
    assert_eq!(engine.class_of_any(at(0), 1), Err(ClassError::NoBackend));
    engine.add_backend(at(0), &spec(&[window(3, 1)], None));
    assert_eq!(engine.class_of_any(at(0), 4), Err(ClassError::CostExceedsBurst { cost: 4, largest: 3 }));
    assert!(engine.class_of_any(at(0), 3).is_ok());
}

#[test]
fn a_backend_that_is_removed_leaves_what_may_go_elsewhere_and_drains_the_rest() {
    let (mut engine, backends) = with_backends(&[&[window(1, 1)], &[window(1, 1)]]);
    let (any, first) = (any(&mut engine), only(&mut engine, backends[0]));
    for class in [any, any, first, first, any] {
        submit(&mut engine, at(0), &plain(class));
    }
    let running = take_all(&mut engine, at(0));
    assert_eq!(backends_of(&running), [0, 1]);
    engine.remove_backend(at(0), backends[0], true);
    assert_eq!(engine.class(at(0), &[backends[0]], 1), Ok(first), "it still drains");
    for leased in &running {
        finish(&mut engine, at(0), leased);
    }
    let (mut now, mut served) = (at(0), Vec::new());
    while engine.ledger().queued > 0 {
        let leased;
        (now, leased) = wait(&mut engine, now);
        served.push(leased.backend.0);
        finish(&mut engine, now, &leased);
    }
    served.sort_unstable();
    assert_eq!(served, [0, 0, 1], "those that named it, and the one of any elsewhere");
    engine.tick(now);
    assert_eq!(gone(&mut engine), [0]);
    assert_eq!(engine.class(now, &[backends[0]], 1), Err(ClassError::NoBackend));
    assert_eq!(engine.ledger().delivered, 5);
}

#[test]
fn a_backend_that_is_removed_at_once_ends_what_only_it_could_serve_and_interrupts_what_runs() {
    let (mut engine, backends) = with_backends(&[&[window(2, 1)], &[]]);
    let (any, first) = (any(&mut engine), only(&mut engine, backends[0]));
    let both = submit(&mut engine, at(0), &plain(any));
    let doomed: Vec<_> = (0..3).map(|_| submit(&mut engine, at(0), &plain(first))).collect();
    let running = take_all(&mut engine, at(0));
    assert_eq!(backends_of(&running), [0, 0]);
    engine.remove_backend(at(MS), backends[0], false);
    let mut over = ended(&mut engine);
    over.sort_by_key(|ended| ended.request);
    assert_eq!(
        over.iter().map(|ended| (ended.request, ended.ending)).collect::<Vec<_>>(),
        doomed.iter().map(|&handle| (handle, Ending::Unserved(backends[0]))).collect::<Vec<_>>()
    );
    let interrupted =
        std::iter::from_fn(|| engine.pop_action()).filter(|action| matches!(action, Action::Interrupt { .. })).count();
    assert_eq!(interrupted, 2);
    let again = engine.take(at(MS)).unwrap();
    assert_eq!(
        (again.request, again.backend, again.attempt),
        (both, backends[1], 1),
        "an attempt that was taken away costs none"
    );
    assert!(gone(&mut engine).is_empty(), "its handlers have not returned");
    for leased in &running {
        assert!(matches!(engine.finish(at(MS), leased.lease, Outcome::Neutral, Answer::default(), false), Finished::Stray));
    }
    assert_eq!(gone(&mut engine), [0]);
    assert_eq!((engine.ledger().dead, engine.ledger().leased, engine.ledger().queued), (3, 1, 0));
}

#[test]
fn a_retry_that_comes_back_after_its_backend_has_gone_ends() {
    let (mut engine, backends) = with_backends(&[&[]]);
    let first = only(&mut engine, backends[0]);
    submit(&mut engine, at(0), &plain(first));
    let leased = engine.take(at(0)).unwrap();
    engine.finish(at(0), leased.lease, Outcome::Failed, Answer::default(), false);
    engine.remove_backend(at(0), backends[0], false);
    engine.tick(at(SECOND));
    assert_eq!(ended(&mut engine).iter().map(|ended| ended.ending).collect::<Vec<_>>(), [Ending::Unserved(backends[0])]);
}

#[test]
fn a_retry_keeps_a_draining_backend() {
    let (mut engine, backends) = with_backends(&[&[]]);
    let first = only(&mut engine, backends[0]);
    submit(&mut engine, at(0), &plain(first));
    let leased = engine.take(at(0)).unwrap();
    engine.remove_backend(at(0), backends[0], true);
    engine.finish(at(0), leased.lease, Outcome::Failed, Answer::default(), false);
    assert!(gone(&mut engine).is_empty());
    let again = engine.take(at(SECOND)).unwrap();
    finish(&mut engine, at(SECOND), &again);
    assert_eq!(gone(&mut engine), [0]);
}

#[test]
fn a_quota_that_grows_lets_what_waits_go_at_once_and_forgets_nothing_that_was_sent() {
    let (mut engine, backends) = with_backends(&[&[window(2, 60)]]);
    let any = any(&mut engine);
    for _ in 0..9 {
        submit(&mut engine, at(0), &plain(any));
    }
    let running = take_all(&mut engine, at(0));
    finish(&mut engine, at(0), &running[0]);
    engine.set_quota(at(SECOND), backends[0], &[window(5, 60)], &[], None);
    assert_eq!(take_all(&mut engine, at(SECOND)).len(), 3, "one is used, one in flight");
    let used = engine.status(backends[0], at(SECOND)).limits().next().unwrap().1.used;
    assert_eq!(used, 5);
    let released = at(60 * SECOND + 20 * MS);
    assert_eq!(take_all(&mut engine, released).len(), 1, "the first one is free when it always would have been");
}

#[test]
fn another_kind_of_limit_counts_what_was_sent_as_if_it_had_just_come() {
    let (mut engine, backends) = with_backends(&[&[window(4, 60)]]);
    let any = any(&mut engine);
    for _ in 0..9 {
        submit(&mut engine, at(0), &plain(any));
    }
    for leased in take_all(&mut engine, at(0)).iter().take(3) {
        finish(&mut engine, at(0), leased);
    }
    engine.set_quota(at(SECOND), backends[0], &[Limit::bucket(1, Span::from_secs(1), 5).unwrap()], &[], None);
    assert_eq!(take_all(&mut engine, at(SECOND)).len(), 1, "of five, three are used and one is in flight");
}

#[test]
fn a_quota_that_shrinks_holds_back_and_ends_what_it_never_admits() {
    let (mut engine, backends) = with_backends(&[&[window(5, 60)]]);
    let (small, large) = (any(&mut engine), engine.class_of_any(at(0), 4).unwrap());
    let running: Vec<_> = (0..3).map(|_| submit(&mut engine, at(0), &plain(small))).collect();
    assert_eq!(take_all(&mut engine, at(0)).len(), running.len());
    let never = submit(&mut engine, at(0), &plain(large));
    submit(&mut engine, at(0), &plain(small));
    engine.set_quota(at(0), backends[0], &[window(3, 60)], &[], Some(1));
    assert_eq!(
        ended(&mut engine).iter().map(|ended| (ended.request, ended.ending)).collect::<Vec<_>>(),
        [(never, Ending::Unserved(backends[0]))]
    );
    assert!(engine.take(at(0)).is_none());
    assert_eq!(engine.status(backends[0], at(0)).state(), BackendState::Full);
    assert_eq!(engine.class_of_any(at(0), 4), Err(ClassError::CostExceedsBurst { cost: 4, largest: 3 }));
}

#[derive(Clone, Debug)]
enum Op {
    Submit { named: Option<usize>, cost: u32, deadline: bool },
    Take,
    Finish(usize, u8),
    Cancel(usize),
    Add(u32, u32),
    Remove(usize, bool),
    SetQuota(usize, u32, u32),
    Pass(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let named = prop::option::weighted(0.6, 0usize..6);
    let op = prop_oneof![
        6 => (named, 1u32..4, prop::bool::weighted(0.2)).prop_map(|(named, cost, deadline)| Op::Submit { named, cost, deadline }),
        6 => Just(Op::Take),
        5 => (0usize..8, 0u8..4).prop_map(|(nth, outcome)| Op::Finish(nth, outcome)),
        1 => (0usize..16).prop_map(Op::Cancel),
        1 => (1u32..5, 1u32..4).prop_map(|(amount, cap)| Op::Add(amount, cap)),
        1 => (0usize..6, prop::bool::ANY).prop_map(|(nth, drain)| Op::Remove(nth, drain)),
        1 => (0usize..6, 1u32..5, 1u32..4).prop_map(|(nth, amount, cap)| Op::SetQuota(nth, amount, cap)),
        3 => (0u64..900).prop_map(Op::Pass),
    ];
    prop::collection::vec(op, 1..150)
}

proptest! {
    #![proptest_config(cases(300))]

    /// Whatever comes and goes, every request ends exactly once, no attempt goes to a backend that is not there, and in the end
    /// nothing waits that some backend could serve.
    #[test]
    fn nothing_is_lost_when_backends_come_and_go(ops in ops()) {
        let mut engine = engine(retry(2, Span::from_millis(50)));
        // Of each backend: whether it is here, whether it drains, its capacity.
        let mut backends: Vec<(bool, bool, u32)> = Vec::new();
        let mut requests = BTreeMap::new();
        let mut running: Vec<Leased> = Vec::new();
        let mut now = Instant::ORIGIN;
        let limit = |amount| [window(amount, 1)];
        for op in ops.into_iter().chain([Op::Pass(10_000), Op::Take]) {
            match op {
                Op::Submit { named, cost, deadline } => {
                    let class = match named {
                        Some(nth) if !backends.is_empty() => engine.class(now, &[BackendId((nth % backends.len()) as u16)], cost),
                        _ => engine.class_of_any(now, cost),
                    };
                    if let Ok(class) = class {
                        let deadline = if deadline { now + Span::from_millis(700) } else { Instant::FAR };
                        let handle = submit(&mut engine, now, &tidegate_core::engine::Submission { deadline, ..plain(class) });
                        requests.insert(handle, 0u32);
                    }
                }
                Op::Take => while let Some(leased) = engine.take(now) {
                    let (here, drains, _) = backends[usize::from(leased.backend.0)];
                    prop_assert!(here || drains, "leased to a backend that is not there");
                    running.push(leased);
                },
                Op::Finish(nth, outcome) if nth < running.len() => {
                    let leased = running.swap_remove(nth);
                    let (outcome, status) = match outcome {
                        0 | 1 => (Outcome::Ok, 200),
                        2 => (Outcome::Failed, 500),
                        _ => (Outcome::Limited, 429),
                    };
                    let finished = engine.finish(now, leased.lease, outcome, Answer { status: Some(status), retry_after: None, is_local: false }, false);
                    if matches!(finished, Finished::Done { .. } | Finished::Dead { .. }) {
                        *requests.get_mut(&leased.request).unwrap() += 1;
                    }
                }
                Op::Cancel(nth) => if let Some((&handle, _)) = requests.iter().nth(nth) {
                    engine.cancel(now, handle);
                },
                Op::Add(amount, cap) => {
                    engine.add_backend(now, &spec(&limit(amount), Some(cap)));
                    backends.push((true, false, amount));
                }
                Op::Remove(nth, drain) if nth < backends.len() => {
                    engine.remove_backend(now, BackendId(nth as u16), drain);
                    let (here, drains, _) = &mut backends[nth];
                    *drains = drain && (*here || *drains);
                    *here = false;
                }
                Op::SetQuota(nth, amount, cap) if nth < backends.len() => {
                    engine.set_quota(now, BackendId(nth as u16), &limit(amount), &[], Some(cap));
                    backends[nth].2 = amount;
                }
                Op::Pass(millis) => {
                    now = now + Span::from_millis(millis);
                    engine.tick(now);
                }
                _ => {}
            }
            while let Some(ended) = engine.pop_ended() {
                *requests.get_mut(&ended.request).unwrap() += 1;
                if let Ending::Unserved(lost) = ended.ending {
                    prop_assert!(usize::from(lost.0) < backends.len());
                }
            }
            while engine.pop_action().is_some() {}
            while let Some(event) = engine.pop_event() {
                if let Event::BackendGone { backend } = event {
                    prop_assert!(running.iter().all(|leased| leased.backend != backend), "gone while something runs there");
                    prop_assert!(!backends[usize::from(backend.0)].0);
                    backends[usize::from(backend.0)].1 = false;
                }
            }
            let ledger = engine.ledger();
            prop_assert_eq!(ledger.accepted as usize, requests.len());
            let over = requests.values().filter(|&&times| times == 1).count() as u64;
            prop_assert!(requests.values().all(|&times| times <= 1), "a request ends once");
            prop_assert_eq!(ledger.queued + ledger.leased, ledger.accepted - over);
        }
        // All that runs ends well, and time passes, until nothing more happens.
        for _ in 0..200 {
            for leased in std::mem::take(&mut running) {
                if matches!(engine.finish(now, leased.lease, Outcome::Ok, OK, false), Finished::Done { .. }) {
                    *requests.get_mut(&leased.request).unwrap() += 1;
                }
            }
            running = take_all(&mut engine, now);
            now = at(now.since(Instant::ORIGIN).as_nanos() + 400 * MS + TICK);
            engine.tick(now);
        }
        while engine.pop_ended().is_some() {}
        prop_assert_eq!((engine.ledger().queued, engine.ledger().leased), (0, 0), "what is accepted is served, or has ended");
    }
}
