"""A backend as a user states it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, get_args

from tidegate import _core
from tidegate._errors import ConfigError
from tidegate._outcome import Outcome
from tidegate._quota import BackendQuota, is_number, seconds_of

Handler = Callable[[_core.Request], Awaitable[object]] | Callable[[_core.Request], object]
Classify = Callable[[_core.Request, object], Outcome]
ColdStart = Literal["assume_empty", "assume_full"]


class Backend:
    """One upstream: how to ask it, and what it allows.

    Args:
        name: What it is called in replies, snapshots and `backends=`. Unique within a scheduler.
        handler: `async def handler(request)`, run on the loop, or a plain function, run in a daemon thread of this backend. It
            returns a value or raises.
        quota: What the server allows: a `BackendQuota`, or a text such as `"100/min"`. None: its concurrency of 32 is all.
        timeout: Longest attempt, in seconds; None for no end. A handler that is not done by then is cancelled (a thread is
            left to itself and keeps its concurrency until it returns).
        accounts: Keys, sessions, addresses: whatever the server counts by, at least one. Each has the quota and the concurrency
            to itself; an attempt goes to the least busy one that has room, and finds it as `request.account`. The health of each
            is watched by itself.
        weight: Its share when several backends are ready, above 0.
        classify: `classify(request, value_or_exception) -> Outcome`, instead of the rules in the guide.
        cold_start: What is assumed of the server when the scheduler is made, which may remember what an earlier run of this
            program sent: `"assume_empty"`, nothing; or `"assume_full"`, all that it allows, so that windows open after a whole
            period and buckets fill from nothing.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        name: str,
        handler: Handler,
        quota: BackendQuota | str | None = None,
        *,
        timeout: float | None = 60,
        accounts: Sequence[object] | None = None,
        weight: float = 1,
        classify: Classify | None = None,
        cold_start: ColdStart = "assume_empty",
    ) -> None:
        if not isinstance(name, str) or not name:
            msg = f"name={name!r}: give the backend a name, such as 'api'"
            raise ConfigError(msg, option="name", value=name)
        if not callable(handler):
            msg = (
                f"handler={handler!r}: give backend {name!r} a function that takes a request, such as 'async def fetch(request)'"
            )
            raise ConfigError(msg, option="handler", value=handler)
        if classify is not None and not callable(classify):
            msg = f"classify={classify!r}: give a function of (request, value or exception), or None"
            raise ConfigError(msg, option="classify", value=classify)
        if cold_start not in get_args(ColdStart):
            msg = f"cold_start={cold_start!r}: give 'assume_empty' or 'assume_full'"
            raise ConfigError(msg, option="cold_start", value=cold_start)
        if not is_number(weight) or weight <= 0:
            msg = f"weight={weight!r}: give a number above 0"
            raise ConfigError(msg, option="weight", value=weight)
        if quota is not None and not isinstance(quota, BackendQuota | str):
            msg = f"quota={quota!r}: give a text such as '100/min', several as BackendQuota('10/s', '100/min'), or None"
            raise ConfigError(msg, option="quota", value=quota)
        if accounts is not None and (isinstance(accounts, str | bytes) or not isinstance(accounts, Sequence)):
            msg = "accounts: give a list with one object for each account, such as ['key 1', 'key 2'], or None"
            raise ConfigError(msg, option="accounts", value=accounts)
        if accounts is not None and not accounts:
            msg = f"accounts={accounts!r}: backend {name!r} needs at least one; leave it out for a single one without a name"
            raise ConfigError(msg, option="accounts", value=accounts)
        self.name = name
        self.handler = handler
        self.quota = quota if isinstance(quota, BackendQuota) else BackendQuota() if quota is None else BackendQuota(quota)
        self.timeout = None if timeout is None else seconds_of("timeout", timeout)
        self.accounts: tuple[object, ...] | None = None if accounts is None else tuple(accounts)
        self.weight = float(weight)
        self.classify = classify
        self.cold_start = cold_start

    async def aopen(self) -> None:
        """Called on the loop before the first attempt. A subclass opens here what it owns."""

    async def aclose(self) -> None:
        """Called on the loop after the last attempt, whatever happened. A subclass closes here what it opened."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.quota!r}>"
