//! Limits that each value of a scope has to itself: one host, one user. Each has a state for each account, from the first message until it
//! is full again.
//!
//! A class whose head finds a scope in its way is *parked*: taken out of its backend's heap, until the scope that it waits for has room. So
//! scopes without room cost a dispatch nothing, however many there are.

use std::collections::HashMap;
use std::sync::Arc;

use super::account::new_quota;
use super::backend::Blocked;
use super::lease::OnTheWay;
use super::share::NO_FLOW;
use super::value::{UNSAID, Values};
use super::{Engine, Timer, Waiting};
use crate::limit::{Limit, Quota};
use crate::queue::{Class, Key};
use crate::steps;
use crate::time::{Instant, Span};
use crate::wheel::TimerId;

/// Limits that each value of a scope has to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedLimits {
    /// Its name, such as "host".
    pub scope: Box<str>,
    /// All of them hold at once.
    pub limits: Vec<Limit>,
}

/// One value of a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Such as "host".
    pub name: Arc<str>,
    /// Such as "example.org"; empty for those that did not say.
    pub value: Arc<str>,
}

/// How long a scope that looks full is kept to see whether it stays so, besides the time in which it fills.
const LINGER: Span = Span::from_secs(1);

/// What one value of a scope may do on one account.
#[derive(Debug)]
pub(super) struct Allotment {
    pub(super) quota: Quota,
    /// While something is known to be held back.
    held_back: Option<Box<HeldBack>>,
    pub(super) account: u32,
    value: u32,
    /// For the end of the block, or to see whether it can be dropped.
    timer: Option<TimerId>,
    /// Attempts and extra messages that refer to it.
    holders: u32,
    pub(super) name: u16,
}

/// What a scope holds back.
#[derive(Debug)]
struct HeldBack {
    by: Blocked,
    /// Classes that wait for it, and at which backend.
    parked: Vec<(u32, u16)>,
    /// Extra messages that wait for it.
    extras: u32,
}

/// What is particular to a class whose requests have scopes, or that a scope has held back.
#[derive(Debug, Default)]
pub(super) struct Scoped {
    /// The class that it is of, its flow, and pairs of scope and value: its key in [`Scopes::classes`]. Empty for a class without scopes.
    key: Box<[u32]>,
    /// At which backends it is parked, and for what; the latter is [`ANOTHER`] when an account that was blocked may do.
    parked: Vec<(u16, u32)>,
    /// While it is parked at all of its backends: since when, and how long they had been blocked in all until then.
    held_since: Option<(Instant, Span)>,
    /// Time for which it was, and they were not blocked anyway.
    held: Span,
}

const ANOTHER: u32 = u32::MAX;

impl Scoped {
    fn value(&self, name: u16) -> u32 {
        let pairs = self.key.get(2..).unwrap_or_default().as_chunks::<2>().0;
        pairs.iter().find(|[theirs, _]| *theirs == u32::from(name)).map_or(UNSAID, |&[_, value]| value)
    }

    pub(super) fn is_parked_at(&self, id: u16) -> bool {
        self.parked.iter().any(|&(backend, _)| backend == id)
    }
}

/// The scopes of all accounts.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    names: Vec<Arc<str>>,
    values: Values,
    /// Classes of requests with scopes, as long as they have requests.
    classes: HashMap<Box<[u32]>, u32>,
    allotments: Vec<Option<Allotment>>,
    free: Vec<u32>,
    /// By account, scope and value.
    ids: HashMap<(u32, u16, u32), u32>,
    /// For keys that are looked up.
    scratch: Vec<u32>,
}

