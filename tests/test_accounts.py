"""Accounts of a backend, and backends that share theirs in a group."""

import asyncio

import msgspec
import pytest

from tidegate import Backend, BackendQuota, ConfigError, RateLimitScheduler
from tidegate.testing import ManualClock


async def served(scheduler, clock, count):
    """Fetch `count` targets and follow the clock until all are done."""
    tickets = await scheduler.submit_many(list(range(count)))
    await clock.run_until_idle()
    return [await ticket for ticket in tickets]


async def test_each_account_has_the_quota_to_itself():
    clock = ManualClock()
    used = []

    async def fetch(request):
        used.append((request.account, clock.time()))

    keys = ["red", "green", "blue"]
    async with RateLimitScheduler([Backend("api", fetch, "2/min", accounts=keys)], clock=clock) as scheduler:
        await served(scheduler, clock, 12)
    first = [account for account, at in used if at == 0]
    assert sorted(first) == sorted(keys * 2), "two a minute for each of three"
    assert {account: sum(name == account for name, _ in used) for account in keys} == dict.fromkeys(keys, 4)


async def test_a_rejected_account_rests_while_the_others_work():
    clock = ManualClock()
    used = []

    async def fetch(request):
        used.append((request.account, clock.time()))
        request.ack(429 if len(used) == 1 else 200, {"Retry-After": "1000"})

    async with RateLimitScheduler([Backend("api", fetch, "100/min", accounts=["bad", "good"])], clock=clock) as scheduler:
        replies = await served(scheduler, clock, 20)
    assert all(reply.ok for reply in replies)
    assert [account for account, at in used if at < 1000] == ["bad"] + ["good"] * 20


async def test_an_attempt_goes_to_the_least_busy_account():
    release, all_run = asyncio.Event(), asyncio.Event()
    accounts = []

    async def fetch(request):
        accounts.append(request.account)
        if len(accounts) == 4:
            all_run.set()
        await release.wait()

    backend = Backend("api", fetch, BackendQuota(concurrency=2), accounts=["a", "b"])
    async with RateLimitScheduler([backend]) as scheduler:
        tickets = await scheduler.submit_many(range(5))
        await all_run.wait()
        assert accounts == ["a", "b", "a", "b"]
        assert scheduler.snapshot().backends["api"].state == "full"
        release.set()
        await asyncio.gather(*tickets)
    assert len(accounts) == 5


async def test_a_handlers_object_keeps_its_account():
    """Requests are told apart by account even where one worker runs them one after the other."""
    kept = []

    async def fetch(request):
        kept.append(request)

    async with RateLimitScheduler([Backend("api", fetch, "1/h", accounts=list("abcd"))]) as scheduler:
        for ticket in await scheduler.submit_many(range(4)):
            await ticket
    assert [request.account for request in kept] == list("abcd")


async def test_slots_are_given_an_account():
    async with RateLimitScheduler([Backend("api", print, "1/h", accounts=["a", "b"])]) as scheduler:
        async with scheduler.slot("api") as first:
            assert first.account == "a"
        async with scheduler.slot("api") as second:
            assert second.account == "b"


async def test_snapshot_shows_the_limits_of_each_account():
    async with RateLimitScheduler([Backend("api", print, BackendQuota("1/h", "5/d"), accounts=["k", "l"])]) as scheduler:
        async with scheduler.slot("api"):
            pass
        snapshot = scheduler.snapshot()
    rows = [(limit.account, limit.name, limit.used) for limit in snapshot.backends["api"].limits]
    assert rows == [(0, "1/h", 1), (0, "5/d", 1), (1, "1/h", 0), (1, "5/d", 0)]
    assert snapshot.backends["api"].state == "open"
    assert b'"account":1' in msgspec.json.encode(snapshot)


async def test_a_group_spends_one_quota():
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append((request.backend, clock.time()))

    quota = BackendQuota("3/min", group="example")
    async with RateLimitScheduler([Backend("users", fetch, quota), Backend("posts", fetch, quota)], clock=clock) as scheduler:
        tickets = [await scheduler.submit(n, backends=["users" if n % 2 else "posts"]) for n in range(6)]
        await clock.run_until_idle()
        for ticket in tickets:
            await ticket
    assert [at == 0 for _, at in starts] == [True] * 3 + [False] * 3
    assert {name for name, _ in starts} == {"users", "posts"}


async def test_a_group_closes_together():
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append((request.backend, clock.time()))
        request.ack(429 if len(starts) == 1 else 200, {"Retry-After": "50"})

    quota = BackendQuota("100/min", group="example")
    async with RateLimitScheduler([Backend("users", fetch, quota), Backend("posts", fetch, quota)], clock=clock) as scheduler:
        first = await scheduler.submit("x", backends=["users"])
        await clock.advance(0.01)
        second = await scheduler.submit("y", backends=["posts"])
        assert scheduler.snapshot().backends["posts"].state == "closed"
        await clock.run_until_idle()
        await first, await second
    assert [at >= 50 for _, at in starts] == [False, True, True]


@pytest.mark.parametrize(
    "accounts, message",
    [
        ([], "accounts=\\[\\]: backend 'api' needs at least one"),
        ("key", "accounts: give a list with one object for each account"),
        (5, "accounts: give a list with one object for each account"),
        (iter("ab"), "accounts: give a list with one object for each account"),
    ],
)
def test_accounts_that_are_none(accounts, message):
    """No account is shown: they are keys."""
    with pytest.raises(ConfigError, match=message) as caught:
        Backend("api", print, accounts=accounts)
    assert caught.value.option == "accounts"
    assert "key'" not in str(caught.value).replace("'key 1'", "").replace("'key 2'", "")


@pytest.mark.parametrize("group", ["", 5, ["a"]])
def test_group_that_is_no_name(group):
    with pytest.raises(ConfigError, match="group=") as caught:
        BackendQuota("1/s", group=group)
    assert caught.value.option == "group"


def test_backends_of_a_group_have_the_same_quota():
    quota = BackendQuota("1/s", group="g")
    for other in (
        Backend("b", print, BackendQuota("2/s", group="g")),
        Backend("b", print, BackendQuota("1/s", concurrency=5, group="g")),
        Backend("b", print, quota, accounts=["x"]),
    ):
        with pytest.raises(ConfigError, match="group='g': backends 'a' and 'b' spend one quota") as caught:
            RateLimitScheduler([Backend("a", print, quota), other])
        assert caught.value.option == "group"
    assert RateLimitScheduler([Backend("a", print, quota), Backend("b", print, quota)])


def test_accounts_are_in_no_repr():
    assert "secret" not in repr(Backend("api", print, accounts=["secret"]))
