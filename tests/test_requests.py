"""One request from its submission to its reply: tickets, replies, deadlines, time-outs, outcomes and retries."""

import asyncio
import concurrent.futures
import gc
import logging
from datetime import timedelta
from email.message import Message
from http import HTTPStatus
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import (
    Backend,
    BackendError,
    BackendQuota,
    BackendRateLimitedError,
    BackendRejectedError,
    BackendUnavailableError,
    ConfigError,
    DeadlineExceededError,
    HealthMonitor,
    Ledger,
    Outcome,
    Priority,
    RateLimitScheduler,
    Reply,
    RequestCancelledError,
    RequestFailedError,
    Retry,
    SchedulerClosedError,
    TidegateError,
)
from tidegate.testing import ManualClock

ONCE = Retry(attempts=1)
AT_ONCE = Retry(attempts=4, base=0, budget=1)


class StatusError(Exception):
    """What an HTTP client raises."""

    def __init__(self, status, headers=None, *, name="status"):
        super().__init__(f"HTTP {status}")
        setattr(self, name, status)
        self.headers = headers if headers is not None else {}


async def echo(request):
    return request.target


def counts(scheduler):
    """The ledger's counts that are not zero."""
    ledger = scheduler.ledger()
    assert ledger.balanced
    return {name: count for name in Ledger.__slots__ if (count := getattr(ledger, name))}


async def run(clock, awaitable):
    """Let virtual time pass until nothing is pending, and say what came of `awaitable`."""
    task = asyncio.ensure_future(awaitable)
    await clock.run_until_idle()
    assert task.done(), "nothing is pending and nobody sleeps, and still it waits"
    return await task


async def failure(awaitable):
    """The error that a request ends with."""
    with pytest.raises(TidegateError) as caught:
        await awaitable
    return caught.value


def flaky(*outcomes):
    """A handler that answers with these in turn: values are returned, exceptions raised; the last one for ever."""
    calls = []

    async def fetch(request):
        calls.append(request.attempt)
        outcome = outcomes[min(len(calls), len(outcomes)) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    fetch.calls = calls
    return fetch


# ---- Handing in


async def test_ways_to_hand_in_a_request():
    """Each way hands in what the handler gets, and gives the same reply."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        tickets = [
            await scheduler.submit("submit"),
            scheduler.submit_nowait("submit_nowait"),
            *await scheduler.submit_many(["submit_many 1", "submit_many 2"]),
        ]
        replies = [await scheduler.fetch("fetch"), *[await ticket for ticket in tickets]]
        replies.append(await asyncio.wrap_future(scheduler.submit_threadsafe("submit_threadsafe")))
        replies += [reply async for reply in scheduler.map(["map"])]
        assert [reply.value for reply in replies] == [
            *["fetch", "submit", "submit_nowait", "submit_many 1", "submit_many 2", "submit_threadsafe", "map"]
        ]
        assert all(isinstance(reply, Reply) and reply.ok for reply in replies)
    assert counts(scheduler) == {"accepted": 7, "delivered": 7}


async def test_targets_are_any_objects():
    """A target may be anything, hashable or not; the handler and the reply have that very object."""
    targets = [None, [], {}, object(), "text", 5, ValueError("no"), float("nan"), lambda: None, asyncio.Event()]
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        for target in targets:
            reply = await scheduler.fetch(target)
            assert reply.target is target
            assert reply.value is target


async def test_request():
    """A handler sees what was asked for: target, backend, attempt, priority, deadline."""
    seen = []
    clock = ManualClock()

    async def fetch(request):
        seen.append(request)

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        await clock.advance(5)
        await scheduler.fetch("plain")
        await scheduler.fetch("urgent", priority=Priority.HIGH, timeout=timedelta(seconds=2))
        await scheduler.fetch("idle", priority=255)
    plain, urgent, idle = seen
    assert (plain.target, plain.backend, plain.attempt, plain.priority) == ("plain", "api", 1, Priority.NORMAL)
    assert (plain.deadline, plain.account, plain.scheduled_for, dict(plain.scopes)) == (None, None, None, {})
    assert (urgent.priority, idle.priority) == (64, 255)
    assert urgent.deadline == pytest.approx(7)
    assert repr(plain) == "<Request 'plain' at api, attempt 1>"
    with pytest.raises(AttributeError):
        plain.target = "other"


async def test_deadline_is_on_the_clock_of_the_loop():
    """In real time a request's deadline is an instant of the loop's clock."""
    seen = []

    async def fetch(request):
        seen.append(request.deadline)

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:
        before = asyncio.get_running_loop().time()
        await scheduler.fetch("target", timeout=100)
        after = asyncio.get_running_loop().time()
    assert before + 99.9 < seen[0] < after + 100.1


# ---- Tickets


async def test_ticket_is_awaited_repeatedly():
    """A ticket may be awaited again and again, and gives the same reply each time."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        ticket = await scheduler.submit("target")
        reply = await ticket
        assert await ticket is reply
        assert ticket.done()
        assert not ticket.cancel()


async def test_ticket_is_awaited_by_many():
    """Several tasks may await one ticket; cancelling one of them neither cancels the request nor disturbs the others."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(1)
        return request.target

    async def wait(ticket):
        return await ticket

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        ticket = await scheduler.submit("target")
        tasks = [asyncio.create_task(wait(ticket)) for _ in range(5)]
        await clock.advance(0.5)
        tasks[0].cancel()
        await clock.run_until_idle()
        assert tasks[0].cancelled()
        assert {(await task).value for task in tasks[1:]} == {"target"}


async def test_ticket_of_a_failed_request():
    """Awaiting the ticket of a failed request raises its error, for everyone and each time."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", flaky(ValueError("no")))], retry=ONCE, clock=clock) as scheduler:
        ticket = await scheduler.submit("target")
        errors = await run(clock, asyncio.gather(*[failure(ticket) for _ in range(3)]))
        errors.append(await failure(ticket))
        assert {type(error) for error in errors} == {RequestFailedError}
        assert {str(error) for error in errors} == {"the request for 'target' failed after 1 attempt: ValueError: no"}


