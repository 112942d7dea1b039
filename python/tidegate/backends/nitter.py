"""Collecting timelines and searches from mirrors of Nitter, with your own aiohttp client.

The mirrors are the accounts of one backend: each has its limits to itself, and what a sick one did not give another one does.
Every page is charged. What a page says is read from its text, not only from its status: that the mirror has used up its own
limits, that there is no such user, that this is no page of Nitter at all.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from tidegate import BackendQuota, BackendRateLimitedError, BackendRejectedError, ConfigError, Request, TidegateError
from tidegate._outcome import PutBackError
from tidegate._quota import count_of, seconds_of
from tidegate._quote import shown as shown_target
from tidegate.backends._address import refused, shown
from tidegate.backends._items import Channel, Gathered, ItemBackend, ItemStream, items_of, target_of
from tidegate.backends._nitter_page import Page, Refusal, RefusedError, Tweet, read_html, read_refusal, read_rss
from tidegate.backends._sender import HttpRequestError, Sender, beginning, check_headers

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

__all__ = ["ItemStream", "MirrorError", "NitterBackend", "NitterTargetError", "Search", "Timeline", "Tweet"]

Tweet.__module__ = __name__

log = logging.getLogger(__name__)

Form = Literal["html", "rss"]

LARGEST_PAGE = 1024 * 1024
"""Bytes of a page that are read; one of twenty tweets has a tenth of that."""
LARGEST_ERROR = 64 * 1024
"""The same of an error page."""
MOST_WITHHELD = 5
"""Pages in a row without a tweet after which none is asked for any more: on a page, all may be withheld."""
USER = re.compile(r"[A-Za-z0-9_]{1,50}")


class MirrorError(TidegateError):
    """A mirror gave no page of tweets, and it is not the target's fault: another mirror may have it. It is retried.

    Attributes:
        mirror: Its URL, without user and password.
        reason: What it gave instead.
    """

    def __init__(self, mirror: str, reason: str) -> None:
        super().__init__(f"{mirror}: {reason}")
        self.mirror = mirror
        self.reason = reason


class NitterTargetError(BackendRejectedError):
    """No mirror will show the target: no such user, suspended, protected; or it is no target. Never retried."""


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Which tweets of a target are wanted."""

    _: KW_ONLY
    max_items: int | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if self.max_items is not None:
            count_of("max_items", self.max_items)
        for option, at in (("since", self.since), ("until", self.until)):
            if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
                raise refused(option, at, "give a datetime with a time zone, as datetime(2026, 1, 31, tzinfo=UTC)")


@dataclass(frozen=True, slots=True)
class Timeline(_Bounds):
    """What a user wrote and retweeted, newest first. `"@user"` is short for `Timeline("user")`.

    Args:
        user: The name, with or without the @.
        replies: Also what they answered others.
        max_items: Most tweets; None for the backend's `max_items`.
        since: None that was written before; with a time zone. Pages end there.
        until: None that was written then or later. Pages are read from the newest on all the same.

    Raises:
        ConfigError: An argument is out of range.
    """

    user: str
    replies: bool = False

    def __post_init__(self) -> None:
        _Bounds.__post_init__(self)
        if not isinstance(self.user, str) or USER.fullmatch(self.user.removeprefix("@")) is None:
            raise refused("user", self.user, "give a name of letters, digits and '_', as '@nasa'")

    def _path(self) -> tuple[list[str], dict[str, str]]:
        return [self.user.removeprefix("@"), *(["with_replies"] if self.replies else [])], {}


@dataclass(frozen=True, slots=True)
class Search(_Bounds):
    """What a search finds, newest first. Any text without an @ at its beginning is short for it.

    Args:
        query: As you would type it, with all its operators: `"from:nasa since:2026-01-31 -filter:replies"`.
        max_items: Most tweets; None for the backend's `max_items`.
        since: None that was written before; with a time zone. Pages end there.
        until: None that was written then or later.

    Raises:
        ConfigError: An argument is out of range.
    """

    query: str

    def __post_init__(self) -> None:
        _Bounds.__post_init__(self)
        if not isinstance(self.query, str) or not self.query.strip():
            raise refused("query", self.query, "give a text to search for")

    def _path(self) -> tuple[list[str], dict[str, str]]:
        return ["search"], {"f": "tweets", "q": self.query}


