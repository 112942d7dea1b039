"""Bad input: each mistake is a typed error that names the option, the value and the way out, and changes nothing."""

import inspect
import re
from datetime import datetime, timedelta
from functools import partial

import pytest

from tidegate import (
    Aging,
    Backend,
    BackendQuota,
    ConfigError,
    CostExceedsBurstError,
    Fair,
    Ledger,
    RateLimitScheduler,
    Retry,
    SchedulerClosedError,
    TidegateError,
)
from tidegate.testing import ManualClock

NAN, INF = float("nan"), float("inf")
NOTHING = Ledger(accepted=0, delivered=0, dead=0, expired=0, cancelled=0, queued=0, leased=0, done=0)

COUNT = "give an integer from 1 to 4294967295"
SECONDS = "give seconds above 0, or a timedelta"
PRIORITY = "give an integer from 0 (most urgent) to 255; see tidegate.Priority"
FLOW = "give a text that is not empty, or None for no flow"
NOT_BEFORE = "give an instant of loop.time(), a timedelta from now, a datetime with a time zone, or None to go at once"
UNIQUE = "give a text that is not empty, such as the target's address, or None"
TIMEOUT = "give seconds above 0, a timedelta, or None for no deadline"


async def echo(request):
    return request.target


def api(quota="10/s burst 10"):
    return Backend("api", echo, quota)


# Every way to hand in a request.
ENTRIES = {
    "fetch": lambda scheduler, **options: scheduler.fetch("target", **options),
    "submit": lambda scheduler, **options: scheduler.submit("target", **options),
    "submit_nowait": lambda scheduler, **options: scheduler.submit_nowait("target", **options),
    "submit_many": lambda scheduler, **options: scheduler.submit_many(["target"], **options),
    "submit_threadsafe": lambda scheduler, **options: scheduler.submit_threadsafe("target", **options),
    "map": lambda scheduler, **options: scheduler.map(["target"], **options),
    "slot": lambda scheduler, backend="api", **options: scheduler.slot(backend, **options),
}
REQUESTS = [entry for entry in ENTRIES if entry != "slot"]


async def hand_in(entry, scheduler, **options):
    """Hand in a request one way or the other, no further than until it is accepted."""
    result = ENTRIES[entry](scheduler, **options)
    if inspect.isawaitable(result) and not hasattr(result, "cancel"):
        await result


async def refused(entry, option, values, way_out):
    """Check that wrong values of an option are refused in these words, and that nothing comes of it."""
    async with RateLimitScheduler([api(), Backend("other", echo, "10/s burst 10")]) as scheduler:
        for value in values:
            with pytest.raises(ConfigError) as caught:
                await hand_in(entry, scheduler, **{option: value})
            assert str(caught.value) == f"{option}={value!r}: {way_out}"
            assert caught.value.option == option
            assert caught.value.value is value
            assert scheduler.ledger() == NOTHING
        assert (await scheduler.fetch("good")).value == "good"
    assert scheduler.ledger().accepted == 1


# ---- Options of a request


@pytest.mark.parametrize("entry", ENTRIES)
async def test_priority(entry):
    """A priority is an integer from 0 to 255."""
    await refused(entry, "priority", [-1, 256, 10**30, 1.0, 1.5, NAN, "high", None, True, [1]], PRIORITY)


@pytest.mark.parametrize("entry", ENTRIES)
async def test_timeout(entry):
    """A timeout is a span above zero, or None."""
    spans = [timedelta(0), timedelta(seconds=-1)]
    await refused(entry, "timeout", [0, -1, -0.0, NAN, INF, 10**400, "5", True, [5], *spans], TIMEOUT)


@pytest.mark.parametrize("entry", ENTRIES)
async def test_cost(entry):
    """A cost is an integer of at least one."""
    await refused(entry, "cost", [0, -1, 2**32, 10**30, 1.0, 1.5, NAN, INF, "1", None, True, [1]], COUNT)


@pytest.mark.parametrize("entry", REQUESTS)
async def test_flow(entry):
    """A flow is a text, whatever the order."""
    await refused(entry, "flow", ["", 5, 1.5, True, b"flow", ["flow"], "\ud800"], FLOW)


@pytest.mark.parametrize("entry", REQUESTS)
async def test_not_before(entry):
    """An instant is a finite number, a span from now, or a date and time that means the same everywhere."""
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    await refused(entry, "not_before", [NAN, INF, -INF, 10**400, "5", True, b"5", [5], naive, naive.date()], NOT_BEFORE)


