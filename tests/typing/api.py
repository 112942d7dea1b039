"""A user's program that touches the public API; mypy --strict reads it, nothing runs it.

A `type: ignore` marks a mistake that the types must catch: mypy complains when it no longer does.
"""

import concurrent.futures
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import assert_type

import aiohttp

import tidegate
from tidegate import (
    Backend,
    BackendError,
    BackendQuota,
    BackendRateLimitedError,
    ConfigError,
    DeadlineBound,
    DeadlineExceededError,
    Demand,
    Event,
    Lease,
    Ledger,
    Limit,
    Limiter,
    LoadBalancer,
    Outcome,
    Priority,
    QueueFullError,
    RateLimitScheduler,
    Reply,
    Request,
    RequestCancelledError,
    RequestFailedError,
    RequestQueue,
    Retry,
    SchedulerClosedError,
    Snapshot,
    ThroughputBound,
    Ticket,
    TidegateError,
    deadline_bound,
    run,
    throughput_bound,
)
from tidegate.backends.http import HttpBackend
from tidegate.backends.nitter import NitterBackend, Search, Timeline
from tidegate.backends.snscrape import ItemStream, Scrape, SnscrapeBackend
from tidegate.testing import ManualClock

# ---- Handlers: async on the loop, plain in a thread


async def fetch_async(request: Request) -> bytes:
    assert_type(request.target, object)
    assert_type(request.backend, str)
    assert_type(request.account, object | None)
    assert_type(request.attempt, int)
    assert_type(request.priority, int)
    assert_type(request.deadline, float | None)
    assert_type(request.scopes, Mapping[str, str])
    request.ack()
    request.ack(429, {"Retry-After": "3"})
    request.ack(503, retry_after=2.5)
    await request.recharge()
    await request.recharge(2)
    return b""


def fetch_in_thread(request: Request) -> dict[str, int]:
    request.ack(200)
    request.recharge_blocking(2)
    return {str(request.target): request.attempt}


def in_a_thread(scheduler: RateLimitScheduler) -> int:
    with scheduler.slot_blocking("text", cost=2, priority=Priority.HIGH, timeout=5, scopes={"host": "a"}) as lease:
        assert_type(lease, Lease)
        lease.ack(429, {"Retry-After": "1"})
        lease.recharge_blocking(2, scopes={"host": "b"})
    return 1


async def text(scheduler: RateLimitScheduler) -> str:
    return repr(scheduler)


def synchronous() -> None:
    assert_type(run(text, backends(), order="edf", capacity=10, retry=Retry(attempts=2), isolation="task", seed=1), str)
    assert_type(run(in_a_thread, backends()), int)
    assert_type(run(["a", "b"], backends(), priority=7, timeout=5), list[Reply])
    run(5, backends())  # type: ignore[call-overload]


def classify(request: Request, came: object | BaseException) -> Outcome:
    if isinstance(came, PermissionError):
        return Outcome.LIMITED
    if isinstance(came, OSError):
        return Outcome.FAILED
    return Outcome.NEUTRAL if isinstance(came, ValueError) else Outcome.OK


# ---- What a backend allows


def backends() -> list[Backend]:
    limits = [
        Limit(100, 60),
        Limit(10, timedelta(seconds=1), kind="bucket", burst=20),
        Limit(50, 5, kind="counter", anchor="finish"),
        Limit(600, 60, aligned=True),
        Limit(10, 1, jitter=0.005),
        Limit(10, 1, jitter="auto"),
        Limit(1, 1.5, name="polite"),
    ]
    assert_type(Limit.parse("900/15min"), Limit)
    return [
        Backend("plain", fetch_async),
        Backend("text", fetch_in_thread, "10/s burst 20", timeout=5),
        Backend("several", fetch_async, BackendQuota("100/min", "3000/h", concurrency=10), classify=classify),
        Backend("objects", fetch_async, BackendQuota(*limits, concurrency=None), timeout=None),
    ]


def wrong() -> None:
    Backend("name", "not a handler")  # type: ignore[arg-type]
    Backend("name", fetch_async, 10)  # type: ignore[arg-type]
    BackendQuota(10)  # type: ignore[arg-type]
    Limit("10", 1)  # type: ignore[arg-type]
    Limit(10, 1, kind="windw")  # type: ignore[arg-type]
    RateLimitScheduler(backends(), isolation="thread")  # type: ignore[arg-type]
    RateLimitScheduler(backends(), balancer="adaptive")  # type: ignore[arg-type]
    LoadBalancer("fastest")  # type: ignore[arg-type]
    Limit(10, 1).amount = 20  # type: ignore[misc]


