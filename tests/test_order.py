"""Which request goes next: by priority, then first in first out, whatever else happens."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import Aging, Backend, BackendQuota, Fair, Priority, RateLimitScheduler, Retry
from tidegate.testing import ManualClock

NARROW = BackendQuota(concurrency=1)


async def wait(clock, seconds):
    """Let everything start that can, then let time pass."""
    await clock.advance(1e-6)
    await clock.advance(seconds)


def server(clock, order, seconds=1.0):
    """A handler that takes its time and writes down whom it served."""

    async def fetch(request):
        order.append(request.target)
        await clock.sleep(seconds)

    return fetch


def test_priorities():
    """The named priorities are integers, smaller is more urgent."""
    assert list(Priority) == [0, 64, 128, 192]
    assert Priority.CRITICAL < Priority.HIGH < Priority.NORMAL < Priority.LOW


@given(st.lists(st.integers(0, 255), min_size=1, max_size=60))
async def test_priority_order_is_exact(priorities):
    """What waits together is served by priority, and in the order of acceptance where priorities are equal."""
    clock = ManualClock()
    order = []
    async with RateLimitScheduler([Backend("api", server(clock, order), NARROW)], clock=clock) as scheduler:
        for number, priority in enumerate(priorities):
            scheduler.submit_nowait((priority, number), priority=priority)
        await clock.run_until_idle()
    assert order == sorted(order)
    assert len(order) == len(priorities)


async def test_first_in_first_out():
    """Without priorities requests are served in the order of acceptance, by whatever call they came."""
    clock = ManualClock()
    order = []
    async with RateLimitScheduler([Backend("api", server(clock, order), NARROW)], clock=clock) as scheduler:
        await scheduler.submit(0)
        scheduler.submit_nowait(1)
        await scheduler.submit_many([2, 3, 4])
        stream = scheduler.map([5, 6], ordered=True)
        step = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        fetching = asyncio.create_task(scheduler.fetch(7))
        await asyncio.sleep(0)
        scheduler.submit_nowait(8)
        await clock.run_until_idle()
        await asyncio.gather(step, fetching)
    assert order == list(range(9))


async def test_late_and_urgent():
    """What comes later and is more urgent goes before all that still waits."""
    clock = ManualClock()
    order = []
    async with RateLimitScheduler([Backend("api", server(clock, order), NARROW)], clock=clock) as scheduler:
        await scheduler.submit_many(["a", "b", "c"])
        await wait(clock, 0.5)
        await scheduler.submit("critical", priority=Priority.CRITICAL)
        await scheduler.submit("high", priority=Priority.HIGH)
        await scheduler.submit("low", priority=Priority.LOW)
        await clock.run_until_idle()
    assert order == ["a", "critical", "high", "b", "c", "low"]


async def test_retry_keeps_its_place():
    """A request that is tried again goes before what was accepted after it, and behind what was accepted before."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append(request.target)
        await clock.sleep(1)
        if request.target == "flaky" and request.attempt < 3:
            raise ConnectionError

    retry = Retry(base=5, cap=5, budget=1)
    async with RateLimitScheduler([Backend("api", fetch, "1/10s")], clock=clock, retry=retry) as scheduler:
        await scheduler.submit(0)
        await scheduler.submit("flaky")
        await scheduler.submit_many([1, 2])
        await clock.run_until_idle()
    assert order == [0, "flaky", "flaky", "flaky", 1, 2]


