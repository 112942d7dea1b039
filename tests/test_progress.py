"""`map(progress=)`: what is shown on standard error, and when nothing is."""

import asyncio
import io
import re
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr
from types import ModuleType

import pytest

from tidegate import Backend, ConfigError, ContinuousCollector, RateLimitScheduler, Retry


class Terminal(io.StringIO):
    """A standard error that can be redrawn."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Pytest replaces standard error between a fixture and its test, so `collect` puts it there."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


async def handler(request):
    await asyncio.sleep(0.01)
    if request.target == 3:
        raise KeyError(request.target)
    return request.target


async def collect(out: io.StringIO, targets: Iterable[int], *, stop_after: int | None = None, **options: object) -> int:
    """Replies taken, with `out` as standard error."""
    taken = 0
    retry = Retry(attempts=1)
    with redirect_stderr(out):
        async with RateLimitScheduler([Backend("api", handler, "20/400ms")], retry=retry) as scheduler:
            async for _ in scheduler.map(targets, **options):
                taken += 1
                if taken == stop_after:
                    break
            await asyncio.sleep(0)
            assert not [task for task in asyncio.all_tasks() if task.get_name() == "tidegate-progress"]
    return taken


async def test_line_is_redrawn_on_a_terminal(terminal):
    await collect(terminal, range(50), progress=True)
    text = terminal.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    rows = [row.strip() for row in text.split("\r")[1:]]
    assert len(rows) > 5
    assert all(len(row) < 120 for row in rows)
    assert rows[0].startswith("0/50  0.0/s  0 in flight")
    assert any(re.search(r"\d\d/50  \d+\.\d/s  .*waiting: api limit \d\.\d s  0 rejected", row) for row in rows)
    assert any("ETA 0:0" in row for row in rows)
    assert rows[-1].startswith("50/50")
    assert rows[-1].endswith("1 failed")


async def test_log_gets_a_line_now_and_then(log):
    await collect(log, range(30), progress=True)
    rows = log.getvalue().splitlines()
    assert [row.split()[0] for row in rows] == ["0/30", "30/30"]
    assert "\r" not in log.getvalue()


async def test_terminal_in_ci_is_a_log(terminal, monkeypatch):
    monkeypatch.setenv("CI", "true")
    await collect(terminal, range(10), progress=True)
    assert "\r" not in terminal.getvalue()
    assert "10/10" in terminal.getvalue()


async def test_auto_shows_nothing_in_a_log(log):
    await collect(log, range(10), progress="auto")
    assert log.getvalue() == ""


async def test_auto_shows_a_line_on_a_terminal(terminal):
    await collect(terminal, range(10), progress="auto")
    assert "10/10" in terminal.getvalue()


async def test_variable_turns_it_off(terminal, monkeypatch):
    monkeypatch.setenv("TIDEGATE_PROGRESS", "0")
    await collect(terminal, range(10), progress=True)
    assert terminal.getvalue() == ""


async def test_default_is_silence(terminal):
    await collect(terminal, range(10))
    assert terminal.getvalue() == ""


async def test_it_ends_where_the_iteration_is_left(terminal, quiet):
    assert await collect(terminal, range(50), stop_after=10, progress=True) == 10
    assert terminal.getvalue().split("\r")[-1].startswith("10/50")
    assert terminal.getvalue().endswith("\n")


async def test_what_was_cancelled_is_not_passed_off_as_collected(log):
    with redirect_stderr(log):
        async with RateLimitScheduler([Backend("api", handler, "4/h")], retry=Retry(attempts=1)) as scheduler:
            taken = 0
            async for _ in scheduler.map(range(10), progress=True):
                taken += 1
                if taken == 4:
                    await scheduler.drain(cancel_waiting=True)
    assert re.match(r"10/10  .*  1 failed  6 cancelled$", log.getvalue().splitlines()[-1])


async def test_nobody_reading_is_no_reason_to_stop():
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    assert await collect(Closed(), range(10), progress=True) == 10


async def test_total_of_an_iterator_is_not_known(log):
    await collect(log, iter(range(10)), progress=True)
    assert [row.split()[0] for row in log.getvalue().splitlines()] == ["0", "10"]


async def test_bar_of_tqdm_where_it_is_installed(terminal, monkeypatch):
    bars = []

    class Bar:
        """As much of `tqdm` as is used of it."""

        def __init__(self, **options: object) -> None:
            self.options = options
            self.n = 0
            self.postfix = ""
            self.drawn = 0
            self.closed = False
            bars.append(self)

        def set_postfix_str(self, text: str, *, refresh: bool) -> None:
            self.postfix = text

        def refresh(self) -> None:
            self.drawn += 1

        def close(self) -> None:
            self.closed = True

    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["tqdm.auto"].tqdm = Bar  # type: ignore[attr-defined]
    await collect(terminal, range(30), progress=True)
    (bar,) = bars
    assert bar.options["total"] == 30
    assert bar.n == 30
    assert bar.drawn > 2
    assert "1 failed" in bar.postfix
    assert bar.closed


async def test_wrong_word_is_refused():
    async with RateLimitScheduler([Backend("api", handler)]) as scheduler:
        with pytest.raises(ConfigError, match="progress='tqdm': give True, False, or 'auto'") as caught:
            scheduler.map([1], progress="tqdm")
    assert caught.value.option == "progress"


async def test_collector_says_how_late_it_is(terminal, quiet):
    with redirect_stderr(terminal):
        async with RateLimitScheduler([Backend("api", handler, "20/400ms")], retry=Retry(attempts=1)) as scheduler:
            taken = 0
            async for _ in ContinuousCollector(scheduler, range(10), interval=0.1, progress=True):
                taken += 1
                if taken == 50:
                    break
            await asyncio.sleep(0)
            assert not [task for task in asyncio.all_tasks() if task.get_name() == "tidegate-progress"]
    rows = [row.strip() for row in terminal.getvalue().split("\r")[1:]]
    assert len(rows) > 3
    assert re.fullmatch(r"\d+  \d+\.\d/s  \d+ in flight  .*0 rejected  \d+ failed  [\d.]+ s late", rows[-1])
    assert int(rows[-1].split()[0]) >= 50
    assert terminal.getvalue().endswith("\n")


async def test_collector_is_silent_unless_asked(terminal):
    with redirect_stderr(terminal):
        async with RateLimitScheduler([Backend("api", handler)]) as scheduler:
            async for _ in ContinuousCollector(scheduler, range(2), interval=0.1):
                break
            with pytest.raises(ConfigError, match="progress=1"):
                ContinuousCollector(scheduler, range(2), progress=1)
    assert terminal.getvalue() == ""
