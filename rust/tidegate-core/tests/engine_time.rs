//! What time does to requests and attempts: time-outs, deadlines, backoff, the retry budget, and how little waiting costs.

mod common;

use common::{MS, SECOND, TICK, at, plain, retry, single, spec, submit, take_all, wait};
use tidegate_core::engine::{Action, Answer, BackendSpec, BackendState, Ended, Ending, Engine, Finished, Flags, Handle, Leased};
use tidegate_core::engine::{Outcome, Stage, Submission};
use tidegate_core::limit::Limit;
use tidegate_core::retry::Retry;
use tidegate_core::time::{Instant, Span};

/// A backend whose attempts may take 10 s.
fn timed(concurrency: Option<u32>) -> BackendSpec {
    BackendSpec { timeout: Some(Span::from_secs(10)), ..spec(&[], concurrency) }
}

fn actions(engine: &mut Engine) -> Vec<Action> {
    std::iter::from_fn(|| engine.pop_action()).collect()
}

fn fail(engine: &mut Engine, now: Instant, leased: &Leased) -> Finished {
    engine.finish(now, leased.lease, Outcome::Failed, Answer { status: Some(500), retry_after: None, is_local: false }, false)
}

/// Timers fire at their instant or a fraction of a tick later.
fn soon(nanos: u64) -> std::ops::RangeInclusive<Instant> {
    at(nanos)..=at(nanos + TICK)
}

/// An attempt that takes too long is interrupted and its request is tried again elsewhere; the handler keeps its concurrency until it
/// has returned, whatever it returns then.
#[test]
fn a_timed_out_attempt_is_a_stray_until_it_returns() {
    let mut engine = common::engine(retry(3, Span::ZERO));
    let backends = [timed(Some(1)), timed(Some(1))].map(|spec| engine.add_backend(Instant::ORIGIN, &spec));
    let class = engine.class(at(0), &backends, 1).unwrap();
    let request = submit(&mut engine, at(0), &plain(class));
    let first = engine.take(at(0)).unwrap();
    assert_eq!(first.backend, backends[0]);
    assert_eq!(engine.next_wake(), Some(at((10 * SECOND).next_multiple_of(TICK))));

    let (now, second) = wait(&mut engine, at(0));
    assert!(soon(10 * SECOND).contains(&now));
    assert_eq!((second.request, second.backend, second.attempt), (request, backends[1], 2));
    let timeout = now.since(at(0));
    let (timed_out, interrupt) =
        (Action::TimedOut { request, backend: backends[0], timeout }, Action::Interrupt { lease: first.lease });
    assert_eq!(actions(&mut engine), [timed_out, interrupt]);

    // The handler ignores the interrupt: its backend stays full. The second attempt fails, and its backend is the one that is open.
    let status = engine.status(backends[0], now);
    assert_eq!((status.in_flight(), status.strays(), status.state()), (1, 1, BackendState::Full));
    assert_eq!(engine.ledger().leased, 1);
    assert!(matches!(fail(&mut engine, now, &second), Finished::Again { failed: true }));
    let (now, third) = wait(&mut engine, now);
    assert_eq!((third.backend, third.attempt), (backends[1], 3));

    let value = engine.finish(now, first.lease, Outcome::Ok, Answer::default(), false);
    assert!(matches!(value, Finished::Stray));
    assert_eq!(engine.status(backends[0], now).state(), BackendState::Open);
    assert!(matches!(engine.finish(now, third.lease, Outcome::Ok, Answer::default(), false), Finished::Done { attempts: 3, .. }));
    // One timer watches the attempts of a backend, and once armed it stays until it fires.
    assert_eq!((engine.ledger().delivered, engine.timers()), (1, 1));
}

