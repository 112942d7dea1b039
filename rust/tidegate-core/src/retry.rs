//! When a failed attempt is tried again: full jitter under a budget.

use crate::time::{Instant, Span};

/// How failed attempts are retried.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Attempts in all, the first included; at least 1.
    pub attempts: u32,
    /// Upper end of the first backoff.
    pub base: Span,
    /// Upper end of any backoff.
    pub cap: Span,
    /// Retries allowed as a share of first attempts, in thousandths.
    pub budget_milli: u32,
}

impl Retry {
    /// The wait before the attempt after `failed` ones (from 1): uniform in `[0, min(cap, base * 2^(failed-1))]`.
    ///
    /// Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
    pub fn backoff(&self, failed: u32, random: &mut Random) -> Span {
        let doublings = failed.saturating_sub(1).min(63);
        let ceiling = self.base.times(1 << doublings).min(self.cap);
        Span::from_nanos(random.up_to(ceiling.as_nanos()))
    }
}

/// The budget that bounds retries to a share of first attempts, so that an outage is not multiplied.
///
/// Each first attempt deposits `budget_milli`, each retry costs 1000. A reserve of [`RESERVE`] retries is there from the start, and one retry a
/// second is earned whatever happens, so that a retry without budget waits instead of failing. Deposits or time pay for it, what comes first.
/// Source: the retry budget of Finagle and tower (share of requests plus a minimum a second).
#[derive(Clone, Debug)]
pub struct Budget {
    share_milli: u64,
    balance_milli: u64,
    refilled_at: Instant,
}

/// Retries that a fresh scheduler may make at once, and the most that saved budget may reach.
const RESERVE: u64 = 10;
const MOST_SAVED: u64 = 100;
const COST_MILLI: u64 = 1000;
/// One retry a second: thousandths of a retry for each million nanoseconds.
const REFILL_NANOS_PER_MILLI: u64 = 1_000_000;

impl Budget {
    /// A budget with its reserve full.
    pub fn new(retry: &Retry, now: Instant) -> Budget {
        Budget { share_milli: u64::from(retry.budget_milli), balance_milli: RESERVE * COST_MILLI, refilled_at: now }
    }

    /// A first attempt starts.
    #[inline]
    pub fn deposit(&mut self) {
        self.balance_milli = (self.balance_milli + self.share_milli).min(MOST_SAVED * COST_MILLI);
    }

    /// Takes one retry out.
    ///
    /// # Errors
    /// When there is none: the instant at which one will have been earned if nothing is deposited.
    pub fn withdraw(&mut self, now: Instant) -> Result<(), Instant> {
        let earned = now.since(self.refilled_at).as_nanos() / REFILL_NANOS_PER_MILLI;
        self.refilled_at = self.refilled_at + Span::from_nanos(earned * REFILL_NANOS_PER_MILLI);
        // What time earns refills the reserve; only deposits save beyond it.
        if self.balance_milli < RESERVE * COST_MILLI {
            self.balance_milli = self.balance_milli.saturating_add(earned).min(RESERVE * COST_MILLI);
        }
        match self.balance_milli.checked_sub(COST_MILLI) {
            Some(balance) => {
                self.balance_milli = balance;
                Ok(())
            }
            None => {
                let missing = COST_MILLI - self.balance_milli;
                Err(self.refilled_at + Span::from_nanos(REFILL_NANOS_PER_MILLI).times(missing))
            }
        }
    }
}

/// A small seeded generator for jitter. Not for secrets.
///
/// Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub const fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..=most`, uniform up to the rounding of a 128-bit product.
    pub fn up_to(&mut self, most: u64) -> u64 {
        ((u128::from(self.next()) * (u128::from(most) + 1)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry { attempts: 4, base: Span::from_millis(500), cap: Span::from_secs(60), budget_milli: 100 };

    #[test]
    fn backoff_is_full_jitter_below_a_doubling_ceiling() {
        let mut random = Random::new(7);
        for failed in 1..200 {
            let ceiling = (500u64 << (failed - 1).min(20)).min(60_000);
            for _ in 0..50 {
                assert!(RETRY.backoff(failed, &mut random) <= Span::from_millis(ceiling));
            }
        }
        let mean = (0..4000).map(|_| RETRY.backoff(1, &mut random).as_nanos() / 4000).sum::<u64>();
        assert!((240_000_000..260_000_000).contains(&mean), "mean {mean}");
    }

    #[test]
    fn a_retry_without_budget_waits_for_the_floor_of_one_a_second() {
        let start = Instant::from_nanos(5);
        let after = |millis| start + Span::from_millis(millis);
        let mut budget = Budget::new(&RETRY, start);
        for _ in 0..10 {
            assert_eq!(budget.withdraw(start), Ok(()));
        }
        assert_eq!(budget.withdraw(start), Err(after(1000)));
        assert_eq!(budget.withdraw(after(999)), Err(after(1000)));
        assert_eq!(budget.withdraw(after(1000)), Ok(()));
        assert_eq!(budget.withdraw(after(1500)), Err(after(2000)));
        for _ in 0..10 {
            assert_eq!(budget.withdraw(after(3_600_000)), Ok(()));
        }
        assert!(budget.withdraw(after(3_600_000)).is_err(), "time saves no more than the reserve");
    }

    #[test]
    fn deposits_buy_a_share_of_retries() {
        let start = Instant::from_nanos(0);
        let mut budget = Budget::new(&RETRY, start);
        while budget.withdraw(start).is_ok() {}
        for _ in 0..30 {
            budget.deposit();
        }
        for _ in 0..3 {
            assert_eq!(budget.withdraw(start), Ok(()));
        }
        assert!(budget.withdraw(start).is_err());
        for _ in 0..10_000 {
            budget.deposit();
        }
        assert_eq!(std::iter::from_fn(|| budget.withdraw(start).ok()).count() as u64, MOST_SAVED);
    }
}