impl Scopes {
    /// The number of a scope that some account has limits for.
    pub(super) fn name(&mut self, name: &str) -> u16 {
        let known = self.names.iter().position(|known| &**known == name);
        known.unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        }) as u16
    }

    pub(super) fn named(&self, name: u16) -> &Arc<str> {
        &self.names[usize::from(name)]
    }

    fn known(&self, name: &str) -> Option<u16> {
        self.names.iter().position(|known| &**known == name).map(|at| at as u16)
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> &Allotment {
        self.allotments[id as usize].as_ref().expect("it is held")
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: u32) -> &mut Allotment {
        self.allotments[id as usize].as_mut().expect("it is held")
    }

    /// Those that exist.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, &Allotment)> {
        self.allotments.iter().enumerate().filter_map(|(id, place)| place.as_ref().map(|place| (id as u32, place)))
    }

    pub(super) fn scope(&self, id: u32) -> Scope {
        let allotment = self.get(id);
        Scope { name: self.named(allotment.name).clone(), value: self.values.text(allotment.value).into() }
    }
}

impl Allotment {
    pub(super) fn is_blocked(&self) -> bool {
        self.held_back.is_some()
    }

    fn blocked(&self) -> Option<Blocked> {
        self.held_back.as_ref().map(|held_back| held_back.by)
    }

    /// Whether forgetting it changes nothing: it is full, open, and has not learned anything.
    fn is_idle(&self, now: Instant) -> bool {
        self.holders == 0 && !self.is_blocked() && self.quota.is_fresh(now)
    }
}

impl Engine {
    /// The class in which a request of `class` and `flow` with these scopes waits. Scopes that nothing is limited by do not matter.
    pub(super) fn class_of_scopes(&mut self, class: u32, flow: &str, scopes: &[(&str, &str)]) -> u32 {
        let is_limited = scopes.iter().any(|(name, _)| self.scopes.known(name).is_some());
        if self.flows.is_none() && !is_limited {
            return class;
        }
        let flow = self.flows.as_mut().map_or(NO_FLOW, |flows| {
            let set = self.classes[class as usize].set;
            flows.flow(flow, set, &self.sets[set as usize].backends)
        });
        let mut key = std::mem::take(&mut self.scopes.scratch);
        key.clear();
        key.extend([class, flow]);
        for name in 0..self.scopes.names.len() {
            let said = scopes.iter().find(|(theirs, _)| *theirs == &*self.scopes.names[name]);
            if let Some((_, value)) = said {
                key.extend([name as u32, self.scopes.values.id(value)]);
            }
        }
        let own = match self.scopes.classes.get(key.as_slice()) {
            Some(&own) => own,
            None => self.new_class_of_scopes(class, flow, key.as_slice()),
        };
        self.scopes.scratch = key;
        own
    }

    fn new_class_of_scopes(&mut self, class: u32, flow: u32, key: &[u32]) -> u32 {
        for &[_, value] in key[2..].as_chunks::<2>().0 {
            self.scopes.values.keep(value);
        }
        let &Waiting { set, named, preferred, cost, .. } = &self.classes[class as usize];
        let scoped = Some(Box::new(Scoped { key: key.into(), ..Scoped::default() }));
        let queue = Class::new(self.requests.rule());
        let own = self.add_class(Waiting { queue, set, named, preferred, cost, flow, pending: 0, transient: true, scoped });
        if let Some(flows) = &mut self.flows {
            flows.open(flow, cost, own);
        }
        self.scopes.classes.insert(key.into(), own);
        own
    }

    /// A class has no requests any more.
    pub(super) fn forget_scopes(&mut self, class: u32) {
        let Some(scoped) = self.classes[class as usize].scoped.take() else { return };
        for &(id, allotment) in &scoped.parked {
            self.forget_parked(class, id, allotment);
        }
        if !scoped.key.is_empty() {
            self.scopes.classes.remove(&scoped.key);
            for &[_, value] in scoped.key[2..].as_chunks::<2>().0 {
                self.scopes.values.leave(value);
            }
        }
    }

    fn forget_parked(&mut self, class: u32, id: u16, allotment: u32) {
        if allotment == ANOTHER {
            self.backends[usize::from(id)].elsewhere.remove(&class);
        } else {
            // It is gone from there when the scope itself has let it go.
            if let Some(held_back) = &mut self.scopes.get_mut(allotment).held_back {
                steps::add(held_back.parked.len());
                held_back.parked.retain(|&other| other != (class, id));
            }
        }
    }