/// The last attempt's time-out ends the request as dead, with its time and attempts.
#[test]
fn the_last_attempt_to_time_out_ends_the_request() {
    let (mut engine, backend, class) = single(retry(2, Span::ZERO), &timed(Some(1)));
    let request = submit(&mut engine, at(0), &plain(class));
    let first = engine.take(at(0)).unwrap();
    engine.tick(at(10 * SECOND + TICK));
    engine.tick(at(10 * SECOND + 2 * TICK));
    engine.finish(at(12 * SECOND), first.lease, Outcome::Neutral, Answer::default(), false);
    let second = engine.take(at(12 * SECOND)).unwrap();
    engine.tick(at(22 * SECOND + TICK));
    let Ended { request: ended, ending, waits, age, failed } = engine.pop_ended().unwrap();
    assert_eq!((ended, ending, failed, age), (request, Ending::Dead, 2, Span::from_nanos(22 * SECOND + TICK)));
    assert_eq!(waits.attempt, Span::from_nanos(2 * (10 * SECOND + TICK)));
    assert!(waits.concurrency.as_nanos().abs_diff(2 * SECOND) < 3 * MS, "{waits:?}");
    assert_eq!(engine.ledger().dead, 1);
    assert_eq!(engine.status(backend, at(23 * SECOND)).strays(), 1);
    assert!(matches!(engine.finish(at(30 * SECOND), second.lease, Outcome::Ok, Answer::default(), false), Finished::Stray));
    assert_eq!((engine.ledger().delivered, engine.room().taken()), (0, 0));
}

/// Every attempt times out at its own instant, whichever of those before it have returned.
#[test]
fn each_attempt_has_its_own_timeout() {
    let (mut engine, _, class) = single(retry(1, Span::ZERO), &timed(None));
    let mut leases = Vec::new();
    for second in 0..6 {
        submit(&mut engine, at(second * SECOND), &plain(class));
        leases.push(engine.take(at(second * SECOND)).unwrap());
    }
    for returned in [0, 1, 4] {
        engine.finish(at(6 * SECOND), leases[returned].lease, Outcome::Ok, Answer::default(), false);
    }
    for late in [2, 3, 5] {
        engine.tick(at((10 + late) * SECOND - 1));
        assert_eq!(engine.pop_ended().map(|ended| ended.request), None);
        engine.tick(at((10 + late) * SECOND + TICK));
        assert_eq!(engine.pop_ended().map(|ended| ended.request), Some(leases[late as usize].request));
    }
    assert_eq!((engine.ledger().dead, engine.ledger().delivered, engine.timers()), (3, 3, 0));
}

/// A stray that returns after its place was used again by others touches none of them.
#[test]
fn a_late_return_touches_no_other_attempt() {
    let (mut engine, backend, class) = single(retry(1, Span::ZERO), &timed(Some(2)));
    submit(&mut engine, at(0), &plain(class));
    let stray = engine.take(at(0)).unwrap();
    engine.tick(at(11 * SECOND));
    for _ in 0..20 {
        submit(&mut engine, at(11 * SECOND), &plain(class));
        let next = engine.take(at(11 * SECOND)).unwrap();
        engine.finish(at(11 * SECOND), next.lease, Outcome::Ok, Answer::default(), false);
    }
    submit(&mut engine, at(12 * SECOND), &plain(class));
    let last = engine.take(at(12 * SECOND)).unwrap();
    for _ in 0..2 {
        assert!(matches!(fail(&mut engine, at(13 * SECOND), &stray), Finished::Stray));
        assert_eq!(engine.status(backend, at(13 * SECOND)).in_flight(), 1);
    }
    assert!(matches!(
        engine.finish(at(14 * SECOND), last.lease, Outcome::Ok, Answer::default(), false),
        Finished::Done { attempts: 1, .. }
    ));
}

