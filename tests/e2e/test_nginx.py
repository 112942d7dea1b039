"""Against nginx, which nobody here wrote: what `limit_req` allows is used, and nothing is rejected."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import floor
from pathlib import Path
from statistics import fmean

import aiohttp
import pytest

from tidegate import Ledger, RateLimitScheduler
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
        location = /unlimited {{ empty_gif; }}
        {locations}
    }}
}}
"""


@dataclass(frozen=True)
class Zone:
    """One `limit_req` of nginx, with `nodelay`: `burst` requests beyond the first at once, then `rate` a second.

    Without `nodelay` it delays those `burst` requests itself: the queue is then better kept on our side.
    """

    rate: int
    burst: int
    delays: bool = False

    @property
    def name(self) -> str:
        return f"rate{self.rate}-burst{self.burst}{'-delaying' if self.delays else ''}"

    @property
    def option(self) -> str:
        """As `limit_req` takes it, which knows no `burst=0`."""
        return f"burst={self.burst}{'' if self.delays else ' nodelay'}" if self.burst else ""

    @property
    def quota(self) -> str:
        """The same limit in our words, where `burst` is all that a bucket holds."""
        return f"{self.rate}/s leaky" if self.delays else f"{self.rate}/s burst {self.burst + 1} bucket"


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


StartNginx = Callable[[Sequence[Zone]], Nginx]


@pytest.fixture
def start_nginx(
    tmp_path: Path,
    find_server: Callable[[str], str],
    free_port: Callable[[], int],
    run_server: Callable[[Sequence[str], int, Path], None],
) -> StartNginx:
    """Start an nginx of this test's own, with these zones; it is ended with the test."""

    def start(zones: Sequence[Zone]) -> Nginx:
        port = free_port()
        folder = tmp_path / str(port)
        (folder / "temp").mkdir(parents=True)
        configuration = folder / "nginx.conf"
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
        run_server([find_server("nginx"), "-p", str(folder), "-c", str(configuration)], port, folder / "output")
        return Nginx(f"http://127.0.0.1:{port}/", folder)

    return start


ZONES = [Zone(rate, burst) for rate, burst in product((2, 10, 100), (0, 5, 20))]
ZONES += [Zone(2, 5, delays=True), Zone(10, 20, delays=True)]
# Sent without the others: with room for one request, its bound hangs on each millisecond that they would take from it.
TIGHT = [Zone(100, 0)]
LOOSE = [zone for zone in ZONES if zone not in TIGHT]
REQUIRED_SHARE = 0.97
# What the policy adds to each instant at which a bucket admits: nginx's clock counts whole milliseconds.
MARGIN = 0.001


def ack_bound(zone: Zone, seconds: float, round_trip: float) -> int:
    """The most that a client may send in `seconds` whose bucket counts from acknowledgements, by algorithms A7.

    With room for what is under way a bucket loses nothing to the round trip: `rate * seconds + burst + 1`. With room for one
    request, the next leaves an interval after the last was acknowledged.
    """
    interval = 1 / zone.rate
    if zone.burst == 0 or zone.delays:
        return floor(seconds / (interval + MARGIN + round_trip)) + 1
    assert round_trip < zone.burst * interval
    return floor(zone.rate * seconds) + zone.burst + 1


