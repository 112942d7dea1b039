"""The workers: coroutines that take attempts from the engine, run them, and report what came of them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any

from tidegate import _core
from tidegate._errors import BackendRejectedError, InternalError
from tidegate._outcome import Classified, Outcome, PutBackError, UnsentError, verdict_of
from tidegate._quote import said, shown
from tidegate._threads import StillRunningError

logger = logging.getLogger("tidegate")


class WorkerTask(asyncio.Task[None]):
    """A task that takes nothing more once it was cancelled, whoever asked for it and whatever became of it.

    `cancelling()` forgets: a handler that cancels its own task and takes that back leaves, before Python 3.13, a cancellation
    behind that the next request would get.
    """

    def __init__(
        self,
        coro: Coroutine[Any, Any, None],
        retire: Callable[[], None],
        *,
        loop: asyncio.AbstractEventLoop,
        name: str,
        context: Context,
    ) -> None:
        self._retire = retire
        self.dismissed = False
        super().__init__(coro, loop=loop, name=name, context=context)

    def cancel(self, msg: object = None) -> bool:
        """Ask for a cancellation."""
        if not self.done():
            with suppress(InternalError):
                self._retire()
        return super().cancel(msg)


class Workers:
    """The worker tasks of one scheduler. How many there are, and who sleeps, is the engine's decision."""

    def __init__(self, core: _core.Core, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self._core = core
        self._loop = loop
        self._context = context
        self._tasks: dict[int, WorkerTask] = {}
        self._parked: dict[int, asyncio.Future[None]] = {}
        # By backend: what an attempt failed with last, in words.
        self.failures: dict[str, str] = {}

    def hire(self, count: int) -> None:
        """Start workers."""
        for _ in range(count):
            worker = self._core.hire()
            name = f"tidegate-worker-{worker}"
            # Not by way of the loop: an eager task factory would run a handler in the middle of the pump.
            retire = partial(self._core.retire, worker)
            task = WorkerTask(self._work(worker), retire, loop=self._loop, name=name, context=self._context.copy())
            self._tasks[worker] = task
            task.add_done_callback(partial(self._gone, worker))

    def wake(self, workers: Iterable[int], *, work: bool = True) -> None:
        """Wake sleeping workers, to work or to go home."""
        for worker in workers:
            self._tasks[worker].dismissed = not work
            future = self._parked.get(worker)
            if future is not None and not future.done():
                future.set_result(None)

    def interrupt(self, workers: Iterable[int]) -> None:
        """Cancel the attempts that these workers run."""
        for worker in workers:
            if (task := self._tasks.get(worker)) is not None:
                task.cancel()

    async def stop(self, grace: float) -> None:
        """Cancel all workers and wait for their handlers to end, at most `grace` seconds."""
        current = asyncio.current_task()
        tasks = [task for task in self._tasks.values() if task is not current]
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            if late:
                logger.warning("%d handlers ignored their cancellation for %g s; they are left to themselves", len(late), grace)

    def _gone(self, worker: int, task: "asyncio.Task[None]") -> None:
        """A worker's task has ended, or was cancelled before it began."""
        dismissed = self._tasks.pop(worker).dismissed
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, KeyboardInterrupt):
            logger.error("a worker stopped; please report this", exc_info=error)
            self._core.give_up_if_broken()
        with suppress(InternalError):
            self._core.leave(worker, dismissed)

    async def _work(self, worker: int) -> None:
        core = self._core
        finish_and_take = core.finish_and_take
        task = self._tasks[worker]
        request = core.take(worker)
        while True:
            if request is None:
                run = None  # it may be the submitter's alone
                match core.park(worker):
                    case None:
                        return
                    case False:
                        await asyncio.sleep(0)
                    case True:
                        await self._sleep(worker)
                        if task.dismissed:
                            return
                request = core.take(worker)
                continue
            try:
                run = request._runner  # noqa: SLF001 - the request's other half; to call it on one line would look for a method
                value = await run(request)
            except BaseException as error:  # noqa: BLE001 - nothing that a handler does ends the loop
                if not self._settle(worker, request.backend, error):
                    return
                request = core.take(worker)
                continue
            request = finish_and_take(worker, value)
            value = None  # it is the consumer's alone

    async def _sleep(self, worker: int) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._parked[worker] = future
        try:
            await future
        finally:
            del self._parked[worker]

    def _settle(self, worker: int, backend: str, error: BaseException) -> bool:
        """Report how an attempt failed. False when this worker's task may run nothing more."""
        finish = self._core.finish
        if error.__traceback__ is not None:
            # It starts at the handler: our frame would keep alive, with each error, what this worker does later.
            error.__traceback__ = error.__traceback__.tb_next
        match error:
            case Classified():
                result = error.result
                if error.outcome is not Outcome.OK and not isinstance(result, BaseException):
                    result = BackendRejectedError(f"classified as {error.outcome.name}: {shown(result)}")
                verdict = verdict_of(result) if isinstance(result, BaseException) else None
                status, headers = (verdict.status, verdict.headers) if verdict else (None, None)
                if error.outcome is Outcome.FAILED and isinstance(result, BaseException):
                    self.failures[backend] = f"{type(result).__name__}: {said(result)}"
                finish(worker, error.outcome, result, status, headers)
            case UnsentError():
                self._core.give_up(worker, error)
            case PutBackError():
                self._core.put_back(worker, error)
            case StillRunningError():
                lease = self._core.abandon(worker, asyncio.CancelledError())
                if lease is not None:
                    error.call.when_returned(lambda: self._core.release(lease))
                return False
            case asyncio.CancelledError():
                finish(worker, Outcome.NEUTRAL, error)
                return False
            case GeneratorExit():
                if self._loop.is_closed():
                    raise error  # and this coroutine with it
                finish(worker, Outcome.NEUTRAL, error)
                return False  # it may be this coroutine that is closed
            case KeyboardInterrupt():
                finish(worker, Outcome.NEUTRAL, error)
                raise error
            case _:
                outcome, status, headers, is_local = verdict_of(error)
                if outcome is Outcome.FAILED:
                    self.failures[backend] = f"{type(error).__name__}: {said(error)}"
                finish(worker, outcome, error, status, headers, is_local)
        return True
