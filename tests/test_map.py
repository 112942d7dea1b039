"""`map`: many targets in, replies out, no faster than they are consumed."""

import asyncio
import gc
from functools import partial
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import (
    Backend,
    BackendQuota,
    ConfigError,
    Ledger,
    Priority,
    RateLimitScheduler,
    ReplyStream,
    RequestFailedError,
    Retry,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock

ONCE = Retry(attempts=1)


async def echo(request):
    return request.target


def counts(scheduler):
    """The ledger's counts that are not zero."""
    ledger = scheduler.ledger()
    assert ledger.balanced
    return {name: number for name in Ledger.__slots__ if (number := getattr(ledger, name))}


async def run(clock, awaitable):
    """Let virtual time pass until nothing is pending, and say what came of `awaitable`."""
    task = asyncio.ensure_future(awaitable)
    await clock.run_until_idle()
    assert task.done(), "nothing is pending and nobody sleeps, and still it waits"
    return await task


async def wait(clock, seconds):
    """Let everything start that can, then let time pass."""
    await clock.advance(1e-6)
    await clock.advance(seconds)


async def values(stream):
    return [reply.value async for reply in stream]


async def read_into(seen, stream):
    """Read a stream to its end, and keep what was read if that is an error."""
    async for reply in stream:
        seen.append(reply.value)


def slow(clock, seconds=1.0):
    async def fetch(request):
        await clock.sleep(seconds(request.target) if callable(seconds) else seconds)
        return request.target

    return fetch


# ---- Order


async def test_order_of_completion():
    """Replies come as they complete."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock, float))], clock=clock) as scheduler:
        stream = scheduler.map([3, 1, 2])
        assert isinstance(stream, ReplyStream)
        assert await run(clock, values(stream)) == [1, 2, 3]
    assert counts(scheduler) == {"accepted": 3, "delivered": 3}


async def test_ordered():
    """With `ordered` they come in the order of their targets, failed ones in their places."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(10 - request.target)
        if request.target % 3 == 0:
            raise ValueError
        return request.target

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock, retry=ONCE) as scheduler:

        async def consume():
            return [(reply.target, reply.ok) async for reply in scheduler.map(range(10), ordered=True)]

        assert await run(clock, consume()) == [(target, target % 3 != 0) for target in range(10)]
    assert counts(scheduler) == {"accepted": 10, "delivered": 6, "dead": 4}


@given(
    delays=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    failing=st.sets(st.integers(0, 29)),
    ahead=st.integers(1, 10),
    capacity=st.integers(1, 12),
    concurrency=st.integers(1, 5),
    ordered=st.booleans(),
    asynchronous=st.booleans(),
    pause=st.integers(0, 2),
)
async def test_every_target_has_one_reply(delays, failing, ahead, capacity, concurrency, ordered, asynchronous, pause):
    """Whatever the shape of the work, each target has exactly one reply, and the ledger ends even."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(delays[request.target])
        if request.target in failing:
            raise ValueError
        return request.target

    async def source():
        for target in range(len(delays)):
            if target % 4 == 3:
                await clock.sleep(1)
            yield target

    backend = Backend("api", fetch, BackendQuota("7/2s", concurrency=concurrency))
    async with RateLimitScheduler([backend], clock=clock, retry=ONCE, capacity=capacity) as scheduler:

        async def consume():
            seen = []
            targets = source() if asynchronous else range(len(delays))
            async for reply in scheduler.map(targets, ordered=ordered, ahead=ahead):
                seen.append(reply.target)
                assert reply.ok == (reply.target not in failing)
                if pause:
                    await clock.sleep(pause)
                assert scheduler.ledger().pending <= min(ahead + 1, capacity)
            return seen

        seen = await run(clock, consume())
        assert (seen if ordered else sorted(seen)) == list(range(len(delays)))
        assert scheduler.ledger().pending == 0
        failed = len(failing & set(range(len(delays))))
        assert (scheduler.ledger().delivered, scheduler.ledger().dead) == (len(delays) - failed, failed)


# ---- Targets are taken as replies are consumed


@pytest.mark.parametrize("ahead", [1, 2, 7, 64])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_ahead(ahead, asynchronous):
    """At most `ahead` requests are accepted and not yielded, and no more targets are taken than that."""
    taken = []

    def source():
        for target in count():
            taken.append(target)
            yield target

    async def asynchronous_source():
        for target in source():
            yield target

    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        stream = scheduler.map(asynchronous_source() if asynchronous else source(), ahead=ahead)
        assert taken == []
        most = 0
        async with stream:
            for yielded in range(1, 50):
                await anext(stream)
                for _ in range(5):
                    await asyncio.sleep(0)
                    most = max(most, scheduler.ledger().accepted - yielded)
                assert len(taken) - yielded <= ahead + asynchronous  # one that waits for its turn
        assert ahead - 1 <= most <= ahead
    assert scheduler.ledger().pending == 0


async def test_ahead_by_default():
    """Without `ahead` it is twice the concurrency of the backends, and at least 64."""
    for concurrency, ahead in ((3, 64), (50, 100), (None, 2000)):
        clock = ManualClock()
        quota = BackendQuota(concurrency=concurrency)
        async with RateLimitScheduler([Backend("api", slow(clock), quota)], clock=clock) as scheduler:
            stream = scheduler.map(count())
            task = asyncio.create_task(anext(stream))
            await wait(clock, 0.5)
            assert scheduler.ledger().accepted == ahead
            await wait(clock, 1)
            await task
            await stream.aclose()


async def test_huge_iterables():
    """An iterable without end costs only what is asked of it."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        for targets in (range(10**15), count(), (str(number) for number in count())):
            async with scheduler.map(targets) as stream:
                assert len([await anext(stream) for _ in range(200)]) == 200
        assert scheduler.ledger().accepted < 1000
        assert scheduler.ledger().pending == 0