    /// The open account of a backend with the least load that, with the scopes of `class`, admits its head in `slot`. If there is
    /// none, the class is parked there or the backend is blocked.
    pub(super) fn open_account_in_scope(&mut self, now: Instant, id: u16, class: u32, slot: u32) -> Option<u32> {
        let waiting = &self.classes[class as usize];
        if waiting.scoped.as_ref().is_some_and(|scoped| scoped.is_parked_at(id)) {
            return None;
        }
        let (cost, key) = (waiting.cost, self.key(class, slot));
        let (mut in_the_way, mut refused, mut resting) = (Vec::new(), Vec::new(), Vec::new());
        let avoid = self.avoided(id, slot);
        let mut place = None;
        let found = loop {
            steps::add(1);
            place = self.backends[usize::from(id)].accounts.next_open(place, avoid);
            let Some((_, account)) = place else { break None };
            if let Some(blocked) = self.accounts[account as usize].resting(now) {
                resting.push((account, blocked));
                continue;
            }
            // First what is particular to this head: an account has nothing to keep for one that waits for something else.
            if let Some(allotment) = self.scope_in_the_way(now, class, account, cost, key) {
                in_the_way.push(allotment);
                continue;
            }
            match Blocked::by(self.accounts[account as usize].quota.next_eligible(now, cost).eligible, cost, None) {
                Some(blocked) => refused.push((account, blocked)),
                None => break Some(account),
            }
        };
        // A scope that keeps its room for this head does so for all accounts.
        let reserved_for = (cost > 1 && in_the_way.is_empty()).then_some(key);
        for (account, blocked) in refused {
            self.block(now, account, Blocked { reserved_for, ..blocked });
        }
        for (account, blocked) in resting {
            self.block(now, account, blocked);
        }
        if found.is_none() && self.backends[usize::from(id)].accounts.blocked().is_none() {
            self.park_class(now, class, id, &in_the_way);
        }
        found
    }

    /// The value of a scope that the requests of a class carry.
    fn scope_value(&self, class: u32, name: u16) -> u32 {
        self.classes[class as usize].scoped.as_ref().map_or(UNSAID, |scoped| scoped.value(name))
    }

    /// The state of a scope that a class carries on an account, if it has one.
    fn allotment(&self, class: u32, account: u32, name: u16) -> Option<&Allotment> {
        self.scopes.ids.get(&(account, name, self.scope_value(class, name))).map(|&id| self.scopes.get(id))
    }

    /// What holds a head of this cost and key back on an account, if anything does.
    fn scope_in_the_way(&mut self, now: Instant, class: u32, account: u32, cost: u32, key: Key) -> Option<u32> {
        for nth in 0..self.accounts[account as usize].scoped.len() {
            let name = self.accounts[account as usize].scoped[nth].0;
            let value = self.scope_value(class, name);
            let id = match self.scopes.ids.get(&(account, name, value)) {
                Some(&id) => id,
                None if self.is_cold(now, account, nth) => {
                    let id = self.new_allotment(account, nth, value);
                    self.watch_scope(now, id);
                    id
                }
                None => continue,
            };
            let allotment = self.scopes.get(id);
            let goes_first =
                |held_back: &HeldBack| held_back.extras > 0 || held_back.by.reserved_for.is_some_and(|theirs| theirs < key);
            if allotment.held_back.as_deref().is_some_and(goes_first) {
                return Some(id);
            }
            let eligible = allotment.quota.next_eligible(now, cost);
            let reserved_for = eligible.cost_only.then_some(key);
            if let Some(blocked) = Blocked::by(eligible.eligible, cost, reserved_for) {
                self.block_scope(id, blocked);
                return Some(id);
            }
        }
        None
    }

