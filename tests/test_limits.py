"""Limits against strict servers in virtual time: never one request too many, and nearly all that is allowed is used."""

import asyncio
from collections import deque
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import Backend, BackendQuota, Limit, RateLimitScheduler, Retry
from tidegate.testing import ManualClock

SECOND = 10**9


# ---- Reference servers: slow, exact, in nanoseconds. `arrive` says whether they admit what comes now.


class SlidingLog:
    """At most `amount` in any window of `period`, by a log of all that came."""

    def __init__(self, amount, period):
        self.amount = amount
        self.period = round(period * SECOND)
        self.log = deque()

    def arrive(self, now, cost):
        while self.log and self.log[0][0] <= now - self.period:
            self.log.popleft()
        if sum(units for _, units in self.log) + cost > self.amount:
            return False
        self.log.append((now, cost))
        return True


class FixedWindow:
    """At most `amount` in each window of `period`, on a grid of any phase."""

    def __init__(self, amount, period, phase=0.0):
        self.amount = amount
        self.period = round(period * SECOND)
        self.phase = round(phase * period * SECOND)
        self.window = None
        self.used = 0

    def arrive(self, now, cost):
        window = (now + self.phase) // self.period
        if window != self.window:
            self.window, self.used = window, 0
        if self.used + cost > self.amount:
            return False
        self.used += cost
        return True


class AnchoredWindow:
    """At most `amount` in a window that begins with the first request after the last one ended."""

    def __init__(self, amount, period):
        self.amount = amount
        self.period = round(period * SECOND)
        self.end = 0
        self.used = 0

    def arrive(self, now, cost):
        if now >= self.end:
            self.end, self.used = now + self.period, 0
        if self.used + cost > self.amount:
            return False
        self.used += cost
        return True


class TokenBucket:
    """`burst` tokens at first and at most, `amount` more a `period`, exact to the fraction."""

    def __init__(self, amount, period, burst):
        self.rate = Fraction(amount, round(period * SECOND))
        self.burst = burst
        self.tokens = Fraction(burst)
        self.since = 0

    def arrive(self, now, cost):
        self.tokens = min(Fraction(self.burst), self.tokens + (now - self.since) * self.rate)
        self.since = now
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True


@dataclass
class Message:
    """One message of a request: how long it travels there, and its headers back."""

    there: float
    back: float


@dataclass
class Job:
    """A request: its cost, its first message and further ones, and how long its body takes."""

    cost: int
    messages: list[Message]
    body: float = 0.0


@dataclass
class World:
    """The servers of one backend, and what they saw."""

    clock: ManualClock
    servers: list
    admitted: int = 0
    rejected: int = 0
    running: int = 0
    most_running: int = 0

    async def fetch(self, request):
        job = request.target
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            for number, message in enumerate(job.messages):
                cost = job.cost if number == 0 else 1
                if number > 0:
                    await request.recharge(cost)
                await self.clock.sleep(message.there)
                self.arrive(cost)
                await self.clock.sleep(message.back)
                request.ack(200)
            await self.clock.sleep(job.body)
        finally:
            self.running -= 1

    def arrive(self, cost):
        now = self.clock.time_ns()
        verdicts = [server.arrive(now, cost) for server in self.servers]
        if all(verdicts):
            self.admitted += cost
        else:
            self.rejected += 1


async def collect(clock, quotas, servers, jobs, *, pauses=(), concurrency=None):
    """Send all jobs through a scheduler with a backend for each quota; what its servers saw."""
    worlds = [World(clock, each) for each in servers]
    backends = [
        Backend(f"backend {number}", world.fetch, BackendQuota(*quota, concurrency=concurrency), timeout=None)
        for number, (world, quota) in enumerate(zip(worlds, quotas, strict=True))
    ]
    async with RateLimitScheduler(backends, clock=clock, retry=Retry(attempts=1)) as scheduler:
        tickets = []
        for number, job in enumerate(jobs):
            if number < len(pauses):
                await clock.advance(pauses[number] or 1e-9)
            tickets.append(scheduler.submit_nowait(job, cost=job.cost))
        await clock.run_until_idle()
        for ticket in tickets:
            assert (await ticket).ok
    return worlds


# ---- Strategies

spans = st.integers(0, 400).map(lambda ms: ms / 1000)
messages = st.builds(Message, spans, spans)
jobs = st.lists(
    st.builds(Job, st.integers(1, 3), st.lists(messages, min_size=1, max_size=2), spans),
    min_size=1,
    max_size=30,
)
amounts = st.integers(3, 12)
periods = st.sampled_from([0.1, 0.5, 1.0, 3.0])
phases = st.sampled_from([0.0, 0.3, 0.999])


