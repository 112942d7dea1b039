"""niquests: what its adapters do beyond what every client does."""

import asyncio

import pytest

from tidegate import Backend, BackendQuota, ConfigError, RateLimitScheduler

niquests = pytest.importorskip("niquests")

from tidegate.clients.niquests import Adapter, AsyncAdapter  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


async def unused(request):
    raise AssertionError


async def test_multiplexed_session_does_not_wait_for_itself(server):
    """With room for one, five in a row: nobody has looked at the first when the second is sent."""
    async with RateLimitScheduler([Backend("web", unused, BackendQuota("100/h", concurrency=1))]) as scheduler:

        def send():
            with niquests.Session(multiplexed=True) as session:
                session.mount("http://", Adapter(scheduler, "web"))
                responses = [session.get(server.url + "ok") for _ in range(5)]
                session.gather()
                return [response.text for response in responses]

        assert await asyncio.to_thread(send) == ["ok"] * 5
        async with niquests.AsyncSession(multiplexed=True) as session:
            session.mount("http://", AsyncAdapter(scheduler, "web"))
            responses = [await session.get(server.url + "ok") for _ in range(5)]
            await session.gather()
            assert [response.text for response in responses] == ["ok"] * 5
        assert scheduler.snapshot().backends["web"].limits[0].used == 10


@pytest.mark.parametrize("adapter", [Adapter, AsyncAdapter])
async def test_retries_that_would_not_be_charged_are_refused(adapter):
    with pytest.raises(ConfigError, match="max_retries=3: they would not be charged"):
        adapter("10/s", max_retries=3)
