"""`HttpBackend` against a server of aiohttp: what is charged, what closes a limit, and what never shows."""

import asyncio
import logging
import socket
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from aiohttp import web

from tidegate import BackendQuota, DeadlineExceededError, RateLimitScheduler, RequestFailedError, Retry
from tidegate.backends.http import HttpBackend, HttpError, HttpReply, HttpRequestError, HttpStatusError

Serve = Callable[..., Awaitable[str]]


def used(scheduler: RateLimitScheduler, backend: str = "web") -> int:
    """What a backend's only limit counts."""
    return scheduler.snapshot().backends[backend].limits[0].used


async def failure(scheduler: RateLimitScheduler, target: object) -> BaseException | None:
    """The handler's exception behind a request that fails."""
    with pytest.raises(RequestFailedError) as failed:
        await scheduler.fetch(target)
    return failed.value.__cause__


# ---- Replies


async def test_reply_holds_what_the_server_sent(serve: Serve):
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="grüezi", charset="latin-1", headers={"X-Answer": "42"})

    url = await serve(hello)
    async with RateLimitScheduler([HttpBackend("web", url)]) as scheduler:
        value = (await scheduler.fetch("hello?to=you")).value
    assert isinstance(value, HttpReply)
    assert (value.status, value.text, value.body) == (200, "grüezi", "grüezi".encode("latin-1"))
    assert value.headers["x-answer"] == "42"
    assert value.url == f"{url}hello?to=you"
    assert repr(value) == "HttpReply(status=200)"


@pytest.mark.parametrize("target", ["a/b", "a+b", "a b", "ü", "a%2Fb", "#x?&=1", "..hidden", 7, "{target}"])
async def test_template_takes_any_text_and_changes_nothing_else(target: object, serve: Serve):
    async def echo(request: web.Request) -> web.Response:
        return web.json_response([request.match_info["path"], dict(request.query)])

    url = await serve(echo)
    backend = HttpBackend("web", f"{url}users/{{target}}/posts?by={{target}}&n=1", parse=lambda response: response.json())
    async with RateLimitScheduler([backend]) as scheduler:
        reply = await scheduler.fetch(target)
    assert reply.value == [f"users/{target}/posts", {"by": str(target), "n": "1"}]


async def test_base_resolves_references_within_its_origin(serve: Serve):
    async def path(request: web.Request) -> web.Response:
        return web.Response(text=request.path_qs)

    url = await serve(path)
    backend = HttpBackend("web", f"{url}v1/", parse=lambda response: response.text())
    async with RateLimitScheduler([backend], retry=Retry(attempts=1)) as scheduler:
        for target, expected in {
            "users/7": "/v1/users/7",
            "?page=2": "/v1/?page=2",
            "/v2/users": "/v2/users",
            f"{url}v1/?page=3": "/v1/?page=3",
        }.items():
            assert (await scheduler.fetch(target)).value == expected
        for away in ("http://other.invalid/", "//other.invalid/", "ftp://other.invalid/", url.replace("http:", "https:"), 7):
            assert isinstance(await failure(scheduler, away), HttpRequestError)


async def test_bare_template_takes_whole_urls(serve: Serve):
    async def path(request: web.Request) -> web.Response:
        return web.Response(text=request.path)

    url = await serve(path)
    async with RateLimitScheduler([HttpBackend("web", "{target}")]) as scheduler:
        assert (await scheduler.fetch(f"{url}here")).value.text == "/here"
        assert isinstance(await failure(scheduler, "here"), HttpRequestError)


async def test_parse_may_be_plain_or_async(serve: Serve):
    async def body(request: web.Request) -> web.Response:
        return web.Response(text="12")

    async def number(response: aiohttp.ClientResponse) -> int:
        return int(await response.text())

    url = await serve(body)
    backends = [
        HttpBackend("plain", url, parse=lambda response: response.status),
        HttpBackend("async", url, parse=number),
        HttpBackend("awaitable", url, parse=lambda response: response.text()),
    ]
    async with RateLimitScheduler(backends) as scheduler:
        values = [(await scheduler.fetch("", backends=[backend.name])).value for backend in backends]
    assert values == [200, 12, "12"]


