"""Backends that come and go, and quotas that change, while a scheduler runs."""

import asyncio
import logging

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    ConfigError,
    CostExceedsBurstError,
    RateLimitScheduler,
    RequestFailedError,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock


def named(calls):
    """A handler that notes which backend it was called for."""

    async def fetch(request):
        calls.append(request.backend)
        return request.backend

    return fetch


async def until_gone(scheduler, *names):
    """Wait until nothing runs on these any more."""
    missing = set(names)
    async for event in scheduler.events():
        if event.kind == "backend_gone":
            missing.discard(event.backend)
        if not missing:
            return


# ---- add_backend


async def test_an_added_backend_serves_what_waits():
    clock = ManualClock()
    calls = []
    async with RateLimitScheduler([Backend("slow", named(calls), "1/h")], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(3))
        await clock.advance(1)
        assert calls == ["slow"]
        scheduler.add_backend(Backend("fast", named(calls)))
        await clock.advance(1)
        assert calls == ["slow", "fast", "fast"]
        assert [(await ticket).backend for ticket in tickets] == calls
        assert set(scheduler.snapshot().backends) == {"slow", "fast"}
        assert (await scheduler.fetch("x", backends=["fast"])).backend == "fast"


async def test_what_named_another_backend_stays_with_it():
    clock = ManualClock()
    calls = []
    async with RateLimitScheduler([Backend("a", named(calls), "1/min")], clock=clock) as scheduler:
        tickets = [await scheduler.submit(n, backends=["a"]) for n in range(2)]
        scheduler.add_backend(Backend("b", named(calls)))
        await clock.run_until_idle()
        assert [(await ticket).backend for ticket in tickets] == ["a", "a"]


async def test_a_scheduler_may_start_without_backends():
    async with RateLimitScheduler() as scheduler:
        with pytest.raises(ConfigError, match="the scheduler has no backend"):
            await scheduler.submit("x")
        scheduler.add_backend(Backend("late", named([])))
        assert (await scheduler.fetch("x")).value == "late"


async def test_a_map_that_runs_uses_an_added_backend():
    clock = ManualClock()
    calls = []
    scheduler = RateLimitScheduler([Backend("slow", named(calls), "1/h")], clock=clock)
    async with scheduler, scheduler.map(range(5)) as replies:
        assert (await anext(replies)).backend == "slow"
        scheduler.add_backend(Backend("fast", named(calls)))
        assert [reply.backend async for reply in replies] == ["fast"] * 4


async def test_an_added_backend_is_opened_before_its_first_attempt_and_closed_once():
    log = []

    class Owner(Backend):
        async def aopen(self):
            log.append("opening")
            await asyncio.sleep(0.01)
            log.append("open")

        async def aclose(self):
            log.append("closed")

    async def fetch(request):
        log.append(request.target)

    async with RateLimitScheduler() as scheduler:
        scheduler.add_backend(Owner("owner", fetch))
        await scheduler.fetch("target")
        assert log == ["opening", "open", "target"]
    assert log == ["opening", "open", "target", "closed"]


async def test_an_added_backend_that_does_not_open_fails_its_requests():
    class Broken(Backend):
        async def aopen(self):
            raise OSError("no such host")

    async with RateLimitScheduler() as scheduler:
        scheduler.add_backend(Broken("broken", named([])))
        with pytest.raises(RequestFailedError) as caught:
            await scheduler.fetch("x")
        assert isinstance(caught.value.__cause__, OSError)


async def test_bad_backends_to_add():
    quota = BackendQuota("1/s", group="g")
    async with RateLimitScheduler([Backend("a", print, quota)]) as scheduler:
        for bad, message in (
            (Backend("a", print), "two backends have this name"),
            (Backend("b", print, BackendQuota("2/s", group="g")), "backends 'a' and 'b' spend one quota"),
            ("c", "give Backend"),
        ):
            with pytest.raises(ConfigError, match=message):
                scheduler.add_backend(bad)
        assert set(scheduler.snapshot().backends) == {"a"}
    with pytest.raises(SchedulerClosedError):
        scheduler.add_backend(Backend("late", print))


