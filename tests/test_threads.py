"""Threads: requests from other threads, and plain handlers that run in threads of their backend."""

import asyncio
import concurrent.futures
import contextvars
import threading
from collections import Counter

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    CostExceedsBurstError,
    DeadlineExceededError,
    Ledger,
    Outcome,
    RateLimitScheduler,
    RequestCancelledError,
    RequestFailedError,
    Retry,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock

ONCE = Retry(attempts=1)


async def echo(request):
    return request.target


def counts(scheduler):
    """The ledger's counts that are not zero."""
    ledger = scheduler.ledger()
    assert ledger.balanced
    return {name: number for name in Ledger.__slots__ if (number := getattr(ledger, name))}


@pytest.fixture(autouse=True)
async def _limit():
    """Nothing here takes long: what hangs fails."""
    async with asyncio.timeout(20):
        yield


async def in_threads(count, function):
    """Run `function(number)` in so many threads at once, the loop going on meanwhile; what they returned."""
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        return function(number)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(pool, run, number) for number in range(count)])


class Gate:
    """Holds handlers in threads until it is opened, and says how many are held."""

    def __init__(self):
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.entered = threading.Semaphore(0)

    def wait(self):
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        assert self._open.wait(20)
        with self._lock:
            self.inside -= 1

    def open(self):
        self._open.set()

    async def until_entered(self, count):
        for _ in range(count):
            assert await asyncio.to_thread(self.entered.acquire, timeout=20)


# ---- Requests from threads


