"""Whatever a handler does, it ends its own request and hurts at most its own backend."""

import asyncio
import contextlib
import contextvars
import gc
import itertools
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    DeadlineExceededError,
    Outcome,
    RateLimitScheduler,
    RequestCancelledError,
    RequestFailedError,
    Retry,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None

LOOPS = [asyncio.new_event_loop] + ([uvloop.new_event_loop] if uvloop is not None else [])
ISOLATIONS = ["worker", "task"]
TWICE = Retry(attempts=2, base=0, cap=0)


async def echo(request):
    return request.target


async def turns(number):
    for _ in range(number):
        await asyncio.sleep(0)


async def until(holds):
    """Wait for what another thread, or the loop, is about to do."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a thread sets no event of the loop
            await asyncio.sleep(0.001)


async def settled(scheduler, *, expected_strays=0):
    """Nothing of it is left: no attempt, no request, no task."""
    await until(lambda: all(b.in_flight == expected_strays for b in scheduler.snapshot().backends.values()))
    ledger = scheduler.ledger()
    assert ledger.balanced
    assert ledger.pending == 0


# ---- What a handler keeps


KEEPERS = {
    "in a list": lambda kept, request: kept.append(lambda: request),
    "by its method": lambda kept, request: kept.append(lambda ack=request.ack: ack.__self__),
    "in a circle": lambda kept, request: kept.append(itertools.cycle([request]).__next__),
}


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_request_that_is_kept_stays_what_it_was(keeper, in_thread, isolation):
    """The object of an attempt is used for the next one, unless somebody has it."""
    kept, expected = [], []

    def keep(request):
        if request.target % 3:
            KEEPERS[keeper](kept, request)
            expected.append((request.target, request.backend, request.attempt, request.priority, repr(request)))
        if request.target % 5 == 0 and request.attempt == 1:
            raise ConnectionError
        return request.target

    async def handle(request):
        if request.target % 7 == 0:
            await asyncio.sleep(0)
        return keep(request)

    backends = [Backend(name, keep if in_thread else handle, BackendQuota(concurrency=2)) for name in ("a", "b")]
    retry = Retry(attempts=2, base=0, cap=0, budget=1)
    async with RateLimitScheduler(backends, retry=retry, isolation=isolation) as scheduler:
        tickets = await scheduler.submit_many(range(50), priority=lambda target: target)
        assert [(await ticket).value for ticket in tickets] == list(range(50))
    found = [get() for get in kept]
    assert [(r.target, r.backend, r.attempt, r.priority, repr(r)) for r in found] == expected
    assert len({id(request) for request in found}) == len(found)


async def test_a_task_that_outlives_its_handler_sees_its_own_request():
    seen = []

    async def look(request):
        before = request.target
        await turns(5)
        seen.append((before, request.target))

    async def handle(request):
        tasks.append(asyncio.create_task(look(request)))

    tasks = []
    async with RateLimitScheduler([Backend("api", handle, BackendQuota(concurrency=1))]) as scheduler:
        await scheduler.submit_many(range(20))
        await scheduler.drain()
    await asyncio.gather(*tasks)
    assert seen == [(target, target) for target in range(20)]


# ---- Exceptions


class Panic(BaseException):
    """What a panic in a compiled extension becomes: an exception that is no `Exception`."""


FAILURES = {
    "StopAsyncIteration": StopAsyncIteration(),
    "ExceptionGroup": ExceptionGroup("several", [ValueError(), KeyError()]),
    "TimeoutError": TimeoutError(),
}
WORSE = {
    "SystemExit": SystemExit(3),
    "GeneratorExit": GeneratorExit(),
    "CancelledError": asyncio.CancelledError(),
    "BaseExceptionGroup": BaseExceptionGroup("several", [SystemExit(3), ValueError()]),
    "Panic": Panic(),
}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("error", [*FAILURES.values(), *WORSE.values()], ids=[*FAILURES, *WORSE])
async def test_whatever_a_handler_raises_ends_its_own_request(error, in_thread, isolation):
    """An `Exception` is retried, anything worse is not; requests before, beside and after it are served."""

    def plain(request):
        if request.target == "bad":
            raise error
        return request.target

    async def on_loop(request):
        await asyncio.sleep(0)
        return plain(request)

    quota = BackendQuota("1000/h", concurrency=1)
    backends = [Backend("bad", plain if in_thread else on_loop, quota), Backend("other", echo)]
    async with RateLimitScheduler(backends, retry=TWICE, isolation=isolation) as scheduler:
        tickets = [await scheduler.submit(target, backends="bad") for target in ("a", "bad", "b", "bad", "c")]
        others = await scheduler.submit_many(range(10), backends="other")
        attempts = 2 if isinstance(error, Exception) else 1
        for ticket in tickets[1::2]:
            with pytest.raises(RequestFailedError) as failed:
                await ticket
            assert failed.value.__cause__ is error
            assert len(failed.value.attempts) == attempts
        assert [(await ticket).value for ticket in tickets[::2]] == ["a", "b", "c"]
        assert [(await ticket).value for ticket in others] == list(range(10))
        assert scheduler.snapshot().backends["bad"].limits[0].used == 3 + 2 * attempts
        await settled(scheduler)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("in_thread", [False, True])
async def test_stop_iteration_is_a_failure_like_any_other(in_thread, isolation):
    def plain(request):
        raise StopIteration(5)

    async def on_loop(request):
        raise StopIteration(5)

    backend = Backend("api", plain if in_thread else on_loop)
    async with RateLimitScheduler([backend], retry=TWICE, isolation=isolation) as scheduler:
        with pytest.raises(RequestFailedError) as failed:
            await scheduler.fetch("x")
        assert isinstance(failed.value.__cause__, RuntimeError)
        await settled(scheduler)


class UnshowableError(Exception):
    """An error whose every property is another error."""

    def __str__(self):
        raise ValueError

    __repr__ = __str__

    @property
    def response(self):
        raise RuntimeError

    @property
    def status(self):
        return 1 / 0


@pytest.mark.usefixtures("quiet")
async def test_an_error_and_a_target_that_cannot_be_shown_end_their_request():
    async def handle(request):
        raise UnshowableError

    async with RateLimitScheduler([Backend("api", handle)], retry=TWICE) as scheduler:
        with pytest.raises(RequestFailedError, match="UnshowableError") as failed:
            await scheduler.fetch(UnshowableError())
        assert len(failed.value.attempts) == 2
        ticket = await scheduler.submit(UnshowableError())
        assert ticket.cancel()
        with pytest.raises(RequestCancelledError, match="UnshowableError"):
            await ticket
        await settled(scheduler)


@pytest.mark.usefixtures("quiet")
async def test_a_value_that_cannot_be_shown_may_be_classified():
    async def handle(request):
        return UnshowableError()

    def classify(request, result):
        return Outcome.NEUTRAL

    async with RateLimitScheduler([Backend("api", handle, classify=classify)]) as scheduler:
        with pytest.raises(RequestFailedError, match="UnshowableError"):
            await scheduler.fetch("x")
        await settled(scheduler)


@pytest.mark.usefixtures("quiet")
async def test_messages_quote_a_part_of_what_is_long():
    async def handle(request):
        raise ValueError("v" * 100_000)

    async with RateLimitScheduler([Backend("api", handle)], retry=Retry(attempts=1)) as scheduler:
        with pytest.raises(RequestFailedError) as failed:
            await scheduler.fetch("t" * 100_000)
        assert len(str(failed.value)) < 1000
        assert len(failed.value.target) == 100_000


@pytest.mark.usefixtures("quiet")
async def test_a_traceback_begins_in_the_handler():
    async def handle(request):
        raise ValueError

    async with RateLimitScheduler([Backend("api", handle)], retry=Retry(attempts=1)) as scheduler:
        with pytest.raises(RequestFailedError) as failed:
            await scheduler.fetch("x")
        assert failed.value.__cause__.__traceback__.tb_frame.f_code is handle.__code__


@pytest.mark.usefixtures("quiet")
async def test_what_classify_raises_is_what_the_attempt_came_to():
    def classify(request, result):
        raise result if isinstance(result, Exception) else LookupError(result)

    async with RateLimitScheduler([Backend("api", echo, classify=classify)], retry=TWICE) as scheduler:
        with pytest.raises(RequestFailedError) as failed:
            await scheduler.fetch("x")
        assert isinstance(failed.value.__cause__, LookupError)
        await settled(scheduler)


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_keyboard_interrupt_settles_its_request_and_goes_on_to_the_caller_of_the_loop(isolation, new_loop):
    scheduler = None
    tickets = []

    async def handle(request):
        await asyncio.sleep(0)
        if request.target == "interrupt":
            raise KeyboardInterrupt
        return request.target

    async def main():
        nonlocal scheduler
        async with RateLimitScheduler([Backend("api", handle, "10/h")], isolation=isolation) as scheduler:
            tickets.extend(await scheduler.submit_many(["a", "interrupt"]))
            await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run(main())
        assert all(ticket.done() for ticket in tickets)
        assert scheduler.snapshot().backends["api"].in_flight == 0
        assert scheduler.snapshot().backends["api"].limits[0].used == 2
        ledger = scheduler.ledger()
        assert (ledger.delivered, ledger.dead, ledger.pending) == (1, 1, 0)


# ---- Cancellation


async def cancels_and_awaits(request):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def cancels_and_returns(request):
    asyncio.current_task().cancel()
    return request.target


async def cancels_and_swallows(request):
    asyncio.current_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    return request.target


async def cancels_and_takes_it_back(request):
    asyncio.current_task().cancel()
    asyncio.current_task().uncancel()
    return request.target


async def cancels_and_raises(request):
    asyncio.current_task().cancel()
    raise ValueError


async def times_out_inside(request):
    try:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    except TimeoutError:
        return request.target


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    "habit",
    [
        cancels_and_awaits,
        cancels_and_returns,
        cancels_and_swallows,
        cancels_and_takes_it_back,
        cancels_and_raises,
        times_out_inside,
    ],
)
async def test_no_other_request_sees_that_a_handler_cancelled_its_own_task(habit, isolation):
    seen = []

    async def handle(request):
        if request.target % 2:
            return await habit(request)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append(request.target)
            raise
        return request.target

    backend = Backend("api", handle, BackendQuota("1000/h", concurrency=1))
    async with RateLimitScheduler([backend], isolation=isolation, retry=Retry(attempts=1)) as scheduler:
        replies = [reply async for reply in scheduler.map(range(20), ordered=True)]
        assert seen == []
        assert [reply.value for reply in replies[::2]] == list(range(0, 20, 2))
        assert scheduler.snapshot().backends["api"].limits[0].used == 20
        await settled(scheduler)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_handler_that_ignores_its_cancellation_hurts_only_its_own_backend(isolation):
    """Its request moves on at its time-out, its concurrency stays taken, and all is free again when it returns."""
    clock = ManualClock()
    gate = asyncio.Event()

    async def stubborn(request):
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        return request.target

    backends = [Backend("stubborn", stubborn, BackendQuota(concurrency=1), timeout=60), Backend("other", echo)]
    scheduler = RateLimitScheduler(backends, clock=clock, isolation=isolation, retry=Retry(attempts=1))
    async with scheduler:
        late = await scheduler.submit("late", backends="stubborn")
        await turns(5)
        waits = await scheduler.submit("waits", backends="stubborn", timeout=7200)
        await clock.advance(61)
        with pytest.raises(RequestFailedError) as failed:
            await late
        assert isinstance(failed.value.__cause__, TimeoutError)
        state = scheduler.snapshot().backends["stubborn"]
        assert (state.state, state.in_flight, state.strays) == ("full", 1, 1)
        assert [reply.value async for reply in scheduler.map(range(100), backends="other")] == list(range(100))
        gate.set()
        assert (await waits).value == "waits"
        await settled(scheduler)


@pytest.mark.usefixtures("quiet")
async def test_a_worker_whose_attempt_timed_out_serves_nobody_else():
    """The cancellation of one attempt is not delivered to the next, however the two meet."""
    clock = ManualClock()
    workers = {}

    async def handle(request):
        try:
            if request.target % 2:
                await clock.sleep(100)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            assert request.target % 2, "somebody else's cancellation"
        finally:
            workers.setdefault(asyncio.current_task(), []).append(request.target)
        return request.target

    backend = Backend("api", handle, BackendQuota(concurrency=2), timeout=10)
    async with RateLimitScheduler([backend], clock=clock, retry=Retry(attempts=1)) as scheduler:
        tickets = await scheduler.submit_many(range(40))
        await clock.run_until_idle()
        assert [(await ticket).value for ticket in tickets[::2]] == list(range(0, 40, 2))
        for ticket in tickets[1::2]:
            with pytest.raises(RequestFailedError):
                await ticket
        await settled(scheduler)
    assert all(target % 2 == 0 for served in workers.values() for target in served[:-1])


@pytest.mark.usefixtures("quiet")
async def test_the_program_may_cancel_all_tasks_and_the_scheduler_goes_on():
    """Also workers that have not begun yet."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        for after in range(5):
            ticket = await scheduler.submit("x")
            await turns(after)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            with contextlib.suppress(RequestFailedError):  # if its attempt was running
                await ticket
            assert (await scheduler.fetch("y")).value == "y"
        await settled(scheduler)
    assert scheduler.snapshot().workers == 0


