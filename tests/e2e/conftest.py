"""What the end-to-end tests share: aiohttp applications on loopback, and servers from Debian."""

import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

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


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A port on loopback that nobody listens on."""

    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
            return port

    return find


@pytest.fixture
def run_server() -> Iterator[Callable[[Sequence[str], int, Path], None]]:
    """Run a program until it listens on a port, what it says going to a file; it is ended with the test."""
    processes = []

    def run(command: Sequence[str], port: int, output: Path) -> None:
        with output.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        processes.append(process)
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"{command[0]} did not start: {output.read_text()}")
                time.sleep(0.01)
            else:
                return

    yield run
    for process in processes:
        process.terminate()
        process.wait()


@pytest.fixture
def fail_or_skip() -> Callable[[str], None]:
    """Fail for a share that was not used, unless the machine does too much else to tell."""

    def decide(reason: str) -> None:
        load, processors = os.getloadavg()[0], os.cpu_count() or 1
        if load > processors:
            pytest.skip(f"{reason}, but {load:.1f} programs run on {processors} processors: not judged")
        pytest.fail(reason)

    return decide
