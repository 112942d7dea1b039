"""Targets that are collected again and again."""

import asyncio
import gc
import logging
import weakref
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import pytest

from tidegate import (
    Backend,
    BackendQuota,
    ConfigError,
    ContinuousCollector,
    CostExceedsBurstError,
    DeadlineExceededError,
    Priority,
    RateLimitScheduler,
    RequestFailedError,
    SchedulerClosedError,
)
from tidegate.testing import ManualClock

ANY = BackendQuota(concurrency=None)


class World:
    """A scheduler on a manual clock whose handler takes `seconds`, and a task that takes the replies of a collector."""

    def __init__(self, quota=ANY, *, seconds=0.1, **options):
        self.clock = ManualClock()
        self.seconds = seconds
        self.requests = []
        self.running = defaultdict(int)
        self.scheduler = RateLimitScheduler(
            [Backend("api", self.fetch, quota, timeout=None)], clock=self.clock, seed=1, **options
        )

    async def fetch(self, request):
        self.requests.append((request.target, round(self.clock.time(), 3), request.scheduled_for, request.deadline))
        self.running[request.target] += 1
        assert self.running[request.target] == 1, "one at a time"
        try:
            await self.clock.sleep(self.seconds)
        finally:
            self.running[request.target] -= 1
        return request.target

    def consume(self, collector):
        """Take the replies from now on."""
        replies = []

        async def consume():
            async for reply in collector:
                replies.append(reply)  # noqa: PERF401 - seen as they come

        return asyncio.create_task(consume()), replies

    async def collect(self, collector, seconds):
        """The replies of the polls of so many seconds."""
        task, replies = self.consume(collector)
        await self.clock.run_for(seconds)
        collector.end()
        await self.clock.run_for(100)
        await task
        return replies


async def test_each_target_is_polled_once_an_interval_without_drift():
    world = World()
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, range(100), interval=30)
        replies = await world.collect(collector, 599.9)
        polls = defaultdict(list)
        for reply in replies:
            assert reply.value == reply.target
            polls[reply.target].append(reply.scheduled_for)
        assert len(polls) == 100
        firsts = sorted(instants[0] for instants in polls.values())
        assert [round(later - earlier, 6) for earlier, later in pairwise(firsts)] == [0.3] * 99
        for instants in polls.values():
            assert instants == pytest.approx([instants[0] + 30 * k for k in range(20)])
        statistics = collector.statistics()
        assert (statistics.planned, statistics.delivered, statistics.balanced) == (2000, 2000, True)
        assert statistics.lag.max < 1e-3
        assert statistics.freshness.count == 1900
        assert statistics.freshness.p50 == pytest.approx(30, rel=0.01)
        assert world.scheduler.ledger().delivered == 2000


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_ten_thousand_targets_for_an_hour():
    world = World(BackendQuota("1000/s", concurrency=None))
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, range(10_000), interval=30)
        planned = defaultdict(list)

        async def consume():
            async for reply in collector:
                planned[reply.target].append(reply.scheduled_for)

        task = asyncio.create_task(consume())
        await asyncio.sleep(0)  # it begins before the clock moves
        for _ in range(3600 * 4):
            await world.clock.advance(0.25)
        collector.end()
        while not task.done():
            await world.clock.advance(0.25)
        firsts = sorted(instants[0] for instants in planned.values())
        gaps = [later - earlier for earlier, later in pairwise(firsts)]
        assert max(gaps) - min(gaps) < 1e-6, "evenly spread"
        for instants in planned.values():
            assert len(instants) in (120, 121)
            assert all(abs(instant - instants[0] - 30 * k) < 1e-6 for k, instant in enumerate(instants)), "no drift"
        statistics = collector.statistics()
        assert statistics.balanced
        assert statistics.planned == statistics.delivered == sum(map(len, planned.values()))
        assert statistics.planned in (1_200_000, 1_200_001)
        assert (statistics.coalesced, statistics.skipped, statistics.failed) == (0, 0, 0)


