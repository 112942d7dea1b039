"""Where an HTTP client's permits come from, and one permit from before its message leaves until its response has ended.

A client that sees its messages leave one by one takes a permit for each: the first one, each redirect hop and each retry. The
permit is charged then, acknowledged when the response headers arrive, and its concurrency is free when the body has ended, was
closed, or is gone.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from typing import NoReturn, Protocol

from tidegate import Backend, BackendQuota, ConfigError, Lease, Limit, Priority, RateLimitScheduler, Request
from tidegate._loops import runner
from tidegate._scopes import HOST, host_of

log = logging.getLogger(__name__)

Source = RateLimitScheduler | BackendQuota | Limit | str
"""A running scheduler, or what the server allows."""


class Held(Protocol):
    """A slot that was entered."""

    def leave(self, error: BaseException | None) -> None:
        """Have it given back, from any thread and from a finalizer."""

    def owe(self, lease: Lease, count: int, scopes: Mapping[str, str] | None) -> None:
        """Have messages charged that have left already."""


class Permit:
    """Leave to send one message. Give it back with `release`; one that is dropped gives itself back.

    Attributes:
        waited: Seconds that it took to get it.
    """

    __slots__ = ("__weakref__", "_lease", "_slot", "waited")

    def __init__(self, lease: Lease, slot: Held, waited: float) -> None:
        self._lease = lease
        self._slot: Held | None = slot
        self.waited = waited

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Say that response headers arrived: 429, or 503 with `Retry-After`, closes the limits."""
        self._lease.ack(status, headers)

    def also_sent(self, count: int, url: str) -> None:
        """Charge messages that the client has sent without asking, the last one to this URL, before the permit is given back."""
        if self._slot is not None and count > 0:
            host = host_of(url)
            self._slot.owe(self._lease, count, None if host is None else {HOST: host})

    def release(self, error: BaseException | None = None) -> None:
        """Give the concurrency back, from any thread and from a finalizer; once is enough."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.leave(error)

    def __del__(self) -> None:
        self.release(asyncio.CancelledError())


class Permits:
    """What a client's permits are of: a backend of a running scheduler, or a quota that is this client's own.

    Args:
        source: The scheduler, or what the server allows, as a `BackendQuota`, a `Limit` or a text.
        backend: Name of the scheduler's backend. With a quota: what messages in the log call it.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: What limits that are `per` something count by. The host is the one of each message's URL.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self, source: Source, backend: str | None, priority: int = Priority.NORMAL, scopes: Mapping[str, str] | None = None
    ) -> None:
        if isinstance(source, RateLimitScheduler):
            if not isinstance(backend, str):
                msg = f"backend={backend!r}: name the scheduler's backend whose limits these are, such as 'api'"
                raise ConfigError(msg, option="backend", value=backend)
            self.scheduler: RateLimitScheduler | None = source
            self.quota: BackendQuota | None = None
        else:
            self.scheduler = None
            self.quota = _quota_of(source)
        if scopes is not None and not isinstance(scopes, Mapping):
            msg = f"scopes={scopes!r}: give a mapping of texts, such as {{'user': 'ada'}}"
            raise ConfigError(msg, option="scopes", value=scopes)
        self.backend = "client" if backend is None else backend
        self._priority = priority
        self._scopes = scopes or {}
        self._warned = False

    def own_scheduler(self) -> RateLimitScheduler:
        """A new scheduler for a client's own quota."""
        return RateLimitScheduler([Backend(self.backend, _no_handler, self.quota)])

    def terms(self, url: str) -> dict[str, object]:
        """The options of the slot for a message to this URL."""
        host = host_of(url)
        return {"priority": self._priority, "scopes": self._scopes if host is None else {HOST: host, **self._scopes}}

    @property
    def concurrency(self) -> int | None:
        """Messages in flight at once, as far as the quota goes; None for no cap."""
        quota = self.quota if self.scheduler is None else self.scheduler._backends.quota(self.backend)  # noqa: SLF001
        return None if quota is None else quota.concurrency

    def check_pool(self, size: int | None, option: str) -> None:
        """Warn, once, when the client's pool throttles before the quota does.

        Args:
            size: What the client is made for; None or 0 for no end.
            option: What to raise, as in the client's own documentation.
        """
        if self._warned or not size:
            return
        wanted = self.concurrency
        if wanted is not None and size < wanted:
            self._warned = True
            log.warning(
                "%s may have %d requests in flight, but its client is set to %d: raise %s", self.backend, wanted, size, option
            )


