"""What a caller is told about where a request could go."""

from collections.abc import Mapping
from math import inf

from tidegate.dropin._queue import ScheduledRequest
from tidegate.dropin._quota import BackendQuota, BackendStatus

# The better first.
RANKS = {
    BackendStatus.HEALTHY: 0,
    BackendStatus.UNKNOWN: 1,
    BackendStatus.DEGRADED: 2,
    BackendStatus.FAILED: 3,
}


class LoadBalancer:
    """Says where a request could go now. The engine chooses by itself, and heeds the request's preference alone.

    Args:
        quotas: The quotas of the backends by name; it looks at them whenever it is asked.

    Example:
        >>> quotas = {"a": BackendQuota("a", 10, 100, 1), "b": BackendQuota("b", 10, 100, 1)}
        >>> quotas["a"].record_request_start()
        >>> balancer = LoadBalancer(quotas)
        >>> balancer.get_next_available_time()
        ('b', 0.0)
    """

    def __init__(self, quotas: Mapping[str, BackendQuota]) -> None:
        self.quotas = quotas

    def select_backend(self, request: ScheduledRequest) -> str | None:
        """The backend for a request: the preferred one when it can serve, else the healthiest, else the better one by weight.

        Returns:
            Its name; None when none can serve now.
        """
        able = {name: quota for name, quota in self.quotas.items() if quota.can_make_request()}
        if request.backend_preference in able:
            return request.backend_preference
        if not able:
            return None
        return min(able, key=lambda name: (RANKS[able[name].get_status()], -_weight(able[name]), able[name].active_requests))

    def get_wait_time(self, name: str) -> float:
        """Seconds until a backend may be sent one more request; infinite when there is none of that name."""
        quota = self.quotas.get(name)
        return inf if quota is None else quota.get_wait_time()

    def get_next_available_time(self) -> tuple[str | None, float]:
        """The backend that may be sent a request first, and in how many seconds; `(None, inf)` without backends."""
        waits = [(quota.get_wait_time(), name) for name, quota in self.quotas.items()]
        if not waits:
            return None, inf
        wait, name = min(waits, key=lambda pair: pair[0])
        return name, wait


def _weight(quota: BackendQuota) -> float:
    return quota.success_rate / (1.0 + quota.avg_response_time)
