"""What the plain scheduler gets wrong, and `tidegate.dropin` must not: by defect. All of these fail on the plain one."""

import asyncio
import time
from functools import partial
from itertools import pairwise
from random import Random
from unittest.mock import AsyncMock, Mock, patch

import pytest
from tests.dropin.caller import (
    PLENTY,
    Collecting,
    InsertBatch,
    InsertTweetsBatch,
    Manager,
    ManagerOfObjects,
    Result,
    mock_target,
    no_tweets,
    one_tweet,
    plenty,
    until,
    until_processed,
    user,
    users,
)


def one_backend(dropin, minute, hour=100_000, concurrent=100):
    return {"snscrape": dropin.BackendQuota("snscrape", minute, hour, concurrent)}


def serve(quota, count=1, response_time=1.0):
    for _ in range(count):
        quota.record_request_start()
        quota.record_request_end(True, response_time)


def request_of(dropin, priority="NORMAL", age=0.0, **options):
    return dropin.ScheduledRequest(user(), dropin.RequestPriority[priority], time.time() - age, **options)


async def start_with(scheduler, targets, **options):
    for target in targets:
        assert await scheduler.schedule_request(target, **options)
    await scheduler.start()


# ---- Loses requests when the quota is used up


async def test_two_hundred_at_the_default_quotas(virtual):
    manager, targets = Manager(no_tweets), users(200)
    scheduler = virtual.scheduler(manager, InsertBatch())
    await start_with(scheduler, targets)
    await virtual.clock.run_for(59)
    assert len(manager.calls) == scheduler.stats["requests_processed"] == 130
    assert await scheduler.request_queue.size() == 70
    await virtual.clock.run_for(6)
    assert scheduler.stats["requests_processed"] == 200
    assert sorted(manager.asked) == sorted(target.value for target in targets)
    assert scheduler.stats["requests_failed"] == 0
    assert (await scheduler.get_status())["queue_stats"]["total_dropped"] == 0
    await scheduler.stop()


async def test_two_hundred_come_while_it_runs(virtual):
    manager, targets = Manager(no_tweets), users(200)
    scheduler = virtual.scheduler(manager, InsertBatch())
    await scheduler.start()
    for target in targets:
        assert await scheduler.schedule_request(target)
    await virtual.clock.run_for(65)
    assert sorted(manager.asked) == sorted(target.value for target in targets)
    await scheduler.stop()


async def test_what_waits_is_still_there(dropin):
    """In real time, with a storage."""
    storage = InsertBatch()
    scheduler = dropin.RateLimitScheduler(Manager(), storage, one_backend(dropin, 5))
    await start_with(scheduler, users(12))
    await until_processed(scheduler, 5)
    await asyncio.sleep(0.2)
    status = await scheduler.get_status()
    assert (status["stats"]["requests_processed"], status["queue_size"]) == (5, 7)
    assert status["stats"]["requests_failed"] == 0
    await scheduler.stop()
    assert len(storage.rows) == 5


async def test_waiting_spends_no_retry(dropin):
    scheduler = dropin.RateLimitScheduler(Manager(), InsertBatch(), one_backend(dropin, 1))
    await start_with(scheduler, users(2))
    await until_processed(scheduler, 1)
    await asyncio.sleep(0.2)
    request = await scheduler.request_queue.peek()
    assert request.retry_count == 0
    await scheduler.stop()


async def test_after_waiting_all_retries_are_left(virtual):
    async def thrice(kind, value):
        return Result(success=False) if value == "late" and manager.asked.count("late") <= 3 else Result()

    manager, late = Manager(thrice, names=["snscrape"]), user("late")
    scheduler = virtual.scheduler(manager, InsertBatch(), one_backend(virtual.dropin, 1))
    await start_with(scheduler, [user("early"), late])
    await virtual.clock.run_for(600)
    await scheduler.stop()
    assert manager.asked == ["early", *["late"] * 4]
    assert late.last_scraped is not None
    assert scheduler.stats["requests_failed"] == 0


