"""Everything fails at once, on the servers' side or on ours, in virtual time."""

import socket

import pytest
from tests.chaos.world import Upstream, World, answers, is_silent, most_within, refuses

from tidegate.testing import ManualClock


async def is_unknown(upstream, request):
    """No name is found: the failure is on this side."""
    await upstream.clock.sleep(0.01)
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def several(count, fault=None, **options):
    clock = ManualClock()
    return clock, [Upstream(clock, name, fault=fault, **options) for name in "abc"[:count]]


def calls_of(upstreams, start, end):
    return sum(upstream.calls_between(start, end) for upstream in upstreams)


def served_of(upstreams, start, end):
    return sum(upstream.served_between(start, end) for upstream in upstreams)


@pytest.mark.parametrize(
    "fault, count",
    [(refuses, 1), (refuses, 3), (is_silent, 3), (answers(500), 3)],
    ids=["one refuses", "three refuse", "three are silent", "three answer 500"],
)
async def test_ten_minutes_without_anybody(fault, count):
    """F11. Nothing fails, nothing polls, and all is delivered when they are back."""
    clock, upstreams = several(count)
    async with World(clock, upstreams) as world:
        await world.submit(range(600 * count))
        await clock.run_for(10)
        before = served_of(upstreams, 0, 10) / 10
        for upstream in upstreams:
            upstream.fault = fault
        await clock.run_for(600)
        ledger = world.scheduler.ledger()
        assert (ledger.dead, ledger.expired, ledger.cancelled) == (0, 0, 0)
        # Eleven failures in a row before it is known, as many in flight, and one probe a pause, which grow to 15 to 30 s.
        assert calls_of(upstreams, 10, 70) <= count * (10 + 11 + 8)
        assert calls_of(upstreams, 70, 610) <= count * 540 / 15
        assert all(upstream.calls_between(70, 610) >= 540 / 40 for upstream in upstreams), "each is tried"
        back = clock.time()
        for upstream in upstreams:
            upstream.fault = None
        last = [world.named("backend_down", upstream.name)[-1] for upstream in upstreams]
        again = max(at + event.seconds for at, event in last)
        await clock.run_for(max(again - back, 0) + 6)
        # No stampede: the ramp goes up from one, and no faster than the limit allows in the long run.
        for upstream in upstreams:
            calls = [at for at in upstream.calls if at >= back]
            assert most_within(calls, 0.01) == 1
            assert most_within(calls, 1) <= 1.2 * 20
        assert served_of(upstreams, again + 1, again + 6) / 5 >= 0.9 * before
        await world.finish()
        world.check()
        requests = 600 * count
        assert len(world.replies) == requests
        assert calls_of(upstreams, 0, clock.time()) <= 1.1 * requests


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_nothing_wakes_while_all_are_down():
    """Between two probes time passes in one step, however many wait."""
    clock, upstreams = several(3, refuses)
    async with World(clock, upstreams) as world:
        await world.submit(range(3000))
        await clock.run_for(120)
        turns = 0
        driver = world.scheduler._driver  # noqa: SLF001 - what wakes is seen nowhere else
        pump = driver.pump

        def counted():
            nonlocal turns
            turns += 1
            pump()

        driver.pump = counted
        calls = calls_of(upstreams, 0, 1e9)
        await clock.run_for(600)
        probes = calls_of(upstreams, 0, 1e9) - calls
        assert turns <= 8 * probes
        driver.pump = pump
        for upstream in upstreams:
            upstream.fault = None
        await world.finish()
        world.check()


async def test_deadlines_come_while_all_are_down():
    clock, upstreams = several(2, refuses)
    async with World(clock, upstreams) as world:
        tickets = await world.scheduler.submit_many(range(50), timeout=20)
        await clock.run_for(21)
        assert all(ticket.done() for ticket in tickets)
        ledger = world.scheduler.ledger()
        assert (ledger.expired, ledger.pending, ledger.balanced) == (50, 0, True)
        for ticket in tickets:
            with pytest.raises(TimeoutError):
                await ticket


async def test_names_are_not_found_anywhere():
    """F4: it is this side that fails. No backend is down for it, and no request pays."""
    clock, upstreams = several(3)
    async with World(clock, upstreams) as world:
        await world.arrive(300, per_second=30)
        for upstream in upstreams:
            upstream.fault = is_unknown
        fault_at = clock.time()
        await world.arrive(900, per_second=30)
        assert [event.kind for _, event in world.events] == ["own_fault"]
        at, event = world.events[0]
        assert (event.backend, event.attempts) == (None, 3)
        assert event.failed >= 2
        assert at - fault_at < 5
        assert {state.health.phase for state in world.scheduler.snapshot().backends.values()} == {"up"}
        over = clock.time()
        for upstream in upstreams:
            upstream.fault = None
        await world.finish()
        world.check()
        assert [event.kind for _, event in world.events] == ["own_fault", "own_fault_over"]
        assert world.events[-1][0] - over < 31, "the longest pause"
        assert sum(reply.attempts for reply in world.replies) <= 1200 + 5, "those that failed before it was known"


async def test_ten_minutes_without_names():
    """What waits is not tried again and again: one of all is."""
    clock, upstreams = several(3, is_unknown)
    async with World(clock, upstreams) as world:
        await world.submit(range(900))
        await clock.run_for(600)
        calls = calls_of(upstreams, 0, 600)
        for upstream in upstreams:
            upstream.fault = None
        await world.finish()
        world.check()
        assert calls <= 1.1 * 900


