//! An engine against a server.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Delay, Dice, Server, Verdict};
use crate::engine::{Answer, BackendSpec, ColdStart, Engine, Event, Flags, LeaseId, Options, Outcome, Spends, Submission};
use crate::limit::{Limit, Step};
use crate::queue::Order;
use crate::retry::Retry;
use crate::time::{Instant, Span};

/// A client that always has something to send to one server.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What the client believes of the server.
    pub limits: Vec<Limit>,
    /// Attempts at once; `None` for no cap.
    pub concurrency: Option<u32>,
    /// What is true of it.
    pub server: Server,
    /// The line between them.
    pub delay: Delay,
    /// How long the server takes from counting a message to answering it.
    pub service: Span,
    /// It says when to come back, with what it rejects.
    pub tells: bool,
    /// How long to go on.
    pub horizon: Span,
    /// Where the delays start.
    pub seed: u64,
}

/// What came of a trial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Messages that were sent within the horizon and accepted.
    pub accepted: u64,
    /// Messages that were not.
    pub rejected: u64,
    /// Messages in flight when the client learnt of the first rejection, that one included.
    pub in_flight_then: u64,
    /// The steps of the kind ladder, and when, in order.
    pub steps: Vec<(Instant, Step)>,
    /// When the last limit that was closed had opened for good, and the periods of those were over that had taken a step: such a limit
    /// goes on as if it were full. The beginning if none was closed.
    pub settled_at: Instant,
    /// Messages accepted, and rejected, from then on.
    pub since: (u64, u64),
}

/// What arrives next: at the server, or back at the client with what the server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    There { back: Span },
    Answered { back: Span },
    Back { rejected: bool, told: Option<Span> },
}

struct Run {
    trial: Trial,
    engine: Engine,
    dice: Dice,
    turns: BinaryHeap<Reverse<(Instant, u64, u64, Turn)>>,
    order: u64,
    sent: u64,
    out: u64,
    report: Report,
}

impl Trial {
    /// Tries it.
    pub fn run(self) -> Report {
        let retry = Retry { attempts: 1, base: Span::ZERO, cap: Span::ZERO, budget_milli: 0 };
        let mut engine = Engine::new(&Options { capacity: 2, order: Order::Strict, retry, seed: self.seed }, Instant::ORIGIN);
        let spec = BackendSpec {
            limits: self.limits.clone(),
            concurrency: self.concurrency,
            scoped: Vec::new(),
            spends: Spends::Own(1),
            timeout: None,
            weight: 1.0,
            cold_start: ColdStart::AssumeEmpty,
        };
        let backend = engine.add_backend(Instant::ORIGIN, &spec);
        let class = engine.class(Instant::ORIGIN, &[backend], 1).expect("a cost of 1 always fits");
        let submission = Submission {
            class,
            priority: 0,
            deadline: Instant::FAR,
            not_before: Instant::ORIGIN,
            flow: "",
            scopes: &[],
            flags: Flags::default(),
        };
        let (dice, end) = (Dice::new(self.seed), Instant::ORIGIN + self.horizon);
        let mut run =
            Run { trial: self, engine, dice, turns: BinaryHeap::new(), order: 0, sent: 0, out: 0, report: Report::default() };
        let mut now = Instant::ORIGIN;
        while now <= end {
            run.send(now, &submission);
            let due = run.turns.peek().map(|Reverse((when, ..))| *when);
            let wake = run.engine.next_wake();
            now = due.into_iter().chain(wake).min().expect("something is in flight, or a limit has room some day").max(now);
            while let Some(&Reverse((when, _, lease, turn))) = run.turns.peek()
                && when <= now
            {
                run.turns.pop();
                run.turn(when, lease, turn);
            }
        }
        while let Some(Reverse((when, _, lease, turn))) = run.turns.pop() {
            run.turn(when, lease, turn);
        }
        run.report
    }
}

impl Run {
    /// Sends all that may go now. There is always one request that waits.
    fn send(&mut self, now: Instant, submission: &Submission<'_>) {
        loop {
            if self.engine.ledger().queued == 0 {
                self.engine.room().reserve(1);
                self.engine.submit(now, submission);
            }
            let Some(leased) = self.engine.take(now) else { return };
            let (there, back) = self.trial.delay.draw(self.sent, &mut self.dice);
            self.sent += 1;
            self.out += 1;
            self.at(now + there, leased.lease.to_bits(), Turn::There { back });
        }
    }

    fn at(&mut self, when: Instant, lease: u64, turn: Turn) {
        self.order += 1;
        self.turns.push(Reverse((when, self.order, lease, turn)));
    }

    fn turn(&mut self, now: Instant, lease: u64, turn: Turn) {
        match turn {
            Turn::There { back } => match self.trial.server.arrive(now, 1) {
                Verdict::Accepted => {
                    self.report.accepted += 1;
                    self.report.since.0 += u64::from(now >= self.report.settled_at);
                    let answered = Turn::Answered { back };
                    self.at(now + self.trial.service, lease, answered);
                }
                Verdict::Rejected(wait) => {
                    self.report.rejected += 1;
                    self.report.since.1 += 1;
                    let told = wait.filter(|_| self.trial.tells);
                    self.at(now + back, lease, Turn::Back { rejected: true, told });
                }
            },
            Turn::Answered { back } => {
                self.trial.server.leave();
                self.at(now + back, lease, Turn::Back { rejected: false, told: None });
            }
            Turn::Back { rejected, told } => self.back(now, LeaseId::from_bits(lease), rejected, told),
        }
    }

    fn back(&mut self, now: Instant, lease: LeaseId, rejected: bool, told: Option<Span>) {
        if rejected && self.report.in_flight_then == 0 {
            self.report.in_flight_then = self.out;
        }
        self.out -= 1;
        let (outcome, status) = if rejected { (Outcome::Limited, 429) } else { (Outcome::Ok, 200) };
        self.engine.finish(now, lease, outcome, Answer { status: Some(status), retry_after: told, ..Answer::default() }, false);
        while let Some(event) = self.engine.pop_event() {
            match event {
                Event::LimitStepped { step, .. } => self.report.steps.push((now, step)),
                Event::LimitReopened { .. } => {
                    let stepped = self.report.steps.iter().map(|(_, step)| self.trial.limits[usize::from(step.limit)].period());
                    self.report.settled_at = now + stepped.max().unwrap_or(Span::ZERO);
                    self.report.since = (0, 0);
                }
                _ => {}
            }
        }
    }
}
