//! Which request goes next, and where: exactly what a slow model says.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{TICK, at, cases, engine_in_order, retry, submit, take_all};
use proptest::prelude::*;
use tidegate_core::engine::{
    Action, Answer, BackendSpec, ColdStart, Engine, Finished, Handle, LeaseId, Outcome, Recharge, Spends, Submission,
};
use tidegate_core::limit::{Eligible, Limit, Margin, Quota};
use tidegate_core::queue::Order;
use tidegate_core::time::{Instant, Span};

// ---------------------------------------------------------------------------------------------------------------------
// The model: a list of all that waits, sorted at every question, and the quotas driven by hand.

#[derive(Debug)]
struct Request {
    priority: u8,
    /// Its place in the order in which requests joined their queues, and when it did.
    number: usize,
    joined: Instant,
    /// Until when it does not go, and its place in the order in which that was last said.
    postponed: Option<(Instant, usize)>,
    deadline: Instant,
    flow: usize,
    class: usize,
    handle: Handle,
    waits: bool,
    /// Where its last attempt failed.
    avoid: Option<usize>,
}

#[derive(Debug)]
struct Attempt {
    /// `None` once it is given up.
    request: Option<usize>,
    backend: usize,
    unacked: u32,
    sent: Instant,
    rejected: bool,
    /// Its last message was an extra one.
    extra: bool,
}

#[derive(Debug)]
struct Site {
    quota: Quota,
    concurrency: usize,
    weight: f64,
    /// Attempts that wait to send one more message.
    recharges: Vec<(LeaseId, u32)>,
    longest_latency: Span,
}

/// By name, and with what a unit of cost takes of each.
const FLOWS: [(&str, u64); 4] = [("", 4), ("a", 1), ("b", 2), ("c", 8)];

fn fair() -> Order {
    Order::Fair(vec![("a".into(), 4.0), ("b".into(), 2.0), ("c".into(), 0.5)])
}

/// How far flows have been served, and what backends have served, by band.
#[derive(Debug, Default)]
struct Shares {
    /// By flow and the backends that it waits for.
    start: BTreeMap<(usize, Vec<usize>, u8), u64>,
    now: BTreeMap<(usize, u8), u64>,
    end: BTreeMap<(usize, u8), u64>,
}

#[derive(Debug)]
struct Model {
    order: Order,
    next_number: usize,
    shares: Shares,
    sites: Vec<Site>,
    /// Backends, cost, the backend that is preferred.
    classes: Vec<(Vec<usize>, u32, Option<usize>)>,
    requests: Vec<Request>,
    attempts: BTreeMap<u64, Attempt>,
    /// Extra messages that were let go since this was last emptied.
    recharged: BTreeSet<u64>,
}

impl Model {
    fn in_flight(&self, backend: usize) -> usize {
        self.attempts.values().filter(|attempt| attempt.backend == backend).count()
    }

    fn is_live(&self, index: usize) -> bool {
        let Request { waits, postponed, .. } = self.requests[index];
        waits || postponed.is_some() || self.attempts.values().any(|attempt| attempt.request == Some(index))
    }

    /// Whose turn it is, as (band, what the order says, number of acceptance).
    fn key(&self, index: usize) -> (u8, u64, usize) {
        let request = &self.requests[index];
        let (band, number) = (request.priority, request.number);
        match &self.order {
            Order::Strict => (band, 0, number),
            Order::Aging(step) => (0, (request.joined + step.times(u64::from(band))).as_nanos(), number),
            Order::Deadline if request.deadline == Instant::FAR => {
                (band, (request.joined + Span::from_secs(3600)).as_nanos(), number)
            }
            Order::Deadline => (band, request.deadline.as_nanos(), number),
            Order::Fair(_) => (band, self.shares.start[&self.share(index)], number),
        }
    }

    fn share(&self, index: usize) -> (usize, Vec<usize>, u8) {
        let request = &self.requests[index];
        (request.flow, self.classes[request.class].0.clone(), request.priority)
    }

