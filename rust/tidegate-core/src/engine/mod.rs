//! The state machine that composes limits, queue, timers, routing, retries and the ledger.
//!
//! ```text
//!             submit            take               finish(Ok)        deliver
//!   (shell) ---------> queued ---------> leased ----------------> done ---------> delivered
//!                        ^  |              |  |  finish(Failed), attempts left
//!                        |  |              |  +------> delayed ----+
//!                        |  |              +-- finish(Limited)     |
//!                        +--|------------------------+-------------+
//!                           +--> expired, cancelled, dead from any of these
//! ```
//!
//! Ground rules: one owner calls it; every call that depends on time is given `now`; nothing it does calls back. What its owner has to
//! act on is read from [`Engine::pop_ended`], [`Engine::pop_action`] and [`Engine::pop_event`].

mod account;
mod attempt;
mod backend;
mod crew;
mod dispatch;
mod eligibility;
mod event;
mod fit;
#[cfg(test)]
mod growth;
mod join;
mod lease;
mod request;
mod scope;
mod share;
mod status;
mod tally;
mod value;
mod ward;

use std::collections::VecDeque;
use std::fmt;

pub use attempt::{Answer, Finished, Outcome, Recharge};
pub use backend::{BackendSpec, ColdStart, Spends};
pub use crew::{Slice, Staffing};
pub use dispatch::Leased;
pub use event::{Action, Ended, Ending, Event, Stage};
pub use lease::LeaseId;
pub use request::{Flags, Handle, Waits};
pub use scope::{Scope, ScopedLimits};
pub use status::{BackendState, BackendStatus, ScopedUsage};
pub use tally::Share;

use crate::health::Monitor;
use crate::ledger::Ledger;
use crate::queue::ingress::Room;
use crate::queue::{Class, Flows, Order, Place};
use crate::retry::{Budget, Random, Retry};
use crate::route::{LeastInFlight, Strategy};
use crate::time::Instant;
use crate::wheel::{TimerId, Wheel};
use account::{Account, Accounts};
use backend::{Backend, BackendSet};
use crew::Crew;
use eligibility::Named;
use lease::Leases;
use request::{Requests, State};
use scope::{Scoped, Scopes};
use ward::{OwnFault, Ward};

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most requests pending at once.
    pub capacity: usize,
    /// In which order they go.
    pub order: Order,
    /// How failed attempts are retried.
    pub retry: Retry,
    /// Where its random sequence starts.
    pub seed: u64,
}

/// A backend of one engine, in order of declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendId(pub u16);

/// An interned (set of eligible backends, the one of them that is preferred, cost).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassId(u32);

/// Why there is no class for a set of backends and a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClassError {
    /// The set is empty.
    NoBackend,
    /// No backend of the set ever admits that cost; the largest that one admits.
    CostExceedsBurst {
        /// The cost asked for.
        cost: u32,
        /// The largest cost that a backend of the set admits.
        largest: u32,
    },
}

impl fmt::Display for ClassError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClassError::NoBackend => write!(f, "no backend to choose from"),
            ClassError::CostExceedsBurst { cost, largest } => {
                write!(f, "cost {cost} is above {largest}, the most that is ever admitted at once")
            }
        }
    }
}

impl std::error::Error for ClassError {}

/// What a submitter asks for.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// Which backends may serve it, and its cost.
    pub class: ClassId,
    /// 0 is the most urgent.
    pub priority: u8,
    /// When it is worthless, or late if it is lenient; [`Instant::FAR`] for never.
    pub deadline: Instant,
    /// It does not go before this instant, from when on it waits as if it came then. Any instant that has passed: it goes at once.
    pub not_before: Instant,
    /// With whom it shares under [`Order::Fair`]; empty for those without a flow, who are one more.
    pub flow: &'a str,
    /// Its scopes, name and value: those that limits count by. One that is not named here has the empty value, which all that do not name
    /// it share.
    pub scopes: &'a [(&'a str, &'a str)],
    /// The rest.
    pub flags: Flags,
}

/// Changes of state that are kept for an owner who does not read them; the oldest go first.
const MOST_EVENTS: usize = 1024;

