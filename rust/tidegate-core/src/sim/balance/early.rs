//! Balancers that choose a backend when a request comes: each backend has a queue of its own, first come first served.

use std::collections::VecDeque;

use super::super::Dice;
use super::wire::{Client, Message, Reply, Wire};
use super::{Arrival, Site};
use crate::limit::{Eligible, Margin, Quota};
use crate::time::{Instant, Span};

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One after the other.
    RoundRobin,
    /// At random, by what each admits.
    Weighted,
    /// Of two at random, the one with fewer requests that wait or run.
    LeastOfTwo,
    /// Of two at random, the one with less latency, as [`Latency`] has it, times requests.
    FastestOfTwo,
    /// Of all, the same.
    Fastest,
    /// Where its answer is expected first, from the queue, the limit and the median latency of each.
    EarliestFinish,
}

/// Peak EWMA: grows at once and decays slowly.
///
/// Source: the load metric of Finagle's `PeakEwma`, 10 s.
#[derive(Clone, Copy, Debug)]
struct Latency {
    nanos: f64,
    at: Instant,
}

impl Latency {
    const DECAY: f64 = 10e9;

    fn saw(&mut self, now: Instant, latency: Span) {
        let latency = latency.as_nanos() as f64;
        let weight = (-(now.since(self.at).as_nanos() as f64) / Latency::DECAY).exp();
        self.nanos = if latency > self.nanos { latency } else { self.nanos * weight + latency * (1.0 - weight) };
        self.at = now;
    }
}

struct Lane {
    site: Site,
    quota: Quota,
    /// Requests, and when each came.
    waiting: VecDeque<(u32, Instant)>,
    /// Requests that wait or run.
    outstanding: u32,
    latency: Latency,
    wake: Option<Instant>,
}

/// A client with one queue a backend. The limits are those of the engine, each lane with its own.
pub(super) struct Early {
    choice: Choice,
    /// It sends nothing whose deadline has passed.
    drops: bool,
    deadlines: Vec<Instant>,
    lanes: Vec<Lane>,
    dice: Dice,
    came: Vec<Instant>,
}

impl Early {
    pub(super) fn new(choice: Choice, drops: bool, seed: u64) -> Early {
        let lane = |site: &Site| Lane {
            site: *site,
            quota: Quota::new(&[site.limit()], Margin::default()),
            waiting: VecDeque::new(),
            outstanding: 0,
            latency: Latency { nanos: site.median.as_nanos() as f64, at: Instant::ORIGIN },
            wake: None,
        };
        let lanes = Site::ALL.iter().map(lane).collect();
        Early { choice, drops, deadlines: Vec::new(), lanes, dice: Dice::new(!seed), came: Vec::new() }
    }

    fn choose(&mut self, now: Instant, nth: u32) -> usize {
        let count = self.lanes.len();
        let all = 0..count;
        match self.choice {
            Choice::RoundRobin => nth as usize % count,
            Choice::Weighted => {
                let mut left = self.dice.share() * f64::from(self.lanes.iter().map(|lane| lane.site.rate).sum::<u32>());
                let reached = |lane: &Lane| {
                    left -= f64::from(lane.site.rate);
                    left < 0.0
                };
                self.lanes.iter().position(reached).unwrap_or(0)
            }
            Choice::LeastOfTwo => {
                let two = self.two();
                self.least(two, |lane| f64::from(lane.outstanding))
            }
            Choice::FastestOfTwo => {
                let two = self.two();
                self.least(two, |lane| lane.latency.nanos * f64::from(lane.outstanding + 1))
            }
            Choice::Fastest => self.least(all, |lane| lane.latency.nanos * f64::from(lane.outstanding + 1)),
            Choice::EarliestFinish => self.least(all, |lane| lane.finish(now)),
        }
    }

    fn two(&mut self) -> impl Iterator<Item = usize> + use<> {
        let count = self.lanes.len() as u64;
        let first = self.dice.next_u64() % count;
        let second = (first + 1 + self.dice.next_u64() % (count - 1)) % count;
        [first as usize, second as usize].into_iter()
    }

    fn least(&self, among: impl Iterator<Item = usize>, load: impl Fn(&Lane) -> f64) -> usize {
        let of = |lane: &usize| load(&self.lanes[*lane]);
        among.min_by(|one, other| of(one).total_cmp(&of(other))).expect("there are lanes")
    }
}

impl Lane {
    /// When a request that joins now is answered, in nanoseconds.
    fn finish(&self, now: Instant) -> f64 {
        let (rate, burst, median) = (f64::from(self.site.rate), f64::from(self.site.burst), self.site.median.as_nanos() as f64);
        let first = match self.quota.next_eligible(now, 1).eligible {
            Eligible::At(at) | Eligible::Closed(at) => at.max(now).as_nanos() as f64,
            Eligible::OnAck => now.as_nanos() as f64 + median,
            Eligible::Now | Eligible::Never => now.as_nanos() as f64,
        };
        // A unit is away for its round trip.
        let interval = (1e9 / rate).max((median + 1e9 / rate) / burst);
        let ahead = (self.waiting.len() as f64 + 1.0 - f64::from(self.quota.headroom(now))).max(0.0);
        let start = if self.waiting.is_empty() { first } else { first + ahead * interval };
        start + median
    }
}

impl Client for Early {
    fn arrived(&mut self, now: Instant, nth: u32, arrival: Arrival) {
        let lane = self.choose(now, nth);
        self.deadlines.push(arrival.deadline);
        self.came.push(now);
        self.lanes[lane].waiting.push_back((nth, now));
        self.lanes[lane].outstanding += 1;
    }

    fn answered(&mut self, now: Instant, message: Message, reply: Reply) {
        let lane = &mut self.lanes[message.site];
        lane.quota.ack_sent(now, message.sent, 1);
        let came = self.came[message.request as usize];
        match reply {
            Reply::Served => {
                lane.quota.accepted(message.sent);
                lane.outstanding -= 1;
                lane.latency.saw(now, now.since(came));
            }
            Reply::Rejected(wait) => {
                lane.quota.rejected(now, message.sent, wait);
                lane.waiting.push_front((message.request, came));
            }
        }
    }

    fn send(&mut self, now: Instant, wire: &mut Wire) {
        for (site, lane) in self.lanes.iter_mut().enumerate() {
            lane.wake = None;
            while let Some(&(request, _)) = lane.waiting.front() {
                if self.drops && self.deadlines[request as usize] <= now {
                    lane.waiting.pop_front();
                    lane.outstanding -= 1;
                    continue;
                }
                match lane.quota.next_eligible(now, 1).eligible {
                    Eligible::Now => {}
                    Eligible::At(at) | Eligible::Closed(at) => {
                        lane.wake = Some(at);
                        break;
                    }
                    Eligible::OnAck | Eligible::Never => break,
                }
                lane.waiting.pop_front();
                lane.quota.send(now, 1);
                wire.send(now, request, site, 0);
            }
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|lane| lane.wake).min()
    }
}
