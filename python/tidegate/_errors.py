"""Everything that Tidegate raises. This module imports nothing of ours."""

from asyncio import QueueFull
from collections.abc import Sequence


class TidegateError(Exception):
    """What every error of Tidegate derives from."""


class ConfigError(TidegateError, ValueError):
    """A wrong option. The message names the option, the value and the way out.

    Attributes:
        option: Name of the option, as it is written in code.
        value: What was given.
    """

    def __init__(self, message: str, *, option: str = "", value: object = None) -> None:
        super().__init__(message)
        self.option = option
        self.value = value


class CostExceedsBurstError(TidegateError, ValueError):
    """A cost that no backend can ever admit.

    Attributes:
        cost: The cost asked for.
        burst: The largest cost that is admitted at once.
    """

    def __init__(self, message: str, *, cost: int = 0, burst: int = 0) -> None:
        super().__init__(message)
        self.cost = cost
        self.burst = burst


class QueueFullError(TidegateError, QueueFull):
    """The scheduler holds as many pending requests, or the queue as many items, as its `capacity` allows.

    Attributes:
        target: What was refused.
        capacity: Most requests pending, or items waiting, at once.
    """

    def __init__(self, message: str, *, target: object = None, capacity: int = 0) -> None:
        super().__init__(message)
        self.target = target
        self.capacity = capacity


class DeadlineExceededError(TidegateError, TimeoutError):
    """The request's deadline came, or could not be met any more.

    Attributes:
        target: Of the request.
        stage: `"queued"` when it waited, `"leased"` when an attempt was running.
        after: Seconds from acceptance to the end.
    """

    def __init__(self, message: str, *, target: object = None, stage: str = "queued", after: float = 0.0) -> None:
        super().__init__(message)
        self.target = target
        self.stage = stage
        self.after = after


class RequestCancelledError(TidegateError):
    """The request was cancelled, by its ticket or because its consumer left.

    Attributes:
        target: Of the request.
    """

    def __init__(self, message: str, *, target: object = None) -> None:
        super().__init__(message)
        self.target = target


class BackendError(TidegateError):
    """One attempt failed; what the handler raised is its `__cause__`.

    Attributes:
        backend: Name of the backend.
        attempt: Which attempt it was, from 1.
    """

    def __init__(self, message: str, *, backend: str = "", attempt: int = 0) -> None:
        super().__init__(message)
        self.backend = backend
        self.attempt = attempt


class BackendRateLimitedError(BackendError):
    """The server rejected the attempt for its limits. A handler may raise it: its request waits and costs no attempt.

    Attributes:
        retry_after: Seconds that the server asked us to wait; None when it did not say.
    """

    def __init__(self, message: str, *, backend: str = "", attempt: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message, backend=backend, attempt=attempt)
        self.retry_after = retry_after


class BackendUnavailableError(BackendError):
    """The backend failed: a server error, a broken connection, a time-out. Worth another attempt."""


class BackendRejectedError(BackendError):
    """The request itself is at fault: another attempt would end the same way. A handler may raise it: there is no other."""


class RequestFailedError(TidegateError):
    """A request ended without a value. Its `__cause__` is what the last handler raised.

    Attributes:
        target: Of the request.
        attempts: The error of every attempt that counted, in order.
    """

    def __init__(self, message: str, *, target: object = None, attempts: Sequence[BackendError] = ()) -> None:
        super().__init__(message)
        self.target = target
        self.attempts = tuple(attempts)


class SchedulerClosedError(TidegateError, RuntimeError):
    """The scheduler accepts no more requests, or was closed while this one waited."""


class InternalError(TidegateError, RuntimeError):
    """A bug in Tidegate. Please report it with what was logged before."""
