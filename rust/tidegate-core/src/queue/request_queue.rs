//! One queue in one order, for whoever serves it alone.

use super::{Class, Flows, Key, Node, Nodes, Order, Place, ReadyHeap, Rule};
use crate::time::Instant;

/// The only lane of the flows: who takes from the queue.
const LANE: u16 = 0;
/// What each item takes of its flow's share.
const COST: u32 = 1;

/// An item's record. Free ones are found by `free`.
#[derive(Clone, Copy, Debug)]
struct Entry {
    node: Node,
    /// Of this slot: how many items it has held before.
    generation: u32,
    waits: bool,
    /// Its class, which is that of its flow.
    class: u32,
    joined: Instant,
    deadline: Instant,
}

#[derive(Debug)]
struct Entries {
    rule: Rule,
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Nodes for Entries {
    fn node(&self, slot: u32) -> &Node {
        &self.entries[slot as usize].node
    }

    fn node_mut(&mut self, slot: u32) -> &mut Node {
        &mut self.entries[slot as usize].node
    }

    fn key(&self, slot: u32) -> Key {
        let Entry { node, joined, deadline, .. } = self.entries[slot as usize];
        self.rule.key(node.place(), joined, deadline)
    }
}

impl Entries {
    fn handle(&self, slot: u32) -> u64 {
        u64::from(self.entries[slot as usize].generation) << 32 | u64::from(slot)
    }

    /// The slot that a handle names, while its item waits.
    fn slot(&self, handle: u64) -> Option<u32> {
        let (generation, slot) = ((handle >> 32) as u32, handle as u32);
        let entry = self.entries.get(slot as usize)?;
        (entry.waits && entry.generation == generation).then_some(slot)
    }