async def test_ids():
    """Each ticket has an id of its own, also when requests have ended in between."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        ids = set()
        for _ in range(20):
            tickets = await scheduler.submit_many(range(5))
            ids |= {ticket.id for ticket in tickets}
            await asyncio.gather(*tickets)
        assert len(ids) == 100
        assert all(isinstance(number, int) for number in ids)


async def test_repr_of_a_ticket():
    """A ticket says whether it is done."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        ticket = await scheduler.submit("target")
        assert repr(ticket) == f"<Ticket {ticket.id:#x}: pending>"
        await ticket
        assert repr(ticket) == f"<Ticket {ticket.id:#x}: done>"


async def test_fetch_that_is_cancelled():
    """Cancelling `fetch` cancels its request, waiting or running."""
    clock = ManualClock()
    started = []

    async def fetch(request):
        started.append(request.target)
        await clock.sleep(10)

    async with RateLimitScheduler([Backend("api", fetch, "1/h")], clock=clock) as scheduler:
        running, waiting = (asyncio.create_task(scheduler.fetch(target)) for target in ("running", "waiting"))
        await clock.advance(1)
        assert started == ["running"]
        for task in (running, waiting):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert counts(scheduler) == {"accepted": 2, "cancelled": 2}


async def test_unheard_failure_is_said_once(caplog):
    """A failed request whose ticket nobody awaited is said in the log, once; a cancelled one, or one that was heard, is not."""
    caplog.set_level(logging.WARNING, "tidegate")
    async with RateLimitScheduler([Backend("api", flaky(ValueError("no")))], retry=ONCE) as scheduler:
        heard, unheard, cancelled = await scheduler.submit_many(["heard", "unheard", "cancelled"])
        cancelled.cancel()
        await failure(heard)
        await scheduler.drain()
    del heard, unheard, cancelled
    gc.collect()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["nobody awaited a request that failed: the request for 'unheard' failed after 1 attempt: ValueError: no"]


# ---- Cancelling


@pytest.mark.parametrize("stage", ["new", "limited", "running", "back-off", "done"])
async def test_cancel(stage):
    """A request is cancelled at any stage before it is done: its waiters get `RequestCancelledError`, it never runs again."""
    clock = ManualClock()
    calls = []

    async def fetch(request):
        calls.append(request.target)
        if request.target == "running":
            await clock.sleep(10)
        if request.target == "back-off":
            raise ConnectionError
        return request.target

    retry = Retry(attempts=2, base=100, budget=1)
    async with RateLimitScheduler([Backend("api", fetch, "2/h")], retry=retry, clock=clock, seed=1) as scheduler:
        if stage == "limited":
            await scheduler.submit_many(["first", "second"])
            await clock.advance(1)
        ticket = await scheduler.submit(stage)
        waiter = asyncio.create_task(failure(ticket)) if stage != "done" else None
        if stage != "new":
            await clock.advance(1)
        if stage == "done":
            assert not ticket.cancel()
            assert (await ticket).value == "done"
            return
        before = list(calls)
        assert before == {"new": [], "limited": ["first", "second"]}.get(stage, [stage])
        assert not ticket.done()
        assert ticket.cancel()
        assert ticket.done()
        assert not ticket.cancel()
        for error in (await run(clock, waiter), await failure(ticket)):
            assert type(error) is RequestCancelledError
            assert str(error) == f"the request for {stage!r} was cancelled"
            assert error.target == stage
        await clock.advance(1000)
        assert calls == before
        assert counts(scheduler)["cancelled"] == 1
        assert scheduler.ledger().pending == 0


async def test_cancelled_request_leaves_its_place():
    """What was cancelled before it was sent is not charged: the next in line takes its place."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo, "1/h")], clock=clock) as scheduler:
        first, second, third = await scheduler.submit_many(["first", "second", "third"])
        first.cancel()
        second.cancel()
        assert (await run(clock, third)).value == "third"
        assert clock.time() == 0


# ---- Replies


async def test_reply():
    """A reply has the target, the value, the backend, the attempts, and is frozen."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        reply = await scheduler.fetch("target")
    assert (reply.target, reply.ok, reply.value, reply.error, reply.backend, reply.attempts) == (
        *("target", True, "target", None, "api", 1),
    )
    assert repr(reply) == "<Reply 'target': ok by api, 1 attempt>"
    with pytest.raises(AttributeError):
        reply.value = 5


