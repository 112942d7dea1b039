"""Whatever is cancelled, and whenever: no request, permit or wake-up is lost, and nobody else notices.

The sweep plays each scene again and again and cancels it one turn of the loop later each time, until it ends first. A `Scene`
says what is awaited and what lets it go on; a `Caller`, who awaits it and how that is cancelled. After each run the books must
balance: see `Scene.settle`.
"""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from typing import ClassVar

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    DeadlineExceededError,
    QueueFullError,
    RateLimitScheduler,
    Request,
    RequestCancelledError,
    Retry,
    SchedulerClosedError,
    TidegateError,
)
from tidegate.testing import ManualClock

pytestmark = pytest.mark.usefixtures("quiet")

# The turn of the loop at which a scene is let go on, and how many turns all of it may take.
RELEASED_AT = 4
MOST_TURNS = 300
# No unit of this limit comes back while a scene plays: what counts as used is what was sent.
TALLY = "1000000/day window"


async def turns(number: int) -> None:
    """Let the loop go round."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop go round until something holds."""
    for _ in range(MOST_TURNS):
        if holds():
            return
        await asyncio.sleep(0)
    pytest.fail("it never came to pass")


# ---- What is awaited


class Scene:
    """A scheduler in virtual time with one backend, whose server counts messages, and something to await."""

    capacity = 1000
    concurrency = 2
    limits: tuple[str, ...] = ()
    isolation = "worker"
    enters = True
    ends = False  # nothing is accepted afterwards
    spare = 0  # permits that may be charged without a message
    others: int | None = None  # requests that may be pending when what is awaited has been cancelled; None: any

    def __init__(self, seed: int) -> None:
        self.clock = ManualClock()
        self.gate = asyncio.Event()
        self.sent = self.running = 0
        self.turns = random.Random(seed).randrange(5) if seed else 2
        quota = BackendQuota(*self.limits, TALLY, concurrency=self.concurrency)
        self.scheduler = RateLimitScheduler(
            [Backend("api", self.handle, quota)],
            capacity=self.capacity,
            retry=Retry(attempts=2, base=1, cap=1),
            isolation=self.isolation,
            clock=self.clock,
            seed=seed,
        )

    async def prepare(self) -> None:
        """Bring about what is there before."""

    async def play(self) -> None:
        """What is cancelled."""
        raise NotImplementedError

    def release(self) -> None:
        """Let it go on."""
        self.gate.set()

    async def check(self, *, cancelled: bool) -> None:
        """What must be true of this scene afterwards."""

    async def handle(self, request: Request) -> object:
        """Answer some turns later; a blocker, when the gate is open."""
        async with self.message():
            if request.target == "blocker":
                await self.gate.wait()
            await turns(self.turns)
            return request.target

    @asynccontextmanager
    async def message(self) -> AsyncIterator[None]:
        """One more message is with the server."""
        self.sent += 1
        self.running += 1
        assert self.running <= self.concurrency
        try:
            yield
        finally:
            self.running -= 1

    @property
    def in_flight(self) -> int:
        return self.scheduler.snapshot().backends["api"].in_flight

    async def fetch(self, target: object) -> None:
        assert (await self.scheduler.fetch(target)).value == target

    async def settle(self) -> None:
        """Let all that goes on end, and find nothing lost and nothing left."""
        self.gate.set()
        await self.clock.run_until_idle()
        if not self.ends:
            fresh = asyncio.create_task(self.fetch("fresh"))
            await turns(1)
            await self.clock.run_until_idle()
            await fresh
        await until(lambda: self.in_flight == 0)
        ledger = self.scheduler.ledger()
        assert ledger.balanced
        assert ledger.pending == 0
        assert self.running == 0
        charged = self.scheduler.snapshot().backends["api"].limits[-1].used
        assert self.sent <= charged <= self.sent + self.spare
        assert strangers() == set()


def strangers() -> set[str]:
    """The names of the tasks that should have ended."""
    names = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    return {name for name in names if not name.startswith("tidegate-worker")}


class Fetch(Scene):
    others = 0

    async def play(self):
        await self.fetch("x")


class FetchAsTask(Fetch):
    """An attempt that is cancelled before its task begins counts as sent."""

    isolation = "task"
    spare = 1


class FetchWithoutConcurrency(Fetch):
    concurrency = 1
    others = 1

    async def prepare(self):
        self.scheduler.submit_nowait("blocker")


