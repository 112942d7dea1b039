"""Limits for httpx and httpx2: a transport around the client's own.

    client = httpx.AsyncClient(transport=AsyncTransport("10/s"))
    client = httpx.Client(transport=Transport("10/s"))

The client calls its transport for each message that it sends: so each redirect hop, each leg of an authentication and each retry
of yours takes a permit, and gives it back when its body has ended. What waits for a permit does not count against the client's
timeouts; it counts in `response.elapsed`, and `response.extensions["tidegate"]["waited"]` says how long it was.

A 429 is your response, as without limits; but the limit is closed, and the next request waits as long as the server says.

A client with `transport=` ignores its own `verify=`, `cert=`, `http1=`, `http2=`, `limits=`, `proxy=` and the proxies of the
environment: give those to the transport here. `mounts=` works.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from inspect import signature
from threading import Lock
from types import ModuleType, TracebackType
from typing import Any, Self

from tidegate import ConfigError, Priority
from tidegate.clients._missing import missing
from tidegate.clients._permit import AsyncPermits, BlockingPermits, Permit, Source

__all__ = ["AsyncTransport", "Transport"]

LIBRARIES = ("httpx", "httpx2")


class AsyncTransport:
    """A transport for `httpx.AsyncClient`, or that of httpx2, which sends as the limits allow.

    Args:
        source: What the server allows: a text such as `"10/s burst 20"`, a `Limit` or a `BackendQuota`; or a
            `RateLimitScheduler` that runs on the client's loop, to share the limits of one of its backends.
        backend: The name of that backend. With a quota, what the log calls it.
        transport: What sends, instead of an `AsyncHTTPTransport(**options)`. It is closed with this one.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: As of a request. Limits `per host` count by the host of each URL.
        **options: As for `AsyncHTTPTransport`: `verify`, `http2`, `limits`, `proxy` and so on. Without `limits` its pool is
            not limited, since the quota's concurrency is.

    Raises:
        ConfigError: An argument is out of range.
        ModuleNotFoundError: Neither httpx nor httpx2 is installed.

    Cancellation: a message that waits is not charged; one that was sent is, and its connection is closed.

    Example:
        >>> import httpx
        >>> client = httpx.AsyncClient(transport=AsyncTransport("10/s burst 20", http2=False))
    """

    def __init__(
        self,
        source: Source,
        /,
        backend: str | None = None,
        *,
        transport: Any = None,
        priority: int = Priority.NORMAL,
        scopes: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        _check("handle_async_request", transport, options)
        self._permits = AsyncPermits(source, backend, priority, scopes)
        self._inner = transport
        self._options = options

    async def handle_async_request(self, request: Any) -> Any:
        """Send one message when the limits allow it."""
        library = _library_of(request)
        inner = self._opened(library)
        permit = await self._permits.take(str(request.url))
        try:
            response = await inner.handle_async_request(request)
        except BaseException as error:
            permit.release(error)
            raise
        _, stream = _streams(library)
        return _answered(response, permit, stream)

    async def aclose(self) -> None:
        """Close what sends. The client calls it when it is closed."""
        try:
            if self._inner is not None:
                await self._inner.aclose()
        finally:
            await self._permits.close()

    async def __aenter__(self) -> Self:
        if self._inner is not None:
            await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._inner is not None:
                await self._inner.__aexit__(exc_type, exc, traceback)
        finally:
            await self._permits.close()

    def _opened(self, library: ModuleType) -> Any:
        if self._inner is None:
            self._inner = library.AsyncHTTPTransport(**_unlimited(library, self._options))
        _check_pool(self._permits, self._inner)
        return self._inner


class Transport:
    """A transport for `httpx.Client`, or that of httpx2, which sends as the limits allow.

    Args:
        source: What the server allows: a text such as `"10/s burst 20"`, a `Limit` or a `BackendQuota`; or a running
            `RateLimitScheduler`, to share the limits of one of its backends. The client may be used in any threads but that of
            the scheduler's loop.
        backend: The name of that backend. With a quota, what the log calls it.
        transport: What sends, instead of an `HTTPTransport(**options)`. It is closed with this one.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: As of a request. Limits `per host` count by the host of each URL.
        **options: As for `HTTPTransport`: `verify`, `http2`, `limits`, `proxy` and so on. Without `limits` its pool is not
            limited, since the quota's concurrency is.

    Raises:
        ConfigError: An argument is out of range.
        ModuleNotFoundError: Neither httpx nor httpx2 is installed.

    Cancellation: Ctrl-C in the main thread ends a wait, which is not charged then.

    Example:
        >>> import httpx
        >>> client = httpx.Client(transport=Transport("10/s burst 20"))
    """

    def __init__(
        self,
        source: Source,
        /,
        backend: str | None = None,
        *,
        transport: Any = None,
        priority: int = Priority.NORMAL,
        scopes: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        _check("handle_request", transport, options)
        self._permits = BlockingPermits(source, backend, priority, scopes)
        self._lock = Lock()
        self._inner = transport
        self._options = options

    def handle_request(self, request: Any) -> Any:
        """Send one message when the limits allow it."""
        library = _library_of(request)
        inner = self._opened(library)
        permit = self._permits.take(str(request.url))
        try:
            response = inner.handle_request(request)
        except BaseException as error:
            permit.release(error)
            raise
        stream, _ = _streams(library)
        return _answered(response, permit, stream)

    def close(self) -> None:
        """Close what sends. The client calls it when it is closed."""
        try:
            if self._inner is not None:
                self._inner.close()
        finally:
            self._permits.close()

    def __enter__(self) -> Self:
        if self._inner is not None:
            self._inner.__enter__()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if self._inner is not None:
                self._inner.__exit__(exc_type, exc, traceback)
        finally:
            self._permits.close()

    def _opened(self, library: ModuleType) -> Any:
        with self._lock:
            if self._inner is None:
                self._inner = library.HTTPTransport(**_unlimited(library, self._options))
        _check_pool(self._permits, self._inner)
        return self._inner


def _answered(response: Any, permit: Permit, stream: Any) -> Any:
    """The response, which says how long it waited, and gives the permit back when its body has ended."""
    permit.answered(response.status_code, response.headers)
    response.extensions = {**response.extensions, "tidegate": {"waited": permit.waited}}
    if response.is_closed:  # its body was there from the start
        permit.release()
    else:
        response.stream = stream(response.stream, permit)
    return response


@cache
def _streams(library: ModuleType) -> tuple[type, type]:
    """What streams a body for one of the libraries, whose clients insist on a class of their own: in threads, and on a loop."""

    class Stream(library.SyncByteStream):  # type: ignore[misc, name-defined]
        """A body that gives its permit back when it ends."""

        def __init__(self, body: Any, permit: Permit) -> None:
            self._body = body
            self._permit = permit

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._body
            except BaseException as error:
                self._permit.release(error)
                raise
            self._permit.release()

        def close(self) -> None:
            try:
                self._body.close()
            finally:
                self._permit.release()

    class AsyncStream(library.AsyncByteStream):  # type: ignore[misc, name-defined]
        """A body that gives its permit back when it ends."""

        def __init__(self, body: Any, permit: Permit) -> None:
            self._body = body
            self._permit = permit

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for chunk in self._body:
                    yield chunk
            except BaseException as error:
                self._permit.release(error)
                raise
            self._permit.release()

        async def aclose(self) -> None:
            try:
                await self._body.aclose()
            finally:
                self._permit.release()

    return Stream, AsyncStream


def _library_of(request: object) -> ModuleType:
    """The library whose request this is."""
    for kind in type(request).__mro__:
        if (name := kind.__module__.partition(".")[0]) in LIBRARIES:
            return sys.modules[name]
    msg = f"{type(request).__name__} is no request of httpx or httpx2: give this transport to one of their clients"
    raise TypeError(msg)


def _unlimited(library: ModuleType, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the transport that sends: a pool for all that the quota lets through, unless they say otherwise."""
    limits = library.Limits(max_connections=None, max_keepalive_connections=None)
    return {"limits": limits, **options}


