"""Event loops for who has none: uvloop where it is installed."""

import asyncio


def runner() -> asyncio.Runner:
    """What runs a coroutine in this thread, on a loop of its own."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
