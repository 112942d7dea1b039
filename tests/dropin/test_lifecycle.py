"""Starting and stopping: often, on several loops, and several schedulers on one."""

import asyncio
import gc
import threading
import weakref

import pytest
from tests.dropin.caller import InsertBatch, Manager, Result, mock_manager, no_tweets, plenty, until, until_processed, user, users


def scheduler_of(dropin):
    return dropin.RateLimitScheduler(Manager(), InsertBatch(), plenty(dropin))


@pytest.mark.parametrize("count", [1, 2, 7])
async def test_as_many_tasks_as_workers(dropin, quiet, count):
    scheduler = scheduler_of(dropin)
    await scheduler.start(num_workers=count)
    assert scheduler._running is True
    assert isinstance(scheduler._worker_tasks, list)
    assert len(scheduler._worker_tasks) == count
    await scheduler.stop()
    assert scheduler._running is False
    assert scheduler._worker_tasks == []


async def test_three_workers_by_default(dropin, quiet):
    scheduler = scheduler_of(dropin)
    await scheduler.start()
    assert len(scheduler._worker_tasks) == 3
    await scheduler.stop()


async def test_it_starts_and_stops_many_times(dropin, quiet):
    scheduler = scheduler_of(dropin)
    for turn in range(1, 21):
        await scheduler.start(num_workers=turn % 4 + 1)
        assert len(scheduler._worker_tasks) == turn % 4 + 1
        for target in users(3):
            assert await scheduler.schedule_request(target)
        await until_processed(scheduler, 3 * turn)
        await scheduler.stop()
        assert scheduler._worker_tasks == []
    assert scheduler.stats["requests_processed"] == len(scheduler.storage.rows) == 60
    assert len(asyncio.all_tasks()) <= 2


async def test_stopping_at_once(dropin, quiet):
    scheduler = scheduler_of(dropin)
    for _ in range(10):
        await scheduler.start()
        await scheduler.stop()
    assert not scheduler._running
    await scheduler.schedule_request(user())
    await scheduler.start()
    await until_processed(scheduler, 1)
    await scheduler.stop()


async def test_starting_twice(dropin, quiet):
    scheduler = scheduler_of(dropin)
    await scheduler.start(num_workers=2)
    await scheduler.start(num_workers=2)
    assert len(scheduler._worker_tasks) == 2
    await scheduler.schedule_request(user())
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert scheduler._worker_tasks == []
    assert scheduler.backend_manager.asked == ["ada"]


async def test_stopping_twice_and_before_the_start(dropin, quiet):
    scheduler = scheduler_of(dropin)
    await scheduler.stop()
    await scheduler.start()
    await scheduler.stop()
    await scheduler.stop()
    assert scheduler._running is False


async def test_scheduled_before_the_start_and_between(dropin, quiet):
    scheduler = scheduler_of(dropin)
    assert await scheduler.schedule_request(user("before"))
    await scheduler.start()
    await until_processed(scheduler, 1)
    await scheduler.stop()
    assert await scheduler.schedule_request(user("between"))
    assert await scheduler.request_queue.size() == 1
    await scheduler.start()
    await until_processed(scheduler, 2)
    await scheduler.stop()
    assert scheduler.backend_manager.asked == ["before", "between"]


async def test_nothing_is_served_when_stopped(dropin, quiet):
    scheduler = scheduler_of(dropin)
    await scheduler.start()
    await scheduler.stop()
    await scheduler.schedule_request(user())
    await asyncio.sleep(0.15)
    assert scheduler.backend_manager.calls == []
    assert await scheduler.request_queue.size() == 1


async def test_stopping_from_two_tasks(dropin, quiet):
    scheduler = scheduler_of(dropin)
    await scheduler.start()
    await asyncio.gather(scheduler.stop(), scheduler.stop())
    assert scheduler._running is False
    assert scheduler._worker_tasks == []


async def test_stopping_does_not_wait_for_a_scrape(dropin):
    begun = asyncio.Event()

    async def hang(kind, value):
        begun.set()
        await asyncio.Event().wait()

    scheduler = dropin.RateLimitScheduler(Manager(hang), InsertBatch(), plenty(dropin))
    await scheduler.start()
    await scheduler.schedule_request(user())
    async with asyncio.timeout(30):
        await begun.wait()
        await scheduler.stop()
    assert scheduler._worker_tasks == []
    assert scheduler.stats["requests_processed"] == 0


