//! What the engine sends, as strict servers see it, and how much of what they allow it uses.

mod common;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use common::servers::Server;
use common::{MS, SECOND, TICK, at, cases, engine, plain, retry, single, spec, submit, take_all, wait};
use proptest::prelude::*;
use tidegate_core::engine::{
    Action, Answer, BackendId, BackendSpec, BackendState, ClassId, Ending, Engine, Event, Flags, Handle,
};
use tidegate_core::engine::{LeaseId, Leased, Outcome, Recharge, Stage, Submission};
use tidegate_core::limit::{Anchor, Kind, Limit, Step};
use tidegate_core::time::{Instant, Span};

const ACCEPTED: Answer = Answer { status: Some(200), retry_after: None, is_local: false };
const REJECTED: Answer = Answer { status: Some(429), retry_after: None, is_local: false };
const FAILED: Answer = Answer { status: Some(500), retry_after: None, is_local: false };

// ---------------------------------------------------------------------------------------------------------------------
// An event loop in virtual time. It looks at the engine when something of its own happens and at the engine's next wake-up.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Submit(usize),
    Cancel(usize),
    /// A message of so many units reaches a backend.
    Arrival(usize, u32),
    Headers(usize),
    /// A handler goes on after it has seen headers.
    Continue(usize),
    /// A handler ends without having seen headers.
    GiveUp(usize),
    /// A handler learns that nothing left.
    Unsent(usize),
    /// A handler that was interrupted returns.
    Return(usize),
    /// Nothing happens, but the loop looks at the engine.
    Look,
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    when: u64,
    class: usize,
    priority: u8,
    /// So long after it was submitted.
    deadline: Option<u64>,
    cancel: Option<u64>,
}

struct Flight {
    lease: LeaseId,
    backend: usize,
    dice: Dice,
    /// Messages that it still means to send.
    more: u32,
    /// Of the message that it waits to send.
    cost: u32,
    is_over: bool,
}

/// A seeded sequence (SplitMix64), so that what happens to an attempt does not depend on what happens to others.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most.max(1)
    }
}

/// What may happen to an attempt.
#[derive(Clone, Copy, Debug)]
struct Weather {
    seed: u64,
    /// Longest round trip. Each way takes a random part of it; in calm weather each takes half, and no more happens.
    longest: u64,
    calm: bool,
}

struct World {
    engine: Engine,
    backends: Vec<BackendId>,
    classes: Vec<(ClassId, u32)>,
    servers: Vec<Vec<Server>>,
    weather: Weather,
    now: u64,
    turns: BinaryHeap<Reverse<(u64, u64, Turn)>>,
    order: u64,
    wanted: Vec<Wanted>,
    handles: BTreeMap<usize, Handle>,
    costs: BTreeMap<Handle, u32>,
    flights: Vec<Flight>,
    by_lease: BTreeMap<u64, usize>,
    /// Messages that a server did not accept.
    rejected: usize,
    /// When which request was sent where.
    sent: Vec<(u64, Handle, usize)>,
}

impl World {
    fn new(specs: &[BackendSpec], classes: &[(u8, u32)], which: u8, weather: Weather) -> World {
        let mut engine = engine(retry(3, Span::from_millis(100)));
        let backends: Vec<BackendId> = specs.iter().map(|spec| engine.add_backend(Instant::ORIGIN, spec)).collect();
        let mut known = Vec::new();
        for &(bits, cost) in classes {
            let chosen: Vec<BackendId> = backends.iter().copied().filter(|id| bits >> id.0 & 1 == 1).collect();
            known.extend(engine.class(Instant::ORIGIN, &chosen, cost).map(|class| (class, cost)));
        }
        let serve = |spec: &BackendSpec| spec.limits.iter().map(|limit| Server::of(limit, which, weather.seed)).collect();
        let mut world = World {
            engine,
            backends,
            classes: known,
            servers: specs.iter().map(serve).collect(),
            weather,
            now: 0,
            turns: BinaryHeap::new(),
            order: 0,
            wanted: Vec::new(),
            handles: BTreeMap::new(),
            costs: BTreeMap::new(),
            flights: Vec::new(),
            by_lease: BTreeMap::new(),
            rejected: 0,
            sent: Vec::new(),
        };
        if !weather.calm {
            world.see_the_longest_round_trip();
        }
        world
    }

    /// Shows every backend the longest round trip, so that what is charged for a lost reply covers it: before that it cannot.
    fn see_the_longest_round_trip(&mut self) {
        for index in 0..self.backends.len() {
            let class = self.engine.class(at(self.now), &[self.backends[index]], 1).unwrap();
            submit(
                &mut self.engine,
                at(self.now),
                &Submission { flags: Flags { lasting: true, ..Flags::default() }, ..plain(class) },
            );
            let leased = self.engine.take(at(self.now)).unwrap();
            self.now += self.weather.longest;
            self.arrive(index, 1);
            self.engine.finish(at(self.now), leased.lease, Outcome::Ok, ACCEPTED, false);
        }
    }

    fn at(&mut self, when: u64, turn: Turn) {
        self.order += 1;
        self.turns.push(Reverse((when, self.order, turn)));
    }

    fn arrive(&mut self, backend: usize, cost: u32) {
        // Every server sees it, whatever the others say.
        let refusals =
            self.servers[backend].iter_mut().filter_map(|server| (!server.accepts(self.now, u64::from(cost))).then_some(()));
        self.rejected += usize::from(refusals.count() > 0);
    }

    fn submit(&mut self, class: usize, terms: impl Fn(ClassId) -> Submission<'static>) -> Handle {
        let (class, cost) = self.classes[class];
        let handle = submit(&mut self.engine, at(self.now), &terms(class));
        self.costs.insert(handle, cost);
        handle
    }

