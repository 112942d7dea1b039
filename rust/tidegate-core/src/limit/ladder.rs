//! The kind ladder: limits whose kind nobody named are treated as a stricter one each time a server rejects what conformed.
//!
//! A server that was met at the brim stays there: what it remembers falls no faster than we may send. So a limit that has taken a step
//! goes on some way behind the instant at which its gate opens, and each further rejection within two periods doubles that way.

use super::state::reach;
use super::{Kind, Limit};
use crate::time::{Instant, Span};

/// The next rung: what is admitted by more servers, at a lower price than what comes after it.
fn above(rung: Kind) -> Option<Kind> {
    match rung {
        Kind::Window | Kind::Aligned | Kind::Bucket => Some(Kind::Unknown),
        Kind::Unknown => Some(Kind::Counter),
        Kind::Counter => Some(Kind::Leaky),
        Kind::Leaky => None,
    }
}

/// What each limit of a quota is treated as.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    rungs: Box<[Kind]>,
    /// When a limit last took a step, and which.
    stepped: Option<(Instant, usize)>,
    /// When the gate last closed for that limit, and how often it has without two quiet periods in between.
    closed: (Instant, u32),
}

impl Ladder {
    pub(super) fn new(limits: &[Limit]) -> Ladder {
        let rungs = limits.iter().map(Limit::kind).collect();
        Ladder { rungs, stepped: None, closed: (Instant::ORIGIN, 0) }
    }

    pub(super) fn rungs(&self) -> &[Kind] {
        &self.rungs
    }

    pub(super) fn has_stepped(&self) -> bool {
        self.stepped.is_some()
    }

    /// The limit that a rejection is put down to: the one that last took a step, else the next to take one.
    pub(super) fn blamed(&self, limits: &[Limit]) -> Option<usize> {
        self.stepped.map(|(_, index)| index).or_else(|| self.suspect(limits))
    }

    /// The shortest that can still climb, else the shortest.
    fn suspect(&self, limits: &[Limit]) -> Option<usize> {
        (0..limits.len()).min_by_key(|&index| (self.next(limits, index).is_none(), limits[index].period()))
    }

    fn next(&self, limits: &[Limit], index: usize) -> Option<Kind> {
        above(self.rungs[index]).filter(|_| limits[index].is_guessed())
    }

    /// Takes the step that follows from the rejection at `now` of a message sent at `sent`, if any does. Which limit, from what to what.
    pub(super) fn climb(&mut self, limits: &[Limit], now: Instant, sent: Instant) -> Option<(usize, Kind, Kind)> {
        if self.stepped.is_some_and(|(stepped, _)| sent <= stepped) {
            return None;
        }
        let index = self.suspect(limits)?;
        let to = self.next(limits, index)?;
        let from = std::mem::replace(&mut self.rungs[index], to);
        if self.stepped.is_none_or(|(_, before)| before != index) {
            self.closed.1 = 0;
        }
        self.stepped = Some((now, index));
        Some((index, from, to))
    }

    /// The gate has closed at `now`, from open.
    pub(super) fn closed(&mut self, limits: &[Limit], now: Instant) {
        let Some((_, index)) = self.stepped else { return };
        let (last, times) = self.closed;
        let recently = times > 0 && now.since(last) < limits[index].period().times(2);
        self.closed = (now, if recently { times.saturating_add(1) } else { 1 });
    }

    /// How far behind the opening of its gate a limit goes on.
    pub(super) fn distance(&self, limits: &[Limit], index: usize) -> Span {
        let limit = &limits[index];
        let period = limit.period().as_nanos();
        let doubled = 1u64.checked_shl(self.closed.1.saturating_sub(1)).unwrap_or(u64::MAX) - 1;
        let units = Span::from_nanos(period / u64::from(limit.amount())).times(doubled);
        reach(limit.period()) + units.min(Span::from_nanos(period / 4))
    }
}
