"""Servers in virtual time that fail on demand, a load on them, and what is asked of every run."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from tidegate import Backend, BackendQuota, Event, LoadBalancer, RateLimitScheduler, Reply, Request
from tidegate.testing import ManualClock, servers

Fault = Callable[["Upstream", Request], Awaitable[None]]


class Upstream:
    """A strict server of `per_second`, which counts what arrives, and does what its fault says before it answers.

    A fault raises, waits, or returns: then the server answers as if it had none.
    """

    def __init__(
        self,
        clock: ManualClock,
        name: str,
        *,
        per_second: int = 20,
        latency: float = 0.05,
        fault: Fault | None = None,
        timeout: float = 2,
        concurrency: int = 10,
        accounts: Sequence[object] | None = None,
    ) -> None:
        self.clock, self.name, self.latency, self.fault = clock, name, latency, fault
        self.server = servers.SlidingWindow(per_second, 1)
        self.calls: list[float] = []  # when attempts came
        self.served: list[float] = []  # when they had an answer with a value
        self.now_in, self.most_in = 0, 0
        quota = BackendQuota(f"{per_second}/s", concurrency=concurrency)
        self.backend = Backend(name, self._attempt, quota, timeout=timeout, accounts=accounts)

    async def _attempt(self, request: Request) -> object:
        self.calls.append(self.clock.time())
        self.now_in += 1
        self.most_in = max(self.most_in, self.now_in)
        try:
            # All that arrives counts, whatever becomes of it. One that is asked too much is seen by `rejected`.
            self.server.receive(self.clock)
            if self.fault is not None:
                await self.fault(self, request)
            await self.clock.sleep(self.latency)
            request.ack(200)
            self.served.append(self.clock.time())
            return request.target
        finally:
            self.now_in -= 1

    def served_between(self, start: float, end: float) -> int:
        return sum(start <= at < end for at in self.served)

    def calls_between(self, start: float, end: float) -> int:
        return sum(start <= at < end for at in self.calls)


# Chooses by load alone. The other one leaves a backend that fails alone by itself, so that there is hardly anything to be told.
IN_TURN = LoadBalancer(strategy="least_in_flight")


class World:
    """Upstreams, a scheduler for them, and what it told."""

    def __init__(self, clock: ManualClock, upstreams: Sequence[Upstream], **options: Any) -> None:
        options.setdefault("balancer", IN_TURN)
        self.clock, self.upstreams = clock, upstreams
        self.scheduler = RateLimitScheduler([upstream.backend for upstream in upstreams], clock=clock, seed=1, **options)
        self.events: list[tuple[float, Event]] = []
        self.replies: list[Reply] = []
        self.ends: dict[object, float] = {}  # when a target's reply came
        self.starts: dict[object, float] = {}  # when it was submitted
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.scheduler.__aenter__()
        self._tasks.append(asyncio.create_task(self._listen()))
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.scheduler.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # what is pending still is told that it closes

    async def submit(self, targets: Sequence[object], **options: object) -> None:
        """Accept all of them now; their replies are kept as they come."""
        now = self.clock.time()
        tickets = await self.scheduler.submit_many(list(targets), **options)
        self.starts.update(dict.fromkeys(targets, now))
        self._tasks += [asyncio.create_task(self._keep(target, ticket)) for target, ticket in zip(targets, tickets, strict=True)]

    async def arrive(self, count: int, *, per_second: int, of: int = 5, **options: object) -> None:
        """Submit in groups of a few at a steady pace, and let that time pass."""
        first = len(self.starts)
        for number in range(first, first + count, of):
            await self.submit(range(number, number + of), **options)
            await self.clock.run_for(of / per_second)

    async def finish(self) -> None:
        """Let all that is pending come to its end."""
        await self.clock.run_until_idle()
        await asyncio.gather(*self._tasks[1:])

    def named(self, kind: str, backend: str | None = None) -> list[tuple[float, Event]]:
        return [(at, event) for at, event in self.events if event.kind == kind and backend in {None, event.backend}]

    def waits(self) -> list[float]:
        """From being accepted to the reply, sorted."""
        return sorted(self.ends[target] - at for target, at in self.starts.items())

    def check(self) -> None:
        """What every run has to keep: all was delivered, once, and no server was asked too much."""
        ledger = self.scheduler.ledger()
        assert ledger.balanced
        assert (ledger.dead, ledger.expired, ledger.cancelled) == (0, 0, 0)
        assert ledger.delivered == len(self.starts) == len(self.replies)
        assert Counter(reply.target for reply in self.replies) == Counter(list(self.starts))
        assert all(reply.ok and reply.value == reply.target for reply in self.replies)
        assert {upstream.name: upstream.server.rejected for upstream in self.upstreams} == {
            upstream.name: 0 for upstream in self.upstreams
        }

    async def _listen(self) -> None:
        async for event in self.scheduler.events():
            self.events.append((self.clock.time(), event))

    async def _keep(self, target: object, ticket: Awaitable[Reply]) -> None:
        reply = await ticket
        self.replies.append(reply)
        self.ends[target] = self.clock.time()


def p99(values: Sequence[float]) -> float:
    return values[len(values) * 99 // 100]


def most_within(instants: Sequence[float], span: float) -> int:
    """The most of some sorted instants that lie within any `span` of seconds."""
    most = first = 0
    for last, at in enumerate(instants):
        while at - instants[first] >= span:
            first += 1
        most = max(most, last - first + 1)
    return most


async def is_silent(upstream: Upstream, request: Request) -> None:
    await upstream.clock.sleep(1e6)


async def sends_headers_only(upstream: Upstream, request: Request) -> None:
    request.ack(200)
    await upstream.clock.sleep(1e6)


async def refuses(upstream: Upstream, request: Request) -> None:
    raise ConnectionRefusedError(111, "refused")


async def resets(upstream: Upstream, request: Request) -> None:
    await upstream.clock.sleep(upstream.latency / 2)
    raise ConnectionResetError(104, "reset by peer")


async def resets_in_body(upstream: Upstream, request: Request) -> None:
    await upstream.clock.sleep(upstream.latency)
    request.ack(200)
    raise ConnectionResetError(104, "reset by peer")


class StatusError(Exception):
    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers or {}


def answers(status: int, headers: dict[str, str] | None = None) -> Fault:
    async def fault(upstream: Upstream, request: Request) -> None:
        await upstream.clock.sleep(upstream.latency)
        raise StatusError(status, headers)

    return fault
