"""When the body of a response of urllib3, or of urllib3-future, has ended."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from weakref import ref

from tidegate.clients._permit import Permit


def answered(response: Any, permit: Permit) -> None:
    """Say that a response's headers arrived, and have its permit given back when its body has ended or was closed."""
    permit.answered(response.status_code, response.headers)
    _release_at_end(response.raw, permit)


def _release_at_end(body: Any, permit: Permit) -> None:
    """Have the permit given back when the body gives its connection back or closes it, which happens by these two methods."""
    here = ref(body)  # no circle

    def and_release(end: Callable[[Any], Any]) -> Callable[[], Any]:
        async def finish(ending: Any) -> None:
            try:
                await ending
            finally:
                permit.release()

        def ended() -> Any:
            result = None
            try:
                if (body := here()) is not None:
                    result = end(body)
            finally:
                if not inspect.isawaitable(result):
                    permit.release()
            return finish(result) if inspect.isawaitable(result) else result

        return ended

    for name in ("close", "release_conn"):
        setattr(body, name, and_release(getattr(type(body), name)))
    if body.closed:
        permit.release()
