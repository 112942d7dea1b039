"""`tidegate.dropin` against the plain scheduler that it replaces: what a request costs while others wait, and what is lost."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import plain_scheduler
from measure import LOOPS, Row, Timed, ratio, rounds

from tidegate.testing import ManualClock

# How many wait, and how many of them the plain one is timed for: it would take minutes for all.
BACKLOGS = {1_000: 400, 4_000: 300, 16_000: 200, 100_000: 50}
UNREACHED = (1_000_000_000, 1_000_000_000, 64)
# Which the usual quotas let 130 through of in a minute.
TARGETS = 200
SECONDS = 3.0


@dataclass(eq=False)
class Target:
    """An account."""

    value: str
    target_type: str = "user"
    is_user: bool = True
    is_search: bool = False
    weight: float = 1.0
    last_scraped: Any = None
    error_count: int = 0


@dataclass
class Result:
    """One tweet."""

    tweets: list[str]
    success: bool = True
    error_message: str | None = None
    backend_used: str = "snscrape"


class Manager:
    """Returns at once. `called` is awaited at each call."""

    def __init__(self, called: Callable[[], Any] | None = None) -> None:
        self.called = called

    def get_available_backends(self):
        return ["snscrape", "nitter"]

    async def scrape_user_tweets(self, name, max_tweets=100):
        if self.called is not None:
            await self.called()
        return Result([name])

    scrape_search_tweets = scrape_user_tweets


class Storage:
    """Appends, and tells the loop when it holds so many."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._goal = 0
        self._reached = asyncio.Event()
        self._reached.set()

    def insert_batch(self, tweets):
        self.rows.extend(tweets)
        if len(self.rows) >= self._goal and not self._reached.is_set():
            self._loop.call_soon_threadsafe(self._reached.set)

    async def holds(self, count: int) -> None:
        self._goal = count
        self._reached.clear()
        if len(self.rows) < count:  # one that comes meanwhile sees the goal
            await self._reached.wait()


async def paced(module: ModuleType, backlog: int, served: int, walls: list[int]) -> int:
    """Nanoseconds of CPU for each of the first so many of a backlog, from the start until they are stored."""
    storage = Storage()
    quotas = {name: module.BackendQuota(name, *UNREACHED) for name in ("snscrape", "nitter")}
    scheduler = module.RateLimitScheduler(Manager(), storage, quotas)
    scheduler.request_queue.max_size = backlog
    for number in range(backlog):
        assert await scheduler.schedule_request(Target(str(number)))
    began = time.perf_counter_ns()
    with Timed() as timed:
        await scheduler.start()
        await storage.holds(served)
    count = len(storage.rows)
    walls.append((time.perf_counter_ns() - began) // count)
    await scheduler.stop()
    return timed.nanos // count


def backlog_rows(facade: ModuleType, loop: str, count: int) -> Iterator[Row]:
    """By how many wait."""
    for backlog, of_plain in BACKLOGS.items():
        walls: dict[str, list[int]] = {"plain": [], "dropin": []}
        contenders = {
            "plain": partial(paced, plain_scheduler, backlog, of_plain, walls["plain"]),
            "dropin": partial(paced, facade, backlog, backlog, walls["dropin"]),
        }
        figures = rounds(loop, contenders, count=count, operations=1)
        row = ratio("dropin", f"{backlog:,} wait, times the plain one's pace: {loop}", figures, "plain", "dropin")
        if backlog == 16_000:
            row.goal, row.reached = ">= 100", row.value >= 100
        plain, ours = (1e9 / min(walls[name]) for name in ("plain", "dropin"))
        micros = {name: min(values) / 1000 for name, values in figures.items()}
        yield row
        yield Row("dropin", "  requests a second, by the wall", ours, "/s", detail={"plain /s": plain})
        yield Row("dropin", "  CPU a request", micros["dropin"], "us", detail={"plain us": micros["plain"]})


async def lost(module: ModuleType) -> tuple[int, int]:
    """Of 200 requests at 130 a minute after three seconds: how many are neither served nor waiting, and how many are served."""
    storage = Storage()
    scheduler = module.RateLimitScheduler(Manager(), storage)
    for number in range(TARGETS):
        await scheduler.schedule_request(Target(str(number)))
    await scheduler.start()
    await asyncio.sleep(SECONDS)
    waiting = await scheduler.request_queue.size()
    await scheduler.stop()
    return TARGETS - len(storage.rows) - waiting, len(storage.rows)


async def served_in(facade: ModuleType) -> tuple[float, int]:
    """The same in virtual time: after how many seconds the last is asked for, and how many are never stored."""
    clock = ManualClock()
    asked: list[float] = []

    async def called() -> None:
        asked.append(clock.time())

    storage = Storage()
    scheduler = facade.RateLimitScheduler(Manager(called), storage, clock=clock)
    for number in range(TARGETS):
        await scheduler.schedule_request(Target(str(number)))
    await scheduler.start()
    await clock.run_for(120)
    await scheduler.stop()
    return max(asked), TARGETS - len(storage.rows)


def lost_rows(facade: ModuleType, loop: str) -> list[Row]:
    """When the quota is used up."""

    def run(main):
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            return runner.run(main)

    of_plain, served_by_plain = run(lost(plain_scheduler))
    ours, served = run(lost(facade))
    seconds, never = run(served_in(facade))
    where = f"{TARGETS} at 130/min, after {SECONDS:.0f} s, lost"
    return [
        Row("dropin", f"{where} by the plain one", of_plain, "", detail={"served": served_by_plain}),
        Row("dropin", f"{where} by dropin", ours, "", "0", reached=ours == 0, detail={"served": served}),
        Row("dropin", "  in two minutes of virtual time, lost", never, "", "0", reached=never == 0),
        Row("dropin", "  and the last one is asked for after", seconds, "s", "<= 61", reached=seconds <= 61),
    ]


def rows(loop: str, count: int) -> Iterator[Row]:
    """Measure on one loop."""
    from tidegate import dropin as facade

    yield from lost_rows(facade, loop)
    yield from backlog_rows(facade, loop, count)
