"""`tidegate run` as its user meets it: a process, its signals, its files, its exit code."""

import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

TIDEGATE = [sys.executable, "-m", "tidegate"]
SERVER = Path(__file__).parent / "server.py"


class Server:
    """A server of its own process, which can die and return."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, SERVER, str(self.port), self.log])
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert time.monotonic() < until, "it did not start"
                time.sleep(0.02)
            else:
                return

    def die(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().split()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Server(port, tmp_path_factory.mktemp("server") / "asked")
    server.start()
    yield server
    server.die()


@pytest.fixture
def server(started: Server) -> Server:
    """The server, which has been asked nothing yet."""
    if started.process is not None and started.process.poll() is not None:  # a test had it die
        started.start()
    os.truncate(started.log, 0)
    return started


Write = Callable[..., Path]


@pytest.fixture
def configure(server: Server, tmp_path: Path) -> Write:
    """Write a configuration with one backend, and anything besides."""

    def write(*, path: str = "ok", backend: str = 'quota = "50/s burst 5"', rest: str, targets: str = "") -> Path:
        file = tmp_path / "tidegate.toml"
        targets = targets or "[targets]\nlist = ['one', 'two']"
        address = f"http://127.0.0.1:{server.port}/{path}/{{target}}"
        file.write_text(f'[[backend]]\nname = "api"\nurl = "{address}"\n{backend}\n\n{targets}\n\n{rest}\n')
        return file

    return write


def many(count: int) -> str:
    return f"[targets]\nlist = {[f'item-{number}' for number in range(count)]}"


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The command, in its own process group as a shell would start it."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "process_group": 0, **options}
    return subprocess.Popen([*TIDEGATE, *arguments], **options)


def finish(process: subprocess.Popen[str], *, code: int, timeout: float = 30) -> tuple[str, str]:
    """What it prints until its end, which is as it should be."""
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == code, (output, errors)
    assert "Traceback" not in errors
    return output, errors


def lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, each of which is whole."""
    data = file.read_bytes()
    assert data == b"" or data.endswith(b"\n"), data[-100:]
    return [json.loads(line) for line in data.splitlines()]


def adds_up(output: str, *, targets: int | None, written: int) -> dict[str, Any]:
    """The summary of `--json`, all of whose numbers agree with each other and with the file."""
    summary: dict[str, Any] = json.loads(output)
    requests = summary["requests"]
    ends = {end: requests[end] for end in ("collected", "failed", "expired", "cancelled")}
    assert requests["accepted"] == sum(ends.values()), summary
    assert summary["ledger"]["balanced"], summary
    assert summary["ledger"]["pending"] == 0, summary
    assert summary["ledger"]["accepted"] == requests["accepted"], summary
    assert sum(summary["failures"].values()) == requests["failed"], summary
    assert sum(backend["collected"] for backend in summary["backends"].values()) == requests["collected"], summary
    to_write = requests["accepted"] - requests["cancelled"]
    assert summary["output"]["written"] == written, summary
    assert summary["output"]["written"] + summary["output"]["not_written"] == to_write, summary
    if targets is not None:  # each of them once
        assert summary["targets"]["distinct"] == targets
        assert summary["targets"]["not_taken"] == targets - requests["accepted"], summary
    return summary


def until_asked(server: Server, count: int, process: subprocess.Popen[str]) -> None:
    """Wait for the server to have been asked so often."""
    until = time.monotonic() + 20
    while len(server.asked) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


OUTPUT = '[output]\nfile = "out.jsonl"'


