"""A clock that moves only when told."""

import asyncio
import heapq
from collections.abc import Generator, Iterable
from itertools import count
from typing import Protocol

from tidegate import _core
from tidegate._errors import ConfigError
from tidegate._quota import is_number, seconds_of

# Loop turns without any progress after which everything that can run has run.
QUIET_TURNS = 8


class Driven(Protocol):
    """A scheduler, as its clock sees it."""

    core: _core.Core

    def pump(self) -> None:
        """Do what there is to do now."""


class ManualClock(_core.ManualClock):
    """Virtual time for schedulers: `RateLimitScheduler(..., clock=clock)`.

    Time stands still until `advance` or `run_until_idle` moves it, so hours of limits, back-offs and time-outs pass in
    milliseconds and the same program takes the same decisions each time. Handlers wait with `await clock.sleep(seconds)`; one
    that waits for anything else is not waited for.

    Example:
        >>> import asyncio
        >>> from tidegate import Backend, RateLimitScheduler
        >>> async def main():
        ...     clock = ManualClock()
        ...     async def fetch(request):
        ...         await clock.sleep(0.2)
        ...         return request.target
        ...     async with RateLimitScheduler([Backend("api", fetch, "10/min")], clock=clock) as scheduler:
        ...         tickets = await scheduler.submit_many(range(30))
        ...         await clock.run_until_idle()
        ...     return round(clock.time())
        >>> asyncio.run(main())
        121
    """

    def __init__(self) -> None:
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._driven: list[Driven] = []

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved on by `seconds`; with 0, let others run."""
        if seconds == 0:
            await asyncio.sleep(0)
            return
        await self.alarm(seconds)

    def advance(self, seconds: float) -> "Settling":
        """Move the clock by `seconds` at once. Awaiting the result lets everything run that can.

        Raises:
            ConfigError: `seconds` is not above 0.
        """
        self._move_to(self.time_ns() + _nanos(seconds_of("seconds", seconds)))
        self._fire()
        return Settling(self)

    async def run_until_idle(self) -> None:
        """Move from one instant at which something happens to the next, until nothing is pending and nobody sleeps.

        What a collector has planned for later is not waited for: see `run_for`.
        """
        while True:
            await self._settle()
            if self._next_sleeper() is None and all(scheduler.core.is_idle() for scheduler in self._driven):
                return
            wake = self._first(scheduler.core.next_wake_ns() for scheduler in self._driven)
            if wake is None:
                return
            self._move_to(wake)
            self._fire()

    async def run_for(self, seconds: float) -> None:
        """Move on by `seconds`, from one instant at which something happens to the next; polls of a collector count too.

        Raises:
            ConfigError: `seconds` is not above 0.
        """
        end = self.time_ns() + _nanos(seconds_of("seconds", seconds))
        while True:
            await self._settle()
            wake = self._first(scheduler.core.next_turn_ns() for scheduler in self._driven)
            if wake is None or wake >= end:
                break
            self._move_to(wake)
            self._fire()
        self._move_to(end)
        self._fire()
        await self._settle()

    def alarm(self, seconds: float) -> asyncio.Future[None]:
        """A future that is done once the clock has moved on by `seconds`. Cancelled, it holds time up no more."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.time_ns() + _nanos(seconds), next(self._numbers), woken))
        return woken

    def attach(self, scheduler: Driven) -> None:
        """Drive a scheduler; it does this itself when it is entered."""
        self._driven.append(scheduler)

    def detach(self, scheduler: Driven) -> None:
        """Drive it no more; it does this itself when it is closed."""
        if scheduler in self._driven:
            self._driven.remove(scheduler)

    def _first(self, wakes: Iterable[int | None]) -> int | None:
        """The first of these instants and the next one at which somebody wakes; None when there is none."""
        return min((wake for wake in (self._next_sleeper(), *wakes) if wake is not None), default=None)

    def _next_sleeper(self) -> int | None:
        """When somebody wakes; None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():  # cancelled: nobody waits for that instant
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def _fire(self) -> None:
        now = self.time_ns()
        while self._sleepers and self._sleepers[0][0] <= now:
            woken = heapq.heappop(self._sleepers)[2]
            if not woken.done():
                woken.set_result(None)
        for scheduler in list(self._driven):
            scheduler.pump()

    async def _settle(self) -> None:
        quiet = 0
        before: object = None
        while quiet < QUIET_TURNS:
            await asyncio.sleep(0)
            now = [(scheduler.core.ledger(), scheduler.core.next_wake_ns()) for scheduler in self._driven], len(self._sleepers)
            quiet = quiet + 1 if now == before else 0
            before = now


class Settling:
    """What `ManualClock.advance` returns: awaiting it lets everything run that can run now."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def __await__(self) -> Generator[object, None, None]:
        """Wait until nothing more happens at this instant."""
        return self._clock._settle().__await__()  # noqa: SLF001 - its other half


def _nanos(seconds: float) -> int:
    if not is_number(seconds) or seconds < 0:
        msg = f"seconds={seconds!r}: give a number of at least 0"
        raise ConfigError(msg, option="seconds", value=seconds)
    return round(seconds * 1e9)
