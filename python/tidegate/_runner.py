"""From a user's handler to the coroutine function that a worker awaits."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context

from tidegate import _core
from tidegate._backend import Backend, Classify
from tidegate._outcome import Classified, Outcome, PutBackError
from tidegate._threads import HandlerThreads, StillRunningError

Runner = Callable[[_core.Request], Awaitable[object]]


def runner_of(backend: Backend) -> tuple[Runner, HandlerThreads | None]:
    """The coroutine function that runs one attempt of this backend, and the threads it uses, if any.

    An `async def` handler without `classify` is its own runner.
    """
    handler = backend.handler
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004
    threads = None if is_async else HandlerThreads(backend.name, handler)
    runner: Runner = threads or handler  # type: ignore[assignment] # one of the two kinds of handler
    return (runner if backend.classify is None else _classified(runner, backend.classify)), threads


def _classified(runner: Runner, classify: Classify) -> Runner:
    async def run(request: _core.Request) -> object:
        try:
            result = await runner(request)
        except (StillRunningError, PutBackError):
            raise
        except Exception as error:  # noqa: BLE001 - the user's function decides what it means
            result = error
        try:
            outcome = Outcome(classify(request, result))
            if outcome is Outcome.OK and not isinstance(result, BaseException):
                return result
            raise Classified(outcome, result)
        finally:
            # An exception's traceback holds this frame.
            del result

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
        try:
            if error is not None:
                raise error
            return result
        finally:
            # Its traceback holds this frame.
            del error


async def _guarded(runner: Runner, request: _core.Request) -> tuple[object, BaseException | None]:
    """Keep what would take the loop down with its task: the worker decides what becomes of it."""
    try:
        return await runner(request), None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001
        return None, error
