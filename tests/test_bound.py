"""What could have gone through a quota, and which share of it did."""

import asyncio
from datetime import timedelta

import pytest

from tidegate import Backend, BackendQuota, BackendRateLimitedError, ConfigError, Limit, RateLimitScheduler, Retry, bound
from tidegate.testing import FakeBackend, ManualClock, servers

# ---- bound


@pytest.mark.parametrize(
    "quota, horizon, units",
    [
        ("50/5s", 32, 350),
        ("50/5s", 4.999, 50),
        ("50/5s", 5, 100),
        ("50/5s counter", 32, 370),
        ("100/s burst 6", 10, 1006),
        ("10/s leaky", timedelta(minutes=1), 601),
        (Limit(10, 60, aligned=True), 120, 30),
        (BackendQuota("10/s", "100/min"), 30, 100),
        (BackendQuota("10/s", "100/min"), 3, 40),
        (BackendQuota(), 3, None),
    ],
    ids=repr,
)
def test_what_a_server_lets_through(quota, horizon, units):
    """From idle, its last instant included; of several limits the least; without limits there is no bound."""
    assert bound(quota, horizon) == units


def test_what_a_client_can_send():
    """With a round trip the bound is lower, and concurrency is one more limit."""
    assert bound("10/s", 100, round_trip=0.25) == 10 * (100_000 // 1251 + 1)
    assert bound("100/s burst 6", 10, round_trip=0.09) < bound("100/s burst 6", 10)
    assert bound(BackendQuota(concurrency=32), 1, round_trip=timedelta(milliseconds=50)) == 32 * 21
    assert bound(BackendQuota("100/s", concurrency=1), 10, round_trip=1) == 11
    assert bound(BackendQuota(concurrency=None), 1, round_trip=1) is None


@pytest.mark.parametrize(
    "arguments, option",
    [((5, 1), "quota"), (("10/x", 1), "quota"), (("10/s", 0), "horizon"), (("10/s", None), "horizon"), ((None, 1), "quota")],
)
def test_wrong_arguments_of_bound(arguments, option):
    """Each mistake is named."""
    with pytest.raises(ConfigError) as caught:
        bound(*arguments)
    assert caught.value.option == option
    with pytest.raises(ConfigError, match="round_trip="):
        bound("10/s", 1, round_trip=0)


@pytest.mark.parametrize("round_trip", [0.001, 0.08, 0.4])
@pytest.mark.parametrize(
    "text, make",
    [
        ("50/5s window", lambda: servers.SlidingWindow(50, 5)),
        ("50/5s burst 8 bucket", lambda: servers.TokenBucket(50, 5, burst=8)),
        ("50/5s leaky", lambda: servers.Gcra(50, 5)),
        ("50/5s counter", lambda: servers.SlidingCounter(50, 5)),
    ],
)
async def test_what_is_sent_is_near_the_bound_and_never_beyond(text, make, round_trip):
    """What a server accepts stays within what it lets through, and comes near to what a client can send."""
    clock = ManualClock()
    backend = FakeBackend("api", make(), BackendQuota(text, concurrency=None), clock=clock, delay=round_trip / 2)
    async with RateLimitScheduler([backend], clock=clock, retry=Retry(attempts=1)) as scheduler:
        await scheduler.submit_many(range(400))
        accepted = []
        clock.alarm(22 + round_trip / 2).add_done_callback(lambda _: accepted.append(backend.server.accepted))
        await clock.run_until_idle()
    assert backend.server.rejected == 0
    assert 0.93 * bound(text, 22, round_trip=round_trip) <= accepted[0] <= bound(text, 22)


# ---- utilisation


async def test_utilisation_of_a_backend_that_is_used_up():
    """While something waits, the share is what was sent of what was allowed."""
    clock = ManualClock()
    backend = FakeBackend("api", servers.SlidingWindow(10, 1), "10/s", clock=clock, delay=0.005)
    async with RateLimitScheduler([backend], clock=clock) as scheduler:

        def share():
            return scheduler.snapshot().backends["api"].utilisation

        assert share() is None
        await scheduler.submit_many(range(500))
        await clock.run_until_idle()
        assert clock.time() == pytest.approx(49.6, abs=0.3)
        assert share() == pytest.approx(1, abs=0.03)
        assert 500 / bound("10/s", clock.time() - 0.3) == pytest.approx(share(), abs=0.03)
        # Nothing waits: it stays.
        await clock.advance(1000)
        assert share() == pytest.approx(1, abs=0.03)


async def test_utilisation_of_one_that_is_held_back():
    """What concurrency or rejections take away shows."""
    clock = ManualClock()
    slow = FakeBackend("slow", None, BackendQuota("100/s", concurrency=2), clock=clock, delay=0.05)
    strict = FakeBackend("strict", servers.SlidingWindow(5, 1), "10/s window", clock=clock, delay=0.005)
    async with RateLimitScheduler([slow, strict], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(400), backends="slow")
        tickets += await scheduler.submit_many(range(50), backends="strict")
        await clock.run_until_idle()
        await asyncio.gather(*tickets)
        shares = {name: state.utilisation for name, state in scheduler.snapshot().backends.items()}
    assert shares["slow"] == pytest.approx(0.2, abs=0.02)
    assert shares["strict"] == pytest.approx(0.5, abs=0.1)


async def test_utilisation_when_little_is_wanted():
    """What goes at once was all that was possible."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(0.1)

    async with RateLimitScheduler([Backend("api", fetch, "10/s"), Backend("free", fetch)], clock=clock) as scheduler:
        for number in range(20):
            await scheduler.submit(number, backends="api")
            await clock.run_until_idle()
            await clock.advance(7)
        states = scheduler.snapshot().backends
    assert states["api"].utilisation == 1
    assert states["free"].utilisation is None


async def test_utilisation_of_accounts_and_groups():
    """Accounts allow as many times as much; backends of a group are counted together; a new quota counts anew."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(0.001)

    grouped = BackendQuota("10/s", group="together")
    backends = [
        Backend("keys", fetch, "10/s", accounts=["one", "two", "three"]),
        Backend("first", fetch, grouped),
        Backend("second", fetch, grouped),
    ]
    async with RateLimitScheduler(backends, clock=clock) as scheduler:
        await scheduler.submit_many(range(600), backends="keys")
        await scheduler.submit_many(range(100), backends="first")
        await scheduler.submit_many(range(100), backends="second")
        await clock.run_until_idle()
        shares = {name: state.utilisation for name, state in scheduler.snapshot().backends.items()}
        assert shares == pytest.approx({"keys": 1, "first": 1, "second": 1}, abs=0.06)
        assert shares["first"] == shares["second"]
        scheduler.set_quota("keys", "20/s")
        assert scheduler.snapshot().backends["keys"].utilisation is None


# ---- messages


async def test_every_message_is_counted_and_so_is_every_rejection():
    clock = ManualClock()
    arrived = {"pages": 0, "strict": 0}
    rejected = 0

    async def pages(request):
        """Two more messages for each request."""
        for page in range(3):
            if page:
                await request.recharge()
            arrived["pages"] += 1
            await clock.sleep(0.01)
            request.ack(200)

    async def strict(request):
        """Rejects every third one, and fails every fourth."""
        nonlocal rejected
        arrived["strict"] += 1
        await clock.sleep(0.01)
        if arrived["strict"] % 3 == 0:
            rejected += 1
            raise BackendRateLimitedError("no", retry_after=0.5)
        if arrived["strict"] % 4 == 0:
            raise ConnectionError

    backends = [Backend("pages", pages, "20/s burst 5"), Backend("strict", strict, "100/s", accounts=["a", "b"])]
    async with RateLimitScheduler(backends, clock=clock, seed=1) as scheduler:
        tickets = await scheduler.submit_many(range(40), backends=lambda target: ["pages", "strict"][target % 2])
        await clock.run_until_idle()
        assert all(ticket.done() for ticket in tickets)
        states = scheduler.snapshot().backends
    assert arrived["pages"] == 60
    assert {name: state.sent for name, state in states.items()} == arrived
    assert {name: state.rejected for name, state in states.items()} == {"pages": 0, "strict": rejected}
    assert rejected >= 5
