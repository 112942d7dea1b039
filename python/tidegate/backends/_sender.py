"""How a backend sends with the user's own aiohttp client.

Everything that leaves is charged, and acknowledged when its response headers arrive. Both happen in one place: the innermost
client middleware, which aiohttp calls for each message that it sends: the first one, each redirect hop, what an
authentication middleware repeats, and the silent second sending on a connection that the server had closed meanwhile.

Secrets stay out of messages: no `repr`, error text or log line of this module shows a header's value, a query, a user or
a password, and aiohttp's own errors are stripped of them on their way out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tidegate import ConfigError, Request, TidegateError
from tidegate.backends._address import refused, shown

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.client_middlewares import ClientHandlerType
    from yarl import URL

T = TypeVar("T")

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


class HttpRequestError(HttpError):
    """The request itself cannot work: it has no URL, or its redirects lead nowhere. Never retried.

    Attributes:
        status: 400, the status that says so.
    """

    status = 400


class Sender:
    """The aiohttp session of one backend: the one that was given, or one of its own.

    Args:
        log: Where what is odd about the session is told.
        client: The session that was given, which stays open.
        method: Of the first message of each exchange.
        max_redirects: Redirects followed, each charged as a message of its own; 0 gives the redirect itself.

    Raises:
        ConfigError: An option cannot work, or aiohttp is not installed.
    """

    def __init__(self, log: logging.Logger, client: aiohttp.ClientSession | None, method: str, max_redirects: int) -> None:
        _require_aiohttp()
        _check_client(client)
        if not isinstance(method, str) or not (method.isascii() and method.isalpha()):
            raise refused("method", method, "give a method as 'GET' or 'POST'")
        if not isinstance(max_redirects, int) or max_redirects < 0:
            raise refused("max_redirects", max_redirects, "give a whole number from 0")
        self.method = method.upper()
        self._log = log
        self._max_redirects = max_redirects
        self._given = client
        self._own: aiohttp.ClientSession | None = None
        self._warned = False

    def open(self, backend: str, in_flight: int | None, in_flight_per_host: int | None) -> None:
        """Open the session, or warn, once, when the one that was given would throttle before the backend's quota does."""
        pool = self._client().connector
        if self._warned or pool is None:
            return
        for option, wanted in (("limit", in_flight), ("limit_per_host", in_flight_per_host)):
            limit = getattr(pool, option, 0)
            if wanted is not None and 0 < limit < wanted:
                self._warned = True
                self._log.warning(
                    "backend %r may have %d requests in flight, but its client's pool has %s=%d: raise it in TCPConnector",
                    backend, wanted, option, limit,
                )  # fmt: skip
                return

    async def close(self) -> None:
        """Close the session if it is the backend's own."""
        client, self._own = self._own, None
        if client is not None:
            await client.close()

    async def exchange(
        self,
        request: Request,
        url: URL,
        headers: Headers | None,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        *,
        trust: bool = True,
        silence: float | None = None,
    ) -> T:
        """One exchange, from its first message, which is charged already, to what `read` makes of the last response.

        `trust=False` is for servers whose rejections may look like pages: then it is `read` that acknowledges. `silence` is the
        longest time without a byte, in seconds, where the client does not say.

        Raises:
            HttpError: There is no response, for a reason that aiohttp's own error would tell with secrets in it.
            aiohttp.ClientError: There is none, for another reason.
        """
        from aiohttp import ClientError

        client = self._client()
        wire = _Wire(request, url, headers or {}, trust)
        try:
            async with client.request(
                self.method,
                url,
                headers=headers,
                allow_redirects=self._max_redirects > 0,
                max_redirects=self._max_redirects + 1,  # aiohttp counts the response that is not followed
                raise_for_status=False,
                timeout=_without_total(client.timeout, silence),
                middlewares=(*_middlewares(client), wire),
            ) as response:
                return await read(response)
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
            return HttpRequestError(self.method, shown(url), f"redirected more than {self._max_redirects} times")
        if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
            return HttpRequestError(self.method, shown(url), "redirected to something that is no http(s) URL")
        if isinstance(error, aiohttp.ContentTypeError):  # from response.json(), as a rule: a page where data was expected
            return HttpError(self.method, shown(url), error.message)
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return HttpError(self.method, shown(url), f"the proxy answered with status {error.status}")
        if isinstance(error, aiohttp.ClientResponseError):
            return HttpError(self.method, shown(url), "a response that aiohttp refuses, as one with a header beyond its limit")
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


class _Wire:
    """The innermost client middleware of one exchange: charges what leaves, acknowledges what comes back."""

    __slots__ = ("_origin", "_private", "_request", "_sent", "_trust")

    def __init__(self, request: Request, url: URL, headers: Headers, trust: bool) -> None:
        self._request = request
        self._origin = url.origin()
        self._private = [name for name in headers if name.lower() not in SAFE_ANYWHERE]
        self._sent = False
        self._trust = trust

    async def __call__(self, message: aiohttp.ClientRequest, send: ClientHandlerType) -> aiohttp.ClientResponse:
        if self._sent:
            host = message.url.host
            await self._request.recharge(scopes=None if host is None else {"host": host})
        self._sent = True
        if message.url.origin() != self._origin:
            for name in self._private:
                message.headers.popall(name, None)
        response = await send(message)
        if self._trust:
            self._request.ack(response.status, response.headers)
        return response


async def beginning(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The first `most` bytes of a body; of one that breaks off, what has arrived."""
    from aiohttp import ClientError

    body = bytearray()
    try:
        while len(body) < most and (chunk := await response.content.read(most - len(body))):
            body += chunk
    except ClientError:
        pass
    return bytes(body)


def check_headers(headers: object, url: object) -> None:
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


def _without_total(timeout: aiohttp.ClientTimeout, silence: float | None) -> aiohttp.ClientTimeout:
    """A client's timeouts without `total`, which would count our waiting between redirects."""
    from aiohttp import ClientTimeout

    sock_read = timeout.sock_read or silence
    return ClientTimeout(total=None, connect=timeout.connect, sock_connect=timeout.sock_connect or 30, sock_read=sock_read)


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