async def test_failed_reply():
    """The value of a failed reply raises its error; the reply has all the rest."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", flaky(ValueError("no")))], retry=AT_ONCE, clock=clock) as scheduler:
        (reply,) = await run(clock, collect(scheduler.map(["target"])))
    assert (reply.target, reply.ok, reply.backend, reply.attempts) == ("target", False, "api", 4)
    assert isinstance(reply.error, RequestFailedError)
    for _ in range(2):
        with pytest.raises(RequestFailedError) as caught:
            _ = reply.value
        assert caught.value is reply.error
    assert repr(reply) == "<Reply 'target': RequestFailedError by api, 4 attempts>"


async def collect(stream):
    return [reply async for reply in stream]


async def test_value_that_is_an_exception():
    """A handler that returns an exception has a value, as with any other object."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        error = ValueError("no")
        reply = await scheduler.fetch(error)
    assert reply.ok
    assert reply.value is error


WAITS = ["queue", "limit", "concurrency", "backoff", "attempt", "consumer"]


async def test_waits():
    """The waits of a reply say what its time went to."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(3)
        if request.attempt == 1 and request.target == "flaky":
            raise ConnectionError
        return request.target

    async with RateLimitScheduler(
        [Backend("slow", fetch, "1/min"), Backend("narrow", fetch, "100/s")], clock=clock, retry=Retry(base=8, budget=1), seed=3
    ) as scheduler:
        tickets = await scheduler.submit_many(["first", "second"], backends="slow")
        await clock.run_until_idle()
        first, second = [await ticket for ticket in tickets]
        flaky = await run(clock, scheduler.fetch("flaky", backends="narrow"))
    assert list(first.waits) == WAITS
    assert first.waits["attempt"] == 3
    assert second.waits["limit"] == pytest.approx(63, abs=0.02)
    assert second.waits["attempt"] == 3
    assert first.waits["consumer"] == pytest.approx(63, abs=0.02)
    assert (first.waits["queue"], second.waits["backoff"]) == (0, 0)
    assert flaky.waits["attempt"] == 6
    assert 0 < flaky.waits["backoff"] <= 8


async def test_wait_for_concurrency():
    """Time in which all of a backend's concurrency was in use is `concurrency`."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(3)

    async with RateLimitScheduler([Backend("api", fetch, BackendQuota(concurrency=1))], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(3))
        await clock.run_until_idle()
        waits = [(await ticket).waits for ticket in tickets]
    assert [round(wait["concurrency"], 2) for wait in waits] == [0, 3, 6]


@given(
    delays=st.lists(st.floats(0, 5), min_size=1, max_size=12),
    failing=st.sets(st.integers(0, 11)),
    quota=st.sampled_from(["3/10s", "2/s burst 2", "100/s"]),
    pause=st.floats(0.001, 20),
)
async def test_waits_add_up(delays, failing, quota, pause):
    """Whatever happens to a request, its waits are not negative and add up to the time from acceptance to the reply."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(delays[request.target])
        if request.target in failing and request.attempt == 1:
            raise ConnectionError

    retry = Retry(base=4, budget=1)
    async with RateLimitScheduler([Backend("api", fetch, quota)], clock=clock, retry=retry, seed=7) as scheduler:
        accepted = clock.time()
        tickets = await scheduler.submit_many(range(len(delays)))
        await clock.run_until_idle()
        for ticket in tickets:
            await clock.advance(pause)
            waits = (await ticket).waits
            assert min(waits.values()) >= 0
            assert sum(waits.values()) == pytest.approx(clock.time() - accepted, abs=1e-6)


# ---- Deadlines


async def test_deadline_while_queued():
    """A request whose deadline comes while it waits ends as expired then, and no attempt is made."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(100)

    quota = BackendQuota(concurrency=1)
    async with RateLimitScheduler([Backend("api", fetch, quota)], clock=clock) as scheduler:
        await scheduler.submit("first")
        ticket = await scheduler.submit("second", timeout=7)
        error = asyncio.create_task(failure(ticket))
        await clock.advance(6.9)
        assert not ticket.done()
        await clock.advance(0.2)
        assert type(await error) is DeadlineExceededError
        assert isinstance(error.result(), TimeoutError)
        assert (
            str(error.result()) == "the request for 'second' missed its deadline while it was queued, 7.1 s after it was accepted"
        )
        assert (error.result().target, error.result().stage) == ("second", "queued")
        assert error.result().after == pytest.approx(7.1, abs=0.01)
        assert counts(scheduler) == {"accepted": 2, "leased": 1, "expired": 1}
        await clock.run_until_idle()


async def test_deadline_while_leased():
    """A deadline cancels the running attempt: the request is expired and not retried, the backend is free again."""
    clock = ManualClock()
    cancelled = []

    async def fetch(request):
        try:
            await clock.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(clock.time())
            raise

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        error = await run(clock, failure(scheduler.fetch("target", timeout=timedelta(seconds=7))))
        assert type(error) is DeadlineExceededError
        assert (error.stage, round(error.after, 2), [round(at, 2) for at in cancelled]) == ("leased", 7, [7])
        assert counts(scheduler) == {"accepted": 1, "expired": 1}
        assert scheduler.snapshot().backends["api"].in_flight == 0