def test_all_is_collected_into_lines_of_json(configure, server, tmp_path):
    file = configure(rest=OUTPUT, targets="[targets]\nlist = ['one', 'two', 'missing', 'one', 3]")
    output, errors = finish(start("run", file, "--json"), code=1)
    rows = lines(tmp_path / "out.jsonl")
    summary = adds_up(output, targets=4, written=4)
    assert {row["target"]: row["ok"] for row in rows} == {"one": True, "two": True, "missing": False, "3": True}
    (one,) = [row for row in rows if row["target"] == "one"]
    assert one["value"] == {"id": "one", "key": None}
    assert (one["status"], one["backend"], one["attempts"]) == (200, "api", 1)
    (missing,) = [row for row in rows if row["target"] == "missing"]
    assert missing["status"] == 404
    assert missing["error"]["type"] == "RequestFailedError"
    assert summary["failures"] == {"status 404": 1}
    assert summary["targets"]["duplicates"] == 1
    assert summary["backends"]["api"]["sent"] == len(server.asked) == 4
    assert "requests  4 accepted = 3 collected + 1 failed + 0 expired + 0 cancelled" in errors


def test_output_is_appended_to(configure, tmp_path):
    file = configure(rest=OUTPUT)
    for _ in range(2):
        finish(start("run", file), code=0)
    assert [row["target"] for row in lines(tmp_path / "out.jsonl")].count("one") == 2


def test_options_name_files_from_here(configure, tmp_path):
    file = configure(rest=OUTPUT)
    here = tmp_path / "elsewhere"
    here.mkdir()
    (here / "ids.txt").write_text("seven\n")
    finish(start("run", file, "--targets", "ids.txt", "--output", "here.jsonl", cwd=here), code=0)
    assert [row["target"] for row in lines(here / "here.jsonl")] == ["seven"]
    _, errors = finish(start("run", file, "--json", "--output", "-"), code=2)
    assert "--json prints on standard output, where the replies go" in errors


def test_interrupt_finishes_what_runs(configure, server, tmp_path):
    file = configure(path="slow", backend='quota = "60/s"', rest=OUTPUT, targets=many(500))
    run = start("run", file, "--json")
    until_asked(server, 30, run)
    os.killpg(run.pid, signal.SIGINT)
    output, errors = finish(run, code=130)
    rows = lines(tmp_path / "out.jsonl")
    summary = adds_up(output, targets=500, written=len(rows))
    assert "Ctrl-C again stops now" in errors
    assert summary["interrupted"]
    assert summary["requests"]["cancelled"] > 0
    # What was sent was waited for: nothing that the server answered is missing.
    assert sorted(row["target"] for row in rows) == sorted(server.asked)


def test_second_interrupt_stops_now(configure, server, tmp_path):
    file = configure(path="slow", backend='quota = "60/s"', rest=OUTPUT, targets=many(500))
    run = start("run", file, "--json")
    until_asked(server, 30, run)
    for _ in range(2):
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.1)
    output, _ = finish(run, code=130, timeout=5)
    rows = lines(tmp_path / "out.jsonl")
    adds_up(output, targets=500, written=len(rows))
    assert len(rows) < len(server.asked)


def test_interrupt_while_it_starts_is_an_interrupt_too(configure):
    run = start("run", configure(path="slow", rest=OUTPUT, targets=many(300)))
    time.sleep(0.15)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    # Otherwise the interpreter had not got to us.
    assert run.returncode in {130, -signal.SIGINT} or (run.returncode == 1 and "_cli" not in errors), errors


def test_termination_is_as_an_interrupt(configure, server, tmp_path):
    file = configure(path="slow", backend='quota = "60/s"', rest=OUTPUT, targets=many(500))
    run = start("run", file, "--json")
    until_asked(server, 30, run)
    run.terminate()
    output, _ = finish(run, code=130)
    rows = lines(tmp_path / "out.jsonl")
    adds_up(output, targets=500, written=len(rows))
    assert sorted(row["target"] for row in rows) == sorted(server.asked)


def test_killed_run_leaves_whole_lines_and_the_next_one_goes_on(configure, server, tmp_path):
    file = configure(backend='quota = "500/s"', rest=OUTPUT, targets=many(2000))
    out = tmp_path / "out.jsonl"
    for asked in (50, 150, 300):
        run = start("run", file, "-q")
        until_asked(server, asked, run)
        run.kill()
        run.communicate()
        lines(out)
    before = out.read_bytes()
    out.write_bytes(before + b'{"target":"torn","ok":tr')  # as the kernel may leave it that stops in the middle of a write
    finish(start("run", configure(rest=OUTPUT)), code=0)
    assert out.read_bytes().startswith(before)
    assert [row["target"] for row in lines(out)][-2:] == ["one", "two"]


