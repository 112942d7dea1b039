"""The plain scheduler that `tidegate.dropin` replaces, written anew from a description, defects included: for comparison only."""

import asyncio
import contextlib
import time
from asyncio import sleep
from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum

MINUTE, HOUR = 60.0, 3600.0
EXPIRY = 300.0
IDLE = 0.1
DEFAULTS = {"snscrape": (100, 3000, 10), "nitter": (30, 1000, 5)}
ANY_OTHER = (20, 500, 3)


class RequestPriority(Enum):
    """Smaller goes first."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


class BackendStatus(Enum):
    """How a backend does."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    RATE_LIMITED = "rate_limited"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass
class BackendQuota:
    """What a backend allows, and what it was sent by the wall clock."""

    backend_name: str
    requests_per_minute: int
    requests_per_hour: int
    concurrent_requests: int
    active_requests: int = 0
    avg_response_time: float = 0.0
    success_rate: float = 1.0
    last_success: float | None = None
    last_failure: float | None = None
    consecutive_failures: int = 0
    minute_requests: deque[float] = field(default_factory=deque)
    hour_requests: deque[float] = field(default_factory=deque)
    _timed: bool = False

    def _forget(self):
        now = time.time()
        for stamps, period in ((self.minute_requests, MINUTE), (self.hour_requests, HOUR)):
            while stamps and now - stamps[0] >= period:
                del stamps[0]

    def can_make_request(self):
        self._forget()
        return (
            self.active_requests < self.concurrent_requests
            and len(self.minute_requests) < self.requests_per_minute
            and len(self.hour_requests) < self.requests_per_hour
        )

    def record_request_start(self):
        now = time.time()
        self.active_requests += 1
        self.minute_requests.append(now)
        self.hour_requests.append(now)

    def record_request_end(self, success, response_time):
        self.active_requests = max(0, self.active_requests - 1)
        self.avg_response_time = 0.8 * self.avg_response_time + 0.2 * response_time if self._timed else response_time
        self._timed = True
        self.success_rate = 0.9 * self.success_rate + 0.1 * success
        if success:
            self.last_success = time.time()
            self.consecutive_failures = 0
        else:
            self.last_failure = time.time()
            self.consecutive_failures += 1

    def get_wait_time(self):
        """Defect: of the minute only."""
        self._forget()
        if len(self.minute_requests) < self.requests_per_minute:
            return 0.0
        return max(0.0, MINUTE - (time.time() - self.minute_requests[0]))

    def get_status(self):
        if self.consecutive_failures >= 5:
            return BackendStatus.FAILED
        if not self.can_make_request():
            return BackendStatus.RATE_LIMITED
        if self.success_rate < 0.7 or self.avg_response_time > 30:
            return BackendStatus.DEGRADED
        return BackendStatus.UNKNOWN if self.last_success is None else BackendStatus.HEALTHY


@dataclass(eq=False)
class ScheduledRequest:
    """A target that waits. `created_at` is a time of the wall clock, in seconds or as an aware datetime."""

    target: object
    priority: RequestPriority
    created_at: float | datetime
    retry_count: int = 0
    max_retries: int = 3
    backend_preference: str | None = None

    def __lt__(self, other):
        return (self.priority.value, _seconds(self.created_at)) < (other.priority.value, _seconds(other.created_at))

    @property
    def is_expired(self):
        return time.time() - _seconds(self.created_at) > EXPIRY

    @property
    def can_retry(self):
        return self.retry_count < self.max_retries


