//! The adaptive choice among backends, and which request a backend takes when not all would have their answer in time.

mod common;

use common::{SECOND, at, cases, engine_in_order, plain, retry, spec, submit, take_all};
use proptest::prelude::*;
use tidegate_core::engine::{Answer, BackendId, ClassId, Engine, Flags, Handle, Leased, Outcome, Submission};
use tidegate_core::limit::Limit;
use tidegate_core::queue::Order;
use tidegate_core::route::Adaptive;
use tidegate_core::time::{Instant, Span};

/// Backends with room for `concurrency` attempts each, and the class of those that may go to any.
fn adaptive(order: Order, concurrency: &[u32]) -> (Engine, Vec<BackendId>, ClassId) {
    let mut engine = engine_in_order(order, retry(3, Span::ZERO));
    engine.balance(Box::new(Adaptive));
    let add = |engine: &mut Engine, most: u32| engine.add_backend(Instant::ORIGIN, &spec(&[], Some(most)));
    let ids: Vec<BackendId> = concurrency.iter().map(|&most| add(&mut engine, most)).collect();
    let class = engine.class(Instant::ORIGIN, &ids, 1).unwrap();
    (engine, ids, class)
}

/// Has a backend answer once, after so long from the origin.
fn answers_after(engine: &mut Engine, id: BackendId, took: u64) {
    let class = engine.class(at(0), &[id], 1).unwrap();
    submit(engine, at(0), &plain(class));
    let leased = engine.take(at(0)).unwrap();
    assert_eq!(leased.backend, id);
    engine.finish(at(took), leased.lease, Outcome::Ok, Answer::default(), false);
}

fn due(class: ClassId, deadline: u64) -> Submission<'static> {
    Submission { deadline: at(deadline), ..plain(class) }
}

fn took(leased: Option<Leased>) -> Option<(Handle, BackendId)> {
    leased.map(|leased| (leased.request, leased.backend))
}

#[test]
fn the_quick_one_gets_more_and_the_slow_one_is_not_left_idle() {
    let (mut engine, ids, class) = adaptive(Order::Strict, &[100, 100]);
    answers_after(&mut engine, ids[0], 4 * SECOND);
    answers_after(&mut engine, ids[1], SECOND);
    for _ in 0..10 {
        submit(&mut engine, at(4 * SECOND), &plain(class));
    }
    let count = |id| move |all: &[Leased]| all.iter().filter(|leased| leased.backend == id).count();
    let all = take_all(&mut engine, at(4 * SECOND));
    // The quick one answered at 1 s, and three seconds of the ten in which it is forgotten have passed.
    assert_eq!((count(ids[0])(&all), count(ids[1])(&all)), (1, 9));
}

#[test]
fn a_price_and_the_order_of_preference() {
    let (mut engine, ids, class) = adaptive(Order::Strict, &[100, 100]);
    answers_after(&mut engine, ids[0], SECOND);
    answers_after(&mut engine, ids[1], SECOND);
    engine.set_standing(ids[0], 0, 2.5);
    let four: Vec<u16> = (0..4)
        .map(|_| {
            submit(&mut engine, at(SECOND), &plain(class));
            engine.take(at(SECOND)).unwrap().backend.0
        })
        .collect();
    assert_eq!(four, [1, 1, 1, 0], "as soon as the free one costs more than 3.5 s");
    engine.set_standing(ids[1], 1, 0.0);
    submit(&mut engine, at(SECOND), &plain(class));
    assert_eq!(engine.take(at(SECOND)).unwrap().backend, ids[0]);
}

/// A limit that some can go nowhere else with is left to them, as far as they ask for it.
#[test]
fn what_is_scarce_is_kept_for_those_who_need_it() {
    let few = Limit::window(6, Span::from_secs(60)).unwrap();
    for (needed, expected) in [(false, [1, 0, 1, 0]), (true, [0, 0, 0, 0])] {
        let mut engine = engine_in_order(Order::Strict, retry(3, Span::ZERO));
        engine.balance(Box::new(Adaptive));
        let ids = [engine.add_backend(at(0), &spec(&[], None)), engine.add_backend(at(0), &spec(&[few], None))];
        let any = engine.class(at(0), &ids, 1).unwrap();
        answers_after(&mut engine, ids[0], SECOND);
        answers_after(&mut engine, ids[1], SECOND - 1);
        // By now what those two asked for is forgotten.
        let now = at(200 * SECOND);
        if needed {
            let only = engine.class(now, &ids[1..], 1).unwrap();
            for _ in 0..2 {
                submit(&mut engine, now, &plain(only));
                assert_eq!(engine.take(now).unwrap().backend, ids[1]);
            }
        }
        let four: Vec<u16> = (0..4)
            .map(|_| {
                submit(&mut engine, now, &plain(any));
                engine.take(now).unwrap().backend.0
            })
            .collect();
        assert_eq!(four, expected);
    }
}

/// The slow one alone has room: it takes the first that it answers in time, and the head waits for the quick one.
#[test]
fn what_a_slow_one_would_answer_late_is_left_to_a_quick_one() {
    for order in [Order::Strict, Order::Deadline, Order::Aging(Span::from_secs(1)), Order::Fair(Vec::new())] {
        let (mut engine, ids, class) = adaptive(order.clone(), &[1, 1]);
        answers_after(&mut engine, ids[0], SECOND / 10);
        answers_after(&mut engine, ids[1], 2 * SECOND);
        let now = 2 * SECOND;
        let only = engine.class(at(now), &ids[..1], 1).unwrap();
        submit(&mut engine, at(now), &plain(only));
        let busy = engine.take(at(now)).unwrap();
        let head = submit(&mut engine, at(now), &due(class, now + 2 * SECOND));
        let second = submit(&mut engine, at(now), &due(class, now + 2 * SECOND + SECOND / 2));
        let third = submit(&mut engine, at(now), &due(class, now + 4 * SECOND));
        let last = submit(&mut engine, at(now), &due(class, now + 5 * SECOND));
        assert_eq!(took(engine.take(at(now))), Some((third, ids[1])), "{order:?}");
        assert!(engine.take(at(now)).is_none());
        engine.finish(at(now + SECOND / 10), busy.lease, Outcome::Ok, Answer::default(), false);
        assert_eq!(took(engine.take(at(now + SECOND / 10))), Some((head, ids[0])), "{order:?}");
        assert_eq!(engine.ledger().queued, 2);
        assert!(engine.cancel(at(now), second) && engine.cancel(at(now), last));
    }
}

