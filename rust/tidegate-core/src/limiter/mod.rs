//! Limits alone, without a scheduler: who wants to send asks, or waits in line.
//!
//! Any thread may call. A limiter that is one bucket is decided by one atomic word ([`SharedGcra`]) as long as nobody waits and nothing
//! is in flight; otherwise its owner, whoever holds the lock, has borrowed that word, and everybody meets there. All other limits are
//! always decided under the lock, which is held for as long as a [`Quota`](crate::limit::Quota) takes to answer.
//!
//! A unit is charged when it is admitted, and its clock starts when it is [`anchor`](Limiter::anchor)ed: at once by
//! [`try_acquire`](Limiter::try_acquire), and by the caller when it [`join`](Limiter::join)ed.
//!
//! Nothing here wakes anybody. What changes a line returns a [`Turn`]: who has been admitted by that, and who is to ask again when. To
//! ask is the business of the head of the line, so that one timer a line is enough.
//!
//! Not promised: that a `try_acquire` on one thread sees what another did a moment ago, or that somebody who joins while another thread
//! joins stands behind it.

mod line;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::hash::Hash;

use self::line::Line;
use crate::limit::{Eligible, Limit, Margin, Policy, SharedGcra};
use crate::sync::{Mutex, MutexGuard};
use crate::time::{Instant, Span};

/// So many keys are remembered before those that could be forgotten are looked for.
const CROWD: usize = 64;

/// What an operation did to a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Those who waited and are charged now, in order; each is to [`claim`](Limiter::claim) its permit.
    pub admitted: Vec<u64>,
    /// Those whose cost no limit can admit any more; they wait no longer.
    pub refused: Vec<u64>,
    /// The head of the line, and after which span it is to [`poll`](Limiter::poll), when that is news.
    pub next: Option<(u64, Span)>,
}

/// Why a limiter gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimiterError {
    /// The cost is larger than a limit can ever hold.
    CostExceedsBurst {
        /// What was asked for.
        cost: u32,
        /// The largest that is ever admitted.
        largest: u32,
    },
    /// A panic left it in the middle of something: a bug.
    Broken,
}

impl fmt::Display for LimiterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimiterError::CostExceedsBurst { cost, largest } => {
                write!(f, "a cost of {cost} is never admitted, the largest is {largest}")
            }
            LimiterError::Broken => f.write_str("a limiter has stopped after a panic"),
        }
    }
}

impl Error for LimiterError {}

/// Limits that are shared by all who call, and one instance of them for each key.
#[derive(Debug)]
pub struct Limiter<K> {
    /// The state of the calls without a key, when the limits are one bucket.
    shared: SharedGcra,
    kept: Mutex<Kept<K>>,
}

/// What its owner has to itself.
#[derive(Debug)]
struct Kept<K> {
    limits: Box<[Limit]>,
    margin: Margin,
    /// Of the calls without a key.
    common: Line,
    /// Of each key that is not as good as new.
    keyed: HashMap<K, Line>,
    /// With so many keys, those that can be forgotten are.
    crowd: usize,
    /// What the shared word was when it was borrowed; none while `common` is only a copy of it.
    borrowed: Option<Instant>,
}

impl<K: Hash + Eq> Limiter<K> {
    /// Limits of which nothing is used yet; without any, everything is admitted.
    ///
    /// A single bucket keeps only the ppm of `margin` back: one word has no place for the rest.
    ///
    /// # Panics
    /// When there are more than 65 535 limits.
    ///
    /// # Example
    /// ```
    /// use tidegate_core::limit::{Limit, Margin};
    /// use tidegate_core::limiter::Limiter;
    /// use tidegate_core::time::{Instant, Span};
    ///
    /// let limiter: Limiter<&str> = Limiter::new(&[Limit::window(1, Span::from_secs(1)).unwrap()], Margin::NONE);
    /// let at = |seconds| Instant::ORIGIN + Span::from_secs(seconds);
    /// assert_eq!(limiter.try_acquire(at(0), 1, None), Ok(true));
    /// assert_eq!(limiter.try_acquire(at(0), 1, None), Ok(false));
    /// assert_eq!(limiter.try_acquire(at(0), 1, Some("host")), Ok(true));
    /// assert_eq!(limiter.try_acquire(at(1), 1, None), Ok(true));
    /// ```
    pub fn new(limits: &[Limit], margin: Margin) -> Limiter<K> {
        let mut common = Line::new(limits, kept_back(limits, margin));
        let pace = pace(&mut common);
        let shared = SharedGcra::new(pace.map_or(Span::ZERO, |(interval, _)| interval), pace.map_or(1, |(_, burst)| burst));
        let borrowed = if pace.is_some() { None } else { Some(shared.borrow()) };
        let (limits, keyed) = (limits.into(), HashMap::new());
        Limiter { shared, kept: Mutex::new(Kept { limits, margin, common, keyed, crowd: CROWD, borrowed }) }
    }

