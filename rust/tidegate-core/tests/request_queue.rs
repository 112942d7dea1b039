//! The queue alone against a list that is sorted anew each time.
//!
//! Runs 256 cases a property; `PROPTEST_CASES=100000` soaks.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_core::queue::{Order, RequestQueue};
use tidegate_core::time::{Instant, Span};

#[derive(Clone, Copy, Debug)]
enum Op {
    /// So long after the last, in this band, due so long after now, in this flow.
    Push(u64, u8, Option<u64>, usize),
    Pop,
    Cancel(usize),
    /// A handle that was given once, whatever became of it.
    CancelAgain(usize),
}

const FLOWS: [&str; 3] = ["", "a", "b"];

fn op() -> impl Strategy<Value = Op> {
    let band = prop::sample::select(vec![0u8, 64, 128, 255]);
    prop_oneof![
        5 => (0u64..4, band, prop::option::of(0u64..50), 0usize..3).prop_map(|(pause, band, due, flow)| Op::Push(pause, band, due, flow)),
        4 => Just(Op::Pop),
        1 => (0usize..100).prop_map(Op::Cancel),
        1 => (0usize..100).prop_map(Op::CancelAgain),
    ]
}

/// What the slow model remembers of an item.
#[derive(Clone, Copy, Debug)]
struct Item {
    handle: u64,
    number: u64,
    band: u8,
    joined: u64,
    due: u64,
    flow: usize,
}

/// Of an item, what it is sorted by.
fn rank(order: &Order, item: &Item) -> (u8, u64, u64) {
    match order {
        Order::Aging(step) => (0, item.joined + step.as_nanos() * u64::from(item.band), item.number),
        Order::Deadline => (item.band, item.due, item.number),
        Order::Strict | Order::Fair(_) => (item.band, 0, item.number),
    }
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::Strict),
        (0u64..3).prop_map(|step| Order::Aging(Span::from_nanos(step))),
        Just(Order::Deadline),
        Just(Order::Fair(vec![("a".into(), 2.0)])),
    ]
}

proptest! {
    /// What comes out is the least of all that wait; under the fair order the first of its flow in the most urgent band. Handles name
    /// their item until it is gone and nothing after, and there are never more than the capacity.
    #[test]
    fn gives_out_in_order(order in order(), capacity in 1usize..20, ops in prop::collection::vec(op(), 1..200)) {
        let mut queue = RequestQueue::new(capacity, &order);
        let mut items: Vec<Item> = Vec::new();
        let mut given: Vec<u64> = Vec::new();
        let mut now = 0;
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Push(pause, band, due, flow) => {
                    now += pause;
                    let deadline = due.map_or(Instant::FAR, |due| Instant::from_nanos(now + due));
                    let pushed = queue.push(Instant::from_nanos(now), band, deadline, FLOWS[flow]);
                    prop_assert_eq!(pushed.is_some(), items.len() < capacity);
                    if let Some(handle) = pushed {
                        prop_assert!(!given.contains(&handle));
                        given.push(handle);
                        let due = now + due.unwrap_or(3_600_000_000_000);
                        items.push(Item { handle, number: number as u64, band, joined: now, due, flow });
                    }
                }
                Op::Pop => {
                    let next = queue.peek();
                    let popped = queue.pop();
                    prop_assert_eq!(next, popped);
                    prop_assert_eq!(popped.is_some(), !items.is_empty());
                    let Some(handle) = popped else { continue };
                    let at = items.iter().position(|item| item.handle == handle).unwrap();
                    let item = items.swap_remove(at);
                    let competes = |other: &&Item| !matches!(order, Order::Fair(_)) || other.flow == item.flow || other.band < item.band;
                    prop_assert!(items.iter().filter(competes).all(|other| rank(&order, other) > rank(&order, &item)));
                }
                Op::Cancel(index) if !items.is_empty() => {
                    let item = items.swap_remove(index % items.len());
                    prop_assert!(queue.cancel(item.handle));
                    prop_assert!(!queue.cancel(item.handle));
                }
                Op::CancelAgain(index) if !given.is_empty() => {
                    let handle = given[index % given.len()];
                    let at = items.iter().position(|item| item.handle == handle);
                    prop_assert_eq!(queue.cancel(handle), at.is_some());
                    at.map(|at| items.swap_remove(at));
                }
                Op::Cancel(_) | Op::CancelAgain(_) => {}
            }
            prop_assert_eq!((queue.len(), queue.is_empty(), queue.is_full()), (items.len(), items.is_empty(), items.len() == capacity));
        }
    }

    /// Flows that both wait share what is taken out by their weights, to one item of each, wherever one begins to look.
    #[test]
    fn flows_share_by_weight(weights in (1u32..5, 1u32..5), from in 0usize..50) {
        let (a, b) = weights;
        let mut queue = RequestQueue::new(1000, &Order::Fair(vec![("a".into(), f64::from(a)), ("b".into(), f64::from(b))]));
        let mut flows = BTreeMap::new();
        for _ in 0..300 {
            for flow in ["a", "b"] {
                flows.insert(queue.push(Instant::ORIGIN, 128, Instant::FAR, flow).unwrap(), flow);
            }
        }
        (0..from).for_each(|_| { queue.pop(); });
        let (mut of_a, mut of_b) = (0, 0);
        for _ in 0..100 {
            *(if flows[&queue.pop().unwrap()] == "a" { &mut of_a } else { &mut of_b }) += 1;
            let difference = f64::from(of_a) / f64::from(a) - f64::from(of_b) / f64::from(b);
            prop_assert!(difference.abs() <= 1.0 / f64::from(a) + 1.0 / f64::from(b) + 1e-5, "{of_a}:{of_b}");
        }
    }
}
