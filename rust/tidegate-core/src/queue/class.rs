//! One class of requests, in the order of their keys: a list for each band, and an ordered map for what does not fit into one.
//!
//! Where a request that comes fresh has a larger key than all of its band, as it has in strict order and nearly always in the others, it
//! goes to the tail of its band's list. One that comes *back* (a retry) keeps its key and belongs somewhere ahead, and so may one with an
//! early deadline: those wait in the map beside the lists. The head of the class is the least of all the heads.

use std::collections::BTreeMap;

use super::{Key, Place, Rule};

/// Most requests of a class that are looked at for one that fits, in its lists and aside of them.
const SCAN: usize = 64;

/// The links of one request in its class; embedded in the owner's record of that request.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    next: u32,
    prev: u32,
    place: Place,
}

/// No node: the end of a list, or a node outside any list.
const NIL: u32 = u32::MAX;
/// In `prev`: the node waits in the map of those that did not come in order.
const ASIDE: u32 = u32::MAX - 1;

impl Node {
    /// A node outside any class.
    #[inline]
    pub const fn new(place: Place) -> Node {
        Node { next: NIL, prev: NIL, place }
    }

    /// The band and number of its request.
    #[inline]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// Gives it another place, outside any class.
    #[inline]
    pub const fn set_place(&mut self, place: Place) {
        self.place = place;
    }
}

/// The store that owns the nodes, by slot.
pub trait Nodes {
    /// The node in `slot`.
    fn node(&self, slot: u32) -> &Node;
    /// The node in `slot`, to be relinked.
    fn node_mut(&mut self, slot: u32) -> &mut Node;
    /// The key of the request in `slot`: it does not change while the request waits.
    fn key(&self, slot: u32) -> Key;
}

/// The requests of one band that came in the order of their keys: first and last slot.
#[derive(Clone, Copy, Debug)]
struct List {
    band: u8,
    head: u32,
    tail: u32,
}

/// The requests of one class. It stores slots; the nodes are the owner's.
///
/// # Complexity
/// `head`, and `pop` and `remove` of a request in a list, are O(1); `push` finds the list of its band among those that are not empty, most
/// of the time one or two. With requests aside all are O(log of how many are). Without hard bands the head is looked for among the lists.
#[derive(Debug, Default)]
pub struct Class {
    /// The lists that are not empty, most urgent band first; each in the order of its keys.
    lists: Vec<List>,
    aside: BTreeMap<Key, u32>,
    len: u32,
    /// A less urgent band may go first.
    merged: bool,
}

impl Class {
    /// An empty class whose keys are made by this rule.
    pub fn new(rule: Rule) -> Class {
        Class { merged: !rule.has_hard_bands(), ..Class::default() }
    }

    /// How many requests wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether none waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Slot of the request with the least key.
    #[inline]
    pub fn head(&self, nodes: &impl Nodes) -> Option<u32> {
        if self.is_plain() { self.lists.first().map(|list| list.head) } else { self.least(nodes) }
    }

    /// Whether the first list begins with the head.
    #[inline]
    fn is_plain(&self) -> bool {
        self.aside.is_empty() && !self.merged
    }

    #[inline(never)]
    fn least(&self, nodes: &impl Nodes) -> Option<u32> {
        let heads = || self.lists.iter().map(|list| list.head);
        let fresh = if self.merged { heads().min_by_key(|&slot| nodes.key(slot)) } else { heads().next() };
        match (fresh, self.aside.first_key_value()) {
            (fresh, None) => fresh,
            (Some(slot), Some((key, _))) if nodes.key(slot) < *key => Some(slot),
            (_, Some((_, slot))) => Some(*slot),
        }
    }

    /// Adds a request whose key is larger than all keys that were pushed in its band before; there are hard bands. True when it is the
    /// head now.
    #[inline]
    pub fn push(&mut self, nodes: &mut impl Nodes, slot: u32) -> bool {
        debug_assert!(!self.merged);
        self.len += 1;
        match self.list(nodes.node(slot).place.band()) {
            Ok(rank) => {
                self.append(nodes, rank, slot);
                false
            }
            Err(rank) => {
                self.begin(nodes, rank, slot);
                rank == 0 && self.aside.first_key_value().is_none_or(|(aside, _)| nodes.key(slot) < *aside)
            }
        }
    }