@pytest.mark.parametrize(
    "overrun, begun",
    [
        ("coalesce", [(0, 0), (70, 60), (140, 120), (210, 210), (280, 270)]),
        ("skip", [(0, 0), (90, 90), (180, 180), (270, 270)]),
        ("all", [(0, 0), (70, 30), (140, 60), (210, 90), (280, 120)]),
        ("delay", [(0, 0), (70, 70), (140, 140), (210, 210), (280, 280)]),
    ],
)
async def test_what_becomes_of_instants_that_pass_meanwhile(overrun, begun):
    world = World(seconds=70)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, ["a"], interval=30, overrun=overrun, spread=False)
        await world.collect(collector, 299)
        assert [(round(at), round(planned)) for _, at, planned, _ in world.requests] == begun
        statistics = collector.statistics()
        assert statistics.balanced
        assert statistics.delivered == len(begun)


async def test_a_poll_is_late_when_the_next_is_planned_and_does_not_expire():
    world = World(seconds=45)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, ["a"], interval=30, spread=False)
        replies = await world.collect(collector, 40)
        assert [reply.ok for reply in replies] == [True]
        ((_, _, planned, deadline),) = world.requests
        assert deadline == pytest.approx(planned + 30)


async def test_a_timeout_counts_from_the_planned_instant():
    world = World(seconds=45)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, ["a"], interval=30, spread=False, timeout=20)
        replies = await world.collect(collector, 59)
        assert [type(reply.error) for reply in replies] == [DeadlineExceededError] * 2
        assert collector.statistics().expired == 2
        assert [round(at) for _, at, _, _ in world.requests] == [0, 30]


async def test_the_earliest_deadline_goes_first():
    world = World("1/s", seconds=0.01, order="edf")
    async with world.scheduler:
        slow = ContinuousCollector(world.scheduler, ["slow1", "slow2"], interval=600, spread=False)
        fast = ContinuousCollector(world.scheduler, ["fast1", "fast2"], interval=60, spread=False)
        async with slow, fast:
            await world.clock.run_for(5)
        assert [target for target, *_ in world.requests] == ["fast1", "fast2", "slow1", "slow2"]


async def test_targets_come_and_go():
    world = World()
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, ["a", "b"], interval=10, spread=False)
        task, _ = world.consume(collector)
        await world.clock.run_for(5)
        collector.add("c", interval=timedelta(seconds=5), priority=Priority.HIGH)
        assert collector.remove("a")
        assert not collector.remove("a")
        with pytest.raises(ConfigError, match="target='b': it is collected already"):
            collector.add("b")
        await world.clock.run_for(16)
        task.cancel()
        times = defaultdict(list)
        for target, at, *_ in world.requests:
            times[target].append(round(at))
        assert times["a"] == [0]
        assert times["b"][:3] == [0, 10, 20]
        assert times["c"][:4] == [5, 10, 15, 20]
        assert collector.statistics().targets == 2


async def test_a_target_that_is_removed_while_its_poll_runs_gives_its_reply():
    world = World(seconds=5)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, ["a"], interval=10, spread=False)
        task, replies = world.consume(collector)
        await world.clock.run_for(1)
        assert collector.remove("a")
        await world.clock.run_for(30)
        task.cancel()
        assert [reply.target for reply in replies] == ["a"]
        assert len(world.requests) == 1


async def test_a_pause_leaves_out_what_it_covers():
    world = World()
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, range(10), interval=10)
        task, _ = world.consume(collector)
        await world.clock.run_for(19.9)
        collector.pause()
        await world.clock.run_for(15)
        assert len(world.requests) == 20
        collector.resume()
        await world.clock.run_for(2)
        assert len(world.requests) == 22, "at their pace, not all at once"
        task.cancel()
        statistics = collector.statistics()
        assert statistics.skipped == 15
        assert statistics.balanced


async def test_options_and_intervals_may_depend_on_the_target():
    seen = []

    async def fetch(request):
        seen.append((request.target, request.backend, request.priority, round(request.scheduled_for)))

    clock = ManualClock()
    async with RateLimitScheduler([Backend(name, fetch) for name in "ab"], clock=clock) as scheduler:
        collector = ContinuousCollector(
            scheduler,
            [1, 2],
            interval=lambda target: 10 * target,
            spread=False,
            backends=lambda target: "ab"[target - 1],
            priority=lambda target: target,
        )
        async with collector:
            await clock.run_for(25)
    assert sorted(seen) == [(1, "a", 1, 0), (1, "a", 1, 10), (1, "a", 1, 20), (2, "b", 2, 0), (2, "b", 2, 20)]


