"""A scheduler from its first to its last moment, and what can be seen of it: drain, close, ledger, snapshot, events."""

import asyncio
import gc
from dataclasses import FrozenInstanceError

import msgspec
import pytest

from tidegate import (
    Backend,
    BackendQuota,
    ConfigError,
    Event,
    Ledger,
    RateLimitScheduler,
    RequestCancelledError,
    RequestFailedError,
    Retry,
    SchedulerClosedError,
    Snapshot,
)
from tidegate.testing import ManualClock


class StatusError(Exception):
    """What an HTTP client raises."""

    def __init__(self, status, headers=None):
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers or {}


class BodyError(Exception):
    pass


async def echo(request):
    return request.target


def counts(scheduler):
    """The ledger's counts that are not zero."""
    ledger = scheduler.ledger()
    assert ledger.balanced
    return {name: number for name in Ledger.__slots__ if (number := getattr(ledger, name))}


async def wait(clock, seconds):
    """Let everything start that can, then let time pass."""
    await clock.advance(1e-6)
    await clock.advance(seconds)


def slow(clock, seconds=1.0):
    async def fetch(request):
        await clock.sleep(seconds)
        return request.target

    return fetch


# ---- drain


async def test_drain():
    """`drain` accepts no more and waits until what was accepted has ended."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock), "2/10s")], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(5))
        draining = asyncio.create_task(scheduler.drain())
        await clock.advance(1e-6)
        with pytest.raises(SchedulerClosedError):
            await scheduler.submit("late")
        with pytest.raises(SchedulerClosedError):
            scheduler.submit_threadsafe("late")
        assert not draining.done()
        await clock.run_until_idle()
        assert await draining is True
        assert [(await ticket).value for ticket in tickets] == list(range(5))
        assert await scheduler.drain() is True
    assert counts(scheduler) == {"accepted": 5, "delivered": 5}


async def test_drain_with_timeout():
    """When its timeout is not enough `drain` says so and cancels nothing; time is that of the scheduler's clock."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock), "2/10s")], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(5))
        draining = asyncio.create_task(scheduler.drain(timeout=5))
        await wait(clock, 4.9)
        assert not draining.done()
        await clock.advance(0.2)
        assert draining.done()
        assert await draining is False
        assert counts(scheduler) == {"accepted": 5, "delivered": 2, "queued": 3}
        with pytest.raises(SchedulerClosedError):
            await scheduler.submit("late")
        again = asyncio.create_task(scheduler.drain(timeout=100))
        await clock.run_until_idle()
        assert await again is True
        assert [(await ticket).value for ticket in tickets] == list(range(5))


async def test_drain_that_cancels_what_waits():
    """What waits is cancelled at once; what runs ends, and what would be tried again is cancelled instead."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(1)
        if request.target == "fails":
            raise ConnectionError
        if request.target == "limited":
            raise StatusError(429)
        if request.target == "wrong":
            raise StatusError(404)
        return request.target

    async with RateLimitScheduler([Backend("api", fetch, BackendQuota(concurrency=4))], clock=clock, seed=1) as scheduler:
        tickets = await scheduler.submit_many(["good", "fails", "limited", "wrong", "waits"])
        await wait(clock, 0.5)
        draining = asyncio.create_task(scheduler.drain(cancel_waiting=True))
        await wait(clock, 0.1)
        assert counts(scheduler) == {"accepted": 5, "cancelled": 1, "leased": 4}
        await clock.run_until_idle()
        assert await draining is True
        assert clock.time() < 1.1
        assert (await tickets[0]).value == "good"
        for ticket in (tickets[1], tickets[2], tickets[4]):
            with pytest.raises(RequestCancelledError):
                await ticket
        with pytest.raises(RequestFailedError):
            await tickets[3]
    assert counts(scheduler) == {"accepted": 5, "delivered": 1, "dead": 1, "cancelled": 3}


async def test_drain_in_time():
    """A drain that is done in time does not wait for its timeout."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:
        await scheduler.submit(1)
        draining = asyncio.create_task(scheduler.drain(timeout=1000))
        await clock.run_until_idle()
        assert await draining is True
        assert clock.time() == 1


