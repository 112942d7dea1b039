//! What a backend allows: several limits at once, and the gate that a rejection closes.

use std::sync::Arc;

use super::credit::Credits;
use super::gate::Gate;
use super::ladder::Ladder;
use super::state::{State, States};
use super::{AckGcra, Anchor, Eligible, GateState, Kind, Limit, Margin, Policy};
use crate::time::{Instant, Span};

/// How long a rejection closes a quota that has no limits, when the server does not say.
const UNTOLD: Span = Span::from_secs(1);

/// When a quota admits a message, and what decides that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The latest that any limit and the gate say: `Never`, else `Closed`, else `OnAck`, else the last `At`, else `Now`.
    pub eligible: Eligible,
    /// Index of the limit that decides; none when it is the gate, or when the message may go now.
    pub blocker: Option<u16>,
    /// A cost of 1 would be admitted now: only the size of this cost does not fit.
    pub cost_only: bool,
}

/// How one limit of a quota stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage<'a> {
    /// The limit as declared.
    pub limit: &'a Limit,
    /// The kind that it is treated as: what was declared, or a rung of the ladder.
    pub treated_as: Kind,
    /// Units that count against it, those in flight included.
    pub used: u32,
    /// Units that may be sent now, if the other limits and the gate allow it.
    pub available: u32,
    /// When this limit alone admits a cost of 1.
    pub next_eligible: Eligible,
}

/// A limit that is treated as a stricter kind from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which one.
    pub limit: u16,
    /// What it was treated as when the server rejected a message that conformed to that.
    pub from: Kind,
    /// What it is treated as now.
    pub to: Kind,
    /// Units that counted against it when the rejection came.
    pub used: u32,
}

/// The AND of several limits, all or nothing, and the gate that a rejection closes.
///
/// A message is charged to every limit by [`send`](Quota::send). Then exactly one of these follows:
///
/// | what happened | calls |
/// |---|---|
/// | nothing left this machine | [`refund`](Quota::refund) |
/// | headers arrived | [`ack_sent`](Quota::ack_sent), then [`accepted`](Quota::accepted) or [`rejected`](Quota::rejected) |
/// | the attempt is over, whatever came of it | [`finish`](Quota::finish), if it [`waits_for_finish`](Quota::waits_for_finish) |
/// | the attempt ended without headers | [`ack_sent`](Quota::ack_sent) with the latest instant at which they could have come, and [`unanswered`](Quota::unanswered) |
///
/// `sent` is always the `now` that the message's `send` was given.
#[derive(Clone, Debug)]
pub struct Quota {
    terms: Arc<Terms>,
    /// Of each limit.
    states: States,
    /// Since one of them has taken a step.
    ladder: Option<Box<Ladder>>,
    credits: Option<Box<Credits>>,
    gate: Gate,
}

/// What was declared: the same for all that were cloned from one quota.
#[derive(Clone, Debug)]
struct Terms {
    limits: Box<[Limit]>,
    margin: Margin,
    /// Some limit's clock starts at the end of an attempt.
    late: bool,
}

impl Quota {
    /// A quota of which nothing is used yet; without limits only rejections hold it back.
    ///
    /// # Panics
    /// When there are more than 65 535 limits.
    pub fn new(limits: &[Limit], margin: Margin) -> Quota {
        assert!(limits.len() <= usize::from(u16::MAX), "more than 65535 limits");
        let late = limits.iter().any(|limit| limit.anchor() == Anchor::Finish);
        Quota {
            terms: Arc::new(Terms { limits: limits.into(), margin, late }),
            states: limits.iter().map(|limit| State::new(limit, margin)).collect(),
            ladder: None,
            credits: Credits::new(limits, margin),
            gate: Gate::OPEN,
        }
    }

    /// A quota of which nothing is left at `now`, since the server may remember what was sent before us.
    pub fn used_up(limits: &[Limit], margin: Margin, now: Instant) -> Quota {
        Quota::new(&[], margin).with_limits(now, limits, 0, 0)
    }