async def test_deadline_in_back_off():
    """A deadline that comes between two attempts ends the request."""
    clock = ManualClock()
    handler = flaky(ConnectionError("no"))
    retry = Retry(base=60, cap=60, budget=1)
    async with RateLimitScheduler([Backend("api", handler)], clock=clock, retry=retry, seed=1) as scheduler:
        error = await run(clock, failure(scheduler.fetch("target", timeout=5)))
        assert type(error) is DeadlineExceededError
        assert (error.stage, round(error.after, 2)) == ("queued", 5)
        assert handler.calls == [1]


async def test_hopeless_request_expires_early():
    """A request that no limit will admit before its deadline is told so at once, and costs nothing."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo, "1/h")], clock=clock) as scheduler:
        await scheduler.fetch("first")
        error = await failure(scheduler.fetch("second", timeout=60))
        assert type(error) is DeadlineExceededError
        assert clock.time() == 0
        third = asyncio.create_task(scheduler.fetch("third", timeout=3700))
        await clock.run_until_idle()
        assert (await third).value == "third"
        assert clock.time() == pytest.approx(3600, rel=0.001)


async def test_deadline_is_met():
    """A reply in time is a reply: its deadline does nothing afterwards."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(1)
        return request.target

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        reply = await run(clock, scheduler.fetch("target", timeout=1.5))
        assert reply.ok
        await clock.advance(10)
        assert counts(scheduler) == {"accepted": 1, "delivered": 1}


# ---- Attempts that take too long


async def test_attempt_that_times_out():
    """An attempt that takes too long is cancelled and costs an attempt; the request is tried again."""
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append(clock.time())
        await clock.sleep(1 if request.attempt == 3 else 1000)
        return request.attempt

    async with RateLimitScheduler([Backend("api", fetch, timeout=10)], retry=AT_ONCE, clock=clock) as scheduler:
        reply = await run(clock, scheduler.fetch("target"))
    assert (reply.value, reply.attempts) == (3, 3)
    assert [round(start) for start in starts] == [0, 10, 20]
    assert clock.time() == pytest.approx(21, abs=0.01)


async def test_all_attempts_time_out():
    """A request whose every attempt takes too long fails with each of them, and a `TimeoutError` as the cause."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(1000)

    backend = Backend("api", fetch, timeout=timedelta(seconds=10))
    async with RateLimitScheduler([backend], retry=Retry(attempts=2, base=0), clock=clock) as scheduler:
        error = await run(clock, failure(scheduler.fetch("target")))
        assert type(error) is RequestFailedError
        assert str(error) == "the request for 'target' failed after 2 attempts: TimeoutError: no reply from api in 10 s"
        assert isinstance(error.__cause__, TimeoutError)
        assert [(type(attempt), attempt.backend, attempt.attempt) for attempt in error.attempts] == [
            *((BackendUnavailableError, "api", 1), (BackendUnavailableError, "api", 2)),
        ]
        assert counts(scheduler) == {"accepted": 1, "dead": 1}


async def test_no_time_out():
    """With `timeout=None` an attempt may take for ever."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(100_000)
        return request.target

    async with RateLimitScheduler([Backend("api", fetch, timeout=None)], clock=clock) as scheduler:
        assert (await run(clock, scheduler.fetch("target"))).attempts == 1


# ---- Outcomes


def with_response(status, headers=None, name="status_code"):
    """An exception in the manner of requests and httpx: the answer is on `.response`."""
    error = Exception(f"HTTP {status}")
    error.response = SimpleNamespace(**{name: status}, headers=headers or {})
    return error


CARRIERS = {
    "status": StatusError,
    "status_code": lambda status, headers=None: StatusError(status, headers, name="status_code"),
    "code": lambda status, headers=None: StatusError(status, headers, name="code"),
    "response.status_code": with_response,
    "response.status": lambda status, headers=None: with_response(status, headers, "status"),
}
FAILED = [500, 501, 502, 503, 504, 599, 408]
NEUTRAL = [400, 401, 403, 404, 405, 409, 410, 422, 451, 499, 100, 200, 304]


async def outcome_of(exception):
    """What an exception of a handler comes to: how often it was tried, and how the request ended."""
    clock = ManualClock()
    handler = flaky(exception, exception, "value")
    async with RateLimitScheduler([Backend("api", handler, "100/s")], clock=clock, retry=AT_ONCE) as scheduler:
        (reply,) = await run(clock, collect(scheduler.map(["target"])))
    return handler.calls, reply


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_status(carrier):
    """The status that an exception carries, wherever the known clients have it, says what it means."""
    for status in FAILED:
        calls, reply = await outcome_of(CARRIERS[carrier](status))
        assert (calls, reply.ok, reply.attempts) == ([1, 2, 3], True, 3), status
    for status in NEUTRAL:
        calls, reply = await outcome_of(CARRIERS[carrier](status))
        assert (calls, reply.ok, reply.attempts) == ([1], False, 1), status
        assert [type(attempt) for attempt in reply.error.attempts] == [BackendRejectedError]
    for rejected in (CARRIERS[carrier](429), CARRIERS[carrier](503, {"Retry-After": "1"})):
        calls, reply = await outcome_of(rejected)
        assert (calls, reply.ok, reply.attempts) == ([1, 1, 1], True, 1)


