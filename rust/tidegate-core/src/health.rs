//! Whether one upstream works: what attempts say of it, and what may be sent to it for that.
//!
//! ```text
//!   UP ---- failures ----> OPEN ---- time ----> PROBE ---- ok ----> RAMP ---- time ----> UP
//!                           ^  ^                  |                  |
//!                           |  +--- failed -------+                  |
//!                           +------ failures ------------------------+
//! ```
//!
//! UP trips by a CUSUM over attempts, not over time, so the same rule works at one request a minute and at a thousand a second. OPEN takes
//! nothing, for a time that doubles with each failure to recover. PROBE takes exactly one request. RAMP takes as many at once as have
//! succeeded since, and no faster than its shortest limit allows in the long run: the burst that others kept for it waits.
//!
//! Sources: Page, "Continuous Inspection Schemes", Biometrika 1954 (CUSUM); Wald, "Sequential Analysis", 1947 (its threshold); Lucas and
//! Crosier, "Fast Initial Response for CUSUM", Technometrics 1982 (the head start in RAMP); Envoy and gRPC A50 (times that grow).

use crate::retry::Random;
use crate::time::{Instant, Span};

/// Evidence at which it trips: ln(0.99 / 0.001), the error rates of Wald's test.
const TRIP: f64 = 6.9;
/// In RAMP evidence starts here: two failures in a row suffice.
const HEAD_START: f64 = TRIP / 2.0;
/// Failure rates of an upstream that works: at least, and at most as far as it is learned.
const LEAST_RATE: f64 = 0.02;
const MOST_RATE: f64 = 0.25;
/// The failure rate of one that does not.
const BAD_RATE: f64 = 0.5;
/// The same two for one that has no substitute: half of what it gives is better than nothing.
const SOLE_RATE: f64 = 0.5;
const SOLE_BAD_RATE: f64 = 0.95;
/// Weight of one attempt in the learned failure rate.
const RATE_WEIGHT: f64 = 0.002;
/// Half-life of what the score remembers.
const HALF_LIFE: Span = Span::from_secs(60);

/// How health is watched.
#[derive(Clone, Copy, Debug)]
pub struct Monitor {
    /// Nothing trips without.
    pub enabled: bool,
    /// Upper end of the first time in OPEN.
    pub base: Span,
    /// Upper end of any.
    pub cap: Span,
    /// Upper end of any for one that has no substitute.
    pub sole_cap: Span,
    /// Time in RAMP.
    pub ramp: Span,
}

impl Default for Monitor {
    fn default() -> Monitor {
        Monitor {
            enabled: true,
            base: Span::from_secs(5),
            cap: Span::from_secs(300),
            sole_cap: Span::from_secs(30),
            ramp: Span::from_secs(60),
        }
    }
}

/// Where an upstream stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase {
    /// It works.
    Up,
    /// It does not: nothing is sent until then.
    Open {
        /// When it is tried again.
        until: Instant,
    },
    /// One request is sent to see.
    Probe {
        /// It is on its way.
        running: bool,
    },
    /// It works again, and is not trusted yet.
    Ramp {
        /// Since when.
        since: Instant,
        /// Attempts at once.
        window: u32,
        /// When the next may start.
        next_at: Instant,
    },
}

/// What an attempt says of its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It has answered, and not with a failure of its own.
    Works,
    /// It has failed.
    Fails,
    /// Its limits have rejected the attempt: it says nothing, but that a probe has not gone through.
    Rejects,
    /// Nothing: the attempt was given up.
    Nothing,
}

/// A change of phase, with what it was changed for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// The phase that begins.
    pub phase: Phase,
    /// Attempts that failed since the evidence began, and all of those.
    pub failed: u32,
    /// See `failed`.
    pub attempts: u32,
}

/// Whether something may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Yes.
    Lifted,
    /// Not before this instant.
    Until(Instant),
    /// Not before an attempt ends.
    Attempt,
}

