//! Which request fits a backend: the first one that is likely to have its answer by its deadline.

use super::Engine;
use crate::time::Instant;

impl Engine {
    /// Whether an answer of a backend is likely by then.
    #[inline]
    pub(super) fn is_in_time(&self, now: Instant, id: u16, deadline: Instant) -> bool {
        self.backends[usize::from(id)].latency.is_likely_within(now, deadline.since(now))
    }

    /// The first request of a class that is likely to have its answer of a backend in time.
    pub(super) fn fitting(&self, now: Instant, class: u32, id: u16) -> Option<u32> {
        let due = now + self.backends[usize::from(id)].latency.likely(now);
        let rule = self.requests.rule();
        let fits = |slot: u32| self.requests.get(slot).deadline >= due;
        self.classes[class as usize].queue.first(&self.requests, |band| rule.due_from(band, due), fits)
    }

    /// Which request goes to one of the backends that were found: the head in `slot`, or else the first one behind it that one of them is
    /// likely to answer in time. Only those that are stay found. If there is none, the head may go to any of them: they may do better
    /// than they have of late, and nothing else of the class has use for them.
    pub(super) fn fit_found(&mut self, now: Instant, class: u32, slot: u32) -> u32 {
        let deadline = self.requests.get(slot).deadline;
        if self.found.iter().all(|&(id, _)| self.is_in_time(now, id, deadline)) {
            return slot;
        }
        let likely = |id: u16| self.backends[usize::from(id)].latency.likely(now);
        let Some(&(quickest, _)) = self.found.iter().min_by_key(|(id, _)| likely(*id)) else { return slot };
        let slot = if self.is_in_time(now, quickest, deadline) {
            slot
        } else {
            // Who fits a slower one fits the quickest: no slower one has a more urgent request.
            let Some(behind) = self.fitting(now, class, quickest) else { return slot };
            behind
        };
        let left = self.requests.get(slot).deadline.since(now);
        let Engine { found, backends, .. } = self;
        found.retain(|(id, _)| backends[usize::from(*id)].latency.is_likely_within(now, left));
        slot
    }
}
