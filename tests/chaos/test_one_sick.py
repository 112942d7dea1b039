"""One backend fails beside healthy ones, in each of the ways in which backends fail, in virtual time."""

import asyncio

import pytest
from tests.chaos.world import (
    Upstream,
    World,
    answers,
    is_silent,
    most_within,
    p99,
    refuses,
    resets,
    resets_in_body,
    sends_headers_only,
)

from tidegate import HealthMonitor, LoadBalancer
from tidegate.testing import ManualClock

FAULTS = {
    "silent": is_silent,
    "headers, then nothing": sends_headers_only,
    "refuses": refuses,
    "resets": resets,
    "resets in the body": resets_in_body,
    "500": answers(500),
}
every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


def three(fault=None):
    clock = ManualClock()
    return clock, [Upstream(clock, "a"), Upstream(clock, "b"), Upstream(clock, "sick", fault=fault)]


async def served_alone(seconds):
    """What the two healthy ones of `three` serve without the third, when more waits than they can serve."""
    clock, upstreams = three()
    async with World(clock, upstreams[:2]) as world:
        await world.submit(range(60 * seconds))
        await clock.run_for(seconds)
        return sum(len(upstream.served) for upstream in upstreams[:2])


async def wait_alone(count):
    """The 99th percentile of waits when so many come at three quarters of what the healthy ones can serve, without the third."""
    clock, upstreams = three()
    async with World(clock, upstreams[:2]) as world:
        await world.arrive(count, per_second=30)
        await world.finish()
        return p99(world.waits())


@every_fault
async def test_healthy_ones_serve_what_they_serve_alone(fault):
    clock, (*healthy, sick) = three(fault)
    async with World(clock, [*healthy, sick]) as world:
        await world.submit(range(1500))
        await clock.run_for(20)
        assert sum(len(upstream.served) for upstream in healthy) >= 0.99 * await served_alone(20)
        assert sick.served == []
        assert sick.most_in <= 10, "it holds no more slots than its own"
        downs = len(world.named("backend_down"))
        assert downs <= 5
        assert len(sick.calls) <= 10 + 2 + downs, "those that went before three had failed, and probes"
        assert world.scheduler.snapshot().backends["sick"].state == "down"
        sick.fault = None
        await world.finish()
        world.check()


@pytest.mark.asyncio(loop_factories=["asyncio"])
@every_fault
async def test_requests_wait_no_longer_than_without_it(fault):
    clock, (*healthy, sick) = three(fault)
    async with World(clock, [*healthy, sick]) as world:
        await world.arrive(2000, per_second=30)
        await world.finish()
        world.check()
        assert p99(world.waits()) <= 2 * await wait_alone(2000) + 0.005
        calls = sum(len(upstream.calls) for upstream in [*healthy, sick])
        assert calls <= 1.1 * 2000


@pytest.mark.asyncio(loop_factories=["asyncio"])
@every_fault
async def test_it_is_used_again_as_soon_as_it_was_said(fault):
    """R: nine tenths of what it served before, one second after the pause that was announced last."""
    clock, (*healthy, sick) = three()
    async with World(clock, [*healthy, sick]) as world:
        await world.submit(range(4500))
        await clock.run_for(20)
        sick.fault = fault
        await clock.run_for(20)
        sick.fault = None
        said_at, down = world.named("backend_down", "sick")[-1]
        again = said_at + down.seconds
        assert again > clock.time(), "it was tried while it failed, and is to be again"
        await clock.run_for(again + 11 - clock.time())
        before = sick.served_between(0, 20) / 20
        assert sick.served_between(again + 1, again + 11) / 10 >= 0.9 * before
        await world.finish()
        world.check()
        kinds = [event.kind for _, event in world.events if event.backend == "sick"]
        assert kinds[-1] in {"backend_recovering", "backend_up"}


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("fault", [is_silent, answers(500)], ids=["silent", "500"])
async def test_it_is_told(fault):
    clock, (*healthy, sick) = three(fault)
    async with World(clock, [*healthy, sick]) as world:
        await world.arrive(300, per_second=30)
        at, down = world.named("backend_down")[0]
        assert (down.backend, down.account, down.failed, down.attempts) == ("sick", None, 3, 3)
        assert 2.5 <= down.seconds <= 5
        assert at < 6
        state = world.scheduler.snapshot().backends["sick"]
        assert (state.state, state.health.score) == ("down", 0)
        sick.fault = None
        await world.arrive(3600, per_second=30)
        state = world.scheduler.snapshot().backends["sick"]
        assert (state.health.phase, state.state) == ("up", "open")
        await world.finish()
        world.check()
        kinds = [event.kind for _, event in world.events]
        assert kinds == ["backend_down"] * (len(kinds) - 2) + ["backend_recovering", "backend_up"]


