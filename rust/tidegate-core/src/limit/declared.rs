//! Limits as a server declares them, and the margin that keeps a client inside them.

use std::error::Error;
use std::fmt;

use crate::time::{Instant, Span};

/// Longest span that a limit may need to count: 100 years.
const LONGEST: Span = Span::from_secs(100 * 31_557_600);

/// How a server counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// At most `amount` in any window of `period`, whatever its phase: a log, a fixed or an anchored window.
    Window,
    /// At most `amount` in each window of `period`, of which it is known when they begin.
    Aligned,
    /// `amount` per `period` refill steadily, and at most `burst` are kept: a token bucket, GCRA, a leaky meter.
    Bucket,
    /// A bucket that holds one.
    Leaky,
    /// An estimate from this window and a share of the last one.
    Counter,
    /// Any of these, but for buckets below five units and, now and then, counters.
    Unknown,
}

/// What starts the clock of a limit for a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Anchor {
    /// Its response headers: the server has counted it before it answers.
    #[default]
    Headers,
    /// Its end: the server counts it when it is complete.
    Finish,
}

/// What is known of the line to a server besides its acknowledgements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Jitter {
    /// Nothing: a message has been counted when it is acknowledged.
    #[default]
    None,
    /// The times that messages take to the server differ by no more than this. A message has been counted when it is acknowledged, or this
    /// long after it was sent, whichever comes first.
    Known(Span),
    /// The same, with what the round trips were seen to differ by; only while they seem to have a bound, where it gains more than 2 %, and not
    /// for an hour after a rejection.
    Auto,
}

/// One limit as its server declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    kind: Kind,
    /// The kind was not named: it may climb the ladder.
    guessed: bool,
    anchor: Anchor,
    jitter: Jitter,
    /// Units per period, at least 1.
    amount: u32,
    /// At least 1; equals `amount` but for buckets.
    burst: u32,
    /// Longer than zero, at most [`LONGEST`].
    period: Span,
    /// When a window begins, and how exactly that is known; both zero unless aligned.
    boundary: Instant,
    tolerance: Span,
}

impl Limit {
    /// How exactly the clocks of two machines agree that are set over a network; mostly to a tenth of this.
    pub const CLOCKS_AGREE_TO: Span = Span::from_millis(100);

    /// At most `amount` units in any window of `period`.
    ///
    /// # Errors
    /// When `amount` or `period` is zero, or `period` is longer than 100 years.
    pub fn window(amount: u32, period: Span) -> Result<Limit, LimitError> {
        Limit::new(Kind::Window, amount, period, amount)
    }

    /// At most `amount` units in each window of `period`, one of which begins at `boundary`. The server's clock and ours agree to
    /// `tolerance`, of which at most an eighth of the period is used; it costs no rate.
    ///
    /// # Errors
    /// As [`window`](Limit::window).
    pub fn aligned(amount: u32, period: Span, boundary: Instant, tolerance: Span) -> Result<Limit, LimitError> {
        Limit::new(Kind::Aligned, amount, period, amount).map(|limit| Limit { boundary, tolerance, ..limit })
    }

    /// `amount` units per `period` on average, and at most `burst` of them back to back from idle.
    ///
    /// # Errors
    /// When an argument is zero, or `period` or the time in which `burst` refills is longer than 100 years.
    pub fn bucket(amount: u32, period: Span, burst: u32) -> Result<Limit, LimitError> {
        Limit::new(Kind::Bucket, amount, period, burst)
    }

    /// `amount` units per `period`, evenly spaced.
    ///
    /// # Errors
    /// As [`window`](Limit::window).
    pub fn leaky(amount: u32, period: Span) -> Result<Limit, LimitError> {
        Limit::new(Kind::Leaky, amount, period, 1)
    }

    /// `amount` units per `period`, estimated from the current window and a share of the last one.
    ///
    /// # Errors
    /// As [`window`](Limit::window).
    pub fn counter(amount: u32, period: Span) -> Result<Limit, LimitError> {
        Limit::new(Kind::Counter, amount, period, amount)
    }

    /// `amount` units per `period`, counted in a way that is not known.
    ///
    /// # Errors
    /// As [`window`](Limit::window).
    pub fn unknown(amount: u32, period: Span) -> Result<Limit, LimitError> {
        Limit::new(Kind::Unknown, amount, period, amount)
    }

    /// The same, but its kind is only a guess: it climbs the kind ladder when the server rejects what conforms.
    #[must_use]
    pub fn guessed(self) -> Limit {
        Limit { guessed: true, ..self }
    }

    /// The same with another anchor.
    #[must_use]
    pub fn anchored(self, anchor: Anchor) -> Limit {
        Limit { anchor, ..self }
    }

    /// The same with this known of the line. Of no use to aligned windows, nor to what is anchored at the finish.
    #[must_use]
    pub fn jittered(self, jitter: Jitter) -> Limit {
        Limit { jitter, ..self }
    }

    fn new(kind: Kind, amount: u32, period: Span, burst: u32) -> Result<Limit, LimitError> {
        if amount == 0 {
            return Err(LimitError::ZeroAmount);
        }
        if period == Span::ZERO {
            return Err(LimitError::ZeroPeriod);
        }
        if burst == 0 {
            return Err(LimitError::ZeroBurst);
        }
        let refill = u128::from(period.as_nanos()) * u128::from(burst) / u128::from(amount);
        if period > LONGEST || refill > u128::from(LONGEST.as_nanos()) {
            return Err(LimitError::TooLong);
        }
        let (guessed, anchor, jitter) = (false, Anchor::Headers, Jitter::None);
        let (boundary, tolerance) = (Instant::ORIGIN, Span::ZERO);
        Ok(Limit { kind, guessed, anchor, jitter, amount, burst, period, boundary, tolerance })
    }

