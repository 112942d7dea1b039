"""Virtual time for programs that know only the real one: clocks that stand still, and an event loop that moves them."""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from functools import partial
from unittest import mock

# A turn of the loop takes a microsecond: who asks again and again until the clock has moved on gets there.
TURN = 1000


class Clock:
    """Stands at `seconds` of Unix time until a loop that waits moves it."""

    def __init__(self, seconds: float) -> None:
        self.nanos = round(seconds * 1e9)

    def time(self) -> float:
        """Seconds of Unix time; whoever asks for the monotonic clock gets it too."""
        return self.nanos / 1e9

    def run(self, main: Coroutine[object, object, None]) -> None:
        """Run a coroutine to its end on a loop of this time, with `time.time` and its like following it."""
        nanos = partial(getattr, self, "nanos")
        clocks: dict[str, Callable[[], float]] = {
            "time": self.time,
            "time_ns": nanos,
            "monotonic": self.time,
            "monotonic_ns": nanos,
            "perf_counter": self.time,
        }
        with mock.patch.multiple(time, **clocks), asyncio.Runner(loop_factory=partial(_Loop, self)) as runner:
            runner.run(main)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        super().__init__(_Selector(clock))

    def run_in_executor(self, executor, func, *args):
        """Call it here and now: a thread would do its work while the clock stands still."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _Selector(selectors.DefaultSelector):
    """Moves the clock by as long as it would have waited."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout=None):
        if timeout is None:
            msg = "everybody waits for something that never comes"
            raise RuntimeError(msg)
        self._clock.nanos += max(round(timeout * 1e9), TURN)
        return super().select(0)
