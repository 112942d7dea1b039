"""What it costs to be admitted by a limiter alone, against aiolimiter."""

from functools import partial
from itertools import repeat

from aiolimiter import AsyncLimiter
from measure import Row, Timed, ratio, rounds

from tidegate import Limiter

CALLS = 200_000
# A rate that never blocks.
BURST = "4_000_000_000/s burst 4_000_000_000"
WINDOW = "4_000_000_000/s"


async def try_acquire(*limits: str, key: str | None = None) -> int:
    """So many calls of `try_acquire()`, all of which are admitted."""
    limiter = Limiter(*limits)
    admit = limiter.try_acquire if key is None else partial(limiter.try_acquire, 1, key)
    assert admit()
    with Timed() as timed:
        for _ in repeat(None, CALLS):
            admit()
    assert admit()
    return timed.nanos


async def empty_loop() -> int:
    """As many turns of the loop that all of these calls are made in."""
    with Timed() as timed:
        for _ in repeat(None, CALLS):
            pass
    return timed.nanos


async def awaited() -> int:
    """As many that wait for `acquire()`, which never does."""
    limiter = Limiter(BURST)
    with Timed() as timed:
        for _ in repeat(None, CALLS):
            await limiter.acquire()
    return timed.nanos


async def body(*limits: str) -> int:
    """As many of `async with limiter:`."""
    limiter = Limiter(*limits)
    with Timed() as timed:
        for _ in repeat(None, CALLS):
            async with limiter:
                pass
    return timed.nanos


async def peer_acquire() -> int:
    """As many of `await acquire()` of aiolimiter."""
    limiter = AsyncLimiter(1e9, 1)
    with Timed() as timed:
        for _ in repeat(None, CALLS):
            await limiter.acquire()
    return timed.nanos


async def peer_body() -> int:
    """As many of `async with limiter:` of aiolimiter."""
    limiter = AsyncLimiter(1e9, 1)
    with Timed() as timed:
        for _ in repeat(None, CALLS):
            async with limiter:
                pass
    return timed.nanos


def rows(loop: str, count: int) -> list[Row]:
    """Measure on one loop."""
    contenders = {
        "try_acquire": partial(try_acquire, BURST),
        "of a window": partial(try_acquire, WINDOW),
        "of two limits": partial(try_acquire, BURST, WINDOW),
        "of a key": partial(try_acquire, BURST, key="host"),
        "acquire": awaited,
        "async with": partial(body, BURST),
        "async with a window": partial(body, WINDOW),
        "peer's acquire": peer_acquire,
        "peer's async with": peer_body,
        "empty loop": empty_loop,
    }
    figures = rounds(loop, contenders, count=count, operations=CALLS)
    faster = partial(ratio, "limiter", figures=figures, ours="peer's acquire", floor="empty loop")
    share = partial(ratio, "limiter", figures=figures, floor="empty loop")
    row = faster(f"try_acquire with a burst, times faster than acquire: {loop}", theirs="try_acquire")
    row.goal, row.reached = ">= 20", row.value >= 20
    return [
        row,
        faster("  with a window", theirs="of a window"),
        faster("  with a burst and a window", theirs="of two limits"),
        faster("  with a burst, of a key", theirs="of a key"),
        share("await acquire() against the peer's", ours="acquire", theirs="peer's acquire"),
        share("async with, a burst, against the peer's", ours="async with", theirs="peer's async with"),
        share("async with, a window", ours="async with a window", theirs="peer's async with"),
    ]
