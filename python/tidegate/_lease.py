"""A user's own code under a backend's limits."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

from tidegate import _core
from tidegate._errors import DeadlineExceededError, TidegateError
from tidegate._outcome import Classified, UnsentError, verdict_of
from tidegate._runner import Runner
from tidegate._threads import Report, StillRunningError
from tidegate._waiting import to_raise

Submit = Callable[[Runner], Awaitable[_core.Ticket]]


class Lease:
    """A permit of one backend, held while the body of `async with scheduler.slot(...)`, or of `slot_blocking`, runs.

    Attributes:
        backend: Name of the backend.
        account: The account it was given; None for a backend without accounts.
    """

    def __init__(self, request: _core.Request) -> None:
        self._request = request
        self.backend: str = request.backend
        self.account: object | None = request.account

    def ack(
        self,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        retry_after: float | timedelta | None = None,
    ) -> None:
        """Say that response headers arrived; see `Request.ack`."""
        self._request.ack(status, headers, retry_after=retry_after)

    async def recharge(self, cost: int = 1, *, scopes: Mapping[str, str] | None = None) -> None:
        """Wait until one more message may be sent; see `Request.recharge`."""
        await self._request.recharge(cost, scopes=scopes)

    def recharge_blocking(self, cost: int = 1, *, scopes: Mapping[str, str] | None = None) -> None:
        """Block the thread until one more message may be sent; see `Request.recharge_blocking`."""
        self._request.recharge_blocking(cost, scopes=scopes)

    def __repr__(self) -> str:
        return f"<Lease of {self.backend!r}>"


class Slot:
    """What `RateLimitScheduler.slot` returns: an async context manager that gives a `Lease`. Use it once.

    Cancellation: cancelled while it waits, it takes nothing; cancelled as the permit arrives, the permit is given back.
    """

    def __init__(self, submit: Submit) -> None:
        self._submit: Submit | None = submit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticket: _core.Ticket | None = None
        self._granted: asyncio.Future[_core.Request | None] | None = None
        self._released: asyncio.Future[BaseException | None] | None = None
        self._is_left = False
        self._when_left: Report | None = None
        self._debt: asyncio.Task[None] | None = None
        # For a deadline that comes in the body: whose body it is, and how often that was to be cancelled before.
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._missed: TidegateError | None = None

    async def __aenter__(self) -> Lease:
        """Wait for the permit.

        Raises:
            DeadlineExceededError: It did not come within `timeout`.
            SchedulerClosedError: The scheduler was closed.
        """
        submit, self._submit = self._submit, None
        if submit is None:
            msg = "a slot is used once; call slot() for another"
            raise RuntimeError(msg)
        self._loop = loop = asyncio.get_running_loop()
        self._granted = granted = loop.create_future()
        self._released = loop.create_future()
        self._ticket = ticket = await submit(self)
        try:
            # The ticket resolves the same future, with None, when the request ends before it is granted.
            request = await granted if ticket._wait(granted) else None  # noqa: SLF001 - the ticket's other half
        except asyncio.CancelledError:
            if granted.cancelled() or not granted.done():
                ticket.cancel()
            self._leave(UnsentError())
            raise
        if request is None:
            reply = ticket._reply()  # noqa: SLF001
            self._leave(None)
            assert reply is not None and reply.error is not None  # noqa: PT018 - it ended, and not with a value
            raise to_raise(reply.error)
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        return Lease(request)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the permit back. An exception of the body is classified as a handler's would be, and passes on.

        Raises:
            DeadlineExceededError: `timeout` passed while the body ran, and it was cancelled for that.
        """
        self._leave(exc)
        task, self._task = self._task, None
        if self._missed is None or task is None:
            return
        if task.uncancel() <= self._cancelling and exc_type is asyncio.CancelledError:
            raise self._missed from exc

    @property
    def missed(self) -> TidegateError | None:
        """What to raise, if `timeout` passed while the permit was held."""
        return self._missed

    def leave(self, error: BaseException | None) -> None:
        """Have the permit given back, from any thread and from a finalizer; once it is back this does nothing.

        For who enters and leaves in different tasks or threads. Then nothing is cancelled when `timeout` passes; see `missed`.
        """
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nothing goes on any more
                self._loop.call_soon_threadsafe(self._leave, error)

    def owe(self, lease: Lease, count: int, scopes: Mapping[str, str] | None = None) -> None:
        """Charge messages that have left already, from any thread: ahead of what waits, and the permit is held until then."""
        loop = self._loop
        if loop is None:
            return

        async def pay() -> None:
            with suppress(TidegateError):  # it was closed meanwhile
                for _ in range(count):
                    await lease.recharge(scopes=scopes)

        def start() -> None:
            self._debt = loop.create_task(pay())

        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(start)

    def _leave(self, error: BaseException | None) -> None:
        if self._debt is not None and not self._debt.done():
            self._debt.add_done_callback(lambda _: self._leave(error))
            return
        self._debt = None
        self._is_left = True
        if self._released is not None and not self._released.done():
            self._released.set_result(error)
        if self._when_left is not None:
            self._when_left()
        if self._ticket is not None:
            self._ticket._forget()  # noqa: SLF001 - what the body raised, its own caller hears
        # All of these refer to this object: as their target, their runner.
        self._ticket = self._granted = self._released = self._when_left = None

    async def __call__(self, request: _core.Request) -> None:
        """Hold the permit for the body: the runner of this request."""
        granted, released = self._granted, self._released
        if granted is None or released is None or granted.done():
            raise UnsentError
        granted.set_result(request)
        try:
            error = await released
        except asyncio.CancelledError:
            if released.cancelled():
                self._cancel_late_body()
                raise StillRunningError(self) from None
            error = released.result()
        if isinstance(error, UnsentError):
            raise error
        if error is not None:
            # Not the error itself: it is on its way through the body's own frames.
            raise Classified(verdict_of(error).outcome, error)

    def when_returned(self, report: Report) -> None:
        """Have `report` called when the body has been left; at once when it has."""
        if self._is_left:
            report()
        else:
            self._when_left = report

    def _cancel_late_body(self) -> None:
        reply = self._ticket._reply() if self._ticket is not None else None  # noqa: SLF001
        if reply is not None and isinstance(reply.error, DeadlineExceededError) and self._task is not None:
            self._missed = to_raise(reply.error)
            self._task.cancel()

    def __repr__(self) -> str:
        return "<slot>"