async def test_stopping_does_not_wait_for_quota(dropin):
    """Neither for that of requests, nor for that of a backend which the manager by itself has used beyond it."""

    async def by_nitter(kind, value):
        return Result(backend_used="nitter")

    quotas = {"snscrape": dropin.BackendQuota("snscrape", 6, 100, 5), "nitter": dropin.BackendQuota("nitter", 2, 100, 5)}
    scheduler = dropin.RateLimitScheduler(Manager(by_nitter), InsertBatch(), quotas)
    for target in users(9):
        await scheduler.schedule_request(target, backend_preference="snscrape")
    await scheduler.start()
    await until_processed(scheduler, 6)
    async with asyncio.timeout(30):
        await scheduler.stop()
    assert scheduler._worker_tasks == []


async def test_stopping_waits_for_what_is_being_stored(dropin):
    """Or gives it up: it leaves no thread behind that stores after it has returned what nobody has counted."""
    scheduler = scheduler_of(dropin)
    await scheduler.start()
    for target in users(50):
        await scheduler.schedule_request(target)
    await until_processed(scheduler, 1)
    await scheduler.stop()
    stored = len(scheduler.storage.rows)
    assert scheduler.stats["requests_processed"] <= stored <= 50
    assert stored + await scheduler.request_queue.size() <= 50


async def test_a_quota_outlives_a_stop(virtual):
    manager = Manager(no_tweets, names=["snscrape"])
    quotas = {"snscrape": virtual.dropin.BackendQuota("snscrape", 2, 100, 5)}
    scheduler = virtual.scheduler(manager, InsertBatch(), quotas)
    for target in users(2):
        await scheduler.schedule_request(target)
    for _ in range(3):
        await scheduler.start()
        await virtual.clock.run_for(10)
        await scheduler.schedule_request(user("late"))
        await virtual.clock.run_for(5)
        assert len(manager.calls) == 2
        assert not quotas["snscrape"].can_make_request()
        await scheduler.stop()


def test_a_quota_outlives_a_loop(dropin):
    quotas = {"snscrape": dropin.BackendQuota("snscrape", 2, 100, 5)}
    scheduler = dropin.RateLimitScheduler(Manager(names=["snscrape"]), InsertBatch(), quotas)

    async def first():
        for target in users(2):
            await scheduler.schedule_request(target)
        await scheduler.start()
        await until_processed(scheduler, 2)
        await scheduler.stop()

    async def second():
        await scheduler.schedule_request(user("late"))
        await scheduler.start()
        await asyncio.sleep(0.2)
        await scheduler.stop()

    asyncio.run(first())
    asyncio.run(second())
    assert len(scheduler.backend_manager.calls) == 2
    assert not quotas["snscrape"].can_make_request()


def test_one_loop_after_the_other(dropin):
    scheduler = scheduler_of(dropin)

    async def serve(target):
        await scheduler.start()
        assert await scheduler.schedule_request(target)
        await until_processed(scheduler, len(seen) + 1)
        await scheduler.stop()

    seen = []
    for target in users(5):
        asyncio.run(serve(target))
        seen.append(target)
    assert scheduler.backend_manager.asked == [target.value for target in seen]


def test_made_and_filled_on_another_loop(dropin):
    async def fill():
        scheduler = scheduler_of(dropin)
        for target in users(10):
            assert await scheduler.schedule_request(target)
        return scheduler

    async def serve(scheduler):
        assert await scheduler.request_queue.size() == 10
        await scheduler.start()
        await until_processed(scheduler, 10)
        await scheduler.stop()

    scheduler = asyncio.run(fill())
    asyncio.run(serve(scheduler))
    assert len(scheduler.storage.rows) == 10


async def test_several_on_one_loop(dropin, quiet):
    schedulers = [scheduler_of(dropin) for _ in range(5)]
    for scheduler in schedulers:
        await scheduler.start()
    for turn in range(10):
        for number, scheduler in enumerate(schedulers):
            await scheduler.schedule_request(user(f"user {turn} of {number}"))
    for scheduler in schedulers:
        await until_processed(scheduler, 10)
    for number, scheduler in enumerate(schedulers):
        await scheduler.stop()
        assert sorted(scheduler.backend_manager.asked) == sorted(f"user {turn} of {number}" for turn in range(10))
        assert all(not other._running for other in schedulers[: number + 1])
        assert all(other._running for other in schedulers[number + 1 :])


