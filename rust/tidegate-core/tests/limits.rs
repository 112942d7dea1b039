//! Quotas against strict servers, and against a slow model of what they promise.
//!
//! Runs 256 cases a property; `PROPTEST_CASES=100000` soaks.

mod common;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use common::servers::Server;
use common::{MS, SECOND, at};
use proptest::prelude::*;
use proptest::sample::Index;
use tidegate_core::limit::{Eligible, GateState, Jitter, Kind, Limit, Margin, Quota, Verdict};
use tidegate_core::time::{Instant, Span};

// ---------------------------------------------------------------------------------------------------------------------
// A greedy client on a line of arbitrary delays.

#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    /// It arrives, its reply does not; the client gives up after this long.
    Silent(u64),
    /// It does not arrive; the client gives up after this long.
    Dropped(u64),
    /// It never leaves; the client learns that after this long.
    Unsent(u64),
}

#[derive(Clone, Copy, Debug)]
struct Message {
    cost: u32,
    /// From the client to the server's counter, and from there to the client.
    there: u64,
    back: u64,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    Headers(usize),
    Timeout(usize),
    Refund(usize),
    Wake,
}

#[derive(Debug, Default)]
struct Run {
    sent: usize,
    rejected: usize,
    /// When the last message was sent.
    end: u64,
    /// Units that arrived.
    units: u64,
}

/// Sends every message as soon as the quota admits it, until `until`, with the server's clock as `clock` shows it.
fn run(
    quota: &mut Quota,
    servers: &mut [Server],
    clock: impl Fn(u64) -> u64,
    messages: impl IntoIterator<Item = Message>,
    longest_way: u64,
    until: u64,
) -> Run {
    let mut outcome = Run::default();
    let mut messages = messages.into_iter().peekable();
    let mut out: Vec<(Message, u64)> = Vec::new();
    let mut events = BinaryHeap::new();
    let mut order = 0;
    let mut push = |events: &mut BinaryHeap<_>, when: u64, event: Event| {
        order += 1;
        events.push(Reverse((when, order, event)));
    };
    let mut wake = Instant::ORIGIN;
    push(&mut events, 0, Event::Wake);
    while let Some(Reverse((now, _, event))) = events.pop() {
        if now > until {
            break;
        }
        match event {
            Event::Arrival(index) => {
                let cost = u64::from(out[index].0.cost);
                outcome.units += cost;
                let shown = clock(now);
                // Every server sees it, whatever the others say.
                let refusals = servers.iter_mut().filter_map(|server| (!server.accepts(shown, cost)).then_some(())).count();
                outcome.rejected += usize::from(refusals > 0);
            }
            Event::Headers(index) => {
                let (message, sent) = out[index];
                quota.ack_sent(at(now), at(sent), message.cost);
                assert!(!quota.accepted(at(sent)), "the gate was never closed");
            }
            Event::Timeout(index) => {
                let (message, sent) = out[index];
                quota.ack_sent(at(now.max(sent + longest_way)), at(sent), message.cost);
                quota.unanswered(at(sent));
            }
            Event::Refund(index) => quota.refund(at(out[index].1), out[index].0.cost),
            Event::Wake => {}
        }
        while let Some(message) = messages.peek().copied() {
            match quota.next_eligible(at(now), message.cost).eligible {
                Eligible::Now => {}
                Eligible::At(later) => {
                    assert!(later > at(now));
                    if later != wake {
                        wake = later;
                        push(&mut events, later.as_nanos(), Event::Wake);
                    }
                    break;
                }
                Eligible::OnAck => break,
                other => panic!("{other:?} for a cost of {}", message.cost),
            }
            messages.next();
            quota.send(at(now), message.cost);
            let index = out.len();
            out.push((message, now));
            outcome.sent += 1;
            outcome.end = now;
            match message.fate {
                Fate::Answered => {
                    push(&mut events, now + message.there, Event::Arrival(index));
                    push(&mut events, now + message.there + message.back, Event::Headers(index));
                }
                Fate::Silent(patience) => {
                    push(&mut events, now + message.there, Event::Arrival(index));
                    push(&mut events, now + patience, Event::Timeout(index));
                }
                Fate::Dropped(patience) => push(&mut events, now + patience, Event::Timeout(index)),
                Fate::Unsent(patience) => push(&mut events, now + patience, Event::Refund(index)),
            }
        }
    }
    outcome
}

