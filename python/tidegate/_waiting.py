"""What the compiled module calls back into: waiting for a ticket, and the errors that end a request."""

import asyncio
import logging
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue

from tidegate import _core
from tidegate._errors import (
    BackendError,
    BackendRateLimitedError,
    BackendRejectedError,
    BackendUnavailableError,
    DeadlineExceededError,
    InternalError,
    RequestCancelledError,
    RequestFailedError,
    SchedulerClosedError,
    TidegateError,
)
from tidegate._outcome import Outcome, verdict_of
from tidegate._quote import said, shown

logger = logging.getLogger("tidegate")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {said(error)}"


async def reply_of(ticket: _core.Ticket) -> _core.Reply:
    """Wait for a request to end; its reply, or its error raised."""
    while (reply := ticket._reply()) is None:  # noqa: SLF001 - the ticket's other half
        future = asyncio.get_running_loop().create_future()
        if ticket._wait(future):  # noqa: SLF001
            try:
                await future
            except asyncio.CancelledError:
                ticket._unwait(future)  # noqa: SLF001
                raise
    if reply.error is not None:
        raise to_raise(reply.error)
    return reply


def to_raise(error: TidegateError) -> TidegateError:
    """A copy of the error of a ticket, for one who awaits it.

    What is raised refers to the frames that it passes, and they to their ticket: the original, which the ticket keeps, would
    close a circle that the garbage collector cannot see, and would collect the frames of everybody who awaits it.
    """
    kind = type(error)
    copy = kind.__new__(kind)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy


async def recharge(request: _core.Request, cost: int, scopes: object) -> None:
    """Wait until the attempt may send one more message.

    Cancellation: it is not charged.
    """
    granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def grant(given: bool) -> None:
        if not granted.done():
            granted.set_result(given)

    if request._recharge(cost, scopes, grant):  # noqa: SLF001 - its other half
        return
    try:
        given = await granted
    except asyncio.CancelledError:
        request._withdraw(cost, grant)  # noqa: SLF001
        raise
    if not given:
        raise _given_up(request)


def recharge_blocking(request: _core.Request, cost: int, scopes: object) -> None:
    """Block the calling thread until the attempt may send one more message.

    Interrupted, as by Ctrl-C in the main thread: it is not charged.
    """
    granted: SimpleQueue[bool] = SimpleQueue()
    grant = granted.put
    try:
        given = request._recharge(cost, scopes, grant) or granted.get()  # noqa: SLF001 - its other half
    except KeyboardInterrupt:
        request._withdraw(cost, grant)  # noqa: SLF001
        raise
    if not given:
        raise _given_up(request)


def _given_up(request: _core.Request) -> RequestCancelledError:
    msg = f"this attempt for {shown(request.target)} was given up while it waited to send one more message"
    return RequestCancelledError(msg, target=request.target)


def _attempt_error(backend: str, attempt: int, cause: BaseException) -> BackendError:
    if isinstance(cause, BackendError):
        cause.backend, cause.attempt = backend, attempt
        return cause
    outcome = verdict_of(cause).outcome
    kinds: dict[Outcome, type[BackendError]] = {
        Outcome.LIMITED: BackendRateLimitedError,
        Outcome.NEUTRAL: BackendRejectedError,
    }
    kind = kinds.get(outcome, BackendUnavailableError)
    error = kind(f"attempt {attempt} at {backend}: {_told(cause)}", backend=backend, attempt=attempt)
    error.__cause__ = cause
    return error


def attempt_timed_out(backend: str, after: float) -> TimeoutError:
    """The error of an attempt that took longer than its backend allows."""
    return TimeoutError(f"no reply from {backend} in {after:.3g} s")


def error_of(
    ending: str,
    target: object,
    past: list[tuple[str, BaseException]],
    error: BaseException | None,
    backend: str | None,
    after: float,
) -> TidegateError:
    """The error that a request ended with."""
    request = f"the request for {shown(target)}"
    match ending:
        case "cancelled":
            return RequestCancelledError(f"{request} was cancelled", target=target)
        case "broken":
            return InternalError(f"the engine has stopped after an internal error while {request} was pending; please report it")
        case "closed":
            return SchedulerClosedError(f"the scheduler was closed while {request} was pending")
        case "expired while queued" | "expired while leased":
            stage = ending.rsplit(maxsplit=1)[-1]
            msg = f"{request} missed its deadline while it was {stage}, {after:.3g} s after it was accepted"
            return DeadlineExceededError(msg, target=target, stage=stage, after=after)
    if ending == "unserved":
        why = f"{request} ended: backend {backend!r}, which could have served it, was removed or never admits its cost any more"
        attempts = [_attempt_error(name, number, cause) for number, (name, cause) in enumerate(past, start=1)]
        return RequestFailedError(why, target=target, attempts=attempts)
    causes = [*past, (backend or "", error)] if error is not None else past
    attempts = [_attempt_error(name, number, cause) for number, (name, cause) in enumerate(causes, start=1)]
    last = causes[-1][1] if causes else None
    plural = "" if len(attempts) == 1 else "s"
    why = "" if last is None else f": {_told(last)}"
    failed = RequestFailedError(f"{request} failed after {len(attempts)} attempt{plural}{why}", target=target, attempts=attempts)
    failed.__cause__ = last
    return failed


def log_unheard(error: BaseException) -> None:
    """Say once what ended a request whose ticket nobody awaited."""
    if not isinstance(error, RequestCancelledError | SchedulerClosedError):
        logger.warning("nobody awaited a request that failed: %s", error)


def resolve(future: "Future[_core.Reply]", reply: _core.Reply) -> None:
    """Give a thread's future its reply, unless it was cancelled meanwhile."""
    with suppress(InvalidStateError):
        if reply.error is None:
            future.set_result(reply)
        else:
            future.set_exception(reply.error)


def refuse(future: "Future[_core.Reply]", target: object) -> None:
    """Tell a thread that its request came too late."""
    with suppress(InvalidStateError):
        msg = f"the scheduler was closed before the request for {shown(target)} was accepted"
        future.set_exception(SchedulerClosedError(msg))
