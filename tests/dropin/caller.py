"""What a caller of the old scheduler brings: targets, results, backend managers and storages, and how its tests wait."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from unittest.mock import AsyncMock, Mock

# Requests a minute and an hour, and at once, that no test reaches.
PLENTY = (1_000_000, 1_000_000, 1000)


@dataclass
class Target:
    """An account or a search term. Compared by value, so it has no hash."""

    target_type: str
    value: str
    weight: float = 1.0
    last_scraped: datetime | None = None
    error_count: int = 0

    @property
    def is_user(self):
        return self.target_type == "user"

    @property
    def is_search(self):
        return self.target_type == "search"


def user(name="ada"):
    return Target("user", name)


def users(count):
    return [user(f"user {number}") for number in range(count)]


def mock_target(name="ada", *, kind="user"):
    """A target as a test would mock it."""
    return Mock(
        target_type=kind,
        value=name,
        weight=1.0,
        last_scraped=None,
        error_count=0,
        is_user=kind == "user",
        is_search=kind == "search",
    )


@dataclass
class Result:
    """What a scrape came to."""

    tweets: list = field(default_factory=list)
    success: bool = True
    error_message: str | None = None
    backend_used: str = "snscrape"


async def one_tweet(kind, value):
    """The usual answer."""
    return Result([f"tweet of {value}"])


async def no_tweets(kind, value):
    """An answer that asks for no storage, hence for no thread: for virtual time."""
    return Result()


class Manager:
    """The least there is: names, and two coroutines. `answer(kind, value)` is what they await."""

    def __init__(self, answer=one_tweet, names=("snscrape", "nitter")):
        self.answer = answer
        self.names = list(names)
        self.calls = []

    def get_available_backends(self):
        return list(self.names)

    async def scrape_user_tweets(self, name, max_tweets=100):
        self.calls.append(("user", name))
        return await self.answer("user", name)

    async def scrape_search_tweets(self, query, max_tweets=100):
        self.calls.append(("search", query))
        return await self.answer("search", query)

    @property
    def asked(self):
        """The names and terms asked for, in the order of the calls."""
        return [value for _, value in self.calls]


class BackendObject:
    """One backend of a manager that has objects."""

    def __init__(self, name):
        self.name = name
        self.available = True
        self.error = None
        self.calls = []

    def get_name(self):
        return self.name

    def is_available(self):
        return self.available

    async def scrape_user_tweets(self, name, max_tweets=100):
        return self._answer(name)

    async def scrape_search_tweets(self, query, max_tweets=100):
        return self._answer(query)

    def _answer(self, value):
        self.calls.append(value)
        if self.error is not None:
            raise self.error
        return Result([f"tweet of {value}"], backend_used=self.name)


class ManagerOfObjects:
    """A manager with `.backends`, which by itself asks the first of them that is available."""

    def __init__(self, *names):
        self.backends = [BackendObject(name) for name in names]

    def get_available_backends(self):
        return [backend.get_name() for backend in self.backends if backend.is_available()]

    async def scrape_user_tweets(self, name, max_tweets=100):
        return await self._first().scrape_user_tweets(name, max_tweets)

    async def scrape_search_tweets(self, query, max_tweets=100):
        return await self._first().scrape_search_tweets(query, max_tweets)

    def _first(self):
        return next(backend for backend in self.backends if backend.available)

    def backend(self, name):
        return next(backend for backend in self.backends if backend.name == name)

    def calls(self, name):
        return self.backend(name).calls


class InsertBatch:
    """A storage with the one method."""

    def __init__(self):
        self.rows = []
        self.threads = set()

    def insert_batch(self, tweets):
        self.threads.add(threading.get_ident())
        self.rows.extend(tweets)


class InsertTweetsBatch:
    """A storage with the other."""

    def __init__(self):
        self.rows = []

    def insert_tweets_batch(self, tweets):
        self.rows.extend(tweets)


class Both(InsertBatch):
    """A storage with both, of which the first is meant."""

    def __init__(self):
        super().__init__()
        self.others = []

    def insert_tweets_batch(self, tweets):
        self.others.extend(tweets)


def mock_manager(mock=Mock, *, result=None, names=("snscrape", "nitter")):
    """A manager any attribute of which exists; its coroutines return `result`."""
    manager = mock()
    manager.get_available_backends = Mock(return_value=list(names))
    manager.scrape_user_tweets = AsyncMock(return_value=result or Result(["tweet"]))
    manager.scrape_search_tweets = AsyncMock(return_value=result or Result(["tweet"]))
    return manager


def plenty(dropin, *names):
    """Quotas that no test reaches, by name."""
    return {name: dropin.BackendQuota(name, *PLENTY) for name in names or ("snscrape", "nitter")}


class Collecting:
    """A collector in virtual time, and the instants at which each of its targets is asked for. `work` are seconds."""

    def __init__(self, virtual, targets, interval, *, work=0.0, quotas=None):
        self.clock, self.work = virtual.clock, work
        self.instants = defaultdict(list)
        manager = Manager(self.answer, names=["snscrape"])
        self.scheduler = virtual.scheduler(manager, InsertBatch(), quotas or plenty(virtual.dropin, "snscrape"))
        self.collector = virtual.dropin.ContinuousCollector(self.scheduler, targets, interval)

    async def answer(self, kind, value):
        self.instants[value].append(self.clock.time())
        if self.work:
            await self.clock.sleep(self.work)
        return Result()

    async def start(self):
        await self.scheduler.start(num_workers=20)
        await self.collector.start()

    async def stop(self):
        await self.collector.stop()
        await self.scheduler.stop()


async def until(condition: Callable[[], object], seconds: float = 30):
    """Wait for a condition, and fail when it does not come to hold."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not come to hold"
        await asyncio.sleep(0.005)


async def until_processed(scheduler, count):
    """Wait until so many requests have succeeded."""
    await until(lambda: scheduler.stats["requests_processed"] >= count)


def text_of(status):
    """The text of a status, given as such or as a member of the enumeration."""
    return getattr(status, "value", status)