async def test_status_from_400_is_an_error_with_its_body(serve: Serve):
    async def missing(request: web.Request) -> web.Response:
        return web.Response(status=404, text="no such user", headers={"X-Reason": "gone"})

    url = await serve(missing)
    async with RateLimitScheduler([HttpBackend("web", f"{url}?key=k&user={{target}}", "100/min")]) as scheduler:
        error = await failure(scheduler, "x")
        assert used(scheduler) == 1  # never retried
    assert isinstance(error, HttpStatusError)
    assert (error.status, error.body, error.headers["x-reason"]) == (404, b"no such user", "gone")
    assert str(error) == f"GET {url}: status 404"


async def test_failed_server_is_retried(serve: Serve):
    statuses = [500, 502, 200]

    async def recovering(request: web.Request) -> web.Response:
        return web.Response(status=statuses.pop(0))

    backend = HttpBackend("web", await serve(recovering))
    async with RateLimitScheduler([backend], retry=Retry(base=0.001)) as scheduler:
        reply = await scheduler.fetch("")
    assert reply.attempts == 3
    assert not statuses


# ---- What is charged


async def hop(request: web.Request) -> web.Response:
    """`/hop?to=...` redirects there, with the status that is asked for."""
    return web.Response(status=int(request.query.get("status", "302")), headers={"Location": request.query["to"]})


async def answer(request: web.Request) -> web.Response:
    """What arrived, as JSON."""
    return web.json_response({"method": request.method, "headers": dict(request.headers)})


async def test_each_redirect_hop_is_charged(serve: Serve):
    arrived = []

    async def count(request: web.Request) -> web.Response:
        arrived.append(asyncio.get_running_loop().time())
        left = int(request.query["left"])
        return web.Response(status=302, headers={"Location": f"/?left={left - 1}"}) if left else web.Response(text="there")

    async with RateLimitScheduler([HttpBackend("web", await serve(count), "2/400ms")]) as scheduler:
        assert (await scheduler.fetch("?left=2")).value.text == "there"
        assert len(arrived) == 3
        assert arrived[2] - arrived[0] >= 0.4
        assert used(scheduler) == 1  # of the last window


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_redirect_changes_the_method_by_rfc_9110(method: str, status: int, serve: Serve):
    arrived = []

    async def there(request: web.Request) -> web.Response:
        arrived.append(request.method)
        return web.Response()

    url = await serve(hop=hop, there=there)
    async with RateLimitScheduler([HttpBackend("web", url, method=method)]) as scheduler:
        await scheduler.fetch(f"hop?to=/there&status={status}")
    becomes_get = (status == 303 and method != "HEAD") or (status in {301, 302} and method == "POST")
    assert arrived == ["GET" if becomes_get else method]


async def test_redirect_to_another_origin_carries_no_secret(serve: Serve):
    here, there = await serve(hop=hop, answer=answer), await serve(answer)
    headers = {"Authorization": "Bearer s", "Cookie": "session=s", "X-Api-Key": "s", "Accept": "text/plain"}
    backend = HttpBackend("web", here, headers=headers, parse=lambda response: response.json())
    async with RateLimitScheduler([backend]) as scheduler:
        same = (await scheduler.fetch("hop?to=/answer")).value["headers"]
        other = (await scheduler.fetch(f"hop?to={there}")).value["headers"]
    assert {name: same.get(name) for name in headers} == headers
    assert {name: other[name] for name in headers if name in other} == {"Accept": "text/plain"}


async def test_redirects_without_end_fail_once(serve: Serve):
    arrived = []

    async def ring(request: web.Request) -> web.Response:
        arrived.append(request.path)
        return web.Response(status=302, headers={"Location": request.path})

    url = await serve(ring)
    async with RateLimitScheduler([HttpBackend("web", url, "100/min", max_redirects=3)]) as scheduler:
        error = await failure(scheduler, "ring?key=s")
        assert used(scheduler) == 4
    assert isinstance(error, HttpRequestError)
    assert str(error) == f"GET {url}ring: redirected more than 3 times"
    assert len(arrived) == 4