    /// Adds a request with any key. True when it is the head now.
    pub fn insert(&mut self, nodes: &mut impl Nodes, slot: u32) -> bool {
        match self.list(nodes.node(slot).place.band()) {
            Ok(rank) if nodes.key(self.lists[rank].tail) < nodes.key(slot) => self.append(nodes, rank, slot),
            Ok(_) => return self.set_aside(nodes, slot),
            Err(rank) => self.begin(nodes, rank, slot),
        }
        self.len += 1;
        self.head(nodes) == Some(slot)
    }

    /// Adds a request that is not expected to have the largest key of its band. True when it is the head now.
    pub fn set_aside(&mut self, nodes: &mut impl Nodes, slot: u32) -> bool {
        nodes.node_mut(slot).prev = ASIDE;
        self.aside.insert(nodes.key(slot), slot);
        self.len += 1;
        self.head(nodes) == Some(slot)
    }

    /// The request with the least key of those that fit, as far as they are looked at: [`SCAN`] of the lists and as many of those aside. Where
    /// `from` knows for a band below which key none fits, it begins there.
    ///
    /// # Complexity
    /// O(`SCAN` + bands x log of how many are aside).
    #[inline(never)]
    pub fn first(&self, nodes: &impl Nodes, from: impl Fn(u8) -> Option<Key>, fits: impl Fn(u32) -> bool) -> Option<u32> {
        let mut left = SCAN;
        let mut listed: Option<u32> = None;
        for list in &self.lists {
            let mut at = list.head;
            while at != NIL && left > 0 && !fits(at) {
                left -= 1;
                at = nodes.node(at).next;
            }
            if at == NIL || left == 0 {
                continue;
            }
            if listed.is_none_or(|least| nodes.key(at) < nodes.key(least)) {
                listed = Some(at);
            }
            if !self.merged {
                break; // The bands that follow are less urgent.
            }
        }
        let aside = self.first_aside(nodes, from, fits);
        listed.into_iter().chain(aside).min_by_key(|&slot| nodes.key(slot))
    }

    fn first_aside(&self, nodes: &impl Nodes, from: impl Fn(u8) -> Option<Key>, fits: impl Fn(u32) -> bool) -> Option<u32> {
        let mut start = *self.aside.first_key_value()?.0;
        let mut band = None;
        let mut left = SCAN;
        loop {
            let mut jump = None;
            for (&key, &slot) in self.aside.range(start..) {
                let here = nodes.node(slot).place.band();
                if band.replace(here) != Some(here)
                    && let Some(from) = from(here).filter(|&from| from > key)
                {
                    jump = Some(from);
                    break;
                }
                if fits(slot) {
                    return Some(slot);
                }
                left -= 1;
                if left == 0 {
                    return None;
                }
            }
            start = jump?;
        }
    }

    #[inline]
    fn append(&mut self, nodes: &mut impl Nodes, rank: usize, slot: u32) {
        let tail = std::mem::replace(&mut self.lists[rank].tail, slot);
        nodes.node_mut(tail).next = slot;
        let node = nodes.node_mut(slot);
        (node.prev, node.next) = (tail, NIL);
    }

    #[inline]
    fn begin(&mut self, nodes: &mut impl Nodes, rank: usize, slot: u32) {
        let node = nodes.node_mut(slot);
        (node.prev, node.next) = (NIL, NIL);
        self.lists.insert(rank, List { band: node.place.band(), head: slot, tail: slot });
    }

    /// Takes out the request with the least key.
    #[inline]
    pub fn pop(&mut self, nodes: &mut impl Nodes) -> Option<u32> {
        let slot = self.head(nodes)?;
        if self.merged {
            self.remove(nodes, slot);
            return Some(slot);
        }
        let Node { next, prev, .. } = *nodes.node(slot);
        self.len -= 1;
        match (prev, next) {
            (ASIDE, _) => {
                self.aside.pop_first();
            }
            (_, NIL) => {
                self.lists.remove(0);
            }
            _ => {
                nodes.node_mut(next).prev = NIL;
                self.lists[0].head = next;
            }
        }
        Some(slot)
    }

