//! Two submissions that are the same request: the second joins the first.

use super::request::{Handle, State};
use super::{Engine, Submission, Timer};
use crate::time::{Instant, Span};

impl Engine {
    /// Has a request that waits or runs serve this submission too: it takes the earlier deadline, the more urgent priority and the
    /// earlier instant before which it is not to go; all else stays as it was accepted. It is not held any more: with more than one
    /// consumer it counts as delivered when it has its value. False, and nothing is changed, when it has a value or has ended.
    ///
    /// # Complexity
    /// O(log waiting requests).
    pub fn join(&mut self, now: Instant, handle: Handle, submission: &Submission<'_>) -> bool {
        let Some(slot) = self.requests.find(handle) else { return false };
        let entry = self.requests.get_mut(slot);
        if entry.state == State::Done {
            return false;
        }
        entry.flags.held = false;
        entry.flags.lenient &= submission.flags.lenient;
        let (state, place) = (entry.state, entry.node.place());
        let deadline = entry.deadline.min(submission.deadline);
        let band = place.band().min(submission.priority);
        if state == State::Queued {
            self.requeue(now, slot, band, deadline);
        } else {
            entry.deadline = deadline;
            entry.node.set_place(place.in_band(band));
        }
        let not_before = if state == State::Postponed { submission.not_before } else { Instant::FAR };
        self.hasten(slot, self.requests.get(slot).expires_at().min(not_before));
        if not_before <= now {
            if let Some(timer) = self.requests.get_mut(slot).timer.take() {
                self.wheel.disarm(timer);
            }
            self.join_queue(now, slot);
        }
        true
    }

    /// Time since a request was accepted; nothing when it has ended.
    pub fn age(&self, now: Instant, handle: Handle) -> Option<Span> {
        self.requests.find(handle).map(|slot| self.requests.age(now, slot))
    }

    /// Gives a waiting request the place that belongs to this priority and deadline.
    fn requeue(&mut self, now: Instant, slot: u32, band: u8, deadline: Instant) {
        let entry = self.requests.get(slot);
        let (class, place) = (entry.class, entry.node.place());
        if (band, deadline) == (place.band(), entry.deadline) {
            return;
        }
        let waiting = &mut self.classes[class as usize];
        waiting.queue.remove(&mut self.requests, slot);
        let entry = self.requests.get_mut(slot);
        entry.deadline = deadline;
        entry.node.set_place(place.in_band(band));
        if let Some(flows) = &mut self.flows
            && band != place.band()
        {
            flows.leave(waiting.flow, place.band());
            flows.enter(waiting.flow, band);
        }
        waiting.queue.set_aside(&mut self.requests, slot);
        self.head_changed(now, class);
    }

    /// Has the timer of a request fire at this instant, unless it does earlier.
    fn hasten(&mut self, slot: u32, at: Instant) {
        let entry = self.requests.get_mut(slot);
        let due = entry.timer.map_or(Instant::FAR, |timer| self.wheel.due(timer));
        if at < due {
            if let Some(timer) = entry.timer.take() {
                self.wheel.disarm(timer);
            }
            entry.timer = Some(self.wheel.arm(at, Timer::Request(slot)));
        }
    }
}
