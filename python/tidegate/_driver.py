"""What keeps one engine going on one event loop: the pump, its only timer, the workers, and who waits for what."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from threading import get_ident
from time import monotonic
from typing import Protocol
from weakref import WeakSet

from tidegate import _core
from tidegate._clock import ManualClock
from tidegate._snapshot import Event
from tidegate._workers import Workers

# Seconds. A loop's timer comes up to TICK late, which is more than a fiftieth of a wait below SHORT. A client that may send its
# next request only after such a wait would lose that much of its limit (100/s, burst 1: 5 %). Waiting exactly costs half a TICK
# of processor time, at most once in RARE.
TICK = 0.001
SHORT = 0.05
RARE = 0.005

logger = logging.getLogger("tidegate")


class Source(Protocol):
    """What takes targets by itself."""

    def end(self) -> None:
        """Take no more of them."""


class Plan(Protocol):
    """What begins something by itself when it falls due."""

    def turn(self) -> None:
        """Begin what is due, and have the core's alarm say when the next is."""


Listener = Callable[[Event | None], None]


class Driver:
    """Runs the engine on the loop that made it. All of it belongs to that loop's thread.

    Whatever changes the engine asks for a pump once a batch; the pump lets time pass, does what the engine says, and arms the
    timer for the next instant at which something happens by itself.
    """

    def __init__(self, core: _core.Core, clock: ManualClock | None, in_words: Callable[..., Event]) -> None:
        self.core = core
        self._in_words = in_words
        self.loop = asyncio.get_running_loop()
        self.thread = get_ident()
        self._clock = clock
        self._context = copy_context()
        self._workers = Workers(core, self.loop, self._context)
        self._timer: asyncio.Handle | None = None
        self._met = 0.0  # the last instant that was waited for exactly
        self._room: deque[asyncio.Future[None]] = deque()
        self._idle: list[asyncio.Future[bool]] = []
        self._listeners: list[Listener] = []
        self._sources: WeakSet[Source] = WeakSet()
        self._plans: WeakSet[Plan] = WeakSet()
        self._has_planned = False
        self._stopped = False
        core.open(self._pump_soon, self._pump_soon_threadsafe, clock.time() if clock else self.loop.time())
        if clock is not None:
            clock.attach(self)

    def pump(self) -> None:
        """Do what there is to do now."""
        if self._stopped:
            self.core.pump(False)  # threads that came too late are told
            return
        if self._has_planned:
            self.core.forget_alarm()  # those that are left set it anew
            for plan in list(self._plans):
                plan.turn()
        interrupt, wake, dismiss, hire, wait, idle, events = self.core.pump(self._timer is not None)
        if interrupt:
            self._workers.interrupt(interrupt)
        if dismiss:
            self._workers.wake(dismiss, work=False)
        if wake:
            self._workers.wake(wake)
        if hire:
            self._workers.hire(hire)
        if idle:
            self._resolve_idle()
        if self._room and (self.core.has_room() or not self.core.is_accepting()):
            self._wake_for_room()
        for event in events:
            self._tell(self._in_words(*event))
        if wait is not None and self._clock is None:
            if self._timer is not None:
                self._timer.cancel()
            self._arm(wait)

    def _arm(self, wait: float) -> None:
        """Pump `wait` seconds from now: to the loop's millisecond, or exactly when the wait is short and such waits are rare."""
        if self._timer is not None:
            self._timer.cancel()
        due = monotonic() + wait
        if wait < SHORT and due - self._met >= RARE:
            self._timer = self.loop.call_later(wait - TICK, self._turn, due, context=self._context)
        else:
            self._timer = self.loop.call_later(wait, self._fire, context=self._context)

    def _fire(self) -> None:
        self._timer = None
        self.pump()

    def _turn(self, due: float) -> None:
        """Spend the last millisecond of a short wait in turns of the loop."""
        if monotonic() < due:
            self._timer = self.loop.call_soon(self._turn, due, context=self._context)
        else:
            self._met = due
            self._fire()

    async def wait_for_room(self, *, first: bool = False) -> None:
        """Wait in line until one more request may be accepted, or none ever.

        Args:
            first: At the head of the line, for who was woken and needs more.

        Cancellation: the next in line is woken in its place.
        """
        future: asyncio.Future[None] = self.loop.create_future()
        if first:
            self._room.appendleft(future)
        else:
            self._room.append(future)
        self.core.watch_room()
        try:
            await future
        finally:
            self._room.remove(future)
            if self._room or self._has_planned:
                # Whoever was woken may have left room, or left without taking any. Plans wait behind the line.
                self.core.watch_room()

    @property
    def has_line(self) -> bool:
        """Whether somebody waits for room: who comes now waits behind."""
        return bool(self._room)

    async def wait_until_idle(self, timeout: float | None) -> bool:
        """Wait until nothing is queued or leased; false when `timeout` seconds were not enough."""
        if self.core.is_idle():
            return True
        future: asyncio.Future[bool] = self.loop.create_future()
        self._idle.append(future)
        self.core.watch_idle()
        late: asyncio.TimerHandle | asyncio.Future[None] | None = None
        if timeout is not None and self._clock is not None:
            late = self._clock.alarm(timeout)
            late.add_done_callback(lambda _: _resolve(future, False))
        elif timeout is not None:
            late = self.loop.call_later(timeout, _resolve, future, False)
        try:
            return await future
        finally:
            self._idle.remove(future)
            if late is not None:
                late.cancel()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of each change of state from now on, and None at the end; call the result to stop."""
        if self._stopped:
            listener(None)
            return lambda: None
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def feed_from(self, source: Source) -> None:
        """Have a source end when nothing is accepted any more."""
        self._sources.add(source)

    def plan(self, plan: Plan) -> None:
        """Have a plan turned whenever something of it may have fallen due."""
        self._plans.add(plan)
        self._has_planned = True

    def stop_accepting(self) -> None:
        """Accept nothing more: those in line hear of it, and sources end."""
        self.core.stop_accepting()
        for source in list(self._sources):
            source.end()

    async def stop(self, grace: float) -> None:
        """End what is pending, cancel the workers, and wait for their handlers, at most `grace` seconds."""
        try:
            self.core.close()
            self.stop_accepting()
            self.pump()
        finally:
            self._wake_for_room()
            try:
                await self._workers.stop(grace)
            finally:
                self._resolve_idle()
                self._end()

    async def leave(self, grace: float) -> None:
        """End on this loop, and leave the engine as it is for another driver: the workers go, and nothing may be pending."""
        try:
            await self._workers.stop(grace)
        finally:
            self._end()

    def _end(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._clock is not None:
            self._clock.detach(self)
        for listener in list(self._listeners):
            listener(None)

    def _pump_soon(self) -> None:
        if not self.loop.is_closed():  # a ticket is cancelled, a stream is freed after its end: nothing goes on any more
            self.loop.call_soon(self.pump, context=self._context)

    def _pump_soon_threadsafe(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self.pump, context=self._context)
        except RuntimeError:  # the loop was closed: nothing goes on any more, and the thread is told
            self.core.close()
            self.core.pump(False)

    def _resolve_idle(self) -> None:
        for future in self._idle:
            _resolve(future, True)

    def _wake_for_room(self) -> None:
        """Wake the first in line, or all when nothing is accepted any more."""
        woken = [self._room[0]] if self._room and self.core.is_accepting() else list(self._room)
        for future in woken:
            if not future.done():
                future.set_result(None)

    def _tell(self, event: Event) -> None:
        if event.kind == "limit_closed":
            logger.warning("%s rejected a request: closed for %.3g s", event.backend, event.seconds)
        elif event.step is not None:
            step = event.step
            logger.warning(
                "%s rejected a request that conformed to %s: treated as %s from now on, not as %s; name its kind to start there",
                event.backend,
                step.limit,
                step.after,
                step.before,
            )
        elif event.kind == "backend_down":
            of = f"{event.failed} of {event.attempts} attempts failed" if event.failed else "it failed when it was tried again"
            last = self._workers.failures.get(event.backend or "")
            of += "" if last is None else f", last with {last}"
            logger.warning("%s is down (%s): nothing is sent to it for %.3g s, then one request", _name(event), of, event.seconds)
        elif event.kind in {"backend_recovering", "backend_up"}:
            logger.info("%s %s", _name(event), "answers again" if event.kind == "backend_recovering" else "is up again")
        elif event.kind == "own_fault":
            logger.warning(
                "%d of %d backends fail on this side of the line: none is held back for that", event.failed, event.attempts
            )
        elif event.kind == "own_fault_over":
            logger.info("backends are reached again")
        elif event.kind == "backend_gone":
            logger.info("%s was removed: nothing runs on it any more", event.backend)
        else:
            logger.info("%s accepts requests again", event.backend)
        for listener in list(self._listeners):
            listener(event)


def _name(event: Event) -> str:
    return f"{event.backend}" if event.account is None else f"{event.backend}, account {event.account},"


def _resolve(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)