async def test_drain_waits_for_retries():
    """A request in back-off is waited for too."""
    clock = ManualClock()

    async def fetch(request):
        if request.attempt < 3:
            raise ConnectionError
        return request.target

    retry = Retry(base=100, budget=1)
    async with RateLimitScheduler([Backend("api", fetch)], clock=clock, retry=retry, seed=3) as scheduler:
        ticket = await scheduler.submit(1)
        draining = asyncio.create_task(scheduler.drain())
        await clock.run_until_idle()
        assert await draining is True
        assert (await ticket).attempts == 3


async def test_drains_at_once():
    """Several tasks may drain; one that is cancelled leaves the others and the requests alone."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:
        ticket = await scheduler.submit(1)
        tasks = [asyncio.create_task(scheduler.drain()) for _ in range(3)]
        await clock.advance(1e-6)
        tasks[0].cancel()
        await clock.run_until_idle()
        assert await asyncio.gather(*tasks[1:]) == [True, True]
        assert (await ticket).ok


async def test_drain_counts_what_threads_have_handed_in():
    """What `submit_threadsafe` was given before the drain is accepted and finished."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        future = scheduler.submit_threadsafe("target")
        assert await scheduler.drain()
        assert future.result(timeout=0).value == "target"


async def test_drain_before_and_after():
    """A scheduler that does not run has nothing to drain."""
    scheduler = RateLimitScheduler([Backend("api", echo)])
    assert await scheduler.drain() is True
    async with scheduler:
        pass
    assert await scheduler.drain() is True


# ---- close and __aexit__


async def test_close():
    """`close` cancels what runs, ends what waits, and counts both as cancelled."""
    clock = ManualClock()
    cancelled = []

    async def fetch(request):
        try:
            await clock.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(request.target)
            raise

    async with RateLimitScheduler([Backend("api", fetch, BackendQuota(concurrency=2))], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(5))
        await wait(clock, 1)
        await scheduler.close()
        assert cancelled == [0, 1]
        assert counts(scheduler) == {"accepted": 5, "cancelled": 5}
        for ticket in tickets:
            assert ticket.done()
            with pytest.raises(SchedulerClosedError):
                await ticket
        before = asyncio.get_running_loop().time()
        await scheduler.close()
        await scheduler.close()
    assert asyncio.get_running_loop().time() - before < 1


@pytest.mark.parametrize("entered", [False, True])
async def test_close_is_idempotent(entered):
    """A scheduler may be closed any number of times, used or not."""
    scheduler = RateLimitScheduler([Backend("api", echo)])
    if entered:
        await scheduler.__aenter__()
    for _ in range(3):
        await scheduler.close()
    assert repr(scheduler) == "<RateLimitScheduler [api]: closed, 0 pending>"
    await scheduler.__aexit__(None, None, None)


