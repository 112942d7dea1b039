//! Limits that each value of a scope has to itself: who is held back by whom, and for how long a scope is remembered.

mod common;

use std::collections::{HashMap, HashSet};

use common::{MS, NORMAL, SECOND, TICK, at, cases, engine, engine_in_order, plain, retry, spec, submit, take_all};
use proptest::prelude::*;
use tidegate_core::engine::{
    Action, Answer, BackendId, BackendSpec, ClassId, ColdStart, Engine, Event, LeaseId, Leased, Outcome, Recharge, ScopedLimits,
    Spends, Submission,
};
use tidegate_core::limit::{Limit, Margin};
use tidegate_core::queue::Order;
use tidegate_core::time::{Instant, Span};

const OK: Answer = Answer { status: Some(200), retry_after: None, is_local: false };
const REJECTED: Answer = Answer { status: Some(429), retry_after: None, is_local: false };

fn window(amount: u32, seconds: u64) -> Limit {
    Limit::window(amount, Span::from_secs(seconds)).unwrap()
}

fn per(scope: &str, limits: &[Limit]) -> ScopedLimits {
    ScopedLimits { scope: scope.into(), limits: limits.to_vec() }
}

fn scoped(limits: &[Limit], scoped: &[ScopedLimits]) -> BackendSpec {
    BackendSpec { scoped: scoped.to_vec(), ..spec(limits, None) }
}

fn of(specs: &[BackendSpec]) -> (Engine, Vec<BackendId>) {
    let mut engine = engine(retry(1, Span::ZERO));
    let backends = specs.iter().map(|spec| engine.add_backend(Instant::ORIGIN, spec)).collect();
    (engine, backends)
}

fn class(engine: &mut Engine, cost: u32) -> ClassId {
    engine.class_of_any(Instant::ORIGIN, cost).unwrap()
}

fn ask(engine: &mut Engine, now: Instant, class: ClassId, scopes: &[(&str, &str)]) -> u32 {
    submit(engine, now, &Submission { scopes, ..plain(class) }).slot()
}

fn slots(leased: &[Leased]) -> Vec<u32> {
    leased.iter().map(|leased| leased.request.slot()).collect()
}

fn finish(engine: &mut Engine, now: Instant, leased: &[Leased]) {
    for leased in leased {
        engine.finish(now, leased.lease, Outcome::Ok, OK, false);
    }
}

#[test]
fn a_host_without_room_holds_no_other_host_up() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(1, 1)])])]);
    let one = class(&mut engine, 1);
    let a: Vec<u32> = (0..3).map(|_| ask(&mut engine, at(0), one, &[("host", "a")])).collect();
    let b = ask(&mut engine, at(0), one, &[("host", "b"), ("user", "nobody is limited by this")]);
    let first = take_all(&mut engine, at(0));
    assert_eq!(slots(&first), [a[0], b]);
    assert_eq!(engine.demand(at(0)), 0);
    finish(&mut engine, at(0), &first);
    let next = take_all(&mut engine, at(SECOND + 2 * MS));
    assert_eq!(slots(&next), [a[1]]);
}

#[test]
fn those_that_do_not_say_their_scope_share_one() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(1, 1)])])]);
    let one = class(&mut engine, 1);
    assert_eq!(engine.unsaid_scope(one, |_| false), Some("host"));
    assert_eq!(engine.unsaid_scope(one, |scope| scope == "host"), None);
    let silent = [ask(&mut engine, at(0), one, &[]), ask(&mut engine, at(0), one, &[("user", "u")])];
    assert_eq!(slots(&take_all(&mut engine, at(0))), silent[..1]);
}

#[test]
fn several_scopes_and_the_account_all_admit() {
    let limits = [per("host", &[window(2, 1)]), per("user", &[window(1, 1)])];
    let (mut engine, _) = of(&[scoped(&[window(3, 1)], &limits)]);
    let one = class(&mut engine, 1);
    let asked: Vec<u32> = [("a", "u"), ("a", "u"), ("a", "v"), ("a", "w"), ("b", "w"), ("b", "x")]
        .into_iter()
        .map(|(host, user)| ask(&mut engine, at(0), one, &[("user", user), ("host", host)]))
        .collect();
    let running = take_all(&mut engine, at(0));
    assert_eq!(slots(&running), [asked[0], asked[2], asked[4]], "then the account is full");
}

