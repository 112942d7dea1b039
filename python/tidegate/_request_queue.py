"""The scheduler's queue, alone."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Generic, TypeVar

from tidegate import _core
from tidegate._errors import DeadlineExceededError, QueueFullError
from tidegate._options import Priority
from tidegate._order import Order, checked
from tidegate._quota import count_of, seconds_of
from tidegate._quote import shown

Item = TypeVar("Item")
# Seconds: of a timeout that has all but passed when there is room.
LEAST = 1e-9


class RequestQueue(Generic[Item]):
    """A bounded priority queue with the habits of `asyncio.Queue`, in any `Order`, whose items can be cancelled.

    It belongs to one event loop. Who waits to put or to get is served first in, first out; only the calls with `_nowait` pass
    those who wait. Items that wait are never dropped: `timeout` orders them under `"edf"`, and bounds how long `put` waits.

    Args:
        capacity: Most items that wait at once, at least 1.
        order: Which goes next: `"strict"`, `"edf"`, `Aging(step)` or `Fair(weights)`.

    Raises:
        ConfigError: An argument is out of range.

    Cancellation: `put` adds nothing and `get` takes nothing; the next in line is woken in their place.

    Example:
        >>> queue = RequestQueue(capacity=10)
        >>> handle = queue.put_nowait("later")
        >>> urgent = queue.put_nowait("now", priority=Priority.HIGH)
        >>> queue.peek(), queue.cancel(handle), len(queue)
        ('now', True, 1)
    """

    def __init__(self, capacity: int = 1_000_000, order: Order = "strict") -> None:
        self._capacity = count_of("capacity", capacity)
        self._order = _core.RequestQueue(self._capacity, checked(order))
        self._items: dict[int, Item] = {}
        self._putters = Line(self.full)
        self._getters = Line(self.empty)

    @property
    def capacity(self) -> int:
        """Most items that wait at once."""
        return self._capacity

    def __len__(self) -> int:
        return len(self._items)

    def qsize(self) -> int:
        """Items that wait."""
        return len(self._items)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._items

    def full(self) -> bool:
        """Whether there is no room for another item."""
        return len(self._items) >= self._capacity

    async def put(
        self, item: Item, *, priority: int = Priority.NORMAL, timeout: float | timedelta | None = None, flow: str | None = None
    ) -> int:
        """Add an item, as soon as there is room.

        Args:
            item: Anything.
            priority: 0 (most urgent) to 255.
            timeout: Seconds from now until the item is due, or a timedelta: what `"edf"` goes by, and the longest wait for room.
            flow: What the item shares as, under `Fair`.

        Returns:
            The item's handle, for `cancel`.

        Raises:
            DeadlineExceededError: There was no room within `timeout`.
            ConfigError: An option is out of range.
        """
        if timeout is None:
            await self._putters.wait()
            return self._follow(item, priority, None, flow)
        seconds = seconds_of("timeout", timeout)
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if not await self._putters.wait(due):
            msg = f"no room for {shown(item)} in the queue in {seconds:.3g} s"
            raise DeadlineExceededError(msg, target=item, after=seconds)
        return self._follow(item, priority, max(due - loop.time(), LEAST), flow)

    def _follow(self, item: Item, priority: int, timeout: float | None, flow: str | None) -> int:
        try:
            return self.put_nowait(item, priority=priority, timeout=timeout, flow=flow)
        finally:
            self._putters.call()

    def put_nowait(
        self, item: Item, *, priority: int = Priority.NORMAL, timeout: float | timedelta | None = None, flow: str | None = None
    ) -> int:
        """Add an item now; otherwise as `put`.

        Raises:
            QueueFullError: There is no room. Also an `asyncio.QueueFull`.
            ConfigError: An option is out of range.
        """
        handle = self._order.push(priority, timeout, flow)
        if handle is None:
            msg = f"the queue is full: {self._capacity} items wait"
            raise QueueFullError(msg, target=item, capacity=self._capacity)
        self._items[handle] = item
        self._getters.call()
        return handle

    async def get(self) -> Item:
        """Take the item that goes next, as soon as there is one."""
        await self._getters.wait()
        item = self.get_nowait()
        self._getters.call()
        return item

    def get_nowait(self) -> Item:
        """Take the item that goes next.

        Raises:
            asyncio.QueueEmpty: There is none.
        """
        handle = self._order.pop()
        if handle is None:
            raise asyncio.QueueEmpty
        item = self._items.pop(handle)
        self._putters.call()
        return item

    def peek(self) -> Item:
        """The item that goes next; it stays.

        Raises:
            asyncio.QueueEmpty: There is none.
        """
        handle = self._order.peek()
        if handle is None:
            raise asyncio.QueueEmpty
        return self._items[handle]

    def cancel(self, handle: int) -> bool:
        """Take an item out, wherever it stands; False when it is not in the queue any more."""
        found = handle in self._items and self._order.cancel(handle)
        if found:
            del self._items[handle]
            self._putters.call()
        return found

    def __repr__(self) -> str:
        return f"<RequestQueue of {len(self._items)} of {self._capacity}>"


class Line:
    """Tasks that wait until they may go on, first in, first out. Whoever makes that possible for one of them calls one.

    Args:
        is_blocked: Whether they may not.
    """

    def __init__(self, is_blocked: Callable[[], bool]) -> None:
        self._is_blocked = is_blocked
        self._waiting: deque[asyncio.Future[bool]] = deque()
        # Those that were called and have not come yet.
        self._called = 0

    async def wait(self, due: float | None = None) -> bool:
        """Return True when the caller may go on, False when the loop's time is `due`. Who goes on is to call the next.

        Cancellation: the next is called in its place.
        """
        if not (self._waiting or self._called or self._is_blocked()):
            return True
        is_first = False
        while await self._stand(due, is_first=is_first):
            if not self._is_blocked():
                return True
            is_first = True  # somebody who does not stand in line was quicker
        return False

    async def _stand(self, due: float | None, *, is_first: bool) -> bool:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if is_first:
            self._waiting.appendleft(future)
        else:
            self._waiting.append(future)
        timer = None if due is None else loop.call_at(due, _give_up, future)
        try:
            called = await future
        except asyncio.CancelledError:
            if future.cancelled() or not future.result():
                self._forget(future)
            else:
                self._called -= 1
                self.call()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if called:
            self._called -= 1
        else:
            self._forget(future)
        return called

    def call(self) -> None:
        """Let the first go on, if it may."""
        while self._waiting and not self._is_blocked():
            future = self._waiting.popleft()
            if not future.done():
                self._called += 1
                future.set_result(True)
                return

    def _forget(self, future: asyncio.Future[bool]) -> None:
        with suppress(ValueError):  # `call` may have come by
            self._waiting.remove(future)


def _give_up(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)
