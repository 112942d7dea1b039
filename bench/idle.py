"""What a hundred thousand requests cost while they wait for quota: CPU, tasks and timers, in a process of its own."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import uvloop
from measure import Row

from tidegate import Backend, RateLimitScheduler

WAITING = 100_000
SECONDS = 10


class Counting:
    """Counts the timers that are asked of a loop."""

    timers = 0

    def call_at(self, *args, **options):
        """As the loop."""
        self.timers += 1
        return super().call_at(*args, **options)

    def call_later(self, *args, **options):
        """As the loop."""
        self.timers += 1
        return super().call_later(*args, **options)


class CountingAsyncio(Counting, asyncio.SelectorEventLoop):
    """Asyncio's loop."""


class CountingUvloop(Counting, uvloop.Loop):
    """Uvloop's."""


LOOPS = {"asyncio": CountingAsyncio, "uvloop": CountingUvloop}


async def waiting() -> tuple[float, int, int]:
    """Seconds of CPU in ten, tasks beside this one, and timers armed for it all."""

    async def handler(request):
        return None

    loop = asyncio.get_running_loop()
    async with RateLimitScheduler([Backend("api", handler, "1/d")]) as scheduler:
        tickets = await scheduler.submit_many(range(WAITING), timeout=30 * 86_400)
        await asyncio.sleep(0.2)  # the first goes, the others find out that nothing is left
        armed = loop.timers
        before = time.process_time()
        await asyncio.sleep(SECONDS)
        used = time.process_time() - before
        found = used, len(asyncio.all_tasks()) - 1, armed - 1
        assert scheduler.ledger().queued == len(tickets) - 1
        await scheduler.close()
    return found


def rows() -> list[Row]:
    """Measure both loops at once, each in a process of its own: they sleep."""
    runs = {loop: subprocess.Popen([sys.executable, Path(__file__), loop], stdout=subprocess.PIPE, text=True) for loop in LOOPS}
    found = []
    for loop, run in runs.items():
        used, tasks, timers = json.loads(run.communicate()[0])
        millis = used * 1000
        found += [
            Row("idle", f"CPU in {SECONDS} s while {WAITING:,} wait: {loop}", millis, "ms", "< 10", reached=millis < 10),
            Row("idle", "  tasks", tasks, ""),
            Row("idle", "  timers ever armed", timers, ""),
        ]
    return found


def main() -> None:
    """Measure one loop."""
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
        print(json.dumps(runner.run(waiting())))


if __name__ == "__main__":
    main()
