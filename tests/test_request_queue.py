"""The queue alone: asyncio.Queue's habits, the scheduler's orders, and cancellation."""

import asyncio
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import Aging, ConfigError, DeadlineExceededError, Fair, Priority, QueueFullError, RequestQueue, TidegateError


@pytest.fixture(autouse=True)
async def _limit():
    """Nothing here takes long: what hangs fails."""
    async with asyncio.timeout(20):
        yield


async def settle():
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def drained(queue):
    """All items, in the order in which they go."""
    items = []
    while not queue.empty():
        assert queue.peek() == queue.peek()
        items.append(queue.peek())
        assert queue.get_nowait() == items[-1]
    return items


# ---- Orders


def test_strict_order():
    """The most urgent priority first, first in first out inside it."""
    queue = RequestQueue()
    for number, priority in enumerate([128, 0, 255, Priority.HIGH, 0, 128]):
        queue.put_nowait((priority, number), priority=priority)
    assert drained(queue) == [(0, 1), (0, 4), (64, 3), (128, 0), (128, 5), (255, 2)]


def test_earliest_deadline_first():
    """Inside a priority the earliest deadline goes first; without one, an item is due in an hour."""
    queue = RequestQueue(order="edf")
    for item, timeout in {"hour": None, "minute": 60, "day": timedelta(days=1), "second": 1}.items():
        queue.put_nowait(item, timeout=timeout)
    queue.put_nowait("urgent", priority=0)
    assert drained(queue) == ["urgent", "second", "minute", "hour", "day"]


def test_aging():
    """A level of priority is worth a step of waiting."""
    queue = RequestQueue(order=Aging(1e-9))
    for number in range(100):
        queue.put_nowait(number, priority=255 - number)
    assert drained(queue) == list(range(100))
    queue = RequestQueue(order=Aging(3600))
    for number in range(100):
        queue.put_nowait(number, priority=255 - number)
    assert drained(queue) == list(range(99, -1, -1))


def test_fair_order():
    """Flows that wait share by weight; a more urgent priority goes first all the same."""
    queue = RequestQueue(order=Fair({"paying": 3}))
    for number in range(12):
        for flow in ("paying", "free"):
            queue.put_nowait((flow, number), flow=flow)
    queue.put_nowait("urgent", priority=0, flow="free")
    items = drained(queue)
    assert items[0] == "urgent"
    assert [sum(flow == "paying" for flow, _ in items[1 : 1 + size]) for size in (4, 8, 12)] == [3, 6, 9]
    for wanted in ("paying", "free"):
        assert [number for flow, number in items[1:] if flow == wanted] == list(range(12))


def test_late_items_are_given_out():
    """A queue alone drops nothing: whether an item is still worth something, its consumer decides."""
    queue = RequestQueue(order="edf")
    for number in range(3):
        queue.put_nowait(number, timeout=1e-9)
    assert drained(queue) == [0, 1, 2]


# ---- Without waiting


def test_full_and_empty():
    """The calls that do not wait say that they cannot; `asyncio`'s exceptions will do to catch them."""
    queue = RequestQueue(2)
    assert (queue.empty(), queue.full(), queue.qsize(), len(queue), queue.capacity) == (True, False, 0, 0, 2)
    for call in (queue.get_nowait, queue.peek):
        with pytest.raises(asyncio.QueueEmpty):
            call()
    queue.put_nowait("a")
    queue.put_nowait("b")
    assert (queue.empty(), queue.full(), queue.qsize(), len(queue)) == (False, True, 2, 2)
    with pytest.raises(QueueFullError) as caught:
        queue.put_nowait("c")
    assert (caught.value.target, caught.value.capacity) == ("c", 2)
    assert isinstance(caught.value, TidegateError)
    assert isinstance(caught.value, asyncio.QueueFull)
    assert repr(queue) == "<RequestQueue of 2 of 2>"