class NitterBackend(ItemBackend):
    """A backend that collects the tweets of a timeline or a search from several mirrors of Nitter.

    A target is a `Timeline` or a `Search`; or a text, `"@user"` or what to search for; or any object with a `target_type`,
    `"user"` or `"search"`, and a `value`. A reply's value is a list of `Tweet`, each once, in the order of the pages; `stream`
    gives them one by one.

    A page costs one unit of the limits of the mirror that is asked. A mirror that says that it has been rate limited rests, and
    the request goes on with another one. A mirror that fails, or gives no page of Nitter, costs the request an attempt; the next
    one goes on from the same page, at another mirror if there is one.

    Args:
        name: As for `Backend`.
        mirrors: URLs of the mirrors, such as `"https://nitter.example"`; `request.account` is the one that is asked.
        quota: What each of them allows, as for `Backend`.
        max_items: Most tweets of a target, unless the target says otherwise; None for all.
        form: Read pages as `"html"`, or as `"rss"`: smaller, without counts and names; not every mirror has it.
        client: Your own `aiohttp.ClientSession`, which stays open; None for one of the backend's own.
        headers: Headers for each message.
        read_timeout: Longest silence of a mirror, in seconds.
        timeout: Longest attempt, in seconds, its waits for the limits between two pages included, and those of a stream for who
            reads it; None for no end.
        max_redirects: Redirects followed, each charged.
        **options: As for `Backend`.

    Raises:
        ConfigError: An option cannot work, or aiohttp is not installed.
        ModuleNotFoundError: lxml is not installed.

    Cancellation:
        The connection is closed; what was sent stays charged.

    Example:
        >>> backend = NitterBackend("nitter", ["https://one.example", "https://two.example"], "30/min")  # doctest: +SKIP
        >>> tweets = (await scheduler.fetch("@nasa")).value  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str,
        mirrors: Sequence[str],
        quota: BackendQuota | str | None = None,
        *,
        max_items: int | None = 100,
        form: Form = "html",
        client: aiohttp.ClientSession | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float = 30,
        timeout: float | None = None,
        max_redirects: int = 5,
        **options: Any,
    ) -> None:
        _require_lxml()
        if form not in get_args(Form):
            raise refused("form", form, "give 'html' or 'rss'")
        sender = Sender(log, client, "GET", max_redirects)
        bases = _checked_mirrors(mirrors)
        if headers is not None:
            for base in bases:
                check_headers(headers, base)
        super().__init__(name, self._collect, quota, accounts=bases, timeout=timeout, **options)
        self._sender = sender
        self._max_items = None if max_items is None else count_of("max_items", max_items)
        self._is_rss = form == "rss"
        self._headers = headers
        self._read_timeout = seconds_of("read_timeout", read_timeout)
        self._news: defaultdict[str, _News] = defaultdict(_News)

    async def aopen(self) -> None:
        """Open the client, or check the one that was given. The scheduler calls it when it starts."""
        self._news.clear()
        concurrency = self.quota.concurrency
        in_flight = None if concurrency is None else concurrency * len(self.accounts or ())
        self._sender.open(self.name, in_flight, concurrency)

    async def aclose(self) -> None:
        """Close the client if it is the backend's own. The scheduler calls it when it ends."""
        await self._sender.close()

    def __repr__(self) -> str:
        mirrors = ", ".join(shown(str(mirror)) for mirror in self.accounts or ())
        return f"<NitterBackend {self.name!r}: {mirrors}>"

    async def _collect(self, request: Request) -> object:
        """One attempt: page by page from one mirror, from where the attempt before it came to on another one."""
        walk = request.checkpoint
        if not isinstance(walk, _Walk) or walk.backend != request.backend:
            target = _target(target_of(request))
            most = self._max_items if target.max_items is None else target.max_items
            request.checkpoint = walk = _Walk(request.backend, target, most, items_of(request))
        mirror, items, sent = str(request.account), walk.items, False
        while not walk.ended:
            if sent:
                await self._next(request, mirror)
            sent = True
            page = await self._page(request, mirror, walk)
            for tweet in walk.wanted(page):
                if not await items.offer(request, tweet.id, tweet):
                    return None
                if len(items) == walk.most:
                    return items.value
            walk.turn(page)
        return items.value

    async def _next(self, request: Request, mirror: str) -> None:
        """Have one more page charged. When the mirror says meanwhile that it is limited, the request goes on elsewhere.

        Otherwise all that wait here for their next page would wait for as long as this one mirror rests.
        """
        news, wait = self._news[mirror], asyncio.timeout(None)
        if news.is_limited:
            raise PutBackError
        try:
            async with wait:
                news.waiting.add(wait)
                try:
                    await request.recharge()
                finally:
                    news.waiting.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
            raise PutBackError from None

    async def _page(self, request: Request, mirror: str, walk: _Walk) -> Page:
        """One page, which is charged already."""

        async def read(response: aiohttp.ClientResponse) -> Page:
            return self._read(request, mirror, response, await _body(response), rejections)

        url, rejections = walk.url(mirror, self._is_rss), self._news[mirror].rejections
        try:
            return await self._sender.exchange(request, url, self._headers, read, trust=False, silence=self._read_timeout)
        except HttpRequestError as error:  # it redirects to nowhere: that is the mirror's fault here, not the request's
            raise MirrorError(shown(mirror), str(error)) from None
        except RefusedError as error:
            if error.refusal is Refusal.ABSENT or (error.refusal is Refusal.UNAVAILABLE and self._is_rss and walk.has_begun):
                return Page()  # the end of a feed is said as if there were no such user
            raise _public(error, mirror, target_of(request)) from None

    def _read(self, request: Request, mirror: str, response: aiohttp.ClientResponse, body: bytes, rejections: int) -> Page:
        """What a response comes to. It is acknowledged when it is known whether it is a rejection.

        `rejections`: how many the mirror had given when this page was asked for.
        """
        status = response.status
        base = shown(mirror)  # links of tweets are not to have its password in them
        try:
            if status >= 400:
                raise _refused(response, read_refusal(body))
            page = read_rss(body, base, response.headers.get("Min-Id")) if self._is_rss else read_html(body, base)
            self._news[mirror].accepted(rejections)
            return page
        except RefusedError as error:
            if error.refusal is Refusal.LIMITED:
                status = 429
                self._news[mirror].rejected()
            raise
        finally:
            request.ack(status, response.headers)


