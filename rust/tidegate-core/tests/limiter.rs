//! The limiter against a slow model of what it promises.
//!
//! Runs 256 cases a property; `PROPTEST_CASES=100000` soaks.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use tidegate_core::limit::{Limit, Margin};
use tidegate_core::limiter::{Limiter, LimiterError, Turn};
use tidegate_core::time::{Instant, Span};

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

fn nanos(count: u64) -> Span {
    Span::from_nanos(count)
}

/// What a caller does next, so many nanoseconds after the last one.
#[derive(Clone, Copy, Debug)]
enum Act {
    Try {
        cost: u32,
    },
    Join {
        cost: u32,
        hold: bool,
    },
    /// One who waits gives up.
    Leave(usize),
    /// One who holds what it was admitted to lets its clock start.
    Anchor(usize),
    SetLimits(usize),
}

fn act() -> impl Strategy<Value = (u64, u8, Act)> {
    let act = prop_oneof![
        5 => (1u32..4).prop_map(|cost| Act::Try { cost }),
        6 => (1u32..4, any::<bool>()).prop_map(|(cost, hold)| Act::Join { cost, hold }),
        1 => (0usize..100).prop_map(Act::Leave),
        3 => (0usize..100).prop_map(Act::Anchor),
        1 => (0usize..4).prop_map(Act::SetLimits),
    ];
    (0u64..60, 0u8..3, act)
}

fn limits(choice: usize) -> Vec<Limit> {
    let window = |amount, period| Limit::window(amount, nanos(period)).unwrap();
    let bucket = |amount, period, burst| Limit::bucket(amount, nanos(period), burst).unwrap();
    match choice {
        0 => vec![bucket(10, 1000, 4)],
        1 => vec![window(3, 200)],
        2 => vec![bucket(5, 200, 3), window(10, 900)],
        _ => vec![bucket(3, 100, 6)],
    }
}

/// A limiter, and those who call it, each with one key or none.
struct World {
    limiter: Limiter<u8>,
    now: u64,
    next: u64,
    /// In order, those who wait: number, cost, whether it holds.
    waiting: BTreeMap<Option<u8>, VecDeque<(u64, u32, bool)>>,
    /// When the head of each line asks.
    timers: BTreeMap<u64, (u64, Option<u8>)>,
    /// What is held, by key.
    held: Vec<(Option<u8>, u32)>,
    /// When the clocks of units of each key started.
    arrivals: BTreeMap<Option<u8>, Vec<(u64, u32)>>,
}

impl World {
    fn new(choice: usize) -> World {
        let limiter = Limiter::new(&limits(choice), Margin::NONE);
        let (waiting, timers, arrivals) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        World { limiter, now: 0, next: 0, waiting, timers, held: Vec::new(), arrivals }
    }

    fn arrive(&mut self, key: Option<u8>, cost: u32) {
        self.arrivals.entry(key).or_default().push((self.now, cost));
    }

    /// Does what a turn says; admissions come from the head of the line and nowhere else.
    fn apply(&mut self, key: Option<u8>, turn: Turn) {
        let mut turns = vec![turn];
        while let Some(turn) = turns.pop() {
            for waiter in turn.admitted {
                let (first, cost, hold) = self.waiting.get_mut(&key).unwrap().pop_front().unwrap();
                assert_eq!(waiter, first, "overtaken");
                turns.push(self.limiter.claim(at(self.now), waiter, key, !hold).unwrap());
                if hold {
                    self.held.push((key, cost));
                } else {
                    self.arrive(key, cost);
                }
            }
            for waiter in turn.refused {
                let (first, ..) = self.waiting.get_mut(&key).unwrap().pop_front().unwrap();
                assert_eq!(waiter, first);
            }
            if let Some((waiter, wait)) = turn.next {
                assert_eq!(Some(waiter), self.waiting[&key].front().map(|head| head.0), "only the head asks again");
                self.timers.insert(waiter, (self.now + wait.as_nanos(), key));
            }
        }
    }

    /// Lets time pass until `then`, with every timer in its order.
    fn pass(&mut self, then: u64) {
        while let Some((&waiter, &(due, key))) =
            self.timers.iter().filter(|(_, timer)| timer.0 <= then).min_by_key(|(_, timer)| timer.0)
        {
            self.now = self.now.max(due);
            self.timers.remove(&waiter);
            let turn = self.limiter.poll(at(self.now), key).unwrap();
            self.apply(key, turn);
        }
        self.now = then;
    }