    /// The same as [`remove`](Class::remove), for one that is most likely the head.
    #[inline]
    pub fn take(&mut self, nodes: &mut impl Nodes, slot: u32) {
        let next = match (nodes.node(slot), self.lists.first()) {
            (&Node { prev: NIL, next, .. }, Some(first)) if next != NIL && first.head == slot => next,
            _ => return self.remove(nodes, slot),
        };
        self.len -= 1;
        nodes.node_mut(next).prev = NIL;
        self.lists[0].head = next;
    }

    /// Takes out the request in `slot`, which waits here.
    pub fn remove(&mut self, nodes: &mut impl Nodes, slot: u32) {
        let Node { next, prev, place } = *nodes.node(slot);
        self.len -= 1;
        if prev == ASIDE {
            self.aside.remove(&nodes.key(slot));
            return;
        }
        if prev != NIL {
            nodes.node_mut(prev).next = next;
        }
        if next != NIL {
            nodes.node_mut(next).prev = prev;
        }
        if prev == NIL || next == NIL {
            let rank = self.list(place.band()).expect("the band of a node in a list has a list");
            match (prev, next) {
                (NIL, NIL) => {
                    self.lists.remove(rank);
                }
                (NIL, _) => self.lists[rank].head = next,
                (_, _) => self.lists[rank].tail = prev,
            }
        }
    }

