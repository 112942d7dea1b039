"""The real snscrape against servers of our own, whose pages have the shape that it reads from the real services.

Behind nginx, which judges: what `limit_req` allows is kept to the message. Every item comes once, whatever the server does.
"""

import asyncio
import gzip
import json
import logging
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from tidegate import (
    BackendQuota,
    BackendRejectedError,
    RateLimitScheduler,
    RequestFailedError,
    Retry,
)
from tidegate.backends.snscrape import Scrape, ScrapeError, SnscrapeBackend

AGAIN = Retry(attempts=8, base=0.01, cap=0.05, budget=1)
ONCE = Retry(attempts=1)
WHEN = "2023-06-22T10:00:00+00:00"
# So much of each: posts of a channel, toots of a profile, submissions and as many comments of a user, tweets of a user.
MANY = 57


def below(request: web.Request, name: str, most: int = MANY) -> range:
    """Numbers of the posts of one page, the newest first: `name` in the query is what they are below."""
    newest = min(int(request.query.get(name, most + 1)), most + 1) - 1
    return range(newest, max(newest - 20, 0), -1)


# ---- The pages of four services


def telegram_post(channel: str, number: int, text: str) -> str:
    return f"""
        <div class="tgme_widget_message_wrap">
        <div class="tgme_widget_message text_not_supported_wrap js-widget_message" data-post="{channel}/{number}">
          <div class="tgme_widget_message_bubble"><div class="tgme_widget_message_text">{text}</div>
          <div class="tgme_widget_message_footer"><div class="tgme_widget_message_info">
            <a class="tgme_widget_message_date" href="https://t.me/{channel}/{number}"><time datetime="{WHEN}">10:00</time></a>
          </div></div></div>
        </div></div>"""


def telegram(request: web.Request) -> web.Response:
    """A page of a public channel, the oldest post first."""
    channel = request.path.removeprefix("/s/")
    numbers = below(request, "before")
    posts = [telegram_post(channel, number, f"post {number}") for number in reversed(numbers)]
    last = numbers[-1]
    more = f'<a href="/s/{channel}?before={last}" class="tme_messages_more" data-before="{last}"></a>' if last > 1 else ""
    return page(f'<section class="tgme_channel_history">{more}{"".join(posts)}</section>')


def mastodon(request: web.Request) -> web.Response:
    """A page of a profile with replies, the newest toot first."""
    numbers = below(request, "max_id")
    home = "https://mastodon.example/@ada"
    entries = [
        f"""
        <div class="entry"><div class="status"><div class="status__info">
          <a class="status__relative-time u-url u-uid" href="{home}/{n}">
            <data class="dt-published" value="{WHEN}"></data><time class="time-ago"></time></a>
          <a class="status__display-name u-url" href="{home}">
            <div class="status__avatar"><img class="u-photo" src="https://mastodon.example/avatar.png"></div>
            <span class="display-name"><bdi><strong class="display-name__html p-name">Ada</strong></bdi>
              <span class="display-name__account">@ada@mastodon.example</span></span></a></div>
          <div class="status__content"><div class="e-content"><p>toot {n}</p></div></div></div></div>"""
        for n in numbers
    ]
    last = numbers[-1]
    if last > 1:
        older = f"{home}/with_replies?max_id={last}"
        entries.append(f'<div class="entry"><a class="load-more load-gap" href="{older}">Show more</a></div>')
    return page(f'<div class="activity-stream activity-stream--under-tabs">{"".join(entries)}</div>')


def pushshift(request: web.Request) -> web.Response:
    """Submissions or comments of a user, the newest first; one a second, with an id that grows."""
    kind = request.path.rsplit("/", 1)[1]
    found = []
    for n in below(request, "until"):
        each = {"id": f"aa{n:04}", "author": request.query["author"], "created_utc": n, "subreddit": "science"}
        each["permalink"] = f"/r/science/{kind}/{each['id']}/"
        if kind == "submission":
            each |= {"title": f"submission {n}", "selftext": "", "url": f"https://science.example/{n}"}
        else:
            each |= {"body": f"comment {n}", "parent_id": "t3_aa0000"}
        found.append(each)
    return web.json_response({"data": found, "error": None})


