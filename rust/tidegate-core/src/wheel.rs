//! A hierarchical timing wheel (Varghese and Lauck, SOSP 1987) with an occupancy bitmap a level.
//!
//! Level 0 has 64 slots of one tick, level 1 has 64 slots of 64 ticks, and so on; eight levels cover every [`Instant`].
//! A timer lies on the level of the highest six-bit digit in which its tick differs from the wheel's, in the slot of that
//! digit. Hence all slots of a level lie ahead of the wheel in the order of their index, and every timer of a level is due
//! before any timer of the levels above: the next timer is found by three bit operations, however long the wheel was
//! idle. When the wheel reaches a slot above level 0, its timers move down (tokio's wheel does the same).

use std::num::NonZeroU32;

use crate::time::{Instant, Span};

/// A tick is 2^16 ns: 65.5 µs.
const TICK_BITS: u32 = 16;
/// 64 slots a level.
const LEVEL_BITS: u32 = 6;
const SLOTS: usize = 1 << LEVEL_BITS;
/// Eight digits of six bits hold every tick of a 64-bit clock.
const LEVELS: usize = 8;
const LAST_TICK: u64 = u64::MAX >> TICK_BITS;
/// No node.
const NIL: u32 = u32::MAX;
/// The slot of a node that is not armed.
const FREE: u16 = u16::MAX;

/// Names an armed timer, for its owner alone: it must forget the id when the timer fires or is disarmed, for ids are
/// used again. As large as a `u32`, and so is its `Option`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId(NonZeroU32);

impl TimerId {
    fn new(index: u32) -> TimerId {
        TimerId(NonZeroU32::MIN.saturating_add(index))
    }

    fn index(self) -> u32 {
        self.0.get() - 1
    }
}

#[derive(Debug)]
struct Node<K> {
    /// When the timer is due: its instant rounded up to a tick.
    due: u64,
    key: K,
    /// Neighbours in the ring of its slot; `next` also links the free nodes.
    next: u32,
    prev: u32,
    /// `level * SLOTS + slot`, or `FREE`.
    slot: u16,
}

/// Timers that carry a key each, fired in the order of their ticks.
///
/// Memory: 32 bytes a timer for keys of up to 8 bytes, and 8 KiB. It is not given back.
#[derive(Debug)]
pub struct Wheel<K> {
    /// The tick up to which everything has fired or moved down. Never decreases.
    elapsed: u64,
    /// Levels with an occupied slot, a bit each.
    levels: u8,
    /// Occupied slots of each level, a bit each.
    occupied: [u64; LEVELS],
    slots: Box<[Slot; LEVELS * SLOTS]>,
    nodes: Vec<Node<K>>,
    free: u32,
    armed: usize,
}

/// A ring of nodes in the order in which they were armed.
#[derive(Clone, Copy, Debug)]
struct Slot {
    head: u32,
    /// No timer of the slot is due before this tick: the least that was put in since the slot was empty.
    least: u64,
}

impl<K: Copy> Default for Wheel<K> {
    fn default() -> Wheel<K> {
        Wheel::new()
    }
}

impl<K: Copy> Wheel<K> {
    /// A timer fires at most so much after its instant.
    pub const TICK: Span = Span::from_nanos(1 << TICK_BITS);

    /// A wheel without timers.
    pub fn new() -> Wheel<K> {
        let empty = Slot { head: NIL, least: 0 };
        Wheel {
            elapsed: 0,
            levels: 0,
            occupied: [0; LEVELS],
            slots: Box::new([empty; LEVELS * SLOTS]),
            nodes: Vec::new(),
            free: NIL,
            armed: 0,
        }
    }

    /// Arms a timer that fires once at `at`, or a fraction of a tick later. One in the past fires at the next call.
    ///
    /// # Complexity
    /// Constant, amortised over the growth of the memory.
    ///
    /// # Panics
    /// When 2^32 - 2 timers are armed.
    pub fn arm(&mut self, at: Instant, key: K) -> TimerId {
        let due = at.as_nanos().div_ceil(1 << TICK_BITS).min(LAST_TICK);
        let node = Node { due: due.max(self.elapsed), key, next: NIL, prev: NIL, slot: FREE };
        let index = if self.free == NIL {
            let index = u32::try_from(self.nodes.len()).unwrap_or(NIL);
            assert!(index < NIL - 1, "more than 2^32 - 2 timers");
            self.nodes.push(node);
            index
        } else {
            let index = self.free;
            self.free = self.nodes[index as usize].next;
            self.nodes[index as usize] = node;
            index
        };
        self.armed += 1;
        self.link(index);
        TimerId::new(index)
    }