    /// Has a scope looked at again when it may have room for what `blocked` says, if that is earlier than for what blocks it already.
    fn block_scope(&mut self, id: u32, blocked: Blocked) {
        let allotment = self.scopes.get_mut(id);
        let before = allotment.blocked();
        let kept = match before {
            // The end of its timer is the earlier one; its cost is the one that fits first.
            Some(before) => {
                let sooner = match (before.until, blocked.until) {
                    (Some(before), Some(until)) => until < before,
                    (None, Some(_)) => true,
                    (_, None) => false,
                };
                Blocked {
                    until: if sooner { blocked.until } else { before.until },
                    cost: before.cost.min(blocked.cost),
                    reserved_for: blocked.reserved_for.or(before.reserved_for),
                    ..before
                }
            }
            None => blocked,
        };
        match &mut allotment.held_back {
            Some(held_back) => held_back.by = kept,
            None => allotment.held_back = Some(Box::new(HeldBack { by: kept, parked: Vec::new(), extras: 0 })),
        }
        if before.is_none_or(|before| before.until != kept.until) {
            if let Some(timer) = allotment.timer.take() {
                self.wheel.disarm(timer);
            }
            allotment.timer = kept.until.map(|until| self.wheel.arm(until, Timer::Scope(id)));
        }
    }

    /// Takes a class out of the heap of a backend, until one of these has room, or another account opens.
    fn park_class(&mut self, now: Instant, class: u32, id: u16, allotments: &[u32]) {
        self.wait_at(id, class, None);
        let backend = &mut self.backends[usize::from(id)];
        let waiting = &mut self.classes[class as usize];
        let scoped = waiting.scoped.get_or_insert_default();
        for &allotment in allotments {
            scoped.parked.push((id, allotment));
            let held_back = self.scopes.get_mut(allotment).held_back.as_mut();
            held_back.expect("a scope that is in the way holds something back").parked.push((class, id));
        }
        if backend.accounts.is_any_blocked() {
            scoped.parked.push((id, ANOTHER));
            backend.elsewhere.insert(class);
        }
        let set = &self.sets[waiting.set as usize];
        if scoped.held_since.is_none() && set.backends.iter().all(|&id| scoped.is_parked_at(id)) {
            scoped.held_since = Some((now, set.blocked(now)));
        }
        self.head_changed_at(now, id);
    }

    /// A class waits in the heap of a backend again, if it has a head.
    fn unpark_class(&mut self, now: Instant, class: u32, id: u16) {
        let waiting = &mut self.classes[class as usize];
        let set = waiting.set;
        let Some(scoped) = &mut waiting.scoped else { return };
        let (gone, parked) = std::mem::take(&mut scoped.parked).into_iter().partition(|&(backend, _)| backend == id);
        scoped.parked = parked;
        scoped.settle(now, self.sets[set as usize].blocked(now));
        let gone: Vec<(u16, u32)> = gone;
        steps::add(gone.len() + scoped.parked.len());
        for (id, allotment) in gone {
            self.forget_parked(class, id, allotment);
        }
        let head = self.classes[class as usize].queue.head(&self.requests);
        if head.is_some() {
            self.wait_at(id, class, head);
            self.head_changed_at(now, id);
        }
    }

    /// As [`unpark_class`](Engine::unpark_class), at all backends, before the class moves to others.
    pub(super) fn unpark_everywhere(&mut self, now: Instant, class: u32) {
        loop {
            let scoped = self.classes[class as usize].scoped.as_ref();
            let Some(&(id, _)) = scoped.and_then(|scoped| scoped.parked.first()) else { return };
            self.unpark_class(now, class, id);
        }
    }

    /// An account has opened: what waits at its backends for another one than those that were open may go there.
    pub(super) fn unpark_elsewhere(&mut self, now: Instant, account: u32) {
        for id in self.accounts[account as usize].backends.clone() {
            for class in std::mem::take(&mut self.backends[usize::from(id)].elsewhere) {
                self.unpark_class(now, class, id);
            }
        }
    }

    /// The head of a parked class has changed: a scope is not kept for the one that it was any more, and a more urgent one may go
    /// ahead of that for which it is kept.
    pub(super) fn parked_head_changed(&mut self, now: Instant, class: u32) {
        let Some(scoped) = &self.classes[class as usize].scoped else { return };
        let is_kept = |&(_, id): &(u16, u32)| {
            id != ANOTHER && self.scopes.get(id).blocked().is_some_and(|blocked| blocked.reserved_for.is_some())
        };
        let kept: Vec<u32> = scoped.parked.iter().filter(|place| is_kept(place)).map(|&(_, id)| id).collect();
        for id in kept {
            self.reopen_scope(now, id);
        }
    }

