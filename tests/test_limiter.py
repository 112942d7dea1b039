"""The limiter alone: sync, async, across threads and loops."""

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import ConfigError, CostExceedsBurstError, DeadlineExceededError, Limit, Limiter
from tidegate.testing import ManualClock


@pytest.fixture(autouse=True)
async def _limit():
    """Nothing here takes long: what hangs fails."""
    async with asyncio.timeout(30):
        yield


async def take(limiter, clock, log, name, **options):
    """Acquire and write down who it was, and when."""
    await limiter.acquire(**options)
    log.append((name, round(clock.time(), 3)))


async def settle():
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def most_in_any(instants, span):
    """The largest number of instants within any such span of time, its beginning included."""
    return max((sum(start <= other < start + span for other in instants) for start in instants), default=0)


# ---- What is admitted


def test_window_by_default():
    """`amount` at once, and nothing more until the period has passed since each."""
    clock = ManualClock()
    limiter = Limiter("3/10s", clock=clock)
    assert [limiter.try_acquire() for _ in range(4)] == [True, True, True, False]
    clock.advance(9.999)
    assert not limiter.try_acquire()
    clock.advance(0.1)
    assert [limiter.try_acquire() for _ in range(4)] == [True, True, True, False]


def test_burst_makes_a_bucket():
    """`burst` at once, and from then on one an interval."""
    clock = ManualClock()
    limiter = Limiter("10/s burst 3", clock=clock)
    assert [limiter.try_acquire() for _ in range(4)] == [True, True, True, False]
    clock.advance(0.101)
    assert [limiter.try_acquire() for _ in range(2)] == [True, False]
    clock.advance(60)
    assert [limiter.try_acquire() for _ in range(4)] == [True, True, True, False]


def test_all_limits_must_admit():
    """A call is charged to all limits or to none."""
    clock = ManualClock()
    limiter = Limiter("10/s burst 2", "3/min", clock=clock)
    assert [limiter.try_acquire() for _ in range(3)] == [True, True, False]
    clock.advance(1)
    assert [limiter.try_acquire() for _ in range(2)] == [True, False]
    assert limiter.retry_after() == pytest.approx(59, abs=0.1)


def test_without_limits_everything_is_admitted():
    """No limits hold nobody back."""
    limiter = Limiter()
    assert all(limiter.try_acquire(1000) for _ in range(1000))


def test_cost():
    """A cost is charged whole or not at all; one that never fits says so."""
    limiter = Limiter("5/h")
    assert limiter.try_acquire(4)
    assert not limiter.try_acquire(2)
    assert limiter.try_acquire(1)
    with pytest.raises(CostExceedsBurstError) as caught:
        limiter.try_acquire(6)
    assert (caught.value.cost, caught.value.burst) == (6, 5)
    with pytest.raises(CostExceedsBurstError):
        limiter.retry_after(6, "key")
    with pytest.raises(CostExceedsBurstError):
        Limiter("5/h burst 2").try_acquire(cost=3)


async def test_cost_that_never_fits_is_refused_by_all_who_wait():
    """Neither a task nor a thread waits for what will never come."""
    limiter = Limiter("5/h")
    with pytest.raises(CostExceedsBurstError):
        await limiter.acquire(6)
    with pytest.raises(CostExceedsBurstError):
        limiter.acquire_blocking(6)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, 2**32, "1"])
def test_wrong_cost(wrong):
    """A cost is an integer from 1."""
    with pytest.raises(ConfigError) as caught:
        Limiter("1/s").try_acquire(wrong)
    assert caught.value.option == "cost"


@pytest.mark.parametrize("wrong", [1.5, True, b"x", ("a",)])
def test_wrong_key(wrong):
    """A key is a text or an integer."""
    with pytest.raises(ConfigError) as caught:
        Limiter("1/s").try_acquire(key=wrong)
    assert caught.value.option == "key"


