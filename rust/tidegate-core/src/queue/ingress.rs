//! The way in for other threads: reserve room, push, wake the owner once a batch.
//!
//! Ground rules: any thread may push and none ever blocks; only the owner drains. The list is the standard library's
//! multi-producer channel, which is lock-free. `armed` says that a wake-up is on its way: the owner lowers it *before*
//! it drains, a producer raises it *after* it pushed, so an item that the drain missed always finds it lowered and asks for a new one.
//! Not promised: order between producers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

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

    /// Places taken; stale at once when other threads reserve.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether a place is free; stale at once when other threads reserve.
    pub fn has_room(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.capacity
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
            Err(mpsc::SendError(item)) => Err(item),
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
        self.receiver.try_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

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
                    for _ in 0..10_000 {
                        let granted = room.reserve(wanted);
                        assert!(held.fetch_add(granted, Ordering::SeqCst) + granted <= 8);
                        cut.fetch_add(usize::from(granted < wanted.min(8)), Ordering::Relaxed);
                        thread::yield_now();
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

    /// Nothing is lost, no producer overtakes itself, and whoever sleeps until it is asked to wake never sleeps over an item.
    #[test]
    fn nothing_is_lost_among_threads() {
        const PRODUCERS: usize = 3;
        const EACH: usize = 20_000;
        let (producer, mut consumer) = ingress();
        // The bell stands for the loop's self-pipe: a wake-up that was asked for stays until it is seen.
        let (bell, ringing) = mpsc::channel::<()>();
        let mut seen = [0; PRODUCERS];
        let mut wake_ups = 0;
        thread::scope(|scope| {
            for index in 0..PRODUCERS {
                let (producer, bell) = (&producer, bell.clone());
                scope.spawn(move || {
                    for number in 0..EACH {
                        if producer.push((index, number)).unwrap() {
                            bell.send(()).unwrap();
                        }
                        if number % 64 == 0 {
                            thread::yield_now();
                        }
                    }
                });
            }
            while seen.iter().sum::<usize>() < PRODUCERS * EACH {
                let patience = std::time::Duration::from_secs(20);
                ringing.recv_timeout(patience).expect("an item waits and nobody asked for a wake-up");
                wake_ups += 1;
                for (index, number) in consumer.drain() {
                    assert_eq!(number, seen[index]);
                    seen[index] += 1;
                }
            }
        });
        assert_eq!(consumer.drain().count(), 0);
        assert!(wake_ups > 1, "the threads did not meet");
    }
}
