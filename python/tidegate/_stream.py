"""The replies of one `map`, as an async iterator."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Self
from weakref import ref

from tidegate import _core
from tidegate._driver import Driver
from tidegate._progress import Bar, Line

# Accepts as many of the targets as there is room for, from the first, as those from this index on; says how many.
Accept = Callable[[list[object], _core.Stream, int], int]


class ReplyStream:
    """Replies as they complete, or in the order of their targets. Made by `RateLimitScheduler.map`.

    Iterate over it once. Leaving the iteration early cancels what is pending: at once when the stream is used as `async with`,
    is closed by `aclose()`, or is freed.

    Cancellation: cancelling `__anext__` loses no reply; the next call returns it.
    """

    def __init__(
        self,
        core: _core.Core,
        targets: Iterable[object] | AsyncIterable[object],
        accept: Accept,
        driver: Driver,
        *,
        ahead: int,
        ordered: bool,
    ) -> None:
        self._core = core
        self._driver = driver
        self._stream = _core.Stream(core, ordered)
        self._pop = self._stream.pop
        self._accept = accept
        self._ahead = ahead
        self._refill_at = ahead // 2
        self._targets: Iterator[object] | None = None
        self._asynchronous: AsyncIterable[object] | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._space: asyncio.Future[None] | None = None
        if isinstance(targets, AsyncIterable):
            self._asynchronous = targets
        else:
            self._targets = iter(targets)
        self._backlog: list[object] = []
        self._accepted = 0
        self._open = 0
        self._exhausted = False
        self._error: BaseException | None = None
        self._waiting = False
        self._was_woken = False  # from its place in the line for room
        self._closed = False
        self._progress: Line | Bar | None = None
        driver.feed_from(self)

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> _core.Reply:
        """Wait for the next reply. Asking for it says that the one before has been dealt with."""
        while True:
            if self._open <= self._refill_at and not self._exhausted:
                self._refill()
            reply = self._pop()
            if reply is not None:
                self._open -= 1
                return reply
            if self._exhausted and not self._open:
                self._finish()
                error, self._error = self._error, None
                if error is None:
                    raise StopAsyncIteration
                try:
                    raise error
                finally:
                    del error, self  # as below
            if self._waiting:
                msg = "another task waits for the next reply of this map; iterate over it in one place, or call map() twice"
                raise RuntimeError(msg)
            self._waiting = True
            try:
                if self._backlog and not self._open:
                    await self._driver.wait_for_room(first=self._was_woken)
                    self._was_woken = True
                else:
                    arrived = asyncio.get_running_loop().create_future()
                    self._stream.wait(arrived)
                    await arrived
            except BaseException:
                # Whoever keeps the exception keeps this frame; the map is to be freed, and cancelled, all the same.
                self._waiting = False
                del self
                raise
            self._waiting = False

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what is pending."""
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what is pending and take no more targets. Idempotent.

        An asynchronous source is cancelled while it makes a target, and its end waited for.
        """
        self._finish()
        if self._feeder is not None and not self._feeder.done():
            await asyncio.wait([self._feeder])

    def __del__(self) -> None:
        """Cancel what is pending, when the iteration was left and the stream is freed."""
        if not getattr(self, "_closed", True):
            self._finish()

    def end(self) -> None:
        """Take no more targets. What was accepted goes on."""
        self._exhausted = True
        self._asynchronous = self._targets = None
        self._backlog.clear()
        if self._feeder is not None and not self._feeder.get_loop().is_closed():
            self._feeder.cancel()
        self._stream.nudge()

    @property
    def yielded(self) -> int:
        """Replies that were handed over so far."""
        return self._accepted - self._open

    def show(self, progress: Line | Bar | None) -> None:
        """Stop showing progress when it ends."""
        self._progress = progress

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._progress is not None:
            self._progress.stop()
        self.end()
        self._open = 0
        self._stream.close()

    def _refill(self) -> None:
        """Take targets until `ahead` are accepted and not yielded, as far as they come and there is room."""
        if self._asynchronous is not None:
            if self._feeder is None:
                # It does not keep this object alive: who leaves the iteration early frees it.
                feed = _feed(ref(self), self._asynchronous)
                self._feeder = asyncio.get_running_loop().create_task(feed, name="tidegate-map")
            if self._space is not None and not self._space.done():
                self._space.set_result(None)
            return
        wanted = self._ahead - self._open - len(self._backlog)
        if wanted > 0 and self._targets is not None:
            before = len(self._backlog)
            try:
                self._backlog.extend(islice(self._targets, wanted))
            except Exception as error:  # noqa: BLE001 - raised after the replies that are owed
                self._error, self._targets = error, None
            else:
                if len(self._backlog) < before + wanted:
                    self._targets = None
        self._send()

    def _send(self) -> None:
        """Have what was taken accepted, as far as there is room; who waits in line comes first."""
        if self._backlog and (self._was_woken or not self._driver.has_line):
            accepted = self._accept(self._backlog, self._stream, self._accepted)
            self._accepted += accepted
            self._open += accepted
            del self._backlog[:accepted]
            if accepted:
                self._was_woken = False
        self._exhausted = self._targets is None and not self._backlog

    def offer(self, target: object, *, waited: bool) -> Awaitable[None] | None:
        """Have a target of the asynchronous source accepted; else what to wait for first."""
        if self._open >= self._ahead:
            self._space = asyncio.get_running_loop().create_future()
            return self._space
        if (self._driver.has_line and not waited) or not self._accept([target], self._stream, self._accepted):
            return self._driver.wait_for_room(first=waited)
        self._accepted += 1
        self._open += 1
        return None

    def source_ended(self, error: BaseException | None) -> None:
        """The asynchronous source has no more targets, or raised."""
        if not self._exhausted:
            self._exhausted = True
            self._asynchronous, self._error = None, error
            self._stream.nudge()


async def _feed(owner: "ref[ReplyStream]", targets: AsyncIterable[object]) -> None:
    """Take the targets of an asynchronous source, while the consumer waits for replies."""
    error: BaseException | None = None
    try:
        async for target in targets:
            waited = False
            while (stream := owner()) is not None:
                obstacle = stream.offer(target, waited=waited)
                waited = obstacle is not None and not isinstance(obstacle, asyncio.Future)
                del stream
                if obstacle is None:
                    break
                await obstacle
    except asyncio.CancelledError as cancelled:
        error = cancelled
        raise
    except BaseException as raised:  # noqa: BLE001 - raised after the replies that are owed
        error = raised
    finally:
        if (stream := owner()) is not None:
            stream.source_ended(error)
        # Its traceback holds this frame.
        del stream, error