# ---- Without a scheduler


async def limited(limiter: Limiter) -> None:
    assert_type(limiter.try_acquire(), bool)
    assert_type(limiter.try_acquire(2, "key"), bool)
    assert_type(limiter.retry_after(key=7), float)
    assert_type(limiter.limits, tuple[Limit, ...])
    await limiter.acquire(cost=2, key="key", timeout=timedelta(seconds=1))
    limiter.acquire_blocking(timeout=1.5)
    limiter.set_limits("10/s", Limit(100, 60))
    async with limiter as nothing:
        assert_type(nothing, None)
    with limiter:
        pass
    limiter.try_acquire(key=("a", "b"))  # type: ignore[arg-type]
    Limiter(10)  # type: ignore[arg-type]
    limiter.acquire()  # type: ignore[unused-coroutine]


async def queued() -> None:
    queue = RequestQueue[str](100, order="edf")
    assert_type(await queue.put("item", priority=Priority.HIGH, timeout=3, flow="a"), int)
    handle = queue.put_nowait("item")
    assert_type(queue.cancel(handle), bool)
    assert_type(await queue.get(), str)
    assert_type(queue.get_nowait(), str)
    assert_type(queue.peek(), str)
    assert_type(len(queue), int)
    queue.put_nowait(3)  # type: ignore[arg-type]


# ---- The scheduler


async def front_door(scheduler: RateLimitScheduler) -> None:
    reply = await scheduler.fetch("one", priority=Priority.HIGH, timeout=10)
    assert_type(reply, Reply)
    await scheduler.fetch("two", priority=7, cost=3, backends=["text"])

    ticket = await scheduler.submit("three")
    assert_type(ticket, Ticket)
    assert_type(ticket.id, int)
    assert_type(ticket.done(), bool)
    assert_type(ticket.cancel(), bool)
    assert_type(await ticket, Reply)

    assert_type(scheduler.submit_nowait("four"), Ticket)
    assert_type(await scheduler.submit_many(["five", "six"], priority=Priority.LOW), list[Ticket])
    assert_type(scheduler.submit_threadsafe("seven"), concurrent.futures.Future[Reply])

    async with scheduler.slot("text", cost=2, priority=Priority.CRITICAL, timeout=timedelta(seconds=3)) as lease:
        assert_type(lease, Lease)
        assert_type(lease.backend, str)
        assert_type(lease.account, object | None)
        lease.ack(200)
        await lease.recharge()

    scheduler.fetch("forgotten")  # type: ignore[unused-coroutine]


def what_ended(reply: Reply) -> object:
    assert_type(reply.target, object)
    assert_type(reply.ok, bool)
    assert_type(reply.error, TidegateError | None)
    assert_type(reply.backend, str | None)
    assert_type(reply.attempts, int)
    assert_type(reply.waits, Mapping[str, float])
    reply.ok = True  # type: ignore[misc]
    return reply.value


async def numbers() -> AsyncIterator[int]:
    for number in range(3):
        yield number


def letters() -> Iterator[str]:
    yield from "abc"


async def many(scheduler: RateLimitScheduler) -> None:
    async for reply in scheduler.map(letters()):
        assert_type(reply, Reply)
    async with scheduler.map(numbers(), ordered=True, ahead=100, timeout=5) as replies:
        async for reply in replies:
            what_ended(reply)
    stream = scheduler.map(range(3), priority=lambda target: Priority.LOW)
    assert_type(stream, tidegate.ReplyStream)
    await stream.aclose()


async def looking_inside(scheduler: RateLimitScheduler) -> None:
    ledger = scheduler.ledger()
    assert_type(ledger, Ledger)
    assert_type(ledger.accepted - ledger.delivered - ledger.dead - ledger.expired - ledger.cancelled, int)
    assert_type(ledger.pending, int)
    assert_type(ledger.balanced, bool)

    snapshot = scheduler.snapshot()
    assert_type(snapshot, Snapshot)
    assert_type(snapshot.queued + snapshot.leased + snapshot.done + snapshot.workers, int)
    state = snapshot.backends["text"]
    assert_type(state.in_flight, int)
    for limit in state.limits:
        assert_type(limit.name, str)
        assert_type(limit.amount, int)
        assert_type(limit.period, float)

    async for event in scheduler.events():
        assert_type(event, Event)
        break


