"""The collector: each target again and again, on the clock."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import tidegate
from tidegate.dropin._clock import now_by, stamp_of
from tidegate.dropin._queue import RequestPriority
from tidegate.dropin._scheduler import RateLimitScheduler
from tidegate.testing import ManualClock

logger = logging.getLogger("tidegate")

# Of the interval: one that was scheduled so long ago falls due, since polls come a little early or late.
ALMOST = 0.9


class ContinuousCollector:
    """Has each target scraped again and again, with priority HIGH.

    At the start all targets that are due are scheduled at once. From then on each has its own place in the interval, the same
    in each, whatever scheduling and scraping take. A target is not scheduled again while a request for it waits or runs.

    Args:
        scheduler: The scheduler.
        targets: What to scrape; looked at anew in each interval.
        collection_interval_sec: Seconds between two requests for a target.

    Raises:
        ConfigError: From `start`, when the interval is not above 0.
    """

    def __init__(self, scheduler: Any, targets: Sequence[Any], collection_interval_sec: float = 30) -> None:
        self.scheduler = scheduler
        self.targets = targets
        self.collection_interval_sec = collection_interval_sec
        self._running = False
        self._collection_task: asyncio.Task[None] | None = None
        self._stats: dict[str, Any] = {
            "cycles_completed": 0,
            "total_requests_scheduled": 0,
            "last_cycle_time": None,
            "avg_cycle_duration": 0.0,
        }
        clock = getattr(scheduler, "_clock", None)
        self._clock = clock if isinstance(clock, ManualClock) else None
        self._now = now_by(self._clock)
        self._busy = 0.0  # seconds that scheduling took in this cycle
        # By identity: when a target was scheduled last.
        self._scheduled: dict[int, float] = {}

    async def start(self) -> None:
        """Begin to collect. Does nothing when it runs."""
        if self._running and self._collection_task is not None and not self._collection_task.done():
            return
        interval = self.collection_interval_sec
        plan = tidegate.RateLimitScheduler([tidegate.Backend("plan", _nothing)], clock=self._clock)
        cycles = tidegate.ContinuousCollector(plan, ["cycle"], interval=interval, spread=False)
        polls = tidegate.ContinuousCollector(plan, _distinct(self.targets), interval=interval, key=id)
        self._running = True
        self._collection_task = asyncio.get_running_loop().create_task(
            self._collect(plan, cycles, polls), name="tidegate-dropin-collector"
        )

    async def stop(self) -> None:
        """Stop collecting. What was scheduled stays so."""
        self._running = False
        task, self._collection_task = self._collection_task, None
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def get_stats(self) -> dict[str, Any]:
        """What it has done.

        Returns:
            `running`, `targets_count`, `collection_interval_sec`, and `stats`: `cycles_completed`, `total_requests_scheduled`,
            `last_cycle_time` (when the last cycle ended, in seconds since the Unix epoch; None before) and `avg_cycle_duration`
            (seconds that scheduling took in a cycle).
        """
        return {
            "running": self._running,
            "targets_count": len(self.targets),
            "collection_interval_sec": self.collection_interval_sec,
            "stats": dict(self._stats),
        }

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped"
        return f"<ContinuousCollector: {len(self.targets)} targets every {self.collection_interval_sec} s, {state}>"

    def _should_collect_target(self, target: Any) -> bool:
        """Whether a target was never scraped, or at least one interval ago."""
        last = target.last_scraped
        return not isinstance(last, datetime) or self._now() - stamp_of(last) >= self.collection_interval_sec

    async def _collect(
        self, plan: tidegate.RateLimitScheduler, cycles: tidegate.ContinuousCollector, polls: tidegate.ContinuousCollector
    ) -> None:
        """Have the targets scheduled when the engine says that they are due."""
        async with plan, asyncio.TaskGroup() as group:
            for target in _distinct(self.targets):
                if not self._is_pending(target) and self._should_be_collected(target):
                    await self._schedule(target)
            group.create_task(self._keep_up(cycles, polls))
            group.create_task(self._poll(polls))

    async def _keep_up(self, cycles: tidegate.ContinuousCollector, polls: tidegate.ContinuousCollector) -> None:
        """Once in each interval: count the cycle, and look at what the targets are now."""
        followed = {id(target): target for target in _distinct(self.targets)}
        async for _ in cycles:
            self._end_cycle()
            wanted = {id(target): target for target in _distinct(self.targets)}
            for name in followed.keys() - wanted.keys():
                polls.remove(followed[name])
                self._scheduled.pop(name, None)
            for name in wanted.keys() - followed.keys():
                polls.add(wanted[name])
            followed = wanted

    async def _poll(self, polls: tidegate.ContinuousCollector) -> None:
        async for poll in polls:
            if self._is_due(poll.target):
                await self._schedule(poll.target)

    def _is_due(self, target: Any) -> bool:
        """Whether a target that falls due by its place in the interval is to be scheduled."""
        if self._is_pending(target):
            return False
        scheduled_at = self._scheduled.get(id(target))
        if scheduled_at is None:
            return self._should_be_collected(target)
        # What it was scheduled for counts, not when it was scraped: that is a little later, each time.
        return self._now() - scheduled_at >= self.collection_interval_sec * ALMOST

    def _is_pending(self, target: Any) -> bool:
        """Whether a request for a target waits or runs."""
        return isinstance(self.scheduler, RateLimitScheduler) and self.scheduler.request_queue._holds(target)  # noqa: SLF001

    def _should_be_collected(self, target: Any) -> bool:
        """The same as `_should_collect_target`; a target that cannot say it ends no collection of others."""
        try:
            return self._should_collect_target(target)
        except Exception:
            logger.exception("a target does not say when it was scraped; the next interval asks again")
            return False

    async def _schedule(self, target: Any) -> None:
        began_at = self._now()
        try:
            accepted = await self.scheduler.schedule_request(target, priority=RequestPriority.HIGH)
        except Exception:
            logger.exception("a target could not be scheduled; the next interval tries again")
            return
        finally:
            self._busy += self._now() - began_at
        if accepted:
            self._scheduled[id(target)] = began_at
            self._stats["total_requests_scheduled"] += 1

    def _end_cycle(self) -> None:
        stats = self._stats
        stats["cycles_completed"] += 1
        stats["last_cycle_time"] = self._now()
        stats["avg_cycle_duration"] += (self._busy - stats["avg_cycle_duration"]) / stats["cycles_completed"]
        self._busy = 0.0


def create_continuous_collector(scheduler: Any, targets: Sequence[Any], interval_sec: float = 30) -> ContinuousCollector:
    """A collector; the arguments are those of `ContinuousCollector`."""
    return ContinuousCollector(scheduler, targets, interval_sec)


async def _nothing(_: tidegate.Request) -> None:
    """The plan's polls are answered by their coming."""


def _distinct(targets: Iterable[Any]) -> list[Any]:
    return list({id(target): target for target in targets}.values())