async def test_what_waits_outlives_a_stop(virtual):
    manager = Manager(no_tweets, names=["snscrape"])
    scheduler = virtual.scheduler(manager, InsertBatch(), one_backend(virtual.dropin, 2))
    await start_with(scheduler, users(5))
    await virtual.clock.run_for(1)
    await scheduler.stop()
    assert await scheduler.request_queue.size() == 3
    await virtual.clock.run_for(65)
    assert len(manager.calls) == 2
    await scheduler.start()
    await virtual.clock.run_for(65)
    await scheduler.stop()
    assert sorted(manager.asked) == [f"user {number}" for number in range(5)]


async def test_urgent_ones_overtake_those_that_wait_for_quota(virtual):
    manager = Manager(no_tweets, names=["snscrape"])
    scheduler = virtual.scheduler(manager, InsertBatch(), one_backend(virtual.dropin, 2))
    await start_with(scheduler, users(4))
    await virtual.clock.run_for(30)
    await scheduler.schedule_request(user("urgent"), virtual.dropin.RequestPriority.CRITICAL)
    await virtual.clock.run_for(35)
    assert manager.asked == ["user 0", "user 1", "urgent", "user 2"]
    await scheduler.stop()


async def test_what_waits_for_quota_can_be_taken(virtual):
    manager = Manager(no_tweets, names=["snscrape"])
    scheduler = virtual.scheduler(manager, InsertBatch(), one_backend(virtual.dropin, 1))
    targets = users(3)
    await start_with(scheduler, targets)
    await virtual.clock.run_for(1)
    request = await scheduler.request_queue.dequeue()
    assert request.target is targets[1]
    await virtual.clock.run_for(600)
    await scheduler.stop()
    assert manager.asked == ["user 0", "user 2"]


async def test_what_runs_at_a_stop_is_served_once_afterwards(virtual):
    async def slow(kind, value):
        await virtual.clock.sleep(10)
        return Result()

    manager = Manager(slow, names=["snscrape"])
    scheduler = virtual.scheduler(manager, InsertBatch())
    await start_with(scheduler, [user()])
    await virtual.clock.run_for(1)
    assert manager.asked == ["ada"]
    await scheduler.stop()
    assert await scheduler.request_queue.size() == 1
    await scheduler.start()
    await virtual.clock.run_for(100)
    await scheduler.stop()
    assert manager.asked == ["ada", "ada"]
    assert scheduler.stats["requests_processed"] == 1


class Flaky:
    """A manager of objects that take their time and fail now and then, and what they were asked when."""

    def __init__(self, random, clock):
        self.random, self.clock = random, clock
        self.sent = {"snscrape": [], "nitter": []}
        self.served = []
        self.backends = [Mock(is_available=Mock(return_value=True)) for _ in self.sent]
        for name, backend in zip(self.sent, self.backends, strict=True):
            backend.get_name = Mock(return_value=name)
            backend.scrape_user_tweets = partial(self.scrape, name)

    def get_available_backends(self):
        return list(self.sent)

    async def scrape(self, backend, value, max_tweets=100):
        self.sent[backend].append(self.clock.time())
        await self.clock.sleep(self.random.choice([0.01, 0.5, 20]))
        if self.random.random() < 0.2:
            raise ConnectionError("reset by peer")
        self.served.append(value)
        return Result()

    async def scrape_user_tweets(self, name, max_tweets=100):
        return await self.scrape("snscrape", name)


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_nothing_is_lost(virtual, seed):
    """Each that was accepted is served once, was taken, or was given up; and no minute has more than its quota."""
    random, clock = Random(seed), virtual.clock
    manager = Flaky(random, clock)
    figures = {"snscrape": (6, 200, 3), "nitter": (2, 60, 1)}
    quotas = {name: virtual.dropin.BackendQuota(name, *limits) for name, limits in figures.items()}
    scheduler = virtual.scheduler(manager, InsertBatch(), quotas)
    scheduler.request_queue.max_size = 20
    accepted, taken = [], []
    for turn in range(300):
        match random.choice(["schedule"] * 6 + ["run"] * 3 + ["take", "start", "stop"]):
            case "schedule":
                target = user(f"user {turn}")
                priority = random.choice(list(virtual.dropin.RequestPriority))
                if await scheduler.schedule_request(target, priority, random.choice([None, "snscrape", "nitter"])):
                    accepted.append(target)
            case "run":
                await clock.run_for(random.choice([0.1, 3, 30]))
            case "take":
                if (request := await scheduler.request_queue.dequeue()) is not None:
                    taken.append(request.target)
            case "start":
                await scheduler.start()
            case "stop":
                await scheduler.stop()
    await scheduler.start()
    await clock.run_for(3600)
    assert await scheduler.request_queue.is_empty()
    await scheduler.stop()
    assert len(set(manager.served)) == len(manager.served) == scheduler.stats["requests_processed"]
    assert len(accepted) == len(taken) + len(manager.served) + scheduler.stats["requests_failed"]
    assert {target.value for target in taken}.isdisjoint(manager.served)
    assert {target.value for target in accepted if target.last_scraped} == set(manager.served)
    for name, instants in manager.sent.items():
        most = quotas[name].requests_per_minute
        assert all(later - earlier >= 60 for earlier, later in zip(instants, instants[most:], strict=False))
    assert all(quota.active_requests == 0 for quota in quotas.values())


