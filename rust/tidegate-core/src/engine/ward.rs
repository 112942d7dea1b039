//! Health at work: what attempts say of a backend on one of its accounts, and when it takes none for that.

use super::backend::Cause;
use super::event::Event;
use super::{BackendId, Engine, Timer};
use crate::health::{Bar, Health, Monitor, Phase, Sign, Turn};
use crate::latency::Latency;
use crate::limit::Limit;
use crate::time::{Instant, Span};
use crate::wheel::TimerId;

/// A failure within so long of another one is at the same time, when it comes from this side of the line.
const AT_ONCE: Span = Span::from_secs(5);
/// Upper end of the first time during which nothing is tried when the fault is on this side; twice as long after each try that fails, up
/// to the longest of a backend without a substitute.
const OWN_PAUSE: Span = Span::from_secs(1);
/// A set of backends for which nothing has waited for longer is not in use.
const IN_USE: Span = Span::from_secs(60);
/// What a failure counts in the estimate of latency, at least; what a rejection may count at most.
const PENALTY: Span = Span::from_secs(5);
const LARGEST_PENALTY: Span = Span::from_secs(300);
/// An attempt that its deadline ended is a failure of the backend if it took so many times what answers take, and longer than this.
const SLOW: f64 = 3.0;
const LEAST_SLOW: f64 = 1.0;

/// A backend on one of its accounts.
#[derive(Debug)]
pub(super) struct Ward {
    pub(super) backend: u16,
    pub(super) account: u32,
    pub(super) health: Health,
    /// It takes nothing, whatever its limits say.
    pub(super) barred: bool,
    timer: Option<TimerId>,
    /// How often it has opened: attempts that began before say nothing of it now.
    epoch: u32,
    /// Attempts that run and began since it last opened.
    running: u32,
    /// When an attempt last failed on this side of the line.
    local_failure: Option<Instant>,
}

/// What an attempt keeps of the ward it runs in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    epoch: u32,
    /// It began while the backend was tried.
    on_trial: bool,
    /// It has said what it says.
    settled: bool,
    /// It is the one that shows whether a fault of this side is over.
    tries_own_fault: bool,
}

impl Trial {
    /// Whether it began while the backend was tried.
    pub(super) const fn is_on_trial(self) -> bool {
        self.on_trial
    }

    /// Of a backend that is up.
    pub(super) const fn of_epoch(epoch: u32) -> Trial {
        Trial { epoch, on_trial: false, settled: false, tries_own_fault: false }
    }
}

/// Failures on this side of the line, such as of the name service, at most of the backends at once. What failed so takes nothing but one
/// attempt at a time, of all, after each pause: the others wait, and are not asked to fail.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OwnFault {
    /// When an attempt is to show whether it is over; none while nothing is suspected.
    pub(super) tried_again_at: Option<Instant>,
    /// It runs.
    trying: bool,
    /// How many have shown that it is not.
    tries: u32,
}

impl OwnFault {
    fn bar(self, now: Instant) -> Bar {
        match self.tried_again_at {
            Some(_) if self.trying => Bar::Attempt,
            Some(at) if at > now => Bar::Until(at),
            _ => Bar::Lifted,
        }
    }
}

impl Ward {
    /// Whether more than a probe may go.
    pub(super) fn is_trusted(&self) -> bool {
        matches!(self.health.phase(), Phase::Up | Phase::Ramp { .. })
    }