fn limit() -> impl Strategy<Value = Limit> {
    let amount = prop_oneof![8 => 1u32..12, 2 => 12u32..200, 1 => 4097u32..100_000];
    let period = prop_oneof![1u64..50, MS..20 * MS, SECOND..10 * SECOND].prop_map(Span::from_nanos);
    (0u8..9, amount, period, 1u32..12, any::<u64>()).prop_map(|(kind, amount, period, burst, boundary)| {
        match kind {
            0..3 => Limit::window(amount, period),
            3..5 => Limit::bucket(amount, period, burst),
            5 => Limit::aligned(amount, period, at(boundary), Span::from_nanos(boundary % 2 * MS)),
            6 => Limit::leaky(amount, period),
            7 => Limit::counter(amount, period),
            _ => Limit::unknown(amount, period),
        }
        .unwrap()
    })
}

/// A delay as a share of `longest`: none, usual, or up to all of it.
fn delay() -> impl Strategy<Value = f64> {
    prop_oneof![1 => Just(0.0), 4 => 0.0..0.1, 2 => 0.0..1.0]
}

prop_compose! {
    fn message()(cost in delay(), there in delay(), back in delay(), fate in 0u8..16, patience in 0.0..2.0)
        -> (f64, f64, f64, u8, f64) { (cost, there, back, fate, patience) }
}

fn scaled(shares: &(f64, f64, f64, u8, f64), capacity: u32, longest: u64) -> Message {
    let span = |share: f64| (share * longest as f64) as u64;
    let (cost, there, back, fate, patience) = *shares;
    Message {
        cost: 1 + (cost * f64::from(capacity - 1)) as u32,
        there: span(there).min(longest),
        back: span(back),
        fate: match fate {
            0 => Fate::Silent(span(patience)),
            1 => Fate::Dropped(span(patience)),
            2 => Fate::Unsent(span(patience)),
            _ => Fate::Answered,
        },
    }
}

