"""`LoadBalancer`: which backend serves a request when several have room."""

from collections import Counter

import pytest

from tidegate import Aging, Backend, BackendQuota, ConfigError, Fair, HealthMonitor, LoadBalancer, RateLimitScheduler, Retry
from tidegate.testing import ManualClock

UNWATCHED = HealthMonitor(enabled=False)


def answering(clock, seconds):
    """A handler that answers after so long, with the name of its backend."""

    async def handler(request):
        await clock.sleep(seconds)
        return request.backend

    return handler


async def spread(scheduler, clock, count, **options):
    """Which backends served how many of `count` requests that came at once."""
    tickets = await scheduler.submit_many(range(count), **options)
    await clock.run_until_idle()
    return Counter([(await ticket).value for ticket in tickets])


async def one_by_one(scheduler, clock, count, pause=0.001, **options):
    """Which backends served `count` requests, each of which came when the one before was answered."""
    served = []
    for target in range(count):
        ticket = await scheduler.submit(target, **options)
        await clock.run_until_idle()
        served.append((await ticket).value)
        await clock.advance(pause)
    return served


async def test_each_is_tried_and_then_the_quick_one_gets_what_it_has_room_for():
    clock = ManualClock()
    backends = [Backend("slow", answering(clock, 2.0)), Backend("quick", answering(clock, 0.2))]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        assert await one_by_one(scheduler, clock, 8) == ["slow", *["quick"] * 7]
        served = await spread(scheduler, clock, 22)
        assert served["quick"] >= 18
        assert served["slow"] >= 1  # not all at once to one


async def test_least_in_flight_learns_nothing():
    clock = ManualClock()
    backends = [Backend("slow", answering(clock, 2.0)), Backend("quick", answering(clock, 0.2))]
    async with RateLimitScheduler(backends, balancer=LoadBalancer("least_in_flight"), clock=clock) as scheduler:
        assert await one_by_one(scheduler, clock, 4) == ["slow"] * 4
        assert await spread(scheduler, clock, 20) == {"slow": 10, "quick": 10}


@pytest.mark.parametrize("strategy", ["adaptive", "least_in_flight"])
async def test_weights(strategy):
    clock = ManualClock()
    backends = [Backend("one", answering(clock, 1.0)), Backend("three", answering(clock, 1.0), weight=3)]
    async with RateLimitScheduler(backends, balancer=LoadBalancer(strategy), clock=clock) as scheduler:
        await spread(scheduler, clock, 2)
        assert await spread(scheduler, clock, 16) == {"one": 4, "three": 12}


async def test_a_price_is_what_a_longer_wait_is_worth():
    clock = ManualClock()
    backends = [Backend("paid", answering(clock, 1.0)), Backend("free", answering(clock, 1.0))]
    async with RateLimitScheduler(backends, balancer=LoadBalancer(prices={"paid": 5.5}), clock=clock) as scheduler:
        await spread(scheduler, clock, 2)
        assert await spread(scheduler, clock, 5) == {"free": 5}
        assert await spread(scheduler, clock, 9) == {"free": 7, "paid": 2}


async def test_a_paid_one_is_used_when_the_free_one_has_no_room():
    clock = ManualClock()
    backends = [Backend("paid", answering(clock, 0.1)), Backend("free", answering(clock, 0.1), "3/min")]
    async with RateLimitScheduler(backends, balancer=LoadBalancer(prices={"paid": 60}), clock=clock) as scheduler:
        assert await one_by_one(scheduler, clock, 5) == ["free"] * 3 + ["paid"] * 2


@pytest.mark.parametrize("strategy", ["adaptive", "least_in_flight"])
async def test_the_order_of_preference_goes_before_speed(strategy):
    clock = ManualClock()
    backends = [
        Backend("other", answering(clock, 0.1)),
        Backend("second", answering(clock, 0.1), "2/min"),
        Backend("first", answering(clock, 1.0), "3/min"),
    ]
    balancer = LoadBalancer(strategy, order=["first", "second"])
    async with RateLimitScheduler(backends, balancer=balancer, clock=clock) as scheduler:
        assert await one_by_one(scheduler, clock, 7) == ["first"] * 3 + ["second"] * 2 + ["other"] * 2


async def test_what_a_request_prefers_goes_before_the_order():
    clock = ManualClock()
    backends = [Backend("a", answering(clock, 0.1)), Backend("b", answering(clock, 1.0))]
    async with RateLimitScheduler(backends, balancer=LoadBalancer(order=["a"]), clock=clock) as scheduler:
        assert await one_by_one(scheduler, clock, 3, prefer="b") == ["b"] * 3


async def test_one_that_is_added_later_has_its_place_and_its_price():
    clock = ManualClock()
    balancer = LoadBalancer(order=["late"], prices={"late": 1})
    async with RateLimitScheduler([Backend("a", answering(clock, 0.1))], balancer=balancer, clock=clock) as scheduler:
        assert await one_by_one(scheduler, clock, 2) == ["a"] * 2
        scheduler.add_backend(Backend("late", answering(clock, 1.0)))
        assert await one_by_one(scheduler, clock, 3) == ["late"] * 3