#[derive(Clone, Copy, Debug)]
enum Timer {
    /// The deadline of the request in this slot, or the end of its backoff or of its being postponed.
    Request(u32),
    /// The oldest attempt of this backend may have run for as long as it may.
    Attempt(u16),
    /// A blocked account's limits may have room.
    Account(u32),
    /// The limits of a scope may have room, or be full again.
    Scope(u32),
    /// A ward may be tried again, or has been long enough.
    Ward(u32),
    /// The retry budget has earned a retry that is waited for.
    Budget,
}

#[derive(Debug)]
struct Waiting {
    queue: Class,
    set: u32,
    /// Which backends it may go to, as declared.
    named: u32,
    /// Which of them it goes to when that one is ready.
    preferred: Option<u16>,
    cost: u32,
    /// Whose it is, under the fair order: then it exists as long as it has requests that have not ended.
    flow: u32,
    /// Requests of it that have not ended.
    pending: u32,
    /// It exists as long as it has any.
    transient: bool,
    /// Of what it is particular, if a scope holds it back or may.
    scoped: Option<Box<Scoped>>,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    requests: Requests,
    leases: Leases,
    classes: Vec<Waiting>,
    /// Under the fair order.
    flows: Option<Box<Flows>>,
    free_classes: Vec<u32>,
    sets: Vec<BackendSet>,
    named: Named,
    backends: Vec<Backend>,
    accounts: Vec<Account>,
    /// Backends on their accounts; those of one backend follow each other.
    wards: Vec<Ward>,
    strategy: Box<dyn Strategy>,
    /// As its strategy has it.
    minds_deadlines: bool,
    monitor: Monitor,
    own_fault: OwnFault,
    scopes: Scopes,
    /// Where the head that is being placed may go now, but for one.
    found: Vec<(u16, u32)>,
    /// Backends that were removed and on which something may still run.
    leaving: u32,
    /// Bit `b % 64` of word `b / 64`: backend `b` is open and a class waits for it.
    ready: Vec<u64>,
    wheel: Wheel<Timer>,
    retry: Retry,
    budget: Budget,
    /// Requests whose backoff is over and that wait for the budget of their retry, first come first served. One that has ended
    /// meanwhile is skipped when its turn comes.
    overdrawn: VecDeque<Handle>,
    budget_timer: Option<TimerId>,
    random: Random,
    room: Room,
    ledger: Ledger,
    next_sequence: u64,
    accepting: bool,
    /// No request gets another attempt.
    winding_down: bool,
    crew: Crew,
    ended: VecDeque<Ended>,
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
}

