"""A backend that asks a reference server, over a line that takes time."""

import random
from collections.abc import Callable, Sequence

from tidegate import _core
from tidegate._backend import Backend
from tidegate._clock import ManualClock
from tidegate._errors import BackendRateLimitedError, ConfigError
from tidegate._quota import BackendQuota, is_number
from tidegate.testing.servers import Server


class FakeBackend(Backend):
    """A backend whose attempts travel to a server in virtual time, are let through or rejected there, and travel back.

    The server counts one unit an attempt.

    Args:
        name: As of any backend.
        server: Who counts; None for one that lets everything through.
        quota: What the client believes that it allows.
        clock: The scheduler's clock.
        delay: Seconds each way; two numbers for anything between them.
        service: Seconds between counting a message and answering it.
        tells: A rejection says when to come back.
        reply: What it answers to a target; by default the target itself. What it raises, the attempt raises.
        accounts: As of any backend. They share the server: give several backends if each account has one.
        seed: Of the delays: the same ones each time.

    Raises:
        ConfigError: An argument is out of range.

    Attributes:
        server: The server, with its counts.

    Example:
        >>> import asyncio
        >>> from tidegate import RateLimitScheduler
        >>> from tidegate.testing import servers
        >>> async def main():
        ...     clock = ManualClock()
        ...     backend = FakeBackend("api", servers.SlidingWindow(10, 1), "10/s", clock=clock, delay=(0.02, 0.06))
        ...     async with RateLimitScheduler([backend], clock=clock) as scheduler:
        ...         await scheduler.submit_many(range(30))
        ...         await clock.run_until_idle()
        ...     return backend.server, round(clock.time(), 1)
        >>> asyncio.run(main())
        (<SlidingWindow: 30 accepted, 0 rejected>, 2.3)
    """

    def __init__(
        self,
        name: str,
        server: Server | None = None,
        quota: BackendQuota | str | None = None,
        *,
        clock: ManualClock,
        delay: float | tuple[float, float] = 0.0,
        service: float = 0.0,
        tells: bool = False,
        reply: Callable[[object], object] | None = None,
        accounts: Sequence[object] | None = None,
        seed: int = 0,
    ) -> None:
        if server is not None and not isinstance(server, Server):
            msg = f"server={server!r}: give one of tidegate.testing.servers, or None"
            raise ConfigError(msg, option="server", value=server)
        if not isinstance(clock, ManualClock):
            msg = f"clock={clock!r}: give the ManualClock that the scheduler has"
            raise ConfigError(msg, option="clock", value=clock)
        least, most = delay if isinstance(delay, tuple) else (delay, delay)
        if not (is_number(least) and is_number(most) and 0 <= least <= most):
            msg = f"delay={delay!r}: give seconds of at least 0, or two numbers of which the second is not less"
            raise ConfigError(msg, option="delay", value=delay)
        if not is_number(service) or service < 0:
            msg = f"service={service!r}: give seconds of at least 0"
            raise ConfigError(msg, option="service", value=service)
        super().__init__(name, self._attempt, quota, timeout=None, accounts=accounts)
        self.server = Server() if server is None else server
        self._clock, self._delay, self._service, self._tells, self._reply = clock, (least, most), service, tells, reply
        self._random = random.Random(seed)  # noqa: S311 - of a test

    async def _attempt(self, request: _core.Request) -> object:
        await self._travel()
        answer = self.server.receive(self._clock)
        if not answer.ok:
            await self._travel()
            retry_after = answer.retry_after if self._tells else None
            request.ack(429, retry_after=retry_after)
            msg = "the server let it not through"
            raise BackendRateLimitedError(msg, retry_after=retry_after)
        try:
            await self._clock.sleep(self._service)
        finally:
            self.server.leave()
        await self._travel()
        request.ack(200)
        return request.target if self._reply is None else self._reply(request.target)

    async def _travel(self) -> None:
        await self._clock.sleep(self._random.uniform(*self._delay))
