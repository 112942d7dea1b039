"""What a bug of ours does to its users: it is said, and nobody waits for ever."""

import pytest

from tidegate import Backend, BackendQuota, InternalError, Retry, _core


async def handler(request):
    return request.target


async def test_after_a_panic_in_the_engine_everybody_is_told():
    """A panic under the lock ends every pending request with an error that asks for a report, and every later call likewise."""
    core = _core.Core(10, "strict", 0, Retry(), None)
    core.add_backend(Backend("api", handler, BackendQuota("1/s")), handler)
    (ticket,) = core.submit(["target"], core.terms(128, None, 1, None))
    nobody = 99
    with pytest.raises(BaseException, match="index out of bounds") as panic:
        core.take(nobody)
    assert not isinstance(panic.value, Exception)
    with pytest.raises(InternalError, match="please report"):
        core.ledger()
    core.give_up_if_broken()
    with pytest.raises(InternalError, match="'target'"):
        await ticket
