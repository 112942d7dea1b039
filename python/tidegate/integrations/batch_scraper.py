"""A batch scraper on the engine: what it asks of its backend manager goes through the queue.

    async with scheduled(scraper):
        summary = await scraper.scrape_all_targets()

The scraper keeps its own loop, its storage and its summary. Only its `backend_manager` is replaced for that time, by one whose
calls wait for quota, go to the backend that the engine chose, are tried elsewhere when it fails, and return what the scraper
is used to.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import tidegate
from tidegate import ConfigError, RequestFailedError
from tidegate.dropin import BackendQuota, RateLimitScheduler, RequestPriority
from tidegate.dropin._engine import Engine, ResultError
from tidegate.testing import ManualClock

__all__ = ["scheduled", "scrape_all_targets"]

# Tries after the first one.
MOST_RETRIES = 3


@asynccontextmanager
async def scheduled(
    scraper: Any,
    quotas: dict[str, BackendQuota] | None = None,
    *,
    scheduler: RateLimitScheduler | None = None,
    priority: RequestPriority = RequestPriority.NORMAL,
    clock: ManualClock | None = None,
) -> AsyncIterator[Any]:
    """Put a scraper on the engine for as long as the body runs.

    Args:
        scraper: Has an attribute `backend_manager`, as `tidegate.dropin.RateLimitScheduler` takes it.
        quotas: As for `RateLimitScheduler`.
        scheduler: One that runs, whose quotas the scraper is to share; its manager serves the calls then. When it stops, calls
            that are pending raise `RequestCancelledError`.
        priority: Of the scraper's calls.
        clock: For virtual time in tests.

    Yields:
        The scraper.

    Raises:
        ConfigError: The scraper has no manager, both `quotas` and `scheduler` are given, or the scheduler does not run.

    Cancellation: calls that wait or run are cancelled, and the scraper has its own manager again.

    Example:
        >>> import asyncio
        >>> class Manager:
        ...     def get_available_backends(self):
        ...         return ["nitter"]
        ...     async def scrape_user_tweets(self, name, max_tweets=100):
        ...         return SimpleNamespace(tweets=[name], success=True, error_message=None, backend_used="nitter")
        >>> scraper = SimpleNamespace(backend_manager=Manager())
        >>> async def main():
        ...     async with scheduled(scraper):
        ...         return await scraper.backend_manager.scrape_user_tweets("ada")
        >>> asyncio.run(main()).tweets
        ['ada']
    """
    manager = getattr(scraper, "backend_manager", None)
    if manager is None:
        msg = f"scraper={scraper!r}: it has no backend_manager to be put on the engine"
        raise ConfigError(msg, option="scraper", value=scraper)
    if scheduler is None:
        engine = Engine(manager, quotas or {}, clock)
        await engine.start()
    else:
        if quotas is not None or clock is not None:
            msg = f"scheduler={scheduler!r}: it has its own quotas and clock; leave quotas= and clock= out"
            raise ConfigError(msg, option="scheduler", value=scheduler)
        engine = scheduler._running_engine()  # noqa: SLF001 - that is what is shared
    stand_in = _ScheduledManager(manager, engine, priority)
    scraper.backend_manager = stand_in
    engine.guests.add(stand_in.cancel)
    try:
        yield scraper
    finally:
        scraper.backend_manager = manager
        engine.guests.discard(stand_in.cancel)
        stand_in.cancel()
        if scheduler is None:
            await engine.stop()


async def scrape_all_targets(scraper: Any, quotas: dict[str, BackendQuota] | None = None, **options: Any) -> Any:
    """Run a scraper's `scrape_all_targets()` on the engine.

    Args:
        scraper: As for `scheduled`.
        quotas: As for `scheduled`.
        **options: As for `scheduled`.

    Returns:
        The scraper's summary.
    """
    async with scheduled(scraper, quotas, **options):
        return await scraper.scrape_all_targets()


class _Call:
    """One call of the scraper, as a job of the engine."""

    __slots__ = ("_attempts", "max_tweets", "target", "ticket")

    def __init__(self, kind: str, value: str, max_tweets: int) -> None:
        self.target = SimpleNamespace(target_type=kind, value=value)
        self.max_tweets = max_tweets
        self.ticket: tidegate.Ticket | None = None
        self._attempts = 0

    @property
    def can_retry(self) -> bool:
        """Whether another attempt may follow."""
        return self._attempts <= MOST_RETRIES

    def begin(self, attempt: int) -> None:
        """An attempt begins."""
        self._attempts = attempt

    def wait(self) -> None:
        """It failed; the engine tries it again."""


class _ScheduledManager:
    """The stand-in for a manager; what it does not know itself is the manager's."""

    def __init__(self, manager: Any, engine: Engine, priority: RequestPriority) -> None:
        self._manager = manager
        self._engine = engine
        self._priority = priority
        self._pending: set[tidegate.Ticket] = set()

    async def scrape_user_tweets(self, name: str, max_tweets: int = 100) -> Any:
        """The tweets of a user, from the backend that the engine chose."""
        return await self._scrape(_Call("user", name, max_tweets))

    async def scrape_search_tweets(self, query: str, max_tweets: int = 100) -> Any:
        """The tweets that a search finds, from the backend that the engine chose."""
        return await self._scrape(_Call("search", query, max_tweets))

    def cancel(self) -> None:
        """Give up what waits or runs."""
        for ticket in self._pending:
            ticket.cancel()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    async def _scrape(self, call: _Call) -> Any:
        ticket = self._engine.submit(call, self._priority, None)
        if ticket is None:
            msg = "the manager names no backend that is available, and no quotas were given: nothing can serve this call"
            raise ConfigError(msg, option="quotas", value=None)
        self._pending.add(ticket)
        try:
            return (await ticket).value
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        except RequestFailedError as error:
            raised = _last_of(error)
        finally:
            self._pending.discard(ticket)
        if isinstance(raised, ResultError):
            return raised.result  # its `success` says it, as the scraper is used to
        raise raised  # with the cause that it has


def _last_of(error: RequestFailedError) -> BaseException:
    """What a backend did in the last attempt."""
    cause = error.__cause__ or error
    # The engine is told of the last one by an error of its own.
    return cause.__cause__ if isinstance(cause, tidegate.BackendRejectedError) and cause.__cause__ is not None else cause
