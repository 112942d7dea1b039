"""A batch scraper of the caller's own, put on the engine by its `backend_manager`."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from tidegate import ConfigError, RequestCancelledError
from tidegate.dropin import BackendQuota, RateLimitScheduler, RequestPriority
from tidegate.integrations.batch_scraper import scheduled, scrape_all_targets
from tidegate.testing import ManualClock


def result(backend, tweets=(), *, success=True, error=None):
    return SimpleNamespace(tweets=list(tweets), success=success, error_message=error, backend_used=backend)


class OneBackend:
    """What a manager has in its list; fails as often as it is told to."""

    def __init__(self, name, *, failures=0):
        self.name = name
        self.failures = failures
        self.asked = []
        self.available = True

    def get_name(self):
        return self.name

    def is_available(self):
        return self.available

    async def scrape_user_tweets(self, name, max_tweets=100):
        self.asked.append((name, max_tweets))
        if self.failures:
            self.failures -= 1
            return result(self.name, success=False, error=f"{self.name} is down")
        return result(self.name, [f"{name} at {self.name}"])

    async def scrape_search_tweets(self, query, max_tweets=100):
        self.asked.append((query, max_tweets))
        return result(self.name, [f"{query} found at {self.name}"])


class Manager:
    def __init__(self, *backends):
        self.backends = list(backends)
        self.note = "the manager's own"

    def get_available_backends(self):
        return [backend.name for backend in self.backends]

    async def scrape_user_tweets(self, name, max_tweets=100):
        raise AssertionError("the backend that was chosen is asked, not the manager")

    scrape_search_tweets = scrape_user_tweets


class AsyncBatchScraper:
    """Has the shape of the original: three arguments, one coroutine, one attribute."""

    def __init__(self, storage, config, targets):
        self.storage, self.config, self.targets = storage, config, targets
        self.backend_manager = config["manager"]

    async def scrape_all_targets(self):
        summary = {"succeeded": 0, "failed": 0}

        async def scrape(kind, value):
            call = self.backend_manager.scrape_user_tweets if kind == "user" else self.backend_manager.scrape_search_tweets
            got = await call(value, max_tweets=self.config["max_tweets"])
            self.storage.extend(got.tweets)
            summary["succeeded" if got.success else "failed"] += 1

        await asyncio.gather(*(scrape(*target) for target in self.targets))
        return summary


def scraper_of(*backends, targets=(("user", "ada"), ("search", "tides"))):
    manager = Manager(*backends)
    return AsyncBatchScraper([], {"manager": manager, "max_tweets": 7}, list(targets)), manager


async def test_a_run_goes_through_the_queue_to_the_backends():
    one, two = OneBackend("snscrape"), OneBackend("nitter")
    scraper, manager = scraper_of(one, two)
    assert await scrape_all_targets(scraper) == {"succeeded": 2, "failed": 0}
    assert sorted(one.asked + two.asked) == [("ada", 7), ("tides", 7)]
    assert len(scraper.storage) == 2
    assert scraper.backend_manager is manager, "its own manager is back"


async def test_all_of_the_quotas_and_no_more():
    clock = ManualClock()
    one, two = OneBackend("snscrape"), OneBackend("nitter")
    scraper, _ = scraper_of(one, two, targets=[("user", f"user{n}") for n in range(200)])
    async with scheduled(scraper, clock=clock):
        run = asyncio.ensure_future(scraper.scrape_all_targets())
        await clock.run_for(59)
        assert (len(one.asked), len(two.asked)) == (100, 30)
        await clock.run_for(2)
        assert await run == {"succeeded": 200, "failed": 0}


async def test_falls_back_to_the_other_backend():
    sick, well = OneBackend("snscrape", failures=1000), OneBackend("nitter")
    scraper, _ = scraper_of(sick, well, targets=[("user", f"user{n}") for n in range(3)])
    assert await scrape_all_targets(scraper) == {"succeeded": 3, "failed": 0}
    assert len(sick.asked) <= 3, "each call once, then elsewhere"


async def test_what_no_backend_can_do_comes_back_as_a_result():
    scraper, _ = scraper_of(OneBackend("snscrape", failures=1000), targets=[("user", "ada")])
    async with scheduled(scraper) as same:
        got = await same.backend_manager.scrape_user_tweets("ada")
    assert (got.success, got.error_message) == (False, "snscrape is down")


async def test_what_a_backend_raises_is_raised():
    backend = OneBackend("snscrape")

    async def fail(name, max_tweets=100):
        raise ConnectionResetError("by peer") from TimeoutError("no answer")

    backend.scrape_user_tweets = fail
    scraper, _ = scraper_of(backend)
    async with scheduled(scraper):
        with pytest.raises(ConnectionResetError, match="by peer") as caught:
            await scraper.backend_manager.scrape_user_tweets("ada")
    assert isinstance(caught.value.__cause__, TimeoutError), "its own cause"


async def test_the_rest_of_the_manager_is_there():
    scraper, _ = scraper_of(OneBackend("snscrape"))
    async with scheduled(scraper):
        assert scraper.backend_manager.note == "the manager's own"
        assert scraper.backend_manager.get_available_backends() == ["snscrape"]


async def test_the_managers_own_is_back_when_the_run_fails():
    scraper, manager = scraper_of(OneBackend("snscrape"))

    async def fail():
        raise OSError("disk full")

    scraper.scrape_all_targets = fail
    with pytest.raises(OSError, match="disk full"):
        await scrape_all_targets(scraper)
    assert scraper.backend_manager is manager


async def test_a_call_that_is_cancelled_takes_no_quota(caplog):
    caplog.set_level(logging.WARNING)
    clock = ManualClock()
    backend = OneBackend("snscrape")
    scraper, _ = scraper_of(backend)
    quotas = {"snscrape": BackendQuota("snscrape", 1, 1000, 5)}
    async with scheduled(scraper, quotas, clock=clock):
        call = scraper.backend_manager.scrape_user_tweets
        await call("first")
        waits = asyncio.ensure_future(call("second"))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        third = asyncio.ensure_future(call("third"))
        await clock.run_for(61)
        await third
    assert [name for name, _ in backend.asked] == ["first", "third"]
    assert not caplog.records


async def test_a_call_that_is_cancelled_is_no_failure_of_its_backend():
    class Slow(OneBackend):
        async def scrape_user_tweets(self, name, max_tweets=100):
            self.asked.append(name)
            await asyncio.Event().wait()

    backend = Slow("snscrape")
    scraper, _ = scraper_of(backend)
    quotas = {"snscrape": BackendQuota("snscrape", 100, 1000, 10)}
    async with scheduled(scraper, quotas):
        calls = [asyncio.ensure_future(scraper.backend_manager.scrape_user_tweets(f"user{n}")) for n in range(6)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(backend.asked) == 6
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    quota = quotas["snscrape"]
    assert (quota.consecutive_failures, quota.success_rate, quota.active_requests) == (0, 1.0, 0)


async def test_shares_the_quotas_of_a_scheduler_that_runs():
    clock = ManualClock()
    backend = OneBackend("snscrape")
    manager = Manager(backend)
    scheduler = RateLimitScheduler(manager, SimpleNamespace(insert_batch=len), clock=clock)
    await scheduler.start()
    scraper, _ = scraper_of(OneBackend("another"), targets=[("user", f"user{n}") for n in range(80)])
    for n in range(80):
        await scheduler.schedule_request(SimpleNamespace(target_type="user", value=f"t{n}", last_scraped=None))
    async with scheduled(scraper, scheduler=scheduler, priority=RequestPriority.HIGH):
        run = asyncio.ensure_future(scraper.scrape_all_targets())
        await clock.run_for(50)
        assert len(backend.asked) == 100, "both together"
        await clock.run_for(20)
        assert (await run)["succeeded"] == 80
    await scheduler.stop()


async def test_a_scheduler_that_stops_ends_the_calls_of_its_guest():
    clock = ManualClock()
    scheduler = RateLimitScheduler(
        Manager(OneBackend("snscrape")), SimpleNamespace(), {"snscrape": BackendQuota("snscrape", 1, 10, 1)}, clock=clock
    )
    await scheduler.start()
    scraper, _ = scraper_of(OneBackend("another"))
    async with scheduled(scraper, scheduler=scheduler):
        await scraper.backend_manager.scrape_user_tweets("first")
        waits = asyncio.ensure_future(scraper.backend_manager.scrape_user_tweets("second"))
        await asyncio.sleep(0)
        await scheduler.stop()
        with pytest.raises(RequestCancelledError):
            await waits


@pytest.mark.parametrize("given", ["no manager", "both", "not running", "no backends"])
async def test_bad_input(given):
    scraper, manager = scraper_of(OneBackend("snscrape"))
    idle = RateLimitScheduler(manager, SimpleNamespace())
    if given == "no manager":
        with pytest.raises(ConfigError, match="backend_manager"):
            async with scheduled(SimpleNamespace()):
                pass
    elif given == "both":
        with pytest.raises(ConfigError, match="leave quotas="):
            async with scheduled(scraper, {}, scheduler=idle):
                pass
    elif given == "not running":
        with pytest.raises(ConfigError, match="start"):
            async with scheduled(scraper, scheduler=idle):
                pass
    else:
        manager.backends.clear()
        async with scheduled(scraper):
            with pytest.raises(ConfigError, match="nothing can serve this call"):
                await scraper.backend_manager.scrape_user_tweets("ada")
    assert scraper.backend_manager is manager