# ---- remove_backend


async def test_removed_backend_drains_what_only_it_can_serve():
    clock = ManualClock()
    calls = []
    backends = [Backend("a", named(calls), "1/min"), Backend("b", named(calls), "1/min")]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        either = await scheduler.submit_many(range(3))
        only = [await scheduler.submit(n, backends=["a"]) for n in range(2)]
        await clock.advance(1)
        scheduler.remove_backend("a")
        assert scheduler.snapshot().backends["a"].state == "draining"
        with pytest.raises(ConfigError, match="there is no such backend; there are b"):
            await scheduler.submit("x", backends=["a"])
        gone = asyncio.create_task(until_gone(scheduler, "a"))
        await clock.run_until_idle()
        await gone
        assert [(await ticket).backend for ticket in only] == ["a", "a"]
        # The first leaves "a" to those that can go nowhere else.
        assert [(await ticket).backend for ticket in either] == ["b", "a", "b"]
        assert set(scheduler.snapshot().backends) == {"b"}


async def test_backend_removed_at_once_ends_what_only_it_could_serve():
    clock = ManualClock()
    calls = []
    backends = [Backend("a", named(calls), "1/h"), Backend("b", named(calls))]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        only = [await scheduler.submit(n, backends=["a"]) for n in range(3)]
        await clock.advance(1)
        scheduler.remove_backend("a", drain=False)
        assert (await only[0]).ok
        for ticket in only[1:]:
            with pytest.raises(RequestFailedError, match="backend 'a', which could have served it, was removed"):
                await ticket
        ledger = scheduler.ledger()
        assert (ledger.delivered, ledger.dead, ledger.balanced) == (1, 2, True)


async def test_attempts_of_a_backend_removed_at_once_are_made_elsewhere():
    started, attempts = asyncio.Event(), []

    async def hang(request):
        attempts.append((request.backend, request.attempt))
        started.set()
        await asyncio.Event().wait()

    async def fetch(request):
        attempts.append((request.backend, request.attempt))

    async with RateLimitScheduler([Backend("hangs", hang)]) as scheduler:
        ticket = await scheduler.submit("x")
        await started.wait()
        scheduler.add_backend(Backend("works", fetch))
        scheduler.remove_backend("hangs", drain=False)
        reply = await ticket
        assert (reply.backend, reply.attempts) == ("works", 1)
    assert attempts == [("hangs", 1), ("works", 1)]


async def test_removed_backend_is_closed_when_nothing_runs_on_it(caplog):
    caplog.set_level(logging.INFO, logger="tidegate")
    release, started, log = asyncio.Event(), asyncio.Event(), []

    class Owner(Backend):
        async def aclose(self):
            log.append("closed")

    async def fetch(request):
        started.set()
        await release.wait()
        log.append("done")

    async with RateLimitScheduler([Owner("a", fetch)]) as scheduler:
        ticket = await scheduler.submit("x")
        await started.wait()
        scheduler.remove_backend("a")
        with pytest.raises(ConfigError, match="the one that was removed still works"):
            scheduler.add_backend(Backend("a", fetch))
        gone = asyncio.create_task(until_gone(scheduler, "a"))
        await asyncio.sleep(0)
        release.set()
        await ticket
        await gone
        scheduler.add_backend(Backend("a", named([])))
        assert (await scheduler.fetch("y")).value == "a"
    assert log == ["done", "closed"]
    assert "a was removed: nothing runs on it any more" in caplog.text


async def test_a_failing_close_is_said_and_hurts_nobody(caplog):
    class Owner(Backend):
        async def aclose(self):
            raise OSError("stuck")

    async with RateLimitScheduler([Owner("a", named([])), Backend("b", named([]))]) as scheduler:
        scheduler.remove_backend("a")
        await until_gone(scheduler, "a")
        assert (await scheduler.fetch("x")).backend == "b"
    assert "a was removed, and failed to close" in caplog.text