#[test]
fn each_account_has_its_own_state_for_a_host() {
    let (mut engine, _) =
        of(&[BackendSpec { spends: Spends::Own(3), ..scoped(&[window(2, 1)], &[per("host", &[window(1, 1)])]) }]);
    let one = class(&mut engine, 1);
    for _ in 0..5 {
        ask(&mut engine, at(0), one, &[("host", "a")]);
    }
    let running = take_all(&mut engine, at(0));
    assert_eq!(running.iter().map(|leased| leased.account).collect::<Vec<_>>(), [0, 1, 2]);
    for _ in 0..3 {
        ask(&mut engine, at(0), one, &[("host", "b")]);
    }
    let more = take_all(&mut engine, at(0));
    assert_eq!(more.len(), 3);
    assert_eq!(engine.demand(at(0)), 0);
    finish(&mut engine, at(0), &more);
    finish(&mut engine, at(0), &running);
    assert_eq!(take_all(&mut engine, at(SECOND + 2 * MS)).len(), 2, "what is left of host a");
}

/// A host waits for an account that was blocked, too.
#[test]
fn a_parked_host_goes_to_an_account_that_opens() {
    let spec = BackendSpec { spends: Spends::Own(2), concurrency: Some(1), ..scoped(&[], &[per("host", &[window(1, 60)])]) };
    let (mut engine, _) = of(&[spec]);
    let one = class(&mut engine, 1);
    ask(&mut engine, at(0), one, &[("host", "a")]);
    ask(&mut engine, at(0), one, &[("host", "b")]);
    let running = take_all(&mut engine, at(0));
    assert_eq!(running.iter().map(|leased| leased.account).collect::<Vec<_>>(), [0, 1]);
    engine.finish(at(MS), running[0].lease, Outcome::Ok, OK, false);
    let again = ask(&mut engine, at(MS), one, &[("host", "a")]);
    assert!(engine.take(at(MS)).is_none(), "the first account has served this host, the second one is busy");
    engine.finish(at(2 * MS), running[1].lease, Outcome::Ok, OK, false);
    let leased = engine.take(at(2 * MS)).unwrap();
    assert_eq!((leased.request.slot(), leased.account), (again, 1));
}

#[test]
fn a_rejection_closes_its_host_and_says_which() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(5, 1)])])]);
    let one = class(&mut engine, 1);
    for host in ["a", "a", "b"] {
        ask(&mut engine, at(0), one, &[("host", host)]);
    }
    let first = engine.take(at(0)).unwrap();
    engine.ack(at(MS), first.lease, REJECTED);
    let Some(Event::LimitClosed { scope: Some(scope), until, .. }) = engine.pop_event() else { panic!("it is closed") };
    assert_eq!((&*scope.name, &*scope.value, until), ("host", "a", at(SECOND + MS)));
    assert_eq!(take_all(&mut engine, at(MS)).len(), 1, "host b goes on");
}

#[test]
fn two_hosts_rejected_at_once_close_the_account_if_it_has_limits() {
    for (limits, closed) in [(&[window(100, 1)][..], true), (&[], false)] {
        let (mut engine, _) = of(&[scoped(limits, &[per("host", &[window(5, 1)])])]);
        let one = class(&mut engine, 1);
        for host in ["a", "b", "c"] {
            ask(&mut engine, at(0), one, &[("host", host)]);
        }
        let (a, b) = (engine.take(at(0)).unwrap(), engine.take(at(0)).unwrap());
        engine.ack(at(MS), a.lease, REJECTED);
        engine.ack(at(MS), b.lease, REJECTED);
        assert_eq!(engine.take(at(MS)).is_none(), closed);
    }
}

