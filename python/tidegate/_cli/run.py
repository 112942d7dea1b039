"""`tidegate run`: collects what a configuration says, into its file, and sums up how it went."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self, TextIO

import msgspec

from tidegate import (
    ContinuousCollector,
    DeadlineExceededError,
    RateLimitScheduler,
    Reply,
    ReplyStream,
    RequestCancelledError,
    SchedulerClosedError,
)
from tidegate._cli.config import Plan
from tidegate._cli.problems import BadFileError, Problem
from tidegate._cli.summary import sum_up, told, unfinished
from tidegate._cli.targets import LineError, Targets, read_all, read_as_they_come
from tidegate._interrupt import CODE as INTERRUPTED
from tidegate._interrupt import Interruption
from tidegate._progress import Line, Meter, is_off
from tidegate._snapshot import Snapshot
from tidegate.backends.http import HttpStatusError
from tidegate.sinks import JsonLines, SinkError

logger = logging.getLogger("tidegate")

MOST_AHEAD = 1_000_000
"""Targets that are accepted and have not come back."""
MOST_UNWRITTEN = 256
"""Replies that wait to be written; then no more are taken."""


async def collect(plan: Plan, *, quiet: bool = False, as_json: bool = False) -> int:
    """Collect, and sum up.

    Returns:
        The exit code: 0, 1 when a request failed or the output did, 130 when it was interrupted.

    Raises:
        BadFileError: The targets or the output cannot be used; nothing was sent.
    """
    targets, source = targets_of(plan)
    to_stdout = plan.output.file == "-"
    path = 1 if to_stdout else plan.beside(plan.output.file)
    sink = JsonLines(path, save=plan.output.save, rotate=plan.output.rotate, sync=plan.output.sync)
    try:
        sink.open()
    except SinkError as error:
        raise BadFileError.of(str(plan.file), Problem(0, "[output]", "file", str(error))) from None
    try:
        run = Run(plan, source, targets, sink)
        return await run.through(sys.stderr, quiet=quiet, as_json=as_json)
    finally:
        sink.close()


def targets_of(plan: Plan) -> tuple[list[str] | None, Targets]:
    """What to collect; None when it comes from standard input as it is collected.

    Raises:
        BadFileError: The file cannot be used.
    """
    path = plan.beside(plan.targets.file or "")
    if path == "-" and plan.run.interval is None:
        return None, Targets("standard input")
    try:
        targets, source = read_all(plan, path)
    except OSError as error:
        raise BadFileError.of(path, Problem(0, "", "", f"cannot be read: {error.strerror}")) from None
    except LineError as error:
        raise BadFileError.of(path, Problem(1, "", "", str(error))) from None
    if plan.targets.strict and source.bad:
        rest = source.bad - len(source.told)
        raise BadFileError("\n".join([*source.told, *([f"{source.source}: {rest} bad lines more"] if rest else [])]))
    if not targets:
        raise BadFileError.of(source.source, Problem(0, "", "", "there is no target in it"))
    return targets, source


def collector_of(plan: Plan, targets: Sequence[str], source: Targets) -> ContinuousCollector:
    """What collects the targets again and again; with the usual interval, if the plan has none."""
    run = plan.run
    return ContinuousCollector(plan.scheduler, targets, overrun=run.overrun, spread=run.spread, **options_of(plan, source))


def options_of(plan: Plan, source: Targets) -> dict[str, Any]:
    """The options of requests: those of each target, where its line may have some."""
    run = plan.run
    options: dict[str, Any] = {"priority": int(run.priority), "timeout": None if run.timeout is None else float(run.timeout)}
    if run.interval is not None:
        options["interval"] = float(run.interval)
    for name in plan.targets.options:
        options[name] = source.option(name, options.get(name))
    if plan.scopes:
        options["scopes"] = source.scopes
    return options


@dataclass
class Run:
    """One run: what has come back so far, and how it ended."""

    plan: Plan
    source: Targets
    targets: Sequence[str] | None
    sink: JsonLines
    collected: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    expired: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    written: int = 0
    unwritten: int = 0
    collector: ContinuousCollector | None = None
    problem: str | None = None
    interrupted: bool = False
    seconds: float = 0.0
    snapshot: Snapshot | None = None

    @property
    def scheduler(self) -> RateLimitScheduler:
        """What runs the requests."""
        return self.plan.scheduler

    @property
    def done(self) -> int:
        """Requests that have ended by themselves."""
        return self.collected.total() + self.failures.total() + self.expired

    async def through(self, out: TextIO, *, quiet: bool, as_json: bool) -> int:
        """Run it to its end, whatever that is, and sum up.

        Returns:
            The exit code.
        """
        with ExitStack() as signals:
            await self._run(out, signals, quiet=quiet)
            return self._sum_up(out, quiet=quiet, as_json=as_json)

    async def _run(self, out: TextIO, signals: ExitStack, *, quiet: bool) -> None:
        """Run it to its end. Signals are heeded beyond that, so that one that comes late does not take the summary."""
        loop = asyncio.get_running_loop()
        async with self.scheduler:
            once = self.total if self.plan.run.interval is None else None
            meter = Meter(self.scheduler, lambda: self.done, once, loop.time, self._late)
            line = Line(out, meter.line)
            say = _say_nothing if quiet else line.say
            with ExitStack() as stack:
                stack.enter_context(_logged(line, quiet=quiet))
                for text in self.source.told:
                    say(text)
                self.source.tell = say
                if not quiet and not is_off() and not (self.sink.path == 1 and sys.stdout.isatty()):
                    line.start()
                    stack.callback(line.stop)
                interruption = Interruption(lambda: self.scheduler.drain(cancel_waiting=True), say)
                signals.enter_context(interruption.heeded(signal.SIGTERM))
                interruption.concerns()
                started_at = loop.time()
                try:
                    await self._collect()
                except asyncio.CancelledError:
                    if not interruption.happened:
                        raise
                    _forget_cancellation()
                    await self.scheduler.close()
                finally:
                    interruption.is_over()
                    self.interrupted = interruption.happened
                    self.seconds = loop.time() - started_at
            self.snapshot = self.scheduler.snapshot()

    def _sum_up(self, out: TextIO, *, quiet: bool, as_json: bool) -> int:
        """Say how it went; the exit code."""
        assert self.snapshot is not None
        summary = sum_up(self, self.snapshot)
        if not quiet:
            out.write(told(summary, self.examples))
        elif summary["failures"] or self.expired:
            out.write(f"tidegate: {unfinished(summary)}\n")
        if self.problem is not None:
            out.write(f"tidegate: {self.problem}\n")
        out.flush()
        if as_json:
            with suppress(BrokenPipeError):  # nobody wants to know
                sys.stdout.write(f"{msgspec.json.encode(summary).decode()}\n")
                sys.stdout.flush()
        return INTERRUPTED if self.interrupted else 1 if self.problem or self.failures or self.expired else 0

    async def _collect(self) -> None:
        async with Writer(self) as writer:
            try:
                async with self._replies() as replies:
                    async for reply in replies:
                        if self._take(reply):
                            await writer.put(reply)
            except (LineError, OSError) as error:  # of standard input
                self.problem = f"stopped: {self.source.source}: {error}"

    def _replies(self) -> ReplyStream | ContinuousCollector:
        """Of all targets once, or again and again."""
        run, options = self.plan.run, options_of(self.plan, self.source)
        if run.interval is None:
            # With options of their own the last one may be the most urgent: all are accepted before any goes.
            ahead = min(self.total, MOST_AHEAD) if self.total is not None and self.plan.targets.options else None
            return self.scheduler.map(self._source(), ahead=ahead, **options)
        assert self.targets is not None
        self.collector = collector_of(self.plan, self.targets, self.source)
        return self.collector

    def _source(self) -> Sequence[str] | AsyncIterable[str]:
        if self.targets is not None:
            return self.targets
        return read_as_they_come(self.plan, self.source)

    @property
    def total(self) -> int | None:
        """How many targets there are, if that is known."""
        return None if self.targets is None else len(self.targets)

    def _late(self) -> str:
        """How late a collection is, for the line of progress."""
        return "" if self.collector is None else f"{self.collector.statistics().lag.p90:.2g} s late"

    def _take(self, reply: Reply) -> bool:
        """Count a reply; whether it is one to keep."""
        self.waits.update(reply.waits)
        if reply.ok:
            self.collected[reply.backend or ""] += 1
        elif isinstance(reply.error, RequestCancelledError | SchedulerClosedError):
            return False
        elif isinstance(reply.error, DeadlineExceededError):
            self.expired += 1
        else:
            reason = _reason(reply)
            self.failures[reason] += 1
            self.examples.setdefault(reason, _example(reply))
        return True


class Writer:
    """Hands replies to the sink: while some are written the next ones gather.

    When the sink fails it closes the scheduler: there is nowhere to put what would come.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._batch: list[Reply] = []
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._has_ended = False
        self._closing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        self._task = asyncio.get_running_loop().create_task(self._write(), name="tidegate-writer")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what is left."""
        assert self._task is not None
        self._has_ended = True
        self._changed.set()
        await asyncio.wait([self._task])
        self._task.result()
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def put(self, reply: Reply) -> None:
        """Have a reply written, some time soon; waits while many are before it."""
        if self._task is None or self._task.done():
            self._run.unwritten += 1
            return
        self._batch.append(reply)
        self._changed.set()
        if len(self._batch) >= MOST_UNWRITTEN:
            self._room.clear()
            await self._room.wait()

    async def _write(self) -> None:
        run = self._run
        while not (self._has_ended and not self._batch):
            await self._changed.wait()
            self._changed.clear()
            batch, self._batch = self._batch, []
            self._room.set()
            if not batch:
                continue
            try:
                await run.sink.write(batch)
            except SinkError as error:
                run.written += error.written
                run.unwritten += len(batch) - error.written + len(self._batch)
                run.problem = f"stopped, for the output failed: {error}"
                self._batch.clear()
                self._room.set()
                self._closing = asyncio.get_running_loop().create_task(run.scheduler.close())
                return
            run.written += len(batch)


def _reason(reply: Reply) -> str:
    """Why a request failed, in a word that many share."""
    cause = reply.error.__cause__ if reply.error is not None else None
    if isinstance(cause, HttpStatusError):
        return f"status {cause.status}"
    return type(cause or reply.error).__name__


def _example(reply: Reply) -> str:
    """What one of these errors said; nothing where the reason says it all."""
    cause = reply.error.__cause__ if reply.error is not None else None
    return "" if isinstance(cause, HttpStatusError) else str(cause or reply.error).partition("\n")[0]


def _say_nothing(text: str) -> None:
    """Keep quiet."""


def _forget_cancellation() -> None:
    """The second Ctrl-C was for the collecting; what comes after it is not to be cancelled."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


@contextmanager
def _logged(line: Line, *, quiet: bool) -> Iterator[None]:
    """Changes of state go above the line of progress."""

    class Above(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line.say(f"tidegate: {record.getMessage()}")

    handler = Above(logging.ERROR if quiet else logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
