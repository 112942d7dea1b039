"""curl_cffi: what its sessions do beyond what every client does."""

import asyncio

import pytest

from tidegate import Backend, RateLimitScheduler

requests = pytest.importorskip("curl_cffi").requests

from tidegate.clients.curl_cffi import AsyncSession, Session  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


async def unused(request):
    raise AssertionError


async def used(scheduler, count):
    """Wait until so much is charged."""
    async with asyncio.timeout(10):
        while scheduler.snapshot().backends["web"].limits[0].used != count or scheduler.snapshot().backends["web"].in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_each_retry_is_charged(server):
    async with RateLimitScheduler([Backend("web", unused, "100/h")]) as scheduler:
        async with AsyncSession(scheduler, "web", retry=2) as session:
            with pytest.raises(requests.exceptions.RequestException):
                await session.get(server.url + "silent")
        await used(scheduler, 3)
        with Session(scheduler, "web", retry=2) as session, pytest.raises(requests.exceptions.RequestException):
            await asyncio.to_thread(session.get, server.url + "silent")
        await used(scheduler, 6)
    assert server.received["silent"] == 6


async def test_hops_that_exceed_the_limit_are_paid_later(server):
    """The response does not wait for that; what comes next does."""
    async with RateLimitScheduler([Backend("web", unused, "1/200ms")]) as scheduler, AsyncSession(scheduler, "web") as session:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        assert (await session.get(server.url + "redirect")).text == "ok"
        assert (await session.get(server.url + "ok")).text == "ok"
        assert loop.time() - started_at >= 0.4


async def test_error_by_status_is_read(server):
    """With `raise_for_status` a 429 is an exception, and closes the limit all the same."""
    async with RateLimitScheduler([Backend("web", unused, "10/h")]) as scheduler:
        async with AsyncSession(scheduler, "web", raise_for_status=True) as session:
            with pytest.raises(requests.exceptions.HTTPError):
                await session.get(server.url + "limited")
        async with asyncio.timeout(10):
            while scheduler.snapshot().backends["web"].state != "closed":  # noqa: ASYNC110
                await asyncio.sleep(0.001)


async def test_addresses_relative_to_a_base(server):
    async with AsyncSession("10/h per host", base_url=server.url) as session:
        assert (await session.get("ok")).text == "ok"