proptest! {
    /// However long messages and replies travel, whichever are lost, and whatever they cost: no server that counts exactly
    /// rejects one, and every message is sent.
    #[test]
    fn never_over_the_quota_in_any_window(
        limits in prop::collection::vec(limit(), 1..4),
        which in prop::collection::vec(any::<u8>(), 3),
        phase in any::<u64>(),
        stretch in 0.0..3.0,
        shares in prop::collection::vec(message(), 1..150),
        margin in prop_oneof![Just(Margin::NONE), Just(Margin::default())],
    ) {
        let mut quota = Quota::new(&limits, margin);
        let mut servers: Vec<Server> = limits.iter().zip(which).map(|(limit, which)| Server::of(limit, which, phase)).collect();
        let longest = (stretch * limits[0].period().as_nanos() as f64) as u64;
        // A larger cost would go alone, whatever the server thinks of it.
        let most = quota.headroom(Instant::ORIGIN);
        let messages = shares.iter().map(|shares| scaled(shares, most, longest)).collect::<Vec<_>>();
        let outcome = run(&mut quota, &mut servers, |now| now, messages, longest, u64::MAX);
        prop_assert_eq!(outcome.rejected, 0);
        prop_assert_eq!(outcome.sent, shares.len());
    }

    /// The same when units count as acknowledged as soon as the ways to the server, which differ by no more than `jitter`, allow it.
    #[test]
    fn never_over_the_quota_on_credit(
        limits in prop::collection::vec(limit(), 1..4),
        credited in prop::collection::vec(any::<bool>(), 3),
        which in prop::collection::vec(any::<u8>(), 3),
        phase in any::<u64>(),
        (way, spread) in (0.0..2.0, prop_oneof![Just(0.0), 0.0..0.1, 0.0..2.0]),
        shares in prop::collection::vec(message(), 1..150),
        margin in prop_oneof![Just(Margin::NONE), Just(Margin::default())],
    ) {
        let period = limits[0].period().as_nanos() as f64;
        let (way, spread) = ((way * period) as u64, (spread * period) as u64);
        let jitter = |(limit, credited): (&Limit, &bool)| {
            limit.jittered(if *credited { Jitter::Known(Span::from_nanos(spread)) } else { Jitter::None })
        };
        let jittered: Vec<Limit> = limits.iter().zip(&credited).map(jitter).collect();
        let mut quota = Quota::new(&jittered, margin);
        let mut servers: Vec<Server> = limits.iter().zip(which).map(|(limit, which)| Server::of(limit, which, phase)).collect();
        let most = quota.headroom(Instant::ORIGIN);
        let messages = shares.iter().map(|shares| {
            let message = scaled(shares, most, spread);
            Message { there: way + message.there, back: message.back * 2, ..message }
        });
        let outcome = run(&mut quota, &mut servers, |now| now, messages.collect::<Vec<_>>(), way + spread, u64::MAX);
        prop_assert_eq!(outcome.rejected, 0);
        prop_assert_eq!(outcome.sent, shares.len());
    }

    /// The margin covers a server whose clock is 100 ppm slow or fast and shows whole milliseconds only.
    #[test]
    fn the_margin_covers_drift_and_truncation(
        limits in prop::collection::vec(limit(), 1..3),
        which in prop::collection::vec(any::<u8>(), 2),
        shares in prop::collection::vec(message(), 1..150),
        ppm in prop::sample::select(vec![-100i64, 0, 100]),
        resolution in prop::sample::select(vec![1, MS]),
    ) {
        let clock = |now: u64| now.saturating_add_signed(now as i64 * ppm / 1_000_000) / resolution * resolution;
        // Such a server has periods of whole milliseconds. A unit takes longer than the drift over one of them (0.1 µs):
        // the floor is not stretched for it.
        let rounded = |limit: &Limit| {
            let period = limit.period().as_nanos().max(u64::from(limit.amount()) * 1000);
            let period = Span::from_nanos(period.next_multiple_of(MS));
            match limit.kind() {
                Kind::Window => Limit::window(limit.amount(), period),
                _ => Limit::bucket(limit.amount(), period, limit.burst()),
            }.unwrap()
        };
        let limits: Vec<Limit> = limits.iter().map(rounded).collect();
        let mut quota = Quota::new(&limits, Margin::default());
        let mut servers: Vec<Server> = limits.iter().zip(which).map(|(limit, which)| Server::of(limit, which, 0)).collect();
        let messages = shares.iter().map(|shares| scaled(shares, quota.capacity(), 0)).collect::<Vec<_>>();
        let outcome = run(&mut quota, &mut servers, clock, messages, 0, u64::MAX);
        prop_assert_eq!(outcome.rejected, 0);
        prop_assert_eq!(outcome.sent, shares.len());
    }
}