class AsyncPermits(Permits):
    """Permits for a client on an event loop, which must be the scheduler's. A quota gets its scheduler on the first one's."""

    def __init__(
        self, source: Source, backend: str | None, priority: int = Priority.NORMAL, scopes: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(source, backend, priority, scopes)
        self._own: RateLimitScheduler | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def take(self, url: str) -> Permit:
        """Wait for leave to send one message to a URL.

        Raises:
            SchedulerClosedError: The scheduler, or the client, was closed.
            RuntimeError: Another loop runs than the scheduler's.

        Cancellation: takes nothing.
        """
        started_at = monotonic()
        slot = (await self._running()).slot(self.backend, **self.terms(url))  # type: ignore[arg-type] # options by name
        lease = await slot.__aenter__()
        return Permit(lease, slot, monotonic() - started_at)

    async def close(self) -> None:
        """End the scheduler of the client's own."""
        if self.scheduler is None:
            if self._own is None:
                self._own = self.own_scheduler()
            await self._own.close()

    async def _running(self) -> RateLimitScheduler:
        loop = asyncio.get_running_loop()
        if self.scheduler is not None:
            if self.scheduler._running().loop is not loop:  # noqa: SLF001 - its other half
                _wrong_loop("scheduler")
            return self.scheduler
        if self._own is None:
            # It accepts before it has opened its only backend, which has nothing to open: others may come in between.
            self._own, self._loop = self.own_scheduler(), loop
            await self._own.__aenter__()
        elif self._loop is not None and self._loop is not loop:
            _wrong_loop("client")
        return self._own


class BlockingPermits(Permits):
    """Permits for a client in threads. A quota gets its scheduler on a loop in a daemon thread."""

    def __init__(
        self, source: Source, backend: str | None, priority: int = Priority.NORMAL, scopes: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(source, backend, priority, scopes)
        self._own: SchedulerThread | None = None
        self._lock = threading.Lock()

    def take(self, url: str) -> Permit:
        """Block the thread until it may send one message to a URL.

        Raises:
            SchedulerClosedError: The scheduler, or the client, was closed.
            RuntimeError: This is the thread of the scheduler's loop.

        Cancellation: what interrupts the wait, as Ctrl-C does in the main thread, takes nothing.
        """
        started_at = monotonic()
        slot = self._running().slot_blocking(self.backend, **self.terms(url))  # type: ignore[arg-type] # options by name
        lease = slot.__enter__()
        return Permit(lease, slot, monotonic() - started_at)

    def close(self) -> None:
        """End the scheduler of the client's own."""
        if self._own is not None:
            self._own.close()

    def _running(self) -> RateLimitScheduler:
        if self.scheduler is not None:
            return self.scheduler
        with self._lock:
            if self._own is None:
                self._own = SchedulerThread(self.own_scheduler())
        return self._own.scheduler


class SchedulerThread:
    """A scheduler that runs on a loop in a daemon thread until it is closed, dropped, or the program ends."""

    def __init__(self, scheduler: RateLimitScheduler) -> None:
        self.scheduler = scheduler
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=_serve, args=(scheduler, started), name="tidegate-client", daemon=True)
        self._thread.start()
        self._stop = weakref.finalize(self, _stop, *started.result())
        _threads.add(self)

    def close(self) -> None:
        """End the scheduler, and wait until the thread has ended."""
        self._stop()
        self._thread.join()


_threads: weakref.WeakSet[SchedulerThread] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for thread in list(_threads):
        thread.close()


def _serve(scheduler: RateLimitScheduler, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        await scheduler.__aenter__()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await scheduler.close()

    with runner() as own:
        own.run(main())


def _stop(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with suppress(RuntimeError):  # it has ended
        loop.call_soon_threadsafe(stop.set)


def _quota_of(source: object) -> BackendQuota:
    if isinstance(source, BackendQuota):
        return source
    if isinstance(source, Limit | str):
        return BackendQuota(source)
    msg = f"quota={source!r}: give what the server allows, such as '10/s' or a BackendQuota, or a running RateLimitScheduler"
    raise ConfigError(msg, option="quota", value=source)


def _wrong_loop(whose: str) -> NoReturn:
    msg = f"another event loop runs than the {whose}'s: make a {whose} for each loop"
    raise RuntimeError(msg)


async def _no_handler(_: Request) -> None:
    """Slots bring their own code."""
