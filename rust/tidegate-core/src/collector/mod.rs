//! Targets that are polled again and again: when each is due, and what became of its polls.
//!
//! A target has a grid of *planned* instants, `anchor + k * period`, in integer nanoseconds: nothing that happens to one poll moves the
//! next, so the schedule does not drift. It has at most one poll at a time. What becomes of planned instants that pass meanwhile is its
//! [`Overrun`]:
//!
//! ```text
//!            the instant comes           take_due              ended
//!   planned ------------------> due --------------> running ----------> planned, or due at once
//!                                ^                     |
//!                                +----- give_back -----+
//! ```
//!
//! Memory: 80 bytes a target with its timer, and 20 to 35 to find it by its key; the owner keeps the targets themselves.
//!
//! Sources: the grid is that of Prometheus' scrape loop and tokio's `Interval`; the policies are tokio's Burst, Skip and Delay and
//! APScheduler's coalescing.

mod phase;
mod statistics;

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap, VecDeque};

pub use phase::key_of;
pub use statistics::{Counts, Distribution, Statistics};

use crate::time::{Instant, Span};
use crate::wheel::{TimerId, Wheel};
use phase::{Grid, evenly, golden};

/// What becomes of the planned instants of a target that pass while its poll waits or runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overrun {
    /// One poll at once, for the latest of them; the grid stays.
    #[default]
    Coalesce,
    /// None: the next planned instant that is still to come.
    Skip,
    /// One poll for each, in order, at most two in a period.
    All,
    /// One poll at once, from which the grid counts from now on.
    Delay,
}

/// How a poll ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a value.
    Delivered,
    /// With an error.
    Failed,
    /// Past its deadline.
    Expired,
    /// Cancelled, or never begun because all was closed.
    Cancelled,
}

/// A poll to be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// The target's slot.
    pub target: u32,
    /// The instant for which it was planned.
    pub planned: Instant,
    /// The period of the target: when the next one is planned.
    pub period: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The slot is free.
    Free,
    /// Its next poll is planned, once the collector runs.
    Planned,
    /// Its poll is to begin.
    Due,
    /// Its poll has begun.
    Running,
    /// It was removed while its poll ran: the slot is free when that has ended.
    Leaving,
}

#[derive(Debug)]
struct Target {
    key: u64,
    period: Span,
    /// The next planned instant that nothing was decided about.
    next: Instant,
    /// When it falls due, if it is planned.
    at: Instant,
    /// When its last poll began.
    begun: Instant,
    /// When its newest value came; [`Instant::FAR`] when it has none.
    fresh: Instant,
    timer: Option<TimerId>,
    state: State,
}

/// Why a target was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The slot of the one that has its key.
    pub of: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Collector {
    overrun: Overrun,
    spread: bool,
    targets: Vec<Target>,
    free: Vec<u32>,
    by_key: HashMap<u64, u32>,
    /// Fires up to a tick early.
    wheel: Wheel<u32>,
    /// Those that it has fired and that are not due yet, by when they are.
    soon: BinaryHeap<Reverse<(Instant, u32)>>,
    due: VecDeque<u32>,
    /// None until it is started.
    grid: Option<Grid>,
    /// Targets added since it was started.
    added: u64,
    paused: bool,
    stopped: bool,
    /// What was planned before was missed on purpose: in a pause.
    resumed_at: Instant,
    statistics: Statistics,
}

impl Collector {
    /// A collector without targets that has not been started. `spread`: the first polls are spread over a period; else all are due
    /// when it starts.
    pub fn new(overrun: Overrun, spread: bool) -> Collector {
        Collector {
            overrun,
            spread,
            targets: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            wheel: Wheel::new(),
            soon: BinaryHeap::new(),
            due: VecDeque::new(),
            grid: None,
            added: 0,
            paused: false,
            stopped: false,
            resumed_at: Instant::ORIGIN,
            statistics: Statistics::default(),
        }
    }

    /// Makes room for so many more targets.
    pub fn reserve(&mut self, count: usize) {
        self.targets.reserve(count);
        self.by_key.reserve(count);
    }

