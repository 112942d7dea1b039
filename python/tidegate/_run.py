"""For programs that are not asynchronous themselves."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Literal, TypeVar, overload

from tidegate import _core
from tidegate._backend import Backend
from tidegate._balancer import LoadBalancer
from tidegate._errors import ConfigError
from tidegate._health import HealthMonitor
from tidegate._interrupt import Interruption
from tidegate._loops import runner
from tidegate._options import Retry
from tidegate._order import Order
from tidegate._scheduler import RateLimitScheduler

# Seconds after which a thread that waits looks whether there was a signal.
LOOK = 0.5

T = TypeVar("T")
Work = Callable[[RateLimitScheduler], Awaitable[T]]


@overload
def run(
    main: Callable[[RateLimitScheduler], Awaitable[T]],
    backends: Iterable[Backend] = (),
    *,
    order: Order = "strict",
    capacity: int = 1_000_000,
    retry: Retry = ...,
    isolation: Literal["worker", "task"] = "worker",
    balancer: LoadBalancer | None = None,
    health: HealthMonitor | None = None,
    seed: int | None = None,
) -> T: ...
@overload
def run(
    main: Callable[[RateLimitScheduler], T],
    backends: Iterable[Backend] = (),
    *,
    order: Order = "strict",
    capacity: int = 1_000_000,
    retry: Retry = ...,
    isolation: Literal["worker", "task"] = "worker",
    balancer: LoadBalancer | None = None,
    health: HealthMonitor | None = None,
    seed: int | None = None,
) -> T: ...
@overload
def run(
    main: Iterable[object] | AsyncIterable[object],
    backends: Iterable[Backend] = (),
    *,
    order: Order = "strict",
    capacity: int = 1_000_000,
    retry: Retry = ...,
    isolation: Literal["worker", "task"] = "worker",
    balancer: LoadBalancer | None = None,
    health: HealthMonitor | None = None,
    seed: int | None = None,
    **options: Any,
) -> list[_core.Reply]: ...
def run(
    main: Callable[[RateLimitScheduler], object] | Iterable[object] | AsyncIterable[object],
    backends: Iterable[Backend] = (),
    *,
    order: Order = "strict",
    capacity: int = 1_000_000,
    retry: Retry = Retry(),  # noqa: B008 - frozen
    isolation: Literal["worker", "task"] = "worker",
    balancer: LoadBalancer | None = None,
    health: HealthMonitor | None = None,
    seed: int | None = None,
    **options: Any,
) -> object:
    """Collect in a program that is not asynchronous: make a scheduler, run `main`, finish what was accepted, and close.

    It runs in this thread, on uvloop where that is installed; where a loop runs in this thread already, as in a notebook, on
    another one in a thread of its own, for which this thread waits.

    Ctrl-C in the main thread takes nothing new, finishes the attempts that run and cancels what waits; a second one stops now.
    `KeyboardInterrupt` is raised in the end. A SIGINT handler of your own stays in place, and then Ctrl-C is yours.

    Args:
        main: An `async def main(scheduler)`; or a plain function of the scheduler, which is run in a thread, where it may use
            `slot_blocking` and `submit_threadsafe`; or targets.
        backends: As for `RateLimitScheduler`; so are `order`, `capacity`, `retry`, `isolation`,
            `balancer`, `health` and `seed`.
        order: Which of the requests that wait goes next.
        capacity: Most requests pending at once.
        retry: How failed attempts are retried.
        isolation: Whether attempts have tasks of their own.
        balancer: How a backend is chosen among several.
        health: Whether and how a backend that fails is held back.
        seed: Of the random back-offs.
        **options: The options of each request but `backends`, when `main` is targets; each a value or a function of the target.

    Returns:
        What `main` returns; for targets their replies, failed ones too, in order.

    Raises:
        ConfigError: An option is wrong, or there is no target.
        KeyboardInterrupt: There was a Ctrl-C.

    Example:
        >>> async def fetch(request):
        ...     return request.target.upper()
        >>> [reply.value for reply in run(["a", "b"], [Backend("api", fetch, "100/s")])]
        ['A', 'B']
    """
    scheduler = RateLimitScheduler(
        backends,
        order=order,
        capacity=capacity,
        retry=retry,
        isolation=isolation,
        balancer=balancer,
        health=health,
        seed=seed,
    )
    return _run(scheduler, _work_of(main, options))


def _work_of(main: object, options: Any) -> Work[object]:
    if not callable(main):

        async def collect(scheduler: RateLimitScheduler) -> object:
            async with scheduler.map(main, ordered=True, **options) as replies:  # type: ignore[arg-type] # it says so itself
                return [reply async for reply in replies]

        return collect
    if options:
        name, value = next(iter(options.items()))
        msg = f"{name}={value!r}: an option of requests goes with targets; give it to fetch(), submit() or map() in your function"
        raise ConfigError(msg, option=name, value=value)
    if inspect.iscoroutinefunction(main) or inspect.iscoroutinefunction(getattr(main, "__call__", None)):  # noqa: B004
        return main

    async def call(scheduler: RateLimitScheduler) -> object:
        result = await _in_a_thread(main, scheduler)
        return await result if inspect.isawaitable(result) else result

    return call


def _run(scheduler: RateLimitScheduler, work: Work[T]) -> T:
    """Run to the end, in this thread or another, and hand on what Ctrl-C has done."""
    interruption = Interruption(lambda: scheduler.drain(cancel_waiting=True))
    outcome: Future[T] = Future()

    async def main() -> T:
        async with scheduler:
            interruption.concerns()
            return await work(scheduler)

    def on_a_loop() -> T:
        with interruption.heeded(), runner() as own:  # asyncio puts a handler of its own only in the place of Python's
            return own.run(main())

    if not _on_a_loop():
        _settle(outcome, on_a_loop)
    else:
        threading.Thread(target=_settle, args=(outcome, on_a_loop), name="tidegate-run", daemon=True).start()
        try:
            with interruption.heeded():
                while not wait([outcome], LOOK).done:  # a signal may come just before it blocks, or to another thread
                    pass
        except BaseException:  # of a handler of signals of the user's
            interruption.stop()
            raise
    try:
        if interruption.happened:
            raise KeyboardInterrupt from outcome.exception()
        return outcome.result()
    finally:
        del outcome  # what it raises has this frame in its traceback


def _on_a_loop() -> bool:
    """Whether a loop runs in this thread. Told by a call, lest its exception be the context of all that follows."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _in_a_thread(function: Callable[[RateLimitScheduler], T], scheduler: RateLimitScheduler) -> T:
    """Call it in a daemon thread, which is left to itself when this is cancelled."""
    outcome: Future[T] = Future()
    context = copy_context()

    def call() -> None:
        _settle(outcome, lambda: context.run(function, scheduler))

    threading.Thread(target=call, name="tidegate-main", daemon=True).start()
    return await asyncio.wrap_future(outcome)


def _settle(outcome: "Future[T]", function: Callable[[], T]) -> None:
    """Give a future what a function returns or raises, unless it was cancelled."""
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - it is who waits' own
        with suppress(InvalidStateError):
            outcome.set_exception(error)
    else:
        with suppress(InvalidStateError):
            outcome.set_result(result)
