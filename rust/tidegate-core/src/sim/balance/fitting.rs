//! One queue, by deadline, for a client that knows how long backends take: each takes the most urgent request whose deadline it still meets.

use std::collections::BTreeSet;

use super::wire::{Client, Message, Reply, Wire};
use super::{Arrival, Scenario, Site};
use crate::limit::{Eligible, Margin, Quota};
use crate::time::{Instant, Span};

/// The normal distribution is below this 99 times of 100.
const NINETY_NINE: f64 = 2.326;

/// A client with one queue. The limits are those of the engine.
pub(super) struct Fitting {
    /// By deadline.
    queue: BTreeSet<(Instant, u32)>,
    lanes: Vec<Lane>,
    wake: Option<Instant>,
}

struct Lane {
    quota: Quota,
    /// Longest round trip of 99 in 100.
    latency: Span,
}

impl Fitting {
    pub(super) fn new() -> Fitting {
        let latency = |site: &Site| site.median.as_nanos() as f64 * (NINETY_NINE * Scenario::SIGMA).exp();
        let lane = |site: &Site| Lane {
            quota: Quota::new(&[site.limit()], Margin::default()),
            latency: Span::from_nanos(latency(site) as u64),
        };
        Fitting { queue: BTreeSet::new(), lanes: Site::ALL.iter().map(lane).collect(), wake: None }
    }

    /// The most urgent request that a lane with room meets, and the fastest such lane.
    fn next(&mut self, now: Instant) -> Option<((Instant, u32), usize)> {
        let mut next: Option<((Instant, u32), Span, usize)> = None;
        for (site, Lane { quota, latency }) in self.lanes.iter().enumerate() {
            let Some(&request) = self.queue.range((now + *latency, 0)..).next() else { continue };
            match quota.next_eligible(now, 1).eligible {
                Eligible::Now if next.is_none_or(|(least, fastest, _)| (request, *latency) < (least, fastest)) => {
                    next = Some((request, *latency, site));
                }
                Eligible::At(at) | Eligible::Closed(at) => self.wake = self.wake.into_iter().chain([at]).min(),
                _ => {}
            }
        }
        next.map(|(request, _, site)| (request, site))
    }
}

impl Client for Fitting {
    fn arrived(&mut self, _: Instant, nth: u32, arrival: Arrival) {
        self.queue.insert((arrival.deadline, nth));
    }

    fn answered(&mut self, now: Instant, message: Message, reply: Reply) {
        let quota = &mut self.lanes[message.site].quota;
        quota.ack_sent(now, message.sent, 1);
        match reply {
            Reply::Served => drop(quota.accepted(message.sent)),
            Reply::Rejected(wait) => drop(quota.rejected(now, message.sent, wait)),
        }
    }

    fn send(&mut self, now: Instant, wire: &mut Wire) {
        self.queue = self.queue.split_off(&(now, 0));
        self.wake = None;
        while let Some((request, site)) = self.next(now) {
            self.queue.remove(&request);
            self.lanes[site].quota.send(now, 1);
            wire.send(now, request.1, site, 0);
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        self.wake
    }
}