async def test_rejected_request_keeps_its_place():
    """A request that a limit rejected goes first when the backend opens again."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append(request.target)
        await clock.sleep(1)
        if request.target == "first" and len(order) == 1:
            request.ack(429, {"Retry-After": "10"})

    async with RateLimitScheduler([Backend("api", fetch, NARROW)], clock=clock) as scheduler:
        await scheduler.submit_many(["first", "second", "third"])
        await clock.run_until_idle()
    assert order == ["first", "first", "second", "third"]


async def test_cancelled_requests_leave_no_gap():
    """What is cancelled anywhere in the queue does not change the order of the rest."""
    clock = ManualClock()
    order = []
    async with RateLimitScheduler([Backend("api", server(clock, order), NARROW)], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(20))
        for number in (0, 1, 7, 8, 19, 13):
            assert tickets[number].cancel()
        await clock.run_until_idle()
    assert order == [number for number in range(20) if number not in {0, 1, 7, 8, 19, 13}]


async def test_each_backend_takes_the_first_that_it_may():
    """A backend that is free takes the most urgent request that it may serve; one that waits for another is passed over."""
    clock = ManualClock()
    order = {"a": [], "b": []}

    async def fetch(request):
        order[request.backend].append(request.target)
        await clock.sleep(1)

    backends = [Backend("a", fetch, NARROW), Backend("b", fetch, NARROW)]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        await scheduler.submit_many(["a1", "a2", "a3"], backends="a")
        await scheduler.submit_many(["b1", "b2"], backends=["b"])
        await scheduler.submit_many(["any1", "any2", "any3"])
        await clock.run_until_idle()
    assert order["a"][:3] == ["a1", "a2", "a3"]
    assert order["b"][:3] == ["b1", "b2", "any1"]
    assert sorted(order["a"] + order["b"]) == ["a1", "a2", "a3", "any1", "any2", "any3", "b1", "b2"]
    assert clock.time() == pytest.approx(4)


async def test_strict_priority_starves():
    """Strict means strict: while more urgent requests come, others wait."""
    clock = ManualClock()
    order = []
    async with RateLimitScheduler([Backend("api", server(clock, order), NARROW)], clock=clock) as scheduler:
        await scheduler.submit("low", priority=Priority.LOW)
        await scheduler.submit("high 0", priority=Priority.HIGH)
        for number in range(1, 20):
            await wait(clock, 0.5)
            await scheduler.submit(f"high {number}", priority=Priority.HIGH)
            await wait(clock, 0.5)
        assert "low" not in order
        await clock.run_until_idle()
    assert order[-1] == "low"


async def test_large_cost_is_not_starved():
    """A request whose cost does not fit yet keeps the limit's room for itself, against others of its priority."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append((request.target, clock.time()))

    async with RateLimitScheduler([Backend("api", fetch, "10/s burst 10")], clock=clock) as scheduler:
        await scheduler.submit_many(range(8))
        await scheduler.submit("large", cost=10)
        await scheduler.submit_many(range(8, 30))
        await clock.run_until_idle()
    names = [name for name, _ in order]
    assert names == [*range(8), "large", *range(8, 30)]
    assert order[8][1] == pytest.approx(0.8, abs=0.01)