async def test_close_by_several():
    """Two tasks may close at once."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock, 100))], clock=clock) as scheduler:
        await scheduler.submit(1)
        await wait(clock, 1)
        await asyncio.gather(scheduler.close(), scheduler.close())
        assert counts(scheduler) == {"accepted": 1, "cancelled": 1}


async def test_leaving_normally():
    """Leaving the body normally finishes what was accepted."""
    clock = ManualClock()
    scheduler = RateLimitScheduler([Backend("api", slow(clock), "2/10s")], clock=clock)

    async def body():
        async with scheduler:
            await scheduler.submit_many(range(5))

    task = asyncio.create_task(body())
    await clock.advance(1e-6)
    await clock.run_until_idle()
    assert task.done()
    await task
    assert counts(scheduler) == {"accepted": 5, "delivered": 5}


@pytest.mark.parametrize("how", ["exception", "cancellation"])
async def test_leaving_by_an_exception(how):
    """Leaving the body by an exception or a cancellation closes: what waits and runs is cancelled, the exception passes on."""
    clock = ManualClock()
    scheduler = RateLimitScheduler([Backend("api", slow(clock, 100), "2/h")], clock=clock)

    async def body():
        async with scheduler:
            await scheduler.submit_many(range(5))
            await clock.sleep(1)
            if how == "exception":
                raise BodyError
            await clock.sleep(1000)

    task = asyncio.create_task(body())
    await wait(clock, 2)
    if how == "cancellation":
        task.cancel()
    with pytest.raises(BodyError if how == "exception" else asyncio.CancelledError):
        await task
    assert counts(scheduler) == {"accepted": 5, "cancelled": 5}


async def test_cancelled_while_it_drains():
    """A cancellation while leaving drains closes instead."""
    clock = ManualClock()
    scheduler = RateLimitScheduler([Backend("api", slow(clock, 100), "2/h")], clock=clock)

    async def body():
        async with scheduler:
            await scheduler.submit_many(range(5))

    task = asyncio.create_task(body())
    await wait(clock, 2)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counts(scheduler) == {"accepted": 5, "cancelled": 5}


async def test_nothing_is_left_behind():
    """After the end of a scheduler no task of its runs and no timer of its is armed."""
    before = asyncio.all_tasks()
    async with RateLimitScheduler(
        [Backend("api", echo, "1000/s"), Backend("thread", lambda request: request.target)]
    ) as scheduler:
        await asyncio.gather(*await scheduler.submit_many(range(50)))
    assert asyncio.all_tasks() == before


class Resource(Backend):
    """A backend that opens and closes something of its own."""

    def __init__(self, name, log, *, error=None, closing=None):
        super().__init__(name, echo)
        self.log = log
        self.error = error
        self.closing = closing

    async def aopen(self):
        if self.error is not None:
            raise self.error
        self.log.append(f"open {self.name}")

    async def aclose(self):
        self.log.append(f"close {self.name}")
        if self.closing is not None:
            raise self.closing


async def test_backends_are_opened_and_closed():
    """What a backend owns is opened before the first attempt and closed after the last, whatever happened."""
    log = []
    async with RateLimitScheduler([Resource("a", log), Resource("b", log)]) as scheduler:
        assert log == ["open a", "open b"]
        await scheduler.fetch("target")
    assert sorted(log[2:]) == ["close a", "close b"]
    with pytest.raises(BodyError):
        async with RateLimitScheduler([Resource("c", log)]):
            raise BodyError
    assert log[4:] == ["open c", "close c"]


async def test_backend_that_does_not_open():
    """When a backend cannot be opened the scheduler is not entered: the others are closed again, the error passes on."""
    log = []
    scheduler = RateLimitScheduler([Resource("a", log), Resource("b", log, error=BodyError()), Resource("c", log)])
    with pytest.raises(BodyError):
        await scheduler.__aenter__()
    assert log == ["open a", "close a"]
    with pytest.raises(SchedulerClosedError):
        await scheduler.submit("target")
    assert counts(scheduler) == {}


async def test_backend_that_does_not_close():
    """When a backend cannot be closed the others are closed all the same, and the error passes on."""
    log = []
    backends = [Resource("a", log), Resource("b", log, closing=BodyError()), Resource("c", log)]
    scheduler = RateLimitScheduler(backends)
    await scheduler.__aenter__()
    with pytest.raises(BodyError):
        await scheduler.__aexit__(None, None, None)
    assert sorted(log[3:]) == ["close a", "close b", "close c"]
    await scheduler.close()


@pytest.mark.parametrize("isolation", ["worker", "task"])
async def test_close_in_a_handler(isolation):
    """A handler may close its scheduler: its own request is cancelled too, and nothing hangs."""

    async def fetch(request):
        await scheduler.close()

    async with RateLimitScheduler([Backend("api", fetch)], isolation=isolation) as scheduler:
        tickets = await scheduler.submit_many(range(3))
        for ticket in tickets:
            with pytest.raises(SchedulerClosedError):
                await ticket
    assert counts(scheduler) == {"accepted": 3, "cancelled": 3}


# ---- ledger


async def test_ledger():
    """Every end has its count, and the counts are those of all that was accepted."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(1)
        if request.target == "bad":
            raise ValueError
        return request.target

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock, retry=Retry(attempts=1)) as scheduler:
        assert scheduler.ledger() == Ledger(0, 0, 0, 0, 0, 0, 0, 0)
        await scheduler.submit_many(["good", "bad"])
        await scheduler.submit("late", timeout=0.5)
        cancelled = await scheduler.submit("cancelled")
        assert scheduler.ledger() == Ledger(4, 0, 0, 0, 0, queued=4, leased=0, done=0)
        assert scheduler.ledger().pending == 4
        cancelled.cancel()
        stream = scheduler.map(["one", "two"])
        step = asyncio.create_task(anext(stream))
        await clock.run_until_idle()
        await step
        assert scheduler.ledger() == Ledger(6, delivered=1, dead=1, expired=1, cancelled=1, queued=0, leased=0, done=2)
        await stream.aclose()
        assert scheduler.ledger() == Ledger(6, delivered=2, dead=1, expired=1, cancelled=2, queued=0, leased=0, done=0)
        assert scheduler.ledger().balanced
    assert scheduler.ledger().pending == 0
    with pytest.raises(FrozenInstanceError):
        scheduler.ledger().accepted = 5