def odd_code():
    error = Exception("code is a method, as in gRPC")
    error.code = lambda: 429
    return error


class HostileError(Exception):
    @property
    def status(self):
        raise RuntimeError

    @property
    def response(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "exception",
    [
        *(
            Exception("no"),
            ValueError("no"),
            ConnectionResetError(),
            TimeoutError(),
            OSError(5, "no"),
            odd_code(),
            HostileError(),
        ),
        *(
            StatusError(99),
            StatusError(600),
            StatusError(-1),
            StatusError("429"),
            StatusError(None),
            StatusError(True),
            StatusError(429.0),
        ),
    ],
    ids=repr,
)
async def test_exception_without_a_status(exception):
    """Any other exception is a failure, also when what looks like its status is none."""
    calls, reply = await outcome_of(exception)
    assert (calls, reply.ok, reply.attempts) == ([1, 2, 3], True, 3)


async def test_own_errors_of_a_handler():
    """A handler may raise the errors of an attempt itself; they are kept as they are."""
    clock = ManualClock()
    async with RateLimitScheduler(
        [Backend("api", flaky(BackendUnavailableError("down")))], clock=clock, retry=AT_ONCE
    ) as scheduler:
        error = await run(clock, failure(scheduler.fetch("target")))
        assert [type(attempt) for attempt in error.attempts] == [BackendUnavailableError] * 4
        assert [attempt.backend for attempt in error.attempts] == ["api"] * 4
        assert str(error.__cause__) == "down"


async def test_own_errors_mean_what_they_say():
    """`BackendRejectedError` of a handler is not tried again; `BackendRateLimitedError` costs no attempt and waits as it says."""
    calls, reply = await outcome_of(BackendRejectedError("no"))
    assert (calls, reply.ok) == ([1], False)
    calls, reply = await outcome_of(BackendRateLimitedError("no"))
    assert (calls, reply.ok) == ([1, 1, 1], True)
    for retry_after, wait in [(17, 17), (0.25, 0.25), (1e-9, 0), (None, 20), ("soon", 20), (float("nan"), 20), (-1, 20)]:
        starts = await attempts_after(raising(BackendRateLimitedError("no", retry_after=retry_after)), "100/20s window")
        assert [round(start, 3) for start in starts] == [0, wait]


# ---- RequestFailedError


async def test_request_failed_error():
    """A failed request has the error of each attempt in order, and the last handler's exception as its cause."""
    clock = ManualClock()
    errors = [ConnectionError("one"), StatusError(502), StatusError(429), TimeoutError("three"), ValueError("four")]
    handlers = flaky(*errors)
    backends = [Backend("first", handlers, "100/s"), Backend("second", handlers, "100/s")]
    async with RateLimitScheduler(backends, clock=clock, retry=AT_ONCE, seed=1) as scheduler:
        error = await run(clock, failure(scheduler.fetch("target")))
        assert str(error) == "the request for 'target' failed after 4 attempts: ValueError: four"
        assert error.target == "target"
        assert error.__cause__ is errors[4]
        assert [attempt.attempt for attempt in error.attempts] == [1, 2, 3, 4]
        assert [attempt.__cause__ for attempt in error.attempts] == [errors[0], errors[1], errors[3], errors[4]]
        assert all(isinstance(attempt, BackendError) for attempt in error.attempts)
        assert {attempt.backend for attempt in error.attempts} == {"first", "second"}
        first = error.attempts[0]
        assert str(first) == f"attempt 1 at {first.backend}: ConnectionError: one"
        assert counts(scheduler) == {"accepted": 1, "dead": 1}


async def test_retry_prefers_another_backend():
    """The attempt after a failed one goes to another backend that is ready, if there is one."""
    clock = ManualClock()
    served = []

    async def fetch(request):
        served.append(request.backend)
        raise ConnectionError

    backends = [Backend(name, fetch) for name in ("one", "two")]
    async with RateLimitScheduler(backends, clock=clock, retry=AT_ONCE) as scheduler:
        await run(clock, failure(scheduler.fetch("target")))
    assert all(before != after for before, after in pairwise(served))


async def test_last_attempt_is_not_followed_by_a_wait():
    """A request ends when its last attempt fails, without another back-off."""
    clock = ManualClock()
    handler = flaky(ConnectionError("no"))
    async with RateLimitScheduler([Backend("api", handler)], clock=clock, retry=Retry(attempts=1, base=1000)) as scheduler:
        await failure(scheduler.fetch("target"))
    assert clock.time() == 0


# ---- Rejections and Retry-After


async def attempts_after(answer, quota="100/min window"):
    """The instants of a request's attempts when the first one is rejected like this."""
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append(clock.time())
        assert request.attempt == 1
        if len(starts) == 1:
            await answer(request)

    async with RateLimitScheduler([Backend("api", fetch, quota)], clock=clock, retry=ONCE) as scheduler:
        reply = await run(clock, scheduler.fetch("target"))
        assert reply.ok
        assert reply.attempts == 1
        assert counts(scheduler) == {"accepted": 1, "delivered": 1}
    return starts


def raising(error):
    async def fetch(request):
        raise error

    return fetch