async def test_wrong_timeout_and_limits():
    """Options are checked, also where nobody has to wait."""
    with pytest.raises(ConfigError):
        await Limiter("1/s").acquire(timeout=0)
    with pytest.raises(ConfigError):
        Limiter("1/s").acquire_blocking(timeout=-1)
    with pytest.raises(ConfigError):
        Limiter("often")
    limiter = Limiter("1/s")
    with pytest.raises(ConfigError):
        limiter.set_limits("0/s")
    assert limiter.limits == (Limit(1, 1),)


def test_keys():
    """Each key has the limits to itself; text and number are different keys, None is one too."""
    limiter = Limiter("1/h")
    for key in (None, "a", "b", 1, "1", -(10**30), ""):
        assert limiter.try_acquire(key=key)
        assert not limiter.try_acquire(1, key)


def test_keys_that_are_full_again_are_forgotten_and_others_are_not():
    """However many keys come and go, those in use are remembered."""
    clock = ManualClock()
    limiter = Limiter("1/min", clock=clock)
    assert limiter.try_acquire(key="kept")
    for number in range(5000):
        clock.advance(0.01)
        assert limiter.try_acquire(key=number)
        assert not limiter.try_acquire(key="kept")
    assert not limiter.try_acquire(key=4999)
    clock.advance(60.1)
    assert limiter.try_acquire(key="kept")


@given(
    st.sampled_from([("4/s",), ("10/s burst 3",), ("3/s", "8/4s"), ("100k/s",)]),
    st.lists(st.tuples(st.floats(0.001, 0.6), st.integers(1, 3)), max_size=60),
)
def test_no_window_is_ever_exceeded(limits, calls):
    """Whatever is tried when, what was admitted conforms to every limit in every span of time."""
    clock = ManualClock()
    limiter = Limiter(*limits, clock=clock)
    units = []
    for pause, cost in calls:
        clock.advance(pause)
        expected = limiter.retry_after(cost)
        admitted = limiter.try_acquire(cost)
        assert admitted == (expected == 0)
        units += [clock.time()] * cost * admitted
    for limit in limiter.limits:
        if limit.burst is None:
            assert most_in_any(units, limit.period) <= limit.amount
        else:
            for start in units:
                for span in (0.05, 0.5, 5):
                    within = sum(start <= unit < start + span for unit in units)
                    assert within <= limit.burst + span * limit.amount / limit.period


def test_large_amounts_are_counted_in_steps():
    """More than 4096 units a window: a unit is free again at most 0.4 % of the period late."""
    clock = ManualClock()
    limiter = Limiter("10000/100s", clock=clock)
    assert limiter.try_acquire(6000)
    clock.advance(30)
    assert limiter.try_acquire(4000)
    assert not limiter.try_acquire()
    clock.advance(70)
    assert not limiter.try_acquire()
    clock.advance(0.5)
    assert limiter.try_acquire(6000)
    assert not limiter.try_acquire()
    assert 29 < limiter.retry_after() <= 30


# ---- Waiting


@pytest.mark.parametrize("limits", [("10/s burst 1",), ("1/100ms",), ("1000/s", "10/s burst 1")])
async def test_first_in_first_out(limits):
    """Tasks are served in the order in which they came, whatever they cost, and nobody overtakes them."""
    clock = ManualClock()
    limiter, log = Limiter(*limits, clock=clock), []
    tasks = [asyncio.create_task(take(limiter, clock, log, name)) for name in range(30)]
    await settle()
    assert not limiter.try_acquire()
    await clock.run_until_idle()
    await asyncio.gather(*tasks)
    assert [name for name, _ in log] == list(range(30))
    assert [later - earlier for (_, earlier), (_, later) in pairwise(log)] == [pytest.approx(0.1, abs=0.005)] * 29


async def test_large_cost_is_not_starved():
    """Small costs do not pass a large one that came first."""
    clock = ManualClock()
    limiter, log = Limiter("10/s burst 5", clock=clock), []
    assert limiter.try_acquire(5)
    costs = [5, 1, 3, 1]
    tasks = [asyncio.create_task(take(limiter, clock, log, cost, cost=cost)) for cost in costs]
    await clock.run_until_idle()
    await asyncio.gather(*tasks)
    assert [cost for cost, _ in log] == costs
    assert [when for _, when in log] == pytest.approx([0.5, 0.6, 0.9, 1.0], abs=0.01)