    /// Charges `cost` units, at least 1, and starts their clocks, if they conform at `now` and nobody waits for them. True when it did.
    ///
    /// # Errors
    /// When the cost can never be admitted.
    #[inline]
    pub fn try_acquire(&self, now: Instant, cost: u32, key: Option<K>) -> Result<bool, LimiterError> {
        if key.is_none() {
            match self.shared.try_send(now, cost) {
                Some(Eligible::Now) => return Ok(true),
                Some(Eligible::Never) => return Err(LimiterError::CostExceedsBurst { cost, largest: self.shared.burst() }),
                Some(_) => return Ok(false),
                None => {}
            }
        }
        self.try_acquire_locked(now, cost, key)
    }

    /// Apart, so that nothing is laid out for it where one word decides.
    #[inline(never)]
    fn try_acquire_locked(&self, now: Instant, cost: u32, key: Option<K>) -> Result<bool, LimiterError> {
        self.with(now, key, |line| {
            let admitted = line.enter(now, cost)?;
            if admitted {
                line.anchor(now, cost);
            }
            Ok(admitted)
        })
    }

    /// As [`try_acquire`](Limiter::try_acquire), but the clocks wait to be started by [`anchor`](Limiter::anchor).
    ///
    /// # Errors
    /// When the cost can never be admitted.
    pub fn try_hold(&self, now: Instant, cost: u32, key: Option<K>) -> Result<bool, LimiterError> {
        self.with(now, key, |line| line.enter(now, cost))
    }

    /// As [`try_hold`](Limiter::try_hold); but when it does not, `waiter` stands in line from now on: a number that nobody else has, and larger
    /// than those that were given before. The head is told anew when to ask, in case that it is there no more.
    ///
    /// # Errors
    /// When the cost can never be admitted.
    pub fn join(&self, now: Instant, waiter: u64, cost: u32, key: Option<K>) -> Result<(bool, Turn), LimiterError> {
        self.with(now, key, |line| {
            if line.enter(now, cost)? {
                return Ok((true, Turn::default()));
            }
            line.stand(waiter, cost);
            Ok((false, line.asked(now)))
        })
    }

    /// The head of a line asks whether its time has come.
    ///
    /// # Errors
    /// [`LimiterError::Broken`] only.
    pub fn poll(&self, now: Instant, key: Option<K>) -> Result<Turn, LimiterError> {
        self.with(now, key, |line| Ok(line.asked(now)))
    }

    /// A waiter that was admitted takes its permit, and has its clock started at `now` if it is `anchored`.
    ///
    /// # Errors
    /// [`LimiterError::Broken`] only.
    pub fn claim(&self, now: Instant, waiter: u64, key: Option<K>, anchored: bool) -> Result<Turn, LimiterError> {
        self.with(now, key, |line| {
            if let Some(cost) = line.claim(waiter)
                && anchored
            {
                line.anchor(now, cost);
            }
            Ok(line.turn(now))
        })
    }

    /// A waiter gives up: it leaves the line, or gives back what it has been admitted to and has not claimed.
    ///
    /// # Errors
    /// [`LimiterError::Broken`] only.
    pub fn leave(&self, now: Instant, waiter: u64, key: Option<K>) -> Result<Turn, LimiterError> {
        self.with(now, key, |line| {
            line.leave(now, waiter);
            Ok(line.turn(now))
        })
    }

    /// Starts the clocks of `cost` units that were charged by [`join`](Limiter::join) or claimed: they have been sent by `now`.
    ///
    /// # Errors
    /// [`LimiterError::Broken`] only.
    pub fn anchor(&self, now: Instant, cost: u32, key: Option<K>) -> Result<Turn, LimiterError> {
        self.with(now, key, |line| {
            line.anchor(now, cost);
            Ok(line.turn(now))
        })
    }

    /// How long until `cost` units are admitted, for one who asks at `now`: behind all who wait, and as if what is in flight were anchored
    /// just now. A lower bound while something is, else exact if nobody else comes or leaves.
    ///
    /// # Errors
    /// When the cost can never be admitted.
    ///
    /// # Complexity
    /// Linear in those who wait.
    pub fn retry_after(&self, now: Instant, cost: u32, key: Option<K>) -> Result<Span, LimiterError> {
        if key.is_none() {
            match self.shared.next_eligible(now, cost) {
                Some(Eligible::Now) => return Ok(Span::ZERO),
                Some(Eligible::At(at)) => return Ok(at.since(now)),
                _ => {}
            }
        }
        self.with(now, key, |line| {
            line.check(cost)?;
            Ok(line.expected(now, cost).since(now))
        })
    }