/// One upstream.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    phase: Phase,
    /// That it does not work, as the logarithm of a likelihood ratio; 0 for none.
    evidence: f64,
    /// Attempts that failed since the evidence was last 0, and all of those.
    failed: u32,
    attempts: u32,
    /// Share of attempts that fail while it works.
    rate: f64,
    /// How often it has failed to recover: OPEN lasts twice as long each time.
    openings: u32,
    /// Attempts that failed and all, decayed.
    recent_failed: f64,
    recent: f64,
    recent_at: Instant,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            phase: Phase::Up,
            evidence: 0.0,
            failed: 0,
            attempts: 0,
            rate: LEAST_RATE,
            openings: 0,
            recent_failed: 0.0,
            recent: 0.0,
            recent_at: Instant::ORIGIN,
        }
    }
}

impl Health {
    /// Where it stands.
    #[inline]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether it works, as far as is known.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// Whether it takes one request, to see.
    #[inline]
    pub fn awaits_probe(&self) -> bool {
        self.phase == Phase::Probe { running: false }
    }

    /// Whether it is up, and nothing speaks against that.
    #[inline]
    pub fn is_calm(&self) -> bool {
        self.is_up() && self.evidence <= 0.0
    }

    /// The same as [`ended`](Health::ended) with [`Sign::Works`] for one that [is calm](Health::is_calm).
    #[inline]
    pub fn works(&mut self, now: Instant) {
        self.remember(now, false);
        self.rate += (LEAST_RATE - self.rate) * RATE_WEIGHT;
    }

    /// The likelihood that an attempt fails now: of those of the last minutes, and of one half.
    pub fn risk(&self, now: Instant) -> f64 {
        if self.recent_failed == 0.0 {
            return 0.0;
        }
        let kept = kept(now.since(self.recent_at));
        (self.recent_failed * kept + 0.5) / (self.recent * kept + 1.0)
    }

    /// From 0, nothing is sent to it, to 1: the share of attempts that succeed, times how much of it is used again in RAMP.
    pub fn score(&self, now: Instant, monitor: &Monitor) -> f64 {
        let used = match self.phase {
            Phase::Up => 1.0,
            Phase::Open { .. } | Phase::Probe { .. } => 0.0,
            Phase::Ramp { since, .. } => {
                (now.since(since).as_nanos() as f64 / monitor.ramp.as_nanos().max(1) as f64).clamp(0.1, 1.0)
            }
        };
        (1.0 - self.risk(now)) * used
    }

    /// Whether something may be sent, with so many attempts in flight.
    pub fn bar(&self, now: Instant, in_flight: u32) -> Bar {
        match self.phase {
            Phase::Up | Phase::Probe { running: false } => Bar::Lifted,
            Phase::Open { until } => Bar::Until(until),
            Phase::Probe { running: true } => Bar::Attempt,
            Phase::Ramp { window, .. } if in_flight >= window => Bar::Attempt,
            Phase::Ramp { next_at, .. } if next_at > now => Bar::Until(next_at),
            Phase::Ramp { .. } => Bar::Lifted,
        }
    }

    /// How many more may be sent now, with so many in flight.
    pub fn room(&self, in_flight: u32) -> u32 {
        match self.phase {
            Phase::Up => u32::MAX,
            Phase::Open { .. } | Phase::Probe { running: true } => 0,
            Phase::Probe { running: false } => 1,
            Phase::Ramp { window, .. } => window.saturating_sub(in_flight),
        }
    }

    /// An attempt starts. `pace`: the time from one to the next that its shortest limit allows in the long run. Whether it is the probe.
    pub fn started(&mut self, now: Instant, pace: Span) -> bool {
        match &mut self.phase {
            Phase::Probe { running } => !std::mem::replace(running, true),
            Phase::Ramp { next_at, .. } => {
                *next_at = (*next_at).max(now) + pace;
                false
            }
            Phase::Up | Phase::Open { .. } => false,
        }
    }

    /// Lets time pass: OPEN and RAMP end.
    pub fn tick(&mut self, now: Instant, monitor: &Monitor) -> Option<Turn> {
        match self.phase {
            Phase::Open { until } if until <= now => Some(self.turn(Phase::Probe { running: false })),
            Phase::Ramp { since, .. } if since + monitor.ramp <= now => {
                self.openings = 0;
                Some(self.turn(Phase::Up))
            }
            _ => None,
        }
    }

