"""Targets that are collected again and again."""

# ruff: noqa: SLF001 - the scheduler's other half
import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Literal, Protocol, Self, TypedDict, Unpack, cast, get_args
from weakref import ref

from tidegate import _core
from tidegate._driver import Driver
from tidegate._errors import ConfigError
from tidegate._feasibility import Alike, Feasibility, feasibility_of
from tidegate._progress import Bar, Line, Meter, Progress, shown
from tidegate._progress import checked as checked_progress
from tidegate._runner import Runner
from tidegate._scheduler import RateLimitScheduler
from tidegate._scopes import scopes_of

Overrun = Literal["coalesce", "skip", "all", "delay"]
Interval = float | timedelta
# Replies that a sink is given at once.
BATCH = 1000
# Polls underway, at least, when limits are by scope: those of one host are not to keep those of others from beginning.
LEAST_AHEAD_BY_SCOPE = 4096

logger = logging.getLogger("tidegate")


class Sink(Protocol):
    """Where replies go."""

    async def write(self, replies: Sequence[_core.Reply]) -> None:
        """Take replies; returning means that they are delivered."""


class PollOptions(TypedDict, total=False):
    """The options of polls, as of requests: each a value, or a function that gives it for a target.

    `timeout` counts from the instant for which a poll was planned. Without one a poll does not expire: it is late when the
    next one of its target is planned, which is its deadline under `order="edf"`.
    """

    priority: int | Callable[[object], int]
    timeout: float | timedelta | Callable[[object], float | timedelta | None] | None
    cost: int | Callable[[object], int]
    backends: Sequence[str] | str | Callable[[object], Sequence[str] | str | None] | None
    prefer: str | Callable[[object], str | None] | None
    flow: str | Callable[[object], str | None] | None
    scopes: Mapping[str, str] | Callable[[object], Mapping[str, str] | None] | None


@dataclass(frozen=True, slots=True)
class Distribution:
    """How seconds are distributed, to two digits."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class CollectorStatistics:
    """What became of the polls of a collector.

    `planned = delivered + failed + expired + cancelled + running + coalesced + skipped`, at every instant.

    Attributes:
        targets: Targets now.
        planned: Instants that were planned and have come.
        delivered: Polls with a value.
        failed: Polls with an error.
        expired: Polls past their `timeout`.
        cancelled: Polls that were cancelled.
        running: Polls that have begun, waiting ones too, and not ended.
        coalesced: Planned instants that a later one of their target stood in for.
        skipped: Planned instants that were left out: by `overrun="skip"`, or in a pause.
        lag: Seconds that polls waited for their turn after the instant for which they were planned; attempts and back-offs
            left out.
        freshness: Seconds from one value of a target to the next: how old it was when it was replaced.
    """

    targets: int
    planned: int
    delivered: int
    failed: int
    expired: int
    cancelled: int
    running: int
    coalesced: int
    skipped: int
    lag: Distribution
    freshness: Distribution

    @property
    def balanced(self) -> bool:
        """Whether the identity holds."""
        ended = self.delivered + self.failed + self.expired + self.cancelled
        return self.planned == ended + self.running + self.coalesced + self.skipped


class ContinuousCollector:
    """Collects targets again and again, each once an `interval`, without drift.

    A target is polled at `anchor + k * interval`, whatever becomes of a single poll, and at most one of its polls is underway.
    Iterate over the replies, or give a `sink` and await `run()`. It goes on until `stop()`, until the scheduler drains or
    closes, or until the iteration is left, which cancels what is underway: at once when the collector is used as `async
    with`, is closed by `aclose()`, or is freed.

    Replies are taken only as fast as they are consumed: as many polls as `RateLimitScheduler.map` keeps ahead are underway
    or done and not consumed, 4 096 at least when limits are by scope. Those that are due beyond that wait, as a number each.

    Args:
        scheduler: Whose backends serve the polls; it must be running before the collector begins.
        targets: Any objects. A sequence is kept as it is, so do not change it; another iterable is read once into a list.
        interval: Seconds between the polls of a target, above 0; or a function that gives them for a target.
        overrun: What becomes of planned instants that pass while a poll of their target waits or runs. `"coalesce"`: one
            poll at once, for the latest of them. `"skip"`: none, the next planned instant that is still to come. `"all"`:
            one poll for each, in order, at most two in an interval. `"delay"`: one poll at once, from which the interval
            counts from now on.
        spread: Spread the first polls evenly over an interval, in the order of a hash of their keys; the phase of a target
            is the same after a restart, give or take what targets came and went. False: all at once.
        key: Gives what a target is known by, for `spread`, `remove` and to tell targets apart; the target itself by default.
            Texts and bytes count as they are, anything else by its `repr`.
        sink: Takes the replies of `run()`, in batches of up to 1 000. A slow one slows the collection.
        progress: Show on standard error how many polls have ended, how fast, what they wait for and how late they are, as
            `RateLimitScheduler.map` does.
        **options: Of the polls; see `PollOptions`.

    Raises:
        ConfigError: An option is wrong, or a target is there twice.
        CostExceedsBurstError: As `RateLimitScheduler.fetch`.

    Cancellation: cancelling `__anext__` loses no reply, the next call returns it. Cancelling `run()` cancels what is underway;
    a batch that the sink has not returned from counts as cancelled.

    Example:
        >>> import asyncio
        >>> from tidegate import Backend, RateLimitScheduler
        >>> async def fetch(request):
        ...     return len(request.target)
        >>> async def main():
        ...     async with RateLimitScheduler([Backend("api", fetch, "100/s")]) as scheduler:
        ...         collector = ContinuousCollector(scheduler, ["ada", "grace"], interval=0.1)
        ...         async for reply in collector:
        ...             print(reply.target, reply.value)
        ...             if collector.statistics().delivered >= 4:
        ...                 break
        >>> asyncio.run(main())  # doctest: +SKIP
        grace 5
        ada 3
        grace 5
        ada 3
    """

    def __init__(
        self,
        scheduler: RateLimitScheduler,
        targets: Iterable[object],
        *,
        interval: Interval | Callable[[object], Interval] = 30,
        overrun: Overrun = "coalesce",
        spread: bool = True,
        key: Callable[[object], object] | None = None,
        sink: Sink | None = None,
        progress: Progress = False,
        **options: Unpack[PollOptions],
    ) -> None:
        if not isinstance(scheduler, RateLimitScheduler):
            msg = f"scheduler={scheduler!r}: give a RateLimitScheduler"
            raise ConfigError(msg, option="scheduler", value=scheduler)
        if isinstance(targets, str | bytes) or not isinstance(targets, Iterable):
            msg = f"targets={targets!r}: give an iterable of targets, such as a list"
            raise ConfigError(msg, option="targets", value=targets)
        if overrun not in get_args(Overrun):
            msg = f"overrun={overrun!r}: give one of {', '.join(map(repr, get_args(Overrun)))}"
            raise ConfigError(msg, option="overrun", value=overrun)
        if key is not None and not callable(key):
            msg = f"key={key!r}: give a function of a target, or None for the target itself"
            raise ConfigError(msg, option="key", value=key)
        if sink is not None and not callable(getattr(sink, "write", None)):
            msg = f"sink={sink!r}: give an object with 'async def write(replies)'"
            raise ConfigError(msg, option="sink", value=sink)
        _check_names(options)
        self._scheduler = scheduler
        self._wanted_progress = checked_progress(progress)
        self._progress: Line | Bar | None = None
        self._interval = interval
        self._sink = sink
        self._has_own = False  # targets with options of their own
        self._options: dict[str, object] = dict(options)
        self._fixed = {name: value for name, value in options.items() if not callable(value)}
        scheduler._terms_of(self._fixed)  # a wrong one is said now
        sequence = targets if isinstance(targets, Sequence) else list(targets)
        self._schedule = _core.Schedule(scheduler._core, sequence, key, interval, overrun, bool(spread))
        self._stream = _core.Stream(scheduler._core, False, self._schedule)
        self._pop = self._stream.pop
        self._driver: Driver | None = None
        self._runner: Runner | None = None
        self._shared: _core.Terms | None = None
        self._ahead = 0
        self._changes = -1  # of the backends, when they were last looked at
        self._open = 0
        self._error: BaseException | None = None
        self._waiting = False
        self._ended = False
        self._closed = False
        self._over: list[asyncio.Future[None]] = []

    def add(self, target: object, *, interval: Interval | None = None, **options: Unpack[PollOptions]) -> None:
        """Collect one more target, from now on.

        Args:
            target: The target.
            interval: Seconds between its polls; those of the collector by default.
            **options: Of its polls, in place of the collector's.

        Raises:
            ConfigError: An option is wrong, or the target is collected already.
        """
        _check_names(options)
        if options:
            self._terms_for(target, options)
        if interval is None:
            interval = self._interval(target) if callable(self._interval) else self._interval
        self._schedule.add(target, interval, options or None)
        self._has_own = True

    def remove(self, target: object) -> bool:
        """Collect a target no more. A poll that is underway goes on, and its reply comes.

        Returns:
            False when it was not collected.
        """
        return self._schedule.remove(target)

    def pause(self) -> None:
        """Begin no polls until `resume`. Those that are underway go on."""
        self._schedule.pause()

    def resume(self) -> None:
        """Go on. Instants that were planned in the pause count as skipped, so that not all comes at once."""
        self._schedule.resume()

    async def stop(self) -> None:
        """Begin no polls any more, and wait until those underway have ended. The iteration ends after their replies.

        Cancellation: no polls begin all the same.
        """
        self.end()
        while not self._schedule.is_over():
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._over.append(over)
            await over

    def statistics(self) -> CollectorStatistics:
        """What became of the polls so far."""
        counts, lag, age = self._schedule.statistics()
        return CollectorStatistics(len(self._schedule), *counts, Distribution(*lag), Distribution(*age))

    def feasibility(self) -> Feasibility:
        """Whether the limits admit what is asked for, by how much, and which interval would fit.

        It can be asked before anything begins. Linear in the targets where an option, an interval or a scope depends on them.

        Raises:
            ConfigError: A function gave a wrong option, or none of the backends that are named is there any more.
        """
        return feasibility_of(self._scheduler._backends, self._groups())

    async def run(self) -> None:
        """Hand the replies to the sink, until the collection has ended.

        Raises:
            ConfigError: There is no sink.
            Exception: What the sink's `write` raised; what is underway is cancelled then, the batch counts as cancelled.
        """
        if self._sink is None:
            msg = "sink=None: run() needs one; give an object with 'async def write(replies)', or iterate over the collector"
            raise ConfigError(msg, option="sink", value=None)
        self._begin()
        try:
            while batch := await self._next_batch():
                await self._sink.write(batch)
                self._open -= len(batch)
        except BaseException:
            self._finish(accepted=False)
            raise
        self._finish()

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> _core.Reply:
        """Wait for the next reply. Asking for it says that the one before has been dealt with."""
        self._begin()
        while True:
            self.turn()
            reply = self._pop()
            if reply is not None:
                self._open -= 1
                return reply
            if self._is_exhausted():
                self._finish()
                raise StopAsyncIteration
            await self._arrival()

    async def __aenter__(self) -> Self:
        """Begin."""
        self._begin()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what is underway."""
        await self.aclose()

    async def aclose(self) -> None:
        """Begin no polls any more, and cancel those underway. Idempotent."""
        self._finish()

    def __del__(self) -> None:
        """Cancel what is underway, when the iteration was left and the collector is freed."""
        if not getattr(self, "_closed", True):
            self._finish()

    def turn(self) -> None:
        """Begin what is due, as far as there is room. The driver calls it when something falls due."""
        driver = self._driver
        if driver is None:
            return
        if self._over and self._schedule.is_over():
            self._tell_over()
        if self._changes != self._scheduler._backends.changes:
            self._look_at_backends()
        room = self._ahead - self._open
        if self._ended or room <= 0:
            return
        if not driver.has_line:  # who waits for room comes first
            try:
                self._open += self._schedule.turn(self._stream, self._shared, self._terms_for, room, self._runner)
            except Exception as error:  # noqa: BLE001 - of the user's code: raised after the replies that are owed
                self._error = error
                self.end()
                return
        if self._open < self._ahead and self._schedule.has_due():
            driver.core.watch_room()

    def end(self) -> None:
        """Begin no polls any more. Those that are underway go on."""
        self._ended = True
        self._schedule.stop()
        self._stream.nudge()

    def _begin(self) -> None:
        if self._driver is not None:
            return
        scheduler = self._scheduler
        driver = scheduler._accepting()
        if self._ended:
            return
        if not self._depends_on_target():
            self._shared = scheduler._terms_of(self._fixed)
        self._runner = scheduler._override()
        found = self.feasibility()
        self._driver = driver  # nothing raises from here on
        if not found.feasible:
            logger.warning("%s", found)
        self._schedule.start()
        if self._wanted_progress:
            self._progress = shown(self._wanted_progress, partial(_meter_of, scheduler, ref(self), driver))
        driver.feed_from(self)
        driver.plan(self)
        self.turn()

    def _look_at_backends(self) -> None:
        backends = self._scheduler._backends
        self._changes = backends.changes
        if self._depends_on_target():
            self._shared = None
        self._ahead = max(self._scheduler._usual_ahead(), LEAST_AHEAD_BY_SCOPE if backends.scopes else 0)

    def _depends_on_target(self) -> bool:
        """Whether the terms of polls do."""
        return bool(self._scheduler._backends.scopes) or self._fixed != self._options

    def _is_exhausted(self) -> bool:
        """Whether all replies were taken and no more will come; raises what ended it early."""
        if not self._ended or self._open:
            return False
        error, self._error = self._error, None
        if error is None:
            return True
        self._finish()
        try:
            raise error
        finally:
            del error, self  # no cycle through its own traceback

    async def _next_batch(self) -> list[_core.Reply]:
        while True:
            self.turn()
            batch = self._stream.pop_batch(BATCH)
            if batch or self._is_exhausted():
                return batch
            await self._arrival()

    async def _arrival(self) -> None:
        """Wait until there may be a reply."""
        if self._waiting:
            msg = "another task waits for the next reply of this collector; consume it in one place"
            raise RuntimeError(msg)
        self._waiting = True
        try:
            arrived = asyncio.get_running_loop().create_future()
            self._stream.wait(arrived)
            await arrived
        finally:
            self._waiting = False

    def _finish(self, *, accepted: bool = True) -> None:
        if self._closed:
            return
        self._closed = True
        if self._progress is not None:
            self._progress.stop()
        self.end()
        self._open = 0
        self._stream.close(accepted)
        self._schedule.abandon()
        self._tell_over()

    def _tell_over(self) -> None:
        for over in self._over:
            if not over.done():
                over.set_result(None)
        self._over.clear()

    def _terms_for(self, target: object, own: Mapping[str, object] | None) -> _core.Terms:
        options = {**self._options, **(own or {})}
        return self._scheduler._terms_for_one(target, options)

    def _groups(self) -> Mapping[Alike, int]:
        """How many targets are alike."""
        limited = self._scheduler._backends.scopes
        if not (self._depends_on_target() or self._has_own or callable(self._interval)):
            interval = self._interval.total_seconds() if isinstance(self._interval, timedelta) else self._interval
            return {_alike(None, interval, self._fixed, limited): len(self._schedule)}
        groups: Counter[Alike] = Counter()
        checked: set[object] = set()
        for target, interval, own in filter(None, map(self._schedule.entry, range(self._schedule.slots()))):
            options = {**self._options, **(own or {})}
            chosen = {name: option(target) if callable(option) else option for name, option in options.items()}
            alike = _alike(target, interval, chosen, limited)
            names, _, cost, counted = alike
            kind = names, cost, tuple(name for name, _ in counted)
            if kind not in checked:  # once of each kind, since it takes as long as all else here
                self._scheduler._terms_at(target, chosen)
                checked.add(kind)
            groups[alike] += 1
        return groups


def _meter_of(scheduler: RateLimitScheduler, collector: "ref[ContinuousCollector]", driver: Driver) -> Meter:
    def statistics() -> CollectorStatistics | None:
        alive = collector()  # whoever leaves the iteration early frees it
        return None if alive is None else alive.statistics()

    def ended() -> int:
        now = statistics()
        return 0 if now is None else now.delivered + now.failed + now.expired

    def late() -> str:
        now = statistics()
        return "" if now is None or not now.lag.count else f"{now.lag.p90:.2g} s late"

    return Meter(scheduler, ended, None, driver.loop.time, late)


def _alike(target: object, interval: float, options: Mapping[str, object], limited: Collection[str]) -> Alike:
    backends = options.get("backends")
    several = backends if isinstance(backends, Iterable) and not isinstance(backends, str) else (backends,)
    names = None if backends is None else cast("tuple[str, ...]", tuple(several))
    scopes = scopes_of(target, options.get("scopes"), limited)
    counted: tuple[tuple[str, str], ...] = ()
    if isinstance(scopes, Mapping):
        counted = tuple(sorted((name, value) for name, value in scopes.items() if name in limited))
    return names, interval, cast("int", options.get("cost", 1)), counted


def _check_names(options: Mapping[str, object]) -> None:
    for name in options:
        if name not in PollOptions.__annotations__:
            msg = f"got an unexpected option {name!r}; a poll has {', '.join(PollOptions.__annotations__)}"
            raise TypeError(msg)
