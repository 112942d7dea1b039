"""The most that can go through a quota."""

from datetime import timedelta

from tidegate import _core
from tidegate._errors import ConfigError
from tidegate._quota import BackendQuota, Limit, seconds_of


def bound(
    quota: BackendQuota | Limit | str, horizon: float | timedelta, *, round_trip: float | timedelta | None = None
) -> int | None:
    """The most units that a quota lets through within a horizon, from idle, when there is always something to send.

    What a measured run is to be compared with; and how long a collection must take at least. In closed form: for a window
    `amount * (floor(horizon / period) + 1)`, for a bucket `burst + floor(horizon / interval)`, of several limits the least.

    Args:
        quota: The limits, as the server counts them. One that is `per` a scope bounds no total, and is left out.
        horizon: Seconds, or a timedelta; its last instant included.
        round_trip: Seconds from sending a message to its headers, on average. Then the bound is what Tidegate can send, which
            starts a limit's clock at the headers, and its concurrency is one more limit. None: what the server lets through.

    Returns:
        Units; None when there is no limit, and no concurrency or round trip either.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> bound("50/5s", 32)
        350
        >>> bound("100/s burst 6", 10), bound("100/s burst 6", 10, round_trip=0.09)
        (1006, 594)
    """
    if isinstance(quota, Limit | str):
        quota = BackendQuota(quota, concurrency=None)
    if not isinstance(quota, BackendQuota):
        msg = f"quota={quota!r}: give a BackendQuota, a Limit, or a text such as '100/min'"
        raise ConfigError(msg, option="quota", value=quota)
    trip = None if round_trip is None else seconds_of("round_trip", round_trip)
    return _core.bound(quota, seconds_of("horizon", horizon), trip)
