"""What every client under limits does, whichever it is."""

import asyncio
import gc
import logging
import threading
from contextlib import asynccontextmanager

import pytest

from tidegate import Backend, BackendQuota, ConfigError, Ledger, RateLimitScheduler, SchedulerClosedError

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


async def unused(request):
    raise AssertionError


@pytest.fixture(autouse=True)
async def _limit():
    """Nothing here takes long: what hangs fails."""
    async with asyncio.timeout(20):
        yield


@asynccontextmanager
async def opened(case, quota, **options):
    """A scheduler, and a client under the limits of its backend `web`."""
    async with RateLimitScheduler([Backend("web", unused, quota)]) as scheduler:
        client = case.open(scheduler, "web", **options)
        try:
            yield scheduler, client
        finally:
            await case.close(client)


def state(scheduler):
    return scheduler.snapshot().backends["web"]


async def until(condition):
    """Wait for what another thread, or the loop, is about to bring about."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def is_free(scheduler):
    await until(lambda: state(scheduler).in_flight == 0)


def counts(scheduler):
    ledger = scheduler.ledger()
    assert ledger.balanced
    return {name: number for name in Ledger.__slots__ if (number := getattr(ledger, name))}


async def test_each_request_is_charged(case, server):
    async with opened(case, "10/h") as (scheduler, client):
        for _ in range(3):
            assert await case.get(client, server.url + "ok") == (200, "ok")
        await is_free(scheduler)
        assert state(scheduler).limits[0].used == server.received["ok"] == 3
        assert counts(scheduler) == {"accepted": 3, "delivered": 3}


async def test_each_redirect_is_charged(case, server):
    """Also with room for one at once: a hop gives its permit back before the next takes one."""
    async with opened(case, BackendQuota("10/h", concurrency=1)) as (scheduler, client):
        assert await case.get(client, server.url + "redirect") == (200, "ok")
        await is_free(scheduler)
        assert (server.received["redirect"], server.received["ok"]) == (1, 1)
        assert state(scheduler).limits[0].used == 2


async def test_response_without_a_body(case, server):
    async with opened(case, "10/h") as (scheduler, client):
        assert await case.get(client, server.url + "empty") == (204, "")
        await is_free(scheduler)


async def test_waits_for_the_limit(case, server):
    """What the limit does not admit is not sent."""
    async with opened(case, "2/h") as (scheduler, client):
        tasks = [asyncio.create_task(case.get(client, server.url + "ok")) for _ in range(3)]
        await until(lambda: sum(task.done() for task in tasks) == 2 and counts(scheduler).get("queued") == 1)
        assert server.received["ok"] == 2
        await scheduler.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, SchedulerClosedError) for result in results) == 1


async def test_acknowledged_at_headers_and_held_until_the_body_has_ended(case, server):
    async with opened(case, "1/h") as (scheduler, client):
        response = await case.stream(client, server.url + "held")
        await asyncio.sleep(0.02)
        assert state(scheduler).in_flight == 1
        assert state(scheduler).limits[0].next_eligible_in is not None  # the clock of its hour runs
        server.finish.set()
        assert len(await case.read(response)) == 2000
        await is_free(scheduler)


async def test_body_that_is_abandoned(case, server):
    async with opened(case, "1/h") as (scheduler, client):
        response = await case.stream(client, server.url + "held")
        assert state(scheduler).in_flight == 1
        if case.lingers:
            server.finish.set()
        await case.abandon(response)
        await is_free(scheduler)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_body_that_is_dropped(case, server):
    async with opened(case, "1/h") as (scheduler, client):
        response = await case.stream(client, server.url + "held")
        assert state(scheduler).in_flight == 1
        del response
        if case.keeps:
            server.finish.set()
        await until(lambda: gc.collect() >= 0 and state(scheduler).in_flight == 0)  # the thread lets go of it a moment later


async def test_connection_that_dies_before_the_headers(case, server):
    """The client's own error passes on; what was sent is charged, and nothing is held."""
    async with opened(case, "10/h") as (scheduler, client):
        with pytest.raises(Exception) as caught:
            await case.get(client, server.url + "silent")
        assert not type(caught.value).__module__.startswith("tidegate")
        await is_free(scheduler)
        assert state(scheduler).limits[0].used == server.received["silent"]