def limited_to(size: int) -> Callable[[], None]:
    """What has a process meet the end of its disk after so many bytes of a file."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_full_disk_stops_the_run_and_is_said(configure, server, tmp_path):
    file = configure(backend='quota = "100/s"', rest=OUTPUT, targets=many(1000))
    run = start("run", file, "--json", preexec_fn=limited_to(10_000))
    output, errors = finish(run, code=1)
    rows = lines(tmp_path / "out.jsonl")
    assert 9000 < (tmp_path / "out.jsonl").stat().st_size <= 10_000
    summary = adds_up(output, targets=1000, written=len(rows))
    assert summary["output"]["not_written"] > 0
    assert len(server.asked) < 300  # it went no further
    assert "stopped, for the output failed" in errors
    assert "File too large" in errors
    assert "out.jsonl" in errors.splitlines()[-1]


def test_disk_without_room_for_anything(configure):
    output, errors = finish(start("run", configure(rest='[output]\nfile = "/dev/full"'), "--json"), code=1)
    adds_up(output, targets=2, written=0)
    assert "No space left on device" in errors


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_real_disk_that_is_full(configure, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        file = configure(backend='quota = "1000/s"', rest=f'[output]\nfile = "{disk}/out.jsonl"', targets=many(2000))
        output, errors = finish(start("run", file, "--json"), code=1)
        rows = lines(disk / "out.jsonl")
        adds_up(output, targets=2000, written=len(rows))
        assert "No space left on device" in errors
        assert len(rows) > 300
    finally:
        subprocess.run(["umount", disk], check=True)


def test_bad_lines_are_told_and_left_out(configure, tmp_path):
    file = configure(rest=OUTPUT, targets='[targets]\nfile = "ids.csv"\ncolumn = "id"\noptions = ["priority"]')
    rows = [
        b"id,priority",
        b"one,high",
        b"two,urgent",
        b"three",
        b"\xff\xfe,",
        b"four,",
        b",low",
        b'"fi"ve,7',
        b"one,",
        b"six,999",
    ]
    (tmp_path / "ids.csv").write_bytes(b"\n".join(rows))
    output, errors = finish(start("run", file, "--json"), code=0)
    summary = adds_up(output, targets=3, written=3)
    assert {row["target"] for row in lines(tmp_path / "out.jsonl")} == {"one", "four", "five"}
    assert summary["targets"]["bad_lines"] == 5
    assert summary["targets"]["duplicates"] == 1
    assert (
        f'{tmp_path}/ids.csv:3  priority = "urgent": give one of critical, high, normal, low, or a number from 0 to 255' in errors
    )
    assert f"{tmp_path}/ids.csv:4  has 1 field, the header 2" in errors
    assert f"{tmp_path}/ids.csv:5  is not UTF-8" in errors


def test_bad_lines_are_refused_where_they_must_not_be(configure, server, tmp_path):
    file = configure(rest=OUTPUT, targets='[targets]\nfile = "ids.jsonl"\nfield = "id"\nstrict = true')
    (tmp_path / "ids.jsonl").write_text('{"id": "one"}\n{"id": \n"two"\n[3]\n{"ID": "four"}\n')
    _, errors = finish(start("run", file), code=2)
    assert errors == (
        f"{tmp_path}/ids.jsonl:2  is no JSON: Expecting value, in column 7\n"
        f"{tmp_path}/ids.jsonl:4  its 'id' is no text\n"
        f"{tmp_path}/ids.jsonl:5  has no 'id'\n"
    )
    assert server.asked == []
    assert not (tmp_path / "out.jsonl").exists()


def test_server_dies_and_returns(configure, server, tmp_path):
    backend = 'quota = "20/s"\nconcurrency = 4'
    file = configure(
        backend=backend, rest=f"[run]\nretry = {{ attempts = 50, cap = '1s', budget = 1 }}\n{OUTPUT}", targets=many(60)
    )
    run = start("run", file, "--json")
    until_asked(server, 20, run)
    server.die()
    time.sleep(1)
    server.start()
    output, _ = finish(run, code=0, timeout=60)
    rows = lines(tmp_path / "out.jsonl")
    summary = adds_up(output, targets=60, written=60)
    assert {row["target"] for row in rows} == {f"item-{number}" for number in range(60)}
    assert all(row["ok"] for row in rows)
    assert summary["backends"]["api"]["sent"] > 60
    assert summary["backends"]["api"]["rejected"] == 0


def test_server_dies_for_good(configure, server, tmp_path):
    file = configure(
        path="slow",
        backend='quota = "50/s"',
        rest=f"[run]\nhealth = false\nretry = {{ attempts = 2, base = '10ms' }}\n{OUTPUT}",
        targets=many(12),
    )
    run = start("run", file, "--json")
    until_asked(server, 6, run)
    server.die()
    output, errors = finish(run, code=1)
    rows = lines(tmp_path / "out.jsonl")
    summary = adds_up(output, targets=12, written=12)
    assert summary["requests"]["failed"] > 0
    assert sum(not row["ok"] for row in rows) == summary["requests"]["failed"]
    assert re.search(r"^failed    \d+ Client\w+: \w+", errors, re.MULTILINE)


def test_targets_from_a_pipe_are_collected_as_they_come(configure, server, tmp_path):
    file = configure(rest=OUTPUT, targets="# none here")
    run = start("run", file, "--targets", "-", "--json", stdin=subprocess.PIPE)
    assert run.stdin is not None
    run.stdin.write("first\n# a comment\n\nsecond\n")
    run.stdin.flush()
    until_asked(server, 2, run)
    run.stdin.write("\0\nthird")
    output, errors = finish(run, code=0)
    summary = adds_up(output, targets=None, written=3)
    assert summary["targets"]["bad_lines"] == 1
    assert "standard input:5  has a control character" in errors
    assert {row["target"] for row in lines(tmp_path / "out.jsonl")} == {"first", "second", "third"}


def test_bad_line_of_a_pipe_ends_a_strict_run(configure, tmp_path):
    file = configure(rest=OUTPUT, targets='[targets]\nfile = "-"\nformat = "jsonl"\nstrict = true')
    run = start("run", file, "--json", stdin=subprocess.PIPE)
    output, errors = run.communicate('"first"\n[3]\n"third"\n', timeout=30)
    assert run.returncode == 1
    adds_up(output, targets=None, written=1)
    assert "tidegate: stopped: standard input: line 2 its 'target' is no text" in errors


def test_most_urgent_target_goes_first_wherever_it_stands(configure, tmp_path, server):
    targets = '[targets]\nfile = "ids.csv"\noptions = ["priority"]'
    file = configure(backend='quota = "100/s leaky"\nconcurrency = 1', rest=OUTPUT, targets=targets)
    (tmp_path / "ids.csv").write_text("target,priority\n" + "".join(f"{number},{200 - number}\n" for number in range(80)))
    finish(start("run", file), code=0)
    assert server.asked == [str(number) for number in reversed(range(80))]


def test_limits_by_scope_count_what_lines_say(configure, tmp_path):
    """Each user has a limit of one in ten minutes, and the backend's one host one of its own."""
    targets = '[targets]\nfile = "ids.csv"\nscopes = ["user"]'
    backend = 'quota = ["1/10min per user", "50/s per host"]'
    file = configure(backend=backend, rest=f"[run]\ntimeout = '3s'\n{OUTPUT}", targets=targets)
    (tmp_path / "ids.csv").write_text("target,user\n" + "".join(f"{number},{number % 7}\n" for number in range(10)))
    output, _ = finish(start("run", file, "--json"), code=1)
    summary = adds_up(output, targets=10, written=10)
    assert summary["requests"]["collected"] == 7
    assert summary["requests"]["expired"] == 3
    assert summary["backends"]["api"]["sent"] == 7


