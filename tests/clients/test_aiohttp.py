"""aiohttp: what its middleware does beyond what every client does."""

import asyncio
import logging
import traceback

import aiohttp
import pytest

from tidegate import Backend, BackendQuota, RateLimitScheduler
from tidegate.clients.aiohttp import Middleware


async def unused(request):
    raise AssertionError


async def test_what_an_outer_middleware_repeats_is_charged(server):
    """Last in the list, it sees each attempt."""

    async def retry(request, handler):
        while (response := await handler(request)).status == 503:
            response.release()
        return response

    async with RateLimitScheduler([Backend("web", unused, "10/h")]) as scheduler:
        async with (
            aiohttp.ClientSession(middlewares=[retry, Middleware(scheduler, "web")]) as session,
            session.get(server.url + "flaky") as response,
        ):
            assert response.status == 200
        await asyncio.sleep(0.01)
        assert scheduler.snapshot().backends["web"].limits[0].used == server.received["flaky"] == 3


async def test_timeout_of_the_session_counts_the_wait_and_says_so(server, caplog):
    """It is aiohttp's own `TimeoutError`; its cause, and the log, name what to change. Nothing is held."""
    caplog.set_level(logging.WARNING, "tidegate")
    async with RateLimitScheduler([Backend("web", unused, BackendQuota("1/h"))]) as scheduler:
        timeout = aiohttp.ClientTimeout(total=0.05)
        async with aiohttp.ClientSession(middlewares=[Middleware(scheduler, "web")], timeout=timeout) as session:
            await (await session.get(server.url + "ok")).read()
            with pytest.raises(TimeoutError) as caught:
                await session.get(server.url + "ok")
        assert "use ClientTimeout(total=None, sock_connect=30, sock_read=60)" in "".join(traceback.format_exception(caught.value))
        (record,) = caplog.records
        assert "for web, of 0.05 s; aiohttp's total timeout counts the wait" in record.getMessage()
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0.01)
        assert scheduler.snapshot().backends["web"].in_flight == 0
        assert server.received["ok"] == 1


async def test_users_cancellation_stays_one(server):
    async with Middleware("1/h") as middleware, aiohttp.ClientSession(middlewares=[middleware]) as session:
        await (await session.get(server.url + "ok")).read()
        task = asyncio.create_task(session.get(server.url + "ok"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_sessions_share_a_middleware(server):
    """One limit for both; it stays when one session is closed."""
    async with Middleware("2/h") as middleware:
        for _ in range(2):
            async with aiohttp.ClientSession(middlewares=[middleware]) as session:
                await (await session.get(server.url + "ok")).read()
        async with aiohttp.ClientSession(middlewares=[middleware]) as session:
            task = asyncio.create_task(session.get(server.url + "ok"))
            await asyncio.sleep(0.02)
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])
    assert server.received["ok"] == 2


@pytest.mark.parametrize("debug", [False, True])
def test_quota_that_is_never_closed_ends_with_its_loop(server, caplog, debug):
    """Nothing is logged, no task is left, and the next loop is told to make its own."""

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        async with aiohttp.ClientSession(middlewares=[middleware]) as session, session.get(server.url + "ok") as response:
            return response.status

    complaints = []
    middleware = Middleware("10/h")
    assert asyncio.run(main(), debug=debug) == 200
    assert not complaints
    assert not [record for record in caplog.records if record.name.startswith(("tidegate", "asyncio")) and record.levelno > 20]
    with pytest.raises(RuntimeError, match="make a client for each loop"):
        asyncio.run(main())
