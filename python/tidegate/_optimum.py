"""What nobody could do better: the most that goes through several backends, and the fewest requests that can be late."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tidegate import _core
from tidegate._backend import Backend
from tidegate._errors import ConfigError
from tidegate._quota import BackendQuota, Limit, count_of, is_number, seconds_of

# Three mappings, since a mapping's values have to be of the very type that is asked for.
Quotas = Mapping[str, str] | Mapping[str, BackendQuota] | Mapping[str, BackendQuota | Limit | str]
Backends = Iterable[Backend] | Quotas
Latency = float | timedelta | Mapping[str, float] | Mapping[str, float | timedelta]


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests that are alike: how many a second, where they may go, and what each costs.

    Args:
        rate: Requests a second, above 0; `math.inf` for as many as go through.
        backends: Names of the backends that may serve them; None for any.
        cost: Units that each spends of its backend's limits, at least 1.

    Raises:
        ConfigError: An argument is out of range.
    """

    rate: float
    backends: Sequence[str] | None = None
    cost: int = 1

    def __post_init__(self) -> None:
        if self.rate != math.inf and (not is_number(self.rate) or self.rate <= 0):
            msg = f"rate={self.rate!r}: give requests a second, above 0, or math.inf for as many as go through"
            raise ConfigError(msg, option="rate", value=self.rate)
        count_of("cost", self.cost)


@dataclass(frozen=True, slots=True)
class ThroughputBound:
    """The most that goes through several backends.

    Attributes:
        rate: Requests a second; infinite without limits.
        demand: Requests a second that are asked for.
        binding: What holds back, so that more would go through if there were more of it: names of backends such as `"api"`, or
            `"a + b"` for those of a group; `"api concurrency"` if it is that. Empty when all that is asked for goes through.
        prices: For each of these, how many requests a second one more unit a second would bring; for a concurrency, one more
            attempt at once.
    """

    rate: float
    demand: float
    binding: tuple[str, ...]
    prices: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DeadlineBound:
    """The fewest requests that can be late.

    Attributes:
        requests: How many there are.
        misses: How many of them are late at least.
    """

    requests: int
    misses: int

    @property
    def share(self) -> float:
        """Misses of requests, from 0 to 1."""
        return self.misses / self.requests if self.requests else 0.0


def throughput_bound(
    backends: Backends,
    demands: Iterable[Demand] | None = None,
    *,
    latency: Latency | None = None,
    horizon: float | timedelta | None = None,
) -> ThroughputBound:
    """The most requests a second that several backends let through: what a scheduler's throughput is to be compared with.

    As a fluid: each group of requests is divided among the backends that may serve it so that as many as possible go through,
    within what the limits admit and, if a latency is given, what concurrency leaves (Little's law). A linear programme, so it is
    exact in the long run.

    Args:
        backends: Backends; or a quota by name, as for `Backend`. Those of one `group` spend one quota, and each account has it to
            itself. Limits `per` a scope bound no total, and are left out.
        demands: What is asked for. None: as much as goes through, by any backend.
        latency: Seconds that an attempt takes on average; by name if backends differ. None: concurrency is left out.
        horizon: Seconds from idle, over which `rate` is the mean: bursts count. None: the long run.

    Raises:
        ConfigError: An argument is out of range, or there is no backend of a name.

    Example:
        >>> quotas = {"big": "10/s", "small": "1/s"}
        >>> throughput_bound(quotas, [Demand(8), Demand(4, ["small"])])
        ThroughputBound(rate=9.0, demand=12, binding=('small',), prices={'small': 1.0})
        >>> throughput_bound({"slow": BackendQuota("100/s", concurrency=4)}, latency=0.5).rate
        8.0
    """
    supplies = _Supplies(backends)
    asked = [Demand(math.inf)] if demands is None else list(demands)
    groups = []
    for demand in asked:
        if not isinstance(demand, Demand):
            msg = f"demands={demand!r}: give Demands, such as [Demand(10), Demand(2, ['api'])]"
            raise ConfigError(msg, option="demands", value=demand)
        groups.append((supplies.places_of(demand.backends), float(demand.rate), demand.cost))
    span = None if horizon is None else seconds_of("horizon", horizon)
    rate, held = _core.throughput_bound(supplies.quotas, supplies.latencies(latency), groups, span)
    prices = {f"{supplies.names[at]}{' concurrency' if busy else ''}": price for at, busy, price in held}
    return ThroughputBound(rate, sum(demand.rate for demand in asked), tuple(prices), prices)