# ---- Slows down with its backlog


@pytest.mark.parametrize("pending", [1000, 4000, 16_000])
async def test_taking_one_does_not_look_at_all(dropin, pending):
    looks = 0

    class Watched(dropin.ScheduledRequest):
        @property
        def is_expired(self):
            nonlocal looks
            looks += 1
            return super().is_expired

        def __lt__(self, other):
            nonlocal looks
            looks += 1
            return super().__lt__(other)

    queue = dropin.RequestQueue(max_size=pending)
    now = time.time()
    for number in range(pending):
        assert await queue.enqueue(Watched(user(), dropin.RequestPriority.NORMAL, now - number / pending))
    looks = 0
    for _ in range(10):
        assert await queue.dequeue() is not None
    assert looks <= 10 * 4 * 14  # a heap of 16 000 is 14 deep


# ---- Quota charged to the wrong backend


@pytest.mark.parametrize("preferred, other", [("snscrape", "nitter"), ("nitter", "snscrape")])
async def test_the_chosen_backend_is_the_one_that_is_called(dropin, preferred, other):
    """The manager by itself asks the other one first."""
    manager = ManagerOfObjects(other, preferred)
    scheduler = dropin.RateLimitScheduler(manager, InsertBatch())
    await start_with(scheduler, [user()], backend_preference=preferred)
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert manager.calls(preferred) == ["ada"]
    assert manager.calls(other) == []
    assert len(scheduler.quotas[preferred].minute_requests) == 1
    assert len(scheduler.quotas[other].minute_requests) == 0


async def test_each_is_charged_for_what_it_served(dropin):
    manager = ManagerOfObjects("snscrape", "nitter", "twint")
    quotas = {name: dropin.BackendQuota(name, 20, 100, 5) for name in ("snscrape", "nitter", "twint")}
    scheduler = dropin.RateLimitScheduler(manager, InsertBatch(), quotas)
    await start_with(scheduler, users(60))
    await until_processed(scheduler, 60)
    await scheduler.stop()
    for name, quota in quotas.items():
        assert len(manager.calls(name)) == len(quota.minute_requests) == len(quota.hour_requests) == 20


async def test_what_one_backend_fails_another_serves(dropin):
    """The scheduler falls back by itself, since it does not leave the order to the manager."""
    manager = ManagerOfObjects("snscrape", "nitter")
    manager.backend("snscrape").error = ConnectionError("reset by peer")
    scheduler = dropin.RateLimitScheduler(manager, InsertBatch(), plenty(dropin))
    await start_with(scheduler, users(5), backend_preference="snscrape")
    await until_processed(scheduler, 5)
    await scheduler.stop()
    assert set(manager.calls("nitter")) == {f"user {number}" for number in range(5)}
    assert len(scheduler.quotas["snscrape"].minute_requests) == len(manager.calls("snscrape"))