    /// The same server with other limits from `now` on: what was sent counts against those too, with `unacked` units whose headers have
    /// not come and `unfinished` ones whose attempts are not over. The gate stays as it is.
    ///
    /// A limit of the same kind and period takes over what the old one knows, to the unit. Another one counts at most what it must: what
    /// the old limits with a period as long had in use, as if it had arrived just now; all that it allows when none was as long.
    #[must_use]
    pub fn with_limits(&self, now: Instant, limits: &[Limit], unacked: u32, unfinished: u32) -> Quota {
        let Terms { limits: ref before, margin, .. } = *self.terms;
        let mut quota = Quota { gate: self.gate, ..Quota::new(limits, margin) };
        let mut known: Vec<usize> = (0..before.len()).collect();
        for (index, limit) in limits.iter().enumerate() {
            let same = known.iter().position(|&old| self.rung(old) == before[old].kind() && before[old].is_like(limit));
            let taken_over = same.and_then(|at| {
                let old = known.remove(at);
                let state = self.states[old].refitted(now, limit, margin)?;
                if let (Some(credits), Some(theirs)) = (&mut quota.credits, &self.credits) {
                    credits.take_over(index, theirs, old);
                }
                Some(state)
            });
            quota.states[index] = taken_over.unwrap_or_else(|| {
                let in_flight = if limit.anchor() == Anchor::Finish { unfinished } else { unacked };
                let remembers = |old: &usize| before[*old].period() >= limit.period();
                let used = (0..before.len()).filter(remembers).map(|old| self.states[old].used(now)).min();
                let arrived = used.unwrap_or(u32::MAX).min(limit.capacity()).saturating_sub(in_flight);
                State::carried(limit, margin, now, arrived, in_flight)
            });
        }
        quota
    }

    /// The bucket of a quota that is one bucket and nothing else.
    pub(crate) fn only_bucket(&mut self) -> Option<&mut AckGcra> {
        match &mut *self.states {
            [State::Bucket(bucket)] => Some(bucket),
            _ => None,
        }
    }

    /// Keeps this much back from now on, in limits that are made new by [`with_limits`](Quota::with_limits).
    pub(crate) fn set_margin(&mut self, margin: Margin) {
        Arc::make_mut(&mut self.terms).margin = margin;
    }

    /// What a limit is treated as.
    fn rung(&self, index: usize) -> Kind {
        self.ladder.as_ref().map_or_else(|| self.terms.limits[index].kind(), |ladder| ladder.rungs()[index])
    }

    /// When a message of `cost` units may be sent, asked at `now`; changes nothing.
    ///
    /// `At(t)` is exact: refused just before `t` and admitted at `t`, if nothing else happens.
    #[inline]
    pub fn next_eligible(&self, now: Instant, cost: u32) -> Verdict {
        let (eligible, blocker) = self.decide(now, cost);
        Verdict { eligible, blocker, cost_only: eligible != Eligible::Now && cost > 1 && self.decide(now, 1).0 == Eligible::Now }
    }

    /// One round is enough: every policy, once it admits, goes on admitting until something happens.
    #[inline]
    fn decide(&self, now: Instant, cost: u32) -> (Eligible, Option<u16>) {
        let mut decided = (self.gate.next_eligible(now), None);
        for (index, state) in self.states.iter().enumerate() {
            let eligible = state.next_eligible(now, cost);
            if eligible != Eligible::Now && eligible.rank() > decided.0.rank() {
                decided = (eligible, Some(index as u16));
            }
        }
        decided
    }

    /// Charges `cost` units to every limit, for a message that is sent at `now`.
    ///
    /// The caller has asked [`next_eligible`](Quota::next_eligible), or sends ahead of the queue all the same.
    #[inline]
    pub fn send(&mut self, now: Instant, cost: u32) {
        self.gate.send(now);
        for state in &mut *self.states {
            state.send(now, cost);
        }
        if let Some(credits) = &mut self.credits {
            credits.sent(now, cost, &mut self.states);
        }
    }