async def test_iterables_of_every_kind():
    """Any iterable will do: a sequence, a set, a mapping's keys, a generator, an iterator."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        for targets in ([1, 2], (1, 2), {1, 2}, {1: "a", 2: "b"}, {1: "a", 2: "b"}.keys(), iter([1, 2]), (x for x in (1, 2))):
            assert sorted(await values(scheduler.map(targets))) == [1, 2]
        assert await values(scheduler.map(iter([]))) == []
        assert await values(scheduler.map(x for x in ())) == []


async def test_delivered():
    """A reply counts as delivered when the next one is asked for, not before."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        stream = scheduler.map([1, 2])
        await anext(stream)
        assert counts(scheduler) == {"accepted": 2, "done": 2}
        await anext(stream)
        assert counts(scheduler) == {"accepted": 2, "delivered": 1, "done": 1}
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert counts(scheduler) == {"accepted": 2, "delivered": 2}
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_waits():
    """The waits of a reply reach until it is yielded: a slow consumer is seen in them."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:

        async def consume():
            waits = []
            async for reply in scheduler.map(range(4), ordered=True):
                waits.append(reply.waits)
                assert sum(reply.waits.values()) == pytest.approx(clock.time())
                await clock.sleep(10)
            return waits

        waits = await run(clock, consume())
    assert [round(each["attempt"]) for each in waits] == [1, 1, 1, 1]
    assert [round(each["consumer"]) for each in waits] == [0, 10, 20, 30]


# ---- What goes wrong


async def test_failed_replies():
    """Failed requests are yielded like any other reply; what they ended with is on it."""
    clock = ManualClock()

    async def fetch(request):
        if request.target == "late":
            await clock.sleep(100)
        if request.target == "bad":
            raise ValueError("no")
        return request.target

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock, retry=ONCE) as scheduler:

        async def consume():
            stream = scheduler.map(["good", "bad", "late"], timeout=5)
            return {reply.target: type(reply.error).__name__ async for reply in stream}

        assert await run(clock, consume()) == {"good": "NoneType", "bad": "RequestFailedError", "late": "DeadlineExceededError"}
    assert counts(scheduler) == {"accepted": 3, "delivered": 1, "dead": 1, "expired": 1}


class SourceError(Exception):
    pass


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
async def test_source_that_raises(asynchronous, ordered):
    """What the source raises is raised after the replies that are owed, once; then the iteration is over."""
    clock = ManualClock()

    def source():
        yield from range(5)
        raise SourceError

    async def asynchronous_source():
        for target in source():
            yield target

    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:
        stream = scheduler.map(asynchronous_source() if asynchronous else source(), ordered=ordered)
        seen = []
        with pytest.raises(SourceError):
            await run(clock, read_into(seen, stream))
        assert sorted(seen) == [0, 1, 2, 3, 4]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert counts(scheduler) == {"accepted": 5, "delivered": 5}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_source_that_raises_at_once(asynchronous):
    """A source that raises instead of a first target raises from the first step."""

    def source():
        raise SourceError
        yield

    async def asynchronous_source():
        raise SourceError
        yield

    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        with pytest.raises(SourceError):
            await anext(scheduler.map(asynchronous_source() if asynchronous else source()))
    assert counts(scheduler) == {}


# ---- Asynchronous sources


async def test_slow_source():
    """Replies are yielded while an asynchronous source makes its next target."""
    clock = ManualClock()

    async def source():
        for target in range(5):
            yield target
            await clock.sleep(10)

    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:

        async def consume():
            return [(reply.value, round(clock.time())) async for reply in scheduler.map(source())]

        assert await run(clock, consume()) == [(0, 1), (1, 11), (2, 21), (3, 31), (4, 41)]


async def test_source_is_closed():
    """An asynchronous source is cancelled and closed when the iteration is left."""
    clock = ManualClock()
    ended = []

    async def source():
        try:
            yield 1
            await clock.sleep(1000)
        finally:
            ended.append(True)

    async with RateLimitScheduler([Backend("api", echo)], clock=clock) as scheduler:
        async with scheduler.map(source()) as stream:
            assert (await anext(stream)).value == 1
        await wait(clock, 1)
        assert ended == [True]


async def test_source_without_targets():
    """An asynchronous source without targets ends at once."""

    async def source():
        for target in ():
            yield target

    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        assert await values(scheduler.map(source())) == []


# ---- Options


async def test_option_functions():
    """Any option may be a function of the target, beside others that are plain."""
    clock = ManualClock()
    seen = {}

    async def fetch(request):
        seen[request.target] = (request.priority, request.deadline and round(request.deadline), request.backend)

    backends = [Backend("even", fetch), Backend("odd", fetch, "100/s")]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        stream = scheduler.map(
            range(4),
            priority=lambda target: target * 10,
            timeout=lambda target: target or None,
            backends=lambda target: ["even", "odd"][target % 2],
            cost=2,
        )
        assert len(await run(clock, values(stream))) == 4
        assert scheduler.snapshot().backends["odd"].limits[0].used == 4
    assert seen == {0: (0, None, "even"), 1: (10, 1, "odd"), 2: (20, 2, "even"), 3: (30, 3, "odd")}


def of_the_fourth(error):
    """An option's function that gives a good value for each target but the fourth, for which it fails like this."""

    def priority(target):
        if target != 3:
            return 5
        if isinstance(error, BaseException):
            raise error
        return error

    return priority


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("failure", [SourceError(), -1, "high", None], ids=repr)
async def test_option_function_that_fails(asynchronous, failure):
    """What an option's function raises, or gives wrongly, is raised like an error of the source: after what is owed."""
    clock = ManualClock()

    async def source():
        for target in range(5):
            yield target

    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:
        stream = scheduler.map(source() if asynchronous else range(5), priority=of_the_fourth(failure))
        seen = []
        with pytest.raises(SourceError if isinstance(failure, SourceError) else ConfigError):
            await run(clock, read_into(seen, stream))
        assert seen == [0, 1, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert counts(scheduler) == {"accepted": 3, "delivered": 3}


async def test_option_function_is_asked_once():
    """An option's function is asked once for each target, also when there is no room for it yet."""
    clock = ManualClock()
    asked = []

    def priority(target):
        asked.append(target)
        return 5

    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock, capacity=3) as scheduler:
        assert await run(clock, values(scheduler.map(range(20), priority=priority, ordered=True))) == list(range(20))
    assert asked == list(range(20))


