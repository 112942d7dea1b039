"""Waiting costs nothing: requests that wait for quota are no tasks, no timers, next to no processor time and few bytes."""

import asyncio
import json
import subprocess
import sys

import pytest

from tidegate import Backend, RateLimitScheduler
from tidegate.testing import ManualClock


async def echo(request):
    return request.target


class CountsTimers:
    """Mixed into a loop: how many of its timers are armed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.handles = []

    def call_later(self, *args, **kwargs):
        self.handles.append(super().call_later(*args, **kwargs))
        return self.handles[-1]

    def call_at(self, *args, **kwargs):
        handle = super().call_at(*args, **kwargs)
        if handle not in self.handles:
            self.handles.append(handle)
        return handle

    def armed(self):
        now = self.time()
        self.handles = [handle for handle in self.handles if not handle.cancelled() and handle.when() > now]
        return len(self.handles)


class CountingLoop(CountsTimers, asyncio.SelectorEventLoop):
    pass


async def tasks_and_timers(count, **options):
    """How many tasks and armed timers a loop has more when so many requests wait."""
    loop = asyncio.get_running_loop()
    async with RateLimitScheduler([Backend("api", echo, "2/h")]) as scheduler:
        await asyncio.gather(*await scheduler.submit_many(range(2)))
        before = len(asyncio.all_tasks()), loop.armed()
        await scheduler.submit_many(range(count), **options)
        for _ in range(5):
            await asyncio.sleep(0)
        assert scheduler.ledger().queued == count
        more = len(asyncio.all_tasks()) - before[0], loop.armed() - before[1]
        await scheduler.close()
    return more


@pytest.mark.parametrize(
    "count, options",
    [
        (100_000, {}),
        (10_000, {"timeout": 10_000}),
        (10_000, {"timeout": lambda target: 10_000 + target % 100, "priority": lambda target: target % 256}),
        (10_000, {"cost": lambda target: 1 + target % 2}),
    ],
    ids=["plain", "one deadline", "deadlines and priorities of their own", "costs"],
)
def test_no_task_and_no_timer_each(count, options):
    """A hundred thousand requests that wait have no task and no timer each, with deadlines of their own neither."""
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        tasks, timers = runner.run(tasks_and_timers(count, **options))
    assert abs(tasks) <= 2
    assert abs(timers) <= 2


async def test_they_are_served_all_the_same():
    """In virtual time the last of many requests is served when its limit says, however many waited."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo, "1000/s")], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(20_000))
        await clock.run_until_idle()
        assert (await tickets[-1]).ok
        assert scheduler.ledger().delivered == 20_000
        assert clock.time() == pytest.approx(19, abs=0.1)


# ---- What a process of its own measures

IDLE = """
import asyncio, json, os, sys, time
from tidegate import Backend, RateLimitScheduler

async def echo(request):
    return request.target

async def main(seconds):
    async with RateLimitScheduler([Backend("api", echo, "2/h")]) as scheduler:
        await scheduler.submit_many(range(100_000))
        await asyncio.sleep(0.2)
        before = time.process_time()
        await asyncio.sleep(seconds)
        spent = time.process_time() - before
        print(json.dumps({"milliseconds": 1000 * spent}), flush=True)
        os._exit(0)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main(2))
else:
    asyncio.run(main(2))
"""

MEMORY = """
import asyncio, gc, json, os, resource, sys
from tidegate import Backend, RateLimitScheduler

COUNT = 1_000_000

async def echo(request):
    return request.target

def resident():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

async def main():
    target = "one object for all, which is not what is measured"
    targets = [target] * COUNT
    async with RateLimitScheduler([Backend("api", echo, "2/h")]) as scheduler:
        before = resident()
        tickets = await scheduler.submit_many(targets)
        after = resident()
        assert scheduler.ledger().pending == COUNT
        kept = {"bytes with a ticket": (after - before) / COUNT}
        del tickets
        kept["bytes without"] = (resident() - before) / COUNT
        print(json.dumps(kept), flush=True)
        os._exit(0)  # to end a million requests is not what is measured

asyncio.run(main())
"""


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process):
    """What a program printed last, shown with the test's output."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = json.loads(output)
    print(*[f"{name}: {value:.2f}" for name, value in found.items()], sep=", ")
    return found


def test_processor_time_of_waiting():
    """While nothing is eligible, waiting costs less than 10 ms in 10 s; asserted at ten times that, and printed."""
    processes = {loop: start(IDLE, loop) for loop in ("asyncio", "uvloop")}
    for loop, process in processes.items():
        print(f"\n{loop}, 2 s: ", end="")
        assert result(process)["milliseconds"] < 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bytes_of_a_waiting_request():
    """A million waiting requests take a bounded number of bytes each, their tickets included; printed."""
    print()
    found = result(start(MEMORY))
    assert found["bytes with a ticket"] < 640
    assert found["bytes without"] <= found["bytes with a ticket"]
