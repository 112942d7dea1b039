"""What the compiled module calls back into: waiting for a ticket, and the errors that end a request."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from tidegate import _core
from tidegate._errors import (
    BackendError,
    BackendRateLimitedError,
    BackendRejectedError,
    BackendUnavailableError,
    DeadlineExceededError,
    RequestCancelledError,
    RequestFailedError,
    SchedulerClosedError,
    TidegateError,
)
from tidegate._outcome import Outcome, verdict_of
from tidegate._quota import count_of

logger = logging.getLogger("tidegate")

# Characters of a target or of a handler's message that one of ours quotes.
LONGEST_QUOTE = 300


def _shown(value: object, text: Callable[[object], str] = repr) -> str:
    """A user's object as text, whatever its own methods do."""
    try:
        shown = text(value)
    except Exception as error:  # noqa: BLE001 - it belongs to the user
        shown = f"<{type(value).__name__}, which cannot be shown: {type(error).__name__}>"
    return shown if len(shown) <= LONGEST_QUOTE else f"{shown[: LONGEST_QUOTE - 1]}…"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {_shown(error, str)}"


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


async def recharge(request: _core.Request, cost: int) -> None:
    """Wait until the attempt may send one more message.

    Cancellation: it is not charged.
    """
    cost = count_of("cost", cost)
    granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def grant() -> None:
        if not granted.done():
            granted.set_result(None)

    if not request._recharge(cost, grant):  # noqa: SLF001 - the request's other half
        try:
            await granted
        except asyncio.CancelledError:
            request._withdraw(cost, grant)  # noqa: SLF001
            raise


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
    shown = _shown(target)
    match ending:
        case "cancelled":
            return RequestCancelledError(f"the request for {shown} was cancelled", target=target)
        case "closed":
            return SchedulerClosedError(f"the scheduler was closed while the request for {shown} was pending")
        case "expired while queued" | "expired while leased":
            stage = ending.rsplit(maxsplit=1)[-1]
            msg = f"the request for {shown} missed its deadline while it was {stage}, {after:.3g} s after it was accepted"
            return DeadlineExceededError(msg, target=target, stage=stage, after=after)
    causes = [*past, (backend or "", error)] if error is not None else past
    attempts = [_attempt_error(name, number, cause) for number, (name, cause) in enumerate(causes, start=1)]
    last = causes[-1][1] if causes else None
    plural = "" if len(attempts) == 1 else "s"
    why = "" if last is None else f": {_told(last)}"
    failed = RequestFailedError(
        f"the request for {shown} failed after {len(attempts)} attempt{plural}{why}", target=target, attempts=attempts
    )
    failed.__cause__ = last
    return failed


def log_unheard(error: BaseException) -> None:
    """Say once what ended a request whose ticket nobody awaited."""
    if not isinstance(error, RequestCancelledError | SchedulerClosedError):
        logger.warning("nobody awaited a request that failed: %s", error)


def resolve(future: "Future[_core.Reply]", reply: _core.Reply) -> None:
    """Give a thread's future its reply."""
    try:
        if reply.error is not None:
            future.set_exception(reply.error)
        else:
            future.set_result(reply)
    except InvalidStateError:  # cancelled meanwhile
        pass


def refuse(future: "Future[_core.Reply]", target: object) -> None:
    """Tell a thread that its request came too late."""
    error = SchedulerClosedError(f"the scheduler was closed before the request for {_shown(target)} was accepted")
    try:
        future.set_exception(error)
    except InvalidStateError:
        pass


Grant = Callable[[], object]