async def test_hosts_do_not_hold_each_other_up():
    world = World(BackendQuota("1/min per host", concurrency=None))
    targets = [f"http://busy.example/{n}" for n in range(1000)] + ["http://calm.example/"]
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, targets, interval=30, spread=False)
        assert str(collector.feasibility()).startswith("1,001 targets ask api per host=busy.example for 33.3/s of the 0.0167/s")
        async with collector:
            await world.clock.run_for(1)
        assert {target for target, *_ in world.requests} == {targets[0], targets[-1]}


class Sheet(Sequence):
    """Targets that are made when they are asked for."""

    def __init__(self, size):
        self.size = size
        self.asked = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked += 1
        return f"target {index}"


async def test_a_sequence_is_asked_for_a_target_when_it_is_due():
    world = World()
    sheet = Sheet(1000)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, sheet, interval=100)
        assert sheet.asked == 1000, "once, for its key"
        await world.collect(collector, 9.95)
        assert sheet.asked == 1000 + 100


@pytest.mark.parametrize("wrong", ["sequence", "function"])
async def test_what_a_target_raises_is_raised_after_the_replies_that_are_owed(wrong):
    class Broken(Sheet):
        def __getitem__(self, index):
            if wrong == "sequence" and self.asked > 13:
                raise ZeroDivisionError
            return super().__getitem__(index)

    def priority(target):
        return 1 // (target != "target 3")

    world = World()
    options = {"priority": priority} if wrong == "function" else {}
    async with world.scheduler:
        sheet = Broken(10)
        if wrong == "function":
            with pytest.raises(ZeroDivisionError):
                ContinuousCollector(world.scheduler, sheet, interval=10, **options).feasibility()
            return
        collector = ContinuousCollector(world.scheduler, sheet, interval=10)
        with pytest.raises(ZeroDivisionError):
            await world.collect(collector, 20)
        assert len(world.requests) == 4
        assert collector.statistics().balanced


class Table:
    """A sink that takes its time."""

    def __init__(self, clock, seconds=0.0, breaks_at=None):
        self.clock, self.seconds, self.breaks_at = clock, seconds, breaks_at
        self.batches = []

    async def write(self, replies):
        await self.clock.sleep(self.seconds)
        if self.breaks_at is not None and len(self.batches) == self.breaks_at:
            raise OSError("the disk is full")
        self.batches.append(list(replies))


async def test_a_sink_gets_batches():
    world = World()
    async with world.scheduler:
        table = Table(world.clock, 1)
        collector = ContinuousCollector(world.scheduler, range(100), interval=10, sink=table)
        task = asyncio.create_task(collector.run())
        await world.clock.run_for(29.95)
        collector.end()
        await world.clock.run_for(10)
        await task
        assert sum(map(len, table.batches)) == 300
        assert max(map(len, table.batches)) > 5
        assert world.scheduler.ledger().delivered == 300


async def test_a_slow_sink_slows_the_collection_and_nothing_piles_up():
    world = World(BackendQuota(concurrency=8))
    async with world.scheduler:
        table = Table(world.clock, 1000)
        collector = ContinuousCollector(world.scheduler, range(10_000), interval=10, sink=table)
        task = asyncio.create_task(collector.run())
        await world.clock.run_for(100)
        ledger = world.scheduler.ledger()
        assert ledger.pending == 64, "as many as are kept ahead"
        assert len(world.requests) == 64
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        statistics = collector.statistics()
        assert statistics.balanced
        assert world.scheduler.ledger().balanced


async def test_what_a_sink_could_not_take_is_not_delivered():
    world = World()
    async with world.scheduler:
        table = Table(world.clock, 0, breaks_at=3)
        collector = ContinuousCollector(world.scheduler, range(10), interval=10, sink=table)
        task = asyncio.create_task(collector.run())
        await world.clock.run_for(10)
        with pytest.raises(OSError, match="the disk is full"):
            await task
        ledger = world.scheduler.ledger()
        assert ledger.delivered == sum(map(len, table.batches)) == 3
        assert ledger.cancelled >= 1
        assert ledger.pending == 0