    /// An attempt came to an end. `is_probe`: it was the one that PROBE let go. `is_current`: it began after the last OPEN did.
    ///
    /// `others`: how often attempts fail at the others, on average: what fails everywhere is no fault of this one. `sole`: some requests
    /// have no other to go to.
    pub fn ended(
        &mut self,
        now: Instant,
        (sign, is_probe, is_current): (Sign, bool, bool),
        (others, sole): (f64, bool),
        monitor: &Monitor,
        random: &mut Random,
    ) -> Option<Turn> {
        if matches!(sign, Sign::Works | Sign::Fails) {
            self.remember(now, sign == Sign::Fails);
        }
        match (self.phase, sign) {
            _ if !monitor.enabled => None,
            (Phase::Probe { .. }, Sign::Nothing) if is_probe => Some(self.turn(Phase::Probe { running: false })),
            (Phase::Probe { .. }, Sign::Works) if is_probe => {
                let turn = self.turn(Phase::Ramp { since: now, window: 2, next_at: now });
                (self.evidence, self.failed, self.attempts) = (HEAD_START, 0, 0);
                Some(turn)
            }
            (Phase::Probe { .. }, Sign::Fails | Sign::Rejects) if is_probe => Some(self.open(now, sole, monitor, random)),
            // It began before.
            (Phase::Open { .. } | Phase::Probe { .. }, _) | (_, Sign::Rejects | Sign::Nothing) => None,
            _ if !is_current => None,
            (Phase::Up | Phase::Ramp { .. }, Sign::Works) => {
                if let Phase::Ramp { window, .. } = &mut self.phase {
                    *window = window.saturating_add(1);
                }
                self.rate += (LEAST_RATE - self.rate) * RATE_WEIGHT;
                if self.evidence > 0.0 {
                    let (good, bad) = rates(self.rate, others, sole);
                    self.attempts += 1;
                    self.evidence = (self.evidence + ((1.0 - bad) / (1.0 - good)).ln()).max(0.0);
                }
                None
            }
            (Phase::Up | Phase::Ramp { .. }, Sign::Fails) => {
                let (good, bad) = rates(self.rate, others, sole);
                if self.evidence <= 0.0 {
                    (self.failed, self.attempts) = (0, 0);
                }
                self.failed += 1;
                self.attempts += 1;
                self.evidence = self.evidence.max(0.0) + (bad / good).ln();
                self.rate = (self.rate + (1.0 - self.rate) * RATE_WEIGHT).min(MOST_RATE);
                (self.evidence >= TRIP).then(|| self.open(now, sole, monitor, random))
            }
        }
    }

    fn open(&mut self, now: Instant, sole: bool, monitor: &Monitor, random: &mut Random) -> Turn {
        let cap = if sole { monitor.sole_cap } else { monitor.cap };
        let longest = monitor.base.times(1 << self.openings.min(32)).min(cap);
        let half = longest.as_nanos() / 2;
        let wait = Span::from_nanos(half + random.up_to(half));
        self.openings = self.openings.saturating_add(1);
        let turn = self.turn(Phase::Open { until: now + wait });
        self.evidence = 0.0;
        turn
    }

    fn turn(&mut self, phase: Phase) -> Turn {
        self.phase = phase;
        Turn { phase, failed: self.failed, attempts: self.attempts }
    }

    fn remember(&mut self, now: Instant, failed: bool) {
        let kept = kept(now.since(self.recent_at));
        self.recent = self.recent * kept + 1.0;
        self.recent_failed = self.recent_failed * kept + f64::from(u8::from(failed));
        self.recent_at = now;
    }
}

/// The failure rates of an upstream that works and of one that does not.
fn rates(own: f64, others: f64, sole: bool) -> (f64, f64) {
    if sole { (SOLE_RATE, SOLE_BAD_RATE) } else { (own.max(others).clamp(LEAST_RATE, MOST_RATE), BAD_RATE) }
}

