//! GCRA in one word that any thread may advance.
//!
//! Ground rules. The word is the theoretical arrival time (TAT). Any thread may advance it by [`try_send`](SharedGcra::try_send), with one
//! compare-and-swap and without ever waiting. One owner, who sees to it by a lock of its own that there is only one, may *borrow* the
//! word: until it is given back everybody else is told to go and ask the owner, who meanwhile may let others wait in line, keep units
//! that are in flight, or change the pace.
//!
//! The word only grows: an admission adds at least one emission interval of at least a nanosecond, and what is given back is larger than
//! what was borrowed. So it never comes back to a value that it had, and whoever swaps it knows that it was not borrowed since it was
//! read, and hence that the pace, which changes only while it is borrowed, belongs to it.
//!
//! Not promised: that a refusal is still right when it is heard.
//!
//! Source: ITU-T I.371, virtual scheduling; the single atomic is governor's, the borrowing is ours.

use super::Eligible;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::time::{Instant, Span};

/// In place of the TAT: the owner has it.
const BORROWED: u64 = u64::MAX;

/// A bucket whose clock starts at the send: `burst` units at once, and one more every `interval`.
#[derive(Debug)]
pub struct SharedGcra {
    /// When the next unit is due if all come evenly, in nanoseconds; only grows. Or [`BORROWED`].
    tat: AtomicU64,
    /// Nanoseconds of one unit, at least 1. Written while the word is borrowed.
    interval: AtomicU64,
    /// At least 1. Written while the word is borrowed.
    burst: AtomicU32,
}

impl SharedGcra {
    /// A full bucket. `interval` is taken for at least 1 ns.
    pub fn new(interval: Span, burst: u32) -> SharedGcra {
        SharedGcra {
            tat: AtomicU64::new(Instant::ORIGIN.as_nanos()),
            interval: AtomicU64::new(interval.as_nanos().max(1)),
            burst: AtomicU32::new(burst),
        }
    }

    /// Charges `cost` units, at least 1, if they conform at `now`: `Now` when they did, else when they will, if nothing else happens.
    /// Nothing while the word is borrowed.
    ///
    /// # Memory ordering
    /// What is read of the pace is of the time of the TAT: it is written (Release) after the word was borrowed and read (Acquire) after
    /// the TAT, so whoever reads too new a pace finds that the TAT has changed. Admissions guard no other memory.
    #[inline]
    pub fn try_send(&self, now: Instant, cost: u32) -> Option<Eligible> {
        self.decide(now, cost, true)
    }

    /// When `cost` units conform, asked at `now`; changes nothing. Nothing while the word is borrowed.
    pub fn next_eligible(&self, now: Instant, cost: u32) -> Option<Eligible> {
        self.decide(now, cost, false)
    }

    #[inline]
    fn decide(&self, now: Instant, cost: u32, charge: bool) -> Option<Eligible> {
        // ORDERING: Acquire pairs with `give_back`.
        let mut tat = self.tat.load(Ordering::Acquire);
        while tat != BORROWED {
            // ORDERING: Acquire pairs with `set_pace`.
            let interval = Span::from_nanos(self.interval.load(Ordering::Acquire));
            let burst = self.burst.load(Ordering::Acquire);
            let due = Instant::from_nanos(tat);
            let eligible = match burst.checked_sub(cost) {
                None => Eligible::Never,
                Some(room) => match due - interval.times(u64::from(room)) {
                    earliest if earliest <= now => Eligible::Now,
                    earliest => Eligible::At(earliest),
                },
            };
            let found = if eligible == Eligible::Now && charge {
                let after = due.max(now) + interval.times(u64::from(cost));
                // ORDERING: Relaxed on success; whoever reads what is written here also sees what the last `give_back` released.
                self.tat.compare_exchange_weak(tat, after.as_nanos(), Ordering::Relaxed, Ordering::Acquire)
            } else {
                // ORDERING: Acquire, since the loop goes on with it.
                let current = self.tat.load(Ordering::Acquire);
                if current == tat { Ok(tat) } else { Err(current) }
            };
            match found {
                Ok(_) => return Some(eligible),
                Err(current) => tat = current,
            }
        }
        None
    }

