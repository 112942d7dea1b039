"""What it costs to have a request accepted, in terms of an empty method call and of today's heap."""

import heapq
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat

from measure import Row, Timed, ratio, rounds
from workload import immediate, scheduler_of, second_time

from tidegate import RateLimitScheduler
from tidegate.testing import ManualClock

BATCH = 1000
BATCHES = 20
# Long enough that neither clock nor noise shows.
CALLS = 200_000


async def warm(scheduler: RateLimitScheduler) -> None:
    """Have the system hand out the memory that is needed later."""
    for ticket in await scheduler.submit_many(range(BATCH * BATCHES)):
        await ticket


async def submit_many() -> int:
    """Batches of a thousand; the tickets are kept, nothing is dispatched in between."""
    targets = list(range(BATCH))
    tickets = []
    async with scheduler_of(immediate(), 64) as scheduler:
        await warm(scheduler)
        with Timed() as timed:
            for _ in range(BATCHES):
                tickets.append(await scheduler.submit_many(targets))  # noqa: PERF401 - the thing measured
    return timed.nanos


async def submit_nowait() -> int:
    """One request a call."""
    async with scheduler_of(immediate(), 64) as scheduler:
        await warm(scheduler)
        submit = scheduler.submit_nowait
        with Timed() as timed:
            tickets = [submit(target) for target in range(BATCH * BATCHES)]
        assert len(tickets) == BATCH * BATCHES
    return timed.nanos


async def heap_push() -> int:
    """`heappush` of what a priority queue of one's own would hold."""
    push = heapq.heappush

    async def work() -> None:
        heap: list[tuple[int, int, int]] = []
        for sequence in range(BATCH * BATCHES):
            push(heap, (128, sequence, sequence))

    return await second_time(work)


async def empty_call() -> int:
    """A method without arguments that reads one number, of a frozen class of ours: the price of crossing over."""
    return _calls(ManualClock().time_ns) // (CALLS // (BATCH * BATCHES))


def _calls(method: Callable[[], object]) -> int:
    def loop(method: Callable[[], object] | None) -> int:
        start = time.process_time_ns()
        if method is None:
            for _ in repeat(None, CALLS):
                pass
        else:
            for _ in repeat(None, CALLS):
                method()
        return time.process_time_ns() - start

    return loop(method) - loop(None)


def rows(loop: str, count: int) -> list[Row]:
    """Measure on one loop."""
    contenders = {
        "submit_many": submit_many,
        "submit_nowait": submit_nowait,
        "heappush": heap_push,
        "empty call": empty_call,
    }
    figures = rounds(loop, contenders, count=count, operations=BATCH * BATCHES)
    share = partial(ratio, "submit", figures=figures)
    return [
        share(f"submit_many, an item, against an empty call: {loop}", ours="submit_many", theirs="empty call", at_most=1.5),
        share("  against heappush", ours="submit_many", theirs="heappush"),
        share("submit_nowait against an empty call", ours="submit_nowait", theirs="empty call", at_most=3),
        share("  against heappush", ours="submit_nowait", theirs="heappush"),
    ]