    fn step(&mut self, key: Option<u8>, act: Act) {
        let now = at(self.now);
        let has_line = self.waiting.get(&key).is_some_and(|line| !line.is_empty());
        match act {
            Act::Try { cost } => {
                let expected = self.limiter.retry_after(now, cost, key);
                match self.limiter.try_acquire(now, cost, key) {
                    Ok(true) => {
                        assert!(!has_line, "overtook the line");
                        assert_eq!(expected, Ok(Span::ZERO));
                        self.arrive(key, cost);
                    }
                    Ok(false) => {
                        assert!(has_line || expected.unwrap() > Span::ZERO || self.held.iter().any(|held| held.0 == key))
                    }
                    Err(error) => assert!(matches!(error, LimiterError::CostExceedsBurst { largest, .. } if largest < cost)),
                }
            }
            Act::Join { cost, hold } => {
                self.next += 1;
                let Ok((admitted, turn)) = self.limiter.join(now, self.next, cost, key) else { return };
                if !admitted {
                    self.waiting.entry(key).or_default().push_back((self.next, cost, hold));
                    self.apply(key, turn);
                } else if hold {
                    assert!(!has_line);
                    self.held.push((key, cost));
                } else {
                    assert!(!has_line);
                    let turn = self.limiter.anchor(now, cost, key).unwrap();
                    self.arrive(key, cost);
                    self.apply(key, turn);
                }
            }
            Act::Leave(index) => {
                let Some(line) = self.waiting.get_mut(&key).filter(|line| !line.is_empty()) else { return };
                let (waiter, ..) = line.remove(index % line.len()).unwrap();
                self.timers.remove(&waiter);
                let turn = self.limiter.leave(now, waiter, key).unwrap();
                self.apply(key, turn);
            }
            Act::Anchor(index) if !self.held.is_empty() => {
                let (key, cost) = self.held.swap_remove(index % self.held.len());
                let turn = self.limiter.anchor(now, cost, key).unwrap();
                self.arrive(key, cost);
                self.apply(key, turn);
            }
            Act::Anchor(_) | Act::SetLimits(_) => {}
        }
    }

    fn let_all_go(&mut self) {
        while let Some((key, cost)) = self.held.pop() {
            let turn = self.limiter.anchor(at(self.now), cost, key).unwrap();
            self.arrive(key, cost);
            self.apply(key, turn);
        }
    }
}

/// Units of the arrivals within `(from, from + span)`.
fn units(arrivals: &[(u64, u32)], from: u64, span: u64) -> u64 {
    let within = |arrival: &&(u64, u32)| from <= arrival.0 && arrival.0 < from + span;
    arrivals.iter().filter(within).map(|arrival| u64::from(arrival.1)).sum()
}

/// Whether arrivals exceed a limit in any span of time that begins with one of them.
fn exceeds(limit: &Limit, arrivals: &[(u64, u32)]) -> bool {
    let (amount, period) = (u64::from(limit.amount()), limit.period().as_nanos());
    arrivals.iter().any(|&(from, _)| {
        if limit.burst() == limit.amount() {
            return units(arrivals, from, period) > amount;
        }
        arrivals
            .iter()
            .filter(|arrival| arrival.0 >= from)
            .any(|&(to, _)| units(arrivals, from, to - from + 1) > u64::from(limit.burst()) + (to - from) * amount / period)
    })
}

proptest! {
    /// Whatever callers do, no window and no bucket of any key is ever exceeded; lines are first in, first out; nobody overtakes; and
    /// when all let go, everybody who waits comes to the end of its line.
    #[test]
    fn keeps_its_limits_and_its_lines(choice in 0usize..4, keyed in any::<bool>(), acts in prop::collection::vec(act(), 1..120)) {
        let mut world = World::new(choice);
        for (pause, key, act) in acts {
            world.pass(world.now + pause);
            world.step(Some(key).filter(|key| keyed && *key > 0), act);
        }
        for _ in 0..2000 {
            world.let_all_go();
            world.pass(world.now + 100);
        }
        prop_assert!(world.waiting.values().all(VecDeque::is_empty), "somebody waits for ever");
        for arrivals in world.arrivals.values() {
            for limit in limits(choice) {
                prop_assert!(!exceeds(&limit, arrivals), "{limit:?}: {arrivals:?}");
            }
        }
    }

    /// Keys know nothing of each other, and one that is forgotten is missed by nobody: each key is admitted exactly when a limiter of its
    /// own would have admitted it.
    #[test]
    fn keys_are_independent(choice in 0usize..4, calls in prop::collection::vec((0u64..40, 0u16..400, 1u32..4), 1..600)) {
        let limiter = Limiter::new(&limits(choice), Margin::NONE);
        let mut own: BTreeMap<u16, Limiter<u16>> = BTreeMap::new();
        let mut now = 0;
        for (pause, key, cost) in calls {
            now += pause;
            // A few keys that come again and again, many that come once.
            let key = if key < 200 { key % 3 } else { key };
            let alone = own.entry(key).or_insert_with(|| Limiter::new(&limits(choice), Margin::NONE));
            prop_assert_eq!(limiter.try_acquire(at(now), cost, Some(key)), alone.try_acquire(at(now), cost, None));
            prop_assert_eq!(limiter.retry_after(at(now), cost, Some(key)), alone.retry_after(at(now), cost, None));
        }
        prop_assert!(limiter.keys().unwrap() <= own.len());
    }

    /// Limits that change reach those who wait: everybody is admitted, or refused because no limit can admit it any more, and all lines
    /// come to their end.
    #[test]
    fn a_change_of_limits_reaches_the_line(choice in 0usize..4, acts in prop::collection::vec(act(), 1..120)) {
        let mut world = World::new(choice);
        for (pause, key, act) in acts {
            world.pass(world.now + pause);
            if let Act::SetLimits(choice) = act {
                for turn in world.limiter.set_limits(at(world.now), &limits(choice)).unwrap() {
                    let named = turn.admitted.first().or(turn.refused.first()).copied().or(turn.next.map(|next| next.0)).unwrap();
                    let waits = |line: &VecDeque<(u64, u32, bool)>| line.iter().any(|waiter| waiter.0 == named);
                    let key = world.waiting.iter().find(|(_, line)| waits(line)).map(|(key, _)| *key).unwrap();
                    world.apply(key, turn);
                }
            } else {
                world.step(Some(key).filter(|key| *key > 0), act);
            }
        }
        for _ in 0..2000 {
            world.let_all_go();
            world.pass(world.now + 100);
        }
        prop_assert!(world.waiting.values().all(VecDeque::is_empty), "somebody waits for ever");
    }
}

