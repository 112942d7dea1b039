"""The names that a caller imports, and what the enumerations hold."""

import pytest

NAMES = [
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


@pytest.mark.parametrize("name", NAMES)
def test_name_is_there(dropin, name):
    assert callable(getattr(dropin, name))


def test_priorities(dropin):
    found = {priority.name: priority.value for priority in dropin.RequestPriority}
    assert found == {"CRITICAL": 0, "HIGH": 1, "NORMAL": 2, "LOW": 3}


def test_states(dropin):
    assert {status.value for status in dropin.BackendStatus} == {"healthy", "degraded", "rate_limited", "failed", "unknown"}
    assert dropin.BackendStatus("rate_limited") is dropin.BackendStatus.RATE_LIMITED
