"""`ScheduledRequest` and `RequestQueue`."""

import random
import time
from datetime import UTC, datetime, timedelta

import pytest
from tests.dropin.caller import mock_target, user


def seconds_ago(seconds):
    return time.time() - seconds


def moment_ago(seconds):
    return datetime.now(UTC) - timedelta(seconds=seconds)


# A caller stamps a request in one of these ways.
STAMPS = pytest.mark.parametrize("ago", [seconds_ago, moment_ago])


def request_of(dropin, priority="NORMAL", age=0.0, *, ago=seconds_ago, target=None, **options):
    return dropin.ScheduledRequest(target or user(), dropin.RequestPriority[priority], ago(age), **options)


# ---- ScheduledRequest


def test_request(dropin):
    target, now = user(), time.time()
    request = dropin.ScheduledRequest(target, dropin.RequestPriority.HIGH, now)
    assert request.target is target
    assert request.priority is dropin.RequestPriority.HIGH
    assert request.created_at == now
    assert (request.retry_count, request.max_retries, request.backend_preference) == (0, 3, None)


def test_request_by_keywords(dropin):
    request = dropin.ScheduledRequest(
        target=user(),
        priority=dropin.RequestPriority.LOW,
        created_at=time.time(),
        retry_count=1,
        max_retries=5,
        backend_preference="nitter",
    )
    assert (request.retry_count, request.max_retries, request.backend_preference) == (1, 5, "nitter")


@STAMPS
def test_order_is_by_priority_then_by_age(dropin, ago):
    wanted = [
        request_of(dropin, priority, age, ago=ago) for priority in ("CRITICAL", "HIGH", "NORMAL", "LOW") for age in (9, 5, 1)
    ]
    shuffled = random.Random(1).sample(wanted, len(wanted))
    assert [id(request) for request in sorted(shuffled)] == [id(request) for request in wanted]
    assert wanted[0] < wanted[1]
    assert not wanted[3] < wanted[2]


@STAMPS
@pytest.mark.parametrize("age, expired", [(0, False), (290, False), (310, True), (86_400, True)])
def test_is_expired_after_five_minutes(dropin, ago, age, expired):
    assert request_of(dropin, age=age, ago=ago).is_expired is expired


def test_can_retry(dropin):
    request = request_of(dropin)
    seen = []
    while request.can_retry:
        seen.append(request.retry_count)
        request.retry_count += 1
    assert seen == [0, 1, 2]
    assert not request_of(dropin, max_retries=0).can_retry
    assert request_of(dropin, retry_count=4, max_retries=5).can_retry


# ---- RequestQueue


async def test_empty(dropin):
    queue = dropin.RequestQueue()
    assert await queue.dequeue() is None
    assert await queue.peek() is None
    assert await queue.size() == 0
    assert await queue.is_empty()


async def test_one(dropin):
    queue = dropin.RequestQueue()
    request = request_of(dropin)
    assert await queue.enqueue(request) is True
    assert await queue.size() == 1
    assert not await queue.is_empty()
    assert await queue.peek() is request
    assert await queue.size() == 1
    assert await queue.dequeue() is request
    assert await queue.is_empty()
    assert await queue.dequeue() is None


@STAMPS
async def test_the_most_urgent_and_oldest_first(dropin, ago):
    queue = dropin.RequestQueue()
    wanted = [
        request_of(dropin, priority, age, ago=ago) for priority in ("CRITICAL", "HIGH", "NORMAL", "LOW") for age in (9, 5, 1)
    ]
    for request in random.Random(1).sample(wanted, len(wanted)):
        assert await queue.enqueue(request)
    for request in wanted:
        assert await queue.peek() is request
        assert await queue.dequeue() is request


async def test_urgent_ones_overtake(dropin):
    queue = dropin.RequestQueue()
    first, second, urgent = request_of(dropin, age=3), request_of(dropin, age=2), request_of(dropin, "CRITICAL")
    await queue.enqueue(first)
    await queue.enqueue(second)
    assert await queue.dequeue() is first
    await queue.enqueue(urgent)
    assert await queue.dequeue() is urgent
    assert await queue.dequeue() is second


async def test_a_request_may_come_back(dropin):
    """As a caller's own retry does."""
    queue = dropin.RequestQueue()
    request = request_of(dropin)
    await queue.enqueue(request)
    assert await queue.dequeue() is request
    request.retry_count += 1
    assert await queue.enqueue(request)
    assert await queue.size() == 1
    assert await queue.dequeue() is request
    assert request.retry_count == 1


async def test_the_same_target_twice(dropin):
    queue = dropin.RequestQueue()
    target = user()
    for age in (2, 1):
        assert await queue.enqueue(request_of(dropin, age=age, target=target))
    assert await queue.size() == 2
    assert (await queue.dequeue()).target is (await queue.dequeue()).target is target


async def test_statistics(dropin):
    queue = dropin.RequestQueue()
    assert set(queue.stats) >= {"total_queued", "total_processed", "total_dropped", "avg_wait_time"}
    assert (queue.stats["total_queued"], queue.stats["total_processed"], queue.stats["total_dropped"]) == (0, 0, 0)
    for _ in range(3):
        await queue.enqueue(request_of(dropin, target=mock_target()))
    assert queue.stats["total_queued"] == 3
    await queue.dequeue()
    await queue.dequeue()
    assert queue.stats["total_processed"] == 2
    assert queue.stats["total_dropped"] == 0
    assert queue.stats["avg_wait_time"] >= 0
    await queue.peek()
    assert queue.stats["total_processed"] == 2


async def test_max_size_is_room_for_so_many(dropin):
    queue = dropin.RequestQueue(max_size=3)
    requests = [request_of(dropin, age=age) for age in (3, 2, 1)]
    assert [await queue.enqueue(request) for request in requests] == [True] * 3
    assert await queue.size() == 3
    assert [await queue.dequeue() for _ in range(3)] == requests
    assert await queue.enqueue(requests[0])


async def test_max_size_is_1000_by_default(dropin):
    queue = dropin.RequestQueue()
    assert queue.max_size == 1000
    for age in range(1000):
        assert await queue.enqueue(request_of(dropin, age=age / 10))
    assert await queue.size() == 1000
    assert queue.stats["total_dropped"] == 0
