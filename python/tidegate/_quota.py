"""What a backend allows, as a user states it."""

import re
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self, TypeGuard, cast, get_args

from tidegate._errors import ConfigError

Kind = Literal["window", "bucket", "leaky", "counter", "unknown"]
Anchor = Literal["headers", "finish"]

UNITS = {
    name: seconds
    for seconds, names in {
        0.001: "ms",
        1.0: "s sec secs second seconds",
        60.0: "m min mins minute minutes",
        3600.0: "h hour hours",
        86400.0: "d day days",
    }.items()
    for name in names.split()
}
# Numbers are bounded: Python refuses to read integers of thousands of digits.
GRAMMAR = re.compile(
    r"""
    (?P<amount> \d[\d_]{0,30} ) \s* (?P<kilo> k )? \s* / \s*
    (?P<count> \d+ (?: \.\d+ )? )? \s* (?P<unit> [a-z]+ )
    (?: \s+ burst \s* (?P<burst> \d[\d_]{0,30} ) )?
    (?: \s+ (?P<kind> window | bucket | leaky | counter | unknown ) )?
    (?: \s+ per \s+ (?P<per> [a-z_][\w.-]{0,63} ) )?
    """,
    re.VERBOSE,
)
SCOPE = re.compile(r"[a-z_][\w.-]{0,63}")
LARGEST = 2**32 - 1
# Seconds that a limit may take to refill: 100 years.
LONGEST = 100 * 31_557_600


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is an integer or a float that stands for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def seconds_of(option: str, value: object) -> float:
    """A span that a user gave, in seconds, finite and above 0.

    Raises:
        ConfigError: It is none.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not is_number(seconds) or seconds <= 0:
        msg = f"{option}={value!r}: give seconds above 0, or a timedelta"
        raise ConfigError(msg, option=option, value=value)
    return float(seconds)


def count_of(option: str, value: object, otherwise: str = "") -> int:
    """A number of units that a user gave, from 1 to 2^32 - 1; `otherwise` ends the message that says so.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        msg = f"{option}={value!r}: give an integer from 1 to {LARGEST}{otherwise}"
        raise ConfigError(msg, option=option, value=value)
    return value


