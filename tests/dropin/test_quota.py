"""`BackendQuota`, driven and set by hand."""

import time
from collections import deque

import pytest


@pytest.fixture
def quota(dropin):
    return dropin.BackendQuota("snscrape", 3, 100, 2)


def attempt(quota, *, success=True, response_time=1.0):
    quota.record_request_start()
    quota.record_request_end(success, response_time)


def ago(seconds, count):
    """So many stamps of the wall clock, as a test puts them into `minute_requests` and `hour_requests`."""
    return [time.time() - seconds] * count


def test_begins_unused(quota):
    assert (quota.backend_name, quota.requests_per_minute, quota.requests_per_hour) == ("snscrape", 3, 100)
    assert quota.concurrent_requests == 2
    assert quota.active_requests == 0
    assert quota.avg_response_time == 0
    assert quota.success_rate == 1.0
    assert not quota.last_success
    assert not quota.last_failure
    assert quota.consecutive_failures == 0
    assert len(quota.minute_requests) == len(quota.hour_requests) == 0
    assert quota.can_make_request()
    assert quota.get_wait_time() == 0


def test_keywords(dropin):
    quota = dropin.BackendQuota(backend_name="nitter", requests_per_minute=30, requests_per_hour=1000, concurrent_requests=5)
    assert (quota.backend_name, quota.requests_per_minute) == ("nitter", 30)
    assert (quota.requests_per_hour, quota.concurrent_requests) == (1000, 5)


def test_an_attempt_is_counted(quota):
    quota.record_request_start()
    assert quota.active_requests == 1
    assert len(quota.minute_requests) == len(quota.hour_requests) == 1
    quota.record_request_end(True, 0.5)
    assert quota.active_requests == 0
    assert len(quota.minute_requests) == len(quota.hour_requests) == 1


def test_minute_limit(quota):
    for _ in range(3):
        assert quota.can_make_request()
        attempt(quota)
    assert not quota.can_make_request()
    assert 50 < quota.get_wait_time() < 65


def test_hour_limit(dropin):
    quota = dropin.BackendQuota("snscrape", 100, 3, 10)
    for _ in range(3):
        assert quota.can_make_request()
        attempt(quota)
    assert not quota.can_make_request()


def test_concurrency(quota):
    quota.record_request_start()
    assert quota.can_make_request()
    quota.record_request_start()
    assert not quota.can_make_request()
    quota.record_request_end(True, 0.1)
    assert quota.can_make_request()


def test_a_start_is_never_refused(quota):
    for _ in range(10):
        quota.record_request_start()
    assert quota.active_requests == 10
    assert not quota.can_make_request()
    for _ in range(10):
        quota.record_request_end(True, 0.1)
    assert quota.active_requests == 0


def test_an_end_without_a_start(quota):
    quota.record_request_end(True, 0.1)
    quota.record_request_end(False, 0.1)
    assert quota.active_requests == 0
    quota.record_request_start()
    assert quota.active_requests == 1


def test_response_time_is_an_exponential_average(quota):
    attempt(quota, response_time=2.0)
    assert quota.avg_response_time == pytest.approx(2.0)
    attempt(quota, response_time=7.0)
    assert quota.avg_response_time == pytest.approx(3.0)
    attempt(quota, response_time=3.0)
    assert quota.avg_response_time == pytest.approx(3.0)


def test_success_rate_is_an_exponential_average(quota):
    attempt(quota, success=False)
    assert quota.success_rate == pytest.approx(0.9)
    attempt(quota, success=True)
    assert quota.success_rate == pytest.approx(0.91)
    attempt(quota, success=True)
    assert quota.success_rate == pytest.approx(0.919)


def test_failures_in_a_row(quota):
    for count in range(1, 4):
        attempt(quota, success=False)
        assert quota.consecutive_failures == count
    assert quota.last_failure
    assert not quota.last_success
    attempt(quota, success=True)
    assert quota.consecutive_failures == 0
    assert quota.last_success


def states(dropin, *outcomes):
    """What `get_status` says after each of these outcomes, of a quota that admits them all."""
    quota = dropin.BackendQuota("snscrape", 1000, 1000, 10)
    found = [quota.get_status().name]
    for success in outcomes:
        attempt(quota, success=success)
        found.append(quota.get_status().name)
    return found


def test_unknown_until_a_success(dropin):
    assert states(dropin, False, True, True) == ["UNKNOWN", "UNKNOWN", "HEALTHY", "HEALTHY"]


def test_failed_from_five_in_a_row_on(dropin):
    assert states(dropin, *[False] * 6)[-3:] == ["DEGRADED", "FAILED", "FAILED"]


