//! Classes of those that share: under the fair order each flow has its own, and so have requests with the same scopes, as long as there are
//! any. They come and go here.

use super::backend::Backend;
use super::{ClassId, Engine, Waiting};
use crate::queue::{Class, Key, Nodes};
use crate::steps;
use crate::time::Instant;

/// In [`Waiting::flow`]: requests of no flow, or of all.
pub(super) const NO_FLOW: u32 = u32::MAX;

impl Engine {
    /// The class in which a request of `class` waits, and has its turn, as one of `flow`. One more of its requests is pending.
    #[inline]
    pub(super) fn enter_class(&mut self, class: ClassId, flow: &str, scopes: &[(&str, &str)]) -> u32 {
        let own = if self.has_scopes() {
            self.class_of_scopes(class.0, flow, scopes)
        } else if self.flows.is_some() {
            self.class_of_flow(class.0, flow)
        } else {
            class.0
        };
        self.classes[own as usize].pending += 1;
        own
    }

    fn class_of_flow(&mut self, class: u32, flow: &str) -> u32 {
        let Some(flows) = &mut self.flows else { return class };
        let &Waiting { set, named, preferred, cost, .. } = &self.classes[class as usize];
        let flow = flows.flow(flow, set, &self.sets[set as usize].backends);
        let is_like = |&other: &u32| {
            let other = &self.classes[other as usize];
            (other.named, other.preferred) == (named, preferred)
        };
        let known = flows.queues(flow, cost).find(is_like);
        known.unwrap_or_else(|| {
            let queue = Class::default();
            let own =
                self.add_class(Waiting { queue, set, named, preferred, cost, flow, pending: 0, transient: true, scoped: None });
            if let Some(flows) = &mut self.flows {
                flows.open(flow, cost, own);
            }
            own
        })
    }

    /// A place for a class that exists as long as it has requests.
    pub(super) fn add_class(&mut self, waiting: Waiting) -> u32 {
        self.sets[waiting.set as usize].classes += 1;
        let own = self.free_classes.pop().unwrap_or(self.classes.len() as u32);
        match self.classes.get_mut(own as usize) {
            Some(place) => *place = waiting,
            None => self.classes.push(waiting),
        }
        own
    }

    /// A request of this class has ended.
    #[inline]
    pub(super) fn leave_class(&mut self, class: u32) {
        let waiting = &mut self.classes[class as usize];
        waiting.pending -= 1;
        if waiting.pending == 0 && waiting.transient {
            self.sets[waiting.set as usize].classes -= 1;
            if let Some(flows) = &mut self.flows {
                flows.close(waiting.flow, waiting.cost, class);
            }
            self.forget_scopes(class);
            self.free_classes.push(class);
        }
    }

    /// The key of a class's head among all that wait.
    #[inline]
    pub(super) fn key(&self, class: u32, slot: u32) -> Key {
        match &self.flows {
            None => self.requests.key(slot),
            Some(flows) => flows.key(self.classes[class as usize].flow, self.requests.node(slot).place()),
        }
    }

    /// Has a class wait at a backend with this head, or not at all.
    #[inline]
    pub(super) fn wait_at(&mut self, id: u16, class: u32, head: Option<u32>) {
        let backend = &mut self.backends[usize::from(id)];
        if self.flows.is_some() {
            let flow = self.classes[class as usize].flow;
            match head {
                Some(slot) => backend.by_flow.set(flow, class, self.requests.node(slot).place()),
                None => backend.by_flow.remove(flow, class),
            }
            self.flow_moved(id, flow);
        } else {
            match head {
                Some(slot) => backend.waiting.set(class, self.requests.key(slot)),
                None => backend.waiting.remove(class),
            }
        }
    }

    /// Puts a flow where the least head of its classes belongs among all flows that wait for a backend.
    fn flow_moved(&mut self, id: u16, flow: u32) {
        let Some(flows) = &self.flows else { return };
        let backend = &mut self.backends[usize::from(id)];
        match backend.by_flow.least(flow) {
            Some((place, _)) => backend.waiting.set(flow, flows.key(flow, place)),
            None => backend.waiting.remove(flow),
        }
    }

    /// The class with the least head of those that wait for a backend, and the key of that.
    #[inline]
    pub(super) fn least_at(&self, id: usize) -> Option<(Key, u32)> {
        let backend = &self.backends[id];
        let least = backend.waiting.least();
        if self.flows.is_none() {
            return least;
        }
        let (key, flow) = least?;
        backend.by_flow.least(flow).map(|(_, class)| (key, class))
    }

    /// The classes that wait for a backend, in no order.
    pub(super) fn classes_at(&self, backend: &Backend) -> impl Iterator<Item = u32> {
        let is_shared = self.flows.is_some();
        let of = move |waiting| {
            let (class, flow) = if is_shared { (None, Some(waiting)) } else { (Some(waiting), None) };
            class.into_iter().chain(flow.into_iter().flat_map(|flow| backend.by_flow.classes(flow)))
        };
        backend.waiting.classes().flat_map(of)
    }

    /// The request in `slot` goes from its class to a backend: its flow has been served, and the flow's other classes move with it.
    ///
    /// # Complexity
    /// Logarithmic, but linear in the flow's classes of a cost above 1: for those, room may be kept.
    pub(super) fn flow_served(&mut self, now: Instant, class: u32, slot: u32, backend: u16) {
        let Some(flows) = &mut self.flows else { return };
        let &Waiting { flow, cost, set, .. } = &self.classes[class as usize];
        let band = self.requests.node(slot).place().band();
        flows.serve(flow, band, backend, cost);
        flows.leave(flow, band);
        let costly: Vec<u32> = flows.costly_queues(flow).filter(|&other| other != class).collect();
        for index in 0..self.sets[set as usize].backends.len() {
            steps::add(1);
            let id = self.sets[set as usize].backends[index];
            self.flow_moved(id, flow);
            self.head_changed_at(now, id);
        }
        for other in costly {
            self.head_changed(now, other);
        }
    }
}
