"""Whether what is to be collected again and again can be collected."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tidegate import _core
from tidegate._backends import Backends
from tidegate._errors import ConfigError

# Backends that may serve them (None: all), their interval, their cost, and their scopes.
Alike = tuple[tuple[str, ...] | None, float, int, tuple[tuple[str, str], ...]]

# A sum of demands that fits exactly comes out so much too large at most.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Feasibility:
    """How what is asked for compares with what the limits admit in the long run. `str()` of it is a sentence.

    Concurrency is left out: what it admits depends on how long the servers take. So are attempts that fail.

    Attributes:
        feasible: Whether the limits admit it.
        load: Units that are asked for, by those that are admitted, at the bottleneck; above 1 it is not feasible. 0 without
            limits.
        interval: The least interval in seconds that the limits admit for these targets; of targets whose intervals differ,
            the mean of them.
        round: Seconds that one round of all targets takes at least, from idle; None when a part of it can never be sent.
        bottleneck: What holds back most: names of backends such as `"api"` or `"a + b"`, or one value of a scope, such as
            `"api per host=example.org"`. None without limits.
        demand: Units a second that are asked for at the bottleneck; in all without one.
        supply: Units a second that are admitted there; None without a bottleneck.
        targets: How many there are.
    """

    feasible: bool
    load: float
    interval: float
    round: float | None
    bottleneck: str | None
    demand: float
    supply: float | None
    targets: int

    def __str__(self) -> str:
        """In a sentence."""
        noun, verb = ("target", "asks") if self.targets == 1 else ("targets", "ask")
        targets = f"{self.targets:,} {noun}"
        if self.bottleneck is None or self.supply is None:
            return f"{targets}: {_short(self.demand)}/s are asked for, and no limit holds them back"
        asked = f"{targets} {verb} {self.bottleneck} for {_short(self.demand)}/s of the {_short(self.supply)}/s that it allows"
        if self.feasible:
            return f"{asked} ({self.load:.0%}); an interval of {_short(self.interval)} s is the least that fits"
        return f"{asked}, {_short(self.load)} times too much; an interval of {_short(self.interval)} s would fit"


def _short(number: float) -> str:
    """Three digits of it, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def feasibility_of(backends: Backends, groups: Mapping[Alike, int]) -> Feasibility:
    """Compare what targets ask for, so many of each kind, with what backends admit."""
    supplies, places = backends.supplies()
    everywhere = sorted(set(places.values()))
    demands = []
    for (names, interval, cost, scopes), count in groups.items():
        indices = everywhere if names is None else sorted({places[name] for name in names if name in places})
        if names and not indices:
            msg = f"backends={list(names)!r}: none of them is there any more; name others, or add one"
            raise ConfigError(msg, option="backends", value=names)
        demands.append((indices, cost * count / interval, cost * count, list(scopes)))
    narrow, load, least = _core.feasibility([(quota, accounts) for _, quota, accounts in supplies], demands)
    targets = sum(groups.values())
    interval = load * sum(alike[1] * count for alike, count in groups.items()) / targets if targets else 0.0
    if narrow is None:
        return Feasibility(True, 0.0, interval, least, None, sum(rate for _, rate, _, _ in demands), None, targets)
    indices, scope, demand, supply = narrow
    name = " + ".join(_names(supplies[index][0] for index in indices))
    if scope is not None:
        name = f"{name} per {scope[0]}={scope[1]}"
    return Feasibility(load <= 1 + ROUNDING, load, interval, least, name, demand, supply, targets)


def _names(supplies: Iterable[tuple[str, ...]]) -> Iterable[str]:
    return (name for names in supplies for name in names)