    /// Adds a target under its key (see [`key_of`]), to be polled once a `period`; returns its slot. One that is added to a running
    /// collector is due within a period, where the spread of the others leaves most room, or at once without spread.
    ///
    /// # Errors
    /// A target has that key.
    ///
    /// # Panics
    /// When there are 2^32 targets, or `period` is zero.
    pub fn add(&mut self, now: Instant, key: u64, period: Span) -> Result<u32, Duplicate> {
        assert!(period > Span::ZERO, "a period is a span of time");
        let target = Target {
            key,
            period,
            next: Instant::FAR,
            at: Instant::FAR,
            begun: Instant::ORIGIN,
            fresh: Instant::FAR,
            timer: None,
            state: State::Planned,
        };
        let slot = self.free.last().copied().unwrap_or(u32::try_from(self.targets.len()).expect("fewer than 2^32 targets"));
        match self.by_key.entry(key) {
            Entry::Occupied(taken) => return Err(Duplicate { of: *taken.get() }),
            Entry::Vacant(place) => place.insert(slot),
        };
        match self.free.pop() {
            Some(_) => self.targets[slot as usize] = target,
            None => self.targets.push(target),
        }
        if let Some(grid) = self.grid {
            let first = if self.spread { grid.first_at(now, period, golden(self.added, period)) } else { now };
            self.added += 1;
            self.plan(slot, first);
        }
        Ok(slot)
    }

    /// Takes a target out; false when there is none with this key. A poll of it that has begun goes on.
    pub fn remove(&mut self, key: u64) -> Option<u32> {
        let slot = self.by_key.remove(&key)?;
        let target = &mut self.targets[slot as usize];
        match target.timer.take() {
            Some(timer) => self.wheel.disarm(timer),
            None => self.soon.retain(|Reverse((_, waiting))| *waiting != slot),
        }
        match target.state {
            State::Running => target.state = State::Leaving,
            State::Due => {
                self.due.retain(|waiting| *waiting != slot);
                self.release(slot);
            }
            _ => self.release(slot),
        }
        Some(slot)
    }

    fn release(&mut self, slot: u32) {
        self.targets[slot as usize].state = State::Free;
        self.free.push(slot);
    }

    /// Begins. `unix` is the Unix time of the clock's origin, in nanoseconds, so that the instants of a target are the same after a
    /// restart.
    ///
    /// Spread: of the `n` targets of one period, taken in the order of their keys, the `i`-th has the phase `period * i / n`. All gaps
    /// between planned instants are then equal to a nanosecond, and a target that comes or goes moves none by more than `period / n`.
    ///
    /// # Complexity
    /// That of sorting the targets.
    pub fn start(&mut self, now: Instant, unix: u64) {
        let grid = Grid { unix };
        self.grid = Some(grid);
        let mut slots: Vec<u32> = (0..self.targets.len() as u32).collect();
        slots.retain(|slot| self.targets[*slot as usize].state == State::Planned);
        if !self.spread {
            slots.into_iter().for_each(|slot| self.plan(slot, now));
            return;
        }
        let ranked = |slot: &u32| {
            let target = &self.targets[*slot as usize];
            (target.period, target.key)
        };
        slots.sort_unstable_by_key(ranked);
        let same_period = |a: &u32, b: &u32| self.targets[*a as usize].period == self.targets[*b as usize].period;
        let mut firsts = Vec::with_capacity(slots.len());
        for alike in slots.chunk_by(same_period) {
            let period = self.targets[alike[0] as usize].period;
            let phases = (0..alike.len()).map(|nth| evenly(nth, alike.len(), period));
            firsts.extend(phases.map(|phase| grid.first_at(now, period, phase)));
        }
        slots.into_iter().zip(firsts).for_each(|(slot, first)| self.plan(slot, first));
    }

    fn plan(&mut self, slot: u32, next: Instant) {
        self.targets[slot as usize].next = next;
        self.arm(slot, next);
    }

    fn arm(&mut self, slot: u32, at: Instant) {
        let target = &mut self.targets[slot as usize];
        target.state = State::Planned;
        target.at = at;
        target.timer = Some(self.wheel.arm(at - (Wheel::<u32>::TICK - Span::from_nanos(1)), slot));
    }

    fn make_due(&mut self, slot: u32) {
        self.targets[slot as usize].state = State::Due;
        self.due.push_back(slot);
    }

    /// Moves what has come to the queue of those due.
    fn fall_due(&mut self, now: Instant) {
        while let Some(&Reverse((at, slot))) = self.soon.peek()
            && at <= now
        {
            self.soon.pop();
            self.come(slot);
        }
        while let Some(slot) = self.wheel.pop_due(now) {
            let target = &mut self.targets[slot as usize];
            target.timer = None;
            if target.at <= now {
                self.come(slot);
            } else {
                self.soon.push(Reverse((target.at, slot)));
            }
        }
    }

    /// The instant for which a target waited has come.
    fn come(&mut self, slot: u32) {
        if self.targets[slot as usize].next < self.resumed_at {
            let next = self.skip_to(slot, self.resumed_at);
            self.arm(slot, next);
        } else {
            self.make_due(slot);
        }
    }

