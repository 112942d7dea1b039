"""What the tests of the HTTP clients share: a server in a thread, and the same few verbs for each client."""

import asyncio
import threading
from collections import Counter

import aiohttp
import pytest
from aiohttp import web


class Server:
    """Answers on loopback from a thread of its own, so that a client may block. Counts what it received, by path."""

    def __init__(self):
        self.received = Counter()
        self.finish = threading.Event()  # lets the bodies at `held` end
        self.loop = asyncio.new_event_loop()
        self.url = ""
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._thread.start()
        assert self._started.wait(10)

    def stop(self):
        self.finish.set()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)

    def _run(self):
        asyncio.set_event_loop(self.loop)
        app = web.Application()
        for name in ("ok", "redirect", "limited", "held", "silent", "dying", "late", "flaky", "empty"):
            app.router.add_route("*", f"/{name}", getattr(self, name))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self.loop.run_until_complete(runner.setup())
        self.loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        self._started.set()
        self.loop.run_forever()
        self.loop.run_until_complete(runner.cleanup())
        self.loop.close()

    def _count(self, request):
        self.received[request.path.lstrip("/")] += 1

    async def ok(self, request):
        self._count(request)
        return web.Response(text="ok")

    async def empty(self, request):
        self._count(request)
        return web.Response(status=204)

    async def redirect(self, request):
        self._count(request)
        raise web.HTTPFound("/ok")

    async def limited(self, request):
        self._count(request)
        return web.Response(status=429, headers={"Retry-After": "30"}, text="slow down")

    async def flaky(self, request):
        """Fails twice, then does not."""
        self._count(request)
        return web.Response(status=503 if self.received["flaky"] <= 2 else 200, text="flaky")

    async def held(self, request):
        """The headers and the beginning of a body at once, the rest when told."""
        self._count(request)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a" * 1000)
        while not self.finish.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        await response.write(b"z" * 1000)
        return response

    async def silent(self, request):
        """No answer: the connection dies."""
        self._count(request)
        request.transport.close()
        return web.Response()

    async def dying(self, request):
        """The connection dies in the middle of the body."""
        self._count(request)
        response = web.StreamResponse(headers={"Content-Length": "100000"})
        await response.prepare(request)
        await response.write(b"a" * 1000)
        await asyncio.sleep(0.02)
        request.transport.close()
        return response

    async def late(self, request):
        """An answer when told."""
        self._count(request)
        while not self.finish.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return web.Response(text="late")


@pytest.fixture
def server():
    """A server of this test's own."""
    server = Server()
    server.start()
    yield server
    server.stop()


class HttpxAsync:
    """httpx, on the loop."""

    library = "httpx"
    blocks = False
    keeps = False  # a response that is dropped, as long as its connection lives
    lingers = False

    def __init__(self):
        self.module = pytest.importorskip(self.library)

    def open(self, source, backend=None, **options):
        from tidegate.clients.httpx import AsyncTransport

        return self.module.AsyncClient(transport=AsyncTransport(source, backend, **options), follow_redirects=True)

    def open_narrow(self, source, backend=None):
        return self.open(source, backend, limits=self.module.Limits(max_connections=1))

    async def get(self, client, url):
        response = await client.get(url)
        return response.status_code, response.text

    async def stream(self, client, url):
        return await client.send(client.build_request("GET", url), stream=True)

    async def read(self, response):
        return await response.aread()

    async def abandon(self, response):
        await response.aclose()

    async def close(self, client):
        await client.aclose()


class Httpx2Async(HttpxAsync):
    library = "httpx2"


class HttpxBlocking(HttpxAsync):
    """httpx, in threads."""

    blocks = True

    def open(self, source, backend=None, **options):
        from tidegate.clients.httpx import Transport

        return self.module.Client(transport=Transport(source, backend, **options), follow_redirects=True)

    async def get(self, client, url):
        response = await asyncio.to_thread(client.get, url)
        return response.status_code, response.text

    async def stream(self, client, url):
        return await asyncio.to_thread(client.send, client.build_request("GET", url), stream=True)

    async def read(self, response):
        return await asyncio.to_thread(response.read)

    async def abandon(self, response):
        await asyncio.to_thread(response.close)

    async def close(self, client):
        await asyncio.to_thread(client.close)


class Httpx2Blocking(HttpxBlocking):
    library = "httpx2"