    /// A request begins to wait: if its flow did not, that goes on from where others are who wait for the same backends.
    fn join(&mut self, index: usize) {
        let (flow, backends, band) = self.share(index);
        let waits = |other: usize| self.requests[other].waits && self.requests[other].priority == band;
        let others: Vec<usize> = (0..self.requests.len()).filter(|&other| other != index && waits(other)).collect();
        let Shares { start, now, end } = &mut self.shares;
        for &backend in &backends {
            if !others.iter().any(|&other| self.classes[self.requests[other].class].0.contains(&backend)) {
                let end = end.get(&(backend, band)).copied().unwrap_or(0);
                now.insert((backend, band), end);
            }
        }
        let time = backends.iter().map(|&backend| now[&(backend, band)]).max().unwrap();
        let is_of_mine =
            |&other: &usize| self.requests[other].flow == flow && self.classes[self.requests[other].class].0 == backends;
        if !others.iter().any(is_of_mine) {
            let start = start.entry((flow, backends, band)).or_default();
            *start = time.max(*start);
        }
        self.requests[index].waits = true;
    }

    fn number(&mut self) -> usize {
        self.next_number += 1;
        self.next_number
    }

    /// A request that was postponed begins to wait, behind all that have begun.
    fn end_postponement(&mut self, now: Instant, index: usize) {
        let number = self.number();
        let request = &mut self.requests[index];
        (request.number, request.joined, request.postponed) = (number, now, None);
        self.join(index);
    }

    /// What was postponed until now begins to wait.
    fn pass(&mut self, now: Instant) {
        let due = |request: &Request| request.postponed.filter(|(until, _)| *until <= now);
        let mut due: Vec<_> = (0..self.requests.len()).filter_map(|index| Some((due(&self.requests[index])?, index))).collect();
        due.sort();
        for (_, index) in due {
            self.end_postponement(now, index);
        }
    }

    /// One more submission of a request that has not ended.
    fn hasten(&mut self, now: Instant, index: usize, priority: u8, deadline: Instant, not_before: Instant) {
        let number = self.number();
        let request = &mut self.requests[index];
        request.deadline = request.deadline.min(deadline);
        if priority < request.priority {
            let waits = std::mem::replace(&mut request.waits, false);
            request.priority = priority;
            if waits {
                self.join(index);
            }
        }
        let request = &mut self.requests[index];
        if let Some((until, _)) = request.postponed
            && not_before < until
        {
            request.postponed = Some((not_before, number));
            if not_before <= now {
                self.end_postponement(now, index);
            }
        }
    }

    fn serve_flow(&mut self, index: usize, backend: usize) {
        let share = self.share(index);
        let (flow, band) = (share.0, share.2);
        let cost = u64::from(self.classes[self.requests[index].class].1);
        let Shares { start, now, end } = &mut self.shares;
        let start = start.get_mut(&share).unwrap();
        let time = now.entry((backend, band)).or_default();
        *time = (*time).max(*start);
        *start += cost * FLOWS[flow].1;
        let last = end.entry((backend, band)).or_default();
        *last = (*last).max(*start);
    }

    /// The least request that has a ready backend, and the one of these that is used least.
    fn next(&self, now: Instant) -> Option<(usize, usize)> {
        let mut waiting: Vec<usize> = (0..self.requests.len()).filter(|index| self.requests[*index].waits).collect();
        waiting.sort_by_key(|index| self.key(*index));
        // What a more urgent request waits for is kept for it, although the room may suffice for a smaller one.
        let mut kept = BTreeSet::new();
        for index in waiting {
            let request = &self.requests[index];
            let (backends, cost, preferred) = &self.classes[request.class];
            let load = |backend: usize| {
                let load = self.in_flight(backend) as f64 / self.sites[backend].weight;
                (request.avoid == Some(backend), *preferred != Some(backend), load)
            };
            let mut best: Option<usize> = None;
            for &backend in backends {
                let site = &self.sites[backend];
                if self.in_flight(backend) >= site.concurrency || !site.recharges.is_empty() || kept.contains(&backend) {
                    continue;
                }
                if site.quota.next_eligible(now, *cost).eligible != Eligible::Now {
                    kept.insert(backend);
                } else if best.is_none_or(|best| load(backend) < load(best)) {
                    best = Some(backend);
                }
            }
            if let Some(backend) = best {
                return Some((index, backend));
            }
        }
        None
    }

