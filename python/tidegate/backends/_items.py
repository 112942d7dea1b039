"""The items of one target, for backends that find many: all of them as a list, or each as it comes.

A handler asks `items_of(request)` where its items go, and offers them there until it is told to stop:

    items = items_of(request)
    for item in read(target_of(request)):
        if not items.offer_blocking(request, item.url, item):
            return None
    return items.value

Each item goes there once, however many attempts it takes: it is known by its key, and what an earlier attempt has offered is
passed over. A plain target's value is the list of its items, which is kept at `request.checkpoint` from attempt to attempt. A
stream's handler waits while the buffer is full: a thread blocks, a coroutine awaits.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from tidegate import Backend, ConfigError, RateLimitScheduler, Request, Ticket, TidegateError
from tidegate._quota import count_of
from tidegate._quote import shown
from tidegate._scopes import HOST, host_of
from tidegate._waiting import to_raise

if TYPE_CHECKING:
    from tidegate._scheduler import RequestOptions


TWO_READERS = "another task waits for the next item of this stream; iterate over it in one place"


class ItemBackend(Backend):
    """A backend whose targets have many items: a list of them is the value of a reply, and `stream` gives them one by one."""

    def stream(
        self, scheduler: RateLimitScheduler, target: object, *, buffer: int = 64, **options: Unpack[RequestOptions]
    ) -> ItemStream:
        """Have the items of one target as they come: `async for item in backend.stream(scheduler, target):`.

        It is one request of this backend, accepted when its first item is asked for. Attempts are repeated as for any other, and
        each item comes once. What the request fails with is raised after the items that came.

        Args:
            scheduler: The running scheduler that has this backend.
            target: As this backend takes them.
            buffer: Items that are read and not yet asked for, at least 1; when there are as many, reading waits.
            **options: As of `RateLimitScheduler.submit`, without `backends` and `unique`.

        Raises:
            ConfigError: An option is out of range.

        Cancellation: leaving the iteration early cancels the request; see `ItemStream`.
        """
        for option in ("backends", "unique"):
            if options.get(option) is not None:
                value = options.get(option)
                msg = f"{option}={value!r}: a stream is one request of {self.name!r}, which no other joins; leave it out"
                raise ConfigError(msg, option=option, value=value)
        return ItemStream(scheduler, self.name, target, count_of("buffer", buffer), options)


class ItemStream:
    """The items of one target, as an async iterator. Made by a backend's `stream`.

    Iterate over it once. Leaving the iteration early cancels the request: at once when the stream is used as `async with` or is
    closed by `aclose()`, and when it is freed. A handler's thread then ends between two items. Once the scheduler drains, the
    buffer has no bound, so that what is being read can be read to its end without anybody who asks for it.

    Cancellation: cancelling `__anext__` loses no item; the next call returns it.
    """

    def __init__(self, scheduler: RateLimitScheduler, backend: str, target: object, buffer: int, options: RequestOptions) -> None:
        self._scheduler = scheduler
        self._target = target
        host = host_of(target)
        scopes = options.get("scopes")
        if host is not None:  # its own target is the one below
            scopes = {HOST: host, **(scopes or {})}
        self._options: RequestOptions = {**options, "backends": backend, "scopes": scopes}
        self._channel = Channel(buffer)
        self._ticket: Ticket | None = None
        self._begins = False
        self._closed = False

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> Any:
        """Wait for the next item.

        Raises:
            TidegateError: What the request failed with, once, after the items that came.
        """
        if self._closed:
            raise StopAsyncIteration
        if self._ticket is None:
            await self._begin()
        try:
            return await self._channel.take()
        except TidegateError as error:
            if (target := getattr(error, "target", None)) is not None and isinstance(target, Streamed):
                error.target = self._target  # type: ignore[attr-defined] # as was just seen
            raise
        finally:
            del self  # who keeps an error keeps this frame; the stream is to be freed, and cancelled, all the same

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel the request, unless it has ended."""
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the request, unless it has ended; items that were not asked for are dropped. Idempotent."""
        self._closed = True
        if self._ticket is not None:
            _leave(self._channel, self._ticket)

    def __del__(self) -> None:
        """Cancel the request, when the iteration was left and the stream is freed."""
        if not getattr(self, "_closed", True) and self._ticket is not None:
            with suppress(RuntimeError):  # the loop is closed: nothing goes on any more
                # Not from here: a finalizer runs in any thread, and in the middle of anything.
                self._channel.loop.call_soon_threadsafe(_leave, self._channel, self._ticket)

    async def _begin(self) -> None:
        if self._begins:
            raise RuntimeError(TWO_READERS)
        self._begins = True
        channel = self._channel
        try:
            ticket = await self._scheduler.submit(Streamed(self._target, channel), **self._options)
        finally:
            self._begins = False
        self._ticket = ticket
        if self._closed:
            _leave(channel, ticket)
        self._scheduler._running().feed_from(channel)  # noqa: SLF001 - its other half
        ended: asyncio.Future[None] = channel.loop.create_future()
        ended.add_done_callback(lambda _: channel.finish(_error_of(ticket)))
        if not ticket._wait(ended):  # noqa: SLF001
            ended.set_result(None)


class Streamed:
    """The target of a request whose items go to a stream."""

    def __init__(self, target: object, channel: Channel) -> None:
        self.target = target
        self.channel = channel

    def __repr__(self) -> str:
        return shown(self.target)


class Gathered:
    """The items of a plain target, kept from attempt to attempt."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.value: list[object] = []
        self._keys: set[Hashable] = set()
        self._lock = threading.Lock()

    def offer_blocking(self, request: Request, key: Hashable, item: object) -> bool:
        """Take an item, unless it came before. False: the attempt was given up, and is to read no further."""
        with self._lock:
            if request.ended:
                return False
            if key not in self._keys:
                self._keys.add(key)
                self.value.append(item)
            return True

    async def offer(self, request: Request, key: Hashable, item: object) -> bool:
        """The same; for handlers that are coroutines."""
        return self.offer_blocking(request, key, item)

    def __len__(self) -> int:
        """Items so far."""
        return len(self._keys)


