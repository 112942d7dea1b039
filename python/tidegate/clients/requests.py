"""Limits for requests: an adapter, mounted for the URLs that it is for.

    session = requests.Session()
    session.mount("https://api.example/", Adapter("10/s"))

The session calls its adapter for each message that it sends, and the adapter makes the retries of `max_retries` itself: so each
redirect hop and each retry takes a permit, and gives it back when its body has ended or was closed. With `stream=True` that is
up to you, as for the connection. What waits for a permit does not count against `timeout`; it counts in `response.elapsed`.

A 429 is your response, as without limits; but the limit is closed, and the next request waits as long as the server says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidegate import Priority
from tidegate.clients._body import answered
from tidegate.clients._missing import missing
from tidegate.clients._permit import BlockingPermits, Source

try:
    from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
    from requests.exceptions import RequestException, RetryError, UnrewindableBodyError
    from requests.models import PreparedRequest, Response
    from requests.utils import rewind_body
    from urllib3.exceptions import HTTPError, MaxRetryError
    from urllib3.util.retry import Retry
except ModuleNotFoundError:
    raise missing("requests", "requests>=2.32") from None

__all__ = ["Adapter"]


class Adapter(HTTPAdapter):
    """An adapter for `requests.Session.mount` that sends as the limits allow. Use the session in any threads.

    Args:
        source: What the server allows: a text such as `"10/s burst 20"`, a `Limit` or a `BackendQuota`; or a running
            `RateLimitScheduler`, to share the limits of one of its backends.
        backend: The name of that backend. With a quota, what the log calls it.
        priority: Of each message, 0 (most urgent) to 255.
        scopes: As of a request. Limits `per host` count by the host of each URL.
        max_retries: As for `requests.adapters.HTTPAdapter`: a number, or a `urllib3.Retry`. Each retry is charged.
        pool_maxsize: Connections that are kept; by default as many as the quota's concurrency.
        **options: As for `HTTPAdapter`.

    Raises:
        ConfigError: An argument is out of range.

    Cancellation: Ctrl-C in the main thread ends a wait, which is not charged then.

    Example:
        >>> import requests
        >>> session = requests.Session()
        >>> session.mount("https://api.example/", Adapter("10/s burst 20"))
    """

    def __init__(
        self,
        source: Source,
        /,
        backend: str | None = None,
        *,
        priority: int = Priority.NORMAL,
        scopes: Mapping[str, str] | None = None,
        max_retries: int | Retry = 0,
        pool_maxsize: int | None = None,
        **options: Any,
    ) -> None:
        self._permits = BlockingPermits(source, backend, priority, scopes)
        self._permits.check_pool(pool_maxsize, "pool_maxsize")
        size = pool_maxsize or self._permits.concurrency or DEFAULT_POOLSIZE
        super().__init__(max_retries=max_retries, pool_maxsize=size, **options)
        self._retries, self.max_retries = self.max_retries, Retry(0, read=False)  # urllib3 makes none: nobody would see them

    def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
        """Send one message, and its retries, when the limits allow them."""
        retries = self._retries
        while True:
            try:
                response = self._send(request, *arguments, **options)
            except RequestException as error:
                following = _after_error(retries, request, error)
                if following is None:
                    raise
                retries = following
                retries.sleep()
            else:
                following = _after_response(retries, request, response)
                if following is None:
                    return response
                retries = following
                response.raw.drain_conn()
                response.close()
                retries.sleep(response.raw)

    def close(self) -> None:
        """Close the connections. The session calls it when it is closed."""
        super().close()
        self._permits.close()

    def _send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
        permit = self._permits.take(str(request.url))
        try:
            response = super().send(request, *arguments, **options)
        except BaseException as error:
            permit.release(error)
            raise
        answered(response, permit)
        return response


def _after_error(retries: Retry, request: PreparedRequest, error: RequestException) -> Retry | None:
    """What is left of the retries; None when there is none for this."""
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    if not isinstance(cause, HTTPError):
        return None
    try:
        following = retries.increment(request.method, request.url, error=cause)
    except HTTPError:
        return None
    return following if _rewound(request) else None


def _after_response(retries: Retry, request: PreparedRequest, response: Response) -> Retry | None:
    """What is left of the retries; None when this is the response.

    Raises:
        RetryError: None is left, and the user wants an error then.
    """
    if not retries.is_retry(str(request.method), response.status_code, "Retry-After" in response.headers):
        return None
    try:
        following = retries.increment(request.method, request.url, response=response.raw)
    except MaxRetryError as error:
        if not retries.raise_on_status:
            return None
        response.close()
        raise RetryError(error, request=request) from error
    return following if _rewound(request) else None


def _rewound(request: PreparedRequest) -> bool:
    """Whether the body can be sent once more; then it can be read from its beginning."""
    if request.body is None or isinstance(request.body, bytes | str):
        return True
    if not isinstance(request._body_position, int):  # noqa: SLF001 - a generator, or a file that does not say where it stands
        return False
    try:
        rewind_body(request)
    except UnrewindableBodyError:
        return False
    return True
