"""How a server counts: a kind that is named is kept, one that is not climbs the ladder. In virtual time."""

import asyncio
from collections import deque
from itertools import cycle, pairwise

import pytest

from tidegate import Backend, BackendQuota, BackendRateLimitedError, Limit, RateLimitScheduler, Retry
from tidegate.testing import ManualClock

SECOND = 10**9


class Counter:
    """A sliding-window counter: what this window counted, and of the last one's the share that still overlaps."""

    def __init__(self, amount, period):
        self.amount, self.period = amount, period * SECOND
        self.windows = {}

    def admits(self, now):
        window, elapsed = divmod(now, self.period)
        before, count = self.windows.get(window - 1, 0), self.windows.get(window, 0)
        if before * (self.period - elapsed) + count * self.period >= self.amount * self.period:
            return False
        self.windows[window] = count + 1
        return True


class Leaky:
    """Requests at least an interval apart."""

    def __init__(self, amount, period):
        self.interval, self.due = period * SECOND // amount, 0

    def admits(self, now):
        if now < self.due:
            return False
        self.due = now + self.interval
        return True


class Aligned:
    """At most `amount` in each window of its clock, which is `ahead` seconds ahead of ours."""

    def __init__(self, amount, period, ahead=0.0):
        self.amount, self.period, self.ahead = amount, period * SECOND, round(ahead * SECOND)
        self.windows = {}

    def admits(self, now):
        window = (now + self.ahead) // self.period
        self.windows[window] = self.windows.get(window, 0) + 1
        return self.windows[window] <= self.amount


class Log:
    """At most `amount` in any window; with `at_end` it counts a request when it is complete."""

    def __init__(self, amount, period):
        self.amount, self.period = amount, period * SECOND
        self.counted = deque()

    def admits(self, now):
        while self.counted and self.counted[0] <= now - self.period:
            self.counted.popleft()
        if len(self.counted) == self.amount:
            return False
        self.counted.append(now)
        return True


class World:
    """A server behind a line that takes 40 ms each way, and up to `jitter` more to the server, in a pattern of three."""

    def __init__(self, server, *, body=0.0, jitter=0.0):
        self.clock, self.server, self.body = ManualClock(), server, body
        self.ways = cycle((0.04, 0.04 + jitter, 0.04 + jitter / 2))
        self.accepted, self.rejected = [], []

    async def fetch(self, request):
        await self.clock.sleep(next(self.ways))
        admitted = self.server.admits(self.clock.time_ns())
        (self.accepted if admitted else self.rejected).append(self.clock.time())
        await self.clock.sleep(0.04)
        request.ack(200 if admitted else 429)
        if not admitted:
            raise BackendRateLimitedError("429")
        await self.clock.sleep(self.body)

    def scheduler(self, limit):
        backend = Backend("api", self.fetch, BackendQuota(limit, concurrency=None))
        return RateLimitScheduler([backend], clock=self.clock, retry=Retry(attempts=1))


async def collect(world, limit, count):
    """Collect `count` targets; the events, and the kind that the limit has at the end."""
    async with world.scheduler(limit) as scheduler:
        events = scheduler.events()
        tickets = await scheduler.submit_many(range(count))
        await world.clock.run_until_idle()
        assert all([(await ticket).ok for ticket in tickets])
        (state,) = scheduler.snapshot().backends["api"].limits
        ledger = scheduler.ledger()
        assert (ledger.delivered, ledger.balanced) == (count, True)
    return [event async for event in events], state.kind


# ---- A kind that is named


