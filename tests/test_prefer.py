"""`prefer=`: the backend that serves a request whenever it is ready."""

import asyncio

import pytest

from tidegate import Aging, Backend, BackendQuota, ConfigError, Fair, RateLimitScheduler
from tidegate.testing import ManualClock

ORDERS = [pytest.param("strict", id="strict"), pytest.param(Aging(1), id="aging"), pytest.param(Fair(None), id="fair")]


async def name_of(request):
    return request.backend


def pair(handler=name_of, quota="3/min"):
    return [Backend("a", handler, quota), Backend("b", handler, quota)]


@pytest.mark.parametrize("order", ORDERS)
async def test_the_preferred_one_first_then_the_other(order):
    clock = ManualClock()
    async with RateLimitScheduler(pair(), order=order, clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(5), prefer="b")
        await clock.run_until_idle()
        assert [(await ticket).value for ticket in tickets] == ["b", "b", "b", "a", "a"]
        assert clock.time() < 1


async def test_by_target():
    async with RateLimitScheduler(pair(quota=None)) as scheduler:
        tickets = await scheduler.submit_many(["a", "b", "b", "a"], prefer=lambda target: target)
        assert [(await ticket).value for ticket in tickets] == ["a", "b", "b", "a"]


async def test_another_one_when_it_has_just_failed():
    async def fetch(request):
        if request.backend == "b":
            raise OSError
        return request.backend

    async with RateLimitScheduler(pair(fetch, None)) as scheduler:
        reply = await scheduler.fetch(1, prefer="b")
    assert (reply.value, reply.attempts) == ("a", 2)


async def test_one_that_is_removed_is_no_longer_preferred():
    release = asyncio.Event()

    async def fetch(request):
        await release.wait()
        return request.backend

    async with RateLimitScheduler(pair(fetch, BackendQuota(concurrency=1))) as scheduler:
        tickets = await scheduler.submit_many(range(4), prefer="b")
        scheduler.remove_backend("b")
        release.set()
        assert [(await ticket).value for ticket in tickets][2:] == ["a", "a"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prefer": "c"}, "prefer='c': there is no such backend; there are a, b"),
        ({"prefer": 5}, "prefer=5: there is no such backend"),
        ({"prefer": "b", "backends": "a"}, "prefer='b': it is not among the request's backends"),
    ],
)
async def test_what_cannot_be_preferred(options, message):
    async with RateLimitScheduler(pair()) as scheduler:
        with pytest.raises(ConfigError, match=message) as caught:
            await scheduler.submit(1, **options)
        assert caught.value.option == "prefer"
        assert scheduler.ledger().accepted == 0
