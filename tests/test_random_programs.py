"""Random programs over the public API, in virtual time, against a small model: the ledger is exact after each step."""

import asyncio
from dataclasses import dataclass, field
from math import inf
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tidegate import (
    Backend,
    BackendQuota,
    DeadlineExceededError,
    Ledger,
    Limit,
    LoadBalancer,
    QueueFullError,
    RateLimitScheduler,
    RequestCancelledError,
    RequestFailedError,
    Retry,
)
from tidegate.testing import ManualClock

CAPACITY = 8
ATTEMPTS = 3
WINDOW = Limit(3, 10)
HOLD = 10.002  # the period and its margin


class ServerError(Exception):
    """What an HTTP client raises: its status says that headers have come."""

    status = 500


# ---- The model


@dataclass
class Request:
    """One request: what its attempts will do, and where it stands."""

    key: tuple
    deadline: float
    script: list  # of each attempt: how long it takes, and whether it succeeds
    held: bool = False
    state: str = "queued"
    attempt: int = 0
    sent_at: float = 0.0
    until: float = 0.0


@dataclass
class Model:
    """A scheduler with one backend: who runs, what counts against the window, what became of every request."""

    concurrency: int
    limited: bool
    now: float = 0.0
    requests: list = field(default_factory=list)
    releases: list = field(default_factory=list)
    longest: float = 0.0

    def in_state(self, *states):
        return [request for request in self.requests if request.state in states]

    def ledger(self):
        ends = [len(self.in_state(end)) for end in ("delivered", "dead", "expired", "cancelled")]
        stages = [len(self.in_state(*stage)) for stage in (("queued", "delayed"), ("leased",), ("done",))]
        return Ledger(len(self.requests), *ends, *stages)

    def submit(self, priority, timeout, script, *, held=False):
        if self.ledger().pending >= CAPACITY:
            return None
        request = Request((priority, len(self.requests)), self.now + timeout, script, held)
        self.requests.append(request)
        return request

    def dispatch(self):
        waiting = sorted(self.in_state("queued"), key=lambda request: request.key)
        for request in waiting:
            running = len(self.in_state("leased"))
            used = running + sum(release > self.now for release in self.releases)
            if running >= self.concurrency or (self.limited and used >= WINDOW.amount):
                break
            request.state = "leased"
            request.sent_at = self.now
            request.until = self.now + request.script[request.attempt][0]

    def advance(self, seconds):
        self.now += seconds
        for request in self.in_state("queued", "delayed", "leased"):
            if request.deadline <= self.now:
                self.give_up(request, "expired")
            elif request.state == "delayed":
                request.state = "queued"
        for request in self.in_state("leased"):
            if request.until <= self.now:
                self.finish(request)

    def finish(self, request):
        self.longest = max(self.longest, self.now - request.sent_at)
        self.releases.append(self.now + HOLD)
        if request.script[request.attempt][1]:
            request.state = "done" if request.held else "delivered"
            return
        request.attempt += 1
        request.state = "delayed" if request.attempt < ATTEMPTS else "dead"

    def give_up(self, request, end):
        if request.state == "leased":
            self.releases.append(self.now + self.longest + HOLD)
        request.state = end


# ---- Programs

# How often each step is taken.
STEPS = ["submit", "thread", "map", "step", "leave", "cancel", "enter", "exit", "advance"]
WEIGHTS = [30, 5, 4, 6, 1, 6, 3, 4, 30]


def program_of(random, length):
    """A random program: steps with their arguments."""
    scripts = [[(random.randint(1, 4), random.random() < 0.6) for _ in range(ATTEMPTS)] for _ in range(4)]

    def script():
        return list(random.choice(scripts))

    arguments = {
        "submit": lambda: (random.randint(0, 3), random.choice([inf, inf, 0.5, 2.5, 7.5]), script()),
        "map": lambda: ([script() for _ in range(random.randint(1, 4))],),
        "enter": lambda: (),
        "advance": lambda: (random.randint(1, 5),),
    }
    arguments["thread"] = arguments["submit"]
    for name in random.choices(STEPS, WEIGHTS, k=length):
        yield name, *arguments.get(name, lambda: (random.randint(0, 30),))()


@dataclass
class Map:
    """A map that is read step by step: its requests, and the one in the reader's hands."""

    stream: object
    requests: list
    hand: Request | None = None


