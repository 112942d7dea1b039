"""Nothing outlives its use: not a map that was left, nor requests, replies, errors, tickets, threads or schedulers."""

import asyncio
import gc
import logging
import subprocess
import sys
import weakref

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    DeadlineExceededError,
    HealthMonitor,
    RateLimitScheduler,
    RequestCancelledError,
    RequestFailedError,
    Retry,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock

pytestmark = pytest.mark.usefixtures("quiet", "unlogged")

TWICE = Retry(attempts=2, base=0, cap=0, budget=1)


@pytest.fixture
def unlogged(caplog):
    """Log no warnings: what is logged, pytest keeps."""
    caplog.set_level(logging.ERROR, "tidegate")


class Thing:
    """A target, or a value, that can be seen to be freed."""


async def echo(request):
    return request.target


async def turns(number):
    for _ in range(number):
        await asyncio.sleep(0)


def alive(refs):
    """How many are left, once the garbage collector has run."""
    gc.collect()
    return sum(ref() is not None for ref in refs)


async def freed(refs):
    """None is left, a moment later: a thread reports before it lets go of its call."""
    async with asyncio.timeout(10):
        while alive(refs):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# ---- Maps that are left


async def things(number):
    for _ in range(number):
        await asyncio.sleep(0)
        yield Thing()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
async def test_breaking_out_of_a_map_cancels_its_requests_at_once(ordered, asynchronous):
    """Those that wait, those that run, and values that nobody has seen; without the garbage collector."""
    running = []

    async def handle(request):
        if len(running) >= 3:
            running.append(request.target)
            await asyncio.Event().wait()
        running.append(request.target)
        return request.target

    gc.disable()
    try:
        async with RateLimitScheduler([Backend("api", handle, BackendQuota(concurrency=5))]) as scheduler:
            source = things(1000) if asynchronous else [Thing() for _ in range(1000)]
            async for _ in scheduler.map(source, ordered=ordered, ahead=20):
                await turns(50)
                break
            ledger = scheduler.ledger()
            assert ledger.accepted >= 20
            assert (ledger.delivered, ledger.cancelled, ledger.pending) == (1, ledger.accepted - 1, 0)
            await turns(5)
            assert scheduler.snapshot().backends["api"].in_flight == 0
            assert {task.get_name().rpartition("-")[0] for task in asyncio.all_tasks()} <= {"tidegate-worker", "Task"}
    finally:
        gc.enable()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_consumer_that_is_cancelled_or_raises_leaves_its_map_at_once(asynchronous):
    async def never(request):
        await asyncio.Event().wait()

    async with RateLimitScheduler([Backend("never", never), Backend("echo", echo)]) as scheduler:

        def source():
            return things(1000) if asynchronous else range(1000)

        async def waits():
            async for _ in scheduler.map(source(), backends="never"):
                pytest.fail("there is no reply")

        async def fails():
            async for _ in scheduler.map(source(), backends="echo"):
                raise LookupError

        consumer = asyncio.create_task(waits())
        await turns(20)
        assert scheduler.ledger().pending > 0
        consumer.cancel()
        await asyncio.wait([consumer])  # it keeps the exception, with its traceback
        assert scheduler.ledger().pending == 0

        consumer = asyncio.create_task(fails())
        await asyncio.wait([consumer])
        assert scheduler.ledger().pending == 0
        with pytest.raises(LookupError):
            await consumer


async def test_a_map_gives_back_the_room_of_what_its_consumer_never_saw():
    async with RateLimitScheduler([Backend("api", echo)], capacity=4) as scheduler:
        for _ in range(20):
            async for _ in scheduler.map(range(100)):
                await turns(10)
                break
        tickets = [scheduler.submit_nowait(number) for number in range(4)]
        assert [(await ticket).value for ticket in tickets] == [0, 1, 2, 3]


async def test_a_map_takes_targets_only_as_fast_as_replies_are_consumed():
    taken = 0

    def source():
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield taken

    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        consumed = 0
        async for _ in scheduler.map(source(), ahead=10):
            consumed += 1
            assert taken <= consumed + 10
            await turns(3)
        assert consumed == 1000


# ---- Requests


async def test_targets_values_and_tickets_are_freed_with_their_last_user():
    """The workers, which live on, keep nothing of what they have run."""
    refs = []

    async def handle(request):
        refs.append(weakref.ref(request.target))
        value = Thing()
        refs.append(weakref.ref(value))
        return value

    async with RateLimitScheduler([Backend("api", handle)]) as scheduler:
        await scheduler.fetch(Thing())
        ticket = await scheduler.submit(Thing())
        await ticket
        assert refs[2]() is not None, "the ticket has the reply, with target and value"
        del ticket
        async for reply in scheduler.map([Thing(), Thing()]):
            assert reply.ok
        del reply
        await scheduler.submit(Thing())  # nobody awaits it
        await turns(10)
        assert len(refs) == 2 * 5
        assert [ref() for ref in refs if ref() is not None] == []