#[test]
fn room_is_kept_for_a_large_cost_at_its_host_only() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(4, 1)])])]);
    let (one, four) = (class(&mut engine, 1), class(&mut engine, 4));
    ask(&mut engine, at(0), one, &[("host", "a")]);
    let first = take_all(&mut engine, at(0));
    let large = ask(&mut engine, at(0), four, &[("host", "a")]);
    let small = ask(&mut engine, at(0), one, &[("host", "a")]);
    let other = ask(&mut engine, at(0), one, &[("host", "b")]);
    assert_eq!(slots(&take_all(&mut engine, at(0))), [other], "nothing overtakes the large one");
    let urgent = submit(&mut engine, at(0), &Submission { priority: 0, scopes: &[("host", "a")], ..plain(one) });
    let urgent_leased = take_all(&mut engine, at(0));
    assert_eq!(slots(&urgent_leased), [urgent.slot()], "what is more urgent does");
    finish(&mut engine, at(0), &first);
    finish(&mut engine, at(0), &urgent_leased);
    let large_leased = take_all(&mut engine, at(SECOND + 2 * MS));
    assert_eq!(slots(&large_leased), [large]);
    // Without the large one the small one goes at once.
    let again = submit(&mut engine, at(2 * SECOND), &Submission { scopes: &[("host", "a")], ..plain(four) });
    finish(&mut engine, at(2 * SECOND), &large_leased);
    let last = take_all(&mut engine, at(3 * SECOND + 2 * MS));
    assert_eq!(slots(&last), [small]);
    assert!(engine.take(at(3 * SECOND + 2 * MS)).is_none());
    let late = ask(&mut engine, at(3 * SECOND + 2 * MS), one, &[("host", "a")]);
    assert!(engine.take(at(3 * SECOND + 2 * MS)).is_none());
    engine.cancel(at(3 * SECOND + 2 * MS), again);
    assert_eq!(slots(&take_all(&mut engine, at(3 * SECOND + 2 * MS))), [late]);
}

#[test]
fn an_extra_message_waits_for_its_host_and_holds_no_other_up() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(1, 1)])])]);
    let one = class(&mut engine, 1);
    for host in ["a", "b"] {
        ask(&mut engine, at(0), one, &[("host", host)]);
    }
    let (a, b) = (engine.take(at(0)).unwrap(), engine.take(at(0)).unwrap());
    engine.ack(at(0), b.lease, OK);
    assert_eq!(engine.recharge(at(0), a.lease, 1, &[("host", "c")]), Recharge::Granted, "a redirect to a host that is free");
    assert_eq!(engine.recharge(at(0), a.lease, 1, &[("host", "b")]), Recharge::Waits);
    let d = ask(&mut engine, at(0), one, &[("host", "d")]);
    let b_again = ask(&mut engine, at(0), one, &[("host", "b")]);
    assert_eq!(slots(&take_all(&mut engine, at(0))), [d]);
    engine.tick(at(SECOND + 2 * MS));
    assert_eq!(engine.pop_action(), Some(Action::Recharged { lease: a.lease }));
    assert!(engine.take(at(SECOND + 2 * MS)).is_none(), "ahead of the queue");
    engine.finish(at(2 * SECOND), a.lease, Outcome::Ok, OK, false);
    assert_eq!(slots(&take_all(&mut engine, at(3 * SECOND + 4 * MS))), [b_again]);
}

#[test]
fn a_host_that_is_full_again_is_forgotten_and_one_that_is_not_is_not() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(2, 10)])])]);
    let one = class(&mut engine, 1);
    for nth in 0..1000 {
        ask(&mut engine, at(0), one, &[("host", &format!("host{nth}"))]);
    }
    let running = take_all(&mut engine, at(0));
    assert_eq!((running.len(), engine.scopes()), (1000, 1000));
    finish(&mut engine, at(SECOND), &running[..999]);
    engine.tick(at(11 * SECOND));
    assert_eq!(engine.scopes(), 1000);
    engine.tick(at(60 * SECOND));
    assert_eq!((engine.scopes(), engine.timers()), (1, 0), "one still runs");
    finish(&mut engine, at(60 * SECOND), &running[999..]);
    engine.tick(at(90 * SECOND));
    assert_eq!((engine.scopes(), engine.timers()), (0, 0));
}

