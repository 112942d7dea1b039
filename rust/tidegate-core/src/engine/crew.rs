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

#[derive(Debug, Default)]
pub(super) struct Crew {
    /// Asleep, the last one to fall asleep last; since when.
    parked: Vec<(u32, Instant)>,
    /// Hired and not gone home, asleep ones included.
    size: usize,
    /// Sum of the backends' concurrency.
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

impl Crew {
    pub(super) fn backend_added(&mut self, concurrency: Option<u32>) {
        self.most += concurrency.map_or(UNCAPPED, |cap| cap as usize);
    }
}

impl Engine {
    /// Whether a worker should be woken or hired: see [`staff`](Engine::staff).
    #[inline]
    pub fn wants_workers(&self) -> bool {
        self.may_run() && (!self.crew.parked.is_empty() || self.crew.size < self.crew.most)
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

    /// Who to wake, how many to hire, who to send home. They count as awake, hired, gone from now on.
    ///
    /// At most one more than attempts are running: while handlers suspend, the number doubles with each pump; where they do not, one worker
    /// does it all, and a worker that finds nothing costs ten requests.
    pub fn staff(&mut self, now: Instant) -> Staffing {
        let mut staffing = Staffing::default();
        if self.wants_workers() {
            let demand = self.demand(now).min(1 + self.ledger.leased as usize);
            let crew = &mut self.crew;
            let keep = crew.parked.len().saturating_sub(demand);
            staffing.wake = crew.parked.drain(keep..).rev().map(|(worker, _)| worker).collect();
            staffing.hire = (demand - staffing.wake.len()).min(crew.most - crew.size.min(crew.most));
            crew.size += staffing.hire;
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
