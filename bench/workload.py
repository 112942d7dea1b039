"""The same work done three ways: by the bare handler, by today's idiom, and by Tidegate."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager

from aiolimiter import AsyncLimiter
from measure import Timed

from tidegate import Backend, BackendQuota, RateLimitScheduler

Work = Callable[[], Awaitable[None]]
# A rate that never blocks: neither contender waits, both do all their bookkeeping.
UNREACHED = 1_000_000_000
# Whether each contender does its work once before it is timed.
warm = True


def suspending() -> Work:
    """Work that suspends once. A driver resolves all that is suspended, at most once a turn of the loop."""
    loop = asyncio.get_running_loop()
    suspended: list[asyncio.Future[None]] = []

    def resolve() -> None:
        batch = suspended[:]
        suspended.clear()
        for future in batch:
            future.set_result(None)

    async def work() -> None:
        future = loop.create_future()
        if not suspended:
            loop.call_soon(resolve)
        suspended.append(future)
        await future

    return work


def immediate() -> Work:
    """Work that does not suspend."""

    async def work() -> None:
        pass

    return work


KINDS: dict[str, Callable[[], Work]] = {"suspends once": suspending, "does not suspend": immediate}


async def second_time(work: Callable[[], Awaitable[None]]) -> int:
    """Nanoseconds of the second of two runs: of the work, not of how the system hands out memory for the first time."""
    if warm:
        await work()
    with Timed() as timed:
        await work()
    return timed.nanos


async def bare(kind: str, targets: list[int], at_once: int) -> int:
    """The floor: tasks that call the handler in a loop."""
    work = KINDS[kind]()
    results: list[int] = []

    async def handler(target: int) -> int:
        await work()
        return target

    async def caller(own: Iterator[int]) -> None:
        for target in own:
            results.append(await handler(target))  # noqa: PERF401 - the plain loop, as the others

    async def all_of_them() -> None:
        results.clear()
        shared = iter(targets)
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(caller(shared))
        assert len(results) == len(targets)

    return await second_time(all_of_them)


async def idiom(kind: str, targets: list[int], at_once: int) -> int:
    """The peer, as the documentation of both shows it: workers on an `asyncio.PriorityQueue`, and `async with limiter`."""
    work = KINDS[kind]()
    queue: asyncio.PriorityQueue[tuple[int, int, int]] = asyncio.PriorityQueue()
    limiter = AsyncLimiter(UNREACHED, 1)
    results: list[int] = []

    async def handler(target: int) -> int:
        await work()
        return target

    async def worker() -> None:
        while True:
            _, _, target = await queue.get()
            async with limiter:
                results.append(await handler(target))
            queue.task_done()

    async def all_of_them() -> None:
        results.clear()
        for sequence, target in enumerate(targets):
            queue.put_nowait((128, sequence, target))
        await queue.join()
        assert len(results) == len(targets)

    async with workers(worker, at_once):
        return await second_time(all_of_them)


async def idiom_with_replies(kind: str, targets: list[int], at_once: int) -> int:
    """The peer whose replies go through a queue to one consumer, as those of `map` do."""
    work = KINDS[kind]()
    queue: asyncio.PriorityQueue[tuple[int, int, int]] = asyncio.PriorityQueue()
    replies: asyncio.Queue[int] = asyncio.Queue()
    limiter = AsyncLimiter(UNREACHED, 1)
    results: list[int] = []

    async def handler(target: int) -> int:
        await work()
        return target

    async def worker() -> None:
        while True:
            _, _, target = await queue.get()
            async with limiter:
                replies.put_nowait(await handler(target))

    async def all_of_them() -> None:
        results.clear()
        for sequence, target in enumerate(targets):
            queue.put_nowait((128, sequence, target))
        for _ in targets:
            results.append(await replies.get())  # noqa: PERF401 - as it comes
        assert len(results) == len(targets)

    async with workers(worker, at_once):
        return await second_time(all_of_them)


@asynccontextmanager
async def workers(worker: Callable[[], Coroutine[None, None, None]], count: int) -> AsyncIterator[None]:
    """Tasks that run until the end."""
    tasks = [asyncio.create_task(worker()) for _ in range(count)]
    await asyncio.sleep(0)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def scheduler_of(work: Work, at_once: int, limit: str = f"{UNREACHED}/s") -> RateLimitScheduler:
    """A scheduler with all its policy in place: a limit, a concurrency cap, attempt timeouts, retries."""

    async def handler(request):
        await work()
        return request.target

    quota = BackendQuota(limit, concurrency=at_once)
    return RateLimitScheduler([Backend("api", handler, quota)])


async def dispatched(kind: str, targets: list[int], at_once: int, limit: str = f"{UNREACHED}/s") -> int:
    """Tidegate: `submit_many`, then drain."""
    async with scheduler_of(KINDS[kind](), at_once, limit) as scheduler:
        if warm:
            for ticket in await scheduler.submit_many(targets):
                await ticket
        before = scheduler.ledger().delivered
        with Timed() as timed:
            tickets = await scheduler.submit_many(targets)
            await scheduler.drain()
        assert scheduler.ledger().delivered - before == len(tickets) == len(targets)
    return timed.nanos


async def mapped(kind: str, targets: list[int], at_once: int) -> int:
    """Tidegate: `map`, each reply consumed."""
    results: list[int] = []

    async with scheduler_of(KINDS[kind](), at_once) as scheduler:

        async def all_of_them() -> None:
            results.clear()
            async for reply in scheduler.map(targets):
                results.append(reply.value)  # noqa: PERF401 - as it comes
            assert len(results) == len(targets)

        return await second_time(all_of_them)


async def bare_one_at_a_time(kind: str, targets: list[int]) -> int:
    """The floor of `fetch`: one task awaits the handler."""
    work = KINDS[kind]()

    async def handler(target: int) -> int:
        await work()
        return target

    with Timed() as timed:
        for target in targets:
            await handler(target)
    return timed.nanos


async def idiom_one_at_a_time(kind: str, targets: list[int], at_once: int) -> int:
    """The peer of `fetch`: a future with each request, and the workers asleep in between."""
    work = KINDS[kind]()
    loop = asyncio.get_running_loop()
    queue: asyncio.PriorityQueue[tuple[int, int, int, asyncio.Future[int]]] = asyncio.PriorityQueue()
    limiter = AsyncLimiter(UNREACHED, 1)

    async def handler(target: int) -> int:
        await work()
        return target

    async def worker() -> None:
        while True:
            _, _, target, future = await queue.get()
            async with limiter:
                future.set_result(await handler(target))

    async with workers(worker, at_once):
        with Timed() as timed:
            for sequence, target in enumerate(targets):
                future = loop.create_future()
                queue.put_nowait((128, sequence, target, future))
                await future
    return timed.nanos


async def fetched_one_at_a_time(kind: str, targets: list[int], at_once: int) -> int:
    """Tidegate: `await fetch()`, one after the other."""
    async with scheduler_of(KINDS[kind](), at_once) as scheduler:
        await scheduler.fetch(0)
        with Timed() as timed:
            for target in targets:
                await scheduler.fetch(target)
    return timed.nanos
