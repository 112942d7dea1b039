//! What comes, and who could serve it.

use super::super::{Dice, Rule, Server};
use crate::limit::Limit;
use crate::time::{Instant, Span};

/// A backend: a token bucket, and how long it takes to answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Site {
    /// Messages a second.
    pub rate: u32,
    /// Messages that it lets through at once.
    pub burst: u32,
    /// The median of its round trips, which are log-normal.
    pub median: Span,
}

const SECOND: Span = Span::from_secs(1);

impl Site {
    /// Four that have little in common.
    pub const ALL: [Site; 4] = [
        Site { rate: 10, burst: 50, median: Span::from_millis(100) },
        Site { rate: 5, burst: 5, median: Span::from_millis(300) },
        Site { rate: 1, burst: 1, median: Span::from_millis(50) },
        Site { rate: 2, burst: 10, median: Span::from_millis(800) },
    ];

    /// What it allows.
    pub fn limit(&self) -> Limit {
        Limit::bucket(self.rate, SECOND, self.burst).expect("a site has a limit")
    }

    pub(super) fn server(&self) -> Server {
        Server::new(vec![Rule::token_bucket(self.rate, SECOND, self.burst)])
    }
}

/// A request, from nobody in particular: any backend may serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When it comes.
    pub at: Instant,
    /// When its answer is late.
    pub deadline: Instant,
}

/// What is tried: arrivals without memory (Poisson), as a share of what all sites admit in the long run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scenario {
    /// What is asked for, of what is admitted.
    pub load: f64,
    /// How long requests go on coming.
    pub horizon: Span,
    /// Where its sequences start.
    pub seed: u64,
}

impl Scenario {
    /// Of the logarithm of a round trip: one in a hundred takes 3.2 times the median.
    pub const SIGMA: f64 = 0.5;
    /// From the arrival of a request to its deadline: uniform between these.
    pub const SLACK: (Span, Span) = (Span::from_secs(1), Span::from_secs(10));

    /// What comes, in order.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let mut dice = Dice::new(self.seed);
        let rate = self.load * f64::from(Site::ALL.iter().map(|site| site.rate).sum::<u32>());
        let (least, most) = Scenario::SLACK;
        let end = Instant::ORIGIN + self.horizon;
        let mut seconds = 0.0;
        let mut next = || {
            seconds -= (1.0 - dice.share()).ln() / rate;
            let at = Instant::ORIGIN + Span::from_nanos((seconds * 1e9) as u64);
            let slack = least + Span::from_nanos(((most - least).as_nanos() as f64 * dice.share()) as u64);
            Arrival { at, deadline: at + slack }
        };
        std::iter::repeat_with(&mut next).take_while(|arrival| arrival.at < end).collect()
    }

    /// How long a message of the `nth` request takes to a site, and its answer as long again. The same whoever asks, and whenever.
    pub fn way(&self, nth: u32, site: usize) -> Span {
        let mut dice = Dice::new((self.seed << 40) ^ (u64::from(nth) << 8) ^ site as u64);
        let median = Site::ALL[site].median.as_nanos() as f64;
        Span::from_nanos((0.5 * median * (Scenario::SIGMA * dice.normal()).exp()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_comes_as_is_said_and_takes_as_long() {
        let scenario = Scenario { load: 0.5, horizon: Span::from_secs(10_000), seed: 3 };
        let arrivals = scenario.arrivals();
        assert!(arrivals.is_sorted_by_key(|arrival| arrival.at));
        assert!(arrivals.len().abs_diff(90_000) < 1000, "{}", arrivals.len());
        let slack = arrivals.iter().map(|arrival| arrival.deadline.since(arrival.at).as_nanos()).sum::<u64>();
        assert!((slack / arrivals.len() as u64).abs_diff(5_500_000_000) < 30_000_000);
        for (site, expected) in Site::ALL.iter().enumerate() {
            let mut ways: Vec<_> = (0..10_001).map(|nth| scenario.way(nth, site).times(2)).collect();
            ways.sort_unstable();
            let error = ways[5000].as_nanos() as f64 / expected.median.as_nanos() as f64 - 1.0;
            assert!(error.abs() < 0.03, "{site}: {error}");
        }
    }
}