async def test_stop_waits_for_what_is_underway():
    world = World(seconds=5)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, range(10), interval=10)
        async with collector:
            await world.clock.run_for(6)
            stopping = asyncio.create_task(collector.stop())
            await world.clock.run_for(1)
            assert not stopping.done()
            await world.clock.run_for(5)
            await stopping
            assert [reply.target for reply in [reply async for reply in collector]] == [target for target, *_ in world.requests]
            await collector.stop()


async def test_leaving_the_iteration_cancels_what_is_underway():
    world = World(seconds=5)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, range(10), interval=10)

        async def first(replies):
            async for reply in replies:
                return reply.target
            return None

        task = asyncio.create_task(first(collector))
        await world.clock.run_for(6)
        assert await task == world.requests[0][0]
        del collector, task
        gc.collect()
        ledger = world.scheduler.ledger()
        assert ledger.pending == 0
        assert ledger.balanced
        begun = len(world.requests)
        await world.clock.run_for(30)
        assert len(world.requests) == begun


@pytest.mark.parametrize("how", ["drain", "close"])
async def test_a_collector_ends_with_its_scheduler(how):
    world = World(seconds=5)
    async with world.scheduler as scheduler:
        collector = ContinuousCollector(scheduler, range(10), interval=10)
        task, replies = world.consume(collector)
        await world.clock.run_for(6.5)
        ending = asyncio.create_task(getattr(scheduler, how)())
        await world.clock.run_for(20)
        await ending
        await task
        assert len(replies) == len(world.requests) == 7
        assert all(reply.ok for reply in replies) == (how == "drain")
        statistics = collector.statistics()
        assert (statistics.running, statistics.balanced) == (0, True)
        with pytest.raises(SchedulerClosedError):
            await anext(ContinuousCollector(scheduler, ["a"]))


async def test_a_full_scheduler_holds_polls_back_until_there_is_room():
    world = World(capacity=2)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, range(10), interval=100, spread=False)
        replies = await world.collect(collector, 10)
        assert sorted(reply.target for reply in replies) == list(range(10))


async def test_failed_polls_are_replies_too():
    async def fetch(request):
        raise ValueError(request.target)

    clock = ManualClock()
    async with RateLimitScheduler([Backend("api", fetch, classify=lambda request, error: 3)], clock=clock) as scheduler:
        collector = ContinuousCollector(scheduler, ["a"], interval=10, spread=False)
        reply = await anext(collector)
        assert isinstance(reply.error, RequestFailedError)
        assert collector.statistics().failed == 1
        await collector.aclose()


async def test_what_cannot_be_met_is_said_at_the_start(caplog):
    world = World("100/min")
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, range(200), interval=30)
        found = collector.feasibility()
        assert (found.feasible, found.load, found.interval, found.round, found.bottleneck) == (False, 4.0, 120.0, 60.0, "api")
        with caplog.at_level(logging.WARNING, logger="tidegate"):
            async with collector:
                pass
        (record,) = caplog.records
        assert record.message == (
            "200 targets ask api for 6.67/s of the 1.67/s that it allows, 4 times too much; an interval of 120 s would fit"
        )