#[test]
fn limits_by_scope_change_for_what_waits() {
    let (mut engine, backends) = of(&[scoped(&[], &[per("host", &[window(1, 60)])])]);
    let one = class(&mut engine, 1);
    for _ in 0..6 {
        ask(&mut engine, at(0), one, &[("host", "a")]);
    }
    let running = take_all(&mut engine, at(0));
    finish(&mut engine, at(0), &running);
    engine.set_quota(at(0), backends[0], &[], &[per("host", &[window(3, 60)])], None);
    assert_eq!(take_all(&mut engine, at(0)).len(), 2);
    engine.set_quota(at(0), backends[0], &[], &[], None);
    assert_eq!(take_all(&mut engine, at(0)).len(), 3);
    // What waits without the scope that limits count by from now on shares one.
    for _ in 0..2 {
        ask(&mut engine, at(0), one, &[]);
    }
    engine.set_quota(at(0), backends[0], &[], &[per("user", &[window(1, 60)])], None);
    assert_eq!(take_all(&mut engine, at(0)).len(), 1);
}

#[test]
fn time_that_a_host_holds_a_request_back_is_time_of_its_limit() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(1, 10)])])]);
    let one = class(&mut engine, 1);
    for _ in 0..2 {
        ask(&mut engine, at(0), one, &[("host", "a")]);
    }
    let running = take_all(&mut engine, at(0));
    finish(&mut engine, at(0), &running);
    assert_eq!(engine.demand(at(0)), 0);
    let then = at(11 * SECOND);
    let leased = engine.take(then).unwrap();
    let tidegate_core::engine::Finished::Done { waits, age, .. } = engine.finish(then, leased.lease, Outcome::Ok, OK, false)
    else {
        panic!("it has a value")
    };
    assert_eq!(age, Span::from_secs(11));
    assert!(waits.limit >= Span::from_millis(9900), "{waits:?}");
}

#[test]
fn what_cannot_go_before_its_deadline_for_its_host_expires_at_once() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(1, 10)])])]);
    let one = class(&mut engine, 1);
    ask(&mut engine, at(0), one, &[("host", "a")]);
    let running = take_all(&mut engine, at(0));
    finish(&mut engine, at(0), &running);
    submit(&mut engine, at(0), &Submission { deadline: at(5 * SECOND), scopes: &[("host", "a")], ..plain(one) });
    assert!(engine.take(at(0)).is_none());
    assert!(engine.pop_ended().is_some());
}

#[test]
fn a_server_that_may_remember_us_is_taken_to_have_counted_all_it_allows() {
    let limits = scoped(&[window(5, 10)], &[per("host", &[window(1, 20)])]);
    let mut engine = engine(retry(1, Span::ZERO));
    engine.add_backend(at(SECOND), &BackendSpec { cold_start: ColdStart::AssumeFull, ..limits });
    let one = engine.class_of_any(at(SECOND), 1).unwrap();
    ask(&mut engine, at(SECOND), one, &[("host", "a")]);
    assert!(engine.take(at(11 * SECOND)).is_none());
    assert!(engine.take(at(21 * SECOND)).is_none());
    assert!(engine.take(at(21 * SECOND + 10 * MS)).is_some());
    ask(&mut engine, at(22 * SECOND), one, &[("host", "b")]);
    assert!(engine.take(at(22 * SECOND)).is_some(), "another host was as long ago");
}

/// 100 000 hosts, each at its limit: one of them costs a dispatch what it does among ten.
#[test]
fn a_hundred_thousand_hosts_wait_without_being_looked_at() {
    let (mut engine, _) = of(&[scoped(&[], &[per("host", &[window(1, 30)])])]);
    let one = class(&mut engine, 1);
    let hosts: Vec<String> = (0..100_000).map(|nth| format!("host{nth}.example")).collect();
    for round in 0..2 {
        let now = at(round * SECOND);
        for host in &hosts {
            ask(&mut engine, now, one, &[("host", host)]);
        }
    }
    let running = take_all(&mut engine, at(2 * SECOND));
    assert_eq!(running.len(), 100_000);
    finish(&mut engine, at(3 * SECOND), &running);
    assert!(engine.take(at(4 * SECOND)).is_none());
    let again = take_all(&mut engine, at(34 * SECOND));
    assert_eq!(again.len(), 100_000);
    assert_eq!(slots(&again).into_iter().collect::<HashSet<_>>().len(), 100_000);
}

