//! Health at work: what a fault of this side of the line does.

mod common;

use common::{MS, at, engine, plain, retry, spec, submit, take_all};
use tidegate_core::engine::{Answer, ClassId, Engine, Event, Leased, Outcome};
use tidegate_core::health::Monitor;
use tidegate_core::time::{Instant, Span};

const OK: Answer = Answer { status: Some(200), retry_after: None, is_local: false };
const NOT_FOUND: Answer = Answer { status: None, retry_after: None, is_local: true };

fn three() -> (Engine, ClassId) {
    let mut engine = engine(retry(2, Span::from_millis(10)));
    engine.watch_health(Monitor::default());
    let backends: Vec<_> = (0..3).map(|_| engine.add_backend(Instant::ORIGIN, &spec(&[], Some(4)))).collect();
    let any = engine.class(Instant::ORIGIN, &backends, 1).unwrap();
    (engine, any)
}

fn events(engine: &mut Engine) -> Vec<Event> {
    std::iter::from_fn(|| engine.pop_event()).collect()
}

fn fail_all(engine: &mut Engine, now: Instant, running: &[Leased]) {
    for leased in running {
        engine.finish(now, leased.lease, Outcome::Failed, NOT_FOUND, false);
    }
}

#[test]
fn one_at_a_time_shows_whether_a_fault_of_this_side_is_over() {
    let (mut engine, any) = three();
    for _ in 0..50 {
        submit(&mut engine, at(0), &plain(any));
    }
    let running = take_all(&mut engine, at(0));
    assert_eq!(running.len(), 12);
    fail_all(&mut engine, at(MS), &running);
    let seen = events(&mut engine);
    assert!(matches!(seen[..], [Event::OwnFault { backends: 2, of: 3 }]), "{seen:?}");
    assert_eq!(engine.demand(at(MS)), 0);
    let (mut now, mut pauses) = (at(MS), Vec::new());
    for _ in 0..8 {
        let began = now;
        let mut tried = Vec::new();
        while tried.is_empty() {
            now = engine.next_wake().expect("it is tried again");
            tried = take_all(&mut engine, now);
        }
        assert_eq!(tried.len(), 1, "the others wait for it");
        pauses.push(now.since(began));
        fail_all(&mut engine, now, &tried);
    }
    assert!(pauses[0] >= Span::from_millis(450) && pauses[0] <= Span::from_millis(1050), "{pauses:?}");
    assert!(pauses.iter().all(|&pause| pause <= Span::from_secs(31)), "{pauses:?}");
    assert!(*pauses.last().unwrap() >= Span::from_secs(15), "{pauses:?}");
    assert_eq!(engine.ledger().dead, 0);
    assert!(events(&mut engine).is_empty(), "no backend is held back for it");
    let mut tried = Vec::new();
    while tried.is_empty() {
        now = engine.next_wake().unwrap();
        tried = take_all(&mut engine, now);
    }
    engine.finish(now, tried[0].lease, Outcome::Ok, OK, false);
    assert!(matches!(events(&mut engine)[..], [Event::OwnFaultOver]));
    assert_eq!(take_all(&mut engine, now).len(), 12, "all may go at once");
}

#[test]
fn what_did_not_fail_here_goes_on() {
    let (mut engine, any) = three();
    for _ in 0..50 {
        submit(&mut engine, at(0), &plain(any));
    }
    let running = take_all(&mut engine, at(0));
    let (well, ill): (Vec<Leased>, Vec<Leased>) =
        running.iter().copied().partition(|leased| leased.backend == running[0].backend);
    for leased in ill {
        engine.finish(at(MS), leased.lease, Outcome::Failed, NOT_FOUND, false);
    }
    assert!(matches!(events(&mut engine)[..], [Event::OwnFault { .. }]));
    assert!(take_all(&mut engine, at(MS)).is_empty(), "its slots are taken");
    engine.finish(at(2 * MS), well[0].lease, Outcome::Ok, OK, false);
    assert!(matches!(events(&mut engine)[..], [Event::OwnFaultOver]), "it was reached");
    assert!(!take_all(&mut engine, at(2 * MS)).is_empty());
}

#[test]
fn a_try_that_was_given_up_makes_place_for_another() {
    let (mut engine, any) = three();
    for _ in 0..20 {
        submit(&mut engine, at(0), &plain(any));
    }
    let running = take_all(&mut engine, at(0));
    fail_all(&mut engine, at(MS), &running);
    for _ in 0..2 {
        let mut tried = Vec::new();
        let mut now = at(MS);
        while tried.is_empty() {
            now = engine.next_wake().unwrap();
            tried = take_all(&mut engine, now);
        }
        assert_eq!(tried.len(), 1);
        engine.cancel(now, tried[0].request);
        engine.finish(now, tried[0].lease, Outcome::Neutral, Answer::default(), true);
    }
}