async def test_several_with_one_manager_and_storage(dropin, quiet):
    manager, storage = Manager(), InsertBatch()
    schedulers = [dropin.RateLimitScheduler(manager, storage, plenty(dropin)) for _ in range(3)]
    await asyncio.gather(*(scheduler.start() for scheduler in schedulers))
    for scheduler in schedulers:
        for target in users(5):
            await scheduler.schedule_request(target)
    await asyncio.gather(*(until_processed(scheduler, 5) for scheduler in schedulers))
    await asyncio.gather(*(scheduler.stop() for scheduler in schedulers))
    assert len(manager.calls) == len(storage.rows) == 15


async def test_what_was_served_is_let_go(dropin):
    """But for some that it still holds for a while."""
    scheduler = scheduler_of(dropin)
    await scheduler.start()
    targets = users(500)
    references = [weakref.ref(target) for target in targets]
    for target in targets:
        await scheduler.schedule_request(target)
    await until_processed(scheduler, 500)
    del target, targets
    await scheduler.stop()
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 100


async def test_scheduling_from_many_tasks(dropin, quiet):
    scheduler = scheduler_of(dropin)
    await scheduler.start()
    accepted = await asyncio.gather(*(scheduler.schedule_request(target) for target in users(100)))
    assert accepted == [True] * 100
    await until_processed(scheduler, 100)
    await scheduler.stop()
    assert len(set(scheduler.backend_manager.asked)) == 100


def test_a_loop_that_ended_without_a_stop(dropin):
    """The next one goes on with what waits, and within the quota."""
    manager, quotas = Manager(), {"snscrape": dropin.BackendQuota("snscrape", 2, 100, 5)}
    scheduler = dropin.RateLimitScheduler(manager, InsertBatch(), quotas)

    async def begin():
        for target in users(5):
            await scheduler.schedule_request(target)
        await scheduler.start()
        await until_processed(scheduler, 2)

    async def go_on():
        await scheduler.start()
        await asyncio.sleep(0.2)
        await scheduler.stop()

    asyncio.run(begin())
    asyncio.run(go_on())
    assert len(manager.asked) == 2
    assert asyncio.run(scheduler.request_queue.size()) == 3


async def test_a_storage_that_is_slow_slows_the_scraping(dropin):
    go = threading.Event()

    class Slow(InsertBatch):
        def insert_batch(self, tweets):
            go.wait(60)
            super().insert_batch(tweets)

    manager = Manager()
    scheduler = dropin.RateLimitScheduler(manager, Slow(), plenty(dropin))
    scheduler.request_queue.max_size = 10_000
    for target in users(8000):
        await scheduler.schedule_request(target)
    await scheduler.start()
    asked = -1
    while asked < len(manager.asked):  # until no more are
        asked = len(manager.asked)
        await asyncio.sleep(0.2)
    assert asked < 4000
    go.set()
    await until_processed(scheduler, 8000)
    await scheduler.stop()


class Held(InsertBatch):
    """A storage that inserts only once it is let go."""

    def __init__(self):
        super().__init__()
        self.entered, self.go = threading.Event(), threading.Event()

    def insert_batch(self, tweets):
        self.entered.set()
        self.go.wait(60)
        super().insert_batch(tweets)


async def cancelled_stop(scheduler):
    """A scheduler whose stop was given up while results were being stored."""
    await scheduler.start()
    await until(scheduler.storage.entered.is_set)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(scheduler.stop(), 0.05)
    assert not scheduler._running


@pytest.mark.parametrize("then", ["stop", "start"])
async def test_a_stop_that_was_cancelled_is_made_good(dropin, quiet, then):
    """By the next stop, or the next start: each is stored once and counted once, and no task is left."""
    scheduler = dropin.RateLimitScheduler(Manager(), Held(), plenty(dropin))
    for target in users(3):
        await scheduler.schedule_request(target)
    await cancelled_stop(scheduler)
    scheduler.storage.go.set()
    await getattr(scheduler, then)()
    await until_processed(scheduler, 3)
    await scheduler.start()
    await scheduler.schedule_request(user("another"))
    await until_processed(scheduler, 4)
    await scheduler.stop()
    assert sorted(scheduler.storage.rows) == ["tweet of another", *(f"tweet of user {number}" for number in range(3))]
    assert scheduler.stats["requests_processed"] == 4
    assert len(asyncio.all_tasks()) <= 2


