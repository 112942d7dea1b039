//! What is left to those who have fewer backends to go to.

use super::Engine;
use crate::time::{Instant, Span};

/// How long what was asked for counts.
const WINDOW: Span = Span::from_secs(60);
/// Sets of a backend that are looked at.
const MOST_SETS: usize = 16;

/// Units that were asked for: in this window, which began then, and in the one before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    since: Instant,
    units: u64,
    before: u64,
}

impl Asked {
    #[inline]
    pub(super) fn add(&mut self, now: Instant, units: u32) {
        if now.since(self.since) >= WINDOW {
            self.before = if now.since(self.since) < WINDOW.times(2) { self.units } else { 0 };
            (self.since, self.units) = (now, 0);
        }
        self.units += u64::from(units);
    }

    /// Units a second, of about the last minute.
    fn rate(&self, now: Instant) -> f64 {
        let windows = now.since(self.since).as_nanos() as f64 / WINDOW.as_nanos() as f64;
        let units = if windows < 1.0 {
            self.units as f64 + self.before as f64 * (1.0 - windows)
        } else {
            self.units as f64 * (2.0 - windows).max(0.0)
        };
        units * 1e9 / WINDOW.as_nanos() as f64
    }
}

impl Engine {
    /// How many seconds those that have fewer backends to go to may wait longer when one more unit of an account is spent: what a unit takes to
    /// come back, times the likelihood that it is missed: how much of what is left they ask for in a period.
    pub(super) fn scarcity(&self, now: Instant, id: u16, account: u32, set: u32) -> f64 {
        let choices = self.sets[set as usize].backends.len();
        let sets = self.backends[usize::from(id)].sets.iter().take(MOST_SETS).map(|&set| &self.sets[set as usize]);
        let asked: f64 = sets
            .filter(|set| set.classes > 0 && set.backends.len() < choices)
            .map(|set| set.asked.rate(now) / set.backends.len() as f64)
            .sum();
        if asked == 0.0 {
            return 0.0;
        }
        let quota = &self.accounts[account as usize].quota;
        let seconds = |span: Span| span.as_nanos() as f64 / 1e9;
        let each = |period: Span, amount: u32| seconds(period) / f64::from(amount.max(1));
        let slowest = quota.limits().map(|limit| (each(limit.period(), limit.amount()), limit.period()));
        let Some((interval, period)) = slowest.max_by(|one, other| one.0.total_cmp(&other.0)) else { return 0.0 };
        let left = f64::from(quota.headroom(now).max(1));
        interval * (asked * seconds(period) / left).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_counts_for_a_minute_or_two() {
        let at = |seconds| Instant::ORIGIN + Span::from_secs(seconds);
        let mut asked = Asked::default();
        assert!(asked.rate(at(0)) == 0.0 && asked.rate(at(1000)) == 0.0);
        (0..60).for_each(|second| asked.add(at(1000 + second), 2));
        let is_near = |one: f64, other: f64| (one - other).abs() < 1e-9;
        assert!(is_near(asked.rate(at(1060)), 2.0));
        assert!(is_near(asked.rate(at(1090)), 1.0));
        assert!(is_near(asked.rate(at(1200)), 0.0));
        asked.add(at(1075), 30);
        assert!(is_near(asked.rate(at(1075)), 2.5));
        asked.add(at(1300), 60);
        assert!(is_near(asked.rate(at(1300)), 1.0), "all of it is forgotten");
    }
}