async def test_no_backend_is_asked_beyond_its_quota(virtual):
    async def answer(name, max_tweets=100):
        return Result()

    manager = ManagerOfObjects("snscrape", "nitter")
    for backend in manager.backends:
        backend.scrape_user_tweets = AsyncMock(side_effect=answer)
    scheduler = virtual.scheduler(manager, InsertBatch())
    await start_with(scheduler, users(200))
    await virtual.clock.run_for(59)
    counts = [backend.scrape_user_tweets.await_count for backend in manager.backends]
    assert counts == [100, 30]
    await scheduler.stop()


async def test_a_manager_without_objects_is_charged_for_what_it_says_it_used(dropin):
    async def by_nitter(kind, value):
        return Result(backend_used="nitter")

    scheduler = dropin.RateLimitScheduler(Manager(by_nitter), InsertBatch())
    await start_with(scheduler, [user()], backend_preference="snscrape")
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert "nitter" in scheduler.stats["backends_used"]
    assert len(scheduler.quotas["nitter"].minute_requests) == 1


# ---- Forgets by age and by size


async def test_a_full_queue_refuses_and_forgets_nothing(dropin):
    queue = dropin.RequestQueue(max_size=3)
    requests = [request_of(dropin, age=age) for age in (30, 20, 10)]
    for request in requests:
        assert await queue.enqueue(request) is True
    assert await queue.enqueue(request_of(dropin)) is False
    assert await queue.enqueue(request_of(dropin, "LOW")) is False
    assert await queue.enqueue(request_of(dropin, age=100)) is False, "age is no urgency"
    assert await queue.size() == 3
    assert [await queue.dequeue() for _ in range(4)] == [*requests, None]


async def test_room_is_made_by_taking_one(dropin):
    queue = dropin.RequestQueue(max_size=1)
    first, second = request_of(dropin, age=2), request_of(dropin, age=1)
    assert await queue.enqueue(first)
    assert await queue.enqueue(second) is False
    assert await queue.dequeue() is first
    assert await queue.enqueue(second) is True
    assert await queue.dequeue() is second


async def test_one_that_is_more_urgent_than_all_is_admitted_above_the_size(dropin):
    queue = dropin.RequestQueue(max_size=2)
    waiting = [request_of(dropin, "NORMAL", age) for age in (2, 1)]
    for request in waiting:
        assert await queue.enqueue(request)
    high, critical = request_of(dropin, "HIGH"), request_of(dropin, "CRITICAL")
    assert await queue.enqueue(high) is True
    assert await queue.enqueue(request_of(dropin, "HIGH")) is False, "one as urgent waits"
    assert await queue.enqueue(critical) is True
    assert await queue.size() == 4
    assert [await queue.dequeue() for _ in range(5)] == [critical, high, *waiting, None]


async def test_urgent_but_not_more_than_all_is_refused(dropin):
    queue = dropin.RequestQueue(max_size=2)
    waiting = [request_of(dropin, "CRITICAL"), request_of(dropin, "LOW")]
    for request in waiting:
        assert await queue.enqueue(request)
    assert await queue.enqueue(request_of(dropin, "HIGH")) is False
    assert [await queue.dequeue() for _ in range(3)] == [*waiting, None]


async def test_the_scheduler_says_that_it_is_full(virtual):
    manager = Manager(no_tweets)
    scheduler = virtual.scheduler(manager, InsertBatch(), plenty(virtual.dropin))
    scheduler.request_queue.max_size = 3
    targets = users(5)
    assert [await scheduler.schedule_request(target) for target in targets] == [True] * 3 + [False] * 2
    assert await scheduler.schedule_request(user("urgent"), virtual.dropin.RequestPriority.CRITICAL) is True
    assert await scheduler.request_queue.size() == 4
    await scheduler.start()
    await virtual.clock.run_for(10)
    await scheduler.stop()
    assert manager.asked == ["urgent", "user 0", "user 1", "user 2"]


