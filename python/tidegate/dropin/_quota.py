"""What one backend allows, and how it has been doing."""

from collections import deque
from collections.abc import Callable
from enum import Enum
from math import inf

from tidegate.dropin._clock import Now, now

MINUTE = 60.0
HOUR = 3600.0
# Consecutive failures from which on a backend counts as failed.
FAILED_FROM = 5
# Below this success rate, or above these seconds, it counts as degraded.
LEAST_SUCCESS = 0.7
LONGEST_RESPONSE = 30.0
# Of the averages: the weight of what was.
RESPONSE_KEPT = 0.8
SUCCESS_KEPT = 0.9
# Seconds that a running request is taken to need as long as none has ended.
UNKNOWN_RESPONSE = 1.0

Room = Callable[[str], float]


class BackendStatus(Enum):
    """How a backend is doing."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    RATE_LIMITED = "rate_limited"
    FAILED = "failed"
    UNKNOWN = "unknown"


class BackendQuota:
    """What one backend allows, what was sent to it, and how that went.

    It counts what it is told. A running scheduler tells it, and then the engine, which admits the requests, has a say in
    `can_make_request` and `get_wait_time` as well.

    Args:
        backend_name: Name of the backend.
        requests_per_minute: Requests in any 60 s.
        requests_per_hour: Requests in any 3600 s.
        concurrent_requests: Requests that run at once.

    Attributes:
        active_requests: How many run now.
        avg_response_time: Seconds, an exponential average: 0.8 of what it was, 0.2 of the new one; the first one whole.
        success_rate: From 0 to 1, in the same way with 0.9 and 0.1; 1 at first.
        last_success: When a request last succeeded, in seconds since the Unix epoch; None for never.
        last_failure: The same for failures.
        consecutive_failures: Failures since the last success.
        minute_requests: When the requests of the last minute began.
        hour_requests: When those of the last hour did.

    Example:
        >>> quota = BackendQuota("nitter", 1, 1000, 5)
        >>> quota.record_request_start()
        >>> quota.can_make_request(), round(quota.get_wait_time())
        (False, 60)
    """

    def __init__(
        self,
        backend_name: str,
        requests_per_minute: int,
        requests_per_hour: int,
        concurrent_requests: int,
    ) -> None:
        self.backend_name = backend_name
        self.requests_per_minute = requests_per_minute
        self.requests_per_hour = requests_per_hour
        self.concurrent_requests = concurrent_requests
        self.active_requests = 0
        self.avg_response_time = 0.0
        self.success_rate = 1.0
        self.last_success: float | None = None
        self.last_failure: float | None = None
        self.consecutive_failures = 0
        self.minute_requests: deque[float] = deque()
        self.hour_requests: deque[float] = deque()
        self._has_response = False
        self._now: Now = now
        self._room: Room | None = None

    def can_make_request(self) -> bool:
        """Whether one more may be sent now."""
        return self.get_wait_time() <= 0

    def record_request_start(self) -> None:
        """Count a request that begins now. Never refuses."""
        self._forget_old()
        moment = self._now()
        self.active_requests += 1
        self.minute_requests.append(moment)
        self.hour_requests.append(moment)

    def record_request_end(self, success: bool, response_time: float) -> None:
        """Count how a request ended.

        Args:
            success: Whether it succeeded.
            response_time: Seconds that it took.
        """
        self._end()
        if self._has_response or self.avg_response_time > 0:
            self.avg_response_time = RESPONSE_KEPT * self.avg_response_time + (1 - RESPONSE_KEPT) * response_time
        else:
            self.avg_response_time = response_time
        self._has_response = True
        self.success_rate = SUCCESS_KEPT * self.success_rate + (1 - SUCCESS_KEPT) * bool(success)
        if success:
            self.last_success = self._now()
            self.consecutive_failures = 0
        else:
            self.last_failure = self._now()
            self.consecutive_failures += 1

    def get_wait_time(self) -> float:
        """Seconds until one more may be sent; 0 for now, infinite when none ever may.

        What only the end of a running request makes room for is taken to come after its part of the average response time.
        """
        self._forget_old()
        waits = [
            self._until_room(self.minute_requests, self.requests_per_minute, MINUTE),
            self._until_room(self.hour_requests, self.requests_per_hour, HOUR),
        ]
        if self.active_requests >= self.concurrent_requests:
            waits.append((self.avg_response_time or UNKNOWN_RESPONSE) / max(1, self.active_requests))
        if self._room is not None:
            waits.append(self._room(self.backend_name))
        return max(waits)

    def get_status(self) -> BackendStatus:
        """How it is doing."""
        if self.consecutive_failures >= FAILED_FROM:
            return BackendStatus.FAILED
        if not self.can_make_request():
            return BackendStatus.RATE_LIMITED
        if self.success_rate < LEAST_SUCCESS or self.avg_response_time > LONGEST_RESPONSE:
            return BackendStatus.DEGRADED
        return BackendStatus.UNKNOWN if self.last_success is None else BackendStatus.HEALTHY

    def __repr__(self) -> str:
        limits = f"{self.requests_per_minute}/min {self.requests_per_hour}/h, {self.concurrent_requests} at once"
        return f"<BackendQuota {self.backend_name!r}: {limits}>"

    def _serve(self, moment: Now, room: Room) -> None:
        """Count for a running scheduler, by its clock."""
        self._now, self._room = moment, room

    def _rest(self) -> None:
        """The scheduler has stopped."""
        self._room = None

    def _last_minute(self) -> int:
        """How many have begun in the last minute."""
        self._forget_old()
        return len(self.minute_requests)

    def _end(self) -> None:
        self.active_requests = max(0, self.active_requests - 1)

    def _withdraw(self) -> None:
        """Take back the last start: the request went elsewhere."""
        self._end()
        for begun in (self.minute_requests, self.hour_requests):
            if begun:
                begun.pop()

    def _until_room(self, begun: deque[float], most: int, period: float) -> float:
        """Seconds until fewer than `most` have begun in the last `period` seconds."""
        if most <= 0:
            return inf
        if len(begun) < most:
            return 0.0
        return max(0.0, begun[len(begun) - most] + period - self._now())

    def _forget_old(self) -> None:
        moment = self._now()
        # A caller may have put a list there.
        if not isinstance(self.minute_requests, deque):
            self.minute_requests = deque(self.minute_requests)
        if not isinstance(self.hour_requests, deque):
            self.hour_requests = deque(self.hour_requests)
        for begun, period in ((self.minute_requests, MINUTE), (self.hour_requests, HOUR)):
            while begun and begun[0] <= moment - period:
                begun.popleft()