async def test_submit_threadsafe():
    """A thread gets a future of the reply, and may block on it."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:

        def work():
            future = scheduler.submit_threadsafe("target", priority=5, timeout=100, cost=1, backends="api")
            assert isinstance(future, concurrent.futures.Future)
            return future.result(timeout=20)

        reply = await asyncio.to_thread(work)
        assert (reply.value, reply.backend, reply.attempts) == ("target", "api", 1)
    assert counts(scheduler) == {"accepted": 1, "delivered": 1}


async def test_many_threads():
    """Many threads may hand in requests at once: each gets its own replies, and the ledger is exact."""
    async with RateLimitScheduler([Backend("api", echo, BackendQuota(concurrency=None))]) as scheduler:

        def work(number):
            futures = [scheduler.submit_threadsafe((number, index)) for index in range(500)]
            return [future.result(timeout=20).value for future in futures]

        results = await in_threads(8, work)
        for number, values in enumerate(results):
            assert values == [(number, index) for index in range(500)]
        assert counts(scheduler) == {"accepted": 4000, "delivered": 4000}


async def test_threads_and_loop_at_once():
    """Requests from threads and from the loop go through one queue, and none is lost."""
    served = Counter()

    async def fetch(request):
        served[request.target] += 1
        if request.target % 7 == 0:
            raise ValueError
        return request.target

    async with RateLimitScheduler([Backend("api", fetch, "100000/s")], retry=ONCE) as scheduler:

        def work(number):
            futures = [scheduler.submit_threadsafe(number * 1000 + index) for index in range(200)]
            return concurrent.futures.wait(futures, timeout=20).done

        threads = asyncio.create_task(in_threads(4, work))
        replies = [reply async for reply in scheduler.map(range(100_000, 100_500))]
        done = await threads
    assert len(replies) == 500
    assert sum(len(futures) for futures in done) == 800
    assert set(served.values()) == {1}
    failed = sum(target % 7 == 0 for target in served)
    assert counts(scheduler) == {"accepted": 1300, "delivered": 1300 - failed, "dead": failed}


async def test_order_within_a_thread():
    """What one thread hands in is served in that order."""
    order = []

    async def fetch(request):
        order.append(request.target)

    async with RateLimitScheduler([Backend("api", fetch, BackendQuota(concurrency=1))]) as scheduler:

        def work():
            futures = [scheduler.submit_threadsafe(number) for number in range(300)]
            concurrent.futures.wait(futures, timeout=20)

        await asyncio.to_thread(work)
    assert order == list(range(300))


async def test_failure_reaches_the_future():
    """A failed request fails its future with the same error as everywhere."""

    async def fetch(request):
        raise ValueError("no")

    async with RateLimitScheduler([Backend("api", fetch, "5/s")], retry=ONCE) as scheduler:

        def work():
            with pytest.raises(RequestFailedError) as caught:
                scheduler.submit_threadsafe("target").result(timeout=20)
            with pytest.raises(CostExceedsBurstError):
                scheduler.submit_threadsafe("target", cost=6)
            return caught.value

        error = await asyncio.to_thread(work)
        assert isinstance(error.__cause__, ValueError)


async def test_deadline_of_a_request_from_a_thread():
    """Its timeout counts from when it is accepted."""
    clock = ManualClock()

    async def fetch(request):
        await clock.sleep(100)

    async with RateLimitScheduler([Backend("api", fetch)], clock=clock) as scheduler:
        future = scheduler.submit_threadsafe("target", timeout=5)
        await clock.run_until_idle()
        assert isinstance(future.exception(timeout=0), DeadlineExceededError)


@pytest.mark.parametrize("stage", ["handed in", "waiting", "running", "done"])
async def test_future_that_is_cancelled(stage):
    """Cancelling the future cancels the request, at any stage before it is done; from a thread too."""
    clock = ManualClock()
    calls = []

    async def fetch(request):
        calls.append(request.target)
        await clock.sleep(10)

    quota = BackendQuota(concurrency=1)
    async with RateLimitScheduler([Backend("api", fetch, quota)], clock=clock) as scheduler:
        if stage == "waiting":
            await scheduler.submit("first")
        future = scheduler.submit_threadsafe("target")
        if stage != "handed in":
            await clock.advance(1e-6)
            await clock.advance(1 if stage != "done" else 10)
        assert await asyncio.to_thread(future.cancel) == (stage != "done")
        for _ in range(5):
            await clock.advance(1e-6)
        expected = {"handed in": [], "waiting": ["first"], "running": ["target"], "done": ["target"]}
        assert calls == expected[stage]
        assert scheduler.ledger().cancelled == (stage != "done")
        await clock.run_until_idle()
        assert calls == expected[stage]
        assert scheduler.ledger().pending == 0


async def test_many_futures_are_cancelled():
    """Futures that are cancelled from threads while requests run cost nobody else a reply."""
    async with RateLimitScheduler([Backend("api", echo, "100000/s")]) as scheduler:

        def work(number):
            futures = [scheduler.submit_threadsafe(index) for index in range(300)]
            cancelled = sum(future.cancel() for future in futures[::3])
            kept = [future.result(timeout=20).value for index, future in enumerate(futures) if index % 3]
            assert kept == [index for index in range(300) if index % 3]
            return cancelled

        await in_threads(4, work)
        await scheduler.drain()
    ledger = scheduler.ledger()
    assert ledger.accepted == 1200
    assert ledger.delivered + ledger.cancelled == 1200
    assert ledger.pending == 0


@pytest.mark.parametrize("how", ["drain", "close"])
async def test_threads_while_the_scheduler_ends(how):
    """A thread that hands in requests while the scheduler ends gets a reply or an error for each, never neither."""
    async with RateLimitScheduler([Backend("api", echo)]) as scheduler:
        started = threading.Event()

        def work(number):
            futures = []
            while len(futures) < 100_000:
                try:
                    futures.append(scheduler.submit_threadsafe(len(futures)))
                except SchedulerClosedError:
                    break
                if len(futures) == 10:
                    started.set()
            else:
                pytest.fail("it was never told")
            done, pending = concurrent.futures.wait(futures, timeout=10)
            assert not pending
            return sum(future.exception() is None for future in done)

        threads = asyncio.create_task(in_threads(4, work))
        await asyncio.to_thread(started.wait, 10)
        await (scheduler.drain() if how == "drain" else scheduler.close())
        delivered = sum(await threads)
        assert scheduler.ledger().delivered == delivered
        assert scheduler.ledger().pending == 0
        assert scheduler.ledger().balanced


# ---- Handlers in threads


async def test_plain_handler():
    """A plain function runs in a thread that is not the loop's, named after its backend."""
    seen = []

    def fetch(request):
        seen.append((threading.current_thread(), request.target, request.attempt))
        return request.target * 2

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:
        reply = await scheduler.fetch("target")
    thread, target, attempt = seen[0]
    assert (reply.value, target, attempt) == ("targettarget", "target", 1)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert "api" in thread.name


