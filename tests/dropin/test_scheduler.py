"""`RateLimitScheduler` with small real managers and storages."""

import asyncio
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from tests.dropin.caller import (
    PLENTY,
    Both,
    InsertBatch,
    Manager,
    ManagerOfObjects,
    Result,
    Target,
    mock_manager,
    no_tweets,
    plenty,
    text_of,
    until,
    until_processed,
    user,
    users,
)

from tidegate import ConfigError

STATUS_KEYS = {"running", "queue_size", "workers_active", "stats", "backend_status", "queue_stats"}
BACKEND_KEYS = {
    *("status", "success_rate", "avg_response_time", "active_requests", "minute_requests", "hour_requests"),
    *("can_make_request", "wait_time"),
}


@pytest.fixture
def storage():
    return InsertBatch()


# ---- As it is made


def test_attributes(dropin, storage):
    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, storage)
    assert scheduler.backend_manager is manager
    assert scheduler.storage is storage
    assert isinstance(scheduler.request_queue, dropin.RequestQueue)
    assert isinstance(scheduler.load_balancer, dropin.LoadBalancer)
    assert scheduler._running is False
    assert scheduler._worker_tasks == []
    assert set(scheduler.stats) >= {
        *("requests_processed", "requests_failed", "backends_used", "avg_processing_time", "start_time"),
    }
    assert (scheduler.stats["requests_processed"], scheduler.stats["requests_failed"]) == (0, 0)
    assert len(scheduler.stats["backends_used"]) == 0


def test_keywords(dropin, storage):
    manager, quotas = Manager(), plenty(dropin)
    scheduler = dropin.RateLimitScheduler(backend_manager=manager, storage=storage, quotas=quotas)
    assert scheduler.backend_manager is manager
    assert scheduler.quotas["nitter"] is quotas["nitter"]


@pytest.mark.parametrize("name, figures", [("snscrape", (100, 3000, 10)), ("nitter", (30, 1000, 5)), ("twint", (20, 500, 3))])
def test_default_quotas(dropin, storage, name, figures):
    quota = dropin.RateLimitScheduler(Manager(names=["snscrape", "nitter", "twint"]), storage).quotas[name]
    assert quota.backend_name == name
    assert (quota.requests_per_minute, quota.requests_per_hour, quota.concurrent_requests) == figures


def test_quotas_are_those_given(dropin, storage):
    quotas = {"snscrape": dropin.BackendQuota("snscrape", 7, 70, 1)}
    scheduler = dropin.RateLimitScheduler(Manager(), storage, quotas)
    assert scheduler.quotas["snscrape"] is quotas["snscrape"]
    assert scheduler.load_balancer.get_wait_time("snscrape") == 0


# ---- Served


async def test_a_user_is_scraped_and_stored(dropin, storage):
    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, storage)
    target = user()
    before = datetime.now(UTC) - timedelta(seconds=1)
    assert await scheduler.schedule_request(target) is True
    await scheduler.start()
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert manager.calls == [("user", "ada")]
    assert storage.rows == ["tweet of ada"]
    assert before < target.last_scraped <= datetime.now(UTC) + timedelta(seconds=1)
    assert scheduler.stats["requests_processed"] == 1
    assert scheduler.stats["requests_failed"] == 0
    assert len(scheduler.stats["backends_used"]) == 1
    assert next(iter(scheduler.stats["backends_used"])) in scheduler.quotas
    assert scheduler.stats["avg_processing_time"] >= 0
    assert scheduler.stats["start_time"] is not None


async def test_a_search_is_scraped_and_stored(dropin, storage):
    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, storage)
    await scheduler.start()
    assert await scheduler.schedule_request(Target("search", "#rust"))
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert manager.calls == [("search", "#rust")]
    assert storage.rows == ["tweet of #rust"]


