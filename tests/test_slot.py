"""`slot`: a user's own code under a backend's limits."""

import asyncio

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    DeadlineExceededError,
    Lease,
    Ledger,
    Priority,
    RateLimitScheduler,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock


class StatusError(Exception):
    """What an HTTP client raises."""

    def __init__(self, status, headers=None):
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers or {}


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


def state(scheduler, backend="api"):
    return scheduler.snapshot().backends[backend]


async def test_lease():
    """The body has a lease of the backend; entering takes a permit, leaving gives the concurrency back."""
    async with RateLimitScheduler([Backend("api", echo, "5/h")]) as scheduler:
        async with scheduler.slot("api") as lease:
            assert isinstance(lease, Lease)
            assert (lease.backend, lease.account) == ("api", None)
            assert repr(lease) == "<Lease of 'api'>"
            assert state(scheduler).in_flight == 1
            assert counts(scheduler) == {"accepted": 1, "leased": 1}
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert state(scheduler).in_flight == 0
        assert state(scheduler).limits[0].used == 1
        assert counts(scheduler) == {"accepted": 1, "delivered": 1}


async def test_slots_share_the_limits_with_requests():
    """Slots and requests are charged to the same limits, in order of priority and arrival."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append(request.target)

    async def body(scheduler, name, **options):
        async with scheduler.slot("api", **options):
            order.append(name)

    async with RateLimitScheduler([Backend("api", fetch, "1/s")], clock=clock) as scheduler:
        tasks = [
            asyncio.create_task(call)
            for call in (
                scheduler.fetch("first"),
                body(scheduler, "slot"),
                scheduler.fetch("second"),
                body(scheduler, "low", priority=Priority.LOW),
                body(scheduler, "urgent", priority=Priority.HIGH),
            )
        ]
        await clock.run_until_idle()
        await asyncio.gather(*tasks)
    assert order == ["urgent", "first", "slot", "second", "low"]
    assert clock.time() == pytest.approx(4, abs=0.01)


async def test_slots_and_concurrency():
    """No more bodies run than the backend's concurrency."""
    clock = ManualClock()
    running = []
    most = []

    async def body(scheduler):
        async with scheduler.slot("api"):
            running.append(1)
            most.append(len(running))
            await clock.sleep(1)
            running.pop()

    async with RateLimitScheduler([Backend("api", echo, BackendQuota(concurrency=3))], clock=clock) as scheduler:
        tasks = [asyncio.create_task(body(scheduler)) for _ in range(10)]
        await clock.run_until_idle()
        await asyncio.gather(*tasks)
    assert max(most) == 3
    assert clock.time() == pytest.approx(4)


