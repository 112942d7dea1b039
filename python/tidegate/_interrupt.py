"""What Ctrl-C does to a run."""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

logger = logging.getLogger("tidegate")

CODE = 130
"""What a command that was interrupted exits with."""


class Interruption:
    """The first Ctrl-C takes nothing new, finishes the attempts that run and cancels what waits; the second one stops now.

    Args:
        wind_down: What the first one does, as a coroutine function.
        say: Tells the user of the first one; default the log.

    Attributes:
        happened: There was one. Who runs things raises `KeyboardInterrupt` in the end.
    """

    def __init__(self, wind_down: Callable[[], Awaitable[object]], say: Callable[[str], object] = logger.warning) -> None:
        self._wind_down = wind_down
        self._say = say
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._winding: asyncio.Future[object] | None = None
        self._signals = 0
        self.happened = False

    def concerns(self) -> None:
        """The task that calls this is the one to stop; what came before is done now."""
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        for _ in range(self._signals):
            self._heed()

    def is_over(self) -> None:
        """What it concerned has ended: one that comes now, as of who presses twice, has nothing left to stop."""
        self._task = None

    def stop(self) -> None:
        """Do what the second one does, from any thread."""
        if self._task is not None:
            self._call(self._task.cancel)

    @contextmanager
    def heeded(self, *others: signal.Signals) -> Iterator[None]:
        """Have Ctrl-C come here while the block runs, if this is the main thread and nobody else handles it.

        The third one is Python's own, for a loop that does not come round.

        Args:
            *others: Signals that mean the same, such as SIGTERM for a command.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {
            number: handler for number in others if (handler := signal.getsignal(number)) is signal.SIG_DFL
        }
        if _is_pythons(handler := signal.getsignal(signal.SIGINT)):
            before[signal.SIGINT] = handler
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 2:
            raise KeyboardInterrupt
        self.happened = True
        self._call(self._heed)

    def _heed(self) -> None:
        if self._winding is None:
            self._say("finishing what runs; Ctrl-C again stops now")
            self._winding = asyncio.ensure_future(self._wind_down())
        elif self._task is not None:
            self._task.cancel()

    def _call(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(function)


def _is_pythons(handler: object) -> bool:
    """Whether it is Python's own, or the one that `asyncio.run` puts in its place."""
    bound = getattr(handler.func, "__self__", None) if isinstance(handler, partial) else None
    return handler is signal.default_int_handler or isinstance(bound, asyncio.Runner)