/// What the engine is told, and what must be true then, by a slow model.
#[derive(Clone, Debug)]
enum Op {
    Submit { host: usize, user: usize, cost: u32, priority: u8, named: usize },
    Take(usize),
    Ack(usize),
    Finish(usize, bool),
    Cancel(usize),
    Extra { lease: usize, host: usize },
    Wait(u64),
}

fn op(largest: u32) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..4usize, 0..3usize, 1..=largest, 0..3u8, 0..4usize)
            .prop_map(|(host, user, cost, priority, named)| Op::Submit { host, user, cost, priority: NORMAL + priority, named }),
        6 => (1..6usize).prop_map(Op::Take),
        3 => any::<usize>().prop_map(Op::Ack),
        3 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(lease, unsent)| Op::Finish(lease, unsent)),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => (any::<usize>(), 0..4usize).prop_map(|(lease, host)| Op::Extra { lease, host }),
        4 => prop_oneof![0..50 * MS, 0..2 * SECOND].prop_map(Op::Wait),
    ]
}

const HOSTS: [&str; 4] = ["a", "b", "c", ""];
const USERS: [&str; 3] = ["u", "v", "w"];

/// A backend of the model: limits of an account, a host and a user, how many accounts and how many attempts on each at once.
#[derive(Clone, Debug)]
struct Server {
    own: Option<u32>,
    host: Option<u32>,
    user: Option<u32>,
    accounts: u32,
    concurrency: Option<u32>,
}

impl Server {
    fn spec(&self) -> BackendSpec {
        let limit = |amount: &u32| window(*amount, 1);
        let by = |scope, amount: &Option<u32>| amount.as_ref().map(|amount| per(scope, &[limit(amount)]));
        BackendSpec {
            limits: self.own.iter().map(limit).collect(),
            scoped: by("host", &self.host).into_iter().chain(by("user", &self.user)).collect(),
            concurrency: self.concurrency,
            spends: Spends::Own(self.accounts),
            timeout: None,
            weight: 1.0,
            cold_start: ColdStart::AssumeEmpty,
        }
    }

    /// What a message is counted by, and how much of each is allowed.
    fn counts(&self, backend: usize, account: u32, scopes: (usize, usize)) -> Vec<(Counted, u32)> {
        let by = |scope: u8, value, amount: Option<u32>| amount.map(|amount| ((backend, account, scope, value), amount));
        [by(0, 0, self.own), by(1, scopes.0, self.host), by(2, scopes.1, self.user)].into_iter().flatten().collect()
    }
}

type Counted = (usize, u32, u8, usize);

fn server() -> impl Strategy<Value = Server> {
    let amount = || prop::option::weighted(0.6, 2..5u32);
    (amount(), prop::option::weighted(0.9, 2..5u32), amount(), 1..4u32, prop::option::weighted(0.5, 1..4u32))
        .prop_map(|(own, host, user, accounts, concurrency)| Server { own, host, user, accounts, concurrency })
}

/// One message that was sent: when its unit is free again, if it is acknowledged.
struct Sent {
    counted: Vec<Counted>,
    cost: u32,
    free: Option<Instant>,
}

struct Running {
    lease: LeaseId,
    backend: usize,
    account: u32,
    scopes: (usize, usize),
    /// Its last message, in [`Model::sent`].
    last: usize,
    waits: Option<(usize, usize)>,
}

struct Waiting {
    scopes: (usize, usize),
    cost: u32,
    key: (u8, u64),
    named: usize,
}

struct Model {
    engine: Engine,
    servers: Vec<Server>,
    sent: Vec<Sent>,
    running: Vec<Running>,
    waiting: HashMap<u32, Waiting>,
    accepted: u64,
    now: Instant,
}

impl Model {
    fn new(servers: Vec<Server>, order: Order) -> Model {
        let mut engine = engine_in_order(order, retry(1, Span::ZERO));
        for server in &servers {
            engine.add_backend(Instant::ORIGIN, &server.spec());
        }
        let (sent, running, waiting) = (Vec::new(), Vec::new(), HashMap::new());
        Model { engine, servers, sent, running, waiting, accepted: 0, now: Instant::ORIGIN }
    }

