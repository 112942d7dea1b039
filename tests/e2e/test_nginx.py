"""Against nginx, which nobody here wrote: what `limit_req` allows is used, and nothing is rejected."""

import asyncio
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import floor
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import aiohttp
import pytest

from tidegate import RateLimitScheduler
from tidegate.backends.http import HttpBackend

CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log error;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    log_format counted '$msec $status $uri';
    access_log access.log counted;
    limit_req_status 429;
    {zones}
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""


@dataclass(frozen=True)
class Zone:
    """One `limit_req` of nginx, with `nodelay`: `burst` requests beyond the first at once, then `rate` a second."""

    rate: int
    burst: int

    @property
    def name(self) -> str:
        return f"rate{self.rate}-burst{self.burst}"

    @property
    def option(self) -> str:
        """As `limit_req` takes it, which knows no `burst=0`."""
        return f"burst={self.burst} nodelay" if self.burst else ""

    @property
    def quota(self) -> str:
        """The same limit in our words, where `burst` is all that a bucket holds."""
        return f"{self.rate}/s burst {self.burst + 1}"


@dataclass(frozen=True)
class Logged:
    """One line of the access log; `at` in seconds, by the server's clock."""

    at: float
    status: int
    zone: str


@dataclass(frozen=True)
class Nginx:
    """A running nginx: each of its zones limits the location of its name."""

    url: str
    folder: Path

    def log(self) -> list[Logged]:
        """Every request that has ended, as nginx saw it."""
        lines = (line.split() for line in (self.folder / "access.log").read_text().splitlines())
        return [Logged(float(at), int(status), path.lstrip("/")) for at, status, path in lines]


@pytest.fixture
def start_nginx(tmp_path: Path, find_server: Callable[[str], str]) -> Iterator[Callable[[Sequence[Zone]], Nginx]]:
    """Start an nginx of this test's own, with these zones; it is ended with the test."""
    processes = []

    def start(zones: Sequence[Zone]) -> Nginx:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        (tmp_path / "temp").mkdir()
        configuration = tmp_path / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                port=port,
                # One key for all requests: the limit is the location's.
                zones="\n    ".join(f'limit_req_zone "all" zone={z.name}:64k rate={z.rate}r/s;' for z in zones),
                # `return` would answer before the limit is asked; empty_gif answers after it.
                locations="\n        ".join(
                    f"location = /{z.name} {{ limit_req zone={z.name} {z.option}; empty_gif; }}" for z in zones
                ),
            )
        )
        command = [find_server("nginx"), "-p", str(tmp_path), "-c", str(configuration)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        processes.append(process)
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > until:
                    process.kill()
                    pytest.fail(f"nginx did not start: {process.communicate()[0].decode()}")
                time.sleep(0.01)
            else:
                return Nginx(f"http://127.0.0.1:{port}/", tmp_path)

    yield start
    for process in processes:
        process.terminate()
        process.communicate()


ZONES = [Zone(rate, burst) for rate, burst in product((2, 10, 100), (0, 5, 20))]
REQUIRED_SHARE = 0.97
# What the policy adds to each instant at which a bucket admits: nginx's clock counts whole milliseconds.
MARGIN = 0.001


def ack_bound(zone: Zone, seconds: float, round_trip: float) -> int:
    """The most that a client may send in `seconds` whose bucket counts from acknowledgements, by algorithms A7.

    With room for what is under way a bucket loses nothing to the round trip: `rate * seconds + burst + 1`. With room for one
    request, the next leaves an interval after the last was acknowledged.
    """
    interval = 1 / zone.rate
    if zone.burst == 0:
        return floor(seconds / (interval + MARGIN + round_trip)) + 1
    assert round_trip < zone.burst * interval
    return floor(zone.rate * seconds) + zone.burst + 1


def timed_client() -> tuple[aiohttp.ClientSession, dict[str, list[float]]]:
    """A client, and the seconds from each request to its response headers, by path."""
    round_trips: dict[str, list[float]] = defaultdict(list)
    trace = aiohttp.TraceConfig()

    async def started(_: object, context: SimpleNamespace, params: object) -> None:
        context.started_at = asyncio.get_running_loop().time()

    async def ended(_: object, context: SimpleNamespace, params: aiohttp.TraceRequestEndParams) -> None:
        round_trips[params.url.path.lstrip("/")].append(asyncio.get_running_loop().time() - context.started_at)

    trace.on_request_start.append(started)
    trace.on_request_end.append(ended)
    return aiohttp.ClientSession(trace_configs=[trace], connector=aiohttp.TCPConnector(limit=0)), round_trips


async def use_up(nginx: Nginx, zones: Sequence[Zone], seconds: float):
    """Send to all zones at once, always having more to send, for `seconds`."""
    client, round_trips = timed_client()
    async with client:
        backends = [HttpBackend(zone.name, nginx.url, zone.quota, client=client) for zone in zones]
        async with RateLimitScheduler(backends) as scheduler:
            for zone in zones:
                more_than_allowed = round(2 * zone.rate * seconds) + 2 * zone.burst + 10
                await scheduler.submit_many([zone.name] * more_than_allowed, backends=[zone.name])
            await asyncio.sleep(seconds)
            await scheduler.close()
            return round_trips, scheduler.ledger()


def judge(nginx: Nginx, zones: Sequence[Zone], seconds: float, round_trips: dict[str, list[float]]):
    """The table's rows, and the zones that were not as promised."""
    rows = [f"{'zone':16}{'quota':18}{'accepted':>9}{'bound':>7}{'share':>8}{'429':>5}{'round trip':>12}"]
    problems = []
    for zone in zones:
        log = [entry for entry in nginx.log() if entry.zone == zone.name]
        until = min(entry.at for entry in log) + seconds
        accepted = sum(entry.status != 429 and entry.at <= until for entry in log)
        rejected = sum(entry.status == 429 for entry in log)
        round_trip = fmean(round_trips[zone.name])
        bound = ack_bound(zone, seconds, round_trip)
        rows.append(
            f"{zone.name:16}{zone.quota:18}{accepted:9}{bound:7}{accepted / bound:8.1%}{rejected:5}{round_trip * 1e3:9.2f} ms"
        )
        if rejected or accepted < REQUIRED_SHARE * bound:
            problems.append(zone.name)
    return rows, problems


# A quarter second past an interval of the slowest zone: the count does not hang on the last instant.
@pytest.mark.e2e("nginx")
@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(9.75, marks=pytest.mark.asyncio(loop_factories=["asyncio"])),
        pytest.param(61.75, marks=pytest.mark.slow),
    ],
)
async def test_limits_of_nginx_are_used_and_not_exceeded(
    seconds: float, start_nginx: Callable[[Sequence[Zone]], Nginx], capsys: pytest.CaptureFixture[str]
):
    nginx = start_nginx(ZONES)
    round_trips, ledger = await use_up(nginx, ZONES, seconds)
    rows, problems = judge(nginx, ZONES, seconds, round_trips)
    with capsys.disabled():
        print("", *rows, sep="\n")
    assert not problems
    assert ledger.balanced
    assert ledger.pending == 0
    assert ledger.dead == 0