async def test_many_each_once(dropin, storage):
    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, storage, plenty(dropin))
    targets = users(200)
    await scheduler.start()
    for target in targets:
        assert await scheduler.schedule_request(target)
    await until_processed(scheduler, 200)
    await scheduler.stop()
    assert sorted(manager.asked) == sorted(target.value for target in targets)
    assert len(storage.rows) == len(set(storage.rows)) == 200
    assert all(target.last_scraped for target in targets)
    assert await scheduler.request_queue.is_empty()


async def test_storage_is_called_in_a_thread(dropin, storage):
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert storage.threads
    assert threading.get_ident() not in storage.threads


async def test_a_slow_storage_does_not_hold_the_loop(dropin):
    """It returns only once the loop has gone on."""
    begun, gone_on = threading.Event(), threading.Event()

    class Slow(InsertBatch):
        def insert_batch(self, tweets):
            begun.set()
            assert gone_on.wait(30)
            super().insert_batch(tweets)

    storage = Slow()
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until(begun.is_set)
    gone_on.set()
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert storage.rows == ["tweet of ada"]


async def test_of_two_methods_insert_batch(dropin):
    storage = Both()
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert (storage.rows, storage.others) == (["tweet of ada"], [])


async def test_without_tweets_nothing_is_stored(dropin):
    class Never(InsertBatch):
        def insert_batch(self, tweets):
            raise AssertionError("there is nothing to store")

    scheduler = dropin.RateLimitScheduler(Manager(no_tweets), Never())
    target = user()
    await scheduler.start()
    await scheduler.schedule_request(target)
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert target.last_scraped is not None
    assert scheduler.stats["requests_failed"] == 0


async def test_a_preference_is_heeded(dropin, storage):
    scheduler = dropin.RateLimitScheduler(ManagerOfObjects("nitter", "snscrape"), storage)
    await scheduler.start()
    assert await scheduler.schedule_request(user(), backend_preference="nitter")
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert "nitter" in scheduler.stats["backends_used"]
    assert "snscrape" not in scheduler.stats["backends_used"]
    assert len(scheduler.quotas["nitter"].minute_requests) == 1
    assert len(scheduler.quotas["snscrape"].minute_requests) == 0


async def test_a_preference_for_a_stranger(dropin, storage):
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    await scheduler.start()
    assert await scheduler.schedule_request(user(), backend_preference="twint")
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert storage.rows == ["tweet of ada"]


async def test_another_serves_when_the_preferred_one_cannot(dropin, storage):
    quotas = {"snscrape": dropin.BackendQuota("snscrape", *PLENTY), "nitter": dropin.BackendQuota("nitter", 2, 100, 5)}
    scheduler = dropin.RateLimitScheduler(ManagerOfObjects("snscrape", "nitter"), storage, quotas)
    await scheduler.start()
    for target in users(10):
        await scheduler.schedule_request(target, backend_preference="nitter")
    await until_processed(scheduler, 10)
    await scheduler.stop()
    assert len(quotas["nitter"].minute_requests) <= 2
    assert len(quotas["snscrape"].minute_requests) >= 8
    assert set(scheduler.stats["backends_used"]) == {"snscrape", "nitter"}


async def test_one_that_is_not_available_is_not_called(dropin, storage):
    manager = ManagerOfObjects("snscrape", "nitter")
    scheduler = dropin.RateLimitScheduler(manager, storage)
    manager.backend("nitter").available = False
    await scheduler.start()
    await scheduler.schedule_request(user(), backend_preference="nitter")
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert (manager.calls("snscrape"), manager.calls("nitter")) == (["ada"], [])