    fn hold() -> Span {
        Span::from_secs(1) + Margin::default().floor()
    }

    fn used(&self, counted: Counted, now: Instant) -> u32 {
        let counts = |sent: &&Sent| sent.counted.contains(&counted) && sent.free.is_none_or(|free| free > now);
        self.sent.iter().filter(counts).map(|sent| sent.cost).sum()
    }

    fn admits(&self, backend: usize, account: u32, scopes: (usize, usize), cost: u32, now: Instant) -> bool {
        let counts = self.servers[backend].counts(backend, account, scopes);
        counts.into_iter().all(|(counted, amount)| self.used(counted, now) + cost <= amount)
    }

    fn named(&self, named: usize) -> Vec<usize> {
        let all: Vec<usize> = (0..self.servers.len()).collect();
        if named < self.servers.len() { vec![named] } else { all }
    }

    fn charge(&mut self, backend: usize, account: u32, scopes: (usize, usize), cost: u32) -> usize {
        let counted = self.servers[backend].counts(backend, account, scopes).into_iter().map(|(counted, _)| counted).collect();
        self.sent.push(Sent { counted, cost, free: None });
        self.sent.len() - 1
    }

    fn run(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Submit { host, user, cost, priority, named } => {
                let ids: Vec<BackendId> = self.named(named).into_iter().map(|id| BackendId(id as u16)).collect();
                let Ok(class) = self.engine.class(self.now, &ids, cost) else { return Ok(()) };
                let all = [("host", HOSTS[host]), ("user", USERS[user])];
                let said = if HOSTS[host].is_empty() { &all[1..] } else { &all[..] };
                let submission = Submission { priority, scopes: said, ..plain(class) };
                let handle = submit(&mut self.engine, self.now, &submission);
                let key = (priority, self.accepted);
                self.accepted += 1;
                self.waiting.insert(handle.slot(), Waiting { scopes: (host, user), cost, key, named });
            }
            Op::Take(most) => {
                for _ in 0..most {
                    let Some(leased) = self.engine.take(self.now) else { break };
                    let waiting = self.waiting.remove(&leased.request.slot()).expect("it waited");
                    let (backend, account) = (usize::from(leased.backend.0), leased.account);
                    prop_assert!(self.admits(backend, account, waiting.scopes, waiting.cost, self.now), "over a limit");
                    let last = self.charge(backend, account, waiting.scopes, waiting.cost);
                    self.running.push(Running {
                        lease: leased.lease,
                        backend,
                        account,
                        scopes: waiting.scopes,
                        last,
                        waits: None,
                    });
                }
            }
            Op::Ack(nth) if !self.running.is_empty() => {
                let at = nth % self.running.len();
                self.engine.ack(self.now, self.running[at].lease, OK);
                self.acked(at);
            }
            Op::Finish(nth, unsent) if !self.running.is_empty() => {
                let at = nth % self.running.len();
                let unsent = unsent && self.sent[self.running[at].last].free.is_none();
                let outcome = if unsent { Outcome::Neutral } else { Outcome::Ok };
                self.engine.finish(
                    self.now,
                    self.running[at].lease,
                    outcome,
                    if unsent { Answer::default() } else { OK },
                    unsent,
                );
                if unsent {
                    let last = self.running[at].last;
                    self.sent[last].free = Some(Instant::ORIGIN);
                } else {
                    self.acked(at);
                }
                self.running.remove(at);
            }
            Op::Cancel(nth) if !self.waiting.is_empty() => {
                let mut slots: Vec<u32> = self.waiting.keys().copied().collect();
                slots.sort_unstable();
                let slot = slots[nth % slots.len()];
                let handle = self.engine.handle_at(slot).expect("it waits");
                prop_assert!(self.engine.cancel(self.now, handle));
                self.waiting.remove(&slot);
            }
            Op::Extra { lease, host } if !self.running.is_empty() => {
                let at = lease % self.running.len();
                if self.running[at].waits.is_some() || HOSTS[host].is_empty() {
                    return Ok(());
                }
                self.acked(at);
                let scopes = (host, self.running[at].scopes.1);
                self.running[at].waits = Some(scopes);
                match self.engine.recharge(self.now, self.running[at].lease, 1, &[("host", HOSTS[host])]) {
                    Recharge::Granted => self.granted(at)?,
                    Recharge::Waits => {}
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            Op::Wait(nanos) => {
                self.now = self.now + Span::from_nanos(nanos);
                self.engine.tick(self.now);
            }
            _ => {}
        }
        while let Some(action) = self.engine.pop_action() {
            if let Action::Recharged { lease } = action {
                let at = self.running.iter().position(|running| running.lease == lease).expect("it runs");
                self.granted(at)?;
            }
        }
        while self.engine.pop_ended().is_some() {}
        Ok(())
    }

    fn acked(&mut self, at: usize) {
        let last = self.running[at].last;
        self.sent[last].free.get_or_insert(self.now + Model::hold());
    }

    fn granted(&mut self, at: usize) -> Result<(), TestCaseError> {
        let scopes = self.running[at].waits.take().expect("it was asked for");
        let (backend, account) = (self.running[at].backend, self.running[at].account);
        prop_assert!(self.admits(backend, account, scopes, 1, self.now), "an extra message over a limit");
        let last = self.charge(backend, account, scopes, 1);
        (self.running[at].scopes, self.running[at].last) = (scopes, last);
        Ok(())
    }

    /// What waits and could have gone some time ago, when nothing has to be kept for anybody.
    fn overlooked(&self) -> Option<u32> {
        let before = self.now - Span::from_nanos(2 * TICK);
        let has_room = |backend: usize, account: u32| {
            let running = self.running.iter().filter(|running| (running.backend, running.account) == (backend, account));
            self.servers[backend].concurrency.is_none_or(|most| running.count() < most as usize)
        };
        let could_go = |waiting: &Waiting| {
            self.named(waiting.named).into_iter().any(|backend| {
                let open = |account| has_room(backend, account) && self.admits(backend, account, waiting.scopes, 1, before);
                (0..self.servers[backend].accounts).any(open)
            })
        };
        self.waiting.iter().find(|(_, waiting)| could_go(waiting)).map(|(&slot, _)| slot)
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Costs, extra messages, refunds: never over a limit of an account, a host or a user.
    #[test]
    fn nothing_goes_over_a_limit_of_any_scope(
        servers in prop::collection::vec(server(), 1..3),
        ops in prop::collection::vec(op(3), 1..120),
        aging in any::<bool>(),
    ) {
        let order = if aging { Order::Fair(Vec::new()) } else { Order::Strict };
        let mut model = Model::new(servers, order);
        for op in &ops {
            model.run(op)?;
        }
        prop_assert!(model.engine.ledger().balanced());
        // Nothing is stuck: once all that runs has ended, all that waits goes.
        for _ in 0..400 {
            if model.waiting.is_empty() && model.running.is_empty() {
                break;
            }
            model.run(&Op::Take(50))?;
            while !model.running.is_empty() {
                model.run(&Op::Finish(0, false))?;
            }
            model.run(&Op::Wait(SECOND / 2))?;
        }
        prop_assert_eq!(model.waiting.len(), 0);
        model.run(&Op::Wait(60 * SECOND))?;
        model.run(&Op::Wait(60 * SECOND))?;
        prop_assert_eq!((model.engine.scopes(), model.engine.timers()), (0, 0));
    }

    /// With a cost of 1 each, in the order of their keys: after all was taken that the engine gives, nothing that waits could go.
    #[test]
    fn nothing_that_could_go_is_overlooked(
        servers in prop::collection::vec(server(), 1..3),
        ops in prop::collection::vec(op(1), 1..120),
    ) {
        let mut model = Model::new(servers, Order::Strict);
        for op in ops.iter().filter(|op| !matches!(op, Op::Extra { .. })) {
            model.run(op)?;
            if matches!(op, Op::Take(_)) {
                model.run(&Op::Take(1000))?;
                if let Some(slot) = model.overlooked() {
                    prop_assert!(false, "{slot} is overlooked: {:?}", model.waiting[&slot].key);
                }
            }
        }
    }
}