async def test_a_scarce_one_is_kept_for_those_who_can_go_nowhere_else():
    clock = ManualClock()
    backends = [Backend("scarce", answering(clock, 0.1), "6/min"), Backend("slow", answering(clock, 1.0))]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        assert await one_by_one(scheduler, clock, 4) == ["scarce", "slow", "scarce", "scarce"]
        await clock.advance(120)
        assert await one_by_one(scheduler, clock, 2, backends=["scarce"]) == ["scarce"] * 2
        assert await one_by_one(scheduler, clock, 4) == ["slow"] * 4
        assert await spread(scheduler, clock, 4, backends=["scarce"]) == {"scarce": 4}
        assert clock.time() < 140  # they did not wait for a window to pass


async def test_who_fails_is_avoided_and_tried_again_later():
    clock = ManualClock()
    failing = True
    tried = []

    async def flaky(request):
        tried.append(clock.time())
        await clock.sleep(0.1)
        if failing:
            raise OSError
        return request.backend

    backends = [Backend("flaky", flaky), Backend("steady", answering(clock, 0.5))]
    retry = Retry(attempts=3, base=0.1, budget=1)
    async with RateLimitScheduler(backends, retry=retry, health=UNWATCHED, clock=clock, seed=1) as scheduler:
        assert await one_by_one(scheduler, clock, 10) == ["steady"] * 10
        assert len(tried) == 1
        failing = False
        served = await one_by_one(scheduler, clock, 120, pause=1.0)
        assert served[-20:].count("flaky") >= 15  # the other is tried again now and then


async def test_quick_rejections_do_not_look_quick():
    clock = ManualClock()

    tried = []

    async def rejecting(request):
        tried.append(clock.time())
        await clock.sleep(0.01)
        request.ack(429)

    backends = [Backend("rejects", rejecting, "100/s"), Backend("serves", answering(clock, 0.5))]
    async with RateLimitScheduler(backends, health=UNWATCHED, clock=clock, seed=1) as scheduler:
        assert await one_by_one(scheduler, clock, 10, pause=1.0) == ["serves"] * 10
        assert len(tried) <= 2


@pytest.mark.parametrize("order", ["strict", "edf", Aging(1), Fair()], ids=["strict", "edf", "aging", "fair"])
async def test_a_slow_one_takes_what_it_answers_in_time_and_leaves_the_rest_to_a_quick_one(order):
    clock = ManualClock()
    one = BackendQuota(concurrency=1)
    backends = [Backend("slow", answering(clock, 4.0), one), Backend("quick", answering(clock, 0.5), one)]
    async with RateLimitScheduler(backends, order=order, clock=clock) as scheduler:
        await spread(scheduler, clock, 2)
        await scheduler.submit("busy", backends=["quick"])
        tickets = [await scheduler.submit(timeout, timeout=timeout) for timeout in (2.0, 3.0, 20.0)]
        await clock.run_until_idle()
        assert [(await ticket).value for ticket in tickets] == ["quick", "quick", "slow"]


async def test_what_would_be_late_anyway_is_tried_when_nothing_else_waits():
    clock = ManualClock()
    pause = 4.0

    async def improving(request):
        await clock.sleep(pause)
        return request.backend

    async with RateLimitScheduler([Backend("slow", improving)], order="edf", clock=clock) as scheduler:
        await one_by_one(scheduler, clock, 1)
        pause = 0.5
        assert await one_by_one(scheduler, clock, 1, timeout=2.0) == ["slow"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strategy": "fastest"}, "strategy='fastest': give 'adaptive' or 'least_in_flight'"),
        ({"prices": [("a", 1)]}, r"prices=\[\('a', 1\)\]: give seconds by name"),
        ({"prices": {"a": -1}}, "prices: 'a': -1: give the name of a backend and seconds from 0"),
        ({"prices": {"a": float("nan")}}, "prices: 'a': nan"),
        ({"prices": {1: 1.0}}, "prices: 1: 1.0"),
        ({"prices": {"a": 1}, "strategy": "least_in_flight"}, "only strategy='adaptive' knows prices"),
        ({"order": "a"}, r"order='a': give a list of names of backends"),
        ({"order": ["a", "a"]}, "give names of backends, each once"),
        ({"order": ["a", 1]}, "give names of backends, each once"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        LoadBalancer(**options)
    assert caught.value.option in options


def test_a_balancer_is_frozen_and_keeps_what_it_was_given():
    prices, order = {"a": 1.0}, ["b"]
    balancer = LoadBalancer(prices=prices, order=order)
    prices["a"] = 9.0
    order.append("c")
    assert (balancer.price("a"), balancer.price("z"), balancer.rank("b"), balancer.rank("c")) == (1.0, 0.0, 0, 1)
    assert balancer == LoadBalancer(prices={"a": 1.0}, order=("b",))
    assert hash(balancer) == hash(LoadBalancer(prices={"a": 1.0}, order=("b",)))
    with pytest.raises(AttributeError):
        balancer.strategy = "least_in_flight"


def test_a_scheduler_takes_a_balancer():
    with pytest.raises(ConfigError, match="balancer='adaptive': give a LoadBalancer"):
        RateLimitScheduler(balancer="adaptive")