async def test_without_redirects_the_redirect_is_the_reply(serve: Serve):
    url = await serve(hop=hop)
    async with RateLimitScheduler([HttpBackend("web", url, max_redirects=0)]) as scheduler:
        value = (await scheduler.fetch("hop?to=/there")).value
    assert (value.status, value.headers["Location"]) == (302, "/there")


@pytest.mark.parametrize("location", ["ftp://other.invalid/?key=s", "http://[/?key=s", "http:///?key=s"])
async def test_redirect_to_nowhere_fails_once(location: str, serve: Serve):
    async def away(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    async with RateLimitScheduler([HttpBackend("web", await serve(away), "100/min")]) as scheduler:
        error = await failure(scheduler, "")
        assert used(scheduler) == 1
    assert isinstance(error, HttpRequestError)
    assert "key" not in str(error)


async def test_silent_second_sending_is_charged(serve: Serve):
    """What met a connection that the server closed is sent again by aiohttp itself; with room for one message that waits."""
    arrived = []

    async def closing(request: web.Request) -> web.Response:
        arrived.append(asyncio.get_running_loop().time())
        if len(arrived) == 1:
            assert request.transport is not None
            request.transport.abort()
        return web.Response()

    async with RateLimitScheduler([HttpBackend("web", await serve(closing), "1/200ms")]) as scheduler:
        reply = await scheduler.fetch("")
    assert reply.attempts == 1
    assert len(arrived) == 2
    assert arrived[1] - arrived[0] >= 0.2


async def test_clients_own_middleware_is_kept_and_charged(serve: Serve):
    async def twice(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        (await send(request)).release()
        request.headers["X-Second"] = "yes"
        return await send(request)

    url = await serve(answer)
    async with aiohttp.ClientSession(middlewares=[twice]) as client:
        backend = HttpBackend("web", url, "100/min", client=client, parse=lambda response: response.json())
        async with RateLimitScheduler([backend]) as scheduler:
            reply = await scheduler.fetch("")
            assert used(scheduler) == 2
    assert reply.value["headers"]["X-Second"] == "yes"


async def test_concurrency_is_held_until_the_body_ends(serve: Serve):
    arrived = []
    half_sent, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        arrived.append(request.path)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first half, ")
        half_sent.set()
        await may_end.wait()
        await response.write(b"second half")
        return response

    quota = BackendQuota(concurrency=1)
    async with RateLimitScheduler([HttpBackend("web", await serve(slowly), quota)]) as scheduler:
        first = await scheduler.submit("first")
        second = await scheduler.submit("second")
        await half_sent.wait()
        await asyncio.sleep(0.1)
        assert arrived == ["/first"]
        may_end.set()
        assert (await first).value.body == b"first half, second half"
        await second
    assert arrived == ["/first", "/second"]


# ---- What closes a limit


def as_seconds() -> str:
    return "1"


def as_date() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("retry_after", [as_seconds, as_date])
async def test_retry_after_closes_the_limit_and_nothing_is_lost(status: int, retry_after: Callable[[], str], serve: Serve):
    loop = asyncio.get_running_loop()
    arrived = []
    rejected_at = None

    async def strict(request: web.Request) -> web.Response:
        nonlocal rejected_at
        arrived.append(loop.time())
        if len(arrived) == 3:
            rejected_at = loop.time()
            return web.Response(status=status, headers={"Retry-After": retry_after()})
        return web.Response(text=request.path)

    backend = HttpBackend("web", await serve(strict), BackendQuota("100/s", concurrency=1), parse=lambda r: r.text())
    async with RateLimitScheduler([backend]) as scheduler:
        replies = [reply async for reply in scheduler.map(str(n) for n in range(10))]
        ledger = scheduler.ledger()
    assert sorted(reply.value for reply in replies) == [f"/{n}" for n in range(10)]
    assert all(reply.attempts == 1 for reply in replies)
    assert ledger.balanced
    assert ledger.delivered == 10
    assert len(arrived) == 11
    assert rejected_at is not None
    assert arrived[3] - rejected_at >= 0.99  # a date has whole seconds


LONG = ["3600", "1000000000000", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 9999999999 23:59:59 GMT"]
SHORT = {
    "zero": "0",
    "negative": "-1",
    "no number": "NaN",
    "overflow": "1e309",
    "empty": "",
    "not ASCII": "١٢",
    "long": "9" * 4000,
    "past": "Sun, 06 Nov 1994 08:49:37 GMT",
    "zone -0000": "Sun, 06 Nov 1994 08:49:37 -0000",
    "no zone": "Sun, 06 Nov 1994 08:49:37",
    "local zone": "Sun, 06 Nov 1994 08:49:37 CEST",
    "RFC 850": "Sunday, 06-Nov-94 08:49:37 GMT",
    "asctime": "Sun Nov  6 08:49:37 1994",
}


async def reject_once(serve: Serve, *headers: tuple[str, str]) -> str:
    """A server that answers its first request with 429 and these headers."""
    arrived = []

    async def strict(request: web.Request) -> web.Response:
        arrived.append(request.path)
        response = web.Response(status=429 if len(arrived) == 1 else 200)
        if len(arrived) == 1:
            for name, value in headers:
                response.headers.add(name, value)
        return response

    return await serve(strict)


@pytest.mark.parametrize("value", SHORT.values(), ids=SHORT)
async def test_hostile_retry_after_is_harmless(value: str, serve: Serve):
    url = await reject_once(serve, ("Retry-After", value))
    async with RateLimitScheduler([HttpBackend("web", url, "50/100ms")]) as scheduler:
        assert (await scheduler.fetch("")).attempts == 1
        assert scheduler.ledger().delivered == 1


@pytest.mark.parametrize("value", LONG)
async def test_long_retry_after_waits_and_hurts_nobody_else(value: str, serve: Serve):
    url = await reject_once(serve, ("Retry-After", value))
    backends = [HttpBackend("web", url, "50/100ms"), HttpBackend("other", url, "50/100ms")]
    async with RateLimitScheduler(backends) as scheduler:
        with pytest.raises(DeadlineExceededError):
            await scheduler.fetch("", backends=["web"], timeout=0.3)
        assert (await scheduler.fetch("", backends=["other"])).ok
        ledger = scheduler.ledger()
    assert (ledger.delivered, ledger.expired, ledger.pending) == (1, 1, 0)


async def test_conflicting_retry_after_is_harmless(serve: Serve):
    url = await reject_once(serve, ("Retry-After", "0"), ("Retry-After", "soon"))
    async with RateLimitScheduler([HttpBackend("web", url, "50/100ms")]) as scheduler:
        assert (await scheduler.fetch("")).attempts == 1


async def test_header_beyond_the_clients_limit_is_a_failed_attempt(serve: Serve):
    url = await reject_once(serve, ("Retry-After", "9" * 65536))
    async with RateLimitScheduler([HttpBackend("web", url, "50/100ms")], retry=Retry(base=0.001)) as scheduler:
        assert (await scheduler.fetch("")).attempts == 2


# ---- Time-outs and connections


async def test_clients_total_timeout_does_not_count_our_waiting(serve: Serve):
    url = await serve(hop=hop, answer=answer)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.2)) as client:
        async with RateLimitScheduler([HttpBackend("web", url, "1/400ms", client=client)]) as scheduler:
            assert (await scheduler.fetch("hop?to=/answer")).attempts == 1
        assert not client.closed


async def test_attempt_without_an_answer_ends_at_the_backends_timeout(serve: Serve):
    async def silent(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    backend = HttpBackend("web", await serve(silent), timeout=0.1)
    async with RateLimitScheduler([backend], retry=Retry(attempts=2, base=0.001)) as scheduler:
        with pytest.raises(RequestFailedError):
            await scheduler.fetch("")
        assert scheduler.ledger().dead == 1


async def test_refused_connection_is_retried_and_propagates_as_it_is():
    async with RateLimitScheduler([HttpBackend("web", "http://127.0.0.1:1/")], retry=Retry(attempts=2, base=0.001)) as scheduler:
        error = await failure(scheduler, "")
    assert isinstance(error, aiohttp.ClientConnectorError)


async def test_small_pool_is_named_once(serve: Serve, caplog: pytest.LogCaptureFixture):
    url = await serve(answer)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2)) as client:
        backend = HttpBackend("web", url, BackendQuota(concurrency=10), client=client)
        async with RateLimitScheduler([backend]) as scheduler:
            await asyncio.gather(*(scheduler.fetch("") for _ in range(5)))
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "limit=2" in warnings[0]