def test_interrupt_ends_waiting_for_a_pipe(configure, server, tmp_path):
    run = start("run", configure(rest=OUTPUT), "--targets", "-", "--json", stdin=subprocess.PIPE)
    assert run.stdin is not None
    run.stdin.write("first\n")
    run.stdin.flush()
    until_asked(server, 1, run)
    os.killpg(run.pid, signal.SIGINT)
    # Its standard input stays open.
    assert run.wait(timeout=10) == 130
    assert run.stdout is not None
    adds_up(run.stdout.read(), targets=None, written=len(lines(tmp_path / "out.jsonl")))
    run.communicate()


def test_reader_that_leaves_ends_the_run(configure, server):
    file = configure(backend='quota = "200/s"', rest="", targets=many(2000))
    run = start("run", file)
    assert run.stdout is not None
    assert json.loads(run.stdout.readline())["ok"]
    run.stdout.close()
    assert run.stderr is not None
    errors = run.stderr.read()
    assert run.wait(timeout=20) == 1
    assert "standard output: Broken pipe" in errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    run.stderr.close()


def test_keys_come_from_the_environment_and_are_never_shown(configure, tmp_path):
    backend = 'quota = "50/s burst 5"\naccounts = ["${KEY_1}", "${KEY_2}"]\nheaders = { Authorization = "Bearer ${account}" }'
    file = configure(backend=backend, rest=OUTPUT, targets=many(20))
    _, errors = finish(start("run", file), code=2)
    assert f'{file}:5  [[backend]] "api" accounts[0]: the variable KEY_1 is not set; set it: export KEY_1=...' in errors
    secrets = {"KEY_1": "sesame-1", "KEY_2": "sesame-2"}
    printed = "".join(finish(start("run", file, "--json", env={**os.environ, **secrets}), code=0))
    printed += "".join(finish(start("check", file, env={**os.environ, **secrets}), code=0))
    assert "sesame" not in printed
    assert {row["value"]["key"] for row in lines(tmp_path / "out.jsonl")} == {"Bearer sesame-1", "Bearer sesame-2"}