    /// How the server counts.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the kind is only a guess.
    pub fn is_guessed(&self) -> bool {
        self.guessed
    }

    /// What starts its clock.
    pub fn anchor(&self) -> Anchor {
        self.anchor
    }

    /// What is known of the line.
    pub fn jitter(&self) -> Jitter {
        self.jitter
    }

    /// Units per [`period`](Limit::period), at least 1.
    pub fn amount(&self) -> u32 {
        self.amount
    }

    /// The window, or the time in which `amount` units refill.
    pub fn period(&self) -> Span {
        self.period
    }

    /// Most units that a bucket holds, at least 1; the amount for other kinds.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// When a window of an aligned limit begins, and how exactly that is known.
    pub fn boundary(&self) -> (Instant, Span) {
        (self.boundary, self.tolerance)
    }

    /// Time in which everything that is allowed at once is free again, when nothing more is sent.
    pub fn refill(&self) -> Span {
        let refill = u128::from(self.period.as_nanos()) * u128::from(self.burst) / u128::from(self.amount);
        self.period.max(nanos(refill))
    }

    /// Whether two limits differ in nothing but how much they allow.
    pub(super) fn is_like(&self, other: &Limit) -> bool {
        *self == Limit { amount: self.amount, burst: self.burst, ..*other }
    }

    /// The largest cost that can ever be admitted: the burst of a bucket, the amount of other kinds.
    pub fn capacity(&self) -> u32 {
        self.burst
    }
}

/// Why a limit cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// The amount is zero: nothing would ever be admitted.
    ZeroAmount,
    /// The period is zero: the rate would be infinite.
    ZeroPeriod,
    /// The burst is zero: nothing would ever be admitted.
    ZeroBurst,
    /// The period, or the time in which the burst refills, is longer than 100 years.
    TooLong,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitError::ZeroAmount => "the amount of a limit is zero",
            LimitError::ZeroPeriod => "the period of a limit is zero",
            LimitError::ZeroBurst => "the burst of a limit is zero",
            LimitError::TooLong => "a limit takes longer than 100 years to refill",
        })
    }
}

impl Error for LimitError {}

/// What is kept back because two clocks differ: they drift apart by some ppm, and a server may truncate its own.
///
/// The default is 1 ms and 200 ppm: crystal clocks drift by tens of ppm, servers truncate to milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Margin {
    floor: Span,
    ppm: u32,
}

impl Margin {
    /// Nothing kept back: the server's clock is ours.
    pub const NONE: Margin = Margin::new(Span::ZERO, 0);

    /// Every acknowledgement counts at least `floor` later, and every period is `ppm` millionths longer.
    pub const fn new(floor: Span, ppm: u32) -> Margin {
        Margin { floor, ppm }
    }

    /// The least that is added to an instant.
    pub const fn floor(self) -> Span {
        self.floor
    }

    /// By how many millionths a period is stretched.
    pub const fn ppm(self) -> u32 {
        self.ppm
    }

    /// The same with periods another `ppm` millionths longer.
    pub(super) fn slower(self, ppm: u32) -> Margin {
        Margin { ppm: self.ppm.saturating_add(ppm), ..self }
    }

    /// `period` until a window's unit is free again: longer by the floor or the drift, whichever is more.
    pub(super) fn hold(self, period: Span) -> Span {
        let drift = u128::from(period.as_nanos()) * u128::from(self.ppm);
        period + self.floor.max(nanos(drift.div_ceil(1_000_000)))
    }

    /// The emission interval of `amount` units per `period`, stretched by the drift and rounded up; at least 1 ns.
    pub(super) fn interval(self, amount: u32, period: Span) -> Span {
        let stretched = u128::from(period.as_nanos()) * (1_000_000 + u128::from(self.ppm));
        nanos(stretched.div_ceil(1_000_000 * u128::from(amount.max(1))).max(1))
    }
}

impl Default for Margin {
    fn default() -> Margin {
        Margin::new(Span::from_millis(1), 200)
    }
}

fn nanos(count: u128) -> Span {
    Span::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_what_was_declared() {
        let minute = Span::from_secs(60);
        let window = Limit::window(100, minute).unwrap();
        assert_eq!((window.kind(), window.amount(), window.period()), (Kind::Window, 100, minute));
        assert_eq!((window.burst(), window.capacity()), (100, 100));
        let bucket = Limit::bucket(100, minute, 5).unwrap();
        assert_eq!((bucket.kind(), bucket.amount(), bucket.period()), (Kind::Bucket, 100, minute));
        assert_eq!((bucket.burst(), bucket.capacity()), (5, 5));
    }

    #[test]
    fn a_limit_that_admits_nothing_or_cannot_be_counted_is_refused() {
        let (day, century) = (Span::from_secs(86_400), Span::from_secs(100 * 31_557_600));
        assert_eq!(Limit::window(0, day), Err(LimitError::ZeroAmount));
        assert_eq!(Limit::window(1, Span::ZERO), Err(LimitError::ZeroPeriod));
        assert_eq!(Limit::bucket(1, day, 0), Err(LimitError::ZeroBurst));
        assert_eq!(Limit::bucket(1, century, 2), Err(LimitError::TooLong));
        assert_eq!(Limit::window(1, century + Span::from_nanos(1)), Err(LimitError::TooLong));
        assert!(Limit::bucket(2, century, 2).is_ok());
        assert!(Limit::bucket(u32::MAX, day, u32::MAX).is_ok());
    }
}
