"""requests: what its adapter does beyond what every client does."""

import asyncio
import io

import pytest

from tidegate import Backend, RateLimitScheduler

requests = pytest.importorskip("requests")
from urllib3.util.retry import Retry  # noqa: E402 - comes with it

from tidegate.clients.requests import Adapter  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

RETRY = Retry(total=3, status_forcelist=[503], backoff_factor=0)


async def unused(request):
    raise AssertionError


async def send(server, path, *, method="GET", data=None, retries=RETRY):
    """One request under limits, and the units that it took."""
    async with RateLimitScheduler([Backend("web", unused, "100/h")]) as scheduler:
        session = requests.Session()
        session.mount("http://", Adapter(scheduler, "web", max_retries=retries))
        try:
            return await asyncio.to_thread(session.request, method, server.url + path, data=data)
        finally:
            session.close()
            while scheduler.snapshot().backends["web"].in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert scheduler.snapshot().backends["web"].limits[0].used == server.received[path]


async def test_each_retry_of_a_status_is_charged(server):
    response = await send(server, "flaky")
    assert (response.status_code, server.received["flaky"]) == (200, 3)


async def test_without_retries_the_status_is_the_response(server):
    response = await send(server, "flaky", retries=0)
    assert (response.status_code, server.received["flaky"]) == (503, 1)


async def test_retries_that_run_out(server):
    """As urllib3: an error, or the last response, as `raise_on_status` says."""
    with pytest.raises(requests.exceptions.RetryError):
        await send(server, "flaky", retries=Retry(total=1, status_forcelist=[503]))
    server.received.clear()
    response = await send(server, "flaky", retries=Retry(total=1, status_forcelist=[503], raise_on_status=False))
    assert (response.status_code, response.text, server.received["flaky"]) == (503, "flaky", 2)


async def test_each_retry_of_a_dead_connection_is_charged(server):
    with pytest.raises(requests.exceptions.ConnectionError):
        await send(server, "silent", retries=Retry(total=2, backoff_factor=0))
    assert server.received["silent"] == 3


async def test_what_is_not_idempotent_is_not_repeated(server):
    response = await send(server, "flaky", method="POST", data=b"x")
    assert (response.status_code, server.received["flaky"]) == (503, 1)


async def test_body_is_rewound_for_a_retry(server):
    """A file is sent again from where it stood; what cannot be sent again is not."""
    retries = Retry(total=3, status_forcelist=[503], allowed_methods=None)
    response = await send(server, "flaky", method="POST", data=io.BytesIO(b"x" * 10), retries=retries)
    assert (response.status_code, server.received["flaky"]) == (200, 3)
    server.received.clear()
    response = await send(server, "flaky", method="POST", data=iter([b"x"] * 10), retries=retries)
    assert (response.status_code, server.received["flaky"]) == (503, 1)


async def test_raw_body_read_to_its_end(server):
    """Who reads `response.raw` needs no `close`."""
    async with RateLimitScheduler([Backend("web", unused, "100/h")]) as scheduler:
        session = requests.Session()
        session.mount("http://", Adapter(scheduler, "web"))
        response = await asyncio.to_thread(session.get, server.url + "ok", stream=True)
        assert await asyncio.to_thread(response.raw.read) == b"ok"
        while scheduler.snapshot().backends["web"].in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        session.close()