class FetchWithoutQuota(Fetch):
    limits = ("1/10s",)

    async def prepare(self):
        await self.fetch("first")

    def release(self):
        self.clock.advance(11)


class FetchWithoutRoom(Fetch):
    capacity = 1
    others = 1

    async def prepare(self):
        self.scheduler.submit_nowait("blocker")


class FetchRetried(Fetch):
    async def handle(self, request: Request) -> object:
        value = await super().handle(request)
        if request.attempt == 1:
            raise ConnectionError
        return value

    def release(self):
        self.pusher = asyncio.create_task(self.clock.run_until_idle(), name="pusher")

    async def check(self, *, cancelled):
        await self.pusher


class FetchThatExpires(Fetch):
    async def play(self):
        with pytest.raises(DeadlineExceededError):
            await self.scheduler.fetch("blocker", timeout=5)

    def release(self):
        self.clock.advance(6)


class FetchFromAThread(Fetch):
    others = None  # it is cancelled a turn later

    async def play(self):
        await asyncio.wrap_future(self.scheduler.submit_threadsafe("x"))


class Submit(Scene):
    capacity = 1
    others = 1

    async def prepare(self):
        self.scheduler.submit_nowait("blocker")

    async def play(self):
        await self.scheduler.submit("x")


class SubmitMany(Submit):
    capacity = 2
    by_function = False

    async def play(self):
        self.tickets = await self.scheduler.submit_many(list("abcd"), priority=(lambda _: 3) if self.by_function else 3)


class SubmitManyByFunction(SubmitMany):
    by_function = True


class AwaitTicket(Scene):
    async def prepare(self):
        self.ticket = self.scheduler.submit_nowait("blocker")

    async def play(self):
        await self.ticket

    async def check(self, *, cancelled):
        assert (await self.ticket).value == "blocker"
        assert self.scheduler.ledger().cancelled == 0


class AwaitCancelledTicket(AwaitTicket):
    async def play(self):
        with pytest.raises(RequestCancelledError):
            await self.ticket

    def release(self):
        assert self.ticket.cancel()

    async def check(self, *, cancelled):
        assert self.ticket.done()
        assert self.scheduler.ledger().cancelled == 1


class MapNext(Scene):
    TARGETS = ("blocker", "a", "b", "c")
    ordered = False

    async def prepare(self):
        self.got = []
        self.replies = self.scheduler.map(self.source(), ordered=self.ordered, ahead=3)

    def source(self):
        return iter(self.TARGETS)

    async def play(self):
        self.got.append(await anext(self.replies))

    async def check(self, *, cancelled):
        self.got += [reply async for reply in self.replies]
        values = [reply.value for reply in self.got]
        assert (values if self.ordered else sorted(values)) == (list(self.TARGETS) if self.ordered else sorted(self.TARGETS))
        assert self.scheduler.ledger().cancelled == 0


class MapNextInOrder(MapNext):
    ordered = True


class MapNextOfAsyncSource(MapNext):
    async def source(self):
        for target in self.TARGETS:
            await turns(1)
            yield target


class MapNextOfAsyncSourceInOrder(MapNextOfAsyncSource):
    ordered = True


class MapNextWithoutRoom(MapNext):
    TARGETS = ("a", "b", "c")
    capacity = 1

    async def prepare(self):
        self.scheduler.submit_nowait("blocker")
        await super().prepare()


class MapNextOfAsyncSourceWithoutRoom(MapNextWithoutRoom):
    source = MapNextOfAsyncSource.source


class MapAll(MapNext):
    """The whole loop: with its cancellation the map goes, and all of it."""

    async def prepare(self):
        pass

    async def play(self):
        async for _ in self.scheduler.map(self.source(), ahead=3):
            await turns(1)

    async def check(self, *, cancelled):
        await turns(2)
        assert self.scheduler.ledger().pending == 0


class MapAllOfAsyncSource(MapAll):
    source = MapNextOfAsyncSource.source


class MapAllByFunction(MapAll):
    isolation = "task"
    spare = 3

    async def play(self):
        async for _ in self.scheduler.map(self.source(), ahead=3, priority=lambda _: 3):
            await turns(1)


class MapAllByFunctionOfAsyncSource(MapAllByFunction):
    source = MapNextOfAsyncSource.source

    async def check(self, *, cancelled):
        await turns(10)  # a generator around the source ends in a task of its own
        await super().check(cancelled=cancelled)


