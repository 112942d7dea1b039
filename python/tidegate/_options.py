"""Options that a user gives a scheduler or a request."""

from dataclasses import dataclass
from enum import IntEnum

from tidegate._errors import ConfigError
from tidegate._quota import count_of, is_number


class Priority(IntEnum):
    """How urgent a request is. Any integer from 0 to 255 will do; smaller is more urgent."""

    CRITICAL = 0
    HIGH = 64
    NORMAL = 128
    LOW = 192


@dataclass(frozen=True, slots=True)
class Retry:
    """How failed attempts are retried: after a wait that is uniform in `[0, min(cap, base * 2^(n-1))]`, under a budget.

    Args:
        attempts: Attempts in all, the first included; at least 1.
        base: Upper end of the first wait, in seconds.
        cap: Upper end of any wait, in seconds.
        budget: Retries allowed as a share of first attempts, from 0 to 1. Ten at once and one a second are always allowed; a
            retry beyond its budget waits.

    Raises:
        ConfigError: A value is out of range.
    """

    attempts: int = 4
    base: float = 0.5
    cap: float = 60
    budget: float = 0.1

    def __post_init__(self) -> None:
        count_of("attempts", self.attempts)
        for option in ("base", "cap", "budget"):
            value = getattr(self, option)
            if not is_number(value) or value < 0:
                msg = f"{option}={value!r}: give a number of at least 0"
                raise ConfigError(msg, option=option, value=value)
        if self.budget > 1:
            msg = f"budget={self.budget!r}: give a share from 0 to 1"
            raise ConfigError(msg, option="budget", value=self.budget)