/// A deadline ends the request while its attempt runs, and interrupts the handler.
#[test]
fn a_deadline_ends_a_running_attempt() {
    let (mut engine, backend, class) = single(retry(3, Span::ZERO), &timed(Some(1)));
    let request = submit(&mut engine, at(0), &Submission { deadline: at(4 * SECOND), ..plain(class) });
    let leased = engine.take(at(SECOND)).unwrap();
    assert_eq!(leased.deadline, at(4 * SECOND));
    let wake = engine.next_wake().unwrap();
    assert!(soon(4 * SECOND).contains(&wake));
    engine.tick(wake);
    let ended = engine.pop_ended().unwrap();
    assert_eq!((ended.request, ended.ending, ended.failed), (request, Ending::Expired(Stage::Leased), 0));
    assert_eq!(ended.waits.attempt, wake.since(at(SECOND)));
    assert_eq!(actions(&mut engine), [Action::Interrupt { lease: leased.lease }]);
    assert_eq!((engine.ledger().expired, engine.status(backend, wake).strays(), engine.timers()), (1, 1, 1));
}

/// A deadline that comes before the end of a backoff, or while the request is queued again after it, ends it there.
#[test]
fn a_deadline_holds_after_a_retry() {
    let (mut engine, _, class) = single(retry(9, Span::from_secs(1)), &timed(Some(1)));
    let request = submit(&mut engine, at(0), &Submission { deadline: at(5 * SECOND), ..plain(class) });
    let first = engine.take(at(0)).unwrap();
    fail(&mut engine, at(0), &first);
    let other = submit(&mut engine, at(0), &plain(class));
    assert_eq!(engine.take(at(0)).map(|leased| leased.request), Some(other));
    engine.tick(at(2 * SECOND));
    assert_eq!((engine.ledger().queued, engine.timers()), (1, 2));
    engine.tick(at(5 * SECOND + TICK));
    let ended = engine.pop_ended().unwrap();
    assert_eq!((ended.request, ended.ending, ended.failed), (request, Ending::Expired(Stage::Queued), 1));
    assert_eq!(ended.waits.backoff, Span::from_secs(2));

    let (mut engine, _, class) = single(retry(9, Span::from_secs(3600)), &timed(Some(1)));
    submit(&mut engine, at(0), &Submission { deadline: at(2), ..plain(class) });
    let first = engine.take(at(0)).unwrap();
    fail(&mut engine, at(1), &first);
    // The backoff's, and the one that watches the backend's attempts.
    assert_eq!(engine.timers(), 2);
    engine.tick(at(TICK));
    assert_eq!(engine.pop_ended().map(|ended| ended.ending), Some(Ending::Expired(Stage::Queued)));
}

/// The attempt timeout does not apply to a request whose attempt may last.
#[test]
fn a_lasting_attempt_never_times_out() {
    let (mut engine, _, class) = single(retry(3, Span::ZERO), &timed(None));
    let lasting = Flags { lasting: true, ..Flags::default() };
    submit(&mut engine, at(0), &Submission { flags: lasting, ..plain(class) });
    engine.take(at(0)).unwrap();
    assert_eq!(engine.next_wake(), None);
}

/// A retry waits for its backoff, the engine wakes for it, and what it waited for is said.
#[test]
fn a_retry_waits_for_its_backoff() {
    let rule = Retry { attempts: 6, base: Span::from_secs(1), cap: Span::from_secs(4), budget_milli: 1_000_000 };
    let (mut engine, _, class) = single(rule, &spec(&[], None));
    let request = submit(&mut engine, at(0), &plain(class));
    let mut now = at(0);
    let mut backoff = Span::ZERO;
    for (failed, ceiling) in [1, 2, 4, 4].into_iter().enumerate() {
        let leased = engine.take(now).unwrap();
        assert_eq!((leased.request, leased.attempt as usize), (request, failed + 1));
        now = now + Span::from_secs(1);
        fail(&mut engine, now, &leased);
        assert_eq!((engine.demand(now), engine.ledger().queued), (0, 1));
        let wake = engine.next_wake().unwrap();
        assert!(wake <= now + Span::from_nanos(ceiling * SECOND + TICK));
        backoff = backoff + wake.since(now);
        now = wake;
    }
    let leased = engine.take(now).unwrap();
    match engine.finish(now, leased.lease, Outcome::Ok, Answer::default(), false) {
        Finished::Done { waits, age, attempts: 5 } => {
            assert_eq!((waits.backoff, waits.attempt, age), (backoff, Span::from_secs(4), now.since(at(0))));
        }
        other => panic!("{other:?}"),
    }
}

