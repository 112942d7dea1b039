"""The scheduler: a backend manager's coroutines as handlers of the engine's backends."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from math import inf
from typing import Any

from tidegate import ConfigError, RequestCancelledError
from tidegate._quota import count_of
from tidegate.dropin._balancer import LoadBalancer
from tidegate.dropin._engine import AVAILABLE_IN, Engine
from tidegate.dropin._queue import Entry, RequestPriority, RequestQueue, ScheduledRequest
from tidegate.dropin._quota import BackendQuota
from tidegate.testing import ManualClock

# What a custom quota leaves out.
CUSTOM_QUOTA = {"requests_per_minute": 30, "requests_per_hour": 1000, "concurrent_requests": 5}
# Results stored in one turn of a thread.
BATCH = 64
# Results that wait to be stored, above which no attempt begins.
MOST_RESULTS = 1024

logger = logging.getLogger("tidegate")


class RateLimitScheduler:
    """Scrapes targets through a backend manager, as fast as the quotas allow.

    Requests wait as long as they must: for quota, for a backend. What was accepted is scraped, or its failure logged; when
    the scheduler stops, what has not ended waits for the next start. Each goes to the backend that it prefers if that one can
    serve it, else to another. A failed one is tried again, elsewhere if possible.

    Args:
        backend_manager: Has `get_available_backends()`, and the coroutine functions `scrape_user_tweets(name, max_tweets=100)`
            and `scrape_search_tweets(query, max_tweets=100)`. If its `backends` is a list of objects with `get_name()`,
            `is_available()` and the same two, the one that was chosen is called, and the manager's own otherwise.
        storage: Has `insert_batch(list)` or `insert_tweets_batch(list)`, called in a thread.
        quotas: `BackendQuota` by name of the backend, for those that are to be used; by default all that the manager names, with
            the usual ones.
        clock: For virtual time in tests.

    Attributes:
        quotas: Read at each start; what is sent and how it goes is written there.
        request_queue: What waits. Replace it, or set its `max_size`, before the start.
        load_balancer: Says where a request could go.
        stats: `requests_processed` (scraped and stored), `requests_failed` (given up), `backends_used` (how many each has
            served), `avg_processing_time` in seconds, and `start_time` in seconds since the Unix epoch.

    Cancellation: a cancelled `stop` has stopped accepting; call it again for the rest.

    Example:
        >>> import asyncio
        >>> from types import SimpleNamespace
        >>> class Manager:
        ...     def get_available_backends(self):
        ...         return ["nitter"]
        ...     async def scrape_user_tweets(self, name, max_tweets=100):
        ...         return SimpleNamespace(tweets=[f"{name} says hello"], success=True, error_message=None, backend_used="nitter")
        >>> class Storage:
        ...     def insert_batch(self, tweets):
        ...         print(tweets)
        >>> async def main():
        ...     scheduler = RateLimitScheduler(Manager(), Storage())
        ...     await scheduler.schedule_request(SimpleNamespace(target_type="user", value="ada", last_scraped=None))
        ...     await scheduler.start()
        ...     while not scheduler.stats["requests_processed"]:
        ...         await asyncio.sleep(0.01)
        ...     await scheduler.stop()
        >>> asyncio.run(main())
        ['ada says hello']
    """

    def __init__(
        self,
        backend_manager: Any,
        storage: Any,
        quotas: dict[str, BackendQuota] | None = None,
        *,
        clock: ManualClock | None = None,
    ) -> None:
        self.storage = storage
        self.quotas: dict[str, BackendQuota] = quotas or {}
        self.request_queue = RequestQueue()
        self.load_balancer = LoadBalancer(self.quotas)
        self.stats: dict[str, Any] = {
            "requests_processed": 0,
            "requests_failed": 0,
            "backends_used": Counter(),
            "avg_processing_time": 0.0,
            "start_time": None,
        }
        self._clock = clock
        self._running = False
        self._worker_tasks: list[asyncio.Task[None]] = []
        self._engine = Engine(backend_manager, self.quotas, clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        # One start or stop at a time, on the loop that they were last called on.
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        # What the engine has, and what it is done with and a worker is not.
        self._live: set[Entry] = set()
        # While the manager names no backend at all.
        self._search: asyncio.Task[None] | None = None
        # None for each worker that is to end.
        self._ended: asyncio.Queue[Entry | None] = asyncio.Queue()

    @property
    def backend_manager(self) -> Any:
        """The backend manager."""
        return self._engine.manager

    @backend_manager.setter
    def backend_manager(self, manager: Any) -> None:
        self._engine.manager = manager
        self._engine.look_for_backends()

    async def schedule_request(
        self,
        target: Any,
        priority: RequestPriority = RequestPriority.NORMAL,
        backend_preference: str | None = None,
    ) -> bool:
        """Have a target scraped, before or after the start.

        Args:
            target: Has `target_type` ("user" or "search") and `value`; a success sets its `last_scraped`.
            priority: How urgent it is.
            backend_preference: Name of the backend that serves it whenever that one can.

        Returns:
            Whether it was accepted; False, counted and logged, when the queue is full.
        """
        request = ScheduledRequest(target, priority, self._engine.now(), backend_preference=backend_preference)
        return await self.request_queue.enqueue(request)

    async def start(self, num_workers: int = 3) -> None:
        """Begin to serve what waits, and what comes. Does nothing when it runs.

        Args:
            num_workers: Tasks that store what was scraped and settle requests. How many requests run at once is up to the
                quotas: a worker does not wait for a backend.
        """
        count_of("num_workers", num_workers)
        async with self._lock():
            await self._start(num_workers)

    async def stop(self) -> None:
        """Stop serving. Running requests are cancelled, and wait with the others for the next start; results are stored."""
        async with self._lock():
            await self._stop()

    async def get_status(self) -> dict[str, Any]:
        """How everything stands.

        Returns:
            `running`, `queue_size`, `workers_active`, `stats`, `queue_stats`, and in `backend_status` for each backend its
            `status` (the text), `success_rate`, `avg_response_time`, `active_requests`, `minute_requests`, `hour_requests`
            (how many), `can_make_request` and `wait_time`.
        """
        return {
            "running": self._running,
            "queue_size": await self.request_queue.size(),
            "workers_active": sum(not task.done() for task in self._worker_tasks),
            "stats": {**self.stats, "backends_used": dict(self.stats["backends_used"])},
            "backend_status": {name: _status_of(quota) for name, quota in self.quotas.items()},
            "queue_stats": dict(self.request_queue.stats),
        }

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped"
        return f"<RateLimitScheduler [{', '.join(map(str, self.quotas))}]: {state}, {self.request_queue!r}>"

    async def _start(self, num_workers: int) -> None:
        loop = asyncio.get_running_loop()
        if self._running and self._loop is loop:
            return
        await self._stop()  # an earlier stop was cancelled, or its loop ended without one
        await self._engine.start()
        self._running, self._loop = True, loop
        self.stats["start_time"] = self._engine.now()
        self._ended = asyncio.Queue()
        self._worker_tasks[:] = [loop.create_task(self._work(), name=f"tidegate-dropin-{n}") for n in range(num_workers)]
        self.request_queue._attach(self._submit, self._engine.now)  # noqa: SLF001 - one facade, in several modules

    async def _stop(self) -> None:
        if self._loop is None:
            return
        if self._loop is not asyncio.get_running_loop():
            self._give_up_loop()
            return
        self._running = False
        self._give_up_search()
        self.request_queue._detach()  # noqa: SLF001
        for entry in list(self._live):
            if entry.ticket is not None:
                entry.ticket.cancel()
        await self._engine.stop()
        for _ in self._worker_tasks:
            self._ended.put_nowait(None)
        if self._worker_tasks:
            await asyncio.wait(self._worker_tasks)  # whoever gives up waiting cancels no storing
        self._take_back()
        self._rest()

    def _lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = (loop, asyncio.Lock())
        return self._turn[1]

    def _running_engine(self) -> Engine:
        """The engine, for who shares it.

        Raises:
            ConfigError: It does not run on this loop.
        """
        if not self._running or self._loop is not asyncio.get_running_loop():
            msg = f"scheduler={self!r}: start() it first, on this loop"
            raise ConfigError(msg, option="scheduler", value=self)
        return self._engine

    def _submit(self, entry: Entry) -> None:
        """Hand a request to the engine. Without any backend it waits for one, or for the next start."""
        if entry in self._live:
            return
        if self._search is not None:
            if self._engine.has_backends():
                self._give_up_search()
                self.request_queue._attach(self._submit, self._engine.now)  # noqa: SLF001
            return
        request = entry.request
        entry.retries = request.retry_count
        ticket = self._engine.submit(entry, request.priority, request.backend_preference)
        if ticket is None:
            self._search = asyncio.get_running_loop().create_task(self._find_backends(), name="tidegate-dropin-search")
            return
        self._live.add(entry)
        entry.follow(ticket, self._end)

    async def _find_backends(self) -> None:
        """Ask the manager until it names a backend; then what waits goes there."""
        is_found = False
        while not is_found:
            await (asyncio.sleep(AVAILABLE_IN) if self._clock is None else self._clock.sleep(AVAILABLE_IN))
            try:
                is_found = self._engine.has_backends()
            except Exception:
                logger.exception("the manager names no backend; it is asked again in %g s", AVAILABLE_IN)
        self._search = None
        self.request_queue._attach(self._submit, self._engine.now)  # noqa: SLF001

    def _end(self, entry: Entry) -> None:
        """The engine is done with a request."""
        is_cancelled = isinstance(entry.reply.error, RequestCancelledError)
        if is_cancelled or entry.is_taken:
            self._live.discard(entry)
            entry.ticket = None
            if not entry.is_taken:
                self.request_queue._wait(entry)  # noqa: SLF001 - for the next start
            return
        self.request_queue._leave(entry)  # noqa: SLF001
        self._ended.put_nowait(entry)
        if self._ended.qsize() >= MOST_RESULTS:
            self._engine.take_results(False)

    async def _work(self) -> None:
        """Settle requests that have ended."""
        is_over = False
        while not is_over:
            first = await self._ended.get()
            batch = [] if first is None else [first]
            while batch and len(batch) < BATCH and not self._ended.empty():
                if (entry := self._ended.get_nowait()) is None:
                    is_over = True
                    break
                batch.append(entry)
            is_over = is_over or first is None
            try:
                await self._settle(batch)
            except Exception:
                logger.exception("requests were not settled, and wait for the next start; please report this")
            finally:
                if self._ended.qsize() < MOST_RESULTS:
                    self._engine.take_results(True)
            del first, batch  # nothing is held while it waits for the next ones

    async def _settle(self, batch: list[Entry]) -> None:
        scraped = [entry for entry in batch if entry.reply.ok]
        refused: dict[Entry, Exception] = {}
        if any(_tweets_of(entry) for entry in scraped):
            refused = await asyncio.to_thread(self._store, scraped)
        for entry in batch:
            error = refused.get(entry, entry.reply.error)
            self._live.discard(entry)
            if error is None:
                self._succeed(entry)
            else:
                self._try_again(entry, error)
            if entry not in self._live:
                entry.ticket = None  # whose reply has the entry

    def _store(self, scraped: list[Entry]) -> dict[Entry, Exception]:
        """Insert what each has, in a thread; returns the errors."""
        refused: dict[Entry, Exception] = {}
        for entry in scraped:
            if tweets := _tweets_of(entry):
                try:
                    insert = getattr(self.storage, "insert_batch", None) or self.storage.insert_tweets_batch
                    insert(tweets)
                except Exception as error:  # noqa: BLE001 - the caller's own code
                    refused[entry] = error
        return refused

    def _succeed(self, entry: Entry) -> None:
        stats, reply = self.stats, entry.reply
        self.request_queue._end(entry)  # noqa: SLF001
        stats["requests_processed"] += 1
        used = getattr(reply.value, "backend_used", None)
        stats["backends_used"][used if isinstance(used, str) else reply.backend] += 1
        stats["avg_processing_time"] += (reply.waits["attempt"] - stats["avg_processing_time"]) / stats["requests_processed"]
        try:
            entry.request.target.last_scraped = datetime.fromtimestamp(self._engine.now(), UTC)
        except Exception:  # the caller's own code
            logger.exception("%s was scraped, and its last_scraped cannot be set", _name_of(entry.request))

    def _try_again(self, entry: Entry, error: BaseException) -> None:
        request = entry.request
        if not request.can_retry:
            self.request_queue._end(entry)  # noqa: SLF001
            self.stats["requests_failed"] += 1
            logger.warning(
                "%s was given up after %d retries: %s", _name_of(request), request.retry_count, error.__cause__ or error
            )
            return
        request.retry_count += 1
        self.request_queue._accept(entry)  # noqa: SLF001

    def _rest(self) -> None:
        self._running, self._loop = False, None
        self._worker_tasks.clear()

    def _give_up_loop(self) -> None:
        """Its loop ended without a stop: what had not ended waits again. What its limits remember went with it."""
        self._search = None
        self.request_queue._detach()  # noqa: SLF001
        self._take_back()
        self._engine.abandon()
        self._rest()

    def _give_up_search(self) -> None:
        if self._search is not None:
            self._search.cancel()
            self._search = None

    def _take_back(self) -> None:
        """What was not settled, since who should have was cancelled, waits for the next start."""
        for entry in self._live:
            entry.ticket = None
            if not entry.is_taken:
                self.request_queue._wait(entry)  # noqa: SLF001
        self._live.clear()


def create_rate_limit_scheduler(
    backend_manager: Any, storage: Any, custom_quotas: Mapping[str, Mapping[str, int]] | None = None
) -> RateLimitScheduler:
    """A scheduler with quotas given as numbers.

    Args:
        backend_manager: As for `RateLimitScheduler`.
        storage: As for `RateLimitScheduler`.
        custom_quotas: By name of the backend: `requests_per_minute`, `requests_per_hour` and `concurrent_requests`; 30, 1000
            and 5 where they are missing.
    """
    quotas = {
        name: BackendQuota(backend_name=name, **{key: figures.get(key, usual) for key, usual in CUSTOM_QUOTA.items()})
        for name, figures in (custom_quotas or {}).items()
    }
    return RateLimitScheduler(backend_manager, storage, quotas or None)


def _tweets_of(entry: Entry) -> Any:
    return getattr(entry.reply.value, "tweets", None)


def _name_of(request: ScheduledRequest) -> str:
    target = request.target
    return f"{getattr(target, 'target_type', 'target')} {getattr(target, 'value', target)!r}"


def _status_of(quota: BackendQuota) -> dict[str, Any]:
    wait = quota.get_wait_time()
    return {
        "status": quota.get_status().value,
        "success_rate": quota.success_rate,
        "avg_response_time": quota.avg_response_time,
        "active_requests": quota.active_requests,
        "minute_requests": len(quota.minute_requests),
        "hour_requests": len(quota.hour_requests),
        "can_make_request": wait <= 0 and wait < inf,
        "wait_time": wait,
    }