@pytest.mark.parametrize("entry", REQUESTS)
async def test_unique(entry):
    """What a request is known by is a text."""
    await refused(entry, "unique", ["", 5, 1.5, True, b"name", ["name"], "\ud800"], UNIQUE)


@pytest.mark.parametrize("entry", REQUESTS)
async def test_backends(entry):
    """Backends are named by the names that there are."""
    await refused(entry, "backends", ["nope", ""], "there is no such backend; there are api, other")
    await refused(entry, "backends", [[], ()], "give at least one name, or None for all backends")
    await refused(entry, "backends", [5, 1.5, True], "give the names of backends, or None for all")
    with pytest.raises(ConfigError, match=re.escape("backends='nope': there is no such backend; there are api")):
        async with RateLimitScheduler([api()]) as scheduler:
            await hand_in(entry, scheduler, backends=["api", "nope"])
    assert scheduler.ledger() == NOTHING


async def test_backend_of_a_slot():
    """A slot is of one backend that there is."""
    await refused("slot", "backend", ["nope", "", None, 5, ["api"]], "there is no such backend; there are api, other")


@pytest.mark.parametrize("option", ["priority", "timeout", "cost", "backends", "flow", "unique"])
@pytest.mark.parametrize("entry", ["submit_many", "map"])
async def test_function_of_the_target(entry, option):
    """What an option's function gives is checked as if it had been given, before anything of the batch is accepted."""
    async with RateLimitScheduler([api()]) as scheduler:
        options = {option: lambda target: -1}
        call = scheduler.submit_many if entry == "submit_many" else lambda *args, **kwargs: anext(scheduler.map(*args, **kwargs))
        with pytest.raises(ConfigError, match=f"{option}=-1: give"):
            await call(["good", "bad"], **options)
        assert scheduler.ledger() == NOTHING


@pytest.mark.parametrize("entry", ["fetch", "submit", "submit_nowait", "submit_threadsafe"])
async def test_function_where_there_is_one_target(entry):
    """Only calls with many targets take functions for options."""
    await refused(entry, "priority", [len], PRIORITY)


@pytest.mark.parametrize("value", [5, len], ids=["value", "function"])
@pytest.mark.parametrize("entry", REQUESTS)
async def test_unknown_option(entry, value):
    """An option that does not exist is what Python calls it: a `TypeError`, raised by the call, with the options that do."""
    async with RateLimitScheduler([api()]) as scheduler:
        with pytest.raises(TypeError) as caught:
            await hand_in(entry, scheduler, prio=value)
        names = "priority, timeout, cost, backends, prefer, flow, not_before, unique, scopes"
        assert str(caught.value) == f"got an unexpected option 'prio'; a request has {names}"
        assert scheduler.ledger() == NOTHING


@pytest.mark.parametrize(
    "bad", [{"cost": True}, {"cost": 1.0}, {"priority": 1.0}, {"priority": True}, {"timeout": True}], ids=repr
)
async def test_wrong_value_that_equals_a_right_one(bad):
    """A wrong value is refused also when an equal right one was accepted before."""
    (option,) = bad
    async with RateLimitScheduler([api()]) as scheduler:
        await scheduler.fetch("good", **{option: 1})
        with pytest.raises(ConfigError, match=f"{option}="):
            await scheduler.submit("bad", **bad)
        assert scheduler.ledger().accepted == 1


# ---- Cost over burst


@pytest.mark.parametrize("entry", ENTRIES)
async def test_cost_over_burst(entry):
    """A cost that no limit ever admits says so at once, with the largest that would be."""
    async with RateLimitScheduler([api("10/s burst 5")]) as scheduler:
        with pytest.raises(CostExceedsBurstError) as caught:
            await hand_in(entry, scheduler, cost=6)
        assert str(caught.value) == (
            "cost=6: a limit of api never admits more than 5 at once; lower the cost or raise the limit's amount or burst"
        )
        assert (caught.value.cost, caught.value.burst) == (6, 5)
        assert scheduler.ledger() == NOTHING
        await hand_in(entry, scheduler, cost=5)


async def test_cost_over_burst_of_some_backends():
    """A cost that one backend admits goes there; when it is over what all admit, the most generous one is named."""
    small, large = Backend("small", echo, "10/s burst 5"), Backend("large", echo, "20/s")
    async with RateLimitScheduler([small, large]) as scheduler:
        assert (await scheduler.fetch("target", cost=20)).backend == "large"
        with pytest.raises(CostExceedsBurstError, match="small, large never admits more than 20"):
            await scheduler.submit("target", cost=21)
        with pytest.raises(CostExceedsBurstError, match="small never admits more than 5"):
            await scheduler.submit("target", cost=6, backends="small")