async def test_a_scrape_may_take_long(virtual, storage):
    async def slow(kind, value):
        await virtual.clock.sleep(1800)
        return Result()

    manager = Manager(slow)
    scheduler = virtual.scheduler(manager, storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await virtual.clock.run_for(2000)
    await scheduler.stop()
    assert manager.asked == ["ada"]
    assert scheduler.stats["requests_processed"] == 1


async def test_a_scrape_may_schedule_more(dropin, storage):
    async def chain(kind, value):
        if len(manager.calls) < 5:
            assert await scheduler.schedule_request(user(f"{value}'s friend"))
        return Result([value])

    manager = Manager(chain)
    scheduler = dropin.RateLimitScheduler(manager, storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until_processed(scheduler, 5)
    await scheduler.stop()
    assert storage.rows == ["ada" + "'s friend" * count for count in range(5)]


async def test_urgent_ones_first(dropin, storage):
    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, storage, plenty(dropin))
    for name in ("LOW", "NORMAL", "HIGH", "CRITICAL"):
        for number in range(3):
            await scheduler.schedule_request(user(f"{name} {number}"), priority=dropin.RequestPriority[name])
    await scheduler.start(num_workers=1)
    await until_processed(scheduler, 12)
    await scheduler.stop()
    assert manager.asked == [f"{name} {number}" for name in ("CRITICAL", "HIGH", "NORMAL", "LOW") for number in range(3)]


async def test_normal_by_default_and_positional(dropin, storage):
    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, storage, plenty(dropin))
    await scheduler.schedule_request(user("low"), dropin.RequestPriority.LOW)
    await scheduler.schedule_request(user("default"))
    await scheduler.schedule_request(user("high"), dropin.RequestPriority.HIGH, "nitter")
    await scheduler.start(num_workers=1)
    await until_processed(scheduler, 3)
    await scheduler.stop()
    assert manager.asked == ["high", "default", "low"]


async def test_a_target_may_be_scheduled_twice(dropin, storage):
    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, storage)
    target = user()
    assert await scheduler.schedule_request(target)
    assert await scheduler.schedule_request(target)
    assert await scheduler.request_queue.size() == 2
    await scheduler.start()
    await until_processed(scheduler, 2)
    await scheduler.stop()
    assert manager.asked == ["ada", "ada"]


# ---- Failures


async def fails(kind, value):
    return Result(success=False, error_message="no such user")


async def raises(kind, value):
    raise ConnectionError("reset by peer")


FAILURES = pytest.mark.parametrize("failure", [fails, raises])


@FAILURES
async def test_three_retries_and_no_more(virtual, storage, failure):
    manager = Manager(failure)
    scheduler = virtual.scheduler(manager, storage)
    target = user()
    await scheduler.start()
    assert await scheduler.schedule_request(target)
    await virtual.clock.run_for(600)
    await scheduler.stop()
    assert manager.asked == ["ada"] * 4
    assert scheduler.stats["requests_processed"] == 0
    assert scheduler.stats["requests_failed"] >= 1
    assert target.last_scraped is None
    assert storage.rows == []
    assert await scheduler.request_queue.is_empty()


@FAILURES
async def test_a_retry_may_succeed(virtual, storage, failure):
    async def twice(kind, value):
        return await (failure if len(manager.calls) <= 2 else no_tweets)(kind, value)

    manager = Manager(twice)
    scheduler = virtual.scheduler(manager, storage)
    target = user()
    await scheduler.start()
    await scheduler.schedule_request(target)
    await virtual.clock.run_for(600)
    await scheduler.stop()
    assert manager.asked == ["ada"] * 3
    assert scheduler.stats["requests_processed"] == 1
    assert target.last_scraped is not None


