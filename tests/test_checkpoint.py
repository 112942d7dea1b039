"""What an attempt leaves for the next one, and how a handler sees that nobody wants its attempt any more."""

import asyncio
import gc
import threading
import weakref

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    DeadlineExceededError,
    RateLimitScheduler,
    RequestCancelledError,
    Retry,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock

AGAIN = Retry(attempts=5, base=0, cap=0, budget=1)
ISOLATIONS = ["worker", "task"]


class Thing:
    """What is left, and can be seen to be freed."""


async def until(holds):
    """Wait for what a thread is about to do."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a thread sets no event of the loop
            await asyncio.sleep(0.001)


async def freed(ref):
    """It is gone, a moment later: a thread reports before it lets go of its call."""
    async with asyncio.timeout(10):
        while gc.collect() >= 0 and ref() is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# ---- checkpoint


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_an_attempt_finds_what_the_one_before_has_left(in_thread, isolation):
    found = []

    def scrape(request):
        found.append((request.target, request.attempt, request.checkpoint))
        request.checkpoint = (request.checkpoint or []) + [f"page {request.attempt}"]
        if request.attempt < 3:
            raise ConnectionError
        return request.checkpoint

    async def scrape_on_the_loop(request):
        return scrape(request)

    handler = scrape if in_thread else scrape_on_the_loop
    async with RateLimitScheduler([Backend("api", handler)], retry=AGAIN, isolation=isolation) as scheduler:
        replies = await asyncio.gather(scheduler.fetch("a"), scheduler.fetch("b"))
    assert [reply.value for reply in replies] == [["page 1", "page 2", "page 3"]] * 2
    for target in "ab":
        theirs = [rest for name, *rest in found if name == target]
        assert theirs == [[1, None], [2, ["page 1"]], [3, ["page 1", "page 2"]]]


async def test_a_rejected_attempt_leaves_it_too():
    seen = []

    async def handle(request):
        seen.append(request.checkpoint)
        if request.checkpoint is None:
            request.checkpoint = "there"
            request.ack(429, {"Retry-After": "0"})
        return request.checkpoint

    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", handle, "10/s")], clock=clock) as scheduler:
        fetching = asyncio.ensure_future(scheduler.fetch("x"))
        await clock.run_until_idle()
        assert (await fetching).value == "there"
    assert seen == [None, "there"]


async def test_it_can_be_taken_back():
    async def handle(request):
        request.checkpoint = Thing()
        request.checkpoint = None
        return request.checkpoint

    async with RateLimitScheduler([Backend("api", handle)]) as scheduler:
        assert (await scheduler.fetch("x")).value is None


async def test_what_is_replaced_may_look_at_its_own_request_as_it_goes():
    """Whatever was left is dropped outside of the engine's lock: its finalizer would wait for that for ever."""
    seen = []

    class Finalized:
        def __init__(self, request):
            self.request = request

        def __del__(self):
            seen.append((self.request.checkpoint, self.request.ended))

    async def handle(request):
        request.checkpoint = Finalized(request)
        request.checkpoint = "second"

    async with RateLimitScheduler([Backend("api", handle)]) as scheduler:
        await scheduler.fetch("x")
    assert seen == [("second", False)]


@pytest.mark.parametrize("end", ["value", "error", "cancelled", "closed", "late"])
async def test_it_is_gone_when_its_request_ends(end):
    left, kept = [], []
    begun = asyncio.Event()

    async def handle(request):
        thing = Thing()
        left.append(weakref.ref(thing))
        kept.append(request)
        request.checkpoint = thing
        del thing
        begun.set()
        match end:
            case "value":
                return
            case "error":
                raise ConnectionError
        await asyncio.Event().wait()

    scheduler = RateLimitScheduler([Backend("api", handle)], retry=Retry(attempts=1))
    async with scheduler:
        ticket = await scheduler.submit("x", timeout=0.05 if end == "late" else None)
        await begun.wait()
        if end == "cancelled":
            ticket.cancel()
        if end == "closed":
            await scheduler.close()
        await until(ticket.done)
        await freed(left[0])
        kept[0].checkpoint = Thing()
        assert kept[0].checkpoint is None
        assert kept[0].ended


