"""A thread's own code under a backend's limits."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import get_ident
from types import TracebackType

from tidegate._errors import SchedulerClosedError
from tidegate._lease import Lease, Slot
from tidegate._outcome import UnsentError

# Seconds after which a thread that waits looks whether the loop is still there.
LOOK = 1.0


class BlockingSlot:
    """What `RateLimitScheduler.slot_blocking` returns: a context manager that gives a `Lease`. Use it once.

    It may be left in another thread than it was entered in. One that is dropped without being left gives its permit back.

    Cancellation: an exception that interrupts the wait, such as `KeyboardInterrupt`, takes nothing.
    """

    def __init__(self, slot: Slot, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        self._slot = slot
        self._loop = loop
        self._thread = thread
        self._is_held = False

    def __enter__(self) -> Lease:
        """Block the thread until it has the permit.

        Raises:
            DeadlineExceededError: It did not come within `timeout`.
            SchedulerClosedError: The scheduler was closed.
            RuntimeError: This is the loop's own thread.
        """
        if get_ident() == self._thread:
            msg = "the loop's thread would wait for itself: use 'async with scheduler.slot(...)' here, or run this in a thread"
            raise RuntimeError(msg)
        entering = Entering(self._slot, self._loop)
        try:
            lease = entering.wait()
            self._is_held = True
        except BaseException:
            entering.give_up()
            raise
        finally:
            del entering  # it has what is raised, whose traceback has this frame
        return lease

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Give the permit back. An exception of the body is classified as a handler's would be, and passes on.

        Raises:
            DeadlineExceededError: `timeout` passed while the body ran.
        """
        self.leave(exc)
        if exc is None and self._slot.missed is not None:
            raise self._slot.missed

    def leave(self, error: BaseException | None) -> None:
        """Have the permit given back, from any thread and from a finalizer; once it is back this does nothing."""
        self._is_held = False
        self._slot.leave(error)

    def owe(self, lease: Lease, count: int, scopes: Mapping[str, str] | None = None) -> None:
        """Charge messages that have left already; see `Slot.owe`."""
        self._slot.owe(lease, count, scopes)

    def __del__(self) -> None:
        """Give back what an interruption between the wait and the body has left."""
        if self._is_held:
            self.leave(asyncio.CancelledError())

    def __repr__(self) -> str:
        return "<blocking slot>"


class Entering:
    """One thread's wait: a task of the loop enters the slot for it.

    The future decides who has the permit: a thread that gives up before it is set gets none, and the task gives it back.
    """

    def __init__(self, slot: Slot, loop: asyncio.AbstractEventLoop) -> None:
        self._slot = slot
        self._loop = loop
        self._lease: Future[Lease] = Future()
        self._task: asyncio.Task[None] | None = None
        if not _call(loop, self._start):
            raise _gone()

    def wait(self) -> Lease:
        """Block the thread until the slot is entered."""
        try:
            while not wait([self._lease], LOOK).done:
                if self._loop.is_closed():
                    raise _gone()
            return self._lease.result()
        finally:
            del self  # as above

    def give_up(self) -> None:
        """Have the permit given back, however far it has come."""
        if self._lease.cancel():
            _call(self._loop, self._stop)
        elif self._lease.exception() is None:
            self._slot.leave(UnsentError())

    def _start(self) -> None:
        if not self._lease.cancelled():
            self._task = self._loop.create_task(self._enter())

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _enter(self) -> None:
        try:
            lease = await self._slot.__aenter__()
        except BaseException as error:  # noqa: BLE001 - it is the thread's
            if self._lease.set_running_or_notify_cancel():
                told = _gone() if isinstance(error, asyncio.CancelledError) else error
                self._lease.set_exception(told.with_traceback(None))  # which has this frame, and this the future
            return
        if self._lease.set_running_or_notify_cancel():
            self._lease.set_result(lease)
        else:
            self._slot.leave(UnsentError())


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> bool:
    """Have the loop call it. False when the loop is closed: nothing goes on any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
        return True
    return False


def _gone() -> SchedulerClosedError:
    return SchedulerClosedError("the scheduler's loop has ended while this thread waited for a permit")
