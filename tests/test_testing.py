"""`tidegate.testing`: servers that count strictly, and a backend that asks them."""

import asyncio
from datetime import timedelta

import pytest

from tidegate import BackendQuota, BackendRateLimitedError, ConfigError, Limit, RateLimitScheduler, Retry, testing
from tidegate.testing import FakeBackend, ManualClock, servers

NAN, INF = float("nan"), float("inf")

# One server of each kind that lets four through at once, and after which time a fifth.
KINDS = [
    (servers.SlidingWindow(4, 1), 1.0),
    (servers.AnchoredWindow(4, 1), 1.0),
    (servers.AlignedWindow(4, 1, phase=0.3), 0.95),
    (servers.TokenBucket(4, 1), 0.25),
    (servers.Gcra(4, 1, burst=4), 0.25),
    (servers.SlidingCounter(4, 1, phase=0.3), 0.95),
]


def arrivals(server, *times):
    return [server.receive(time).ok for time in times]


@pytest.mark.parametrize("server, wait", KINDS, ids=[type(server).__name__ for server, _ in KINDS])
def test_each_kind_lets_the_next_one_through_when_it_says(server, wait):
    """Four at once, then none until the server says; what it says is exact."""
    start = 7.35
    assert arrivals(server, *[start] * 4) == [True] * 4
    answer = server.receive(start)
    assert not answer.ok
    assert answer.retry_after == pytest.approx(wait, abs=1e-6)
    assert not server.receive(start + answer.retry_after - 1e-6).ok
    assert server.receive(start + answer.retry_after + 1e-6) == servers.Answer(ok=True, retry_after=None)
    assert (server.accepted, server.rejected) == (5, 2)


def test_concurrency():
    """A cap on concurrency counts what is inside."""
    server = servers.Concurrency(2)
    assert arrivals(server, 0, 0, 0) == [True, True, False]
    assert server.receive(0).retry_after is None
    server.leave()
    assert arrivals(server, 0, 0) == [True, False]


def test_server_of_several_parts():
    """A message is counted by all rules or by none; the parts keep their own counts."""
    parts = [servers.SlidingWindow(1, 1), servers.SlidingWindow(3, 10)]
    server = servers.Server(*parts)
    assert arrivals(server, 0, 0.5, 1, 2, 3, 10) == [True, False, True, True, False, True]
    assert [(part.accepted, part.rejected) for part in parts] == [(0, 0), (0, 0)]
    assert repr(server) == "<Server: 4 accepted, 2 rejected>"
    assert arrivals(servers.Server(), *[0] * 100) == [True] * 100


def test_counting_what_is_rejected():
    """A server may count what it rejects: who comes too early again and again is never let through."""
    knocking = [second / 2 for second in range(1, 10)]
    assert not any(arrivals(servers.SlidingWindow(1, 1, counts_rejected=True), 0, *knocking)[1:])
    assert any(arrivals(servers.SlidingWindow(1, 1), 0, *knocking)[1:])


def test_receive():
    """The instant is that of a clock, or in seconds; it does not run backwards; a cost counts as so many."""
    clock = ManualClock()
    server = servers.TokenBucket(10, timedelta(seconds=1), burst=5)
    assert server.receive(clock, cost=5).ok
    clock.advance(0.3)
    assert server.receive(clock, cost=4).retry_after == pytest.approx(0.1)
    assert server.receive(0, cost=3).ok
    assert not server.receive(0).ok


@pytest.mark.parametrize(
    "option, make",
    [
        *[("amount", lambda kind=kind: kind(0, 1)) for kind in (servers.SlidingWindow, servers.Gcra, servers.TokenBucket)],
        *[("period", lambda kind=kind: kind(1, 0)) for kind in (servers.AnchoredWindow, servers.SlidingCounter)],
        ("amount", lambda: servers.Concurrency(1.5)),
        ("burst", lambda: servers.Gcra(1, 1, burst=0)),
        ("burst", lambda: servers.TokenBucket(1, 1, burst="2")),
        ("phase", lambda: servers.AlignedWindow(1, 1, phase=-1)),
        ("phase", lambda: servers.SlidingCounter(1, 1, phase=NAN)),
        ("parts", lambda: servers.Server("10/s")),
        ("cost", lambda: servers.Server().receive(0, 0)),
        *[("now", lambda now=now: servers.Server().receive(now)) for now in (-1, NAN, INF, None, "1", True)],
        ("clock", lambda: FakeBackend("api", clock=None)),
        ("server", lambda: FakeBackend("api", "10/s", clock=ManualClock())),
        ("service", lambda: FakeBackend("api", clock=ManualClock(), service=-1)),
        *[
            ("delay", lambda delay=delay: FakeBackend("api", clock=ManualClock(), delay=delay))
            for delay in (-1, (2, 1), (0, INF), "1", True)
        ],
    ],
)
def test_wrong_arguments(option, make):
    """Each mistake is named where it is made."""
    with pytest.raises(ConfigError, match=f"{option}=") as caught:
        make()
    assert caught.value.option == option


