"""Plain handlers in daemon threads of their backend.

A thread cannot be stopped. When its attempt is given up it is left to itself: its concurrency stays taken until it returns,
and since threads are daemons, one that never returns does not keep the program from ending.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from tidegate import _core

Report = Callable[[], object]


class StillRunningError(Exception):
    """An attempt was given up while its thread runs on. `call` tells when it has returned."""

    def __init__(self, call: "Call") -> None:
        super().__init__()
        self.call = call


class Call:
    """One call of a handler in a thread."""

    def __init__(self, handler: Callable[[_core.Request], object], request: _core.Request) -> None:
        self._handler = handler
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._report: Report | None = None
        self.result: object = None
        self.error: BaseException | None = None
        self.returned: asyncio.Future[None] = self._loop.create_future()

    def run(self) -> None:
        """Run it, in the thread."""
        try:
            self.result = self._handler(self._request)
        except BaseException as error:  # noqa: BLE001 - the worker decides what becomes of it
            self.error = error
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            self._loop.call_soon_threadsafe(self._come_back)

    def when_returned(self, report: Report) -> None:
        """Have `report` called on the loop when the thread has returned."""
        if self.returned.done() and not self.returned.cancelled():
            report()
        else:
            self._report = report

    def _come_back(self) -> None:
        if not self.returned.done():
            self.returned.set_result(None)
        if self._report is not None:
            self._report()


class HandlerThreads:
    """The threads of one backend: one more whenever all are busy, so never more than its concurrency."""

    def __init__(self, name: str, handler: Callable[[_core.Request], object]) -> None:
        self._name = name
        self._handler = handler
        self._calls: SimpleQueue[Call] = SimpleQueue()
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
            threading.Thread(target=self._serve, name=f"tidegate-{self._name}-{self._started}", daemon=True).start()
        try:
            await call.returned
        except asyncio.CancelledError:
            raise StillRunningError(call) from None
        if call.error is not None:
            raise call.error
        if inspect.isawaitable(call.result):  # a plain function that returns a coroutine
            return await call.result
        return call.result

    def _serve(self) -> None:
        while True:
            self._calls.get().run()
            self._idle.release()