def test_terminal_shows_one_line_that_is_redrawn(configure):
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"TERM": "xterm"}
    run = start("run", configure(rest=OUTPUT, targets=many(40)), stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # Linux says so when the last writer has gone
        pass
    os.close(ours)
    assert run.wait(timeout=30) == 0
    progress = output.split(b"\n")[0]
    assert progress.count(b"\r") > 2
    assert b"40/40" in progress
    assert b"waiting: api limit" in progress


def test_quiet_run_says_nothing(configure):
    assert finish(start("run", configure(rest=OUTPUT), "--quiet"), code=0) == ("", "")


def test_quiet_run_says_what_failed(configure):
    file = configure(path="missing", rest=OUTPUT, targets=many(1))
    _, errors = finish(start("run", file, "--quiet"), code=1)
    assert errors == "tidegate: 1 of 1 request not collected: 1 status 404\n"


def test_progress_can_be_turned_off(configure):
    _, errors = finish(start("run", configure(rest=OUTPUT), env={**os.environ, "TIDEGATE_PROGRESS": "0"}), code=0)
    assert "/s" not in errors
    assert "2 collected" in errors


def test_what_init_writes_passes_check_without_network_and_variables(tmp_path):
    environment = {"PATH": os.environ["PATH"]}
    finish(start("init", cwd=tmp_path, env=environment), code=0)
    output, _ = finish(start("check", cwd=tmp_path, env=environment), code=0)
    assert "tidegate.toml: can be run" in output
    assert "60/h (window, to begin with)" in output
    _, errors = finish(start("init", cwd=tmp_path, env=environment), code=2)
    assert errors == "tidegate.toml: exists, and is left as it is; give another name: tidegate init NAME.toml\n"


EVERY_HALF_SECOND = f"[run]\ninterval = '500ms'\nretry = {{ attempts = 1 }}\n{OUTPUT}"


def test_targets_are_collected_again_and_again(configure, server, tmp_path):
    file = configure(backend='quota = "50/s"', rest=EVERY_HALF_SECOND, targets=many(5))
    run = start("run", file, "--json")
    until_asked(server, 20, run)
    os.killpg(run.pid, signal.SIGINT)
    output, errors = finish(run, code=130)
    rows = lines(tmp_path / "out.jsonl")
    summary = adds_up(output, targets=None, written=len(rows))
    polls = summary["polls"]
    assert polls["balanced"]
    assert polls["targets"] == 5
    assert polls["delivered"] == len(rows)
    assert re.search(r"polls     \d+ planned, 0 coalesced, 0 skipped; ", errors)
    for target in {row["target"] for row in rows}:
        planned = [datetime.fromisoformat(row["scheduled_for"]) for row in rows if row["target"] == target]
        steps = [(later - earlier).total_seconds() for earlier, later in pairwise(planned)]
        assert len(steps) >= 2
        assert steps == pytest.approx([0.5] * len(steps), abs=0.01)  # without drift
    late = [(datetime.fromisoformat(row["at"]) - datetime.fromisoformat(row["scheduled_for"])).total_seconds() for row in rows]
    assert min(late) > 0


def test_second_interrupt_stops_a_collection_now(configure, server, tmp_path):
    file = configure(path="slow", backend='quota = "100/s"', rest=EVERY_HALF_SECOND.replace("500ms", "100ms"), targets=many(5))
    run = start("run", file, "--json")
    until_asked(server, 8, run)
    for _ in range(2):
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.1)
    output, _ = finish(run, code=130, timeout=5)
    adds_up(output, targets=None, written=len(lines(tmp_path / "out.jsonl")))