def deadline_bound(
    requests: Iterable[tuple[float, float] | tuple[float, float, Sequence[str]]],
    backends: Backends,
    *,
    latency: Latency = 0.0,
) -> DeadlineBound:
    """The fewest of these requests that can be late, for somebody who knows all of them beforehand.

    A request is late when its answer is not there by its deadline. Requests are matched with the permits that limits and
    concurrency give out over time, as many as possible; no scheduler can do better. Each costs one unit.

    Args:
        requests: For each when it comes and its deadline, in seconds from an instant at which the backends are idle; and then,
            unless any may serve it, the names of those that may. In any order.
        backends: As of `throughput_bound`. Of several limits the slowest counts; those `per` a scope are left out.
        latency: Seconds from sending a request to its answer; by name if backends differ. Where it varies give the least, and
            the bound holds.

    Raises:
        ConfigError: An argument is out of range, there is no backend of a name, or limits so high for so long that
            there would be more than 20 million permits to look at.

    Example:
        >>> every_tenth = [(number / 10, number / 10 + 1) for number in range(100)]
        >>> deadline_bound(every_tenth, {"api": "5/s leaky"}, latency=0.2)
        DeadlineBound(requests=100, misses=46)
    """
    supplies = _Supplies(backends)
    everywhere = supplies.places_of(None)
    timed = [_timed(request, supplies, everywhere) for request in requests]
    misses, permits = _core.deadline_bound(supplies.quotas, supplies.latencies(latency), timed)
    if misses is None:
        msg = f"requests: their time has {permits:,} permits, more than 20 million; give those of a shorter time"
        raise ConfigError(msg, option="requests", value=len(timed))
    return DeadlineBound(len(timed), misses)


def _timed(request: object, supplies: "_Supplies", everywhere: list[int]) -> tuple[float, float, list[int]]:
    """One of `requests`, checked."""
    if not isinstance(request, tuple | list) or len(request) not in (2, 3):
        msg = f"requests={request!r}: give (comes, deadline) or (comes, deadline, backends) for each, in seconds"
        raise ConfigError(msg, option="requests", value=request)
    comes, deadline = request[:2]
    if not is_number(comes) or not is_number(deadline) or comes < 0:
        msg = f"requests={request!r}: give seconds from 0 for when it comes, and seconds for its deadline"
        raise ConfigError(msg, option="requests", value=request)
    return float(comes), float(deadline), everywhere if len(request) == 2 else supplies.places_of(request[2])


class _Supplies:
    """Backends that a bound is asked for, by place, and the quotas that they spend."""

    def __init__(self, backends: Backends) -> None:
        # By name: its quota, and how many accounts have it.
        listed: list[tuple[str, BackendQuota, int]] = []
        if isinstance(backends, Mapping):
            listed.extend((name, _quota_of(quota), 1) for name, quota in backends.items())
        elif isinstance(backends, Iterable) and not isinstance(backends, str | bytes):
            listed.extend((one.name, one.quota, len(one.accounts or [None])) for one in map(_backend, backends))
        if not listed:
            msg = f"backends={backends!r}: give at least one Backend, or a quota by name, such as {{'api': '100/min'}}"
            raise ConfigError(msg, option="backends", value=backends)
        self.quotas: list[tuple[BackendQuota, int]] = []
        self.names: list[str] = []
        self._places: dict[str, int] = {}
        self._spends: list[int] = []
        groups: dict[str, int] = {}
        for name, quota, accounts in listed:
            self._places[name] = len(self._places)
            place = len(self.quotas) if quota.group is None else groups.setdefault(quota.group, len(self.quotas))
            self._spends.append(place)
            if place == len(self.quotas):
                self.quotas.append((quota, accounts))
                self.names.append(name)
            else:
                self.names[place] = f"{self.names[place]} + {name}"

    def places_of(self, names: object) -> list[int]:
        """The places of some backends, or of all."""
        if names is None:
            return list(range(len(self._places)))
        if isinstance(names, str) or not isinstance(names, Iterable):
            msg = f"backends={names!r}: give a list of names, or leave it out for any"
            raise ConfigError(msg, option="backends", value=names)
        return sorted({self._place(name) for name in names})

    def latencies(self, latency: Latency | None) -> list[tuple[int, float]]:
        """What each backend spends, and the seconds that an attempt takes there."""
        if isinstance(latency, Mapping):
            for name in latency:
                self._place(name)
            missing = [name for name in self._places if name not in latency]
            if missing:
                msg = f"latency={dict(latency)!r}: say that of {missing[0]!r} too"
                raise ConfigError(msg, option="latency", value=latency)
            seconds = [_seconds(latency[name]) for name in self._places]
        else:
            seconds = [0.0 if latency is None else _seconds(latency)] * len(self._places)
        return list(zip(self._spends, seconds, strict=True))

    def _place(self, name: object) -> int:
        if isinstance(name, str) and name in self._places:
            return self._places[name]
        msg = f"backends={name!r}: there is none of that name; there are {', '.join(map(repr, self._places))}"
        raise ConfigError(msg, option="backends", value=name)


def _quota_of(quota: object) -> BackendQuota:
    if isinstance(quota, Limit | str):
        return BackendQuota(quota, concurrency=None)
    if isinstance(quota, BackendQuota):
        return quota
    msg = f"backends={quota!r}: give a BackendQuota, a Limit, or a text such as '100/min' for each name"
    raise ConfigError(msg, option="backends", value=quota)


def _backend(backend: object) -> Backend:
    if isinstance(backend, Backend):
        return backend
    msg = f"backends={backend!r}: give Backends, or a mapping from names to quotas"
    raise ConfigError(msg, option="backends", value=backend)


def _seconds(latency: object) -> float:
    seconds = latency.total_seconds() if isinstance(latency, timedelta) else latency
    if not is_number(seconds) or seconds < 0:
        msg = f"latency={latency!r}: give seconds from 0, a timedelta, or a mapping from names of backends to these"
        raise ConfigError(msg, option="latency", value=latency)
    return float(seconds)
