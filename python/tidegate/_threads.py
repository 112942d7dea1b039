"""Plain handlers in daemon threads of their backend.

A thread cannot be stopped. When its attempt is given up it is left to itself: its concurrency stays taken until it returns, and
since threads are daemons, one that never returns does not keep the program from ending. The others end with their scheduler.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Protocol

from tidegate import _core

Report = Callable[[], object]


class Running(Protocol):
    """What goes on after its attempt was given up."""

    def when_returned(self, report: Report) -> None:
        """Have `report` called on the loop when it has ended; at once when it has."""


class StillRunningError(Exception):
    """An attempt was given up while its handler runs on. `call` tells when it has returned."""

    def __init__(self, call: Running) -> None:
        super().__init__()
        self.call = call


class Call:
    """One call of a handler in a thread, in the context of who makes the call."""

    def __init__(self, handler: Callable[[_core.Request], object], request: _core.Request) -> None:
        self._handler = handler
        self._request = request
        self._context = copy_context()
        self._loop = asyncio.get_running_loop()
        self._is_back = False
        self._given_up: Report | None = None
        self.result: object = None
        self.error: BaseException | None = None
        self.returned: asyncio.Future[None] = self._loop.create_future()

    def run(self) -> None:
        """Run it, in the thread."""
        try:
            self.result = self._context.run(self._handler, self._request)
        except BaseException as error:  # noqa: BLE001 - the worker decides what becomes of it
            self.error = error

    def report(self) -> None:
        """Tell the loop that it has returned."""
        try:
            self._loop.call_soon_threadsafe(self._come_back)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            self._discard()

    def when_returned(self, report: Report) -> None:
        """Have `report` called on the loop when the thread has returned; at once when it has."""
        self._given_up = report
        if self._is_back:
            self._end_given_up(report)

    def _come_back(self) -> None:
        self._is_back = True
        if not self.returned.done():
            self.returned.set_result(None)
        if self._given_up is not None:
            self._end_given_up(self._given_up)

    def _end_given_up(self, report: Report) -> None:
        self._discard()
        report()

    def _discard(self) -> None:
        if inspect.iscoroutine(self.result):
            self.result.close()


class HandlerThreads:
    """The threads of one backend: one more whenever all are busy, so never more than its concurrency."""

    def __init__(self, name: str, handler: Callable[[_core.Request], object]) -> None:
        self._name = name
        self._handler = handler
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    async def __call__(self, request: _core.Request) -> object:
        """Run one attempt in a thread.

        Cancellation: raises `StillRunningError`, since the thread runs on.
        """
        call = Call(self._handler, request)
        self._calls.put(call)
        if not self._idle.acquire(blocking=False):
            self._started += 1
            name = f"tidegate-{self._name}-{self._started}"
            # They know nothing of this object, whose end is theirs.
            threading.Thread(target=_serve, args=(self._calls, self._idle), name=name, daemon=True).start()
        try:
            await call.returned
        except asyncio.CancelledError:
            raise StillRunningError(call) from None
        result, error = call.result, call.error
        call.result = call.error = None
        try:
            if error is not None:
                raise error
            if inspect.isawaitable(result):  # a plain function that returns a coroutine
                return await result
            return result
        finally:
            # Its traceback holds this frame, and that of the call.
            del error

    def close(self) -> None:
        """Let the threads end, each when its call has returned."""
        started, self._started = self._started, 0
        for _ in range(started):
            self._calls.put(None)

    def __del__(self) -> None:
        """Let the threads of a scheduler that was never closed end."""
        self.close()


def _serve(calls: "SimpleQueue[Call | None]", idle: threading.Semaphore) -> None:
    while (call := calls.get()) is not None:
        call.run()
        idle.release()  # before the loop knows: it may have the next call by then, and needs no other thread for it
        call.report()
        del call