class _News:
    """What a mirror has last said of its limits, and who waits there for a next page."""

    def __init__(self) -> None:
        self.is_limited = False
        self.rejections = 0
        self.waiting: set[asyncio.Timeout] = set()

    def rejected(self) -> None:
        """It is limited: who waits need not."""
        self.is_limited = True
        self.rejections += 1
        waiting, self.waiting = self.waiting, set()  # each is told once: it may take a while to leave
        for wait in waiting:
            wait.reschedule(asyncio.get_running_loop().time())

    def accepted(self, rejections: int) -> None:
        """It has given a page that was asked for after so many rejections; what was asked for before the last one is old."""
        if rejections == self.rejections:
            self.is_limited = False


class _Walk:
    """The way through the pages of one target, from attempt to attempt: where it goes on, and what was on the pages before."""

    def __init__(self, backend: str, target: Timeline | Search, most: int | None, items: Gathered | Channel) -> None:
        self.backend = backend
        self.most = most
        self.items = items
        self.ended = False
        self._target = target
        self._cursor: str | None = None
        self._seen: set[int] = set()
        self._withheld = 0  # pages without a tweet, in a row

    @property
    def has_begun(self) -> bool:
        """Whether there was a page before this one."""
        return self._cursor is not None

    def url(self, mirror: str, is_rss: bool) -> URL:
        """Where its next page is, on this mirror."""
        from yarl import URL

        parts, query = self._target._path()  # noqa: SLF001 - its other half
        if self._cursor is not None:
            query["cursor"] = self._cursor
        return URL(mirror).joinpath(*parts, *(["rss"] if is_rss else [])).with_query(query)

    def wanted(self, page: Page) -> Iterator[Tweet]:
        """The tweets of its next page that are within the bounds; some may have been on earlier ones."""
        since, until = self._target.since, self._target.until
        for tweet in page.tweets:
            if (since is None or since <= tweet.created_at) and (until is None or tweet.created_at < until):
                yield tweet

    def turn(self, page: Page) -> None:
        """Go on behind its next page, all of which has been taken."""
        since, seen = self._target.since, len(self._seen)
        self._seen.update(tweet.id for tweet in page.tweets)
        is_past = since is not None and page.reached is not None and page.reached < since
        self._withheld = 0 if page.tweets else self._withheld + 1
        # A page without anything new would be followed by others for ever.
        is_stale = self._withheld == MOST_WITHHELD or (bool(page.tweets) and len(self._seen) == seen)
        self.ended = page.cursor is None or is_stale or is_past
        self._cursor = page.cursor


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """A page, whole; of an error page its beginning is enough."""
    if response.status >= 400:
        return await beginning(response, LARGEST_ERROR)
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > LARGEST_PAGE:
            raise RefusedError(Refusal.BROKEN, f"a page of more than {LARGEST_PAGE >> 20} MiB")
    return bytes(body)