def test_feasibility_can_be_asked_before_anything_runs():
    async def fetch(request): ...

    backends = [
        Backend("a", fetch, BackendQuota("10/s", group="shared")),
        Backend("b", fetch, BackendQuota("10/s", group="shared")),
        Backend("c", fetch, "1/s", accounts=["x", "y"]),
        Backend("free", fetch),
    ]
    scheduler = RateLimitScheduler(backends)

    def asked(backends, count=120, **options):
        return ContinuousCollector(scheduler, range(count), interval=10, backends=backends, **options).feasibility()

    shared = asked(["a", "b"])
    assert (shared.bottleneck, shared.load, shared.supply) == ("a + b", 1.2, 10)
    assert (asked("c", 20).load, asked("c", 20, cost=1).round) == (1.0, 9.0)
    assert asked(None).bottleneck is None
    assert str(asked("free", 1)) == "1 target: 0.1/s are asked for, and no limit holds them back"
    assert str(asked("a", 1)).startswith("1 target asks ")
    assert "(60%); an interval of 6 s is the least that fits" in str(asked(["a"], 60))
    mixed = asked(lambda target: ["c"] if target < 40 else ["a", "c"], 160)
    assert (mixed.bottleneck, mixed.load) == ("c", 2.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"targets": "abc"}, "targets='abc': give an iterable of targets"),
        ({"targets": 3}, "targets=3"),
        ({"targets": ["a", "b", "a"]}, "targets='a': it is there twice, at 0 and 2; give each target once"),
        ({"interval": 0}, "interval=0: give seconds above 0"),
        ({"interval": float("nan")}, "interval=nan"),
        ({"interval": "30s"}, "interval='30s'"),
        ({"interval": lambda _: -1}, "interval=-1"),
        ({"overrun": "drop"}, "overrun='drop': give one of 'coalesce', 'skip', 'all', 'delay'"),
        ({"key": "id"}, "key='id'"),
        ({"sink": 3}, "sink=3: give an object with 'async def write"),
        ({"scheduler": None}, "scheduler=None"),
        ({"priority": 999}, "priority=999"),
        ({"backends": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_names_the_option_and_the_value(options, message):
    async def fetch(request): ...

    given = {"scheduler": RateLimitScheduler([Backend("api", fetch)]), "targets": ["a"], **options}
    with pytest.raises(ConfigError) as raised:
        ContinuousCollector(given.pop("scheduler"), given.pop("targets"), **given)
    assert message in str(raised.value)


async def test_other_mistakes():
    async def fetch(request): ...

    async with RateLimitScheduler([Backend("api", fetch, "10/s burst 5")]) as scheduler:
        with pytest.raises(CostExceedsBurstError):
            ContinuousCollector(scheduler, ["a"], cost=6)
        with pytest.raises(TypeError, match="unexpected option 'unique'"):
            ContinuousCollector(scheduler, ["a"], unique="a")
        with pytest.raises(ConfigError, match=r"sink=None: run\(\) needs one"):
            await ContinuousCollector(scheduler, ["a"]).run()
        collector = ContinuousCollector(scheduler, ["a"])
        with pytest.raises(ConfigError, match="priority"):
            collector.add("b", priority=-1)
        assert collector.statistics().targets == 1
        waiting = asyncio.create_task(anext(ContinuousCollector(scheduler, [], interval=1)))
        await asyncio.sleep(0)
        assert not waiting.done(), "targets may come"
        waiting.cancel()


async def test_to_resume_before_it_begins_changes_nothing():
    world = World()
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, ["a"], interval=10, spread=False)
        collector.pause()
        collector.resume()
        assert world.scheduler._core.next_turn_ns() is None  # noqa: SLF001 - nothing to pump for
        await world.clock.run_for(5)
        async with collector:
            await world.clock.run_for(11)
        assert [round(at) for _, at, *_ in world.requests] == [5, 15]


@pytest.mark.parametrize("turns", range(8))
async def test_it_goes_on_when_those_in_line_before_it_have_left(turns):
    world = World(capacity=1)
    async with world.scheduler as scheduler:
        collector = ContinuousCollector(scheduler, ["a"], interval=10, spread=False)
        task, _ = world.consume(collector)
        await world.clock.run_for(5)
        await scheduler.submit("first")
        second = asyncio.create_task(scheduler.submit("second"))
        await world.clock.advance(0.05)
        world.clock.advance(0.1)
        for _ in range(turns):  # in one of them it was told that there is room, and has not taken it
            await asyncio.sleep(0)
        second.cancel()
        await world.clock.run_for(30)
        assert [round(at) for target, at, *_ in world.requests if target == "a"] == [0, 10, 20, 30]
        task.cancel()


async def test_what_instants_a_full_scheduler_lets_pass_are_skipped_once():
    world = World(capacity=2, seconds=35)
    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, range(4), interval=10, spread=False, overrun="skip")
        task, _ = world.consume(collector)
        for _ in range(30):
            await world.clock.run_for(5)
        assert collector.statistics().planned <= 4 * 16
        task.cancel()
        await collector.aclose()


