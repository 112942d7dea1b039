"""Looks at pages every 30 seconds, and says what has changed: `python monitor.py https://a.example/ https://b.example/`.

It runs until Ctrl-C, which finishes what runs. `--interval 5` looks more often.
"""

import argparse
from contextlib import suppress

from tidegate import ContinuousCollector, RequestCancelledError, run
from tidegate.backends.http import HttpBackend


async def main(scheduler):
    collector = ContinuousCollector(scheduler, options.urls, interval=options.interval)
    print(collector.feasibility())
    last = {}
    async for reply in collector:
        if isinstance(reply.error, RequestCancelledError):  # by Ctrl-C: the page has not changed
            continue
        now = reply.value.text if reply.ok else f"{type(reply.error).__name__}: {reply.error}"
        if last.get(reply.target) != now:
            print("changed" if reply.target in last else "first", reply.target, now[:60])
        last[reply.target] = now
    print(f"{collector.statistics().delivered} polls, late by {collector.statistics().lag.p99:.3f} s at most, but for 1 %")


parser = argparse.ArgumentParser()
parser.add_argument("urls", nargs="+")
parser.add_argument("--interval", type=float, default=30)
options = parser.parse_args()

with suppress(KeyboardInterrupt):
    run(main, [HttpBackend("web", "{target}", "5/s per host")])