    /// Starts the clocks of `cost` units that were sent: the server has counted them by `at`, which may lie ahead. Those of limits that
    /// are anchored at the finish go on waiting.
    #[inline]
    pub fn ack(&mut self, at: Instant, cost: u32) {
        if self.terms.late || self.credits.is_some() {
            self.start(Anchor::Headers, at, None, cost);
            return;
        }
        for state in &mut *self.states {
            state.ack(at, cost);
        }
    }

    /// The same for what was sent at `sent`, which [jitter credit](super::Jitter) needs to know to take the earlier of both proofs.
    #[inline]
    pub fn ack_sent(&mut self, at: Instant, sent: Instant, cost: u32) {
        if self.credits.is_some() {
            self.ack_credited(at, sent, cost);
        } else {
            self.ack(at, cost);
        }
    }

    fn ack_credited(&mut self, at: Instant, sent: Instant, cost: u32) {
        self.start(Anchor::Headers, at, Some(sent), cost);
        if let Some(credits) = &mut self.credits {
            credits.observe(at, sent, &self.states);
        }
    }

    /// Whether a limit is anchored at the finish: then every unit sent is to be told to [`finish`](Quota::finish).
    #[inline]
    pub fn waits_for_finish(&self) -> bool {
        self.terms.late
    }

    /// Starts the clocks that are anchored at the finish of `cost` units that were sent: the server has counted them by `at`.
    pub fn finish(&mut self, at: Instant, cost: u32) {
        self.start(Anchor::Finish, at, None, cost);
    }

    fn start(&mut self, anchor: Anchor, at: Instant, sent: Option<Instant>, cost: u32) {
        for (index, state) in self.states.iter_mut().enumerate() {
            match &mut self.credits {
                _ if self.terms.limits[index].anchor() != anchor => {}
                Some(credits) => credits.ack(index, state, at, sent, cost),
                None => state.ack(at, cost),
            }
        }
    }

    /// Takes back a message that was charged at `sent` and of which nothing left this machine.
    pub fn refund(&mut self, sent: Instant, cost: u32) {
        self.gate.unanswered(sent);
        for (index, state) in self.states.iter_mut().enumerate() {
            match &mut self.credits {
                Some(credits) => credits.refund(index, state, sent, cost),
                None => state.refund(cost),
            }
        }
    }

    /// The server accepted the message sent at `sent`. Returns whether that opened the gate.
    ///
    /// Only a message sent after a closure ended opens it.
    #[inline]
    pub fn accepted(&mut self, sent: Instant) -> bool {
        self.gate.accepted(sent)
    }

    /// The server rejected the message sent at `sent`: closes the gate, as told at `now`, for `retry_after`, else for the period of
    /// the limit that is to blame: the one that last took a step, else the shortest; 1 s without limits. Returns the end of the closure
    /// if that moved.
    ///
    /// Never shortens a closure. A rejection of a message that was sent before an accepted probe is old news, and ignored.
    pub fn rejected(&mut self, now: Instant, sent: Instant, retry_after: Option<Span>) -> Option<Instant> {
        let was_closed = matches!(self.gate(now), GateState::Closed(_));
        if let Some(credits) = &mut self.credits {
            credits.distrust(now);
        }
        let moved = self.gate.rejected(now, sent, retry_after.unwrap_or_else(|| self.untold()));
        if let Some(ladder) = &mut self.ladder
            && let GateState::Closed(until) = self.gate.state(now)
        {
            if !was_closed {
                ladder.closed(&self.terms.limits, now);
            }
            self.reopen_evenly(until);
        }
        moved
    }

    /// How long a rejection closes the gate when the server does not say.
    fn untold(&self) -> Span {
        let limits = &self.terms.limits;
        let blamed = self.ladder.as_ref().map_or_else(|| Ladder::new(limits).blamed(limits), |ladder| ladder.blamed(limits));
        blamed.map_or(UNTOLD, |index| limits[index].period())
    }