async def test_a_collector_that_cannot_begin_says_so_each_time():
    async def fetch(request): ...

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:

        async def said(**options):
            collector = ContinuousCollector(scheduler, ["a"], **options)
            for _ in range(2):
                with pytest.raises((ConfigError, ZeroDivisionError)) as raised:
                    await anext(collector)
            return str(raised.value)

        assert await said(priority=lambda _: 1 // 0) == "integer division or modulo by zero"
        assert "backends='nowhere'" in await said(backends=lambda _: "nowhere")
        assert "backends=7" in await said(backends=lambda _: 7)
        assert "cost='x'" in await said(cost=lambda _: "x")
        assert "cost=0" in await said(cost=lambda _: 0)
        assert "scopes=7" in await said(scopes=lambda _: 7)


async def test_a_backend_that_is_removed_leaves_the_others():
    seen = []

    async def fetch(request):
        seen.append(request.backend)

    clock = ManualClock()
    async with RateLimitScheduler([Backend(name, fetch, "2/s") for name in "abc"], clock=clock) as scheduler:
        collector = ContinuousCollector(scheduler, ["x"], interval=10, backends=["a", "b"], spread=False)
        async with collector:
            scheduler.remove_backend("a")
            assert (collector.feasibility().bottleneck, collector.feasibility().supply) == ("b", 2)
            seen.clear()
            await clock.run_for(35)
            assert seen[-3:] == ["b"] * 3
            scheduler.remove_backend("b")
            with pytest.raises(ConfigError, match=r"backends=\['a', 'b'\]: none of them is there any more"):
                collector.feasibility()


async def test_quotas_that_change_are_looked_at_again():
    world = World(BackendQuota(concurrency=8), seconds=5)
    targets = [f"http://host{n}/" for n in range(1000)]
    async with world.scheduler as scheduler:
        collector = ContinuousCollector(scheduler, targets, interval=10)
        task, _ = world.consume(collector)
        await world.clock.run_for(15)
        assert sum(world.running.values()) == 8
        scheduler.set_quota("api", BackendQuota(concurrency=600))
        await world.clock.run_for(25)
        assert 400 < sum(world.running.values()) <= 600, "as many ahead as it takes"
        await world.clock.run_for(10)
        scheduler.set_quota("api", BackendQuota("1/h per host", concurrency=None))
        world.requests.clear()
        await world.clock.run_for(10)
        assert len({target for target, *_ in world.requests}) > 900, "each host has a limit of its own"
        task.cancel()
        await collector.aclose()


async def test_an_option_may_take_targets_out():
    world = World()

    def priority(target):
        if target == "a" and collector.statistics().running:  # not when it is asked whether all fits
            collector.remove("late")
        return 128

    async with world.scheduler:
        collector = ContinuousCollector(world.scheduler, ["a", "b"], interval=10, spread=False, priority=priority)
        collector.remove("b")
        collector.add("late")  # in the place of "b"
        replies = await world.collect(collector, 15)
        assert [reply.target for reply in replies] == ["a", "late", "a"]


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("through", ["key", "target", "priority", "interval", "added", "reply"])
async def test_a_circle_through_it_is_freed(through, started):
    class Owner:
        def __init__(self, scheduler):
            def function(value):
                return lambda target: (self, value)[1]

            functions = {"priority": function(1), "interval": function(60), "key": function("a")}
            options = {name: option for name, option in functions.items() if name == through}
            self.collector = ContinuousCollector(scheduler, [self if through == "target" else "a"], spread=False, **options)
            if through == "added":
                self.collector.add(self)

    async def fetch(request):
        return request.target

    async with RateLimitScheduler([Backend("api", fetch)]) as scheduler:
        owner = Owner(scheduler)
        if through == "reply":
            owner.collector.add(owner)
        if started:
            async with owner.collector as collector:
                await anext(collector)
                del collector
        left = weakref.ref(owner)
        del owner
        await scheduler.fetch("another one, in whose request a worker keeps the last")
        await asyncio.sleep(0)
        gc.collect()
        assert left() is None


def test_a_sum_that_just_fits_fits():
    async def fetch(request): ...

    scheduler = RateLimitScheduler([Backend("api", fetch, "3/10s")])
    found = ContinuousCollector(scheduler, [10, 5], interval=lambda target: target).feasibility()
    assert found.feasible
    assert "(100%)" in str(found)
