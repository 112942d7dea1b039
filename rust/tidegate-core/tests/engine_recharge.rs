//! A message that an attempt asked to send and then does not send costs nothing and holds nobody up.

use tidegate_core::engine::{
    Action, Answer, BackendId, BackendSpec, ColdStart, Engine, Flags, LeaseId, Options, Outcome, Recharge, Spends, Submission,
};
use tidegate_core::limit::Limit;
use tidegate_core::queue::Order;
use tidegate_core::retry::Retry;
use tidegate_core::time::{Instant, Span};

const AMOUNT: u32 = 3;

fn at(millis: u64) -> Instant {
    Instant::ORIGIN + Span::from_millis(millis)
}

/// An engine whose only backend allows [`AMOUNT`] a second, with one running attempt that has sent `sent` units.
fn running(sent: u32) -> (Engine, LeaseId) {
    let retry = Retry { attempts: 1, base: Span::ZERO, cap: Span::ZERO, budget_milli: 1000 };
    let mut engine = Engine::new(&Options { capacity: 10, order: Order::Strict, retry, seed: 1 }, at(0));
    let limits = vec![Limit::window(AMOUNT, Span::from_secs(1)).unwrap()];
    engine.add_backend(
        Instant::ORIGIN,
        &BackendSpec {
            limits,
            concurrency: None,
            spends: Spends::Own(1),
            scoped: Vec::new(),
            timeout: None,
            weight: 1.0,
            cold_start: ColdStart::AssumeEmpty,
        },
    );
    submit(&mut engine, sent);
    let leased = engine.take(at(0)).expect("the quota is unused");
    (engine, leased.lease)
}

fn submit(engine: &mut Engine, cost: u32) {
    let class = engine.class(at(0), &[BackendId(0)], cost).unwrap();
    assert_eq!(engine.room().reserve(1), 1);
    engine.submit(
        at(0),
        &Submission {
            class,
            priority: 128,
            deadline: Instant::FAR,
            not_before: at(0),
            flow: "",
            scopes: &[],
            flags: Flags::default(),
        },
    );
}

fn used(engine: &Engine, now: Instant) -> u32 {
    engine.status(BackendId(0), now).limits().next().unwrap().1.used
}

fn recharged(engine: &mut Engine) -> usize {
    std::iter::from_fn(|| engine.pop_action()).filter(|action| matches!(action, Action::Recharged { .. })).count()
}

#[test]
fn a_message_that_is_taken_back_while_it_waits_is_not_charged_and_lets_the_queue_on() {
    let (mut engine, lease) = running(2);
    assert_eq!(engine.recharge(at(0), lease, 2, &[]), Recharge::Waits);
    submit(&mut engine, 1);
    assert!(engine.take(at(0)).is_none(), "the running attempt goes first");
    engine.withdraw(at(0), lease, 0, 2);
    assert!(engine.take(at(0)).is_some());
    engine.tick(at(5000));
    assert_eq!(recharged(&mut engine), 0);
    assert_eq!(used(&engine, at(5000)), 1, "what the second attempt has in flight");
}

#[test]
fn of_several_that_wait_the_one_that_is_meant_is_taken_back() {
    let (mut engine, lease) = running(3);
    assert_eq!(engine.recharge(at(0), lease, 1, &[]), Recharge::Waits);
    assert_eq!(engine.recharge(at(0), lease, 2, &[]), Recharge::Waits);
    engine.withdraw(at(0), lease, 0, 1);
    engine.tick(at(1100));
    assert_eq!(recharged(&mut engine), 1);
    assert_eq!(used(&engine, at(1100)), 2);
}

#[test]
fn a_message_that_was_granted_and_is_taken_back_is_refunded_whether_the_shell_has_read_of_it_or_not() {
    for read in [false, true] {
        let (mut engine, lease) = running(3);
        assert_eq!(engine.recharge(at(0), lease, 2, &[]), Recharge::Waits);
        engine.tick(at(1100));
        assert_eq!(used(&engine, at(1100)), 2);
        if read {
            assert_eq!(recharged(&mut engine), 1);
            engine.unsend(at(1100), lease, 2);
        } else {
            engine.withdraw(at(1100), lease, 0, 2);
        }
        assert_eq!(used(&engine, at(1100)), 0);
        assert_eq!(recharged(&mut engine), 0);
        engine.finish(at(1200), lease, Outcome::Ok, Answer::default(), false);
        assert_eq!(used(&engine, at(1200)), 0);
    }
}

#[test]
fn what_was_acknowledged_or_belongs_to_an_attempt_that_is_over_is_not_refunded() {
    let (mut engine, lease) = running(3);
    assert_eq!(engine.recharge(at(0), lease, 2, &[]), Recharge::Waits);
    engine.tick(at(1100));
    engine.ack(at(1100), lease, Answer::default());
    engine.unsend(at(1100), lease, 2);
    assert_eq!(used(&engine, at(1100)), 2);
    engine.finish(at(1100), lease, Outcome::Ok, Answer::default(), false);
    engine.unsend(at(1100), lease, 2);
    engine.withdraw(at(1100), lease, 0, 2);
    assert_eq!(used(&engine, at(1100)), 2);
}

#[test]
fn an_attempt_has_its_request_until_it_is_over_or_given_up() {
    let (mut engine, lease) = running(1);
    let request = engine.handle_at(0).expect("it runs");
    assert_eq!(engine.request_of(lease), Some(request));
    engine.cancel(at(1), request);
    assert_eq!(engine.request_of(lease), None, "its handler runs on for nobody");
    engine.finish(at(2), lease, Outcome::Neutral, Answer::default(), false);
    assert_eq!(engine.request_of(lease), None);

    let (mut engine, lease) = running(1);
    engine.finish(at(1), lease, Outcome::Ok, Answer::default(), false);
    assert_eq!(engine.request_of(lease), None);
}
