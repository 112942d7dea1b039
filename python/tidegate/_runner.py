"""From a user's handler to the coroutine function that a worker awaits."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context

from tidegate import _core
from tidegate._backend import Backend, Classify
from tidegate._outcome import Classified, Outcome
from tidegate._threads import HandlerThreads

Runner = Callable[[_core.Request], Awaitable[object]]


def runner_of(backend: Backend) -> Runner:
    """The coroutine function that runs one attempt. An `async def` handler without `classify` is its own runner."""
    handler = backend.handler
    call = getattr(handler, "__call__", None)  # noqa: B004 - an object may have an `async def __call__`
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)
    runner: Runner = handler if is_async else HandlerThreads(backend.name, handler)  # type: ignore[assignment]
    return runner if backend.classify is None else _classified(runner, backend.classify)


def _classified(runner: Runner, classify: Classify) -> Runner:
    async def run(request: _core.Request) -> object:
        try:
            result = await runner(request)
        except Exception as error:  # noqa: BLE001 - the user's function decides what it means
            result = error
        outcome = Outcome(classify(request, result))
        if outcome is Outcome.OK and not isinstance(result, BaseException):
            return result
        raise Classified(outcome, result)

    return run


class ContextRunner:
    """Runs each attempt in a task of its own, in the context of who submitted the request."""

    def __init__(self, runners: Mapping[str, Runner], context: Context) -> None:
        self._runners = runners
        self._context = context

    async def __call__(self, request: _core.Request) -> object:
        """Run one attempt. Cancelling the caller cancels the task."""
        attempt = _guarded(self._runners[request.backend], request)
        result, error = await asyncio.get_running_loop().create_task(attempt, context=self._context.copy())
        if error is not None:
            raise error
        return result


async def _guarded(runner: Runner, request: _core.Request) -> tuple[object, BaseException | None]:
    """Keep what would take the loop down with its task: the worker decides what becomes of it."""
    try:
        return await runner(request), None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001
        return None, error
