"""Against HAProxy, which nobody here wrote: a sliding-window counter that counts what it rejects, too."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import aiohttp
import pytest

from tidegate import Backend, BackendQuota, Event, Limit, RateLimitScheduler, Request, bound
from tidegate.backends.http import HttpBackend, HttpStatusError

CONFIGURATION = """
global
    maxconn 1000
    log stdout format raw local0
defaults
    mode http
    log global
    log-format "%Ts.%ms %ST %ft"
    timeout client 30s
    timeout server 30s
    timeout connect 5s
{frontends}
"""

FRONTEND = """
frontend {name}
    bind 127.0.0.1:{port}
    stick-table type integer size 10 expire 10m store http_req_rate({period}s)
    http-request track-sc0 int(1)
    http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {amount} }}
    http-request return status 200
"""


@dataclass(frozen=True)
class Rate:
    """One `http_req_rate`: what is above it is denied."""

    amount: int
    period: int

    @property
    def name(self) -> str:
        return f"rate-{self.amount}-{self.period}s"

    @property
    def text(self) -> str:
        return f"{self.amount}/{self.period}s"


@dataclass(frozen=True)
class Logged:
    """One line of the log; `at` in seconds, by the server's clock."""

    at: float
    status: int
    name: str


@dataclass(frozen=True)
class Haproxy:
    """A running HAProxy, with the address of each rate."""

    urls: dict[str, str]
    output: Path

    def log(self, rate: Rate) -> list[Logged]:
        """Every request that has ended, as HAProxy saw it."""
        lines = [line.split() for line in self.output.read_text().splitlines()]
        entries = [Logged(float(line[0]), int(line[1]), line[2]) for line in lines if len(line) == 3 and line[1].isdigit()]
        return [entry for entry in entries if entry.name == rate.name and entry.status > 0]


StartHaproxy = Callable[[Sequence[Rate]], Haproxy]


@pytest.fixture
def start_haproxy(
    tmp_path: Path,
    find_server: Callable[[str], str],
    free_port: Callable[[], int],
    run_server: Callable[[Sequence[str], int, Path], None],
) -> StartHaproxy:
    """Start an HAProxy of this test's own, with these rates; it is ended with the test."""

    def start(rates: Sequence[Rate]) -> Haproxy:
        ports = {rate.name: free_port() for rate in rates}
        frontends = [
            FRONTEND.format(name=rate.name, port=ports[rate.name], period=rate.period, amount=rate.amount) for rate in rates
        ]
        run = len(list(tmp_path.iterdir()))
        configuration, output = tmp_path / f"{run}.cfg", tmp_path / f"{run}.log"
        configuration.write_text(CONFIGURATION.format(frontends="".join(frontends)))
        run_server([find_server("haproxy"), "-db", "-f", str(configuration)], ports[rates[-1].name], output)
        return Haproxy({name: f"http://127.0.0.1:{port}/" for name, port in ports.items()}, output)

    return start


# ---- Declared

RATES = [Rate(20, 1), Rate(50, 5), Rate(100, 5)]
REQUIRED_SHARE = 0.96
HEAD = f"{'rate':16}{'quota':16}{'accepted':>9}{'bound':>7}{'share':>8}{'429':>5}{'round trip':>12}"