def twitter(request: web.Request) -> web.Response:
    """The page of a user, a guest token, and what a search for a user's tweets finds."""
    if request.path == "/1.1/guest/activate.json":
        return web.json_response({"guest_token": "1234567890"})
    if not request.path.startswith("/i/api/graphql/"):
        return page("<div id=react-root></div>")
    if request.headers.get("x-guest-token") != "1234567890":
        return web.json_response({"errors": [{"message": "Bad guest token"}]}, status=403)
    variables = json.loads(request.query["variables"])
    position = int(variables.get("cursor", MANY + 1))
    numbers = range(position - 1, max(position - 21, 0), -1)
    user = {
        "screen_name": variables["rawQuery"].removeprefix("from:"),
        "name": "Ada",
        "description": "counts",
        "entities": {"description": {"urls": []}},
        "created_at": "Thu Jun 22 10:00:00 +0000 2023",
        "location": "",
        "profile_image_url_https": "https://pbs.example/ada.png",
        **dict.fromkeys(
            ("followers_count", "friends_count", "statuses_count", "favourites_count", "listed_count", "media_count"), 0
        ),
    }
    person = {
        "__typename": "User",
        "rest_id": "7",
        "is_blue_verified": False,
        "affiliates_highlighted_label": {},
        "legacy": user,
    }
    entries: list[object] = [
        {
            "entryId": f"tweet-{n}",
            "content": {
                "entryType": "TimelineTimelineItem",
                "itemContent": {
                    "itemType": "TimelineTweet",
                    "tweet_results": {
                        "result": {
                            "__typename": "Tweet",
                            "rest_id": str(n),
                            "core": {"user_results": {"result": person}},
                            "legacy": {
                                "id_str": str(n),
                                "user_id_str": "7",
                                "conversation_id_str": str(n),
                                "full_text": f"tweet {n}",
                                "entities": {},
                                "created_at": "Thu Jun 22 10:00:00 +0000 2023",
                                "lang": "en",
                                **dict.fromkeys(("reply_count", "retweet_count", "favorite_count", "quote_count"), 0),
                            },
                        }
                    },
                },
            },
        }
        for n in numbers
    ]
    cursor = str(numbers[-1] if numbers else position)
    entries.append({"entryId": "cursor-bottom-0", "content": {"entryType": "TimelineTimelineCursor", "value": cursor}})
    timeline = {"instructions": [{"type": "TimelineAddEntries", "entries": entries}]}
    return web.json_response({"data": {"search_by_raw_query": {"search_timeline": {"timeline": timeline}}}})


def page(body: str) -> web.Response:
    return web.Response(text=f"<!DOCTYPE html><html><head></head><body>{body}</body></html>", content_type="text/html")


PAGES = {"/s/": telegram, "/@": mastodon, "/reddit/": pushshift}


class Service:
    """All of them on one server, which may do otherwise at its n-th message, from 1, and counts what it answers."""

    def __init__(self) -> None:
        self.faults: dict[int, Callable[[web.Request], object]] = {}
        self.statuses: list[int] = []
        self.asked: list[str] = []
        self.slow = 0.0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        fault = self.faults.get(len(self.asked))
        if self.slow:
            await asyncio.sleep(self.slow)
        if fault is not None:
            response = fault(request)
            response = await response if asyncio.iscoroutine(response) else response
        else:
            response = next((make for start, make in PAGES.items() if request.path.startswith(start)), twitter)(request)
        self.statuses.append(response.status)
        return response


def status(code: int, **headers: str) -> Callable[[web.Request], object]:
    """A fault: nothing but a status."""
    return lambda _: web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})


