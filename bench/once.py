"""Run one contender once, for a profiler or an instruction counter: `python bench/once.py dispatch 20000`."""

import argparse
import asyncio
import os

import workload
from measure import LOOPS

RUNS = {
    "bare": workload.bare,
    "idiom": workload.idiom,
    "dispatch": workload.dispatched,
    "map": workload.mapped,
    "fetch": workload.fetched_one_at_a_time,
}


def main() -> None:
    """Parse, run, print nanoseconds an operation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("count", type=int)
    parser.add_argument("--kind", choices=workload.KINDS, default="does not suspend")
    parser.add_argument("--loop", choices=LOOPS, default="uvloop")
    parser.add_argument("--at-once", type=int, default=64)
    given = parser.parse_args()
    workload.warm = False  # all is counted
    targets = list(range(given.count))
    with asyncio.Runner(loop_factory=LOOPS[given.loop]) as runner:
        nanos = runner.run(RUNS[given.what](given.kind, targets, given.at_once))
    print(f"{nanos / given.count:.0f} ns", flush=True)
    os._exit(0)  # what the interpreter does at its end is not counted


main()