# ---- Capacity


@pytest.mark.parametrize("capacity", [1, 2, 10])
async def test_capacity_below_ahead(capacity):
    """A scheduler with little room takes targets as it has room, and no target is lost for it."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock, capacity=capacity) as scheduler:
        seen = await run(clock, values(scheduler.map(range(30), ordered=True, ahead=64)))
        assert seen == list(range(30))
        assert counts(scheduler) == {"accepted": 30, "delivered": 30}


async def test_room_that_others_take():
    """A map that finds no room waits in line for it, behind those who came before and ahead of those who come after."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append(request.target)
        await clock.sleep(1)

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock, capacity=1) as scheduler:
        await scheduler.submit("first")
        second = asyncio.create_task(scheduler.fetch("second"))
        await asyncio.sleep(0)
        stream = scheduler.map(["third"])
        third = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        fourth = asyncio.create_task(scheduler.fetch("fourth"))
        await clock.run_until_idle()
        assert order == ["first", "second", "third"]
        await third
        await stream.aclose()
        await clock.run_until_idle()
        await asyncio.gather(second, fourth)
    assert order == ["first", "second", "third", "fourth"]


async def test_two_maps():
    """Two maps at once each get their own replies, also when the room is scarce."""
    clock = ManualClock()
    for capacity in (1, 3, 1000):
        async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock, capacity=capacity) as scheduler:
            both = asyncio.gather(values(scheduler.map(range(20))), values(scheduler.map(["letters"] * 3)))
            numbers, letters = await run(clock, both)
            assert sorted(numbers) == list(range(20))
            assert letters == ["letters"] * 3