    /// The largest cost that can ever be admitted; stale at once when the pace is changed.
    pub fn burst(&self) -> u32 {
        self.burst.load(Ordering::Acquire)
    }

    /// Takes the TAT away. For the owner, who has not borrowed it yet.
    pub fn borrow(&self) -> Instant {
        // ORDERING: Relaxed; what comes after it is released by `set_pace` and `give_back`, and owners meet under their lock.
        let tat = self.tat.swap(BORROWED, Ordering::Relaxed);
        debug_assert_ne!(tat, BORROWED, "borrowed twice");
        Instant::from_nanos(tat)
    }

    /// Another pace. For the owner, while the word is borrowed.
    pub fn set_pace(&self, interval: Span, burst: u32) {
        // ORDERING: Release, see `try_send`.
        self.interval.store(interval.as_nanos().max(1), Ordering::Release);
        self.burst.store(burst, Ordering::Release);
    }

    /// Gives the word back, later than it was when it was borrowed. For the owner, while it is borrowed.
    pub fn give_back(&self, tat: Instant) {
        debug_assert_ne!(tat.as_nanos(), BORROWED);
        // ORDERING: Release pairs with the loads of `decide`: who sees this TAT sees its pace.
        self.tat.store(tat.as_nanos(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;
    use crate::limit::{AckGcra, Margin, Policy};

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_one_an_interval() {
        let bucket = SharedGcra::new(Span::from_nanos(100), 3);
        assert_eq!(bucket.try_send(at(0), 4), Some(Eligible::Never));
        assert_eq!(bucket.try_send(at(0), 3), Some(Eligible::Now));
        assert_eq!(bucket.try_send(at(0), 1), Some(Eligible::At(at(100))));
        assert_eq!(bucket.next_eligible(at(100), 1), Some(Eligible::Now));
        assert_eq!(bucket.try_send(at(100), 1), Some(Eligible::Now));
        assert_eq!(bucket.try_send(at(199), 1), Some(Eligible::At(at(200))));
        assert_eq!(bucket.try_send(at(1000), 2), Some(Eligible::Now));
        assert_eq!(bucket.try_send(at(1000), 2), Some(Eligible::At(at(1100))));
    }

    #[test]
    fn while_it_is_borrowed_it_says_nothing() {
        let bucket = SharedGcra::new(Span::from_nanos(100), 1);
        assert_eq!(bucket.try_send(at(5), 1), Some(Eligible::Now));
        assert_eq!(bucket.borrow(), at(105));
        assert_eq!((bucket.try_send(at(900), 1), bucket.next_eligible(at(900), 1)), (None, None));
        bucket.set_pace(Span::from_nanos(10), 2);
        bucket.give_back(at(900));
        assert_eq!(bucket.burst(), 2);
        assert_eq!(bucket.try_send(at(900), 2), Some(Eligible::Now));
        assert_eq!(bucket.try_send(at(900), 1), Some(Eligible::At(at(910))));
    }

    /// It decides as the bucket with one owner whose messages are acknowledged at once.
    #[test]
    fn agrees_with_the_bucket_of_one_owner() {
        let (period, mut dice) = (Span::from_nanos(1000), 7_u64);
        for burst in 1..6 {
            let shared = SharedGcra::new(Span::from_nanos(100), burst);
            let mut own = AckGcra::new(10, period, burst, Margin::NONE);
            let mut now = Instant::ORIGIN;
            for _ in 0..2000 {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (pause, cost) = ((dice >> 33) % 230, (dice >> 60) as u32 % 6 + 1);
                now = now + Span::from_nanos(pause);
                let eligible = own.next_eligible(now, cost);
                if eligible == Eligible::Now {
                    own.send(now, cost);
                    own.ack(now, cost);
                }
                assert_eq!(shared.try_send(now, cost), Some(eligible));
            }
        }
    }

    /// Threads that all ask at one instant get the burst together and not a unit more.
    #[test]
    fn threads_share_exactly_the_burst() {
        let bucket = SharedGcra::new(Span::from_secs(1), 5000);
        let sent = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if bucket.try_send(at(0), 1) == Some(Eligible::Now) {
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(sent.into_inner(), 5000);
    }
}
