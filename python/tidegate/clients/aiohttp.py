"""Limits for aiohttp: a client middleware.

    session = aiohttp.ClientSession(middlewares=[Middleware("10/s")])

The session calls its middlewares for each message that it sends: so each redirect hop, what other middlewares repeat and the
silent second sending on a connection that the server had closed take a permit, and give it back when the body has ended. Put it
last: the last one is innermost. A request that names `middlewares=` of its own replaces those of its session.

aiohttp's `ClientTimeout.total`, 300 s by default, counts the wait for a permit too. With long waits give the session
`timeout=aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)`. A wait that takes half of it is logged, once, and the
cause of a `TimeoutError` that came while a request waited says so. A response that is dropped unread and unclosed keeps its
connection until the server ends the body or the session is closed, and its permit with it: use `async with session.get(...)`.

A 429 is your response, as without limits; but the limit is closed, and the next request waits as long as the server says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tidegate import Priority
from tidegate.clients._missing import missing
from tidegate.clients._permit import AsyncPermits, Source

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientResponse
    from aiohttp.client_middlewares import ClientHandlerType

__all__ = ["Middleware"]

log = logging.getLogger(__name__)

WAY_OUT = "aiohttp's total timeout counts the wait for a permit: use ClientTimeout(total=None, sock_connect=30, sock_read=60)"


class Middleware:
    """A middleware for `aiohttp.ClientSession(middlewares=[...])` that sends as the limits allow.

    Several sessions of one loop may share it. With a quota it runs a small scheduler on that loop; it ends with the loop, or
    with `close()`, or as an async context manager.

    Args:
        source: What the server allows: a text such as `"10/s burst 20"`, a `Limit` or a `BackendQuota`; or a
            `RateLimitScheduler` that runs on the session's loop, to share the limits of one of its backends.
        backend: The name of that backend. With a quota, what the log calls it.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: As of a request. Limits `per host` count by the host of each URL.

    Raises:
        ConfigError: An argument is out of range.
        ModuleNotFoundError: aiohttp is not installed.

    Cancellation: a message that waits is not charged; one that was sent is, and its connection is closed.

    Example:
        >>> import aiohttp
        >>> async def main():
        ...     async with aiohttp.ClientSession(middlewares=[Middleware("10/s burst 20")]) as session:
        ...         ...
    """

    def __init__(
        self,
        source: Source,
        /,
        backend: str | None = None,
        *,
        priority: int = Priority.NORMAL,
        scopes: Mapping[str, str] | None = None,
    ) -> None:
        if find_spec("aiohttp") is None:
            raise missing("aiohttp", "aiohttp>=3.12")
        self._permits = AsyncPermits(source, backend, priority, scopes)
        self._warned = False

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send one message when the limits allow it."""
        self._check_pool(request)
        started_at = monotonic()
        try:
            permit = await self._permits.take(str(request.url))
        except asyncio.CancelledError as error:
            # A timeout of aiohttp's is a cancellation in here, and what is raised for it has this as its cause.
            error.add_note(f"cancelled while it waited for a permit of {self._permits.backend}. If it timed out: {WAY_OUT}")
            self._check_wait(request, monotonic() - started_at)
            raise
        self._check_wait(request, permit.waited)
        try:
            response = await handler(request)
        except BaseException as error:
            permit.release(error)
            raise
        permit.answered(response.status, response.headers)
        if response.connection is None:  # the whole body came with the headers
            permit.release()
        else:
            response.connection.add_callback(permit.release)
        return response

    async def close(self) -> None:
        """End the scheduler of a quota. Requests that wait end with `SchedulerClosedError`."""
        await self._permits.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _check_pool(self, request: ClientRequest) -> None:
        pool = request.session.connector
        for option in ("limit", "limit_per_host"):
            self._permits.check_pool(getattr(pool, option, None), f"{option} of aiohttp.TCPConnector")

    def _check_wait(self, request: ClientRequest, seconds: float) -> None:
        """Warn, once, of a wait that took half of what aiohttp allows a request, or all."""
        total = request.session.timeout.total
        if total and seconds >= total / 2 and not self._warned:
            self._warned = True
            log.warning("a request waited %.3g s for %s, of %.3g s; %s", seconds, self._permits.backend, total, WAY_OUT)