@FAILURES
async def test_a_failure_shows_in_the_averages(virtual, storage, failure):
    scheduler = virtual.scheduler(Manager(failure, names=["snscrape"]), storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await virtual.clock.run_for(600)
    quota = scheduler.quotas["snscrape"]
    assert quota.consecutive_failures == 4
    assert quota.success_rate == pytest.approx(0.9**4)
    assert quota.last_failure
    assert not quota.last_success
    assert quota.active_requests == 0
    state = (await scheduler.get_status())["backend_status"]["snscrape"]
    assert text_of(state["status"]) == "degraded"
    await scheduler.stop()


async def test_one_that_fails_holds_up_no_other(virtual, storage):
    async def some(kind, value):
        return await (fails if value == "user 3" else no_tweets)(kind, value)

    scheduler = virtual.scheduler(Manager(some), storage)
    targets = users(10)
    await scheduler.start()
    for target in targets:
        await scheduler.schedule_request(target)
    await virtual.clock.run_for(600)
    await scheduler.stop()
    assert scheduler.stats["requests_processed"] == 9
    assert [target.value for target in targets if target.last_scraped is None] == ["user 3"]


@pytest.mark.parametrize("retry_count, max_retries, calls", [(0, 0, 1), (0, 1, 2), (3, 3, 1), (2, 3, 2), (0, 5, 6), (0, 9, 10)])
async def test_as_many_retries_as_a_request_has(virtual, storage, retry_count, max_retries, calls):
    manager = Manager(fails)
    scheduler = virtual.scheduler(manager, storage)
    request = virtual.dropin.ScheduledRequest(
        user(), virtual.dropin.RequestPriority.NORMAL, time.time(), retry_count, max_retries
    )
    assert await scheduler.request_queue.enqueue(request)
    await scheduler.start()
    await virtual.clock.run_for(3600)
    await scheduler.stop()
    assert len(manager.calls) == calls
    assert scheduler.stats["requests_failed"] >= 1
    assert request.retry_count == max_retries
    assert not request.can_retry


async def test_a_storage_that_fails_once(dropin):
    class Locked(InsertBatch):
        failures = 0

        def insert_batch(self, tweets):
            if not self.failures:
                self.failures += 1
                raise OSError("database is locked")
            super().insert_batch(tweets)

    storage, target = Locked(), user()
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    await scheduler.start()
    await scheduler.schedule_request(target)
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert storage.rows == ["tweet of ada"]
    assert scheduler.stats["requests_failed"] == 0
    assert target.last_scraped is not None


@dataclass(frozen=True)
class Frozen:
    """A target that cannot be told when it was scraped."""

    target_type: str = "user"
    value: str = "frozen"
    last_scraped: None = None


async def test_a_target_that_cannot_be_marked_takes_no_other_with_it(dropin, storage, caplog):
    scheduler = dropin.RateLimitScheduler(Manager(), storage, plenty(dropin))
    for target in (Frozen(), *users(20)):
        await scheduler.schedule_request(target)
    await scheduler.start(num_workers=1)
    await until_processed(scheduler, 21)
    await scheduler.stop()
    assert len(storage.rows) == 21
    assert "last_scraped" in caplog.text


async def test_a_storage_without_either_method(dropin, caplog):
    """Each request fails, counted and logged, as with a storage that raises."""
    scheduler = dropin.RateLimitScheduler(Manager(), object(), plenty(dropin))
    for target in users(3):
        await scheduler.schedule_request(target)
    await scheduler.start()
    await until(lambda: scheduler.stats["requests_failed"] == 3)
    await scheduler.stop()
    assert "insert_tweets_batch" in caplog.text


async def test_a_scrape_that_takes_an_hour_has_failed(virtual, storage):
    async def answer(kind, value):
        if len(manager.calls) == 1:
            await asyncio.Event().wait()
        return Result()

    manager = Manager(answer)
    scheduler = virtual.scheduler(manager, storage, plenty(virtual.dropin, "snscrape"))
    await scheduler.start()
    await scheduler.schedule_request(user())
    await virtual.clock.run_for(3590)
    assert scheduler.quotas["snscrape"].active_requests == 1
    await virtual.clock.run_for(20)
    await until_processed(scheduler, 1)
    assert scheduler.quotas["snscrape"].success_rate == pytest.approx(0.91)
    await scheduler.stop()


# ---- What it says of itself


async def test_status_at_first(dropin, storage):
    status = await dropin.RateLimitScheduler(Manager(), storage).get_status()
    assert set(status) >= STATUS_KEYS
    assert status["running"] is False
    assert status["queue_size"] == 0
    assert status["workers_active"] == 0
    assert status["stats"]["requests_processed"] == 0
    assert set(status["backend_status"]) == {"snscrape", "nitter"}
    for state in status["backend_status"].values():
        assert set(state) >= BACKEND_KEYS
        assert text_of(state["status"]) == "unknown"
        assert (state["success_rate"], state["avg_response_time"], state["active_requests"]) == (1.0, 0, 0)
        assert (state["minute_requests"], state["hour_requests"]) == (0, 0)
        assert state["can_make_request"] is True
        assert state["wait_time"] == 0
    assert set(status["queue_stats"]) >= {"total_queued", "total_processed", "total_dropped", "avg_wait_time"}


async def test_status_of_what_waits(dropin, storage):
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    for target in users(5):
        await scheduler.schedule_request(target)
    status = await scheduler.get_status()
    assert status["queue_size"] == await scheduler.request_queue.size() == 5
    assert status["queue_stats"]["total_queued"] == scheduler.request_queue.stats["total_queued"] == 5
    assert status["queue_stats"]["total_processed"] == 0


async def test_status_while_it_runs(dropin, storage):
    scheduler = dropin.RateLimitScheduler(Manager(names=["snscrape"]), storage)
    await scheduler.start(num_workers=2)
    for target in users(5):
        await scheduler.schedule_request(target)
    await until_processed(scheduler, 5)
    status = await scheduler.get_status()
    assert status["running"] is True
    assert status["queue_size"] == 0
    assert 0 <= status["workers_active"] <= 2
    assert status["stats"]["requests_processed"] == 5
    assert status["queue_stats"]["total_processed"] == 5
    state = status["backend_status"]["snscrape"]
    assert text_of(state["status"]) == "healthy"
    assert state["success_rate"] == pytest.approx(1.0)
    assert state["avg_response_time"] >= 0
    assert (state["active_requests"], state["minute_requests"], state["hour_requests"]) == (0, 5, 5)
    assert state["can_make_request"] is True
    await scheduler.stop()
    assert (await scheduler.get_status())["running"] is False


async def test_status_while_one_is_underway(dropin, storage):
    release = asyncio.Event()

    async def held(kind, value):
        await release.wait()
        return Result()

    scheduler = dropin.RateLimitScheduler(Manager(held, names=["snscrape"]), storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until(lambda: scheduler.quotas["snscrape"].active_requests == 1)
    status = await scheduler.get_status()
    assert status["backend_status"]["snscrape"]["active_requests"] == 1
    assert status["queue_size"] == 0
    release.set()
    await until_processed(scheduler, 1)
    assert scheduler.quotas["snscrape"].active_requests == 0
    await scheduler.stop()


async def test_status_when_used_up(dropin, storage):
    quotas = {"snscrape": dropin.BackendQuota("snscrape", 3, 100, 5)}
    scheduler = dropin.RateLimitScheduler(Manager(names=["snscrape"]), storage, quotas)
    await scheduler.start()
    for target in users(3):
        await scheduler.schedule_request(target)
    await until_processed(scheduler, 3)
    state = (await scheduler.get_status())["backend_status"]["snscrape"]
    assert text_of(state["status"]) == "rate_limited"
    assert state["can_make_request"] is False
    assert 50 < state["wait_time"] < 65
    assert scheduler.load_balancer.get_next_available_time()[0] == "snscrape"
    await scheduler.stop()


async def test_response_time_is_that_of_the_scrape(virtual, storage):
    async def slow(kind, value):
        await virtual.clock.sleep(2)
        return Result()

    scheduler = virtual.scheduler(Manager(slow, names=["snscrape"]), storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    await virtual.clock.run_for(10)
    assert scheduler.quotas["snscrape"].avg_response_time == pytest.approx(2, abs=0.1)
    assert scheduler.stats["avg_processing_time"] == pytest.approx(2, abs=0.1)
    await scheduler.stop()


# ---- The queue, by hand


async def test_what_waits_can_be_looked_at(dropin, storage):
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    first, urgent = user("first"), user("urgent")
    await scheduler.schedule_request(first)
    await scheduler.schedule_request(urgent, priority=dropin.RequestPriority.CRITICAL, backend_preference="nitter")
    request = await scheduler.request_queue.peek()
    assert request.target is urgent
    assert request.priority is dropin.RequestPriority.CRITICAL
    assert request.backend_preference == "nitter"
    assert (request.retry_count, request.max_retries) == (0, 3)
    assert not request.is_expired
    assert await scheduler.request_queue.size() == 2


async def test_what_waits_can_be_taken(dropin, storage):
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    target = user()
    await scheduler.schedule_request(target, priority=dropin.RequestPriority.HIGH)
    request = await scheduler.request_queue.dequeue()
    assert request.target is target
    assert request.priority is dropin.RequestPriority.HIGH
    assert await scheduler.request_queue.is_empty()
    assert await scheduler.request_queue.dequeue() is None


async def test_a_queue_of_ones_own(dropin, storage):
    scheduler = dropin.RateLimitScheduler(Manager(), storage, plenty(dropin))
    scheduler.request_queue = dropin.RequestQueue(max_size=2000)
    targets = users(1500)
    assert all([await scheduler.schedule_request(target) for target in targets])
    assert (await scheduler.get_status())["queue_size"] == await scheduler.request_queue.size() == 1500
    await scheduler.start()
    await until_processed(scheduler, 100)
    await scheduler.stop()
    assert len(storage.rows) >= 100


async def test_a_request_put_by_hand_is_served(dropin, storage):
    scheduler = dropin.RateLimitScheduler(Manager(), storage)
    created = datetime.now(UTC).timestamp()
    await scheduler.request_queue.enqueue(dropin.ScheduledRequest(user(), dropin.RequestPriority.LOW, created))
    await scheduler.start()
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert storage.rows == ["tweet of ada"]


async def test_backends_that_appear_later(virtual, storage):
    """What was accepted before is served first, within seconds and without another request."""
    manager = Manager(no_tweets, names=[])
    scheduler = virtual.scheduler(manager, storage)
    await scheduler.start()
    for target in users(3):
        await scheduler.schedule_request(target)
    await virtual.clock.run_for(60)
    manager.names = ["nitter"]
    await virtual.clock.run_for(6)
    assert manager.asked == ["user 0", "user 1", "user 2"]
    await until_processed(scheduler, 3)
    await scheduler.stop()


async def test_the_next_request_finds_backends_at_once(virtual, storage):
    manager = Manager(no_tweets, names=[])
    scheduler = virtual.scheduler(manager, storage)
    await scheduler.start()
    for target in users(2):
        await scheduler.schedule_request(target)
    manager.names = ["nitter"]
    await scheduler.schedule_request(user("later"))
    await virtual.clock.run_for(1)
    assert manager.asked == ["user 0", "user 1", "later"]
    await scheduler.stop()


async def test_a_manager_that_raises_meanwhile_is_asked_again(virtual, storage):
    manager = mock_manager(names=[])
    scheduler = virtual.scheduler(manager, storage)
    await scheduler.start()
    await scheduler.schedule_request(user())
    manager.get_available_backends.side_effect = OSError("no network")
    await virtual.clock.run_for(20)
    manager.get_available_backends = lambda: ["nitter"]
    await virtual.clock.run_for(6)
    await until_processed(scheduler, 1)
    await scheduler.stop()


@pytest.mark.parametrize("option", ["requests_per_minute", "requests_per_hour", "concurrent_requests"])
@pytest.mark.parametrize("most", [0, -1, 1.5, True])
def test_a_limit_that_is_none(dropin, storage, option, most):
    quotas = plenty(dropin, "snscrape")
    setattr(quotas["snscrape"], option, most)
    with pytest.raises(ConfigError, match=f"{option}={most}.*'snscrape'"):
        dropin.RateLimitScheduler(Manager(), storage, quotas)
