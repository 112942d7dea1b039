"""Callers' tests with `unittest.mock`: every attribute exists, and is a mock."""

from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest
from tests.dropin.caller import (
    InsertBatch,
    Manager,
    Result,
    mock_manager,
    mock_target,
    plenty,
    text_of,
    until,
    until_processed,
    user,
)

MOCKS = pytest.mark.parametrize("mock", [Mock, MagicMock, AsyncMock])


@MOCKS
@pytest.mark.parametrize("storage", [Mock, MagicMock])
async def test_mocked_manager_and_storage(dropin, mock, storage):
    manager, storage = mock_manager(mock, result=Result(["a", "b"])), storage()
    scheduler = dropin.RateLimitScheduler(manager, storage)
    target = mock_target()
    await scheduler.start()
    assert await scheduler.schedule_request(target) is True
    await until_processed(scheduler, 1)
    await scheduler.stop()
    manager.scrape_user_tweets.assert_awaited_once()
    assert manager.scrape_user_tweets.await_args.args[0] == "ada"
    manager.scrape_search_tweets.assert_not_called()
    storage.insert_batch.assert_called_once_with(["a", "b"])
    storage.insert_tweets_batch.assert_not_called()
    assert target.last_scraped.tzinfo is not None


@MOCKS
async def test_mocked_search(dropin, mock):
    manager = mock_manager(mock)
    scheduler = dropin.RateLimitScheduler(manager, Mock())
    await scheduler.start()
    await scheduler.schedule_request(mock_target("#rust", kind="search"))
    await until_processed(scheduler, 1)
    await scheduler.stop()
    manager.scrape_search_tweets.assert_awaited_once()
    assert manager.scrape_search_tweets.await_args.args[0] == "#rust"
    manager.scrape_user_tweets.assert_not_called()


@MOCKS
async def test_mocked_result(dropin, mock):
    """Of which a test sets what it needs, and the rest is mocks: `backend_used`, too."""
    result = mock(success=True, tweets=["tweet"])
    storage = InsertBatch()
    scheduler = dropin.RateLimitScheduler(mock_manager(result=result), storage)
    await scheduler.start()
    await scheduler.schedule_request(mock_target())
    await until_processed(scheduler, 1)
    status = await scheduler.get_status()
    await scheduler.stop()
    assert storage.rows == ["tweet"]
    assert set(status["backend_status"]) == {"snscrape", "nitter"}


@MOCKS
async def test_backends_are_used_only_if_they_are_a_list(dropin, mock):
    manager = mock_manager(mock)
    scheduler = dropin.RateLimitScheduler(manager, Mock())
    await scheduler.start()
    await scheduler.schedule_request(mock_target(), backend_preference="nitter")
    await until_processed(scheduler, 1)
    await scheduler.stop()
    manager.scrape_user_tweets.assert_awaited_once()
    assert set(scheduler.quotas) == {"snscrape", "nitter"}


def mock_backend(mock, name):
    backend = mock()
    backend.get_name = Mock(return_value=name)
    backend.is_available = Mock(return_value=True)
    backend.scrape_user_tweets = AsyncMock(return_value=Result([f"from {name}"], backend_used=name))
    return backend


@MOCKS
async def test_mocked_backends(dropin, mock):
    manager, storage = mock_manager(mock, result=Result(["from nitter"])), InsertBatch()
    manager.backends = [mock_backend(mock, name) for name in ("snscrape", "nitter")]
    scheduler = dropin.RateLimitScheduler(manager, storage)
    await scheduler.start()
    await scheduler.schedule_request(mock_target(), backend_preference="nitter")
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert storage.rows == ["from nitter"]


