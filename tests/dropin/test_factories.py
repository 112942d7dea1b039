"""The two functions that make a scheduler and a collector."""

import pytest
from tests.dropin.caller import InsertBatch, Manager, mock_manager, until_processed, user, users

FIGURES = ("requests_per_minute", "requests_per_hour", "concurrent_requests")


def figures(quota):
    return tuple(getattr(quota, name) for name in FIGURES)


def test_scheduler(dropin):
    manager, storage = Manager(), InsertBatch()
    scheduler = dropin.create_rate_limit_scheduler(manager, storage)
    assert isinstance(scheduler, dropin.RateLimitScheduler)
    assert scheduler.backend_manager is manager
    assert scheduler.storage is storage
    assert figures(scheduler.quotas["snscrape"]) == (100, 3000, 10)
    assert figures(scheduler.quotas["nitter"]) == (30, 1000, 5)


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({}, (30, 1000, 5)),
        ({"requests_per_minute": 7}, (7, 1000, 5)),
        ({"requests_per_hour": 70}, (30, 70, 5)),
        ({"concurrent_requests": 1}, (30, 1000, 1)),
        ({"requests_per_minute": 7, "requests_per_hour": 70, "concurrent_requests": 2}, (7, 70, 2)),
    ],
)
def test_custom_quotas(dropin, given, wanted):
    scheduler = dropin.create_rate_limit_scheduler(Manager(), InsertBatch(), {"nitter": given})
    quota = scheduler.quotas["nitter"]
    assert isinstance(quota, dropin.BackendQuota)
    assert quota.backend_name == "nitter"
    assert figures(quota) == wanted


def test_custom_quotas_of_several(dropin):
    custom = {"snscrape": {"requests_per_minute": 5}, "twint": {"requests_per_hour": 9}}
    scheduler = dropin.create_rate_limit_scheduler(Manager(), InsertBatch(), custom_quotas=custom)
    assert figures(scheduler.quotas["snscrape"]) == (5, 1000, 5)
    assert figures(scheduler.quotas["twint"]) == (30, 9, 5)


async def test_a_made_scheduler_serves(dropin):
    storage = InsertBatch()
    scheduler = dropin.create_rate_limit_scheduler(mock_manager(), storage, {"snscrape": {"requests_per_minute": 60}})
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert storage.rows == ["tweet"]
    assert set(scheduler.stats["backends_used"]) == {"snscrape"}


@pytest.mark.parametrize("given, interval", [({}, 30), ({"interval_sec": 5}, 5), ({"interval_sec": 0.25}, 0.25)])
def test_collector(dropin, given, interval):
    scheduler = dropin.create_rate_limit_scheduler(Manager(), InsertBatch())
    targets = users(3)
    collector = dropin.create_continuous_collector(scheduler, targets, **given)
    assert isinstance(collector, dropin.ContinuousCollector)
    assert collector.scheduler is scheduler
    assert list(collector.targets) == targets
    assert collector.collection_interval_sec == interval