    /// Leaves out the planned instants before this one; the next one from then on.
    fn skip_to(&mut self, slot: u32, from: Instant) -> Instant {
        let target = &mut self.targets[slot as usize];
        let missed = from.since(target.next).as_nanos().div_ceil(target.period.as_nanos());
        self.statistics.skipped += missed;
        target.next = target.next + target.period.times(missed);
        target.next
    }

    /// The next poll to begin, in the order in which they fell due.
    pub fn take_due(&mut self, now: Instant) -> Option<Poll> {
        if !self.is_active() {
            return None;
        }
        self.fall_due(now);
        let slot = self.due.pop_front()?;
        let overrun = self.overrun;
        let target = &mut self.targets[slot as usize];
        let period = target.period;
        // It may have waited for longer than a period.
        let missed = now.since(target.next).as_nanos() / period.as_nanos();
        let planned = match overrun {
            Overrun::Coalesce => {
                self.statistics.coalesced += missed;
                target.next + period.times(missed)
            }
            _ => target.next,
        };
        target.next = match overrun {
            Overrun::Skip => {
                self.statistics.skipped += missed;
                planned + period.times(missed + 1)
            }
            Overrun::Delay if missed > 0 => now + period,
            _ => planned + period,
        };
        target.begun = now;
        target.state = State::Running;
        self.statistics.started += 1;
        self.statistics.running += 1;
        Some(Poll { target: slot, planned, period })
    }

    /// A poll that was taken has not begun after all: it is the first of those due.
    pub fn give_back(&mut self, poll: Poll) {
        if self.is_over() {
            return; // abandoned meanwhile
        }
        self.statistics.started -= 1;
        self.statistics.running -= 1;
        let target = &mut self.targets[poll.target as usize];
        if target.state == State::Leaving {
            self.release(poll.target);
        } else {
            if self.overrun == Overrun::Skip {
                // What its wait has passed is counted when it begins.
                let periods = target.next.since(poll.planned).as_nanos() / poll.period.as_nanos();
                self.statistics.skipped -= periods.saturating_sub(1);
            }
            target.next = poll.planned;
            target.state = State::Due;
            self.due.push_front(poll.target);
        }
    }

    /// A poll has ended. `waited`: how long after its planned instant it waited for its turn, attempts and back-offs left out.
    pub fn ended(&mut self, now: Instant, slot: u32, how: Ended, waited: Span) {
        if self.is_over() {
            return; // abandoned while the news was on its way
        }
        let target = &mut self.targets[slot as usize];
        self.statistics.note(how, waited);
        if how == Ended::Delivered {
            if target.fresh < Instant::FAR {
                self.statistics.note_age(now.since(target.fresh));
            }
            target.fresh = now;
        }
        if target.state == State::Leaving {
            self.release(slot);
        } else if !self.stopped {
            self.plan_next(now, slot);
        }
    }

    /// Decides when a target whose poll has ended is polled next.
    fn plan_next(&mut self, now: Instant, slot: u32) {
        let Target { period, begun, .. } = self.targets[slot as usize];
        let next = self.skip_to(slot, self.resumed_at);
        if now < next || self.paused {
            self.arm(slot, next);
        } else {
            match self.overrun {
                Overrun::Coalesce => self.make_due(slot),
                // Which is still to come: one that comes now is.
                Overrun::Skip => {
                    let next = self.skip_to(slot, now);
                    self.arm(slot, next);
                }
                Overrun::All => self.arm(slot, begun + Span::from_nanos(period.as_nanos() / 2)),
                Overrun::Delay => {
                    self.targets[slot as usize].next = now;
                    self.make_due(slot);
                }
            }
        }
    }

    /// Begins no polls until it is resumed.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Goes on from now. What was planned in the pause is left out, so that not all comes at once.
    pub fn resume(&mut self, now: Instant) {
        if std::mem::take(&mut self.paused) {
            self.resumed_at = now;
            for slot in std::mem::take(&mut self.due) {
                let next = self.skip_to(slot, now);
                self.arm(slot, next);
            }
        }
    }

