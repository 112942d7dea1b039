"""One of three HTTP servers fails, over real connections and in real time. What is compared was measured in the same run."""

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest
from tests.chaos.proxy import Fault, Site

from tidegate import Backend, BackendQuota, HealthMonitor, RateLimitScheduler
from tidegate.backends.http import HttpBackend

SECONDS = 1.5
SLOTS = 4
QUICK = HealthMonitor(pause=0.4, longest_pause=2, longest_sole_pause=2, ramp=0.5)


def backend_of(site):
    return HttpBackend(site.name, site.url, BackendQuota("40/s burst 5", concurrency=SLOTS), timeout=1)


async def served_by(healthy, all_of_them, requests):
    """What the healthy ones serve in some seconds when more waits than they can serve; the scheduler, which goes on."""
    scheduler = RateLimitScheduler([backend_of(site) for site in all_of_them], health=QUICK)
    await scheduler.__aenter__()
    before = sum(site.served for site in healthy)
    tickets = await scheduler.submit_many(range(requests))
    await asyncio.sleep(SECONDS)
    return sum(site.served for site in healthy) - before, scheduler, tickets


async def one_fails(fault):
    async with AsyncExitStack() as stack:
        *healthy, sick = [await stack.enter_async_context(Site(name)) for name in ("a", "b", "sick")]
        alone, scheduler, _ = await served_by(healthy, healthy, 500)
        await scheduler.close()
        await asyncio.sleep(0.5)  # their buckets are full again, as they were
        await sick.proxy.set(fault)
        served, scheduler, tickets = await served_by(healthy, [*healthy, sick], 240)
        try:
            assert served >= 0.9 * alone
            assert sick.proxy.most_open <= SLOTS
            assert scheduler.snapshot().backends["sick"].in_flight <= SLOTS
            assert scheduler.snapshot().backends["sick"].health.phase != "up"
            await sick.proxy.set(Fault.NONE)
            before = sick.served
            tickets += await scheduler.submit_many(range(240, 250), backends=["sick"])
            replies = [await ticket for ticket in tickets]
            assert all(reply.ok and reply.value.text == f"/{reply.target}" * 3 for reply in replies)
            assert sick.served >= before + 10
            ledger = scheduler.ledger()
            assert ledger.balanced
            assert (ledger.delivered, ledger.pending) == (250, 0)
            assert [site.counter.rejected for site in (*healthy, sick)] == [0, 0, 0]
        finally:
            await scheduler.close()


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_silent_one(quiet):
    await one_fails(Fault.SILENT)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_one_that_resets_in_the_body(quiet):
    await one_fails(Fault.RESET_IN_BODY)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE], ids=lambda fault: fault.value)
async def test_each_way_to_fail(quiet, fault):
    await one_fails(fault)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_threads_that_never_return_are_fenced_off(quiet):
    """They hold the slots of their own backend, are counted, and keep nobody from closing."""
    over = threading.Event()

    def hangs(request):
        over.wait()

    async def serves(request):
        return request.target

    stuck = Backend("stuck", hangs, BackendQuota(concurrency=SLOTS), timeout=0.2)
    well = Backend("well", serves, "100/s burst 10")
    try:
        async with RateLimitScheduler([stuck, well], health=QUICK) as scheduler:
            replies = [reply async for reply in scheduler.map(range(200))]
            assert sorted(reply.value for reply in replies) == list(range(200))
            assert {reply.backend for reply in replies} == {"well"}
            state = scheduler.snapshot().backends["stuck"]
            assert state.strays == state.in_flight == SLOTS
            assert state.state in {"down", "full"}
    finally:
        over.set()
