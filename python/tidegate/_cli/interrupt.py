"""Ctrl-C on the command line: the first one finishes what runs, the second one stops now."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tidegate import RateLimitScheduler

CODE = 130
"""What a program that was interrupted exits with."""


@dataclass(slots=True)
class Interrupt:
    """Whether there was one, and what it set going."""

    happened: bool = False
    draining: list[asyncio.Task[bool]] = field(default_factory=list)


@contextmanager
def interruptible(scheduler: RateLimitScheduler, say: Callable[[str], object], *signals: signal.Signals) -> Iterator[Interrupt]:
    """Run a block whose first signal takes nothing new and finishes what runs, and whose second one cancels the block.

    Args:
        scheduler: What runs the requests.
        say: Told that it was heard.
        *signals: Those that mean it; default Ctrl-C.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    interrupt = Interrupt()

    def hear() -> None:
        if interrupt.happened:
            task.cancel()
            return
        interrupt.happened = True
        say("finishing what runs; Ctrl-C again stops now")
        interrupt.draining.append(loop.create_task(scheduler.drain(cancel_waiting=True)))

    heard = []
    try:
        for number in signals or (signal.SIGINT,):
            loop.add_signal_handler(number, hear)
            heard.append(number)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread: the caller's own Ctrl-C
        pass
    try:
        yield interrupt
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