# ---- Secrets


async def test_secrets_show_nowhere(serve: Serve, caplog: pytest.LogCaptureFixture):
    """A word that stands in every field that may hold a secret is in no `repr`, error, traceback or log line."""
    secret = "canary-7f3a"  # noqa: S105
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html", headers={"Set-Cookie": f"session={secret}"})

    async def broken(request: web.Request) -> web.Response:
        return web.Response(status=500, headers={"X-Debug": secret})

    async def stray(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"ftp://{secret}@host.invalid/?{secret}"})

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    # Connecting to a socket whose queue is full takes until the client's time-out.
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    full = listening.getsockname()
    waiting = [socket.socket() for _ in range(4)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(full)
    hasty = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_connect=0.1))
    url = await serve(page=page, broken=broken, stray=stray, half=half)
    host = url.removeprefix("http://")
    headers = {"X-Api-Key": secret, "Cookie": f"session={secret}"}

    def backend(name: str, base: str, **options: object) -> HttpBackend:
        return HttpBackend(name, base, headers=headers, **options)

    backends = [
        backend("page", f"http://user:{secret}@{host}page?key={secret}&q={{target}}"),
        backend("json", f"http://user:{secret}@{host}page?key={secret}&q={{target}}", parse=lambda response: response.json()),
        backend("broken", f"http://user:{secret}@{host}broken?key={secret}&q={{target}}"),
        backend("stray", f"http://user:{secret}@{host}stray?key={secret}&q={{target}}"),
        backend("half", f"http://user:{secret}@{host}half?key={secret}&q={{target}}"),
        backend("refused", f"http://user:{secret}@127.0.0.1:1/?key={secret}&q={{target}}"),
        backend("away", f"http://user:{secret}@{host}"),
        backend("late", f"http://user:{secret}@{full[0]}:{full[1]}/?key={secret}&q={{target}}", client=hasty),
    ]
    shown = [repr(backend) for backend in backends]
    async with RateLimitScheduler(backends, retry=Retry(attempts=2, base=0.001)) as scheduler:
        for each in backends:
            target = f"http://host.invalid/?{secret}" if each.name == "away" else "x"
            try:
                reply = await scheduler.fetch(target, backends=[each.name])
                shown.append(repr(reply.value))
            except RequestFailedError as error:
                shown += traceback.format_exception(error)
                cause: BaseException | None = error
                while cause is not None:
                    shown += [str(cause), repr(cause)]
                    cause = cause.__cause__ or cause.__context__
        shown.append(repr(scheduler.snapshot()))
        assert scheduler.ledger().dead == len(backends) - 1
    assert any("Connection timeout" in text for text in shown)
    await hasty.close()
    for each in (listening, *waiting):
        each.close()
    shown += caplog.messages
    assert [text for text in shown if secret in text] == []


async def test_error_of_a_wrong_content_type_keeps_its_reason(serve: Serve):
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    url = await serve(page)
    backend = HttpBackend("web", url, parse=lambda response: response.json())
    async with RateLimitScheduler([backend], retry=Retry(attempts=1)) as scheduler:
        error = await failure(scheduler, "")
    assert isinstance(error, HttpError)
    assert "text/html" in str(error)