/// What is left of a count after so long.
fn kept(since: Span) -> f64 {
    if since == Span::ZERO { 1.0 } else { (-(since.as_nanos() as f64) / HALF_LIFE.as_nanos() as f64).exp2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: (f64, bool) = (0.0, false);

    fn at(seconds: f64) -> Instant {
        Instant::ORIGIN + Span::from_nanos((seconds * 1e9) as u64)
    }

    struct Bench {
        health: Health,
        monitor: Monitor,
        random: Random,
        now: f64,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { health: Health::default(), monitor: Monitor::default(), random: Random::new(1), now: 0.0 }
        }

        /// One attempt that takes no time.
        fn attempt(&mut self, sign: Sign, others: (f64, bool)) -> Option<Turn> {
            let now = at(self.now);
            let is_probe = self.health.started(now, Span::ZERO);
            self.health.ended(now, (sign, is_probe, true), others, &self.monitor, &mut self.random)
        }

        fn trip(&mut self) -> Instant {
            loop {
                if let Some(Turn { phase: Phase::Open { until }, .. }) = self.attempt(Sign::Fails, OTHERS) {
                    return until;
                }
            }
        }
    }

    #[test]
    fn three_failures_in_a_row_trip_and_two_do_not() {
        let mut bench = Bench::new();
        for _ in 0..1000 {
            assert_eq!(bench.attempt(Sign::Works, OTHERS), None);
        }
        assert_eq!(bench.attempt(Sign::Fails, OTHERS), None);
        assert_eq!(bench.attempt(Sign::Fails, OTHERS), None);
        let turn = bench.attempt(Sign::Fails, OTHERS).unwrap();
        assert_eq!((turn.failed, turn.attempts), (3, 3));
        assert!(matches!(turn.phase, Phase::Open { until } if at(2.5) <= until && until <= at(5.0)));
        assert_eq!(bench.health.bar(at(0.0), 0), Bar::Until(bench.trip_time()));
    }

    impl Bench {
        fn trip_time(&self) -> Instant {
            match self.health.phase() {
                Phase::Open { until } => until,
                phase => panic!("{phase:?}"),
            }
        }
    }

    #[test]
    fn every_seventh_does_not_trip_and_every_second_does() {
        for (every, trips) in [(7, false), (2, true)] {
            let mut bench = Bench::new();
            let tripped = (0..10_000).any(|n| {
                let sign = if n % every == 0 { Sign::Fails } else { Sign::Works };
                bench.attempt(sign, OTHERS).is_some()
            });
            assert_eq!(tripped, trips, "every {every}");
        }
    }

    #[test]
    fn what_fails_everywhere_is_no_outlier() {
        let mut bench = Bench::new();
        let share = |n: usize| if n.is_multiple_of(4) { Sign::Fails } else { Sign::Works };
        assert!((0..10_000).all(|n| bench.attempt(share(n), (0.25, false)).is_none()));
        let mut bench = Bench::new();
        assert!((0..10_000).any(|n| bench.attempt(share(n), OTHERS).is_some()));
    }

    #[test]
    fn one_without_a_substitute_goes_on_with_half_of_what_it_gives() {
        let mut bench = Bench::new();
        let sole = (0.0, true);
        assert!((0..10_000).all(|n| bench.attempt(if n % 2 == 0 { Sign::Fails } else { Sign::Works }, sole).is_none()));
        let mut failures = 0;
        while bench.attempt(Sign::Fails, sole).is_none() {
            failures += 1;
        }
        assert_eq!(failures, 10);
    }

    #[test]
    fn probe_is_one_and_its_end_decides() {
        let mut bench = Bench::new();
        let until = bench.trip();
        assert!(bench.health.tick(at(0.1), &bench.monitor).is_none());
        let turn = bench.health.tick(until, &bench.monitor).unwrap();
        assert_eq!(turn.phase, Phase::Probe { running: false });
        assert!(bench.health.started(until, Span::ZERO));
        assert_eq!(bench.health.bar(until, 1), Bar::Attempt);
        // One that began before the upstream opened says nothing.
        let Bench { health, monitor, random, .. } = &mut bench;
        assert_eq!(health.ended(until, (Sign::Works, false, false), OTHERS, monitor, random), None);
        assert_eq!(health.bar(until, 1), Bar::Attempt);
        // One that was given up makes place for another.
        health.ended(until, (Sign::Nothing, true, true), OTHERS, monitor, random);
        assert_eq!(health.bar(until, 0), Bar::Lifted);
        assert!(health.started(until, Span::ZERO));
        let turn = health.ended(until, (Sign::Rejects, true, true), OTHERS, monitor, random).unwrap();
        assert!(matches!(turn.phase, Phase::Open { .. }), "429 on a probe is a failed probe");
    }

    #[test]
    fn time_in_open_doubles_up_to_its_cap_and_a_whole_ramp_forgives() {
        let mut bench = Bench::new();
        let mut until = bench.trip();
        for k in 1..10 {
            bench.health.tick(until, &bench.monitor);
            bench.now = until.since(Instant::ORIGIN).as_nanos() as f64 / 1e9;
            let began = at(bench.now);
            bench.attempt(Sign::Fails, OTHERS);
            until = bench.trip_time();
            let longest = Span::from_secs(5).times(1 << k).min(Span::from_secs(300));
            let wait = until.since(began);
            assert!(longest.as_nanos() / 2 <= wait.as_nanos() + 1 && wait <= longest, "{k}: {wait:?}");
        }
        bench.health.tick(until, &bench.monitor);
        bench.now = until.since(Instant::ORIGIN).as_nanos() as f64 / 1e9;
        let turn = bench.attempt(Sign::Works, OTHERS).unwrap();
        assert!(matches!(turn.phase, Phase::Ramp { window: 2, .. }));
        let since = at(bench.now);
        let up = bench.health.tick(since + Span::from_secs(60), &bench.monitor).unwrap();
        assert_eq!(up.phase, Phase::Up);
        bench.now += 60.0;
        let began = at(bench.now);
        assert!(bench.trip().since(began) <= Span::from_secs(5));
    }

    #[test]
    fn ramp_lets_more_go_with_each_success_and_no_faster_than_its_limit() {
        let mut bench = Bench::new();
        let until = bench.trip();
        bench.health.tick(until, &bench.monitor);
        bench.health.started(until, Span::ZERO);
        let Bench { health, monitor, random, .. } = &mut bench;
        health.ended(until, (Sign::Works, true, true), OTHERS, monitor, random);
        let pace = Span::from_millis(100);
        assert_eq!(health.bar(until, 0), Bar::Lifted);
        assert!(!health.started(until, pace));
        assert_eq!(health.bar(until, 1), Bar::Until(until + pace));
        assert_eq!(health.bar(until + pace, 2), Bar::Attempt);
        health.ended(until + pace, (Sign::Works, false, true), OTHERS, monitor, random);
        assert_eq!(health.bar(until + pace, 2), Bar::Lifted);
        // Two failures in a row end it.
        let late = until + pace;
        let ended = (Sign::Fails, false, true);
        assert_eq!(health.ended(late, ended, OTHERS, monitor, random), None);
        let turn = health.ended(late, ended, OTHERS, monitor, random).unwrap();
        assert!(matches!(turn.phase, Phase::Open { until } if until > late + Span::from_secs(4)), "it grew: {turn:?}");
    }

    #[test]
    fn score_and_risk_come_back_with_time() {
        let mut bench = Bench::new();
        assert_eq!(bench.health.risk(at(0.0)), 0.0);
        bench.attempt(Sign::Fails, OTHERS);
        assert!(bench.health.risk(at(0.0)) > 0.7);
        assert!(bench.health.risk(at(600.0)) < bench.health.risk(at(60.0)));
        assert!(bench.health.score(at(600.0), &bench.monitor) > 0.3);
        bench.trip();
        assert_eq!(bench.health.score(at(0.0), &bench.monitor), 0.0);
    }
}