async def test_cost():
    """A slot may cost more than one unit."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo, "10/h")], clock=clock) as scheduler, scheduler.slot("api", cost=7):
        assert state(scheduler).limits[0].available == 3


async def test_acknowledgement():
    """A slot is acknowledged when its body ends, or earlier when the body says that headers arrived."""
    clock = ManualClock()

    async def body(scheduler, starts, *, ack):
        async with scheduler.slot("api") as lease:
            starts.append(round(clock.time()))
            await clock.sleep(1)
            if ack:
                lease.ack(200, {})
            await clock.sleep(9)

    for ack, expected in ((True, [0, 11, 22]), (False, [0, 20, 40])):
        clock = ManualClock()
        starts = []
        async with RateLimitScheduler([Backend("api", echo, "1/10s")], clock=clock) as scheduler:
            tasks = [asyncio.create_task(body(scheduler, starts, ack=ack)) for _ in range(3)]
            await clock.run_until_idle()
            await asyncio.gather(*tasks)
        assert starts == expected


async def test_recharge():
    """A further message of the body waits until the limits admit it, ahead of the queue."""
    clock = ManualClock()
    order = []

    async def fetch(request):
        order.append((request.target, round(clock.time())))

    async def body(scheduler):
        async with scheduler.slot("api") as lease:
            order.append(("first", round(clock.time())))
            await lease.recharge()
            order.append(("second", round(clock.time())))
            await lease.recharge(2)
            order.append(("third", round(clock.time())))

    async with RateLimitScheduler([Backend("api", fetch, "2/10s")], clock=clock) as scheduler:
        task = asyncio.create_task(body(scheduler))
        await clock.advance(1e-6)
        ticket = await scheduler.submit("request")
        await clock.run_until_idle()
        await asyncio.gather(task, ticket)
    assert order == [("first", 0), ("second", 0), ("third", 10), ("request", 20)]


async def test_exception():
    """An exception of the body passes on as it is; it is never retried."""
    error = ValueError("no")

    async def body(scheduler):
        async with scheduler.slot("api"):
            raise error

    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        with pytest.raises(ValueError, match="no") as caught:
            await body(scheduler)
        assert caught.value is error
        await scheduler.drain()
        assert counts(scheduler) == {"accepted": 1, "dead": 1}


async def test_rejection():
    """A body that says or raises 429 closes the backend, for as long as the server says."""
    clock = ManualClock()

    async def saying(scheduler):
        async with scheduler.slot("api") as lease:
            lease.ack(429, {"Retry-After": "10"})

    async def raising(scheduler):
        async with scheduler.slot("api"):
            raise StatusError(429, {"Retry-After": "10"})

    for body in (saying, raising):
        clock = ManualClock()
        async with RateLimitScheduler([Backend("api", echo)], clock=clock) as scheduler:
            await asyncio.gather(body(scheduler), return_exceptions=True)
            await wait(clock, 1)
            assert state(scheduler).state == "closed"
            task = asyncio.create_task(scheduler.fetch("next"))
            await clock.run_until_idle()
            assert (await task).ok
            assert clock.time() == pytest.approx(10, abs=0.01)


async def test_timeout_while_it_waits():
    """`timeout` ends the wait for the permit."""
    clock = ManualClock()

    async def body(scheduler):
        async with scheduler.slot("api", timeout=7):
            pytest.fail("it has no permit")

    narrow = Backend("api", echo, BackendQuota(concurrency=1))
    async with RateLimitScheduler([narrow], clock=clock) as scheduler, scheduler.slot("api"):
        task = asyncio.create_task(body(scheduler))
        await wait(clock, 6.9)
        assert not task.done()
        await clock.advance(0.2)
        with pytest.raises(DeadlineExceededError) as caught:
            await task
        assert caught.value.stage == "queued"
    assert counts(scheduler) == {"accepted": 2, "delivered": 1, "expired": 1}


async def test_timeout_in_the_body():
    """`timeout` in the body cancels it, and what leaves the slot is `DeadlineExceededError`."""
    clock = ManualClock()
    left = []

    async def body(scheduler):
        async with scheduler.slot("api", timeout=7):
            try:
                await clock.sleep(100)
            finally:
                left.append(round(clock.time(), 2))

    async with RateLimitScheduler([Backend("api", echo, BackendQuota(concurrency=1))], clock=clock) as scheduler:
        task = asyncio.create_task(body(scheduler))
        await wait(clock, 6.9)
        assert not task.done()
        await clock.advance(0.2)
        with pytest.raises(DeadlineExceededError) as caught:
            await task
        assert caught.value.stage == "leased"
        assert left == [7.1]
        await clock.advance(1e-6)
        assert counts(scheduler) == {"accepted": 1, "expired": 1}
        assert state(scheduler).in_flight == 0


async def test_late_body_keeps_its_concurrency():
    """A body that goes on after its deadline keeps its place until it ends."""
    clock = ManualClock()

    async def body(scheduler):
        async with scheduler.slot("api", timeout=7):
            try:
                await clock.sleep(100)
            except asyncio.CancelledError:
                await clock.sleep(100)
                raise

    async with RateLimitScheduler([Backend("api", echo, BackendQuota(concurrency=1))], clock=clock) as scheduler:
        task = asyncio.create_task(body(scheduler))
        await wait(clock, 7.1)
        await clock.advance(50)
        assert (state(scheduler).in_flight, state(scheduler).strays) == (1, 1)
        ticket = await scheduler.submit("next")
        await clock.advance(10)
        assert not ticket.done()
        await clock.run_until_idle()
        with pytest.raises(DeadlineExceededError):
            await task
        assert (await ticket).ok
        assert state(scheduler).strays == 0


async def test_no_attempt_timeout():
    """The backend's attempt timeout does not apply to a slot."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo, timeout=5)], clock=clock) as scheduler, scheduler.slot("api"):
        await wait(clock, 10_000)
        assert counts(scheduler) == {"accepted": 1, "leased": 1}


