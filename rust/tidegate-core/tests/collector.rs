//! A collector under random programs: every planned instant is accounted for once, in the way that its overrun policy says.

mod common;

use std::collections::BTreeMap;

use common::{SECOND, at, cases};
use proptest::prelude::*;
use tidegate_core::collector::{Collector, Ended, Overrun, Poll};
use tidegate_core::time::{Instant, Span};

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    /// Begins up to so many polls.
    Take(usize),
    /// Ends one of those that run.
    End(usize),
    /// Begins one and gives it back.
    GiveBack,
    Add(u64, u64),
    Remove(u64),
    Pause,
    Resume,
}

/// One that runs, or the last one that ended.
#[derive(Clone, Copy, Debug)]
struct Run {
    poll: Poll,
    begun: Instant,
    ended: Option<Instant>,
}

struct World {
    collector: Collector,
    overrun: Overrun,
    now: Instant,
    /// By slot, as long as the target is there.
    last: BTreeMap<u32, Run>,
    /// Slots of targets by key, and those that were removed while they ran.
    slots: BTreeMap<u64, u32>,
    removed: Vec<Run>,
    /// Polls that had begun when a pause was on, or began after one: what a pause leaves out is not the policy's.
    resumed_at: Instant,
    paused: bool,
    ended: u64,
}

impl World {
    fn new(overrun: Overrun, spread: bool, targets: &[u64]) -> World {
        let mut collector = Collector::new(overrun, spread);
        let mut slots = BTreeMap::new();
        for (key, period) in targets.iter().enumerate() {
            slots.insert(key as u64, collector.add(at(0), key as u64, Span::from_nanos(*period)).unwrap());
        }
        collector.start(at(0), 12_345_678_901);
        let (last, removed) = (BTreeMap::new(), Vec::new());
        World { collector, overrun, now: at(0), last, slots, removed, resumed_at: at(0), paused: false, ended: 0 }
    }

    fn play(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Pass(nanos) => self.now = self.now + Span::from_nanos(nanos),
            Op::Take(most) => {
                for _ in 0..most {
                    let Some(poll) = self.collector.take_due(self.now) else { break };
                    self.check_begun(poll)?;
                    self.last.insert(poll.target, Run { poll, begun: self.now, ended: None });
                }
            }
            Op::End(nth) => {
                let mut running: Vec<Run> = self.last.values().filter(|run| run.ended.is_none()).copied().collect();
                running.extend(&self.removed);
                if !running.is_empty() {
                    let run = running[nth % running.len()];
                    let slot = run.poll.target;
                    self.collector.ended(self.now, slot, Ended::Delivered, self.now.since(run.poll.planned));
                    self.ended += 1;
                    match self.removed.iter().position(|removed| removed.poll == run.poll) {
                        Some(place) => drop(self.removed.remove(place)),
                        None => self.last.get_mut(&slot).unwrap().ended = Some(self.now),
                    }
                }
            }
            Op::GiveBack => {
                if let Some(poll) = self.collector.take_due(self.now) {
                    self.check_begun(poll)?;
                    self.collector.give_back(poll);
                    prop_assert!(self.collector.has_due());
                    let again = self.collector.take_due(self.now);
                    prop_assert_eq!(again, Some(poll), "the first again");
                    self.collector.give_back(poll);
                }
            }
            Op::Add(key, period) => match self.collector.add(self.now, key, Span::from_nanos(period)) {
                Ok(slot) => {
                    prop_assert!(self.slots.insert(key, slot).is_none());
                    self.last.remove(&slot);
                    prop_assert!(self.removed.iter().all(|run| run.poll.target != slot), "a slot in use");
                }
                Err(twice) => prop_assert_eq!(self.slots.get(&key), Some(&twice.of)),
            },
            Op::Remove(key) => {
                let slot = self.slots.remove(&key);
                prop_assert_eq!(self.collector.remove(key), slot);
                self.removed.extend(slot.and_then(|slot| self.last.remove(&slot)).filter(|run| run.ended.is_none()));
            }
            Op::Pause => {
                self.collector.pause();
                self.paused = true;
            }
            Op::Resume => {
                self.collector.resume(self.now);
                if std::mem::take(&mut self.paused) {
                    self.resumed_at = self.now;
                }
            }
        }
        self.check()
    }

    /// A poll that begins now follows the last one of its target as the policy says.
    fn check_begun(&self, poll: Poll) -> Result<(), TestCaseError> {
        let Poll { target, planned, period } = poll;
        prop_assert!(!self.paused);
        prop_assert!(planned <= self.now, "never early");
        let latest = self.now.since(planned) < period;
        prop_assert!(self.overrun != Overrun::Coalesce || latest, "for the latest instant that has passed");
        let Some(last) = self.last.get(&target) else { return Ok(()) };
        let ended = last.ended;
        prop_assert!(ended.is_some(), "one at a time");
        let (ended, since) = (ended.unwrap(), planned.since(last.poll.planned));
        prop_assert!(since > Span::ZERO);
        let on_the_grid = since.as_nanos() % period.as_nanos() == 0;
        match self.overrun {
            Overrun::Coalesce => prop_assert!(on_the_grid),
            Overrun::Skip => {
                prop_assert!(on_the_grid);
                prop_assert!(
                    planned >= ended || self.now.since(ended) < period || self.resumed_at > last.begun,
                    "an instant that passed"
                );
            }
            Overrun::All => {
                prop_assert!(on_the_grid);
                if self.resumed_at <= last.poll.planned {
                    prop_assert_eq!(since, period, "each of them");
                }
                let half = Span::from_nanos(period.as_nanos() / 2);
                let in_time = planned > ended;
                prop_assert!(in_time || self.now.since(last.begun) >= half, "at twice the pace at most");
            }
            Overrun::Delay => prop_assert!(since >= period || self.resumed_at > last.begun),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let counts = self.collector.statistics().counts();
        let running = self.last.values().filter(|run| run.ended.is_none()).count() + self.removed.len();
        prop_assert_eq!(counts.running, running as u64);
        prop_assert_eq!(counts.delivered, self.ended);
        prop_assert_eq!(counts.planned, counts.delivered + counts.running + counts.coalesced + counts.skipped);
        prop_assert_eq!(self.collector.len(), self.slots.len());
        let mut periods = self.slots.values().map(|slot| self.collector.period(*slot));
        prop_assert!(periods.all(|period| period.is_some()));
        // Whoever is not running is waited for.
        let idle = self.slots.values().any(|slot| self.last.get(slot).is_none_or(|run| run.ended.is_some()));
        prop_assert_eq!(self.collector.has_due() || self.collector.next_wake().is_some(), idle && !self.paused);
        Ok(())
    }
}