async def reset(request: web.Request) -> web.Response:
    """A fault: the connection is gone."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut(request: web.Request) -> web.StreamResponse:
    """A fault: the answer breaks off in the middle."""
    response = web.StreamResponse(headers={"Content-Length": "10000"})
    await response.prepare(request)
    await response.write(b"<html>")
    assert request.transport is not None
    request.transport.close()
    return response


async def hang(_: web.Request) -> web.Response:
    """A fault: no answer for longer than anybody waits."""
    await asyncio.sleep(1)
    return web.Response()


# Scraper, a target, the texts of its items in order, and how many messages it takes.
SERVICES = {
    "telegram": ("telegram-channel", "ada", [f"https://t.me/s/ada/{n}" for n in range(MANY, 0, -1)], 3),
    "mastodon": (
        "mastodon-profile",
        "@ada@mastodon.example",
        [f"https://mastodon.example/@ada/{n}" for n in range(MANY, 0, -1)],
        3,
    ),
    "reddit": (
        "reddit-user",
        "ada",
        [f"https://old.reddit.com/r/science/{kind}/aa{n:04}/" for n in range(MANY, 0, -1) for kind in ("comment", "submission")],
        8,
    ),
    "twitter": ("twitter-user", "ada", [f"https://twitter.com/ada/status/{n}" for n in range(MANY, 0, -1)], 6),
}


@pytest.fixture(params=SERVICES)
def case(request):
    return SERVICES[request.param]


@pytest.fixture
def service() -> Service:
    return Service()


def tokens() -> dict[str, object]:
    """A guest token of one's own: snscrape keeps one for the whole program."""
    return {"guestTokenManager": sys.modules["snscrape.modules.twitter"].GuestTokenManager()}


def backend_of(scraper: str, quota: object, base_url: str, **options: object) -> SnscrapeBackend:
    backend = SnscrapeBackend("sns", scraper, quota, base_url=base_url, **options)
    if scraper.startswith("twitter"):
        backend = SnscrapeBackend("sns", scraper, quota, base_url=base_url, arguments=tokens(), **options)
    return backend


def texts(items: object) -> list[str]:
    return [str(item) for item in items]


async def until(holds):
    """Wait for what a thread is about to do."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a thread sets no event of the loop
            await asyncio.sleep(0.001)


# ---- Every item once


async def test_list_has_every_item_in_order(case, service, serve):
    scraper, target, expected, messages = case
    async with RateLimitScheduler([backend_of(scraper, "1000/s", await serve(service.answer))]) as scheduler:
        reply = await scheduler.fetch(target)
        state = scheduler.snapshot().backends["sns"]
    assert texts(reply.value) == expected
    assert len(service.asked) == messages
    assert (state.sent, state.rejected) == (messages, 0)


async def test_stream_has_every_item_in_order(case, service, serve):
    scraper, target, expected, messages = case
    backend = backend_of(scraper, "1000/s", await serve(service.answer))
    async with RateLimitScheduler([backend]) as scheduler:
        assert texts([item async for item in backend.stream(scheduler, target, buffer=3)]) == expected
    assert len(service.asked) == messages


FAULTS = {
    "errors": {1: status(500), 3: status(502), 5: status(503), 6: status(500)},
    "resets": {2: reset, 4: reset, 7: reset},
    "answers that break off": {1: cut, 4: cut},
    "rejections": {
        1: status(429, Retry_After="0"),
        3: status(429),
        5: status(503, Retry_After="0"),
        6: status(429),
    },
    "errors and rejections": {2: status(500), 3: status(429), 5: reset, 6: status(429), 7: status(429)},
    "no answer": {2: hang, 5: hang},
}


@pytest.mark.parametrize("faults", FAULTS)
async def test_every_item_comes_once_whatever_the_server_does(faults, case, service, serve):
    scraper, target, expected, _ = case
    service.faults = FAULTS[faults]
    backend = backend_of(scraper, "20/100ms", await serve(service.answer), message_timeout=0.3)
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        assert texts([item async for item in backend.stream(scheduler, target)]) == expected
        ledger = scheduler.ledger()
    assert ledger.balanced
    assert ledger.delivered == 1


async def test_a_repeated_attempt_continues_the_list(case, service, serve):
    scraper, target, expected, _ = case
    service.faults = {2: status(500), 5: reset}
    async with RateLimitScheduler([backend_of(scraper, "1000/s", await serve(service.answer))], retry=AGAIN) as scheduler:
        reply = await scheduler.fetch(target)
    assert texts(reply.value) == expected
    assert reply.attempts == 3


# ---- Under limits

CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log error;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    log_format counted '$status $uri';
    access_log access.log counted;
    limit_req_status 429;
    limit_req_zone "all" zone=all:64k rate={rate}r/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{ limit_req zone=all burst=5 nodelay; proxy_pass {upstream}; }}
    }}
}}
"""