@st.composite
def windows(draw):
    """A window, and a server that counts by it."""
    amount, period = draw(amounts), draw(periods)
    kind = draw(st.sampled_from([SlidingLog, AnchoredWindow, FixedWindow]))
    server = FixedWindow(amount, period, draw(phases)) if kind is FixedWindow else kind(amount, period)
    return Limit(amount, period), server


@st.composite
def buckets(draw):
    """A bucket, and a server that counts by it."""
    amount, period, burst = draw(amounts), draw(periods), draw(st.integers(3, 15))
    return Limit(amount, period, burst=burst), TokenBucket(amount, period, burst)


limits = windows() | buckets()


# ---- Never too many


@given(limits, jobs, st.lists(spans, max_size=30))
async def test_one_limit(limit, jobs, pauses):
    """Whatever the delays, costs and pauses, a server that counts as declared rejects nothing."""
    quota, server = limit
    (world,) = await collect(ManualClock(), [[quota]], [[server]], jobs, pauses=pauses)
    assert world.rejected == 0
    assert world.admitted == sum(job.cost + len(job.messages) - 1 for job in jobs)


@given(st.lists(limits, min_size=2, max_size=4), jobs)
async def test_several_limits(several, jobs):
    """Several limits hold at once: none of them is exceeded."""
    quotas, servers = zip(*several, strict=True)
    (world,) = await collect(ManualClock(), [quotas], [servers], jobs)
    assert world.rejected == 0


@given(st.lists(st.lists(limits, min_size=1, max_size=2), min_size=2, max_size=4), jobs)
async def test_several_backends(several, jobs):
    """Several backends share the work, each within its own limits; each request is sent once."""
    quotas = [[limit for limit, _ in each] for each in several]
    servers = [[server for _, server in each] for each in several]
    worlds = await collect(ManualClock(), quotas, servers, jobs)
    assert [world.rejected for world in worlds] == [0] * len(worlds)
    assert sum(world.admitted for world in worlds) == sum(job.cost + len(job.messages) - 1 for job in jobs)


@given(jobs, st.integers(1, 5), st.sampled_from([[], ["7/s"], ["20/s burst 5"]]))
async def test_concurrency(jobs, concurrency, quota):
    """No more attempts run at once than the backend's concurrency, and as many do when there is work."""
    clock = ManualClock()
    (world,) = await collect(clock, [quota], [[]], jobs, concurrency=concurrency)
    assert world.most_running <= concurrency
    if not quota:
        assert world.most_running == min(concurrency, len(jobs))


async def test_no_cap():
    """Without a cap on concurrency a thousand attempts run at once, and the rest as they end."""
    clock = ManualClock()
    (world,) = await collect(clock, [[]], [[]], [Job(1, [Message(1, 0)])] * 2500)
    assert world.most_running == 1000
    assert clock.time() == pytest.approx(3)


# ---- Nearly all of what is allowed