async def test_a_thousand_and_one(dropin):
    scheduler = dropin.RateLimitScheduler(Manager(), InsertBatch(), plenty(dropin))
    targets = users(1001)
    accepted = [await scheduler.schedule_request(target) for target in targets]
    assert accepted == [True] * 1000 + [False]
    await scheduler.start()
    await until_processed(scheduler, 1000)
    await scheduler.stop()
    assert {target.value for target in targets if target.last_scraped is None} == {"user 1000"}


async def test_an_old_request_is_not_forgotten(dropin):
    queue = dropin.RequestQueue()
    old, older = request_of(dropin, age=400), request_of(dropin, age=90_000)
    for request in (old, older):
        assert request.is_expired
        assert await queue.enqueue(request) is True
    assert await queue.size() == 2
    assert await queue.dequeue() is older
    assert await queue.dequeue() is old
    assert queue.stats["total_dropped"] == 0


async def test_one_that_waits_longer_than_five_minutes_is_served(virtual):
    manager, targets = Manager(no_tweets, names=["snscrape"]), users(9)
    scheduler = virtual.scheduler(manager, InsertBatch(), one_backend(virtual.dropin, 1))
    await start_with(scheduler, targets)
    await virtual.clock.run_for(9 * 61)
    await scheduler.stop()
    assert manager.asked == [target.value for target in targets]


async def test_one_that_waits_before_the_start_is_served(virtual):
    manager = Manager(no_tweets)
    scheduler = virtual.scheduler(manager, InsertBatch())
    assert await scheduler.schedule_request(user())
    await virtual.clock.run_for(3600)
    await scheduler.start()
    await virtual.clock.run_for(1)
    await scheduler.stop()
    assert manager.asked == ["ada"]


# ---- Waits only for the minute limit


def waits(dropin, quota):
    """The seconds that the quota says, and the balancer by both of its ways."""
    balancer = dropin.LoadBalancer({"snscrape": quota})
    name, seconds = balancer.get_next_available_time()
    assert name == "snscrape"
    return quota.get_wait_time(), balancer.get_wait_time("snscrape"), seconds


def test_waits_for_the_hour(dropin):
    quota = dropin.BackendQuota("snscrape", 100, 3, 10)
    serve(quota, 3)
    assert all(3500 < seconds < 3700 for seconds in waits(dropin, quota))


def test_waits_for_what_is_left_of_the_hour(dropin):
    quota = dropin.BackendQuota("snscrape", 100, 3, 10)
    quota.hour_requests.extend([time.time() - 3000] * 3)
    assert all(500 < seconds < 650 for seconds in waits(dropin, quota))


def test_waits_for_the_longer_of_both(dropin):
    quota = dropin.BackendQuota("snscrape", 3, 3, 10)
    quota.minute_requests.extend([time.time() - 10] * 3)
    quota.hour_requests.extend([time.time() - 1600] * 3)
    assert all(1900 < seconds < 2100 for seconds in waits(dropin, quota))


def test_waits_for_concurrency(dropin):
    quota = dropin.BackendQuota("snscrape", 100, 1000, 2)
    quota.record_request_start()
    quota.record_request_start()
    assert not quota.can_make_request()
    assert all(seconds > 0 for seconds in waits(dropin, quota))
    quota.record_request_end(True, 0.1)
    assert all(seconds == 0 for seconds in waits(dropin, quota))


async def test_status_says_the_wait_for_the_hour(dropin):
    scheduler = dropin.RateLimitScheduler(Manager(), InsertBatch(), one_backend(dropin, 100, 2))
    await start_with(scheduler, users(2))
    await until_processed(scheduler, 2)
    state = (await scheduler.get_status())["backend_status"]["snscrape"]
    await scheduler.stop()
    assert state["can_make_request"] is False
    assert 3500 < state["wait_time"] < 3700