@dataclass(frozen=True, slots=True, init=False)
class Limit:
    """One limit of a backend: `amount` units a `period`.

    How the server counts is its *kind*:

    * `"window"`: never more than `amount` in any period, by a log or a fixed or anchored window.
    * `"bucket"`: it holds `burst` units in all and refills at `amount` a period.
    * `"leaky"`: a bucket that holds one: requests come evenly spaced.
    * `"counter"`: an estimate from this window and a share of the last one, as HAProxy's and Cloudflare's.
    * `"unknown"`: none of these is known. What is sent conforms to windows and to buckets of at least five.

    Without a kind it is taken for a bucket when `burst` is given, else for a window; and if the server rejects a request that
    conforms to that, it is treated as unknown, then as a counter, then as leaky: the *kind ladder*. Each step is an event, and
    a snapshot shows the kind of the moment. A kind that was named never changes.

    Args:
        amount: Units, at least 1.
        period: Seconds, or a timedelta.
        kind: How the server counts, if you know.
        burst: Units that a full bucket holds, at least 1; default `amount`. (nginx's `burst=5` is 6 here. With `burst` and
            without `nodelay` nginx delays what comes early, and here it is 1.)
        anchor: What starts the clock: `"headers"`, or `"finish"` for a server that counts a request when it is complete.
        aligned: Windows begin at multiples of the period of Unix time, as those of Envoy's rate limit service: a whole window's
            worth may go right behind each boundary. This machine's clock and the server's must agree to 0.1 seconds (or to an
            eighth of a shorter period), as those that are set by NTP do. The clock is read once, when a scheduler is made. With a
            `ManualClock` they begin at multiples of the period of its time.
        per: A scope, such as `"host"`: each of its values has the limit to itself, on each account, from the first request that
            carries it until it is full again. A request says its values with `scopes=`; for `"host"` a target that is an http(s)
            URL says it itself.
        jitter: By how many seconds the times that requests take to the server differ at most, from 0, if you are sure of that:
            between machines of one rack, say. Then a request need not be acknowledged to be known to have been counted, and
            long round trips cost little: a bucket of 6 at 100 a second and a round trip of 80 ms lets 99.9 % through instead
            of 66 %. `"auto"` finds the number out where delays seem to have a bound and it gains more than 2 %; when delays
            drop all at once it is rejected, and then stays off for an hour. Not for aligned windows, nor with
            `anchor="finish"`.
        name: How it is called in snapshots; default its text, such as `"100/min"`.

    Raises:
        ConfigError: An argument is out of range.

    Attributes:
        guessed: No kind was given: it may climb the ladder. `kind` is then where it starts.

    Example:
        >>> Limit(100, 60)
        Limit('100/min')
        >>> Limit.parse("10/s burst 20").burst
        20
        >>> Limit(50, 5, kind="counter")
        Limit('50/5s counter')
        >>> Limit.parse("1/s per host").per
        'host'
    """

    amount: int
    period: float
    kind: Kind
    guessed: bool
    burst: int | None
    anchor: Anchor
    aligned: bool
    per: str | None
    jitter: float | Literal["auto"] | None
    name: str

    def __init__(
        self,
        amount: int,
        period: float | timedelta,
        *,
        kind: Kind | None = None,
        burst: int | None = None,
        anchor: Anchor = "headers",
        aligned: bool = False,
        per: str | None = None,
        jitter: float | timedelta | Literal["auto"] | None = None,
        name: str | None = None,
    ) -> None:
        guessed = kind is None
        if kind is None:
            kind = "window" if burst is None else "bucket"
        if kind not in get_args(Kind):
            msg = f"kind={kind!r}: give {_either(Kind)}, or leave it out"
            raise ConfigError(msg, option="kind", value=kind)
        if anchor not in get_args(Anchor):
            msg = f"anchor={anchor!r}: give {_either(Anchor)}"
            raise ConfigError(msg, option="anchor", value=anchor)
        if not isinstance(aligned, bool):
            msg = f"aligned={aligned!r}: give True for windows that begin at multiples of the period of Unix time, else False"
            raise ConfigError(msg, option="aligned", value=aligned)
        if aligned and kind != "window":
            msg = f"aligned={aligned!r}: only windows are aligned; leave it out, or give kind='window' and no burst"
            raise ConfigError(msg, option="aligned", value=aligned)
        jitter = _jitter_of(jitter)
        if jitter is not None and (aligned or anchor == "finish"):
            other = "aligned=True" if aligned else "anchor='finish'"
            msg = f"jitter={jitter!r}: it has no use with {other}; leave one of them out"
            raise ConfigError(msg, option="jitter", value=jitter)
        count_of("amount", amount)
        burst = _burst_of(kind, amount, burst)
        seconds = seconds_of("period", period)
        if seconds > LONGEST:
            msg = f"period={period!r}: longer than 100 years; give a shorter one"
            raise ConfigError(msg, option="period", value=period)
        if burst is not None and seconds * burst / amount > LONGEST:
            msg = f"burst={burst!r}: takes longer than 100 years to refill; give a smaller one"
            raise ConfigError(msg, option="burst", value=burst)
        if per is not None and not (isinstance(per, str) and SCOPE.fullmatch(per)):
            msg = f"per={per!r}: give the name of a scope, such as 'host', or leave it out"
            raise ConfigError(msg, option="per", value=per)
        if name is not None and not (isinstance(name, str) and name):
            msg = f"name={name!r}: give a text, or leave it out"
            raise ConfigError(msg, option="name", value=name)
        object.__setattr__(self, "amount", amount)
        object.__setattr__(self, "period", seconds)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "guessed", guessed)
        object.__setattr__(self, "burst", burst)
        object.__setattr__(self, "anchor", anchor)
        object.__setattr__(self, "aligned", aligned)
        object.__setattr__(self, "per", per)
        object.__setattr__(self, "jitter", jitter)
        object.__setattr__(self, "name", name or self._text())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a limit such as `"100/min"`, `"900/15min"`, `"10/s burst 20"`, `"3k/h"`, `"50/5s counter"`, `"1/s per host"`.

        Raises:
            ConfigError: The text is no limit.
        """
        found = GRAMMAR.fullmatch(text.strip().lower()) if isinstance(text, str) else None
        if found is None or (unit := UNITS.get(found["unit"])) is None:
            msg = f"quota={text!r}: write amount/period, such as '100/min', '900/15min' or '10/s burst 20'"
            raise ConfigError(msg, option="quota", value=text)
        amount = int(found["amount"].replace("_", "")) * (1000 if found["kilo"] else 1)
        burst = int(found["burst"].replace("_", "")) if found["burst"] else None
        try:
            period = float(found["count"] or 1) * unit
            return cls(amount, period, kind=cast("Kind | None", found["kind"]), burst=burst, per=found["per"])
        except ConfigError as error:
            msg = f"quota={text!r}: {error}"
            raise ConfigError(msg, option="quota", value=text) from error

    def _text(self) -> str:
        """What `parse` reads as this limit, to the last digit; it has no words for `anchor`, `aligned` and `jitter`."""
        words = [f"{self.amount}/{_period_text(self.period)}"]
        if self.kind == "bucket":
            words.append(f"burst {self.burst}")
        if not self.guessed:
            words.append(self.kind)
        if self.per is not None:
            words.append(f"per {self.per}")
        return " ".join(words)

    def __repr__(self) -> str:
        anchor = "" if self.anchor == "headers" else f", anchor={self.anchor!r}"
        aligned = ", aligned=True" if self.aligned else ""
        jitter = "" if self.jitter is None else f", jitter={self.jitter!r}"
        return f"Limit({self._text()!r}{anchor}{aligned}{jitter})"


def _period_text(seconds: float) -> str:
    """A period in its largest whole unit, which is how a server's documentation has it: `min`, `15min`, `0.5s`."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds % length == 0:
            count = int(seconds // length)
            return unit if count == 1 else f"{count}{unit}"
    text = repr(seconds)
    if "e" in text:
        from decimal import Decimal

        text = f"{Decimal(text):f}"
    return f"{text}s"


def _jitter_of(value: float | timedelta | str | None) -> float | Literal["auto"] | None:
    """Seconds from 0, or what was given instead of a number."""
    if value is None or value == "auto":
        return cast("Literal['auto'] | None", value)
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not is_number(seconds) or seconds < 0:
        msg = f"jitter={value!r}: give seconds from 0, a timedelta, 'auto' or None"
        raise ConfigError(msg, option="jitter", value=value)
    return float(seconds)


def _burst_of(kind: Kind, amount: int, burst: int | None) -> int | None:
    """Units that a full bucket holds; none for what is no bucket."""
    if kind == "bucket":
        return count_of("burst", amount if burst is None else burst)
    if burst is None or (kind == "leaky" and count_of("burst", burst) == 1):
        return 1 if kind == "leaky" else None
    what = "a leaky limit holds one" if kind == "leaky" else f"a {kind} has no burst" if kind != "unknown" else "it is a bucket's"
    msg = f"burst={burst!r}: {what}; leave it out, or give kind='bucket'"
    raise ConfigError(msg, option="burst", value=burst)


def _either(words: object) -> str:
    """The words of a `Literal`, as a message offers them."""
    *others, last = map(repr, get_args(words))
    return f"{', '.join(others)} or {last}"


@dataclass(frozen=True, slots=True, init=False)
class BackendQuota:
    """All that a backend allows: every limit at once, and how many attempts may run together.

    Args:
        *limits: `Limit`s, or texts that `Limit.parse` reads. A request is sent when all admit it, and charged to all.
        concurrency: Attempts at once, at least 1; None for no cap.
        group: Backends whose quotas name the same group spend one: same limits, same concurrency, closed together.

    Raises:
        ConfigError: A limit or the concurrency is out of range.

    Example:
        >>> BackendQuota("100/min", "3000/h", concurrency=10)
        BackendQuota('100/min', '3000/h', concurrency=10)
    """

    limits: tuple[Limit, ...]
    concurrency: int | None
    group: str | None

    def __init__(self, *limits: str | Limit, concurrency: int | None = 32, group: str | None = None) -> None:
        if concurrency is not None:
            count_of("concurrency", concurrency, ", or None for no cap")
        if group is not None and not (isinstance(group, str) and group):
            msg = f"group={group!r}: give a name, such as 'api.example', or None"
            raise ConfigError(msg, option="group", value=group)
        parsed = tuple(limit if isinstance(limit, Limit) else Limit.parse(limit) for limit in limits)
        object.__setattr__(self, "limits", parsed)
        object.__setattr__(self, "concurrency", concurrency)
        object.__setattr__(self, "group", group)

    def __repr__(self) -> str:
        texts = [repr(limit.name) for limit in self.limits]
        group = [] if self.group is None else [f"group={self.group!r}"]
        return f"BackendQuota({', '.join([*texts, f'concurrency={self.concurrency}', *group])})"