def test_what_a_loop_left_unstored_is_served_again(dropin):
    storage = Held()
    scheduler = dropin.RateLimitScheduler(Manager(), storage, plenty(dropin))

    async def begin():
        for target in users(5):
            await scheduler.schedule_request(target)
        await scheduler.start()
        await until(storage.entered.is_set)
        asyncio.get_running_loop().call_later(0.05, storage.go.set)  # the loop's end waits for its threads

    async def go_on():
        await scheduler.start()
        await until_processed(scheduler, 5)
        await scheduler.stop()

    asyncio.run(begin())
    asyncio.run(go_on())
    assert scheduler.stats["requests_processed"] == 5
    assert set(storage.rows) == {f"tweet of user {number}" for number in range(5)}


def test_a_stop_while_all_tasks_are_cancelled(dropin):
    """As at the end of `asyncio.run`: it ends, and nothing is lost."""
    storage = Held()
    scheduler = dropin.RateLimitScheduler(Manager(), storage, plenty(dropin))

    async def serve():
        await scheduler.start(num_workers=1)
        for target in users(300):
            await scheduler.schedule_request(target)
        try:
            await asyncio.Event().wait()
        finally:
            asyncio.get_running_loop().call_later(0.05, storage.go.set)
            await scheduler.stop()

    async def main():
        main.task = asyncio.create_task(serve())
        await until(storage.entered.is_set)

    asyncio.run(main())
    assert asyncio.run(scheduler.request_queue.size()) == 300


async def test_a_start_that_fails_may_be_tried_again(dropin):
    manager = mock_manager()
    scheduler = dropin.RateLimitScheduler(manager, InsertBatch())
    await scheduler.schedule_request(user())
    manager.get_available_backends.side_effect = OSError("no network")
    with pytest.raises(OSError, match="no network"):
        await scheduler.start()
    assert not scheduler._running
    manager.get_available_backends.side_effect = None
    await scheduler.start()
    await until_processed(scheduler, 1)
    await scheduler.stop()


async def test_a_scrape_that_ends_after_its_stop_changes_nothing(dropin):
    """It ignored its cancellation; its request was served by the next start, and is not served once more."""
    go = asyncio.Event()

    async def answer(kind, value):
        if len(manager.calls) > 1:
            return Result()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await go.wait()
            raise OSError("too late") from None

    manager = Manager(answer)
    scheduler = dropin.RateLimitScheduler(manager, InsertBatch(), plenty(dropin))
    await scheduler.start()
    await scheduler.schedule_request(user())
    await until(lambda: manager.calls)
    await scheduler.stop()  # waits 5 s for it
    await scheduler.start()
    await until_processed(scheduler, 1)
    go.set()
    await asyncio.sleep(0.05)
    assert await scheduler.request_queue.is_empty()
    await scheduler.stop()


def test_many_served_by_a_loop_that_ended_without_a_stop(dropin):
    """Charging their minute anew is linear: quadratic, it would take minutes."""
    scheduler = dropin.RateLimitScheduler(Manager(no_tweets), InsertBatch(), plenty(dropin, "snscrape"))
    for _ in range(20_000):
        scheduler.quotas["snscrape"].record_request_start()

    async def begin():
        await scheduler.start()

    async def go_on():
        await scheduler.start()
        await scheduler.stop()

    asyncio.run(begin())
    asyncio.run(go_on())
    assert len(scheduler.quotas["snscrape"].minute_requests) == 20_000


async def test_a_quota_taken_out_and_put_back_between_starts(dropin):
    """What it was sent in the last minute still counts."""
    quotas = {"snscrape": dropin.BackendQuota("snscrape", 3, 100, 5), "nitter": dropin.BackendQuota("nitter", 1, 100, 5)}
    manager = Manager(no_tweets)
    scheduler = dropin.RateLimitScheduler(manager, InsertBatch(), quotas)
    for target in users(10):
        await scheduler.schedule_request(target)

    async def serve():
        await scheduler.start()
        await asyncio.sleep(0.1)
        await scheduler.stop()
        return len(manager.asked)

    snscrape = quotas.pop("snscrape")
    assert await serve() == 1
    quotas["snscrape"] = snscrape
    assert await serve() == 4
    del quotas["snscrape"]
    assert await serve() == 4
    quotas["snscrape"] = snscrape
    assert await serve() == 4