/// The share of what a perfect client could send in ten minutes and in 32 s, with the round trips of algorithms.md A9.
#[test]
fn nearly_all_of_the_quota_is_used() {
    let uniform = |seed: &mut u64| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) % (80 * MS)
    };
    let window = Limit::window(50, Span::from_secs(5)).unwrap();
    let bucket = |burst| Limit::bucket(50, Span::from_secs(5), burst).unwrap();
    for (limit, which, seconds, least) in [
        (window, 0, 32, 100.0),
        (window, 1, 32, 100.0),
        (window, 2, 32, 100.0),
        (window, 0, 600, 99.0),
        (window, 1, 600, 99.0),
        (window, 2, 600, 99.0),
        (bucket(50), 0, 600, 99.9),
        (bucket(5), 0, 600, 99.9),
        (bucket(5), 1, 32, 99.0),
    ] {
        let mut seed = 7;
        let messages = std::iter::repeat_with(|| Message { cost: 1, there: uniform(&mut seed), back: 0, fate: Fate::Answered });
        let mut quota = Quota::new(&[limit], Margin::default());
        let mut servers = [Server::of(&limit, which, 0)];
        let outcome = run(&mut quota, &mut servers, |now| now, messages, 0, seconds * SECOND);
        let ideal = match limit.kind() {
            Kind::Window => 50 * seconds.div_ceil(5),
            _ => u64::from(limit.burst()) + 10 * seconds,
        };
        let share = 100.0 * outcome.units as f64 / ideal as f64;
        assert_eq!(outcome.rejected, 0);
        assert!(share >= least && share <= 100.0, "{limit:?} at {which} for {seconds} s: {share:.2} %");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What a quota promises, computed from its whole history at every instant that is asked about.

#[derive(Clone, Debug)]
struct Model {
    limit: Limit,
    margin: (u64, u64),
    in_flight: u64,
    /// When acknowledged units count as arrived, and how many.
    arrivals: Vec<(u64, u64)>,
    latest: u64,
}

impl Model {
    fn new(limit: Limit, margin: Margin) -> Model {
        let margin = (margin.floor().as_nanos(), u64::from(margin.ppm()));
        Model { limit, margin, in_flight: 0, arrivals: Vec::new(), latest: 0 }
    }

    fn send(&mut self, now: u64, cost: u32) {
        self.latest = self.latest.max(now);
        self.in_flight += u64::from(cost);
    }

    fn ack(&mut self, when: u64, cost: u32) {
        self.in_flight -= u64::from(cost);
        self.arrivals.push((when.max(self.latest), u64::from(cost)));
        self.arrivals.sort_unstable();
    }

    /// When an acknowledged unit is free again.
    fn release(&self, arrival: u64) -> u64 {
        let period = self.limit.period().as_nanos();
        let (floor, ppm) = self.margin;
        let margin = floor.max((period * ppm).div_ceil(1_000_000));
        if self.limit.kind() != Kind::Aligned {
            return arrival + period + margin;
        }
        let (boundary, tolerance) = self.limit.boundary();
        let tolerance = tolerance.as_nanos().max(margin).min(period / 8);
        (arrival + tolerance + 1..).find(|&when| when % period == boundary.as_nanos() % period).unwrap() + tolerance
    }

    /// Whether no more than `amount` units are occupied with `cost` of them.
    fn fits(&self, now: u64, cost: u64) -> bool {
        let held = self.arrivals.iter().filter(|(arrival, _)| self.release(*arrival) > now);
        self.in_flight + held.map(|(_, units)| units).sum::<u64>() + cost <= u64::from(self.limit.amount())
    }

    /// Whether a bucket that holds `burst` and refills by `amount` a period has `cost`.
    fn holds(&self, now: u64, cost: u64, amount: u64, burst: u64, slower: u64) -> bool {
        let (floor, ppm) = self.margin;
        let interval = (self.limit.period().as_nanos() * (1_000_000 + ppm + slower)).div_ceil(1_000_000 * amount);
        let (mut tat, mut pending) = (0, self.in_flight);
        for (arrival, units) in &self.arrivals {
            if arrival + floor <= now {
                tat = tat.max(arrival + floor) + units * interval;
            } else {
                pending += units;
            }
        }
        tat.max(now) + (pending + cost) * interval <= now + burst * interval
    }

    /// Most units that are admitted at once, but for a cost that goes alone.
    fn most(&self) -> u32 {
        match self.limit.kind() {
            Kind::Unknown => self.limit.capacity().min(5),
            // A quarter of so short a period is kept for what is in flight.
            Kind::Counter => 1 + self.extra(),
            _ => self.limit.capacity(),
        }
    }

    fn extra(&self) -> u32 {
        let (amount, period) = (u64::from(self.limit.amount()), self.limit.period().as_nanos());
        let reach = period / 4;
        (reach * amount).div_ceil(period + reach).min((amount - 1) / 2) as u32
    }

    fn admits(&self, now: u64, cost: u32) -> bool {
        let (amount, burst) = (u64::from(self.limit.amount()), u64::from(self.limit.burst()));
        let now = now.max(self.latest);
        let alone = u64::from(cost.min(self.most()));
        match self.limit.kind() {
            Kind::Window | Kind::Aligned => self.fits(now, u64::from(cost)),
            Kind::Bucket | Kind::Leaky => self.holds(now, u64::from(cost), amount, burst, 0),
            Kind::Unknown => self.fits(now, u64::from(cost)) && self.holds(now, alone, amount, u64::from(self.most()), 0),
            Kind::Counter => self.holds(now, alone, amount - u64::from(self.extra()), u64::from(self.most()), 2000),
            other => panic!("no model of {other:?}"),
        }
    }

    /// The first instant from `now` on at which `cost` is admitted if nothing happens; every instant is tried.
    fn eligible(&self, now: u64, cost: u32) -> Eligible {
        if cost > self.limit.capacity() {
            return Eligible::Never;
        }
        let horizon = self.arrivals.iter().map(|(arrival, _)| *arrival).max().unwrap_or(0).max(now) + 2000;
        match (now..=horizon).find(|now| self.admits(*now, cost)) {
            None => Eligible::OnAck,
            Some(when) if when == now => Eligible::Now,
            Some(when) => Eligible::At(at(when)),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Let time pass.
    Pass(u64),
    /// Let the clock step back.
    Back(u64),
    /// Send if admitted.
    Send(u32),
    /// Send all the same.
    Force(u32),
    /// Acknowledge something in flight, so late.
    Ack(Index, u64),
    Refund(Index),
    Ask(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..60).prop_map(Step::Pass),
        1 => (0u64..30).prop_map(Step::Back),
        6 => (1u32..5).prop_map(Step::Send),
        1 => (1u32..3).prop_map(Step::Force),
        6 => (any::<Index>(), prop_oneof![3 => Just(0), 1 => 0u64..150]).prop_map(|(index, late)| Step::Ack(index, late)),
        1 => any::<Index>().prop_map(Step::Refund),
        2 => (1u32..8).prop_map(Step::Ask),
    ]
}

fn small_limit() -> impl Strategy<Value = Limit> {
    (0u8..8, 1u32..8, 1u64..150, 1u32..8, 0u64..300).prop_map(|(kind, amount, period, burst, boundary)| {
        let period = Span::from_nanos(period);
        match kind {
            0 | 1 => Limit::window(amount, period),
            2 | 3 => Limit::bucket(amount, period, burst),
            4 => Limit::aligned(amount, period, at(boundary), Span::from_nanos(boundary % 20)),
            5 => Limit::leaky(amount, period),
            6 => Limit::counter(amount, period),
            _ => Limit::unknown(amount, period),
        }
        .unwrap()
    })
}

fn small_margin() -> impl Strategy<Value = Margin> {
    prop_oneof![Just(Margin::NONE), (0u64..10, 0u32..100_000).prop_map(|(floor, ppm)| Margin::new(Span::from_nanos(floor), ppm)),]
}

/// What the AND of several answers is, and which of them decides it.
fn conjunction(answers: &[Eligible]) -> (Eligible, Option<u16>) {
    let first = |wanted: Eligible| answers.iter().position(|answer| *answer == wanted).map(|index| index as u16);
    let latest = answers.iter().filter_map(|answer| match answer {
        Eligible::At(when) => Some(*when),
        _ => None,
    });
    [Eligible::Never, Eligible::OnAck]
        .into_iter()
        .chain(latest.max().map(Eligible::At))
        .find_map(|wanted| first(wanted).map(|index| (wanted, Some(index))))
        .unwrap_or((Eligible::Now, None))
}

proptest! {
    /// `next_eligible` is exact and tight: what it says of now, and the instant that it promises, is what trying every
    /// instant gives, for late and early acknowledgements, refunds, charges ahead of the queue and a clock that steps back.
    /// Every limit is charged or none is, asking changes nothing, and usage and headroom agree with it.
    #[test]
    fn promises_are_exact_and_tight(
        limits in prop::collection::vec(small_limit(), 0..4),
        margin in small_margin(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut quota = Quota::new(&limits, margin);
        let mut models: Vec<Model> = limits.iter().map(|limit| Model::new(*limit, margin)).collect();
        let mut in_flight: Vec<(u64, u32)> = Vec::new();
        let mut now = 0;
        for step in steps {
            let mut cost = 1;
            match step {
                Step::Pass(span) => now += span,
                Step::Back(span) => now = now.saturating_sub(span),
                Step::Ask(asked) => cost = asked,
                Step::Force(forced) => {
                    quota.send(at(now), forced);
                    models.iter_mut().for_each(|model| model.send(now, forced));
                    in_flight.push((now, forced));
                }
                Step::Send(sent) => {
                    cost = sent;
                    if quota.next_eligible(at(now), sent).eligible == Eligible::Now {
                        prop_assert!(models.iter().all(|model| model.admits(now, sent)));
                        quota.send(at(now), sent);
                        models.iter_mut().for_each(|model| model.send(now, sent));
                        in_flight.push((now, sent));
                    }
                }
                Step::Ack(index, late) if !in_flight.is_empty() => {
                    let (_, acked) = in_flight.swap_remove(index.index(in_flight.len()));
                    quota.ack(at(now + late), acked);
                    models.iter_mut().for_each(|model| model.ack(now + late, acked));
                }
                Step::Refund(index) if !in_flight.is_empty() => {
                    let (sent, refunded) = in_flight.swap_remove(index.index(in_flight.len()));
                    quota.refund(at(sent), refunded);
                    models.iter_mut().for_each(|model| model.in_flight -= u64::from(refunded));
                }
                Step::Ack(..) | Step::Refund(_) => {}
            }

            let answers: Vec<Eligible> = models.iter().map(|model| model.eligible(now, cost)).collect();
            let (eligible, blocker) = conjunction(&answers);
            let single = models.iter().all(|model| model.admits(now, 1));
            let cost_only = eligible != Eligible::Now && single;
            prop_assert_eq!(quota.next_eligible(at(now), cost), Verdict { eligible, blocker, cost_only });

            let mut headroom = u32::MAX;
            for (usage, model) in quota.usage(at(now)).zip(&models) {
                let available = (1..=model.most()).take_while(|cost| model.admits(now, *cost)).count();
                prop_assert_eq!(usage.available as usize, available);
                prop_assert_eq!(usage.limit, &model.limit);
                prop_assert_eq!(usage.next_eligible, model.eligible(now, 1));
                headroom = headroom.min(usage.available);
            }
            prop_assert_eq!(quota.headroom(at(now)), headroom);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The gate.

#[derive(Clone, Debug)]
enum Reply {
    Accepted,
    Rejected(Option<u64>),
    /// Ended without headers.
    Unanswered,
    Refunded,
}

#[derive(Clone, Debug)]
enum Move {
    Pass(u64),
    Send,
    Reply(Index, Reply),
}

fn moves() -> impl Strategy<Value = Move> {
    let reply = prop_oneof![
        3 => Just(Reply::Accepted),
        3 => prop::option::of(0u64..100).prop_map(Reply::Rejected),
        1 => Just(Reply::Unanswered),
        1 => Just(Reply::Refunded),
    ];
    prop_oneof![
        3 => (0u64..60).prop_map(Move::Pass),
        4 => Just(Move::Send),
        4 => (any::<Index>(), reply).prop_map(|(index, reply)| Move::Reply(index, reply)),
    ]
}

/// The last closure, and what is known since.
#[derive(Debug, Default)]
struct GateModel {
    /// When the last closure ends or ended.
    end: Option<u64>,
    /// When the message was sent that was accepted after it.
    proven: Option<u64>,
    out: BTreeSet<(u64, usize)>,
}

impl GateModel {
    fn state(&self, now: u64) -> GateState {
        match (self.end, self.proven) {
            (Some(end), None) if now < end => GateState::Closed(at(end)),
            (Some(_), None) => GateState::Reopening,
            _ => GateState::Open,
        }
    }

    fn eligible(&self, now: u64) -> Eligible {
        let probes = self.out.iter().filter(|(sent, _)| Some(*sent) >= self.end).count();
        match self.state(now) {
            GateState::Closed(until) => Eligible::Closed(until),
            GateState::Reopening if probes > 0 => Eligible::OnAck,
            _ => Eligible::Now,
        }
    }

    fn rejected(&mut self, now: u64, sent: u64, wait: u64) -> Option<Instant> {
        if self.proven.is_some_and(|proven| sent < proven) {
            return None;
        }
        let end = now + wait.max(1);
        if self.proven.is_none() && self.end >= Some(end) {
            return None;
        }
        self.end = Some(end);
        self.proven = None;
        Some(at(end))
    }
}

proptest! {
    /// While the gate is closed nothing goes; once it reopens exactly one message is out until the server has accepted one
    /// sent since; messages from before a closure neither open it nor count; no closure is ever shortened.
    #[test]
    fn the_gate_reopens_by_one_message(moves in prop::collection::vec(moves(), 1..80), period in prop::option::of(1u64..100)) {
        // So large an amount that the limit itself never holds anything back.
        let limit = period.map(|period| Limit::window(4000, Span::from_nanos(period)).unwrap());
        let untold = period.unwrap_or(SECOND);
        let mut quota = Quota::new(limit.as_slice(), Margin::NONE);
        let mut model = GateModel::default();
        let mut now = 0;
        for (index, action) in moves.into_iter().enumerate() {
            match action {
                Move::Pass(span) => now += span,
                Move::Send => {
                    if quota.next_eligible(at(now), 1).eligible == Eligible::Now {
                        quota.send(at(now), 1);
                        model.out.insert((now, index));
                    }
                }
                Move::Reply(which, reply) if !model.out.is_empty() => {
                    let message = *model.out.iter().nth(which.index(model.out.len())).unwrap();
                    model.out.remove(&message);
                    let sent = message.0;
                    match reply {
                        Reply::Accepted => {
                            quota.ack(at(now), 1);
                            let opens = model.state(now) == GateState::Reopening && Some(sent) >= model.end;
                            prop_assert_eq!(quota.accepted(at(sent)), opens);
                            if opens {
                                model.proven = Some(sent);
                            }
                        }
                        Reply::Rejected(told) => {
                            quota.ack(at(now), 1);
                            let moved = quota.rejected(at(now), at(sent), told.map(Span::from_nanos));
                            prop_assert_eq!(moved, model.rejected(now, sent, told.unwrap_or(untold)));
                        }
                        Reply::Unanswered => {
                            quota.ack(at(now + 10), 1);
                            quota.unanswered(at(sent));
                        }
                        Reply::Refunded => quota.refund(at(sent), 1),
                    }
                }
                Move::Reply(..) => {}
            }
            prop_assert_eq!(quota.gate(at(now)), model.state(now));
            let verdict = quota.next_eligible(at(now), 1);
            prop_assert_eq!(verdict, Verdict { eligible: model.eligible(now), blocker: None, cost_only: false });
            let room = match model.eligible(now) {
                Eligible::Now if model.state(now) == GateState::Reopening => 1..=1,
                Eligible::Now => 2..=u32::MAX,
                _ => 0..=0,
            };
            prop_assert!(room.contains(&quota.headroom(at(now))));
        }
    }
}