async def main(seed: int) -> None:
    async with RateLimitScheduler(
        backends(),
        capacity=10_000,
        retry=Retry(attempts=3, base=0.1, cap=5, budget=0.2),
        isolation="task",
        seed=seed,
    ) as scheduler:
        assert_type(scheduler, RateLimitScheduler)
        await front_door(scheduler)
        await many(scheduler)
        await looking_inside(scheduler)
        assert_type(await scheduler.drain(timeout=5), bool)
    await scheduler.close()

    clock = ManualClock()
    async with RateLimitScheduler(backends(), clock=clock):
        pass


# ---- HTTP, on the user's client


async def over_http() -> None:
    async with aiohttp.ClientSession() as client:
        api = HttpBackend("api", "https://example.org/{target}", "10/s", client=client, headers={"Accept": "application/json"})
        balancer = LoadBalancer("adaptive", prices={"paid": 2}, order=["api"])
        assert_type(balancer.price("api"), float)
        assert_type(balancer.rank("api"), int)
        async with RateLimitScheduler([api], balancer=balancer) as scheduler:
            await scheduler.fetch("users")


# ---- Scrapers


async def over_scrapers() -> None:
    posts = SnscrapeBackend(
        "telegram", "telegram-channel", "30/min", max_items=100, base_url={"https://t.me": "http://localhost"}
    )
    any_kind = SnscrapeBackend("any", proxies=lambda request: {"https": str(request.account)}, accounts=["http://localhost"])
    async with RateLimitScheduler([posts, any_kind]) as scheduler:
        await scheduler.fetch(Scrape("twitter-search", "python", maxEmptyPages=3), backends="any")
        async with posts.stream(scheduler, "durov", buffer=8, priority=Priority.HIGH, timeout=60) as items:
            assert_type(items, ItemStream)
            async for item in items:
                print(item)


async def over_mirrors() -> None:
    mirrors = ["https://one.example", "https://two.example"]
    nitter = NitterBackend("nitter", mirrors, BackendQuota("30/min", concurrency=4), max_items=None, form="rss", timeout=60)
    NitterBackend("nitter", mirrors, form="json")  # type: ignore[arg-type]
    async with RateLimitScheduler([nitter]) as scheduler:
        await scheduler.fetch(Timeline("nasa", replies=True, since=datetime(2026, 1, 1, tzinfo=UTC)))
        async with nitter.stream(scheduler, Search("from:nasa", max_items=5), priority=Priority.LOW) as tweets:
            assert_type(tweets, ItemStream)
    Search("x", 5)  # type: ignore[call-arg]


# ---- Errors


def explain(error: TidegateError) -> str:
    match error:
        case QueueFullError() | SchedulerClosedError() | RequestCancelledError():
            return "refused"
        case BackendRateLimitedError(retry_after=float(seconds)):
            return f"{seconds:.1f} s"
        case BackendError(backend=str(name), attempt=int(attempt)):
            return f"{name}, {attempt}"
        case RequestFailedError(attempts=attempts):
            assert_type(len(attempts), int)
            return "failed"
        case _:
            return "other"


def built_ins(error: ConfigError, late: DeadlineExceededError, closed: SchedulerClosedError) -> Sequence[Exception]:
    value: ValueError = error
    timeout: TimeoutError = late
    runtime: RuntimeError = closed
    return [value, timeout, runtime]


HANDLERS: list[Callable[[Request], object]] = [fetch_async, fetch_in_thread]


# ---- Bounds


def bounds(backends: list[Backend]) -> None:
    most = throughput_bound(backends, [Demand(10), Demand(2.5, ["api"], cost=3)], latency={"api": timedelta(seconds=1)})
    assert_type(most, ThroughputBound)
    assert_type(most.rate, float)
    assert_type(most.binding, tuple[str, ...])
    assert_type(most.prices, Mapping[str, float])
    quotas: dict[str, BackendQuota | Limit | str] = {"api": "10/s", "web": Limit(1, 1), "all": BackendQuota("1/s")}
    throughput_bound(quotas, latency=0.5, horizon=60)
    least = deadline_bound([(0, 1), (0.5, 2, ["api"])], {"api": "10/s"}, latency=0.1)
    assert_type(least, DeadlineBound)
    assert_type(least.misses, int)
    assert_type(least.share, float)
    deadline_bound([(0, 1, 2, 3)], backends)  # type: ignore[list-item]
    Demand("10/s")  # type: ignore[arg-type]
