"""Targets that are due again and again: the schedule alone, for a million targets a second, and the whole, on the wall clock."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import uvloop
from measure import LOOPS, Row

from tidegate import Backend, BackendQuota, ContinuousCollector, RateLimitScheduler

ROOT = Path(__file__).parents[1]
TARGETS = 10_000
INTERVAL = 30.0
SECONDS = 120.0


def schedule_rows() -> list[Row]:
    """The engine's part, in a process without Python."""
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--package", "tidegate-core", "--example", "collector"]
    subprocess.run(command, cwd=ROOT, check=True)
    built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "examples" / "collector"
    found = json.loads(subprocess.run([built], capture_output=True, text=True, check=True).stdout)
    share, p99, most = 100 * found["share"], found["lag_p99_ms"], found["lag_max_ms"]
    return [
        Row("collector", f"{found['targets']:,} targets a second: one core", share, "%", "<= 15", reached=share <= 15),
        Row("collector", "  lag, 99th percentile", p99, "ms", "<= 2", reached=p99 <= 2),
        Row("collector", "  lag, most", most, "ms", "<= 20", reached=most <= 20),
    ]


async def collecting() -> ContinuousCollector:
    """Ten thousand targets every 30 s, for two minutes, of a handler that takes 10 ms."""

    async def handler(request):
        await asyncio.sleep(0.01)

    async with RateLimitScheduler([Backend("api", handler, BackendQuota("1000/s", concurrency=64))]) as scheduler:
        collector = ContinuousCollector(scheduler, range(TARGETS), interval=INTERVAL)
        asyncio.get_running_loop().call_later(SECONDS, collector.end)
        async for _ in collector:
            pass
        return collector


def wall_rows(loop: str) -> list[Row]:
    """The whole of it, on one loop."""
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        statistics = runner.run(collecting()).statistics()
    name = f"{TARGETS:,} targets every {INTERVAL:.0f} s for {SECONDS:.0f} s: {loop}"
    return [
        Row("collector", f"{name}, lag, 99th percentile", statistics.lag.p99 * 1000, "ms"),
        Row("collector", "  lag, most", statistics.lag.max * 1000, "ms"),
        Row("collector", "  polls", statistics.delivered, ""),
        Row("collector", "  polls that were coalesced, skipped or failed", statistics.planned - statistics.delivered, ""),
    ]


def rows(loops: list[str]) -> list[Row]:
    """All of them."""
    return [*schedule_rows(), *(row for loop in loops for row in wall_rows(loop))]


if __name__ == "__main__":
    for each in rows(list(LOOPS)):
        print(each)