async def run(backend, clock, count, **options):
    """Collect; the replies, by target."""
    async with RateLimitScheduler([backend], clock=clock, seed=1, **options) as scheduler:
        tickets = await scheduler.submit_many(range(count))
        await clock.run_until_idle()
        replies = await asyncio.gather(*tickets)
    return {reply.target: reply.value for reply in replies}


@pytest.mark.parametrize(
    "make, limit",
    [
        (lambda: servers.SlidingWindow(50, 5), Limit(50, 5, kind="window")),
        (lambda: servers.AnchoredWindow(50, 5), Limit(50, 5, kind="window")),
        (lambda: servers.AlignedWindow(50, 5), Limit(50, 5, kind="window", aligned=True)),
        (lambda: servers.AlignedWindow(50, 5, phase=1.7), Limit(50, 5, kind="window")),
        (lambda: servers.TokenBucket(50, 5), Limit(50, 5, kind="bucket")),
        (lambda: servers.Gcra(50, 5, burst=6), Limit(50, 5, burst=6, kind="bucket")),
        (lambda: servers.Gcra(50, 5), Limit(50, 5, kind="leaky")),
        (lambda: servers.SlidingCounter(50, 5), Limit(50, 5, kind="counter")),
        *[
            (make, Limit(50, 5, kind="unknown"))
            for make in (
                lambda: servers.SlidingWindow(50, 5),
                lambda: servers.AlignedWindow(50, 5, phase=3),
                lambda: servers.TokenBucket(50, 5, burst=5),
            )
        ],
    ],
)
async def test_a_declared_kind_suits_its_server(make, limit):
    """Of the server that was declared nothing is rejected, whatever the delays, and the limit is used."""
    clock = ManualClock()
    backend = FakeBackend("api", make(), BackendQuota(limit, concurrency=None), clock=clock, delay=(0.02, 0.06))
    await run(backend, clock, 500)
    assert (backend.server.accepted, backend.server.rejected) == (500, 0)
    assert clock.time() < (95 if limit.kind == "leaky" else 52)


async def test_concurrency_of_a_backend_suits_a_server_with_a_cap():
    """A backend's concurrency keeps within a server's cap on what is served at once, and uses it."""
    clock = ManualClock()
    server = servers.Concurrency(5)
    await run(FakeBackend("api", server, BackendQuota(concurrency=5), clock=clock, service=1), clock, 50)
    assert (server.accepted, server.rejected) == (50, 0)
    assert clock.time() == pytest.approx(10)


@pytest.mark.parametrize("tells", [False, True])
async def test_rejections(tells):
    """What the server rejects is an error that says when to come back if it tells; the request waits and is not lost."""
    clock = ManualClock()
    backend = FakeBackend("api", servers.SlidingWindow(3, 10), "5/10s window", clock=clock, delay=0.5, tells=tells)
    async with RateLimitScheduler([backend], clock=clock, retry=Retry(attempts=1)) as scheduler:
        events = scheduler.events()
        tickets = await scheduler.submit_many(range(6))
        await clock.run_until_idle()
        assert [(await ticket).ok for ticket in tickets] == [True] * 6
        closed = await anext(events)
    assert closed.seconds == pytest.approx(9.5 if tells else 10, abs=0.6)
    assert (backend.server.accepted, backend.server.rejected > 0) == (6, True)


async def test_replies_of_a_fake_backend():
    """It answers with the target, or with what a function makes of it; what that raises the attempt raises."""
    clock = ManualClock()
    assert await run(FakeBackend("api", clock=clock), clock, 3) == {0: 0, 1: 1, 2: 2}
    assert await run(FakeBackend("api", clock=clock, reply=str), clock, 2) == {0: "0", 1: "1"}

    def reply(target):
        raise BackendRateLimitedError("later", retry_after=3) if clock.time() < 100 else RuntimeError("now")

    with pytest.raises(Exception, match="failed after 1 attempt"):
        await run(FakeBackend("api", clock=clock, reply=reply), clock, 1, retry=Retry(attempts=1))
    assert clock.time() > 100


async def test_same_seed_same_run():
    """With the same seeds the same program takes the same decisions."""

    async def once(seed):
        clock = ManualClock()
        backend = FakeBackend("api", servers.SlidingWindow(5, 1), "7/s window", clock=clock, delay=(0.01, 0.2), seed=seed)
        await run(backend, clock, 60)
        return clock.time_ns(), backend.server.rejected

    assert await once(1) == await once(1) != await once(2)


def test_public_names():
    """What is public is listed and documented."""
    for module in (testing, servers):
        for name in module.__all__:
            assert getattr(module, name).__doc__
