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

/// First and last slot of a band's list; a band without requests has no list.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

/// The requests of one class. It stores slots; the nodes are the owner's.
///
/// # Complexity
/// `push`, `head` and `remove` of a fresh request are O(1) (the lists of the occupied bands are dense, found by counting bits);
/// those of a request that came back are O(log of how many came back).
#[derive(Debug, Default)]
pub struct Class {
    /// Bit `b % 64` of word `b / 64`: band `b` has a list.
    occupied: [u64; 4],
    /// The lists of the occupied bands, most urgent first.
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

    /// Adds a request whose key is larger than all keys that were pushed in its band before.
    #[inline]
    pub fn push(&mut self, nodes: &mut impl Nodes, slot: u32) {
        let band = nodes.node(slot).key.band();
        let rank = self.rank(band);
        if self.has(band) {
            let list = &mut self.lists[rank];
            nodes.node_mut(list.tail).next = slot;
            let node = nodes.node_mut(slot);
            node.prev = list.tail;
            node.next = NIL;
            list.tail = slot;
        } else {
            self.lists.insert(rank, List { head: slot, tail: slot });
            self.occupied[usize::from(band) / 64] |= 1 << (band % 64);
            let node = nodes.node_mut(slot);
            node.prev = NIL;
            node.next = NIL;
        }
        self.len += 1;
    }

    /// Adds a request that was taken before and keeps its key.
    pub fn push_back_in_order(&mut self, nodes: &mut impl Nodes, slot: u32) {
        let node = nodes.node_mut(slot);
        node.prev = RETURNED;
        self.returned.insert(node.key, slot);
        self.len += 1;
    }

    /// Takes out the request in `slot`, which waits here.
    #[inline]
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
            let band = key.band();
            let rank = self.rank(band);
            let list = &mut self.lists[rank];
            match (prev, next) {
                (NIL, NIL) => {
                    self.lists.remove(rank);
                    self.occupied[usize::from(band) / 64] &= !(1 << (band % 64));
                }
                (NIL, _) => list.head = next,
                (_, _) => list.tail = prev,
            }
        }
    }

    #[inline]
    fn has(&self, band: u8) -> bool {
        self.occupied[usize::from(band) / 64] & (1 << (band % 64)) != 0
    }

    /// How many occupied bands are more urgent than `band`: the place of its list in `lists`.
    #[inline]
    fn rank(&self, band: u8) -> usize {
        let word = usize::from(band) / 64;
        let below = self.occupied[word] & ((1 << (band % 64)) - 1);
        let before: u32 = self.occupied[..word].iter().map(|bits| bits.count_ones()).sum();
        (before + below.count_ones()) as usize
    }
}