async def test_the_hour_is_waited_for(virtual):
    manager = Manager(no_tweets, names=["snscrape"])
    scheduler = virtual.scheduler(manager, InsertBatch(), one_backend(virtual.dropin, 100, 3))
    await start_with(scheduler, users(5))
    await virtual.clock.run_for(3590)
    assert len(manager.calls) == 3
    await virtual.clock.run_for(30)
    await scheduler.stop()
    assert sorted(manager.asked) == [f"user {number}" for number in range(5)]


async def test_concurrency_is_waited_for(virtual):
    at_once = []

    async def slow(kind, value):
        at_once.append(len(manager.calls) - len(ended))
        await virtual.clock.sleep(10)
        ended.append(value)
        return Result()

    ended = []
    manager = Manager(slow, names=["snscrape"])
    scheduler = virtual.scheduler(manager, InsertBatch(), one_backend(virtual.dropin, 100, 1000, 2))
    for target in users(8):
        await scheduler.schedule_request(target)
    await scheduler.start(num_workers=5)
    await virtual.clock.run_for(45)
    await scheduler.stop()
    assert len(ended) == 8
    assert max(at_once) == 2


# ---- Weights never updated


def test_weights_follow_the_averages(dropin):
    quotas = {name: dropin.BackendQuota(name, *PLENTY) for name in ("snscrape", "nitter")}
    serve(quotas["snscrape"], response_time=0.1)
    serve(quotas["nitter"], response_time=25.0)
    balancer = dropin.LoadBalancer(quotas)
    request = request_of(dropin)

    def mostly():
        chosen = [balancer.select_backend(request) for _ in range(100)]
        return max(quotas, key=chosen.count)

    assert mostly() == "snscrape"
    serve(quotas["snscrape"], 30, response_time=25.0)
    serve(quotas["nitter"], 30, response_time=0.1)
    assert all(quota.get_status() is dropin.BackendStatus.HEALTHY for quota in quotas.values())
    assert mostly() == "nitter"


def test_weights_follow_what_is_set(dropin):
    quotas = {name: dropin.BackendQuota(name, *PLENTY) for name in ("snscrape", "nitter")}
    for quota in quotas.values():
        serve(quota)
    balancer = dropin.LoadBalancer(quotas)
    request = request_of(dropin)
    for better, worse in (("snscrape", "nitter"), ("nitter", "snscrape")):
        quotas[better].success_rate, quotas[worse].success_rate = 1.0, 0.71
        chosen = [balancer.select_backend(request) for _ in range(2000)]
        assert chosen.count(better) > chosen.count(worse)


# ---- Drifting cycles


async def test_all_at_once_then_each_at_its_own_place(virtual):
    collecting = Collecting(virtual, users(10), 30)
    await collecting.start()
    await virtual.clock.run_for(0.5)
    assert {value: len(instants) for value, instants in collecting.instants.items()} == {f"user {n}": 1 for n in range(10)}
    await virtual.clock.run_for(300)
    await collecting.stop()
    places = sorted(instants[2] % 30 for instants in collecting.instants.values())
    assert [later - earlier for earlier, later in pairwise(places)] == pytest.approx([3] * 9, abs=0.1)


@pytest.mark.parametrize("work", [4, 17])
async def test_the_grid_does_not_drift(virtual, work):
    collecting = Collecting(virtual, users(5), 30, work=work)
    await collecting.start()
    await virtual.clock.run_for(1230)
    await collecting.stop()
    for instants in collecting.instants.values():
        assert 40 <= len(instants) <= 42
        gaps = [later - earlier for earlier, later in pairwise(instants[1:])]
        assert gaps == pytest.approx([30] * len(gaps), abs=0.05)
        assert instants[-1] - instants[1] == pytest.approx(30 * (len(instants) - 2), abs=0.05)


async def test_one_that_still_waits_is_not_scheduled_again(virtual):
    collecting = Collecting(virtual, users(4), 10, quotas=one_backend(virtual.dropin, 1))
    await collecting.start()
    for _ in range(30):
        await virtual.clock.run_for(10)
        assert await collecting.scheduler.request_queue.size() <= 4
    await collecting.stop()
    served = sum(map(len, collecting.instants.values()))
    assert served == 5
    assert max(map(len, collecting.instants.values())) <= 2, "in turn"
    assert collecting.collector.get_stats()["stats"]["total_requests_scheduled"] <= served + 4


