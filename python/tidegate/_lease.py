"""A user's own code under a backend's limits."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType

from tidegate import _core
from tidegate._outcome import Classified, Outcome, UnsentError

Submit = Callable[[Callable[[_core.Request], Awaitable[object]]], Awaitable[_core.Ticket]]


class Lease:
    """A permit of one backend, held while the body of `async with scheduler.slot(...)` runs.

    Attributes:
        backend: Name of the backend.
        account: The account it was given; None for a backend without accounts.
    """

    def __init__(self, request: _core.Request) -> None:
        self._request = request
        self.backend: str = request.backend
        self.account: object | None = request.account

    def ack(
        self, status: int | None = None, headers: Mapping[str, str] | None = None, *, retry_after: float | None = None
    ) -> None:
        """Say that response headers arrived; see `Request.ack`."""
        self._request.ack(status, headers, retry_after=retry_after)

    async def recharge(self, cost: int = 1) -> None:
        """Wait until one more message may be sent; see `Request.recharge`."""
        await self._request.recharge(cost)

    def __repr__(self) -> str:
        return f"<Lease of {self.backend!r}>"


class Slot:
    """What `RateLimitScheduler.slot` returns: an async context manager that gives a `Lease`. Use it once.

    Cancellation: cancelled while it waits, it takes nothing; cancelled as the permit arrives, the permit is given back.
    """

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._ticket: _core.Ticket | None = None
        self._granted: asyncio.Future[_core.Request | None] | None = None
        self._released: asyncio.Future[BaseException | None] | None = None

    async def __aenter__(self) -> Lease:
        """Wait for the permit.

        Raises:
            DeadlineExceededError: It did not come within `timeout`.
            SchedulerClosedError: The scheduler was closed.
        """
        loop = asyncio.get_running_loop()
        self._granted = loop.create_future()
        self._released = loop.create_future()
        self._ticket = ticket = await self._submit(self)
        try:
            # The ticket resolves the same future, with None, when the request ends before it is granted.
            request = await self._granted if ticket._wait(self._granted) else None  # noqa: SLF001 - the ticket's other half
        except asyncio.CancelledError:
            if self._granted.done() and not self._granted.cancelled():
                self._released.set_result(UnsentError())
            else:
                ticket.cancel()
            raise
        if request is None:
            reply = ticket._reply()  # noqa: SLF001
            assert reply is not None and reply.error is not None  # noqa: PT018 - it ended, and not with a value
            raise reply.error
        return Lease(request)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the permit back. An exception of the body is classified as a handler's would be, and passes on."""
        if self._released is not None and not self._released.done():
            self._released.set_result(exc)
        if self._ticket is not None:
            self._ticket._forget()  # noqa: SLF001 - what the body raised, its own caller hears

    async def __call__(self, request: _core.Request) -> None:
        """Hold the permit for the body: the runner of this request."""
        if self._granted is None or self._released is None or self._granted.done():
            raise UnsentError
        self._granted.set_result(request)
        error = await self._released
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise Classified(Outcome.NEUTRAL, error)

    def __repr__(self) -> str:
        return "<slot>"
