"""Strict servers of the seven kinds that are in use, in virtual time. Each says of every message whether it is let through.

They count exactly, and answer at once: a line to them is made by who asks, such as `FakeBackend`.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple

from tidegate import _core
from tidegate._clock import ManualClock
from tidegate._errors import ConfigError
from tidegate._quota import count_of, is_number, seconds_of

__all__ = [
    "AlignedWindow",
    "AnchoredWindow",
    "Answer",
    "Concurrency",
    "Gcra",
    "Server",
    "SlidingCounter",
    "SlidingWindow",
    "TokenBucket",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says of a message.

    `retry_after` are the seconds after which it would let the message through if nothing else came; None when it does, and when
    that depends on what is being served.
    """

    ok: bool
    retry_after: float | None


class _Rule(NamedTuple):
    kind: Literal["log", "anchored", "aligned", "bucket", "gcra", "counter", "concurrency"]
    amount: int
    period: float = 1.0
    burst: int = 1
    phase: float = 0.0


class Server:
    """Lets a message through when all of its parts do, and then counts it for all of them.

    Args:
        *parts: Other servers, whose rules it has; with counts of its own. Without any it lets everything through.
        counts_rejected: It counts what it rejects like the rest, as HAProxy does.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> server = Server(SlidingWindow(2, 1), SlidingWindow(3, 60))
        >>> [server.receive(second).ok for second in (0, 0, 0, 1, 2)]
        [True, True, False, True, False]
        >>> server.accepted, server.rejected
        (3, 2)
    """

    def __init__(self, *parts: "Server", counts_rejected: bool = False) -> None:
        for part in parts:
            if not isinstance(part, Server):
                msg = f"parts={part!r}: give servers, such as SlidingWindow(10, 1)"
                raise ConfigError(msg, option="parts", value=part)
        rules = [rule for part in parts for rule in part._rules]  # noqa: SLF001 - of its own class
        self._build(rules, counts_rejected=counts_rejected)

    def _build(self, rules: list[_Rule], *, counts_rejected: bool) -> None:
        self._rules = rules
        self._server = _core.Server(rules, counts_rejected)

    def receive(self, now: float | ManualClock, cost: int = 1) -> Answer:
        """A message arrives.

        Args:
            now: The clock, or its seconds. An instant before that of the last message is taken for that.
            cost: Units that it counts, at least 1.

        Raises:
            ConfigError: An argument is out of range.
        """
        if isinstance(now, ManualClock):
            nanos = now.time_ns()
        elif is_number(now) and 0 <= now < 2**33:
            nanos = round(now * 1e9)
        else:
            msg = f"now={now!r}: give a ManualClock, or its seconds"
            raise ConfigError(msg, option="now", value=now)
        return Answer(*self._server.receive(nanos, count_of("cost", cost)))

    def leave(self) -> None:
        """A message that was let through is served; only a cap on concurrency looks at that."""
        self._server.leave()

    @property
    def accepted(self) -> int:
        """Messages that were let through."""
        return self._server.counts()[0]

    @property
    def rejected(self) -> int:
        """Messages that were not."""
        return self._server.counts()[1]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.accepted} accepted, {self.rejected} rejected>"


class SlidingWindow(Server):
    """At most `amount` in any `period` seconds: a log of what it let through."""

    def __init__(self, amount: int, period: float | timedelta, *, counts_rejected: bool = False) -> None:
        rule = _Rule("log", count_of("amount", amount), seconds_of("period", period))
        self._build([rule], counts_rejected=counts_rejected)


class AnchoredWindow(Server):
    """At most `amount` in a window of `period` seconds that begins with the first message after the last one ended."""

    def __init__(self, amount: int, period: float | timedelta, *, counts_rejected: bool = False) -> None:
        rule = _Rule("anchored", count_of("amount", amount), seconds_of("period", period))
        self._build([rule], counts_rejected=counts_rejected)


class AlignedWindow(Server):
    """At most `amount` in each window of `period` seconds; one of them begins at `phase`."""

    def __init__(self, amount: int, period: float | timedelta, *, phase: float = 0.0, counts_rejected: bool = False) -> None:
        rule = _Rule("aligned", count_of("amount", amount), seconds_of("period", period), phase=_phase_of(phase))
        self._build([rule], counts_rejected=counts_rejected)


class TokenBucket(Server):
    """Holds `burst` tokens, by default `amount`, and gets `amount` more a `period`; a message takes one for each unit."""

    def __init__(
        self, amount: int, period: float | timedelta, *, burst: int | None = None, counts_rejected: bool = False
    ) -> None:
        amount = count_of("amount", amount)
        burst = count_of("burst", amount if burst is None else burst)
        rule = _Rule("bucket", amount, seconds_of("period", period), burst=burst)
        self._build([rule], counts_rejected=counts_rejected)


class Gcra(Server):
    """Evenly spaced messages, `amount` a `period`, of which up to `burst` may come at once; by default one."""

    def __init__(self, amount: int, period: float | timedelta, *, burst: int = 1, counts_rejected: bool = False) -> None:
        rule = _Rule("gcra", count_of("amount", amount), seconds_of("period", period), burst=count_of("burst", burst))
        self._build([rule], counts_rejected=counts_rejected)


class SlidingCounter(Server):
    """Estimates what the last `period` counted: this window, and of the one before the share that still overlaps.

    One of its windows begins at `phase`.
    """

    def __init__(self, amount: int, period: float | timedelta, *, phase: float = 0.0, counts_rejected: bool = False) -> None:
        rule = _Rule("counter", count_of("amount", amount), seconds_of("period", period), phase=_phase_of(phase))
        self._build([rule], counts_rejected=counts_rejected)


class Concurrency(Server):
    """At most `amount` messages at once, from `receive` until `leave`."""

    def __init__(self, amount: int) -> None:
        self._build([_Rule("concurrency", count_of("amount", amount))], counts_rejected=False)


def _phase_of(phase: object) -> float:
    if not is_number(phase) or phase < 0:
        msg = f"phase={phase!r}: give seconds of at least 0"
        raise ConfigError(msg, option="phase", value=phase)
    return float(phase)