    /// Has other limits from `now` on, for all who wait as well; what was sent counts against those too (see [`Quota::with_limits`](crate::limit::Quota::with_limits)).
    /// Returns what that did to each line.
    ///
    /// # Errors
    /// [`LimiterError::Broken`] only.
    ///
    /// # Panics
    /// When there are more than 65 535 limits.
    ///
    /// # Complexity
    /// Linear in the keys.
    pub fn set_limits(&self, now: Instant, limits: &[Limit]) -> Result<Vec<Turn>, LimiterError> {
        let mut guard = self.lock()?;
        self.borrow(&mut guard);
        let kept = &mut *guard;
        kept.limits = limits.into();
        let margin = kept_back(limits, kept.margin);
        let mut turns = Vec::new();
        for line in kept.keyed.values_mut().chain([&mut kept.common]) {
            line.set_limits(now, limits, margin);
            turns.push(line.turn(now));
        }
        if let Some((interval, burst)) = pace(&mut kept.common) {
            self.shared.set_pace(interval, burst);
        }
        self.give_back(now, kept);
        turns.retain(|turn| *turn != Turn::default());
        Ok(turns)
    }

    /// How many keys are remembered.
    ///
    /// # Errors
    /// [`LimiterError::Broken`] only.
    pub fn keys(&self) -> Result<usize, LimiterError> {
        self.lock().map(|kept| kept.keyed.len())
    }

    fn lock(&self) -> Result<MutexGuard<'_, Kept<K>>, LimiterError> {
        self.kept.lock().map_err(|_| LimiterError::Broken)
    }

    /// Runs `act` on the line of a key, as its only owner.
    fn with<T>(
        &self,
        now: Instant,
        key: Option<K>,
        act: impl FnOnce(&mut Line) -> Result<T, LimiterError>,
    ) -> Result<T, LimiterError> {
        let mut guard = self.lock()?;
        let kept = &mut *guard;
        let Some(key) = key else {
            self.borrow(kept);
            let out = act(&mut kept.common);
            self.give_back(now, kept);
            return out;
        };
        if kept.keyed.len() >= kept.crowd && !kept.keyed.contains_key(&key) {
            kept.keyed.retain(|_, line| !line.is_as_new(now));
            // The next look comes when as many have come as there are to look at.
            kept.crowd = 2 * kept.keyed.len() + CROWD;
        }
        let Kept { limits, margin, keyed, .. } = kept;
        act(keyed.entry(key).or_insert_with(|| Line::new(limits, kept_back(limits, *margin))))
    }

    /// Sees to it that `common` is what counts.
    fn borrow(&self, kept: &mut Kept<K>) {
        if kept.borrowed.is_none() {
            let tat = self.shared.borrow();
            kept.borrowed = Some(tat);
            if let Some(bucket) = kept.common.quota.only_bucket() {
                bucket.resume(tat);
            }
        }
    }

    /// Lets the shared word count again, if it can say all that there is to say.
    fn give_back(&self, now: Instant, kept: &mut Kept<K>) {
        let Some(borrowed) = kept.borrowed.filter(|_| kept.common.is_quiet()) else { return };
        let settled = kept.common.quota.only_bucket().and_then(|bucket| bucket.settled(now));
        let Some(tat) = settled.map(|tat| tat.max(now)) else { return };
        // The word must grow. Where nothing was charged, or a faster pace has brought the TAT forward, it does so when time passes.
        if tat > borrowed {
            self.shared.give_back(tat);
            kept.borrowed = None;
        }
    }
}

/// The margin that these limits keep.
fn kept_back(limits: &[Limit], margin: Margin) -> Margin {
    use crate::limit::Kind::{Bucket, Leaky};
    let is_bucket = |limit: &Limit| matches!(limit.kind(), Bucket | Leaky);
    if limits.len() == 1 && limits.iter().all(is_bucket) { Margin::new(Span::ZERO, margin.ppm()) } else { margin }
}

/// Emission interval and burst of a line whose limits are one bucket.
fn pace(line: &mut Line) -> Option<(Span, u32)> {
    line.quota.only_bucket().map(|bucket| (bucket.interval(), bucket.capacity()))
}