async def test_plain_handlers_are_anything_callable():
    """Functions, methods, lambdas, partials and objects with `__call__` will do; a coroutine they return is awaited."""
    from functools import partial

    class Client:
        def get(self, request):
            return request.target

        def __call__(self, request):
            return request.target

    class AsyncClient:
        async def __call__(self, request):
            return request.target

    handlers = [Client().get, Client(), AsyncClient(), lambda request: request.target, partial(Client.get, None)]
    handlers += [lambda request: asyncio.sleep(0, request.target), partial(echo)]
    for handler in handlers:
        async with RateLimitScheduler([Backend("api", handler)]) as scheduler:
            assert (await scheduler.fetch("target")).value == "target"


async def test_threads_are_used_again():
    """A backend has no more threads than attempts at once, and uses them again."""
    threads = set()

    def fetch(request):
        threads.add(threading.current_thread().name)

    async with RateLimitScheduler([Backend("api", fetch, BackendQuota(concurrency=3))]) as scheduler:
        for _ in range(10):
            await asyncio.gather(*await scheduler.submit_many(range(20)))
    assert len(threads) <= 3


async def test_threads_end():
    """The threads of a backend end when its scheduler does."""
    threads = []

    def fetch(request):
        threads.append(threading.current_thread())

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:
        await asyncio.gather(*await scheduler.submit_many(range(20)))
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_concurrency_of_threads():
    """No more threads of a backend run handlers than its concurrency; the backends do not share."""
    gates = {"a": Gate(), "b": Gate()}

    def fetch(request):
        gates[request.backend].wait()

    backends = [Backend("a", fetch, BackendQuota(concurrency=3)), Backend("b", fetch, BackendQuota(concurrency=2))]
    async with RateLimitScheduler(backends) as scheduler:
        for name in gates:
            await scheduler.submit_many(range(10), backends=name)
        await gates["a"].until_entered(3)
        await gates["b"].until_entered(2)
        snapshot = scheduler.snapshot()
        assert [snapshot.backends[name].in_flight for name in ("a", "b")] == [3, 2]
        for gate in gates.values():
            gate.open()
    assert (gates["a"].most, gates["b"].most) == (3, 2)
    assert counts(scheduler) == {"accepted": 20, "delivered": 20}


async def test_exception_in_a_thread():
    """What a plain function raises is what it raised, and is retried like any failure."""
    attempts = []

    def fetch(request):
        attempts.append(request.attempt)
        if request.attempt < 3:
            raise ConnectionError("no")
        return "value"

    async with RateLimitScheduler([Backend("api", fetch)], retry=Retry(base=0, budget=1)) as scheduler:
        reply = await scheduler.fetch("target")
    assert (reply.value, attempts) == ("value", [1, 2, 3])


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError(), StopIteration()], ids=repr)
async def test_base_exceptions_in_a_thread(error):
    """Nothing that a handler raises in a thread stops the thread, the loop or the next request."""

    def fetch(request):
        if request.target == "bad":
            raise error
        return request.target

    backend = Backend("api", fetch, BackendQuota(concurrency=1))
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        with pytest.raises((RequestFailedError, RequestCancelledError)):
            await scheduler.fetch("bad")
        assert (await scheduler.fetch("good")).value == "good"


async def test_ack_from_a_thread():
    """A plain handler may acknowledge from its thread: the limit's clock starts then."""
    gate = Gate()

    def fetch(request):
        if request.target == "slow":
            request.ack(200, {"Content-Type": "text/plain"})
            gate.wait()
        return request.target

    async with RateLimitScheduler([Backend("api", fetch, "1/50ms")]) as scheduler:
        slow = await scheduler.submit("slow")
        # It is sent although the first handler has not returned: its acknowledgement is enough.
        assert (await scheduler.fetch("quick")).value == "quick"
        assert not slow.done()
        gate.open()
        assert (await slow).value == "slow"


