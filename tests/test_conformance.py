"""The harness that tries peers in virtual time: it must see what a server rejects, and each peer must run in it."""

import asyncio
import time
from importlib.util import find_spec

import pytest

from conformance.clock import Clock
from conformance.grid import LINES, Declared, Kind, Shape
from conformance.peers import PEERS
from conformance.trial import TASKS, delivered, sent, tidegate

TINY = Shape("10/1s", ((10, 1),), None, 9.5)
MODULES = {"pyrate-limiter": "pyrate_limiter", "limits": "limits", "throttled-py": "throttled"}  # the others are aiolimiter


def every(seconds):
    """What a task does that sends so often, all of them together, and has no limiter."""

    async def step(send):
        send()
        await asyncio.sleep(seconds * TASKS)

    return step


@pytest.mark.parametrize("kind", Kind)
def test_who_sends_too_much_is_rejected_for_all_of_it(kind):
    """Twice of what is allowed, spread evenly: a half of it goes through, give or take a window."""
    declared = Declared(kind, TINY)
    outcome = delivered(sent(every(0.05), declared, 1), declared, LINES["80 ms"], 1)
    assert outcome.accepted <= outcome.allowed
    assert outcome.accepted + outcome.rejected == 12 * TASKS  # every 0.8 s, and at once
    assert outcome.rejected > 60


@pytest.mark.parametrize("line", LINES)
def test_who_sends_little_is_not_rejected(line):
    """One every two seconds."""
    declared = Declared(Kind.LOG, TINY)

    async def step(send):
        send()
        await asyncio.sleep(1e6)

    instants = sent(step, declared, 1)[:1]
    outcome = delivered([instants[0] + 2 * number for number in range(5)], declared, LINES[line], 1)
    assert (outcome.accepted, outcome.rejected) == (5, 0)


def test_jitter_alone_gets_a_client_rejected_that_counts_what_leaves():
    """Ten at the beginning of each second: exact over a constant line, and not where arrivals spread."""
    declared = Declared(Kind.LOG, TINY)
    instants = [second + 0.0 for second in range(1, 10) for _ in range(10)]
    assert delivered(instants, declared, LINES["80 ms"], 1).rejected == 0
    assert delivered(instants, declared, LINES["0-80 ms"], 1).rejected > 0


@pytest.mark.parametrize("kind", [Kind.LOG, Kind.BUCKET])
@pytest.mark.parametrize("peer", PEERS)
def test_each_peer_runs(peer, kind):
    """Over a constant line nearly all is used and nearly nothing rejected, the same each time."""
    if find_spec(MODULES.get(peer, "aiolimiter")) is None:
        pytest.skip(f"{peer} is not installed: `make conformance` does it")
    declared = Declared(kind, TINY)
    first, second = (sent(PEERS[peer](declared), declared, 1) for _ in range(2))
    assert first == second
    outcome = delivered(first, declared, LINES["80 ms"], 1)
    assert outcome.use > 0.8
    assert outcome.rejected < 0.1 * len(first)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("kind", Kind)
def test_tidegate_is_not_rejected(kind, line):
    """The row beside theirs."""
    outcome = tidegate(Declared(kind, TINY), LINES[line], 1)
    assert outcome.rejected == 0
    assert 0.4 < outcome.use <= 1


# ---- Virtual time


def test_an_hour_passes_at_once_on_all_clocks():
    """Who asks the loop or the system, and who works in a thread, gets the same time."""
    clock = Clock(1000.0)
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        began = time.time(), time.monotonic(), loop.time()
        await asyncio.sleep(3600)
        seen.extend(now - before for now, before in zip((time.time(), time.monotonic(), loop.time()), began, strict=True))
        seen.append(await asyncio.to_thread(time.time) - 1000)

    clock.run(main())
    assert seen == pytest.approx([3600] * 4, abs=0.001)


def test_waiting_for_nothing_is_an_error():
    """And not the end of the suite."""

    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="never comes"):
        Clock(1000.0).run(main())
