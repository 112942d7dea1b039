//! The cases that every kind of limit is tried in.

use std::fmt;

use super::{Delay, Dice, Report, Rule, Server, Trial};
use crate::limit::{Jitter, Kind, Limit, Margin, bound};
use crate::time::{Instant, Span};

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// A sliding log.
    Log,
    /// Fixed windows that begin with a message.
    Anchored,
    /// Fixed windows that begin at known instants.
    Aligned,
    /// A token bucket.
    TokenBucket,
    /// GCRA with a small burst.
    Gcra,
    /// A sliding-window counter.
    Counter,
    /// A cap on what is served at once.
    Concurrency,
}

impl Serving {
    /// All of them.
    pub const ALL: [Serving; 7] = [
        Serving::Log,
        Serving::Anchored,
        Serving::Aligned,
        Serving::TokenBucket,
        Serving::Gcra,
        Serving::Counter,
        Serving::Concurrency,
    ];
}

impl fmt::Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Serving::Log => "sliding log",
            Serving::Anchored => "anchored window",
            Serving::Aligned => "aligned window",
            Serving::TokenBucket => "token bucket",
            Serving::Gcra => "GCRA",
            Serving::Counter => "sliding counter",
            Serving::Concurrency => "concurrency",
        })
    }
}

/// What a server's documentation says: amounts per period, and a burst if it names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// As a user writes it.
    pub text: &'static str,
    /// Amount and period of each limit.
    pub limits: &'static [(u32, Span)],
    /// Of a bucket.
    pub burst: Option<u32>,
}

impl Shape {
    /// From 10 in a second to 900 in a quarter of an hour.
    pub const ALL: [Shape; 6] = [
        Shape { text: "10/1s", limits: &[(10, Span::from_secs(1))], burst: None },
        Shape { text: "50/5s", limits: &[(50, Span::from_secs(5))], burst: None },
        Shape { text: "100/min + 3000/h", limits: &[(100, Span::from_secs(60)), (3000, Span::from_secs(3600))], burst: None },
        Shape { text: "100/s burst 6", limits: &[(100, Span::from_secs(1))], burst: Some(6) },
        Shape { text: "1000/s burst 20", limits: &[(1000, Span::from_secs(1))], burst: Some(20) },
        Shape { text: "900/15min", limits: &[(900, Span::from_secs(900))], burst: None },
    ];
}

/// Lines: a constant one, two with jitter, and one without a bound.
pub const DELAYS: [(&str, Delay); 4] = [
    ("80 ms", Delay::Constant(Span::from_millis(80))),
    ("0-80 ms", Delay::Uniform(Span::from_millis(80))),
    ("50-130 ms", Delay::Between(Span::from_millis(50), Span::from_millis(130))),
    ("heavy tail", Delay::HeavyTailed),
];

/// How long a server with a cap on concurrency works at a message.
const SERVICE: Span = Span::from_millis(50);
/// Most messages that such a server works at.
const SERVED: u32 = 32;

/// One case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// How the server counts.
    pub serving: Serving,
    /// What it says that it allows.
    pub shape: Shape,
    /// The line to it.
    pub delay: Delay,
    /// What the client knows of it.
    pub jitter: Jitter,
    /// Whether the client was told the kind. If not it takes it for a window, or for a bucket where a burst is named.
    pub is_declared: bool,
    /// The server says when to come back.
    pub tells: bool,
    /// The server counts what it rejects.
    pub counts_rejected: bool,
}

impl Case {
    /// Ten minutes, but at least four periods; eight where the client has to find out first.
    pub fn horizon(&self) -> Span {
        if self.serving == Serving::Concurrency {
            return Span::from_secs(600);
        }
        let longest = self.shape.limits.iter().map(|(_, period)| *period).max().unwrap_or(Span::ZERO);
        Span::from_secs(600).max(longest.times(if self.is_declared { 4 } else { 8 }))
    }

    /// The limits as they are; the phase of windows comes from `dice`.
    fn truth(&self, dice: &mut Dice) -> Vec<Limit> {
        let limit = |&(amount, period): &(u32, Span)| match self.serving {
            Serving::Log | Serving::Anchored => Limit::window(amount, period),
            Serving::Aligned => {
                let boundary = Instant::from_nanos(dice.next_u64() % period.as_nanos());
                Limit::aligned(amount, period, boundary, Span::from_millis(5))
            }
            Serving::TokenBucket => Limit::bucket(amount, period, self.shape.burst.unwrap_or(amount)),
            Serving::Gcra => Limit::bucket(amount, period, self.shape.burst.unwrap_or(1)),
            Serving::Counter => Limit::counter(amount, period),
            Serving::Concurrency => Limit::window(amount, period),
        };
        let limits: &[(u32, Span)] = if self.serving == Serving::Concurrency { &[] } else { self.shape.limits };
        limits.iter().map(limit).map(|limit| limit.expect("a shape is a limit")).collect()
    }

    fn guess(&self) -> Vec<Limit> {
        let limit = |&(amount, period): &(u32, Span)| match self.shape.burst {
            None => Limit::window(amount, period),
            Some(burst) => Limit::bucket(amount, period, burst),
        };
        self.shape.limits.iter().map(limit).map(|limit| limit.expect("a shape is a limit").guessed()).collect()
    }