    /// What has taken a step goes on without a burst, some way behind the opening of the gate.
    #[cold]
    fn reopen_evenly(&mut self, until: Instant) {
        let Some(ladder) = &self.ladder else { return };
        let limits = &self.terms.limits;
        for (index, state) in self.states.iter_mut().enumerate() {
            if ladder.rungs()[index] != limits[index].kind() {
                state.drain_to_one(until + ladder.distance(limits, index));
            }
        }
    }

    /// The server rejected a message, sent at `sent`, although it conformed: the shortest limit whose kind is a guess is treated as
    /// the next stricter kind from `now` on, with nothing left. To be told before [`rejected`](Quota::rejected).
    ///
    /// What was sent before the last step, or at that instant, did not conform to what came of it: no step. Nor is there one when all
    /// kinds were named, or have climbed as far as they can.
    pub fn climb(&mut self, now: Instant, sent: Instant) -> Option<Step> {
        let Terms { ref limits, margin, .. } = *self.terms;
        let mut ladder = self.ladder.take().unwrap_or_else(|| Box::new(Ladder::new(limits)));
        let step = ladder.climb(limits, now, sent);
        self.ladder = ladder.has_stepped().then_some(ladder);
        let (index, from, to) = step?;
        let state = &mut self.states[index];
        let used = state.used(now);
        let credited = self.credits.as_mut().map_or(0, |credits| credits.hand_back(index));
        *state = State::on_rung(to, &limits[index], margin, now, state.in_flight() + credited);
        Some(Step { limit: index as u16, from, to, used })
    }

    /// The attempt sent at `sent` ended without headers: if it was the probe, the next message may be.
    pub fn unanswered(&mut self, sent: Instant) {
        self.gate.unanswered(sent);
    }

    /// Where the gate stands at `now`.
    pub fn gate(&self, now: Instant) -> GateState {
        self.gate.state(now)
    }

    /// Whether it is as a new one: all of it free, open, and nothing learned about its limits.
    pub fn is_fresh(&self, now: Instant) -> bool {
        let is_full = |state: &State| state.used(now) == 0 && state.in_flight() == 0;
        self.ladder.is_none() && self.gate(now) == GateState::Open && self.states.iter().all(is_full)
    }

    /// How many units may be sent now, to choose between quotas: 0 while the gate is closed or its probe is out, at most 1
    /// while it waits for a probe (which itself may cost more).
    ///
    /// # Complexity
    /// Linear in the limits, and in the units that became free since the last send.
    pub fn headroom(&self, now: Instant) -> u32 {
        let cap = match (self.gate.next_eligible(now), self.gate.state(now)) {
            (Eligible::Now, GateState::Open) => u32::MAX,
            (Eligible::Now, _) => 1,
            _ => 0,
        };
        self.states.iter().map(|state| state.available(now)).fold(cap, u32::min)
    }

    /// The largest cost that can ever be admitted; `u32::MAX` without limits.
    pub fn capacity(&self) -> u32 {
        self.limits().map(Limit::capacity).min().unwrap_or(u32::MAX)
    }

    /// The limits as declared, in that order.
    pub fn limits(&self) -> impl Iterator<Item = &Limit> {
        self.terms.limits.iter()
    }

