//! The workers that run handlers: how many there should be, who sleeps, who goes home.

use super::Engine;
use crate::time::{Instant, Span};

/// A worker that has waited this long for work goes home.
const IDLE: Span = Span::from_secs(10);
/// Workers for a backend without a concurrency cap.
const UNCAPPED: usize = 1000;
/// A worker whose handlers do not suspend lets others run after this many requests ...
const SLICE_REQUESTS: u32 = 16;
/// ... and this long.
const SLICE: Span = Span::from_millis(1);

/// Workers that a fresh engine calls at once.
const FIRST_CALL: usize = 16;

#[derive(Debug)]
pub(super) struct Crew {
    /// Asleep, the last one to fall asleep last; since when.
    parked: Vec<(u32, Instant)>,
    /// Called, and not come yet.
    coming: usize,
    /// Most to call at once. One more with each that found work, half with each that found none: where handlers do not suspend, one
    /// worker has done it all before the next one comes.
    call: usize,
    /// Hired and not gone home, asleep ones included.
    size: usize,
    /// Sum of the accounts' concurrency.
    most: usize,
}

/// What to do about workers now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Staffing {
    /// These may find work: last asleep, first woken.
    pub wake: Vec<u32>,
    /// So many more could find work.
    pub hire: usize,
    /// These have waited for too long.
    pub dismiss: Vec<u32>,
}

/// How long one worker has kept the loop to itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slice {
    since: Instant,
    requests: u32,
}

impl Slice {
    /// Starts anew: others have had their turn.
    pub fn restart(&mut self, now: Instant) {
        *self = Slice { since: now, requests: 0 };
    }

    /// Counts one request; true when others should have their turn before the next.
    #[inline]
    pub fn is_over(&mut self, now: Instant) -> bool {
        self.requests += 1;
        self.requests >= SLICE_REQUESTS && now.since(self.since) >= SLICE
    }
}

impl Default for Crew {
    fn default() -> Crew {
        Crew { parked: Vec::new(), coming: 0, call: FIRST_CALL, size: 0, most: 0 }
    }
}

impl Crew {
    pub(super) fn accounts_added(&mut self, concurrency: Option<u32>, count: u32) {
        self.most += concurrency.map_or(UNCAPPED, |cap| cap as usize * count as usize);
    }
}

impl Engine {
    /// Whether a worker should be woken or hired: see [`staff`](Engine::staff).
    ///
    /// Not before those that were called have [come](Engine::worker_came).
    #[inline]
    pub fn wants_workers(&self) -> bool {
        let crew = &self.crew;
        crew.coming == 0 && (!crew.parked.is_empty() || crew.size < crew.most) && self.may_run()
    }

    /// A worker that [`staff`](Engine::staff) called has come, and `found` an attempt to run or none. Also for one that will never come.
    pub fn worker_came(&mut self, found: bool) {
        let crew = &mut self.crew;
        crew.coming = crew.coming.saturating_sub(1);
        crew.call = if found { (crew.call + 1).min(crew.most.max(1)) } else { (crew.call / 2).max(1) };
    }

    /// A worker found nothing to do and sleeps until it is named by [`staff`](Engine::staff).
    pub fn park(&mut self, now: Instant, worker: u32) {
        self.crew.parked.push((worker, now));
    }

    /// A worker has ended by itself, awake or asleep.
    pub fn worker_left(&mut self, worker: u32) {
        self.crew.parked.retain(|&(parked, _)| parked != worker);
        self.crew.size -= 1;
    }

    /// Who to wake, how many to hire, who to send home. They count as awake, hired, gone from now on. Those to wake or hire are to
    /// [come](Engine::worker_came).
    pub fn staff(&mut self, now: Instant) -> Staffing {
        let mut staffing = Staffing::default();
        if self.wants_workers() {
            let demand = self.demand(now).min(self.crew.call);
            let crew = &mut self.crew;
            let keep = crew.parked.len().saturating_sub(demand);
            staffing.wake = crew.parked.drain(keep..).rev().map(|(worker, _)| worker).collect();
            staffing.hire = (demand - staffing.wake.len()).min(crew.most - crew.size.min(crew.most));
            crew.size += staffing.hire;
            crew.coming = staffing.wake.len() + staffing.hire;
        }
        let crew = &mut self.crew;
        // The longest asleep come first.
        let idle = crew.parked.iter().take_while(|(_, since)| now.since(*since) >= IDLE).count();
        staffing.dismiss = crew.parked.drain(..idle).map(|(worker, _)| worker).collect();
        crew.size -= idle;
        staffing
    }

    /// Workers hired, asleep ones included.
    pub fn workers(&self) -> usize {
        self.crew.size
    }
}