    fn server(&self, truth: &[Limit], dice: &mut Dice) -> Server {
        let rule = |limit: &Limit| {
            let (amount, period, burst) = (limit.amount(), limit.period(), limit.burst());
            match self.serving {
                Serving::Log => Rule::log(amount, period),
                Serving::Anchored => Rule::anchored(amount, period),
                Serving::Aligned => Rule::aligned(amount, period, limit.boundary().0.since(Instant::ORIGIN)),
                Serving::TokenBucket => Rule::token_bucket(amount, period, burst),
                Serving::Gcra => Rule::gcra(amount, period, burst),
                Serving::Counter => Rule::counter(amount, period, Span::from_nanos(dice.next_u64() % period.as_nanos())),
                Serving::Concurrency => Rule::concurrency(SERVED),
            }
        };
        let mut rules: Vec<Rule> = truth.iter().map(rule).collect();
        if self.serving == Serving::Concurrency {
            rules.push(Rule::concurrency(SERVED));
        }
        let server = Server::new(rules);
        if self.counts_rejected { server.counting_rejected() } else { server }
    }

    /// Tries the case once.
    pub fn run(&self, seed: u64) -> Outcome {
        let mut dice = Dice::new(seed);
        let truth = self.truth(&mut dice);
        let server = self.server(&truth, &mut dice);
        let is_capped = self.serving == Serving::Concurrency;
        let horizon = self.horizon();
        let limits = if self.is_declared || is_capped { truth.clone() } else { self.guess() };
        let limits: Vec<Limit> = limits.into_iter().map(|limit| limit.jittered(self.jitter)).collect();
        let report = Trial {
            limits: limits.clone(),
            concurrency: is_capped.then_some(SERVED),
            server,
            delay: self.delay,
            service: if is_capped { SERVICE } else { Span::ZERO },
            tells: self.tells,
            horizon,
            seed,
        }
        .run();
        let treated_as = treated_as(&limits, &report);
        let at_once = |trip: Span| u64::from(SERVED) * (horizon.as_nanos() / (SERVICE + trip).as_nanos() + 1);
        let allowed = bound::allowed_by_all(&truth, horizon).unwrap_or_else(|| at_once(Span::ZERO));
        let reachable = self.reachable(&treated_as, seed, horizon).unwrap_or_else(|| at_once(self.delay.mean()));
        // What went at the beginning does not count.
        let late = horizon.times(2);
        let allowed_later = bound::allowed_by_all(&truth, late).map_or(u64::MAX, |units| units - allowed);
        let settled = (Instant::ORIGIN + horizon).since(report.settled_at);
        let reachable_later = self.reachable(&treated_as, seed, late).map_or(0, |units| units - reachable);
        let share = settled.as_nanos() as f64 / horizon.as_nanos() as f64;
        let reachable_since = reachable_later.min(allowed_later) as f64 * share;
        Outcome { allowed, reachable: reachable.min(allowed), reachable_since, treated_as, report }
    }

    /// Messages that the policies of these limits get through; nothing without limits.
    fn reachable(&self, limits: &[Limit], seed: u64, horizon: Span) -> Option<u64> {
        let (margin, mean) = (Margin::default(), self.delay.mean());
        let on_this_line = |limit: &Limit| {
            // The same draws in the same order as in the trial.
            let mut dice = Dice::new(seed);
            let mut sent = 0..;
            let round_trips = || {
                let (there, back) = self.delay.draw(sent.next().unwrap_or(0), &mut dice);
                there + back
            };
            bound::reachable_on(limit, margin, mean, round_trips, horizon)
        };
        let by_all = bound::reachable_by_all(limits, margin, mean, horizon)?;
        Some(limits.iter().map(on_this_line).fold(by_all, u64::min))
    }
}

/// The limits as their kinds are in the end.
fn treated_as(limits: &[Limit], report: &Report) -> Vec<Limit> {
    let mut limits = limits.to_vec();
    for (_, step) in &report.steps {
        let limit = &mut limits[usize::from(step.limit)];
        let (amount, period) = (limit.amount(), limit.period());
        *limit = match step.to {
            Kind::Counter => Limit::counter(amount, period),
            Kind::Leaky => Limit::leaky(amount, period),
            _ => Limit::unknown(amount, period),
        }
        .expect("it was a limit before");
    }
    limits
}

/// What came of a case, and what could have.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What happened.
    pub report: Report,
    /// The limits as the client treats them in the end.
    pub treated_as: Vec<Limit>,
    /// Messages that a perfect client gets through.
    pub allowed: u64,
    /// Messages that a client gets through that treats the limits so from the beginning.
    pub reachable: u64,
    /// Messages that such a client gets through in as much time as there was since the last closed limit opened again.
    reachable_since: f64,
}

impl Outcome {
    /// Of what a perfect client gets through.
    pub fn of_allowed(&self) -> f64 {
        self.report.accepted as f64 / self.allowed as f64
    }

    /// Of what the policy gets through.
    pub fn of_reachable(&self) -> f64 {
        self.report.accepted as f64 / self.reachable as f64
    }

    /// The same from when the last closed limit opened again; of the whole if none was closed.
    pub fn of_reachable_since(&self) -> f64 {
        if self.report.rejected == 0 { self.of_reachable() } else { self.report.since.0 as f64 / self.reachable_since }
    }
}
