//! Classes of those that share: under the fair order each flow has its own, and so have requests with the same scopes, as long as there are
//! any. They come and go here.

use super::{ClassId, Engine, Waiting};
use crate::queue::{Class, Key, Nodes};
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
        let &Waiting { set, named, cost, .. } = &self.classes[class as usize];
        let flow = flows.flow(flow, set, &self.sets[set as usize].backends);
        let known = flows.queue(flow, cost);
        known.unwrap_or_else(|| {
            let queue = Class::default();
            let own = self.add_class(Waiting { queue, set, named, cost, flow, pending: 0, transient: true, scoped: None });
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
                flows.close(waiting.flow, class);
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

    /// The request in `slot` goes from its class to a backend: its flow has been served, and the flow's other classes move with it.
    pub(super) fn flow_served(&mut self, now: Instant, class: u32, slot: u32, backend: u16) {
        let Some(flows) = &mut self.flows else { return };
        let &Waiting { flow, cost, .. } = &self.classes[class as usize];
        let band = self.requests.node(slot).place().band();
        flows.serve(flow, band, backend, cost);
        flows.leave(flow, band);
        let others: Vec<u32> = flows.queues(flow).filter(|&other| other != class).collect();
        for other in others {
            self.head_changed(now, other);
        }
    }
}