class Requests(HttpxBlocking):
    """requests, in threads."""

    library = "requests"

    def open(self, source, backend=None, **options):
        from tidegate.clients.requests import Adapter

        session = self.module.Session()
        session.mount("http://", Adapter(source, backend, **options))
        return session

    def open_narrow(self, source, backend=None):
        return self.open(source, backend, pool_maxsize=1)

    async def stream(self, client, url):
        return await asyncio.to_thread(client.get, url, stream=True)

    async def read(self, response):
        return await asyncio.to_thread(lambda: response.content)


class Aiohttp:
    """aiohttp, on the loop."""

    blocks = False
    keeps = True
    lingers = False

    def __init__(self):
        self.middlewares = {}

    def open(self, source, backend=None, *, limit=0, **options):
        from tidegate.clients.aiohttp import Middleware

        middleware = Middleware(source, backend, **options)
        connector = aiohttp.TCPConnector(limit=limit)
        session = aiohttp.ClientSession(middlewares=[middleware], connector=connector)
        self.middlewares[session] = middleware
        return session

    def open_narrow(self, source, backend=None):
        return self.open(source, backend, limit=1)

    async def get(self, client, url):
        async with client.get(url) as response:
            return response.status, await response.text()

    async def stream(self, client, url):
        return await client.get(url)

    async def read(self, response):
        return await response.read()

    async def abandon(self, response):
        response.close()

    async def close(self, client):
        await client.close()
        await self.middlewares.pop(client).close()


class CurlAsync:
    """curl_cffi, on the loop."""

    blocks = False
    keeps = True
    lingers = True  # a body that is closed goes on until something comes

    def __init__(self):
        pytest.importorskip("curl_cffi")

    def open(self, source, backend=None, **options):
        from tidegate.clients.curl_cffi import AsyncSession

        return AsyncSession(source, backend, **options)

    def open_narrow(self, source, backend=None):
        return self.open(source, backend, max_clients=1)

    async def get(self, client, url):
        response = await client.get(url)
        return response.status_code, response.text

    async def stream(self, client, url):
        return await client.get(url, stream=True)

    async def read(self, response):
        return await response.acontent()

    async def abandon(self, response):
        response.quit_now.set()  # what `aclose` leaves to the server
        await response.aclose()

    async def close(self, client):
        await client.close()


class CurlBlocking(CurlAsync):
    """curl_cffi, in threads."""

    blocks = True

    def open(self, source, backend=None, **options):
        from tidegate.clients.curl_cffi import Session

        return Session(source, backend, **options)

    def open_narrow(self, source, backend=None):
        pytest.skip("it has no pool")

    async def get(self, client, url):
        response = await asyncio.to_thread(client.get, url)
        return response.status_code, response.text

    async def stream(self, client, url):
        return await asyncio.to_thread(client.get, url, stream=True)

    async def read(self, response):
        return await asyncio.to_thread(lambda: b"".join(response.iter_content()))

    async def abandon(self, response):
        await asyncio.to_thread(response.close)

    async def close(self, client):
        await asyncio.to_thread(client.close)


class Niquests(Requests):
    """niquests, in threads."""

    library = "niquests"

    def open(self, source, backend=None, **options):
        from tidegate.clients.niquests import Adapter

        session = self.module.Session()
        session.mount("http://", Adapter(source, backend, **options))
        return session


class NiquestsAsync(Niquests):
    """niquests, on the loop."""

    blocks = False

    def open(self, source, backend=None, **options):
        from tidegate.clients.niquests import AsyncAdapter

        session = self.module.AsyncSession()
        session.mount("http://", AsyncAdapter(source, backend, **options))
        return session

    async def get(self, client, url):
        response = await client.get(url)
        return response.status_code, response.text

    async def stream(self, client, url):
        return await client.get(url, stream=True)

    async def read(self, response):
        return await response.content

    async def abandon(self, response):
        await response.close()

    async def close(self, client):
        await client.close()


CASES = (
    *(HttpxAsync, Httpx2Async, HttpxBlocking, Httpx2Blocking, Requests, Aiohttp),
    *(CurlAsync, CurlBlocking, Niquests, NiquestsAsync),
)


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def case(request):
    """One way to use one client."""
    return request.param()


@pytest.fixture(params=[case for case in CASES if not case.blocks], ids=lambda case: case.__name__)
def async_case(request):
    """One that runs on the loop."""
    return request.param()
