"""How far something is, in one line: redrawn on a terminal, else printed now and then; by `tqdm` where it is installed."""

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TextIO

from tidegate._errors import ConfigError
from tidegate._snapshot import BackendState, Ledger, Snapshot

REDRAWN_EVERY = 0.1
PRINTED_EVERY = 10.0
"""Seconds between two lines where nothing can be redrawn."""
SPAN = 60.0
"""Seconds over which a rate is taken."""
MOST_NAMED = 3
"""Backends that are named as what is waited for."""

Progress = bool | Literal["auto"]


def checked(progress: object) -> Progress:
    """An option that a user gave.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(progress, bool):
        return progress
    if isinstance(progress, str) and progress == "auto":
        return "auto"
    msg = f"progress={progress!r}: give True, False, or 'auto' for terminals and notebooks alone"
    raise ConfigError(msg, option="progress", value=progress)


def is_terminal(out: TextIO) -> bool:
    """Whether a line can be redrawn there. Where CI is set a terminal is a log all the same."""
    return out.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def is_off() -> bool:
    """Whether the user wants no progress of any program."""
    return os.environ.get("TIDEGATE_PROGRESS", "").lower() in {"0", "false", "no", "off"}


class Source(Protocol):
    """A scheduler, as far as its progress goes."""

    def snapshot(self) -> Snapshot:
        """How everything stands."""

    def ledger(self) -> Ledger:
        """What became of every request."""


class Meter:
    """What there is to say about a run: how many are done, how fast, what they wait for, and how long it takes.

    Args:
        source: What runs it.
        done: Gives how many have come back.
        total: How many there are, if that is known.
        now: The clock.
        more: Gives what else there is to say; empty for nothing.
    """

    def __init__(
        self,
        source: Source,
        done: Callable[[], int],
        total: int | None,
        now: Callable[[], float],
        more: Callable[[], str] = str,
    ) -> None:
        self.done = done
        self.total = total
        self._source = source
        self._now = now
        self._more = more
        ledger = source.ledger()
        rejected = sum(backend.rejected for backend in source.snapshot().backends.values())
        self._before = (rejected, ledger.dead + ledger.expired, ledger.cancelled)
        self._samples = deque([(now(), done())])

    def details(self) -> str:
        """What a bar does not show by itself."""
        snapshot, ledger = self._source.snapshot(), self._source.ledger()
        backends = snapshot.backends
        parts = [f"{snapshot.leased} in flight"]
        if snapshot.queued:
            reasons = [reason for name in backends if (reason := _reason(name, backends[name]))]
            more = [f"{len(reasons) - MOST_NAMED} more"] if len(reasons) > MOST_NAMED else []
            waiting = f"{snapshot.queued} waiting"
            parts.append(": ".join(filter(None, (waiting, ", ".join([*reasons[:MOST_NAMED], *more])))))
        rejected, failed, cancelled = self._before
        parts.append(f"{sum(backend.rejected for backend in backends.values()) - rejected} rejected")
        if failures := ledger.dead + ledger.expired - failed:
            parts.append(f"{failures} failed")
        if cancellations := ledger.cancelled - cancelled:
            parts.append(f"{cancellations} cancelled")
        if extra := self._more():
            parts.append(extra)
        return "  ".join(parts)

    def line(self) -> str:
        """All in one line."""
        now, done = self._now(), self.done()
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - SPAN:
            self._samples.popleft()
        since, before = self._samples[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        parts = [f"{done}" if self.total is None else f"{done}/{self.total}", f"{rate:.1f}/s", self.details()]
        if self.total is not None and 0 < done < self.total and rate > 0:
            parts.append(f"ETA {_clock_time((self.total - done) / rate)}")
        return "  ".join(parts)


class Line:
    """A line that changes.

    Args:
        out: Where it is shown.
        text: What it says now.
        every: Seconds between two lines where it cannot be redrawn.
    """

    def __init__(self, out: TextIO, text: Callable[[], str], every: float = PRINTED_EVERY) -> None:
        self._out = out
        self._text = text
        self._is_live = is_terminal(out)
        self._every = REDRAWN_EVERY if self._is_live else every
        self._showing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Show it from now on, on the running loop."""
        self._showing = asyncio.get_running_loop().create_task(self._repeat(), name="tidegate-progress")

    def stop(self) -> None:
        """Show it for the last time. Idempotent."""
        if self._showing is None:
            return
        _cancel(self._showing)
        self._showing = None
        self._draw()
        if self._is_live:
            self._write("\n")

    def say(self, text: str) -> None:
        """Print something above it."""
        if self._is_live and self._showing is not None:
            self._write(f"\r{'':{_width()}}\r{text}\n")
            self._draw()
        else:
            self._write(f"{text}\n")

    async def _repeat(self) -> None:
        while True:
            self._draw()
            await asyncio.sleep(self._every)

    def _draw(self) -> None:
        text = self._text()
        width = _width()
        self._write(f"\r{text[:width]:{width}}" if self._is_live else f"{text}\n")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, ValueError):  # nobody reads it any more, its disk is full, it was closed: the run goes on
            return


class Bar:
    """A `tqdm` bar: also in a notebook."""

    def __init__(self, meter: Meter, tqdm: Callable[..., Any]) -> None:
        self._meter = meter
        self._bar = tqdm(total=meter.total, unit="", dynamic_ncols=True)
        self._showing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Show it from now on, on the running loop."""
        self._showing = asyncio.get_running_loop().create_task(self._repeat(), name="tidegate-progress")

    def stop(self) -> None:
        """Show it for the last time. Idempotent."""
        if self._showing is None:
            return
        _cancel(self._showing)
        self._showing = None
        self._draw()
        self._bar.close()

    async def _repeat(self) -> None:
        while True:
            self._draw()
            await asyncio.sleep(REDRAWN_EVERY)

    def _draw(self) -> None:
        self._bar.n = self._meter.done()
        self._bar.set_postfix_str(self._meter.details(), refresh=False)
        self._bar.refresh()


def shown(progress: Progress, meter: Callable[[], Meter]) -> Line | Bar | None:
    """Show the progress of a call on standard error, as its user asked for it; nothing if it is not to be shown."""
    out = sys.stderr
    in_notebook = "ipykernel" in sys.modules
    if not progress or is_off() or (progress == "auto" and not in_notebook and not is_terminal(out)):
        return None
    made = meter()
    bar = _bar(made) if in_notebook or is_terminal(out) else None
    showing = bar or Line(out, made.line)
    showing.start()
    return showing


@contextmanager
def line(out: TextIO, text: Callable[[], str], every: float = PRINTED_EVERY) -> Iterator[Line]:
    """Show a line while a block runs."""
    showing = Line(out, text, every)
    showing.start()
    try:
        yield showing
    finally:
        showing.stop()


def _bar(meter: Meter) -> Bar | None:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    return Bar(meter, tqdm)


def _cancel(task: "asyncio.Task[None]") -> None:
    if not task.get_loop().is_closed():
        task.cancel()


def _reason(name: str, backend: BackendState) -> str:
    """Why a backend takes nothing now; empty if it does."""
    word = {"limited": "limit", "closed": "closed", "full": "full"}.get(backend.state)
    if word is None:
        return ""
    seconds = backend.next_eligible_in
    return f"{name} {word}" if seconds is None or word == "full" else f"{name} {word} {seconds:.{int(seconds < 10)}f} s"


def _width() -> int:
    import shutil  # brings in what compresses files

    return max(1, shutil.get_terminal_size().columns - 1)


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