@pytest.mark.usefixtures("quiet")
async def test_a_worker_that_is_sent_home_as_the_scheduler_closes_leaves_once():
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo)], clock=clock) as scheduler:
        await scheduler.fetch("x")
        await turns(5)
        clock.advance(60)
        await scheduler.close()
    assert scheduler.snapshot().workers == 0


# ---- Threads


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_plain_function_may_return_an_awaitable(isolation):
    async def later(target):
        await asyncio.sleep(0)
        return target

    async with RateLimitScheduler([Backend("api", lambda request: later(request.target))], isolation=isolation) as scheduler:
        assert (await scheduler.fetch("x")).value == "x"


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("classify", [None, lambda request, result: Outcome.OK])
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_thread_that_was_given_up_keeps_its_concurrency_until_it_returns(isolation, classify):
    started, gate = threading.Event(), threading.Event()

    async def never():
        pytest.fail("the attempt was given up")

    def handle(request):
        if request.target == "blocks":
            started.set()
            gate.wait()
            return never()
        return request.target

    backend = Backend("api", handle, BackendQuota(concurrency=1), timeout=30, classify=classify)
    async with RateLimitScheduler([backend], isolation=isolation) as scheduler:
        blocks = await scheduler.submit("blocks")
        await until(started.is_set)
        waits = await scheduler.submit("waits")
        assert blocks.cancel()
        await turns(10)
        assert scheduler.snapshot().backends["api"].strays == 1
        assert not waits.done()
        gate.set()
        assert (await waits).value == "waits"
        await settled(scheduler)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("loop_turns", range(4))
