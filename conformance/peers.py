"""The peers, each as its documentation says. None is told what a server answers: when it sends depends on its limit alone.

A peer is a function of what a server declares. It makes its limiter, and gives what a task does again and again: wait for a
permit and send; or None where it has no words for that limit. It is imported when it is asked for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from conformance.grid import Declared, Kind

Send = Callable[[], None]
Step = Callable[[Send], Awaitable[None]]
Peer = Callable[[Declared], Step | None]


def aiolimiter(declared: Declared) -> Step | None:
    """A leaky bucket of one rate, whose burst is its amount: a smaller burst is as much less of a period."""
    if len(declared.shape.rates) > 1:
        return None
    ((amount, period),) = declared.shape.rates
    burst = declared.burst(amount) if declared.has_burst else amount
    return _aiolimiter(burst, period * burst / amount)


def aiolimiter_spaced(declared: Declared) -> Step | None:
    """The same without a burst: one an interval."""
    if len(declared.shape.rates) > 1:
        return None
    ((amount, period),) = declared.shape.rates
    return _aiolimiter(1, period / amount)


def _aiolimiter(amount: int, period: float) -> Step:
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(amount, period)

    async def step(send: Send) -> None:
        async with limiter:
            send()

    return step


def pyrate_limiter(declared: Declared) -> Step:
    """By default an exact log. Fixed windows mirror a server that resets on a boundary; buckets have bursts.

    A sliding counter rejects less of what a bucket lets go than of what the log does.
    """
    from pyrate_limiter import (
        GCRA,
        FixedWindow,
        InMemoryBucket,
        Limiter,
        Rate,
        SingleBucketFactory,
        SlidingWindowLog,
        StateBucket,
        TokenBucket,
    )

    def now(self) -> int:
        # Of a subclass, as its documentation has it: its own clocks were bound before time was virtual.
        return time.time_ns() // 1_000_000

    rates = [
        Rate(amount, period * 1000, declared.burst(amount) if declared.has_burst else None)
        for amount, period in declared.shape.rates
    ]
    base, algorithm = {
        Kind.LOG: (InMemoryBucket, SlidingWindowLog()),
        Kind.ANCHORED: (InMemoryBucket, SlidingWindowLog()),
        Kind.ALIGNED: (InMemoryBucket, FixedWindow()),
        Kind.BUCKET: (StateBucket, TokenBucket()),
        Kind.GCRA: (StateBucket, GCRA()),
        Kind.COUNTER: (StateBucket, GCRA()),
    }[declared.kind]
    bucket = type("Virtual", (base,), {"now": now})(rates, algorithm=algorithm)
    # Without the thread that forgets old entries, every ten seconds of real time; what is admitted does not depend on it.
    limiter = Limiter(SingleBucketFactory(bucket, schedule_leak=False))

    async def step(send: Send) -> None:
        if await limiter.try_acquire_async("server"):
            send()

    return step


def limits(declared: Declared) -> Step | None:
    """Counts windows and says when there is room again, and the caller waits; no bursts below the amount, no even spacing."""
    from limits import RateLimitItemPerSecond
    from limits.aio import storage, strategies

    if any(declared.has_burst and declared.burst(amount) < amount for amount, _ in declared.shape.rates):
        return None
    strategy = {
        Kind.ANCHORED: strategies.FixedWindowRateLimiter,
        Kind.ALIGNED: strategies.FixedWindowRateLimiter,
        Kind.COUNTER: strategies.SlidingWindowCounterRateLimiter,
    }.get(declared.kind, strategies.MovingWindowRateLimiter)
    limiter = strategy(storage.MemoryStorage())
    items = [RateLimitItemPerSecond(amount, period) for amount, period in declared.shape.rates]

    async def step(send: Send) -> None:
        for ask in (limiter.test, limiter.hit):  # of several limits all are asked before one is charged
            for item in items:
                if not await ask(item, "server"):
                    await wait(item)
                    return
        send()

    async def wait(item: RateLimitItemPerSecond) -> None:
        stats = await limiter.get_window_stats(item, "server")
        await asyncio.sleep(max(0.0, stats.reset_time - time.time()))

    return step


def throttled(declared: Declared) -> Step | None:
    """One rate; `timeout` makes it wait. Its token bucket counts whole seconds, so GCRA stands for it."""
    from throttled.asyncio import MemoryStore, RateLimiterType, Throttled, per_duration

    if len(declared.shape.rates) > 1:
        return None
    using = {
        Kind.LOG: RateLimiterType.SLIDING_WINDOW,
        Kind.ANCHORED: RateLimiterType.SLIDING_WINDOW,
        Kind.ALIGNED: RateLimiterType.FIXED_WINDOW,
        Kind.BUCKET: RateLimiterType.GCRA,
        Kind.GCRA: RateLimiterType.GCRA,
        Kind.COUNTER: RateLimiterType.SLIDING_WINDOW,
    }[declared.kind]
    ((amount, period),) = declared.shape.rates
    quota = per_duration(timedelta(seconds=period), amount, declared.burst(amount) if declared.has_burst else None)
    throttle = Throttled(using=using.value, quota=quota, timeout=declared.shape.horizon, store=MemoryStore())

    async def step(send: Send) -> None:
        result = await throttle.limit("server")
        if not result.limited:
            send()

    return step


PEERS: dict[str, Peer] = {
    "aiolimiter": aiolimiter,
    "aiolimiter, spaced": aiolimiter_spaced,
    "pyrate-limiter": pyrate_limiter,
    "limits": limits,
    "throttled-py": throttled,
}
# As they are installed.
PACKAGES = ("aiolimiter", "pyrate-limiter", "limits", "throttled-py")
