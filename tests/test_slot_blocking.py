"""`slot_blocking`: a thread's own code under a backend's limits."""

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    ConfigError,
    DeadlineExceededError,
    Lease,
    Ledger,
    Priority,
    RateLimitScheduler,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock


class StatusError(Exception):
    """What an HTTP client raises."""

    def __init__(self, status, headers=None):
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers or {}


async def echo(request):
    return request.target


@pytest.fixture(autouse=True)
async def _limit():
    """Nothing here takes long: what hangs fails."""
    async with asyncio.timeout(20):
        yield


def counts(scheduler):
    """The ledger's counts that are not zero."""
    ledger = scheduler.ledger()
    assert ledger.balanced
    return {name: number for name in Ledger.__slots__ if (number := getattr(ledger, name))}


def state(scheduler, backend="api"):
    return scheduler.snapshot().backends[backend]


async def until(condition):
    """Wait for what another thread is about to bring about."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_lease():
    """The body has a lease of the backend; entering takes a permit, leaving gives the concurrency back."""

    def body():
        with scheduler.slot_blocking("api") as lease:
            assert isinstance(lease, Lease)
            assert (lease.backend, lease.account) == ("api", None)
            assert state(scheduler).in_flight == 1
            assert counts(scheduler) == {"accepted": 1, "leased": 1}

    async with RateLimitScheduler([Backend("api", echo, "5/h")]) as scheduler:
        await asyncio.to_thread(body)
        await until(lambda: counts(scheduler) == {"accepted": 1, "delivered": 1})
        assert state(scheduler).in_flight == 0
        assert state(scheduler).limits[0].used == 1


async def test_threads_share_the_limits_and_the_concurrency():
    """No more bodies run than the backend's concurrency, and no more start than its limits admit."""
    lock = threading.Lock()
    running, most, entered = 0, 0, 0

    def body():
        nonlocal running, most, entered
        with scheduler.slot_blocking("api"):
            with lock:
                running, entered = running + 1, entered + 1
                most = max(most, running)
            started.release()
            assert go.wait(20)
            with lock:
                running -= 1

    started, go = threading.Semaphore(0), threading.Event()
    async with RateLimitScheduler([Backend("api", echo, BackendQuota("5/h", concurrency=3))]) as scheduler:
        threads = [threading.Thread(target=body, daemon=True) for _ in range(5)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            await asyncio.to_thread(started.acquire)
        await until(lambda: counts(scheduler) == {"accepted": 5, "queued": 2, "leased": 3})
        go.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await until(lambda: state(scheduler).in_flight == 0)
        assert (most, entered) == (3, 5)
        assert state(scheduler).limits[0].available == 0


async def test_priority_and_cost():
    """The options mean what they mean for `slot`."""
    clock = ManualClock()
    order = []

    def body(name, **options):
        with scheduler.slot_blocking("api", **options):
            order.append(name)

    async with RateLimitScheduler([Backend("api", echo, "2/10s")], clock=clock) as scheduler, asyncio.TaskGroup() as tasks:
        async with scheduler.slot("api", cost=2):
            tasks.create_task(asyncio.to_thread(body, "normal"))
            await until(lambda: counts(scheduler).get("queued") == 1)
            tasks.create_task(asyncio.to_thread(body, "urgent", priority=Priority.HIGH, cost=2))
            await until(lambda: counts(scheduler).get("queued") == 2)
        while len(order) < 2 or state(scheduler).in_flight:
            await clock.advance(1)
            await asyncio.sleep(0.001)
    assert order == ["urgent", "normal"]


async def test_rejection_closes_the_limit():
    """A body that says or raises 429 closes the backend, for as long as the server says."""

    def saying(scheduler):
        with scheduler.slot_blocking("api") as lease:
            lease.ack(429, {"Retry-After": "10"})

    def raising(scheduler):
        with pytest.raises(StatusError), scheduler.slot_blocking("api"):
            raise StatusError(429, {"Retry-After": "10"})

    for body in (saying, raising):
        async with RateLimitScheduler([Backend("api", echo)], clock=ManualClock()) as scheduler:
            await asyncio.to_thread(body, scheduler)
            await until(lambda scheduler=scheduler: state(scheduler).state == "closed")


async def test_recharge():
    """A further message waits until the limits admit it."""
    clock = ManualClock()

    def body():
        with scheduler.slot_blocking("api") as lease:
            lease.recharge_blocking()
            waiting.set()
            lease.recharge_blocking(2)
            return clock.time()

    waiting = threading.Event()
    async with RateLimitScheduler([Backend("api", echo, "2/10s")], clock=clock) as scheduler:
        task = asyncio.create_task(asyncio.to_thread(body))
        await until(waiting.is_set)
        await clock.advance(1)
        assert not task.done()
        await until(lambda: state(scheduler).limits[0].used == 2)
        while not task.done():
            await clock.advance(1)
            await asyncio.sleep(0.001)
        assert await task >= 10


async def test_scopes():
    """A limit per host counts by what the slot names, which must name it."""

    def body():
        for host in ("a", "b"):
            with scheduler.slot_blocking("web", scopes={"host": host}):
                pass
        with pytest.raises(ConfigError, match="host"):
            scheduler.slot_blocking("web")

    async with RateLimitScheduler([Backend("web", echo, "1/h per host")]) as scheduler:
        await asyncio.to_thread(body)


async def test_timeout_while_it_waits():
    """`timeout` ends the wait for the permit."""

    def body():
        with pytest.raises(DeadlineExceededError) as caught, scheduler.slot_blocking("api", timeout=0.02):
            pytest.fail("it has no permit")
        return caught.value.stage

    async with RateLimitScheduler([Backend("api", echo, BackendQuota(concurrency=1))]) as scheduler, scheduler.slot("api"):
        assert await asyncio.to_thread(body) == "queued"
        assert counts(scheduler) == {"accepted": 2, "leased": 1, "expired": 1}


async def test_timeout_in_the_body():
    """A late body runs to its end, keeps its concurrency until then, and hears of it when it leaves."""

    def body():
        try:
            with scheduler.slot_blocking("api", timeout=0.01):
                assert late.wait(20)
                assert state(scheduler).strays == 1
        except DeadlineExceededError as error:
            return error.stage

    late = threading.Event()
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        task = asyncio.create_task(asyncio.to_thread(body))
        await until(lambda: counts(scheduler).get("expired") == 1)
        late.set()
        assert await task == "leased"
        await until(lambda: state(scheduler).in_flight == 0)


async def test_not_in_the_thread_of_the_loop():
    """The loop's thread is told to use `slot`; nothing is accepted."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        with pytest.raises(RuntimeError, match=r"use 'async with scheduler\.slot"), scheduler.slot_blocking("api"):
            pytest.fail("it would wait for itself")
        assert counts(scheduler) == {}


async def test_unknown_backend():
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        with pytest.raises(ConfigError, match="there is no such backend; there are api"):
            await asyncio.to_thread(scheduler.slot_blocking, "apy")


async def test_closed_while_it_waits():
    """Who waits for a permit when the scheduler is closed is told so; so is who comes later."""

    def body():
        with pytest.raises(SchedulerClosedError), scheduler.slot_blocking("api"):
            pytest.fail("it has no permit")

    async with RateLimitScheduler([Backend("api", echo, BackendQuota(concurrency=1))]) as scheduler:
        async with scheduler.slot("api"):
            task = asyncio.create_task(asyncio.to_thread(body))
            await until(lambda: counts(scheduler).get("queued") == 1)
            await scheduler.close()
            await task
        await asyncio.to_thread(body)


def test_loop_ends_while_it_waits():
    """Who waits for a permit of a loop that ends without closing the scheduler is told so."""

    def body():
        try:
            with scheduler.slot_blocking("api"):
                pytest.fail("it has no permit")
        except SchedulerClosedError as error:
            heard.append(error)

    async def main():
        await scheduler.__aenter__()
        await scheduler.slot("api").__aenter__()
        thread.start()
        await until(lambda: counts(scheduler).get("queued") == 1)

    heard = []
    scheduler = RateLimitScheduler([Backend("api", echo, BackendQuota(concurrency=1))])
    thread = threading.Thread(target=body, daemon=True)
    asyncio.run(main())
    thread.join(20)
    assert len(heard) == 1


async def test_left_in_another_thread_and_used_once():
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        slot = scheduler.slot_blocking("api")
        await asyncio.to_thread(slot.__enter__)
        assert state(scheduler).in_flight == 1
        await asyncio.to_thread(slot.__exit__, None, None, None)
        await until(lambda: state(scheduler).in_flight == 0)
        with pytest.raises(RuntimeError, match="a slot is used once"):
            await asyncio.to_thread(slot.__enter__)


async def test_dropped():
    """A slot that was entered and is dropped gives its permit back."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        slot = scheduler.slot_blocking("api")
        await asyncio.to_thread(slot.__enter__)
        dropped = weakref.ref(slot)
        del slot
        gc.collect()
        assert dropped() is None
        await until(lambda: state(scheduler).in_flight == 0)


async def test_error_keeps_nothing_alive():
    """An error of the wait is freed with who caught it, without the garbage collector."""

    def body():
        slot = scheduler.slot_blocking("api", timeout=0.001)
        try:
            slot.__enter__()
        except DeadlineExceededError as error:
            return weakref.ref(error)
        pytest.fail("it has a permit")

    async with RateLimitScheduler([Backend("api", echo, "1/h")]) as scheduler:
        await scheduler.fetch("first")
        gc.collect()
        gc.disable()
        try:
            caught = await asyncio.to_thread(body)
            await until(lambda: caught() is None)
        finally:
            gc.enable()


PROGRAM = """
import asyncio, sys, threading
from tidegate import Backend, BackendQuota, RateLimitScheduler

async def echo(request):
    return request.target

async def serve():
    global scheduler
    async with RateLimitScheduler([Backend("api", echo, BackendQuota("2/h", concurrency=1))]) as scheduler:
        held = scheduler.slot("api")
        await held.__aenter__()
        ready.set()
        for pending in (2, 1):  # the main thread waits; it was interrupted
            while scheduler.ledger().pending != pending:
                await asyncio.sleep(0.001)
            print(pending, "pending", flush=True)
        await held.__aexit__(None, None, None)
        async with scheduler.slot("api"):  # neither the concurrency nor the second unit went to it
            print("free", flush=True)

ready = threading.Event()
thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
thread.start()
ready.wait()
try:
    with scheduler.slot_blocking("api"):
        print("entered", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
thread.join(20)
"""


def test_interrupted_in_the_main_thread():
    """Ctrl-C ends the wait at once, and what was waited for goes to the next."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "2 pending\n"
        process.send_signal(signal.SIGINT)
        assert sorted(process.communicate(timeout=20)[0].splitlines()) == ["1 pending", "free", "interrupted"]
    assert process.returncode == 0