    /// Looks at a scope again: first the extra messages that wait for it, then the queue.
    pub(super) fn reopen_scope(&mut self, now: Instant, id: u32) {
        let allotment = self.scopes.get_mut(id);
        let (account, held_back) = (allotment.account, allotment.held_back.take());
        if let Some(timer) = allotment.timer.take() {
            self.wheel.disarm(timer);
        }
        let (parked, extras) = held_back.map_or((Vec::new(), 0), |held_back| (held_back.parked, held_back.extras));
        // Held meanwhile: what is looked at may end the last that refers to it.
        allotment.holders += 1;
        if extras > 0 {
            for extra in &mut self.accounts[account as usize].recharges {
                extra.waits_for = extra.waits_for.filter(|&waits_for| waits_for != id);
            }
            self.reopen(now, account);
        }
        for (class, backend) in parked {
            self.unpark_class(now, class, backend);
        }
        self.release_scope(now, id);
    }

    /// Something happened to the quota of a scope: what it holds back may go earlier than it was told.
    pub(super) fn scope_changed(&mut self, now: Instant, id: u32) {
        let allotment = self.scopes.get(id);
        let Some(blocked) = allotment.blocked() else { return };
        if blocked.ends_earlier(allotment.quota.next_eligible(now, blocked.cost).eligible) {
            self.reopen_scope(now, id);
        }
    }

    /// Its timer has fired.
    pub(super) fn scope_due(&mut self, now: Instant, id: u32) {
        self.scopes.get_mut(id).timer = None;
        if self.scopes.get(id).is_blocked() {
            self.reopen_scope(now, id);
        } else if self.scopes.get(id).is_idle(now) {
            self.drop_scope(id);
        } else {
            self.watch_scope(now, id);
        }
    }

    fn drop_scope(&mut self, id: u32) {
        let Some(allotment) = self.scopes.allotments[id as usize].take() else { return };
        self.scopes.ids.remove(&(allotment.account, allotment.name, allotment.value));
        self.scopes.values.leave(allotment.value);
        self.scopes.free.push(id);
    }

    /// Has a timer look whether a scope is full again.
    fn watch_scope(&mut self, now: Instant, id: u32) {
        let allotment = self.scopes.get_mut(id);
        if allotment.timer.is_none() && allotment.holders == 0 && !allotment.is_blocked() {
            let full = refill(allotment.quota.limits());
            allotment.timer = Some(self.wheel.arm(now + full + LINGER, Timer::Scope(id)));
        }
    }

    /// One that referred to a scope does not any more.
    pub(super) fn release_scope(&mut self, now: Instant, id: u32) {
        self.scopes.get_mut(id).holders -= 1;
        self.watch_scope(now, id);
    }

    /// As [`release_scope`](Engine::release_scope), of each.
    pub(super) fn release_scopes(&mut self, now: Instant, scopes: Box<[u32]>) {
        for scope in scopes {
            self.release_scope(now, scope);
        }
    }

    /// Charges a message of this class to its scopes on an account; these, held once.
    pub(super) fn charge_scopes(&mut self, now: Instant, class: u32, account: u32) -> Box<[u32]> {
        let cost = self.classes[class as usize].cost;
        let scopes = self.hold_values(account, |engine, name| engine.scope_value(class, name));
        for &scope in &scopes {
            self.scopes.get_mut(scope).quota.send(now, cost);
        }
        scopes
    }

    /// The scopes on an account, held once, that a message with scopes of its own is charged to; what it does not say is as in `others`.
    pub(super) fn hold_said(&mut self, account: u32, said: &[(&str, &str)], others: &[u32]) -> Box<[u32]> {
        let value = |engine: &mut Engine, name: u16| {
            let scopes = &mut engine.scopes;
            match said.iter().find(|(theirs, _)| scopes.known(theirs) == Some(name)) {
                Some((_, value)) => scopes.values.id(value),
                None => {
                    others.iter().map(|&id| scopes.get(id)).find(|other| other.name == name).map_or(UNSAID, |other| other.value)
                }
            }
        };
        self.hold_values(account, value)
    }

