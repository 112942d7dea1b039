"""`tidegate demo` as its user meets it: a process, its output, its exit code."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

DEMO = [sys.executable, "-m", "tidegate", "demo"]


def start(*options: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """The demo, in its own process group as a shell would start it, on a terminal as a person has it."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"TERM": "xterm"}
    return subprocess.Popen(
        [*DEMO, *options], stdout=stdout, stderr=subprocess.STDOUT, text=True, process_group=0, env=environment
    )


def interrupted(demo: subprocess.Popen[str], times: int) -> tuple[str, float]:
    """What a demo prints that gets Ctrl-C while it runs, and the seconds it takes from then."""
    assert demo.stdout is not None
    first = demo.stdout.readline()
    time.sleep(1)
    at = time.monotonic()
    for _ in range(times):
        os.killpg(demo.pid, signal.SIGINT)
        time.sleep(0.1)
    rest, _ = demo.communicate(timeout=30)
    return first + rest, time.monotonic() - at


def test_short_demo_collects_everything():
    demo = start("--targets", "40")
    output, _ = demo.communicate(timeout=30)
    assert demo.returncode == 0, output
    assert "ledger   40 accepted = 40 delivered + 0 dead + 0 expired + 0 cancelled + 0 pending" in output
    assert "not as promised" not in output


@pytest.mark.slow
def test_whole_demo_is_as_promised():
    demo = start()
    output, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, output
    assert output.count("/500") >= 5  # a line each five seconds


def test_interrupt_finishes_what_runs():
    demo = start()
    output, seconds = interrupted(demo, times=1)
    assert demo.returncode == 130, output
    assert "Ctrl-C again stops now" in output
    ledger = dict(re.findall(r"(\d+) (\w+)", output[output.index("ledger") :])[i][::-1] for i in range(6))
    assert int(ledger["pending"]) == 0
    assert int(ledger["accepted"]) == sum(int(ledger[end]) for end in ("delivered", "dead", "expired", "cancelled"))
    assert seconds < 15


def test_second_interrupt_stops_now():
    demo = start()
    output, seconds = interrupted(demo, times=2)
    assert demo.returncode == 130, output
    assert seconds < 5
    assert "Traceback" not in output


def test_interrupt_while_it_starts_is_an_interrupt_too():
    demo = start()
    time.sleep(0.15)
    os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=30)
    # Otherwise the interpreter had not got to us.
    assert demo.returncode in {130, -signal.SIGINT} or (demo.returncode == 1 and "_cli" not in output), output


def test_terminal_shows_one_line_that_is_redrawn():
    ours, theirs = pty.openpty()
    demo = start("--targets", "40", stdout=theirs)
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # Linux says so when the last writer has gone
        pass
    os.close(ours)
    assert demo.wait(timeout=30) == 0
    progress = output.split(b"\n")[0]
    assert progress.count(b"\r") > 2
    assert b"40/40" in progress


def test_usage_error_is_2_and_version_is_known():
    usage = subprocess.run([*DEMO, "--targets", "none"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    version = subprocess.run([sys.executable, "-m", "tidegate", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"tidegate, version \d+\.\d+.*\n", version.stdout)
