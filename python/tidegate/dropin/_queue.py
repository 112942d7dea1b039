"""Requests, and the queue in which they wait."""

import heapq
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import Any

import tidegate
from tidegate.dropin._clock import Now, now, stamp_of

# Age in seconds from which on a request says that it has expired.
EXPIRED_AFTER = 300.0
# Tweets asked for at once.
MAX_TWEETS = 100
# Entries that left the heap out of turn, above which it is made anew; also when they are more than those that wait.
MOST_STALE = 64

logger = logging.getLogger("tidegate")


class RequestPriority(Enum):
    """How urgent a request is; the smaller the more."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


@dataclass(eq=False)
class ScheduledRequest:
    """One request for a target. Sorted by priority, then by `created_at`.

    Attributes:
        target: What to scrape.
        priority: How urgent it is.
        created_at: When it was made: seconds since the Unix epoch, or a datetime.
        retry_count: How often it has been tried again.
        max_retries: How often it may be.
        backend_preference: Name of the backend that serves it whenever that one can.
    """

    target: Any
    priority: RequestPriority
    created_at: Any
    retry_count: int = 0
    max_retries: int = 3
    backend_preference: str | None = None

    @property
    def is_expired(self) -> bool:
        """Whether it is more than 300 s old. It is served all the same."""
        return now() - stamp_of(self.created_at) > EXPIRED_AFTER

    @property
    def can_retry(self) -> bool:
        """Whether it may be tried again."""
        return self.retry_count < self.max_retries

    def __lt__(self, other: "ScheduledRequest") -> bool:
        return (self.priority.value, stamp_of(self.created_at)) < (other.priority.value, stamp_of(other.created_at))


class Entry:
    """A request that was accepted, until it has ended; a job of the engine.

    Attributes:
        retries: Its `retry_count` when it was handed to the engine.
        ticket: Of the engine, once that has it.
        is_taken: It was dequeued by hand: nobody serves it.
        was_served: It has been counted as begun.
        key: Its place in the order; the same each time that it waits.
        is_in_heap: Its row is in the queue's heap, though it may not wait.
    """

    __slots__ = ("_queue", "_when_ended", "is_in_heap", "is_taken", "key", "request", "retries", "since", "ticket", "was_served")

    max_tweets = MAX_TWEETS

    def __init__(self, queue: "RequestQueue", request: ScheduledRequest, since: float, number: int) -> None:
        self._queue = queue
        self.request = request
        self.key = (request.priority.value, stamp_of(request.created_at), number)
        self.is_in_heap = False
        self.since = since
        self.retries = 0
        self.ticket: tidegate.Ticket | None = None
        self.is_taken = False
        self.was_served = False
        self._when_ended: Callable[[Entry], None] | None = None

    @property
    def target(self) -> Any:
        """What to scrape."""
        return self.request.target

    @property
    def can_retry(self) -> bool:
        """Whether it may be tried again."""
        return self.request.can_retry

    def begin(self, attempt: int) -> None:
        """An attempt of the engine begins."""
        self.request.retry_count = self.retries + attempt - 1
        self._queue._begin(self)  # noqa: SLF001 - two halves of one

    def wait(self) -> None:
        """It waits, once more."""
        self._queue._wait(self)  # noqa: SLF001 - two halves of one

    @property
    def reply(self) -> tidegate.Reply:
        """Of a request that has ended."""
        reply = self.ticket._reply() if self.ticket is not None else None  # noqa: SLF001 - the public way raises its error
        assert reply is not None
        return reply

    def follow(self, ticket: tidegate.Ticket, when_ended: "Callable[[Entry], None]") -> None:
        """Have `when_ended` called when the engine is done with it."""
        self._when_ended = when_ended
        ticket._wait(self)  # noqa: SLF001 - a future for each would cost more than the engine

    def set_result(self, _: None) -> None:
        """What the ticket calls."""
        if self._when_ended is not None:
            self._when_ended(self)


Serve = Callable[[Entry], None]


class RequestQueue:
    """Requests that wait, the most urgent first; of equals the one that was made first.

    Nothing that was accepted is displaced or forgotten. A scheduler that runs has the engine serve what waits here.

    Args:
        max_size: Most requests that wait at once. One that is more urgent than all that wait is accepted above it.

    Attributes:
        max_size: As given; it may be set.
        stats: `total_queued`, `total_processed` (taken out or begun), `total_dropped` (refused: `enqueue` returned False), and
            `avg_wait_time` in seconds.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     queue = RequestQueue(max_size=1)
        ...     normal = ScheduledRequest("a", RequestPriority.NORMAL, 1.0)
        ...     urgent = ScheduledRequest("b", RequestPriority.HIGH, 2.0)
        ...     accepted = [await queue.enqueue(request) for request in (normal, normal, urgent)]
        ...     return accepted, (await queue.dequeue()).target
        >>> asyncio.run(main())
        ([True, False, True], 'b')
    """

    def __init__(self, max_size: int = 1000) -> None:
        self.max_size = max_size
        self.stats: dict[str, Any] = {"total_queued": 0, "total_processed": 0, "total_dropped": 0, "avg_wait_time": 0.0}
        self._now: Now = now
        self._serve: Serve | None = None
        self._waiting: set[Entry] = set()
        # Those that wait, and some that have left; each once.
        self._heap: list[tuple[tuple[int, float, int], Entry]] = []
        self._numbers = count()
        # By identity: how many requests for a target have not ended.
        self._targets: Counter[int] = Counter()

    async def enqueue(self, request: ScheduledRequest) -> bool:
        """Have a request accepted.

        Returns:
            False when the queue is full and others that wait are as urgent; that is counted and logged.
        """
        first = self._first()
        if len(self._waiting) >= self.max_size and not (first and request.priority.value < first.request.priority.value):
            self.stats["total_dropped"] += 1
            logger.warning("the queue holds %d requests, its max_size: one more was refused", len(self._waiting))
            return False
        self.stats["total_queued"] += 1
        self._targets[id(request.target)] += 1
        self._accept(Entry(self, request, self._now(), next(self._numbers)))
        return True

    async def dequeue(self) -> ScheduledRequest | None:
        """Take the most urgent request out; None when nothing waits."""
        entry = self._first()
        if entry is None:
            return None
        self._begin(entry)
        self._end(entry)
        entry.is_taken = True
        if entry.ticket is not None:
            entry.ticket.cancel()
        return entry.request

    async def peek(self) -> ScheduledRequest | None:
        """The most urgent request, which stays; None when nothing waits."""
        entry = self._first()
        return None if entry is None else entry.request

    async def size(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def __repr__(self) -> str:
        return f"<RequestQueue: {len(self._waiting)} of {self.max_size}>"

    def _attach(self, serve: Serve, moment: Now) -> None:
        """Have what waits, and what comes from now on, served."""
        self._serve, self._now = serve, moment
        for entry in sorted(self._waiting, key=lambda entry: entry.key):
            serve(entry)

    def _detach(self) -> None:
        """Keep what comes from now on."""
        self._serve = None

    def _accept(self, entry: Entry) -> None:
        self._wait(entry)
        if self._serve is not None:
            self._serve(entry)

    def _wait(self, entry: Entry) -> None:
        """It waits, or does so again."""
        if entry in self._waiting:
            return
        self._waiting.add(entry)
        if not entry.is_in_heap:
            entry.is_in_heap = True
            heapq.heappush(self._heap, (entry.key, entry))

    def _begin(self, entry: Entry) -> None:
        """It waits no longer, since it is served."""
        self._leave(entry)
        if entry.was_served:
            return
        entry.was_served = True
        stats = self.stats
        stats["total_processed"] += 1
        stats["avg_wait_time"] += (self._now() - entry.since - stats["avg_wait_time"]) / stats["total_processed"]

    def _leave(self, entry: Entry) -> None:
        """It waits no longer, served or not."""
        self._waiting.discard(entry)
        if len(self._heap) > 2 * len(self._waiting) + MOST_STALE:
            for _, stale in self._heap:
                stale.is_in_heap = stale in self._waiting
            self._heap = [row for row in self._heap if row[1].is_in_heap]
            heapq.heapify(self._heap)

    def _end(self, entry: Entry) -> None:
        """It has ended, however."""
        target = id(entry.request.target)
        self._targets[target] -= 1
        if self._targets[target] <= 0:
            del self._targets[target]

    def _holds(self, target: object) -> bool:
        """Whether a request for a target has not ended."""
        return id(target) in self._targets

    def _first(self) -> Entry | None:
        heap = self._heap
        while heap and heap[0][1] not in self._waiting:
            heapq.heappop(heap)[1].is_in_heap = False
        return heap[0][1] if heap else None
