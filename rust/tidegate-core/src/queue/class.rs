//! One class of requests in strict order: 256 hard bands, first in first out inside a band.
//!
//! A request that comes in fresh carries the largest sequence number so far, so it goes to the tail of its band's list. One that comes
//! *back* (a retry) keeps the key it was accepted with and belongs somewhere ahead; those few wait in an ordered map beside
//! the lists, and the head of the class is the lesser of the two heads.

use std::collections::BTreeMap;

/// The order of a request: its band in the top 8 bits, its sequence number below. The least key goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

impl Key {
    const SEQUENCE_BITS: u32 = 56;

    /// The key of the `sequence`-th request, in `band` (0 is the most urgent). Sequences up to 2^56 are told apart.
    #[inline]
    pub const fn new(band: u8, sequence: u64) -> Key {
        Key(((band as u64) << Self::SEQUENCE_BITS) | (sequence & ((1 << Self::SEQUENCE_BITS) - 1)))
    }

    /// The band, 0 to 255.
    #[inline]
    pub const fn band(self) -> u8 {
        (self.0 >> Self::SEQUENCE_BITS) as u8
    }
}

/// The links of one request in its class; embedded in the owner's record of that request.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    next: u32,
    prev: u32,
    key: Key,
}

/// No node: the end of a list, or a node outside any list.
const NIL: u32 = u32::MAX;
/// In `prev`: the node waits in the map of those that came back.
const RETURNED: u32 = u32::MAX - 1;

impl Node {
    /// A node outside any class.
    #[inline]
    pub const fn new(key: Key) -> Node {
        Node { next: NIL, prev: NIL, key }
    }

    /// The order of its request.
    #[inline]
    pub const fn key(&self) -> Key {
        self.key
    }
}

/// The store that owns the nodes, by slot.
pub trait Nodes {
    /// The node in `slot`.
    fn node(&self, slot: u32) -> &Node;
    /// The node in `slot`, to be relinked.
    fn node_mut(&mut self, slot: u32) -> &mut Node;
}

/// The fresh requests of one band: first and last slot.
#[derive(Clone, Copy, Debug)]
struct List {
    band: u8,
    head: u32,
    tail: u32,
}

/// The requests of one class. It stores slots; the nodes are the owner's.
///
/// # Complexity
/// `head`, and `pop` and `remove` of a fresh request, are O(1); `push` finds the list of its band among those that are not empty, most
/// of the time one or two. With requests that came back all are O(log of how many came back).
#[derive(Debug, Default)]
pub struct Class {
    /// The lists that are not empty, most urgent band first.
    lists: Vec<List>,
    returned: BTreeMap<Key, u32>,
    len: u32,
}

impl Class {
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
        let fresh = self.lists.first().map(|list| list.head);
        match (fresh, self.returned.first_key_value()) {
            (fresh, None) => fresh,
            (Some(slot), Some((key, _))) if nodes.node(slot).key < *key => Some(slot),
            (_, Some((_, slot))) => Some(*slot),
        }
    }

    /// Adds a request whose key is larger than all keys that were pushed in its band before. True when it is the head now.
    #[inline]
    pub fn push(&mut self, nodes: &mut impl Nodes, slot: u32) -> bool {
        self.len += 1;
        let key = nodes.node(slot).key;
        match self.list(key.band()) {
            Ok(rank) => {
                let tail = std::mem::replace(&mut self.lists[rank].tail, slot);
                nodes.node_mut(tail).next = slot;
                let node = nodes.node_mut(slot);
                (node.prev, node.next) = (tail, NIL);
                false
            }
            Err(rank) => {
                self.lists.insert(rank, List { band: key.band(), head: slot, tail: slot });
                let node = nodes.node_mut(slot);
                (node.prev, node.next) = (NIL, NIL);
                rank == 0 && self.returned.first_key_value().is_none_or(|(returned, _)| key < *returned)
            }
        }
    }

    /// Adds a request that was taken before and keeps its key. True when it is the head now.
    pub fn push_back_in_order(&mut self, nodes: &mut impl Nodes, slot: u32) -> bool {
        let node = nodes.node_mut(slot);
        node.prev = RETURNED;
        self.returned.insert(node.key, slot);
        self.len += 1;
        self.head(nodes) == Some(slot)
    }

    /// Takes out the request with the least key.
    #[inline]
    pub fn pop(&mut self, nodes: &mut impl Nodes) -> Option<u32> {
        let slot = self.head(nodes)?;
        let Node { next, prev, .. } = *nodes.node(slot);
        self.len -= 1;
        match (prev, next) {
            (RETURNED, _) => {
                self.returned.pop_first();
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

    /// Takes out the request in `slot`, which waits here.
    pub fn remove(&mut self, nodes: &mut impl Nodes, slot: u32) {
        let Node { next, prev, key } = *nodes.node(slot);
        self.len -= 1;
        if prev == RETURNED {
            self.returned.remove(&key);
            return;
        }
        if prev != NIL {
            nodes.node_mut(prev).next = next;
        }
        if next != NIL {
            nodes.node_mut(next).prev = prev;
        }
        if prev == NIL || next == NIL {
            let rank = self.list(key.band()).expect("the band of a node in a list has a list");
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

    struct Store(Vec<Node>);

    impl Nodes for Store {
        fn node(&self, slot: u32) -> &Node {
            &self.0[slot as usize]
        }
        fn node_mut(&mut self, slot: u32) -> &mut Node {
            &mut self.0[slot as usize]
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        /// A fresh request in this band.
        Push(u8),
        Pop,
        /// One that waits leaves.
        Remove(usize),
        /// One that has left comes back.
        Return(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let band = prop_oneof![3 => prop::sample::select(vec![0u8, 63, 64, 127, 128, 191, 192, 255]), 1 => any::<u8>()];
        prop_oneof![
            6 => band.prop_map(Op::Push),
            3 => Just(Op::Pop),
            2 => (0usize..1000).prop_map(Op::Remove),
            3 => (0usize..1000).prop_map(Op::Return),
        ]
    }

    #[test]
    fn keys_order_by_band_then_sequence() {
        assert!(Key::new(0, u64::MAX) < Key::new(1, 0));
        assert!(Key::new(255, 3) < Key::new(255, 4));
        assert_eq!(Key::new(77, 5).band(), 77);
    }

    proptest! {
        /// The head is the least of all keys that wait, whatever is pushed, taken out at any place, or comes back.
        #[test]
        fn orders_as_a_sorted_set(ops in prop::collection::vec(op(), 1..300)) {
            let mut store = Store(Vec::new());
            let mut class = Class::default();
            let mut waiting: BTreeSet<(Key, u32)> = BTreeSet::new();
            let mut taken: Vec<(Key, u32)> = Vec::new();
            for op in ops {
                let leading = waiting.first().copied();
                let leaving = match op {
                    Op::Push(band) => {
                        let slot = store.0.len() as u32;
                        let key = Key::new(band, u64::from(slot));
                        store.0.push(Node::new(key));
                        let leads = class.push(&mut store, slot);
                        prop_assert_eq!(leads, leading.is_none_or(|leading| key < leading.0));
                        waiting.insert((key, slot));
                        None
                    }
                    Op::Return(index) if !taken.is_empty() => {
                        let entry = taken.swap_remove(index % taken.len());
                        let leads = class.push_back_in_order(&mut store, entry.1);
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
                        entry.inspect(|entry| class.remove(&mut store, entry.1))
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
}