    /// Begins no polls any more.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.due.clear();
    }

    /// Begins no polls any more, and waits for none: those that run count as cancelled, however they end.
    pub fn abandon(&mut self) {
        self.stop();
        self.statistics.abandon();
    }

    /// Whether it was stopped and no poll runs.
    pub fn is_over(&self) -> bool {
        self.stopped && self.statistics.running == 0
    }

    fn is_active(&self) -> bool {
        self.grid.is_some() && !self.paused && !self.stopped
    }

    /// Whether polls wait to begin; what has come since the last [`take_due`](Collector::take_due) is not among them.
    pub fn has_due(&self) -> bool {
        self.is_active() && !self.due.is_empty()
    }

    /// When the next poll falls due, beside those that wait to begin.
    pub fn next_wake(&self) -> Option<Instant> {
        if !self.is_active() {
            return None;
        }
        let soon = self.soon.peek().map(|Reverse((at, _))| *at);
        soon.into_iter().chain(self.wheel.next_wake()).min()
    }

    /// How many slots there are, those without a target included.
    pub fn slots(&self) -> u32 {
        self.targets.len() as u32
    }

    /// How often the target in a slot is polled; nothing when there is none.
    pub fn period(&self, slot: u32) -> Option<Span> {
        let target = self.targets.get(slot as usize)?;
        (!matches!(target.state, State::Free | State::Leaving)).then_some(target.period)
    }

    /// Targets.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether it has no target.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// What became of the polls so far.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Span = Span::from_secs(30);

    fn at(secs: u64) -> Instant {
        Instant::ORIGIN + Span::from_secs(secs)
    }

    fn one(overrun: Overrun) -> Collector {
        let mut collector = Collector::new(overrun, false);
        collector.add(at(0), 1, PERIOD).unwrap();
        collector.start(at(0), 0);
        collector
    }

    /// Begins the poll that is due and ends it `seconds` later; for which instant it was planned, and when the next one can begin.
    fn run(collector: &mut Collector, begun: u64, seconds: u64) -> (u64, Option<u64>) {
        let poll = collector.take_due(at(begun)).expect("a poll is due");
        assert_eq!(collector.take_due(at(begun + seconds)), None, "one at a time");
        collector.ended(at(begun + seconds), poll.target, Ended::Delivered, Span::ZERO);
        let next = if collector.has_due() {
            Some(begun + seconds)
        } else {
            collector.next_wake().map(|wake| (wake + Wheel::<u32>::TICK).as_nanos() / 1_000_000_000)
        };
        (poll.planned.as_nanos() / 1_000_000_000, next)
    }

    #[test]
    fn a_poll_that_ends_in_time_does_not_move_the_next() {
        for overrun in [Overrun::Coalesce, Overrun::Skip, Overrun::All, Overrun::Delay] {
            let mut collector = one(overrun);
            for k in 0..5 {
                assert_eq!(run(&mut collector, 30 * k, 29), (30 * k, Some(30 * (k + 1))), "{overrun:?}");
            }
        }
    }

    #[test]
    fn what_passes_while_a_poll_runs_is_coalesced_into_one_for_the_latest() {
        let mut collector = one(Overrun::Coalesce);
        assert_eq!(run(&mut collector, 0, 100), (0, Some(100)));
        assert_eq!(run(&mut collector, 100, 1), (90, Some(120)));
        assert_eq!((collector.statistics().started, collector.statistics().coalesced), (2, 2));
    }

    #[test]
    fn or_skipped() {
        let mut collector = one(Overrun::Skip);
        assert_eq!(run(&mut collector, 0, 100), (0, Some(120)));
        assert_eq!(run(&mut collector, 120, 30), (120, Some(150)));
        assert_eq!(collector.statistics().skipped, 3);
    }

    #[test]
    fn or_all_made_up_for_at_twice_the_pace() {
        let mut collector = one(Overrun::All);
        assert_eq!(run(&mut collector, 0, 100), (0, Some(100)), "half a period after the last one began");
        assert_eq!(run(&mut collector, 100, 1), (30, Some(115)));
        assert_eq!(run(&mut collector, 116, 1), (60, Some(131)));
        assert_eq!(run(&mut collector, 132, 1), (90, Some(147)));
        assert_eq!(run(&mut collector, 148, 1), (120, Some(150)));
        assert_eq!(run(&mut collector, 150, 1), (150, Some(180)));
    }

    #[test]
    fn or_the_grid_moves() {
        let mut collector = one(Overrun::Delay);
        assert_eq!(run(&mut collector, 0, 100), (0, Some(100)));
        assert_eq!(run(&mut collector, 100, 1), (100, Some(130)));
        assert_eq!(run(&mut collector, 130, 1), (130, Some(160)));
    }

    #[test]
    fn a_pause_leaves_out_what_it_covers() {
        let mut collector = one(Overrun::Coalesce);
        run(&mut collector, 0, 1);
        collector.pause();
        assert_eq!((collector.take_due(at(95)), collector.next_wake()), (None, None));
        collector.resume(at(95));
        assert_eq!(collector.take_due(at(96)), None);
        assert_eq!(run(&mut collector, 120, 1), (120, Some(150)));
        assert_eq!(collector.statistics().skipped, 3);
    }

    #[test]
    fn one_that_is_removed_while_it_runs_ends_and_makes_room() {
        let mut collector = one(Overrun::Coalesce);
        let poll = collector.take_due(at(0)).unwrap();
        assert_eq!(collector.remove(1), Some(poll.target));
        assert_eq!(collector.remove(1), None);
        assert_eq!(collector.add(at(1), 2, PERIOD), Ok(1), "its slot is taken");
        collector.ended(at(5), poll.target, Ended::Delivered, Span::ZERO);
        assert_eq!(collector.add(at(6), 3, PERIOD), Ok(0), "its slot is free");
        assert_eq!(collector.add(at(6), 3, PERIOD), Err(Duplicate { of: 0 }));
    }

    #[test]
    fn one_that_is_given_back_is_the_first_again() {
        let mut collector = Collector::new(Overrun::Coalesce, false);
        for key in 0..3 {
            collector.add(at(0), key, PERIOD).unwrap();
        }
        collector.start(at(0), 0);
        let first = collector.take_due(at(0)).unwrap();
        collector.give_back(first);
        assert_eq!(collector.take_due(at(1)), Some(first));
        assert_eq!(collector.take_due(at(1)).unwrap().target, 1);
    }

    #[test]
    fn what_passes_while_it_is_given_back_again_and_again_is_counted_once() {
        for overrun in [Overrun::Coalesce, Overrun::Skip, Overrun::All, Overrun::Delay] {
            let mut collector = one(overrun);
            for secs in (30..=300).step_by(30) {
                let poll = collector.take_due(at(secs)).unwrap();
                collector.give_back(poll);
            }
            collector.take_due(at(300)).unwrap();
            let most = if matches!(overrun, Overrun::Coalesce | Overrun::Skip) { 11 } else { 1 };
            assert_eq!(collector.statistics().counts().planned, most, "{overrun:?}");
        }
    }

    #[test]
    fn what_ends_after_it_was_abandoned_has_been_counted() {
        let mut collector = Collector::new(Overrun::Coalesce, false);
        for key in 0..2 {
            collector.add(at(0), key, PERIOD).unwrap();
        }
        collector.start(at(0), 0);
        let [first, second] = [(); 2].map(|()| collector.take_due(at(0)).unwrap());
        collector.abandon();
        collector.ended(at(1), first.target, Ended::Delivered, Span::ZERO);
        collector.give_back(second);
        let counts = collector.statistics().counts();
        assert_eq!((counts.planned, counts.cancelled, counts.delivered, counts.running), (2, 2, 0, 0));
    }

    #[test]
    fn spread_targets_are_evenly_apart_and_the_same_after_a_restart() {
        let firsts = |now: Instant, unix: u64| {
            let mut collector = Collector::new(Overrun::Coalesce, true);
            for name in 0..1000 {
                collector.add(now, key_of(format!("user{name}").as_bytes()), PERIOD).unwrap();
            }
            collector.start(now, unix);
            collector.targets.iter().map(|target| (target.next.as_nanos() + unix) % PERIOD.as_nanos()).collect::<Vec<_>>()
        };
        let phases = firsts(at(3), 1_700_000_000_123_456_789);
        assert_eq!(phases, firsts(at(77), 1_700_003_333_000_000_001), "by the wall clock");
        let mut sorted = phases;
        sorted.sort_unstable();
        let gaps: Vec<u64> = sorted.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!((gaps.iter().min(), gaps.iter().max()), (Some(&30_000_000), Some(&30_000_000)));
    }

    #[test]
    fn targets_that_are_added_later_spread_too() {
        let mut collector = Collector::new(Overrun::Coalesce, true);
        collector.start(at(0), 0);
        for key in 0..1000 {
            collector.add(at(0), key, PERIOD).unwrap();
        }
        let mut firsts: Vec<u64> = collector.targets.iter().map(|target| target.next.as_nanos()).collect();
        firsts.sort_unstable();
        let gaps = firsts.windows(2).map(|pair| pair[1] - pair[0]);
        let (least, most) = gaps.fold((u64::MAX, 0), |(least, most), gap| (least.min(gap), most.max(gap)));
        // Three distances at most, and the ratio of the largest to the least is the square of the golden ratio.
        assert!(most as f64 / least as f64 <= 2.619, "{most} / {least}");
    }
}
