"""One client, one server and one line: what is sent, and what the server says to it."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from conformance.clock import Clock
from conformance.grid import Declared, Line
from conformance.peers import Step
from tidegate import Backend, BackendQuota, BackendRateLimitedError, RateLimitScheduler, Request, Retry
from tidegate.testing import ManualClock, servers

# Tasks that wait for a permit of a peer at any time.
TASKS = 16


@dataclass(frozen=True)
class Outcome:
    """Messages that a server let through, and did not; and what it would have let through at best."""

    accepted: int
    rejected: int
    allowed: int

    @property
    def use(self) -> float:
        """The share that was used of what is allowed."""
        return self.accepted / self.allowed


def sent(step: Step, declared: Declared, seed: int) -> list[float]:
    """The instants at which a client sends that always has something to send.

    Each task takes a permit, sends, and takes the next one: it does not wait for the reply, so that a slow line holds nobody up.
    """
    clock = Clock(declared.start(seed))
    instants: list[float] = []

    async def task() -> None:
        while True:
            await step(lambda: instants.append(clock.time()))

    async def main() -> None:
        tasks = [asyncio.create_task(task()) for _ in range(TASKS)]
        try:
            async with asyncio.timeout(declared.shape.horizon):
                await asyncio.gather(*tasks)
        except TimeoutError:
            pass

    clock.run(main())
    return instants


def delivered(instants: Sequence[float], declared: Declared, line: Line, seed: int) -> Outcome:
    """What the server says to messages that were sent at these instants, in the order in which they arrive."""
    dice = random.Random(seed)
    server = declared.server(dice)
    for arrival in sorted(instant + line(dice)[0] for instant in instants):
        server.receive(arrival)
    return Outcome(server.accepted, server.rejected, declared.allowed())


def tidegate(declared: Declared, line: Line, seed: int) -> Outcome:
    """The same for Tidegate, which sends by what comes back."""
    dice = random.Random(seed)
    server = declared.server(dice)
    asyncio.run(_collect(declared, line, server, dice, seed))
    return Outcome(server.accepted, server.rejected, declared.allowed())


async def _collect(declared: Declared, line: Line, server: servers.Server, dice: random.Random, seed: int) -> None:
    clock = ManualClock()
    clock.advance(declared.start(seed))
    flying: list[float] = []

    async def handler(request: Request) -> None:
        there, back = line(dice)
        arrival = clock.time() + there
        flying.append(arrival)
        await clock.sleep(there)
        flying.remove(arrival)
        answer = server.receive(clock)
        await clock.sleep(back)
        if not answer.ok:
            request.ack(429, retry_after=answer.retry_after)
            msg = "rejected"
            raise BackendRateLimitedError(msg, retry_after=answer.retry_after)
        request.ack(200)

    backend = Backend("server", handler, BackendQuota(*declared.limits(), concurrency=None), timeout=None)
    async with RateLimitScheduler([backend], clock=clock, retry=Retry(attempts=1), capacity=10**6) as scheduler:
        for _ in range(declared.allowed() + 1):
            scheduler.submit_nowait(None)
        await clock.run_for(declared.shape.horizon)
        await scheduler.close()
    for arrival in sorted(flying):  # what was sent arrives
        server.receive(arrival)