def test_cancel():
    """A handle takes its item out once, from wherever it stands, and no other item ever."""
    queue = RequestQueue(3)
    handles = [queue.put_nowait(item) for item in "abc"]
    assert len(set(handles)) == 3
    assert queue.cancel(handles[1])
    assert not queue.cancel(handles[1])
    other = queue.put_nowait("d")
    assert not queue.cancel(handles[1])
    assert drained(queue) == ["a", "c", "d"]
    assert not any(queue.cancel(handle) for handle in (*handles, other, -1, 2**70))


@pytest.mark.parametrize(
    "option, value",
    [("priority", 256), ("priority", True), ("timeout", 0), ("timeout", "1"), ("flow", ""), ("flow", 3)],
)
async def test_wrong_options(option, value):
    """Each names itself, and nothing is added."""
    queue = RequestQueue()
    with pytest.raises(ConfigError) as caught:
        queue.put_nowait("item", **{option: value})
    assert caught.value.option == option
    with pytest.raises(ConfigError):
        await queue.put("item", **{option: value})
    assert queue.empty()


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"capacity": 1.5}, {"order": "fifo"}])
def test_wrong_queue(wrong):
    """A queue has room and an order."""
    with pytest.raises(ConfigError):
        RequestQueue(**wrong)


# ---- Waiting


async def test_get_waits_in_line(quiet):
    """Who waits for items gets them in the order of coming."""
    queue, log = RequestQueue(), []

    async def get(name):
        log.append((name, await queue.get()))

    tasks = [asyncio.create_task(get(name)) for name in range(3)]
    await settle()
    for item in "abc":
        await queue.put(item)
    await asyncio.gather(*tasks)
    assert log == [(0, "a"), (1, "b"), (2, "c")]


async def test_put_waits_in_line(quiet):
    """Who waits for room gets it in the order of coming, and nobody who waits is passed by who comes later."""
    queue = RequestQueue(1)
    await queue.put(0)
    tasks = [asyncio.create_task(queue.put(number)) for number in range(1, 4)]
    await settle()
    assert len(queue) == 1
    items = []
    for _ in range(3):
        items.append(await queue.get())
        tasks.append(asyncio.create_task(queue.put(len(tasks) + 1)))
        await settle()
    await asyncio.gather(*tasks[:3])
    while not queue.empty():
        items.append(await queue.get())
        await settle()
    await asyncio.gather(*tasks)
    assert items == list(range(7))


async def test_cancelled_item_makes_room():
    """A cancellation lets the next put go on."""
    queue = RequestQueue(1)
    handle = await queue.put("a")
    task = asyncio.create_task(queue.put("b"))
    await settle()
    assert queue.cancel(handle)
    await task
    assert drained(queue) == ["b"]


async def test_put_times_out():
    """`put` waits for room no longer than its timeout; the item is not added, and the next in line is."""
    queue = RequestQueue(1)
    await queue.put("a")
    late = asyncio.create_task(queue.put("late", timeout=0.02))
    patient = asyncio.create_task(queue.put("patient", timeout=20))
    with pytest.raises(DeadlineExceededError) as caught:
        await late
    assert (caught.value.target, caught.value.after) == ("late", 0.02)
    assert await queue.get() == "a"
    await patient
    assert drained(queue) == ["patient"]


async def test_timeout_counts_from_the_call():
    """An item that waited for room is due when it was said to be."""
    queue = RequestQueue(1, order="edf")
    await queue.put("a")
    first = asyncio.create_task(queue.put("soon", timeout=1))
    await settle()
    assert queue.get_nowait() == "a"
    await first
    assert drained(queue) == ["soon"]


async def test_one_who_does_not_wait_may_be_quicker(quiet):
    """Who was woken for what somebody took without waiting keeps its place at the head of the line."""
    queue, log = RequestQueue(), []

    async def get(name):
        log.append((name, await queue.get()))

    tasks = [asyncio.create_task(get(name)) for name in range(2)]
    await settle()
    queue.put_nowait("stolen")
    assert queue.get_nowait() == "stolen"
    await settle()
    assert log == []
    queue.put_nowait("a")
    queue.put_nowait("b")
    await asyncio.gather(*tasks)
    assert log == [(0, "a"), (1, "b")]