async def test_more_urgent_request_lifts_a_reservation():
    """A more urgent request does not wait behind one that collects room for its large cost."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append(request.target)

    async with RateLimitScheduler([Backend("api", fetch, "10/s burst 10")], clock=clock) as scheduler:
        await scheduler.submit_many(range(10))
        await scheduler.submit("large", cost=10)
        await wait(clock, 0.5)
        await scheduler.submit("urgent", priority=Priority.HIGH)
        await clock.advance(1e-6)
        assert order[10:] == ["urgent"]
        await clock.run_until_idle()
    assert order[10:] == ["urgent", "large"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), min_size=2, max_size=30))
async def test_order_of_dispatch_under_a_limit(requests):
    """Under a limit too, and with costs, each request that starts is the first of those that wait."""
    clock = ManualClock()
    started = []

    async def fetch(request):
        started.append(request.target)
        await clock.sleep(0.1)

    async with RateLimitScheduler([Backend("api", fetch, "5/s burst 5")], clock=clock) as scheduler:
        waiting = []
        for number, (priority, cost, pause) in enumerate(requests):
            waiting.append((priority, number))
            scheduler.submit_nowait((priority, number), priority=priority, cost=cost)
            if pause:
                before = len(started)
                await wait(clock, 0.3)
                for target in started[before:]:
                    assert target == min(waiting)
                    waiting.remove(target)
        before = len(started)
        await clock.run_until_idle()
        assert started[before:] == sorted(waiting)


async def test_weights():
    """Of two backends that are ready the one with more weight gets more."""
    clock = ManualClock()
    served = []

    async def fetch(request):
        served.append(request.backend)
        await clock.sleep(1)

    backends = [Backend("heavy", fetch, weight=3), Backend("light", fetch, weight=1)]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        await scheduler.submit_many(range(16))
        await clock.run_until_idle()
    assert (served.count("heavy"), served.count("light")) == (12, 4)


async def test_same_program_same_order():
    """In virtual time the same program takes the same decisions each time."""

    async def program():
        clock = ManualClock()
        order = []

        async def fetch(request):
            order.append((request.target, request.backend, clock.time_ns()))
            await clock.sleep(0.1 * (request.target % 7))

        backends = [
            Backend(name, fetch, BackendQuota(quota, concurrency=3)) for name, quota in (("a", "5/s"), ("b", "7/2s burst 4"))
        ]
        async with RateLimitScheduler(backends, clock=clock, seed=1) as scheduler:
            await scheduler.submit_many(range(60), priority=lambda target: target % 3)
            await clock.run_until_idle()
        return order

    runs = [await program() for _ in range(3)]
    assert all(before == after for before, after in pairwise(runs))


# ---- Other orders than strict


async def served(order, requests):
    """Who is served when these all wait for one place: `(seconds before it comes, options)` each, by its number."""
    clock = ManualClock()
    log = []

    async def fetch(request):
        log.append(request.target)
        await clock.sleep(200 if request.target == "first" else 1)

    backend = Backend("api", fetch, NARROW, timeout=None)
    async with RateLimitScheduler([backend], order=order, clock=clock) as scheduler:
        scheduler.submit_nowait("first", priority=0)
        await clock.advance(1e-6)
        for number, (pause, options) in enumerate(requests):
            if pause:
                await clock.advance(pause)
            scheduler.submit_nowait(number, **options)
        await clock.run_until_idle()
    assert log[0] == "first"
    return log[1:]


pauses = st.integers(0, 20).map(lambda quarters: quarters / 4)
priorities = st.integers(0, 3).map(lambda level: level * 64)


@given(st.integers(1, 40), st.lists(st.tuples(pauses, priorities), max_size=25))
async def test_aging_order(levels, requests):
    """Under aging a request goes by when it was accepted plus its priority times the step; equals as they were accepted."""
    step = levels / 256  # exact in nanoseconds, so that equal keys are equal
    got = await served(Aging(step), [(pause, {"priority": priority}) for pause, priority in requests])
    keys, now = [], 0.0
    for pause, priority in requests:
        now += pause
        keys.append(now + priority * step)
    assert got == sorted(range(len(requests)), key=keys.__getitem__)


@given(st.lists(st.tuples(pauses, priorities, st.none() | st.integers(3590, 3610)), max_size=25))
async def test_edf_order(requests):
    """Under edf the earliest deadline of the most urgent priority goes first; no deadline is one in an hour."""
    got = await served("edf", [(pause, {"priority": priority, "timeout": timeout}) for pause, priority, timeout in requests])
    keys, now = [], 0.0
    for pause, priority, timeout in requests:
        now += pause
        keys.append((priority, now + (3600 if timeout is None else timeout)))
    assert got == sorted(range(len(requests)), key=keys.__getitem__)


WEIGHTS = {"a": 4, "b": 2, "c": 0.5}


@given(st.lists(st.tuples(priorities, st.sampled_from(["a", "b", "c", "d", None])), max_size=40))
async def test_fair_order(requests):
    """Of all that wait from the start, the n-th of a flow goes by (n - 1) / weight; equals as they were accepted."""
    got = await served(Fair(WEIGHTS), [(0, {"priority": priority, "flow": flow}) for priority, flow in requests])
    waiting = list(range(len(requests)))
    had = {}
    expected = []
    while waiting:
        number = min(waiting, key=lambda number: (requests[number][0], had.get(requests[number], 0), number))
        waiting.remove(number)
        expected.append(number)
        had[requests[number]] = had.get(requests[number], 0) + 1 / WEIGHTS.get(requests[number][1], 1)
    assert got == expected


async def test_aging_does_not_starve():
    """Under aging a request of low priority is served, however many more urgent ones come."""
    clock = ManualClock()
    order = []
    async with RateLimitScheduler([Backend("api", server(clock, order), NARROW)], order=Aging(0.1), clock=clock) as scheduler:
        await scheduler.submit("low", priority=Priority.LOW)
        await scheduler.submit("high 0", priority=Priority.HIGH)
        for number in range(1, 40):
            await wait(clock, 0.5)
            await scheduler.submit(f"high {number}", priority=Priority.HIGH)
            await wait(clock, 0.5)
        assert order.index("low") in (13, 14)  # 128 levels of 0.1 s, one request a second
        await clock.run_until_idle()


async def test_fair_shares_by_weight():
    """While all flows wait, each gets its share of the limit by weight, in units of cost."""
    clock = ManualClock()
    log = []

    async def fetch(request):
        log.append((clock.time(), *request.target))

    async with RateLimitScheduler([Backend("api", fetch, "10/s burst 4")], order=Fair({"a": 3}), clock=clock) as scheduler:
        for flow, cost in (("a", 2), ("b", 1), ("c", 4)):
            await scheduler.submit_many([(flow, cost)] * 200, flow=flow, cost=cost)
        await clock.run_until_idle()
    units = {flow: sum(cost for at, theirs, cost in log if theirs == flow and at <= 40) for flow in "abc"}
    assert sum(units.values()) == pytest.approx(400, abs=5)
    assert abs(units["b"] - units["c"]) <= 1 + 4
    assert abs(units["a"] / 3 - units["b"]) <= 2 / 3 + 1
    assert abs(units["a"] / 3 - units["c"]) <= 2 / 3 + 4


async def test_flow_is_a_function_of_the_target():
    """In `map` and `submit_many` the flow may be a function of the target."""
    clock = ManualClock()
    order = []
    async with RateLimitScheduler([Backend("api", server(clock, order), NARROW)], order=Fair(), clock=clock) as scheduler:
        await scheduler.submit_many(["a1", "a2", "a3", "b1", "b2", "b3"], flow=lambda target: target[0])
        await clock.run_until_idle()
        assert order == ["a1", "b1", "a2", "b2", "a3", "b3"]
        order.clear()
        stream = scheduler.map(["c1", "c2", "d1", "d2"], flow=lambda target: target[0])
        step = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await clock.run_until_idle()
        await step
        await stream.aclose()
    assert order == ["c1", "d1", "c2", "d2"]


async def test_flow_says_nothing_in_other_orders():
    """A flow is allowed under any order, and changes nothing but the fair one."""
    assert await served("strict", [(0, {"flow": flow}) for flow in "aabb"]) == [0, 1, 2, 3]


async def test_hopeless_costs_no_permit():
    """When more comes than a limit admits, each of its permits goes to a request that is in time, and the rest expires."""
    clock = ManualClock()
    log = []

    async def fetch(request):
        log.append((clock.time(), request.deadline))

    async with RateLimitScheduler([Backend("api", fetch, "10/s burst 1")], order="edf", clock=clock) as scheduler:

        async def submit():
            for number in range(300):
                scheduler.submit_nowait(number, timeout=2 if number % 3 else 0.5)
                await clock.sleep(1 / 12)

        submitting = asyncio.create_task(submit())
        await clock.run_until_idle()
        await submitting
        ledger = scheduler.ledger()
    assert all(at < deadline for at, deadline in log)
    assert max(after - before for (before, _), (after, _) in pairwise(log)) < 0.102
    assert ledger.delivered == len(log)
    assert ledger.expired == 300 - len(log) > 25
