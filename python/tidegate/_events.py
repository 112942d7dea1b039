"""Changes of state, for who iterates over them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Self

from tidegate._driver import Driver, Listener
from tidegate._snapshot import Event

# Changes that are kept for one who does not take them; the oldest go first.
MOST_EVENTS = 1024


class Events(AsyncIterator[Event]):
    """The changes of state of one scheduler from now on, until it is closed.

    Cancellation: cancelling `__anext__` loses none.
    """

    def __init__(self, driver: Driver) -> None:
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._stop = driver.listen(_into(self._queue))

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """Wait for the next change."""
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return event

    def __del__(self) -> None:
        """Listen no more."""
        if (stop := getattr(self, "_stop", None)) is not None:
            stop()


def _into(queue: "asyncio.Queue[Event | None]") -> Listener:
    def put(event: Event | None) -> None:
        if queue.qsize() == MOST_EVENTS:
            queue.get_nowait()
        queue.put_nowait(event)

    return put