@pytest.fixture
def behind_nginx(tmp_path, find_server, free_port, run_server):
    """Put an nginx in front of a server that lets `rate` messages a second through, and six at once; its URL and its log."""

    def start(upstream: str, rate: int) -> tuple[str, Callable[[], list[int]]]:
        port = free_port()
        (tmp_path / "temp").mkdir()
        configuration: Path = tmp_path / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(port=port, rate=rate, upstream=upstream.rstrip("/")))
        run_server([find_server("nginx"), "-p", str(tmp_path), "-c", str(configuration)], port, tmp_path / "output")
        log = tmp_path / "access.log"
        return f"http://127.0.0.1:{port}", lambda: [int(line.split()[0]) for line in log.read_text().splitlines()]

    return start


@pytest.mark.e2e
async def test_declared_limit_is_kept_to_the_message(case, service, serve, behind_nginx):
    """Several targets at once, of all that they send: pages, guest tokens, repeated attempts."""
    scraper, target, expected, _ = case
    service.faults = {4: status(500), 9: status(502)}
    url, log = behind_nginx(await serve(service.answer), 20)
    backend = backend_of(scraper, "20/s burst 6 bucket", url)
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        replies = [reply async for reply in scheduler.map([target] * 4)]
        state = scheduler.snapshot().backends["sns"]
    assert [texts(reply.value) for reply in replies] == [expected] * 4
    assert 429 not in log()
    assert state.rejected == 0
    assert state.sent == len(log()) == len(service.asked)


@pytest.mark.e2e
async def test_limits_are_kept_by_streams_and_slow_servers(case, service, serve, behind_nginx):
    scraper, target, expected, messages = case
    service.slow = 0.05
    url, log = behind_nginx(await serve(service.answer), 20)
    backend = backend_of(scraper, "20/s burst 6 bucket", url)

    async def read() -> list[str]:
        return texts([item async for item in backend.stream(scheduler, target, buffer=2)])

    async with RateLimitScheduler([backend]) as scheduler:
        assert await asyncio.gather(read(), read(), read()) == [expected] * 3
    assert 429 not in log()
    assert len(log()) == len(service.asked) <= 3 * messages


@pytest.mark.e2e
async def test_undeclared_limit_costs_rejections_and_no_item(service, serve, behind_nginx):
    url, log = behind_nginx(await serve(service.answer), 5)
    backend = SnscrapeBackend("sns", "telegram-channel", "100/500ms", base_url=url)
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        replies = [reply async for reply in scheduler.map(["ada", "bob", "cyd", "dan"], ordered=True)]
    assert [len(reply.value) for reply in replies] == [MANY] * 4
    assert 429 in log()
    assert Counter(log())[200] == len(service.asked) == 12, "no page was read twice"


# ---- What a rejection in the middle costs


