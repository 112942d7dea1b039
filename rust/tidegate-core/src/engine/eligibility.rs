//! Which backends may serve which requests: those that were named, as far as they are there and admit the cost. Backends come and go
//! and quotas change while requests wait; what waits follows.

use std::collections::HashMap;

use super::account::Account;
use super::backend::{BackendSet, is_many_hosts};
use super::event::{Ending, Event};
use super::lease::OnTheWay;
use super::scope::ScopedLimits;
use super::share::NO_FLOW;
use super::{BackendId, ClassError, ClassId, Engine, Waiting};
use crate::limit::Limit;
use crate::queue::Class;
use crate::time::Instant;

/// Whether a backend may be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It takes what fits.
    Here,
    /// It was removed, and serves what no other one can.
    Draining,
    /// It was removed and takes nothing; attempts may still run.
    Leaving,
    /// Nothing runs on it any more.
    Gone,
}

/// What submitters name, interned.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// [`ANY`] has no list: it is all backends, those included that are added later.
    lists: Vec<Box<[u16]>>,
    ids: HashMap<Box<[u16]>, u32>,
    classes: HashMap<(u32, Option<u16>, u32), ClassId>,
    sets: HashMap<Box<[u16]>, u32>,
    free_sets: Vec<u32>,
}

const ANY: u32 = u32::MAX;

impl Engine {
    /// The class of requests that cost `cost` and may go to any of `backends`, as long as they are there and admit the cost.
    ///
    /// # Errors
    /// When none of them does now.
    pub fn class(&mut self, now: Instant, backends: &[BackendId], cost: u32) -> Result<ClassId, ClassError> {
        let mut list: Vec<u16> = backends.iter().map(|id| id.0).collect();
        list.sort_unstable();
        list.dedup();
        let list = list.into_boxed_slice();
        let Named { lists, ids, .. } = &mut self.named;
        let named = *ids.entry(list).or_insert_with_key(|list| {
            lists.push(list.clone());
            (lists.len() - 1) as u32
        });
        self.class_of(now, named, cost)
    }

    /// The class of requests that cost `cost` and may go to any backend, those included that are added later.
    ///
    /// # Errors
    /// As [`class`](Engine::class).
    pub fn class_of_any(&mut self, now: Instant, cost: u32) -> Result<ClassId, ClassError> {
        self.class_of(now, ANY, cost)
    }

    fn class_of(&mut self, now: Instant, named: u32, cost: u32) -> Result<ClassId, ClassError> {
        let fit = self.fit(named, cost);
        if fit.is_empty() {
            let here = self.named_backends(named).filter(|&id| self.backends[usize::from(id)].presence == Presence::Here);
            return Err(match here.map(|id| self.largest_cost(id)).max() {
                None => ClassError::NoBackend,
                Some(largest) => ClassError::CostExceedsBurst { cost, largest },
            });
        }
        if let Some(&class) = self.named.classes.get(&(named, None, cost)) {
            return Ok(class);
        }
        let set = self.set(now, fit);
        Ok(self.lasting_class(set, named, None, cost))
    }

    /// The class of requests like those of `class` that go to `backend` whenever it is ready, and their last attempt did not fail there.
    pub fn preferring(&mut self, class: ClassId, backend: BackendId) -> ClassId {
        let &Waiting { set, named, cost, .. } = &self.classes[class.0 as usize];
        let known = self.named.classes.get(&(named, Some(backend.0), cost)).copied();
        known.unwrap_or_else(|| self.lasting_class(set, named, Some(backend.0), cost))
    }

    /// A class that exists as long as the engine.
    fn lasting_class(&mut self, set: u32, named: u32, preferred: Option<u16>, cost: u32) -> ClassId {
        self.sets[set as usize].classes += 1;
        let queue = Class::new(self.requests.rule());
        let class = ClassId(self.classes.len() as u32);
        let (flow, pending, transient, scoped) = (NO_FLOW, 0, false, None);
        self.classes.push(Waiting { queue, set, named, preferred, cost, flow, pending, transient, scoped });
        self.named.classes.insert((named, preferred, cost), class);
        class
    }