# ---- Wall clock


class SteppedClock:
    """`time.time` put forward or back."""

    def __init__(self, seconds):
        now = time.time
        self.patched = patch("time.time", lambda: now() + seconds)

    def __enter__(self):
        self.patched.start()

    def __exit__(self, *_):
        self.patched.stop()


@pytest.mark.parametrize("step", [3600, 86_400])
def test_a_step_forward_opens_no_limit(dropin, step):
    minute, hour = dropin.BackendQuota("snscrape", 2, 100, 10), dropin.BackendQuota("nitter", 100, 2, 10)
    for quota in (minute, hour):
        serve(quota, 2)
        assert not quota.can_make_request()
    with SteppedClock(step):
        assert not minute.can_make_request()
        assert not hour.can_make_request()
        assert 50 < minute.get_wait_time() < 65


def test_a_step_back_lengthens_no_wait(dropin):
    quota = dropin.BackendQuota("snscrape", 2, 100, 10)
    serve(quota, 2)
    with SteppedClock(-3600):
        assert 50 < quota.get_wait_time() < 65


async def test_a_step_forward_serves_nobody_early(virtual):
    manager = Manager(no_tweets, names=["snscrape"])
    scheduler = virtual.scheduler(manager, InsertBatch(), one_backend(virtual.dropin, 2))
    await start_with(scheduler, users(4))
    await virtual.clock.run_for(10)
    with SteppedClock(3600):
        await virtual.clock.run_for(40)
        assert len(manager.calls) == 2
        await virtual.clock.run_for(15)
        assert len(manager.calls) == 4
    await scheduler.stop()


async def test_a_step_back_holds_nobody_up(virtual):
    manager = Manager(no_tweets, names=["snscrape"])
    quotas = one_backend(virtual.dropin, 2)
    scheduler = virtual.scheduler(manager, InsertBatch(), quotas)
    await start_with(scheduler, users(2))
    await virtual.clock.run_for(10)
    assert not quotas["snscrape"].can_make_request()
    with SteppedClock(-3600):
        await virtual.clock.run_for(55)
        assert quotas["snscrape"].can_make_request()
        for target in users(2):
            await scheduler.schedule_request(target)
        await virtual.clock.run_for(1)
        assert len(manager.calls) == 4
    await scheduler.stop()


async def test_a_step_moves_no_target_of_a_collector(virtual):
    collecting = Collecting(virtual, users(3), 30)
    await collecting.start()
    await virtual.clock.run_for(100)
    with SteppedClock(-3600):
        await virtual.clock.run_for(100)
    with SteppedClock(3600):
        await virtual.clock.run_for(100)
    await collecting.stop()
    for instants in collecting.instants.values():
        assert 10 <= len(instants) <= 11
        gaps = [later - earlier for earlier, later in pairwise(instants[1:])]
        assert gaps == pytest.approx([30] * len(gaps), abs=0.05)


# ---- Storage method misnamed


async def test_a_storage_that_has_the_other_method(dropin):
    manager, storage = Manager(), InsertTweetsBatch()
    scheduler = dropin.RateLimitScheduler(manager, storage)
    target = user()
    await start_with(scheduler, [target])
    await until(lambda: storage.rows)
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert storage.rows == ["tweet of ada"]
    assert manager.asked == ["ada"], "a success is not tried again"
    assert scheduler.stats["requests_failed"] == 0
    assert target.last_scraped is not None


async def test_a_mocked_storage_that_has_the_other_method(dropin):
    storage = Mock(spec=["insert_tweets_batch"])
    scheduler = dropin.RateLimitScheduler(Manager(one_tweet), storage)
    await start_with(scheduler, [mock_target()])
    await until_processed(scheduler, 1)
    await scheduler.stop()
    storage.insert_tweets_batch.assert_called_once_with(["tweet of ada"])
