"""Limits alone, without a scheduler."""

from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from itertools import count
from types import TracebackType
from typing import Self

from tidegate import _core
from tidegate._clock import ManualClock
from tidegate._errors import ConfigError, CostExceedsBurstError, DeadlineExceededError
from tidegate._line import Blocked, Parked, Verdict
from tidegate._quota import Limit, seconds_of

Told = tuple[list[int], list[int], tuple[int, float] | None] | None


class Limiter(_core.Limiter):
    """Limits for code of your own, from any thread and on any event loop; no scheduler, no backend.

    Waiters are first in, first out, whatever they cost and wherever they wait. Each key has the limits to itself, and is
    forgotten when nothing of them is used any more.

    A unit of `acquire` and `try_acquire` counts from when the call returns. In `with limiter:` and `async with limiter:` it
    counts until the body has ended, and from then on for the limit's period: put one request of yours in the body, and a server
    that counts as declared never gets more than it allows, however slow the network is.

    With one limit that has a burst, and no key, an admission is one compare-and-swap.

    Args:
        *limits: `Limit`s, or texts that `Limit.parse` reads. All must admit a call, and it is charged to all.
        clock: A `tidegate.testing.ManualClock`, for tests in virtual time; on its own loop only.

    Raises:
        ConfigError: A limit is out of range.

    Cancellation: who is cancelled while it waits leaves the line and takes nothing. A waiter whose loop does not run, or whose
    thread is held up, does not take its turn, and those behind it wait.

    Example:
        >>> limiter = Limiter("2/h burst 2", "100/d")
        >>> with limiter:
        ...     pass
        >>> limiter.try_acquire(), limiter.try_acquire()
        (True, False)
    """

    def __new__(cls, *limits: str | Limit, clock: ManualClock | None = None) -> Self:
        """Check the limits."""
        parsed = _parsed(limits)
        self = super().__new__(cls, list(parsed), clock)
        self._clock = clock
        self._limits = parsed
        self._numbers = count()
        self._waiters = {}
        return self

    _clock: ManualClock | None
    _limits: tuple[Limit, ...]
    _numbers: "count[int]"
    _waiters: dict[int, Parked | Blocked]

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that hold now."""
        return self._limits

    async def acquire(self, cost: int = 1, key: str | int | None = None, timeout: float | timedelta | None = None) -> None:
        """Wait in line for a permit of `cost` units, whose clocks start when this returns. Returns at once when it can.

        Args:
            cost: Units, at least 1.
            key: A text or an integer: what has the limits to itself. None is a key like any other.
            timeout: Seconds to wait at most, or a timedelta.

        Raises:
            DeadlineExceededError: `timeout` passed first.
            CostExceedsBurstError: The cost is larger than a limit can ever hold.
            ConfigError: An argument is out of range.

        Cancellation: takes nothing.
        """
        seconds = None if timeout is None else seconds_of("timeout", timeout)
        if not self.try_acquire(cost, key):
            await self._wait(cost, key, seconds, anchored=True)

    def acquire_blocking(self, cost: int = 1, key: str | int | None = None, timeout: float | timedelta | None = None) -> None:
        """Block the calling thread until it has a permit; otherwise as `acquire`. Not for the thread of an event loop."""
        seconds = None if timeout is None else seconds_of("timeout", timeout)
        if not self.try_acquire(cost, key):
            self._block(cost, key, seconds, anchored=True)

    def set_limits(self, *limits: str | Limit) -> None:
        """Have other limits from now on, also for those who wait. What was sent before counts against them too.

        A limit of the same kind and period goes on as it stands; of another one, at most as much is taken as used as the old
        limits had in use. Who waits for a cost that can never be admitted any more gets a `CostExceedsBurstError`.

        Raises:
            ConfigError: A limit is out of range.
        """
        parsed = _parsed(limits)
        news = self._set_limits(list(parsed))
        self._limits = parsed
        for told in news:
            self._tell(told)

    async def __aenter__(self) -> None:
        """Wait in line for a permit of one unit."""
        if not self._try_hold(1, None):
            await self._wait(1, None, None, anchored=False)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Start the clocks of the permit, however the body ended."""
        if (told := self._anchor(1, None)) is not None:
            self._tell(told)

    def __enter__(self) -> None:
        """Block the calling thread until it has a permit of one unit."""
        if not self._try_hold(1, None):
            self._block(1, None, None, anchored=False)

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        """Start the clocks of the permit, however the body ended."""
        self._tell(self._anchor(1, None))

    async def _wait(self, cost: int, key: str | int | None, timeout: float | None, *, anchored: bool) -> None:
        waiter = Parked(key, partial(self._ask, key), timeout, self._clock)
        number = next(self._numbers)
        self._waiters[number] = waiter
        try:
            if self._stands(number, cost, key, anchored=anchored):
                self._settle(number, key, await waiter.verdict, cost, timeout, anchored=anchored)
        except BaseException:
            self._tell(self._leave(number, key))
            raise
        finally:
            waiter.stop()
            self._waiters.pop(number, None)

    def _block(self, cost: int, key: str | int | None, timeout: float | None, *, anchored: bool) -> None:
        if self._clock is not None:
            msg = "a thread cannot wait for a manual clock: use acquire() or 'async with', or give the limiter no clock"
            raise RuntimeError(msg)
        waiter = Blocked(key, timeout)
        number = next(self._numbers)
        self._waiters[number] = waiter
        try:
            if self._stands(number, cost, key, anchored=anchored):
                while (verdict := waiter.verdict()) is Verdict.ASK:
                    self._ask(key)
                self._settle(number, key, verdict, cost, timeout, anchored=anchored)
        except BaseException:
            self._tell(self._leave(number, key))
            raise
        finally:
            self._waiters.pop(number, None)

    def _stands(self, number: int, cost: int, key: str | int | None, *, anchored: bool) -> bool:
        """Whether the caller has to wait; it stands in line then."""
        admitted, told = self._join(number, cost, key)
        if admitted and anchored:
            told = self._anchor(cost, key)
        self._tell(told)
        return not admitted

    def _settle(
        self, number: int, key: str | int | None, verdict: Verdict, cost: int, timeout: float | None, *, anchored: bool
    ) -> None:
        """Take the permit that was waited for.

        Raises:
            DeadlineExceededError: There is none: it did not come in time.
            CostExceedsBurstError: There is none: the limits were changed.
        """
        if verdict is Verdict.LATE:
            msg = f"no permit of {self!r} in {timeout:.3g} s"
            raise DeadlineExceededError(msg, after=timeout or 0.0)
        if verdict is Verdict.ADMITTED:
            self._tell(self._claim(number, key, anchored))
        else:
            largest = min(limit.burst or limit.amount for limit in self._limits)
            msg = f"cost={cost}: the limits were changed, and {self!r} never admits more than {largest} at once"
            raise CostExceedsBurstError(msg, cost=cost, burst=largest)

    def _ask(self, key: str | int | None) -> None:
        self._tell(self._poll(key))

    def _tell(self, told: Told) -> None:
        """Pass on what became of a line. Who cannot be reached any more has left it."""
        pending = [told]
        while pending:
            told = pending.pop()
            if told is None:
                continue
            admitted, refused, following = told
            news: list[tuple[int, Verdict | float]] = [(number, Verdict.ADMITTED) for number in admitted]
            news += [(number, Verdict.REFUSED) for number in refused]
            if following is not None:
                news.append(following)
            for number, what in news:
                waiter = self._waiters.get(number)
                if waiter is not None and not waiter.hear(what):
                    pending.append(self._leave(number, waiter.key))
                    self._waiters.pop(number, None)

    def __repr__(self) -> str:
        return f"Limiter({', '.join(repr(limit.name) for limit in self._limits)})"


def _parsed(limits: Iterable[str | Limit]) -> tuple[Limit, ...]:
    parsed = tuple(limit if isinstance(limit, Limit) else Limit.parse(limit) for limit in limits)
    for limit in parsed:
        if limit.per is not None:
            msg = f"limits={limit.name!r}: a limiter counts per key; leave out per {limit.per!r}, and give its value as key="
            raise ConfigError(msg, option="limits", value=limit.name)
    return parsed
