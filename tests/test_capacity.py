"""Backpressure: what happens when as many requests are pending as `capacity` allows."""

import asyncio

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    Ledger,
    Priority,
    QueueFullError,
    RateLimitScheduler,
    Retry,
    SchedulerClosedError,
    TidegateError,
)
from tidegate.testing import ManualClock


def counts(scheduler):
    """The ledger's counts that are not zero."""
    ledger = scheduler.ledger()
    assert ledger.balanced
    return {name: number for name in Ledger.__slots__ if (number := getattr(ledger, name))}


class Server:
    """A backend that serves one request a second, one at a time, and remembers their order."""

    def __init__(self, clock):
        self.served = []
        self._clock = clock
        self.backend = Backend("api", self._fetch, BackendQuota(concurrency=1))

    async def _fetch(self, request):
        self.served.append(request.target)
        await self._clock.sleep(1)
        if request.target == "bad":
            raise ValueError
        return request.target


def scheduler_with(capacity, clock):
    """A scheduler with so much room, and its server."""
    server = Server(clock)
    return RateLimitScheduler([server.backend], capacity=capacity, clock=clock, retry=Retry(attempts=1)), server


async def wait(clock, seconds):
    """Let everything start that can, then let time pass."""
    await clock.advance(1e-6)
    await clock.advance(seconds)


# ---- submit


async def test_submit_waits():
    """`submit` waits until there is room, and accepts no earlier."""
    clock = ManualClock()
    scheduler, server = scheduler_with(2, clock)
    async with scheduler:
        await scheduler.submit_many([1, 2])
        third = asyncio.create_task(scheduler.submit(3))
        await wait(clock, 0.5)
        assert not third.done()
        assert counts(scheduler) == {"accepted": 2, "queued": 1, "leased": 1}
        await clock.advance(1)
        ticket = await third
        assert not ticket.done()
        assert scheduler.ledger().accepted == 3
        await clock.run_until_idle()
        assert (await ticket).value == 3
        # Its time in line was before it was accepted.
        assert sum((await ticket).waits.values()) < 2.51
    assert server.served == [1, 2, 3]


async def test_line_is_first_in_first_out():
    """Who waits for room gets it in the order of asking, by whatever call and with whatever priority."""
    clock = ManualClock()
    scheduler, server = scheduler_with(1, clock)
    async with scheduler:
        await scheduler.submit("first")
        calls = [
            scheduler.fetch("fetch", priority=Priority.LOW),
            scheduler.submit("submit", priority=Priority.CRITICAL),
            scheduler.submit_many(["many 1", "many 2"]),
            scheduler.submit_many(["each 1", "each 2"], priority=lambda target: 5),
            scheduler.fetch("last", priority=Priority.CRITICAL),
        ]
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(call))
            await asyncio.sleep(0)
        await clock.run_until_idle()
        await asyncio.gather(*tasks)
        await clock.run_until_idle()
    assert server.served == ["first", "fetch", "submit", "many 1", "many 2", "each 1", "each 2", "last"]
    assert counts(scheduler) == {"accepted": 8, "delivered": 8}