    /// Lets go what the limits admit of the messages ahead of the queue.
    fn serve(&mut self, now: Instant) {
        for site in &mut self.sites {
            while let Some(&(lease, cost)) = site.recharges.first()
                && site.quota.next_eligible(now, cost).eligible == Eligible::Now
            {
                site.recharges.remove(0);
                site.quota.send(now, cost);
                let attempt = self.attempts.get_mut(&lease.to_bits()).unwrap();
                (attempt.unacked, attempt.sent, attempt.rejected, attempt.extra) = (cost, now, false, true);
                self.recharged.insert(lease.to_bits());
            }
        }
    }

    fn answered(&mut self, now: Instant, lease: LeaseId, rejection: Option<Option<Span>>) {
        let attempt = self.attempts.get_mut(&lease.to_bits()).unwrap();
        let site = &mut self.sites[attempt.backend];
        if attempt.unacked > 0 {
            site.longest_latency = site.longest_latency.max(now.since(attempt.sent));
            site.quota.ack(now, attempt.unacked);
            attempt.unacked = 0;
        }
        match rejection {
            Some(_) if attempt.rejected => {}
            Some(retry_after) => {
                attempt.rejected = true;
                site.quota.rejected(now, attempt.sent, retry_after);
            }
            None if attempt.rejected => {}
            None => drop(site.quota.accepted(attempt.sent)),
        }
    }

    fn unanswered(&mut self, now: Instant, lease: LeaseId) {
        let attempt = self.attempts.get_mut(&lease.to_bits()).unwrap();
        let site = &mut self.sites[attempt.backend];
        if attempt.unacked > 0 {
            site.quota.ack(now + site.longest_latency, attempt.unacked);
            site.quota.unanswered(attempt.sent);
            attempt.unacked = 0;
        }
    }

    fn drop_recharge(&mut self, lease: LeaseId) {
        let backend = self.attempts[&lease.to_bits()].backend;
        self.sites[backend].recharges.retain(|(waiting, _)| *waiting != lease);
    }

    fn finish(&mut self, now: Instant, lease: LeaseId, end: &End) {
        self.drop_recharge(lease);
        let attempt = &self.attempts[&lease.to_bits()];
        let (request, backend, unacked, sent) = (attempt.request, attempt.backend, attempt.unacked, attempt.sent);
        match end {
            End::Unsent if unacked > 0 => self.sites[backend].quota.refund(sent, unacked),
            End::Limited(retry_after) => self.answered(now, lease, Some(*retry_after)),
            End::Ok | End::Failed(Some(_)) if request.is_some() => self.answered(now, lease, None),
            _ => self.unanswered(now, lease),
        }
        let attempt = self.attempts.remove(&lease.to_bits()).unwrap();
        let Some(request) = request else { return };
        if matches!(end, End::Failed(_) | End::Unsent) {
            self.requests[request].avoid = Some(backend);
        }
        if !matches!(end, End::Ok) || attempt.rejected {
            self.join(request);
        }
    }

