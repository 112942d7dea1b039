//! How long messages and replies travel.

use super::Dice;
use crate::time::Span;

const MS: f64 = 1e6;

/// A line between a client and a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Delay {
    /// Every message takes so long to arrive, its reply no time.
    Constant(Span),
    /// A message takes anything from nothing to so long, its reply no time: all of the round trip is jitter of arrivals.
    Uniform(Span),
    /// Each way takes anything between half of both: a round trip is between the two.
    Between(Span, Span),
    /// Each way takes 10 ms and a log-normal part, whose median is 30 ms.
    HeavyTailed,
    /// Every message takes so long to arrive, its reply no time; the longer of the two for a thousand messages, then the shorter
    /// for as many, and so on.
    Jumping(Span, Span),
}

/// Messages until a line jumps.
const PERIOD: u64 = 1000;

impl Delay {
    /// From sending to arrival, and from there to the reply, of the `nth` message.
    pub fn draw(self, nth: u64, dice: &mut Dice) -> (Span, Span) {
        let part = |span: Span, share: f64| Span::from_nanos((span.as_nanos() as f64 * share) as u64);
        match self {
            Delay::Constant(span) => (span, Span::ZERO),
            Delay::Uniform(most) => (part(most, dice.share()), Span::ZERO),
            Delay::Between(least, most) => {
                let mut way = || part(least, 0.5) + part(most - least, 0.5 * dice.share());
                (way(), way())
            }
            Delay::HeavyTailed => {
                let mut way = || Span::from_nanos((10.0 * MS + 30.0 * MS * dice.normal().exp()) as u64);
                (way(), way())
            }
            Delay::Jumping(least, most) => (if (nth / PERIOD).is_multiple_of(2) { most } else { least }, Span::ZERO),
        }
    }

    /// The mean round trip.
    pub fn mean(self) -> Span {
        let half = |span: Span| Span::from_nanos(span.as_nanos() / 2);
        match self {
            Delay::Constant(span) => span,
            Delay::Uniform(most) => half(most),
            Delay::Between(least, most) | Delay::Jumping(least, most) => half(least + most),
            Delay::HeavyTailed => Span::from_nanos((2.0 * (10.0 + 30.0 * 0.5f64.exp()) * MS) as u64),
        }
    }

    /// By how much the ways to the server differ at most; nothing if there is no bound.
    pub fn jitter(self) -> Option<Span> {
        match self {
            Delay::Constant(_) => Some(Span::ZERO),
            Delay::Uniform(most) => Some(most),
            Delay::Between(least, most) => Some(Span::from_nanos((most - least).as_nanos() / 2)),
            Delay::Jumping(least, most) => Some(most - least),
            Delay::HeavyTailed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_spreads_are_those_of_what_is_drawn() {
        let ms = Span::from_millis;
        let jumping = Delay::Jumping(ms(40), ms(120));
        for delay in
            [Delay::Constant(ms(80)), Delay::Uniform(ms(80)), Delay::Between(ms(50), ms(130)), Delay::HeavyTailed, jumping]
        {
            let mut dice = Dice::new(7);
            let drawn: Vec<_> = (0..100_000).map(|nth| delay.draw(nth, &mut dice)).collect();
            let mean = drawn.iter().map(|(there, back)| (*there + *back).as_nanos()).sum::<u64>() / 100_000;
            assert!(mean.abs_diff(delay.mean().as_nanos()) < 1_000_000, "{delay:?}: {mean}");
            let ways = drawn.iter().map(|(there, _)| there.as_nanos());
            let spread = ways.clone().max().unwrap() - ways.min().unwrap();
            assert!(delay.jitter().is_none_or(|jitter| spread <= jitter.as_nanos() && spread + 100_000 > jitter.as_nanos()));
        }
    }
}