def saying(status, headers=None, **options):
    async def fetch(request):
        request.ack(status, headers, **options)

    return fetch


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
TOLD = [
    ({"Retry-After": "17"}, 17),
    ({"retry-after": "17"}, 17),
    ({"RETRY-AFTER": " 17 "}, 17),
    ({"Retry-After": 17}, 17),
    ({"Retry-After": b"17"}, 17),
    ({b"Retry-After": b"17"}, 17),
    ({"Retry-After": "1.5"}, 1.5),
    ({"Retry-After": "0"}, 0),
    ({"Retry-After": DATE, "Date": "Sun, 06 Nov 1994 08:49:20 GMT"}, 17),
    ({"Retry-After": DATE, "Date": "Sun, 06 Nov 1994 09:49:20 GMT"}, 0),
    ({"Retry-After": "99999999999999999999"}, 86400),
    ({"Retry-After": "86401"}, 86400),
    ({"Retry-After": "17, 5"}, 17),
]
HOSTILE = [
    "soon",
    "-5",
    "",
    "nan",
    "inf",
    "1e3",
    "0x10",
    "17 s",
    "\x00",
    "9" * 200,
    "Sun, 99 Nov 1994 08:49:37 GMT",
    None,
    object(),
    [],
    {},
]


@pytest.mark.parametrize("headers, wait", TOLD, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after(status, headers, wait):
    """A rejection closes the backend for as long as the server says, told by `ack` or by an exception; it costs no attempt."""
    ways = [saying(status, headers), raising(StatusError(status, headers)), raising(with_response(status, headers))]
    for way in ways:
        assert [round(start, 3) for start in await attempts_after(way)] == [0, wait]


async def test_retry_after_of_known_clients():
    """Headers are read from a plain dictionary, from `email.message.Message` (urllib) and from multi-dictionaries."""
    message = Message()
    message["retry-after"] = "17"
    from multidict import CIMultiDict, MultiDict

    for headers in (message, CIMultiDict({"retry-after": "17"}), MultiDict([("Retry-After", "5"), ("Retry-After", "17")])):
        assert [round(start, 3) for start in await attempts_after(saying(429, headers))] == [0, 17]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:20])
async def test_hostile_retry_after(value):
    """What cannot be read is as if it had not been said: the backend is closed for the shortest period of its limits."""
    for way in (saying(429, {"Retry-After": value}), raising(StatusError(429, {"Retry-After": value}))):
        starts = await attempts_after(way, "100/20s window")
        assert [round(start, 3) for start in starts] == [0, 20]


class Headers:
    """A mapping that misbehaves."""

    def get(self, name):
        raise RuntimeError

    def items(self):
        raise RuntimeError

    def getall(self, name):
        return 5


@pytest.mark.parametrize("headers", [5, "Retry-After: 17", [], None, Headers(), object()], ids=lambda value: repr(value)[:20])
async def test_hostile_headers(headers):
    """Headers that are no mapping, or raise, are no error of the handler."""
    for way in (saying(429, headers), raising(StatusError(429, headers))):
        assert [round(start, 3) for start in await attempts_after(way, "100/20s window")] == [0, 20]


async def test_retry_after_as_an_option():
    """`ack(retry_after=)` is what the server said in other words: seconds; it wins over the header."""
    starts = await attempts_after(saying(429, {"Retry-After": "5"}, retry_after=17.5))
    assert [round(start, 3) for start in starts] == [0, 17.5]
    for status in (429, None):  # without a status it says by itself that the server rejected
        starts = await attempts_after(saying(status, retry_after=timedelta(seconds=17)))
        assert [round(start, 3) for start in starts] == [0, 17]
    assert await attempts_after(saying(None, {"Retry-After": "5"})) == [0]  # it may be a redirect's
    for hostile, wait in ((float("nan"), 20), (-1.0, 20), (float("inf"), 86400), (1e300, 86400)):
        starts = await attempts_after(saying(429, retry_after=hostile), "100/20s window")
        assert [round(start, 3) for start in starts] == [0, wait]


async def test_statuses_that_are_none():
    """A number that is no status says nothing; what is no number is the handler's mistake, and named."""
    clock = ManualClock()

    async def fetch(request):
        for status in (None, 0, -1, 600, 99_999, 10**30, HTTPStatus.OK):
            request.ack(status)
        for option, value in (("status", "429"), ("status", 429.0), ("status", True), ("retry_after", "5")):
            with pytest.raises(ConfigError) as caught:
                request.ack(**{option: value})
            assert str(caught.value).startswith(f"{option}={value!r}: give ")

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock, retry=ONCE) as scheduler:
        await scheduler.fetch("target")
        assert scheduler.snapshot().backends["api"].state == "open"


async def test_rejection_without_limits():
    """A backend without limits is closed for one second when the server does not say."""
    assert [round(start, 3) for start in await attempts_after(saying(429), None)] == [0, 1]


async def test_service_unavailable_without_retry_after():
    """A 503 that does not say when to come back is a failure like any other."""
    calls, reply = await outcome_of(StatusError(503))
    assert (calls, reply.attempts) == ([1, 2, 3], 3)


