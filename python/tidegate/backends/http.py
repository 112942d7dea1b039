"""Collecting over HTTP with the user's own aiohttp client.

Everything that leaves is charged, and acknowledged when its response headers arrive. Both happen in one place: the innermost
client middleware, which aiohttp calls for each message that it sends: the first one, each redirect hop, what an
authentication middleware repeats, and the silent second sending on a connection that the server had closed meanwhile.
The handler returns when the body has ended, and that is when the concurrency slot is free again.

Secrets stay out of messages: no `repr`, error text or log line of this module shows a header's value, a query, a user or
a password, and aiohttp's own errors are stripped of them on their way out.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tidegate import Backend, BackendQuota, ConfigError, Request, TidegateError
from tidegate.backends._address import Address, AddressError, refused, shown

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.client_middlewares import ClientHandlerType
    from yarl import URL

__all__ = ["HttpBackend", "HttpError", "HttpReply", "HttpRequestError", "HttpStatusError"]

log = logging.getLogger(__name__)

ERROR_BODY = 64 * 1024
"""Bytes of an error's body that are kept, to see what the server had to say."""

SAFE_ANYWHERE = frozenset({"accept", "accept-encoding", "accept-language", "user-agent"})
"""Headers of a backend that a redirect may carry to another origin; any other could be a key."""

Headers = Mapping[str, str]


class HttpError(TidegateError):
    """An HTTP exchange that gave no reply to use.

    Attributes:
        method: The method of the first message.
        url: Where it went, without user, password and query.
    """

    def __init__(self, method: str, url: str, problem: str) -> None:
        super().__init__(f"{method} {url}: {problem}")
        self.method = method
        self.url = url