async def test_a_thread_that_returns_as_its_attempt_is_given_up_frees_its_concurrency(loop_turns):
    started, gate, returned = threading.Event(), threading.Event(), threading.Event()

    def handle(request):
        started.set()
        gate.wait()
        returned.set()

    async with RateLimitScheduler([Backend("api", handle, BackendQuota(concurrency=1))]) as scheduler:
        ticket = await scheduler.submit("x")
        await until(started.is_set)
        gate.set()
        returned.wait()
        time.sleep(0.002)  # noqa: ASYNC251 - the thread is about to report to the loop, which must not run yet
        await turns(loop_turns)
        ticket.cancel()
        await settled(scheduler)


@pytest.mark.usefixtures("quiet")
async def test_the_threads_of_a_backend_are_no_more_than_its_concurrency_and_end_with_the_scheduler():
    seen = set()

    def handle(request):
        seen.add(threading.current_thread())
        return request.target

    async with RateLimitScheduler([Backend("api", handle, BackendQuota(concurrency=3))]) as scheduler:
        async for reply in scheduler.map(range(500)):
            assert reply.ok
        assert len(seen) <= 3
        assert all(thread.daemon for thread in seen)
    await until(lambda: not any(thread.is_alive() for thread in seen))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("end", ["cancel", "close", "time"])