def test_one_success_ends_a_failure(dropin):
    assert states(dropin, *[False] * 5, True)[-1] == "DEGRADED"


def test_a_rate_under_seven_tenths_is_degraded(dropin):
    assert states(dropin, True, *[False] * 4) == ["UNKNOWN", *["HEALTHY"] * 4, "DEGRADED"]


def test_slow_is_degraded(quota):
    attempt(quota, response_time=30.5)
    assert quota.get_status().name == "DEGRADED"


def test_thirty_seconds_are_not_slow(quota):
    attempt(quota, response_time=30.0)
    assert quota.get_status().name == "HEALTHY"


def test_used_up_is_rate_limited(quota):
    for _ in range(3):
        attempt(quota)
    assert quota.get_status().name == "RATE_LIMITED"


def test_failed_goes_before_rate_limited(quota):
    for _ in range(5):
        attempt(quota, success=False)
    assert not quota.can_make_request()
    assert quota.get_status().name == "FAILED"


def test_rate_limited_goes_before_degraded(quota):
    for _ in range(3):
        attempt(quota, response_time=90.0)
    assert quota.get_status().name == "RATE_LIMITED"


# ---- Attributes that a test sets


def test_active_requests_set(quota):
    quota.active_requests = 2
    assert not quota.can_make_request()
    assert quota.get_status().name == "RATE_LIMITED"
    quota.active_requests = 0
    assert quota.can_make_request()


@pytest.mark.parametrize(
    "attribute, value, status",
    [
        ("consecutive_failures", 5, "FAILED"),
        ("consecutive_failures", 4, "HEALTHY"),
        ("success_rate", 0.69, "DEGRADED"),
        ("success_rate", 0.7, "HEALTHY"),
        ("avg_response_time", 31.0, "DEGRADED"),
        ("avg_response_time", 30.0, "HEALTHY"),
        ("last_success", None, "UNKNOWN"),
        ("active_requests", 2, "RATE_LIMITED"),
    ],
)
def test_status_follows_what_is_set(quota, attribute, value, status):
    attempt(quota)
    setattr(quota, attribute, value)
    assert getattr(quota, attribute) == value
    assert quota.get_status().name == status


def test_an_average_goes_on_from_what_is_set(quota):
    attempt(quota, response_time=1.0)
    quota.avg_response_time = 10.0
    quota.success_rate = 0.5
    attempt(quota, response_time=20.0)
    assert quota.avg_response_time == pytest.approx(12.0)
    assert quota.success_rate == pytest.approx(0.55)


@pytest.mark.parametrize("container", [list, deque])
def test_minute_requests_set(quota, container):
    quota.minute_requests = container(ago(20, 3))
    assert len(quota.minute_requests) == 3
    assert not quota.can_make_request()
    assert quota.get_status().name == "RATE_LIMITED"
    assert 30 < quota.get_wait_time() < 45


def test_minute_requests_filled(quota):
    quota.minute_requests.extend(ago(1, 2))
    assert quota.can_make_request()
    quota.minute_requests.append(time.time())
    assert len(quota.minute_requests) == 3
    assert not quota.can_make_request()


def test_hour_requests_filled(dropin):
    quota = dropin.BackendQuota("snscrape", 100, 3, 10)
    quota.hour_requests.extend(ago(1800, 2))
    assert quota.can_make_request()
    quota.hour_requests.append(time.time())
    assert len(quota.hour_requests) == 3
    assert not quota.can_make_request()


def test_old_stamps_do_not_count(quota):
    quota.minute_requests.extend(ago(61.5, 3))
    quota.hour_requests.extend(ago(3605, 100))
    assert quota.can_make_request()
    assert quota.get_wait_time() == 0
    assert quota.get_status().name == "UNKNOWN"


@pytest.mark.parametrize("container", [pytest.param(list), deque])
def test_old_stamps_set(quota, container):
    quota.minute_requests = container([*ago(90, 2), *ago(5, 2)])
    quota.hour_requests = container(ago(4000, 100))
    assert quota.can_make_request()
    quota.record_request_start()
    quota.record_request_end(True, 0.1)
    assert not quota.can_make_request()
    assert 50 < quota.get_wait_time() < 60


def test_stamps_old_and_new(quota):
    quota.minute_requests.extend([*ago(90, 2), *ago(5, 2)])
    assert quota.can_make_request()
    quota.record_request_start()
    quota.record_request_end(True, 0.1)
    assert not quota.can_make_request()
    assert 50 < quota.get_wait_time() < 60


def test_stamps_cleared(quota):
    for _ in range(3):
        attempt(quota)
    quota.minute_requests.clear()
    quota.hour_requests.clear()
    assert quota.can_make_request()
    assert len(quota.minute_requests) == 0