    /// When it is tried again, if nothing is sent to it until then.
    pub(super) fn tried_again_at(&self) -> Option<Instant> {
        match self.health.phase() {
            Phase::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Whether it waits for the end of a fault of this side, when there is one.
    fn has_failed_here(&self) -> bool {
        self.local_failure.is_some()
    }

    /// Attempts that its health lets start now.
    pub(super) fn room(&self) -> usize {
        self.health.room(self.running) as usize
    }
}

impl Engine {
    /// Watches the health of backends from now on; a fresh engine does not.
    pub fn watch_health(&mut self, monitor: Monitor) {
        self.monitor = monitor;
    }

    /// The ward of a backend on an account.
    #[inline]
    pub(super) fn ward_of(&self, id: u16, account: u32) -> usize {
        let backend = &self.backends[usize::from(id)];
        (backend.first_ward + account - backend.accounts.all().start) as usize
    }

    /// Gives a new backend its wards.
    pub(super) fn add_wards(&mut self, id: u16) {
        let accounts = self.backends[usize::from(id)].accounts.all();
        let ward = |account| Ward {
            backend: id,
            account,
            health: Health::default(),
            barred: false,
            timer: None,
            epoch: 0,
            running: 0,
            local_failure: None,
        };
        self.wards.extend(accounts.map(ward));
    }

    /// An attempt starts; what it is to keep.
    #[inline]
    pub(super) fn trial(&mut self, now: Instant, id: u16, account: u32) -> Trial {
        let index = self.ward_of(id, account);
        let ward = &self.wards[index];
        if ward.health.is_up() && self.own_fault.tried_again_at.is_none() {
            Trial::of_epoch(ward.epoch)
        } else {
            self.start_trial(now, index)
        }
    }

    #[inline(never)]
    fn start_trial(&mut self, now: Instant, index: usize) -> Trial {
        let account = self.wards[index].account;
        let pace = pace(self.accounts[account as usize].quota.limits());
        let ward = &mut self.wards[index];
        let mut trial = Trial::of_epoch(ward.epoch);
        if !ward.health.is_up() {
            ward.running += 1;
            ward.health.started(now, pace);
            trial.on_trial = true;
        }
        if self.own_fault.tried_again_at.is_some() && ward.has_failed_here() {
            self.own_fault.trying = true;
            trial.tries_own_fault = true;
            self.rebar_failed_here(now);
        }
        self.rebar(now, index);
        trial
    }

    /// An attempt has shown what its backend does. Once for each attempt; later calls change nothing.
    #[inline]
    pub(super) fn judge(&mut self, now: Instant, lease: u32, sign: Sign) {
        let leased = self.leases.get_mut(lease);
        if !self.monitor.enabled || std::mem::replace(&mut leased.trial.settled, true) {
            return;
        }
        let (id, account, trial) = (leased.backend, leased.account, leased.trial);
        let index = self.ward_of(id, account);
        if self.own_fault.tried_again_at.is_some() {
            self.judge_own_fault(now, sign, trial);
        }
        if self.backends[usize::from(id)].is_many_hosts {
            return;
        }
        if sign == Sign::Works && !trial.on_trial && self.wards[index].health.is_calm() {
            self.wards[index].health.works(now);
            return;
        }
        self.weigh(now, index, trial, sign);
    }

    #[inline(never)]
    fn weigh(&mut self, now: Instant, index: usize, trial: Trial, sign: Sign) {
        let context = match sign {
            Sign::Fails | Sign::Works | Sign::Rejects => (self.others_risk(now, index), self.is_sole(now, index)),
            Sign::Nothing => (0.0, false),
        };
        let ward = &mut self.wards[index];
        let is_current = trial.epoch == ward.epoch;
        if is_current && trial.on_trial {
            ward.running -= 1;
        }
        let is_probe = is_current && trial.on_trial && matches!(ward.health.phase(), Phase::Probe { .. });
        let turn = ward.health.ended(now, (sign, is_probe, is_current), context, &self.monitor, &mut self.random);
        if let Some(turn) = turn {
            self.turned(index, turn);
        }
        if turn.is_some() || !self.wards[index].health.is_up() {
            self.rebar(now, index);
        }
    }

    /// The time of a ward has come.
    pub(super) fn ward_due(&mut self, now: Instant, index: u32) {
        let index = index as usize;
        let ward = &mut self.wards[index];
        ward.timer = None;
        if let Some(turn) = ward.health.tick(now, &self.monitor) {
            self.turned(index, turn);
        }
        self.rebar(now, index);
    }

    /// Whether failures on an account of a backend cost requests none of their attempts: it is known not to work.
    pub(super) fn is_on_trial(&self, id: u16, account: u32) -> bool {
        self.monitor.enabled && !self.wards[self.ward_of(id, account)].health.is_up()
    }

    /// When a backend that is known not to work on an account is tried again.
    pub(super) fn tried_again_at(&self, id: u16, account: u32) -> Option<Instant> {
        self.wards[self.ward_of(id, account)].tried_again_at()
    }

    /// A failure on this side of the line. Whether it is suspected to be no fault of the backends.
    pub(super) fn failed_here(&mut self, now: Instant, id: u16, account: u32) -> bool {
        if !self.monitor.enabled {
            return false;
        }
        let index = self.ward_of(id, account);
        self.wards[index].local_failure = Some(now);
        let here: Vec<u16> = self.present().collect();
        let fails = |id: &&u16| self.wards_of(**id).any(|ward| ward.local_failure.is_some_and(|at| now.since(at) <= AT_ONCE));
        let failing = here.iter().filter(fails).count();
        if here.len() >= 2 && 2 * failing > here.len() && self.own_fault.tried_again_at.is_none() {
            self.push_event(Event::OwnFault { backends: failing as u32, of: here.len() as u32 });
            // What failed elsewhere long ago says nothing.
            for ward in &mut self.wards {
                ward.local_failure = ward.local_failure.filter(|&at| now.since(at) <= AT_ONCE);
            }
            self.pause_for_own_fault(now);
            self.rebar_failed_here(now);
        } else if self.own_fault.tried_again_at.is_some() {
            self.rebar(now, index);
        }
        self.own_fault.tried_again_at.is_some()
    }

    /// What an attempt says of a fault of this side: whatever came back from a server, there is none.
    #[inline(never)]
    fn judge_own_fault(&mut self, now: Instant, sign: Sign, trial: Trial) {
        if sign != Sign::Nothing {
            let failed_here: Vec<usize> = (0..self.wards.len()).filter(|&ward| self.wards[ward].has_failed_here()).collect();
            self.own_fault = OwnFault::default();
            self.push_event(Event::OwnFaultOver);
            for ward in failed_here {
                self.wards[ward].local_failure = None;
                self.rebar(now, ward);
            }
        } else if trial.tries_own_fault {
            self.pause_for_own_fault(now);
            self.rebar_failed_here(now);
        }
    }

    fn pause_for_own_fault(&mut self, now: Instant) {
        let OwnFault { tries, .. } = self.own_fault;
        let longest = OWN_PAUSE.times(1 << tries.min(32)).min(self.monitor.sole_cap);
        let half = longest.as_nanos() / 2;
        let wait = Span::from_nanos(half + self.random.up_to(half));
        self.own_fault = OwnFault { tried_again_at: Some(now + wait), trying: false, tries: tries.saturating_add(1) };
    }

    /// Opens or closes the wards that wait for the end of a fault of this side.
    fn rebar_failed_here(&mut self, now: Instant) {
        for index in 0..self.wards.len() {
            if self.wards[index].has_failed_here() {
                self.rebar(now, index);
            }
        }
    }

    /// An answer took so long, from sending to headers.
    #[inline]
    pub(super) fn observe_latency(&mut self, now: Instant, id: u16, took: Span) {
        self.backends[usize::from(id)].latency.observe(now, took);
    }

    /// A backend failed, or rejected an attempt and asked to wait.
    pub(super) fn penalise(&mut self, now: Instant, id: u16, retry_after: Option<Span>) {
        let penalty = retry_after.map_or(PENALTY, |span| span.min(LARGEST_PENALTY).max(PENALTY));
        self.backends[usize::from(id)].latency.penalise(now, penalty);
    }

    /// What an attempt says that was ended by its request's deadline.
    pub(super) fn sign_of_late(&self, now: Instant, lease: u32) -> Sign {
        let leased = self.leases.get(lease);
        let took = now.since(leased.started_at).as_nanos() as f64 / 1e9;
        let usual = self.backends[usize::from(leased.backend)].latency.read(leased.started_at).unwrap_or(0.0);
        if leased.unacked > 0 && took > (SLOW * usual).max(LEAST_SLOW) { Sign::Fails } else { Sign::Nothing }
    }

    pub(super) fn wards_of(&self, id: u16) -> impl Iterator<Item = &Ward> {
        let backend = &self.backends[usize::from(id)];
        let first = backend.first_ward as usize;
        self.wards[first..first + backend.accounts.all().len()].iter()
    }

    /// Whether a backend takes requests and is up on one of its accounts at least, also for this side of the line.
    pub(super) fn works(&self, id: u16) -> bool {
        let is_reached = |ward: &Ward| self.own_fault.tried_again_at.is_none() || !ward.has_failed_here();
        self.backends[usize::from(id)].takes_new() && self.wards_of(id).any(|ward| ward.health.is_up() && is_reached(ward))
    }

    /// Backends that take requests, but for their health.
    fn present(&self) -> impl Iterator<Item = u16> + '_ {
        let is_here = |id: &u16| self.backends[usize::from(*id)].takes_new();
        (0..self.backends.len() as u16).filter(is_here)
    }

    /// How often attempts fail elsewhere, on average.
    fn others_risk(&self, now: Instant, index: usize) -> f64 {
        let mine = &self.wards[index];
        let others = self
            .present()
            .flat_map(|id| self.wards_of(id))
            .filter(|ward| (ward.backend, ward.account) != (mine.backend, mine.account));
        let (sum, count) = others.fold((0.0, 0u32), |(sum, count), ward| (sum + ward.health.risk(now), count + 1));
        if count == 0 { 0.0 } else { sum / f64::from(count) }
    }

    /// Whether there are requests that have nowhere to go but to this ward.
    fn is_sole(&self, now: Instant, index: usize) -> bool {
        let Ward { backend: id, account, .. } = self.wards[index];
        let backend = &self.backends[usize::from(id)];
        let works = |ward: &Ward| ward.health.is_up() && (ward.backend, ward.account) != (id, account);
        if self.wards_of(id).any(works) {
            return false;
        }
        let has_substitute = |set: u32| {
            let others = self.sets[set as usize].backends.iter().filter(|&&other| other != id);
            others.copied().any(|other| self.wards_of(other).any(works))
        };
        let is_in_use = |set: &&u32| now.since(self.sets[**set as usize].used_at) <= IN_USE;
        // What has waited for longer without an attempt waits for one of these.
        let any_in_use = backend.sets.iter().any(|set| is_in_use(&set));
        backend.sets.iter().filter(|set| !any_in_use || is_in_use(set)).any(|&set| !has_substitute(set))
    }

    fn turned(&mut self, index: usize, turn: Turn) {
        let ward = &mut self.wards[index];
        if let Phase::Open { .. } = turn.phase {
            ward.epoch = ward.epoch.wrapping_add(1);
            ward.running = 0;
        }
        if let Phase::Ramp { .. } = turn.phase {
            // How long it took to fail says nothing of how long it takes to answer.
            self.backends[usize::from(ward.backend)].latency = Latency::default();
        }
        // Between probes there is nothing new to say.
        if turn.phase != (Phase::Probe { running: false }) {
            let several = self.backends[usize::from(ward.backend)].accounts.all();
            let account = (several.len() > 1).then(|| ward.account - several.start);
            let backend = BackendId(ward.backend);
            self.push_event(Event::HealthChanged { backend, account, turn });
        }
    }

    /// Opens or closes a ward, and arms its timer, as its health has it.
    fn rebar(&mut self, now: Instant, index: usize) {
        let ward = &mut self.wards[index];
        let bar = match self.own_fault.bar(now) {
            Bar::Lifted => ward.health.bar(now, ward.running),
            own if ward.has_failed_here() => own,
            _ => ward.health.bar(now, ward.running),
        };
        if let Some(timer) = ward.timer.take() {
            self.wheel.disarm(timer);
        }
        let due = match (bar, ward.health.phase()) {
            (Bar::Until(at), _) => Some(at),
            (_, Phase::Ramp { since, .. }) => Some(since + self.monitor.ramp),
            _ => None,
        };
        ward.timer = due.map(|at| self.wheel.arm(at, Timer::Ward(index as u32)));
        let barred = bar != Bar::Lifted;
        let (id, account) = (ward.backend, ward.account);
        if std::mem::replace(&mut ward.barred, barred) == barred {
            return;
        }
        // To what waits it is as if a limit had no room.
        let own = self.accounts[account as usize].cause();
        let (before, after) = if barred { (own, Some(Cause::Limit)) } else { (Some(Cause::Limit), own) };
        if before != after {
            self.cause_changed_at(now, id, account, before, after);
        }
        if after.is_none() && !self.backends[usize::from(id)].elsewhere.is_empty() {
            self.unpark_elsewhere(now, account);
        }
    }
}

/// From one message to the next as the shortest limit allows in the long run; nothing without limits.
fn pace<'a>(limits: impl Iterator<Item = &'a Limit>) -> Span {
    let shortest = limits.min_by_key(|limit| limit.period());
    shortest.map_or(Span::ZERO, |limit| Span::from_nanos(limit.period().as_nanos() / u64::from(limit.amount().max(1))))
}
