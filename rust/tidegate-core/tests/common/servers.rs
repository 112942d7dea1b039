//! A strict server for a limit.

use tidegate_core::limit::{Kind, Limit};
use tidegate_core::sim::{self, Rule, Verdict};
use tidegate_core::time::{Instant, Span};

pub(crate) struct Server(sim::Server);

impl Server {
    /// One of the servers that count as `limit` says.
    pub(crate) fn of(limit: &Limit, which: u8, phase: u64) -> Server {
        let (amount, period, burst) = (limit.amount(), limit.period(), limit.burst());
        let phase = Span::from_nanos(phase);
        let windows = |which: u8| match which % 3 {
            0 => Rule::log(amount, period),
            1 => Rule::anchored(amount, period),
            _ => Rule::aligned(amount, period, phase),
        };
        let buckets = |which: u8, burst| match which % 2 {
            0 => Rule::gcra(amount, period, burst),
            _ => Rule::token_bucket(amount, period, burst),
        };
        let rule = match limit.kind() {
            Kind::Aligned => Rule::aligned(amount, period, limit.boundary().0.since(Instant::ORIGIN)),
            Kind::Bucket | Kind::Leaky => buckets(which, burst),
            Kind::Counter => Rule::counter(amount, period, phase),
            Kind::Unknown if which.is_multiple_of(2) => buckets(which / 2, amount.min(5)),
            _ => windows(which),
        };
        Server(sim::Server::new(vec![rule]))
    }

    pub(crate) fn accepts(&mut self, now: u64, cost: u64) -> bool {
        self.0.arrive(Instant::from_nanos(now), cost as u32) == Verdict::Accepted
    }
}
