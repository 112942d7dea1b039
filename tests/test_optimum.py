"""What nobody could do better, and how near a scheduler comes to it."""

import math
import random

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    ConfigError,
    DeadlineBound,
    Demand,
    Limit,
    RateLimitScheduler,
    bound,
    deadline_bound,
    throughput_bound,
)
from tidegate.testing import FakeBackend, ManualClock, servers


async def fetch(request):
    return request.target


# ---- throughput_bound


def test_what_is_asked_for_goes_through_when_there_is_room():
    found = throughput_bound({"a": "10/s", "b": "5/s"}, [Demand(12)])
    assert (found.rate, found.demand, found.binding, found.prices) == (12, 12, (), {})


def test_what_may_go_nowhere_else_is_what_binds():
    """Each group has its backends; what is scarce has a price, also when there is enough in all."""
    quotas = {"big": "10/s", "small": "1/s"}
    found = throughput_bound(quotas, [Demand(4), Demand(3, ["small"])])
    assert (found.rate, found.binding, found.prices) == (5, ("small",), {"small": 1})
    found = throughput_bound(quotas, [Demand(40), Demand(3, ["small"])])
    assert (found.rate, found.binding) == (11, ("big", "small"))
    assert throughput_bound(quotas).rate == 11


def test_of_several_limits_the_slowest_counts_in_the_long_run_and_bursts_at_first():
    quota = BackendQuota("10/s", "100/min")
    assert throughput_bound({"a": quota}).rate == pytest.approx(100 / 60)
    for horizon in (3, 30, 600):
        assert throughput_bound({"a": quota}, horizon=horizon).rate * horizon == pytest.approx(bound(quota, horizon))


def test_costs_accounts_groups_and_concurrency():
    assert throughput_bound({"a": "10/s"}, [Demand(2, cost=5), Demand(8)]).rate == pytest.approx(8.4)
    keys = Backend("keys", fetch, BackendQuota("10/s", concurrency=None), accounts=["one", "two"])
    assert throughput_bound([keys]).rate == 20
    shared = BackendQuota("100/s", concurrency=2, group="g")
    both = [Backend("a", fetch, shared), Backend("b", fetch, shared)]
    found = throughput_bound(both, [Demand(8, ["a"]), Demand(8, ["b"])], latency={"a": 0.1, "b": 0.4})
    assert found.rate == pytest.approx(11)
    assert found.binding == ("a + b concurrency",)
    assert found.prices["a + b concurrency"] == pytest.approx(2.5)
    assert throughput_bound(both, [Demand(8, ["a"])]).rate == 8


def test_without_limits_there_is_no_bound():
    assert throughput_bound({"a": BackendQuota()}).rate == math.inf
    assert throughput_bound({"a": BackendQuota("1/s per host")}, [Demand(7)]).rate == 7


# ---- deadline_bound


def test_those_that_no_permit_reaches_are_late():
    assert deadline_bound([(0, 0), (0, 1), (0, 1)], {"api": "1/s leaky"}) == DeadlineBound(3, 1)
    assert deadline_bound([(0, 1), (0, 1)], {"api": "1/s leaky"}, latency=0.5) == DeadlineBound(2, 1)
    assert deadline_bound([(0, 1)], {"api": "1/s"}, latency=1.5).share == 1
    assert deadline_bound([], {"api": "1/s"}).share == 0


def test_requests_go_where_they_may():
    """A slow backend is of no use to who is in a hurry, and eligibility holds."""
    quotas = {"fast": "1/min leaky", "slow": "1/min leaky"}
    latency = {"fast": 0.1, "slow": 5}
    assert deadline_bound([(0, 1), (0, 9)], quotas, latency=latency).misses == 0
    assert deadline_bound([(0, 1), (0, 2)], quotas, latency=latency).misses == 1
    assert deadline_bound([(0, 9, ["slow"]), (0, 9, ["slow"])], quotas, latency=latency).misses == 1
    assert deadline_bound([(0, 9, [])], quotas).misses == 1


def test_concurrency_accounts_and_groups():
    one = BackendQuota(concurrency=1)
    assert deadline_bound([(0, 2), (0, 2), (0, 2)], {"a": one}, latency=1).misses == 1
    keys = Backend("keys", fetch, "1/min leaky", accounts=["one", "two"])
    assert deadline_bound([(0, 1)] * 3, [keys]).misses == 1
    grouped = BackendQuota("1/min leaky", group="g")
    assert deadline_bound([(0, 1)] * 3, [Backend("a", fetch, grouped), Backend("b", fetch, grouped)]).misses == 2


@pytest.mark.parametrize("load", [0.5, 1.3])
async def test_a_scheduler_is_never_better_than_the_bounds(load):
    """Two strict servers, deadlines, virtual time: what is late is at least the bound, and what goes through at most."""
    clock = ManualClock()
    backends = [
        FakeBackend("near", servers.TokenBucket(4, 1, burst=4), "4/s burst 4", clock=clock, delay=0.05),
        FakeBackend("far", servers.Gcra(2, 1), "2/s leaky", clock=clock, delay=0.2),
    ]
    random.seed(3)
    requests, at = [], 0.0
    for _ in range(300):
        at += random.expovariate(6 * load)
        requests.append((at, at + random.uniform(0.5, 4)))
    least = deadline_bound(requests, backends, latency={"near": 0.1, "far": 0.4})
    async with RateLimitScheduler(backends, order="edf", clock=clock, seed=1) as scheduler:
        for comes, deadline in requests:
            await clock.advance(comes - clock.time())
            await scheduler.submit(comes, timeout=deadline - comes)
        await clock.run_until_idle()
        ledger = scheduler.ledger()
    late = ledger.expired
    assert ledger.delivered + late == 300
    assert least.misses <= late
    served = sum(backend.server.accepted for backend in backends)
    assert served <= throughput_bound(backends, horizon=clock.time()).rate * clock.time()


# ---- Mistakes


@pytest.mark.parametrize(
    "call, option",
    [
        (lambda: Demand(0), "rate"),
        (lambda: Demand(1, cost=0), "cost"),
        (lambda: throughput_bound({}), "backends"),
        (lambda: throughput_bound("api"), "backends"),
        (lambda: throughput_bound(["api"]), "backends"),
        (lambda: throughput_bound({"a": 5}), "backends"),
        (lambda: throughput_bound({"a": "1/s"}, [5]), "demands"),
        (lambda: throughput_bound({"a": "1/s"}, [Demand(5, ["b"])]), "backends"),
        (lambda: throughput_bound({"a": "1/s"}, [Demand(5, "a")]), "backends"),
        (lambda: throughput_bound({"a": "1/s"}, latency=-1), "latency"),
        (lambda: throughput_bound({"a": "1/s", "b": "1/s"}, latency={"a": 1}), "latency"),
        (lambda: throughput_bound({"a": "1/s"}, latency={"c": 1}), "backends"),
        (lambda: throughput_bound({"a": "1/s"}, horizon=0), "horizon"),
        (lambda: deadline_bound([5], {"a": "1/s"}), "requests"),
        (lambda: deadline_bound([(-1, 5)], {"a": "1/s"}), "requests"),
        (lambda: deadline_bound([(0, math.inf)], {"a": "1/s"}), "requests"),
        (lambda: deadline_bound([(0, 1, "a")], {"a": "1/s"}), "backends"),
        (lambda: deadline_bound([(0, 1e9)], {"a": Limit(1000, 1)}), "requests"),
    ],
)
def test_wrong_arguments(call, option):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.option == option
