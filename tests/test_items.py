"""Many items of one target: as the list that a reply brings, or one by one as they come, each once."""

import asyncio
import gc
import threading
import weakref

import pytest

from tidegate import (
    BackendQuota,
    ConfigError,
    DeadlineExceededError,
    RateLimitScheduler,
    RequestFailedError,
    Retry,
    SchedulerClosedError,
)
from tidegate.backends._items import ItemBackend, items_of, target_of

AGAIN = Retry(attempts=5, base=0, cap=0, budget=1)
NEVER = Retry(attempts=1)
KINDS = ["in a thread", "on the loop"]


async def until(holds):
    """Wait for what a thread is about to do."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a thread sets no event of the loop
            await asyncio.sleep(0.001)


class Log:
    """What a backend's handlers did: how often they began, the items that they offered, how they were told to stop."""

    def __init__(self) -> None:
        self.attempts = 0
        self.offered = []
        self.stopped = threading.Event()


def numbers(kind, log, *, fails_at=(), first=0, name="numbers", **options):
    """A backend whose target is how many numbers there are; the n-th attempt fails before the number `fails_at[n]`."""

    def start(request):
        log.attempts += 1
        stop_at = fails_at[request.attempt - 1] if request.attempt <= len(fails_at) else None
        return items_of(request), range(first, first + target_of(request)), stop_at

    def in_a_thread(request):
        items, found, fails = start(request)
        for number in found:
            if number == fails:
                raise ConnectionError(f"before {number}")
            log.offered.append(number)
            if not items.offer_blocking(request, number, number):
                log.stopped.set()
                return None
        return items.value

    async def on_the_loop(request):
        items, found, fails = start(request)
        try:
            for number in found:
                if number == fails:
                    raise ConnectionError(f"before {number}")
                log.offered.append(number)
                if not await items.offer(request, number, number):
                    log.stopped.set()
                    return None
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            log.stopped.set()
            raise
        return items.value

    return ItemBackend(name, in_a_thread if kind == "in a thread" else on_the_loop, **options)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def log():
    return Log()


# ---- A plain target


async def test_a_plain_target_has_the_list_of_its_items(kind, log):
    async with RateLimitScheduler([numbers(kind, log)]) as scheduler:
        assert (await scheduler.fetch(5)).value == [0, 1, 2, 3, 4]
        assert [reply.value async for reply in scheduler.map([2, 3], ordered=True)] == [[0, 1], [0, 1, 2]]


async def test_a_repeated_attempt_continues_the_list(kind, log):
    async with RateLimitScheduler([numbers(kind, log, fails_at=(3, 2, 4))], retry=AGAIN) as scheduler:
        reply = await scheduler.fetch(6)
    assert reply.value == [0, 1, 2, 3, 4, 5]
    assert reply.attempts == 4


async def test_another_backend_begins_a_list_of_its_own(kind, log):
    other = Log()
    backends = [numbers(kind, log, fails_at=(3,) * 9, name="first"), numbers(kind, other, first=10, name="second")]
    async with RateLimitScheduler(backends, retry=AGAIN) as scheduler:
        reply = await scheduler.fetch(5)
    assert reply.backend == "second"
    assert reply.value == [10, 11, 12, 13, 14]


# ---- A stream


async def test_a_stream_gives_each_item_as_it_comes(kind, log):
    backend = numbers(kind, log)
    async with RateLimitScheduler([backend]) as scheduler:
        assert [item async for item in backend.stream(scheduler, 500, buffer=3)] == list(range(500))
        stream = backend.stream(scheduler, 0)
        assert [item async for item in stream] == []
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert scheduler.ledger().delivered == 2


@pytest.mark.parametrize("isolation", ["worker", "task"])
async def test_each_item_comes_once_though_attempts_are_repeated(isolation, kind, log):
    backend = numbers(kind, log, fails_at=(7, 3, 20, 39))
    async with RateLimitScheduler([backend], retry=AGAIN, isolation=isolation) as scheduler:
        assert [item async for item in backend.stream(scheduler, 40, buffer=4)] == list(range(40))
    assert log.attempts == 5