    fn want(&mut self, wanted: Wanted) {
        let index = self.wanted.len();
        self.at(self.now + wanted.when, Turn::Submit(index));
        self.wanted.push(wanted);
    }

    /// Until nothing is left to happen, or `until`.
    fn run(&mut self, until: u64) {
        loop {
            self.look();
            let due = self.turns.peek().map(|Reverse((when, ..))| *when);
            let wake = self.engine.next_wake().map(Instant::as_nanos);
            let Some(next) = due.into_iter().chain(wake).min() else { return };
            if next > until {
                return;
            }
            self.now = self.now.max(next);
            while let Some(&Reverse((when, _, turn))) = self.turns.peek()
                && when <= self.now
            {
                self.turns.pop();
                self.turn(turn);
            }
        }
    }

    /// Acts on what the engine says, and starts what may start. Demand says whether something may.
    fn look(&mut self) {
        let now = at(self.now);
        loop {
            let demand = self.engine.demand(now);
            assert_eq!(self.engine.may_run(), demand > 0);
            assert!(demand as u64 <= self.engine.ledger().queued);
            let leased = self.engine.take(now);
            assert_eq!(leased.is_some(), demand > 0);
            while let Some(action) = self.engine.pop_action() {
                self.act(action);
            }
            let Some(leased) = leased else { break };
            self.start(&leased);
        }
        while self.engine.pop_ended().is_some() {}
        assert_eq!(self.engine.pop_event(), None, "nothing was rejected");
    }

    fn start(&mut self, leased: &Leased) {
        let backend = usize::from(leased.backend.0);
        let index = self.flights.len();
        let mut dice = Dice(self.weather.seed.wrapping_add(index as u64 * 0x1234_5677));
        let more = if self.weather.calm || dice.below(4) > 0 { 0 } else { 1 + dice.below(3) as u32 };
        self.sent.push((self.now, leased.request, backend));
        self.by_lease.insert(leased.lease.to_bits(), index);
        self.flights.push(Flight { lease: leased.lease, backend, dice, more, cost: 0, is_over: false });
        self.send(index, self.costs[&leased.request]);
    }

    fn send(&mut self, index: usize, cost: u32) {
        let Weather { longest, calm, .. } = self.weather;
        let flight = &mut self.flights[index];
        let backend = flight.backend;
        let dice = &mut flight.dice;
        let there = if calm { longest / 2 } else { dice.below(longest + 1) };
        let back = if calm { longest - there } else { dice.below(longest - there + 1) };
        let fate = if calm { 9 } else { dice.below(16) };
        let patience = dice.below(3 * longest + 1);
        if fate > 1 {
            self.at(self.now + there, Turn::Arrival(backend, cost));
        }
        match fate {
            0 => self.at(self.now + patience, Turn::Unsent(index)),
            // Neither arrives, or only the message does.
            1 | 2 => self.at(self.now + patience, Turn::GiveUp(index)),
            _ => self.at(self.now + there + back, Turn::Headers(index)),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Interrupt { lease } => {
                let index = self.by_lease[&lease.to_bits()];
                let flight = &mut self.flights[index];
                let grace = flight.dice.below(self.weather.longest + 1);
                self.at(self.now + grace, Turn::Return(index));
            }
            Action::Recharged { lease } => {
                let index = self.by_lease[&lease.to_bits()];
                self.send(index, self.flights[index].cost);
            }
            Action::TimedOut { .. } => {}
        }
    }

    fn finish(&mut self, index: usize, outcome: Outcome, answer: Answer, unsent: bool) {
        let flight = &mut self.flights[index];
        if !std::mem::replace(&mut flight.is_over, true) {
            self.engine.finish(at(self.now), flight.lease, outcome, answer, unsent);
        }
    }

    fn turn(&mut self, turn: Turn) {
        let now = at(self.now);
        match turn {
            Turn::Look => {}
            Turn::Submit(index) => {
                let Wanted { class, priority, deadline, cancel, .. } = self.wanted[index];
                // Deadlines are exact to a tick.
                let deadline = deadline.map_or(Instant::FAR, |span| at((self.now + span).next_multiple_of(TICK)));
                let handle = self.submit(class, |class| Submission { priority, deadline, ..plain(class) });
                self.handles.insert(index, handle);
                if let Some(after) = cancel {
                    self.at(self.now + after, Turn::Cancel(index));
                }
            }
            Turn::Cancel(index) => drop(self.engine.cancel(now, self.handles[&index])),
            Turn::Arrival(backend, cost) => self.arrive(backend, cost),
            Turn::Headers(index) => {
                let flight = &mut self.flights[index];
                if flight.is_over {
                    return;
                }
                self.engine.ack(now, flight.lease, ACCEPTED);
                let work = if self.weather.calm { 0 } else { flight.dice.below(self.weather.longest / 2 + 1) };
                self.at(self.now + work, Turn::Continue(index));
            }
            Turn::Continue(index) => {
                let flight = &mut self.flights[index];
                if flight.is_over {
                    return;
                }
                if flight.more == 0 {
                    let failed = !self.weather.calm && flight.dice.below(8) == 0;
                    let (outcome, answer) = if failed { (Outcome::Failed, FAILED) } else { (Outcome::Ok, ACCEPTED) };
                    self.finish(index, outcome, answer, false);
                    return;
                }
                flight.more -= 1;
                flight.cost = 1 + flight.dice.below(3) as u32;
                match self.engine.recharge(now, flight.lease, flight.cost, &[]) {
                    Recharge::Granted => self.send(index, self.flights[index].cost),
                    Recharge::Waits => {}
                    Recharge::Never(_) => self.finish(index, Outcome::Ok, ACCEPTED, false),
                    Recharge::Gone => {}
                }
            }
            Turn::GiveUp(index) => self.finish(index, Outcome::Failed, Answer::default(), false),
            Turn::Unsent(index) => self.finish(index, Outcome::Failed, Answer::default(), true),
            Turn::Return(index) => self.finish(index, Outcome::Neutral, Answer::default(), false),
        }
    }
}

