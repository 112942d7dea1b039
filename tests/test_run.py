"""`tidegate.run`: for programs that are not asynchronous."""

import asyncio
import signal
import subprocess
import sys
import threading

import pytest

from tidegate import Backend, ConfigError, HealthMonitor, LoadBalancer, RequestFailedError, Retry, SchedulerClosedError, run


async def upper(request):
    return request.target.upper()


BACKENDS = [Backend("api", upper)]


def test_async_function():
    """It runs in this thread; its value is returned, and the scheduler is closed then."""

    async def main(scheduler):
        schedulers.append(scheduler)
        threads.append(threading.current_thread())
        return (await scheduler.fetch("a")).value

    schedulers, threads = [], []
    assert run(main, BACKENDS) == "A"
    assert threads == [threading.current_thread()]
    assert repr(schedulers[0]).endswith("closed, 0 pending>")


def test_runs_on_uvloop_where_it_is_installed():
    uvloop = pytest.importorskip("uvloop")

    async def main(scheduler):
        return asyncio.get_running_loop()

    assert isinstance(run(main), uvloop.Loop)


def test_what_was_accepted_is_finished():
    """As when `async with` is left."""

    async def main(scheduler):
        return await scheduler.submit_many(["a", "b"])

    assert all(ticket.done() for ticket in run(main, BACKENDS))


def test_plain_function():
    """It runs in a thread, where it may block."""

    def main(scheduler):
        assert threading.current_thread() is not threading.main_thread()
        with scheduler.slot_blocking("api") as lease:
            return lease.backend, scheduler.submit_threadsafe("a").result().value

    assert run(main, BACKENDS) == ("api", "A")


def test_plain_function_that_returns_a_coroutine():
    assert run(lambda scheduler: scheduler.fetch("a"), BACKENDS).value == "A"


def test_targets():
    """Replies, failed ones too, in the order of the targets, whatever came first."""

    async def fetch(request):
        if request.target == "bad":
            raise ValueError
        await asyncio.sleep(0.01 if request.target == "slow" else 0)
        return request.target

    replies = run(["slow", "bad", "quick"], [Backend("api", fetch)], retry=Retry(attempts=1))
    assert [(reply.target, reply.ok) for reply in replies] == [("slow", True), ("bad", False), ("quick", True)]
    assert isinstance(replies[1].error, RequestFailedError)


def test_targets_of_any_kind():
    async def targets():
        yield "a"
        yield "b"

    for given in (targets(), iter(["a", "b"]), ("a", "b")):
        assert [reply.value for reply in run(given, BACKENDS)] == ["A", "B"]


def test_options_of_requests():
    """With targets; each may be a function of the target."""

    async def fetch(request):
        return request.priority

    replies = run(["a", "bb"], [Backend("api", fetch)], priority=len)
    assert [reply.value for reply in replies] == [1, 2]


def test_options_of_the_scheduler():
    def main(scheduler):
        return repr(scheduler)

    assert "api" in run(main, BACKENDS, order="edf", capacity=1, isolation="task", seed=1)
    assert "api" in run(main, BACKENDS, balancer=LoadBalancer(), health=HealthMonitor(enabled=False))
    with pytest.raises(ConfigError, match="health='off'"):
        run(main, BACKENDS, health="off")
    with pytest.raises(ConfigError, match="capacity=0"):
        run(main, BACKENDS, capacity=0)


def test_arguments_that_cannot_work():
    with pytest.raises(ConfigError, match="there is no target"):
        run([], BACKENDS)
    with pytest.raises(ConfigError, match="give an iterable of targets"):
        run("target", BACKENDS)
    with pytest.raises(ConfigError, match="priority=1: an option of requests goes with targets"):
        run(lambda scheduler: None, BACKENDS, priority=1)
    with pytest.raises(TypeError, match="unexpected option 'prio'"):
        run(["a"], BACKENDS, prio=1)


def test_error_comes_without_one_of_ours_before_it():
    """A traceback has what the handler raised, and nothing about loops."""

    def fetch(request):
        raise LookupError("no such user")

    (reply,) = run(["a"], [Backend("api", fetch)], retry=Retry(attempts=1))
    with pytest.raises(RequestFailedError) as caught:
        _ = reply.value
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.__cause__.__context__ is None
    with pytest.raises(ConfigError) as refused:
        run([], BACKENDS)
    assert refused.value.__context__ is None


@pytest.mark.parametrize("kind", ["async", "plain"])
def test_exception_passes_on_and_closes(kind):
    """As it is; what waits is cancelled."""

    async def hang(request):
        await asyncio.sleep(1000)

    async def asynchronous(scheduler):
        futures.append(await scheduler.submit("a"))
        raise error

    def plain(scheduler):
        futures.append(scheduler.submit_threadsafe("a"))
        raise error

    error, futures = ZeroDivisionError(), []
    with pytest.raises(ZeroDivisionError) as caught:
        run(asynchronous if kind == "async" else plain, [Backend("api", hang)])
    assert caught.value is error
    if kind == "plain":
        with pytest.raises(SchedulerClosedError):
            futures[0].result(0)