/// Without budget a retry waits instead of failing: ten at once from the reserve, then one a second. A rejection costs no budget.
#[test]
fn retries_wait_for_their_budget() {
    let rule = Retry { attempts: 2, base: Span::ZERO, cap: Span::ZERO, budget_milli: 0 };
    let (mut engine, _, class) = single(rule, &spec(&[], None));
    for _ in 0..13 {
        submit(&mut engine, at(0), &plain(class));
    }
    for leased in take_all(&mut engine, at(0)) {
        fail(&mut engine, at(0), &leased);
    }
    let mut retried = |now: u64| take_all(&mut engine, at(now)).len();
    assert_eq!([retried(0), retried(SECOND - TICK), retried(SECOND + TICK), retried(2 * SECOND + TICK)], [10, 0, 1, 1]);
    assert_eq!([retried(3 * SECOND - TICK), retried(3 * SECOND + TICK)], [0, 1]);
}

/// A retry that waits for budget goes as soon as first attempts have paid for it, in its turn, and costs nothing once cancelled.
#[test]
fn first_attempts_pay_for_retries() {
    let rule = Retry { attempts: 2, base: Span::ZERO, cap: Span::ZERO, budget_milli: 500 };
    let (mut engine, _, class) = single(rule, &spec(&[], None));
    let requests: Vec<Handle> = (0..30).map(|_| submit(&mut engine, at(0), &plain(class))).collect();
    for leased in take_all(&mut engine, at(0)) {
        fail(&mut engine, at(0), &leased);
    }
    // Ten from the reserve and half of thirty.
    assert_eq!(take_all(&mut engine, at(0)).len(), 25);
    assert!(engine.next_wake() >= Some(at(SECOND)));
    engine.cancel(at(1), requests[25]);
    for _ in 0..3 {
        submit(&mut engine, at(1), &plain(class));
    }
    let taken: Vec<Handle> = take_all(&mut engine, at(1)).iter().map(|leased| leased.request).collect();
    assert_eq!((taken.len(), taken[2]), (4, requests[26]), "it has its place by order of acceptance again");
    engine.cancel(at(2), requests[27]);
    engine.cancel(at(2), requests[28]);
    let (now, last) = wait(&mut engine, at(2));
    assert_eq!(last.request, requests[29]);
    assert!(soon(SECOND / 2).contains(&now), "half of it was deposited");
    assert_eq!(engine.timers(), 0);
}

/// Only the first attempt of a request pays: one that was rejected and comes again does not.
#[test]
fn an_attempt_after_a_rejection_pays_for_no_retry() {
    let rule = Retry { attempts: 20, base: Span::ZERO, cap: Span::ZERO, budget_milli: 500 };
    let mut engine = common::engine(rule);
    let [failing, rejecting] = [(); 2].map(|()| engine.add_backend(Instant::ORIGIN, &spec(&[], None)));
    let [class, other] = [failing, rejecting].map(|backend| engine.class(at(0), &[backend], 1).unwrap());
    submit(&mut engine, at(0), &plain(class));
    let mut leased = engine.take(at(0)).unwrap();
    for _ in 0..10 {
        fail(&mut engine, at(0), &leased);
        leased = engine.take(at(0)).unwrap();
    }
    // Half a retry is left. The first attempt of another request pays the other half.
    fail(&mut engine, at(0), &leased);
    assert!(engine.take(at(0)).is_none());
    submit(&mut engine, at(0), &plain(other));
    let mut rejected = engine.take(at(0)).unwrap();
    let leased = engine.take(at(0)).unwrap();
    assert_eq!((leased.backend, leased.attempt), (failing, 12));
    fail(&mut engine, at(0), &leased);
    for round in 1..5 {
        let answer = Answer { status: Some(429), retry_after: Some(Span::ZERO), is_local: false };
        engine.finish(at(round), rejected.lease, Outcome::Limited, answer, false);
        rejected = engine.take(at(round + 1)).unwrap();
        assert_eq!(rejected.backend, rejecting);
        assert!(engine.take(at(round + 1)).is_none());
    }
}