async def test_cancelled_while_it_waits():
    """A task that is cancelled while it waits takes no permit."""
    clock = ManualClock()

    async def body(scheduler):
        async with scheduler.slot("api"):
            pytest.fail("it has no permit")

    async with RateLimitScheduler([Backend("api", echo, "1/h")], clock=clock) as scheduler:
        await scheduler.fetch("first")
        task = asyncio.create_task(body(scheduler))
        await wait(clock, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert counts(scheduler) == {"accepted": 2, "delivered": 1, "cancelled": 1}
        assert state(scheduler).limits[0].used == 1


async def test_cancelled_in_the_body():
    """A task that is cancelled in the body gives the concurrency back; what it was charged stays charged."""
    clock = ManualClock()

    async def body(scheduler):
        async with scheduler.slot("api"):
            await clock.sleep(100)

    async with RateLimitScheduler([Backend("api", echo, "5/h")], clock=clock) as scheduler:
        task = asyncio.create_task(body(scheduler))
        await wait(clock, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await clock.advance(1e-6)
        assert state(scheduler).in_flight == 0
        assert state(scheduler).limits[0].used == 1
        assert scheduler.ledger().pending == 0


async def test_used_once():
    """A slot is used once; for another one calls `slot` again."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        slot = scheduler.slot("api")
        async with slot:
            pass
        with pytest.raises(RuntimeError, match="a slot is used once"):
            await slot.__aenter__()


async def test_slot_that_is_not_entered():
    """A slot that is never entered costs nothing."""
    async with RateLimitScheduler([Backend("api", echo, "5/h")]) as scheduler:
        scheduler.slot("api")
        await asyncio.sleep(0)
        assert counts(scheduler) == {}


async def test_closed_while_it_waits():
    """Who waits for a permit when the scheduler is closed is told so."""
    clock = ManualClock()

    async def body(scheduler):
        async with scheduler.slot("api"):
            pytest.fail("it has no permit")

    async with RateLimitScheduler([Backend("api", echo, "1/h")], clock=clock) as scheduler:
        await scheduler.fetch("first")
        task = asyncio.create_task(body(scheduler))
        await wait(clock, 1)
        await scheduler.close()
        with pytest.raises(SchedulerClosedError):
            await task


async def test_closed_in_the_body():
    """A body that runs when the scheduler is closed goes on to its end."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo)], clock=clock) as scheduler:
        async with scheduler.slot("api"):
            await scheduler.close()
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert scheduler.ledger().pending == 0
        assert scheduler.ledger().balanced


async def test_drain_waits_for_the_body():
    """`drain` waits for a body that runs."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo)], clock=clock) as scheduler:
        async with scheduler.slot("api"):
            draining = asyncio.create_task(scheduler.drain())
            await wait(clock, 5)
            assert not draining.done()
        assert await draining


async def test_slots_of_two_backends():
    """A slot holds the backend it names and no other; two may be held at once."""
    backends = [Backend("a", echo, "1/h"), Backend("b", echo, "1/h")]
    async with (
        RateLimitScheduler(backends) as scheduler,
        scheduler.slot("a") as first,
        scheduler.slot("b") as second,
    ):
        assert (first.backend, second.backend) == ("a", "b")
        assert [state(scheduler, name).in_flight for name in ("a", "b")] == [1, 1]


async def test_fetch_inside_a_slot():
    """The body may send requests of its own."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler, scheduler.slot("api"):
        assert (await scheduler.fetch("target")).value == "target"
