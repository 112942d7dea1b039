"""Collect from several rate-limited backends: use all of what each allows, lose nothing, and see what holds you back.

You say what each backend allows and what to collect::

    async with RateLimitScheduler([Backend("api", fetch, "100/min")]) as scheduler:
        async for reply in scheduler.map(targets):
            ...
"""

from tidegate._backend import Backend
from tidegate._balancer import LoadBalancer
from tidegate._bound import bound
from tidegate._collector import CollectorStatistics, ContinuousCollector, Distribution, Sink
from tidegate._core import Reply, Request, Ticket
from tidegate._core import version as __version__
from tidegate._errors import (
    BackendError,
    BackendRateLimitedError,
    BackendRejectedError,
    BackendUnavailableError,
    ConfigError,
    CostExceedsBurstError,
    DeadlineExceededError,
    InternalError,
    QueueFullError,
    RequestCancelledError,
    RequestFailedError,
    SchedulerClosedError,
    TidegateError,
)
from tidegate._feasibility import Feasibility
from tidegate._health import Health, HealthMonitor
from tidegate._lease import Lease
from tidegate._limiter import Limiter
from tidegate._optimum import DeadlineBound, Demand, ThroughputBound, deadline_bound, throughput_bound
from tidegate._options import Priority, Retry
from tidegate._order import Aging, Fair, Order
from tidegate._outcome import Outcome
from tidegate._quota import BackendQuota, Limit
from tidegate._request_queue import RequestQueue
from tidegate._run import run
from tidegate._scheduler import RateLimitScheduler
from tidegate._snapshot import Event, Ledger, Snapshot
from tidegate._stream import ReplyStream

__all__ = [
    "Aging",
    "Backend",
    "BackendError",
    "BackendQuota",
    "BackendRateLimitedError",
    "BackendRejectedError",
    "BackendUnavailableError",
    "CollectorStatistics",
    "ConfigError",
    "ContinuousCollector",
    "CostExceedsBurstError",
    "DeadlineBound",
    "DeadlineExceededError",
    "Demand",
    "Distribution",
    "Event",
    "Fair",
    "Feasibility",
    "Health",
    "HealthMonitor",
    "InternalError",
    "Lease",
    "Ledger",
    "Limit",
    "Limiter",
    "LoadBalancer",
    "Order",
    "Outcome",
    "Priority",
    "QueueFullError",
    "RateLimitScheduler",
    "Reply",
    "ReplyStream",
    "Request",
    "RequestCancelledError",
    "RequestFailedError",
    "RequestQueue",
    "Retry",
    "SchedulerClosedError",
    "Sink",
    "Snapshot",
    "ThroughputBound",
    "Ticket",
    "TidegateError",
    "__version__",
    "bound",
    "deadline_bound",
    "run",
    "throughput_bound",
]

# Where users find them, whatever module they are written in.
for _public in map(globals().__getitem__, __all__):
    if isinstance(_public, type | type(bound)) and _public.__module__ != __name__:
        _public.__module__ = __name__
del _public
