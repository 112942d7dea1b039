"""Three strict servers on loopback, in a process of their own so that they cost the collecting process nothing.

Run as `python -m tidegate._demo.servers`: prints `{name: port}` as one line of JSON, answers `GET /<target>` on each port and
`GET /stats` on any, and ends when its standard input closes.

What a server *allows* is what it would have accepted from a client that always had more to send and knew its state: the
closed form of its limit, over the time in which there was demand. That time begins with the server's first request and
ends when the last target arrives that had not been sent to any of the three before: until then there was something to
send. What of it was *used* is what the limit let through in the same time. Nothing is subtracted for round trips, timers or
start-up; only what a server began to allow in the last quarter second of demand counts as far as it was used, since a window
that reopens then admits forty at once, and there need not be forty left.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from time import monotonic_ns
from typing import Protocol

from aiohttp import web

SECOND = 1_000_000_000
GRACE = SECOND // 4
LATENCY = (0.005, 0.020)
"""Seconds that a healthy server takes to answer, uniform."""


class Policy(Protocol):
    """How a server counts; instants and spans in nanoseconds."""

    def admit(self, now: int) -> bool:
        """Count a request that arrives at `now`, or refuse it."""

    def allowed(self, span: int) -> int:
        """The most that is ever accepted in the `span` after the first request, its two ends included."""


class SlidingWindow:
    """Accepts at most `amount` requests in any `period`: a log of what it accepted."""

    def __init__(self, amount: int, period: float) -> None:
        self.amount = amount
        self.period = round(period * SECOND)
        self._accepted: deque[int] = deque()

    def admit(self, now: int) -> bool:
        while self._accepted and self._accepted[0] <= now - self.period:
            self._accepted.popleft()
        if len(self._accepted) == self.amount:
            return False
        self._accepted.append(now)
        return True

    def allowed(self, span: int) -> int:
        return self.amount * (span // self.period + 1)


class TokenBucket:
    """Holds `burst` tokens, one more every `1 / rate` seconds, continuously; a request takes one."""

    def __init__(self, rate: float, burst: int) -> None:
        self.interval = round(SECOND / rate)
        self.burst = burst
        self._full_at = 0  # when it will hold `burst` again: the same state as a count of tokens, in integers

    def admit(self, now: int) -> bool:
        full_at = max(self._full_at, now) + self.interval
        if full_at > now + self.burst * self.interval:
            return False
        self._full_at = full_at
        return True

    def allowed(self, span: int) -> int:
        return self.burst + span // self.interval


@dataclass
class Illness:
    """For `length` seconds, from `start` seconds after the first request: answers late, and with 503."""

    start: float
    length: float
    delay: tuple[float, float]

    def at(self, since_first: int) -> bool:
        """Whether it lasts, this many nanoseconds after the first request."""
        return self.start * SECOND <= since_first < (self.start + self.length) * SECOND


@dataclass
class Server:
    """One server's limit and its counts; every request is exactly one of accepted, rejected, failed."""

    name: str
    quota: str  # as a client declares it
    policy: Policy
    illness: Illness | None = None
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    used: int = 0  # passed the limit by the end of demand
    first_at: int | None = None

    @property
    def passed(self) -> int:
        """What the limit let through, whether it was then answered or failed."""
        return self.accepted + self.failed


@dataclass
class Fleet:
    """The servers, and the targets that have arrived anywhere."""

    servers: list[Server]
    seen: set[str] = field(default_factory=set)
    demand_until: int = 0

    async def answer(self, server: Server, request: web.Request) -> web.Response:
        """Count one request on arrival, then take the time to answer it."""
        now = monotonic_ns()
        first_at = server.first_at = now if server.first_at is None else server.first_at
        admitted = server.policy.admit(now)
        ill = server.illness is not None and server.illness.at(now - first_at)
        if not admitted:
            server.rejected += 1
        elif ill:
            server.failed += 1
        else:
            server.accepted += 1
        self._note(request.path, now)
        if not admitted:
            return web.json_response({"error": "too many requests"}, status=429, headers={"Retry-After": "1"})
        await asyncio.sleep(random.uniform(*(server.illness.delay if ill and server.illness else LATENCY)))  # noqa: S311
        if ill:
            return web.json_response({"error": "out of order"}, status=503)
        return web.json_response({"target": request.match_info["target"], "server": server.name})

    def _note(self, target: str, now: int) -> None:
        """A target that was never sent before proves that until now there was demand, for every server."""
        if target not in self.seen:
            self.seen.add(target)
            self.demand_until = now
            for server in self.servers:
                server.used = server.passed

    async def stats(self, _: web.Request) -> web.Response:
        """The counts, and what each server allowed while there was demand."""
        return web.json_response({server.name: self._figures(server) for server in self.servers})

    def _figures(self, server: Server) -> dict[str, int | float]:
        span = -1 if server.first_at is None else self.demand_until - server.first_at
        return {
            "accepted": server.accepted,
            "rejected": server.rejected,
            "failed": server.failed,
            "used": server.used,
            "allowed": max(server.policy.allowed(max(span - GRACE, 0)), server.used) if span >= 0 else 0,
            "seconds": max(span, 0) / SECOND,
        }


def fleet() -> Fleet:
    """The demo's servers: two that do what they declare, and one that falls ill for a while."""
    return Fleet([
        Server("window", "40/4s", SlidingWindow(40, 4)),
        Server("bucket", "6/s burst 12", TokenBucket(6, 12)),
        Server("sick", "10/4s", SlidingWindow(10, 4), Illness(7, 8, (0.5, 1.5))),
    ])  # fmt: skip


async def serve() -> None:
    """Listen until standard input closes."""
    servers = fleet()
    runners = []
    ports = {}
    for server in servers.servers:
        app = web.Application()
        app.add_routes([web.get("/stats", servers.stats), web.get("/{target}", partial(servers.answer, server))])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        ports[server.name] = runner.addresses[0][1]
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    await _end_of_input()
    for runner in runners:
        await runner.cleanup()


async def _end_of_input() -> None:
    """Return when whoever started this process has closed its end, or is gone."""
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
