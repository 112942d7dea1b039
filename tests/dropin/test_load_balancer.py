"""`LoadBalancer`: whom it chooses, and when there is somebody to choose."""

import math
import time
from collections import Counter

import pytest
from tests.dropin.caller import user


def quotas_of(dropin, *names, figures=(100, 1000, 10)):
    return {name: dropin.BackendQuota(name, *figures) for name in names}


def serve(quota, count=1, *, success=True, response_time=1.0):
    for _ in range(count):
        quota.record_request_start()
        quota.record_request_end(success, response_time)


def chosen(dropin, balancer, preference=None):
    """Whom it chooses mostly, should it draw lots."""
    request = dropin.ScheduledRequest(user(), dropin.RequestPriority.NORMAL, time.time(), backend_preference=preference)
    return Counter(balancer.select_backend(request) for _ in range(100)).most_common(1)[0][0]


def test_the_only_one(dropin):
    balancer = dropin.LoadBalancer(quotas_of(dropin, "snscrape"))
    assert chosen(dropin, balancer) == "snscrape"


@pytest.mark.parametrize("preference", ["snscrape", "nitter"])
def test_the_preferred_one(dropin, preference):
    balancer = dropin.LoadBalancer(quotas_of(dropin, "snscrape", "nitter"))
    assert chosen(dropin, balancer, preference) == preference


def test_the_preferred_one_even_if_it_is_worse(dropin):
    quotas = quotas_of(dropin, "snscrape", "nitter")
    serve(quotas["snscrape"])
    serve(quotas["nitter"], response_time=45.0)
    balancer = dropin.LoadBalancer(quotas)
    assert chosen(dropin, balancer, "nitter") == "nitter"
    assert chosen(dropin, balancer) == "snscrape"


def test_another_when_the_preferred_one_cannot(dropin):
    quotas = quotas_of(dropin, "snscrape", "nitter")
    balancer = dropin.LoadBalancer(quotas)
    quotas["nitter"].active_requests = 10
    assert chosen(dropin, balancer, "nitter") == "snscrape"


def test_any_when_the_preferred_one_is_not_there(dropin):
    quotas = quotas_of(dropin, "snscrape", "nitter")
    assert chosen(dropin, dropin.LoadBalancer(quotas), "twint") in quotas


def test_healthy_ones_first(dropin):
    quotas = quotas_of(dropin, "snscrape", "nitter")
    serve(quotas["snscrape"], response_time=40.0)
    serve(quotas["nitter"], response_time=20.0)
    assert quotas["snscrape"].get_status() is dropin.BackendStatus.DEGRADED
    assert quotas["nitter"].get_status() is dropin.BackendStatus.HEALTHY
    assert chosen(dropin, dropin.LoadBalancer(quotas)) == "nitter"


@pytest.mark.parametrize("better, worse", [("snscrape", "nitter"), ("nitter", "snscrape")])
def test_then_the_quicker(dropin, better, worse):
    quotas = quotas_of(dropin, "snscrape", "nitter")
    serve(quotas[better], response_time=0.2)
    serve(quotas[worse], response_time=25.0)
    assert chosen(dropin, dropin.LoadBalancer(quotas)) == better


@pytest.mark.parametrize("better, worse", [("snscrape", "nitter"), ("nitter", "snscrape")])
def test_then_the_more_reliable(dropin, better, worse):
    quotas = quotas_of(dropin, "snscrape", "nitter")
    for name, rate in ((better, 1.0), (worse, 0.71)):
        serve(quotas[name])
        quotas[name].success_rate = rate
    balancer = dropin.LoadBalancer(quotas)
    request = dropin.ScheduledRequest(user(), dropin.RequestPriority.NORMAL, time.time())
    counts = Counter(balancer.select_backend(request) for _ in range(2000))
    assert counts[better] > counts[worse]


def test_one_that_can_rather_than_one_that_is_good(dropin):
    quotas = quotas_of(dropin, "snscrape", "nitter")
    serve(quotas["snscrape"])
    serve(quotas["nitter"], 3, success=False)
    quotas["snscrape"].active_requests = 10
    assert chosen(dropin, dropin.LoadBalancer(quotas)) == "nitter"


def test_none_when_none_can(dropin):
    quotas = quotas_of(dropin, "snscrape", "nitter", figures=(1, 10, 10))
    balancer = dropin.LoadBalancer(quotas)
    for quota in quotas.values():
        serve(quota)
    assert chosen(dropin, balancer) is None
    assert chosen(dropin, balancer, "nitter") is None


def test_choosing_takes_nothing(dropin):
    quotas = quotas_of(dropin, "snscrape", figures=(1, 10, 1))
    balancer = dropin.LoadBalancer(quotas)
    assert chosen(dropin, balancer) == chosen(dropin, balancer) == "snscrape"
    assert len(quotas["snscrape"].minute_requests) == quotas["snscrape"].active_requests == 0


def test_wait_time(dropin):
    quotas = quotas_of(dropin, "snscrape", "nitter", figures=(2, 10, 10))
    balancer = dropin.LoadBalancer(quotas)
    assert balancer.get_wait_time("snscrape") == 0
    serve(quotas["snscrape"], 2)
    assert 50 < balancer.get_wait_time("snscrape") < 65
    assert balancer.get_wait_time("nitter") == 0


def test_wait_time_of_a_stranger(dropin):
    assert dropin.LoadBalancer(quotas_of(dropin, "snscrape")).get_wait_time("twint") == math.inf


def test_next_available_is_one_that_can_now(dropin):
    quotas = quotas_of(dropin, "snscrape", "nitter", figures=(2, 10, 10))
    balancer = dropin.LoadBalancer(quotas)
    serve(quotas["snscrape"], 2)
    name, seconds = balancer.get_next_available_time()
    assert (name, seconds) == ("nitter", 0)


@pytest.mark.parametrize("sooner, later", [("snscrape", "nitter"), ("nitter", "snscrape")])
def test_next_available_is_the_soonest(dropin, sooner, later):
    quotas = quotas_of(dropin, "snscrape", "nitter", figures=(2, 10, 10))
    balancer = dropin.LoadBalancer(quotas)
    quotas[sooner].minute_requests.extend([time.time() - 50] * 2)
    quotas[later].minute_requests.extend([time.time() - 20] * 2)
    name, seconds = balancer.get_next_available_time()
    assert name == sooner
    assert 5 < seconds < 15