class RequestQueue:
    """A sorted list of requests, bounded by displacing the oldest."""

    def __init__(self, max_size=1000):
        self.max_size = max_size
        self.stats = {"total_queued": 0, "total_processed": 0, "total_dropped": 0, "avg_wait_time": 0.0}
        self._waiting = []

    async def enqueue(self, request):
        """Defect: above `max_size` an older one of the least priority goes, and nobody is told."""
        if len(self._waiting) >= self.max_size:
            least = self._waiting[-1].priority
            self._waiting.remove(next(waiting for waiting in self._waiting if waiting.priority is least))
            self.stats["total_dropped"] += 1
        insort(self._waiting, request)
        self.stats["total_queued"] += 1
        return True

    async def dequeue(self):
        """Defects: each call makes the list anew, and what is too old goes silently."""
        fresh = [request for request in self._waiting if not request.is_expired]
        self.stats["total_dropped"] += len(self._waiting) - len(fresh)
        self._waiting = fresh
        if not fresh:
            return None
        request = fresh.pop(0)
        self.stats["total_processed"] += 1
        waited = time.time() - _seconds(request.created_at)
        self.stats["avg_wait_time"] += (waited - self.stats["avg_wait_time"]) / self.stats["total_processed"]
        return request

    async def peek(self):
        return self._waiting[0] if self._waiting else None

    async def size(self):
        return len(self._waiting)

    async def is_empty(self):
        return not self._waiting


class LoadBalancer:
    """Chooses a backend. Defect: the weights are those of the start."""

    def __init__(self, quotas):
        self.quotas = quotas
        self._weights = {name: quota.success_rate / (1 + quota.avg_response_time) for name, quota in quotas.items()}

    def select_backend(self, request):
        free = [name for name, quota in self.quotas.items() if quota.can_make_request()]
        if request.backend_preference in free:
            return request.backend_preference
        return max(free, key=self._rank, default=None)

    def _rank(self, name):
        return self.quotas[name].get_status() is BackendStatus.HEALTHY, self._weights[name]

    def get_wait_time(self, name):
        return self.quotas[name].get_wait_time() if name in self.quotas else float("inf")

    def get_next_available_time(self):
        return min(((name, quota.get_wait_time()) for name, quota in self.quotas.items()), key=lambda pair: pair[1])


class RateLimitScheduler:
    """Workers that take requests from the queue, choose a backend, and call the manager."""

    def __init__(self, backend_manager, storage, quotas=None):
        self.backend_manager = backend_manager
        self.storage = storage
        self.quotas = _default_quotas(backend_manager) if quotas is None else quotas
        self.request_queue = RequestQueue()
        self.load_balancer = LoadBalancer(self.quotas)
        self.stats = {
            "requests_processed": 0,
            "requests_failed": 0,
            "backends_used": {},
            "avg_processing_time": 0.0,
            "start_time": None,
        }
        self._running = False
        self._worker_tasks = []

    async def schedule_request(self, target, priority=RequestPriority.NORMAL, backend_preference=None):
        request = ScheduledRequest(target, priority, time.time(), backend_preference=backend_preference)
        return await self.request_queue.enqueue(request)

    async def start(self, num_workers=3):
        if self._running:
            return
        self._running = True
        self.stats["start_time"] = time.time()
        self._worker_tasks = [asyncio.create_task(self._work()) for _ in range(num_workers)]

    async def stop(self):
        self._running = False
        for task in self._worker_tasks:
            task.cancel()
        await asyncio.gather(*self._worker_tasks, return_exceptions=True)
        self._worker_tasks = []

    async def _work(self):
        while self._running:
            request = await self.request_queue.dequeue()
            if request is None:
                await sleep(IDLE)
            else:
                await self._process(request)

    async def _process(self, request):
        """Defects: with no backend free a retry goes at once, and who is charged is not who is called."""
        name = self.load_balancer.select_backend(request)
        if name is None:
            await self._again(request)
            return
        quota = self.quotas[name]
        quota.record_request_start()
        began = time.time()
        try:
            await self._scrape(request.target)
        except Exception:
            quota.record_request_end(False, time.time() - began)
            await self._again(request)
            return
        took = time.time() - began
        quota.record_request_end(True, took)
        request.target.last_scraped = _now()
        stats = self.stats
        stats["requests_processed"] += 1
        stats["avg_processing_time"] += (took - stats["avg_processing_time"]) / stats["requests_processed"]
        stats["backends_used"][name] = stats["backends_used"].get(name, 0) + 1

    async def _scrape(self, target):
        manager = self.backend_manager
        is_search = target.target_type == "search" or target.is_search is True
        scrape = manager.scrape_search_tweets if is_search else manager.scrape_user_tweets
        result = await scrape(target.value, max_tweets=100)
        if not result.success:
            raise RuntimeError(result.error_message)
        if result.tweets:
            await asyncio.to_thread(self.storage.insert_batch, result.tweets)  # defect: whatever the storage has

    async def _again(self, request):
        if request.can_retry:
            request.retry_count += 1
            await self.request_queue.enqueue(request)
        else:
            self.stats["requests_failed"] += 1

    async def get_status(self):
        return {
            "running": self._running,
            "queue_size": await self.request_queue.size(),
            "workers_active": sum(not task.done() for task in self._worker_tasks),
            "stats": self.stats,
            "backend_status": {
                name: {
                    "status": quota.get_status().value,
                    "success_rate": quota.success_rate,
                    "avg_response_time": quota.avg_response_time,
                    "active_requests": quota.active_requests,
                    "minute_requests": len(quota.minute_requests),
                    "hour_requests": len(quota.hour_requests),
                    "can_make_request": quota.can_make_request(),
                    "wait_time": quota.get_wait_time(),
                }
                for name, quota in self.quotas.items()
            },
            "queue_stats": self.request_queue.stats,
        }


