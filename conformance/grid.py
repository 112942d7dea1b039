"""What is tried: kinds of servers, the limits that they declare, and the lines to them; the grid of `make conformance`."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tidegate import BackendQuota, Limit, bound
from tidegate.testing import servers

# A day of Unix time: a boundary of every window here.
DAY = 86_400.0
# Windows of a server begin so much later than those of a client at most, as where clocks agree to a few milliseconds.
CLOCKS = 0.005


class Kind(Enum):
    """How a server counts. The cap on concurrency is left out: limiters of rates have none."""

    LOG = "sliding log"
    ANCHORED = "anchored window"
    ALIGNED = "aligned window"
    BUCKET = "token bucket"
    GCRA = "GCRA"
    COUNTER = "sliding counter"


@dataclass(frozen=True)
class Shape:
    """Amounts and periods as a user writes them, a burst if there is one, and the seconds that are tried.

    These end half a period after a window of the longest has begun: at its edge a message more or less would weigh a window.
    """

    text: str
    rates: tuple[tuple[int, int], ...]
    burst: int | None
    horizon: float


SHAPES = (
    Shape("10/1s", ((10, 1),), None, 119.5),
    Shape("50/5s", ((50, 5),), None, 117.5),
    Shape("100/min + 3000/h", ((100, 60), (3000, 3600)), None, 5400),
    Shape("100/s burst 6", ((100, 1),), 6, 29.5),
    Shape("1000/s burst 20", ((1000, 1),), 20, 4.5),
    Shape("900/15min", ((900, 900),), None, 3150),
)


@dataclass(frozen=True)
class Declared:
    """What a server says of itself: how it counts, and what it allows."""

    kind: Kind
    shape: Shape

    @property
    def has_burst(self) -> bool:
        """Only buckets know one; other kinds declare the amounts alone."""
        return self.kind in {Kind.BUCKET, Kind.GCRA}

    def burst(self, amount: int) -> int:
        """Units that go at once: all for a token bucket, one for GCRA, where the text does not say."""
        return self.shape.burst or (amount if self.kind is Kind.BUCKET else 1)

    def limits(self) -> list[Limit]:
        """The same in Tidegate's words."""
        match self.kind:
            case Kind.LOG | Kind.ANCHORED:
                return [Limit(amount, period, kind="window") for amount, period in self.shape.rates]
            case Kind.ALIGNED:
                return [Limit(amount, period, kind="window", aligned=True) for amount, period in self.shape.rates]
            case Kind.BUCKET | Kind.GCRA:
                rates = self.shape.rates
                return [Limit(amount, period, kind="bucket", burst=self.burst(amount)) for amount, period in rates]
            case Kind.COUNTER:
                return [Limit(amount, period, kind="counter") for amount, period in self.shape.rates]

    def allowed(self) -> int:
        """The most that the server lets through within the horizon.

        A client starts in the first half of an aligned window: it meets as many of them as of those that begin with its first
        message.
        """
        limits = Declared(Kind.LOG, self.shape).limits() if self.kind is Kind.ALIGNED else self.limits()
        units = bound(BackendQuota(*limits, concurrency=None), self.shape.horizon)
        assert units is not None
        return units

    def server(self, dice: random.Random) -> servers.Server:
        """One that counts so, on a clock that is not quite the client's."""
        phase = dice.uniform(0, CLOCKS)

        def part(amount: int, period: int) -> servers.Server:
            match self.kind:
                case Kind.LOG:
                    return servers.SlidingWindow(amount, period)
                case Kind.ANCHORED:
                    return servers.AnchoredWindow(amount, period)
                case Kind.ALIGNED:
                    return servers.AlignedWindow(amount, period, phase=phase)
                case Kind.BUCKET:
                    return servers.TokenBucket(amount, period, burst=self.burst(amount))
                case Kind.GCRA:
                    return servers.Gcra(amount, period, burst=self.burst(amount))
                case Kind.COUNTER:
                    return servers.SlidingCounter(amount, period, phase=phase)

        return servers.Server(*[part(*rate) for rate in self.shape.rates])

    def start(self, seed: int) -> float:
        """The instant of Unix time at which a client starts, in the first half of a window of each limit."""
        return DAY + random.Random(seed).uniform(0, 0.5) * min(period for _, period in self.shape.rates)


# Seconds to the server, and back.
Line = Callable[[random.Random], tuple[float, float]]


def _constant(dice: random.Random) -> tuple[float, float]:
    return 0.08, 0.0


def _uniform(dice: random.Random) -> tuple[float, float]:
    return dice.uniform(0, 0.08), 0.0


def _between(dice: random.Random) -> tuple[float, float]:
    return dice.uniform(0.025, 0.065), dice.uniform(0.025, 0.065)


def _heavy(dice: random.Random) -> tuple[float, float]:
    return 0.01 + 0.03 * math.exp(dice.gauss()), 0.01 + 0.03 * math.exp(dice.gauss())


LINES: dict[str, Line] = {"80 ms": _constant, "0-80 ms": _uniform, "50-130 ms": _between, "heavy tail": _heavy}