async def test_reading_waits_while_the_buffer_is_full(kind, log):
    backend = numbers(kind, log)
    async with RateLimitScheduler([backend]) as scheduler, backend.stream(scheduler, 100, buffer=5) as stream:
        assert await anext(stream) == 0
        await until(lambda: len(log.offered) == 7)  # five are kept, the next one waits
        await asyncio.sleep(0.02)
        assert len(log.offered) == 7
        assert [item async for item in stream] == list(range(1, 100))


async def test_what_the_request_fails_with_is_raised_after_the_items(kind, log):
    backend = numbers(kind, log, fails_at=(3,))
    async with RateLimitScheduler([backend], retry=NEVER) as scheduler:
        stream = backend.stream(scheduler, 10)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(RequestFailedError, match="the request for 10 failed") as failed:
            await anext(stream)
        assert failed.value.target == 10
        assert isinstance(failed.value.__cause__, ConnectionError)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_deadline_ends_a_stream_that_nobody_reads(kind, log):
    backend = numbers(kind, log)
    async with RateLimitScheduler([backend]) as scheduler:
        stream = backend.stream(scheduler, 100, buffer=2, timeout=0.05)
        assert await anext(stream) == 0
        await until(log.stopped.is_set)
        assert [await anext(stream), await anext(stream)] == [1, 2]
        with pytest.raises(DeadlineExceededError):
            await anext(stream)


LEAVING = ["async with", "aclose", "break", "freed"]


@pytest.mark.parametrize("way", LEAVING)
async def test_leaving_cancels_and_the_handler_ends_between_two_items(way, kind, log):
    backend = numbers(kind, log)
    async with RateLimitScheduler([backend]) as scheduler:
        match way:
            case "async with":
                async with backend.stream(scheduler, 10**9, buffer=2) as stream:
                    assert await anext(stream) == 0
            case "aclose":
                stream = backend.stream(scheduler, 10**9, buffer=2)
                assert await anext(stream) == 0
                await stream.aclose()
                await stream.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            case "break":
                async for item in backend.stream(scheduler, 10**9, buffer=2):
                    assert item == 0
                    break
            case "freed":
                stream = backend.stream(scheduler, 10**9, buffer=2)
                assert await anext(stream) == 0
                del stream
        await until(log.stopped.is_set)
        await until(lambda: scheduler.snapshot().backends["numbers"].in_flight == 0)
        assert scheduler.ledger().cancelled == 1


async def test_leaving_while_a_stream_waits_to_be_accepted_ends_it(kind, log):
    gate = asyncio.Event()

    async def handle(request):
        await gate.wait()

    backend = numbers(kind, log)
    async with RateLimitScheduler([ItemBackend("gated", handle), backend], capacity=1) as scheduler:
        ticket = await scheduler.submit("x", backends="gated")
        stream = backend.stream(scheduler, 5)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        gate.set()
        await ticket
        with pytest.raises(StopAsyncIteration):
            async with asyncio.timeout(10):
                await reading
        assert log.offered == []


async def test_a_cancelled_read_loses_no_item(kind, log):
    gate = threading.Event()

    def handle(request):
        items = items_of(request)
        for number in range(3):
            gate.wait(10)
            items.offer_blocking(request, number, number)
        return items.value

    backend = ItemBackend("gated", handle)
    async with RateLimitScheduler([backend]) as scheduler, backend.stream(scheduler, "x") as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(stream)
        gate.set()
        assert [item async for item in stream] == [0, 1, 2]


async def test_one_task_reads_a_stream(log):
    gate = threading.Event()

    def handle(request):
        gate.wait(10)
        return items_of(request).offer_blocking(request, 1, 1)

    backend = ItemBackend("gated", handle)
    async with RateLimitScheduler([backend]) as scheduler, backend.stream(scheduler, "x") as stream:
        first = asyncio.ensure_future(anext(stream))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="another task waits"):
                await asyncio.sleep(0) or await anext(stream)
        gate.set()
        assert await first == 1


