//! The way in for other threads: reserve room, push, wake the owner once a batch.
//!
//! Ground rules: any thread may push and none ever blocks; only the owner drains. The list is the standard library's
//! multi-producer channel, which is lock-free. `armed` says that a wake-up is on its way: the owner lowers it *before*
//! it drains, a producer raises it *after* it pushed, so an item that the drain missed always finds it lowered and asks for a new one.
//! Not promised: order between producers.

use std::iter;

use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering, mpsc};

/// How many requests may be pending, shared by the owner and all producers.
#[derive(Clone, Debug)]
pub struct Room {
    taken: Arc<AtomicUsize>,
    capacity: usize,
}

impl Room {
    /// Room for `capacity` requests.
    pub fn new(capacity: usize) -> Room {
        Room { taken: Arc::new(AtomicUsize::new(0)), capacity }
    }

    /// Takes up to `wanted` places and returns how many there were.
    ///
    /// Exact: it never admits more than the capacity, and never refuses a place that is free.
    #[inline]
    pub fn reserve(&self, wanted: usize) -> usize {
        // ORDERING: Relaxed; the counter guards no other memory.
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            let granted = wanted.min(self.capacity.saturating_sub(taken));
            if granted == 0 {
                return 0;
            }
            match self.taken.compare_exchange_weak(taken, taken + granted, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return granted,
                Err(current) => taken = current,
            }
        }
    }

    /// Gives `count` places back, each reserved before.
    #[inline]
    pub fn release(&self, count: usize) {
        self.taken.fetch_sub(count, Ordering::Relaxed);
    }

    /// Places free; stale at once when other threads reserve.
    pub fn free(&self) -> usize {
        self.capacity.saturating_sub(self.taken())
    }

    /// Places taken; stale at once when other threads reserve.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether a place is free; stale at once when other threads reserve.
    pub fn has_room(&self) -> bool {
        self.free() > 0
    }

    /// Places in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// The end that any thread may push into.
#[derive(Debug)]
pub struct Producer<T> {
    sender: mpsc::Sender<T>,
    armed: Arc<AtomicBool>,
}

/// The owner's end.
#[derive(Debug)]
pub struct Consumer<T> {
    receiver: mpsc::Receiver<T>,
    armed: Arc<AtomicBool>,
}

/// A new ingress.
pub fn ingress<T>() -> (Producer<T>, Consumer<T>) {
    let (sender, receiver) = mpsc::channel();
    let armed = Arc::new(AtomicBool::new(false));
    (Producer { sender, armed: armed.clone() }, Consumer { receiver, armed })
}

impl<T> Producer<T> {
    /// Adds `item`; true when the caller has to wake the owner. Gives the item back when the owner is gone.
    pub fn push(&self, item: T) -> Result<bool, T> {
        match self.sender.send(item) {
            // ORDERING: AcqRel pairs with the owner's swap in `drain`: whoever sees `armed` lowered also sees that it was
            // lowered before that drain began, so the drain cannot have missed this item without a new wake-up.
            Ok(()) => Ok(!self.armed.swap(true, Ordering::AcqRel)),
            Err(refused) => Err(refused.0),
        }
    }
}

impl<T> Consumer<T> {
    /// Takes out what has been pushed.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        // ORDERING: see `push`. A plain load first keeps the common case, nothing pushed, free of a locked instruction.
        if self.armed.load(Ordering::Relaxed) {
            self.armed.swap(false, Ordering::AcqRel);
        }
        iter::from_fn(|| self.receiver.try_recv().ok())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn room_grants_what_there_is() {
        let room = Room::new(10);
        assert_eq!((room.reserve(7), room.reserve(7), room.reserve(1), room.reserve(0)), (7, 3, 0, 0));
        assert_eq!((room.taken(), room.has_room(), room.capacity()), (10, false, 10));
        room.release(2);
        assert_eq!((room.has_room(), room.reserve(usize::MAX)), (true, 2));
    }

