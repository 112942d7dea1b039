//! Where in its period a target is polled.

use crate::time::{Instant, Span};

/// 2^64 divided by the golden ratio: its multiples, taken as fractions, are spread as evenly as those of any number.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Planned instants are multiples of a period after the Unix epoch, plus a phase.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Unix time of the clock's origin, in nanoseconds.
    pub(super) unix: u64,
}

impl Grid {
    /// The first instant from `now` on that is `phase` past a multiple of `period`.
    pub(super) fn first_at(self, now: Instant, period: Span, phase: Span) -> Instant {
        let period = u128::from(period.as_nanos());
        let unix = u128::from(now.as_nanos()) + u128::from(self.unix);
        let past = (unix + period - u128::from(phase.as_nanos()) % period) % period;
        now + Span::from_nanos(((period - past) % period) as u64)
    }
}

/// The phase of the `nth` of `count` targets.
pub(super) fn evenly(nth: usize, count: usize, period: Span) -> Span {
    Span::from_nanos((u128::from(period.as_nanos()) * nth as u128 / count as u128) as u64)
}

/// The phase of the `nth` of targets of which nobody knows how many there will be: the gaps between them differ by a factor of 2.62 at most.
pub(super) fn golden(nth: u64, period: Span) -> Span {
    let fraction = nth.wrapping_mul(GOLDEN);
    Span::from_nanos(((u128::from(period.as_nanos()) * u128::from(fraction)) >> 64) as u64)
}

/// The key of a target: its text, hashed so that keys that are alike are not close (FNV-1a, and the finaliser of MurmurHash3). The same in
/// every version and on every machine.
pub fn key_of(text: &[u8]) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in text {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_instant_is_now_or_within_a_period() {
        let grid = Grid { unix: 17 };
        let (period, phase) = (Span::from_nanos(10), Span::from_nanos(4));
        for now in 0..40 {
            let first = grid.first_at(Instant::from_nanos(now), period, phase).as_nanos();
            assert!((now..now + 10).contains(&first));
            assert_eq!((first + 17) % 10, 4);
        }
    }

    #[test]
    fn keys_are_those_of_the_reference() {
        // FNV-1a of "" and "a" are 0xCBF29CE484222325 and 0xAF63DC4C8601EC8C; then the finaliser.
        assert_eq!(key_of(b""), 0xEFD0_1F60_BA99_2926);
        assert_ne!(key_of(b"a"), key_of(b"b"));
    }
}
