"""What every test gets: both event loops, hypothesis profiles, and the rule for tests that need a server from Debian.

Async tests need no marker and run twice, on asyncio and on uvloop; `@pytest.mark.asyncio(loop_factories=["asyncio"])` runs one
on asyncio alone.
"""

import asyncio
import gc
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping

import hypothesis
import pytest

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None

# Debian keeps servers in folders that are not on the PATH of every user.
SERVER_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
PACKAGES = {"haproxy": "haproxy", "nginx": "nginx-light", "redis-server": "redis-server"}

# No deadline: on a busy machine wall-clock time is a matter of luck. `quick` repeats the same examples, so that `make test`
# fails only for what was changed; `prove` searches.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=50, stateful_step_count=30, derandomize=True)
hypothesis.settings.register_profile(
    "prove",
    deadline=None,
    max_examples=2000,
    stateful_step_count=100,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("quick")  # --hypothesis-profile=prove is read later and wins


def pytest_asyncio_loop_factories(
    config: pytest.Config,
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each async test on every event loop that is supported here."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip an e2e test whose server is not installed; where CI=true that is a failure."""
    for mark in item.iter_markers("e2e"):
        for server in mark.args or ("nginx",):
            if shutil.which(server, path=SERVER_PATH) is None:
                reason = f"{server} is not installed (Debian: apt-get install {PACKAGES.get(server, server)})"
                if os.environ.get("CI", "").lower() == "true":
                    pytest.fail(reason, pytrace=False)
                pytest.skip(reason)


@pytest.fixture(scope="session")
def find_server() -> Callable[[str], str]:
    """The path of a server's program, also where PATH does not lead."""

    def find(server: str) -> str:
        path = shutil.which(server, path=SERVER_PATH)
        assert path is not None, f"mark the test with e2e({server!r})"
        return path

    return find


@pytest.fixture
async def quiet(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Fail for what a loop only logs: exceptions that were never retrieved, tasks destroyed while pending, errors of ours."""
    complaints: list[Mapping[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    gc.freeze()  # what was there before is not looked through again
    yield
    gc.collect()
    gc.unfreeze()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not complaints
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors
