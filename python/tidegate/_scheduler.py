"""The front door."""

import asyncio
import concurrent.futures
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence, Sized
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime, timedelta
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import Literal, Self, TypedDict, Unpack, cast
from weakref import ref

from tidegate import _core
from tidegate._backend import Backend
from tidegate._backends import Backends
from tidegate._blocking_slot import BlockingSlot
from tidegate._clock import ManualClock
from tidegate._driver import Driver
from tidegate._errors import ConfigError, QueueFullError, SchedulerClosedError
from tidegate._events import Events
from tidegate._health import HealthMonitor
from tidegate._lease import Slot
from tidegate._options import Priority, Retry
from tidegate._order import Order
from tidegate._order import checked as checked_order
from tidegate._progress import Meter, Progress, shown
from tidegate._progress import checked as checked_progress
from tidegate._quota import BackendQuota, count_of, seconds_of
from tidegate._runner import ContextRunner, Runner
from tidegate._scopes import scopes_of
from tidegate._snapshot import Event, Ledger, Snapshot
from tidegate._stream import ReplyStream
from tidegate._waiting import reply_of

# Attempts at once for a backend without a cap, as far as the default of `ahead` is concerned.
UNCAPPED = 1000
LEAST_AHEAD = 64
# Seconds that `close` waits for handlers that ignore their cancellation.
GRACE = 5.0
# Combinations of options that are kept checked.
MOST_TERMS = 256
# Options of which there may be one value for each request.
PARTICULAR = ("flow", "not_before", "unique", "scopes")
# Targets that `submit_many` hands over at once.
PART = 4096


class RequestOptions(TypedDict, total=False):
    """The options of one request.

    Attributes:
        priority: 0 (most urgent) to 255.
        timeout: Seconds after which the request is worthless: it ends as expired, whatever it is doing.
        cost: Units that it takes of each limit.
        backends: Names of the backends that may serve it; None for all.
        prefer: Name of the one that serves it whenever it is ready; the others do when it is not, or has just failed it.
        flow: Whom it is for, under `order=Fair(...)`: a text, such as the name of a tenant; None for the flow of all that
            name none. Other orders do not look at it.
        not_before: It does not go earlier, and waits in its queue as if it had come then: an instant of the loop's clock, as
            `Request.deadline` (with a `ManualClock`, of its `time()`); a timedelta from when it is accepted; or a datetime with
            a time zone. One that has passed is none. `timeout` counts from acceptance all the same.
        unique: A text by which the request is known while it waits or runs. Another one with the same joins it instead of being
            a request of its own: it takes no place, and gets the same reply. The request then has the earliest deadline, the
            most urgent priority and the earliest `not_before` of all; the rest stays as the first one asked. It is cancelled
            when all who joined have cancelled.
        scopes: What limits that are `per` something count it by, such as `{"user": "ada"}`. A target that is an http(s) URL says
            its `"host"` itself.
    """

    priority: int
    timeout: float | timedelta | None
    cost: int
    backends: Sequence[str] | str | None
    prefer: str | None
    flow: str | None
    not_before: float | timedelta | datetime | None
    unique: str | None
    scopes: Mapping[str, str] | None


class BatchOptions(TypedDict, total=False):
    """The options of many requests: each a value, or a function that gives it for a target."""

    priority: int | Callable[[object], int]
    timeout: float | timedelta | Callable[[object], float | timedelta | None] | None
    cost: int | Callable[[object], int]
    backends: Sequence[str] | str | Callable[[object], Sequence[str] | str | None] | None
    prefer: str | Callable[[object], str | None] | None
    flow: str | Callable[[object], str | None] | None
    not_before: float | timedelta | datetime | Callable[[object], float | timedelta | datetime | None] | None
    unique: str | Callable[[object], str | None] | None
    scopes: Mapping[str, str] | Callable[[object], Mapping[str, str] | None] | None