    /// A slot for an item of this class.
    fn occupy(&mut self, class: u32, place: Place, joined: Instant, deadline: Instant) -> u32 {
        let entry = Entry { node: Node::new(place), generation: 0, waits: true, class, joined, deadline };
        match self.free.pop() {
            Some(slot) => {
                let generation = self.entries[slot as usize].generation;
                self.entries[slot as usize] = Entry { generation, ..entry };
                slot
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        }
    }

    fn vacate(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        entry.waits = false;
        // A handle would have to be kept over four thousand million others of its slot to be taken for one of them.
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
    }
}

/// Items by their handles, at most `capacity` at once, in one [`Order`].
///
/// # Example
/// ```
/// use tidegate_core::queue::{Order, RequestQueue};
/// use tidegate_core::time::Instant;
///
/// let mut queue = RequestQueue::new(2, &Order::Strict);
/// let now = Instant::ORIGIN;
/// let later = queue.push(now, 128, Instant::FAR, "").unwrap();
/// let urgent = queue.push(now, 0, Instant::FAR, "").unwrap();
/// assert_eq!(queue.push(now, 0, Instant::FAR, ""), None);
/// assert!(queue.cancel(later));
/// assert_eq!((queue.pop(), queue.pop()), (Some(urgent), None));
/// ```
///
/// # Complexity
/// As a [`Class`]; under [`Order::Fair`] as a [`ReadyHeap`] of the flows that have something waiting.
#[derive(Debug)]
pub struct RequestQueue {
    capacity: usize,
    len: usize,
    sequence: u64,
    entries: Entries,
    /// One for all items, or under the fair order one for each flow that has an item waiting, with its flow.
    classes: Vec<(Class, u32)>,
    idle: Vec<u32>,
    fair: Option<Fair>,
}

#[derive(Debug)]
struct Fair {
    flows: Flows,
    heap: ReadyHeap,
}

impl RequestQueue {
    /// An empty queue.
    pub fn new(capacity: usize, order: &Order) -> RequestQueue {
        let rule = order.rule();
        let fair = match order {
            Order::Fair(weights) => Some(Fair { flows: Flows::new(weights), heap: ReadyHeap::default() }),
            _ => None,
        };
        let classes = if fair.is_some() { Vec::new() } else { vec![(Class::new(rule), 0)] };
        let entries = Entries { rule, entries: Vec::new(), free: Vec::new() };
        RequestQueue { capacity, len: 0, sequence: 0, entries, classes, idle: Vec::new(), fair }
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is no room for another.
    pub fn is_full(&self) -> bool {
        self.len >= self.capacity
    }

    /// Most items that may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Adds an item in a band (0 is the most urgent) and a flow, due by `deadline` ([`Instant::FAR`]: never); its handle, or nothing
    /// when the queue is full. Deadlines order items and end none.
    pub fn push(&mut self, now: Instant, band: u8, deadline: Instant, flow: &str) -> Option<u64> {
        if self.is_full() {
            return None;
        }
        let place = Place::new(band, self.sequence);
        self.sequence += 1;
        self.len += 1;
        let class = self.class_of(flow);
        let slot = self.entries.occupy(class, place, now, deadline);
        let queue = &mut self.classes[class as usize].0;
        if self.entries.rule.is_first_in_first_out() {
            queue.push(&mut self.entries, slot);
        } else {
            queue.insert(&mut self.entries, slot);
        }
        if let Some(fair) = &mut self.fair {
            fair.flows.enter(self.classes[class as usize].1, band);
            self.rank(class);
        }
        Some(self.entries.handle(slot))
    }

    /// The handle of the item that goes next.
    pub fn peek(&self) -> Option<u64> {
        let class = self.next_class()?;
        self.classes[class as usize].0.head(&self.entries).map(|slot| self.entries.handle(slot))
    }

    /// Takes out the item that goes next; its handle.
    pub fn pop(&mut self) -> Option<u64> {
        let class = self.next_class()?;
        let (queue, flow) = &mut self.classes[class as usize];
        let slot = queue.pop(&mut self.entries)?;
        if let Some(fair) = &mut self.fair {
            let band = self.entries.node(slot).place().band();
            fair.flows.serve(*flow, band, LANE, COST);
            fair.flows.leave(*flow, band);
        }
        Some(self.gone(slot, class))
    }

    /// Takes out the item of a handle; false when it does not wait here any more.
    pub fn cancel(&mut self, handle: u64) -> bool {
        let Some(slot) = self.entries.slot(handle) else { return false };
        let class = self.entries.entries[slot as usize].class;
        let (queue, flow) = &mut self.classes[class as usize];
        queue.remove(&mut self.entries, slot);
        if let Some(fair) = &mut self.fair {
            fair.flows.leave(*flow, self.entries.node(slot).place().band());
        }
        self.gone(slot, class);
        true
    }

    /// An item of this class was taken out.
    fn gone(&mut self, slot: u32, class: u32) -> u64 {
        let handle = self.entries.handle(slot);
        self.entries.vacate(slot);
        self.len -= 1;
        self.rank(class);
        handle
    }

    fn next_class(&self) -> Option<u32> {
        match &self.fair {
            Some(fair) => fair.heap.least().map(|(_, class)| class),
            None => Some(0),
        }
    }

    fn class_of(&mut self, name: &str) -> u32 {
        let Some(fair) = &mut self.fair else { return 0 };
        let flow = fair.flows.flow(name, 0, &[LANE]);
        if let Some(class) = fair.flows.queues(flow, COST).next() {
            return class;
        }
        let class = self.idle.pop().unwrap_or_else(|| {
            self.classes.push((Class::new(self.entries.rule), 0));
            (self.classes.len() - 1) as u32
        });
        self.classes[class as usize].1 = flow;
        fair.flows.open(flow, COST, class);
        class
    }

    /// Puts a flow where its next item belongs among all flows; one that has none leaves.
    fn rank(&mut self, class: u32) {
        let Some(fair) = &mut self.fair else { return };
        let (queue, flow) = &self.classes[class as usize];
        match queue.head(&self.entries) {
            Some(slot) => fair.heap.set(class, fair.flows.key(*flow, self.entries.node(slot).place())),
            None => {
                fair.heap.remove(class);
                fair.flows.close(*flow, COST, class);
                self.idle.push(class);
            }
        }
    }
}
