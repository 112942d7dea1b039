//! Jitter credit: a second proof that a server has counted a message, for lines of which it is known how much they differ.
//!
//! If the ways to the server differ by at most `J`, a message sent at `s` arrives no later than `J` after one sent at `s` could at the
//! earliest; so does every later one than its own earliest. Measured from there a message has been counted by `s + J`, and by its
//! acknowledgement, whichever comes first: to its policy it is acknowledged then. What conforms so conforms at the server, by the proofs of
//! the policies, and whatever GCRA over send times with a burst of `burst - J / T` admits is admitted too.

use std::collections::VecDeque;

use super::line::Line;
use super::state::State;
use super::{Anchor, Jitter, Kind, Limit, Margin, Policy};
use crate::time::{Instant, Span};

/// How long `auto` stays off after a rejection.
const OFF: Span = Span::from_secs(3600);
/// It is on where waiting for acknowledgements costs more than this many thousandths of the rate.
const WORTH_MILLI: u64 = 20;

/// Messages on their way that count as acknowledged at a known instant.
#[derive(Clone, Debug)]
struct Credit {
    jitter: Jitter,
    /// What a message may count as acknowledged after, at the latest, from now on.
    spread: Option<Span>,
    /// When they were sent, when they count as acknowledged, their units; those that have not been acknowledged.
    out: VecDeque<(Instant, Instant, u32)>,
}

/// The credits of the limits of a quota.
#[derive(Clone, Debug)]
pub(super) struct Credits {
    /// Of each limit that has one.
    each: Box<[Option<Credit>]>,
    /// Observed where some credit is to follow from it.
    line: Option<Line>,
    /// Of the line's bound, for clocks that are rounded.
    floor: Span,
    off_until: Instant,
}

impl Credits {
    /// Nothing if no limit has one.
    pub(super) fn new(limits: &[Limit], margin: Margin) -> Option<Box<Credits>> {
        let floor = margin.floor();
        let credit = |limit: &Limit| {
            let spread = match limit.jitter() {
                _ if limit.anchor() == Anchor::Finish || limit.kind() == Kind::Aligned => return None,
                Jitter::None => return None,
                Jitter::Known(spread) => Some(spread + floor),
                Jitter::Auto => None,
            };
            Some(Credit { jitter: limit.jitter(), spread, out: VecDeque::new() })
        };
        let each: Box<[Option<Credit>]> = limits.iter().map(credit).collect();
        let has_any = each.iter().any(Option::is_some);
        let line = each.iter().flatten().any(|credit| credit.jitter == Jitter::Auto).then(Line::default);
        has_any.then(|| Box::new(Credits { each, line, floor, off_until: Instant::ORIGIN }))
    }

    /// Takes over what is on its way for a limit of `old` whose state goes on.
    pub(super) fn take_over(&mut self, index: usize, old: &Credits, old_index: usize) {
        self.each[index].clone_from(&old.each[old_index]);
        if self.line.is_some() {
            self.line.clone_from(&old.line);
        }
        self.off_until = old.off_until;
    }

    /// A message of `cost` units has been charged to the states at `now`.
    pub(super) fn sent(&mut self, now: Instant, cost: u32, states: &mut [State]) {
        for (credit, state) in self.each.iter_mut().zip(states) {
            let Some(credit) = credit else { continue };
            let Some(spread) = credit.spread else { continue };
            let due = now + spread;
            state.ack(due, cost);
            match credit.out.back_mut() {
                Some(last) if (last.0, last.1) == (now, due) => last.2 += cost,
                _ => credit.out.push_back((now, due, cost)),
            }
        }
    }

    /// The server has counted, by `at`, `cost` units of one limit that were sent at `sent`, if that is known.
    pub(super) fn ack(&mut self, index: usize, state: &mut State, at: Instant, sent: Option<Instant>, cost: u32) {
        let Some(credit) = &mut self.each[index] else {
            state.ack(at, cost);
            return;
        };
        let mut left = cost;
        if let Some((due, units)) = sent.and_then(|sent| credit.take(sent, left)) {
            left -= units;
            if at < due {
                state.hasten(due, at, units);
            }
        }
        let uncredited = left.min(state.in_flight());
        if uncredited > 0 {
            state.ack(at, uncredited);
        }
        credit.forget(left - uncredited);
    }

    /// Nothing of what was charged at `sent` left this machine.
    pub(super) fn refund(&mut self, index: usize, state: &mut State, sent: Instant, cost: u32) {
        let taken = self.each[index].as_mut().and_then(|credit| credit.take(sent, cost));
        let (due, units) = taken.unwrap_or((sent, 0));
        if units > 0 {
            state.retract(due, units);
        }
        state.refund((cost - units).min(state.in_flight()));
    }

    /// Units that count as acknowledged, or soon will, and are not; from now on those are the state's to know.
    pub(super) fn hand_back(&mut self, index: usize) -> u32 {
        let out = self.each[index].as_mut().map(|credit| std::mem::take(&mut credit.out));
        out.into_iter().flatten().map(|(_, _, units)| units).sum()
    }

    /// An answer came at `at` to what was sent at `sent`.
    pub(super) fn observe(&mut self, at: Instant, sent: Instant, states: &[State]) {
        let Some(line) = self.line.as_mut() else { return };
        if !line.observe(at.since(sent)) {
            return;
        }
        let bound = line.bound().filter(|_| at >= self.off_until);
        for (credit, state) in self.each.iter_mut().zip(states) {
            if let Some(credit) = credit
                && credit.jitter == Jitter::Auto
            {
                let is_worth = |round_trip| state.lost_milli(round_trip) > WORTH_MILLI;
                let credited = bound.filter(|bound| is_worth(bound.mean)).map(|bound| bound.spread + self.floor);
                credit.spread = credited.filter(|spread| bound.is_some_and(|bound| *spread < bound.mean));
            }
        }
    }

    /// A server rejected a message: what was observed does not hold.
    pub(super) fn distrust(&mut self, now: Instant) {
        self.off_until = now + OFF;
        for credit in self.each.iter_mut().flatten().filter(|credit| credit.jitter == Jitter::Auto) {
            credit.spread = None;
        }
    }
}

impl Credit {
    /// Of the units that were sent at `sent` and are out, `most` at most; and when they count as acknowledged.
    fn take(&mut self, sent: Instant, most: u32) -> Option<(Instant, u32)> {
        let index = self.out.binary_search_by_key(&sent, |entry| entry.0).ok()?;
        let (_, due, units) = &mut self.out[index];
        let (due, taken) = (*due, most.min(*units));
        *units -= taken;
        if *units == 0 {
            self.out.remove(index);
        }
        Some((due, taken))
    }

    /// `units` were acknowledged of which it is not known when they were sent: they stay as they are.
    fn forget(&mut self, mut units: u32) {
        while units > 0
            && let Some(first) = self.out.front_mut()
        {
            let taken = units.min(first.2);
            first.2 -= taken;
            units -= taken;
            if first.2 == 0 {
                self.out.pop_front();
            }
        }
    }
}