    fn cancel(&mut self, now: Instant, index: usize) {
        (self.requests[index].waits, self.requests[index].postponed) = (false, None);
        let running = self.attempts.iter().find(|(_, attempt)| attempt.request == Some(index));
        if let Some((&bits, _)) = running {
            let lease = LeaseId::from_bits(bits);
            self.drop_recharge(lease);
            self.unanswered(now, lease);
            self.attempts.get_mut(&bits).unwrap().request = None;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What happens.

#[derive(Clone, Debug)]
enum End {
    Ok,
    Limited(Option<Span>),
    /// With a status, or without headers.
    Failed(Option<u16>),
    Unsent,
}

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    /// With this priority, class, flow, ticks until its deadline, which all lie behind the end of the test, and ticks until it may go.
    Submit(u8, usize, usize, Option<u64>, u64),
    /// One more submission of a request, with this priority, deadline, and ticks until it may go.
    Join(usize, u8, Option<u64>, u64),
    Take,
    Ask,
    Ack(usize, Option<u16>),
    Recharge(usize, u32),
    /// The extra message that an attempt has asked for last, or is waiting to send, is not sent.
    Unsend(usize),
    Finish(usize, End),
    Cancel(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let end = prop_oneof![
        4 => Just(End::Ok),
        2 => prop::option::of((0..40 * TICK).prop_map(Span::from_nanos)).prop_map(End::Limited),
        2 => prop::option::of(Just(500)).prop_map(End::Failed),
        1 => Just(End::Unsent),
    ];
    let status = prop_oneof![2 => Just(None), 3 => Just(Some(200)), 1 => Just(Some(429))];
    let timeout = || prop::option::weighted(0.8, 100_000u64..100_100);
    let not_before = || prop_oneof![4 => Just(0), 1 => 1u64..60];
    prop_oneof![
        4 => (1u64..40).prop_map(Op::Pass),
        8 => (0u8..4, 0usize..1000, 0usize..4, timeout(), not_before())
            .prop_map(|(band, class, flow, timeout, not_before)| Op::Submit(band * 85, class, flow, timeout, not_before)),
        2 => (0usize..1000, 0u8..4, timeout(), not_before())
            .prop_map(|(index, band, timeout, not_before)| Op::Join(index, band * 85, timeout, not_before)),
        8 => Just(Op::Take),
        2 => Just(Op::Ask),
        3 => (0usize..1000, status).prop_map(|(index, status)| Op::Ack(index, status)),
        2 => (0usize..1000, 1u32..4).prop_map(|(index, cost)| Op::Recharge(index, cost)),
        1 => (0usize..1000).prop_map(Op::Unsend),
        5 => (0usize..1000, end).prop_map(|(index, end)| Op::Finish(index, end)),
        2 => (0usize..1000).prop_map(Op::Cancel),
    ]
}

fn limit() -> impl Strategy<Value = Limit> {
    (any::<bool>(), 1u32..6, 1u64..80, 1u32..6).prop_map(|(window, amount, ticks, burst)| {
        let period = Span::from_nanos(ticks * TICK);
        if window { Limit::window(amount, period) } else { Limit::bucket(amount, period, burst) }.unwrap()
    })
}

fn backend() -> impl Strategy<Value = BackendSpec> {
    let limits = prop_oneof![2 => Just(vec![]), 3 => prop::collection::vec(limit(), 1..3)];
    (limits, prop::option::weighted(0.7, 1u32..4), 1u8..3).prop_map(|(limits, concurrency, weight)| BackendSpec {
        limits,
        concurrency,
        scoped: Vec::new(),
        spends: Spends::Own(1),
        timeout: None,
        weight: f64::from(weight),
        cold_start: ColdStart::AssumeEmpty,
    })
}

struct Pair {
    engine: Engine,
    model: Model,
    ids: Vec<tidegate_core::engine::ClassId>,
    now: Instant,
}

impl Pair {
    /// An engine and its model with these backends, and a class for each pair of a set, bit by bit, and a cost that some admit. The
    /// first is for any backend.
    fn new(order: Order, specs: &[BackendSpec], wanted: &[(u8, u32)]) -> Pair {
        let mut engine = engine_in_order(order.clone(), retry(u32::MAX, Span::ZERO));
        let backends: Vec<_> = specs.iter().map(|spec| engine.add_backend(Instant::ORIGIN, spec)).collect();
        let site = |spec: &BackendSpec| Site {
            quota: Quota::new(&spec.limits, Margin::default()),
            concurrency: spec.concurrency.map_or(usize::MAX, |cap| cap as usize),
            weight: spec.weight,
            recharges: Vec::new(),
            longest_latency: Span::ZERO,
        };
        let sites: Vec<Site> = specs.iter().map(site).collect();
        let (mut classes, mut ids) = (Vec::new(), Vec::new());
        for (bits, cost) in [(0xff, 1)].iter().chain(wanted) {
            let chosen: Vec<usize> = (0..specs.len()).filter(|index| bits >> index & 1 == 1).collect();
            let named: Vec<_> = chosen.iter().map(|index| backends[*index]).collect();
            if let Ok(id) = engine.class(Instant::ORIGIN, &named, *cost) {
                let fit: Vec<usize> = chosen.iter().copied().filter(|index| sites[*index].quota.capacity() >= *cost).collect();
                for preferred in [None, chosen.last().copied()] {
                    ids.push(preferred.map_or(id, |index| engine.preferring(id, backends[index])));
                    classes.push((fit.clone(), *cost, preferred));
                }
            }
        }
        let model = Model {
            order,
            next_number: 0,
            shares: Shares::default(),
            sites,
            classes,
            requests: Vec::new(),
            attempts: BTreeMap::new(),
            recharged: BTreeSet::new(),
        };
        Pair { engine, model, ids, now: Instant::ORIGIN }
    }

    fn attempt(&self, index: usize) -> Option<LeaseId> {
        let count = self.model.attempts.len();
        (count > 0).then(|| LeaseId::from_bits(*self.model.attempts.keys().nth(index % count).unwrap()))
    }

    fn take(&mut self) -> Result<(), TestCaseError> {
        let expected = self.model.next(self.now);
        let leased = self.engine.take(self.now);
        let named = expected.map(|(index, backend)| (self.model.requests[index].handle, backend));
        prop_assert_eq!(leased.map(|leased| (leased.request, usize::from(leased.backend.0))), named);
        if let (Some(leased), Some((index, backend))) = (leased, expected) {
            if matches!(self.model.order, Order::Fair(_)) {
                self.model.serve_flow(index, backend);
            }
            let request = &mut self.model.requests[index];
            request.waits = false;
            let cost = self.model.classes[request.class].1;
            self.model.sites[backend].quota.send(self.now, cost);
            let attempt = Attempt { request: Some(index), backend, unacked: cost, sent: self.now, rejected: false, extra: false };
            self.model.attempts.insert(leased.lease.to_bits(), attempt);
        }
        Ok(())
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let now = self.now;
        let Pair { engine, model, .. } = self;
        match op {
            Op::Pass(ticks) => self.now = now + Span::from_nanos(ticks * TICK),
            Op::Submit(priority, class, flow, timeout, not_before) => {
                let class = class % model.classes.len();
                let deadline = timeout.map_or(Instant::FAR, |timeout| now + Span::from_nanos(timeout * TICK));
                let not_before = now + Span::from_nanos(not_before * TICK);
                let (priority, flow) = (*priority, *flow);
                let submission =
                    Submission { priority, deadline, not_before, flow: FLOWS[flow].0, ..common::plain(self.ids[class]) };
                let handle = submit(engine, now, &submission);
                let number = model.number();
                let postponed = (not_before > now).then_some((not_before, number));
                model.requests.push(Request {
                    priority,
                    number,
                    joined: now,
                    postponed,
                    deadline,
                    flow,
                    class,
                    handle,
                    waits: false,
                    avoid: None,
                });
                if postponed.is_none() {
                    model.join(model.requests.len() - 1);
                }
            }
            Op::Join(index, priority, timeout, not_before) => {
                if model.requests.is_empty() {
                    return Ok(());
                }
                let index = index % model.requests.len();
                let deadline = timeout.map_or(Instant::FAR, |timeout| now + Span::from_nanos(timeout * TICK));
                let not_before = now + Span::from_nanos(not_before * TICK);
                let submission = Submission { priority: *priority, deadline, not_before, ..common::plain(self.ids[0]) };
                let live = model.is_live(index);
                prop_assert_eq!(engine.join(now, model.requests[index].handle, &submission), live);
                if live {
                    model.hasten(now, index, *priority, deadline, not_before);
                }
            }
            Op::Take => self.take()?,
            Op::Ask => {
                let expected = model.next(now).is_some();
                let may_run = engine.may_run();
                prop_assert_eq!(engine.demand(now) > 0, expected);
                prop_assert!(may_run || !expected);
                prop_assert_eq!(engine.may_run(), expected);
            }
            Op::Ack(index, status) => {
                let Some(lease) = self.attempt(*index) else { return Ok(()) };
                self.engine.ack(now, lease, Answer { status: *status, retry_after: None, is_local: false });
                self.model.answered(now, lease, (*status == Some(429)).then_some(None));
            }
            Op::Recharge(index, cost) => {
                let Some(lease) = self.attempt(*index) else { return Ok(()) };
                let attempt = &self.model.attempts[&lease.to_bits()];
                let site = &self.model.sites[attempt.backend];
                let capacity = site.quota.capacity();
                let expected = if attempt.request.is_none() {
                    Recharge::Gone
                } else if *cost > capacity {
                    Recharge::Never(capacity)
                } else if site.recharges.iter().any(|(waiting, _)| *waiting == lease) {
                    return Ok(());
                } else {
                    let backend = attempt.backend;
                    self.model.answered(now, lease, None);
                    self.model.sites[backend].recharges.push((lease, *cost));
                    self.model.serve(now);
                    let granted = self.model.recharged.remove(&lease.to_bits());
                    if granted { Recharge::Granted } else { Recharge::Waits }
                };
                prop_assert_eq!(self.engine.recharge(now, lease, *cost, &[]), expected);
            }
            Op::Unsend(index) => {
                let Some(lease) = self.attempt(*index) else { return Ok(()) };
                let attempt = self.model.attempts.get_mut(&lease.to_bits()).unwrap();
                let site = &mut self.model.sites[attempt.backend];
                if let Some(waiting) = site.recharges.iter().position(|(waiting, _)| *waiting == lease) {
                    let (_, cost) = site.recharges.remove(waiting);
                    self.engine.withdraw(now, lease, 0, cost);
                } else if attempt.extra && attempt.unacked > 0 {
                    let cost = std::mem::take(&mut attempt.unacked);
                    site.quota.refund(attempt.sent, cost);
                    self.engine.unsend(now, lease, cost);
                }
            }
            Op::Finish(index, end) => {
                let Some(lease) = self.attempt(*index) else { return Ok(()) };
                let (outcome, answer) = match end {
                    End::Ok => (Outcome::Ok, Answer::default()),
                    End::Limited(retry_after) => {
                        (Outcome::Limited, Answer { status: None, retry_after: *retry_after, is_local: false })
                    }
                    End::Failed(status) => (Outcome::Failed, Answer { status: *status, retry_after: None, is_local: false }),
                    End::Unsent => (Outcome::Failed, Answer::default()),
                };
                let given_up = self.model.attempts[&lease.to_bits()].request.is_none();
                let finished = self.engine.finish(now, lease, outcome, answer, matches!(end, End::Unsent));
                prop_assert_eq!(matches!(finished, Finished::Stray), given_up);
                self.model.finish(now, lease, end);
            }
            Op::Cancel(index) => {
                if model.requests.is_empty() {
                    return Ok(());
                }
                let index = index % model.requests.len();
                let live = model.is_live(index);
                prop_assert_eq!(engine.cancel(now, model.requests[index].handle), live);
                if live {
                    model.cancel(now, index);
                }
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        self.engine.tick(self.now);
        self.model.pass(self.now);
        self.model.serve(self.now);
        let mut recharged = BTreeSet::new();
        while let Some(action) = self.engine.pop_action() {
            if let Action::Recharged { lease } = action {
                recharged.insert(lease.to_bits());
            }
        }
        prop_assert_eq!(&recharged, &self.model.recharged);
        self.model.recharged.clear();
        while self.engine.pop_ended().is_some() {}
        for backend in 0..self.model.sites.len() {
            let status = self.engine.status(tidegate_core::engine::BackendId(backend as u16), self.now);
            prop_assert_eq!(status.in_flight() as usize, self.model.in_flight(backend));
        }
        Ok(())
    }
}

/// Whatever happens, the request goes that the model says, and to the backend that it says.
fn goes_as_in_the_model(order: Order, specs: &[BackendSpec], classes: &[(u8, u32)], ops: &[Op]) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(order, specs, classes);
    for op in ops {
        pair.step(op)?;
        pair.check()?;
    }
    // What is left goes in the same order.
    for _ in 0..400 {
        pair.take()?;
        pair.step(&Op::Finish(0, End::Ok))?;
        pair.step(&Op::Pass(100))?;
        pair.check()?;
    }
    Ok(())
}

fn backends() -> impl Strategy<Value = Vec<BackendSpec>> {
    prop::collection::vec(backend(), 1..4)
}

fn classes() -> impl Strategy<Value = Vec<(u8, u32)>> {
    prop::collection::vec((1u8..8, prop_oneof![3 => Just(1u32), 2 => 2u32..5]), 0..5)
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..150)
}

proptest! {
    #![proptest_config(cases(300))]

    /// The least request by (priority, order of acceptance) that has a ready backend goes first, to the ready backend that did
    /// not just fail it, is preferred, or is used least, for any mix of classes, costs, limits, rejections, retries and cancels; what a more
    /// urgent request waits for is kept for it; a message of a running attempt goes ahead of all.
    #[test]
    fn strict(specs in backends(), classes in classes(), ops in ops()) {
        goes_as_in_the_model(Order::Strict, &specs, &classes, &ops)?;
    }

    /// As in strict order, by when a request joined plus its priority times the step.
    #[test]
    fn aging(step in 0u64..TICK / 4, specs in backends(), classes in classes(), ops in ops()) {
        goes_as_in_the_model(Order::Aging(Span::from_nanos(step)), &specs, &classes, &ops)?;
    }

    /// As in strict order, by (priority, deadline, order of acceptance).
    #[test]
    fn deadline(specs in backends(), classes in classes(), ops in ops()) {
        goes_as_in_the_model(Order::Deadline, &specs, &classes, &ops)?;
    }

    /// As in strict order, by (priority, start tag of the flow, order of acceptance).
    #[test]
    fn fair_shares(specs in backends(), classes in classes(), ops in ops()) {
        goes_as_in_the_model(fair(), &specs, &classes, &ops)?;
    }
}

/// Requests of one priority go in the order of their acceptance, and a more urgent band goes first whatever its number.
#[test]
fn bands_are_strict_and_first_in_first_out_inside() {
    let (mut engine, _, class) = common::single(retry(1, Span::ZERO), &common::spec(&[], None));
    let priorities = [7, 0, 255, 7, 63, 64, 0, 128, 255, 7];
    let handles: Vec<Handle> =
        priorities.iter().map(|&priority| submit(&mut engine, at(0), &Submission { priority, ..common::plain(class) })).collect();
    let mut expected: Vec<usize> = (0..priorities.len()).collect();
    expected.sort_by_key(|index| priorities[*index]);
    let taken: Vec<Handle> = take_all(&mut engine, at(0)).iter().map(|leased| leased.request).collect();
    assert_eq!(taken, expected.iter().map(|index| handles[*index]).collect::<Vec<_>>());
}