def test_collection_outlives_a_server_that_dies_and_returns(configure, server, tmp_path):
    run = start("run", configure(backend='quota = "50/s"', rest=EVERY_HALF_SECOND, targets=many(5)), "--json")
    until_asked(server, 8, run)
    server.die()
    time.sleep(1)
    server.start()
    until_asked(server, len(server.asked) + 8, run)
    run.terminate()
    output, _ = finish(run, code=130)
    rows = lines(tmp_path / "out.jsonl")
    summary = adds_up(output, targets=None, written=len(rows))
    assert summary["polls"]["balanced"]
    assert summary["requests"]["failed"] == summary["polls"]["failed"] > 0
    ended = [row["ok"] for row in rows]
    assert ended[0]
    assert not all(ended)
    assert ended[-1]


WITHOUT_AIOHTTP = [sys.executable, "-c", "import sys; sys.modules['aiohttp'] = None; from tidegate._cli import main; main()"]


def test_without_aiohttp_plans_are_checked_and_runs_are_told_what_is_missing(configure):
    file = configure(rest=OUTPUT)
    checked = subprocess.run([*WITHOUT_AIOHTTP, "check", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "can be run" in checked.stdout
    run = subprocess.run([*WITHOUT_AIOHTTP, "run", file], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == f"{file}:1  aiohttp, which sends over HTTP, is not installed: pip install 'aiohttp>=3.12'\n"


def test_slow_disk_slows_the_run_and_loses_nothing(configure, server, tmp_path):
    """A pipe that is read slowly: what waits to be written is bounded, and so is what is asked for meanwhile."""
    file = configure(backend='quota = "100k/s"\nconcurrency = 50', rest='[output]\nfile = "pipe"', targets=many(3000))
    os.mkfifo(tmp_path / "pipe")
    run = start("run", file)
    with (tmp_path / "pipe").open("rb") as pipe:
        time.sleep(2)
        asked = len(server.asked)
        assert asked < 3000
        data = pipe.read()
    finish(run, code=0)
    assert len(data.splitlines()) == 3000
    assert data.endswith(b"\n")