    /// Threads that ask for more than there is never hold more than the capacity together.
    #[test]
    fn room_is_exact_among_threads() {
        let room = Room::new(8);
        let held = AtomicUsize::new(0);
        let cut = AtomicUsize::new(0);
        thread::scope(|scope| {
            for wanted in [1, 3, 5, usize::MAX] {
                let (room, held, cut) = (&room, &held, &cut);
                scope.spawn(move || {
                    for turn in 0..20_000 {
                        let granted = room.reserve(wanted);
                        assert!(held.fetch_add(granted, Ordering::SeqCst) + granted <= 8);
                        cut.fetch_add(usize::from(granted < wanted.min(8)), Ordering::Relaxed);
                        if turn % 64 == 0 {
                            thread::yield_now();
                        }
                        held.fetch_sub(granted, Ordering::SeqCst);
                        room.release(granted);
                    }
                });
            }
        });
        assert_eq!(room.taken(), 0);
        assert!(cut.into_inner() > 0, "the threads did not meet");
    }

    #[test]
    fn one_wake_up_a_batch() {
        let (producer, mut consumer) = ingress();
        assert_eq!((producer.push(1), producer.push(2)), (Ok(true), Ok(false)));
        assert_eq!(consumer.drain().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(consumer.drain().count(), 0);
        assert_eq!(producer.push(3), Ok(true));
        drop(consumer);
        assert_eq!(producer.push(4), Err(4));
    }

    /// Nothing is lost and no producer overtakes itself.
    #[test]
    fn items_of_each_thread_come_in_order() {
        const PRODUCERS: usize = 3;
        const EACH: usize = 10_000;
        let (producer, mut consumer) = ingress();
        let mut seen = [0; PRODUCERS];
        let has_drained = AtomicBool::new(false);
        thread::scope(|scope| {
            for index in 0..PRODUCERS {
                let (producer, has_drained) = (&producer, &has_drained);
                scope.spawn(move || {
                    for number in 0..EACH {
                        producer.push((index, number)).unwrap();
                        // Half of the items at least are pushed while the owner drains, on however busy a machine.
                        while number == EACH / 2 && !has_drained.load(Ordering::Relaxed) {
                            thread::yield_now();
                        }
                    }
                });
            }
            while seen.iter().sum::<usize>() < PRODUCERS * EACH {
                let batch: Vec<_> = consumer.drain().collect();
                has_drained.fetch_or(!batch.is_empty(), Ordering::Relaxed);
                for (index, number) in batch {
                    assert_eq!(number, seen[index]);
                    seen[index] += 1;
                }
            }
        });
        assert_eq!(consumer.drain().count(), 0);
    }

    /// An owner that acts only when it is asked to wake leaves no item behind: again and again a thread pushes two, the second while
    /// the first may be being drained, and goes on when both were.
    #[test]
    fn no_wake_up_is_lost() {
        let (producer, mut consumer) = ingress();
        let (asked, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let drained = AtomicUsize::new(0);
        let start = Instant::now();
        let wait_until = |done: &dyn Fn() -> bool| {
            while !(0..1000).any(|_| done()) {
                assert!(start.elapsed() < Duration::from_secs(20), "an item waits and nobody asked for a wake-up");
                thread::yield_now();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut pushed = 0;
                while start.elapsed() < Duration::from_millis(500) {
                    for gap in [0, pushed % 80] {
                        (0..gap).for_each(|_| std::hint::spin_loop());
                        if producer.push(()).unwrap() {
                            asked.store(true, Ordering::Release);
                        }
                    }
                    pushed += 2;
                    wait_until(&|| drained.load(Ordering::Acquire) == pushed);
                }
                is_over.store(true, Ordering::Release);
            });
            while !is_over.load(Ordering::Acquire) {
                wait_until(&|| asked.swap(false, Ordering::AcqRel) || is_over.load(Ordering::Acquire));
                drained.fetch_add(consumer.drain().count(), Ordering::Release);
            }
        });
        assert!(drained.into_inner() > 2, "the threads did not meet");
    }
}