async def test_the_last_backend_may_go_and_another_one_come():
    clock = ManualClock()
    async with RateLimitScheduler([Backend("a", named([]), "1/h")], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(2))
        await clock.advance(1)
        scheduler.remove_backend("a", drain=False)
        with pytest.raises(RequestFailedError):
            await tickets[1]
        with pytest.raises(ConfigError, match="the scheduler has no backend"):
            await scheduler.submit("x")
        scheduler.add_backend(Backend("b", named([])))
        assert (await scheduler.fetch("x")).backend == "b"


async def test_slots_of_removed_backends():
    async with RateLimitScheduler([Backend("a", print), Backend("b", print)]) as scheduler:
        async with scheduler.slot("a"):
            scheduler.remove_backend("a", drain=False)
            await asyncio.sleep(0)
            assert scheduler.snapshot().backends["a"].in_flight == 1, "the body goes on"
        with pytest.raises(ConfigError, match="there are b"):
            scheduler.slot("a")


@pytest.mark.parametrize("name", ["c", "", None, 5, ["a"]])
async def test_names_that_no_backend_has(name):
    async with RateLimitScheduler([Backend("a", print), Backend("b", print)]) as scheduler:
        for act in (scheduler.remove_backend, lambda name: scheduler.set_quota(name, "1/s")):
            with pytest.raises(ConfigError, match="there is no such backend; there are a, b") as caught:
                act(name)
            assert caught.value.option == "name"


# ---- set_quota


async def test_a_larger_quota_lets_what_waits_go():
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append(clock.time())

    async with RateLimitScheduler([Backend("a", fetch, "2/min")], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(6))
        await clock.advance(1)
        scheduler.set_quota("a", "5/min")
        await clock.advance(1)
        assert len(starts) == 5
        await clock.run_until_idle()
        assert all([(await ticket).ok for ticket in tickets])
        limit = scheduler.snapshot().backends["a"].limits[0]
        assert (limit.amount, limit.name) == (5, "5/min")
    assert 60 <= starts[5] - starts[0] < 60.1, "it was sent before the change"


async def test_a_smaller_quota_holds_at_once():
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append(clock.time())

    async with RateLimitScheduler([Backend("a", fetch, "10/min")], clock=clock) as scheduler:
        await scheduler.submit_many(range(4))
        await clock.advance(1)
        scheduler.set_quota("a", "2/min")
        await scheduler.submit_many(range(2))
        await clock.run_until_idle()
    assert [start < 60 for start in starts] == [True] * 4 + [False] * 2


async def test_what_a_new_quota_never_admits_ends_and_is_refused():
    clock = ManualClock()
    async with RateLimitScheduler([Backend("a", named([]), "10/min")], clock=clock) as scheduler:
        await scheduler.submit("first", cost=10)
        await clock.advance(1)
        ticket = await scheduler.submit("large", cost=8)
        scheduler.set_quota("a", BackendQuota("5/min", concurrency=7))
        with pytest.raises(RequestFailedError, match="never admits its cost any more"):
            await ticket
        with pytest.raises(CostExceedsBurstError):
            await scheduler.submit("large", cost=8)


async def test_a_quota_of_a_group_changes_for_all_of_it():
    quota = BackendQuota("1/h", concurrency=3, group="g")
    async with RateLimitScheduler([Backend("a", named([]), quota), Backend("b", named([]), quota)]) as scheduler:
        scheduler.set_quota("a", "7/h")
        for name in "ab":
            assert [limit.amount for limit in scheduler.snapshot().backends[name].limits] == [7]
        with pytest.raises(ConfigError, match="group='other': backend 'a' stays in its group, 'g'"):
            scheduler.set_quota("a", BackendQuota("7/h", group="other"))
        scheduler.add_backend(Backend("c", named([]), BackendQuota("7/h", concurrency=3, group="g")))


@pytest.mark.parametrize("quota", [None, 5, "many", ["1/s"]])
async def test_quotas_that_are_none(quota):
    async with RateLimitScheduler([Backend("a", print, "1/s")]) as scheduler:
        with pytest.raises(ConfigError, match="quota="):
            scheduler.set_quota("a", quota)
        assert scheduler.snapshot().backends["a"].limits[0].amount == 1