async def test_a_thread_that_waits_to_send_more_hears_that_its_attempt_was_given_up(end):
    heard = threading.Event()
    threads = []

    def handle(request):
        threads.append(threading.current_thread())
        try:
            request.recharge_blocking()
        except RequestCancelledError:
            heard.set()
            raise

    timeout = 0.05 if end == "time" else None
    async with RateLimitScheduler([Backend("api", handle, "1/h", timeout=timeout)], retry=Retry(attempts=1)) as scheduler:
        ticket = await scheduler.submit("x")
        await until(lambda: threads)
        if end == "cancel":
            ticket.cancel()
        elif end == "close":
            await scheduler.close()
        await until(heard.is_set)
        with pytest.raises((RequestCancelledError, SchedulerClosedError, RequestFailedError)):
            await ticket
        await settled(scheduler)
    await until(lambda: not threads[0].is_alive())


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_thread_may_outlive_the_loop(new_loop):
    started, gate = threading.Event(), threading.Event()
    thread = None

    async def never():
        pytest.fail("there is no loop any more")

    def handle(request):
        nonlocal thread
        thread = threading.current_thread()
        started.set()
        gate.wait()
        request.ack()
        return never()

    async def main():
        async with RateLimitScheduler([Backend("api", handle)]) as scheduler:
            with pytest.raises(DeadlineExceededError):
                await scheduler.fetch("x", timeout=0.02)
            assert started.is_set()
            assert scheduler.snapshot().backends["api"].strays == 1

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    gate.set()
    thread.join(10)
    assert not thread.is_alive()
    gc.collect()