async def test_connection_that_dies_in_the_body(case, server):
    async with opened(case, "10/h") as (scheduler, client):
        with pytest.raises(Exception) as caught:
            await case.get(client, server.url + "dying")
        assert not type(caught.value).__module__.startswith("tidegate")
        await is_free(scheduler)
        assert state(scheduler).limits[0].used == server.received["dying"] == 1


async def test_rejection_is_the_users_and_closes_the_limit(case, server):
    """A 429 is a response as any other; the next request waits as long as the server says."""
    async with opened(case, "10/h") as (scheduler, client):
        assert await case.get(client, server.url + "limited") == (429, "slow down")
        await is_free(scheduler)
        assert state(scheduler).state == "closed"
        assert 25 < state(scheduler).next_eligible_in <= 30
        waiting = asyncio.create_task(case.get(client, server.url + "ok"))
        await until(lambda: counts(scheduler).get("queued") == 1)
        assert server.received["ok"] == 0
        await scheduler.close()
        with pytest.raises(SchedulerClosedError):
            await waiting


async def test_limits_per_host_go_by_the_url(case, server):
    async with opened(case, "1/h per host") as (scheduler, client):
        assert await case.get(client, server.url + "ok") == (200, "ok")
        assert await case.get(client, server.url.replace("127.0.0.1", "localhost") + "ok") == (200, "ok")
        waiting = asyncio.create_task(case.get(client, server.url + "ok"))
        await until(lambda: counts(scheduler).get("queued") == 1)
        await scheduler.close()
        with pytest.raises(SchedulerClosedError):
            await waiting


async def test_cancelled_while_it_waits(async_case, server):
    """Nothing is charged or held."""
    async with opened(async_case, "1/h") as (scheduler, client):
        await async_case.get(client, server.url + "ok")
        waiting = asyncio.create_task(async_case.get(client, server.url + "ok"))
        await until(lambda: counts(scheduler).get("queued") == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await is_free(scheduler)
        assert state(scheduler).limits[0].used == server.received["ok"] == 1


async def test_cancelled_before_the_headers(async_case, server):
    async with opened(async_case, "10/h") as (scheduler, client):
        sending = asyncio.create_task(async_case.get(client, server.url + "late"))
        await until(lambda: server.received["late"] == 1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await is_free(scheduler)
        assert state(scheduler).limits[0].used == 1


async def test_cancelled_in_the_body(async_case, server):
    async with opened(async_case, "10/h") as (scheduler, client):
        reading = asyncio.create_task(async_case.get(client, server.url + "held"))
        await until(lambda: server.received["held"] == 1)
        await asyncio.sleep(0.02)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await is_free(scheduler)


async def test_quota_of_its_own(case, server):
    """Without a scheduler: a limit is kept, and what runs for it ends with the client."""
    before = {thread.name for thread in threading.enumerate()}
    client = case.open(BackendQuota("2/200ms", concurrency=2))
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    results = await asyncio.gather(*[case.get(client, server.url + "ok") for _ in range(5)])
    assert results == [(200, "ok")] * 5
    assert loop.time() - started_at >= 0.4  # two, two and one
    await case.close(client)
    assert not [thread for thread in threading.enumerate() if thread.name == "tidegate-client" and thread.name not in before]
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("tidegate-worker")]


async def test_warns_once_of_a_pool_that_is_tighter(case, server, caplog):
    caplog.set_level(logging.WARNING, "tidegate")
    client = case.open_narrow(BackendQuota("100/s", concurrency=500), "mine")
    for _ in range(2):
        await case.get(client, server.url + "ok")
    await case.close(client)
    (record,) = caplog.records
    assert record.getMessage().startswith("mine may have 500 requests in flight, but its client is set to 1: raise ")


async def test_arguments_that_cannot_work(case):
    with pytest.raises(ConfigError, match="give what the server allows, such as '10/s'"):
        case.open(10)
    with pytest.raises(ConfigError, match="write amount/period"):
        case.open("often")
    with pytest.raises(ConfigError, match="name the scheduler's backend"):
        case.open(RateLimitScheduler())
    with pytest.raises(ConfigError, match="give a mapping of texts"):
        case.open("10/s", scopes="ada")


async def test_backend_that_is_not_there(case, server):
    async with RateLimitScheduler([Backend("web", unused)]) as scheduler:
        client = case.open(scheduler, "wed")
        with pytest.raises(ConfigError, match="there is no such backend; there are web"):
            await case.get(client, server.url + "ok")
        await case.close(client)
