"""Requests that wait for an instant, and requests that are known by a name: others by the same name join them."""

import asyncio
import concurrent.futures
import gc
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import (
    Backend,
    BackendQuota,
    DeadlineExceededError,
    LoadBalancer,
    QueueFullError,
    RateLimitScheduler,
    RequestCancelledError,
    RequestFailedError,
    Retry,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock

pytestmark = pytest.mark.usefixtures("quiet")


class World:
    """A backend whose attempts take `seconds`, one at a time; what it was asked, and when."""

    def __init__(self, seconds=1.0, *, concurrency=1, **options):
        self.clock, self.seconds = ManualClock(), seconds
        self.sent = []
        backend = Backend("api", self.fetch, BackendQuota(concurrency=concurrency))
        self.scheduler = RateLimitScheduler([backend], clock=self.clock, retry=Retry(attempts=1), **options)

    async def fetch(self, request):
        self.sent.append((request.target, round(self.clock.time(), 3)))
        await self.clock.sleep(self.seconds)
        if request.target == "bad":
            raise ValueError("bad")
        return f"reply to {request.target}"

    async def pass_time(self, seconds):
        """Let start what can, then let so much time pass, and a little more."""
        await self.clock.advance(1e-9)
        await self.clock.advance(seconds)

    @property
    def targets(self):
        return [target for target, _ in self.sent]


# ---- not_before


@pytest.mark.parametrize(
    "not_before, start",
    [(7.5, 7.5), (timedelta(seconds=2.5), 5.5), (datetime.fromtimestamp(4.5, UTC), 4.5), (1.0, 3), (-5, 3), (timedelta(-1), 3)],
    ids=repr,
)
async def test_not_before(not_before, start):
    """A request goes at the instant, so long after it was accepted, or at the date; at once when that has passed."""
    world = World()
    await world.clock.advance(2)
    async with world.scheduler as scheduler:
        await world.clock.advance(1)
        ticket = await scheduler.submit("target", not_before=not_before)
        await world.clock.run_until_idle()
        reply = await ticket
    assert world.sent == [("target", start)]
    assert sum(reply.waits.values()) == pytest.approx(start - 3 + 1, abs=0.01)


async def test_not_before_is_on_the_clock_of_deadline():
    """`not_before`, `Request.deadline` and the clock mean the same by a number, also when the clock stood elsewhere before."""
    clock = ManualClock()
    seen = []

    async def fetch(request):
        seen.append((round(clock.time(), 3), request.deadline))

    await clock.advance(100)
    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        await scheduler.submit("target", not_before=105, timeout=8)
        await clock.run_until_idle()
    assert seen == [(105, 108)]


async def test_not_before_in_real_time():
    """With the real clock it is an instant of the loop's clock, or a date and time."""
    loop = asyncio.get_running_loop()

    async def fetch(request):
        return loop.time()

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:
        for soon in (
            lambda: loop.time() + 0.1,
            lambda: timedelta(seconds=0.1),
            lambda: datetime.now(UTC) + timedelta(seconds=0.1),
        ):
            before = loop.time()
            reply = await scheduler.fetch("target", not_before=soon())
            assert 0.095 <= reply.value - before < 1


async def test_not_before_of_each_target():
    """In `map` and `submit_many` it may be a function of the target; those postponed wait out of the way of the others."""
    world = World(0.1)
    async with world.scheduler as scheduler:
        await scheduler.submit_many([3, 1, 2], not_before=float)
        replies = scheduler.map([6, 4, 5], not_before=float)
        taken = asyncio.ensure_future(collect(replies))
        await world.clock.run_until_idle()
        assert [reply.target for reply in await taken] == [4, 5, 6]
    assert world.sent == [(number, number) for number in range(1, 7)]


async def collect(replies):
    return [reply async for reply in replies]


async def test_deadline_before_the_instant():
    """`timeout` counts from acceptance: one that ends before the instant expires the request, which costs nothing."""
    world = World()
    async with world.scheduler as scheduler:
        ticket = await scheduler.submit("target", not_before=10, timeout=5)
        await world.clock.run_until_idle()
        assert world.clock.time() == pytest.approx(5, abs=0.001)
        with pytest.raises(DeadlineExceededError):
            await ticket
    assert world.sent == []


async def test_queue_begins_at_the_instant():
    """A postponed request is first in first out among those of its priority from the instant on."""
    world = World()
    async with world.scheduler as scheduler:
        await scheduler.submit("postponed", not_before=1.5)
        await scheduler.submit_many(["first", "second", "third"])
        await scheduler.submit("urgent", priority=0, not_before=2.5)
        await world.clock.run_until_idle()
    assert world.targets == ["first", "second", "third", "urgent", "postponed"]


# ---- unique


async def test_join():
    """Two requests with one name are one: one attempt, one reply for both, one in the ledger."""
    world = World()
    async with world.scheduler as scheduler:
        first = await scheduler.submit("first", unique="name")
        second = await scheduler.submit("second", unique="name")
        other = await scheduler.submit("other", unique="another name")
        assert first.id == second.id != other.id
        await world.clock.run_until_idle()
        replies = [await first, await second]
        assert [(reply.target, reply.value) for reply in replies] == [("first", "reply to first"), ("second", "reply to first")]
        await scheduler.submit("again", unique="name")
        await world.clock.run_until_idle()
    assert world.targets == ["first", "other", "again"]
    ledger = scheduler.ledger()
    assert (ledger.accepted, ledger.delivered, ledger.balanced) == (3, 3, True)


async def test_join_of_what_runs():
    """A request that runs is joined too; one that has ended is not."""
    world = World()
    async with world.scheduler as scheduler:
        first = await scheduler.submit("first", unique="name")
        await world.pass_time(0.5)
        assert world.targets == ["first"]
        second = await scheduler.submit("second", unique="name")
        await world.pass_time(0.5)
        assert [(await first).value, (await second).value] == ["reply to first"] * 2
        third = await scheduler.submit("third", unique="name")
        await world.clock.run_until_idle()
        assert (await third).value == "reply to third"


async def test_joiner_makes_it_more_urgent():
    """The request has the most urgent priority, the earliest deadline and the earliest instant of all who joined."""
    world = World()
    async with world.scheduler as scheduler:
        await scheduler.submit_many(["first", "second"])
        await world.pass_time(0.5)
        slow = await scheduler.submit("joined", unique="name", priority=200)
        urgent = await scheduler.submit("urgent", unique="name", priority=0)
        late = await scheduler.submit("late", unique="date", not_before=50)
        early = await scheduler.submit("early", unique="date", not_before=20)
        doomed = [await scheduler.submit("doomed", unique="doom", timeout=timeout, not_before=90) for timeout in (80, 30, 60)]
        await world.clock.run_until_idle()
        assert (await slow).value == (await urgent).value
        assert (await late).value == (await early).value == "reply to late"
        for ticket in doomed:
            with pytest.raises(DeadlineExceededError):
                await ticket
    assert world.sent == [("first", 0), ("joined", 1), ("second", 2), ("late", 20)]
    assert scheduler.ledger().expired == 1
    assert world.clock.time() == pytest.approx(30.5, abs=0.001)


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("wait", [0, 1.5], ids=["waiting", "running"])
async def test_cancel_by_some(first, wait):
    """A ticket's cancel ends its own part; the request is cancelled when the last one is."""
    world = World()
    async with world.scheduler as scheduler:
        blocker = await scheduler.submit("blocker")
        tickets = [await scheduler.submit(number, unique="name") for number in range(3)]
        if wait:
            await world.pass_time(wait)
        assert tickets[first].cancel()
        assert tickets[first].done()
        assert not tickets[first].cancel()
        with pytest.raises(RequestCancelledError) as caught:
            await tickets[first]
        assert caught.value.target == first
        assert scheduler.ledger().cancelled == 0
        others = [ticket for ticket in tickets if ticket is not tickets[first]]
        assert others[0].cancel()
        assert others[1].cancel()
        assert scheduler.ledger().cancelled == 1
        assert scheduler.ledger().pending == (0 if wait else 1)
        again = await scheduler.submit("again", unique="name")
        await world.clock.run_until_idle()
        assert (await again).value == "reply to again"
        await blocker
    assert scheduler.ledger().balanced


async def test_cancel_by_one_leaves_the_reply_to_the_others():
    """Who cancels takes nothing away from the others, whoever was first; a cancelled `fetch` is such a one."""
    world = World()
    async with world.scheduler as scheduler:
        tasks = [asyncio.ensure_future(scheduler.fetch(number, unique="name")) for number in range(3)]
        await world.pass_time(0.5)
        tasks[0].cancel()
        await world.clock.run_until_idle()
        assert [(await task).value for task in tasks[1:]] == ["reply to 0"] * 2
        assert tasks[0].cancelled()
    assert world.targets == [0]
    assert scheduler.ledger().delivered == 1


async def test_failure_is_told_to_all():
    """An error is told to all who joined, to each with its own target."""
    world = World()
    async with world.scheduler as scheduler:
        tickets = [await scheduler.submit(target, unique="name") for target in ("bad", "also bad")]
        await world.clock.run_until_idle()
        for ticket, target in zip(tickets, ("bad", "also bad"), strict=True):
            with pytest.raises(RequestFailedError) as caught:
                await ticket
            assert caught.value.target == target
            assert isinstance(caught.value.__cause__, ValueError)
    assert scheduler.ledger().dead == 1


async def test_close_ends_all_who_joined():
    """A closing scheduler ends the request, and tells all who joined it."""
    world = World()
    async with world.scheduler as scheduler:
        tickets = [await scheduler.submit(number, unique="name") for number in range(3)]
        await scheduler.close()
        for ticket in tickets:
            with pytest.raises(SchedulerClosedError):
                await ticket
    assert (scheduler.ledger().accepted, scheduler.ledger().cancelled) == (1, 1)


async def test_join_takes_no_place():
    """One that joins is accepted when the scheduler is full, and does not wait in line behind those that are not."""
    world = World(capacity=1)
    async with world.scheduler as scheduler:
        first = await scheduler.submit("first", unique="name")
        waiting = asyncio.ensure_future(scheduler.submit("waits for room"))
        await asyncio.sleep(0)
        second = await scheduler.submit("second", unique="name")
        third = scheduler.submit_nowait("third", unique="name")
        many = await scheduler.submit_many([4, 5, 6], unique="name")
        assert not waiting.done()
        with pytest.raises(QueueFullError):
            scheduler.submit_nowait("other", unique="another name")
        await world.clock.run_until_idle()
        for ticket in (first, second, third, *many, await waiting):
            await world.clock.run_until_idle()
            await ticket
    assert world.targets == ["first", "waits for room"]


async def test_unique_in_map():
    """Targets of a map that are one request each have a reply of their own, in their order; so do two maps."""
    for ordered in (False, True):
        world = World()
        async with world.scheduler as scheduler:
            targets = ["a1", "b1", "a2", "a3", "b2"]
            maps = [scheduler.map(targets, ordered=ordered, unique=lambda target: target[0]) for _ in range(2)]
            taken = [asyncio.ensure_future(collect(replies)) for replies in maps]
            await world.clock.run_until_idle()
            for replies in taken:
                values = {reply.target: reply.value for reply in await replies}
                assert values == {target: f"reply to {target[0]}1" for target in ("a1", "a2", "a3", "b1", "b2")}
                if ordered:
                    assert [reply.target for reply in await replies] == targets
        assert sorted(world.targets) == ["a1", "b1"]
        assert (scheduler.ledger().accepted, scheduler.ledger().delivered) == (2, 2)


async def test_map_that_is_left():
    """Leaving a map cancels what only it waits for; what others joined goes on for them."""
    world = World()
    async with world.scheduler as scheduler:
        async with scheduler.map(["a", "b", "c"], unique=str) as replies:
            task = asyncio.ensure_future(anext(replies))
            await world.pass_time(0.5)
            ticket = await scheduler.submit("joined", unique="b")
            await world.pass_time(0.5)
            assert (await task).target == "a"
        await world.clock.run_until_idle()
        assert (await ticket).value == "reply to b"
    assert world.targets == ["a", "b"]
    ledger = scheduler.ledger()
    assert (ledger.accepted, ledger.delivered, ledger.cancelled) == (3, 2, 1)


async def test_unique_from_threads():
    """Threads join each other and the loop; a future that is cancelled takes nothing from the others."""
    release = asyncio.Event()
    sent = []

    async def fetch(request):
        sent.append(request.target)
        await release.wait()
        return "value"

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:
        ticket = await scheduler.submit("loop", unique="name")
        futures = []

        def submit():
            futures.extend(scheduler.submit_threadsafe(number, unique="name") for number in range(3))

        thread = threading.Thread(target=submit)
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.sleep(0.01)
        futures[1].cancel()
        await asyncio.sleep(0.01)
        release.set()
        assert (await ticket).value == "value"
        for number in (0, 2):
            reply = await asyncio.wrap_future(futures[number])
            assert (reply.target, reply.value) == (number, "value")
        with pytest.raises(concurrent.futures.CancelledError):
            futures[1].result()
    assert sent == ["loop"]
    assert (scheduler.ledger().accepted, scheduler.ledger().delivered) == (1, 1)


async def test_joined_targets_are_freed():
    """What a submission that joined gave is freed with it: when it cancels, and when the request ends."""

    class Target:
        alive = 0

        def __init__(self):
            Target.alive += 1

        def __del__(self):
            Target.alive -= 1

    world = World()
    async with world.scheduler as scheduler:
        tickets = [await scheduler.submit(Target(), unique="name") for _ in range(5)]
        assert Target.alive == 5
        for _ in range(3):
            tickets.pop().cancel()
        await asyncio.sleep(0)
        gc.collect()
        assert Target.alive == 2
        await world.clock.run_until_idle()
        tickets.clear()
        world.sent.clear()
        gc.collect()
        assert Target.alive == 0


# ---- Against a slow model

SERVICE = 1.0037  # so that nothing ends at the instant at which something else happens
# Seconds by which the clock is ahead of the model's, so that what is due has happened: timers come up to 66 µs late.
LATE = 2e-4


class Request:
    def __init__(self, number, step, *, sequence):
        self.target, self.name = number, step["unique"]
        self.priority, self.deadline, self.not_before = step["priority"], step["deadline"], step["not_before"]
        self.sequence = sequence
        self.parts = [number]
        self.state = "postponed" if step["not_before"] > step["now"] else "queued"
        self.ends_at = None

    def join(self, number, step):
        self.parts.append(number)
        self.priority = min(self.priority, step["priority"])
        self.deadline = min(self.deadline, step["deadline"])
        self.not_before = min(self.not_before, step["not_before"])


class Model:
    """One server that takes `SERVICE` seconds for each request, and the requests of which the parts are what was submitted."""

    def __init__(self):
        self.now, self.sequence = 0.0, 0
        self.requests, self.ends, self.sent = [], {}, []
        self.counts = dict.fromkeys(["accepted", "delivered", "expired", "cancelled"], 0)

    def next_sequence(self):
        self.sequence += 1
        return self.sequence

    def submit(self, number, step):
        step["now"] = self.now
        for request in self.requests:
            if request.name is not None and request.name == step["unique"]:
                request.join(number, step)
                break
        else:
            self.counts["accepted"] += 1
            self.requests.append(Request(number, step, sequence=self.next_sequence()))
        self.settle()

    def cancel(self, number):
        for request in self.requests:
            if number in request.parts:
                request.parts.remove(number)
                self.ends[number] = "cancelled"
                if not request.parts:
                    self.end(request, "cancelled")
        self.settle()

    def end(self, request, how):
        self.requests.remove(request)
        self.counts[how] += 1
        self.ends.update(dict.fromkeys(request.parts, how))

    def settle(self):
        """All that happens at this instant."""
        for request in list(self.requests):
            if request.state == "leased" and request.ends_at <= self.now:
                self.end(request, "delivered")
            elif request.deadline <= self.now:
                self.end(request, "expired")
        ready = [request for request in self.requests if request.state == "postponed" and request.not_before <= self.now]
        for request in ready:
            request.state, request.sequence = "queued", self.next_sequence()
        queued = [request for request in self.requests if request.state == "queued"]
        if queued and not any(request.state == "leased" for request in self.requests):
            head = min(queued, key=lambda request: (request.priority, request.sequence))
            head.state, head.ends_at = "leased", self.now + SERVICE
            self.sent.append((head.target, self.now))

    def next(self, until):
        """The first instant up to `until` at which something happens."""
        times = [request.ends_at for request in self.requests if request.state == "leased"]
        times += [request.deadline for request in self.requests]
        times += [request.not_before for request in self.requests if request.state == "postponed"]
        return min([until, *times])


def submissions():
    return st.fixed_dictionaries({
        "unique": st.sampled_from(["a", "a", "b", None]),
        "priority": st.integers(0, 2),
        "timeout": st.sampled_from([None, 0.55, 2.57, 6.59]),
        "after": st.sampled_from([None, None, 1.31, 3.33]),
    })  # fmt: skip


steps = st.lists(
    submissions().map(lambda step: ("submit", step))
    | st.integers(0, 30).map(lambda number: ("cancel", number))
    | st.sampled_from([0.2, 1.0, 3.0]).map(lambda seconds: ("advance", seconds)),
    max_size=40,
)


@given(steps)
async def test_any_program_against_the_model(program):
    """Whatever joins whatever and is cancelled when: what is sent, how each part ends and the ledger are as the model says."""
    # The model lets nobody go first who has more time left.
    world, model = World(SERVICE - 1e-6, balancer=LoadBalancer("least_in_flight")), Model()
    tickets = []

    async def advance(until):
        while model.now < until:
            model.now = model.next(until)
            model.settle()
            await world.clock.advance(model.now - world.clock.time() + LATE)  # and this lets all happen
            check(world, scheduler, model, tickets)

    async with world.scheduler as scheduler:
        for act, argument in program:
            if act == "submit":
                step = dict(argument)
                step["deadline"] = float("inf") if step["timeout"] is None else model.now + step["timeout"]
                step["not_before"] = model.now if step["after"] is None else model.now + step["after"]
                model.submit(len(tickets), step)
                options = {name: step[name] for name in ("unique", "priority")}
                if step["timeout"] is not None:
                    options["timeout"] = step["timeout"] - LATE / 2
                if step["after"] is not None:
                    options["not_before"] = step["not_before"]
                tickets.append(scheduler.submit_nowait(len(tickets), **options))
                await world.clock.advance(1e-9)
                await advance(model.now + 0.01)
            elif act == "cancel" and argument < len(tickets):
                model.cancel(argument)
                tickets[argument].cancel()
                await world.clock.advance(1e-9)
                await advance(model.now + 0.01)
            elif act == "advance":
                await advance(model.now + argument)
        while model.requests:
            await advance(model.next(float("inf")))
        assert scheduler.ledger().pending == 0


def check(world, scheduler, model, tickets):
    assert world.sent == [(target, pytest.approx(at, abs=0.001)) for target, at in model.sent]
    assert [ticket.done() for ticket in tickets] == [number in model.ends for number in range(len(tickets))]
    ledger = scheduler.ledger()
    assert {name: getattr(ledger, name) for name in model.counts} == model.counts
    assert ledger.balanced
    for number, ticket in enumerate(tickets):
        if ticket.done():
            assert how(ticket) == model.ends[number]


def how(ticket):
    """How a ticket that is done ended."""
    try:
        ticket.__await__().send(None)
    except StopIteration:
        return "delivered"
    except DeadlineExceededError:
        return "expired"
    except RequestCancelledError:
        return "cancelled"
    return "pending"