#[test]
fn a_key_is_forgotten_when_it_is_full_again_and_not_before() {
    let limiter = Limiter::new(&[Limit::window(1, nanos(1000)).unwrap()], Margin::NONE);
    for key in 0..1000 {
        assert_eq!(limiter.try_acquire(at(0), 1, Some(key)), Ok(true));
    }
    assert_eq!(limiter.keys(), Ok(1000));
    for key in 1000..1500 {
        assert_eq!(limiter.try_acquire(at(999), 1, Some(key)), Ok(true));
    }
    for key in 0..1500 {
        assert_eq!(limiter.try_acquire(at(999), 1, Some(key)), Ok(false), "{key}");
    }
    for key in 0..20_000 {
        assert_eq!(limiter.try_acquire(at(3000 + 100 * key), 1, Some(key)), Ok(true));
    }
    assert!(limiter.keys().unwrap() < 4000);
}

#[test]
fn more_room_lets_the_line_go_at_once() {
    let limiter: Limiter<u8> = Limiter::new(&[Limit::bucket(1, nanos(1000), 1).unwrap()], Margin::NONE);
    assert_eq!(limiter.try_acquire(at(0), 1, None), Ok(true));
    for waiter in 1..=4 {
        limiter.join(at(0), waiter, 1, None).unwrap();
    }
    assert_eq!(limiter.retry_after(at(0), 1, None), Ok(nanos(5000)));
    let turns = limiter.set_limits(at(10), &[Limit::bucket(1, nanos(1000), 3).unwrap()]).unwrap();
    assert_eq!(turns, [Turn { admitted: vec![1, 2], refused: vec![], next: Some((3, nanos(990))) }]);
    limiter.set_limits(at(20), &[]).unwrap();
    assert_eq!(limiter.join(at(20), 9, u32::MAX, None).map(|joined| joined.0), Ok(true));
}

#[test]
fn a_cost_that_fits_no_more_is_refused_and_lets_others_pass() {
    let limiter: Limiter<u8> = Limiter::new(&[Limit::window(5, nanos(1000)).unwrap()], Margin::NONE);
    assert_eq!(limiter.try_acquire(at(0), 5, None), Ok(true));
    limiter.join(at(0), 1, 5, None).unwrap();
    limiter.join(at(0), 2, 1, None).unwrap();
    let turns = limiter.set_limits(at(10), &[Limit::window(2, nanos(1000)).unwrap()]).unwrap();
    assert_eq!(turns, [Turn { admitted: vec![], refused: vec![1], next: Some((2, nanos(990))) }]);
    assert_eq!(limiter.poll(at(1000), None).unwrap().admitted, [2]);
}

#[test]
fn a_permit_that_is_not_claimed_goes_to_the_next() {
    let limiter: Limiter<u8> = Limiter::new(&[Limit::window(1, nanos(1000)).unwrap()], Margin::NONE);
    assert!(limiter.join(at(0), 1, 1, None).unwrap().0);
    limiter.join(at(0), 2, 1, None).unwrap();
    limiter.join(at(0), 3, 1, None).unwrap();
    limiter.anchor(at(100), 1, None).unwrap();
    assert_eq!(limiter.poll(at(1100), None).unwrap().admitted, [2]);
    assert_eq!(limiter.leave(at(1150), 2, None).unwrap().admitted, [3]);
    limiter.claim(at(1150), 3, None, true).unwrap();
    assert_eq!(limiter.retry_after(at(1150), 1, None), Ok(nanos(1000)));
}