async def test_one_that_fails_at_once_beside_a_fast_one():
    """It is always free; nothing may be drawn to it for that."""
    clock = ManualClock()
    fast = Upstream(clock, "fast", per_second=400, concurrency=64)
    sick = Upstream(clock, "sick", per_second=400, concurrency=64, fault=refuses)
    async with World(clock, [fast, sick]) as world:
        await world.submit(range(10_000))
        await clock.run_for(20)
        assert len(sick.calls) <= 64 + 4
        utilisation = world.scheduler.snapshot().backends["fast"].utilisation
        assert utilisation >= 0.9
        await world.finish()
        world.check()
        assert len(fast.calls) + len(sick.calls) <= 1.02 * 10_000


async def test_one_request_goes_when_it_is_tried_again():
    """A hundred wait for it alone."""
    clock = ManualClock()
    alone = Upstream(clock, "alone", per_second=200, concurrency=200, fault=refuses, latency=0.5)
    async with World(clock, [alone]) as world:
        await world.submit(range(100))
        await clock.run_for(0.5)
        at, down = world.named("backend_down")[-1]
        before = len(alone.calls)
        alone.fault = None
        await clock.run_for(at + down.seconds - clock.time() + 0.4)
        assert len(alone.calls) == before + 1
        assert alone.now_in == 1
        assert world.scheduler.snapshot().backends["alone"].health.phase == "probe"
        await clock.run_for(0.2)
        assert alone.now_in == 2, "the first was answered: two go"
        await world.finish()
        world.check()


@pytest.mark.parametrize("every, is_down", [(1, True), (2, True), (7, False)])
async def test_share_of_failures(every, is_down):
    clock, (*healthy, sick) = three()
    asked = 0

    async def some_fail(upstream, request):
        nonlocal asked
        asked += 1
        if asked % every == 0:
            await answers(500)(upstream, request)

    sick.fault = some_fail
    async with World(clock, [*healthy, sick]) as world:
        await world.arrive(3000, per_second=45)
        assert bool(world.named("backend_down")) == is_down
        sick.fault = None
        await world.finish()
        world.check()
        served = sum(len(upstream.served) for upstream in healthy)
        if is_down:
            assert len(sick.calls) < 500
        else:
            assert len(sick.calls) > 500, "it is used for what it is worth"
        assert served + len(sick.served) == 3000


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_flapping_does_not_oscillate():
    """A second up, a second down, for five minutes."""
    clock, (*healthy, sick) = three()

    async def flaps(upstream, request):
        if clock.time() % 2 >= 1:
            await refuses(upstream, request)

    sick.fault = flaps
    async with World(clock, [*healthy, sick]) as world:
        await world.arrive(9000, per_second=30)
        pauses = [(at, event.seconds) for at, event in world.named("backend_down")]
        assert 2 <= len(pauses) <= 10
        assert max(seconds for _, seconds in pauses) >= 60, "they grow"
        assert most_within([at + seconds for at, seconds in pauses], 1) == 1, "at most one probe a second"
        await world.finish()
        world.check()
        failed = len(sick.calls) - len(sick.served)
        assert failed <= 0.01 * 9000
        assert p99(world.waits()) <= 2 * await wait_alone(2000)


async def test_latency_step_of_one_leaves_the_others_alone():
    """F12: from 50 ms to 5 s, which is slow and no failure."""
    clock, (*healthy, sick) = three()
    sick.backend.timeout = None
    async with World(clock, [*healthy, sick]) as world:
        await world.submit(range(5000))
        await clock.run_for(20)
        before = sum(len(upstream.served) for upstream in healthy)
        sick.latency = 5
        await clock.run_for(30)
        assert sum(len(upstream.served) for upstream in healthy) - before >= 0.99 * await served_alone(30)
        assert sick.most_in <= 10
        assert world.named("backend_down") == []
        assert world.scheduler.snapshot().backends["sick"].latency > 1
        await world.finish()
        world.check()


async def test_switched_off_nothing_is_down():
    clock, (*healthy, sick) = three(answers(500))
    async with World(clock, [*healthy, sick], health=HealthMonitor(enabled=False)) as world:
        await world.arrive(600, per_second=30)
        assert world.events == []
        assert len(sick.calls) > 100
        assert world.scheduler.snapshot().backends["sick"].health.phase == "up"
        sick.fault = None
        await asyncio.sleep(0)


async def test_recovers_beside_others_that_are_quicker():
    """The choice by latency leaves alone what has failed; its probe goes all the same, and what it did then is forgotten."""
    clock, (*healthy, sick) = three(answers(500))
    async with World(clock, [*healthy, sick], balancer=LoadBalancer()) as world:
        await world.submit(range(400))
        await clock.run_for(5)
        assert world.scheduler.snapshot().backends["sick"].state == "down"
        sick.fault = None
        await world.arrive(3000, per_second=30)
        assert [event.kind for _, event in world.events if event.backend == "sick"][-2:] == ["backend_recovering", "backend_up"]
        assert len(sick.served) > 100
        await world.finish()
        world.check()
