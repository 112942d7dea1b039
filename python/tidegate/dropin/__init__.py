"""The names and signatures of a pure-Python scheduler, on Tidegate's engine: change one import, and keep your code.

    from tidegate.dropin import RateLimitScheduler, create_rate_limit_scheduler

What differs, and why, is in docs/guides/migration.md; new code is better off with `tidegate.RateLimitScheduler` itself.
"""

from tidegate.dropin._balancer import LoadBalancer
from tidegate.dropin._collector import ContinuousCollector, create_continuous_collector
from tidegate.dropin._queue import RequestPriority, RequestQueue, ScheduledRequest
from tidegate.dropin._quota import BackendQuota, BackendStatus
from tidegate.dropin._scheduler import RateLimitScheduler, create_rate_limit_scheduler

__all__ = [
    "BackendQuota",
    "BackendStatus",
    "ContinuousCollector",
    "LoadBalancer",
    "RateLimitScheduler",
    "RequestPriority",
    "RequestQueue",
    "ScheduledRequest",
    "create_continuous_collector",
    "create_rate_limit_scheduler",
]