async def test_cost_over_burst_in_the_middle():
    """One cost among many that is never admitted: none of them is accepted."""
    async with RateLimitScheduler([api("10/s")]) as scheduler:
        with pytest.raises(CostExceedsBurstError):
            await scheduler.submit_many([1, 2, 11, 3], cost=lambda target: target)
        assert scheduler.ledger() == NOTHING


@pytest.mark.parametrize("value", [0, -1, 2**32, 1.0, NAN, True, "1"], ids=repr)
async def test_cost_of_a_further_message(value):
    """A wrong cost in `recharge` is the handler's error, in the same words."""
    caught = []

    async def fetch(request):
        with pytest.raises(ConfigError) as error:
            await request.recharge(value)
        caught.append(str(error.value))
        with pytest.raises(CostExceedsBurstError):
            await request.recharge(11)
        await request.recharge()

    async with RateLimitScheduler([Backend("api", fetch, "10/s")]) as scheduler:
        await scheduler.fetch("target")
    assert caught == [f"cost={value!r}: {COUNT}"]


# ---- Targets


@pytest.mark.parametrize("targets", [[], (), {}, set(), range(0), ""], ids=repr)
@pytest.mark.parametrize("entry", ["submit_many", "map"])
async def test_no_target(entry, targets):
    """An empty collection of targets is a mistake that is told at once."""
    async with RateLimitScheduler([api()]) as scheduler:
        with pytest.raises(ConfigError) as caught:
            await hand_in_targets(entry, scheduler, targets)
        if targets != "":
            assert str(caught.value) == f"targets={targets!r}: there is no target; give at least one, or do not call"
        assert (caught.value.option, caught.value.value) == ("targets", targets)
        assert scheduler.ledger() == NOTHING


@pytest.mark.parametrize("targets", [None, 5, "target", b"target", object, 1.5], ids=repr)
@pytest.mark.parametrize("entry", ["submit_many", "map"])
async def test_one_target_where_many_belong(entry, targets):
    """One target, a text above all, is not taken for many; the way out is named."""
    async with RateLimitScheduler([api()]) as scheduler:
        with pytest.raises(ConfigError) as caught:
            await hand_in_targets(entry, scheduler, targets)
        way_out = "give an iterable of targets; for a single one use fetch() or submit()"
        assert str(caught.value) == f"targets={targets!r}: {way_out}"
        assert scheduler.ledger() == NOTHING


async def hand_in_targets(entry, scheduler, targets):
    result = getattr(scheduler, entry)(targets)
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize("ahead", [0, -1, 1.5, True, "64", NAN], ids=repr)
async def test_ahead(ahead):
    """`ahead` is an integer of at least one."""
    async with RateLimitScheduler([api()]) as scheduler:
        with pytest.raises(ConfigError) as caught:
            scheduler.map([1], ahead=ahead)
        assert str(caught.value) == f"ahead={ahead!r}: {COUNT}"


# ---- Construction

WRONG_BACKENDS = [
    ("name", "", "name='': give the backend a name, such as 'api'"),
    ("name", None, "name=None: give the backend a name, such as 'api'"),
    ("name", 5, "name=5: give the backend a name, such as 'api'"),
    *(
        (
            "handler",
            value,
            f"handler={value!r}: give backend 'api' a function that takes a request, such as 'async def fetch(request)'",
        )
        for value in ("fetch", None, 5)
    ),
    *(
        ("quota", value, f"quota={value!r}: give a text such as '100/min', several as BackendQuota('10/s', '100/min'), or None")
        for value in (5, ["100/min"], 1.5)
    ),
    (
        "quota",
        "lots",
        "quota='lots': write amount/period, such as '100/min', '900/15min' or '10/s burst 20'",
    ),
    *(
        ("timeout", value, f"timeout={value!r}: {SECONDS}")
        for value in (0, -1, NAN, INF, "5", True, timedelta(0), timedelta(days=-1))
    ),
    *(("weight", value, f"weight={value!r}: give a number above 0") for value in (0, -1, NAN, INF, "1", None, True, 10**400)),
    ("classify", 5, "classify=5: give a function of (request, value or exception), or None"),
]


@pytest.mark.parametrize("option, value, message", WRONG_BACKENDS, ids=lambda value: repr(value)[:20])
def test_backend(option, value, message):
    """A backend's options are checked where it is made."""
    with pytest.raises(ConfigError) as caught:
        Backend(**{"name": "api", "handler": echo, option: value})
    assert str(caught.value) == message
    assert caught.value.option == option
    assert caught.value.value is value


