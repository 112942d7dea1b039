//! Models of what several threads share: loom runs each with every interleaving and every reordering that the memory model allows, two
//! preemptions deep. Only with `RUSTFLAGS="--cfg loom"`; see `make prove`.

#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use loom::thread;
use tidegate_core::limit::{Eligible, Limit, Margin, SharedGcra};
use tidegate_core::limiter::Limiter;
use tidegate_core::queue::ingress::{Room, ingress};
use tidegate_core::time::{Instant, Span};

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

/// Two preemptions find what needs no more than that, which is what is known to occur.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(run);
}

// ---- The way in

/// However reservations and releases meet, no more is ever held than there is, and in the end nothing is.
#[test]
fn room_is_never_overdrawn() {
    model(|| {
        let room = Room::new(2);
        let held = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = [1, 2]
            .into_iter()
            .map(|wanted| {
                let (room, held) = (room.clone(), held.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        let granted = room.reserve(wanted);
                        assert!(held.fetch_add(granted, Ordering::SeqCst) + granted <= 2);
                        held.fetch_sub(granted, Ordering::SeqCst);
                        room.release(granted);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(room.taken(), 0);
    });
}

/// A place that is free is not refused: of two who want the only one, exactly one gets it.
#[test]
fn room_is_not_refused_while_it_is_there() {
    model(|| {
        let room = Room::new(1);
        let other = room.clone();
        let thread = thread::spawn(move || other.reserve(1));
        let granted = room.reserve(1) + thread.join().unwrap();
        assert_eq!((granted, room.taken()), (1, 1));
    });
}

/// An owner that drains only when it was asked to wake leaves no item behind: whenever nobody is left who would ask, nothing is left.
#[test]
fn no_wake_up_is_lost() {
    model(|| {
        let (producer, mut consumer) = ingress();
        let producer = Arc::new(producer);
        let wakes = Arc::new(AtomicUsize::new(0));
        let producers: Vec<_> = (0..2)
            .map(|number| {
                let (producer, wakes) = (producer.clone(), wakes.clone());
                thread::spawn(move || {
                    if producer.push(number).unwrap() {
                        wakes.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let (mut heard, mut seen) = (0, 0);
        let mut serve = |wakes: usize| {
            if wakes > heard {
                heard = wakes;
                seen += consumer.drain().count();
            }
            seen
        };
        serve(wakes.load(Ordering::SeqCst));
        producers.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(serve(wakes.load(Ordering::SeqCst)), 2);
    });
}

/// What an item refers to is seen by who takes it out, and a place that was reserved for it is given back once.
#[test]
fn a_request_comes_in_with_its_place() {
    model(|| {
        let room = Room::new(1);
        let (producer, mut consumer) = ingress();
        let written = Arc::new(AtomicU32::new(0));
        let thread = {
            let (room, written) = (room.clone(), written.clone());
            thread::spawn(move || {
                if room.reserve(1) == 1 {
                    written.store(7, Ordering::Relaxed);
                    producer.push(()).unwrap();
                }
            })
        };
        let mine = room.reserve(1);
        let items = consumer.drain().count();
        assert!(items == 0 || written.load(Ordering::Relaxed) == 7);
        assert!(mine + items <= 1);
        room.release(mine + items);
        thread.join().unwrap();
        room.release(consumer.drain().count());
        assert_eq!(room.taken(), 0);
    });
}

// ---- The bucket in one word

/// Threads that ask at one instant get the burst together and not a unit more.
#[test]
fn a_shared_bucket_gives_exactly_its_burst() {
    model(|| {
        let bucket = Arc::new(SharedGcra::new(Span::from_nanos(100), 3));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let bucket = bucket.clone();
                thread::spawn(move || (0..2).filter(|_| bucket.try_send(at(0), 1) == Some(Eligible::Now)).count())
            })
            .collect();
        let sent: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(sent, 3);
        assert_eq!(bucket.try_send(at(100), 1), Some(Eligible::Now));
        assert_eq!(bucket.try_send(at(100), 1), Some(Eligible::At(at(200))));
    });
}

/// Nobody decides by the pace of another time: from 10 ns and a burst of 1 to 1000 ns and a burst of 3, a cost of 3 is charged as 3000
/// or not at all, never as 30.
#[test]
fn a_pace_belongs_to_its_word() {
    model(|| {
        let bucket = Arc::new(SharedGcra::new(Span::from_nanos(10), 1));
        let asking = bucket.clone();
        let thread = thread::spawn(move || asking.try_send(at(5), 3));
        assert_eq!(bucket.borrow(), Instant::ORIGIN);
        bucket.set_pace(Span::from_nanos(1000), 3);
        bucket.give_back(at(5));
        let answer = thread.join().unwrap();
        assert!(matches!(answer, None | Some(Eligible::Never | Eligible::Now)), "{answer:?}");
        let tat = bucket.borrow();
        assert_eq!(tat, if answer == Some(Eligible::Now) { at(3005) } else { at(5) });
    });
}

/// Nor is anybody refused by it: of 1000 ns with a burst of 2, and 10 ns with a burst of 3, no answer is made of one and the other, be it
/// that the word is read, or found to have changed when it was to be swapped.
#[test]
fn a_refusal_belongs_to_its_word() {
    for (now, before) in [(5, Eligible::At(at(1500))), (2000, Eligible::Now)] {
        model(move || {
            let bucket = Arc::new(SharedGcra::new(Span::from_nanos(1000), 2));
            bucket.borrow();
            bucket.give_back(at(2500));
            let asking = bucket.clone();
            let thread = thread::spawn(move || asking.try_send(at(now), 1));
            bucket.borrow();
            bucket.set_pace(Span::from_nanos(10), 3);
            bucket.give_back(at(9000));
            let answer = thread.join().unwrap();
            let known = [None, Some(before), Some(Eligible::At(at(8980)))];
            assert!(known.contains(&answer), "{answer:?}");
        });
    }
}

// ---- The limiter: the word, its owner, and the line

fn bucket(burst: u32) -> Limiter<u8> {
    Limiter::new(&[Limit::bucket(1, Span::from_nanos(100), burst).unwrap()], Margin::NONE)
}

/// Who holds a unit until its clock starts borrows the word; whoever asks meanwhile, by whatever way, shares the same burst.
#[test]
fn a_borrowed_bucket_gives_exactly_its_burst() {
    model(|| {
        let limiter = Arc::new(bucket(2));
        let asking = limiter.clone();
        let thread = thread::spawn(move || (0..2).filter(|_| asking.try_acquire(at(0), 1, None) == Ok(true)).count());
        let (held, _) = limiter.join(at(0), 1, 1, None).unwrap();
        limiter.anchor(at(0), u32::from(held), None).unwrap();
        let sent = thread.join().unwrap();
        // One who stands in line is admitted when its time has come, and the word is whole again after.
        if !held {
            assert_eq!(limiter.poll(at(100), None).unwrap().admitted, [1]);
            limiter.claim(at(100), 1, None, true).unwrap();
        }
        assert_eq!(sent + usize::from(held), 2);
        assert_eq!(limiter.try_acquire(at(500), 2, None), Ok(true));
        assert_eq!(limiter.try_acquire(at(500), 1, None), Ok(false));
    });
}

/// Nobody overtakes who stands in line: the unit that comes is the waiter's, whoever asks at that instant.
#[test]
fn nobody_overtakes_the_line() {
    model(|| {
        let limiter = Arc::new(bucket(1));
        assert_eq!(limiter.try_acquire(at(0), 1, None), Ok(true));
        let (admitted, turn) = limiter.join(at(0), 1, 1, None).unwrap();
        assert_eq!((admitted, turn.next), (false, Some((1, Span::from_nanos(100)))));
        limiter.join(at(0), 2, 1, None).unwrap();
        let asking = limiter.clone();
        let thread = thread::spawn(move || [100, 200].map(|nanos| asking.try_acquire(at(nanos), 1, None)));
        for waiter in [1, 2] {
            let turn = limiter.poll(at(100 * waiter), None).unwrap();
            assert_eq!(turn.admitted, [waiter]);
            limiter.claim(at(100 * waiter), waiter, None, true).unwrap();
        }
        assert_eq!(thread.join().unwrap(), [Ok(false), Ok(false)]);
        assert_eq!(limiter.try_acquire(at(300), 1, None), Ok(true));
    });
}

/// A change of limits reaches who asks meanwhile: it is decided and charged by the old limits or by the new ones, and if by the old, before.
#[test]
fn a_change_of_limits_meets_a_caller() {
    let limit = |amount, burst| Limit::bucket(amount, Span::from_nanos(5000), burst).unwrap();
    model(move || {
        let limiter = Arc::new(Limiter::<u8>::new(&[limit(50, 1)], Margin::NONE));
        let asking = limiter.clone();
        let thread = thread::spawn(move || (0..3).filter(|_| asking.try_acquire(at(0), 1, None) == Ok(true)).count());
        limiter.set_limits(at(0), &[limit(50, 2)]).unwrap();
        let sent = thread.join().unwrap();
        let rest = (0..3).filter(|_| limiter.try_acquire(at(0), 1, None) == Ok(true)).count();
        assert_eq!(sent + rest, 2);
    });
    model(move || {
        let limiter = Arc::new(Limiter::<u8>::new(&[limit(50, 1)], Margin::NONE));
        let asking = limiter.clone();
        let thread = thread::spawn(move || asking.try_acquire(at(0), 1, None));
        limiter.set_limits(at(0), &[limit(1, 1)]).unwrap();
        assert_eq!(thread.join().unwrap(), Ok(true));
        // Charged before, it is as good as a whole interval of the new pace.
        assert_eq!(limiter.try_acquire(at(4999), 1, None), Ok(false));
        assert_eq!(limiter.try_acquire(at(5000), 1, None), Ok(true));
    });
}