def _refused(response: aiohttp.ClientResponse, error: RefusedError) -> RefusedError:
    """What a page says, seen together with its status."""
    if response.status == 429 or (response.status == 503 and "Retry-After" in response.headers):
        return RefusedError(Refusal.LIMITED, error.said)
    if error.refusal is Refusal.BROKEN:
        return RefusedError(Refusal.BROKEN, f"status {response.status}, {error.said}")
    return error


def _public(error: RefusedError, mirror: str, target: object) -> TidegateError:
    """The error that a request sees."""
    match error.refusal:
        case Refusal.LIMITED:
            return BackendRateLimitedError(f"{shown(mirror)}: {error.said}")
        case Refusal.UNAVAILABLE:
            return NitterTargetError(f"{shown_target(target)}: {error.said}")
        case _:
            return MirrorError(shown(mirror), error.said)


def _target(target: object) -> Timeline | Search:
    """A target in one of its forms."""
    try:
        match target:
            case Timeline() | Search():
                return target
            case str():
                return Timeline(target) if target.startswith("@") else Search(target)
        match getattr(target, "target_type", None):
            case "user":
                return Timeline(getattr(target, "value", ""))
            case "search":
                return Search(getattr(target, "value", ""))
    except ConfigError as error:
        raise NitterTargetError(str(error)) from None
    kind = type(target).__name__
    raise NitterTargetError(f"a target of type {kind}: give a Timeline, a Search, a text, or what has a target_type and a value")


def _checked_mirrors(mirrors: object) -> list[str]:
    """The mirrors' URLs without a slash at the end."""
    way_out = "give a list of URLs, such as ['https://nitter.example']"
    if isinstance(mirrors, str | bytes) or not isinstance(mirrors, Sequence) or not mirrors:
        raise refused("mirrors", type(mirrors).__name__ if mirrors else mirrors, way_out)
    bases: list[str] = []
    for mirror in mirrors:
        if not isinstance(mirror, str):
            raise refused("mirrors", type(mirror).__name__, way_out)
        try:
            parts = urlsplit(mirror)
            fits = parts.scheme in {"http", "https"} and bool(parts.hostname)
            _ = parts.port  # raises when it is no number below 65536
        except ValueError:
            raise refused("mirrors", "an unreadable URL", way_out) from None
        if not fits or "?" in mirror or "#" in mirror:
            raise refused("mirrors", shown(mirror), "start it with http:// or https:// and a host, and leave out '?' and '#'")
        base = mirror.rstrip("/")
        if base in bases:
            raise refused("mirrors", shown(mirror), "name each mirror once")
        bases.append(base)
    return bases


def _require_lxml() -> None:
    """Say how to get lxml when it is missing."""
    try:
        import lxml.html  # noqa: F401
    except ImportError:
        raise ModuleNotFoundError("tidegate.backends.nitter needs lxml: pip install 'lxml>=5'", name="nitter") from None