fn limit() -> impl Strategy<Value = Limit> {
    (any::<bool>(), 1u32..12, MS..2 * SECOND, 1u32..8).prop_map(|(window, amount, period, burst)| {
        let period = Span::from_nanos(period);
        if window { Limit::window(amount, period) } else { Limit::bucket(amount, period, burst) }.unwrap()
    })
}

fn backend() -> impl Strategy<Value = BackendSpec> {
    let timeout = prop::option::of((0..500 * MS).prop_map(Span::from_nanos));
    (prop::collection::vec(limit(), 1..4), prop::option::of(1u32..6), timeout)
        .prop_map(|(limits, concurrency, timeout)| BackendSpec { timeout, ..spec(&limits, concurrency) })
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let span = || 0..3 * SECOND;
    (span(), 0usize..100, 0u8..3, prop::option::weighted(0.3, span()), prop::option::weighted(0.15, span()))
        .prop_map(|(when, class, priority, deadline, cancel)| Wanted { when, class, priority, deadline, cancel })
}

proptest! {
    #![proptest_config(cases(250))]

    /// However long messages and replies travel, whichever are lost, cancelled, timed out or charged ahead of the queue: no server
    /// that counts as declared rejects one. A loop that looks at the engine only when something of its own happens and at the next
    /// wake-up drains everything, and starts nothing later than one that looks all the time.
    #[test]
    fn never_over_a_quota_and_never_late(
        specs in prop::collection::vec(backend(), 1..4),
        classes in prop::collection::vec((1u8.., prop_oneof![3 => Just(1u32), 1 => 2u32..6]), 0..4),
        wanted in prop::collection::vec(wanted(), 1..60),
        which in any::<u8>(),
        seed in any::<u64>(),
        longest in prop_oneof![Just(0), 0..20 * MS, 0..SECOND],
        looks in prop::collection::vec(0..20 * SECOND, 0..100),
    ) {
        let classes: Vec<(u8, u32)> = std::iter::once((0xff, 1)).chain(classes).collect();
        let run = |looks: &[u64]| {
            let mut world = World::new(&specs, &classes, which, Weather { seed, longest, calm: false });
            for mut wanted in wanted.iter().copied() {
                wanted.class %= world.classes.len();
                world.want(wanted);
            }
            for &when in looks {
                world.at(world.now + when, Turn::Look);
            }
            world.run(u64::MAX);
            world
        };
        let lazy = run(&[]);
        prop_assert_eq!(lazy.rejected, 0);
        let ledger = lazy.engine.ledger();
        prop_assert!(ledger.balanced() && ledger.pending() == 0, "{ledger:?}");
        prop_assert_eq!((lazy.engine.timers(), lazy.engine.room().taken()), (0, 0));
        for backend in &lazy.backends {
            prop_assert_eq!(lazy.engine.status(*backend, at(lazy.now)).in_flight(), 0);
        }
        prop_assert_eq!(run(&looks).sent, lazy.sent);
    }
}