async def test_one_who_comes_behind_the_called_is_called_too(quiet):
    """Where there is room for more than those who were woken, who comes before they have run does not wait for ever."""
    queue = RequestQueue(2)
    for number in range(2):
        await queue.put(number)
    tasks = [asyncio.create_task(queue.put(2))]
    await settle()
    assert [queue.get_nowait(), queue.get_nowait()] == [0, 1]
    tasks.append(asyncio.create_task(queue.put(3)))
    await asyncio.gather(*tasks)
    assert drained(queue) == [2, 3]


async def test_cancelled_get_loses_nothing(quiet):
    """Who is cancelled as its item comes leaves it to the next."""
    queue = RequestQueue()
    first, second = (asyncio.create_task(queue.get()) for _ in range(2))
    await settle()
    queue.put_nowait("a")
    first.cancel()
    assert await second == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_cancelled_put_adds_nothing(quiet):
    """Who is cancelled as room comes leaves it to the next; one who is cancelled in line leaves it."""
    queue = RequestQueue(1)
    await queue.put("a")
    tasks = [asyncio.create_task(queue.put(item)) for item in "bcd"]
    await settle()
    tasks[1].cancel()
    assert queue.get_nowait() == "a"
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, False]
    assert drained(queue) == ["d"]


# ---- Against a list that is sorted anew each time

STEPS = st.tuples(
    st.sampled_from(["put", "put", "put_nowait", "get", "get_nowait", "cancel", "give up", "run"]),
    st.integers(0, 3),
    st.integers(0, 20),
)


@given(st.integers(1, 4), st.lists(STEPS, max_size=60))
async def test_random_programs(capacity, steps):
    """Every item that was added comes out once or was cancelled, in order of priority; nobody waits for what is there."""
    queue, numbers = RequestQueue(capacity), count()
    added, cancelled, out, tasks = {}, set(), [], []

    async def put(item):
        added[await queue.put(item, priority=item[0])] = item

    async def get():
        out.append(await queue.get())

    for step, priority, index in steps:
        item = (priority, next(numbers))
        if step == "put":
            tasks.append(asyncio.create_task(put(item)))
        elif step == "put_nowait" and not queue.full():
            added[queue.put_nowait(item, priority=priority)] = item
        elif step == "get":
            tasks.append(asyncio.create_task(get()))
        elif step == "get_nowait" and not queue.empty():
            least = queue.peek()
            out.append(queue.get_nowait())
            assert out[-1] == least
        elif step == "cancel" and added:
            handle = sorted(added)[index % len(added)]
            if queue.cancel(handle):
                cancelled.add(added[handle])
        elif step == "give up" and tasks:
            tasks[index % len(tasks)].cancel()
        else:
            await settle()
        assert len(queue) <= capacity
    await settle()
    putting = [task for task in tasks if not task.done() and task.get_coro().__name__ == "put"]
    getting = [task for task in tasks if not task.done() and task.get_coro().__name__ == "get"]
    assert not (putting and not queue.full())
    assert not (getting and not queue.empty())
    rest = []
    while not queue.empty():
        rest.append(queue.get_nowait())
        await settle()
    if not putting:
        came = list(added.values())
        assert rest == sorted(rest, key=lambda item: (item[0], came.index(item)))
    assert sorted([*out, *rest, *cancelled]) == sorted(added.values())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@given(
    st.sampled_from(["strict", "edf", Aging(1), Fair({"a": 2})]),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, 10, 1000]), st.sampled_from([None, "a", "b"])), max_size=40),
)
def test_orders_against_a_sorted_list(order, puts):
    """What comes out is what sorting says: all of it, or under `Fair` the items of each flow."""
    queue = RequestQueue(order=order)
    ranks = {}
    for number, (priority, timeout, flow) in enumerate(puts):
        queue.put_nowait(number, priority=priority, timeout=timeout, flow=flow)
        due = (timeout or 3600) if order == "edf" else 0
        ranks[number] = (priority, due, number)
    items = drained(queue)
    assert sorted(items) == list(range(len(puts)))
    for flow in (None, "a", "b") if isinstance(order, Fair) else ("all",):
        mine = [item for item in items if flow in ("all", puts[item][2])]
        assert mine == sorted(mine, key=ranks.__getitem__)
