"""Limits for curl_cffi: its sessions, with the limits as first argument.

    session = AsyncSession("10/s", impersonate="chrome")
    session = Session("10/s", impersonate="chrome")

Each request and each retry of `retry=` takes a permit. It is acknowledged when the request has ended, or with `stream=True` when
the headers arrive, and given back when the body has ended or was closed. The wait for a permit does not count against `timeout`.

Redirects happen inside libcurl, which does not ask: each hop is charged right after it was followed, before the permit is given
back. A server that counts strictly may see a hop too early; then give `allow_redirects=False` and follow them yourself.
WebSockets take no permit.

A 429 is your response, as without limits; but the limit is closed, and the next request waits as long as the server says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urljoin

from tidegate import Priority
from tidegate.clients._missing import missing
from tidegate.clients._permit import AsyncPermits, BlockingPermits, Permit, Source

try:
    from curl_cffi import requests
except ModuleNotFoundError:
    raise missing("curl_cffi", "curl_cffi>=0.15") from None

__all__ = ["AsyncSession", "Session"]

MOST_CLIENTS = 1000
"""Handles of a session whose quota has no cap on concurrency."""


class AsyncSession(requests.AsyncSession[requests.Response]):
    """A `curl_cffi.requests.AsyncSession` that sends as the limits allow.

    Args:
        source: What the server allows: a text such as `"10/s burst 20"`, a `Limit` or a `BackendQuota`; or a
            `RateLimitScheduler` that runs on the session's loop, to share the limits of one of its backends.
        backend: The name of that backend. With a quota, what the log calls it.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: As of a request. Limits `per host` count by the host of each URL.
        max_clients: As for curl_cffi's own; by default as many as the quota's concurrency.
        **options: As for curl_cffi's own.

    Raises:
        ConfigError: An argument is out of range.

    Cancellation: a message that waits is not charged; one that was sent is.

    Example:
        >>> async def main():
        ...     async with AsyncSession("10/s burst 20", impersonate="chrome") as session:
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
        max_clients: int | None = None,
        **options: Any,
    ) -> None:
        self._permits = AsyncPermits(source, backend, priority, scopes)
        self._permits.check_pool(max_clients, "max_clients")
        super().__init__(max_clients=max_clients or self._permits.concurrency or MOST_CLIENTS, **options)

    async def _request_once(self, method: Any, url: str, **options: Any) -> requests.Response:  # type: ignore[override]
        permit = await self._permits.take(_whole(self.base_url, url))
        try:
            response = await super()._request_once(method, url, **options)
        except BaseException as error:
            permit.release(error)
            raise
        return _answered(response, permit, response.astream_task)

    async def close(self) -> None:
        """Close the session, and the scheduler of a quota."""
        try:
            await super().close()
        finally:
            await self._permits.close()


class Session(requests.Session[requests.Response]):
    """A `curl_cffi.requests.Session` that sends as the limits allow. Use it in any threads.

    Args:
        source: What the server allows: a text such as `"10/s burst 20"`, a `Limit` or a `BackendQuota`; or a running
            `RateLimitScheduler`, to share the limits of one of its backends.
        backend: The name of that backend. With a quota, what the log calls it.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: As of a request. Limits `per host` count by the host of each URL.
        **options: As for curl_cffi's own.

    Raises:
        ConfigError: An argument is out of range.

    Cancellation: Ctrl-C in the main thread ends a wait, which is not charged then.

    Example:
        >>> session = Session("10/s burst 20", impersonate="chrome")
    """

    def __init__(
        self,
        source: Source,
        /,
        backend: str | None = None,
        *,
        priority: int = Priority.NORMAL,
        scopes: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._permits = BlockingPermits(source, backend, priority, scopes)
        super().__init__(**options)

    def _request_once(self, method: Any, url: str, **options: Any) -> requests.Response:  # type: ignore[override]
        permit = self._permits.take(_whole(self.base_url, url))
        try:
            response = super()._request_once(method, url, **options)
        except BaseException as error:
            permit.release(error)
            raise
        return _answered(response, permit, response.stream_task)

    def close(self) -> None:
        """Close the session, and the scheduler of a quota."""
        try:
            super().close()
        finally:
            self._permits.close()


def _answered(response: requests.Response, permit: Permit, transfer: Any) -> requests.Response:
    """The response, which gives its permit back when its transfer, if one goes on, has ended."""
    permit.answered(response.status_code, response.headers)  # type: ignore[arg-type] # a mapping, for who reads it
    permit.also_sent(response.redirect_count, response.url)
    if transfer is None:
        permit.release()
    else:
        transfer.add_done_callback(_releases(permit))
    return response


def _releases(permit: Permit) -> Callable[[object], None]:
    return lambda _: permit.release()


def _whole(base: str | None, url: str) -> str:
    return urljoin(base, url) if base else url