async def use_up(nginx: Nginx, zones: Sequence[Zone], seconds: float) -> tuple[dict[str, float], Ledger]:
    """Send to all zones at once, always having more to send, for `seconds`.

    Returns:
        The mean round trip to each zone, from the charge to the end of a body that is one packet; and the ledger.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await asyncio.gather(*(client.get(f"{nginx.url}unlimited") for zone in zones for _ in range(zone.burst + 1)))  # connect
        backends = [HttpBackend(zone.name, nginx.url, zone.quota, client=client) for zone in zones]
        return await use_up_with(backends, zones, seconds)


async def use_up_with(backends: Sequence[HttpBackend], zones: Sequence[Zone], seconds: float) -> tuple[dict[str, float], Ledger]:
    async with RateLimitScheduler(backends) as scheduler:
        tickets = {
            zone.name: await scheduler.submit_many(
                [zone.name] * round(2 * zone.rate * seconds + 2 * zone.burst), backends=[zone.name]
            )
            for zone in zones
        }
        await asyncio.sleep(seconds)
        done = {zone: [ticket for ticket in mine if ticket.done()] for zone, mine in tickets.items()}
        await scheduler.close()
        replies = {zone: await asyncio.gather(*mine) for zone, mine in done.items()}
        return {zone: fmean(reply.waits["attempt"] for reply in mine) for zone, mine in replies.items()}, scheduler.ledger()


@dataclass(frozen=True)
class Row:
    """What one zone came to, by what nginx logged."""

    zone: Zone
    accepted: int
    rejected: int
    bound: int
    round_trip: float

    @property
    def share(self) -> float:
        return self.accepted / self.bound

    def __str__(self) -> str:
        return (
            f"{self.zone.name:25}{self.zone.quota:24}{self.accepted:9}{self.bound:7}{self.share:8.1%}{self.rejected:5}"
            f"{self.round_trip * 1e3:9.2f} ms"
        )


HEAD = f"{'zone':25}{'quota':24}{'accepted':>9}{'bound':>7}{'share':>8}{'429':>5}{'round trip':>12}"


def row(nginx: Nginx, zone: Zone, seconds: float, round_trip: float) -> Row:
    """Count what nginx logged for a zone, in the time in which there was more to send."""
    log = [entry for entry in nginx.log() if entry.zone == zone.name]
    until = min(entry.at for entry in log) + seconds
    rejected = sum(entry.status == 429 for entry in log)
    accepted = sum(entry.status != 429 and entry.at <= until for entry in log)
    return Row(zone, accepted, rejected, ack_bound(zone, seconds, round_trip), round_trip)


async def prove(
    start_nginx: StartNginx,
    zones: Sequence[Zone],
    seconds: float,
    capsys: pytest.CaptureFixture[str],
    fail_or_skip: Callable[[str], None],
) -> None:
    """Use the zones up, print the table, and check it.

    What else the machine does can only take away, so the best of three counts. Rejections are judged in each.
    """
    for _ in range(3):
        nginx = start_nginx(zones)
        round_trips, ledger = await use_up(nginx, zones, seconds)
        rows = [row(nginx, zone, seconds, round_trips[zone.name]) for zone in zones]
        with capsys.disabled():
            print("", HEAD, *rows, sep="\n")
        assert [row.zone.name for row in rows if row.rejected] == []
        assert ledger.balanced
        assert (ledger.pending, ledger.dead) == (0, 0)
        below = [row.zone.name for row in rows if row.share < REQUIRED_SHARE]
        if not below:
            return
        reason = f"used below {REQUIRED_SHARE:.0%}: {', '.join(below)}"
    fail_or_skip(reason)


# A quarter of a second past an interval of the slowest zone: the count does not hang on the last instant.
@pytest.mark.e2e("nginx")
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("zones, seconds", [(LOOSE, 9.75), (TIGHT, 4.75)], ids=["loose", "tight"])
async def test_limits_of_nginx_are_used_and_not_exceeded(
    zones: Sequence[Zone],
    seconds: float,
    start_nginx: StartNginx,
    capsys: pytest.CaptureFixture[str],
    fail_or_skip: Callable[[str], None],
):
    await prove(start_nginx, zones, seconds, capsys, fail_or_skip)


@pytest.mark.slow
@pytest.mark.e2e("nginx")
@pytest.mark.parametrize("zones", [LOOSE, TIGHT], ids=["loose", "tight"])
async def test_limits_of_nginx_are_used_for_a_minute(
    zones: Sequence[Zone],
    start_nginx: StartNginx,
    capsys: pytest.CaptureFixture[str],
    fail_or_skip: Callable[[str], None],
):
    await prove(start_nginx, zones, 61.75, capsys, fail_or_skip)