async def test_map_inside_a_map():
    """The loop over one map may fetch, and run another map."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        seen = []
        async for reply in scheduler.map([1, 2]):
            seen.append((await scheduler.fetch(reply.value * 10)).value)
            seen += await values(scheduler.map([reply.value * 100]))
        assert sorted(seen) == [10, 20, 100, 200]


async def test_urgent_requests_overtake_a_map():
    """What a map waits for does not hold up more urgent requests."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append(request.target)

    async with RateLimitScheduler([Backend("api", fetch, "1/s")], clock=clock) as scheduler:
        task = asyncio.create_task(values(scheduler.map(range(10), priority=Priority.LOW)))
        await wait(clock, 2.5)
        before = list(order)
        urgent = asyncio.create_task(scheduler.fetch("urgent", priority=Priority.HIGH))
        await clock.run_until_idle()
        await asyncio.gather(task, urgent)
    assert order[len(before)] == "urgent"


# ---- Leaving early


async def leave_by_break(start, targets):
    async for _ in start(targets):
        break


async def leave_by_break_in_with(start, targets):
    async with start(targets) as replies:
        async for _ in replies:
            break


async def leave_by_exception(start, targets):
    async def body():
        async with start(targets) as replies:
            async for _ in replies:
                raise SourceError

    with pytest.raises(SourceError):
        await body()


async def leave_by_aclose(start, targets):
    replies = start(targets)
    await anext(replies)
    await replies.aclose()
    await replies.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(replies)


async def leave_by_forgetting(start, targets):
    await anext(start(targets))


LEAVING = [leave_by_break, leave_by_break_in_with, leave_by_exception, leave_by_aclose, leave_by_forgetting]


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
async def test_leaving_early(leave, asynchronous, ordered):
    """Leaving the loop cancels what waits and what runs; the reply in hand is delivered, others that were done are not."""
    clock = ManualClock()
    cancelled = []

    async def fetch(request):
        try:
            await clock.sleep(request.target % 4 * 100)
        except asyncio.CancelledError:
            cancelled.append(request.target)
            raise

    async def source():
        for target in range(10):
            yield target

    async with RateLimitScheduler([Backend("api", fetch, BackendQuota(concurrency=8))], clock=clock) as scheduler:
        task = asyncio.create_task(leave(partial(scheduler.map, ordered=ordered), source() if asynchronous else range(10)))
        await wait(clock, 1)
        assert task.done()
        await task
        del task
        gc.collect()
        await wait(clock, 1)
        assert counts(scheduler) == {"accepted": 10, "delivered": 1, "cancelled": 9}
        assert cancelled
        assert len(set(cancelled)) == len(cancelled)
        assert scheduler.snapshot().backends["api"].in_flight == 0


async def test_permits_stay_charged():
    """What a map has sent before it is left stays charged."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock), "10/h")], clock=clock) as scheduler:
        async with scheduler.map(range(100)) as stream:
            task = asyncio.create_task(anext(stream))
            await wait(clock, 1)
            await task
        await wait(clock, 1)
        assert scheduler.snapshot().backends["api"].limits[0].used == 10


async def test_step_that_is_cancelled():
    """Cancelling one step loses no reply: the next step has it."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:
        stream = scheduler.map([1, 2, 3], ordered=True)
        for _ in range(3):
            step = asyncio.create_task(anext(stream))
            await wait(clock, 0.2)
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
        assert await run(clock, values(stream)) == [1, 2, 3]


