"""The scheduler: a backend manager's coroutines as handlers of the engine's backends."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import inf
from typing import Any

import tidegate
from tidegate import (
    BackendRateLimitedError,
    BackendRejectedError,
    BackendUnavailableError,
    Limit,
    Priority,
    RequestCancelledError,
    Retry,
)
from tidegate._quota import count_of
from tidegate.dropin._balancer import LoadBalancer
from tidegate.dropin._clock import now_by
from tidegate.dropin._queue import Entry, RequestPriority, RequestQueue, ScheduledRequest
from tidegate.dropin._quota import HOUR, MINUTE, UNKNOWN_RESPONSE, BackendQuota
from tidegate.testing import ManualClock

# Requests a minute, an hour, and at once, of backends for which none are given.
USUAL_QUOTAS = {"snscrape": (100, 3000, 10), "nitter": (30, 1000, 5)}
OTHER_QUOTA = (20, 500, 3)
# What a custom quota leaves out.
CUSTOM_QUOTA = {"requests_per_minute": 30, "requests_per_hour": 1000, "concurrent_requests": 5}
# Tweets asked for at once.
MAX_TWEETS = 100
# Attempts are quick to follow one another: who tests with a manager that fails waits for them.
RETRY = Retry(attempts=4, base=0.02, cap=1.0, budget=1.0)
# Of the engine: `max_size` is what bounds the queue.
CAPACITY = 2**40
# Seconds after which an attempt is given up.
TIMEOUT = 300.0
# Seconds until a backend that says it is not available is asked again.
AVAILABLE_IN = 5.0
# Results stored in one turn of a thread.
BATCH = 64

PRIORITIES = dict(zip(RequestPriority, Priority, strict=True))

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
        self.backend_manager = backend_manager
        self.storage = storage
        self.quotas: dict[str, BackendQuota] = quotas or {}
        self._has_usual_quotas = not quotas
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
        self._now = now_by(clock)
        self._running = False
        self._worker_tasks: list[asyncio.Task[None]] = []
        self._engine = self._new_engine()
        self._declared: dict[str, tuple[int, int, int]] = {}  # what the engine's backends were told
        self._named: dict[str, Any] = {}  # the manager's own backends
        self._loop: asyncio.AbstractEventLoop | None = None
        self._live: set[Entry] = set()
        self._ended: asyncio.Queue[Entry] = asyncio.Queue()
        self._look_for_backends()

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
        request = ScheduledRequest(target, priority, self._now(), backend_preference=backend_preference)
        return await self.request_queue.enqueue(request)

    async def start(self, num_workers: int = 3) -> None:
        """Begin to serve what waits, and what comes. Does nothing when it runs.

        Args:
            num_workers: Tasks that store what was scraped and settle requests. How many requests run at once is up to the
                quotas: a worker does not wait for a backend.
        """
        count_of("num_workers", num_workers)
        loop = asyncio.get_running_loop()
        if self._running and self._loop is loop:
            return
        if self._loop is not None:
            self._give_up_loop()
        self._running, self._loop = True, loop
        self.stats["start_time"] = self._now()
        self._ended = asyncio.Queue()
        await self._engine.__aenter__()
        self._look_for_backends()
        for quota in self.quotas.values():
            quota._serve(self._now, self._wait_of)  # noqa: SLF001 - as with the queue: one facade, in several modules
        self._worker_tasks[:] = [loop.create_task(self._work(), name=f"tidegate-dropin-{n}") for n in range(num_workers)]
        self.request_queue._attach(self._submit, self._now)  # noqa: SLF001

    async def stop(self) -> None:
        """Stop serving. Running requests are cancelled, and wait with the others for the next start; results are stored."""
        if self._loop is None:
            return
        if self._loop is not asyncio.get_running_loop():
            self._give_up_loop()
            return
        self._running = False
        self.request_queue._detach()  # noqa: SLF001
        for entry in list(self._live):
            if entry.ticket is not None:
                entry.ticket.cancel()
        await self._engine._leave()  # noqa: SLF001 - it is entered again
        await self._ended.join()
        for task in self._worker_tasks:
            task.cancel()
        await asyncio.gather(*self._worker_tasks, return_exceptions=True)
        self._rest()

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

    # ---- the engine's backends

    def _new_engine(self) -> tidegate.RateLimitScheduler:
        return tidegate.RateLimitScheduler(capacity=CAPACITY, retry=RETRY, clock=self._clock)

    def _look_for_backends(self) -> None:
        """Have a quota for each backend there is, and the engine know them all as they are now."""
        if self._has_usual_quotas:
            names = self.backend_manager.get_available_backends()
            for name in names if isinstance(names, list | tuple | set) else ():
                if name not in self.quotas:
                    self.quotas[name] = BackendQuota(name, *USUAL_QUOTAS.get(name, OTHER_QUOTA))
        own = getattr(self.backend_manager, "backends", None)
        self._named = {backend.get_name(): backend for backend in own} if isinstance(own, list) else {}
        for name in self._declared.keys() - self.quotas.keys():
            del self._declared[name]
            self._engine.remove_backend(name, drain=False)
        for name, quota in self.quotas.items():
            limits = (quota.requests_per_minute, quota.requests_per_hour, quota.concurrent_requests)
            if self._declared.get(name) == limits:
                continue
            per_minute, per_hour, concurrency = limits
            # Their kinds are named: a backend that says it is unavailable is no reason to think that it counts otherwise.
            declared = tidegate.BackendQuota(
                Limit(per_minute, MINUTE, kind="window"), Limit(per_hour, HOUR, kind="window"), concurrency=concurrency
            )
            if name in self._declared:
                self._engine.set_quota(name, declared)
            else:
                self._engine.add_backend(tidegate.Backend(name, self._scrape, declared, timeout=TIMEOUT))
            self._declared[name] = limits

    def _wait_of(self, name: str) -> float:
        """Seconds until the engine sends a backend one more."""
        state = self._engine.snapshot().backends.get(name)
        if state is None or state.state in ("open", "full"):  # the quota itself counts what runs
            return 0.0
        waits = [UNKNOWN_RESPONSE if limit.next_eligible_in is None else limit.next_eligible_in for limit in state.limits]
        return max([0.0, state.next_eligible_in or 0.0, *waits])

    # ---- the life of a request

    def _submit(self, entry: Entry) -> None:
        """Hand a request to the engine."""
        if not self._declared:
            self._look_for_backends()
            if not self._declared:
                return  # it waits for the next start, or for a request that finds a backend
        request = entry.request
        entry.retries = request.retry_count
        options: dict[str, Any] = {}
        if request.priority is not RequestPriority.NORMAL:
            options["priority"] = PRIORITIES[request.priority]
        if request.backend_preference in self._declared:
            options["prefer"] = request.backend_preference
        ticket = self._engine.submit_nowait(entry, **options)
        self._live.add(entry)
        entry.follow(ticket, self._end)

    async def _scrape(self, attempt: tidegate.Request) -> Any:
        """One attempt: the handler of all backends."""
        entry = attempt.target
        if entry is None:
            return None  # another backend's request was served here
        assert isinstance(entry, Entry)
        request, name = entry.request, attempt.backend
        backend = self._named.get(name)
        if backend is not None and not backend.is_available():
            raise BackendRateLimitedError(f"{name} is not available", backend=name, retry_after=AVAILABLE_IN)
        request.retry_count = entry.retries + attempt.attempt - 1
        self.request_queue._begin(entry)  # noqa: SLF001
        quota = self.quotas[name]
        quota.record_request_start()
        started_at = self._now()
        try:
            result = await _scraped(backend or self.backend_manager, request.target)
            if not result.success:
                raise BackendUnavailableError(f"{name}: {result.error_message}", backend=name)
        except asyncio.CancelledError:
            if self._running:  # it took too long
                quota.record_request_end(False, self._now() - started_at)
                self.request_queue._wait(entry)  # noqa: SLF001
            else:
                quota._end()  # noqa: SLF001
            raise
        except Exception as error:
            quota.record_request_end(False, self._now() - started_at)
            if not request.can_retry:
                raise BackendRejectedError(str(error), backend=name) from error  # the last of them
            self.request_queue._wait(entry)  # noqa: SLF001
            raise
        if backend is None:
            quota = self._charged(quota, result)
        quota.record_request_end(True, self._now() - started_at)
        return result

    def _charged(self, chosen: BackendQuota, result: Any) -> BackendQuota:
        """The quota of the backend that has served a request, charged."""
        used = getattr(result, "backend_used", None)
        served = self.quotas.get(used) if isinstance(used, str) else None
        if served is None or served is chosen:
            return chosen
        chosen._withdraw()  # noqa: SLF001
        served.record_request_start()
        self._engine.submit_nowait(None, backends=served.backend_name, priority=Priority.CRITICAL)
        return served

    def _end(self, entry: Entry) -> None:
        """The engine is done with a request."""
        self._live.discard(entry)
        if entry.is_taken:
            return
        if isinstance(entry.reply.error, RequestCancelledError):
            self.request_queue._wait(entry)  # noqa: SLF001 - for the next start
            return
        self.request_queue._leave(entry)  # noqa: SLF001
        self._ended.put_nowait(entry)

    async def _work(self) -> None:
        """Settle requests that have ended."""
        while True:
            batch = [await self._ended.get()]
            while len(batch) < BATCH and not self._ended.empty():
                batch.append(self._ended.get_nowait())
            try:
                await self._settle(batch)
            except Exception:
                logger.exception("a request was not settled; please report this")
            finally:
                for _ in batch:
                    self._ended.task_done()

    async def _settle(self, batch: list[Entry]) -> None:
        scraped = [entry for entry in batch if entry.reply.ok]
        refused: dict[Entry, Exception] = {}
        if any(_tweets_of(entry) for entry in scraped):
            refused = await asyncio.to_thread(self._store, scraped)
        for entry in batch:
            error = refused.get(entry, entry.reply.error)
            if error is None:
                self._succeed(entry)
            else:
                self._try_again(entry, error)

    def _store(self, scraped: list[Entry]) -> dict[Entry, Exception]:
        """Insert what each has, in a thread; returns the errors."""
        insert = getattr(self.storage, "insert_batch", None) or self.storage.insert_tweets_batch
        refused: dict[Entry, Exception] = {}
        for entry in scraped:
            if tweets := _tweets_of(entry):
                try:
                    insert(tweets)
                except Exception as error:  # noqa: BLE001 - the caller's own code
                    refused[entry] = error
        return refused

    def _succeed(self, entry: Entry) -> None:
        stats, reply = self.stats, entry.reply
        self.request_queue._end(entry)  # noqa: SLF001
        entry.request.target.last_scraped = datetime.fromtimestamp(self._now(), UTC)
        stats["requests_processed"] += 1
        used = getattr(reply.value, "backend_used", None)
        stats["backends_used"][used if isinstance(used, str) else reply.backend] += 1
        stats["avg_processing_time"] += (reply.waits["attempt"] - stats["avg_processing_time"]) / stats["requests_processed"]

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
        for quota in self.quotas.values():
            quota._rest()  # noqa: SLF001

    def _give_up_loop(self) -> None:
        """Its loop ended without a stop: what had not ended waits again. What its limits remember went with it."""
        self.request_queue._detach()  # noqa: SLF001
        for entry in self._live:
            entry.ticket = None
            self.request_queue._wait(entry)  # noqa: SLF001
        self._live.clear()
        self._engine, self._declared = self._new_engine(), {}
        for quota in self.quotas.values():
            quota.active_requests = 0
        self._rest()


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


async def _scraped(source: Any, target: Any) -> Any:
    is_search = target.target_type == "search"
    scrape: Callable[..., Any] = source.scrape_search_tweets if is_search else source.scrape_user_tweets
    return await scrape(target.value, max_tweets=MAX_TWEETS)


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