class MapAllManaged(MapAll):
    async def play(self):
        async with self.scheduler.map(self.source(), ahead=3) as replies:
            await anext(replies)


class MapAllManagedOfAsyncSource(MapAllManaged):
    source = MapNextOfAsyncSource.source


class Slot(Scene):
    async def play(self):
        async with self.scheduler.slot("api"), self.message():
            await turns(self.turns)


class SlotWithoutConcurrency(Slot):
    concurrency = 1
    prepare = FetchWithoutConcurrency.prepare


class SlotWithoutQuota(Slot):
    limits = ("1/10s",)
    prepare = FetchWithoutQuota.prepare
    release = FetchWithoutQuota.release


class SlotWithoutRoom(Slot):
    capacity = 1
    prepare = Submit.prepare


class SlotThatExpires(Slot):
    """A deadline that comes between a cancellation and its report finds the permit in use."""

    spare = 1

    async def play(self):
        with pytest.raises(DeadlineExceededError):
            async with self.scheduler.slot("api", timeout=5), self.message():
                await self.gate.wait()

    def release(self):
        self.clock.advance(6)


class Recharge(Scene):
    limits = ("1/10s",)

    async def handle(self, request: Request) -> object:
        self.request = request
        return await super().handle(request)

    async def prepare(self):
        self.scheduler.submit_nowait("blocker")
        await until(lambda: self.sent == 1)

    async def play(self):
        await self.request.recharge()
        self.sent += 1

    def release(self):
        self.clock.advance(11)


class Events(Recharge):
    limits = ()

    async def prepare(self):
        self.events = self.scheduler.events()
        await super().prepare()
        self.seen = []

    async def play(self):
        self.seen.append(await anext(self.events))

    def release(self):
        self.request.ack(429, retry_after=1)

    async def check(self, *, cancelled):
        if not self.seen:
            self.seen.append(await anext(self.events))
        assert [event.kind for event in self.seen] == ["limit_closed"]


class Drain(Scene):
    ends = True

    async def prepare(self):
        self.tickets = [self.scheduler.submit_nowait("blocker") for _ in range(5)]

    async def play(self):
        assert await self.scheduler.drain()

    async def check(self, *, cancelled):
        if self.scheduler.ledger().pending:
            assert await self.scheduler.drain()
            assert [(await ticket).value for ticket in self.tickets] == ["blocker"] * 5


class DrainOfWhatRuns(Drain):
    async def play(self):
        assert await self.scheduler.drain(cancel_waiting=True)

    async def check(self, *, cancelled):
        await self.scheduler.drain(cancel_waiting=True)
        assert self.scheduler.ledger().pending == 0


class Close(Drain):
    async def handle(self, request: Request) -> object:
        try:
            return await super().handle(request)
        finally:
            await turns(2)

    async def play(self):
        await self.scheduler.close()
        assert self.scheduler.snapshot().workers == 0

    async def check(self, *, cancelled):
        await self.scheduler.close()
        for ticket in self.tickets:
            with pytest.raises(SchedulerClosedError):
                await ticket


class CloseWithoutRelease(Close):
    def release(self):
        pass


class Leave(Drain):
    enters = False

    async def prepare(self):
        self.tickets = []

    async def play(self):
        async with self.scheduler:
            await Drain.prepare(self)

    async def check(self, *, cancelled):
        await turns(10)
        assert self.scheduler.ledger().pending == 0
        assert self.scheduler.snapshot().workers == 0


class ClockSleep(Scene):
    async def play(self):
        await self.clock.sleep(5)

    def release(self):
        self.clock.advance(5)

    async def check(self, *, cancelled):
        await self.clock.run_until_idle()
        assert self.clock.time() == 5


class ClockRuns(Scene):
    limits = ("1/10s",)

    async def prepare(self):
        self.tickets = await self.scheduler.submit_many(range(3))

    async def play(self):
        await self.clock.run_until_idle()

    def release(self):
        pass


class ClockAdvances(ClockRuns):
    async def play(self):
        await self.clock.advance(11)


# ---- Who awaits it


class Caller:
    """Awaits a scene in the plainest way."""

    first_turn = 0

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.was_cancelled = False
        self.inner: asyncio.Future | None = None
        self.task = asyncio.create_task(self.call(), name="caller")
        self.asked = False

    async def call(self) -> None:
        await self.watch()

    async def watch(self) -> None:
        try:
            await self.scene.play()
        except asyncio.CancelledError:
            self.was_cancelled = True
            if self.scene.others is not None:
                assert self.scene.scheduler.ledger().pending <= self.scene.others
            raise

    def cancel(self) -> None:
        self.asked = self.task.cancel()

    def done(self) -> bool:
        return self.task.done() and (self.inner is None or self.inner.done())

    def check(self) -> None:
        """A task that is cancelled ends cancelled, and was cancelled once."""
        assert self.task.cancelled() is self.asked
        assert self.task.cancelling() == self.asked
        if not self.asked:
            self.task.result()