# ---- From inside


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_handler_may_use_the_scheduler_that_runs_it(isolation):
    async def handle(request):
        if request.target == 0:
            return 0
        return 1 + (await scheduler.fetch(request.target - 1)).value

    async with RateLimitScheduler([Backend("api", handle)], isolation=isolation) as scheduler:
        assert (await scheduler.fetch(20)).value == 20
        await settled(scheduler)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("awaits", [False, True])
async def test_a_handler_may_cancel_its_own_ticket(awaits, isolation):
    async def handle(request):
        if request.target == "own":
            assert ticket.cancel()
            if awaits:
                await asyncio.sleep(0)
                await asyncio.Event().wait()
        return request.target

    backend = Backend("api", handle, BackendQuota("100/h", concurrency=1))
    async with RateLimitScheduler([backend], isolation=isolation) as scheduler:
        ticket = await scheduler.submit("own")
        with pytest.raises(RequestCancelledError):
            await ticket
        assert (await scheduler.fetch("next")).value == "next"
        assert scheduler.snapshot().backends["api"].limits[0].used == 2
        await settled(scheduler)
        assert scheduler.ledger().cancelled == 1


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_handler_may_close_the_scheduler_that_runs_it(isolation):
    async def handle(request):
        if request.target == 0:
            await scheduler.close()
        await asyncio.Event().wait()

    async with RateLimitScheduler([Backend("api", handle)], isolation=isolation) as scheduler:
        for ticket in await scheduler.submit_many(range(5)):
            with pytest.raises(SchedulerClosedError):
                await ticket
    await settled(scheduler)
    await until(lambda: scheduler.snapshot().workers == 0)