async def test_two_tasks_on_one_stream():
    """Two tasks that wait on one stream are told to do otherwise; the first goes on."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:
        stream = scheduler.map([1])
        first = asyncio.create_task(anext(stream))
        await wait(clock, 0.5)
        with pytest.raises(RuntimeError, match="another task waits for the next reply of this map"):
            await anext(stream)
        await wait(clock, 1)
        assert (await first).value == 1


# ---- The scheduler ends


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_drain_stops_the_taking_of_targets(asynchronous):
    """`drain` ends the taking of targets; what was accepted is finished and yielded, and the loop ends."""
    clock = ManualClock()

    async def source():
        for target in count():
            yield target

    async with RateLimitScheduler([Backend("api", slow(clock), "10/s")], clock=clock) as scheduler:
        task = asyncio.create_task(values(scheduler.map(source() if asynchronous else count(), ahead=20)))
        await wait(clock, 5)
        accepted = scheduler.ledger().accepted
        assert accepted > 20
        draining = asyncio.create_task(scheduler.drain())
        await clock.run_until_idle()
        assert await draining
        assert len(await task) == accepted
        assert counts(scheduler) == {"accepted": accepted, "delivered": accepted}


async def test_drain_with_a_source_that_waits():
    """`drain` ends the loop also when an asynchronous source is waiting for its next target."""
    clock = ManualClock()

    async def source():
        yield 1
        await asyncio.Event().wait()

    async with RateLimitScheduler([Backend("api", echo)], clock=clock) as scheduler:
        task = asyncio.create_task(values(scheduler.map(source())))
        await wait(clock, 5)
        assert await scheduler.drain()
        await wait(clock, 1)
        assert await task == [1]


async def test_done_replies_stay_readable_after_drain():
    """`drain` waits for what is queued and leased; what is done is read afterwards, until the scheduler is left and later."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        stream = scheduler.map(range(10), ordered=True)
        first = await anext(stream)
        assert await scheduler.drain()
        assert counts(scheduler) == {"accepted": 10, "done": 10}
        rest = [await anext(stream) for _ in range(4)]
    rest += [reply async for reply in stream]
    assert [reply.value for reply in (first, *rest)] == list(range(10))
    assert counts(scheduler) == {"accepted": 10, "delivered": 10}


async def test_close_ends_a_map():
    """`close` ends what a map waits for: those requests are yielded as failed, and the loop ends."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock), "2/h")], clock=clock, retry=ONCE) as scheduler:

        async def consume():
            return [type(reply.error) async for reply in scheduler.map(range(5))]

        task = asyncio.create_task(consume())
        await wait(clock, 1.5)
        await scheduler.close()
        assert await task == [type(None)] * 2 + [SchedulerClosedError] * 3
        assert counts(scheduler) == {"accepted": 5, "delivered": 2, "cancelled": 3}


async def test_body_that_raises_inside_a_map():
    """An exception in the loop closes the scheduler; nothing stays pending."""
    clock = ManualClock()
    scheduler = RateLimitScheduler([Backend("api", slow(clock), "2/h")], clock=clock)

    async def body():
        async with scheduler:
            async for _ in scheduler.map(range(5)):
                raise SourceError

    task = asyncio.create_task(body())
    await wait(clock, 2)
    with pytest.raises(SourceError):
        await task
    del task
    gc.collect()
    assert counts(scheduler) == {"accepted": 5, "delivered": 1, "cancelled": 4}


async def test_failed_requests_are_raised_by_their_values():
    """Reading the value of each reply is how a loop stops at the first failure."""
    clock = ManualClock()

    async def fetch(request):
        if request.target == 3:
            raise ValueError("three")
        return request.target

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock, retry=ONCE) as scheduler:
        with pytest.raises(RequestFailedError, match="three"):
            await values(scheduler.map(range(10), ordered=True))


async def test_slices_of_a_map():
    """A map may be read in parts, as any iterator."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        stream = scheduler.map(range(10), ordered=True)
        parts = [[(await anext(stream)).value for _ in range(size)] for size in (3, 3, 4)]
        assert parts == [list(islice(range(10), 3)), [3, 4, 5], [6, 7, 8, 9]]
        await stream.aclose()