    fn named_backends(&self, named: u32) -> impl Iterator<Item = u16> + '_ {
        let all = if named == ANY { 0..self.backends.len() as u16 } else { 0..0 };
        let list: &[u16] = if named == ANY { &[] } else { &self.named.lists[named as usize] };
        all.chain(list.iter().copied())
    }

    fn largest_cost(&self, id: u16) -> u32 {
        self.accounts[self.backends[usize::from(id)].accounts.all().start as usize].capacity()
    }

    /// Of the backends that were named those that are there and admit the cost; if there are none, those that drain and do.
    fn fit(&self, named: u32, cost: u32) -> Box<[u16]> {
        let fit = |presence| -> Box<[u16]> {
            let is_fit = |id: &u16| self.backends[usize::from(*id)].presence == presence && self.largest_cost(*id) >= cost;
            self.named_backends(named).filter(is_fit).collect()
        };
        let here = fit(Presence::Here);
        if here.is_empty() { fit(Presence::Draining) } else { here }
    }

    fn set(&mut self, now: Instant, backends: Box<[u16]>) -> u32 {
        if let Some(&set) = self.named.sets.get(&backends) {
            return set;
        }
        self.new_set(now, BackendSet::new(backends, now))
    }

    /// Takes in a set that believes its backends to be open.
    fn new_set(&mut self, now: Instant, mut clocks: BackendSet) -> u32 {
        let set = self.named.free_sets.pop().unwrap_or(self.sets.len() as u32);
        for &id in &clocks.backends {
            self.backends[usize::from(id)].sets.push(set);
        }
        for index in 0..clocks.backends.len() {
            if let Some(cause) = self.backends[usize::from(clocks.backends[index])].accounts.blocked() {
                clocks.change(now, None, Some(cause));
            }
        }
        self.named.sets.insert(clocks.backends.clone(), set);
        match self.sets.get_mut(set as usize) {
            Some(place) => *place = clocks,
            None => self.sets.push(clocks),
        }
        set
    }

    /// Takes a backend out. Requests that may go elsewhere do. With `drain`, it still serves those that may not, and its running
    /// attempts end as they will; else those requests end dead, and its attempts are interrupted, which costs them none of theirs.
    /// [`Event::BackendGone`] says when nothing runs on it any more.
    pub fn remove_backend(&mut self, now: Instant, id: BackendId, drain: bool) {
        let backend = &mut self.backends[usize::from(id.0)];
        match backend.presence {
            Presence::Here => self.leaving += 1,
            Presence::Draining if !drain => {}
            _ => return,
        }
        backend.presence = if drain { Presence::Draining } else { Presence::Leaving };
        self.backends_changed(now);
        if !drain {
            self.evict(now, id.0);
        }
        self.note_gone(now, id.0);
    }

    /// Replaces what a backend, and those of its group, may do. What has been sent counts against the new limits too.
    pub fn set_quota(
        &mut self,
        now: Instant,
        id: BackendId,
        limits: &[Limit],
        scoped: &[ScopedLimits],
        concurrency: Option<u32>,
    ) {
        let used_up_at = self.accounts[self.backends[usize::from(id.0)].accounts.all().start as usize].used_up_at;
        let many_hosts = is_many_hosts(scoped);
        let scoped = self.scoped_quotas(scoped, used_up_at);
        for index in self.backends[usize::from(id.0)].accounts.all() {
            let mut on_the_way = OnTheWay::default();
            self.leases.charged_to(index).for_each(|lease| on_the_way.add(lease));
            let account = &mut self.accounts[index as usize];
            account.set_quota(now, limits, concurrency, on_the_way);
            account.scoped = scoped.clone();
            for backend in account.backends.clone() {
                self.backends[usize::from(backend)].is_scoped = !scoped.is_empty();
                self.backends[usize::from(backend)].is_many_hosts = many_hosts;
            }
            account.tally.restart(now);
            self.refit_scopes(now, index);
            self.reopen(now, index);
        }
        self.backends_changed(now);
    }

    /// Fits what depends on all backends to those that there are now.
    pub(super) fn backends_changed(&mut self, now: Instant) {
        let is_used =
            |account: &&Account| account.backends.iter().any(|&id| self.backends[usize::from(id)].presence != Presence::Gone);
        self.crew.fit(self.accounts.iter().filter(is_used).map(Account::cap));
        self.reassign(now);
    }

    /// Puts each class among the backends that fit it now.
    fn reassign(&mut self, now: Instant) {
        let mut continued: HashMap<(u32, Box<[u16]>), u32> = HashMap::new();
        for class in 0..self.classes.len() as u32 {
            let &Waiting { set, named, cost, pending, transient, .. } = &self.classes[class as usize];
            if transient && pending == 0 {
                continue; // its place is free
            }
            let fit = self.fit(named, cost);
            if fit == self.sets[set as usize].backends {
                continue;
            }
            let to = match continued.get(&(set, fit.clone())) {
                Some(&to) => to,
                None => {
                    // Its clocks go on from those of the old one: what waits has read them.
                    let clocks = self.sets[set as usize].continued(now, fit.clone());
                    let to = self.new_set(now, clocks);
                    continued.insert((set, fit), to);
                    to
                }
            };
            self.move_class(now, class, to);
        }
        let unused = |set: &u32| self.sets[*set as usize].classes == 0 && !self.named.free_sets.contains(set);
        for set in (0..self.sets.len() as u32).filter(unused).collect::<Vec<_>>() {
            let backends = std::mem::take(&mut self.sets[set as usize].backends);
            for &id in &backends {
                self.backends[usize::from(id)].sets.retain(|&other| other != set);
            }
            if self.named.sets.get(&backends) == Some(&set) {
                self.named.sets.remove(&backends);
            }
            self.named.free_sets.push(set);
        }
    }

    fn move_class(&mut self, now: Instant, class: u32, to: u32) {
        self.unpark_everywhere(now, class);
        let waiting = &mut self.classes[class as usize];
        let from = std::mem::replace(&mut waiting.set, to);
        self.sets[from as usize].classes -= 1;
        self.sets[to as usize].classes += 1;
        if let Some(flows) = &mut self.flows
            && waiting.flow != NO_FLOW
        {
            flows.relane(waiting.flow, to, &self.sets[to as usize].backends);
        }
        for index in 0..self.sets[from as usize].backends.len() {
            let id = self.sets[from as usize].backends[index];
            self.wait_at(id, class, None);
            self.head_changed_at(now, id);
        }
        self.head_changed(now, class);
        if self.sets[to as usize].backends.is_empty() {
            while let Some(slot) = self.classes[class as usize].queue.head(&self.requests) {
                self.unserved(now, slot);
            }
        }
    }

    /// Ends a request that no backend may serve any more.
    #[cold]
    pub(super) fn unserved(&mut self, now: Instant, slot: u32) {
        let named = self.classes[self.requests.get(slot).class as usize].named;
        let removed = |id: &u16| self.backends[usize::from(*id)].presence != Presence::Here;
        let lost = self.named_backends(named).find(removed).or_else(|| self.named_backends(named).next()).unwrap_or(0);
        self.abort(now, slot, Ending::Unserved(BackendId(lost)));
    }

    /// Interrupts what runs on a backend; the requests wait again.
    fn evict(&mut self, now: Instant, id: u16) {
        for index in self.leases.running_on(id) {
            // The body of a slot, which is never repeated, is left to end.
            if let Some(slot) = self.leases.get(index).request
                && !self.requests.get(slot).flags.lasting
            {
                self.put_back(now, slot, index);
                self.detach(now, index);
            }
        }
    }

    /// Says so when nothing is left of a backend that was removed.
    pub(super) fn note_gone(&mut self, now: Instant, id: u16) {
        let backend = &self.backends[usize::from(id)];
        if backend.in_flight > 0 || !backend.waiting.is_empty() {
            return;
        }
        let needs_it = |class: &Waiting| class.pending > 0 && self.sets[class.set as usize].backends.contains(&id);
        match backend.presence {
            Presence::Here | Presence::Gone => return,
            // One that waits to be tried again may need it.
            Presence::Draining if self.classes.iter().any(needs_it) => return,
            Presence::Draining | Presence::Leaving => {}
        }
        self.backends[usize::from(id)].presence = Presence::Gone;
        self.leaving -= 1;
        self.backends_changed(now);
        self.push_event(Event::BackendGone { backend: BackendId(id) });
    }
}
