"""Those who stand in a limiter's line: a task on its loop, a blocked thread.

What they hear is a verdict, or after how many seconds they, being the head of the line, are to ask for one.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from queue import Empty, SimpleQueue
from threading import get_ident
from time import monotonic

from tidegate._clock import ManualClock


class Verdict(Enum):
    """What comes of standing in line."""

    ADMITTED = auto()
    REFUSED = auto()
    LATE = auto()
    ASK = auto()


class Parked:
    """A task that waits. It belongs to the loop that made it; others may tell it.

    Args:
        key: Of its line.
        ask: To be called when it is to ask.
        timeout: Seconds until it gives up.
        clock: What is waited by, in virtual time.
    """

    def __init__(
        self, key: str | int | None, ask: Callable[[], object], timeout: float | None, clock: ManualClock | None
    ) -> None:
        self.key = key
        self._ask = ask
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._turn: asyncio.Handle | asyncio.Future[None] | None = None
        self.verdict: asyncio.Future[Verdict] = self._loop.create_future()
        self._end = None if timeout is None else self._after(timeout, self._give_up)

    def hear(self, what: Verdict | float) -> bool:
        """Have it know; false when its loop was closed, so that it never will."""
        if self._loop.is_closed():
            return False
        if get_ident() == self._thread:
            self._hear(what)
            return True
        try:
            self._loop.call_soon_threadsafe(self._hear, what)
        except RuntimeError:  # it was closed meanwhile
            return False
        return True

    def stop(self) -> None:
        """Wait no more."""
        for timer in (self._turn, self._end):
            if timer is not None:
                timer.cancel()
        self._turn = self._end = None

    def _hear(self, what: Verdict | float) -> None:
        if self.verdict.done():
            return
        if isinstance(what, Verdict):
            self.verdict.set_result(what)
            return
        if self._turn is not None:
            self._turn.cancel()
        self._turn = self._after(what, self._ask)

    def _after(self, seconds: float, act: Callable[[], object]) -> asyncio.Handle | asyncio.Future[None]:
        if self._clock is None:
            return self._loop.call_later(seconds, act)
        alarm = self._clock.alarm(seconds)
        alarm.add_done_callback(lambda alarm: None if alarm.cancelled() else act())
        return alarm

    def _give_up(self) -> None:
        if not self.verdict.done():
            self.verdict.set_result(Verdict.LATE)


class Blocked:
    """A thread that waits.

    Args:
        key: Of its line.
        timeout: Seconds until it gives up.
    """

    def __init__(self, key: str | int | None, timeout: float | None) -> None:
        self.key = key
        self._news: SimpleQueue[tuple[Verdict | float, float]] = SimpleQueue()
        self._deadline = None if timeout is None else monotonic() + timeout
        self._turn: float | None = None

    def hear(self, what: Verdict | float) -> bool:
        """Have it know; it always will."""
        self._news.put((what, monotonic()))
        return True

    def verdict(self) -> Verdict:
        """Block until there is one, or until it is to ask."""
        while True:
            until = min((instant for instant in (self._turn, self._deadline) if instant is not None), default=None)
            try:
                what, since = self._news.get(timeout=None if until is None else max(0.0, until - monotonic()))
            except Empty:
                if self._deadline is not None and monotonic() >= self._deadline:
                    return Verdict.LATE
                self._turn = None
                return Verdict.ASK
            if isinstance(what, Verdict):
                return what
            self._turn = since + what
