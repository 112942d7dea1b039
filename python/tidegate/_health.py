"""When a backend is held back for failing, and how it comes back."""

from dataclasses import dataclass

from tidegate._errors import ConfigError
from tidegate._quota import is_number

# Most seconds of any time, as of an interval: 292 years would fit.
LONGEST = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class HealthMonitor:
    """Watches whether backends, and each of their accounts, work; a scheduler has one by default.

    A backend that fails is *down*: nothing is sent to it for a while, then exactly one request, to see. When that goes
    through it is *recovering*: as many at once as have succeeded since, and no faster than its shortest limit allows in the
    long run. Requests that may go elsewhere do; the others wait, and the failures meanwhile cost none of their attempts.

    Three failures in a row of different requests suffice, or a share of about a sixth that lasts. A backend for which some
    requests have no substitute is down only when nearly all fails, eleven in a row. What fails everywhere is no fault of one.
    A status of 4xx, a rejection by a limit (429) and a cancellation are no failures. A backend with limits `per host` is never
    down: it is the hosts that fail.

    Args:
        enabled: False: no backend is ever down.
        pause: Upper end in seconds of the first time during which nothing is sent; it is at least half as long, and twice as
            long after each probe that fails.
        longest_pause: Upper end of any, above or equal to `pause`.
        longest_sole_pause: The same for a backend without a substitute, which everything waits for.
        ramp: Seconds of recovering.

    Raises:
        ConfigError: A value is out of range.

    Source: Page, "Continuous Inspection Schemes", Biometrika 1954 (CUSUM), over attempts instead of time.
    """

    enabled: bool = True
    pause: float = 5
    longest_pause: float = 300
    longest_sole_pause: float = 30
    ramp: float = 60

    def __post_init__(self) -> None:
        for option in ("pause", "longest_pause", "longest_sole_pause", "ramp"):
            value = getattr(self, option)
            if not is_number(value) or not 0 < value <= LONGEST:
                msg = f"{option}={value!r}: give seconds above 0, at most ten years"
                raise ConfigError(msg, option=option, value=value)
        for option in ("longest_pause", "longest_sole_pause"):
            value = getattr(self, option)
            if value < self.pause:
                msg = f"{option}={value!r}: give at least pause={self.pause!r}, or a shorter pause"
                raise ConfigError(msg, option=option, value=value)


@dataclass(frozen=True, slots=True)
class Health:
    """How a backend is doing on one of its accounts.

    `phase` is `"up"`, `"open"` (down: nothing is sent), `"probe"` (one request is, to see) or `"ramp"` (recovering). `score` is
    from 0, nothing is sent, to 1: the share of attempts of the last minutes that did not fail, less in a ramp.
    `next_probe_in` are the seconds until it is tried again, when it is open.
    """

    phase: str
    score: float
    next_probe_in: float | None = None
