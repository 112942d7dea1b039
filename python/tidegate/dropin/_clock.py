"""Seconds since the Unix epoch that no step of the wall clock changes."""

from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic

from tidegate.testing import ManualClock

Now = Callable[[], float]

_EPOCH = datetime.now(UTC).timestamp() - monotonic()


def now() -> float:
    """What the wall clock showed when this was imported, and the seconds since then."""
    return _EPOCH + monotonic()


def now_by(clock: ManualClock | None) -> Now:
    """The same for a scheduler in virtual time."""
    if clock is None:
        return now
    epoch = now() - clock.time()
    return lambda: epoch + clock.time()


def stamp_of(instant: object) -> float:
    """A caller's instant as such seconds: a number is one, a datetime without a time zone is local; anything else is now."""
    if isinstance(instant, datetime):
        return instant.timestamp()
    return float(instant) if isinstance(instant, int | float) else now()
