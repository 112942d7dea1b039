//! How flows share what is admitted under the fair order.

mod common;

use common::{SECOND, at, cases, engine_in_order, plain, retry, spec, submit, take_all};
use proptest::prelude::*;
use tidegate_core::engine::{Answer, BackendId, Engine, Handle, Outcome, Submission};
use tidegate_core::limit::Limit;
use tidegate_core::queue::Order;
use tidegate_core::time::{Instant, Span};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn fair(weights: &[(&str, f64)]) -> Order {
    Order::Fair(weights.iter().map(|&(name, weight)| (name.into(), weight)).collect())
}

fn finish_all(engine: &mut Engine, now: Instant) -> Vec<Handle> {
    let taken = take_all(engine, now);
    for leased in &taken {
        engine.finish(now, leased.lease, Outcome::Ok, Answer::default(), false);
    }
    taken.iter().map(|leased| leased.request).collect()
}

#[derive(Clone, Debug)]
enum Op {
    /// A flow submits so many requests of this cost.
    Submit(usize, usize, u32),
    /// Time passes, and what its limits admit goes.
    Pass(u64),
    /// One that waits is cancelled.
    Cancel(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0usize..4, 1usize..20, 1u32..6).prop_map(|(flow, count, cost)| Op::Submit(flow, count, cost)),
        3 => (1u64..40).prop_map(Op::Pass),
        1 => (0usize..1000).prop_map(Op::Cancel),
    ]
}

proptest! {
    #![proptest_config(cases(200))]

    /// In any span in which two flows both wait, what they get by weight differs by no more than the largest request of each by
    /// weight, whatever they cost, whoever else comes, and whatever is cancelled.
    #[test]
    fn two_flows_that_wait_are_served_by_weight(
        weights in prop::collection::vec(prop_oneof![Just(1.0), Just(0.25), 0.1f64..10.0], 4),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let named: Vec<(&str, f64)> = NAMES.into_iter().zip(weights.iter().copied()).collect();
        let mut engine = engine_in_order(fair(&named), retry(1, Span::ZERO));
        let limit = Limit::bucket(10, Span::from_secs(1), 5).unwrap();
        let backend = engine.add_backend(Instant::ORIGIN, &spec(&[limit], None));
        let classes: Vec<_> = (1..6).map(|cost| engine.class(at(0), &[backend], cost).unwrap()).collect();
        let mut now = at(0);
        let mut waiting: Vec<(Handle, usize, u32)> = Vec::new();
        let mut served = [0.0f64; 4];
        let mut largest = [0u32; 4];
        // For each pair: the least and the most lead of the first since both began to wait, by weight.
        let mut leads = vec![None::<(f64, f64)>; 16];
        for op in ops {
            match op {
                Op::Submit(flow, count, cost) => {
                    for _ in 0..count {
                        let submission = Submission { flow: NAMES[flow], ..plain(classes[cost as usize - 1]) };
                        waiting.push((submit(&mut engine, now, &submission), flow, cost));
                    }
                    largest[flow] = largest[flow].max(cost);
                }
                Op::Pass(decis) => now = now + Span::from_nanos(decis * SECOND / 10),
                Op::Cancel(index) if !waiting.is_empty() => {
                    let (handle, ..) = waiting.swap_remove(index % waiting.len());
                    prop_assert!(engine.cancel(now, handle));
                }
                Op::Cancel(_) => {}
            }
            while engine.pop_ended().is_some() {}
            loop {
                for (pair, lead) in leads.iter_mut().enumerate() {
                    let (one, other) = (pair / 4, pair % 4);
                    let waits = |flow: usize| waiting.iter().any(|(_, theirs, _)| *theirs == flow);
                    if one >= other || !waits(one) || !waits(other) {
                        *lead = None;
                        continue;
                    }
                    let current = served[one] / weights[one] - served[other] / weights[other];
                    let (least, most) = lead.map_or((current, current), |(least, most)| (least.min(current), most.max(current)));
                    *lead = Some((least, most));
                    let bound = f64::from(largest[one]) / weights[one] + f64::from(largest[other]) / weights[other];
                    prop_assert!(most - least <= bound * 1.0001, "{} {}: {} > {}", one, other, most - least, bound);
                }
                let Some(leased) = engine.take(now) else { break };
                engine.finish(now, leased.lease, Outcome::Ok, Answer::default(), false);
                let index = waiting.iter().position(|(handle, ..)| *handle == leased.request).unwrap();
                let (_, flow, cost) = waiting.swap_remove(index);
                served[flow] += f64::from(cost);
            }
        }
    }
}

