//! How long an upstream takes to answer, from how long it has taken.

use crate::time::{Instant, Span};

/// Seconds after which an observation counts for a third.
const DECAY: f64 = 10.0;
/// Of the average, what an answer may well take. Tried, with log-normal latencies (sigma 0.5) and the earliest deadline first: 1 misses 0.21 % of
/// deadlines at a load of 0.98 and 17.2 % at 1.1, 1.25 0.15 and 11.1 %, 1.5 0.13 and 9.5 %, 2 0.14 and 9.1 %, 3 0.26 and 9.0 %.
const MARGIN: f64 = 1.5;

/// An average that follows a rise at once and a fall slowly, and forgets: what is not used for a while seems quick, so that it is tried again.
///
/// Source: the peak EWMA of Finagle and linkerd; the penalty for failures is linkerd's, where a quick rejection must not look like a
/// quick upstream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// Seconds.
    average: f64,
    at: Instant,
    known: bool,
}

impl Latency {
    /// Seconds to an answer as far as is known now.
    #[inline]
    pub fn read(&self, now: Instant) -> Option<f64> {
        self.known.then(|| self.average * kept(now.since(self.at)))
    }

    /// Whether anything is known.
    #[inline]
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Within what an answer is likely to come; at once as long as nothing is known.
    #[inline]
    pub fn likely(&self, now: Instant) -> Span {
        Span::from_nanos((self.average * kept(now.since(self.at)) * MARGIN * 1e9) as u64)
    }

    /// Whether an answer is likely within `span`.
    #[inline]
    pub fn is_likely_within(&self, now: Instant, span: Span) -> bool {
        // The estimate only falls while nothing is observed.
        self.average * MARGIN <= seconds(span) || self.likely(now) <= span
    }

    /// An answer took so long.
    #[inline]
    pub fn observe(&mut self, now: Instant, took: Span) {
        let took = seconds(took);
        let kept = kept(now.since(self.at));
        let risen = !self.known || took > self.average * kept;
        self.average = if risen { took } else { self.average * kept + took * (1.0 - kept) };
        (self.at, self.known) = (now, true);
    }

    /// A failure counts as an answer after so long, at least.
    pub fn penalise(&mut self, now: Instant, span: Span) {
        self.average = self.read(now).unwrap_or(0.0).max(seconds(span));
        (self.at, self.known) = (now, true);
    }
}

#[inline]
fn kept(since: Span) -> f64 {
    if since == Span::ZERO { 1.0 } else { (-seconds(since) / DECAY).exp() }
}

fn seconds(span: Span) -> f64 {
    span.as_nanos() as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ORIGIN + Span::from_millis(millis)
    }

    #[test]
    fn rises_at_once_and_falls_slowly() {
        let mut latency = Latency::default();
        assert_eq!(latency.read(at(0)), None);
        latency.observe(at(0), Span::from_millis(100));
        latency.observe(at(1), Span::from_millis(500));
        assert!((latency.read(at(1)).unwrap() - 0.5).abs() < 1e-9);
        latency.observe(at(101), Span::from_millis(100));
        assert!(latency.read(at(101)).unwrap() > 0.49);
        for n in 0..600 {
            latency.observe(at(200 + 100 * n), Span::from_millis(100));
        }
        assert!((latency.read(at(60_100)).unwrap() - 0.1).abs() < 0.01);
    }

    #[test]
    fn what_is_likely_has_a_margin_and_is_forgotten_too() {
        let mut latency = Latency::default();
        assert!(latency.is_likely_within(at(0), Span::ZERO), "what is unknown is to be tried");
        latency.observe(at(0), Span::from_millis(1000));
        assert_eq!(latency.likely(at(0)), Span::from_millis(1500));
        assert!(latency.is_likely_within(at(0), Span::from_millis(1500)));
        assert!(!latency.is_likely_within(at(0), Span::from_millis(1499)));
        assert!(latency.is_likely_within(at(1000), Span::from_millis(1400)));
    }

    #[test]
    fn a_failure_is_slow_and_time_forgets_it() {
        let mut latency = Latency::default();
        latency.observe(at(0), Span::from_millis(10));
        latency.penalise(at(0), Span::from_secs(5));
        assert!(latency.read(at(0)).unwrap() >= 5.0);
        assert!(latency.read(at(60_000)).unwrap() < 0.02);
        latency.observe(at(0), Span::from_secs(9));
        latency.penalise(at(0), Span::from_secs(5));
        assert!(latency.read(at(0)).unwrap() >= 9.0, "at least what it was");
    }
}
