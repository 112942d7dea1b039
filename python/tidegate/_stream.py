"""The replies of one `map`, as an async iterator."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Self

from tidegate import _core

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
        wait_for_room: Callable[[], Awaitable[None]],
        *,
        ahead: int,
        ordered: bool,
    ) -> None:
        self._core = core
        self._stream = _core.Stream(core, ordered)
        self._pop = self._stream.pop
        self._accept = accept
        self._wait_for_room = wait_for_room
        self._ahead = ahead
        self._refill_at = ahead // 2
        self._targets: Iterator[object] | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._space: asyncio.Future[None] | None = None
        self._asynchronous: AsyncIterable[object] | None = None
        if isinstance(targets, AsyncIterable):
            self._asynchronous = targets
        else:
            self._targets = iter(targets)
        self._backlog: list[object] = []
        self._accepted = 0
        self._open = 0
        self._exhausted = False
        self._error: BaseException | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> _core.Reply:
        """Wait for the next reply. Asking for it says that the one before has been dealt with."""
        while True:
            if self._open <= self._refill_at and not self._exhausted:
                await self._refill()
            reply = self._pop()
            if reply is not None:
                self._open -= 1
                return reply
            if self._exhausted and not self._open:
                self._finish()
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                raise StopAsyncIteration
            arrived = asyncio.get_running_loop().create_future()
            self._stream.wait(arrived)
            await arrived

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what is pending."""
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what is pending and take no more targets. Idempotent."""
        self._finish()

    def __del__(self) -> None:
        """Cancel what is pending, when the iteration was left and the stream is freed."""
        if not getattr(self, "_closed", True):
            self._finish()

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = self._exhausted = True
        self._open = 0
        self._targets = None
        self._backlog.clear()
        if self._feeder is not None:
            self._feeder.cancel()
        self._stream.close()

    async def _refill(self) -> None:
        """Take targets until `ahead` are accepted and not yielded, as far as they come and there is room."""
        if self._asynchronous is not None:
            if self._feeder is None:
                self._feeder = asyncio.get_running_loop().create_task(self._feed(self._asynchronous), name="tidegate-map")
            if self._space is not None and not self._space.done():
                self._space.set_result(None)
            return
        if not self._core.is_accepting():
            self._exhausted = True
            return
        wanted = self._ahead - self._open - len(self._backlog)
        if wanted > 0 and self._targets is not None:
            before = len(self._backlog)
            try:
                self._backlog.extend(islice(self._targets, wanted))
            except BaseException as error:  # noqa: BLE001 - raised after the replies that are owed
                self._error, self._targets = error, None
            else:
                if len(self._backlog) < before + wanted:
                    self._targets = None
        self._send()
        if not self._open and self._backlog:
            await self._wait_for_room()
        self._exhausted = self._exhausted or (self._targets is None and not self._backlog)

    def _send(self) -> None:
        if not self._backlog:
            return
        accepted = self._accept(self._backlog, self._stream, self._accepted)
        self._accepted += accepted
        self._open += accepted
        del self._backlog[:accepted]

    async def _feed(self, targets: AsyncIterable[object]) -> None:
        """Take the targets of an asynchronous source, while the consumer waits for replies."""
        try:
            async for target in targets:
                while self._open >= self._ahead:
                    self._space = asyncio.get_running_loop().create_future()
                    await self._space
                self._backlog.append(target)
                while self._backlog:
                    if not self._core.is_accepting():
                        return
                    self._send()
                    if self._backlog:
                        await self._wait_for_room()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised after the replies that are owed
            self._error = error
        finally:
            self._exhausted = True
            self._stream.nudge()