async def raise_value(scheduler, target):
    async for reply in scheduler.map([target]):
        with pytest.raises(RequestFailedError):
            _ = reply.value


async def raise_error(scheduler, target):
    async for reply in scheduler.map([target]):
        try:
            raise reply.error
        except RequestFailedError:
            pass


async def await_ticket(scheduler, target):
    ticket = await scheduler.submit(target)
    for _ in range(3):
        with pytest.raises(RequestFailedError):
            await ticket


async def fetch(scheduler, target):
    with pytest.raises(RequestFailedError):
        await scheduler.fetch(target)


async def fetch_from_a_thread(scheduler, target):
    future = scheduler.submit_threadsafe(target)
    with pytest.raises(RequestFailedError):
        await asyncio.wrap_future(future)


async def forget(scheduler, target):
    await scheduler.submit(target)


@pytest.mark.parametrize("isolation", ["worker", "task"])
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("use", [raise_value, raise_error, await_ticket, fetch, fetch_from_a_thread, forget])
async def test_failed_requests_can_be_collected(use, in_thread, isolation):
    """An error refers to frames, frames to replies and tickets, and those to the error: the collector sees all of that circle."""

    def plain(request):
        raise ValueError(request)

    async def on_loop(request):
        raise ValueError(request)

    refs = []
    backend = Backend("api", plain if in_thread else on_loop)
    async with RateLimitScheduler([backend], retry=TWICE, health=HealthMonitor(enabled=False)) as scheduler:
        for _ in range(20):
            target = Thing()
            refs.append(weakref.ref(target))
            await use(scheduler, target)
        del target
        await scheduler.drain()
        await freed(refs)


async def test_requests_that_end_otherwise_can_be_collected():
    clock = ManualClock()
    refs = []

    def thing():
        target = Thing()
        refs.append(weakref.ref(target))
        return target

    async def never(request):
        await asyncio.Event().wait()

    backend = Backend("api", never, BackendQuota(concurrency=2), timeout=None)
    async with RateLimitScheduler([backend], clock=clock) as scheduler:

        async def end():
            expires = [await scheduler.submit(thing(), timeout=5) for _ in range(10)]
            await clock.advance(6)
            cancelled = [await scheduler.submit(thing()) for _ in range(10)]
            await turns(5)
            for ticket in cancelled:
                assert ticket.cancel()
            for error, tickets in ((DeadlineExceededError, expires), (RequestCancelledError, cancelled)):
                for ticket in tickets:
                    with pytest.raises(error):
                        await ticket
            closed = [await scheduler.submit(thing()) for _ in range(10)]
            await scheduler.close()
            for ticket in closed:
                with pytest.raises(SchedulerClosedError):
                    await ticket

        await end()
        assert len(refs) == 30
        assert alive(refs) == 0


async def slot_that_ends_well(scheduler):
    async with scheduler.slot("api") as lease:
        lease.ack()


async def slot_that_fails(scheduler):
    with pytest.raises(LookupError):
        async with scheduler.slot("api"):
            raise LookupError


async def slot_that_is_late(scheduler):
    with pytest.raises(DeadlineExceededError):
        async with scheduler.slot("api", timeout=0.001):
            await asyncio.Event().wait()


async def slot_that_never_comes(scheduler):
    async with scheduler.slot("api"):
        with pytest.raises(DeadlineExceededError):
            async with scheduler.slot("api", timeout=0.001):
                pytest.fail("there is only one")


async def slot_that_is_cancelled(scheduler):
    async with scheduler.slot("api"):
        waits = asyncio.create_task(slot_that_ends_well(scheduler))
        await turns(3)
        waits.cancel()
        await asyncio.wait([waits])


@pytest.mark.parametrize(
    "use", [slot_that_ends_well, slot_that_fails, slot_that_is_late, slot_that_never_comes, slot_that_is_cancelled]
)
async def test_slots_can_be_collected(use):
    async with RateLimitScheduler(
        [Backend("api", echo, BackendQuota(concurrency=1))], health=HealthMonitor(enabled=False)
    ) as scheduler:
        await use(scheduler)
        await turns(5)
        before = census()
        for _ in range(20):
            await use(scheduler)
        await turns(5)
        assert grown(before) == {}