/// What nothing would answer in time may go all the same, when nothing behind it has use for the backend.
#[test]
fn what_does_not_fit_goes_when_nothing_else_wants_to() {
    for backends in [1, 2] {
        let (mut engine, ids, class) = adaptive(Order::Deadline, &[2, 2][..backends]);
        ids.iter().for_each(|&id| answers_after(&mut engine, id, 2 * SECOND));
        let now = 2 * SECOND;
        let urgent = submit(&mut engine, at(now), &due(class, now + SECOND));
        let endless = submit(&mut engine, at(now), &plain(class));
        assert_eq!(engine.take(at(now)).map(|leased| leased.request), Some(endless));
        assert_eq!(engine.take(at(now)).map(|leased| leased.request), Some(urgent));
    }
}

/// A fresh engine minds nobody's deadline.
#[test]
fn least_in_flight_does_not_look_ahead() {
    let mut engine = engine_in_order(Order::Deadline, retry(3, Span::ZERO));
    let id = engine.add_backend(at(0), &spec(&[], Some(1)));
    let class = engine.class(at(0), &[id], 1).unwrap();
    answers_after(&mut engine, id, 2 * SECOND);
    let head = submit(&mut engine, at(2 * SECOND), &due(class, 3 * SECOND));
    submit(&mut engine, at(2 * SECOND), &due(class, 30 * SECOND));
    assert_eq!(took(engine.take(at(2 * SECOND))), Some((head, id)));
}

#[derive(Clone, Debug)]
enum Op {
    /// Priority, milliseconds to the deadline, flow.
    Submit(u8, Option<u64>, bool),
    Take,
    /// One of those that run ends.
    Finish(usize, bool),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (prop::sample::select(vec![0u8, 128]), prop::option::weighted(0.7, 1u64..5000), any::<bool>())
            .prop_map(|(priority, timeout, flow)| Op::Submit(priority, timeout, flow)),
        4 => Just(Op::Take),
        3 => (0usize..100, prop::bool::weighted(0.9)).prop_map(|(index, ok)| Op::Finish(index, ok)),
        3 => (0u64..800).prop_map(Op::Pass),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop::sample::select(vec![Order::Strict, Order::Deadline, Order::Aging(Span::from_millis(3)), Order::Fair(Vec::new())])
}

proptest! {
    #![proptest_config(cases(300))]

    /// Whatever is skipped, every request ends once, nothing goes at or after its deadline, and nothing waits that could go.
    #[test]
    fn nothing_is_lost(order in order(), ops in prop::collection::vec(op(), 1..200)) {
        let mut engine = engine_in_order(order, retry(3, Span::from_millis(10)));
        engine.balance(Box::new(Adaptive));
        let limits = [Limit::window(3, Span::from_secs(1)).unwrap()];
        let specs = [spec(&limits, Some(2)), spec(&[], Some(1)), spec(&limits, None)];
        let ids: Vec<BackendId> = specs.iter().map(|spec| engine.add_backend(at(0), spec)).collect();
        let classes = [engine.class(at(0), &ids, 1).unwrap(), engine.class(at(0), &ids[..1], 1).unwrap()];
        let (mut now, mut running, mut submitted) = (at(0), Vec::<Leased>::new(), 0u64);
        for op in ops {
            match op {
                Op::Submit(priority, timeout, other) => {
                    let deadline = timeout.map_or(Instant::FAR, |timeout| now + Span::from_millis(timeout));
                    let flow = if other { "other" } else { "" };
                    let class = classes[usize::from(other)];
                    submit(&mut engine, now, &Submission { priority, deadline, flow, flags: Flags::default(), ..plain(class) });
                    submitted += 1;
                }
                Op::Take => {
                    if let Some(leased) = engine.take(now) {
                        prop_assert!(leased.deadline > now);
                        running.push(leased);
                    } else {
                        prop_assert!(!engine.may_run());
                    }
                }
                Op::Finish(index, ok) if !running.is_empty() => {
                    let leased = running.swap_remove(index % running.len());
                    let outcome = if ok { Outcome::Ok } else { Outcome::Failed };
                    engine.finish(now, leased.lease, outcome, Answer::default(), false);
                }
                Op::Finish(..) => {}
                Op::Pass(millis) => {
                    now = now + Span::from_millis(millis);
                    engine.tick(now);
                }
            }
            while engine.pop_ended().is_some() {}
        }
        for leased in running {
            engine.finish(now, leased.lease, Outcome::Ok, Answer::default(), false);
        }
        while !engine.is_idle() {
            while let Some(leased) = engine.take(now) {
                engine.finish(now, leased.lease, Outcome::Ok, Answer::default(), false);
            }
            match engine.next_wake() {
                Some(wake) => now = wake,
                None => prop_assert!(engine.is_idle(), "stuck"),
            }
        }
        while engine.pop_ended().is_some() {}
        let ledger = engine.ledger();
        prop_assert_eq!((ledger.accepted, ledger.delivered + ledger.expired + ledger.dead), (submitted, submitted));
    }
}