NUMBER = "give a number of at least 0"
WRONG_RETRIES = [
    *(("attempts", value, COUNT) for value in (0, -1, 1.5, True, "4", None, INF)),
    *((option, value, NUMBER) for option in ("base", "cap", "budget") for value in (-1, NAN, INF, "1", None, True, 10**400)),
    ("budget", 1.1, "give a share from 0 to 1"),
    ("budget", 10, "give a share from 0 to 1"),
]


@pytest.mark.parametrize("option, value, way_out", WRONG_RETRIES, ids=lambda value: repr(value)[:20])
def test_retry(option, value, way_out):
    """What says how to retry is checked where it is made."""
    with pytest.raises(ConfigError) as caught:
        Retry(**{option: value})
    assert str(caught.value) == f"{option}={value!r}: {way_out}"
    assert caught.value.option == option


ORDER = "give 'strict', 'edf', Aging(step) or Fair(weights)"
WRONG_WEIGHTS = [
    *((value, "give a mapping from names of flows to numbers, or None") for value in (5, "a", [("a", 1)], {"a"})),
    *(({"a": 1, name: 1}, f"{name!r} names no flow; give a text that can be printed and is not empty") for name in ("", 5, None)),
    *(
        ({"a": 1, "b": value}, f"{value!r} is no weight; give a number from 0.001 to 1000")
        for value in (0, -1, NAN, INF, 0.0009, 1001, "1", None, True, 10**400)
    ),
]


@pytest.mark.parametrize("value, way_out", WRONG_WEIGHTS, ids=lambda value: repr(value)[:20])
def test_fair(value, way_out):
    """The weights of flows are checked where they are given."""
    with pytest.raises(ConfigError) as caught:
        Fair(value)
    assert str(caught.value) == f"weights={value!r}: {way_out}"
    assert caught.value.option == "weights"
    assert caught.value.value is value


@pytest.mark.parametrize("value", [0, -1, NAN, INF, "5", None, True, timedelta(0), timedelta(days=-1), 10**400], ids=repr)
def test_aging(value):
    """What a level of priority is worth is a span above zero."""
    with pytest.raises(ConfigError) as caught:
        Aging(value)
    assert str(caught.value) == f"step={value!r}: {SECONDS}"
    assert caught.value.option == "step"
    assert caught.value.value is value


WRONG_SCHEDULERS = [
    *(("order", value, ORDER) for value in ("fifo", "STRICT", "", None, 5, ["strict"], Aging, Fair, "fair", b"edf")),
    *(("capacity", value, COUNT) for value in (0, -1, 1.5, True, "5", None, INF, 2**32)),
    *(("isolation", value, "give 'worker' or 'task'") for value in ("thread", None, "", 5, ["task"])),
    *(("retry", value, "give a Retry, such as Retry(attempts=4)") for value in (None, 4, "4", {"attempts": 4})),
    *(("clock", value, "give a tidegate.testing.ManualClock, or None for real time") for value in (5, "now", ManualClock)),
    *(("seed", value, "give an integer, or None for a different one each time") for value in ("x", 1.5, NAN, [1])),
    *(("backends", value, "give an iterable of Backend(name, handler, quota)") for value in (5, None)),
]


@pytest.mark.parametrize("option, value, way_out", WRONG_SCHEDULERS, ids=lambda value: repr(value)[:20])
def test_scheduler(option, value, way_out):
    """A scheduler's options are checked where it is made."""
    with pytest.raises(ConfigError) as caught:
        RateLimitScheduler(**{"backends": [api()], option: value})
    assert str(caught.value) == f"{option}={value!r}: {way_out}"
    assert caught.value.option == option
    assert caught.value.value is value


def test_backend_of_another_type():
    """Backends are `Backend`s; a single one outside a list is one of these mistakes."""
    for value in ("api", echo, {"name": "api"}):
        with pytest.raises(ConfigError) as caught:
            RateLimitScheduler([api(), value])
        assert str(caught.value) == f"backends={value!r}: give Backend(name, handler, quota)"
    with pytest.raises(ConfigError, match="give an iterable of Backend"):
        RateLimitScheduler(api())


def test_duplicate_name():
    """Two backends of one name are refused, by that name."""
    with pytest.raises(ConfigError) as caught:
        RateLimitScheduler([api(), Backend("other", echo), api("5/s")])
    assert str(caught.value) == "backends='api': two backends have this name; give each its own"
    assert (caught.value.option, caught.value.value) == ("backends", "api")


