"""Collecting over HTTP with the user's own aiohttp client.

Everything that leaves is charged, and acknowledged when its response headers arrive. The handler returns when the body has
ended, and that is when the concurrency slot is free again. No message shows a secret.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidegate import Backend, BackendQuota, Request
from tidegate.backends._address import Address, AddressError, refused, shown
from tidegate.backends._sender import Headers, HttpError, HttpRequestError, Sender, beginning, check_headers

if TYPE_CHECKING:
    import aiohttp

__all__ = ["HttpBackend", "HttpError", "HttpReply", "HttpRequestError", "HttpStatusError"]

for _public in (HttpError, HttpRequestError):
    _public.__module__ = __name__

log = logging.getLogger(__name__)

ERROR_BODY = 64 * 1024
"""Bytes of an error's body that are kept, to see what the server had to say."""


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
        sender = Sender(log, client, method, max_redirects)
        address = Address(url)
        if parse is not None and not callable(parse):
            raise refused("parse", parse, "give a function of the response, or leave it out for the whole body")
        if headers is not None and not callable(headers):
            check_headers(headers, url)
        super().__init__(name, self._fetch, quota, **options)
        self._address = address
        self._headers = headers
        self._parse = parse
        self._sender = sender

    async def aopen(self) -> None:
        """Open the client, or check the one that was given. The scheduler calls it when it starts."""
        concurrency = self.quota.concurrency
        in_flight = None if concurrency is None else concurrency * len(self.accounts or (None,))
        self._sender.open(self.name, in_flight, in_flight)

    async def aclose(self) -> None:
        """Close the client if it is the backend's own. The scheduler calls it when it ends."""
        await self._sender.close()

    def __repr__(self) -> str:
        return f"<HttpBackend {self.name!r} {self._sender.method} {self._address!r}>"

    async def _fetch(self, request: Request) -> object:
        """One attempt, from the first message to the end of the last body."""
        try:
            url = self._address.of(request.target)
        except AddressError as error:
            raise HttpRequestError(self._sender.method, repr(self._address), str(error)) from None
        headers = self._headers(request) if callable(self._headers) else self._headers
        return await self._sender.exchange(request, url, headers, self._value)

    async def _value(self, response: aiohttp.ClientResponse) -> object:
        """What a response comes to."""
        if response.status >= 400:
            body = await beginning(response, ERROR_BODY)
            raise HttpStatusError(self._sender.method, shown(response.url), response.status, response.headers, body)
        if self._parse is None:
            return await _read(response)
        value = self._parse(response)
        return await value if inspect.isawaitable(value) else value


async def _read(response: aiohttp.ClientResponse) -> HttpReply:
    """The reply with its whole body."""
    body = await response.read()
    return HttpReply(response.status, response.headers, body, str(response.url), response.get_encoding())