class ContinuousCollector:
    """Schedules what is due, then sleeps. Defect: a cycle is as long as the interval and the work together."""

    def __init__(self, scheduler, targets, collection_interval_sec=30):
        self.scheduler = scheduler
        self.targets = targets
        self.collection_interval_sec = collection_interval_sec
        self.stats = {
            "cycles_completed": 0,
            "total_requests_scheduled": 0,
            "last_cycle_time": None,
            "avg_cycle_duration": 0.0,
        }
        self._running = False
        self._collection_task = None

    async def start(self):
        if not self._running:
            self._running = True
            self._collection_task = asyncio.create_task(self._collect())

    async def stop(self):
        self._running = False
        if self._collection_task is not None:
            self._collection_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collection_task
            self._collection_task = None

    def get_stats(self):
        return {
            "running": self._running,
            "targets_count": len(self.targets),
            "collection_interval_sec": self.collection_interval_sec,
            "stats": self.stats,
        }

    def _should_collect_target(self, target):
        if target.last_scraped is None:
            return True
        return (_now() - target.last_scraped).total_seconds() >= self.collection_interval_sec

    async def _collect(self):
        while self._running:
            began = time.time()
            for target in self.targets:
                if self._should_collect_target(target):
                    await self.scheduler.schedule_request(target, priority=RequestPriority.HIGH)
                    self.stats["total_requests_scheduled"] += 1
            self.stats["last_cycle_time"] = began
            self.stats["cycles_completed"] += 1
            took = time.time() - began
            self.stats["avg_cycle_duration"] += (took - self.stats["avg_cycle_duration"]) / self.stats["cycles_completed"]
            await sleep(self.collection_interval_sec)


def create_rate_limit_scheduler(backend_manager, storage, custom_quotas=None):
    quotas = None
    if custom_quotas is not None:
        figures = ("requests_per_minute", 30), ("requests_per_hour", 1000), ("concurrent_requests", 5)
        quotas = {
            name: BackendQuota(name, **{figure: given.get(figure, default) for figure, default in figures})
            for name, given in custom_quotas.items()
        }
    return RateLimitScheduler(backend_manager, storage, quotas)


def create_continuous_collector(scheduler, targets, interval_sec=30):
    return ContinuousCollector(scheduler, targets, interval_sec)


def _default_quotas(backend_manager):
    names = backend_manager.get_available_backends()
    return {name: BackendQuota(name, *DEFAULTS.get(name, ANY_OTHER)) for name in names}


def _now():
    return datetime.fromtimestamp(time.time(), UTC)


def _seconds(stamp):
    return stamp.timestamp() if isinstance(stamp, datetime) else stamp
