"""Limits for niquests: an adapter, mounted for the URLs that it is for.

    session = niquests.Session()
    session.mount("https://api.example/", Adapter("10/s"))

    session = niquests.AsyncSession()
    session.mount("https://api.example/", AsyncAdapter("10/s"))

The session calls its adapter for each message that it sends: so each redirect hop and each retry of yours takes a permit, and
gives it back when its body has ended or was closed. With `stream=True` that is up to you, as for the connection. The wait for a
permit does not count against `timeout`; it counts in `response.elapsed`.

A session with `multiplexed=True` sends as without: a response that nobody has looked at would hold its permit, and a thread that
sends many before it looks would wait for itself. Threads and tasks share HTTP/2 connections all the same.

A 429 is your response, as without limits; but the limit is closed, and the next request waits as long as the server says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidegate import ConfigError, Priority
from tidegate.clients._body import answered
from tidegate.clients._missing import missing
from tidegate.clients._permit import AsyncPermits, BlockingPermits, Source

try:
    from niquests.adapters import AsyncHTTPAdapter, HTTPAdapter
    from niquests.models import PreparedRequest
except ModuleNotFoundError:
    raise missing("niquests", "niquests>=3.18") from None

__all__ = ["Adapter", "AsyncAdapter"]

POOLSIZE = 10
"""niquests' own default."""


class Adapter(HTTPAdapter):
    """An adapter for `niquests.Session.mount` that sends as the limits allow. Use the session in any threads.

    Args:
        source: What the server allows: a text such as `"10/s burst 20"`, a `Limit` or a `BackendQuota`; or a running
            `RateLimitScheduler`, to share the limits of one of its backends.
        backend: The name of that backend. With a quota, what the log calls it.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: As of a request. Limits `per host` count by the host of each URL.
        pool_maxsize: Connections that are kept; by default as many as the quota's concurrency.
        **options: As for `niquests.adapters.HTTPAdapter`, but `max_retries`: those would not be charged.

    Raises:
        ConfigError: An argument is out of range.

    Cancellation: Ctrl-C in the main thread ends a wait, which is not charged then.
    """

    def __init__(
        self,
        source: Source,
        /,
        backend: str | None = None,
        *,
        priority: int = Priority.NORMAL,
        scopes: Mapping[str, str] | None = None,
        pool_maxsize: int | None = None,
        **options: Any,
    ) -> None:
        _check_retries(options)
        self._permits = BlockingPermits(source, backend, priority, scopes)
        self._permits.check_pool(pool_maxsize, "pool_maxsize")
        super().__init__(pool_maxsize=pool_maxsize or self._permits.concurrency or POOLSIZE, **options)

    def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Any:
        """Send one message when the limits allow it."""
        permit = self._permits.take(str(request.url))
        try:
            response = super().send(request, *arguments, **{**options, "multiplexed": False})
        except BaseException as error:
            permit.release(error)
            raise
        answered(response, permit)
        return response

    def close(self) -> None:
        """Close the connections. The session calls it when it is closed."""
        super().close()
        self._permits.close()


class AsyncAdapter(AsyncHTTPAdapter):
    """An adapter for `niquests.AsyncSession.mount` that sends as the limits allow.

    Args:
        source: What the server allows: a text such as `"10/s burst 20"`, a `Limit` or a `BackendQuota`; or a
            `RateLimitScheduler` that runs on the session's loop, to share the limits of one of its backends.
        backend: The name of that backend. With a quota, what the log calls it.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: As of a request. Limits `per host` count by the host of each URL.
        pool_maxsize: Connections that are kept; by default as many as the quota's concurrency.
        **options: As for `niquests.adapters.AsyncHTTPAdapter`, but `max_retries`: those would not be charged.

    Raises:
        ConfigError: An argument is out of range.

    Cancellation: a message that waits is not charged; one that was sent is.
    """

    def __init__(
        self,
        source: Source,
        /,
        backend: str | None = None,
        *,
        priority: int = Priority.NORMAL,
        scopes: Mapping[str, str] | None = None,
        pool_maxsize: int | None = None,
        **options: Any,
    ) -> None:
        _check_retries(options)
        self._permits = AsyncPermits(source, backend, priority, scopes)
        self._permits.check_pool(pool_maxsize, "pool_maxsize")
        super().__init__(pool_maxsize=pool_maxsize or self._permits.concurrency or POOLSIZE, **options)

    async def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Any:
        """Send one message when the limits allow it."""
        permit = await self._permits.take(str(request.url))
        try:
            response = await super().send(request, *arguments, **{**options, "multiplexed": False})
        except BaseException as error:
            permit.release(error)
            raise
        answered(response, permit)
        return response

    async def close(self) -> None:
        """Close the connections. The session calls it when it is closed."""
        await super().close()
        await self._permits.close()


def _check_retries(options: Mapping[str, object]) -> None:
    retries = options.get("max_retries", 0)
    if retries != 0:
        msg = f"max_retries={retries!r}: they would not be charged; leave it out, and repeat a request in your own code"
        raise ConfigError(msg, option="max_retries", value=retries)