@pytest.mark.parametrize("entry", REQUESTS)
async def test_no_backend(entry):
    """A scheduler without backends says so when it is given a request."""
    async with RateLimitScheduler() as scheduler:
        with pytest.raises(ConfigError) as caught:
            await hand_in(entry, scheduler)
        assert str(caught.value) == "backends=None: the scheduler has no backend; give RateLimitScheduler at least one"
        assert scheduler.ledger() == NOTHING


# ---- At the wrong time


@pytest.mark.parametrize("entry", ENTRIES)
async def test_before_it_is_entered(entry):
    """A scheduler that was not entered takes no request, and can be entered afterwards."""
    scheduler = RateLimitScheduler([api()])
    with pytest.raises(SchedulerClosedError) as caught:
        await hand_in(entry, scheduler)
    assert str(caught.value) == "the scheduler is not running; enter it with 'async with' first"
    assert scheduler.ledger() == NOTHING
    async with scheduler:
        assert (await scheduler.fetch("good")).value == "good"


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("how", ["left", "closed", "closed unused", "drained"])
async def test_after_it_was_closed(entry, how):
    """A scheduler that is closed, or drains, takes no request any more, in whatever way it is handed in."""
    scheduler = RateLimitScheduler([api()])
    if how == "closed unused":
        await scheduler.close()
    else:
        await scheduler.__aenter__()
        await {"left": partial(scheduler.__aexit__, None, None, None), "closed": scheduler.close, "drained": scheduler.drain}[
            how
        ]()
    with pytest.raises(SchedulerClosedError, match="the scheduler is closed and accepts no more requests"):
        await accepted(entry, scheduler)
    assert scheduler.ledger() == NOTHING
    await scheduler.close()


async def accepted(entry, scheduler):
    """Hand in a request so far that a closed scheduler must have said so."""
    if entry == "slot":
        async with scheduler.slot("api"):
            pass
    elif entry == "map":
        await anext(scheduler.map(["target"]))
    else:
        await hand_in(entry, scheduler)


async def test_entered_twice():
    """A scheduler is entered once, while it runs and afterwards; the one that runs goes on."""
    async with RateLimitScheduler([api()]) as scheduler:
        with pytest.raises(SchedulerClosedError) as caught:
            await scheduler.__aenter__()
        assert str(caught.value) == "a scheduler is entered once; make a new one"
        assert (await scheduler.fetch("good")).value == "good"
    with pytest.raises(SchedulerClosedError):
        await scheduler.__aenter__()


@pytest.mark.parametrize("timeout", [0, -1, NAN, INF, "5", True], ids=repr)
async def test_timeout_of_drain(timeout):
    """A wrong timeout for `drain` is refused before anything stops."""
    async with RateLimitScheduler([api()]) as scheduler:
        with pytest.raises(ConfigError) as caught:
            await scheduler.drain(timeout)
        assert str(caught.value) == f"timeout={timeout!r}: {SECONDS}"
        assert (await scheduler.fetch("good")).value == "good"


# ---- Virtual time


@pytest.mark.parametrize("seconds", [0, -1, NAN, INF, "5", True], ids=repr)
async def test_advance(seconds):
    """A clock is advanced by a span above zero, or stays where it is."""
    clock = ManualClock()
    with pytest.raises(ConfigError) as caught:
        clock.advance(seconds)
    assert str(caught.value) == f"seconds={seconds!r}: {SECONDS}"
    assert clock.time() == 0


@pytest.mark.parametrize("seconds", [-1, NAN, INF, "5"], ids=repr)
async def test_sleep(seconds):
    """One sleeps for a finite span of at least zero."""
    with pytest.raises(ConfigError) as caught:
        await ManualClock().sleep(seconds)
    assert str(caught.value) == f"seconds={seconds!r}: give a number of at least 0"


def test_errors_are_value_errors():
    """Wrong values are what Python calls them too."""
    assert issubclass(ConfigError, ValueError)
    assert issubclass(CostExceedsBurstError, ValueError)
    assert issubclass(SchedulerClosedError, RuntimeError)
    for error in (ConfigError, CostExceedsBurstError, SchedulerClosedError):
        assert issubclass(error, TidegateError)


def test_quota_of_a_backend_names_its_text():
    """A wrong text among several is the one that is named."""
    with pytest.raises(ConfigError, match="quota='5 per s'"):
        BackendQuota("100/min", "5 per s")