async def use_up(haproxy: Haproxy, rates: Sequence[Rate], seconds: float) -> dict[str, float]:
    """Send to all rates at once, always having more to send, for `seconds`; the mean round trip to each."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        backends = [HttpBackend(rate.name, haproxy.urls[rate.name], f"{rate.text} counter", client=client) for rate in rates]
        async with RateLimitScheduler(backends) as scheduler:
            tickets = {}
            for rate in rates:
                count = round(2 * rate.amount * (seconds / rate.period + 1))
                tickets[rate.name] = await scheduler.submit_many([""] * count, backends=rate.name)
            await asyncio.sleep(seconds)
            done = {name: [ticket for ticket in mine if ticket.done()] for name, mine in tickets.items()}
            await scheduler.close()
            replies = {name: await asyncio.gather(*mine) for name, mine in done.items()}
        ledger = scheduler.ledger()
        assert ledger.balanced
        assert (ledger.pending, ledger.dead) == (0, 0)
    return {name: fmean(reply.waits["attempt"] for reply in mine) for name, mine in replies.items()}


@pytest.mark.e2e("haproxy")
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_counter_of_haproxy_is_used_and_not_exceeded(
    start_haproxy: StartHaproxy, capsys: pytest.CaptureFixture[str], fail_or_skip: Callable[[str], None]
):
    """Declared as a counter, nothing is rejected, and nearly all that a client can send is sent."""
    seconds = 12.3
    for _ in range(3):
        haproxy = start_haproxy(RATES)
        round_trips = await use_up(haproxy, RATES, seconds)
        rows, below = [], []
        for rate in RATES:
            log = haproxy.log(rate)
            until = min(entry.at for entry in log) + seconds
            rejected = sum(entry.status == 429 for entry in log)
            accepted = sum(entry.status == 200 and entry.at <= until for entry in log)
            trip = round_trips[rate.name]
            most = bound(f"{rate.text} counter", seconds, round_trip=trip)
            assert most is not None
            figures = f"{accepted:9}{most:7}{accepted / most:8.1%}{rejected:5}{trip * 1e3:9.2f} ms"
            rows.append(f"{rate.name:16}{rate.text + ' counter':16}{figures}")
            if accepted / most < REQUIRED_SHARE:
                below.append(rate.name)
            assert rejected == 0
        with capsys.disabled():
            print("", HEAD, *rows, sep="\n")
        if not below:
            return
    fail_or_skip(f"used below {REQUIRED_SHARE:.0%}: {', '.join(below)}")


# ---- Undeclared


@dataclass
class Client:
    """Sends to one address, and counts what is under way."""

    session: aiohttp.ClientSession
    url: str
    under_way: int = 0
    under_way_then: int = 0  # when the first rejection came, that one included

    async def fetch(self, request: Request) -> int:
        self.under_way += 1
        try:
            async with self.session.get(self.url) as response:
                request.ack(response.status, response.headers)
                if response.status == 429:
                    self.under_way_then = self.under_way_then or self.under_way
                    raise HttpStatusError("429", status=429, headers={}, body=b"")
                return response.status
        finally:
            self.under_way -= 1


@pytest.mark.e2e("haproxy")
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_undeclared_limit_settles(start_haproxy: StartHaproxy, capsys: pytest.CaptureFixture[str]):
    """A limit whose kind was not named climbs to one that HAProxy never rejects, soon, and goes on being served."""
    rate, seconds = Rate(20, 2), 30.0
    haproxy = start_haproxy([rate])
    events: list[Event] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = Client(session, haproxy.urls[rate.name])
        backend = Backend("haproxy", client.fetch, BackendQuota(Limit(rate.amount, rate.period), concurrency=None))
        async with RateLimitScheduler([backend]) as scheduler:
            changes = scheduler.events()
            await scheduler.submit_many(range(1000))
            await asyncio.sleep(seconds)
            (state,) = scheduler.snapshot().backends["haproxy"].limits
            await scheduler.close()
            events = [event async for event in changes]
    log = haproxy.log(rate)
    end = max(entry.at for entry in log)
    rejected = sum(entry.status == 429 for entry in log)
    late = [entry for entry in log if entry.at > end - 10]
    steps = [f"{event.step.before} -> {event.step.after}" for event in events if event.step is not None]
    with capsys.disabled():
        print(f"\n{rate.text} undeclared: {rejected} of {len(log)} rejected, {client.under_way_then} under way at the first;")
        print(f"now {state.kind} ({', '.join(steps)}); in the last 10 s {len(late)} requests, of 100 at most")
    assert rejected <= client.under_way_then + 10
    assert all(entry.status == 200 for entry in late)
    assert len(late) >= 50