    /// Disarms a timer that has not fired.
    ///
    /// # Complexity
    /// Constant.
    pub fn disarm(&mut self, timer: TimerId) {
        let index = timer.index();
        let armed = self.nodes.get(index as usize).is_some_and(|node| node.slot != FREE);
        debug_assert!(armed, "disarmed a timer that is not armed");
        if armed {
            self.release(index);
        }
    }

    /// When an armed timer fires: its instant rounded up to a tick.
    pub fn due(&self, timer: TimerId) -> Instant {
        Instant::from_nanos(self.nodes[timer.index() as usize].due << TICK_BITS)
    }

    /// Takes the next timer that is due at `now`: never before its instant, in the order of ticks, and within a tick in
    /// the order in which they were armed. Call it until it returns nothing. (In the last tick before [`Instant::FAR`]
    /// nothing is left to round up to: there a timer may be early.)
    ///
    /// `now` may repeat, and one before an earlier `now` finds nothing that was not due then.
    ///
    /// # Complexity
    /// Constant but for timers that move down: those of at most one slot a level a call, each timer at most once a level
    /// in its life.
    #[inline]
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let tick = now.as_nanos() >> TICK_BITS;
        while let Some(slot) = self.first() {
            let level = slot / SLOTS;
            if self.start(slot) > tick {
                break;
            }
            let Slot { head, least } = self.slots[slot];
            if level == 0 {
                self.elapsed = self.start(slot);
                let key = self.nodes[head as usize].key;
                self.release(head);
                return Some(key);
            }
            self.elapsed = least.min(tick);
            self.lower(slot);
        }
        self.elapsed = self.elapsed.max(tick);
        None
    }

    /// No timer fires before this instant; nothing when none is armed.
    ///
    /// Exact to the tick, unless the earliest timer of a slot above level 0 was disarmed.
    ///
    /// # Complexity
    /// Constant.
    #[inline]
    pub fn next_wake(&self) -> Option<Instant> {
        let least = self.slots[self.first()?].least;
        Some(Instant::from_nanos(least << TICK_BITS))
    }

    /// How many timers are armed.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Whether no timer is armed.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// The occupied slot that comes first.
    #[inline]
    fn first(&self) -> Option<usize> {
        if self.levels == 0 {
            return None;
        }
        let level = self.levels.trailing_zeros() as usize;
        Some(level * SLOTS + self.occupied[level].trailing_zeros() as usize)
    }

    /// The first tick of an occupied slot: the wheel's own tick with this level's digit replaced and no lower ones.
    #[inline]
    fn start(&self, slot: usize) -> u64 {
        let shift = LEVEL_BITS * (slot / SLOTS) as u32;
        let digit = (slot % SLOTS) as u64;
        let above = self.elapsed >> shift >> LEVEL_BITS << LEVEL_BITS;
        (above | digit) << shift
    }

    /// Moves the timers of a slot that the wheel has reached to the levels below.
    fn lower(&mut self, slot: usize) {
        let head = self.slots[slot].head;
        self.vacate(slot);
        let last = self.nodes[head as usize].prev;
        let mut index = head;
        loop {
            let next = self.nodes[index as usize].next;
            self.link(index);
            if index == last {
                return;
            }
            index = next;
        }
    }

    /// Appends a node to the slot where its tick belongs.
    fn link(&mut self, index: u32) {
        let due = self.nodes[index as usize].due;
        let differing = (due ^ self.elapsed) | 1;
        let level = differing.ilog2() / LEVEL_BITS;
        let digit = (due >> (LEVEL_BITS * level)) as usize % SLOTS;
        let level = level as usize;
        let slot = level * SLOTS + digit;

        let Slot { head, least } = self.slots[slot];
        let (first, last) = if head == NIL {
            self.slots[slot] = Slot { head: index, least: due };
            self.occupied[level] |= 1 << digit;
            self.levels |= 1 << level;
            (index, index)
        } else {
            self.slots[slot].least = least.min(due);
            (head, self.nodes[head as usize].prev)
        };
        let node = &mut self.nodes[index as usize];
        node.slot = slot as u16;
        node.next = first;
        node.prev = last;
        self.nodes[last as usize].next = index;
        self.nodes[first as usize].prev = index;
    }

    /// Unlinks an armed node and puts it on the free list.
    fn release(&mut self, index: u32) {
        let &Node { next, prev, slot, .. } = &self.nodes[index as usize];
        let slot = usize::from(slot);
        if next == index {
            self.vacate(slot);
        } else {
            self.nodes[prev as usize].next = next;
            self.nodes[next as usize].prev = prev;
            if self.slots[slot].head == index {
                self.slots[slot].head = next;
            }
        }
        let node = &mut self.nodes[index as usize];
        node.slot = FREE;
        node.next = self.free;
        self.free = index;
        self.armed -= 1;
    }

    fn vacate(&mut self, slot: usize) {
        let (level, digit) = (slot / SLOTS, slot % SLOTS);
        self.slots[slot].head = NIL;
        self.occupied[level] &= !(1 << digit);
        if self.occupied[level] == 0 {
            self.levels &= !(1 << level);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 1 << TICK_BITS;

    fn at(ticks: u64) -> Instant {
        Instant::from_nanos(ticks * TICK)
    }

    #[test]
    fn a_node_with_a_word_as_its_key_is_32_bytes_and_an_optional_id_4() {
        assert_eq!(size_of::<Node<u64>>(), 32);
        assert_eq!(size_of::<Option<TimerId>>(), 4);
    }

    #[test]
    fn fires_at_its_instant_rounded_up_to_a_tick() {
        let mut wheel = Wheel::new();
        let timer = wheel.arm(Instant::from_nanos(1), 7);
        assert_eq!((wheel.due(timer), wheel.next_wake()), (at(1), Some(at(1))));
        assert_eq!(wheel.pop_due(Instant::from_nanos(TICK - 1)), None);
        assert_eq!(wheel.pop_due(at(1)), Some(7));
        assert_eq!(wheel.pop_due(at(1)), None);
        assert!(wheel.is_empty());
        assert_eq!(wheel.next_wake(), None);
    }

    #[test]
    fn fires_in_order_of_ticks_then_of_arming() {
        let mut wheel = Wheel::new();
        for (key, ticks) in [5_000_000, 70, 3, 70, 64, 3].into_iter().enumerate() {
            wheel.arm(at(ticks), key);
        }
        let fired: Vec<usize> = std::iter::from_fn(|| wheel.pop_due(at(1 << 40))).collect();
        assert_eq!(fired, [2, 5, 4, 1, 3, 0]);
    }

    #[test]
    fn wakes_once_for_a_timer_that_is_far_away() {
        let mut wheel = Wheel::new();
        let due = at(123_456_789);
        wheel.arm(due, ());
        assert_eq!(wheel.next_wake(), Some(due));
        assert_eq!(wheel.pop_due(at(123_456_788)), None);
        assert_eq!(wheel.next_wake(), Some(due));
        assert_eq!(wheel.pop_due(due), Some(()));
    }

    #[test]
    fn holds_a_timer_that_never_fires() {
        let mut wheel = Wheel::new();
        let never = wheel.arm(Instant::FAR, ());
        assert_eq!(wheel.pop_due(at(1 << 47)), None);
        assert!(wheel.next_wake().is_some_and(|wake| wake > at(1 << 47)));
        wheel.disarm(never);
        assert_eq!(wheel.next_wake(), None);
    }

    #[test]
    fn uses_the_memory_of_disarmed_timers_again() {
        let mut wheel = Wheel::new();
        for round in 0..1000 {
            let timer = wheel.arm(at(round + 50), round);
            wheel.disarm(timer);
        }
        assert_eq!(wheel.nodes.len(), 1);
        assert_eq!(wheel.pop_due(at(5000)), None);
    }
}