# ---- snapshot


async def test_snapshot():
    """A snapshot says how each backend and each of its limits stands, and what waits and runs."""
    clock = ManualClock()
    backends = [Backend("api", slow(clock), BackendQuota("3/min", "10/h burst 20", concurrency=5)), Backend("idle", echo)]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        await scheduler.submit_many(range(5), backends="api")
        await wait(clock, 0.5)
        snapshot = scheduler.snapshot()
        assert isinstance(snapshot, Snapshot)
        assert (snapshot.queued, snapshot.leased, snapshot.done) == (2, 3, 0)
        assert list(snapshot.backends) == ["api", "idle"]
        api = snapshot.backends["api"]
        assert (api.state, api.in_flight, api.strays, api.next_eligible_in) == ("limited", 3, 0, None)
        window, bucket = api.limits
        assert (window.name, window.kind, window.amount, window.period, window.burst) == ("3/min", "window", 3, 60, None)
        assert (window.used, window.available, window.next_eligible_in) == (3, 0, None)
        assert (bucket.name, bucket.kind, bucket.burst, bucket.used, bucket.available) == (
            "10/h burst 20",
            "bucket",
            20,
            3,
            17,
        )
        assert snapshot.backends["idle"].limits == ()
        assert snapshot.backends["idle"].state == "open"
        await clock.advance(1)
        api = scheduler.snapshot().backends["api"]
        assert api.in_flight == 0
        assert api.next_eligible_in == pytest.approx(60, abs=0.1)
        assert api.limits[0].next_eligible_in == pytest.approx(60, abs=0.1)
        await clock.run_until_idle()
        await wait(clock, 10_000)
        assert scheduler.snapshot().backends["api"].limits[0].available == 3
        assert scheduler.snapshot().backends["api"].state == "open"


async def test_states():
    """A backend is open, limited, full or closed."""
    clock = ManualClock()

    async def fetch(request):
        if request.target == "rejected":
            raise StatusError(429, {"Retry-After": "100"})
        await clock.sleep(10)

    async with RateLimitScheduler([Backend("api", fetch, BackendQuota("5/s", concurrency=2))], clock=clock) as scheduler:
        assert scheduler.snapshot().backends["api"].state == "open"
        await scheduler.submit_many(range(3))
        await wait(clock, 1)
        api = scheduler.snapshot().backends["api"]
        assert (api.state, api.next_eligible_in) == ("full", None)
        await clock.run_until_idle()
        ticket = await scheduler.submit("rejected")
        await wait(clock, 1)
        api = scheduler.snapshot().backends["api"]
        assert api.state == "closed"
        assert api.next_eligible_in == pytest.approx(99, abs=0.1)
        ticket.cancel()