async def test_a_rejection_in_the_middle_is_waited_out_in_place(service, serve):
    service.faults = {2: status(429, Retry_After="1"), 3: status(429)}
    backend = SnscrapeBackend("sns", "telegram-channel", "10/100ms", base_url=await serve(service.answer))
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        reply = await scheduler.fetch("ada")
        state = scheduler.snapshot().backends["sns"]
    assert len(reply.value) == MANY
    assert reply.attempts == 1
    assert service.asked == ["/s/ada", *["/s/ada?before=38"] * 3, "/s/ada?before=18"]
    assert (state.sent, state.rejected) == (5, 2)


async def test_a_rejection_of_the_first_message_gives_the_thread_back(service, serve):
    service.faults = {1: status(429, Retry_After="0")}
    attempts = []
    backend = SnscrapeBackend("sns", "telegram-channel", "10/100ms", base_url=await serve(service.answer))
    handler = backend.handler
    backend.handler = lambda request: attempts.append(request.attempt) or handler(request)
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        reply = await scheduler.fetch("ada")
    assert len(reply.value) == MANY
    assert attempts == [1, 1], "it costs no attempt"


async def test_the_unix_time_of_a_rejection_is_kept(service, serve):
    backend = backend_of("twitter-user", "100/s", await serve(service.answer))
    service.faults = {4: status(429, x_rate_limit_remaining="0", x_rate_limit_reset=str(int(time.time()) + 900))}
    async with RateLimitScheduler([backend]) as scheduler:
        ticket = await scheduler.submit("ada")
        async for event in scheduler.events():
            if event.kind == "limit_closed":
                break
        ticket.cancel()
    assert 800 < event.seconds <= 900
    assert [urlsplit(path).path for path in service.asked].count("/1.1/guest/activate.json") == 1, "no other guest token"


# ---- What is charged


@pytest.mark.parametrize("location", ["/private", "https://t.me/private", "{base}private"])
async def test_redirect_hops_are_charged(location, service, serve):
    base = await serve(service.answer)
    moved = {"Location": location.format(base=base)}
    service.faults = {1: lambda _: web.Response(status=302, headers=moved), 2: lambda _: page("no posts")}
    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", base_url=base)
    async with RateLimitScheduler([backend]) as scheduler:
        assert (await scheduler.fetch("private")).value == []
        assert scheduler.snapshot().backends["sns"].sent == 2
    assert service.asked == ["/s/private", "/private"]


async def test_origins_go_each_to_a_server_of_its_own(serve):
    page_server, api_server = Service(), Service()
    bases = {
        "https://twitter.com": await serve(page_server.answer),
        "https://API.twitter.com": f"{await serve(api_server.answer)}",
    }
    backend = backend_of("twitter-user", "100/s", bases)
    async with RateLimitScheduler([backend]) as scheduler:
        assert len((await scheduler.fetch("ada")).value) == MANY
    assert [urlsplit(path).path for path in api_server.asked] == ["/1.1/guest/activate.json"]
    assert len(page_server.asked) == 5


async def test_path_of_a_base_is_kept(serve):
    async def mirror(request: web.Request) -> web.StreamResponse:
        assert request.path.startswith("/mirror/s/")
        return telegram(request.clone(rel_url=request.rel_url.with_path("/s/ada").with_query(request.query)))

    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", base_url=f"{await serve(mirror)}mirror/")
    async with RateLimitScheduler([backend]) as scheduler:
        assert len((await scheduler.fetch("ada")).value) == MANY


async def test_links_are_those_of_the_service(service, serve):
    """Whoever reads a page that came from elsewhere sees the service's own address."""
    post = telegram_post("ada", 1, 'see <a href="/bob/5">there</a>')
    service.faults = {1: lambda _: page(post)}
    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", base_url=await serve(service.answer))
    async with RateLimitScheduler([backend]) as scheduler:
        (found,) = (await scheduler.fetch("ada")).value
    assert found.outlinks == ["https://t.me/bob/5"]


