"""For tests of your own pipelines: virtual time."""

from tidegate._clock import ManualClock

__all__ = ["ManualClock"]

ManualClock.__module__ = "tidegate.testing"