async def test_rejection_is_one():
    """The acknowledgement and the exception of one attempt are one rejection: one event, and one closure from the first word."""
    clock = ManualClock()
    starts = []

    async def fetch(request):
        starts.append(clock.time())
        if len(starts) == 1:
            request.ack(429, {"Retry-After": "10"})
            request.ack(429, {"Retry-After": "10"})
            await clock.sleep(5)
            raise StatusError(429, {"Retry-After": "100"})

    seen = []
    async with RateLimitScheduler([Backend("api", fetch, "100/s window")], clock=clock) as scheduler:
        events = scheduler.events()
        await run(clock, scheduler.fetch("target"))
        seen = [await anext(events), await anext(events)]
    assert [round(start, 3) for start in starts] == [0, 10]
    assert [(event.kind, event.backend) for event in seen] == [("limit_closed", "api"), ("limit_reopened", "api")]
    assert seen[0].seconds == pytest.approx(10)


async def test_value_after_a_rejection():
    """A value that is returned after an acknowledged 429 is no value: the request waits and is sent again."""
    clock = ManualClock()
    calls = []

    async def fetch(request):
        calls.append(clock.time())
        if len(calls) == 1:
            request.ack(429, {"Retry-After": "10"})
            return "an error page"
        request.ack(200)
        return "value"

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        reply = await run(clock, scheduler.fetch("target"))
    assert (reply.value, reply.attempts, [round(at) for at in calls]) == ("value", 1, [0, 10])


async def test_many_rejections_cost_no_attempt():
    """A request that is rejected again and again waits as often as it takes."""
    clock = ManualClock()
    handler = flaky(*[StatusError(429, {"Retry-After": "1"})] * 50, "value")
    async with RateLimitScheduler([Backend("api", handler)], clock=clock, retry=Retry(attempts=1)) as scheduler:
        reply = await run(clock, scheduler.fetch("target"))
    assert (reply.value, reply.attempts) == ("value", 1)
    assert handler.calls == [1] * 51
    assert clock.time() == pytest.approx(50, abs=0.1)


async def test_closed_backend_does_not_hold_up_another():
    """While one backend is closed, its requests go to another that may serve them."""
    clock = ManualClock()

    async def fetch(request):
        if request.backend == "strict" and clock.time() < 100:
            raise StatusError(429, {"Retry-After": "100"})
        return request.backend

    async with RateLimitScheduler([Backend("strict", fetch), Backend("lax", fetch, "1000/s")], clock=clock) as scheduler:
        tickets = await scheduler.submit_many(range(20))
        await clock.run_until_idle()
        assert {(await ticket).value for ticket in tickets} == {"lax"}
        assert clock.time() < 1


async def test_attempt_that_is_over():
    """An attempt that is over says nothing any more, and sends nothing: what it kept of its request is powerless."""
    kept = []

    async def fetch(request):
        kept.append(request)

    async with RateLimitScheduler([Backend("api", fetch, "5/h")]) as scheduler:
        await scheduler.fetch("first")
        await scheduler.fetch("second")
        kept[0].ack(429, {"Retry-After": "1000"})
        assert scheduler.snapshot().backends["api"].state == "open"
        with pytest.raises(RuntimeError, match="this attempt is over: it can send nothing more"):
            await kept[0].recharge()
        assert scheduler.snapshot().backends["api"].limits[0].used == 2


async def test_attempt_that_was_given_up():
    """A handler that goes on after its request was given up can acknowledge what it sent, and send no more."""
    clock = ManualClock()
    said = []

    async def fetch(request):
        try:
            await clock.sleep(100)
        except asyncio.CancelledError:
            request.ack(200)
            try:
                await request.recharge()
            except RuntimeError as error:
                said.append(str(error))
            raise

    async with RateLimitScheduler([Backend("api", fetch, "5/h")], clock=clock) as scheduler:
        with pytest.raises(DeadlineExceededError):
            await run(clock, scheduler.fetch("target", timeout=5))
        await clock.advance(1)
        assert scheduler.snapshot().backends["api"].limits[0].used == 1
    assert said == ["this attempt is over: it can send nothing more"]


# ---- classify


@pytest.mark.parametrize("outcome", Outcome)
async def test_classify_a_value(outcome):
    """`classify` has the last word on a value: only OK makes it the reply."""
    clock = ManualClock()
    asked = []

    def classify(request, result):
        asked.append((request.target, request.attempt, result))
        return outcome if len(asked) == 1 else Outcome.OK

    backend = Backend("api", flaky("first", "second"), "100/s", classify=classify)
    async with RateLimitScheduler([backend], clock=clock, retry=AT_ONCE) as scheduler:
        (reply,) = await run(clock, collect(scheduler.map(["target"])))
    assert asked[0] == ("target", 1, "first")
    if outcome is Outcome.NEUTRAL:
        assert str(reply.error.__cause__) == "classified as NEUTRAL: 'first'"
        assert [type(attempt) for attempt in reply.error.attempts] == [BackendRejectedError]
        assert len(asked) == 1
    else:
        assert (reply.value, reply.attempts) == ("first" if outcome is Outcome.OK else "second", 1 + (outcome is Outcome.FAILED))


