"""What a user's own tests of the old scheduler were: the module under test, and for what takes minutes, virtual time.

`TIDEGATE_DROPIN_UNDER_TEST=plain` runs them on the scheduler that `tidegate.dropin` replaces, as bench/plain_scheduler.py has it.
All but those of its defects, in test_defects.py, pass there.
"""

import importlib
import os
import time
from types import SimpleNamespace

import pytest

from tidegate.testing import ManualClock

PLAIN = os.environ.get("TIDEGATE_DROPIN_UNDER_TEST") == "plain"


@pytest.fixture(scope="session")
def dropin():
    """The module under test."""
    if PLAIN:
        return importlib.import_module("bench.plain_scheduler")
    return importlib.import_module("tidegate.dropin")


class Virtual:
    """A clock, and schedulers that run on it."""

    def __init__(self, dropin):
        self.dropin = dropin
        self.clock = ManualClock()

    def scheduler(self, manager, storage, quotas=None):
        options = {} if PLAIN else {"clock": self.clock}
        return self.dropin.RateLimitScheduler(manager, storage, quotas, **options)


@pytest.fixture
def virtual(dropin, monkeypatch):
    """Virtual time. The plain one has none of its own: its wall clock and its sleeps are replaced."""
    virtual = Virtual(dropin)
    if PLAIN:
        wall = SimpleNamespace(time=lambda: time.time() + virtual.clock.time())
        monkeypatch.setattr(dropin, "time", wall)
        monkeypatch.setattr(dropin, "sleep", virtual.clock.sleep)
    return virtual