fn period() -> impl Strategy<Value = u64> {
    prop_oneof![Just(10 * SECOND), Just(30 * SECOND), 1_u64..100_000, SECOND..100 * SECOND]
}

fn op() -> impl Strategy<Value = Op> {
    let pass = prop_oneof![0_u64..100_000, 0..SECOND, 0..40 * SECOND, 0..400 * SECOND];
    prop_oneof![
        6 => pass.prop_map(Op::Pass),
        6 => (1_usize..5).prop_map(Op::Take),
        5 => any::<usize>().prop_map(Op::End),
        1 => Just(Op::GiveBack),
        1 => (0_u64..8, period()).prop_map(|(key, period)| Op::Add(key, period)),
        1 => (0_u64..8).prop_map(Op::Remove),
        1 => Just(Op::Pause),
        2 => Just(Op::Resume),
    ]
}

fn overrun() -> impl Strategy<Value = Overrun> {
    prop_oneof![Just(Overrun::Coalesce), Just(Overrun::Skip), Just(Overrun::All), Just(Overrun::Delay)]
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn every_planned_instant_is_accounted_for(
        overrun in overrun(),
        spread in any::<bool>(),
        targets in prop::collection::vec(period(), 0..5),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new(overrun, spread, &targets);
        for op in &ops {
            world.play(op)?;
        }
    }
}

/// Whatever polls last, what was planned up to now is what the grid says, for the policies that keep it.
#[test]
fn nothing_drifts() {
    for overrun in [Overrun::Coalesce, Overrun::Skip, Overrun::All] {
        let mut collector = Collector::new(overrun, true);
        let period = Span::from_secs(7);
        for key in 0..50 {
            collector.add(at(0), key, period).unwrap();
        }
        collector.start(at(0), 0);
        let (mut now, mut running): (Instant, Vec<Poll>) = (at(0), Vec::new());
        let mut first = BTreeMap::new();
        for step in 1..20_000_u64 {
            now = now + Span::from_millis(step * 7919 % 50);
            while let Some(poll) = collector.take_due(now) {
                let anchor = *first.entry(poll.target).or_insert(poll.planned);
                assert_eq!(poll.planned.since(anchor).as_nanos() % period.as_nanos(), 0, "{overrun:?}");
                running.push(poll);
            }
            if !running.is_empty() && step % 3 > 0 {
                let poll = running.remove((step * 31) as usize % running.len());
                collector.ended(now, poll.target, Ended::Delivered, Span::ZERO);
            }
        }
        let counts = collector.statistics().counts();
        let passed = first.values().map(|anchor| now.since(*anchor).as_nanos() / period.as_nanos() + 1).sum::<u64>();
        assert!(
            counts.planned <= passed && counts.planned + 50 * 4 >= passed || overrun == Overrun::All,
            "{counts:?} of {passed}"
        );
    }
}
