"""What the end-to-end tests share: aiohttp applications on loopback."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve a handler for every path and method on loopback, or several by path; gives the base URL."""
    runners = []

    async def start(handler: Handler | None = None, **by_path: Handler) -> str:
        app = web.Application()
        for path, answer in by_path.items():
            app.router.add_route("*", f"/{path}", answer)
        if handler is not None:
            app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/"

    yield start
    for runner in runners:
        await runner.cleanup()