@pytest.mark.usefixtures("quiet")
async def test_a_handlers_thread_may_close_the_scheduler():
    loop = asyncio.get_running_loop()

    def handle(request):
        asyncio.run_coroutine_threadsafe(scheduler.close(), loop).result()

    async with RateLimitScheduler([Backend("api", handle)]) as scheduler:
        with pytest.raises(SchedulerClosedError):
            await scheduler.fetch("x")
    await settled(scheduler)


@pytest.mark.usefixtures("quiet")
async def test_several_extra_messages_of_one_attempt_may_wait_at_once():
    clock = ManualClock()

    async def handle(request):
        await asyncio.gather(*[request.recharge() for _ in range(3)])
        return request.target

    async with RateLimitScheduler([Backend("api", handle, "2/min", timeout=None)], clock=clock) as scheduler:
        ticket = await scheduler.submit("x")
        await clock.run_until_idle()
        assert (await ticket).value == "x"


@pytest.mark.usefixtures("quiet")
async def test_an_extra_message_that_outlives_its_attempt_is_refused():
    """Who waits for it, a task or a thread, hears that it never may; nothing is charged."""
    clock = ManualClock()
    outcomes = []

    async def one_more(request):
        with pytest.raises((RequestCancelledError, RuntimeError)):
            await request.recharge()
        outcomes.append("task")

    def one_more_from_a_thread(request):
        with pytest.raises((RequestCancelledError, RuntimeError)):
            request.recharge_blocking()
        outcomes.append("thread")

    async def handle(request):
        waiting.append(asyncio.create_task(one_more(request)))
        waiting.append(asyncio.create_task(asyncio.to_thread(one_more_from_a_thread, request)))
        await asyncio.sleep(0.01)  # both have asked; if not, they are refused as they ask

    waiting = []
    async with RateLimitScheduler([Backend("api", handle, "1/min", timeout=None)], clock=clock) as scheduler:
        await (await scheduler.submit("x"))
        await asyncio.gather(*waiting)
        assert sorted(outcomes) == ["task", "thread"]
        assert scheduler.snapshot().backends["api"].limits[0].used == 1


# ---- Context

who = contextvars.ContextVar("who", default="nobody")


class Someone:
    """A context's value that can be seen to be freed."""


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("in_thread", [False, True])
async def test_with_a_task_of_its_own_an_attempt_sees_the_context_of_its_submitter_alone(in_thread):
    def look(request):
        seen = who.get()
        who.set("somebody else")
        return seen

    async def handle(request):
        seen = who.get()
        await asyncio.sleep(0)
        assert look(request) is seen
        return seen

    someones = [Someone() for _ in range(200)]
    refs = [weakref.ref(someone) for someone in someones]
    backend = Backend("api", look if in_thread else handle, BackendQuota(concurrency=7))
    async with RateLimitScheduler([backend], isolation="task") as scheduler:

        async def submit(someone):
            who.set(someone)
            assert (await scheduler.fetch("x")).value is someone

        async with asyncio.TaskGroup() as group:
            for someone in someones:
                group.create_task(submit(someone))
        assert who.get() == "nobody"
        del someone, someones, group
        gc.collect()
        await until(lambda: all(ref() is None for ref in refs))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("in_thread", [False, True])
async def test_in_a_worker_an_attempt_sees_the_context_of_the_scheduler(in_thread):
    def look(request):
        return who.get()

    async def handle(request):
        return who.get()

    who.set("scheduler")
    async with RateLimitScheduler([Backend("api", look if in_thread else handle)]) as scheduler:
        who.set("submitter")
        replies = [reply async for reply in scheduler.map(range(50))]
        assert {reply.value for reply in replies} == {"scheduler"}