async def test_strays():
    """A handler that ignores its cancellation is counted as in flight until it returns."""
    clock = ManualClock()

    async def fetch(request):
        try:
            await clock.sleep(10)
        except asyncio.CancelledError:
            await clock.sleep(10)

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        ticket = await scheduler.submit(1)
        await wait(clock, 1)
        ticket.cancel()
        await wait(clock, 1)
        api = scheduler.snapshot().backends["api"]
        assert (api.in_flight, api.strays) == (1, 1)
        await wait(clock, 10)
        api = scheduler.snapshot().backends["api"]
        assert (api.in_flight, api.strays) == (0, 0)


async def test_snapshot_is_encodable():
    """`msgspec` writes a snapshot, a ledger and an event, and reads them back."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock), "3/min")], clock=clock) as scheduler:
        await scheduler.submit_many(range(5))
        await wait(clock, 0.5)
        snapshot = scheduler.snapshot()
        for value in (snapshot, scheduler.ledger(), Event("limit_closed", "api", 5.0)):
            assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value
        assert msgspec.json.decode(msgspec.json.encode(snapshot))["backends"]["api"]["limits"][0]["used"] == 3
        await scheduler.close()


async def test_snapshot_is_a_copy():
    """A snapshot does not change, neither by itself nor by hand."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock), "3/min")], clock=clock) as scheduler:
        before = scheduler.snapshot()
        await scheduler.submit(1)
        await wait(clock, 0.5)
        assert before.leased == 0
        assert before.backends["api"].limits[0].used == 0
        with pytest.raises(FrozenInstanceError):
            before.leased = 5
        with pytest.raises(FrozenInstanceError):
            before.backends["api"].in_flight = 5
        await clock.run_until_idle()


async def test_snapshot_at_any_time():
    """Snapshots and ledgers can be taken before, during and after the run."""
    scheduler = RateLimitScheduler([Backend("api", echo, "3/min")])
    before = scheduler.snapshot()
    async with scheduler:
        pass
    after = scheduler.snapshot()
    assert before.backends == after.backends
    assert (after.queued, after.workers) == (0, 0)


