"""Event loops: asyncio and uvloop, several schedulers in one loop, several loops in several threads."""

import asyncio
import concurrent.futures
import subprocess
import sys
import threading

import pytest

from tidegate import Backend, BackendQuota, RateLimitScheduler, SchedulerClosedError

uvloop = pytest.importorskip("uvloop")


async def echo(request):
    return request.target


async def work(count):
    """A program of its own: what it collected, sorted."""

    async def fetch(request):
        await asyncio.sleep(0)
        return request.target

    async with RateLimitScheduler([Backend("api", fetch, "100000/s")]) as scheduler:
        values = sorted([reply.value async for reply in scheduler.map(range(count))])
    assert scheduler.ledger().delivered == count
    return values


async def test_loop_of_the_test(request):
    """These tests run on both loops."""
    name = type(asyncio.get_running_loop()).__module__
    assert name.partition(".")[0] == ("uvloop" if "uvloop" in request.node.name else "asyncio")


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_runner(factory):
    """A scheduler works in whatever loop it is entered, and leaves nothing behind that would keep it from closing."""
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(work(100)) == list(range(100))
        assert runner.run(work(10)) == list(range(10))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks():
    """A loop that starts each task at once changes nothing."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_task_factory(asyncio.eager_task_factory)
        assert runner.run(work(100)) == list(range(100))


async def test_two_schedulers():
    """Two schedulers in one loop know nothing of each other, also with one and the same backend."""
    backend = Backend("api", echo, BackendQuota("5/h", concurrency=2))
    async with RateLimitScheduler([backend]) as first, RateLimitScheduler([backend]) as second:
        for scheduler in (first, second):
            await asyncio.gather(*await scheduler.submit_many(range(5)))
        assert [scheduler.snapshot().backends["api"].limits[0].used for scheduler in (first, second)] == [5, 5]
        await first.close()
        with pytest.raises(SchedulerClosedError):
            await first.submit("late")
        async with second.map([1]) as stream:
            assert second.ledger().balanced
        await stream.aclose()


async def test_scheduler_in_a_handler():
    """A handler may send requests through another scheduler, and through its own."""
    async with RateLimitScheduler([Backend("inner", echo)]) as inner:

        async def fetch(request):
            reply = await inner.fetch(request.target + 1)
            if request.target == 0:
                return (await outer.fetch(reply.value)).value
            return reply.value

        async with RateLimitScheduler([Backend("outer", fetch)]) as outer:
            assert (await outer.fetch(0)).value == 2


@pytest.mark.parametrize("factories", [(asyncio.new_event_loop, uvloop.new_event_loop), (asyncio.new_event_loop,) * 2])
def test_loops_in_threads(factories):
    """Schedulers in several threads, each with a loop of its own, run at once."""
    barrier = threading.Barrier(len(factories))

    def run(factory):
        with asyncio.Runner(loop_factory=factory) as runner:
            barrier.wait(10)
            return runner.run(work(1000))

    with concurrent.futures.ThreadPoolExecutor(len(factories)) as pool:
        assert list(pool.map(run, factories)) == [list(range(1000))] * len(factories)


def test_one_scheduler_fed_from_another_loop():
    """A program in one loop hands requests to a scheduler in another by `submit_threadsafe`, and awaits them."""
    ready: concurrent.futures.Future[RateLimitScheduler] = concurrent.futures.Future()
    finished = threading.Event()

    async def serve():
        async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
            ready.set_result(scheduler)
            await asyncio.to_thread(finished.wait, 10)

    async def ask():
        scheduler = ready.result(timeout=10)
        futures = [asyncio.wrap_future(scheduler.submit_threadsafe(number)) for number in range(100)]
        return [reply.value for reply in await asyncio.gather(*futures)]

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert uvloop.run(ask()) == list(range(100))
    finally:
        finished.set()
        thread.join(10)


def test_threads_after_the_loop_was_closed():
    """A thread that comes when the loop is gone is refused; it does not hang."""
    kept = []

    async def main():
        scheduler = RateLimitScheduler([Backend("api", echo)])
        await scheduler.__aenter__()
        kept.append(scheduler)  # never left: a program that ended in some other way

    asyncio.run(main())
    (scheduler,) = kept
    with pytest.raises(SchedulerClosedError):
        scheduler.submit_threadsafe("late").result(timeout=10)


PROGRAM = """
import asyncio
from tidegate import Backend, RateLimitScheduler

def stuck(request):
    import threading
    threading.Event().wait()

async def fetch(request):
    await asyncio.sleep(1000)

async def main():
    scheduler = RateLimitScheduler([Backend("a", stuck), Backend("b", fetch, "1/h")])
    await scheduler.__aenter__()
    tickets = await scheduler.submit_many(range(5), backends="a") + await scheduler.submit_many(range(5), backends="b")
    await asyncio.sleep(0.05)
    print("ended")

asyncio.run(main())
"""


def test_scheduler_that_is_never_left():
    """A program that forgets to leave its scheduler ends all the same, with handlers running and threads stuck."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n")
    assert "Traceback" not in done.stderr, done.stderr


async def test_long_lived_scheduler():
    """A scheduler may be used for a long time and by many tasks without keeping anything of what has ended."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:

        async def user(number):
            for index in range(50):
                assert (await scheduler.fetch((number, index), timeout=100 + index)).value == (number, index)

        await asyncio.gather(*[user(number) for number in range(20)])
        assert scheduler.ledger().delivered == 1000
        assert scheduler.ledger().pending == 0
