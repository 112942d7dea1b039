"""Collecting with the scrapers of the snscrape package: `pip install snscrape`.

    backend = SnscrapeBackend("telegram", "telegram-channel", "30/min", max_items=500)

Its scrapers run in threads of the backend. What they send goes through a session of ours: each message, also each page,
redirect hop and guest token, is charged when it may go, and acknowledged when its response headers arrive. snscrape's own
retries are off: the scheduler retries, and a repeated attempt gives each item once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from tidegate import BackendQuota, BackendRejectedError, ConfigError, Request, TidegateError
from tidegate._quota import count_of, seconds_of
from tidegate.backends._address import refused, shown
from tidegate.backends._items import ItemBackend, ItemStream, items_of, target_of
from tidegate.backends._scrape import Scrape, ScrapeError
from tidegate.backends._scrapers import base, scraper_named

if TYPE_CHECKING:
    from tidegate.backends._wire import Proxies, Wire

__all__ = ["ItemStream", "Scrape", "ScrapeError", "SnscrapeBackend"]

DEFAULT_CONNECTIONS = 32


class SnscrapeBackend(ItemBackend):
    """A backend that runs one of snscrape's scrapers for each target.

    The value of a reply is the list of the items, in the order in which the scraper finds them; `stream` gives them one by one.

    Args:
        name: As for `Backend`.
        scraper: The name of a scraper, as snscrape's command line has it, such as `"telegram-channel"`: a target is its first
            argument. None: each target is a `Scrape`, which says it itself; it may also in the other case.
        quota: As for `Backend`. Each message takes a unit.
        max_items: Items after which a scrape ends, at least 1; None for all there are.
        base_url: Sends what is for any service to this URL instead, such as a mirror or a server for tests, path and query being
            kept: `"http://localhost:8000"`. A mapping does so for the origins that it names:
            `{"https://t.me": "http://localhost:8000"}`.
        arguments: More arguments of the scraper's class, by name, for all targets.
        proxies: As requests takes them, `{"https": "http://user:password@proxy.example:8080"}`, or a function of the `Request`
            that gives them, as for a proxy by account. Without it those of the environment are used.
        message_timeout: Seconds that a server may take to accept a connection, and then between two pieces of its answer; None
            for snscrape's own, 10.
        timeout: Longest attempt, in seconds, its waits for the limits between two messages included, and those of a stream for
            who reads it; None for no end.
        **options: As for `Backend`.

    Raises:
        ConfigError: An option cannot work, or snscrape has no such scraper.
        ModuleNotFoundError: snscrape is not installed.

    Cancellation:
        The thread ends before its next message or item.
    """

    def __init__(
        self,
        name: str,
        scraper: str | None = None,
        quota: BackendQuota | str | None = None,
        *,
        max_items: int | None = None,
        base_url: str | Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        proxies: Proxies | Callable[[Request], Proxies | None] | None = None,
        message_timeout: float | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        base()
        from tidegate.backends._wire import Lines

        super().__init__(name, self._scrape, quota, timeout=timeout, **options)
        if scraper is not None:
            scraper_named(scraper)
        self._scraper = scraper
        self._max_items = None if max_items is None else count_of("max_items", max_items)
        self._arguments = _checked_arguments(arguments)
        self._proxies = _checked_proxies(proxies)
        self._message_timeout = None if message_timeout is None else seconds_of("message_timeout", message_timeout)
        self._lines = Lines(self.quota.concurrency or DEFAULT_CONNECTIONS, _checked_base(base_url))

    async def aclose(self) -> None:
        """Close the connections. The scheduler calls it when it ends."""
        self._lines.close()

    def __repr__(self) -> str:
        return f"<SnscrapeBackend {self.name!r} {self._scraper or 'any scraper'}: {self.quota!r}>"

    def _scrape(self, request: Request) -> object:
        """One attempt, in a thread."""
        from tidegate.backends._wire import Wire

        scrape = self._wanted(target_of(request))
        items, most = items_of(request), self._max_items
        wire = Wire(request, self._lines, self._message_timeout, self._proxies_of(request))
        scraper = self._made(scrape)
        wire.carry(scraper._session)  # noqa: SLF001 - it has no other way to be given one
        if self.quota.limits and hasattr(scraper, "_rate_limited_get"):
            # Mastodon's, which pauses for 3 s before each message: its limits are declared here.
            scraper._rate_limited_get = scraper._get  # noqa: SLF001
        try:
            if most is None or len(items) < most:
                had: set[tuple[str, str]] = set()
                for item in scraper.get_items():
                    key = type(item).__name__, str(item)
                    if not items.offer_blocking(request, key, item):
                        return None
                    if key not in had:
                        had.add(key)
                        wire.bore()
                    if most is not None and len(items) >= most:
                        break
        except TidegateError:
            raise
        except base().EntityUnavailable as error:
            msg = f"{scrape.scraper}: {error}"
            raise BackendRejectedError(msg) from error
        except base().ScraperException as error:
            failure = _failure(scrape, str(error), wire)
        except Exception as error:  # of any kind: it reads pages as if they could not be otherwise
            url = None if wire.url is None else shown(wire.url)
            msg = f"{scrape.scraper} cannot read what it was sent: {type(error).__name__}: {error}"
            raise ScrapeError(msg, url=url) from error
        else:
            # Some scrapers log that there is no such user, and end as if it had no items.
            if wire.status is None or wire.status < 400:
                return items.value
            failure = _failure(scrape, "", wire)
        raise failure

    def _proxies_of(self, request: Request) -> Proxies | None:
        if not callable(self._proxies):
            return self._proxies
        try:
            return _checked_mapping(self._proxies(request))
        except ConfigError as error:
            raise BackendRejectedError(str(error)) from None

    def _wanted(self, target: object) -> Scrape:
        """What a target asks for, with the scraper's name."""
        if isinstance(target, Scrape):
            return target
        if self._scraper is None:
            msg = f"the target is of type {type(target).__name__}: give a Scrape(scraper, ...), or name a scraper for all targets"
            raise BackendRejectedError(msg)
        return Scrape(self._scraper, target)

    def _made(self, scrape: Scrape) -> Any:
        """A scraper, which sends nothing yet."""
        try:
            kind = scraper_named(scrape.scraper)
            return kind(*scrape.args, **{"retries": 0, **self._arguments, **scrape.kwargs})
        except Exception as error:  # what a class makes of arguments that it cannot use
            msg = f"{scrape.scraper}: {type(error).__name__}: {error}"
            raise BackendRejectedError(msg) from error


