"""Every client at once against nginx, and against a sliding window: nothing is rejected, and what is allowed is used.

Each has a location, and a limit, of its own; all share the two processors of a small machine.
"""

import asyncio
import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean

import pytest

from tidegate import BackendQuota, bound

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

# A sliding window for each path, exact: a log of what it accepted. `/log` tells all; `/unlimited` is not counted.
WINDOWS = """
import sys, time
from collections import defaultdict, deque
from aiohttp import web

AMOUNT, PERIOD = 8, 0.5
log = defaultdict(list)
windows = defaultdict(deque)

async def answer(request):
    name, now = request.path.lstrip("/"), time.monotonic()
    if name == "log":
        return web.json_response(log)
    if name == "unlimited":
        return web.Response(text="ok")
    window = windows[name]
    while window and window[0] <= now - PERIOD:
        window.popleft()
    is_accepted = len(window) < AMOUNT
    if is_accepted:
        window.append(now)
    log[name].append((now, 200 if is_accepted else 429))
    return web.Response(status=200 if is_accepted else 429)

app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
"""

CONCURRENCY = 8
SECONDS = 4.43  # between two steps of each bound
REQUIRED_SHARE = 0.96
NGINX = "15/s burst 5 bucket"  # nginx's burst=4
WINDOW = "8/500ms window"


@dataclass(frozen=True)
class Row:
    """What one client came to, by what the server logged."""

    client: str
    accepted: int
    rejected: int
    bound: int
    round_trip: float

    @property
    def share(self):
        return self.accepted / self.bound

    def __str__(self):
        trip = f"{self.round_trip * 1e3:.2f} ms"
        return f"{self.client:18}{self.accepted:9}{self.bound:7}{self.share:8.1%}{self.rejected:5}{trip:>12}"


HEAD = f"{'client':18}{'accepted':>9}{'bound':>7}{'share':>8}{'429':>5}{'round trip':>12}"


async def use_up(case, url, name, quota):
    """Send without end for a while; the mean round trip, as it is while others do the same."""
    client = case.open(BackendQuota(quota, concurrency=CONCURRENCY))
    free = case.open(BackendQuota(concurrency=CONCURRENCY))
    loop = asyncio.get_running_loop()

    async def trip():
        started_at = loop.time()
        await case.get(free, f"{url}unlimited")
        return loop.time() - started_at

    async def send():
        while loop.time() < until:
            await case.get(client, url + name)

    await asyncio.gather(*[trip() for _ in range(2 * CONCURRENCY)])  # connect
    until = loop.time() + SECONDS + 0.25
    workers = [asyncio.create_task(send()) for _ in range(CONCURRENCY)]
    trips = []
    while loop.time() < until:
        trips.append(await trip())
        await asyncio.sleep(0.5)
    await asyncio.gather(*workers)
    await case.close(client)
    await case.close(free)
    return fmean(trips)


async def prove(cases, start, quota, capsys, fail_or_skip):
    """Use the limits up, print the table, and check it: the best of three, but rejections are judged in each."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(300))
    for _ in range(3):
        url, read_log = start()
        names = [type(case).__name__ for case in cases]
        trips = await asyncio.gather(*[use_up(case, url, name, quota) for case, name in zip(cases, names, strict=True)])
        log = read_log()
        rows = []
        for name, trip in zip(names, trips, strict=True):
            mine = log[name]
            until = min(at for at, _ in mine) + SECONDS
            accepted = sum(status == 200 and at <= until for at, status in mine)
            most = bound(BackendQuota(quota, concurrency=CONCURRENCY), SECONDS, round_trip=trip)
            rows.append(Row(name, accepted, sum(status == 429 for _, status in mine), most, trip))
        with capsys.disabled():
            print("", f"{quota}, {SECONDS} s", HEAD, *rows, sep="\n")
        assert [row.client for row in rows if row.rejected] == []
        below = [row.client for row in rows if row.share < REQUIRED_SHARE]
        if not below:
            return
    fail_or_skip(f"used below {REQUIRED_SHARE:.0%}: {', '.join(below)}")


@pytest.mark.e2e("nginx")
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_nginx(every_case, tmp_path, find_server, free_port, run_server, capsys, fail_or_skip):
    def start():
        port = free_port()
        folder = tmp_path / str(port)
        (folder / "temp").mkdir(parents=True)
        names = [type(case).__name__ for case in every_case]
        (folder / "nginx.conf").write_text(
            CONFIGURATION.format(
                port=port,
                zones="\n    ".join(f'limit_req_zone "all" zone={name}:64k rate=15r/s;' for name in names),
                locations="\n        ".join(
                    f"location = /{name} {{ limit_req zone={name} burst=4 nodelay; empty_gif; }}" for name in names
                ),
            )
        )
        run_server([find_server("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")], port, folder / "output")

        def read_log():
            lines = [line.split() for line in (folder / "access.log").read_text().splitlines()]
            return {name: [(float(at), int(status)) for at, status, path in lines if path == f"/{name}"] for name in names}

        return f"http://127.0.0.1:{port}/", read_log

    await prove(every_case, start, NGINX, capsys, fail_or_skip)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_sliding_window(every_case, tmp_path, free_port, run_server, capsys, fail_or_skip):
    def start():
        port = free_port()
        run_server([sys.executable, "-c", WINDOWS, str(port)], port, tmp_path / f"output-{port}")
        url = f"http://127.0.0.1:{port}/"
        return url, lambda: json.load(urllib.request.urlopen(f"{url}log"))  # noqa: S310

    await prove(every_case, start, WINDOW, capsys, fail_or_skip)
