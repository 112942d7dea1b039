//! The timing wheel against a sorted map.
//!
//! Runs 256 cases a property; `PROPTEST_CASES=100000` soaks.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_core::time::{Instant, Span};
use tidegate_core::wheel::{TimerId, Wheel};

const TICK: u64 = 1 << 16;

#[derive(Clone, Debug)]
enum Op {
    /// Arm this long after the present.
    Arm(u64),
    /// Arm this long before the present.
    ArmPast(u64),
    /// Disarm one of the armed timers.
    Disarm(prop::sample::Index),
    /// Let time pass, then take what is due: all of it, or at most so many.
    Advance(u64, Option<usize>),
    /// Go to the wheel's own wake-up and take all that is due.
    Wake,
    /// Ask for what was due so long ago.
    Back(u64),
}

/// Spans of every magnitude, from nanoseconds to decades, and close to the boundaries of ticks.
fn span() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u32..60, any::<u64>()).prop_map(|(bits, noise)| noise >> (63 - bits)),
        2 => (0u64..300, 0u64..3).prop_map(|(ticks, off)| (ticks * TICK + off).saturating_sub(1)),
        2 => 0u64..100 * TICK,
        1 => Just(u64::MAX),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => span().prop_map(Op::Arm),
        1 => span().prop_map(Op::ArmPast),
        3 => any::<prop::sample::Index>().prop_map(Op::Disarm),
        3 => (0u64..300 * TICK, prop::option::of(0usize..4)).prop_map(|(span, most)| Op::Advance(span, most)),
        1 => (0u32..54, any::<u64>()).prop_map(|(bits, noise)| Op::Advance(noise >> (63 - bits), None)),
        3 => Just(Op::Wake),
        1 => span().prop_map(Op::Back),
    ]
}

/// What the wheel should hold: by tick, then by order of arming.
#[derive(Default)]
struct Model {
    timers: BTreeMap<(u64, u64), Instant>,
    ids: BTreeMap<u64, TimerId>,
    /// Ticks at or before this one have been asked for and found empty.
    reached: u64,
    armed: u64,
    disarmed: bool,
}

impl Model {
    fn arm(&mut self, wheel: &mut Wheel<u64>, at: Instant) {
        let tick = at.as_nanos().div_ceil(TICK).max(self.reached);
        let key = self.armed;
        self.armed += 1;
        self.timers.insert((tick, key), at);
        self.ids.insert(key, wheel.arm(at, key));
    }

    fn disarm(&mut self, wheel: &mut Wheel<u64>, index: &prop::sample::Index) {
        if self.timers.is_empty() {
            return;
        }
        let place = *self.timers.keys().nth(index.index(self.timers.len())).unwrap();
        self.timers.remove(&place);
        wheel.disarm(self.ids.remove(&place.1).unwrap());
        self.disarmed = true;
    }

    /// Takes up to `most` due timers from both, and compares them.
    fn take(&mut self, wheel: &mut Wheel<u64>, now: Instant, most: usize) -> Result<usize, TestCaseError> {
        for taken in 0..most {
            let next = self.timers.first_key_value().map(|(place, at)| (*place, *at));
            let due = next.filter(|((tick, _), _)| *tick <= now.as_nanos() / TICK);
            let fired = wheel.pop_due(now);
            prop_assert_eq!(fired, due.map(|((_, key), _)| key));
            let Some((place, at)) = due else {
                self.reached = self.reached.max(now.as_nanos() / TICK);
                return Ok(taken);
            };
            prop_assert!(at <= now, "fired early");
            self.timers.remove(&place);
            self.ids.remove(&place.1);
            self.reached = self.reached.max(place.0);
        }
        Ok(most)
    }

    fn check(&self, wheel: &Wheel<u64>) -> Result<(), TestCaseError> {
        prop_assert_eq!(wheel.len(), self.timers.len());
        let first = self.timers.keys().next().map(|(tick, _)| *tick);
        let wake = wheel.next_wake().map(|at| at.as_nanos());
        prop_assert_eq!(wake.is_some(), first.is_some());
        if let (Some(wake), Some(first)) = (wake, first) {
            prop_assert!(wake <= first.min(u64::MAX / TICK) * TICK, "wakes too late");
            if !self.disarmed {
                prop_assert_eq!(wake / TICK, first.min(u64::MAX / TICK), "wakes too early");
            }
        }
        Ok(())
    }
}

proptest! {
    /// Every timer fires once, in order, never before its instant and within a tick after it; disarmed ones never do; and
    /// the wheel asks to be woken no later than that.
    #[test]
    fn fires_what_a_sorted_map_would(origin in prop_oneof![Just(0), span()], ops in prop::collection::vec(op(), 1..120)) {
        let (mut wheel, mut model) = (Wheel::new(), Model::default());
        // Far from both ends of the clock, so that what lies `span` away exists; instants after the end saturate.
        let mut now = Instant::from_nanos(origin / 4);
        model.take(&mut wheel, now, 1)?;
        for op in &ops {
            match op {
                Op::Arm(ahead) => model.arm(&mut wheel, now + Span::from_nanos(*ahead)),
                Op::ArmPast(ago) => model.arm(&mut wheel, now - Span::from_nanos(*ago)),
                Op::Disarm(index) => model.disarm(&mut wheel, index),
                Op::Advance(span, most) => {
                    // The last tick of the clock is never reached.
                    now = (now + Span::from_nanos(*span)).min(Instant::from_nanos(u64::MAX - 2 * TICK));
                    model.take(&mut wheel, now, most.unwrap_or(usize::MAX))?;
                }
                Op::Wake => {
                    let wake = wheel.next_wake().unwrap_or(now);
                    if wake < Instant::from_nanos(u64::MAX - 2 * TICK) {
                        now = now.max(wake);
                    }
                    model.take(&mut wheel, now, usize::MAX)?;
                    prop_assert!(wheel.next_wake().is_none_or(|wake| wake > now), "wakes again at once");
                }
                Op::Back(ago) => {
                    model.take(&mut wheel, now - Span::from_nanos(*ago), usize::MAX)?;
                }
            }
            model.check(&wheel)?;
        }
    }

    /// From wake-up to wake-up every timer fires within a tick of its instant, and the number of wake-ups that find nothing
    /// is bounded by the slots that a disarmed timer was the first of.
    #[test]
    fn wake_ups_are_exact_unless_timers_were_disarmed(
        ahead in prop::collection::vec(0u64..1 << 44, 1..60),
        disarmed in prop::collection::vec(any::<bool>(), 60),
    ) {
        let mut wheel = Wheel::new();
        let ids: Vec<TimerId> = ahead.iter().map(|at| wheel.arm(Instant::from_nanos(*at), *at)).collect();
        let mut gone = 0;
        for (id, disarm) in ids.into_iter().zip(&disarmed) {
            if *disarm {
                wheel.disarm(id);
                gone += 1;
            }
        }
        let mut empty = 0;
        while let Some(wake) = wheel.next_wake() {
            let mut fired = 0;
            while let Some(at) = wheel.pop_due(wake) {
                prop_assert!(at <= wake.as_nanos() && wake.as_nanos() - at < TICK);
                fired += 1;
            }
            empty += usize::from(fired == 0);
        }
        prop_assert!(empty <= gone * 7, "{} empty wake-ups after {} disarmed timers", empty, gone);
    }
}