async def test_a_scheduler_that_drains_reads_to_the_end_without_a_reader(kind, log):
    backend = numbers(kind, log)
    async with RateLimitScheduler([backend]) as scheduler:
        stream = backend.stream(scheduler, 200, buffer=2)
        assert await anext(stream) == 0
    assert [item async for item in stream] == list(range(1, 200))


async def test_a_scheduler_that_closes_ends_its_streams(kind, log):
    backend = numbers(kind, log)
    scheduler = RateLimitScheduler([backend])
    async with scheduler:
        stream = backend.stream(scheduler, 200, buffer=2)
        assert await anext(stream) == 0
        await until(lambda: len(log.offered) == 4)
        await scheduler.close()
        assert [await anext(stream), await anext(stream)] == [1, 2]
        with pytest.raises(SchedulerClosedError):
            await anext(stream)
        await until(log.stopped.is_set)
        with pytest.raises(SchedulerClosedError):
            await anext(backend.stream(scheduler, 1))


async def test_a_thread_whose_attempt_timed_out_hands_nothing_over(log):
    """The next attempt begins while the thread of the first one is busy elsewhere; that one then finds that it is over."""
    gate, told = threading.Event(), []

    def handle(request):
        items = items_of(request)
        items.offer_blocking(request, 0, 0)
        if request.attempt == 1:
            gate.wait(10)
            told.append(items.offer_blocking(request, "late", "late"))
            return None
        items.offer_blocking(request, 1, 1)
        gate.set()
        return items.value

    backend = ItemBackend("slow", handle, BackendQuota(concurrency=2), timeout=0.05)
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        assert [item async for item in backend.stream(scheduler, "x")] == [0, 1]
        await until(lambda: told)
    assert told == [False]


async def test_a_stream_says_the_host_of_its_target(log):
    seen = []

    async def handle(request):
        seen.append(request.scopes)

    backend = ItemBackend("web", handle, "100/s per host")
    async with RateLimitScheduler([backend]) as scheduler:
        assert [item async for item in backend.stream(scheduler, "https://one.example/x?key=secret")] == []
        assert [item async for item in backend.stream(scheduler, "x", scopes={"host": "two.example"})] == []
        with pytest.raises(ConfigError, match="host"):
            await anext(backend.stream(scheduler, "x"))
    assert seen == [{"host": "one.example"}, {"host": "two.example"}]


async def test_options_that_a_stream_cannot_have_are_refused(log):
    backend = numbers("on the loop", log)
    async with RateLimitScheduler([backend]) as scheduler:
        for options in ({"unique": "x"}, {"backends": "numbers"}, {"buffer": 0}):
            with pytest.raises(ConfigError, match=next(iter(options))):
                backend.stream(scheduler, 1, **options)
        with pytest.raises(TypeError, match="urgent"):
            await anext(backend.stream(scheduler, 1, urgent=True))


async def test_a_stream_leaves_nothing_behind(kind, log):
    class Thing:
        """An item that can be seen to be freed."""

    refs = []

    def handle(request):
        items = items_of(request)
        for key in range(20):
            thing = Thing()
            refs.append(weakref.ref(thing))
            items.offer_blocking(request, key, thing)
        raise ConnectionError

    backend = ItemBackend("things", handle)
    async with RateLimitScheduler([backend], retry=NEVER) as scheduler:
        stream = backend.stream(scheduler, "x", buffer=2)
        for _ in range(20):
            await anext(stream)
        with pytest.raises(RequestFailedError):
            await anext(stream)
        streams = [weakref.ref(stream)]
        del stream
        async with asyncio.timeout(10):
            while gc.collect() >= 0 and any(ref() is not None for ref in refs + streams):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
