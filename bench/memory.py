"""What a pending request takes: resident memory of a process of its own, before and after a million of them."""

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from itertools import repeat
from pathlib import Path

from measure import Row

from tidegate import Backend, RateLimitScheduler, _core

MANY = 1_000_000
# A parked task takes about a kilobyte: a tenth of a million is enough to see.
TASKS = 100_000


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def _never(request):
    await asyncio.Event().wait()


def _waiting() -> RateLimitScheduler:
    """A scheduler whose only backend admits one request a day."""
    return RateLimitScheduler([Backend("api", _never, "1/d", timeout=None)])


async def tickets() -> tuple[int, int]:
    """`submit_many`: each request has a ticket."""
    targets = list(repeat(None, MANY))
    scheduler = _waiting()
    await scheduler.__aenter__()
    before = resident()
    kept = await scheduler.submit_many(targets)
    return resident() - before, len(kept)


async def streamed() -> tuple[int, int]:
    """`map`: no tickets, only the engine's entry and what Python gave for the request."""
    scheduler = _waiting()
    await scheduler.__aenter__()
    replies = scheduler.map(list(repeat(None, MANY)), ahead=MANY)
    before = resident()
    first = asyncio.ensure_future(anext(replies))
    await asyncio.sleep(0.1)
    assert not first.done()
    return resident() - before, scheduler.ledger().pending


async def heap() -> tuple[int, int]:
    """A heap of tuples."""
    before = resident()
    kept = [(128, sequence, None) for sequence in range(MANY)]
    return resident() - before, len(kept)


async def tasks() -> tuple[int, int]:
    """A task for each, parked on its future."""
    before = resident()
    loop = asyncio.get_running_loop()

    async def parked() -> None:
        await loop.create_future()

    kept = [asyncio.create_task(parked()) for _ in range(TASKS)]
    await asyncio.sleep(0)
    return resident() - before, len(kept)


CASES: dict[str, Callable[[], Awaitable[tuple[int, int]]]] = {
    "tickets": tickets,
    "streamed": streamed,
    "heap": heap,
    "tasks": tasks,
}


def rows() -> list[Row]:
    """Measure every case in a process of its own."""
    each = {case: _measured(case) for case in CASES}
    engine = float(_core.BYTES_PER_REQUEST)

    def row(what: str, case: str) -> Row:
        return Row("memory", what, each[case], "bytes")

    def share(what: str, theirs: str) -> Row:
        return Row("memory", what, each["tickets"] / each[theirs])

    return [
        Row("memory", "an entry of the engine", engine, "bytes", "<= 64", reached=engine <= 64),
        row("a pending request of map, in all", "streamed"),
        row("a pending request with its ticket, in all", "tickets"),
        row("a tuple in a heap", "heap"),
        row("a parked task", "tasks"),
        share("  with its ticket against a tuple in a heap", "heap"),
        share("  with its ticket against a parked task", "tasks"),
    ]


def _measured(case: str) -> float:
    run = subprocess.run([sys.executable, Path(__file__), case], capture_output=True, text=True, check=True)
    taken, count = json.loads(run.stdout)
    return taken / count


async def _measure() -> None:
    """Print what one case takes, and leave without tidying up: a million of anything is slow to free."""
    print(json.dumps(await CASES[sys.argv[1]]()), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_measure())