class Program:
    """Does each step both with a scheduler and in the model."""

    def __init__(self, scheduler, clock, model):
        self.scheduler = scheduler
        self.clock = clock
        self.model = model
        self.tickets = []
        self.maps = []
        self.slots = []

    @staticmethod
    async def settle():
        for _ in range(40):
            await asyncio.sleep(0)

    async def do(self, step):
        name, *arguments = step
        await getattr(self, name)(*arguments)
        await self.settle()
        self.model.dispatch()
        await self.settle()

    def options(self, priority, timeout):
        return {"priority": priority, "timeout": None if timeout == inf or self.model.limited else timeout}

    async def submit(self, priority, timeout, script):
        options = self.options(priority, timeout)
        request = self.model.submit(priority, options["timeout"] or inf, script)
        try:
            ticket = self.scheduler.submit_nowait(script, **options)
        except QueueFullError:
            assert request is None
            return
        assert request is not None
        self.tickets.append((ticket, request))

    async def thread(self, priority, timeout, script):
        options = self.options(priority, timeout)
        request = self.model.submit(priority, options["timeout"] or inf, script)
        future = await asyncio.to_thread(self.scheduler.submit_threadsafe, script, **options)
        if request is None:
            assert isinstance(future.exception(timeout=0), QueueFullError)
        else:
            self.tickets.append((future, request))

    async def map(self, scripts):
        if self.model.ledger().pending + len(scripts) > CAPACITY:
            return
        stream = self.scheduler.map(scripts)
        # Its targets are taken by the first step, which waits for a reply and is taken back.
        step = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        step.cancel()
        self.maps.append(Map(stream, [self.model.submit(128, inf, script, held=True) for script in scripts]))

    def map_at(self, index):
        return self.maps[index % len(self.maps)] if self.maps else None

    async def step(self, index):
        reader = self.map_at(index)
        if reader is None or not any(request.state in {"done", "dead"} for request in reader.requests):
            return
        reply = await anext(reader.stream)
        if reader.hand is not None:
            reader.hand.state = "delivered"
        (request,) = [request for request in reader.requests if request.script is reply.target]
        assert request.state == ("done" if reply.ok else "dead")
        reader.requests.remove(request)
        reader.hand = request if reply.ok else None

    async def leave(self, index):
        reader = self.map_at(index)
        if reader is None:
            return
        self.maps.remove(reader)
        await reader.stream.aclose()
        if reader.hand is not None:
            reader.hand.state = "delivered"
        for request in reader.requests:
            if request.state != "dead":
                self.model.give_up(request, "cancelled")

    async def cancel(self, index):
        if not self.tickets:
            return
        ticket, request = self.tickets[index % len(self.tickets)]
        pending = request.state in {"queued", "delayed", "leased"}
        assert ticket.cancel() == pending or not hasattr(ticket, "id")
        if pending:
            self.model.give_up(request, "cancelled")

    async def enter(self):
        request = self.model.submit(128, inf, [(inf, True)])
        if request is None:
            return
        leave = asyncio.Event()

        async def body():
            async with self.scheduler.slot("api"):
                await leave.wait()

        task = asyncio.create_task(body())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.slots.append((task, leave, request))

    async def exit(self, index):
        if not self.slots:
            return
        task, leave, request = self.slots[index % len(self.slots)]
        if request.state == "leased":
            leave.set()
            self.model.finish(request)
            self.slots.remove((task, leave, request))

    async def advance(self, seconds):
        self.model.advance(seconds)
        self.clock.advance(seconds)

    async def check_ends(self):
        """What became of each request is what its ticket says."""
        ends = {"dead": RequestFailedError, "expired": DeadlineExceededError, "cancelled": RequestCancelledError}
        for ticket, request in self.tickets:
            if request.state in {"queued", "delayed", "leased"}:
                assert not ticket.done()
            elif request.state == "delivered":
                reply = await (ticket if hasattr(ticket, "id") else asyncio.wrap_future(ticket))
                assert reply.target is request.script
                assert reply.attempts == request.attempt + 1
            elif hasattr(ticket, "id"):
                assert type((await asyncio.gather(ticket_error(ticket)))[0]) is ends[request.state]

    async def close(self):
        await self.scheduler.close()
        for task, leave, _ in self.slots:
            leave.set()
            await asyncio.gather(task, return_exceptions=True)
        for request in self.model.in_state("queued", "delayed", "leased"):
            request.state = "cancelled"
        while self.maps:
            await self.leave(0)


async def ticket_error(ticket):
    try:
        return await ticket
    except Exception as error:
        return error


@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 100),
    concurrency=st.integers(1, 3),
    limited=st.booleans(),
    isolation=st.sampled_from(["worker", "task"]),
)
async def test_ledger_is_exact_after_each_step(seed, length, concurrency, limited, isolation):
    """Whatever is done in whatever order, the ledger is at each step what a small model says, and so is every end."""
    clock = ManualClock()
    await clock.advance(0.25)  # no instant of the programs is one of the engine's ticks

    async def fetch(request):
        duration, succeeds = request.target[request.attempt - 1]
        await clock.sleep(duration)
        if not succeeds:
            raise ServerError
        return request.target

    quota = BackendQuota(*([WINDOW] if limited else []), concurrency=concurrency)
    model = Model(concurrency, limited, now=clock.time())
    scheduler = RateLimitScheduler(
        [Backend("api", fetch, quota, timeout=None)],
        capacity=CAPACITY,
        clock=clock,
        retry=Retry(attempts=ATTEMPTS, base=0, budget=1),
        isolation=isolation,
        balancer=LoadBalancer("least_in_flight"),  # the model lets nobody go first who has more time left
    )
    async with scheduler:
        running = Program(scheduler, clock, model)
        for number, step in enumerate(program_of(Random(seed), length)):
            await running.do(step)
            assert scheduler.ledger() == model.ledger(), f"after step {number}: {step}"
            assert scheduler.ledger().balanced
            assert scheduler.snapshot().backends["api"].in_flight == scheduler.ledger().leased
        await running.check_ends()
        await running.close()
        await running.settle()
        assert scheduler.ledger() == model.ledger()
        assert scheduler.ledger().pending == 0
