"""`ContinuousCollector`, over a mocked scheduler and over a real one."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
from tests.dropin.caller import Collecting, InsertBatch, Manager, mock_target, plenty, until, user, users

INTERVAL = 0.2


def mock_scheduler(mock=Mock):
    scheduler = mock()
    scheduler.schedule_request = AsyncMock(return_value=True)
    return scheduler


MOCKS = pytest.mark.parametrize("mock", [Mock, MagicMock, AsyncMock])


def priority_of(call):
    """With which a target was scheduled, by position or by name."""
    return call.kwargs["priority"] if "priority" in call.kwargs else call.args[1]


def ago(seconds):
    return datetime.now(UTC) - timedelta(seconds=seconds)


@MOCKS
def test_as_it_is_made(dropin, mock):
    scheduler, targets = mock_scheduler(mock), users(3)
    collector = dropin.ContinuousCollector(scheduler, targets)
    assert collector.scheduler is scheduler
    assert list(collector.targets) == targets
    assert collector.collection_interval_sec == 30
    assert collector._running is False
    assert collector._collection_task is None


@pytest.mark.parametrize("interval", [1, 5, 0.5, 3600])
def test_interval_as_given(dropin, interval):
    collector = dropin.ContinuousCollector(mock_scheduler(), users(1), interval)
    assert collector.collection_interval_sec == interval
    assert type(collector.collection_interval_sec) is type(interval)
    assert collector.get_stats()["collection_interval_sec"] == interval
    assert dropin.ContinuousCollector(mock_scheduler(), [], collection_interval_sec=interval).collection_interval_sec == interval


def test_statistics_at_first(dropin):
    found = dropin.ContinuousCollector(mock_scheduler(), users(4), 7).get_stats()
    assert found["running"] is False
    assert found["targets_count"] == 4
    assert found["collection_interval_sec"] == 7
    stats = found["stats"]
    assert set(stats) >= {"cycles_completed", "total_requests_scheduled", "last_cycle_time", "avg_cycle_duration"}
    assert (stats["cycles_completed"], stats["total_requests_scheduled"]) == (0, 0)
    assert stats["last_cycle_time"] is None


@pytest.mark.parametrize("age, due", [(None, True), (0, False), (25, False), (31, True), (86_400, True)])
def test_should_collect(dropin, age, due):
    collector = dropin.ContinuousCollector(mock_scheduler(), [], 30)
    target = mock_target()
    target.last_scraped = None if age is None else ago(age)
    assert collector._should_collect_target(target) is due


def test_should_collect_by_its_own_interval(dropin):
    target = mock_target()
    target.last_scraped = ago(45)
    collectors = [dropin.ContinuousCollector(mock_scheduler(), [target], interval) for interval in (30, 44, 60)]
    assert [collector._should_collect_target(target) for collector in collectors] == [True, True, False]


@MOCKS
async def test_all_that_are_due_at_once(dropin, mock):
    scheduler, targets = mock_scheduler(mock), users(5)
    collector = dropin.ContinuousCollector(scheduler, targets)
    await collector.start()
    assert collector._running is True
    assert collector._collection_task is not None
    await until(lambda: scheduler.schedule_request.await_count >= 5)
    calls = scheduler.schedule_request.await_args_list[:5]
    assert {id(call.args[0]) for call in calls} == {id(target) for target in targets}
    assert {priority_of(call) for call in calls} == {dropin.RequestPriority.HIGH}
    assert collector.get_stats()["running"] is True
    await collector.stop()
    assert collector._running is False
    assert collector._collection_task is None
    assert collector.get_stats()["stats"]["total_requests_scheduled"] == 5


async def test_none_that_is_not_due(dropin):
    scheduler, targets = mock_scheduler(), users(6)
    for target in targets[::2]:
        target.last_scraped = datetime.now(UTC)
    collector = dropin.ContinuousCollector(scheduler, targets, 3600)
    await collector.start()
    await until(lambda: scheduler.schedule_request.await_count >= 3)
    await asyncio.sleep(0.05)
    await collector.stop()
    assert {call.args[0].value for call in scheduler.schedule_request.await_args_list} == {"user 1", "user 3", "user 5"}


async def test_mocked_targets(dropin):
    scheduler = mock_scheduler()
    targets = [mock_target(), mock_target("#rust", kind="search")]
    collector = dropin.ContinuousCollector(scheduler, targets)
    await collector.start()
    await until(lambda: scheduler.schedule_request.await_count >= 2)
    await collector.stop()
    assert {call.args[0].value for call in scheduler.schedule_request.await_args_list} == {"ada", "#rust"}


async def test_cycles_are_counted(dropin):
    collector = dropin.ContinuousCollector(mock_scheduler(), users(2), INTERVAL)
    await collector.start()
    await until(lambda: collector.get_stats()["stats"]["cycles_completed"] >= 2)
    stats = collector.get_stats()["stats"]
    assert stats["last_cycle_time"] is not None
    assert stats["avg_cycle_duration"] >= 0
    assert stats["total_requests_scheduled"] >= 2
    await collector.stop()


async def test_one_that_is_refused_is_not_counted_as_an_end(dropin):
    """A full queue says False; the collector goes on."""
    scheduler = mock_scheduler()
    scheduler.schedule_request.return_value = False
    collector = dropin.ContinuousCollector(scheduler, users(2), INTERVAL)
    await collector.start()
    await until(lambda: scheduler.schedule_request.await_count >= 4)
    assert collector._running
    await collector.stop()


async def test_no_targets(dropin):
    collector = dropin.ContinuousCollector(mock_scheduler(), [], INTERVAL)
    await collector.start()
    await asyncio.sleep(0.05)
    await collector.stop()
    assert collector.get_stats()["targets_count"] == 0
    assert collector.get_stats()["stats"]["total_requests_scheduled"] == 0


async def test_stopped_it_schedules_nothing(dropin):
    def scraped(target, *_, **__):
        target.last_scraped = datetime.now(UTC)
        return True

    scheduler = mock_scheduler()
    scheduler.schedule_request.side_effect = scraped
    collector = dropin.ContinuousCollector(scheduler, users(3), 0.05)
    await collector.start()
    await until(lambda: scheduler.schedule_request.await_count >= 6)
    await collector.stop()
    count = scheduler.schedule_request.await_count
    await asyncio.sleep(0.2)
    assert scheduler.schedule_request.await_count == count


async def test_starting_and_stopping_many_times(dropin, quiet):
    scheduler = mock_scheduler()
    collector = dropin.ContinuousCollector(scheduler, users(1))
    await collector.stop()
    for turn in range(1, 6):
        await collector.start()
        await until(lambda turn=turn: scheduler.schedule_request.await_count >= turn)
        await collector.stop()
        assert collector._collection_task is None
    await collector.stop()
    assert not collector._running


async def test_starting_twice(dropin):
    scheduler = mock_scheduler()
    collector = dropin.ContinuousCollector(scheduler, users(2))
    await collector.start()
    await collector.start()
    await until(lambda: scheduler.schedule_request.await_count >= 2)
    await asyncio.sleep(0.05)
    await collector.stop()
    assert scheduler.schedule_request.await_count == 2
    assert collector._collection_task is None


def test_on_another_loop(dropin):
    scheduler = mock_scheduler()
    collector = dropin.ContinuousCollector(scheduler, users(1))

    async def collect(count):
        await collector.start()
        await until(lambda: scheduler.schedule_request.await_count >= count)
        await collector.stop()

    for count in range(1, 4):
        asyncio.run(collect(count))
    assert scheduler.schedule_request.await_count == 3


async def test_real_scheduler_again_and_again(dropin):
    manager, storage = Manager(), InsertBatch()
    scheduler = dropin.RateLimitScheduler(manager, storage, plenty(dropin))
    targets = users(4)
    collector = dropin.ContinuousCollector(scheduler, targets, INTERVAL)
    await scheduler.start()
    await collector.start()
    await until(lambda: all(manager.asked.count(target.value) >= 3 for target in targets))
    await collector.stop()
    await until(lambda: len(storage.rows) == len(manager.calls))
    await scheduler.stop()
    assert collector.get_stats()["stats"]["total_requests_scheduled"] >= 12
    assert all(target.last_scraped for target in targets)


async def test_one_that_is_not_due_gets_its_place_all_the_same(virtual):
    fresh, never = user("fresh"), user("never")
    fresh.last_scraped = datetime.now(UTC) - timedelta(seconds=3)
    collecting = Collecting(virtual, [fresh, never], 30)
    await collecting.start()
    await virtual.clock.run_for(1)
    assert dict(collecting.instants) == {"never": [pytest.approx(0, abs=0.5)]}
    await virtual.clock.run_for(150)
    await collecting.stop()
    for value in ("fresh", "never"):
        assert len(collecting.instants[value]) >= 4
        gaps = [later - earlier for earlier, later in pairwise(collecting.instants[value][1:])]
        assert gaps == pytest.approx([30] * len(gaps), abs=0.05)


async def test_scheduler_that_is_not_started_yet(dropin):
    scheduler = dropin.RateLimitScheduler(Manager(), InsertBatch(), plenty(dropin))
    collector = dropin.ContinuousCollector(scheduler, users(3))
    await collector.start()
    await until(lambda: collector.get_stats()["stats"]["total_requests_scheduled"] >= 3)
    request = await scheduler.request_queue.peek()
    assert request.priority is dropin.RequestPriority.HIGH
    await scheduler.start()
    await until(lambda: scheduler.stats["requests_processed"] >= 3)
    await collector.stop()
    await scheduler.stop()


async def fails(kind, value):
    raise ConnectionError("reset by peer")


async def test_one_that_fails_is_collected_again(virtual):
    """However often it has failed: each time that it is due."""
    manager = Manager(fails, names=["snscrape"])
    scheduler = virtual.scheduler(manager, InsertBatch(), plenty(virtual.dropin, "snscrape"))
    collector = virtual.dropin.ContinuousCollector(scheduler, users(1), 30)
    await scheduler.start()
    await collector.start()
    await virtual.clock.run_for(3600)
    await collector.stop()
    await scheduler.stop()
    assert collector.get_stats()["stats"]["total_requests_scheduled"] >= 60
    assert len(manager.calls) >= 4 * 60


async def test_two_collectors_of_one_scheduler(dropin):
    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, InsertBatch(), plenty(dropin))
    collectors = [dropin.ContinuousCollector(scheduler, users(count)) for count in (2, 3)]
    await scheduler.start()
    for collector in collectors:
        await collector.start()
    await until(lambda: scheduler.stats["requests_processed"] >= 5)
    for collector in collectors:
        await collector.stop()
    await scheduler.stop()
    assert sorted(manager.asked) == ["user 0", "user 0", "user 1", "user 1", "user 2"]


async def test_started_again_it_schedules_nothing_twice(dropin):
    """Its requests still wait, since the scheduler does not run."""
    scheduler = dropin.RateLimitScheduler(Manager(), InsertBatch())
    collector = dropin.ContinuousCollector(scheduler, users(3), 1000)
    for _ in range(3):
        await collector.start()
        await until(lambda: collector.get_stats()["stats"]["cycles_completed"])
        await collector.stop()
    assert await scheduler.request_queue.size() == 3


async def test_a_target_that_raises_ends_no_collection(dropin, caplog):
    class Broken:
        target_type, value = "user", "broken"

        @property
        def last_scraped(self):
            raise ValueError("no such column")

    scheduler = mock_scheduler()
    collector = dropin.ContinuousCollector(scheduler, [Broken(), *users(2)], INTERVAL)
    await collector.start()
    await until(lambda: collector.get_stats()["stats"]["cycles_completed"] >= 3)
    await collector.stop()
    assert {call.args[0].value for call in scheduler.schedule_request.call_args_list} == {"user 0", "user 1"}
    assert "no such column" in caplog.text