# ---- The end


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("error", [ValueError(), SystemExit(), asyncio.CancelledError()], ids=lambda error: type(error).__name__)
async def test_leaving_by_an_exception_closes(error):
    cancelled = []

    async def handle(request):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request.target)
            raise

    async def main():
        async with scheduler:
            tickets.extend(await scheduler.submit_many(range(5)))
            await turns(5)
            raise error

    tickets = []
    scheduler = RateLimitScheduler([Backend("api", handle, BackendQuota(concurrency=2))])
    with pytest.raises(type(error)):
        await main()
    assert cancelled == [0, 1]
    for ticket in tickets:
        with pytest.raises(SchedulerClosedError):
            await ticket
    await settled(scheduler)
    assert scheduler.ledger().cancelled == 5


@pytest.mark.usefixtures("quiet")
async def test_leaving_well_finishes_what_was_accepted():
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        tickets = await scheduler.submit_many(range(50))
    assert [(await ticket).value for ticket in tickets] == list(range(50))


@pytest.mark.usefixtures("quiet")
async def test_who_waits_when_the_scheduler_closes_hears_of_it():
    """For room, for events, for a silent source, for a permit: and threads that come too late."""
    gate = asyncio.Event()

    async def handle(request):
        await gate.wait()

    async def silent():
        await asyncio.Event().wait()
        yield

    async def all_of(iterator):
        return [item async for item in iterator]

    async with RateLimitScheduler([Backend("api", handle, BackendQuota(concurrency=1))], capacity=2) as scheduler:

        async def enter():
            async with scheduler.slot("api"):
                pytest.fail("there is no permit")

        await scheduler.submit("runs")
        refused = [asyncio.create_task(enter()), asyncio.create_task(scheduler.submit("waits for room"))]
        ended = [asyncio.create_task(all_of(iterator)) for iterator in (scheduler.events(), scheduler.map(silent()))]
        await turns(5)
        await scheduler.close()
        for task in refused:
            with pytest.raises(SchedulerClosedError):
                await task
        for task in ended:
            assert await task == []
        for late in (scheduler.submit_nowait, scheduler.submit_threadsafe, lambda target: scheduler.map([target])):
            with pytest.raises(SchedulerClosedError):
                late("x")
        assert await all_of(scheduler.events()) == []


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_hundred_programs_that_end_with_work_pending_leave_nothing(new_loop, caplog):
    """Nothing is destroyed while pending, nothing unraisable: warnings are errors here."""
    kept = []

    def in_thread(request):
        time.sleep(0.001)

    async def on_loop(request):
        await asyncio.sleep(request.target % 3)

    async def source():
        for number in itertools.count():
            yield number
            await asyncio.sleep(0)

    async def main(seed):
        async with RateLimitScheduler([Backend("loop", on_loop, "20/s"), Backend("thread", in_thread)], seed=seed) as scheduler:
            kept.extend(await scheduler.submit_many(range(10)))
            kept.extend([scheduler.submit_threadsafe(1), scheduler.map(range(50)), scheduler.map(source())])
            await anext(kept[-2 + seed % 2])
            await turns(seed % 7)
            if seed % 4 == 0:
                raise LookupError
            if seed % 4 == 1:
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
            if seed % 4 == 2:  # and again while it closes
                loop, task = asyncio.get_running_loop(), asyncio.current_task()
                loop.call_soon(loop.call_soon, task.cancel)
                task.cancel()
                await asyncio.sleep(0)
            await scheduler.close()

    for seed in range(100):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            try:
                runner.run(main(seed))
            except (LookupError, asyncio.CancelledError):
                assert seed % 4 != 3
        if seed % 10 == 0:
            kept.clear()
            gc.collect()
    kept.clear()
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_thread_is_told_when_the_loop_has_gone_without_leaving_the_scheduler(new_loop):
    scheduler = RateLimitScheduler([Backend("api", echo)])

    async def main():
        await scheduler.__aenter__()
        assert (await scheduler.fetch("x")).value == "x"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    with pytest.raises(SchedulerClosedError):
        scheduler.submit_threadsafe("y").result(timeout=10)
    with pytest.raises(SchedulerClosedError):
        scheduler.submit_threadsafe("z")