async def test_connections_are_kept_from_scrape_to_scrape(service, serve):
    ports = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        ports.add(request.transport.get_extra_info("peername"))
        return await service.answer(request)

    backend = SnscrapeBackend("sns", "telegram-channel", BackendQuota("100/s", concurrency=1), base_url=await serve(answer))
    async with RateLimitScheduler([backend]) as scheduler:
        assert len([reply async for reply in scheduler.map(["ada", "bob", "cyd"])]) == 3
    assert len(ports) == 1


async def test_scrapes_of_several_kinds_share_a_backend(service, serve):
    backend = SnscrapeBackend("sns", None, "100/s", base_url=await serve(service.answer), max_items=5)
    targets = [
        Scrape("telegram-channel", "ada"),
        Scrape("mastodon-profile", "@ada@mastodon.example"),
        Scrape("reddit-user", "ada", comments=False),
    ]
    async with RateLimitScheduler([backend]) as scheduler:
        replies = [reply async for reply in scheduler.map(targets, ordered=True)]
    assert [type(reply.value[0]).__name__ for reply in replies] == ["TelegramPost", "Toot", "Submission"]
    assert [len(reply.value) for reply in replies] == [5, 5, 5]
    assert len(service.asked) == 3, "a page is enough"


# ---- Leaving


@pytest.mark.parametrize("way", ["stream", "ticket"])
async def test_a_scrape_that_is_cancelled_ends_between_two_items(way, service, serve):
    service.slow = 0.05
    backend = SnscrapeBackend("sns", "telegram-channel", "1000/s", base_url=await serve(service.answer))
    async with RateLimitScheduler([backend]) as scheduler:
        if way == "stream":
            async for item in backend.stream(scheduler, "ada", buffer=1):
                assert str(item) == f"https://t.me/s/ada/{MANY}"
                break
        else:
            ticket = await scheduler.submit("ada")
            await until(lambda: service.asked)
            ticket.cancel()
        await until(lambda: scheduler.snapshot().backends["sns"].in_flight == 0)
        assert scheduler.ledger().cancelled == 1
    assert len(service.asked) == 1, "it was given up before the next page"
    await until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("tidegate-sns")])


async def test_a_scrape_that_is_cancelled_before_it_has_sent_anything_sends_nothing(service, serve):
    cancelled = threading.Event()

    def cancel(request):
        loop.call_soon_threadsafe(tickets[0].cancel)
        while not request.ended:
            time.sleep(0.001)
        cancelled.set()

    loop, tickets = asyncio.get_running_loop(), []
    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", base_url=await serve(service.answer), proxies=cancel)
    async with RateLimitScheduler([backend]) as scheduler:
        tickets.append(await scheduler.submit("ada"))
        await until(cancelled.is_set)
        await until(lambda: scheduler.snapshot().backends["sns"].in_flight == 0)
    assert service.asked == []


async def test_a_scrape_that_waits_for_its_limit_ends_at_once(service, serve):
    backend = SnscrapeBackend("sns", "telegram-channel", "1/h", base_url=await serve(service.answer))
    async with RateLimitScheduler([backend]) as scheduler:
        stream = backend.stream(scheduler, "ada")
        for _ in range(20):
            await anext(stream)
        await stream.aclose()
        await until(lambda: scheduler.snapshot().backends["sns"].in_flight == 0)


# ---- How it fails


async def failure(scheduler: RateLimitScheduler, target: object) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as failed:
        await scheduler.fetch(target)
    return failed.value