impl Engine {
    /// An engine without backends.
    pub fn new(options: &Options, now: Instant) -> Engine {
        let flows = match &options.order {
            Order::Fair(weights) => Some(Box::new(Flows::new(weights))),
            _ => None,
        };
        Engine {
            requests: Requests::new(options.order.rule()),
            leases: Leases::default(),
            classes: Vec::new(),
            flows,
            free_classes: Vec::new(),
            sets: Vec::new(),
            named: Named::default(),
            backends: Vec::new(),
            accounts: Vec::new(),
            wards: Vec::new(),
            strategy: Box::new(LeastInFlight),
            minds_deadlines: false,
            monitor: Monitor { enabled: false, ..Monitor::default() },
            own_fault: OwnFault::default(),
            scopes: Scopes::default(),
            found: Vec::new(),
            leaving: 0,
            ready: Vec::new(),
            wheel: Wheel::new(),
            budget: Budget::new(&options.retry, now),
            retry: options.retry,
            overdrawn: VecDeque::new(),
            budget_timer: None,
            random: Random::new(options.seed),
            room: Room::new(options.capacity),
            ledger: Ledger::default(),
            next_sequence: 0,
            accepting: true,
            winding_down: false,
            crew: Crew::default(),
            ended: VecDeque::new(),
            actions: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Bytes that a waiting request takes here; one with a deadline or an earlier attempt takes more.
    pub const BYTES_PER_REQUEST: usize = Requests::bytes_each();

    /// Adds a backend, open and with nothing used. What waits for any backend may go there too.
    ///
    /// # Panics
    /// When there are 65 535 of them.
    pub fn add_backend(&mut self, now: Instant, spec: &BackendSpec) -> BackendId {
        let id = u16::try_from(self.backends.len()).expect("at most 65535 backends");
        let accounts = match spec.spends {
            Spends::Own(count) => {
                let first = self.accounts.len() as u32;
                let used_up_at = (spec.cold_start == ColdStart::AssumeFull).then_some(now);
                let scoped = self.scoped_quotas(&spec.scoped, used_up_at);
                let account = || Account::new(&spec.limits, &scoped, spec.concurrency, id, count > 1, used_up_at);
                self.accounts.extend(std::iter::repeat_with(account).take(count as usize));
                Accounts::new(first, count)
            }
            Spends::Shared(with) => {
                let shared = self.backends[usize::from(with.0)].accounts.all();
                let mut accounts = Accounts::new(shared.start, shared.len() as u32);
                for index in shared {
                    let account = &mut self.accounts[index as usize];
                    account.backends.push(id);
                    accounts.moved(index, 0, account.load());
                    if let Some(cause) = account.cause() {
                        accounts.change(index, account.load(), None, Some(cause));
                    }
                }
                accounts
            }
        };
        self.backends.push(Backend::new(spec, accounts, self.wards.len() as u32));
        self.add_wards(id);
        self.ready.resize(self.backends.len().div_ceil(64), 0);
        self.backends_changed(now);
        BackendId(id)
    }

    /// How a backend is chosen when several are ready, from now on. A fresh engine has [`LeastInFlight`].
    pub fn balance(&mut self, strategy: Box<dyn Strategy>) {
        self.minds_deadlines = strategy.minds_deadlines();
        self.strategy = strategy;
    }

    /// The place of a backend in the order of preference, the least of those that are ready being chosen, and what a request costs there,
    /// in seconds that an answer may take longer elsewhere. A new backend has 0 and 0.
    pub fn set_standing(&mut self, id: BackendId, rank: u16, price: f64) {
        let backend = &mut self.backends[usize::from(id.0)];
        (backend.rank, backend.price) = (rank, price);
    }

    /// Where requests take their places; producers on other threads share it.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Accepts a request whose place in [`room`](Engine::room) was reserved. It waits from now on.
    #[inline]
    pub fn submit(&mut self, now: Instant, submission: &Submission<'_>) -> Handle {
        let place = Place::new(submission.priority, self.next_sequence);
        self.next_sequence += 1;
        let class = self.enter_class(submission.class, submission.flow, submission.scopes);
        let slot = self.requests.insert(place, class, now, submission.deadline, submission.flags);
        self.ledger.accepted += 1;
        if submission.not_before > now {
            self.postpone(slot, submission.not_before);
        } else {
            self.arm_deadline(slot);
            self.enqueue(now, slot, false);
        }
        self.requests.handle(slot)
    }

    #[inline]
    fn arm_deadline(&mut self, slot: u32) {
        let entry = self.requests.get_mut(slot);
        let expires_at = entry.expires_at();
        if expires_at < Instant::FAR {
            entry.timer = Some(self.wheel.arm(expires_at, Timer::Request(slot)));
        }
    }

    /// Keeps a request that was just accepted out of its queue until then.
    fn postpone(&mut self, slot: u32, until: Instant) {
        let entry = self.requests.get_mut(slot);
        entry.state = State::Postponed;
        entry.timer = Some(self.wheel.arm(until.min(entry.expires_at()), Timer::Request(slot)));
        self.ledger.queued += 1;
    }

    /// A postponed request joins its queue, behind all that have joined before.
    fn join_queue(&mut self, now: Instant, slot: u32) {
        let entry = self.requests.get_mut(slot);
        let postponed = now.since(std::mem::replace(&mut entry.joined_at, now));
        let place = Place::new(entry.node.place().band(), self.next_sequence);
        entry.node.set_place(place);
        self.next_sequence += 1;
        let history = self.requests.history_mut(slot);
        (history.postponed, history.waiting_since) = (postponed, now);
        self.arm_deadline(slot);
        self.ledger.queued -= 1;
        self.enqueue(now, slot, false);
    }

    /// Cancels a request that has not ended, at any stage; false when it has.
    ///
    /// It shows up in [`pop_ended`](Engine::pop_ended). A running attempt is to be interrupted.
    pub fn cancel(&mut self, now: Instant, handle: Handle) -> bool {
        let Some(slot) = self.requests.find(handle) else { return false };
        self.abort(now, slot, Ending::Cancelled);
        true
    }

    /// Names the request in `slot`, if one is pending there.
    pub fn handle_at(&self, slot: u32) -> Option<Handle> {
        (self.requests.is_live(slot)).then(|| self.requests.handle(slot))
    }

    /// The consumer took the value of a held request that is done.
    #[inline]
    pub fn deliver(&mut self, handle: Handle) {
        if let Some(slot) = self.requests.find(handle)
            && self.requests.get(slot).state == State::Done
        {
            self.ledger.done -= 1;
            self.ledger.delivered += 1;
            self.release(slot);
        }
    }

    /// Accepts nothing more from now on. What was accepted goes on.
    pub fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    /// Whether new requests are accepted.
    pub fn is_accepting(&self) -> bool {
        self.accepting
    }

    /// Accepts nothing more, cancels what waits, and lets attempts that run be the last of their requests.
    pub fn wind_down(&mut self, now: Instant) {
        self.accepting = false;
        self.winding_down = true;
        for slot in self.requests.pending() {
            if matches!(self.requests.get(slot).state, State::Postponed | State::Queued | State::Delayed | State::Held) {
                self.abort(now, slot, Ending::Cancelled);
            }
        }
    }

    /// Accepts nothing more and ends all that is pending, but for values that exist already.
    pub fn close(&mut self, now: Instant) {
        self.accepting = false;
        for slot in self.requests.pending() {
            if self.requests.get(slot).state != State::Done {
                self.abort(now, slot, Ending::Closed);
            }
        }
    }

    /// Whether nothing waits and no attempt of a request that has not ended runs.
    pub fn is_idle(&self) -> bool {
        self.ledger.queued == 0 && self.ledger.leased == 0
    }

    /// What became of every request.
    pub fn ledger(&self) -> Ledger {
        self.ledger
    }

    /// Lets time pass: ends what has expired, interrupts attempts that take too long, reopens limits.
    #[inline]
    pub fn tick(&mut self, now: Instant) {
        if self.leaving > 0 {
            for id in 0..self.backends.len() as u16 {
                self.note_gone(now, id);
            }
        }
        while let Some(timer) = self.wheel.pop_due(now) {
            match timer {
                Timer::Account(account) => {
                    self.accounts[account as usize].timer = None;
                    self.reopen(now, account);
                }
                Timer::Ward(ward) => self.ward_due(now, ward),
                Timer::Scope(scope) => self.scope_due(now, scope),
                Timer::Attempt(backend) => {
                    self.backends[usize::from(backend)].watched = false;
                    self.time_out_oldest(now, backend);
                }
                Timer::Request(slot) => {
                    self.requests.get_mut(slot).timer = None;
                    self.request_due(now, slot);
                }
                Timer::Budget => {
                    self.budget_timer = None;
                    self.spend_budget(now);
                }
            }
        }
    }

    /// Nothing happens by itself before this instant.
    #[inline]
    pub fn next_wake(&self) -> Option<Instant> {
        self.wheel.next_wake()
    }

    /// Timers that are armed: at most one an account, a backend, a deadline or backoff, a running attempt, and one for the retry budget.
    pub fn timers(&self) -> usize {
        self.wheel.len()
    }

    /// The next request that ended without its owner being told, by order of ending.
    pub fn pop_ended(&mut self) -> Option<Ended> {
        let ended = self.ended.pop_front()?;
        self.requests.remove(ended.request.slot());
        Some(ended)
    }

    /// The next thing to do.
    pub fn pop_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next change of state.
    pub fn pop_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`pop_ended`](Engine::pop_ended), [`pop_action`](Engine::pop_action) or [`pop_event`](Engine::pop_event) has something.
    #[inline]
    pub fn has_news(&self) -> bool {
        !(self.ended.is_empty() && self.actions.is_empty() && self.events.is_empty())
    }

    /// The deadline of the request in `slot` has come, or it need not wait any longer for its backoff or since it is postponed.
    fn request_due(&mut self, now: Instant, slot: u32) {
        let entry = self.requests.get(slot);
        if entry.expires_at() <= now {
            let stage = if entry.state == State::Leased { Stage::Leased } else { Stage::Queued };
            self.abort(now, slot, Ending::Expired(stage));
        } else if entry.state == State::Postponed {
            self.join_queue(now, slot);
        } else if entry.state == State::Held {
            self.arm_deadline(slot);
            self.end_backoff(now, slot);
        } else {
            debug_assert_eq!(entry.state, State::Delayed);
            self.arm_deadline(slot);
            self.overdrawn.push_back(self.requests.handle(slot));
            self.spend_budget(now);
        }
    }

    /// Lets the retries that wait for their budget go as far as it reaches.
    fn spend_budget(&mut self, now: Instant) {
        if let Some(timer) = self.budget_timer.take() {
            self.wheel.disarm(timer);
        }
        while let Some(&handle) = self.overdrawn.front() {
            if let Some(slot) = self.requests.find(handle) {
                if let Err(at) = self.budget.withdraw(now) {
                    self.budget_timer = Some(self.wheel.arm(at, Timer::Budget));
                    return;
                }
                self.end_backoff(now, slot);
            }
            self.overdrawn.pop_front();
        }
    }

    /// A request that waited after an attempt joins its queue again.
    fn end_backoff(&mut self, now: Instant, slot: u32) {
        let history = self.requests.history_mut(slot);
        history.waits.backoff = history.waits.backoff + now.since(history.waiting_since);
        history.waiting_since = now;
        self.ledger.queued -= 1;
        self.enqueue(now, slot, true);
    }

    /// Ends a request from outside its attempt, whatever stage it is at.
    fn abort(&mut self, now: Instant, slot: u32, ending: Ending) {
        let entry = self.requests.get(slot);
        let mut waits = self.requests.history(slot).map_or(Waits::default(), |history| history.waits);
        match entry.state {
            State::Free => return,
            State::Postponed => self.ledger.queued -= 1,
            State::Queued => {
                let (limit, concurrency) = self.blocked_since(now, slot);
                waits.limit = waits.limit + limit;
                waits.concurrency = waits.concurrency + concurrency;
                self.dequeue(now, slot);
            }
            State::Delayed | State::Held => {
                let since = self.requests.history(slot).map_or(now, |history| history.waiting_since);
                waits.backoff = waits.backoff + now.since(since);
                self.ledger.queued -= 1;
            }
            State::Leased => {
                let lease = entry.lease;
                if matches!(ending, Ending::Expired(_)) {
                    self.judge(now, lease, self.sign_of_late(now, lease));
                }
                waits = self.waits_with(now, slot, lease);
                self.ledger.leased -= 1;
                self.detach(now, lease);
            }
            State::Done => self.ledger.done -= 1,
        }
        match ending {
            Ending::Expired(_) => self.ledger.expired += 1,
            Ending::Cancelled | Ending::Closed => self.ledger.cancelled += 1,
            Ending::Dead | Ending::Unserved(_) => self.ledger.dead += 1,
        }
        self.end_later(now, slot, ending, waits);
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() == MOST_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Counts are settled; the slot stays taken until the owner has been told.
    fn end_later(&mut self, now: Instant, slot: u32, ending: Ending, waits: Waits) {
        let age = self.requests.age(now, slot);
        let entry = self.requests.get_mut(slot);
        entry.state = State::Free;
        let class = entry.class;
        if let Some(timer) = entry.timer.take() {
            self.wheel.disarm(timer);
        }
        self.leave_class(class);
        self.room.release(1);
        let failed = self.requests.history(slot).map_or(0, |history| history.failed);
        let request = self.requests.handle(slot);
        self.ended.push_back(Ended { request, ending, waits, age, failed });
    }

    /// Frees the slot of a request whose counts are settled and whose owner knows.
    #[inline]
    fn release(&mut self, slot: u32) {
        let entry = self.requests.get_mut(slot);
        let class = entry.class;
        if let Some(timer) = entry.timer.take() {
            self.wheel.disarm(timer);
        }
        self.leave_class(class);
        self.requests.remove(slot);
        self.room.release(1);
    }
}