@given(windows(), st.lists(st.tuples(spans, spans), min_size=20, max_size=40))
async def test_use_of_a_window(limit, delays):
    """Of a window all is used: a unit is sent again as soon as a period has passed since its acknowledgement."""
    quota, server = limit
    clock = ManualClock()
    (world,) = await collect(clock, [[quota]], [[server]], [Job(1, [Message(*delay)]) for delay in delays])
    assert world.rejected == 0
    round_trip = max(there + back for there, back in delays)
    rounds = -(-len(delays) // quota.amount) - 1
    assert clock.time() <= rounds * (quota.period * 1.0002 + round_trip + 0.0025) + round_trip + 0.001


@given(buckets(), st.lists(st.tuples(spans, spans), min_size=20, max_size=40))
async def test_use_of_a_bucket(limit, delays):
    """Of a bucket all is used that fits its burst into a round trip."""
    quota, server = limit
    clock = ManualClock()
    (world,) = await collect(clock, [[quota]], [[server]], [Job(1, [Message(*delay)]) for delay in delays])
    assert world.rejected == 0
    round_trip = max(there + back for there, back in delays)
    each = quota.period / quota.amount
    rounds = -(-len(delays) // quota.burst)
    assert clock.time() <= len(delays) * (each * 1.0002 + 0.0001) + rounds * (round_trip + 0.0025) + 0.001


@pytest.mark.parametrize(
    "quota, server, least",
    [
        ("10/s", lambda: SlidingLog(10, 1), 0.97),
        ("100/10s", lambda: FixedWindow(100, 10, 0.4), 0.99),
        ("10/s burst 5", lambda: TokenBucket(10, 1, 5), 0.995),
        ("100/s burst 20", lambda: TokenBucket(100, 1, 20), 0.995),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_share_of_what_is_allowed(quota, server, least):
    """With ten milliseconds to the server and back, work for twenty seconds uses nearly all that is allowed."""
    clock = ManualClock()
    limit = Limit.parse(quota)
    total = round(20 * limit.amount / limit.period)
    jobs = [Job(1, [Message(0.005, 0.005)]) for _ in range(total)]
    (world,) = await collect(clock, [[quota]], [[server()]], jobs, concurrency=32)
    assert world.rejected == 0
    at_once = limit.burst or limit.amount
    assert clock.time() <= (total - at_once) * limit.period / limit.amount / least + 0.02


# ---- The anchor


async def starts_of(quota, *, ack, count=4):
    """When each of some requests starts that have headers after one second and end after five."""
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append(clock.time())
        await clock.sleep(1)
        if ack:
            request.ack(200)
            request.ack(200)
        await clock.sleep(4)

    async with RateLimitScheduler([Backend("api", fetch, quota)], clock=clock) as scheduler:
        await scheduler.submit_many(range(count))
        await clock.run_until_idle()
    return [round(start, 2) for start in starts]


async def test_acknowledgement_starts_the_clock():
    """A limit's clock starts when the handler says that headers arrived; else when the handler ends."""
    assert await starts_of("1/10s", ack=True) == pytest.approx([0, 11, 22, 33], abs=0.02)
    assert await starts_of("1/10s", ack=False) == pytest.approx([0, 15, 30, 45], abs=0.02)
    assert await starts_of("2/10s", ack=True) == pytest.approx([0, 0, 11, 11], abs=0.02)
    assert await starts_of("1/10s burst 2", ack=True) == pytest.approx([0, 0, 11, 21], abs=0.02)
    assert await starts_of("1/10s burst 2", ack=False) == pytest.approx([0, 0, 15, 25], abs=0.02)


async def test_acknowledgement_in_the_middle_of_a_wait():
    """What waits for an acknowledgement goes on the moment that it comes."""
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append(round(clock.time(), 3))
        await clock.sleep(3)
        request.ack(200)
        await clock.sleep(1000)

    async with RateLimitScheduler([Backend("api", fetch, "1/s burst 1", timeout=None)], clock=clock) as scheduler:
        await scheduler.submit_many(range(3))
        await clock.run_until_idle()
    assert starts == pytest.approx([0, 4, 8], abs=0.01)


async def test_attempt_without_an_answer():
    """An attempt that ends before its headers came is charged as if they had come as late as any have."""
    clock = ManualClock()
    server = SlidingLog(2, 10)
    rejected = []

    async def travel(delay):
        await clock.sleep(delay)
        rejected.append(not server.arrive(clock.time_ns(), 1))

    async def fetch(request):
        message = asyncio.create_task(travel(1))
        try:
            await clock.sleep(1.5 if request.target % 3 else 0.2)
            if request.target % 3 == 0:
                raise ConnectionError
        finally:
            await asyncio.shield(asyncio.sleep(0))
            sent.append(message)

    sent = []
    async with RateLimitScheduler([Backend("api", fetch, "2/10s")], clock=clock, retry=Retry(attempts=1)) as scheduler:
        await scheduler.submit_many(range(1, 40))
        await clock.run_until_idle()
        await asyncio.gather(*sent)
    assert len(rejected) == 39
    assert not any(rejected)


async def test_nothing_sent_is_nothing_charged():
    """A request that is cancelled or expires before it is sent takes nothing of the limits."""
    clock = ManualClock()

    async def fetch(request):
        return request.target

    async with RateLimitScheduler([Backend("api", fetch, "3/h")], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(5))
        for ticket in tickets[:3]:
            ticket.cancel()
        await clock.advance(1)
        assert [ticket.done() for ticket in tickets] == [True] * 5
        assert scheduler.snapshot().backends["api"].limits[0].used == 2


async def test_usage_is_what_the_server_has_counted_at_most():
    """`used` and `available` of a limit add up to its size at any moment, and nothing waits while something is available."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(0.3)

    quota = BackendQuota("5/s", "20/10s burst 8", concurrency=None)
    async with RateLimitScheduler([Backend("api", fetch, quota)], clock=clock) as scheduler:
        await scheduler.submit_many(range(60))
        while scheduler.ledger().pending:
            await clock.advance(0.05)
            snapshot = scheduler.snapshot()
            window, bucket = snapshot.backends["api"].limits
            assert window.used + window.available == 5
            assert bucket.used + bucket.available == 8
            assert snapshot.queued == 0 or min(window.available, bucket.available) == 0
