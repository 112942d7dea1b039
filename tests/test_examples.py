"""Each program of `examples/`, as a process of its own, against a server on loopback that counts and rejects."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic

import pytest

from tidegate.testing import servers

EXAMPLES = Path(__file__).parents[1] / "examples"
# Seconds that a program may take, many times what it needs.
LONGEST = 60
NAMES = ["ada", "grace", "edsger"]
# A notebook's kernel, as far as it matters: what it runs, it runs on the thread of its event loop.
CELLS = """
import asyncio, runpy, sys

async def main():
    for _ in range(2):
        runpy.run_path(sys.argv[1])

asyncio.run(main())
"""


class Strict(ThreadingHTTPServer):
    """Counts the requests of each key, or else of each host, in a sliding window; answers with links to its other pages."""

    daemon_threads = True

    def __init__(self, amount):
        super().__init__(("127.0.0.1", 0), Handler)
        self.counts = Counter()
        self.windows = defaultdict(lambda: servers.SlidingWindow(amount, 1))
        self.lock = threading.Lock()

    def admits(self, who, path):
        with self.lock:
            ok = self.windows[who].receive(monotonic()).ok
            self.counts[200 if ok else 429] += 1
            self.counts[path] += 1
            return ok

    def url(self, path="", host="127.0.0.1"):
        return f"http://{host}:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        host = self.headers["Host"]
        ok = self.server.admits(self.headers.get("Authorization", host), self.path)
        other = host.replace("127.0.0.1", "localhost")
        links = f'<a href="{self.path}x">deeper</a> <a href="http://{other}/">elsewhere</a>'
        body = f"page {self.path} {links if self.path.startswith('/link') else ''}".encode()
        self.send_response(200 if ok else 429)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(request):
    with Strict(getattr(request, "param", 10)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def output_of(command, **environment):
    """What a program prints, line by line; it must end well and say nothing else."""
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_ten_lines(server):
    lines = output_of([EXAMPLES / "ten_lines.py", server.url("{target}")])
    assert sorted(lines) == sorted(f"{number} page /{number} " for number in range(20))
    assert (server.counts[200], server.counts[429]) == (20, 0)


def test_ten_lines_are_ten():
    lines = (EXAMPLES / "ten_lines.py").read_text().splitlines()
    assert sum(bool(line) for line in lines[1:]) <= 10


def test_requests_in_threads(server):
    lines = output_of([EXAMPLES / "requests_in_threads.py", server.url()])
    assert lines == [f"{number} 200 page /{number} " for number in range(20)]
    assert (server.counts[200], server.counts[429]) == (20, 0)


def test_notebook(server):
    lines = output_of([EXAMPLES / "notebook.py"], BASE_URL=server.url())
    assert lines == [f"{name} page /{name} " for name in NAMES]


def test_notebook_where_a_loop_runs_and_again(server):
    """A cell may be run again."""
    lines = output_of(["-c", CELLS, EXAMPLES / "notebook.py"], BASE_URL=server.url())
    assert lines == [f"{name} page /{name} " for name in NAMES] * 2
    assert server.counts["/ada"] == 2


def test_two_accounts(server):
    lines = output_of([EXAMPLES / "two_accounts.py", server.url()], API_KEYS="first,second")
    assert sorted(lines) == sorted(f"{number} page /{number} " for number in range(30))
    assert (server.counts[200], server.counts[429]) == (30, 0)
    used = {who: window.accepted for who, window in server.windows.items()}
    assert set(used) == {"Bearer first", "Bearer second"}
    assert min(used.values()) >= 10, "both are used"


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")
def test_monitor(server):
    """Told once of each page, since nothing changes; Ctrl-C ends it well."""
    command = [sys.executable, EXAMPLES / "monitor.py", "--interval", "0.5", server.url("a"), server.url("b")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        stop = threading.Timer(LONGEST, program.kill)
        stop.start()
        try:
            since = monotonic()
            while server.counts["/b"] < 3 and monotonic() < since + LONGEST:
                threading.Event().wait(0.02)
            program.send_signal(signal.SIGINT)
            out, err = program.communicate()
        finally:
            stop.cancel()
    lines = out.splitlines()
    assert program.returncode == 0, err
    assert err.splitlines() in ([], ["finishing what runs; Ctrl-C again stops now"])
    assert lines[0].startswith("2 targets ask web per host=")
    assert sorted(lines[1:3]) == [f"first {server.url('a')} page /a ", f"first {server.url('b')} page /b "]
    assert re.fullmatch(r"\d+ polls, late by .* s at most, but for 1 %", lines[3])
    assert len(lines) == 4
    assert server.counts[429] == 0


@pytest.mark.parametrize("server", [2], indirect=True)
def test_crawl(server):
    """Pages of two hosts, each once, and no more than each host allows."""
    lines = output_of([EXAMPLES / "crawl.py", "--pages", "6", server.url("link")])
    visited = [line.split()[0] for line in lines]
    assert len(visited) == len(set(visited)) == 6
    assert {server.url("link"), server.url("linkx"), server.url("linkxx"), server.url(host="localhost")} <= set(visited)
    assert (server.counts[200], server.counts[429]) == (6, 0)


def test_every_example_is_run_and_listed():
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    tests = Path(__file__).read_text()
    listed = re.findall(r"^\| \[(\w+\.py)\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted((name, name) for name in programs)
    assert all(f'EXAMPLES / "{name}"' in tests for name in programs)
    assert all(len((EXAMPLES / name).read_text().splitlines()) <= 45 for name in programs)