class RateLimitScheduler:
    """Collects from several rate-limited backends: uses all of what they allow, is not rejected, loses nothing.

    An async context manager; it belongs to the loop that entered it. Leaving it normally drains: everything accepted is
    finished. Leaving it by an exception or a cancellation closes: what waits is cancelled.

    Args:
        backends: Where requests may go; names are unique.
        order: Which of the requests that wait goes next. `"strict"`: the most urgent priority, then the first that was
            accepted. `"edf"`: the most urgent priority, then the earliest deadline; a request without one counts as due in an
            hour. `Aging(step)`: waiting makes urgent. `Fair(weights)`: the most urgent priority, then flows in turn. In every
            order a request that its limits admit only after its deadline expires without costing anything, and one that is
            tried again keeps its place.
        capacity: Most requests pending at once, at least 1. `submit` waits when it is reached.
        retry: How failed attempts are retried.
        isolation: `"worker"`: handlers run in a pool of long-lived tasks and see the scheduler's context. `"task"`: each
            attempt has a task of its own and sees the context of who submitted it; costs about 2 µs more.
        health: Whether and how a backend that fails is held back; by default as `HealthMonitor()` says.
        clock: A `tidegate.testing.ManualClock` for virtual time; None for real time.
        seed: Of the random back-offs; None for a different one each time.

    Raises:
        ConfigError: An option is out of range, or two backends share a name.

    Example:
        >>> import asyncio
        >>> async def fetch(request):
        ...     return len(request.target)
        >>> async def main():
        ...     async with RateLimitScheduler([Backend("api", fetch, "100/s")]) as scheduler:
        ...         reply = await scheduler.fetch("hello", timeout=10)
        ...         return reply.value
        >>> asyncio.run(main())
        5
    """

    def __init__(
        self,
        backends: Iterable[Backend] = (),
        *,
        order: Order = "strict",
        capacity: int = 1_000_000,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        isolation: Literal["worker", "task"] = "worker",
        health: HealthMonitor | None = None,
        clock: ManualClock | None = None,
        seed: int | None = None,
    ) -> None:
        if isolation not in ("worker", "task"):  # not a set: what is given may not be hashable
            msg = f"isolation={isolation!r}: give 'worker' or 'task'"
            raise ConfigError(msg, option="isolation", value=isolation)
        if not isinstance(retry, Retry):
            msg = f"retry={retry!r}: give a Retry, such as Retry(attempts=4)"
            raise ConfigError(msg, option="retry", value=retry)
        if clock is not None and not isinstance(clock, ManualClock):
            msg = f"clock={clock!r}: give a tidegate.testing.ManualClock, or None for real time"
            raise ConfigError(msg, option="clock", value=clock)
        if health is not None and not isinstance(health, HealthMonitor):
            msg = f"health={health!r}: give a HealthMonitor, or None for the usual one"
            raise ConfigError(msg, option="health", value=health)
        if seed is not None and not isinstance(seed, int):
            msg = f"seed={seed!r}: give an integer, or None for a different one each time"
            raise ConfigError(msg, option="seed", value=seed)
        self._capacity = count_of("capacity", capacity)
        self._isolation = isolation
        self._clock = clock
        seed = int.from_bytes(os.urandom(8)) if seed is None else seed % 2**64
        self._core = _core.Core(capacity, checked_order(order), seed, retry, clock)
        health = health or HealthMonitor()
        if health.enabled:
            self._core.watch_health(health.pause, health.longest_pause, health.longest_sole_pause, health.ramp)
        self._backends = Backends(self._core, backends)
        self._driver: Driver | None = None
        self._closed = False
        self._terms: dict[tuple[object, ...] | None, _core.Terms] = {}

    async def __aenter__(self) -> Self:
        """Start on the running loop.

        Raises:
            SchedulerClosedError: It was entered before.
        """
        if self._driver is not None or self._closed:
            msg = "a scheduler is entered once; make a new one"
            raise SchedulerClosedError(msg)
        self._driver = Driver(self._core, self._clock, self._backends.event)
        try:
            self._driver.listen(self._backends.hear)
            await self._backends.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Drain when the body ended well; close in any case."""
        try:
            if exc_type is None and not self._closed:
                await self.drain()
        finally:
            await self.close()

    async def fetch(self, target: object, **options: Unpack[RequestOptions]) -> _core.Reply:
        """Submit one request and wait for its reply.

        Raises:
            RequestFailedError: It ended without a value; `__cause__` is what the last handler raised.
            DeadlineExceededError: Its `timeout` passed.
            ConfigError: An option is wrong.
            CostExceedsBurstError: No backend ever admits its cost.
            SchedulerClosedError: Nothing is accepted any more.

        Cancellation: cancels the request.
        """
        ticket = await self.submit(target, **options)
        try:
            return await reply_of(ticket)
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    async def submit(self, target: object, **options: Unpack[RequestOptions]) -> _core.Ticket:
        """Have a request accepted; waits in line while the scheduler is full.

        Returns:
            A ticket; awaiting it gives the reply or raises its error.

        Raises:
            ConfigError, CostExceedsBurstError, SchedulerClosedError: As `fetch`.

        Cancellation: nothing stays accepted.
        """
        terms = self._terms_at(target, options)
        tickets = self._accept_now(target, terms) or await self._accept([target], repeat(terms))
        return tickets[0]

    def submit_nowait(self, target: object, **options: Unpack[RequestOptions]) -> _core.Ticket:
        """Have a request accepted now.

        Raises:
            QueueFullError: The scheduler is full, or others wait in line.
            ConfigError, CostExceedsBurstError, SchedulerClosedError: As `fetch`.
        """
        tickets = self._accept_now(target, self._terms_at(target, options))
        if not tickets:
            raise self._full(target)
        return tickets[0]

    async def submit_many(self, targets: Iterable[object], **options: Unpack[BatchOptions]) -> list[_core.Ticket]:
        """Have many requests accepted, in order; waits in line while the scheduler is full.

        Any option may be a function of the target.

        Returns:
            Tickets in the order of the targets.

        Raises:
            ConfigError: An option is wrong, or there is no target; nothing was accepted.
            CostExceedsBurstError, SchedulerClosedError: As `fetch`.

        Cancellation: what was accepted is cancelled.
        """
        self._running()
        targets = targets if isinstance(targets, list) else list(_targets(targets))
        if not targets:
            raise _no_targets(targets)
        return await self._accept(targets, self._terms_for(targets, options))

    def submit_threadsafe(self, target: object, **options: Unpack[RequestOptions]) -> "concurrent.futures.Future[_core.Reply]":
        """Have a request accepted from any thread.

        Returns:
            A future of its reply; it fails with the request's error, or with `QueueFullError` when the scheduler is full.
            Cancelling it cancels the request.

        Raises:
            ConfigError, CostExceedsBurstError, SchedulerClosedError: As `fetch`.

        Thread safety: any thread but the loop's should wait for the result.
        """
        driver = self._accepting()
        terms = self._terms_at(target, options)
        future: concurrent.futures.Future[_core.Reply] = concurrent.futures.Future()
        if not self._core.submit_threadsafe(target, terms, future):
            future.set_exception(self._full(target))
            return future

        def cancel_request(future: "concurrent.futures.Future[_core.Reply]") -> None:
            if future.cancelled():
                with suppress(RuntimeError):  # the loop was closed: all has ended
                    driver.loop.call_soon_threadsafe(self._core.cancel_for, future)

        future.add_done_callback(cancel_request)
        return future

    def map(
        self,
        targets: Iterable[object] | AsyncIterable[object],
        *,
        ordered: bool = False,
        ahead: int | None = None,
        progress: Progress = False,
        **options: Unpack[BatchOptions],
    ) -> ReplyStream:
        """Request many targets and iterate over the replies, failed ones too, as they complete.

        Targets are taken only as fast as replies are consumed. What the iterator of the targets raises is raised after the
        replies that are owed. Any option may be a function of the target.

        Args:
            targets: Any iterable, synchronous or asynchronous; as large as you like.
            ordered: Yield in the order of the targets.
            ahead: Most requests accepted and not yet yielded, at least 1; default twice the backends' concurrency, at least 64.
            progress: Show on standard error how many are done, how fast, what they wait for, and how long it takes: as a `tqdm`
                bar where that is installed, else as one line; where nothing can be redrawn, as a line every 10 s. `"auto"`:
                only on a terminal or in a notebook. The variable `TIDEGATE_PROGRESS=0` turns it off.

        Raises:
            ConfigError: An option is wrong, or `targets` is empty.
            CostExceedsBurstError, SchedulerClosedError: As `fetch`.

        Cancellation: leaving the iteration early cancels what is pending; see `ReplyStream`.
        """
        driver = self._accepting()
        _check_names(options)
        checked_progress(progress)
        if not isinstance(targets, AsyncIterable):
            _targets(targets)
        total = len(targets) if isinstance(targets, Sized) else None
        if ahead is None:
            ahead = self._usual_ahead()
        core, override = self._core, self._override()
        if not self._are_particular(options):
            terms = self._terms_of(options)

            def accept(batch: list[object], stream: _core.Stream, index: int) -> int:
                return core.submit_for(batch, terms, stream, index, override)
        else:
            targets = _with_terms(targets, lambda target: self._terms_for_one(target, options))

            def accept(batch: list[object], stream: _core.Stream, index: int) -> int:
                accepted = 0
                for target, own in cast("list[tuple[object, _core.Terms]]", batch):
                    if not core.submit_for([target], own, stream, index + accepted, override):
                        break
                    accepted += 1
                return accepted

        stream = ReplyStream(core, targets, accept, driver, ahead=count_of("ahead", ahead), ordered=ordered)
        if progress:
            stream.show(shown(progress, partial(self._meter, ref(stream), total)))
        return stream

    def slot(
        self,
        backend: str,
        *,
        cost: int = 1,
        priority: int = Priority.NORMAL,
        timeout: float | timedelta | None = None,
        scopes: Mapping[str, str] | None = None,
    ) -> Slot:
        """Run your own code under a backend's limits: `async with scheduler.slot("api") as lease:`.

        The body is one attempt: it is charged when it starts and, unless `lease.ack()` says otherwise, acknowledged when it
        ends. The backend's attempt timeout does not apply, and nothing is retried.

        Args:
            backend: Name of the backend.
            cost: Units that it takes of each limit.
            priority: 0 (most urgent) to 255.
            timeout: Longest wait for the permit and stay in the body, in seconds.
            scopes: As of a request.

        Raises:
            ConfigError, CostExceedsBurstError, SchedulerClosedError: As `fetch`.
        """
        self._running()
        if backend not in list(self._backends):
            msg = f"backend={backend!r}: there is no such backend; there are {', '.join(self._backends)}"
            raise ConfigError(msg, option="backend", value=backend)
        terms = self._core.terms(priority, timeout, cost, backend, None, True)
        if scopes is not None or self._backends.scopes:
            terms = self._core.own(terms, None, None, None, {} if scopes is None else scopes)

        async def submit(runner: Runner) -> _core.Ticket:
            (ticket,) = await self._accept([runner], repeat(terms), runner)
            return ticket

        return Slot(submit)

    def slot_blocking(
        self,
        backend: str,
        *,
        cost: int = 1,
        priority: int = Priority.NORMAL,
        timeout: float | timedelta | None = None,
        scopes: Mapping[str, str] | None = None,
    ) -> BlockingSlot:
        """The same for threads: `with scheduler.slot_blocking("api") as lease:`, in any thread but the loop's.

        A body cannot be interrupted: one that is longer than `timeout` runs to its end, and then `DeadlineExceededError` is
        raised. Ctrl-C ends a wait in the main thread, which then holds nothing.

        Args:
            backend: Name of the backend.
            cost: Units that it takes of each limit.
            priority: 0 (most urgent) to 255.
            timeout: Longest wait for the permit and stay in the body, in seconds.
            scopes: As of a request.

        Raises:
            ConfigError, CostExceedsBurstError, SchedulerClosedError: As `fetch`.
            RuntimeError: This is the loop's own thread, which would wait for itself.

        Thread safety: any thread but the loop's.

        Example:
            >>> import asyncio
            >>> def work(scheduler):
            ...     with scheduler.slot_blocking("api") as lease:
            ...         return lease.backend
            >>> async def main():
            ...     async with RateLimitScheduler([Backend("api", work, "100/s")]) as scheduler:
            ...         return await asyncio.to_thread(work, scheduler)
            >>> asyncio.run(main())
            'api'
        """
        driver = self._running()
        slot = self.slot(backend, cost=cost, priority=priority, timeout=timeout, scopes=scopes)
        return BlockingSlot(slot, driver.loop, driver.thread)

    def add_backend(self, backend: Backend) -> None:
        """Have one more backend from now on. What waits for any backend may go there too.

        Call it on the loop's thread, before or while the scheduler runs.

        Raises:
            ConfigError: Another backend has its name, or its group another quota.
            SchedulerClosedError: The scheduler is closed.
        """
        if self._driver is not None or self._closed:
            self._accepting()
        self._backends.add(backend)
        self._terms.clear()

    def remove_backend(self, name: str, *, drain: bool = True) -> None:
        """Take a backend out: from now on nothing can name it, and what may go elsewhere does.

        Returns at once; `events()` has a `"backend_gone"` when nothing runs on it any more, and then it is closed.

        Args:
            name: Its name.
            drain: What only it can serve is still served, and what runs there ends as it will. False: the former ends with
                `RequestFailedError`, and attempts are interrupted; their requests are tried elsewhere, at no cost in attempts.
                The bodies of slots run on in any case.

        Raises:
            ConfigError: There is no such backend.
        """
        self._backends.remove(name, drain=drain)
        self._terms.clear()

    def set_quota(self, name: str, quota: BackendQuota | str) -> None:
        """Replace what a backend, and those of its group, may do, with effect on what waits.

        What has been sent counts against the new limits: to the unit for a limit of the same kind and period, else as if it had
        arrived just now. What they never admit ends with `RequestFailedError`.

        Args:
            name: Its name.
            quota: What it may do from now on. A text leaves its concurrency as it is.

        Raises:
            ConfigError: There is no such backend, or the quota names another group.
        """
        self._backends.set_quota(name, quota)
        self._terms.clear()

    def snapshot(self) -> Snapshot:
        """How everything stands now: backends, their limits, what waits and runs."""
        ledger = self.ledger()
        return Snapshot(self._backends.states(), ledger.queued, ledger.leased, ledger.done, self._core.workers())

    def ledger(self) -> Ledger:
        """What became of every request so far."""
        return Ledger(*self._core.ledger())

    def events(self) -> AsyncIterator[Event]:
        """Iterate over the changes of state from now on: limits that a server closed, that reopen, or that count otherwise.

        Ends when the scheduler is closed.
        """
        return Events(self._running())

    async def drain(self, timeout: float | timedelta | None = None, *, cancel_waiting: bool = False) -> bool:
        """Accept no more, and wait until what was accepted has ended. Done replies stay readable.

        Args:
            timeout: Longest wait, in seconds; None for no end.
            cancel_waiting: Cancel what waits, and let the attempts that run be the last of their requests: what the first
                Ctrl-C does on the command line. One that fails is not tried again, and counts as cancelled.

        Returns:
            False when `timeout` seconds were not enough; nothing is cancelled then.

        Cancellation: accepts no more all the same; what was accepted goes on.
        """
        seconds = None if timeout is None else seconds_of("timeout", timeout)
        if self._driver is None or self._closed:
            return True
        self._driver.pump()  # what threads have handed in was accepted
        self._driver.stop_accepting()
        if cancel_waiting:
            self._core.wind_down()
        return await self._driver.wait_until_idle(seconds)

    async def close(self) -> None:
        """Accept no more, cancel what runs, and end what waits with `SchedulerClosedError`. Idempotent.

        Handlers that ignore their cancellation are waited for 5 s and then left to themselves.
        """
        if self._closed:
            return
        self._closed = True
        if self._driver is None:
            self._core.close()
            return
        try:
            await self._driver.stop(GRACE)
        finally:
            await self._backends.close()

    async def _leave(self) -> None:
        """Stop on this loop without an end: what the limits remember stays, and it may be entered again, on any loop.

        For who has cancelled all that was pending. Idempotent: one that was cancelled is called again.
        """
        driver = self._driver
        if driver is None:
            return
        await driver.wait_until_idle(None)
        self._driver = None
        try:
            await driver.leave(GRACE)
        finally:
            await self._backends.close()

    def __repr__(self) -> str:
        ledger = self.ledger()
        state = "closed" if self._closed else "new" if self._driver is None else "running"
        names = ", ".join(self._backends)
        return f"<RateLimitScheduler [{names}]: {state}, {ledger.pending} pending>"

    def _meter(self, stream: "ref[ReplyStream]", total: int | None) -> Meter:
        last = 0

        def yielded() -> int:
            nonlocal last
            if (alive := stream()) is not None:
                last = alive.yielded
            return last

        return Meter(self, yielded, total, self._running().loop.time)

    def _running(self) -> Driver:
        if self._driver is None:
            closed = "the scheduler is closed and accepts no more requests"
            msg = closed if self._closed else "the scheduler is not running; enter it with 'async with' first"
            raise SchedulerClosedError(msg)
        return self._driver

    def _accepting(self) -> Driver:
        driver = self._running()
        if not self._core.is_accepting():
            msg = "the scheduler is closed and accepts no more requests"
            raise SchedulerClosedError(msg)
        return driver

    def _usual_ahead(self) -> int:
        """Requests accepted and not yet yielded that keep all backends busy."""
        return max(LEAST_AHEAD, 2 * sum(cap or UNCAPPED for cap in self._backends.caps))

    def _override(self) -> Runner | None:
        """What runs a request's attempts instead of its backend's runner."""
        return ContextRunner(self._backends.runners, copy_context()) if self._isolation == "task" else None

    def _terms_at(self, target: object, options: Mapping[str, object]) -> _core.Terms:
        """The terms of one request."""
        limited = self._backends.scopes
        if not limited:
            return self._terms_of(options)
        scopes = scopes_of(target, options.get("scopes"), limited)
        # With empty ones too: then it is said which is missing.
        return self._terms_of({**options, "scopes": {} if scopes is None else scopes})

    def _terms_of(self, options: Mapping[str, object]) -> _core.Terms:
        if any(options.get(name) is not None for name in PARTICULAR):
            rest = {name: value for name, value in options.items() if name not in PARTICULAR}
            return self._core.own(self._terms_of(rest), *map(options.get, PARTICULAR))
        # With their types, since 1 and True, which is no cost, are equal.
        key: tuple[object, ...] | None = ()
        if options:
            key = tuple([(name, value, type(value)) for name, value in sorted(options.items())])
        try:
            return self._terms[key]
        except KeyError:
            pass
        except TypeError:  # a list of names
            key = None
        _check_names(options)
        terms = self._core.terms(
            options.get("priority", Priority.NORMAL),
            options.get("timeout"),
            options.get("cost", 1),
            options.get("backends"),
            options.get("prefer"),
        )
        if key is not None:
            if len(self._terms) == MOST_TERMS:  # what comes by the thousand, such as the time that is left, comes once
                self._terms.clear()
            self._terms[key] = terms
        return terms

    def _terms_for(self, targets: Sequence[object], options: Mapping[str, object]) -> Iterable[_core.Terms]:
        """The terms of each target, checked before any is accepted."""
        if not self._are_particular(options):
            return repeat(self._terms_of(options))
        return [self._terms_for_one(target, options) for target in targets]

    def _terms_for_one(self, target: object, options: Mapping[str, object]) -> _core.Terms:
        return self._terms_at(target, {name: option(target) if callable(option) else option for name, option in options.items()})

    def _are_particular(self, options: Mapping[str, object]) -> bool:
        """Whether the terms of a request depend on its target."""
        return bool(self._backends.scopes) or any(callable(option) for option in options.values())

    def _accept_now(self, target: object, terms: _core.Terms) -> list[_core.Ticket]:
        """The ticket of one target, or none when it would have to wait in line."""
        waits = self._running().has_line and not self._core.would_join(terms)
        return [] if waits else self._core.submit([target], terms, self._override())

    async def _accept(
        self, targets: list[object], terms: Iterable[_core.Terms], runner: Runner | None = None
    ) -> list[_core.Ticket]:
        """Have targets accepted, waiting in line for room; all or, when this is cancelled or fails, none."""
        driver = self._running()
        runner = runner or self._override()
        tickets: list[_core.Ticket] = []
        waited = False  # then it is at the head of the line, until it has all it needs

        def submit(part: list[object], own: _core.Terms) -> list[_core.Ticket]:
            waits = driver.has_line and not waited and not self._core.would_join(own)
            return [] if waits else self._core.submit(part, own, runner)

        try:
            if isinstance(terms, repeat):
                shared = next(terms)
                while len(tickets) < len(targets):
                    # In parts: what must wait is not copied again and again.
                    part = targets[len(tickets) : len(tickets) + PART]
                    accepted = submit(part, shared)
                    tickets += accepted
                    if len(accepted) < len(part):
                        await driver.wait_for_room(first=waited)
                        waited = True
            else:
                for target, own in zip(targets, terms, strict=True):
                    while not (accepted := submit([target], own)):
                        await driver.wait_for_room(first=waited)
                        waited = True
                    tickets += accepted
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return tickets

    def _full(self, target: object) -> QueueFullError:
        msg = f"{self._capacity} requests are pending, as many as capacity allows; use submit(), which waits, or raise capacity"
        return QueueFullError(msg, target=target, capacity=self._capacity)


def _check_names(options: Mapping[str, object]) -> None:
    for name in options:
        if name not in RequestOptions.__annotations__:
            msg = f"got an unexpected option {name!r}; a request has {', '.join(RequestOptions.__annotations__)}"
            raise TypeError(msg)


def _targets(targets: object) -> Iterable[object]:
    if isinstance(targets, str | bytes) or not isinstance(targets, Iterable):
        msg = f"targets={targets!r}: give an iterable of targets; for a single one use fetch() or submit()"
        raise ConfigError(msg, option="targets", value=targets)
    if isinstance(targets, Sized) and not len(targets):
        raise _no_targets(targets)
    return targets


def _with_terms(
    targets: Iterable[object] | AsyncIterable[object], terms_for: Callable[[object], _core.Terms]
) -> Iterable[object] | AsyncIterable[object]:
    """Each target with its terms, which are worked out when it is taken: an error of theirs is one of the source."""
    if not isinstance(targets, AsyncIterable):
        return ((target, terms_for(target)) for target in targets)

    async def pairs(targets: AsyncIterable[object] = targets) -> AsyncIterator[object]:
        async for target in targets:
            yield target, terms_for(target)

    return pairs()


def _no_targets(targets: object) -> ConfigError:
    msg = f"targets={targets!r}: there is no target; give at least one, or do not call"
    return ConfigError(msg, option="targets", value=targets)