async def test_an_attempt_that_was_given_up_leaves_nothing():
    """A thread that is left to itself does not touch what the next attempt has read meanwhile."""
    went_on, late = threading.Event(), []

    def handle(request):
        if request.attempt == 1:
            request.checkpoint = "first"
            went_on.wait(10)
            request.checkpoint = "too late"
            late.append(request.checkpoint)
            return None
        found, request.checkpoint = request.checkpoint, "second"
        went_on.set()
        while not late:
            threading.Event().wait(0.001)
        return found, request.checkpoint

    backend = Backend("api", handle, BackendQuota(concurrency=2), timeout=0.05)
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        reply = await scheduler.fetch("x")
    assert reply.value == ("first", "second")
    assert late == [None]


async def test_who_joins_a_request_shares_it():
    async def handle(request):
        if request.attempt == 1:
            request.checkpoint = "left"
            raise ConnectionError
        return request.checkpoint

    async with RateLimitScheduler([Backend("api", handle)], retry=AGAIN) as scheduler:
        tickets = await scheduler.submit_many(["x", "x"], unique=str)
        assert [(await ticket).value for ticket in tickets] == ["left", "left"]


async def test_a_circle_through_what_was_left_is_collected():
    left = []

    async def handle(request):
        thing = Thing()
        thing.request = request  # its request's core has the thing
        left.append(weakref.ref(thing))
        request.checkpoint = thing
        raise ConnectionError

    async def forget():
        clock = ManualClock()
        scheduler = RateLimitScheduler([Backend("api", handle)], retry=Retry(base=1000, cap=1000), clock=clock, seed=1)
        await scheduler.__aenter__()
        ticket = await scheduler.submit("x")
        for _ in range(5):
            await asyncio.sleep(0)
        assert left[0]() is not None
        assert not ticket.done()
        return scheduler

    scheduler = await forget()
    gc.collect()
    assert left[0]() is not None, "its request waits for another attempt"
    await scheduler.close()
    del scheduler
    await freed(left[0])


async def test_ten_thousand_requests_that_leave_something_leave_nothing_behind():
    before = sum(isinstance(each, Thing) for each in gc.get_objects())

    async def handle(request):
        request.checkpoint = Thing()
        if request.attempt == 1 and request.target % 10 == 0:
            raise ConnectionError

    async with RateLimitScheduler([Backend("api", handle)], retry=Retry(base=0, cap=0, budget=1)) as scheduler:
        async for reply in scheduler.map(range(10_000)):
            assert reply.ok
        gc.collect()
        assert sum(isinstance(each, Thing) for each in gc.get_objects()) == before


# ---- ended


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("end", ["cancelled", "late", "timed out", "closed"])
async def test_a_thread_sees_that_its_attempt_was_given_up(end, isolation):
    seen, returned = [], threading.Event()
    begun = threading.Event()

    def handle(request):
        seen.append(request.ended)
        begun.set()
        while not request.ended:
            threading.Event().wait(0.001)
        seen.append(request.ended)
        returned.set()

    backend = Backend("api", handle, timeout=0.05 if end == "timed out" else None)
    async with RateLimitScheduler([backend], retry=Retry(attempts=1), isolation=isolation) as scheduler:
        ticket = await scheduler.submit("x", timeout=0.05 if end == "late" else None)
        await until(begun.is_set)
        match end:
            case "cancelled":
                ticket.cancel()
            case "closed":
                await scheduler.close()
        await until(returned.is_set)
        expected = {"cancelled": RequestCancelledError, "late": DeadlineExceededError, "closed": SchedulerClosedError}
        with pytest.raises(expected.get(end, Exception)):
            await ticket
    assert seen == [False, True]


async def test_it_does_not_end_while_others_have_joined():
    stop, seen = asyncio.Event(), []

    async def handle(request):
        await stop.wait()
        seen.append(request.ended)

    async with RateLimitScheduler([Backend("api", handle)]) as scheduler:
        first, second = await scheduler.submit_many(["x", "x"], unique=str)
        await asyncio.sleep(0)
        first.cancel()
        stop.set()
        await second
    assert seen == [False]


async def test_an_attempt_that_is_over_has_ended():
    kept = []

    async def handle(request):
        kept.append(request)
        if request.attempt == 1:
            raise ConnectionError
        assert kept[0].ended
        assert not request.ended

    async with RateLimitScheduler([Backend("api", handle)], retry=AGAIN) as scheduler:
        await scheduler.fetch("x")
    assert [request.ended for request in kept] == [True, True]


async def test_neither_can_be_deleted_and_ended_cannot_be_set():
    async def handle(request):
        with pytest.raises((AttributeError, TypeError)):
            del request.checkpoint
        with pytest.raises(AttributeError):
            request.ended = True

    async with RateLimitScheduler([Backend("api", handle)]) as scheduler:
        assert (await scheduler.fetch("x")).ok
