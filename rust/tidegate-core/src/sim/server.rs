//! Strict servers of the seven kinds that are in use.

use std::collections::VecDeque;

use crate::time::{Instant, Span};

/// What a server says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served.
    Accepted,
    /// It is not. How long until it would be, if nothing else came; `None` when that depends on what is being served.
    Rejected(Option<Span>),
}

/// One rule by which a server counts. Units are counted in the order in which messages arrive.
#[derive(Clone, Debug)]
pub struct Rule(Count);

#[derive(Clone, Debug)]
enum Count {
    Log {
        amount: u32,
        period: Span,
        /// What it counted within the last period, oldest first.
        counted: VecDeque<(Instant, u32)>,
        /// Sum of `counted`.
        used: u64,
    },
    Anchored {
        amount: u32,
        period: Span,
        /// When this window began, if one did, and what it counted.
        current: Option<(Instant, u64)>,
    },
    Aligned {
        amount: u32,
        period: Span,
        phase: Span,
        /// Which window this is, and what it counted.
        current: (u64, u64),
    },
    TokenBucket {
        amount: u32,
        period: Span,
        burst: u32,
        /// Tokens times nanoseconds of the period, at `seen`.
        level: u128,
        seen: Instant,
    },
    Gcra {
        amount: u32,
        period: Span,
        burst: u32,
        /// The theoretical arrival time in nanoseconds times `amount`.
        tat: u128,
    },
    Counter {
        amount: u32,
        period: Span,
        phase: Span,
        /// Which window this is, what it counted, and what the one before did.
        current: (u64, u64, u64),
    },
    Concurrency {
        amount: u32,
        inside: u32,
    },
}

impl Rule {
    /// A sliding log.
    pub fn log(amount: u32, period: Span) -> Rule {
        Rule(Count::Log { amount, period, counted: VecDeque::new(), used: 0 })
    }

    /// A fixed window, anchored at the first message.
    pub fn anchored(amount: u32, period: Span) -> Rule {
        Rule(Count::Anchored { amount, period, current: None })
    }

    /// Fixed windows, one of which begins at `phase`.
    ///
    /// # Panics
    /// When `period` is zero.
    pub fn aligned(amount: u32, period: Span, phase: Span) -> Rule {
        Rule(Count::Aligned { amount, period, phase: within(phase, period), current: (0, 0) })
    }

    /// A full token bucket.
    pub fn token_bucket(amount: u32, period: Span, burst: u32) -> Rule {
        let level = u128::from(burst) * u128::from(period.as_nanos());
        Rule(Count::TokenBucket { amount, period, burst, level, seen: Instant::ORIGIN })
    }

    /// GCRA from idle.
    pub fn gcra(amount: u32, period: Span, burst: u32) -> Rule {
        Rule(Count::Gcra { amount, period, burst, tat: 0 })
    }

    /// A sliding-window counter, one of whose windows begins at `phase`.
    ///
    /// # Panics
    /// When `period` is zero.
    pub fn counter(amount: u32, period: Span, phase: Span) -> Rule {
        Rule(Count::Counter { amount, period, phase: within(phase, period), current: (0, 0, 0) })
    }

    /// A cap on what is served at once.
    pub fn concurrency(amount: u32) -> Rule {
        Rule(Count::Concurrency { amount, inside: 0 })
    }

    /// Lets time pass.
    fn advance(&mut self, now: Instant) {
        match &mut self.0 {
            Count::Log { period, counted, used, .. } => {
                while let Some(&(then, units)) = counted.front()
                    && now.since(then) >= *period
                {
                    counted.pop_front();
                    *used -= u64::from(units);
                }
            }
            Count::Anchored { period, current, .. } => {
                *current = current.filter(|(start, _)| now.since(*start) < *period);
            }
            Count::Aligned { period, phase, current, .. } => {
                let (window, _) = position(now, *period, *phase);
                if window != current.0 {
                    *current = (window, 0);
                }
            }
            Count::TokenBucket { amount, period, burst, level, seen } => {
                let refilled = *level + u128::from(now.since(*seen).as_nanos()) * u128::from(*amount);
                *level = refilled.min(u128::from(*burst) * u128::from(period.as_nanos()));
                *seen = now;
            }
            Count::Counter { period, phase, current, .. } => {
                let (window, _) = position(now, *period, *phase);
                *current = match window - current.0 {
                    0 => *current,
                    1 => (window, 0, current.1),
                    _ => (window, 0, 0),
                };
            }
            Count::Gcra { .. } | Count::Concurrency { .. } => {}
        }
    }