@pytest.mark.parametrize(
    "fault, attempts, kind, said",
    [
        (status(500), 2, ScrapeError, "https://t.me/s/ada: status 500"),
        (status(404), 1, ScrapeError, "https://t.me/s/ada: status 404"),
        (reset, 2, ScrapeError, r"https://t.me/s/ada: the connection failed \(ConnectionError\)"),
        (cut, 2, ScrapeError, "https://t.me/s/ada: the answer broke off"),
        (hang, 2, ScrapeError, "https://t.me/s/ada: no answer in time"),
        (
            lambda _: page('<div class="tgme_widget_message" data-post="ada/1"></div>'),
            2,
            ScrapeError,
            "https://t.me/s/ada: telegram-channel cannot read what it was sent: AttributeError: ",
        ),
    ],
    ids=["500", "404", "reset", "cut", "no answer", "another page"],
)
async def test_what_fails_is_said_and_tried_again_if_that_may_help(fault, attempts, kind, said, service, serve):
    service.faults = dict.fromkeys(range(1, 9), fault)
    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", base_url=await serve(service.answer), message_timeout=0.2)
    async with RateLimitScheduler([backend], retry=Retry(attempts=2, base=0)) as scheduler:
        failed = await failure(scheduler, "ada")
    assert len(failed.attempts) == attempts
    assert isinstance(failed.__cause__, kind)
    assert failed.__cause__.url == "https://t.me/s/ada"
    assert re.match(said, str(failed.__cause__))


async def test_a_page_that_fails_a_scraper_tells_no_query(service, serve):
    service.faults = {3: lambda _: page("something else")}
    backend = backend_of("twitter-search", "100/s", await serve(service.answer))
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        failed = await failure(scheduler, "a secret")
    assert "secret" not in str(failed.__cause__)


async def test_who_does_not_exist_is_not_asked_for_again(service, serve):
    gone = {"data": {"user": {"result": {"__typename": "UserUnavailable"}}}}
    service.faults = {3: lambda _: web.json_response(gone)}
    backend = backend_of("twitter-profile", "100/s", await serve(service.answer))
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        failed = await failure(scheduler, "nobody")
    assert isinstance(failed.__cause__, BackendRejectedError)
    assert "twitter-profile: User unavailable" in str(failed.__cause__)
    assert len(failed.attempts) == 1


@pytest.mark.parametrize(
    "scraper, target",
    [
        ("telegram-channel", "nobody"),
        ("mastodon-profile", "@nobody@mastodon.example"),
        ("mastodon-toot", "https://mastodon.example/@nobody/1"),
        ("facebook-user", "nobody"),
        ("instagram-user", "nobody"),
        ("vkontakte-user", "nobody"),
        ("weibo-user", "nobody"),
    ],
)
async def test_404_is_no_empty_list(scraper, target, service, serve):
    """Most of these scrapers end without a word, as if there were no items."""
    service.faults = {1: status(404), 2: status(404)}
    backend = SnscrapeBackend("sns", scraper, "100/s", base_url=await serve(service.answer))
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        failed = await failure(scheduler, target)
    assert (failed.__cause__.status, len(failed.attempts)) == (404, 1)


async def test_an_answer_without_end_is_left(service, serve):
    """Packed it has 64 KiB."""
    packed = gzip.compress(bytes(64 << 20))
    service.faults = {1: lambda _: web.Response(body=packed, headers={"Content-Encoding": "gzip"})}
    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", base_url=await serve(service.answer))
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        failed = await failure(scheduler, "ada")
        assert str(failed.__cause__) == "https://t.me/s/ada: an answer of more than 32 MiB"
        assert len((await scheduler.fetch("ada")).value) == MANY


async def test_pages_in_a_circle_are_left(service, serve):
    """The second page leads to itself."""
    ring = page('<a href="/s/ada?before=9" class="tme_messages_more" data-before="9"></a>' + telegram_post("ada", 9, "post 9"))

    async def answer(request: web.Request) -> web.StreamResponse:
        service.asked.append(request.path_qs)
        return telegram(request) if "before" not in request.query else web.Response(body=ring.body, content_type="text/html")

    backend = SnscrapeBackend("sns", "telegram-channel", base_url=await serve(answer))
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        failed = await failure(scheduler, "ada")
    assert str(failed.__cause__) == "https://t.me/s/ada: 100 times nothing new: the pages lead in a circle"
    assert len(service.asked) == 1 + 1 + 100