/// One backend that admits a request each tenth of a second, and requests by flow in this order.
fn queue(order: Order, flows: &[&'static str]) -> (Engine, Vec<(Handle, &'static str)>) {
    let mut engine = engine_in_order(order, retry(1, Span::ZERO));
    let backend = engine.add_backend(Instant::ORIGIN, &spec(&[Limit::bucket(10, Span::from_secs(1), 1).unwrap()], None));
    let class = engine.class(at(0), &[backend], 1).unwrap();
    let submitted = flows.iter().map(|&flow| (submit(&mut engine, at(0), &Submission { flow, ..plain(class) }), flow));
    let submitted = submitted.collect();
    (engine, submitted)
}

/// The flows of all that waits, in the order in which they go from this second on.
fn order_of(engine: &mut Engine, submitted: &[(Handle, &'static str)], start: u64) -> String {
    let mut order = String::new();
    for second in start..start + 100 {
        for handle in finish_all(engine, at(second * SECOND)) {
            order += submitted.iter().find(|(theirs, _)| *theirs == handle).unwrap().1;
        }
    }
    order
}

#[test]
fn flows_take_turns_by_weight_and_are_first_in_first_out_inside() {
    let (mut engine, submitted) = queue(fair(&[("b", 2.0)]), &["a", "a", "a", "a", "b", "b", "b", "b"]);
    assert_eq!(order_of(&mut engine, &submitted, 0), "abbabbaa");
}

/// A flow that submits much and takes most of it back is not served as if it had been given all of it.
#[test]
fn what_is_cancelled_takes_no_share() {
    let flows: Vec<&str> = ["a"; 50].into_iter().chain(["b"; 4]).collect();
    let (mut engine, submitted) = queue(fair(&[]), &flows);
    for (handle, _) in &submitted[..46] {
        assert!(engine.cancel(at(0), *handle));
    }
    assert_eq!(order_of(&mut engine, &submitted, 0), "abababab");
}

#[test]
fn a_flow_that_was_away_neither_saved_up_nor_owes() {
    let (mut engine, mut submitted) = queue(fair(&[]), &["a"; 20]);
    let class = engine.class(at(0), &[BackendId(0)], 1).unwrap();
    for second in 0..10 {
        assert_eq!(finish_all(&mut engine, at(second * SECOND)).len(), 1);
    }
    let late = Submission { flow: "b", ..plain(class) };
    submitted.extend((0..3).map(|_| (submit(&mut engine, at(10 * SECOND), &late), "b")));
    assert_eq!(order_of(&mut engine, &submitted, 10), "bababaaaaaaaa");
    // Nobody has waited since: what either was served before counts no more.
    let again = |flow: &'static str| (submit(&mut engine, at(200 * SECOND), &Submission { flow, ..plain(class) }), flow);
    let submitted: Vec<_> = ["a", "a", "b", "b", "c", "c"].map(again).into();
    assert_eq!(order_of(&mut engine, &submitted, 200), "abcabc");
}

/// Flows are fair to each other at each backend: one that is served slowly by its only backend has nothing over one that comes later,
/// however much others were served elsewhere.
#[test]
fn a_slow_backend_does_not_favour_who_came_first() {
    let mut engine = engine_in_order(fair(&[]), retry(1, Span::ZERO));
    let slow = engine.add_backend(Instant::ORIGIN, &spec(&[Limit::bucket(1, Span::from_secs(1), 1).unwrap()], None));
    let fast = engine.add_backend(Instant::ORIGIN, &spec(&[Limit::bucket(1000, Span::from_secs(1), 100).unwrap()], None));
    let [at_slow, at_fast] = [slow, fast].map(|backend| engine.class(at(0), &[backend], 1).unwrap());
    let first = Submission { flow: "first", ..plain(at_slow) };
    for _ in 0..100 {
        submit(&mut engine, at(0), &first);
        submit(&mut engine, at(0), &Submission { flow: "other", ..plain(at_fast) });
    }
    finish_all(&mut engine, at(0));
    let late: Vec<Handle> =
        (0..10).map(|_| submit(&mut engine, at(SECOND), &Submission { flow: "late", ..plain(at_slow) })).collect();
    let mut order = Vec::new();
    for turn in 1..21 {
        order.extend(finish_all(&mut engine, at(2 * turn * SECOND)));
    }
    let served = order.iter().filter(|handle| late.contains(handle)).count();
    assert!((9..=10).contains(&served), "{served} of 10 in 20 turns");
}