async def test_nobody_overtakes_the_line():
    """While somebody waits for room, who comes now waits behind, also when room has just come up."""
    clock = ManualClock()
    scheduler, server = scheduler_with(1, clock)
    async with scheduler:
        ticket = await scheduler.submit("first")
        second = asyncio.create_task(scheduler.submit("second"))
        await asyncio.sleep(0)
        ticket.cancel()
        with pytest.raises(QueueFullError):
            scheduler.submit_nowait("third")
        fourth = asyncio.create_task(scheduler.submit("fourth"))
        await clock.run_until_idle()
        await asyncio.gather(second, fourth)
        await clock.run_until_idle()
    assert server.served == ["second", "fourth"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("capacity, concurrency", [(1, 1), (2, 2), (5, 5), (10, 3)])
async def test_map_and_the_line(asynchronous, capacity, concurrency):
    """A map takes no room ahead of those who wait in line for it."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append(request.target)
        await clock.sleep(1)

    async def source():
        for target in range(50):
            yield target

    backend = Backend("api", fetch, BackendQuota(concurrency=concurrency))
    async with RateLimitScheduler([backend], capacity=capacity, clock=clock) as scheduler:

        async def consume():
            return [reply.target async for reply in scheduler.map(source() if asynchronous else range(50))]

        mapping = asyncio.create_task(consume())
        await clock.advance(1e-6)
        waiting = [asyncio.create_task(scheduler.fetch(f"in line {number}")) for number in range(3)]
        await clock.run_until_idle()
        await asyncio.gather(*waiting)
        assert sorted(await mapping) == list(range(50))
    places = [order.index(f"in line {number}") for number in range(3)]
    # The one target that waited before them is accepted before them.
    assert places == [capacity + number + asynchronous for number in range(3)]


async def test_one_in_line_that_is_cancelled():
    """One that leaves the line is not accepted, and holds nobody up."""
    clock = ManualClock()
    scheduler, server = scheduler_with(1, clock)
    async with scheduler:
        await scheduler.submit("first")
        tasks = []
        for name in ("second", "third", "fourth"):
            tasks.append(asyncio.create_task(scheduler.fetch(name)))
            await asyncio.sleep(0)
        tasks[0].cancel()
        await clock.advance(0.5)
        # The one that is woken as room comes up leaves without taking it.
        await clock.advance(0.7)
        tasks[1].cancel()
        await clock.run_until_idle()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
    assert results[2].value == "fourth"
    assert server.served[-1] == "fourth"
    assert scheduler.ledger().pending == 0


@pytest.mark.parametrize("how", ["cancelled", "expired", "failed", "delivered"])
async def test_room_comes_back(how):
    """Each end of a request gives its room back, at once."""
    clock = ManualClock()
    scheduler, _ = scheduler_with(1, clock)
    async with scheduler:
        target = "bad" if how == "failed" else "good"
        ticket = await scheduler.submit(target, timeout=0.5 if how == "expired" else None)
        waiting = asyncio.create_task(scheduler.submit("next"))
        await wait(clock, 0.1)
        if how == "cancelled":
            assert ticket.cancel()
        else:
            await clock.advance(1)
        await clock.advance(1e-6)
        assert waiting.done()
        await clock.run_until_idle()
        assert (await (await waiting)).value == "next"
        if how in {"cancelled", "expired", "failed"}:
            with pytest.raises(TidegateError):
                await ticket


# ---- submit_nowait


async def test_submit_nowait_when_full():
    """`submit_nowait` refuses, with what was refused and the way out, and changes nothing."""
    clock = ManualClock()
    scheduler, _ = scheduler_with(2, clock)
    async with scheduler:
        tickets = [scheduler.submit_nowait(1), scheduler.submit_nowait(2)]
        target = object()
        with pytest.raises(QueueFullError) as caught:
            scheduler.submit_nowait(target)
        assert str(caught.value) == (
            "2 requests are pending, as many as capacity allows; use submit(), which waits, or raise capacity"
        )
        assert caught.value.target is target
        assert caught.value.capacity == 2
        assert scheduler.ledger().accepted == 2
        await clock.run_until_idle()
        assert [(await ticket).value for ticket in tickets] == [1, 2]
        third = scheduler.submit_nowait(3)
        await clock.run_until_idle()
        assert (await third).ok


# ---- submit_many


async def test_submit_many_over_capacity():
    """`submit_many` of more than there is room for is accepted bit by bit, in order, and gives all tickets."""
    clock = ManualClock()
    scheduler, server = scheduler_with(3, clock)
    async with scheduler:
        task = asyncio.create_task(scheduler.submit_many(range(10)))
        await clock.advance(1e-6)
        assert scheduler.ledger().accepted == 3
        most = 0
        while not task.done():
            await clock.advance(0.25)
            most = max(most, scheduler.ledger().pending)
        assert most == 3
        tickets = await task
        await clock.run_until_idle()
        assert [(await ticket).value for ticket in tickets] == list(range(10))
    assert server.served == list(range(10))


@pytest.mark.parametrize("options", [{}, {"priority": lambda target: 128}], ids=["plain", "function"])
async def test_two_submit_many_over_capacity(options):
    """Of two large batches the first is accepted whole before the second."""
    clock = ManualClock()
    scheduler, server = scheduler_with(2, clock)
    async with scheduler:
        first = asyncio.create_task(scheduler.submit_many(range(6), **options))
        await asyncio.sleep(0)
        second = asyncio.create_task(scheduler.submit_many(list("abc"), **options))
        await clock.run_until_idle()
        await asyncio.gather(first, second)
        await clock.run_until_idle()
    assert server.served == [*range(6), "a", "b", "c"]


async def test_submit_many_that_is_cancelled():
    """Cancelling `submit_many` in the middle cancels what it had accepted."""
    clock = ManualClock()
    scheduler, server = scheduler_with(3, clock)
    async with scheduler:
        task = asyncio.create_task(scheduler.submit_many(range(10)))
        await wait(clock, 1.5)
        task.cancel()
        await clock.run_until_idle()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert counts(scheduler) == {"accepted": 4, "delivered": 1, "cancelled": 3}
    assert server.served == [0, 1]


# ---- Threads


async def test_submit_threadsafe_when_full():
    """`submit_threadsafe` does not block: its future fails with `QueueFullError`."""
    clock = ManualClock()
    scheduler, _ = scheduler_with(1, clock)
    async with scheduler:
        first = scheduler.submit_threadsafe("first")
        second = scheduler.submit_threadsafe("second")
        error = second.exception(timeout=0)
        assert type(error) is QueueFullError
        assert (error.target, error.capacity) == ("second", 1)
        await clock.run_until_idle()
        assert first.result(timeout=0).value == "first"
        third = scheduler.submit_threadsafe("third")
        await clock.run_until_idle()
        assert third.result(timeout=0).value == "third"
    assert counts(scheduler) == {"accepted": 2, "delivered": 2}


# ---- The end


@pytest.mark.parametrize("how", ["drain", "close"])
async def test_line_at_the_end(how):
    """Who waits for room when nothing is accepted any more is told so, and what it had accepted is cancelled."""
    clock = ManualClock()
    scheduler, server = scheduler_with(1, clock)
    async with scheduler:
        await scheduler.submit("first")
        tasks = []
        for call in (scheduler.submit("second"), scheduler.submit_many(["third", "fourth"]), scheduler.fetch("fifth")):
            tasks.append(asyncio.create_task(call))
            await asyncio.sleep(0)
        ending = asyncio.create_task(scheduler.drain() if how == "drain" else scheduler.close())
        await clock.run_until_idle()
        await ending
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [SchedulerClosedError] * 3
        assert scheduler.ledger().accepted == 1
    assert server.served in ([], ["first"])


async def test_slot_waits_for_room():
    """A slot is a request too: it waits for room in the same line."""
    clock = ManualClock()
    scheduler, _ = scheduler_with(1, clock)
    order = []

    async def body():
        async with scheduler.slot("api"):
            order.append("slot")

    async with scheduler:
        await scheduler.submit("first")
        slot = asyncio.create_task(body())
        await asyncio.sleep(0)
        last = asyncio.create_task(scheduler.fetch("last"))
        await wait(clock, 0.5)
        assert order == []
        assert scheduler.ledger().accepted == 1
        await clock.run_until_idle()
        await asyncio.gather(slot, last)
    assert order == ["slot"]
    assert counts(scheduler) == {"accepted": 3, "delivered": 3}


async def test_capacity_counts_what_is_pending():
    """What is queued, leased, in back-off or done and not read takes room; what has ended does not."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(1)
        if request.target == "flaky" and request.attempt == 1:
            raise ConnectionError

    backend = Backend("api", fetch, BackendQuota(concurrency=3))
    retry = Retry(base=1000, cap=1000, budget=1)
    async with RateLimitScheduler([backend], capacity=5, clock=clock, retry=retry, seed=2) as scheduler:
        stream = scheduler.map(["read", "unread"], ordered=True)
        await asyncio.sleep(0)
        step = asyncio.create_task(anext(stream))
        flaky = await scheduler.submit("flaky")
        await wait(clock, 1.5)
        await step
        assert counts(scheduler) == {"accepted": 3, "queued": 1, "done": 2}
        await scheduler.submit_many(["fourth", "fifth"])
        with pytest.raises(QueueFullError):
            scheduler.submit_nowait("sixth")
        await anext(stream)
        scheduler.submit_nowait("sixth")
        flaky.cancel()
        scheduler.submit_nowait("seventh")
        with pytest.raises(QueueFullError):
            scheduler.submit_nowait("eighth")
        await stream.aclose()
        await clock.run_until_idle()
    assert counts(scheduler) == {"accepted": 7, "delivered": 6, "cancelled": 1}
