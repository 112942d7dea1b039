//! Binary heaps of classes by the key of their head, in which a class can be moved.

use super::{Key, Place};
use crate::steps;

/// Not in the heap.
const ABSENT: u32 = u32::MAX;

/// Where each class stands in its heap, by class id; [`ABSENT`] when it does not.
type Positions = Vec<u32>;

/// The classes that one backend may serve and that have a request waiting, least head first.
///
/// # Complexity
/// `least` is O(1); `set` and `remove` are O(log classes), and touch nothing when the class stays where it is.
#[derive(Debug, Default)]
pub struct ReadyHeap {
    heap: Heap<Key>,
    positions: Positions,
}

impl ReadyHeap {
    /// The least head and its class.
    #[inline]
    pub fn least(&self) -> Option<(Key, u32)> {
        self.heap.items.first().copied()
    }

    /// Whether no class waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.heap.items.is_empty()
    }

    /// The classes in it, in no order.
    pub fn classes(&self) -> impl Iterator<Item = u32> + '_ {
        self.heap.classes()
    }

    /// Puts `class` in with the key of its head, or moves it there.
    #[inline]
    pub fn set(&mut self, class: u32, key: Key) {
        if let [only] = self.heap.items.as_mut_slice()
            && only.1 == class
        {
            only.0 = key;
            return;
        }
        self.heap.set(&mut self.positions, class, key);
    }

    /// Takes `class` out, if it is in.
    #[inline]
    pub fn remove(&mut self, class: u32) {
        self.heap.remove(&mut self.positions, class);
    }
}

/// The classes of each flow that one backend may serve and that have a request waiting, by the place of their head: in which order they go
/// among themselves, wherever the flow stands among others.
///
/// # Complexity
/// As that of [`ReadyHeap`], in the classes of a flow.
#[derive(Debug, Default)]
pub struct FlowHeaps {
    /// By flow.
    heaps: Vec<Heap<Place>>,
    positions: Positions,
}

impl FlowHeaps {
    /// The least place of a flow, and its class.
    #[inline]
    pub fn least(&self, flow: u32) -> Option<(Place, u32)> {
        self.heaps.get(flow as usize)?.items.first().copied()
    }

    /// The classes of a flow that are in, in no order.
    pub fn classes(&self, flow: u32) -> impl Iterator<Item = u32> + '_ {
        self.heaps.get(flow as usize).into_iter().flat_map(Heap::classes)
    }

    /// Puts a class of `flow` in with the place of its head, or moves it there.
    pub fn set(&mut self, flow: u32, class: u32, place: Place) {
        let index = flow as usize;
        if self.heaps.len() <= index {
            self.heaps.resize_with(index + 1, Heap::default);
        }
        self.heaps[index].set(&mut self.positions, class, place);
    }

    /// Takes a class of `flow` out, if it is in.
    pub fn remove(&mut self, flow: u32, class: u32) {
        if let Some(heap) = self.heaps.get_mut(flow as usize) {
            heap.remove(&mut self.positions, class);
        }
    }
}

#[derive(Debug)]
struct Heap<K> {
    items: Vec<(K, u32)>,
}

impl<K> Default for Heap<K> {
    fn default() -> Heap<K> {
        Heap { items: Vec::new() }
    }
}

impl<K> Heap<K> {
    fn classes(&self) -> impl Iterator<Item = u32> + '_ {
        self.items.iter().map(|&(_, class)| class)
    }
}

impl<K: Copy + Ord> Heap<K> {
    fn set(&mut self, positions: &mut Positions, class: u32, key: K) {
        let index = class as usize;
        if positions.len() <= index {
            positions.resize(index + 1, ABSENT);
        }
        let at = positions[index];
        if at == ABSENT {
            self.items.push((key, class));
            self.rise(positions, self.items.len() - 1);
        } else {
            let at = at as usize;
            let old = std::mem::replace(&mut self.items[at], (key, class)).0;
            if key < old {
                self.rise(positions, at);
            } else {
                self.sink(positions, at);
            }
        }
    }

    #[inline]
    fn remove(&mut self, positions: &mut Positions, class: u32) {
        let Some(&at) = positions.get(class as usize) else { return };
        if at == ABSENT {
            return;
        }
        let at = at as usize;
        positions[class as usize] = ABSENT;
        self.items.swap_remove(at);
        if at < self.items.len() {
            self.rise(positions, at);
            // The item that came from the end may belong above or below; when it rose, another stands at `at` that is in order.
            self.sink(positions, at);
        }
    }

    fn rise(&mut self, positions: &mut Positions, mut at: usize) {
        let item = self.items[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.items[parent].0 <= item.0 {
                break;
            }
            self.place(positions, at, self.items[parent]);
            at = parent;
        }
        self.place(positions, at, item);
    }

    fn sink(&mut self, positions: &mut Positions, mut at: usize) {
        let item = self.items[at];
        loop {
            let mut child = 2 * at + 1;
            if child >= self.items.len() {
                break;
            }
            if child + 1 < self.items.len() && self.items[child + 1].0 < self.items[child].0 {
                child += 1;
            }
            if item.0 <= self.items[child].0 {
                break;
            }
            self.place(positions, at, self.items[child]);
            at = child;
        }
        self.place(positions, at, item);
    }

    #[inline]
    fn place(&mut self, positions: &mut Positions, at: usize, item: (K, u32)) {
        steps::add(1);
        self.items[at] = item;
        positions[item.1 as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The least is that of a sorted map, for classes that come, move either way and go at random.
        #[test]
        fn orders_as_a_sorted_map(ops in prop::collection::vec((0u32..24, prop::option::weighted(0.75, any::<u8>())), 1..300)) {
            let mut heap = ReadyHeap::default();
            let mut model: BTreeMap<u32, Key> = BTreeMap::new();
            for (class, band) in ops {
                // A key belongs to one class at a time, as a request waits in one class.
                match band.map(|band| Key::of(Place::new(band, u64::from(class)))) {
                    Some(key) => {
                        heap.set(class, key);
                        model.insert(class, key);
                    }
                    None => {
                        heap.remove(class);
                        model.remove(&class);
                    }
                }
                prop_assert_eq!(heap.least(), model.iter().map(|(class, key)| (*key, *class)).min());
                prop_assert_eq!(heap.is_empty(), model.is_empty());
                prop_assert_eq!(heap.classes().collect::<BTreeSet<_>>(), model.keys().copied().collect());
                for (at, (_, class)) in heap.heap.items.iter().enumerate() {
                    prop_assert_eq!(heap.positions[*class as usize], at as u32);
                }
            }
        }
    }
}