async def test_workers_of_an_idle_scheduler():
    """Workers that find nothing to do go home."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock))], clock=clock) as scheduler:
        await scheduler.submit_many(range(30))
        await wait(clock, 0.5)
        assert 30 <= scheduler.snapshot().workers <= 32
        await clock.run_until_idle()
        for _ in range(20):
            await wait(clock, 10)
            await scheduler.submit("one")
            await clock.run_until_idle()
        assert scheduler.snapshot().workers < 5


# ---- events


async def test_events():
    """A rejection is an event, and so is the reopening; they end when the scheduler is closed."""
    clock = ManualClock()
    calls = []

    async def fetch(request):
        calls.append(request.target)
        if len(calls) == 1:
            raise StatusError(429, {"Retry-After": "10"})

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:

        async def listen(events):
            return [event async for event in events]

        listeners = [asyncio.create_task(listen(scheduler.events())) for _ in range(2)]
        await scheduler.submit(1)
        await clock.run_until_idle()
        await scheduler.close()
        first, second = await asyncio.gather(*listeners)
    assert first == second
    assert [(event.kind, event.backend) for event in first] == [("limit_closed", "api"), ("limit_reopened", "api")]
    assert (first[0].seconds, first[1].seconds) == (pytest.approx(10), None)


async def test_events_from_now_on():
    """Events are those since the call, also when they are read later; who does not ask does not miss any memory."""
    clock = ManualClock()

    async def fetch(request):
        if request.attempt == 1 and request.target not in seen:
            seen.add(request.target)
            raise StatusError(429, {"Retry-After": "1"})

    seen = set()
    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        await scheduler.submit(1)
        await clock.run_until_idle()
        events = scheduler.events()
        await scheduler.submit(2)
        await clock.run_until_idle()
        assert [(await anext(events)).kind for _ in range(2)] == ["limit_closed", "limit_reopened"]
        waiting = asyncio.create_task(anext(events))
        await clock.advance(1)
        assert not waiting.done()
        waiting.cancel()
        del events
        gc.collect()


async def test_events_after_the_end():
    """Events of a closed scheduler end at once; those of one that was not entered are an error."""
    scheduler = RateLimitScheduler([Backend("api", echo)])
    with pytest.raises(SchedulerClosedError):
        scheduler.events()
    async with scheduler:
        pass
    assert [event async for event in scheduler.events()] == []


# ---- repr


async def test_repr():
    """What is printed says what it is and how it stands."""
    backends = [Backend("api", echo, BackendQuota("100/min", concurrency=5)), Backend("other", echo)]
    assert repr(backends[0]) == "<Backend 'api': BackendQuota('100/min', concurrency=5)>"
    scheduler = RateLimitScheduler(backends)
    assert repr(scheduler) == "<RateLimitScheduler [api, other]: new, 0 pending>"
    async with scheduler:
        ticket = scheduler.submit_nowait("target")
        assert repr(scheduler) == "<RateLimitScheduler [api, other]: running, 1 pending>"
        assert repr(await ticket) == "<Reply 'target': ok by api, 1 attempt>"
        assert repr(scheduler.slot("api")) == "<slot>"
    assert repr(scheduler) == "<RateLimitScheduler [api, other]: closed, 0 pending>"
    assert repr(Retry()) == "Retry(attempts=4, base=0.5, cap=60, budget=0.1)"


# ---- virtual time


async def test_clock():
    """Virtual time stands still until it is told to move, and moves as told."""
    clock = ManualClock()
    assert (clock.time(), clock.time_ns()) == (0, 0)
    await clock.advance(1.5)
    assert (clock.time(), clock.time_ns()) == (1.5, 1_500_000_000)
    woken = []

    async def sleeper(seconds):
        await clock.sleep(seconds)
        woken.append((seconds, clock.time()))

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3, 1, 2, 0)]
    await clock.run_until_idle()
    assert all(task.done() for task in tasks)
    assert woken == [(0, 1.5), (1, 2.5), (2, 3.5), (3, 4.5)]


async def test_sleep_that_is_cancelled():
    """Nobody sleeps any more who was cancelled: time is not moved on for it."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1000))
    await wait(clock, 1)
    task.cancel()
    await clock.run_until_idle()
    assert clock.time() == pytest.approx(1)


async def test_time_passes_for_every_scheduler_of_a_clock():
    """One clock may drive several schedulers; each goes its own way."""
    clock = ManualClock()
    async with (
        RateLimitScheduler([Backend("a", echo, "1/s")], clock=clock) as first,
        RateLimitScheduler([Backend("b", echo, "1/min")], clock=clock) as second,
    ):
        tickets = await first.submit_many(range(3)) + await second.submit_many(range(3))
        await clock.run_until_idle()
        assert all(ticket.done() for ticket in tickets)
        assert clock.time() == pytest.approx(120, abs=0.1)


async def test_wrong_option_leaves_the_scheduler_alone():
    """A call that is refused changes nothing that can be seen."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", slow(clock), "3/min")], clock=clock) as scheduler:
        await scheduler.submit_many(range(5))
        await wait(clock, 0.5)
        before = scheduler.snapshot(), scheduler.ledger(), repr(scheduler)
        for call in (lambda: scheduler.submit_nowait(1, cost=0), lambda: scheduler.map([]), lambda: scheduler.slot("nope")):
            with pytest.raises(ConfigError):
                call()
        assert (scheduler.snapshot(), scheduler.ledger(), repr(scheduler)) == before
        await clock.run_until_idle()