class Gathers(Caller):
    async def call(self):
        await asyncio.gather(self.watch(), turns(3))


class Shields(Caller):
    """What is shielded goes on, and ends well."""

    async def call(self):
        self.inner = asyncio.create_task(self.watch(), name="inner")
        await asyncio.shield(self.inner)

    def check(self):
        super().check()
        if self.inner is not None:
            self.inner.result()


class Scoped(Caller):
    """Whoever is cancelled from inside ends as if nobody had been."""

    first_turn = 1
    cancelling: int

    def check(self):
        self.task.result()
        if self.was_cancelled:  # else a group whose child fails as it is left forgets to uncancel, before Python 3.13
            assert self.cancelling == 0


class TimesOut(Scoped):
    async def call(self):
        try:
            async with asyncio.timeout(None) as self.scope:
                await self.watch()
        except TimeoutError:
            assert self.asked
        self.cancelling = asyncio.current_task().cancelling()

    def cancel(self):
        self.asked = True
        self.scope.reschedule(asyncio.get_running_loop().time() - 1)


class SiblingError(Exception):
    pass


class Groups(Scoped):
    async def call(self):
        self.told = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as group:
                sibling = group.create_task(self.fail_when_told(), name="sibling")
                await self.watch()
                sibling.cancel()
        except* SiblingError:
            assert self.asked
        self.cancelling = asyncio.current_task().cancelling()

    async def fail_when_told(self):
        await self.told
        raise SiblingError

    def cancel(self):
        if not self.told.done():
            self.asked = True
            self.told.set_result(None)


# ---- The sweep

SCENES = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, Scene) and kind is not Scene]
CALLERS = [Caller, Gathers, Shields, TimesOut, Groups]

points: Counter[tuple[str, str]] = Counter()


async def perform(scene: Scene, call: type[Caller], cancel_at: int, *, cancel_first: bool) -> bool:
    """Play a scene and cancel it at that turn; false when it had ended by then."""
    if scene.enters:
        await scene.scheduler.__aenter__()
    await scene.prepare()
    caller = call(scene)
    for turn in range(max(cancel_at, RELEASED_AT) + 1):
        actions = [scene.release] if turn == RELEASED_AT else []
        if turn == cancel_at and not caller.done():
            actions.insert(0 if cancel_first else len(actions), caller.cancel)
        for action in actions:
            action()
        await asyncio.sleep(0)
    await until(caller.done)
    await scene.check(cancelled=caller.was_cancelled)
    await scene.settle()
    caller.check()
    await scene.scheduler.close()
    # A generator of targets that was left ends in a task of the loop's, whenever the garbage collector comes by.
    await until(lambda: not strangers())
    return caller.asked


async def sweep(kind: type[Scene], seed: int) -> int:
    """Cancel a scene at each turn, in each way."""
    cancelled = 0
    for call in CALLERS:
        for turn in count(call.first_turn):
            asked = await perform(kind(seed), call, turn, cancel_first=False)
            if asked and turn == RELEASED_AT:
                cancelled += await perform(kind(seed), call, turn, cancel_first=True)
            if not asked:
                break
            cancelled += 1
            assert turn < MOST_TURNS
    return cancelled


