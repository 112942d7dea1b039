"""httpx and httpx2: what their transports do beyond what every client does."""

import asyncio
import gc
import threading

import pytest

from tidegate import Backend, BackendQuota, ConfigError, RateLimitScheduler
from tidegate.clients.httpx import AsyncTransport, Transport

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.fixture(params=["httpx", "httpx2"])
def library(request):
    return pytest.importorskip(request.param)


async def unused(request):
    raise AssertionError


async def get_after(seconds, library, server, **options):
    """A response that had to wait so long for its permit."""
    async with (
        RateLimitScheduler([Backend("web", unused, BackendQuota(concurrency=1))]) as scheduler,
        library.AsyncClient(transport=AsyncTransport(scheduler, "web"), **options) as client,
    ):
        async with scheduler.slot("web"):
            getting = asyncio.create_task(client.get(server.url + "ok"))
            while not scheduler.snapshot().queued:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(seconds)
        return await getting


async def test_response_says_how_long_it_waited(library, server):
    response = await get_after(0.05, library, server)
    assert response.extensions["tidegate"]["waited"] >= 0.05
    assert response.elapsed.total_seconds() >= 0.05
    assert response.extensions["http_version"] == b"HTTP/1.1"  # what was there stays


async def test_wait_does_not_count_against_the_timeout(library, server):
    assert (await get_after(1.2, library, server, timeout=1)).status_code == 200


async def test_transport_of_the_users(library, server):
    """It sends, and is closed with ours; its own options are given to it."""

    class Inner(library.AsyncHTTPTransport):
        sent = 0
        closed = 0

        async def handle_async_request(self, request):
            Inner.sent += 1
            return await super().handle_async_request(request)

        async def aclose(self):
            Inner.closed += 1
            await super().aclose()

        async def __aexit__(self, *exception):
            Inner.closed += 1
            await super().__aexit__(*exception)

    async with library.AsyncClient(transport=AsyncTransport("10/h", transport=Inner())) as client:
        await client.get(server.url + "ok")
    client = library.AsyncClient(transport=AsyncTransport("10/h", transport=Inner()))
    await client.aclose()
    assert (Inner.sent, Inner.closed) == (1, 2)
    with pytest.raises(ConfigError, match="it has options of its own; give http2 to it"):
        AsyncTransport("10/h", transport=Inner(), http2=True)
    with pytest.raises(ConfigError, match="give a transport that has handle_request"):
        Transport("10/h", transport=object())


async def test_option_that_is_not_there(library):
    with pytest.raises(ConfigError, match="htpp2: there is no such option; there are verify"):
        AsyncTransport("10/h", htpp2=True)


async def test_body_that_is_there_from_the_start(library):
    """As of a transport for tests, or one that caches."""
    inner = library.MockTransport(lambda request: library.Response(200, text="ok"))
    async with RateLimitScheduler([Backend("web", unused, "10/h")]) as scheduler:
        async with library.AsyncClient(transport=AsyncTransport(scheduler, "web", transport=inner)) as client:
            assert (await client.get("http://example.org/")).text == "ok"
        await asyncio.sleep(0.01)
        assert scheduler.snapshot().backends["web"].in_flight == 0


async def test_mounted_for_some_urls(library, server):
    async with RateLimitScheduler([Backend("web", unused, "10/h")]) as scheduler:
        mounts = {"http://localhost": AsyncTransport(scheduler, "web")}
        async with library.AsyncClient(mounts=mounts) as client:
            await client.get(server.url + "ok")
            await client.get(server.url.replace("127.0.0.1", "localhost") + "ok")
        assert scheduler.snapshot().backends["web"].limits[0].used == 1


async def test_scheduler_of_another_loop(library, server):
    async with RateLimitScheduler([Backend("web", unused)]) as scheduler:

        async def elsewhere():
            async with library.AsyncClient(transport=AsyncTransport(scheduler, "web")) as client:
                await client.get(server.url + "ok")

        with pytest.raises(RuntimeError, match="another event loop runs than the scheduler's"):
            await asyncio.to_thread(asyncio.run, elsewhere())


async def test_blocking_client_in_the_thread_of_the_loop(library, server):
    """It would wait for itself, and is told so; with a quota of its own it may."""
    async with RateLimitScheduler([Backend("web", unused)]) as scheduler:
        with (
            library.Client(transport=Transport(scheduler, "web")) as client,
            pytest.raises(RuntimeError, match="for itself"),
        ):
            client.get(server.url + "ok")
    with library.Client(transport=Transport("10/h")) as client:
        assert client.get(server.url + "ok").status_code == 200


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_blocking_client_that_is_dropped_ends_its_thread(library, server):
    client = library.Client(transport=Transport(BackendQuota("10/h")))
    client.get(server.url + "ok")
    assert [thread for thread in threading.enumerate() if thread.name == "tidegate-client"]
    del client
    async with asyncio.timeout(10):
        while [thread for thread in threading.enumerate() if thread.name == "tidegate-client"]:
            gc.collect()
            await asyncio.sleep(0.01)