@pytest.mark.parametrize(
    "kind, other, told",
    [
        ("user", "search", "by its type"),
        ("search", "user", "by its type"),
        ("user", "search", "by its properties"),
        pytest.param("search", "user", "by its properties"),
        ("user", "search", "by both"),
        ("search", "user", "by both"),
    ],
)
async def test_target_told(dropin, kind, other, told):
    """A test sets what it needs of a target; the other attributes are there as well, and are mocks."""
    target = Mock(value="ada", last_scraped=None)
    if told != "by its properties":
        target.target_type = kind
    if told != "by its type":
        target.is_user, target.is_search = kind == "user", kind == "search"
    manager = mock_manager()
    scheduler = dropin.RateLimitScheduler(manager, Mock())
    await scheduler.start()
    await scheduler.schedule_request(target)
    await until_processed(scheduler, 1)
    await scheduler.stop()
    getattr(manager, {"user": "scrape_user_tweets", "search": "scrape_search_tweets"}[kind]).assert_awaited_once()
    getattr(manager, {"user": "scrape_user_tweets", "search": "scrape_search_tweets"}[other]).assert_not_called()


@MOCKS
async def test_nothing_but_a_mock(dropin, mock):
    """With quotas of one's own there is nothing to ask the manager for."""
    scheduler = dropin.RateLimitScheduler(mock(), mock(), plenty(dropin))
    assert await scheduler.schedule_request(mock_target())
    status = await scheduler.get_status()
    assert status["queue_size"] == 1
    assert set(status["backend_status"]) == {"snscrape", "nitter"}


@MOCKS
async def test_nothing_but_a_mock_starts_and_stops(dropin, mock):
    scheduler = dropin.RateLimitScheduler(mock(), mock(), plenty(dropin))
    await scheduler.start(num_workers=2)
    assert len(scheduler._worker_tasks) == 2
    await scheduler.stop()
    assert scheduler._worker_tasks == []


async def test_autospec(dropin):
    manager = create_autospec(Manager, instance=True)
    manager.get_available_backends.return_value = ["snscrape"]
    manager.scrape_user_tweets.return_value = Result(["tweet"])
    storage = create_autospec(InsertBatch, instance=True)
    scheduler = dropin.RateLimitScheduler(manager, storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until_processed(scheduler, 1)
    await scheduler.stop()
    manager.scrape_user_tweets.assert_awaited_once()
    storage.insert_batch.assert_called_once_with(["tweet"])


async def test_side_effects(virtual):
    manager = mock_manager()
    manager.scrape_user_tweets.side_effect = [ConnectionError("reset"), Result(success=False, error_message="busy"), Result()]
    storage = Mock()
    scheduler = virtual.scheduler(manager, storage)
    await scheduler.start()
    await scheduler.schedule_request(mock_target())
    await virtual.clock.run_for(600)
    await scheduler.stop()
    assert manager.scrape_user_tweets.await_count == 3
    assert scheduler.stats["requests_processed"] == 1
    storage.insert_batch.assert_not_called()


async def test_a_coroutine_instead_of_a_mock(dropin):
    manager = MagicMock()
    manager.get_available_backends.return_value = ["snscrape", "nitter"]
    asked = []

    async def scrape(name, max_tweets=100):
        asked.append((name, max_tweets))
        return MagicMock(success=True, tweets=[])

    manager.scrape_user_tweets = scrape
    scheduler = dropin.RateLimitScheduler(manager, MagicMock())
    await scheduler.start()
    await scheduler.schedule_request(mock_target())
    await until(lambda: asked)
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert asked == [("ada", 100)]


async def test_replaced_after_it_was_made(dropin):
    """A test may change the manager's method, or the manager and the storage, of a scheduler that is there already."""
    scheduler = dropin.RateLimitScheduler(mock_manager(result=Result(["old"])), InsertBatch())
    scheduler.backend_manager.scrape_user_tweets = AsyncMock(return_value=Result(["new"]))
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until_processed(scheduler, 1)
    scheduler.backend_manager = mock_manager(result=Result(["newer"]))
    scheduler.storage = other = InsertBatch()
    await scheduler.schedule_request(user())
    await until_processed(scheduler, 2)
    await scheduler.stop()
    assert other.rows == ["newer"]


async def test_status_of_mocks_is_plain(dropin):
    scheduler = dropin.RateLimitScheduler(mock_manager(MagicMock), MagicMock())
    status = await scheduler.get_status()
    for state in status["backend_status"].values():
        assert isinstance(text_of(state["status"]), str)
        assert isinstance(state["can_make_request"], bool)