    /// How long until `cost` more units fit, time having been advanced to `now`; `Ok` when they do.
    fn fits(&self, now: Instant, cost: u32) -> Result<(), Option<Span>> {
        let cost_wide = u64::from(cost);
        match &self.0 {
            Count::Log { amount, period, counted, used } => {
                let Some(excess) = (used + cost_wide).checked_sub(u64::from(*amount)).filter(|&excess| excess > 0) else {
                    return Ok(());
                };
                let mut freed = 0;
                let reached = |entry: &&(Instant, u32)| {
                    freed += u64::from(entry.1);
                    freed >= excess
                };
                Err(counted.iter().find(reached).map(|(then, _)| (*then + *period).since(now)))
            }
            Count::Anchored { amount, period, current } => match current {
                Some((start, count)) if count + cost_wide > u64::from(*amount) => Err(Some((*start + *period).since(now))),
                _ => Ok(()),
            },
            Count::Aligned { amount, period, phase, current } => {
                let (_, elapsed) = position(now, *period, *phase);
                if current.1 + cost_wide > u64::from(*amount) { Err(Some(*period - elapsed)) } else { Ok(()) }
            }
            Count::TokenBucket { amount, period, level, .. } => {
                let price = u128::from(cost) * u128::from(period.as_nanos());
                match price.checked_sub(*level) {
                    Some(missing) if missing > 0 => Err(Some(nanos(missing.div_ceil(u128::from(*amount))))),
                    _ => Ok(()),
                }
            }
            Count::Gcra { amount, period, burst, tat } => {
                let now = u128::from(now.as_nanos()) * u128::from(*amount);
                let due = now.max(*tat) + u128::from(cost) * u128::from(period.as_nanos());
                let latest = now + u128::from(*burst) * u128::from(period.as_nanos());
                match due.checked_sub(latest) {
                    Some(early) if early > 0 => Err(Some(nanos(early.div_ceil(u128::from(*amount))))),
                    _ => Ok(()),
                }
            }
            Count::Counter { amount, period, phase, current: (_, count, before) } => {
                let (_, elapsed) = position(now, *period, *phase);
                let (whole, rest) = (u128::from(period.as_nanos()), u128::from((*period - elapsed).as_nanos()));
                let others = u128::from(cost - 1) * whole;
                let Some(excess) =
                    (u128::from(*before) * rest + u128::from(*count) * whole + others).checked_sub(u128::from(*amount) * whole)
                else {
                    return Ok(());
                };
                // The weight of the window before falls by what it counted a nanosecond; the estimate is to be below the amount, not at it.
                let wait = excess.checked_div(u128::from(*before)).map(|wait| wait + 1).filter(|wait| *wait <= rest);
                let next = || {
                    let excess = (u128::from(*count) * whole + others).checked_sub(u128::from(*amount) * whole);
                    rest + excess.map_or(0, |excess| excess / u128::from(*count).max(1) + 1)
                };
                Err(Some(nanos(wait.unwrap_or_else(next))))
            }
            Count::Concurrency { amount, inside } => {
                if inside < amount {
                    Ok(())
                } else {
                    Err(None)
                }
            }
        }
    }

    fn count(&mut self, now: Instant, cost: u32) {
        match &mut self.0 {
            Count::Log { counted, used, .. } => {
                counted.push_back((now, cost));
                *used += u64::from(cost);
            }
            Count::Anchored { current, .. } => {
                let (start, count) = current.unwrap_or((now, 0));
                *current = Some((start, count + u64::from(cost)));
            }
            Count::Aligned { current, .. } => current.1 += u64::from(cost),
            Count::TokenBucket { period, level, .. } => {
                *level = level.saturating_sub(u128::from(cost) * u128::from(period.as_nanos()));
            }
            Count::Gcra { amount, period, tat, .. } => {
                let now = u128::from(now.as_nanos()) * u128::from(*amount);
                *tat = now.max(*tat) + u128::from(cost) * u128::from(period.as_nanos());
            }
            Count::Counter { current, .. } => current.1 += u64::from(cost),
            Count::Concurrency { .. } => {}
        }
    }
}

/// A server that lets a message through when all of its rules do, and then counts it for all of them.
#[derive(Clone, Debug)]
pub struct Server {
    rules: Vec<Rule>,
    counts_rejected: bool,
}

impl Server {
    /// With these rules; one that has none lets everything through.
    pub fn new(rules: Vec<Rule>) -> Server {
        Server { rules, counts_rejected: false }
    }

    /// The same, but it counts what it rejects like the rest.
    #[must_use]
    pub fn counting_rejected(self) -> Server {
        Server { counts_rejected: true, ..self }
    }

    /// A message of `cost` units, at least 1, arrives at `now`; not before the last one.
    ///
    /// # Complexity
    /// Linear in the rules; a log that rejects, or looks at a large cost, in what it counted.
    pub fn arrive(&mut self, now: Instant, cost: u32) -> Verdict {
        self.rules.iter_mut().for_each(|rule| rule.advance(now));
        let mut verdict = self.verdict(now, cost);
        if verdict == Verdict::Accepted || self.counts_rejected {
            self.rules.iter_mut().for_each(|rule| rule.count(now, cost));
        }
        if verdict != Verdict::Accepted && self.counts_rejected {
            // By itself it has put off when it would be served.
            verdict = self.verdict(now, cost);
        }
        if verdict == Verdict::Accepted {
            self.inside(|inside| inside + 1);
        }
        verdict
    }