async def test_pages_that_bring_nothing_for_long_are_no_circle(service, serve):
    async def answer(request: web.Request) -> web.StreamResponse:
        service.asked.append(request.path_qs)
        left = 150 - len(service.asked)
        more = f'<a href="/s/ada?before={left}" class="tme_messages_more" data-before="{left}"></a>'
        return page(more if left else telegram_post("ada", 1, "post 1"))

    backend = SnscrapeBackend("sns", "telegram-channel", base_url=await serve(answer))
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        assert texts((await scheduler.fetch("ada")).value) == ["https://t.me/s/ada/1"]
    assert len(service.asked) == 150


async def test_a_function_that_gives_no_proxies_is_said_once(service, serve):
    backend = SnscrapeBackend(
        "sns", "telegram-channel", "100/s", base_url=await serve(service.answer), proxies=lambda _: "http://user:s3cret@proxy"
    )
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        failed = await failure(scheduler, "ada")
    assert "proxies='str': give a mapping" in str(failed)
    assert (len(failed.attempts), service.asked) == (1, [])


@pytest.mark.parametrize(
    "scraper, target, said",
    [
        ("twitter-user", "not a name!", "twitter-user: ValueError: Invalid username"),
        ("telegram-channel", Scrape("telegram-chanel", "ada"), "near ones are telegram-channel"),
        ("telegram-channel", Scrape("telegram-channel"), "telegram-channel: TypeError: "),
        (None, "ada", "the target is of type str: give a Scrape"),
    ],
)
async def test_a_target_that_makes_no_scraper_is_the_requests_own_fault(scraper, target, said, service, serve):
    backend = SnscrapeBackend("sns", scraper, "100/s", base_url=await serve(service.answer))
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        failed = await failure(scheduler, target)
    assert isinstance(failed.__cause__, BackendRejectedError)
    assert said in str(failed.__cause__)
    assert (len(failed.attempts), service.asked) == (1, [])


async def test_a_guest_token_that_is_refused_is_replaced(service, serve):
    backend = backend_of("twitter-user", "100/s", await serve(service.answer))
    service.faults = {2: lambda _: web.json_response({"guest_token": "stale"})}
    async with RateLimitScheduler([backend], retry=AGAIN) as scheduler:
        reply = await scheduler.fetch("ada")
    assert len(reply.value) == MANY
    assert reply.attempts == 2


async def test_a_proxy_is_used_and_its_password_told_nowhere(service, serve, free_port, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    used = []

    async def answer(request: web.Request) -> web.StreamResponse:
        used.append((request.host, request.headers.get("Proxy-Authorization", "").split()[0]))
        return await service.answer(request)

    def by_account(request):
        return {"http": f"http://user:s3cret@{request.account}"}

    alive, dead = urlsplit(await serve(answer)).netloc, f"127.0.0.1:{free_port()}"
    elsewhere = {"base_url": "http://telegram.example"}

    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", proxies=by_account, accounts=[alive], **elsewhere)
    async with RateLimitScheduler([backend]) as scheduler:
        assert len((await scheduler.fetch("ada")).value) == MANY
    assert used == [("telegram.example", "Basic")] * 3

    monkeypatch.setenv("HTTP_PROXY", f"http://user:s3cret@{alive}")
    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", **elsewhere)
    async with RateLimitScheduler([backend]) as scheduler:
        assert len((await scheduler.fetch("ada")).value) == MANY
    assert used == [("telegram.example", "Basic")] * 6

    backend = SnscrapeBackend("sns", "telegram-channel", "100/s", proxies={"http": f"http://user:s3cret@{dead}"}, **elsewhere)
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        failed = await failure(scheduler, "ada")
    assert "the proxy does not answer" in str(failed)
    assert "s3cret" not in "".join(traceback.format_exception(failed)) + repr(backend)
    assert "s3cret" not in caplog.text