def _check_pool(permits: AsyncPermits | BlockingPermits, inner: object) -> None:
    size = getattr(getattr(inner, "_pool", None), "_max_connections", None)  # there is no public way to read it
    permits.check_pool(size if isinstance(size, int) else None, "max_connections in limits=httpx.Limits(...) of the transport")


def _check(method: str, transport: object, options: Mapping[str, object]) -> None:
    """Refuse, before anything is sent, what could not send."""
    if transport is not None and not callable(getattr(transport, method, None)):
        msg = f"transport={transport!r}: give a transport that has {method}, or leave it out"
        raise ConfigError(msg, option="transport", value=transport)
    if transport is not None and options:
        names = ", ".join(options)
        msg = f"transport={transport!r}: it has options of its own; give {names} to it, or leave transport out"
        raise ConfigError(msg, option="transport", value=transport)
    if not any(name in sys.modules or find_spec(name) for name in LIBRARIES):
        raise missing("httpx", "httpx", "httpx2")
    library = next((sys.modules[name] for name in LIBRARIES if name in sys.modules), None)
    if library is None:  # the first request brings it
        return
    known = signature(library.HTTPTransport if method == "handle_request" else library.AsyncHTTPTransport).parameters
    for name in options:
        if name not in known:
            msg = f"{name}: there is no such option; there are {', '.join(known)}"
            raise ConfigError(msg, option=name, value=None)
