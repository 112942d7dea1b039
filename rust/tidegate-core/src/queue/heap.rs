//! A binary heap of classes by the key of their head, in which a class can be moved.

use super::Key;

/// Not in the heap.
const ABSENT: u32 = u32::MAX;

/// The classes that one backend may serve and that have a request waiting, least head first.
///
/// # Complexity
/// `least` is O(1); `set` and `remove` are O(log classes), and touch nothing when the class stays where it is.
#[derive(Debug, Default)]
pub struct ReadyHeap {
    items: Vec<(Key, u32)>,
    /// Where each class stands in `items`, by class id; [`ABSENT`] when it does not.
    position: Vec<u32>,
}

impl ReadyHeap {
    /// The least head and its class.
    #[inline]
    pub fn least(&self) -> Option<(Key, u32)> {
        self.items.first().copied()
    }

    /// Whether no class waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The classes in it, in no order.
    pub fn classes(&self) -> impl Iterator<Item = u32> + '_ {
        self.items.iter().map(|&(_, class)| class)
    }

    /// Puts `class` in with the key of its head, or moves it there.
    #[inline]
    pub fn set(&mut self, class: u32, key: Key) {
        if let [only] = self.items.as_mut_slice()
            && only.1 == class
        {
            only.0 = key;
            return;
        }
        let index = class as usize;
        if self.position.len() <= index {
            self.position.resize(index + 1, ABSENT);
        }
        let at = self.position[index];
        if at == ABSENT {
            self.items.push((key, class));
            self.rise(self.items.len() - 1);
        } else {
            let at = at as usize;
            let old = std::mem::replace(&mut self.items[at], (key, class)).0;
            if key < old {
                self.rise(at);
            } else {
                self.sink(at);
            }
        }
    }

    /// Takes `class` out, if it is in.
    #[inline]
    pub fn remove(&mut self, class: u32) {
        let Some(&at) = self.position.get(class as usize) else { return };
        if at == ABSENT {
            return;
        }
        let at = at as usize;
        self.position[class as usize] = ABSENT;
        self.items.swap_remove(at);
        if at < self.items.len() {
            self.rise(at);
            // The item that came from the end may belong above or below; when it rose, another stands at `at` that is in order.
            self.sink(at);
        }
    }

    fn rise(&mut self, mut at: usize) {
        let item = self.items[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.items[parent].0 <= item.0 {
                break;
            }
            self.place(at, self.items[parent]);
            at = parent;
        }
        self.place(at, item);
    }

    fn sink(&mut self, mut at: usize) {
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
            self.place(at, self.items[child]);
            at = child;
        }
        self.place(at, item);
    }

    #[inline]
    fn place(&mut self, at: usize, item: (Key, u32)) {
        self.items[at] = item;
        self.position[item.1 as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::queue::Place;

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
                for (at, (_, class)) in heap.items.iter().enumerate() {
                    prop_assert_eq!(heap.position[*class as usize], at as u32);
                }
            }
        }
    }
}