@pytest.mark.parametrize("work", ["async", "plain", "targets"])
async def test_where_a_loop_runs(work):
    """As in a notebook: on another loop, in a thread of its own."""

    async def asynchronous(scheduler):
        assert asyncio.get_running_loop() is not loop
        return (await scheduler.fetch("a")).value

    def plain(scheduler):
        return scheduler.submit_threadsafe("a").result().value

    loop = asyncio.get_running_loop()
    if work == "targets":
        assert [reply.value for reply in run(["a"], BACKENDS)] == ["A"]
    else:
        assert run(asynchronous if work == "async" else plain, BACKENDS) == "A"
    with pytest.raises(ConfigError, match="there is no target"):
        run([], BACKENDS)
    assert not [thread for thread in threading.enumerate() if thread.name == "tidegate-run" and thread.is_alive()]


def test_in_another_thread():
    """It installs no signal handler there."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run(["a"], BACKENDS)[0].value))
    thread.start()
    thread.join(20)
    assert results == ["A"]


def test_signal_handler_is_as_before():
    before = signal.getsignal(signal.SIGINT)
    run(["a"], BACKENDS)
    assert signal.getsignal(signal.SIGINT) is before


def test_handler_of_the_users_stays():
    def mine(number, frame):
        pass

    async def main(scheduler):
        return signal.getsignal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, mine)
    try:
        assert run(main) is mine
    finally:
        signal.signal(signal.SIGINT, before)


# One attempt runs and two requests wait; the attempt ends when a line arrives on standard input, or never.
PROGRAM = """
import asyncio, sys, threading
from tidegate import Backend, BackendQuota, run

def say(*words):  # at once: others say something, too
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

async def fetch(request):
    say("started", request.target)
    try:
        await asyncio.to_thread(sys.stdin.readline) if {finishes} else await asyncio.sleep(1000)
    except asyncio.CancelledError:
        say("cancelled", request.target)
        raise
    say("finished", request.target)

BACKENDS = [Backend("api", fetch, BackendQuota(concurrency=1))]
TARGETS = ["one", "two", "three"]

async def asynchronous(scheduler):
    async for reply in scheduler.map(TARGETS):
        say(reply.target, reply.ok)

def plain(scheduler):
    for future in [scheduler.submit_threadsafe(target) for target in TARGETS]:
        say(future.exception() is None)

async def notebook():
    run({work}, BACKENDS)

try:
    asyncio.run(notebook()) if {notebook} else run({work}, BACKENDS)
except KeyboardInterrupt:
    say("interrupted")
"""
WORK = {"async": "asynchronous", "plain": "plain", "targets": "TARGETS"}


class Program:
    """The program above in a process of its own, once its first attempt runs."""

    def __init__(self, work, *, notebook, finishes):
        text = PROGRAM.format(work=WORK[work], notebook=notebook, finishes=finishes)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", text], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout.readline() == "started one\n"

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def heeds(self):
        """Wait until it says that it was interrupted."""
        while "finishing what runs; Ctrl-C again stops now" not in (line := self.process.stderr.readline()):
            assert line, "it ended"

    def end(self):
        out, err = self.process.communicate("\n", timeout=20)
        assert "Traceback" not in err, err
        assert self.process.returncode == 0
        return out.splitlines()


@pytest.mark.parametrize("notebook", [False, True], ids=["program", "notebook"])
@pytest.mark.parametrize("work", WORK)
def test_first_interrupt_finishes_what_runs(work, notebook):
    program = Program(work, notebook=notebook, finishes=True)
    program.interrupt()
    program.heeds()
    lines = program.end()
    assert lines[-1] == "interrupted"
    assert "finished one" in lines
    assert not [line for line in lines if line.startswith("started")]
    if work == "async":
        assert sorted(lines[:-1]) == ["finished one", "one True", "three False", "two False"]
    if work == "plain":
        assert sorted(lines[:-1]) == ["False", "False", "True", "finished one"]


@pytest.mark.parametrize("notebook", [False, True], ids=["program", "notebook"])
@pytest.mark.parametrize("work", WORK)
def test_second_interrupt_stops_now(work, notebook):
    program = Program(work, notebook=notebook, finishes=False)
    program.interrupt()
    program.heeds()
    program.interrupt()
    lines = program.end()
    assert "interrupted" in (lines if work == "plain" else lines[-1:])  # a thread is left to itself, and may still say something
    assert "cancelled one" in lines