    /// Where the list of `band` is, or would be.
    #[inline]
    fn list(&self, band: u8) -> Result<usize, usize> {
        self.lists.binary_search_by_key(&band, |list| list.band)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::time::{Instant, Span};

    struct Store {
        rule: Rule,
        /// With when each request joined, and its deadline.
        nodes: Vec<(Node, Instant, Instant)>,
    }

    impl Nodes for Store {
        fn node(&self, slot: u32) -> &Node {
            &self.nodes[slot as usize].0
        }
        fn node_mut(&mut self, slot: u32) -> &mut Node {
            &mut self.nodes[slot as usize].0
        }
        fn key(&self, slot: u32) -> Key {
            let (node, joined, deadline) = &self.nodes[slot as usize];
            self.rule.key(node.place, *joined, *deadline)
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        /// A fresh request in this band, so long after the one before, with so long a time until its deadline.
        Push(u8, u64, Option<u64>),
        Pop,
        /// One that waits leaves.
        Remove(usize),
        /// One that has left comes back.
        Return(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let band = prop_oneof![3 => prop::sample::select(vec![0u8, 63, 64, 127, 128, 191, 192, 255]), 1 => any::<u8>()];
        let timeout = prop_oneof![1 => Just(None), 2 => Just(Some(50)), 2 => (1u64..100).prop_map(Some)];
        prop_oneof![
            6 => (band, 0u64..3, timeout).prop_map(|(band, pause, timeout)| Op::Push(band, pause, timeout)),
            3 => Just(Op::Pop),
            2 => (0usize..1000).prop_map(Op::Remove),
            3 => (0usize..1000).prop_map(Op::Return),
        ]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        prop_oneof![Just(Rule::Place), (0u64..3).prop_map(|step| Rule::Aging(Span::from_nanos(step))), Just(Rule::Deadline)]
    }

    proptest! {
        /// The head is the least of all keys that wait, whatever is pushed, taken out at any place, or comes back.
        #[test]
        fn orders_as_a_sorted_set(rule in rule(), ops in prop::collection::vec(op(), 1..300)) {
            let mut store = Store { rule, nodes: Vec::new() };
            let mut class = Class::new(rule);
            let mut waiting: BTreeSet<(Key, u32)> = BTreeSet::new();
            let mut taken: Vec<(Key, u32)> = Vec::new();
            let mut now = Instant::ORIGIN;
            for op in ops {
                let leading = waiting.first().copied();
                let leaving = match op {
                    Op::Push(band, pause, timeout) => {
                        now = now + Span::from_nanos(pause);
                        let slot = store.nodes.len() as u32;
                        let deadline = timeout.map_or(Instant::FAR, |timeout| now + Span::from_nanos(timeout));
                        store.nodes.push((Node::new(Place::new(band, u64::from(slot))), now, deadline));
                        let key = store.key(slot);
                        let fifo = rule.is_first_in_first_out();
                        let leads = if fifo { class.push(&mut store, slot) } else { class.insert(&mut store, slot) };
                        prop_assert_eq!(leads, leading.is_none_or(|leading| key < leading.0));
                        waiting.insert((key, slot));
                        None
                    }
                    Op::Return(index) if !taken.is_empty() => {
                        let entry = taken.swap_remove(index % taken.len());
                        let leads = class.set_aside(&mut store, entry.1);
                        prop_assert_eq!(leads, leading.is_none_or(|leading| entry < leading));
                        waiting.insert(entry);
                        None
                    }
                    Op::Return(_) => None,
                    Op::Pop => {
                        prop_assert_eq!(class.pop(&mut store), leading.map(|(_, slot)| slot));
                        leading
                    }
                    Op::Remove(index) => {
                        let entry = waiting.iter().nth(index % waiting.len().max(1)).copied();
                        entry.inspect(|entry| {
                            if index % 2 == 0 { class.remove(&mut store, entry.1) } else { class.take(&mut store, entry.1) }
                        })
                    }
                };
                if let Some(entry) = leaving {
                    waiting.remove(&entry);
                    taken.push(entry);
                }
                prop_assert_eq!(class.head(&store), waiting.first().map(|(_, slot)| *slot));
                prop_assert_eq!((class.len(), class.is_empty()), (waiting.len(), waiting.is_empty()));
            }
        }
    }

    proptest! {
        /// The first that fits is the least of all keys that do, while no more than are looked at wait.
        #[test]
        fn finds_the_first_that_fits(
            rule in rule(),
            waiting in prop::collection::vec((prop::sample::select(vec![0u8, 128, 255]), 0u64..3, prop::option::of(1u64..100), any::<bool>()), 1..60),
            due in 0u64..200,
        ) {
            let mut store = Store { rule, nodes: Vec::new() };
            let mut class = Class::new(rule);
            let mut now = Instant::ORIGIN;
            for (band, pause, timeout, back) in waiting {
                now = now + Span::from_nanos(pause);
                let slot = store.nodes.len() as u32;
                let deadline = timeout.map_or(Instant::FAR, |timeout| now + Span::from_nanos(timeout));
                store.nodes.push((Node::new(Place::new(band, u64::from(slot))), now, deadline));
                if back { class.set_aside(&mut store, slot) } else { class.insert(&mut store, slot) };
            }
            let due = Instant::ORIGIN + Span::from_nanos(due);
            let fits = |slot: u32| store.nodes[slot as usize].2 >= due;
            let all = 0..store.nodes.len() as u32;
            let expected = all.filter(|&slot| fits(slot)).min_by_key(|&slot| store.key(slot));
            prop_assert_eq!(class.first(&store, |band| rule.due_from(band, due), fits), expected);
        }
    }

    /// However many do not fit, few are looked at; in the order of deadlines those that are aside are not looked at at all.
    #[test]
    fn looks_at_few() {
        for (rule, finds) in [(Rule::Place, false), (Rule::Deadline, true)] {
            let mut store = Store { rule, nodes: Vec::new() };
            let mut class = Class::new(rule);
            for slot in 0..10_000u32 {
                let deadline = Instant::ORIGIN + Span::from_nanos(20_000 - u64::from(slot));
                store.nodes.push((Node::new(Place::new(0, u64::from(slot))), Instant::ORIGIN, deadline));
                class.set_aside(&mut store, slot);
            }
            let due = Instant::ORIGIN + Span::from_nanos(15_000);
            let looked = std::cell::Cell::new(0);
            let fits = |slot: u32| {
                looked.set(looked.get() + 1);
                // In the order of acceptance, those that came first are not to fit.
                if finds { store.nodes[slot as usize].2 >= due } else { slot > 5_000 }
            };
            let first = class.first(&store, |band| rule.due_from(band, due), fits);
            assert_eq!((first, looked.get()), if finds { (Some(5_000), 1) } else { (None, SCAN) });
        }
    }
}
