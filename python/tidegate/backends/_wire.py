"""What the session of one scrape sends through: every message is charged, answered for, and goes where it is to go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from threading import Lock
from urllib.parse import urlsplit

from requests import PreparedRequest, Response, Session
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectTimeout,
    ContentDecodingError,
    ProxyError,
    RequestException,
    SSLError,
    Timeout,
)

from tidegate import BackendRateLimitedError, Request, RequestCancelledError
from tidegate._quote import shown as shown_target
from tidegate._scopes import HOST, host_of
from tidegate.backends._address import shown
from tidegate.backends._items import target_of
from tidegate.backends._scrape import ScrapeError

Proxies = Mapping[str, str]

LARGEST_ANSWER = 32 * 1024 * 1024
"""Bytes of an answer that are read; the largest, a thousand posts as JSON, have a few MiB."""
PIECE = 64 * 1024
MOST_ALIKE = 100
"""How often a scrape may send the same message without a new item. Different ones may be many: a thread of tweets is read from
each tweet of it, and most of them lead to nothing new."""


class Lines:
    """The connections of one backend, kept from scrape to scrape.

    Args:
        size: Connections that are kept to each server.
        base_url: As of the backend.
    """

    def __init__(self, size: int, base_url: str | Mapping[str, str] | None) -> None:
        self._size = size
        self._base_url = base_url
        self._lock = Lock()
        # It sends nothing: it finds the adapter of a URL, and what the environment says of proxies and certificates.
        self._session = Session()
        usual = HTTPAdapter(pool_maxsize=size)
        self._session.mount("https://", usual)
        self._session.mount("http://", usual)

    def adopt(self, session: Session) -> None:
        """Have the adapters that a scraper brings for servers of its own, such as for how it opens TLS."""
        with self._lock:
            for prefix, adapter in session.adapters.items():
                if prefix not in self._session.adapters:
                    self._session.mount(prefix, type(adapter)(pool_maxsize=self._size))  # type: ignore[call-arg]

    def send(self, message: PreparedRequest, timeout: object, proxies: Proxies | None) -> Response:
        """Send a message, and return when its response headers have arrived."""
        url = str(message.url)
        with self._lock:  # while one is adopted, others are not in their places
            adapter = self._session.get_adapter(url)
        target = self._moved(url)
        sent = message.copy()
        sent.url = target
        settings = self._session.merge_environment_settings(target, dict(proxies or {}), True, None, None)
        response = adapter.send(sent, timeout=timeout, **settings)  # type: ignore[arg-type]
        # What reads it is to see the service that it has asked: it follows links from here.
        response.request, response.url = message, url
        return response

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _moved(self, url: str) -> str:
        parts = urlsplit(url)
        base = self._base_url
        if isinstance(base, Mapping):
            base = base.get(f"{parts.scheme}://{parts.netloc}".lower())
        if base is None:
            return url
        base = base.rstrip("/")
        if url.startswith(f"{base}/"):  # where an answer of that server has led
            return url
        return base + (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class Wire(BaseAdapter):
    """The adapter of one scrape's session.

    The first message is the attempt's own; each later one, a page, a redirect hop or a guest token, is charged when it may go.
    A rejection of the first one ends the attempt, which waits in the queue and costs nothing. A rejection of a later one is
    waited out here, ahead of the queue, and the message is sent again: what was read is not read twice.

    Errors of ours are no errors of requests: snscrape lets them pass, and hides those.

    Attributes:
        url: Where the last message went; None before the first one.
        status: Of its answer.
    """

    def __init__(self, request: Request, lines: Lines, timeout: float | None, proxies: Proxies | None) -> None:
        super().__init__()
        self._request = request
        self._lines = lines
        self._timeout = timeout
        self._proxies = proxies
        self._sent = False
        self._read = False
        self._since: Counter[int] = Counter()  # answered since an item came that this attempt had not had, by their hashes
        self.url: str | None = None
        self.status: int | None = None

    def carry(self, session: Session) -> None:
        """Have a session send all that it sends through this."""
        self._lines.adopt(session)
        session.adapters.clear()
        session.mount("https://", self)
        session.mount("http://", self)
        # Proxies are our business, so that their passwords are not in what snscrape logs.
        session.trust_env = False

    def bore(self) -> None:
        """What was read had an item that this attempt had not had."""
        self._since.clear()

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,  # noqa: ARG002 - all are read to their end, so that they fail here
        timeout: object = None,
        verify: object = True,  # noqa: ARG002 - as the environment says
        cert: object = None,  # noqa: ARG002
        proxies: object = None,  # noqa: ARG002
    ) -> Response:
        """Send one message of the session, and read its answer."""
        self.url, self.status = str(request.url), None
        same = hash((request.method, request.url, request.body))
        if self._since[same] == MOST_ALIKE:
            raise ScrapeError(f"{MOST_ALIKE} times nothing new: the pages lead in a circle", url=shown(self.url))
        while True:
            self._wait()
            response = self._exchange(request, self._timeout or timeout)
            self.status = response.status_code
            if not _is_rejection(response):
                break
            if not self._read:
                msg = f"{shown(self.url)}: status {response.status_code}"
                raise BackendRateLimitedError(msg, retry_after=_reset_in(response))
        self._read = True
        self._since[same] += 1
        if response.status_code >= 500 or response.status_code == 408:
            raise ScrapeError(f"status {response.status_code}", url=shown(self.url), status=response.status_code)
        return response

    def close(self) -> None:
        """The connections stay."""

    def _wait(self) -> None:
        """Wait until a message may be sent."""
        if self._request.ended:
            target = target_of(self._request)
            msg = f"this attempt for {shown_target(target)} was given up before its next message was sent"
            raise RequestCancelledError(msg, target=target)
        if self._sent:
            host = host_of(self.url)
            self._request.recharge_blocking(scopes=None if host is None else {HOST: host})
        self._sent = True

    def _exchange(self, message: PreparedRequest, timeout: object) -> Response:
        try:
            response = self._lines.send(message, timeout, self._proxies)
            self._request.ack(response.status_code, response.headers, retry_after=_reset_in(response))
            _read(response)
            return response
        except RequestException as error:
            problem = _problem(error)
        # Not in there: the error may tell of a proxy, and would be the context of ours.
        raise ScrapeError(problem, url=shown(str(message.url)))


def _read(response: Response) -> None:
    """Read an answer to its end, unpacked, which may be a thousand times as much as was sent."""
    body = bytearray()
    for piece in response.iter_content(PIECE):
        body += piece
        if len(body) > LARGEST_ANSWER:
            response.close()
            raise ScrapeError(f"an answer of more than {LARGEST_ANSWER >> 20} MiB", url=shown(response.url))
    response._content = bytes(body)  # noqa: SLF001 - it has no other way to be given one


def _is_rejection(response: Response) -> bool:
    return response.status_code == 429 or (response.status_code == 503 and "Retry-After" in response.headers)


def _reset_in(response: Response) -> float | None:
    """Seconds until a rejection is over, from Twitter's header for it, a Unix time; `Retry-After` is read by the scheduler."""
    reset = response.headers.get("x-rate-limit-reset", "")
    if response.status_code != 429 or "Retry-After" in response.headers or not reset.isdecimal():
        return None
    return max(float(reset) - datetime.now(UTC).timestamp(), 0.0)


def _problem(error: RequestException) -> str:
    match error:
        case ConnectTimeout():
            return "no connection in time"
        case Timeout():
            return "no answer in time"
        case ProxyError():
            return "the proxy does not answer, or refuses"
        case SSLError():
            return "no secure connection"
        case ChunkedEncodingError() | ContentDecodingError():
            return "the answer broke off or cannot be decoded"
    return f"the connection failed ({type(error).__name__})"