class HttpStatusError(HttpError):
    """The server answered with a status of 400 or more.

    Attributes:
        status: The status; the scheduler tells by it what the failure means.
        headers: The response headers, case-insensitive.
        body: The first 64 KiB of the body.
    """

    def __init__(self, method: str, url: str, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(method, url, f"status {status}")
        self.status = status
        self.headers = headers
        self.body = body


class HttpRequestError(HttpError):
    """The request itself cannot work: it has no URL, or its redirects lead nowhere. Never retried.

    Attributes:
        status: 400, the status that says so.
    """

    status = 400


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What a server sent, read to its end.

    Attributes:
        status: Below 400.
        headers: Case-insensitive; of the last response, when there were redirects.
        body: The body, decompressed.
        url: Where the body came from, after redirects.
    """

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    url: str = field(repr=False)
    charset: str = field(default="utf-8", repr=False)

    @property
    def text(self) -> str:
        """The body as text, in the charset that its headers name, else UTF-8."""
        return self.body.decode(self.charset, errors="replace")

    def json(self) -> Any:
        """The body as JSON, whatever its content type."""
        return json.loads(self.body)


class HttpBackend(Backend):
    """A backend whose handler sends one HTTP request for each target.

    Args:
        name: As for `Backend`.
        url: Where a target leads. `"https://api.example/users/{target}"` puts the target's text, percent-encoded, in
            its place; `"https://api.example/v1/"` resolves a target as a reference, within that origin; `"{target}"` takes
            targets that are whole http(s) URLs as they are.
        quota: As for `Backend`.
        client: Your own `aiohttp.ClientSession`, which stays open. Without it the backend opens one when its scheduler
            starts, and closes it when the scheduler ends. Of the client's timeouts `total` is not used: `timeout` takes
            its place.
        method: The HTTP method.
        headers: Headers for each message, or a function of the `Request` that gives them, as for keys by account. A
            redirect to another origin carries none of them but Accept, Accept-Encoding, Accept-Language and User-Agent.
        parse: Makes the value of the reply out of the `aiohttp.ClientResponse`, whose status is below 400 and whose body
            is still to be read. It may be an `async def` or return an awaitable, as `lambda response: response.json()`
            does; then the response is closed. The default reads the body and gives an `HttpReply`.
        max_redirects: Redirects followed, each charged as a message of its own; 0 gives the redirect itself as the reply.
        **options: As for `Backend`.

    Raises:
        ConfigError: An option cannot work, or aiohttp is not installed.

    Cancellation:
        The connection is closed; what was sent stays charged.
    """

    def __init__(
        self,
        name: str,
        url: str,
        quota: BackendQuota | str | None = None,
        *,
        client: aiohttp.ClientSession | None = None,
        method: str = "GET",
        headers: Headers | Callable[[Request], Headers] | None = None,
        parse: Callable[[aiohttp.ClientResponse], object] | None = None,
        max_redirects: int = 10,
        **options: Any,
    ) -> None:
        _require_aiohttp()
        _check_client(client)
        address = Address(url)
        if not isinstance(method, str) or not (method.isascii() and method.isalpha()):
            raise refused("method", method, "give a method as 'GET' or 'POST'")
        if not isinstance(max_redirects, int) or max_redirects < 0:
            raise refused("max_redirects", max_redirects, "give a whole number from 0")
        if parse is not None and not callable(parse):
            raise refused("parse", parse, "give a function of the response, or leave it out for the whole body")
        if headers is not None and not callable(headers):
            _check_headers(headers, url)
        super().__init__(name, self._exchange, quota, **options)
        self._address = address
        self._method = method.upper()
        self._headers = headers
        self._parse = parse
        self._max_redirects = max_redirects
        self._given = client
        self._own: aiohttp.ClientSession | None = None
        self._warned = False

    async def aopen(self) -> None:
        """Open the client, or check the one that was given. The scheduler calls it when it starts."""
        self._check_pool(self._client())

    async def aclose(self) -> None:
        """Close the client if it is the backend's own. The scheduler calls it when it ends."""
        client, self._own = self._own, None
        if client is not None:
            await client.close()

    def __repr__(self) -> str:
        return f"<HttpBackend {self.name!r} {self._method} {self._address!r}>"

    async def _exchange(self, request: Request) -> object:
        """One attempt, from the first message to the end of the last body."""
        from aiohttp import ClientError

        try:
            url = self._address.of(request.target)
        except AddressError as error:
            raise HttpRequestError(self._method, repr(self._address), str(error)) from None
        client = self._client()
        headers = self._headers(request) if callable(self._headers) else self._headers
        wire = _Wire(request, url, headers or {})
        try:
            async with client.request(
                self._method,
                url,
                headers=headers,
                allow_redirects=self._max_redirects > 0,
                max_redirects=self._max_redirects + 1,  # aiohttp counts the response that is not followed
                raise_for_status=False,
                timeout=_without_total(client.timeout),
                middlewares=(*_middlewares(client), wire),
            ) as response:
                if response.status >= 400:
                    raise HttpStatusError(
                        self._method, shown(response.url), response.status, response.headers, await _beginning(response)
                    )
                if self._parse is None:
                    return await _read(response)
                value = self._parse(response)
                return await value if inspect.isawaitable(value) else value
        except ClientError as error:
            failure = self._public(error, url)
        try:
            raise failure
        finally:
            del failure  # no cycle through its own traceback

    def _public(self, error: Exception, url: URL) -> Exception:
        """What to raise for an error of aiohttp: itself where its text and `repr` show no secret, else one of ours."""
        import aiohttp

        if isinstance(error, aiohttp.TooManyRedirects):
            return HttpRequestError(self._method, shown(url), f"redirected more than {self._max_redirects} times")
        if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
            return HttpRequestError(self._method, shown(url), "redirected to something that is no http(s) URL")
        if isinstance(error, aiohttp.ContentTypeError):  # from response.json(), as a rule: a page where data was expected
            return HttpError(self._method, shown(url), error.message)
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return HttpError(self._method, shown(url), f"the proxy answered with status {error.status}")
        if isinstance(error, aiohttp.ClientResponseError):
            return HttpError(self._method, shown(url), "a response that aiohttp refuses, as one with a header beyond its limit")
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            error.args = (f"Connection timeout to host {shown(url.origin())}",)
        elif isinstance(error, aiohttp.ClientConnectorError):
            error.args = (f"{error.host}:{error.port}", *error.args[1:])
        return error

    def _client(self) -> aiohttp.ClientSession:
        """The client to send with; the backend's own is made here, on the loop that runs."""
        if self._given is not None:
            return self._given
        if self._own is None:
            import aiohttp

            # Concurrency is the quota's: the pool holds as many connections as there are attempts.
            self._own = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self._own

    def _check_pool(self, client: aiohttp.ClientSession) -> None:
        """Warn, once, when the client would throttle before the quota does."""
        wanted = self.quota.concurrency
        pool = client.connector
        if self._warned or pool is None or wanted is None:
            return
        for option in ("limit", "limit_per_host"):
            limit = getattr(pool, option, 0)
            if 0 < limit < wanted:
                self._warned = True
                log.warning(
                    "backend %r may have %d requests in flight, but its client's pool has %s=%d: raise it in TCPConnector",
                    self.name, wanted, option, limit,
                )  # fmt: skip


class _Wire:
    """The innermost client middleware of one attempt: charges what leaves, acknowledges what comes back."""

    __slots__ = ("_origin", "_private", "_request", "_sent")

    def __init__(self, request: Request, url: URL, headers: Headers) -> None:
        self._request = request
        self._origin = url.origin()
        self._private = [name for name in headers if name.lower() not in SAFE_ANYWHERE]
        self._sent = False

    async def __call__(self, message: aiohttp.ClientRequest, send: ClientHandlerType) -> aiohttp.ClientResponse:
        if self._sent:
            host = message.url.host
            await self._request.recharge(scopes=None if host is None else {"host": host})
        self._sent = True
        if message.url.origin() != self._origin:
            for name in self._private:
                message.headers.popall(name, None)
        response = await send(message)
        self._request.ack(response.status, response.headers)
        return response


async def _read(response: aiohttp.ClientResponse) -> HttpReply:
    """The reply with its whole body."""
    body = await response.read()
    return HttpReply(response.status, response.headers, body, str(response.url), response.get_encoding())


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The body of an error, as far as it is kept; nothing if it does not arrive whole."""
    from aiohttp import ClientError

    body = bytearray()
    try:
        while len(body) < ERROR_BODY and (chunk := await response.content.read(ERROR_BODY - len(body))):
            body += chunk
    except ClientError:
        pass
    return bytes(body)


def _without_total(timeout: aiohttp.ClientTimeout) -> aiohttp.ClientTimeout:
    """A client's timeouts without `total`, which would count our waiting between redirects."""
    from aiohttp import ClientTimeout

    return ClientTimeout(
        total=None, connect=timeout.connect, sock_connect=timeout.sock_connect or 30, sock_read=timeout.sock_read
    )


def _middlewares(client: aiohttp.ClientSession) -> tuple[Any, ...]:
    """The client's own middlewares: a request that names any replaces them, and aiohttp has no public way to read them."""
    return tuple(client._middlewares or ())  # noqa: SLF001


def _require_aiohttp() -> None:
    """Say how to get aiohttp when it is missing."""
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise refused("client", "aiohttp", "it is not installed: pip install 'aiohttp>=3.12'") from None


def _check_client(client: object) -> None:
    """Refuse what is no session of aiohttp, in a message that shows none of it."""
    from aiohttp import ClientSession

    if client is not None and not isinstance(client, ClientSession):
        way_out = "give an aiohttp.ClientSession; to use another client, write a handler and see tidegate.clients"
        raise refused("client", type(client).__name__, way_out)


def _check_headers(headers: Headers, url: object) -> None:
    """Refuse headers that aiohttp would refuse later, in a message without their values."""
    if not isinstance(headers, Mapping):
        kind = type(headers).__name__
        message = f"headers: give a mapping of names to values, or a function of the request, not a {kind}"
        raise ConfigError(message, option="headers", value=kind)
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str) or any(c in value for c in "\r\n\0"):
            raise refused("headers", name, "give each value as a str of one line")
    if any(name.lower() == "authorization" for name in headers) and "@" in urlsplit(str(url)).netloc:
        raise refused("headers", "Authorization", "leave it out, or take user and password out of the url")
