//! The engine as a balancer: one queue, and a backend is chosen when its limits have room.

use super::Site;
use super::wire::{Client, Message, Reply, Wire};
use crate::engine::{
    Action, Answer, BackendId, BackendSpec, ClassId, ColdStart, Engine, Flags, LeaseId, Options, Outcome, Spends, Submission,
};
use crate::queue::Order;
use crate::retry::Retry;
use crate::route::Adaptive;
use crate::time::{Instant, Span};

/// A client on an engine, which it lets decide everything.
pub(super) struct Late {
    engine: Engine,
    class: ClassId,
    /// By the slot of a request, its place among the arrivals.
    places: Vec<u32>,
}

impl Late {
    pub(super) fn new(order: Order, seed: u64) -> Late {
        let retry = Retry { attempts: 3, base: Span::from_millis(500), cap: Span::from_secs(30), budget_milli: 200 };
        let mut engine = Engine::new(&Options { capacity: 1 << 20, order, retry, seed }, Instant::ORIGIN);
        engine.balance(Box::new(Adaptive));
        let spec = |site: &Site| BackendSpec {
            limits: vec![site.limit()],
            concurrency: None,
            scoped: Vec::new(),
            spends: Spends::Own(1),
            timeout: Some(Span::from_secs(60)),
            weight: 1.0,
            cold_start: ColdStart::AssumeEmpty,
        };
        let backends: Vec<BackendId> = Site::ALL.iter().map(|site| engine.add_backend(Instant::ORIGIN, &spec(site))).collect();
        let class = engine.class(Instant::ORIGIN, &backends, 1).expect("a cost of 1 always fits");
        Late { engine, class, places: Vec::new() }
    }

    /// What a shell does: it interrupts handlers, which return at once, and lets go of what has ended.
    fn tidy(&mut self, now: Instant) {
        while let Some(action) = self.engine.pop_action() {
            if let Action::Interrupt { lease } = action {
                self.engine.finish(now, lease, Outcome::Neutral, Answer::default(), false);
            }
        }
        while self.engine.pop_ended().is_some() {}
        while self.engine.pop_event().is_some() {}
    }
}

impl Client for Late {
    fn arrived(&mut self, now: Instant, nth: u32, arrival: super::Arrival) {
        let submission = Submission {
            class: self.class,
            priority: 0,
            deadline: arrival.deadline,
            not_before: Instant::ORIGIN,
            flow: "",
            scopes: &[],
            flags: Flags::default(),
        };
        self.engine.room().reserve(1);
        let slot = self.engine.submit(now, &submission).slot() as usize;
        if slot >= self.places.len() {
            self.places.resize(slot + 1, 0);
        }
        self.places[slot] = nth;
    }

    fn answered(&mut self, now: Instant, message: Message, reply: Reply) {
        let (outcome, status, retry_after) = match reply {
            Reply::Served => (Outcome::Ok, 200, None),
            Reply::Rejected(wait) => (Outcome::Limited, 429, wait),
        };
        let answer = Answer { status: Some(status), retry_after, is_local: false };
        self.engine.finish(now, LeaseId::from_bits(message.tag), outcome, answer, false);
    }

    fn send(&mut self, now: Instant, wire: &mut Wire) {
        self.engine.tick(now);
        self.tidy(now);
        while let Some(leased) = self.engine.take(now) {
            let nth = self.places[leased.request.slot() as usize];
            wire.send(now, nth, usize::from(leased.backend.0), leased.lease.to_bits());
        }
        self.tidy(now);
    }

    fn next_wake(&self) -> Option<Instant> {
        self.engine.next_wake()
    }
}