    /// How each limit stands at `now`, in the order of [`limits`](Quota::limits).
    pub fn usage(&self, now: Instant) -> impl Iterator<Item = Usage<'_>> {
        self.limits().zip(&*self.states).enumerate().map(move |(index, (limit, state))| {
            let (used, available) = (state.used(now), state.available(now));
            Usage { limit, treated_as: self.rung(index), used, available, next_eligible: state.next_eligible(now, 1) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn window(amount: u32, period: u64) -> Limit {
        Limit::window(amount, Span::from_nanos(period)).unwrap()
    }

    fn blocked(eligible: Eligible, blocker: u16, cost_only: bool) -> Verdict {
        let blocker = Some(blocker);
        Verdict { eligible, blocker, cost_only }
    }

    #[test]
    fn the_limit_that_holds_back_most_decides() {
        let limits = [window(2, 100), window(3, 1000), window(10, 10)];
        let mut quota = Quota::new(&limits, Margin::NONE);
        assert_eq!(quota.next_eligible(at(0), 3), blocked(Eligible::Never, 0, true));
        quota.send(at(0), 2);
        assert_eq!(quota.next_eligible(at(0), 1), blocked(Eligible::OnAck, 0, false));
        assert_eq!(quota.next_eligible(at(0), 2), blocked(Eligible::OnAck, 0, false));
        quota.ack(at(10), 2);
        assert_eq!(quota.next_eligible(at(10), 1), blocked(Eligible::At(at(110)), 0, false));
        assert_eq!(quota.next_eligible(at(10), 2), blocked(Eligible::At(at(1010)), 1, false));
        assert_eq!(quota.next_eligible(at(110), 2), blocked(Eligible::At(at(1010)), 1, true));
        let open = Verdict { eligible: Eligible::Now, blocker: None, cost_only: false };
        assert_eq!(quota.next_eligible(at(110), 1), open);
        assert_eq!(quota.headroom(at(110)), 1);
        assert_eq!(quota.capacity(), 2);
        assert!(quota.limits().eq(&limits));
    }

    #[test]
    fn a_cost_that_never_fits_says_so_even_while_closed() {
        let mut quota = Quota::new(&[window(2, 100)], Margin::NONE);
        quota.rejected(at(0), at(0), None);
        assert_eq!(quota.next_eligible(at(0), 3), blocked(Eligible::Never, 0, false));
        assert_eq!(quota.next_eligible(at(0), 2).eligible, Eligible::Closed(at(100)));
    }

    #[test]
    fn a_rejection_closes_for_what_the_server_says_else_the_shortest_period_else_a_second() {
        let closed = |limits: &[Limit], told| Quota::new(limits, Margin::NONE).rejected(at(5), at(0), told);
        let limits = [window(2, 900), window(2, 100)];
        assert_eq!(closed(&limits, Some(Span::from_nanos(7))), Some(at(12)));
        assert_eq!(closed(&limits, None), Some(at(105)));
        assert_eq!(closed(&[], None), Some(at(1_000_000_005)));
    }

    #[test]
    fn a_message_sent_into_a_closure_is_not_its_probe() {
        let mut quota = Quota::new(&[], Margin::NONE);
        quota.rejected(at(0), at(0), Some(Span::from_nanos(100)));
        quota.send(at(50), 1);
        assert!(!quota.accepted(at(50)));
        assert_eq!(quota.gate(at(99)), GateState::Closed(at(100)));
        assert_eq!(quota.gate(at(100)), GateState::Reopening);
        quota.send(at(100), 1);
        quota.unanswered(at(50));
        assert_eq!(quota.next_eligible(at(100), 1).eligible, Eligible::OnAck);
        assert!(!quota.accepted(at(50)));
        assert!(quota.accepted(at(100)));
        assert_eq!(quota.gate(at(100)), GateState::Open);
    }

    #[test]
    fn a_probe_is_charged_to_the_limits() {
        let mut quota = Quota::new(&[window(1, 100)], Margin::NONE);
        quota.send(at(0), 1);
        quota.ack(at(10), 1);
        quota.rejected(at(10), at(0), Some(Span::from_nanos(20)));
        assert_eq!(quota.next_eligible(at(30), 1).eligible, Eligible::At(at(110)));
        assert_eq!(quota.headroom(at(30)), 0);
        assert_eq!(quota.headroom(at(110)), 1);
    }

    #[test]
    fn without_limits_anything_goes() {
        let mut quota = Quota::new(&[], Margin::default());
        quota.send(at(0), u32::MAX);
        assert_eq!(quota.next_eligible(at(0), u32::MAX).eligible, Eligible::Now);
        assert_eq!((quota.capacity(), quota.headroom(at(0))), (u32::MAX, u32::MAX));
        assert_eq!(quota.usage(at(0)).count(), 0);
    }
}
