"""For tests of your own pipelines, in virtual time: a clock that moves when told, strict servers, and backends that ask them.

`RateLimitScheduler(..., clock=clock, seed=1)` takes the same decisions each time.
"""

from tidegate._clock import ManualClock
from tidegate.testing import servers
from tidegate.testing._backend import FakeBackend

__all__ = ["FakeBackend", "ManualClock", "servers"]

for _public in (FakeBackend, ManualClock):
    _public.__module__ = __name__
del _public