@pytest.mark.parametrize(
    "text, server, least",
    [
        ("50/5s counter", lambda: Counter(50, 5), 0.95),
        ("10/s leaky", lambda: Leaky(10, 1), 0.5),  # the round trip of 80 ms comes on top of each interval
        ("50/5s unknown", lambda: Log(50, 5), 0.95),
        ("50/5s unknown", lambda: Leaky(50, 5), 0.0),
        ("50/5s window", lambda: Log(50, 5), 0.95),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_named_kind_suits_its_server(text, server, least):
    """A server of the kind that was named rejects nothing, and most of what it allows is used."""
    world = World(server())
    limit = Limit.parse(text)
    events, kind = await collect(world, limit, 500)
    if least:
        assert world.rejected == []
        assert events == []
        assert world.clock.time() <= 500 * limit.period / limit.amount / least
    assert kind == limit.kind


async def test_a_named_kind_never_changes():
    """However much is rejected, a limit whose kind was named is treated as that."""
    world = World(Leaky(10, 1))
    events, kind = await collect(world, Limit(10, 1, kind="window"), 60)
    assert kind == "window"
    assert len(world.rejected) > 3
    assert {event.kind for event in events} == {"limit_closed", "limit_reopened"}


# ---- A kind that is not


async def test_a_guess_climbs_until_it_fits():
    """What was not named becomes stricter with each rejection of what conformed, until there are no more."""
    world = World(Leaky(10, 1), jitter=0.08)
    events, kind = await collect(world, Limit(10, 1), 200)
    steps = [event.step for event in events if event.kind == "limit_stepped"]
    assert steps[0].before == "window"
    assert steps[-1].after == kind == "leaky"
    assert all(step.after == following.before for step, following in pairwise(steps))
    assert {step.limit for step in steps} == {"10/s"}
    assert steps[0].used == 10
    assert all(event.backend == "api" and event.seconds is None for event in events if event.step is not None)
    assert len(world.rejected) <= 10 + 10


async def test_a_guess_that_fits_stays():
    """A server that counts as was guessed is never treated otherwise."""
    world = World(Log(10, 1))
    events, kind = await collect(world, Limit(10, 1), 100)
    assert (world.rejected, events, kind) == ([], [], "window")


async def test_the_shortest_guess_climbs():
    """Of several limits the shortest whose kind was not named takes the step; the event says which."""
    world = World(Leaky(10, 1))
    clock = world.clock
    quota = BackendQuota(Limit(10, 1, kind="window"), Limit(500, 60), Limit(5000, 3600, name="long"), concurrency=None)
    async with RateLimitScheduler([Backend("api", world.fetch, quota)], clock=clock, retry=Retry(attempts=1)) as scheduler:
        events = scheduler.events()
        await scheduler.submit_many(range(50))
        await clock.run_until_idle()
        kinds = [limit.kind for limit in scheduler.snapshot().backends["api"].limits]
    assert kinds[0] == "window"
    assert kinds[1] != "window"
    assert kinds[2] == "window"
    assert {event.step.limit async for event in events if event.step is not None} == {"500/min"}


# ---- Aligned windows


@pytest.mark.parametrize("ahead", [-0.09, 0.0, 0.09])
async def test_aligned_windows_are_used_whole(ahead):
    """Behind each boundary a whole window's worth goes at once, and clocks may differ by a tenth of a second."""
    world = World(Aligned(50, 5, ahead))
    await collect(world, Limit(50, 5, kind="window", aligned=True), 500)
    assert world.rejected == []
    assert world.clock.time() <= 9 * 5 + 0.5
    starts = [round(at, 2) for at in world.accepted if at % 5 > 0.04]
    assert all(0.1 < at % 5 < 0.2 for at in starts)


async def test_aligned_windows_of_real_time():
    """With the real clock windows begin at multiples of the period of Unix time."""
    sent = []

    async def fetch(request):
        sent.append(asyncio.get_running_loop().time())

    limit = Limit(1, 0.4, kind="window", aligned=True)
    async with RateLimitScheduler([Backend("api", fetch, limit_only(limit))]) as scheduler:
        await asyncio.gather(*await scheduler.submit_many(range(5)))
    apart = [after - before for before, after in pairwise(sent[1:])]
    assert apart == pytest.approx([0.4] * 3, abs=0.1)
    assert unix_of(sent[-1]) % 0.4 < 0.15


def limit_only(limit):
    return BackendQuota(limit, concurrency=None)


def unix_of(instant):
    """The Unix time of an instant of the loop's clock."""
    from datetime import UTC, datetime

    return datetime.now(UTC).timestamp() - asyncio.get_running_loop().time() + instant


# ---- What is known of the line


@pytest.mark.parametrize("jitter, least, most", [(None, 52, 54), (0, 49, 49.5), ("auto", 50, 51.5)])
async def test_jitter(jitter, least, most):
    """On a line that takes as long each time, who knows that loses no round trip a window, and is not rejected."""
    world = World(Log(20, 1))
    await collect(world, Limit(20, 1, kind="window", jitter=jitter), 1000)
    assert world.rejected == []
    assert least <= world.clock.time() <= most


# ---- The anchor


@pytest.mark.parametrize("anchor, period", [("headers", 11.1), ("finish", 15.1)])
async def test_anchor(anchor, period):
    """A limit's clock starts at the headers, or at the finish for a server that counts what is complete."""
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append(clock.time())
        await clock.sleep(1.08)
        request.ack(200)
        await clock.sleep(4)

    backend = Backend("api", fetch, BackendQuota(Limit(1, 10, anchor=anchor)))
    async with RateLimitScheduler([backend], clock=clock) as scheduler:
        await scheduler.submit_many(range(4))
        await clock.run_until_idle()
    assert starts == pytest.approx([number * period for number in range(4)], abs=0.1)