async def test_window_admits_a_batch_at_once():
    """When a window frees several units at once, as many who wait go at once."""
    clock = ManualClock()
    limiter, log = Limiter("5/s", clock=clock), []
    tasks = [asyncio.create_task(take(limiter, clock, log, name)) for name in range(12)]
    await clock.run_until_idle()
    await asyncio.gather(*tasks)
    assert log == [(name, pytest.approx(name // 5, abs=0.01)) for name in range(12)]


async def test_keys_wait_apart():
    """A line that waits for one key holds up no other."""
    clock = ManualClock()
    limiter, log = Limiter("1/s", clock=clock), []
    tasks = [
        asyncio.create_task(take(limiter, clock, log, (key, turn), key=key)) for turn in range(3) for key in ("a", "b", None)
    ]
    await clock.run_until_idle()
    await asyncio.gather(*tasks)
    assert log == [((key, turn), pytest.approx(turn, abs=0.01)) for turn in range(3) for key in ("a", "b", None)]


async def test_retry_after_counts_those_who_wait():
    """It tells when `acquire` would return."""
    clock = ManualClock()
    limiter, log = Limiter("10/s burst 2", clock=clock), []
    assert limiter.retry_after() == 0
    tasks = [asyncio.create_task(take(limiter, clock, log, name)) for name in range(7)]
    await settle()
    after = limiter.retry_after()
    await limiter.acquire() if after == 0 else None
    tasks.append(asyncio.create_task(take(limiter, clock, log, "last")))
    await clock.run_until_idle()
    await asyncio.gather(*tasks)
    assert log[-1] == ("last", pytest.approx(after, abs=0.002))
    assert after == pytest.approx(0.6, abs=0.01)


async def test_timeout():
    """Who waited long enough hears so, takes nothing, and lets the next pass."""
    clock = ManualClock()
    limiter, log = Limiter("1/10s", clock=clock), []
    assert limiter.try_acquire()
    late = asyncio.create_task(limiter.acquire(timeout=timedelta(seconds=3)))
    patient = asyncio.create_task(take(limiter, clock, log, "patient", timeout=11))
    await clock.run_until_idle()
    with pytest.raises(DeadlineExceededError) as caught:
        await late
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.after == 3
    await patient
    assert log == [("patient", pytest.approx(10, abs=0.01))]


async def test_timeout_on_the_loops_clock(quiet):
    """The same where time passes by itself."""
    limiter = Limiter("1/h")
    await limiter.acquire(timeout=5)
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        await limiter.acquire(timeout=0.05)
    assert 0.04 < time.monotonic() - start < 5


async def test_waiting_on_the_loops_clock(quiet):
    """Tasks that wait for real time are admitted in order, and never too early."""
    limiter, instants = Limiter("5/100ms"), []

    async def run(name):
        await limiter.acquire()
        instants.append((name, time.monotonic()))

    await asyncio.gather(*[run(name) for name in range(20)])
    assert [name for name, _ in instants] == list(range(20))
    assert most_in_any([instant for _, instant in instants], 0.1) <= 5


@pytest.mark.parametrize("limits", [("1/s burst 1",), ("1/s",)])
async def test_cancellation_takes_nothing(limits, quiet):
    """Who is cancelled while it waits, at the head or behind it, leaves the line to the others."""
    clock = ManualClock()
    limiter, log = Limiter(*limits, clock=clock), []
    tasks = [asyncio.create_task(take(limiter, clock, log, name)) for name in range(6)]
    await settle()
    for name in (1, 4):
        tasks[name].cancel()
    await clock.run_until_idle()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [name in (1, 4) for name in range(6)]
    assert log == [(name, pytest.approx(when, abs=0.01)) for when, name in enumerate((0, 2, 3, 5))]


async def test_cancellation_in_the_turn_of_the_permit(quiet):
    """A permit that comes together with the cancellation goes to the next in line."""
    clock = ManualClock()
    limiter, log = Limiter("1/s", clock=clock), []
    assert limiter.try_acquire()
    tasks = [asyncio.create_task(take(limiter, clock, log, name)) for name in range(3)]
    await settle()
    clock.advance(1.01)  # the first is admitted and has not run yet
    tasks[0].cancel()
    await clock.run_until_idle()
    assert isinstance((await asyncio.gather(*tasks, return_exceptions=True))[0], asyncio.CancelledError)
    assert log == [(1, pytest.approx(1.01, abs=0.005)), (2, pytest.approx(2.01, abs=0.01))]


@given(st.lists(st.tuples(st.sampled_from(["acquire", "cancel", "wait", "timeout", "hold"]), st.integers(0, 9)), max_size=40))
async def test_random_programs(steps):
    """Whatever is cancelled, timed out and held in between, the order is kept, and no window is exceeded; nobody is forgotten."""
    clock = ManualClock()
    limiter, log, tasks = Limiter("3/s", "5/4s", clock=clock), [], []

    async def hold(name, seconds):
        async with limiter:
            log.append((name, clock.time()))
            await clock.sleep(seconds / 10)
        log.append((name, clock.time()))

    for name, (step, number) in enumerate(steps):
        if step == "cancel" and tasks:
            tasks[number % len(tasks)].cancel()
        elif step == "wait":
            await clock.advance(0.01 + number / 10)
        elif step == "hold":
            tasks.append(asyncio.create_task(hold(name, number)))
        else:
            timeout = (number + 1) / 5 if step == "timeout" else None
            tasks.append(asyncio.create_task(take(limiter, clock, log, name, timeout=timeout)))
        await settle()
    await clock.run_until_idle()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError, DeadlineExceededError}
    first = {}
    for name, _ in log:
        first.setdefault(name, None)
    assert list(first) == sorted(first)
    ends = list(dict(log).values())
    assert most_in_any(ends, 1) <= 3
    assert most_in_any(ends, 4) <= 5
    await clock.advance(5)
    assert [limiter.try_acquire() for _ in range(4)] == [True, True, True, False]


# ---- Bodies


@pytest.mark.parametrize("limits", [("2/s",), ("2/s burst 2",), ("2/s burst 2", "100/s")])
async def test_clock_starts_when_the_body_ends(limits):
    """A unit counts while its body runs, and for the period from its end."""
    clock = ManualClock()
    limiter = Limiter(*limits, clock=clock)
    async with limiter:
        await clock.advance(3)
        assert limiter.try_acquire()
        assert not limiter.try_acquire()
        await clock.advance(3)
        assert limiter.try_acquire()
        assert not limiter.try_acquire()
    await clock.advance(0.1)
    assert not limiter.try_acquire()
    await clock.advance(1)
    assert limiter.try_acquire()


async def test_bodies_wait_for_bodies():
    """What only the end of a body can free is given to the next in line then."""
    clock = ManualClock()
    limiter, log = Limiter("1/s", clock=clock), []

    async def run(name):
        async with limiter:
            log.append((name, round(clock.time(), 1)))
            await clock.sleep(2)

    tasks = [asyncio.create_task(run(name)) for name in range(3)]
    await clock.run_until_idle()
    await asyncio.gather(*tasks)
    assert log == [(0, 0), (1, 3), (2, 6)]


async def test_body_that_raises_counts():
    """However a body ends, what it sent was sent."""
    clock = ManualClock()
    limiter = Limiter("1/s", clock=clock)
    with pytest.raises(KeyError):
        async with limiter:
            raise KeyError
    await clock.advance(2)
    with pytest.raises(ZeroDivisionError), limiter:
        _ = 1 / 0
    assert not limiter.try_acquire()


@pytest.mark.parametrize("limits", [("2/h",), ("2/h burst 2",)])
def test_plain_with(limits):
    """The synchronous form takes one unit, too."""
    limiter = Limiter(*limits)
    with limiter:
        assert limiter.try_acquire()
    assert not limiter.try_acquire()


# ---- Limits that change


async def test_set_limits_reaches_those_who_wait():
    """More room lets them go, less makes them wait, and what was sent before counts."""
    clock = ManualClock()
    limiter, log = Limiter("1/min", clock=clock), []
    tasks = [asyncio.create_task(take(limiter, clock, log, name)) for name in range(5)]
    await settle()
    await clock.advance(1)
    limiter.set_limits("3/min")
    await settle()
    assert log == [(0, 0), (1, 1), (2, 1)]
    limiter.set_limits("10/s burst 1")
    await clock.run_until_idle()
    await asyncio.gather(*tasks)
    assert [name for name, _ in log] == list(range(5))
    assert log[-1][1] == pytest.approx(1.2, abs=0.02)
    assert repr(limiter) == "Limiter('10/s burst 1')"


async def test_set_limits_reaches_every_key_and_ends_what_never_fits():
    """A cost that has become too large is refused; the next in its line goes on."""
    clock = ManualClock()
    limiter, log = Limiter("5/min", clock=clock), []
    assert limiter.try_acquire(5, "key")
    large = asyncio.create_task(limiter.acquire(5, "key"))
    small = asyncio.create_task(take(limiter, clock, log, "small", key="key"))
    await settle()
    limiter.set_limits("2/min")
    with pytest.raises(CostExceedsBurstError) as caught:
        await large
    assert (caught.value.cost, caught.value.burst) == (5, 2)
    await clock.run_until_idle()
    await small
    assert log == [("small", pytest.approx(60, abs=0.1))]


def test_set_limits_of_a_bucket_and_back():
    """A bucket goes on as it stands, at another pace."""
    clock = ManualClock()
    limiter = Limiter("10/s burst 10", clock=clock)
    assert limiter.try_acquire(10)
    limiter.set_limits("1/s burst 10")
    assert limiter.retry_after() == pytest.approx(1, abs=0.001)
    limiter.set_limits("100/s burst 10")
    assert limiter.retry_after() == pytest.approx(0.01, abs=0.001)
    clock.advance(0.0101)
    assert [limiter.try_acquire(), limiter.try_acquire()] == [True, False]
    clock.advance(60)
    assert limiter.try_acquire(10)
    assert not limiter.try_acquire()


# ---- Threads and loops


def in_threads(count, run):
    """Run `run(number)` in so many threads at once; what they returned."""
    barrier = threading.Barrier(count)

    def start(number):
        barrier.wait()
        return run(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


@pytest.mark.parametrize("limits", [("1000/h burst 1000",), ("1000/h",), ("1000/h burst 1000", "2000/h")])
def test_threads_share_exactly_what_there_is(limits):
    """Threads that all try at once get the amount together, and not a unit more."""
    limiter = Limiter(*limits)
    taken = in_threads(4, lambda _: sum(limiter.try_acquire() for _ in range(600)))
    assert sum(taken) == 1000


@pytest.mark.parametrize("limits", [("20/100ms",), ("200/s burst 10",)])
def test_blocked_threads_are_woken(limits):
    """Threads wait as tasks do; none is lost, and the limit holds among them."""
    limiter = Limiter(*limits)

    def run(_):
        instants = []
        for turn in range(10):
            if turn % 2:
                with limiter:
                    instants.append(time.monotonic())
            else:
                limiter.acquire_blocking(timeout=20)
                instants.append(time.monotonic())
        return instants

    instants = [instant for run in in_threads(6, run) for instant in run]
    assert len(instants) == 60
    if limits == ("20/100ms",):
        assert most_in_any(instants, 0.099) <= 20
    else:
        assert max(instants) - min(instants) >= 0.24


def test_blocked_thread_times_out():
    """A thread hears of its timeout."""
    limiter = Limiter("1/h")
    with limiter:
        pass
    with pytest.raises(DeadlineExceededError) as caught:
        limiter.acquire_blocking(timeout=0.02)
    assert caught.value.after == 0.02


def test_threads_do_not_wait_for_a_manual_clock():
    """In virtual time nothing would wake a thread."""
    limiter = Limiter("1/h", clock=ManualClock())
    limiter.acquire_blocking()
    with pytest.raises(RuntimeError):
        limiter.acquire_blocking()


async def test_loops_and_threads_share_one_line(quiet):
    """Two loops in two threads, and plain threads, wait for one limiter; its order is that of their coming."""
    limiter, log, loop = Limiter("1/100ms"), [], asyncio.get_running_loop()
    assert limiter.try_acquire()

    def block(name):
        limiter.acquire_blocking(timeout=20)
        log.append(name)

    async def park(name):
        await limiter.acquire(timeout=20)
        log.append(name)

    def other_loop(names):
        async def main():
            await asyncio.gather(*[park(name) for name in names])

        asyncio.run(main())

    async def stands(before):
        """Wait until somebody has joined the line: nothing tells of it."""
        while limiter.retry_after() < before + 0.05:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with ThreadPoolExecutor(8) as pool:
        futures = []
        for turn in range(3):
            futures.append(asyncio.ensure_future(park((turn, "here"))))
            await settle()
            before = limiter.retry_after()
            futures.append(loop.run_in_executor(pool, block, (turn, "thread")))
            await stands(before)
            before = limiter.retry_after()
            futures.append(loop.run_in_executor(pool, other_loop, [(turn, "there 1"), (turn, "there 2")]))
            await stands(before)
        await asyncio.gather(*futures)
    by_turn = [turn for turn, _ in log]
    assert sorted(log) == sorted((turn, who) for turn in range(3) for who in ("here", "thread", "there 1", "there 2"))
    assert by_turn[0] == 0
    assert by_turn[-1] == 2


async def test_many_loops_and_threads(quiet):
    """Under contention from everywhere nobody is forgotten and no window is exceeded."""
    limiter, lock, ends = Limiter("25/50ms"), threading.Lock(), []

    def ended():
        with lock:
            ends.append(time.monotonic())

    async def tasks():
        async def run():
            for _ in range(5):
                async with limiter:
                    await asyncio.sleep(0)
                ended()

        await asyncio.gather(*[run() for _ in range(6)])

    def run(number):
        if number % 2:
            asyncio.run(tasks())
        else:
            for _ in range(30):
                with limiter:
                    pass
                ended()

    await asyncio.gather(tasks(), asyncio.to_thread(in_threads, 4, run))
    assert len(ends) == 30 * 5


def test_loop_that_was_closed_holds_nobody_up():
    """Those who wait on a loop that is closed under them are passed over."""
    limiter = Limiter("1/50ms")
    assert limiter.try_acquire()
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(limiter.acquire()) for _ in range(3)]
    loop.run_until_complete(settle())
    loop.close()
    limiter.acquire_blocking(timeout=10)
    for task in tasks:  # nobody else will say that they were never awaited
        task._log_destroy_pending = False  # noqa: SLF001
    del task, tasks
    gc.collect()


async def test_limiter_is_freed_with_those_who_waited(quiet):
    """A limiter and the tasks that wait for it do not keep each other alive."""

    class Watched(Limiter):
        pass

    gone = threading.Event()

    class Trace:
        def __del__(self):
            gone.set()

    limiter = Watched("1/h")
    limiter.trace = Trace()
    await limiter.acquire()
    task = asyncio.create_task(limiter.acquire())
    await settle()
    task.cancel()
    await asyncio.wait([task])  # not `await task`: this frame would keep the exception, and that the limiter
    del limiter, task
    gc.collect()
    assert gone.is_set()


def test_try_acquire_is_the_compiled_method():
    """Nothing of Python stands between a caller and the admission."""
    assert "try_acquire" not in vars(Limiter)
    assert type(Limiter.try_acquire).__name__ == "method_descriptor"
    assert repr(Limiter("10/s burst 20", "500/min")) == "Limiter('10/s burst 20', '500/min')"
