//! Workers: as many are called as will find work.

mod common;

use common::{at, plain, retry, single, spec, submit};
use tidegate_core::engine::{Answer, Engine, Outcome, Staffing};
use tidegate_core::time::{Instant, Span};

fn crowd(requests: usize) -> Engine {
    let (mut engine, _, class) = single(retry(1, Span::ZERO), &spec(&[], Some(64)));
    for _ in 0..requests {
        submit(&mut engine, Instant::ORIGIN, &plain(class));
    }
    engine
}

fn called(staffing: &Staffing) -> usize {
    staffing.wake.len() + staffing.hire
}

#[test]
fn nobody_is_called_before_those_called_have_come() {
    let mut engine = crowd(1000);
    let first = called(&engine.staff(at(0)));
    assert!(first > 0);
    for coming in (0..first).rev() {
        assert!(!engine.wants_workers());
        assert_eq!(called(&engine.staff(at(0))), 0);
        assert!(engine.take(at(0)).is_some());
        engine.worker_came(true);
        assert_eq!(engine.wants_workers(), coming == 0);
    }
}

/// Handlers that suspend: all that are called find work, and within a few calls all that the backend takes are there.
#[test]
fn all_that_find_work_are_soon_there() {
    let mut engine = crowd(1000);
    let mut calls = 0;
    while engine.workers() < 64 {
        for _ in 0..called(&engine.staff(at(0))) {
            assert!(engine.take(at(0)).is_some());
            engine.worker_came(true);
        }
        calls += 1;
        assert!(calls <= 3);
    }
    assert!(!engine.wants_workers());
}

/// Handlers that do not suspend: one worker does all of a batch, and the others are called for nothing.
#[test]
fn those_that_find_none_are_called_no_more() {
    let (mut engine, _, class) = single(retry(1, Span::ZERO), &spec(&[], Some(64)));
    let mut asleep = 0;
    let mut last = usize::MAX;
    for batch in 0..20 {
        for _ in 0..64 {
            submit(&mut engine, at(batch), &plain(class));
        }
        let staffing = engine.staff(at(batch));
        last = called(&staffing);
        for nth in 0..last {
            let found = common::take_all(&mut engine, at(batch));
            assert_eq!(found.is_empty(), nth > 0);
            for leased in found {
                engine.finish(at(batch), leased.lease, Outcome::Ok, Answer::default(), false);
            }
            engine.worker_came(nth == 0);
            engine.park(at(batch), asleep);
            asleep += 1;
        }
    }
    assert!(last <= 2, "{last} are called for what one does");
}

#[test]
fn one_that_never_comes_holds_nobody_back() {
    let mut engine = crowd(1000);
    for worker in 0..called(&engine.staff(at(0))) as u32 {
        engine.worker_came(false);
        engine.worker_left(worker);
    }
    assert!(engine.wants_workers());
    assert!(called(&engine.staff(at(0))) > 0);
}