async def test_a_ticket_remembers_nobody_who_gave_up_waiting_for_it():
    gate = asyncio.Event()

    async def handle(request):
        await gate.wait()

    async def wait(ticket):
        async with asyncio.timeout(0):
            await ticket

    async with RateLimitScheduler([Backend("api", handle)]) as scheduler:
        ticket = await scheduler.submit("x")
        await turns(5)
        before = census()
        for _ in range(100):
            with pytest.raises(TimeoutError):
                await wait(ticket)
        assert grown(before) == {}
        gate.set()
        await ticket


# ---- The collector runs when it likes

# A map in a circle is cancelled when the collector finds it: here while tickets are made for 5000 requests.
IN_THE_MIDDLE = """
import asyncio
from tidegate import Backend, RateLimitScheduler

async def handler(request):
    return request.target

async def main():
    async with RateLimitScheduler([Backend("api", handler, "1/d")]) as scheduler:
        replies = scheduler.map(range(10))
        await anext(replies)
        replies.circle = replies
        del replies
        await scheduler.submit_many(range(5000))
        print(scheduler.ledger().cancelled)
        await scheduler.close()

asyncio.run(main())
"""


def test_a_finalizer_may_call_in_while_requests_are_accepted():
    """It deadlocked: objects were made under the lock."""
    run = subprocess.run([sys.executable, "-c", IN_THE_MIDDLE], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.split() == ["9"]


# ---- All together


def census():
    """How many objects of each kind there are."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        kind = type(each).__qualname__
        found[kind] = found.get(kind, 0) + 1
    return found


def grown(before, *, by=5):
    """The kinds of which there are clearly more than before."""
    more = {kind: number - before.get(kind, 0) for kind, number in census().items()}
    return {kind: number for kind, number in more.items() if number > by}


async def flaky(request):
    if request.target % 10 == 0:
        raise ConnectionError
    if request.target % 7 == 0:
        await asyncio.sleep(0)
    return [request.target]


@pytest.mark.parametrize("isolation", ["worker", "task"])
async def test_ten_thousand_requests_leave_no_objects_behind(isolation):
    """Of every kind: fetched, awaited, mapped, forgotten, cancelled, expired, failed; each with options of its own."""
    async with RateLimitScheduler([Backend("api", flaky)], retry=TWICE, isolation=isolation) as scheduler:

        async def requests(number):
            async for _ in scheduler.map(range(number)):
                pass
            tickets = await scheduler.submit_many(range(number), timeout=lambda target: 10 + target / 1000)
            await asyncio.gather(*[asyncio.ensure_future(ticket) for ticket in tickets], return_exceptions=True)
            await scheduler.submit_many(range(number))
            for ticket in await scheduler.submit_many(range(number), timeout=1e-9):
                ticket.cancel()
            for target in range(number):
                await asyncio.gather(scheduler.fetch(target, timeout=5 + target / 1000), return_exceptions=True)
            while scheduler.ledger().pending:  # noqa: ASYNC110 - what nobody awaits
                await asyncio.sleep(0.001)

        await requests(300)
        before = census()
        await requests(2000)
        assert scheduler.ledger().accepted == 5 * 2300
        assert grown(before, by=300) == {}, "the checked options of a few hundred requests are kept"


async def test_a_scheduler_can_be_collected_once_it_is_closed_whatever_is_kept_of_it():
    """A ticket, a reply, an error or a map that is kept does not keep the scheduler's handlers; nor is a cycle left."""

    class Handler:
        async def __call__(self, request):
            await asyncio.sleep(0)
            return request.target

    class Threaded:
        def __call__(self, request):
            raise ValueError

    refs, kept = [], []
    for handler in [Handler(), Threaded()] * 5:
        refs.append(weakref.ref(handler))
        async with RateLimitScheduler([Backend("api", handler)], retry=Retry(attempts=1)) as scheduler:
            refs.append(weakref.ref(scheduler))
            kept.extend(await scheduler.submit_many(range(3)))
            async for reply in scheduler.map(range(3)):
                kept.extend([reply, reply.error])
            scheduler.events()
            async with scheduler.slot("api"):
                pass
            with pytest.raises(ValueError, match="body"):
                async with scheduler.slot("api"):
                    raise ValueError("body")
    del handler, scheduler, reply
    kept.clear()
    await freed(refs)


async def test_a_scheduler_that_was_never_entered_can_be_collected():
    refs = []
    for _ in range(5):
        handler = Thing()
        handler.__class__.__call__ = lambda self, request: None
        scheduler = RateLimitScheduler([Backend("api", handler)])
        refs += [weakref.ref(scheduler), weakref.ref(handler)]
    del scheduler, handler
    assert alive(refs) == 0