def _failure(scrape: Scrape, problem: str, wire: Wire) -> ScrapeError:
    """What snscrape's own error means: it says that something failed, and the wire has seen what."""
    url = None if wire.url is None else shown(wire.url)
    if wire.status is not None and wire.status >= 400:
        return ScrapeError(f"status {wire.status}", url=url, status=wire.status)
    if " requests to " in problem:  # with the whole URL
        problem = "the answer is not what it expects"
    return ScrapeError(f"{scrape.scraper}: {problem}", url=url)


def _checked_arguments(arguments: object) -> Mapping[str, Any]:
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise refused("arguments", type(arguments).__name__, "give a mapping of names to values, such as {'maxEmptyPages': 5}")
    if "proxies" in arguments:
        raise refused("arguments", "proxies", "give proxies=... to the backend itself, which keeps their passwords out of logs")
    return dict(arguments)


def _checked_proxies(proxies: object) -> Proxies | Callable[[Request], Proxies | None] | None:
    return proxies if callable(proxies) else _checked_mapping(proxies)


def _checked_mapping(proxies: object) -> Proxies | None:
    if proxies is None:
        return None
    if not isinstance(proxies, Mapping) or not all(isinstance(part, str) for pair in proxies.items() for part in pair):
        raise refused("proxies", type(proxies).__name__, "give a mapping such as {'https': 'http://proxy.example:8080'}")
    return dict(proxies)


def _checked_base(base_url: object) -> str | Mapping[str, str] | None:
    if base_url is None:
        return None
    if not isinstance(base_url, Mapping):
        return _checked_url(base_url)
    checked = {}
    for origin, url in base_url.items():
        _checked_url(origin)
        parts = urlsplit(cast("str", origin))
        if parts.path not in ("", "/"):
            raise refused("base_url", shown(origin), "give an origin without a path, such as 'https://t.me'")
        checked[f"{parts.scheme}://{parts.netloc}".lower()] = _checked_url(url)
    return checked


def _checked_url(url: object) -> str:
    way_out = "give an http(s) URL such as 'http://localhost:8000', or a mapping of origins to such URLs"
    if not isinstance(url, str):
        raise refused("base_url", url, way_out)
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port  # raises when it is no number below 65536
    except ValueError:
        raise refused("base_url", "an unreadable URL", way_out) from None
    if not fits or parts.query or parts.fragment:
        raise refused("base_url", shown(url), way_out)
    if "@" in parts.netloc:
        raise refused("base_url", shown(url), "leave out user and password: they would not be sent")
    return url