@pytest.mark.parametrize("outcome", Outcome)
async def test_classify_an_exception(outcome):
    """`classify` has the last word on an exception too; OK makes it the value."""
    clock = ManualClock()
    error = StatusError(404)
    backend = Backend("api", flaky(error, "second"), classify=lambda request, result: outcome if result is error else Outcome.OK)
    async with RateLimitScheduler([backend], clock=clock, retry=AT_ONCE) as scheduler:
        (reply,) = await run(clock, collect(scheduler.map(["target"])))
    if outcome is Outcome.NEUTRAL:
        assert reply.error.__cause__ is error
    else:
        expected = {Outcome.OK: (error, 1), Outcome.LIMITED: ("second", 1), Outcome.FAILED: ("second", 2)}
        assert (reply.value, reply.attempts) == expected[outcome]


@pytest.mark.parametrize("wrong", [lambda request, result: None, lambda request, result: 17, lambda request, result: 1 / 0])
async def test_classify_that_is_wrong(wrong):
    """A `classify` that raises, or says nothing, fails the attempt with that error."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo, classify=wrong)], clock=clock, retry=AT_ONCE) as scheduler:
        error = await run(clock, failure(scheduler.fetch("target")))
        assert len(error.attempts) == 4
        assert isinstance(error.__cause__, ValueError | ZeroDivisionError)


# ---- Retries


async def test_full_jitter():
    """The wait before a retry is between zero and an upper end that doubles up to the cap."""
    clock = ManualClock()
    starts = {}

    async def fetch(request):
        starts.setdefault(request.target, []).append(clock.time())
        raise ConnectionError

    retry = Retry(attempts=6, base=1, cap=5, budget=1)
    health = HealthMonitor(enabled=False)  # of this backend alone it is known that it will not recover
    async with RateLimitScheduler(
        [Backend("api", fetch, "1000/s")], retry=retry, health=health, clock=clock, seed=5
    ) as scheduler:
        # Ten retries at once and one a second need no budget; these come one after the other, with time to save it.
        for target in range(20):
            await clock.advance(10)
            await run(clock, failure(scheduler.fetch(target)))
    waits = [[after - before for before, after in pairwise(times)] for times in starts.values()]
    for number, ceiling in enumerate([1, 2, 4, 5, 5]):
        nth = [wait[number] for wait in waits]
        assert max(nth) <= ceiling + 0.001
        assert max(nth) > ceiling / 2
        assert min(nth) < ceiling / 2


async def test_seed():
    """Two schedulers with one seed take the same decisions at the same instants; another seed, others."""

    async def instants(seed):
        clock = ManualClock()
        starts = []

        async def fetch(request):
            starts.append((request.target, request.attempt, clock.time_ns()))
            await clock.sleep(0.1)
            if request.attempt < 3:
                raise ConnectionError

        backends = [Backend("a", fetch, "10/s burst 3"), Backend("b", fetch, "20/s")]
        async with RateLimitScheduler(backends, health=HealthMonitor(enabled=False), clock=clock, seed=seed) as scheduler:
            await scheduler.submit_many(range(40))
            await clock.run_until_idle()
        return starts

    assert await instants(5) == await instants(5)
    assert await instants(5) != await instants(6)


async def test_retry_budget():
    """Retries beyond ten and a tenth of the first attempts wait for their budget of one a second; none fails for it."""
    clock = ManualClock()
    retried = []

    async def fetch(request):
        if request.attempt == 1:
            raise ConnectionError
        retried.append(clock.time())

    retry, health = Retry(attempts=2, base=0, budget=0.1), HealthMonitor(enabled=False)
    backend = Backend("api", fetch, BackendQuota(concurrency=None))
    async with RateLimitScheduler([backend], retry=retry, health=health, clock=clock) as scheduler:
        await scheduler.submit_many(range(100))
        await clock.run_until_idle()
        assert counts(scheduler) == {"accepted": 100, "delivered": 100}
    assert len(retried) == 100
    assert 10 <= sum(at < 0.5 for at in retried) <= 20
    assert retried[-1] == pytest.approx(80, abs=1.5)
    assert all(after - before < 1.1 for before, after in pairwise(sorted(retried)))


async def test_no_budget():
    """With `budget=0` there is still one retry a second."""
    clock = ManualClock()
    retried = []

    async def fetch(request):
        if request.attempt == 1:
            raise ConnectionError
        retried.append(clock.time())

    retry, health = Retry(base=0, budget=0), HealthMonitor(enabled=False)
    async with RateLimitScheduler([Backend("api", fetch)], retry=retry, health=health, clock=clock) as scheduler:
        await scheduler.submit_many(range(30))
        await clock.run_until_idle()
    assert [round(at) for at in retried] == [0] * 10 + list(range(1, 21))


async def test_closed_while_waiting():
    """Requests that wait when the scheduler is closed end with `SchedulerClosedError`, whoever waits for them."""
    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", echo, "1/h")], clock=clock) as scheduler:
        await scheduler.fetch("first")
        ticket = await scheduler.submit("second")
        future = scheduler.submit_threadsafe("third")
        task = asyncio.create_task(scheduler.fetch("fourth"))
        await clock.advance(1)
        await scheduler.close()
        for awaitable in (ticket, asyncio.wrap_future(future), task):
            error = await failure(awaitable)
            assert type(error) is SchedulerClosedError
        assert str(await failure(ticket)) == "the scheduler was closed while the request for 'second' was pending"
        assert counts(scheduler) == {"accepted": 4, "delivered": 1, "cancelled": 3}
        assert isinstance(future, concurrent.futures.Future)