async def test_rejection_from_a_thread():
    """A rejection that a thread reports closes the backend."""
    calls = []

    def fetch(request):
        calls.append(request.target)
        if len(calls) == 1:
            request.ack(429, {"Retry-After": "0.05"})
        return request.target

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:
        reply = await scheduler.fetch("target")
    assert (reply.value, reply.attempts, len(calls)) == ("target", 1, 2)
    assert reply.waits["limit"] >= 0.035  # marked in steps of 1 ms


async def test_recharge_from_a_thread():
    """A plain handler may wait in its thread for one more message."""

    def fetch(request):
        request.ack(200)
        request.recharge_blocking()
        request.recharge_blocking(2)
        return request.target

    async with RateLimitScheduler([Backend("api", fetch, "10/h")]) as scheduler:
        assert (await scheduler.fetch("target")).value == "target"
        assert scheduler.snapshot().backends["api"].limits[0].used == 4


async def test_thread_that_is_given_up():
    """A thread cannot be stopped: its request ends at its deadline, and it keeps its place until it returns."""
    gate = Gate()

    def fetch(request):
        if request.target == "stuck":
            gate.wait()
        return request.target

    for classify in (None, lambda request, result: Outcome.OK):
        gate = Gate()
        backend = Backend("api", fetch, BackendQuota(concurrency=1), classify=classify)
        async with RateLimitScheduler([backend]) as scheduler:
            with pytest.raises(DeadlineExceededError):
                await scheduler.fetch("stuck", timeout=0.05)
            for _ in range(10):
                await asyncio.sleep(0)
            api = scheduler.snapshot().backends["api"]
            assert (api.in_flight, api.strays) == (1, 1)
            ticket = await scheduler.submit("next")
            await asyncio.sleep(0)
            assert not ticket.done()
            gate.open()
            assert (await ticket).value == "next"
            assert scheduler.snapshot().backends["api"].strays == 0


async def test_thread_that_times_out():
    """An attempt in a thread that takes too long fails; the next one runs in another thread, if there is room."""
    gate = Gate()

    def fetch(request):
        if request.attempt == 1:
            gate.wait()
        return request.attempt

    backend = Backend("api", fetch, BackendQuota(concurrency=2), timeout=0.05)
    async with RateLimitScheduler([backend], retry=Retry(base=0, budget=1)) as scheduler:
        reply = await scheduler.fetch("target")
        assert (reply.value, reply.attempts) == (2, 2)
        assert scheduler.snapshot().backends["api"].strays == 1
        gate.open()


async def test_close_does_not_wait_for_a_stuck_thread():
    """A thread that never returns does not hold up the end of its scheduler."""
    gate = Gate()

    def fetch(request):
        gate.wait()

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:
        ticket = await scheduler.submit("stuck")
        await gate.until_entered(1)
        before = asyncio.get_running_loop().time()
        await scheduler.close()
        assert asyncio.get_running_loop().time() - before < 2
        with pytest.raises(SchedulerClosedError):
            await ticket
    gate.open()
    assert counts(scheduler) == {"accepted": 1, "cancelled": 1}


VARIABLE = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("isolation", ["worker", "task"])
async def test_context(isolation):
    """Handlers see the context of the scheduler, or with `isolation="task"` that of who submitted; in threads too."""
    seen = []

    async def fetch(request):
        seen.append(VARIABLE.get())

    def fetch_in_thread(request):
        seen.append(VARIABLE.get())

    VARIABLE.set("scheduler")
    async with RateLimitScheduler([Backend("a", fetch), Backend("b", fetch_in_thread)], isolation=isolation) as scheduler:

        async def submitter():
            VARIABLE.set("submitter")
            for backend in ("a", "b"):
                await scheduler.fetch("target", backends=backend)

        await asyncio.create_task(submitter())
    assert seen == ["scheduler" if isolation == "worker" else "submitter"] * 2


async def test_threads_of_schedulers_are_their_own():
    """A slow backend of one scheduler does not hold up another scheduler's threads."""
    gate = Gate()

    def stuck(request):
        gate.wait()

    async with (
        RateLimitScheduler([Backend("api", stuck, BackendQuota(concurrency=2))]) as first,
        RateLimitScheduler([Backend("api", lambda request: request.target)]) as second,
    ):
        await first.submit_many(range(5))
        await gate.until_entered(2)
        assert (await second.fetch("target")).value == "target"
        gate.open()