async def test_names_of_two_are_not_found():
    """The third serves what it serves alone, whatever is suspected."""

    async def served(upstreams):
        async with World(upstreams[0].clock, upstreams) as world:
            await world.submit(range(800))
            await upstreams[0].clock.run_for(20)
            alone = len(upstreams[0].served)
            for upstream in upstreams:
                upstream.fault = None
            await world.finish()
            world.check()
            return alone, world

    _, alone = several(1)
    _, (a, b, c) = several(3)
    b.fault = c.fault = is_unknown
    most, _ = await served(alone)
    kept, world = await served([a, b, c])
    assert kept >= 0.99 * most
    assert len(world.named("own_fault")) <= 10


async def test_names_of_one_are_not_found():
    """The name is at fault: ordinary."""
    clock, (a, b, sick) = several(3)
    sick.fault = is_unknown
    async with World(clock, [a, b, sick]) as world:
        await world.arrive(900, per_second=30)
        assert {event.kind for _, event in world.events} == {"backend_down"}
        assert {event.backend for _, event in world.events} == {"c"}
        await world.finish()
        world.check()
        assert len(sick.calls) < 30


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_storm_of_rejections():
    """F5: 429 without a word on when, of one of three."""
    clock, (a, b, sick) = several(3)
    sick.fault = answers(429)
    async with World(clock, [a, b, sick]) as world:
        await world.arrive(2400, per_second=30)
        await world.finish()
        world.check()
        assert all(reply.attempts == 1 for reply in world.replies), "a rejection costs no attempt"
        assert len(sick.calls) <= 0.1 * 2400
        assert most_within(sick.calls[12:], 1) == 1, "what was rejected does not come again together"


RETRY_AFTER = ["0", "1", "3600", "1000000000000", "-1", "NaN", "1e309", "", "9" * 65_536, "5, 7", "\u0663\u0660", "soon"]
DATES = [
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Fri, 31 Dec 9999999999 23:59:59 GMT",
    "Sun, 06 Nov 1994 08:49:37 -0000",
    "Sun, 06 Nov 1994 08:49:37",
    "Sun, 06 Nov 1994 08:49:37 MESZ",
    "Sunday, 06-Nov-94 08:49:37 GMT",
    "Sun Nov  6 08:49:37 1994",
]


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("said", [*RETRY_AFTER, *DATES], ids=lambda said: said[:32] or "empty")
async def test_whatever_a_rejection_says(said):
    """F6, F7: the others go on, it is not asked before the time that it named, and not never again."""
    clock, (a, b, sick) = several(3)
    sick.fault = answers(429, {"Retry-After": said})
    async with World(clock, [a, b, sick]) as world:
        await world.arrive(300, per_second=30)
        sick.fault = None
        await world.submit(range(300, 305), backends=["c"])
        await world.finish()
        world.check()
        seconds = {"1": 1, "3600": 3600, "1000000000000": 86_400, "5, 7": 7}.get(said, 0)
        rejected = sick.calls[0]
        assert not [at for at in sick.calls if rejected + 0.1 < at < rejected + seconds]
        assert clock.time() < 86_400 + 600


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize(
    "headers",
    [
        {"RateLimit-Limit": "100000", "RateLimit-Remaining": "99999", "RateLimit-Reset": "0"},
        {"RateLimit": "limit=1000000, remaining=-5, reset=-1", "RateLimit-Policy": "1000000;w=1"},
        {"X-RateLimit-Limit": "1e309", "X-RateLimit-Remaining": "NaN", "X-RateLimit-Reset": "1700000000000"},
    ],
)
async def test_no_header_raises_a_quota(headers):
    """F8."""
    clock, upstreams = several(2)

    async def boasts(upstream, request):
        await upstream.clock.sleep(upstream.latency)
        request.ack(200, headers)

    for upstream in upstreams:
        upstream.fault = boasts
    async with World(clock, upstreams) as world:
        await world.submit(range(800))
        await world.finish()
        world.check()


async def test_one_account_fails_and_the_other_serves():
    """The account is down, not the backend."""
    clock = ManualClock()

    async def knows_one(upstream, request):
        if request.account == "bad":
            await refuses(upstream, request)

    api = Upstream(clock, "api", per_second=1000, accounts=["bad", "good"], fault=knows_one)
    async with World(clock, [api]) as world:
        await world.arrive(600, per_second=20)
        state = world.scheduler.snapshot().backends["api"]
        assert state.state == "open"
        assert [health.phase in {"open", "probe"} for health in state.accounts] == [True, False]
        assert {(event.kind, event.account) for _, event in world.events} == {("backend_down", 0)}
        await world.finish()
        world.check()
        assert len(api.calls) <= 600 + 20


async def test_down_on_top_of_a_closed_limit():
    """Rejected until later, and failing: both have to end before anything goes."""
    clock, (alone,) = several(1)
    alone.fault = answers(429, {"Retry-After": "50"})
    async with World(clock, [alone]) as world:
        await world.submit(range(40))
        await clock.run_for(1)
        alone.fault = refuses
        await clock.run_for(200)
        assert world.named("backend_down")
        alone.fault = None
        await world.finish()
        world.check()