/// A greedy client uses at least 99.5 % of what its policy can reach with that round trip (algorithms A7, with the margins).
#[test]
fn what_the_policies_can_reach_is_used() {
    let seconds = 600;
    let horizon = seconds * SECOND;
    let window = |amount, period: u64| Limit::window(amount, Span::from_nanos(period)).unwrap();
    let bucket = |amount, period: u64, burst| Limit::bucket(amount, Span::from_nanos(period), burst).unwrap();
    let drift = |period: u64| period + (period / 5000).max(MS);
    // So many units each so often, and so many at once to begin with.
    let reach = |amount: u64, every: u64, first: u64| first + horizon / every * amount;
    for (name, specs, round_trip, bound) in [
        ("window", vec![spec(&[window(50, 5 * SECOND)], None)], 80 * MS, reach(50, drift(5 * SECOND) + 80 * MS, 50)),
        ("short window", vec![spec(&[window(10, SECOND)], None)], 50 * MS, reach(10, drift(SECOND) + 50 * MS, 10)),
        ("bucket", vec![spec(&[bucket(10, SECOND, 20)], None)], 80 * MS, reach(1, 100 * MS + 20_000, 20)),
        ("small bucket", vec![spec(&[bucket(100, SECOND, 6)], None)], 45 * MS, reach(1, 10 * MS + 2000, 6)),
        ("burst of 1", vec![spec(&[bucket(10, SECOND, 1)], None)], 50 * MS, reach(1, 100 * MS + 20_000 + 51 * MS, 1)),
        (
            "two windows",
            vec![spec(&[window(10, SECOND), window(100, 60 * SECOND)], None)],
            20 * MS,
            reach(100, drift(60 * SECOND) + 20 * MS, 100),
        ),
        (
            "window and bucket",
            vec![spec(&[window(300, 60 * SECOND), bucket(2, SECOND, 5)], None)],
            20 * MS,
            reach(2, SECOND + SECOND / 5000, 5),
        ),
        ("concurrency", vec![spec(&[window(1000, SECOND)], Some(3))], 100 * MS, reach(3, 100 * MS, 3)),
        (
            "two backends",
            vec![spec(&[bucket(10, SECOND, 10)], None), spec(&[window(50, 5 * SECOND)], Some(10))],
            100 * MS,
            reach(1, 100 * MS + 20_000, 10) + reach(50, drift(5 * SECOND) + 100 * MS, 50),
        ),
    ] {
        let mut world = World::new(&specs, &[(0xff, 1)], 0, Weather { seed: 7, longest: round_trip, calm: true });
        for _ in 0..bound + 100 {
            world.submit(0, plain);
        }
        world.run(horizon);
        let (sent, share) = (world.sent.len(), world.sent.len() as f64 / bound as f64);
        assert_eq!(world.rejected, 0, "{name}");
        assert!((0.995..1.001).contains(&share), "{name}: {sent} of {bound}, {share:.4}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Deadlines, reservations, the gate.

fn window(amount: u32, seconds: u64) -> Limit {
    Limit::window(amount, Span::from_secs(seconds)).unwrap()
}

/// A head whose limits admit it only after its deadline ends at once, costs nothing and does not hold up the next one.
#[test]
fn a_hopeless_head_expires_before_it_costs_a_permit() {
    let (mut engine, backend, class) = single(retry(1, Span::ZERO), &spec(&[window(1, 10)], None));
    submit(&mut engine, at(0), &plain(class));
    let first = engine.take(at(0)).unwrap();
    engine.finish(at(SECOND), first.lease, Outcome::Ok, ACCEPTED, false);
    let hopeless = submit(&mut engine, at(SECOND), &Submission { deadline: at(11 * SECOND), ..plain(class) });
    let patient = submit(&mut engine, at(SECOND), &Submission { deadline: at(12 * SECOND), ..plain(class) });
    assert!(engine.take(at(SECOND)).is_none());
    let ended = engine.pop_ended().unwrap();
    assert_eq!((ended.request, ended.ending), (hopeless, Ending::Expired(Stage::Queued)));
    assert!(engine.pop_ended().is_none());
    let (now, next) = wait(&mut engine, at(SECOND));
    assert_eq!(next.request, patient);
    assert_eq!(engine.status(backend, now).limits().next().unwrap().1.used, 1);
}

/// What another backend keeps for a larger, more urgent request does not make a smaller one hopeless.
#[test]
fn a_reservation_makes_no_other_request_hopeless() {
    let mut engine = engine(retry(1, Span::ZERO));
    let kept = engine.add_backend(Instant::ORIGIN, &spec(&[window(2, 10)], None));
    let used = engine.add_backend(Instant::ORIGIN, &spec(&[window(1, 100)], None));
    let large = engine.class(at(0), &[kept], 2).unwrap();
    let [on_kept, on_used, either] = [&[kept][..], &[used], &[kept, used]].map(|set| engine.class(at(0), set, 1).unwrap());
    for class in [on_kept, on_used] {
        submit(&mut engine, at(0), &plain(class));
        let leased = engine.take(at(0)).unwrap();
        engine.finish(at(0), leased.lease, Outcome::Ok, ACCEPTED, false);
    }
    let urgent = submit(&mut engine, at(0), &Submission { priority: 0, ..plain(large) });
    assert!(engine.take(at(0)).is_none());
    let small = submit(&mut engine, at(0), &Submission { deadline: at(5 * SECOND), ..plain(either) });
    assert!(engine.take(at(0)).is_none());
    assert!(engine.pop_ended().is_none());
    engine.cancel(at(SECOND), urgent);
    assert_eq!(engine.take(at(SECOND)).map(|leased| (leased.request, leased.backend)), Some((small, kept)));
}

/// A request is not sent once its deadline has come, not even in the fraction of a tick before its timer fires.
#[test]
fn nothing_is_sent_after_its_deadline() {
    let (mut engine, _, class) = single(retry(1, Span::ZERO), &spec(&[], None));
    let late = submit(&mut engine, at(0), &Submission { deadline: at(100), ..plain(class) });
    let early = submit(&mut engine, at(0), &Submission { deadline: at(102), ..plain(class) });
    assert_eq!(engine.take(at(101)).map(|leased| leased.request), Some(early));
    assert_eq!(engine.pop_ended().map(|ended| (ended.request, ended.ending)), Some((late, Ending::Expired(Stage::Queued))));
    assert_eq!(engine.timers(), 1);
}

/// A large cost goes as soon as the limit could hold it, however many small ones wait behind it; a more urgent small one passes.
#[test]
fn a_large_cost_is_never_starved() {
    let (mut engine, backend, small) = single(retry(1, Span::ZERO), &spec(&[window(10, 1)], None));
    let large = engine.class(at(0), &[backend], 10).unwrap();
    for _ in 0..5 {
        submit(&mut engine, at(0), &plain(small));
    }
    for leased in take_all(&mut engine, at(0)) {
        engine.finish(at(0), leased.lease, Outcome::Ok, ACCEPTED, false);
    }
    let whole = submit(&mut engine, at(0), &plain(large));
    let behind: Vec<Handle> = (0..30).map(|_| submit(&mut engine, at(0), &plain(small))).collect();
    assert!(engine.take(at(0)).is_none(), "what is left is kept for the large one");
    let urgent = submit(&mut engine, at(0), &Submission { priority: 0, ..plain(small) });
    let passing = engine.take(at(0)).unwrap();
    assert_eq!(passing.request, urgent);
    assert!(engine.take(at(0)).is_none());
    engine.finish(at(MS), passing.lease, Outcome::Ok, ACCEPTED, false);

    // The first units are free after a second; the large one waits for the urgent one's too.
    assert!(engine.take(at(SECOND + MS)).is_none());
    let taken = engine.take(at(SECOND + 3 * MS)).unwrap();
    assert_eq!(taken.request, whole);
    assert!(engine.take(at(SECOND + 3 * MS)).is_none());
    engine.finish(at(SECOND + 3 * MS), taken.lease, Outcome::Ok, ACCEPTED, false);
    let next: Vec<Handle> = take_all(&mut engine, at(2 * SECOND + 6 * MS)).iter().map(|leased| leased.request).collect();
    assert_eq!(next, behind[..10]);
}

/// A reservation ends with the request that it is for.
#[test]
fn a_cancelled_reservation_lets_others_go_at_once() {
    let (mut engine, backend, small) = single(retry(1, Span::ZERO), &spec(&[window(3, 1000)], None));
    let large = engine.class(at(0), &[backend], 3).unwrap();
    submit(&mut engine, at(0), &plain(small));
    take_all(&mut engine, at(0));
    let whole = submit(&mut engine, at(0), &plain(large));
    let next = submit(&mut engine, at(0), &plain(small));
    assert!(engine.take(at(0)).is_none());
    engine.cancel(at(1), whole);
    assert_eq!(engine.demand(at(1)), 1);
    assert_eq!(engine.take(at(1)).map(|leased| leased.request), Some(next));
}

/// A lost reply occupies its units for as long as the longest round trip; what else is acknowledged is used again before that.
#[test]
fn a_lost_reply_holds_back_its_own_units_only() {
    let spec = BackendSpec { timeout: Some(Span::from_secs(60)), ..spec(&[window(2, 1)], None) };
    let (mut engine, backend, class) = single(retry(1, Span::ZERO), &spec);
    submit(&mut engine, at(0), &plain(class));
    let slow = engine.take(at(0)).unwrap();
    engine.finish(at(50 * SECOND), slow.lease, Outcome::Ok, ACCEPTED, false);

    let start = at(60 * SECOND);
    let lasting = Flags { lasting: true, ..Flags::default() };
    submit(&mut engine, start, &plain(class));
    submit(&mut engine, start, &Submission { flags: lasting, ..plain(class) });
    let other = take_all(&mut engine, start)[1];
    let next = submit(&mut engine, start, &plain(class));
    let timed_out = at(120 * SECOND + TICK);
    assert!(engine.take(timed_out).is_none());
    assert_eq!(engine.ledger().dead, 1);
    assert!(matches!(engine.status(backend, timed_out).state(), BackendState::Limited(Some(until)) if until > at(170 * SECOND)));
    engine.ack(at(121 * SECOND), other.lease, ACCEPTED);
    let (now, leased) = wait(&mut engine, at(121 * SECOND));
    assert_eq!(leased.request, next);
    assert!(now < at(122 * SECOND + 2 * MS));
}

/// A limit anchored at the finish starts its clock there, one anchored at the headers when they arrive; what an attempt sent before
/// another message is finished, and what never left is charged to neither.
#[test]
fn the_clock_starts_at_the_anchor() {
    let late = |amount, seconds| window(amount, seconds).anchored(Anchor::Finish);
    let (mut engine, backend, class) = single(retry(1, Span::ZERO), &spec(&[late(2, 10), window(9, 5)], None));
    let used = |engine: &Engine, now| engine.status(backend, now).limits().map(|(_, usage)| usage.used).collect::<Vec<_>>();
    for _ in 0..4 {
        submit(&mut engine, at(0), &plain(class));
    }
    let [first, second] = take_all(&mut engine, at(0))[..] else { panic!("two fit") };
    engine.ack(at(SECOND), first.lease, ACCEPTED);
    assert_eq!(used(&engine, at(7 * SECOND)), [2, 1], "the headers free nothing of the first limit");
    engine.finish(at(8 * SECOND), first.lease, Outcome::Ok, ACCEPTED, false);
    assert_eq!(used(&engine, at(17 * SECOND)), [2, 1]);
    engine.finish(at(9 * SECOND), second.lease, Outcome::Neutral, Answer::default(), true);
    assert_eq!(used(&engine, at(9 * SECOND)), [1, 0]);

    let third = engine.take(at(9 * SECOND)).unwrap();
    assert_eq!(engine.recharge(at(10 * SECOND), third.lease, 1, &[]), Recharge::Waits);
    let wake = engine.next_wake().unwrap();
    assert!(wake > at(18 * SECOND), "the first attempt's unit is free ten seconds after its finish");
    engine.tick(wake);
    assert_eq!(engine.pop_action(), Some(Action::Recharged { lease: third.lease }));
    engine.finish(wake, third.lease, Outcome::Ok, ACCEPTED, false);
    assert_eq!(used(&engine, at(19 * SECOND)), [2, 1]);
    assert_eq!(used(&engine, at(21 * SECOND)), [1, 1]);
    assert_eq!(used(&engine, wake + Span::from_secs(11)), [0, 0]);
}

/// An attempt that is given up while its handler runs counts as finished when the longest attempt so far would have been.
#[test]
fn an_attempt_given_up_is_taken_to_finish_as_late_as_any_has() {
    let limit = window(1, 10).anchored(Anchor::Finish);
    let (mut engine, backend, class) = single(retry(1, Span::ZERO), &spec(&[limit], None));
    submit(&mut engine, at(0), &plain(class));
    let slow = engine.take(at(0)).unwrap();
    engine.ack(at(MS), slow.lease, ACCEPTED);
    engine.finish(at(4 * SECOND), slow.lease, Outcome::Ok, ACCEPTED, false);
    let given_up = submit(&mut engine, at(20 * SECOND), &plain(class));
    let running = engine.take(at(20 * SECOND)).unwrap();
    engine.ack(at(21 * SECOND), running.lease, ACCEPTED);
    engine.cancel(at(22 * SECOND), given_up);
    let used = |engine: &Engine, now| engine.status(backend, now).limits().next().unwrap().1.used;
    assert_eq!(used(&engine, at(36 * SECOND)), 1);
    assert_eq!(used(&engine, at(37 * SECOND)), 0);
}

fn states(engine: &mut Engine) -> Vec<Event> {
    std::iter::from_fn(|| engine.pop_event()).collect()
}

/// A closed limit reopens with exactly one attempt, and the rest follow its success; a failure without headers is none.
#[test]
fn a_closed_limit_reopens_by_one_probe() {
    let (mut engine, backend, class) = single(retry(9, Span::ZERO), &spec(&[window(100, 5)], None));
    let requests: Vec<Handle> = (0..6).map(|_| submit(&mut engine, at(0), &plain(class))).collect();
    let leased = engine.take(at(0)).unwrap();
    let told = Answer { retry_after: Some(Span::from_secs(30)), ..REJECTED };
    engine.ack(at(SECOND), leased.lease, told);
    engine.finish(at(SECOND), leased.lease, Outcome::Limited, told, false);
    assert_eq!(
        states(&mut engine),
        [Event::LimitClosed { backend, scope: None, until: at(31 * SECOND) }],
        "one rejection, not two"
    );
    assert_eq!(engine.demand(at(2 * SECOND)), 0);
    assert_eq!(engine.status(backend, at(2 * SECOND)).state(), BackendState::Closed(at(31 * SECOND)));
    assert!(engine.next_wake() >= Some(at(31 * SECOND)));

    // The request that was rejected is the first again, and has lost no attempt.
    let (reopening, probe) = wait(&mut engine, at(2 * SECOND));
    assert_eq!((probe.request, probe.attempt), (requests[0], 1));
    assert_eq!(engine.demand(reopening), 0);
    assert_eq!(engine.next_wake(), None);

    // It ends without headers: the next one is the probe.
    engine.finish(at(40 * SECOND), probe.lease, Outcome::Failed, Answer::default(), false);
    let probes = take_all(&mut engine, at(41 * SECOND));
    assert_eq!(probes.len(), 1);
    // It is rejected: closed again, for the period since nothing was said.
    engine.finish(at(42 * SECOND), probes[0].lease, Outcome::Limited, Answer::default(), false);
    assert_eq!(states(&mut engine), [Event::LimitClosed { backend, scope: None, until: at(47 * SECOND) }]);
    let (reopening, probe) = wait(&mut engine, at(42 * SECOND));
    assert!((at(47 * SECOND)..=at(47 * SECOND + TICK)).contains(&reopening));

    // It never left: the next one is the probe. That one is accepted.
    assert_eq!(engine.demand(reopening), 0);
    engine.finish(at(48 * SECOND), probe.lease, Outcome::Failed, Answer::default(), true);
    let probes = take_all(&mut engine, at(48 * SECOND));
    assert_eq!(probes.len(), 1);
    engine.ack(at(49 * SECOND), probes[0].lease, FAILED);
    assert_eq!(states(&mut engine), [Event::LimitReopened { backend, scope: None }]);
    assert_eq!(take_all(&mut engine, at(49 * SECOND)).len(), 5);
}

fn guess(amount: u32, seconds: u64) -> Limit {
    window(amount, seconds).guessed()
}

/// Ends an attempt as rejected, without a word on when to come back; the steps that are taken for it.
fn reject(engine: &mut Engine, now: Instant, lease: LeaseId) -> Vec<(u16, Kind, Kind)> {
    engine.finish(now, lease, Outcome::Limited, REJECTED, false);
    let step = |event: Event| match event {
        Event::LimitStepped { step, .. } => Some((step.limit, step.from, step.to)),
        _ => None,
    };
    states(engine).into_iter().filter_map(step).collect()
}

/// A limit whose kind is a guess is treated as a stricter one at each rejection of what was sent since the last such step, until there is
/// none left. Each time it is closed for a period, and one attempt goes first.
#[test]
fn a_guess_climbs_by_one_rung_a_rejection() {
    let (mut engine, backend, class) = single(retry(9, Span::ZERO), &spec(&[guess(10, 4)], None));
    for _ in 0..30 {
        submit(&mut engine, at(0), &plain(class));
    }
    let leased = take_all(&mut engine, at(0));
    assert_eq!(leased.len(), 10);
    engine.finish(at(MS), leased[0].lease, Outcome::Ok, ACCEPTED, false);
    let used = 9 + 1;
    engine.finish(at(2 * MS), leased[1].lease, Outcome::Limited, REJECTED, false);
    let step = Step { limit: 0, from: Kind::Window, to: Kind::Unknown, used };
    let closed = |from: u64| Event::LimitClosed { backend, scope: None, until: at(from + 4 * SECOND) };
    assert_eq!(states(&mut engine), [Event::LimitStepped { backend, scope: None, step }, closed(2 * MS)]);
    for leased in &leased[2..] {
        assert_eq!(reject(&mut engine, at(3 * MS), leased.lease), [], "it was sent before the step");
    }
    let treated_as = |engine: &Engine| engine.status(backend, at(0)).limits().next().unwrap().1.treated_as;
    assert_eq!(treated_as(&engine), Kind::Unknown);

    let (mut now, mut probe) = wait(&mut engine, at(3 * MS));
    assert!(now >= at(4 * SECOND + 3 * MS));
    for (from, to) in [(Kind::Unknown, Kind::Counter), (Kind::Counter, Kind::Leaky)] {
        assert!(engine.take(now).is_none(), "the probe is out");
        assert_eq!(reject(&mut engine, now, probe.lease), [(0, from, to)]);
        assert_eq!(treated_as(&engine), to);
        (now, probe) = wait(&mut engine, now);
    }
    assert_eq!(reject(&mut engine, now, probe.lease), [], "there is no stricter kind");

    let (now, probe) = wait(&mut engine, now);
    engine.finish(now, probe.lease, Outcome::Ok, ACCEPTED, false);
    assert_eq!(states(&mut engine).last(), Some(&Event::LimitReopened { backend, scope: None }));
    assert_eq!(take_all(&mut engine, now + Span::from_millis(500)).len(), 1, "they go one by one");
}

/// What has taken a step goes on evenly behind the instant at which the server lets it, however long that takes, and further behind it
/// each time that it is rejected again.
#[test]
fn a_limit_that_stepped_reopens_without_a_burst() {
    let (mut engine, _, class) = single(retry(99, Span::ZERO), &spec(&[guess(60, 60)], None));
    let told = |seconds| Answer { retry_after: Some(Span::from_secs(seconds)), ..REJECTED };
    for _ in 0..100 {
        submit(&mut engine, at(0), &plain(class));
    }
    let leased = take_all(&mut engine, at(0));
    for leased in &leased[1..] {
        engine.finish(at(MS), leased.lease, Outcome::Limited, told(30), false);
    }
    engine.finish(at(2 * MS), leased[0].lease, Outcome::Ok, ACCEPTED, false);
    let mut now = at(2 * MS);
    let mut behind = Vec::new();
    for _ in 0..4 {
        let (probe, leased) = wait(&mut engine, now);
        behind.push((probe.since(now).as_nanos() + SECOND / 2) / SECOND - 30);
        engine.finish(probe, leased.lease, Outcome::Limited, told(30), false);
        now = probe;
    }
    assert_eq!(behind[1..], [1, 3, 7], "units of a second");
    let (mut now, probe) = wait(&mut engine, now);
    engine.finish(now, probe.lease, Outcome::Ok, ACCEPTED, false);
    for _ in 0..10 {
        let (next, leased) = wait(&mut engine, now);
        assert!(next.since(now) >= Span::from_secs(1), "one by one");
        engine.finish(next, leased.lease, Outcome::Ok, ACCEPTED, false);
        now = next;
    }
}

/// A limit whose kind was named stays what it is, however often the server rejects.
#[test]
fn a_named_kind_never_climbs() {
    let limits = [window(10, 4), Limit::counter(9, Span::from_secs(4)).unwrap()];
    let (mut engine, _, class) = single(retry(9, Span::ZERO), &spec(&limits, None));
    submit(&mut engine, at(0), &plain(class));
    let mut now = at(0);
    for _ in 0..4 {
        let (later, leased) = wait(&mut engine, now);
        assert_eq!(reject(&mut engine, later, leased.lease), []);
        now = later;
    }
}

/// Of several limits the shortest guess steps, and the next one when that can climb no further; the closure lasts one period of it.
#[test]
fn the_shortest_guess_is_to_blame() {
    let limits = [guess(50, 600), window(10, 1), guess(20, 60)];
    let (mut engine, _, class) = single(retry(9, Span::ZERO), &spec(&limits, None));
    submit(&mut engine, at(0), &plain(class));
    let (mut now, mut climbed) = (at(0), Vec::new());
    for _ in 0..5 {
        let (later, leased) = wait(&mut engine, now);
        climbed.extend(reject(&mut engine, later, leased.lease).iter().map(|&(limit, _, to)| (limit, to, later.since(now))));
        now = later;
    }
    let minute = |span: Span| (span.as_nanos() + SECOND / 2) / (60 * SECOND);
    let climbed: Vec<_> = climbed.into_iter().map(|(limit, to, waited)| (limit, to, minute(waited))).collect();
    assert_eq!(
        climbed,
        [(2, Kind::Unknown, 0), (2, Kind::Counter, 1), (2, Kind::Leaky, 1), (0, Kind::Unknown, 1), (0, Kind::Counter, 10)]
    );
}

/// A cost that was admitted before a step is admitted after it, alone.
#[test]
fn a_step_makes_no_cost_too_large() {
    let (mut engine, backend, _) = single(retry(9, Span::ZERO), &spec(&[guess(10, 4)], None));
    let large = engine.class(at(0), &[backend], 8).unwrap();
    submit(&mut engine, at(0), &plain(large));
    let mut now = at(0);
    for _ in 0..3 {
        let (later, leased) = wait(&mut engine, now);
        assert_eq!(reject(&mut engine, later, leased.lease).len(), 1);
        now = later;
    }
    wait(&mut engine, now);
}

/// Rejections of all that was in flight are one change of state; the closure lasts as long as the latest of them says.
#[test]
fn rejections_of_one_closure_are_one_event() {
    let (mut engine, backend, class) = single(retry(9, Span::ZERO), &spec(&[window(100, 5)], None));
    for _ in 0..4 {
        submit(&mut engine, at(0), &plain(class));
    }
    for (index, leased) in take_all(&mut engine, at(0)).iter().enumerate() {
        let now = at((1 + index as u64) * SECOND);
        engine.finish(now, leased.lease, Outcome::Limited, REJECTED, false);
    }
    assert_eq!(states(&mut engine), [Event::LimitClosed { backend, scope: None, until: at(6 * SECOND) }]);
    assert_eq!(engine.status(backend, at(4 * SECOND)).state(), BackendState::Closed(at(9 * SECOND)));
    let (now, probe) = wait(&mut engine, at(4 * SECOND));
    assert!(now >= at(9 * SECOND));
    engine.finish(now, probe.lease, Outcome::Limited, REJECTED, false);
    assert_eq!(states(&mut engine), [Event::LimitClosed { backend, scope: None, until: now + Span::from_secs(5) }]);
}

/// An attempt whose first message was rejected may send the probe itself; what the server says of the probe counts.
#[test]
fn an_extra_message_may_be_the_probe() {
    let (mut engine, backend, class) = single(retry(9, Span::ZERO), &spec(&[window(100, 5)], None));
    submit(&mut engine, at(0), &plain(class));
    let next = submit(&mut engine, at(0), &plain(class));
    let leased = engine.take(at(0)).unwrap();
    engine.ack(at(0), leased.lease, REJECTED);
    assert_eq!(engine.recharge(at(SECOND), leased.lease, 1, &[]), Recharge::Waits);
    let wake = engine.next_wake().unwrap();
    assert!(engine.take(wake).is_none(), "the probe is out");
    assert_eq!(engine.pop_action(), Some(Action::Recharged { lease: leased.lease }));
    engine.ack(wake, leased.lease, REJECTED);
    let until = wake + Span::from_secs(5);
    assert_eq!(
        states(&mut engine),
        [Event::LimitClosed { backend, scope: None, until: at(5 * SECOND) }, Event::LimitClosed { backend, scope: None, until }]
    );

    assert_eq!(engine.recharge(wake, leased.lease, 1, &[]), Recharge::Waits);
    let wake = engine.next_wake().unwrap();
    engine.tick(wake);
    assert_eq!(engine.pop_action(), Some(Action::Recharged { lease: leased.lease }));
    engine.finish(wake, leased.lease, Outcome::Ok, ACCEPTED, false);
    assert_eq!(states(&mut engine), [Event::LimitReopened { backend, scope: None }]);
    assert_eq!(engine.ledger().delivered, 1);
    assert_eq!(engine.take(wake).map(|leased| leased.request), Some(next));
}

/// An attempt that is over is granted none of the messages that it still waited to send.
#[test]
fn an_attempt_that_is_over_sends_nothing_more() {
    let (mut engine, _, class) = single(retry(9, Span::ZERO), &spec(&[], None));
    let request = submit(&mut engine, at(0), &plain(class));
    let next = submit(&mut engine, at(0), &plain(class));
    let leased = engine.take(at(0)).unwrap();
    engine.ack(at(0), leased.lease, REJECTED);
    for _ in 0..2 {
        assert_eq!(engine.recharge(at(0), leased.lease, 1, &[]), Recharge::Waits);
    }
    engine.tick(at(SECOND + TICK));
    assert_eq!(engine.pop_action(), Some(Action::Recharged { lease: leased.lease }), "one is the probe");
    assert_eq!(engine.pop_action(), None);
    engine.cancel(at(2 * SECOND), request);
    assert_eq!(engine.pop_action(), Some(Action::Interrupt { lease: leased.lease }));
    assert_eq!(engine.pop_action(), None);
    assert_eq!(engine.take(at(2 * SECOND)).map(|leased| leased.request), Some(next), "the next one is the probe");
}

/// What ended with a rejection makes no way for the message behind it: the limit is closed first.
#[test]
fn a_rejection_counts_before_what_it_makes_way_for() {
    let (mut engine, _, class) = single(retry(9, Span::ZERO), &spec(&[window(4, 60)], None));
    for _ in 0..3 {
        submit(&mut engine, at(0), &plain(class));
    }
    let leases = take_all(&mut engine, at(0));
    assert_eq!(engine.recharge(at(0), leases[0].lease, 2, &[]), Recharge::Waits);
    assert_eq!(engine.recharge(at(0), leases[1].lease, 1, &[]), Recharge::Waits);
    engine.finish(at(1), leases[0].lease, Outcome::Limited, REJECTED, false);
    assert_eq!(engine.pop_action(), None);
}

/// A rejection that comes after the attempt was given up closes the limit all the same.
#[test]
fn a_late_rejection_closes_the_limit() {
    let (mut engine, backend, class) = single(retry(9, Span::ZERO), &spec(&[], None));
    let request = submit(&mut engine, at(0), &plain(class));
    let leased = engine.take(at(0)).unwrap();
    engine.cancel(at(1), request);
    engine.finish(at(2), leased.lease, Outcome::Limited, Answer { retry_after: Some(Span::from_secs(1)), ..REJECTED }, false);
    assert_eq!(states(&mut engine), [Event::LimitClosed { backend, scope: None, until: at(SECOND + 2) }]);
    assert_eq!(engine.status(backend, at(2)).in_flight(), 0);
}

/// One request is the demand of one worker, however many backends may serve it.
#[test]
fn demand_counts_requests_and_room() {
    let mut engine = engine(retry(1, Span::ZERO));
    let backends = [None, Some(2), Some(3)].map(|concurrency| engine.add_backend(Instant::ORIGIN, &spec(&[], concurrency)));
    let any = engine.class(at(0), &backends, 1).unwrap();
    let last = engine.class(at(0), &backends[2..], 1).unwrap();
    assert_eq!(engine.demand(at(0)), 0);
    submit(&mut engine, at(0), &plain(any));
    assert_eq!(engine.demand(at(0)), 1);
    take_all(&mut engine, at(0));
    for _ in 0..10 {
        submit(&mut engine, at(0), &plain(last));
    }
    assert_eq!(engine.demand(at(0)), 3);
    take_all(&mut engine, at(0));
    assert_eq!((engine.demand(at(0)), engine.may_run()), (0, false));
}

/// A lenient one is served late; its deadline says when, among others, it should have been.
#[test]
fn a_lenient_request_does_not_expire() {
    let (mut engine, _, class) = single(retry(1, Span::ZERO), &spec(&[window(1, 10)], None));
    submit(&mut engine, at(0), &plain(class));
    let first = engine.take(at(0)).unwrap();
    engine.finish(at(SECOND), first.lease, Outcome::Ok, ACCEPTED, false);
    let flags = Flags { lenient: true, ..Flags::default() };
    let late = submit(&mut engine, at(SECOND), &Submission { deadline: at(2 * SECOND), flags, ..plain(class) });
    let later = submit(&mut engine, at(SECOND), &Submission { deadline: at(20 * SECOND), ..plain(class) });
    let (now, next) = wait(&mut engine, at(SECOND));
    assert_eq!((next.request, next.deadline), (late, at(2 * SECOND)));
    engine.tick(now + Span::from_secs(5));
    engine.finish(now + Span::from_secs(5), next.lease, Outcome::Ok, ACCEPTED, false);
    assert_eq!(engine.ledger().delivered, 2);
    engine.tick(at(21 * SECOND));
    assert_eq!(engine.pop_ended().map(|ended| ended.request), Some(later), "which is not lenient");
    assert!(engine.pop_ended().is_none());
}