# ---- Whole programs

PROGRAM = """
import asyncio, sys, threading
from tidegate import *

async def forever(request):
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if {stubborn}:
            await asyncio.Event().wait()
        raise

def blocks(request):
    threading.Event().wait()

async def main():
    async with RateLimitScheduler([Backend("loop", forever), Backend("thread", blocks)]) as scheduler:
        tickets = await scheduler.submit_many(range(20))
        await asyncio.sleep(0.05)
{body}

if {on_uvloop}:
    import uvloop as loops
else:
    import asyncio as loops

with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
    runner.run(main())
"""
WAIT_FOR_CTRL_C = """
print("ready", flush=True)
try:
    await asyncio.Event().wait()
except asyncio.CancelledError:
    print("cancelled", flush=True)
    raise
"""


def program(body, *, on_uvloop, stubborn=False):
    """Start a program that has attempts on the loop and in threads that never end."""
    code = PROGRAM.format(body=textwrap.indent(body, " " * 8), on_uvloop=on_uvloop, stubborn=stubborn)
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("on_uvloop", [False, True] if uvloop is not None else [False])
def test_a_thread_that_never_returns_does_not_keep_the_program(on_uvloop):
    started = time.monotonic()
    body = """
state = scheduler.snapshot().backends["thread"]
print(state.in_flight > 0, state.strays)
await scheduler.close()
state = scheduler.snapshot().backends["thread"]
print(state.in_flight == state.strays > 0)
"""
    process = program(body, on_uvloop=on_uvloop)
    out, err = process.communicate(timeout=30)
    assert (out.split(), err, process.returncode) == (["True", "0", "True"], "", 0)
    assert time.monotonic() - started < 20


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize("on_uvloop", [False, True] if uvloop is not None else [False])
def test_ctrl_c_closes_a_running_scheduler(on_uvloop):
    process = program(WAIT_FOR_CTRL_C, on_uvloop=on_uvloop)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out == "cancelled\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "Task was destroyed" not in err
    assert "never" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize("on_uvloop", [False, True] if uvloop is not None else [False])
def test_a_second_ctrl_c_does_not_wait_for_handlers_that_ignore_the_first(on_uvloop):
    process = program(WAIT_FOR_CTRL_C, on_uvloop=on_uvloop, stubborn=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cancelled\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    again = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - again < 4
    assert err.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_closing_waits_five_seconds_for_handlers_that_ignore_it(isolation, caplog):
    gate = asyncio.Event()

    async def stubborn(request):
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    started = time.monotonic()
    async with RateLimitScheduler([Backend("api", stubborn)], isolation=isolation) as scheduler:
        await scheduler.submit_many(range(3))
        await turns(5)
        await scheduler.close()
    assert 5 <= time.monotonic() - started < 7
    assert "3 handlers ignored their cancellation" in caplog.text
    assert scheduler.snapshot().backends["api"].strays == 3
    gate.set()
    await settled(scheduler)
    await until(lambda: scheduler.snapshot().workers == 0)


async def test_a_backend_that_is_down_says_what_it_failed_with(caplog):
    """Who has made a mistake in a handler reads it in the log, although the requests wait."""
    clock = ManualClock()

    async def handle(request):
        return request.tarket

    async with RateLimitScheduler([Backend("api", handle)], clock=clock) as scheduler:
        await scheduler.submit_many(range(50))
        await clock.run_for(1)
        assert scheduler.snapshot().backends["api"].state == "down"
        await scheduler.close()
    (record,) = [record for record in caplog.records if "is down" in record.message]
    assert "attempts failed, last with AttributeError" in record.message
    assert "tarket" in record.message