    fn verdict(&self, now: Instant, cost: u32) -> Verdict {
        let waits = self.rules.iter().filter_map(|rule| rule.fits(now, cost).err());
        waits.reduce(Ord::max).map_or(Verdict::Accepted, Verdict::Rejected)
    }

    /// A message that was accepted is served: it counts no longer against a cap on concurrency.
    pub fn leave(&mut self) {
        self.inside(|inside| inside.saturating_sub(1));
    }

    fn inside(&mut self, change: impl Fn(u32) -> u32) {
        for rule in &mut self.rules {
            if let Count::Concurrency { inside, .. } = &mut rule.0 {
                *inside = change(*inside);
            }
        }
    }
}

fn within(phase: Span, period: Span) -> Span {
    Span::from_nanos(phase.as_nanos() % period.as_nanos())
}

/// Which window `now` lies in, and how much of it is over. Windows begin at `phase` and every period from there.
fn position(now: Instant, period: Span, phase: Span) -> (u64, Span) {
    // As if the clock had begun a period minus the phase earlier, at a boundary.
    let since = now.as_nanos() + (period - phase).as_nanos();
    (since / period.as_nanos(), Span::from_nanos(since % period.as_nanos()))
}

fn nanos(count: u128) -> Span {
    Span::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    const PERIOD: Span = Span::from_nanos(1000);

    fn rules() -> [Rule; 6] {
        let phase = Span::from_nanos(300);
        [
            Rule::log(4, PERIOD),
            Rule::anchored(4, PERIOD),
            Rule::aligned(4, PERIOD, phase),
            Rule::token_bucket(4, PERIOD, 4),
            Rule::gcra(4, PERIOD, 4),
            Rule::counter(4, PERIOD, phase),
        ]
    }

    /// Four at once, and when a fifth is let through.
    #[test]
    fn each_kind_lets_the_next_one_through_when_it_says() {
        for (rule, wait) in rules().into_iter().zip([1000, 1000, 950, 250, 250, 951]) {
            let mut server = Server::new(vec![rule.clone()]);
            for _ in 0..4 {
                assert_eq!(server.arrive(at(350), 1), Verdict::Accepted);
            }
            assert_eq!(server.arrive(at(350), 1), Verdict::Rejected(Some(Span::from_nanos(wait))), "{rule:?}");
            assert!(matches!(server.arrive(at(349 + wait), 1), Verdict::Rejected(_)), "{rule:?}");
            assert_eq!(server.arrive(at(350 + wait), 1), Verdict::Accepted, "{rule:?}");
        }
    }

    #[test]
    fn a_counter_weighs_what_is_left_of_the_last_window() {
        let mut server = Server::new(vec![Rule::counter(4, PERIOD, Span::ZERO)]);
        for nanos in [0, 0, 0, 0, 1001, 1251] {
            assert_eq!(server.arrive(at(nanos), 1), Verdict::Accepted);
        }
        assert_eq!(server.arrive(at(1500), 1), Verdict::Rejected(Some(Span::from_nanos(1))));
        assert_eq!(server.arrive(at(1501), 1), Verdict::Accepted);
    }

    #[test]
    fn a_cap_on_concurrency_counts_what_is_inside() {
        let mut server = Server::new(vec![Rule::concurrency(1)]);
        assert_eq!(server.arrive(at(0), 1), Verdict::Accepted);
        assert_eq!(server.arrive(at(1), 1), Verdict::Rejected(None));
        server.leave();
        assert_eq!(server.arrive(at(1), 1), Verdict::Accepted);
    }

    #[test]
    fn a_rejected_message_counts_only_where_it_is_said_to() {
        for rule in rules() {
            let wait = |server: Server| {
                let mut server = server;
                for nanos in [350, 350, 350, 350, 400] {
                    server.arrive(at(nanos), 1);
                }
                server.arrive(at(450), 4)
            };
            let plain = wait(Server::new(vec![rule.clone()]));
            let strict = wait(Server::new(vec![rule.clone()]).counting_rejected());
            match rule.0 {
                // A window that is full cannot be fuller.
                Count::Anchored { .. } | Count::Aligned { .. } => assert_eq!(plain, strict),
                _ => assert_ne!(plain, strict, "{rule:?}"),
            }
        }
    }

    #[test]
    fn nothing_is_counted_when_one_of_several_rules_rejects() {
        let mut server = Server::new(vec![Rule::log(3, Span::from_nanos(10_000)), Rule::log(1, PERIOD)]);
        assert_eq!(server.arrive(at(0), 1), Verdict::Accepted);
        assert_eq!(server.arrive(at(1), 1), Verdict::Rejected(Some(Span::from_nanos(999))));
        assert_eq!(server.arrive(at(1000), 1), Verdict::Accepted);
        assert_eq!(server.arrive(at(2000), 1), Verdict::Accepted);
        assert_eq!(server.arrive(at(2000), 1), Verdict::Rejected(Some(Span::from_nanos(8000))));
    }
}