class Channel:
    """What is between the handler of a stream, in any thread, and who iterates over it, on the scheduler's loop.

    An attempt that was given up while it waits for room learns of it when there is room, or when the stream ends.
    """

    def __init__(self, size: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._size: float = size
        self._changed = threading.Condition()
        self._items: deque[object] = deque()
        self._keys: set[Hashable] = set()
        self._is_over = False
        self._error: TidegateError | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._is_read = False
        self._room: list[asyncio.Future[None]] = []

    def offer_blocking(self, request: Request, key: Hashable, item: object) -> bool:
        """Hand over an item, unless it came before; blocks the thread while the buffer is full.

        False: nobody wants any more of this attempt, and it is to read no further.
        """
        with self._changed:
            while (taken := self._try(request, key, item)) is None:
                self._changed.wait()
        return taken

    async def offer(self, request: Request, key: Hashable, item: object) -> bool:
        """The same for a handler that is a coroutine: it waits while the buffer is full.

        Cancellation: the item is not handed over.
        """
        while True:
            with self._changed:
                if (taken := self._try(request, key, item)) is not None:
                    return taken
                room = self.loop.create_future()
                self._room.append(room)
            await room

    async def take(self) -> object:
        """The next item; at the end the error, once, or `StopAsyncIteration`.

        Raises:
            RuntimeError: Another task waits for it.
        """
        while True:
            with self._changed:
                if self._is_read:
                    raise RuntimeError(TWO_READERS)
                if self._items:
                    item = self._items.popleft()
                    self._tell_writers()
                    return item
                if self._is_over:
                    error, self._error = self._error, None
                    try:
                        raise error or StopAsyncIteration
                    finally:
                        del error  # its traceback holds this frame
                self._is_read = True
                self._arrival = arrival = self.loop.create_future()
            try:
                await arrival
            finally:
                with self._changed:
                    self._is_read, self._arrival = False, None

    def finish(self, error: TidegateError | None) -> None:
        """The request has ended; nothing more comes."""
        with self._changed:
            if not self._is_over:
                self._is_over, self._error = True, error
            self._tell_writers()
            self._tell_reader()

    def close(self) -> None:
        """Nobody takes any more."""
        with self._changed:
            self._is_over, self._error = True, None
            self._items.clear()
            self._tell_writers()
            self._tell_reader()

    def end(self) -> None:
        """The scheduler drains: whoever reads is not to wait for one who may have left."""
        with self._changed:
            self._size = float("inf")
            self._tell_writers()

    @property
    def value(self) -> int:
        """How many items came: what the request, of which nobody asks, comes to."""
        return len(self)

    def __len__(self) -> int:
        """Items so far."""
        return len(self._keys)

    def _try(self, request: Request, key: Hashable, item: object) -> bool | None:
        """Whether an item was handed over or had come before; None while there is no room."""
        if self._is_over or request.ended:
            return False
        if key in self._keys:
            return True
        if len(self._items) >= self._size:
            return None
        self._keys.add(key)
        self._items.append(item)
        self._tell_reader()
        return True

    def _tell_reader(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(_resolve, arrival)

    def _tell_writers(self) -> None:
        """There is room, or never again; called on the loop."""
        self._changed.notify_all()
        waiting, self._room = self._room, []
        for room in waiting:
            _resolve(room)


def items_of(request: Request) -> Gathered | Channel:
    """Where the items of a request go."""
    if isinstance(request.target, Streamed):
        return request.target.channel
    gathered = request.checkpoint
    # What another backend has found is of another kind.
    if not isinstance(gathered, Gathered) or gathered.backend != request.backend:
        request.checkpoint = gathered = Gathered(request.backend)
    return gathered


def target_of(request: Request) -> object:
    """What the user asked for."""
    return request.target.target if isinstance(request.target, Streamed) else request.target


def _error_of(ticket: Ticket) -> TidegateError | None:
    reply = ticket._reply()  # noqa: SLF001 - its other half
    return None if reply is None or reply.error is None else to_raise(reply.error)


def _leave(channel: Channel, ticket: Ticket) -> None:
    ticket.cancel()
    channel.close()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