    fn hold_values(&mut self, account: u32, value: impl Fn(&mut Engine, u16) -> u32) -> Box<[u32]> {
        let mut held = Vec::with_capacity(self.accounts[account as usize].scoped.len());
        for nth in 0..self.accounts[account as usize].scoped.len() {
            let name = self.accounts[account as usize].scoped[nth].0;
            let value = value(self, name);
            let id = match self.scopes.ids.get(&(account, name, value)) {
                Some(&id) => id,
                None => self.new_allotment(account, nth, value),
            };
            self.scopes.get_mut(id).holders += 1;
            held.push(id);
        }
        held.into()
    }

    /// Whether the server may still count what was sent to a scope before us.
    fn is_cold(&self, now: Instant, account: u32, nth: usize) -> bool {
        let place = &self.accounts[account as usize];
        place.used_up_at.is_some_and(|at| now < at + refill(place.scoped[nth].1.limits()) + LINGER)
    }

    fn new_allotment(&mut self, account: u32, nth: usize, value: u32) -> u32 {
        let place = &self.accounts[account as usize];
        let (name, fresh) = &place.scoped[nth];
        let quota = fresh.clone();
        let allotment = Allotment { quota, held_back: None, account, value, timer: None, holders: 0, name: *name };
        self.scopes.values.keep(value);
        let id = match self.scopes.free.pop() {
            Some(id) => {
                self.scopes.allotments[id as usize] = Some(allotment);
                id
            }
            None => {
                self.scopes.allotments.push(Some(allotment));
                (self.scopes.allotments.len() - 1) as u32
            }
        };
        self.scopes.ids.insert((account, *name, value), id);
        id
    }

    /// An extra message waits for a scope of its own; the account goes on.
    pub(super) fn scope_of_extra_in_the_way(&mut self, now: Instant, scopes: &[u32], cost: u32) -> Option<u32> {
        for &id in scopes {
            let eligible = self.scopes.get(id).quota.next_eligible(now, cost).eligible;
            if let Some(blocked) = Blocked::by(eligible, cost, None) {
                self.block_scope(id, blocked);
                if let Some(held_back) = &mut self.scopes.get_mut(id).held_back {
                    held_back.extras += 1;
                }
                return Some(id);
            }
        }
        None
    }

    /// An extra message does not wait for a scope any more.
    pub(super) fn extra_left(&mut self, now: Instant, id: u32) {
        let left = self.scopes.get_mut(id).held_back.as_mut().map_or(0, |held_back| {
            held_back.extras = held_back.extras.saturating_sub(1);
            held_back.extras
        });
        if left == 0 {
            self.reopen_scope(now, id);
        }
    }

    /// Whether any account has had limits by scope.
    #[inline]
    pub(super) fn has_scopes(&self) -> bool {
        !self.scopes.names.is_empty()
    }

    /// Limits by scope as declared, each as a value of it has them at first, by the numbers of their scopes.
    pub(super) fn scoped_quotas(&mut self, declared: &[ScopedLimits], used_up_at: Option<Instant>) -> Box<[(u16, Quota)]> {
        declared.iter().map(|scoped| (self.scopes.name(&scoped.scope), new_quota(&scoped.limits, used_up_at))).collect()
    }

    /// Limits by scope of an account were replaced: what was sent counts against the new ones too.
    pub(super) fn refit_scopes(&mut self, now: Instant, account: u32) {
        let theirs: Vec<u32> =
            self.scopes.live().filter(|(_, allotment)| allotment.account == account).map(|(id, _)| id).collect();
        let mut on_the_way: HashMap<u32, OnTheWay> = HashMap::new();
        for lease in self.leases.charged_to(account) {
            lease.scopes.iter().for_each(|&scope| on_the_way.entry(scope).or_default().add(lease));
        }
        for id in theirs {
            let OnTheWay { unacked, unfinished } = on_the_way.get(&id).copied().unwrap_or_default();
            let allotment = self.scopes.get_mut(id);
            let scoped = self.accounts[account as usize].scoped.iter().find(|(name, _)| *name == allotment.name);
            let limits: Vec<Limit> = scoped.into_iter().flat_map(|(_, fresh)| fresh.limits().copied()).collect();
            allotment.quota = allotment.quota.with_limits(now, &limits, unacked, unfinished);
            self.reopen_scope(now, id);
        }
    }

