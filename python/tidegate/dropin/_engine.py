"""A backend manager on the engine: each of its backends is one of the engine's, with its quota."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

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
from tidegate.dropin._clock import now_by
from tidegate.dropin._queue import RequestPriority
from tidegate.dropin._quota import HOUR, MINUTE, UNKNOWN_RESPONSE, BackendQuota
from tidegate.testing import ManualClock

# Requests a minute, an hour, and at once, of backends for which none are given.
USUAL_QUOTAS = {"snscrape": (100, 3000, 10), "nitter": (30, 1000, 5)}
OTHER_QUOTA = (20, 500, 3)
# Attempts are quick to follow one another: who tests with a manager that fails waits for them.
RETRY = Retry(attempts=4, base=0.02, cap=1.0, budget=1.0)
# What a quota limits.
LIMITS = ("requests_per_minute", "requests_per_hour", "concurrent_requests")
# The queue's `max_size` is what bounds it.
CAPACITY = 2**32 - 1
# Seconds after which an attempt is given up.
TIMEOUT = 3600.0
# Seconds until a backend that says it is not available is asked again.
AVAILABLE_IN = 5.0

PRIORITIES = dict(zip(RequestPriority, Priority, strict=True))


class Job(Protocol):
    """What is scraped for one request.

    Attributes:
        ticket: Of the engine, which sets it.
    """

    ticket: "tidegate.Ticket | None"

    @property
    def target(self) -> Any:
        """Has `target_type` and `value`."""

    @property
    def max_tweets(self) -> int:
        """Tweets asked for."""

    @property
    def can_retry(self) -> bool:
        """Whether a failed attempt may be followed by another."""

    def begin(self, attempt: int) -> None:
        """An attempt begins, the first one being 1."""

    def wait(self) -> None:
        """It failed, and waits to be tried again."""


class ResultError(BackendUnavailableError):
    """A result says that it failed.

    Attributes:
        result: It.
    """

    def __init__(self, backend: str, result: Any) -> None:
        super().__init__(f"{backend}: {getattr(result, 'error_message', None)}", backend=backend)
        self.result = result


class Engine:
    """Serves jobs through a backend manager; may be started and stopped many times, on one loop after another.

    Args:
        manager: The backend manager.
        quotas: By name of the backend; when empty, filled with all that the manager names.
        clock: For virtual time.

    Attributes:
        manager: As given; it may be replaced.
        now: Its clock, in seconds since the Unix epoch.
        guests: Each is called before it stops, and cancels what others than the owner have submitted.
    """

    def __init__(self, manager: Any, quotas: dict[str, BackendQuota], clock: ManualClock | None) -> None:
        self.now = now_by(clock)
        self.guests: set[Callable[[], None]] = set()
        self.manager = manager
        self._quotas = quotas
        self._has_usual_quotas = not quotas
        self._clock = clock
        self._is_running = False
        self._scheduler = self._new_scheduler()
        self._declared: dict[str, tuple[int, int, int]] = {}  # what the scheduler's backends were told
        self._named: dict[str, Any] = {}  # the manager's own backends
        # What the manager has used by itself and what is not charged yet.
        self._debts: set[Debt] = set()
        self._owed: list[str] = []
        self._unknown: set[str] = set()  # backends of whose last minute the scheduler knows nothing
        self._results = asyncio.Event()
        self.look_for_backends()

    async def start(self) -> None:
        """Begin to serve, on the running loop."""
        await self._scheduler.__aenter__()
        try:
            self.look_for_backends()
        except BaseException:
            await self._scheduler._leave()  # noqa: SLF001 - it is entered again
            raise
        self._is_running = True
        self._results = asyncio.Event()
        self.take_results(True)
        for quota in self._quotas.values():
            quota._serve(self.now, self._wait_of)  # noqa: SLF001 - the quota's other half
        owed, self._owed = self._owed, []
        for name in owed:
            if name in self._declared:
                self._charge(name)
        self._charge_the_last_minute()

    async def stop(self) -> None:
        """Serve no more. Its owner has cancelled all that is pending; what the limits remember stays."""
        self._is_running = False
        for cancel in list(self.guests):
            cancel()
        for debt in list(self._debts):
            if debt.ticket.cancel():
                self._owed.append(debt.backend)
        await self._scheduler._leave()  # noqa: SLF001 - it is entered again
        self._rest()

    def abandon(self) -> None:
        """The loop that it ran on ended without a stop: what the limits remember goes with it, its minute is charged anew."""
        self._is_running = False
        self._scheduler, self._declared, self._debts = self._new_scheduler(), {}, set()
        self._owed.clear()
        for quota in self._quotas.values():
            quota.active_requests = 0
        self._rest()

    def has_backends(self) -> bool:
        """Whether there is any; looks anew when there was none."""
        if not self._declared:
            self.look_for_backends()
        return bool(self._declared)

    def submit(self, job: Job, priority: RequestPriority, prefer: str | None) -> "tidegate.Ticket | None":
        """Have a job served; its reply's value is the backend's result. None when there is no backend at all."""
        if not self.has_backends():
            return None
        options: dict[str, Any] = {}
        if priority is not RequestPriority.NORMAL:
            options["priority"] = PRIORITIES[priority]
        if prefer in self._declared:
            options["prefer"] = prefer
        job.ticket = self._scheduler.submit_nowait(job, **options)
        return job.ticket

    def take_results(self, takes: bool) -> None:
        """Whether attempts may begin, as far as their results are concerned: not while more wait than can be stored."""
        if takes:
            self._results.set()
        else:
            self._results.clear()

    def look_for_backends(self) -> None:
        """Have a quota for each backend there is, and the scheduler know them all as they are now."""
        if self._has_usual_quotas:
            names = self.manager.get_available_backends()
            for name in names if isinstance(names, list | tuple | set) else ():
                if name not in self._quotas:
                    self._quotas[name] = BackendQuota(name, *USUAL_QUOTAS.get(name, OTHER_QUOTA))
        own = getattr(self.manager, "backends", None)
        self._named = {backend.get_name(): backend for backend in own} if isinstance(own, list) else {}
        for name in self._declared.keys() - self._quotas.keys():
            del self._declared[name]
            self._scheduler.remove_backend(name, drain=False)
        for name, quota in self._quotas.items():
            limits = (quota.requests_per_minute, quota.requests_per_hour, quota.concurrent_requests)
            if self._declared.get(name) == limits:
                continue
            for option, most in zip(LIMITS, limits, strict=True):
                count_of(option, most, f" for {name!r}, or leave out a backend that is not to be used")
            per_minute, per_hour, concurrency = limits
            # Their kinds are named: a backend that says it is unavailable is no reason to think that it counts otherwise.
            declared = tidegate.BackendQuota(
                Limit(per_minute, MINUTE, kind="window"), Limit(per_hour, HOUR, kind="window"), concurrency=concurrency
            )
            if name in self._declared:
                self._scheduler.set_quota(name, declared)
            else:
                self._scheduler.add_backend(tidegate.Backend(name, self._attempt, declared, timeout=TIMEOUT))
                self._unknown.add(name)
            self._declared[name] = limits
        if self._is_running:
            self._charge_the_last_minute()

    def _new_scheduler(self) -> tidegate.RateLimitScheduler:
        # A request that fails again and again ends after `max_retries`, as callers count on, also when its backend is down.
        health = tidegate.HealthMonitor(enabled=False)
        return tidegate.RateLimitScheduler(capacity=CAPACITY, retry=RETRY, health=health, clock=self._clock)

    def _rest(self) -> None:
        for quota in self._quotas.values():
            quota._rest()  # noqa: SLF001 - the quota's other half

    def _wait_of(self, name: str) -> float:
        """Seconds until the scheduler sends a backend one more."""
        state = self._scheduler.snapshot().backends.get(name)
        if state is None or state.state in ("open", "full"):  # the quota itself counts what runs
            return 0.0
        waits = [UNKNOWN_RESPONSE if limit.next_eligible_in is None else limit.next_eligible_in for limit in state.limits]
        return max([0.0, state.next_eligible_in or 0.0, *waits])

    async def _attempt(self, attempt: tidegate.Request) -> Any:
        """The handler of all backends."""
        if attempt.target is DEBT:
            return None
        job: Job = attempt.target  # type: ignore[assignment] # nothing else is submitted
        ticket = job.ticket  # a handler that ignored a stop may end when the job has another one
        assert ticket is not None
        if not self._results.is_set():
            await self._results.wait()
        name = attempt.backend
        backend = self._named.get(name)
        if backend is not None and not backend.is_available():
            raise BackendRateLimitedError(f"{name} is not available", backend=name, retry_after=AVAILABLE_IN)
        job.begin(attempt.attempt)
        quota = self._quotas[name]
        quota.record_request_start()
        started_at = self.now()
        try:
            result = await _scrape(backend or self.manager, job)
            if not result.success:
                raise ResultError(name, result)
        except asyncio.CancelledError:
            if _was_cancelled(ticket):
                quota._end()  # noqa: SLF001 - the quota's other half
            else:  # it took too long
                quota.record_request_end(False, self.now() - started_at)
            if not ticket.done():
                job.wait()
            raise
        except Exception as error:
            quota.record_request_end(False, self.now() - started_at)
            if ticket.done():
                raise
            if not job.can_retry:
                raise BackendRejectedError(str(error), backend=name) from error  # there is no other attempt
            job.wait()
            raise
        if backend is None:
            quota = self._charged(quota, result)
        quota.record_request_end(True, self.now() - started_at)
        return result

    def _charged(self, chosen: BackendQuota, result: Any) -> BackendQuota:
        """The quota of the backend that the manager has used instead of the chosen one, charged."""
        used = getattr(result, "backend_used", None)
        served = self._quotas.get(used) if isinstance(used, str) else None
        if served is None or served is chosen:
            return chosen
        chosen._withdraw()  # noqa: SLF001 - the quota's other half
        served.record_request_start()
        self._charge(served.backend_name)
        return served

    def _charge_the_last_minute(self) -> None:
        """What a backend was sent before the scheduler had it, as its quota has it."""
        unknown, self._unknown = self._unknown, set()
        for name in unknown & self._declared.keys():
            for _ in range(self._quotas[name]._last_minute()):  # noqa: SLF001 - the quota's other half
                self._charge(name)

    def _charge(self, name: str) -> None:
        self._debts.add(Debt(name, self._scheduler.submit_nowait(DEBT, backends=name, priority=Priority.CRITICAL), self._debts))


# The target of what a backend served without being asked by the scheduler: it only takes its place in the limits.
DEBT = object()


class Debt:
    """One such request, among the others that are not charged yet.

    Attributes:
        backend: The one that served.
        ticket: Of the engine.
    """

    __slots__ = ("_unpaid", "backend", "ticket")

    def __init__(self, backend: str, ticket: "tidegate.Ticket", unpaid: "set[Debt]") -> None:
        self.backend, self.ticket, self._unpaid = backend, ticket, unpaid
        ticket._wait(self)  # noqa: SLF001 - a future for each would cost more than the engine

    def set_result(self, _: None) -> None:
        """What the ticket calls."""
        self._unpaid.discard(self)


def _was_cancelled(ticket: "tidegate.Ticket") -> bool:
    reply = ticket._reply()  # noqa: SLF001 - the public way raises its error
    return reply is not None and isinstance(reply.error, RequestCancelledError)


async def _scrape(source: Any, job: Job) -> Any:
    target = job.target
    kind = target.target_type
    # Of a mock each attribute is there, and true.
    is_search = kind == "search" if kind in {"user", "search"} else target.is_search is True
    scrape: Callable[..., Any] = source.scrape_search_tweets if is_search else source.scrape_user_tweets
    return await scrape(target.value, max_tweets=job.max_tweets)
