//! Between a client and the servers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::super::{Server, Verdict};
use super::{Arrival, Report, Scenario, Site};
use crate::time::{Instant, Span};

/// A message that was sent for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Message {
    /// The place of the request among the arrivals.
    pub(super) request: u32,
    /// Where it goes.
    pub(super) site: usize,
    pub(super) sent: Instant,
    /// The sender's own name for it.
    pub(super) tag: u64,
}

/// How a server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reply {
    Served,
    Rejected(Option<Span>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    There,
    Back(Reply),
}

/// Who sends.
pub(super) trait Client {
    /// The request that is `nth` of all arrivals has come.
    fn arrived(&mut self, now: Instant, nth: u32, arrival: Arrival);
    /// An answer is here.
    fn answered(&mut self, now: Instant, message: Message, reply: Reply);
    /// Sends all that it wants to send now.
    fn send(&mut self, now: Instant, wire: &mut Wire);
    /// When it wants to send more, should nothing come before.
    fn next_wake(&self) -> Option<Instant>;
}

/// What is on its way, and what came of the rest.
pub(super) struct Wire {
    scenario: Scenario,
    arrivals: Vec<Arrival>,
    servers: [Server; Site::ALL.len()],
    turns: BinaryHeap<Reverse<(Instant, u64, Message, Turn)>>,
    order: u64,
    report: Report,
}

impl Wire {
    pub(super) fn new(scenario: Scenario) -> Wire {
        let arrivals = scenario.arrivals();
        let report = Report { requests: arrivals.len() as u64, ..Report::default() };
        let servers = Site::ALL.map(|site| site.server());
        Wire { scenario, arrivals, servers, turns: BinaryHeap::new(), order: 0, report }
    }

    /// Runs until nothing is on its way and the client wants nothing more.
    pub(super) fn run(mut self, client: &mut dyn Client) -> Report {
        let mut next = 0;
        let mut now = Instant::ORIGIN;
        loop {
            let coming = self.arrivals.get(next).map(|arrival| arrival.at);
            let due = self.turns.peek().map(|Reverse((when, ..))| *when);
            let Some(soonest) = coming.into_iter().chain(due).chain(client.next_wake()).min() else { break };
            now = soonest.max(now);
            while let Some(&arrival) = self.arrivals.get(next)
                && arrival.at <= now
            {
                client.arrived(now, next as u32, arrival);
                next += 1;
            }
            while let Some(&Reverse((when, _, message, turn))) = self.turns.peek()
                && when <= now
            {
                self.turns.pop();
                self.turn(when, message, turn, client);
            }
            client.send(now, &mut self);
        }
        self.report.waits.sort_unstable();
        self.report
    }

    /// Sends a message for a request that waited until now.
    pub(super) fn send(&mut self, now: Instant, request: u32, site: usize, tag: u64) {
        let wait = now.since(self.arrivals[request as usize].at);
        self.report.waits.push(wait);
        let message = Message { request, site, sent: now, tag };
        self.later(now, message, Turn::There);
    }

    fn later(&mut self, now: Instant, message: Message, turn: Turn) {
        self.order += 1;
        let way = self.scenario.way(message.request, message.site);
        self.turns.push(Reverse((now + way, self.order, message, turn)));
    }

    fn turn(&mut self, now: Instant, message: Message, turn: Turn, client: &mut dyn Client) {
        match turn {
            Turn::There => {
                let reply = match self.servers[message.site].arrive(now, 1) {
                    Verdict::Accepted => {
                        self.report.served += u64::from(now.since(Instant::ORIGIN) <= self.scenario.horizon);
                        Reply::Served
                    }
                    Verdict::Rejected(wait) => {
                        self.report.rejected += 1;
                        Reply::Rejected(wait)
                    }
                };
                self.later(now, message, Turn::Back(reply));
            }
            Turn::Back(reply) => {
                let in_time = reply == Reply::Served && now <= self.arrivals[message.request as usize].deadline;
                self.report.in_time += u64::from(in_time);
                client.answered(now, message, reply);
            }
        }
    }
}