    /// Time for which a class was parked at all of its backends, without that in which they were blocked anyway.
    pub(super) fn held(&self, now: Instant, class: u32) -> Span {
        let waiting = &self.classes[class as usize];
        let blocked = || self.sets[waiting.set as usize].blocked(now);
        waiting.scoped.as_ref().map_or(Span::ZERO, |scoped| scoped.held_until(now, blocked()))
    }

    /// Whether a scope of a class admits a cost on this account only after `deadline`.
    pub(super) fn is_scope_late(&self, now: Instant, class: u32, account: u32, cost: u32, deadline: Instant) -> bool {
        self.accounts[account as usize].scoped.iter().any(|&(name, _)| {
            let allotment = self.allotment(class, account, name);
            allotment.is_some_and(|allotment| allotment.quota.next_eligible(now, cost).eligible.is_past(deadline))
        })
    }

    /// How many requests of a class its scopes have room for on an account, at least one: its head has not been refused.
    pub(super) fn scope_room(&self, now: Instant, class: u32, account: u32) -> usize {
        let waiting = &self.classes[class as usize];
        let room = |(name, fresh): &(u16, Quota)| {
            self.allotment(class, account, *name).map_or_else(|| fresh.capacity(), |allotment| allotment.quota.headroom(now))
        };
        let room = self.accounts[account as usize].scoped.iter().map(room).min().unwrap_or(u32::MAX);
        (room / waiting.cost.max(1)).max(1) as usize
    }

    /// The server rejected the last message of an attempt, which was charged to an account and to scopes on it. Whose limits it was is not known: those of the
    /// scopes are closed, the most particular ones. When two values of a scope are rejected within a round trip, it is the account's that
    /// are, if it has any. Whether it is.
    pub(super) fn is_of_account(&mut self, now: Instant, lease: u32) -> bool {
        let lease = self.leases.get(lease);
        let place = &mut self.accounts[lease.account as usize];
        let &[id, ..] = &*lease.scopes else { return true };
        let before = place.rejected_scope.replace((id, now));
        let has_limits = place.quota.limits().next().is_some();
        has_limits && before.is_some_and(|(other, at)| other != id && now.since(at) <= place.longest_latency)
    }

    /// How many values of scopes have a state now: those that have sent something lately.
    pub fn scopes(&self) -> usize {
        self.scopes.live().count()
    }

    /// Of the scopes that a backend which may serve `class` has limits for, the first that is not among `said`.
    pub fn unsaid_scope(&self, class: super::ClassId, said: impl Fn(&str) -> bool) -> Option<&str> {
        let set = self.classes[class.0 as usize].set;
        let accounts = self.sets[set as usize].backends.iter().map(|&id| self.backends[usize::from(id)].accounts.all().start);
        let mut names = accounts.flat_map(|account| self.accounts[account as usize].scoped.iter().map(|(name, _)| *name));
        names.find(|&name| !said(self.scopes.named(name))).map(|name| &**self.scopes.named(name))
    }
}

/// Time in which all of these limits are full again.
fn refill<'a>(limits: impl IntoIterator<Item = &'a Limit>) -> Span {
    limits.into_iter().map(Limit::refill).max().unwrap_or(Span::ZERO)
}

impl Scoped {
    fn held_until(&self, now: Instant, blocked: Span) -> Span {
        self.held_since.map_or(self.held, |(since, before)| self.held + (now.since(since) - (blocked - before)))
    }

    fn settle(&mut self, now: Instant, blocked: Span) {
        self.held = self.held_until(now, blocked);
        self.held_since = None;
    }
}
