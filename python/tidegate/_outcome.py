"""What an attempt came to, read from what its handler returned or raised."""

import socket
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from tidegate import _core
from tidegate._errors import BackendRateLimitedError, BackendRejectedError
from tidegate._quota import is_number

# In the names of clients' exceptions that say so themselves.
LOCAL = ("Proxy", "NameResolution", "DNSError")
# Exceptions that are looked into.
MOST_WRAPPED = 32


class Outcome(IntEnum):
    """What one attempt came to.

    `OK` has a value. `LIMITED` was rejected by the server's limits: it waits and costs no attempt. `FAILED` is retried.
    `NEUTRAL` is the request's own fault, or was given up: it is not retried.
    """

    OK = 0
    LIMITED = 1
    FAILED = 2
    NEUTRAL = 3


class Verdict(NamedTuple):
    """An exception, read: its outcome, what the server said if it carries an answer, whether it is of this side of the line."""

    outcome: Outcome
    status: int | None = None
    headers: Mapping[str, str] | None = None
    is_local: bool = False


class Classified(Exception):  # noqa: N818 - a signal between a runner and its worker, never seen by users
    """A runner's word on its attempt: the outcome, with the value or the error."""

    def __init__(self, outcome: Outcome, result: object) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.result = result


class UnsentError(Exception):
    """A runner gives its attempt up before anything was sent: its permit is given back."""


class PutBackError(Exception):
    """A handler of ours ends its attempt between two messages, nothing having failed: its request waits again, at no cost."""


def _status_of(error: BaseException) -> tuple[int | None, object]:
    """The status that a known client's exception carries, and the object that carries it."""
    for carrier in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            status = getattr(carrier, name, None)
            if isinstance(status, int) and not isinstance(status, bool) and 100 <= status <= 599:
                return int(status), carrier
    return None, None


def verdict_of(error: BaseException) -> Verdict:
    """Read an exception: by its status when it has one; else an `Exception` is a failure and anything worse is neutral.

    `SystemExit` and its kin end their request only: retrying them would be absurd.
    """
    if not isinstance(error, Exception):
        return Verdict(Outcome.NEUTRAL)
    try:
        return _read(error)
    except Exception:  # noqa: BLE001 - a property of the exception raised: it says nothing more
        return Verdict(Outcome.FAILED)


def _read(error: Exception) -> Verdict:
    match error:
        case BackendRateLimitedError():
            return Verdict(Outcome.LIMITED, 429, _retry_after(error.retry_after))
        case BackendRejectedError():
            return Verdict(Outcome.NEUTRAL)
    status, carrier = _status_of(error)
    if status is None:
        return Verdict(Outcome.FAILED, is_local=_is_local(error))
    headers = getattr(carrier, "headers", None)
    if headers is None:
        headers = getattr(getattr(error, "response", None), "headers", None)
    return Verdict(Outcome(_core.outcome_of_status(status, headers)), status, headers)


def _is_local(error: BaseException) -> bool:
    """Whether a failure is of this side of the line: no name was found, no proxy was there. Clients wrap what says so."""
    pending: list[object] = [error]
    for _ in range(MOST_WRAPPED):
        if not pending:
            break
        inner = pending.pop()
        if not isinstance(inner, BaseException):
            continue
        if isinstance(inner, socket.gaierror) or any(word in type(inner).__name__ for word in LOCAL):
            return True
        reasons = (getattr(inner, name, None) for name in ("__cause__", "__context__", "os_error", "reason"))
        pending += [*inner.args[:1], *reasons]
    return False


def _retry_after(seconds: float | None) -> Mapping[str, str] | None:
    return {"Retry-After": f"{seconds:.9f}"} if is_number(seconds) else None
