//! In which order requests go, as keys: of those that wait, the one with the least key is next.
//!
//! A key is fixed when a request joins its queue, so nothing is ever sorted again. Linear aging is such a key too: all who wait age alike,
//! so that being raised by one level every `step` and being accepted `step` earlier a level are the same. Under [`Order::Fair`] the
//! order among the requests of one flow is fixed, and that among flows is kept by [`Flows`](super::Flows).

use crate::time::{Instant, Span};

/// What a request without a deadline has in place of it, counted from when it joined its queue.
const UNTIMED: Span = Span::from_secs(3600);

/// In which order the requests of a queue go.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Order {
    /// 256 hard bands, one a priority; first in first out inside a band.
    #[default]
    Strict,
    /// One band, in the order of when a request joined its queue plus its priority times this span.
    ///
    /// Nobody starves: a request goes before all that join later than its key says.
    Aging(Span),
    /// Hard bands; inside a band the earliest deadline goes first. One without a deadline counts as due an hour after it joined.
    ///
    /// Source: Liu and Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment", JACM 1973.
    Deadline,
    /// Hard bands; inside a band flows share what is admitted by their weights, each first in first out. The weights of some flows, by
    /// name; all others weigh 1.
    Fair(Vec<(Box<str>, f64)>),
}

impl Order {
    /// What the key of a request is made of.
    pub fn rule(&self) -> Rule {
        match self {
            Order::Strict | Order::Fair(_) => Rule::Place,
            Order::Aging(step) => Rule::Aging(*step),
            Order::Deadline => Rule::Deadline,
        }
    }
}

/// What the key of a request is made of, among the requests of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Its band and the number of its acceptance.
    Place,
    /// When it joined its queue and its priority.
    Aging(Span),
    /// Its band and its deadline.
    Deadline,
}

impl Rule {
    /// The key of a request that `joined` its queue and is worthless from `deadline` on ([`Instant::FAR`]: never).
    #[inline]
    pub fn key(self, place: Place, joined: Instant, deadline: Instant) -> Key {
        match self {
            Rule::Place => Key::of(place),
            Rule::Aging(step) => Key::by(0, (joined + step.times(place.band().into())).as_nanos(), place),
            Rule::Deadline => {
                let due = if deadline < Instant::FAR { deadline } else { joined + UNTIMED };
                Key::by(place.band(), due.as_nanos(), place)
            }
        }
    }

    /// The least key of a band that a deadline from `due` on has, if keys are in the order of deadlines.
    #[inline]
    pub fn due_from(self, band: u8, due: Instant) -> Option<Key> {
        (self == Rule::Deadline).then(|| Key::by(band, due.as_nanos(), Place::new(band, 0)))
    }

    /// Whether keys of one band only grow in the order in which requests join.
    #[inline]
    pub const fn is_first_in_first_out(self) -> bool {
        matches!(self, Rule::Place)
    }

    /// Whether a more urgent band always goes first.
    #[inline]
    pub const fn has_hard_bands(self) -> bool {
        !matches!(self, Rule::Aging(_))
    }
}

/// A request's band in the top 8 bits, the number of its acceptance below: places are in strict order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    const SEQUENCE_BITS: u32 = 56;

    /// The place of the `sequence`-th request, in `band` (0 is the most urgent). Sequences up to 2^56 are told apart.
    #[inline]
    pub const fn new(band: u8, sequence: u64) -> Place {
        Place(((band as u64) << Self::SEQUENCE_BITS) | (sequence & Self::SEQUENCE))
    }

    /// The same number of acceptance in another band.
    #[inline]
    pub const fn in_band(self, band: u8) -> Place {
        Place::new(band, self.0)
    }

    /// The band, 0 to 255.
    #[inline]
    pub const fn band(self) -> u8 {
        (self.0 >> Self::SEQUENCE_BITS) as u8
    }

    const SEQUENCE: u64 = (1 << Self::SEQUENCE_BITS) - 1;
}

/// What requests are ordered by; the least goes first. No two requests of a queue have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    major: u64,
    minor: u64,
}

impl Key {
    /// By band, then in the order of acceptance.
    #[inline]
    pub const fn of(place: Place) -> Key {
        Key { major: place.0, minor: 0 }
    }

    /// By band, then by `value`, then in the order of acceptance.
    #[inline]
    pub const fn by(band: u8, value: u64, place: Place) -> Key {
        Key { major: ((band as u64) << 56) | (value >> 8), minor: (value << 56) | (place.0 & Place::SEQUENCE) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_place_orders_by_band_then_number() {
        assert!(Key::of(Place::new(0, u64::MAX)) < Key::of(Place::new(1, 0)));
        assert!(Key::of(Place::new(255, 3)) < Key::of(Place::new(255, 4)));
        assert_eq!(Place::new(77, 5).band(), 77);
        assert_eq!(Place::new(77, 5).in_band(3), Place::new(3, 5));
    }

    #[test]
    fn aging_makes_a_level_of_priority_worth_a_step() {
        let rule = Rule::Aging(Span::from_nanos(10));
        let key = |band, joined| rule.key(Place::new(band, 0), Instant::from_nanos(joined), Instant::FAR);
        assert!(key(3, 0) < key(0, 31));
        assert!(key(0, 29) < key(3, 0));
        assert_eq!(key(3, 0), key(0, 30));
    }

    #[test]
    fn without_a_deadline_a_request_is_due_in_an_hour() {
        let key = |deadline| Rule::Deadline.key(Place::new(9, 0), Instant::from_nanos(5), deadline);
        assert_eq!(key(Instant::FAR), key(Instant::from_nanos(5) + Span::from_secs(3600)));
        assert!(key(Instant::from_nanos(u64::MAX - 1)) > key(Instant::FAR));
    }

    proptest! {
        /// A key that has a value compares as the triple that it is made of.
        #[test]
        fn compares_by_band_then_value_then_number(keys in [(0u8..3, any::<u64>(), 0u64..3), (0u8..3, any::<u64>(), 0u64..3)]) {
            let near = keys.map(|(band, value, sequence)| (band, value % 600, sequence));
            for pair in [keys, near] {
                let [left, right] = pair.map(|(band, value, sequence)| Key::by(band, value, Place::new(7, sequence)));
                prop_assert_eq!(left.cmp(&right), pair[0].cmp(&pair[1]));
            }
        }
    }
}
