//! What became of the polls of a collector.

use hdrhistogram::Histogram;

use super::Ended;
use crate::time::Span;

/// Counts of planned instants. `planned = started + coalesced + skipped`, and `started` is the sum of the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Planned instants that have come and were decided about.
    pub planned: u64,
    /// Polls with a value.
    pub delivered: u64,
    /// Polls with an error.
    pub failed: u64,
    /// Polls past their deadline.
    pub expired: u64,
    /// Polls that were cancelled.
    pub cancelled: u64,
    /// Polls that have begun and not ended.
    pub running: u64,
    /// Planned instants that a later one of their target stood in for.
    pub coalesced: u64,
    /// Planned instants that were left out.
    pub skipped: u64,
}

/// How a length of time is distributed; to two digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// How many there are.
    pub count: u64,
    /// Their mean.
    pub mean: Span,
    /// The span that half of them do not exceed.
    pub p50: Span,
    /// That nine in ten do not exceed.
    pub p90: Span,
    /// That 99 in a hundred do not exceed.
    pub p99: Span,
    /// The longest.
    pub max: Span,
}

/// Histograms count microseconds.
const UNIT: u64 = 1_000;

/// Spans, counted to two digits. Memory: up to 60 KiB, by the range of what was counted.
#[derive(Debug)]
struct Spans(Histogram<u64>);

impl Default for Spans {
    fn default() -> Spans {
        Spans(Histogram::new(2).expect("two digits are within its range"))
    }
}

impl Spans {
    fn note(&mut self, span: Span) {
        // Grows as it needs; it can hold any number.
        let _ = self.0.record(span.as_nanos() / UNIT);
    }

    fn distribution(&self) -> Distribution {
        let span = |micros: u64| Span::from_nanos(micros.saturating_mul(UNIT));
        let longest = self.0.max();
        let quantile = |of: f64| span(self.0.value_at_quantile(of).min(longest));
        Distribution {
            count: self.0.len(),
            mean: span(self.0.mean() as u64),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            max: span(longest),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Statistics {
    pub(super) started: u64,
    pub(super) running: u64,
    pub(super) coalesced: u64,
    pub(super) skipped: u64,
    delivered: u64,
    failed: u64,
    expired: u64,
    cancelled: u64,
    lag: Spans,
    age: Spans,
}

impl Statistics {
    pub(super) fn note(&mut self, how: Ended, waited: Span) {
        self.running -= 1;
        *match how {
            Ended::Delivered => &mut self.delivered,
            Ended::Failed => &mut self.failed,
            Ended::Expired => &mut self.expired,
            Ended::Cancelled => &mut self.cancelled,
        } += 1;
        self.lag.note(waited);
    }

    /// Those that run are waited for no more.
    pub(super) fn abandon(&mut self) {
        self.cancelled += std::mem::take(&mut self.running);
    }

    /// A value was replaced when it was so old.
    pub(super) fn note_age(&mut self, age: Span) {
        self.age.note(age);
    }

    /// How many of what.
    pub fn counts(&self) -> Counts {
        let Statistics { started, running, coalesced, skipped, delivered, failed, expired, cancelled, .. } = *self;
        Counts { planned: started + coalesced + skipped, delivered, failed, expired, cancelled, running, coalesced, skipped }
    }

    /// How long after its planned instant a poll waited for its turn.
    pub fn lag(&self) -> Distribution {
        self.lag.distribution()
    }

    /// How old a value was when the next one of its target came.
    pub fn age(&self) -> Distribution {
        self.age.distribution()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_any_length_are_told_to_two_digits() {
        let mut spans = Spans::default();
        (1..=100).for_each(|secs| spans.note(Span::from_secs(secs)));
        let found = spans.distribution();
        let near = |span: Span, secs: f64| (span.as_nanos() as f64 / 1e9 / secs - 1.0).abs() < 0.01;
        assert_eq!(found.count, 100);
        assert!(near(found.mean, 50.5) && near(found.p50, 50.0) && near(found.p90, 90.0) && near(found.p99, 99.0), "{found:?}");
        assert!(near(found.max, 100.0));
        spans.note(Span::from_nanos(u64::MAX));
        assert!(near(spans.distribution().max, 1.8447e10));
        assert_eq!(Spans::default().distribution(), Distribution::default());
    }
}
