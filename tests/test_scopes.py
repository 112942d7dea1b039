"""Limits that each value of a scope has to itself: `per="host"` and any other name that requests carry."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    ConfigError,
    CostExceedsBurstError,
    Limit,
    RateLimitScheduler,
    Request,
    RequestFailedError,
)
from tidegate.testing import ManualClock

Run = Callable[..., object]


def scheduler_of(
    handler: Callable[[Request], object], *limits: str | Limit, **options: object
) -> tuple[RateLimitScheduler, ManualClock]:
    clock = ManualClock()
    backend = Backend("web", handler, BackendQuota(*limits, concurrency=None), **options)  # type: ignore[arg-type]
    return RateLimitScheduler([backend], clock=clock, seed=1), clock


def test_a_limit_reads_and_shows_its_scope() -> None:
    limit = Limit.parse("10/s burst 20 per user")
    assert (limit.per, limit.burst, limit.name) == ("user", 20, "10/s burst 20 per user")
    assert Limit.parse(limit.name) == limit
    for wrong in ("", "two words", "Host!", 3):
        with pytest.raises(ConfigError, match="per="):
            Limit(1, 1, per=wrong)  # type: ignore[arg-type]


async def test_each_host_has_the_limit_to_itself() -> None:
    served: list[tuple[float, str]] = []

    async def fetch(request: Request) -> None:
        served.append((clock.time(), request.scopes["host"]))

    scheduler, clock = scheduler_of(fetch, "1/10s per host")
    async with scheduler:
        urls = [f"https://{host}.example/{page}" for page in range(3) for host in ("a", "b")] + ["HTTP://A.example:81/x"]
        tickets = await scheduler.submit_many(urls)
        await clock.run_until_idle()
        assert all(ticket.done() for ticket in tickets)
    assert Counter(host for _, host in served) == {"a.example": 4, "b.example": 3}
    for host in ("a.example", "b.example"):
        times = [time for time, theirs in served if theirs == host]
        assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(times))
        assert times[-1] < 10.1 * (len(times) - 1)


async def test_any_scope_that_a_request_carries() -> None:
    seen: list[dict[str, str]] = []

    async def fetch(request: Request) -> None:
        seen.append(dict(request.scopes))

    scheduler, clock = scheduler_of(fetch, "2/min per user", "3/min")
    async with scheduler:
        tickets = await scheduler.submit_many(range(6), scopes=lambda n: {"user": "ab"[n % 2], "note": str(n)})
        await asyncio.sleep(0)
        await clock.advance(0.001)
        assert [ticket.done() for ticket in tickets] == [True, True, True, False, False, False]
        state = scheduler.snapshot().backends["web"].limits
        assert [(limit.name, limit.per, limit.used, limit.scopes) for limit in state] == [
            ("3/min", None, 3, None),
            ("2/min per user", "user", 2, 2),
        ]
        await clock.run_until_idle()
    assert seen[0] == {"user": "a", "note": "0"}


async def test_a_scope_that_is_missing_is_named() -> None:
    scheduler, _ = scheduler_of(lambda _: None, "1/s per host", "5/s per user")
    async with scheduler:
        for submit in (scheduler.submit("https://a.example/"), scheduler.fetch("https://a.example/", scopes={"team": "x"})):
            with pytest.raises(ConfigError, match=r"per user.*scopes=\{'user': "):
                await submit
        with pytest.raises(ConfigError, match="per host"):
            scheduler.submit_nowait("no URL", scopes={"user": "u"})
        with pytest.raises(ConfigError, match="per user"):
            await scheduler.submit_many(["https://a.example/"])
        with pytest.raises(ConfigError, match="per"):
            scheduler.slot("web")
        for wrong in ("host", {"user": ""}, {"user": 3}, {"": "u"}, [("user", "u")]):
            with pytest.raises(ConfigError, match="scopes="):
                await scheduler.submit("https://a.example/", scopes=wrong)  # type: ignore[arg-type]
        assert scheduler.ledger().accepted == 0


async def test_a_cost_above_a_limit_by_scope_is_refused() -> None:
    scheduler, _ = scheduler_of(lambda _: None, "100/s", "2/s per host")
    async with scheduler:
        with pytest.raises(CostExceedsBurstError):
            await scheduler.submit("https://a.example/", cost=3)


async def test_each_account_has_its_own_hosts() -> None:
    async def fetch(request: Request) -> object:
        return request.account

    scheduler, clock = scheduler_of(fetch, "1/min per host", accounts=["x", "y"])
    async with scheduler:
        tickets = await scheduler.submit_many(["http://a/1", "http://a/2", "http://b/1"])
        await clock.advance(0.001)
        await clock.advance(1)
        assert [(await ticket).value for ticket in tickets] == ["x", "y", "x"]


async def test_a_redirect_is_charged_to_its_own_host() -> None:
    async def fetch(request: Request) -> float:
        await request.recharge(scopes={"host": "b"})
        return clock.time()

    scheduler, clock = scheduler_of(fetch, "1/10s per host")
    async with scheduler:
        first, second = await scheduler.submit_many(["http://a/", "http://c/"])
        await clock.run_until_idle()
        times = [(await first).value, (await second).value]
    assert times[0] == pytest.approx(0)
    assert times[1] == pytest.approx(10, abs=0.1)


async def test_a_rejection_closes_its_host_and_the_event_says_which() -> None:
    served = Counter[str]()

    async def fetch(request: Request) -> None:
        served[request.scopes["host"]] += 1
        if request.scopes["host"] == "sick" and served["sick"] == 1:
            request.ack(429, retry_after=30)

    scheduler, clock = scheduler_of(fetch, "5/s window per host")
    async with scheduler:
        events = scheduler.events()
        tickets = await scheduler.submit_many(["http://sick/1", "http://well/1"])
        await clock.advance(0.001)
        event = await anext(aiter(events))
        assert (event.kind, event.backend, event.scope) == ("limit_closed", "web", ("host", "sick"))
        assert (tickets[0].done(), tickets[1].done()) == (False, True)
        await clock.run_until_idle()
        assert tickets[0].done()


async def test_a_slot_and_a_change_of_quota() -> None:
    scheduler, clock = scheduler_of(lambda _: None, "1/min")
    async with scheduler:
        scheduler.set_quota("web", BackendQuota("1/min per user"))
        async with scheduler.slot("web", scopes={"user": "a"}) as lease:
            lease.ack(200)
        async with scheduler.slot("web", scopes={"user": "b"}):
            pass
        scheduler.set_quota("web", "100/s")
        ticket = await scheduler.submit("no limit counts by this", scopes={"user": "c"})
        await clock.run_until_idle()
        assert (await ticket).ok
        assert [limit.per for limit in scheduler.snapshot().backends["web"].limits] == [None]


async def test_thousands_of_hosts_through_map_and_threads_see_no_other() -> None:
    running = Counter[str]()

    def fetch(request: Request) -> str:
        running[request.scopes["host"]] += 1
        return request.scopes["host"]

    async with RateLimitScheduler([Backend("web", fetch, BackendQuota("1/h per host", concurrency=8))]) as scheduler:
        targets = [f"http://host{n}.example/" for n in range(2000)]
        hosts = {reply.value async for reply in scheduler.map(targets)}
        future = scheduler.submit_threadsafe("http://one.more/")
        assert (await asyncio.wrap_future(future)).value == "one.more"
    assert len(hosts) == 2000
    assert max(running.values()) == 1


async def test_a_failing_request_tells_nothing_of_another_host() -> None:
    async def fetch(request: Request) -> None:
        raise ValueError(request.scopes["host"])

    scheduler, clock = scheduler_of(fetch, "10/s per host")
    async with scheduler:
        ticket = await scheduler.submit("http://a/")
        await clock.run_until_idle()
        with pytest.raises(RequestFailedError):
            await ticket


async def test_a_server_that_may_remember_an_earlier_run() -> None:
    served: list[float] = []

    async def fetch(_: Request) -> None:
        served.append(clock.time())

    scheduler, clock = scheduler_of(fetch, "2/10s", cold_start="assume_full")
    async with scheduler:
        await scheduler.submit_many(range(3))
        await clock.run_until_idle()
    assert served[0] == pytest.approx(10, abs=0.1)
    assert served[2] >= 20
    with pytest.raises(ConfigError, match="assume_full"):
        Backend("web", fetch, cold_start="cold")  # type: ignore[arg-type]
