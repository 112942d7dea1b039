"""A TCP proxy that does to connections what networks and broken servers do, and an HTTP server to put behind it."""

import asyncio
import contextlib
import socket
import struct
import time
from enum import Enum
from typing import Self

from aiohttp import web

from tidegate.testing import servers

CHUNK = 65_536


class Fault(Enum):
    NONE = "passes"
    REFUSE = "refuses"
    RESET = "resets before an answer"
    RESET_IN_HEAD = "resets in the headers"
    RESET_IN_BODY = "resets in the body"
    SILENT = "is silent"
    TRICKLE = "sends a byte a second"
    DELAY = "answers after five seconds"
    GARBAGE = "sends what is no HTTP"


class Proxy:
    """Listens on loopback and passes connections on to `port`, but for its fault, which strikes open ones, too."""

    def __init__(self, port: int) -> None:
        self._target, self._fault = port, Fault.NONE
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0
        self.most_open = 0  # connections at once since the fault was set

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_listening()
        tasks = list(self._open)
        for writer in self._open.values():
            _reset(writer)
        await asyncio.gather(*tasks)

    async def set(self, fault: Fault) -> None:
        if fault is Fault.REFUSE:
            await self._stop_listening()
            for writer in self._open.values():
                _reset(writer)
        elif self._server is None:
            await self._listen()
        self._fault, self.most_open = fault, 0

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        self.most_open = max(self.most_open, len(self._open))
        onward: asyncio.StreamWriter | None = None
        try:
            answers, onward = await asyncio.open_connection("127.0.0.1", self._target)
            while request := await reader.read(CHUNK):
                onward.write(request)
                if not await self._answer(answers, reader, writer):
                    break
        except (ConnectionError, EOFError):
            pass
        finally:
            del self._open[task]
            if onward is not None:
                onward.close()
            writer.close()

    async def _answer(self, answers: asyncio.StreamReader, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass one answer on, as the fault has it; whether the connection lives."""
        answer = await answers.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        answer += await answers.readexactly(length)
        match self._fault:
            case Fault.RESET:
                _reset(writer)
                return False
            case Fault.RESET_IN_HEAD | Fault.RESET_IN_BODY as fault:
                writer.write(answer[:12] if fault is Fault.RESET_IN_HEAD else answer[:-5])
                await writer.drain()
                await asyncio.sleep(0.01)  # what was sent is not to be lost with the connection
                _reset(writer)
                return False
            case Fault.SILENT:
                await _pause(reader, 3600)
            case Fault.TRICKLE:
                for byte in answer:
                    writer.write(bytes([byte]))
                    await _pause(reader, 1)
            case Fault.DELAY:
                await _pause(reader, 5)
                writer.write(answer)
            case Fault.GARBAGE:
                writer.write(bytes(range(256)) * 4)
                return False
            case _:
                writer.write(answer)
        await writer.drain()
        return True


class Site:
    """An HTTP server of 40 requests a second in bursts of five, behind a proxy. It sees whether it is asked too much."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counter = servers.TokenBucket(40, 1, burst=5)
        self.served = 0
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.proxy = await Proxy(self._runner.addresses[0][1]).__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.proxy.__aexit__()
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}/{{target}}"

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if not self.counter.receive(time.monotonic()).ok:
            return web.Response(status=429)
        await asyncio.sleep(0.01)
        self.served += 1
        return web.Response(text=request.path * 3)


async def _pause(reader: asyncio.StreamReader, seconds: float) -> None:
    """Wait, unless the client goes: it has nothing to say meanwhile."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await reader.read(1)
            raise ConnectionResetError


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