/// A rejection costs no attempt: the request waits for the limit and goes first again. One that is never retried ends by it.
#[test]
fn a_rejected_request_goes_first_again() {
    let (mut engine, _, class) = single(retry(1, Span::ZERO), &spec(&[], None));
    let requests: Vec<Handle> = (0..3).map(|_| submit(&mut engine, at(0), &plain(class))).collect();
    let mut now = at(0);
    for _ in 0..5 {
        let leased = engine.take(now).unwrap();
        assert_eq!((leased.request, leased.attempt), (requests[0], 1));
        let finished = engine.finish(now, leased.lease, Outcome::Limited, Answer::default(), false);
        assert!(matches!(finished, Finished::Again { failed: false }));
        // Without limits and with nothing said it is closed for a second.
        assert!(engine.take(now).is_none());
        now = now + Span::from_nanos(SECOND + TICK);
    }

    let (mut engine, _, class) = single(retry(9, Span::ZERO), &spec(&[], None));
    submit(&mut engine, at(0), &Submission { flags: Flags { lasting: true, ..Flags::default() }, ..plain(class) });
    let leased = engine.take(at(0)).unwrap();
    let finished = engine.finish(at(0), leased.lease, Outcome::Limited, Answer::default(), false);
    assert!(matches!(finished, Finished::Dead { attempts: 1, .. }));
}

/// However many requests wait for a limit, one timer is armed, nothing happens before it, and each takes at most 64 bytes.
#[test]
fn a_hundred_thousand_waiting_requests_cost_one_timer() {
    let limit = Limit::window(10, Span::from_secs(60)).unwrap();
    let (mut engine, _, class) = single(retry(3, Span::ZERO), &spec(&[limit], None));
    for _ in 0..100_010 {
        submit(&mut engine, at(0), &plain(class));
    }
    for leased in take_all(&mut engine, at(0)) {
        engine.finish(at(0), leased.lease, Outcome::Ok, Answer::default(), false);
    }
    assert_eq!((engine.ledger().queued, engine.ledger().delivered), (100_000, 10));
    assert_eq!((engine.demand(at(0)), engine.timers()), (0, 1));
    const { assert!(Engine::BYTES_PER_REQUEST <= 64) };
    let wake = engine.next_wake().unwrap();
    assert!(wake >= at(60 * SECOND) && !engine.has_news());
    engine.tick(at(60 * SECOND - 1));
    assert_eq!((engine.next_wake(), engine.may_run()), (Some(wake), false));
    assert_eq!(take_all(&mut engine, wake).len(), 10);
    assert_eq!(engine.timers(), 0, "only acknowledgements make room now");
}

/// A clock that jumps ahead by years, or does not move at all, is only time.
#[test]
fn time_may_jump_or_stand_still() {
    let limit = Limit::window(1, Span::from_secs(60)).unwrap();
    let (mut engine, _, class) =
        single(retry(2, Span::from_secs(1)), &BackendSpec { timeout: Some(Span::ZERO), ..spec(&[limit], None) });
    let year = 31_557_600 * SECOND;
    let mut now = at(0);
    for index in 0..50 {
        submit(&mut engine, now, &plain(class));
        engine.take(now);
        engine.tick(now);
        now = now + Span::from_nanos(if index % 3 == 0 { 0 } else { 5 * year });
        for action in actions(&mut engine) {
            if let Action::Interrupt { lease } = action {
                engine.finish(now, lease, Outcome::Neutral, Answer::default(), false);
            }
        }
        while engine.pop_ended().is_some() {}
        assert!(engine.ledger().balanced());
    }
}