@pytest.mark.parametrize("kind", SCENES)
async def test_a_cancellation_at_any_turn_loses_nothing(kind):
    found = await sweep(kind, seed=0)
    points[kind.__name__, type(asyncio.get_running_loop()).__module__] += found
    assert found >= 2 * len(CALLERS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
@pytest.mark.parametrize("kind", SCENES)
async def test_a_cancellation_at_any_turn_loses_nothing_with_other_timing(kind, seed):
    assert await sweep(kind, seed) >= len(CALLERS)


def test_the_sweep_has_found_many_turns_to_cancel_at():
    if len(points) < len(SCENES):
        pytest.skip("not all of it ran")
    print(f"{points.total()} cancellations in {len(points)} sweeps")
    assert points.total() >= 40 * len(points)


# ---- Two wait, and the first goes

WAITING = [kind for kind in SCENES if "Without" in kind.__name__ and issubclass(kind, Fetch | Slot)] + [Submit, SubmitMany]


@pytest.mark.parametrize("kind", WAITING)
async def test_the_next_in_line_is_served_when_the_first_is_cancelled_before_or_after_it_was_woken(kind):
    for turns_after, cancel_first in [(0, True), (0, False), (1, False), (2, False), (3, False)]:
        scene = kind(0)
        scene.others = None
        async with scene.scheduler:
            await scene.prepare()
            first, second = Caller(scene), Caller(scene)
            await turns(RELEASED_AT)
            sent = scene.sent
            if cancel_first:
                first.cancel()
            scene.release()
            if not cancel_first:
                await turns(turns_after)
                first.cancel()
            await turns(MOST_TURNS)
            if not second.done():
                assert scene.sent > sent, "nobody has used what was set free"
                await scene.clock.run_until_idle()
            await until(second.done)
            second.task.result()
            await scene.settle()


@pytest.mark.parametrize("kind", [Submit, SubmitMany, SubmitManyByFunction])
async def test_those_who_wait_for_room_are_served_in_the_order_in_which_they_came(kind):
    scene = kind(0)
    scene.others = None
    async with scene.scheduler:
        await scene.prepare()
        callers = [Caller(scene) for _ in range(5)]
        served = []
        for caller in callers:
            caller.task.add_done_callback(served.append)
        await turns(RELEASED_AT)
        callers[2].cancel()
        scene.release()
        await until(lambda: len(served) == len(callers))
        assert [task for task in served if not task.cancelled()] == [
            caller.task for caller in callers if not caller.was_cancelled
        ]
        assert [caller.was_cancelled for caller in callers] == [False, False, True, False, False]
        await scene.settle()


@pytest.mark.parametrize("late", range(8))
async def test_a_map_that_was_woken_for_room_which_a_thread_took_stays_first_in_line(late):
    gate, served = asyncio.Event(), []

    async def handle(request):
        served.append(request.target)
        await gate.wait()
        return request.target

    async with RateLimitScheduler([Backend("api", handle)], capacity=1) as scheduler:
        scheduler.submit_nowait("blocker")
        mapped = asyncio.create_task(anext(scheduler.map(["map"])))
        await turns(RELEASED_AT)
        submitted = asyncio.create_task(scheduler.submit("submit"))
        await turns(RELEASED_AT)
        gate.set()
        await turns(late)
        with suppress(QueueFullError):
            await asyncio.wrap_future(scheduler.submit_threadsafe("thread"))
        await until(submitted.done)
        await until(lambda: "submit" in served)
        assert (await mapped).value == "map"
    assert [target for target in served if target != "thread"] == ["blocker", "map", "submit"]


async def test_virtual_time_does_not_pass_for_who_no_longer_sleeps():
    clock = ManualClock()
    sleepers = [asyncio.create_task(clock.sleep(seconds)) for seconds in (5, 1, 9)]
    await turns(1)
    for sleeper in (sleepers[0], sleepers[2]):
        sleeper.cancel()
    await clock.run_until_idle()
    assert clock.time() == 1
    await asyncio.wait(sleepers)


# ---- Everything at once


class Storm:
    """Callers of every kind, each of which may be cancelled, time out, break off or fail at any moment, in real time."""

    CONCURRENCY: ClassVar = {"loop": 4, "spare": 2, "thread": 3}

    def __init__(self, seed: int, isolation: str) -> None:
        self.random = random.Random(seed)
        self.sent, self.running = Counter(), Counter()
        self.lock = threading.Lock()
        quotas = {name: BackendQuota(TALLY, concurrency=cap) for name, cap in self.CONCURRENCY.items()}
        backends = [
            Backend("loop", self.handle, BackendQuota("50/50ms", TALLY, concurrency=self.CONCURRENCY["loop"]), timeout=0.003),
            Backend("spare", self.handle, quotas["spare"]),
            Backend("thread", self.handle_in_thread, quotas["thread"], timeout=0.02),
        ]
        retry = Retry(attempts=3, base=0.001, cap=0.002, budget=1)
        self.scheduler = RateLimitScheduler(backends, capacity=20, retry=retry, isolation=isolation, seed=seed)
        self.callers = [
            self.fetch,
            self.fetch_in_time,
            self.fetch_from_elsewhere,
            self.submit_many,
            self.submit_many_by_function,
            self.map,
            self.map_async_source,
            self.slot,
        ]

    @contextmanager
    def message(self, backend):
        with self.lock:
            self.sent[backend] += 1
            self.running[backend] += 1
            assert self.running[backend] <= self.CONCURRENCY[backend]
        try:
            yield
        finally:
            with self.lock:
                self.running[backend] -= 1

    def happens(self, odds):
        return self.random.random() < odds

    async def moment(self):
        await asyncio.sleep(self.random.random() * 0.005)

    async def handle(self, request):
        with self.message(request.backend):
            if self.happens(0.1):
                raise ConnectionError
            if self.happens(0.05):
                raise SystemExit
            if self.happens(0.05):
                asyncio.current_task().cancel()
            elif self.happens(0.05):
                with suppress(asyncio.CancelledError):
                    await self.moment()
                await self.moment()
            elif self.happens(0.7):
                await self.moment()
            return request.target

    def handle_in_thread(self, request):
        with self.message("thread"):
            time.sleep(0.0005)
            if request.target % 5 == 0:
                raise ConnectionError
            return request.target

    async def fetch(self):
        await self.scheduler.fetch(self.random.randrange(100))

    async def fetch_in_time(self):
        await self.scheduler.fetch(self.random.randrange(100), timeout=0.00001 + self.random.random() * 0.01)

    async def fetch_from_elsewhere(self):
        await asyncio.wrap_future(self.scheduler.submit_threadsafe(self.random.randrange(100)))

    async def submit_many(self):
        await self.scheduler.submit_many(range(self.random.randrange(1, 30)))

    async def submit_many_by_function(self):
        await self.scheduler.submit_many(range(self.random.randrange(1, 30)), priority=lambda target: target)

    async def map(self, source=None):
        targets = range(self.random.randrange(1, 40)) if source is None else source
        async for _ in self.scheduler.map(targets, ordered=self.happens(0.5), ahead=self.random.randrange(1, 10)):
            if self.happens(0.05):
                break
            if self.happens(0.5):
                await asyncio.sleep(0)

    async def map_async_source(self):
        await self.map(self.source())

    async def source(self):
        for number in range(self.random.randrange(1, 40)):
            if self.happens(0.3):
                await asyncio.sleep(0)
            yield number

    async def slot(self):
        backend = self.random.choice(["loop", "spare"])
        async with self.scheduler.slot(backend, timeout=self.random.choice([None, 0.005, 0.02])):
            with self.message(backend):
                await self.moment()

    async def call(self):
        with suppress(TidegateError, TimeoutError):
            async with asyncio.timeout(self.random.random() * 0.01 if self.happens(0.2) else None):
                await self.random.choice(self.callers)()

    async def rage(self, calls: int) -> None:
        """Call, and cancel about as often; everybody ends."""
        tasks = []
        for _ in range(calls):
            tasks.append(asyncio.create_task(self.call()))
            if self.happens(0.5):
                await asyncio.sleep(0)
            if self.happens(0.1):
                await self.moment()
            if self.happens(0.6):
                self.random.choice(tasks[-30:]).cancel()
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            assert task.cancelled() or task.exception() is None

    async def settle(self) -> None:
        """Nothing is lost and nothing left."""
        assert await self.scheduler.drain(timeout=30)
        async with asyncio.timeout(30):
            while any(state.in_flight for state in self.scheduler.snapshot().backends.values()):  # noqa: ASYNC110 - threads
                await asyncio.sleep(0.001)
        await turns(20)  # generators that were left end in tasks of their own
        ledger = self.scheduler.ledger()
        assert ledger.balanced
        assert ledger.pending == 0
        assert not self.running.total()
        for name, state in self.scheduler.snapshot().backends.items():
            assert state.strays == 0
            assert state.limits[-1].used >= self.sent[name], "a message without a permit"
        assert strangers() == set()


async def weather(seed, isolation):
    storm = Storm(seed, isolation)
    async with storm.scheduler:
        await storm.rage(200)
        await storm.settle()
    assert storm.scheduler.snapshot().workers == 0


@pytest.mark.parametrize("isolation", ["worker", "task"])
async def test_a_storm_of_cancellations_loses_nothing(isolation):
    for seed in range(2):
        await weather(seed, isolation)


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["worker", "task"])
@pytest.mark.parametrize("seed", range(2, 102))
async def test_a_hundred_storms_lose_nothing(seed, isolation):
    await weather(seed, isolation)
