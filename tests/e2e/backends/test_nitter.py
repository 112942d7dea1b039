"""The Nitter adapter against mirrors on loopback that serve pages of our own making in Nitter's shape."""

import asyncio
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import ClientError, web
from hypothesis import given
from hypothesis import strategies as st
from tests.e2e.backends.nitter_site import LIMITED, NOW, Post, feed, item, main, page, panel, posts, timeline

from tidegate import BackendQuota, BackendRateLimitedError, ConfigError, RateLimitScheduler, RequestFailedError, Retry
from tidegate.backends.nitter import MirrorError, NitterBackend, NitterTargetError, Search, Timeline, Tweet

ONCE = Retry(attempts=1)
QUICK = Retry(base=0.001)


def ids(tweets):
    return [tweet.id for tweet in tweets]


def used(scheduler, account=0):
    return scheduler.snapshot().backends["nitter"].limits[account].used


async def failure(scheduler, target):
    """The handler's exception behind a request that fails."""
    with pytest.raises(RequestFailedError) as failed:
        await scheduler.fetch(target)
    return failed.value.__cause__


# ---- What a page says


RICH = [
    Post(90, name="Ada <L>", text="pinned & old", at=NOW - timedelta(days=400), pinned=True, counts=(1, 22, 333, 1_234_567)),
    Post(140, text="two\nlines, a < b", link="https://www.example.org/a/long/way?to=it&x=1"),
    Post(70, "grace", "Grace", text="older", at=NOW - timedelta(days=3), retweeted_by="ada"),
    Post(139, text="I think so", at=NOW - timedelta(minutes=1), replying_to="grace"),
    Post(
        138, text="see this", at=NOW - timedelta(minutes=2), quoted=Post(60, "grace", "G", "old words", NOW - timedelta(days=9))
    ),
    Post(137, text="", at=NOW - timedelta(minutes=3), picture="media/F1.jpg"),
]


async def test_tweets_of_a_page(site, mirror_of):
    video = Post(136, text="moving", at=NOW - timedelta(minutes=4), video="/video/A1/clip.mp4")
    site.timelines["ada"] = [*RICH, video]
    mirror = await mirror_of(site)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url], max_items=7)]) as scheduler:
        pinned, lines, retweet, reply, quoting, picture, moving = (await scheduler.fetch("@ada")).value
    assert pinned == Tweet(
        90, "ada", "Ada <L>", "pinned & old", NOW - timedelta(days=400), "https://x.com/ada/status/90", 1, 22, 333, 1_234_567,
        is_pinned=True,
    )  # fmt: skip
    assert lines.text == "two\nlines, a < b https://www.example.…"
    assert lines.links == ("https://www.example.org/a/long/way?to=it&x=1",)
    assert (retweet.id, retweet.user, retweet.name, retweet.is_retweet) == (70, "grace", "Grace", True)
    assert (reply.is_reply, reply.text, reply.links) == (True, "I think so", ())
    assert (quoting.text, quoting.quoted, quoting.name) == ("see this", 60, "Ada L")
    assert quoting.created_at == NOW - timedelta(minutes=2)
    assert picture.media == (f"{mirror.url}/pic/orig/media%2FF1.jpg",)
    assert moving.media == (f"{mirror.url}/video/A1/clip.mp4",)
    assert [tweet.is_pinned or tweet.is_retweet or tweet.is_reply for tweet in (lines, quoting, picture, moving)] == [False] * 4


async def test_the_feed_says_the_same_but_for_counts_and_names(site, mirror_of):
    site.timelines["ada"] = RICH
    mirror = await mirror_of(site)
    backends = [NitterBackend(form, [mirror.url], form=form, max_items=6) for form in ("html", "rss")]
    async with RateLimitScheduler(backends) as scheduler:
        html, rss = [(await scheduler.fetch("@ada", backends=[form])).value for form in ("html", "rss")]
    unlike = {"name", "replies", "retweets", "quotes", "likes", "media"}
    for shown, fed in zip(html, rss, strict=True):
        assert {(name, getattr(shown, name)) for name in Tweet.__slots__ if name not in unlike} == {
            (name, getattr(fed, name)) for name in Tweet.__slots__ if name not in unlike
        }
        assert (fed.name, fed.likes) == (None, None)
    assert rss[5].media == (f"{mirror.url}/pic/media%2FF1.jpg",)


async def test_places_without_a_tweet_are_passed_over(serve):
    withheld = '<div class="unavailable timeline-item"><div class="unavailable-box">This tweet is unavailable</div></div>'
    gap = '<div class="timeline-item thread more-replies-thread"><a href="/ada/status/7">more replies</a></div>'
    user = (
        '<div class="timeline-item"><a class="tweet-link" href="/ada"></a><div class="tweet-body profile-result">'
        '<div class="tweet-content media-body">a biography</div></div></div>'
    )
    text = timeline(withheld + item(Post(2)) + gap + user + item(Post(1)))

    async def answer(request):
        return page(text)

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)])]) as scheduler:
        assert ids((await scheduler.fetch("@ada")).value) == [2, 1]


@pytest.mark.parametrize(
    "title, expected",
    [
        ("Jan 1, 2026 · 12:05 AM UTC", datetime(2026, 1, 1, 0, 5, tzinfo=UTC)),
        ("Dec 31, 2025 · 12:59 PM UTC", datetime(2025, 12, 31, 12, 59, tzinfo=UTC)),
        ("Feb 9, 2024 · 9:00 PM UTC", datetime(2024, 2, 9, 21, 0, tzinfo=UTC)),
        # What else it says is not read: the number itself tells when it was given out.
        ("31/12/2025, 12:59:00", datetime(2025, 9, 11, 12, 31, 5, 123000, tzinfo=UTC)),
        ("Feb 31, 2024 · 9:00 PM UTC", datetime(2025, 9, 11, 12, 31, 5, 123000, tzinfo=UTC)),
    ],
)
async def test_date(title, expected, serve):
    number = (datetime(2025, 9, 11, 12, 31, 5, 123000, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        milliseconds=1
    )
    number = (number - 1288834974657) << 22 | 5
    shown = timeline(item(Post(number)).replace("Mar 14, 2026 · 3:09 PM UTC", title))

    async def answer(request):
        return page(shown)

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)])]) as scheduler:
        assert (await scheduler.fetch("@ada")).value[0].created_at == expected


async def test_counts_that_are_hidden_or_rounded_are_none(serve):
    rounded = item(Post(2, counts=(0, 5, 0, 1234))).replace("1,234", "1.2K")
    hidden = item(Post(1)).partition('<div class="tweet-stats">')[0] + "</div></div>"

    async def answer(request):
        return page(timeline(rounded + hidden))

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)])]) as scheduler:
        first, second = (await scheduler.fetch("@ada")).value
    assert (first.replies, first.retweets, first.quotes, first.likes) == (0, 5, 0, None)
    assert (second.replies, second.retweets, second.quotes, second.likes) == (None,) * 4


# ---- From page to page


@pytest.mark.parametrize("form", ["html", "rss"])
async def test_each_tweet_once_and_each_page_charged(form, site, mirror_of):
    site.timelines["ada"] = [Post(1003, pinned=True, text="pinned"), *posts(64)]  # it comes again as one of the rest
    mirror = await mirror_of(site)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url], "30/min", form=form)]) as scheduler:
        reply = await scheduler.fetch("@ada")
        assert used(scheduler) == mirror.arrived == 5  # the last one says that there is no more
    assert ids(reply.value) == [1003, *(n for n in range(1063, 999, -1) if n != 1003)]
    assert reply.attempts == 1


@pytest.mark.parametrize("form", ["html", "rss"])
async def test_search(form, site, mirror_of):
    query = "tweet & co? #x+y é"
    site.timelines["ada"] = [Post(n, text=f"{n} {query}", at=NOW - timedelta(minutes=100 - n)) for n in range(50, 0, -1)]
    site.timelines["bob"] = [Post(n, "bob", text="other") for n in range(200, 170, -1)]
    mirror = await mirror_of(site)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url], form=form)]) as scheduler:
        assert ids((await scheduler.fetch(Search(query))).value) == list(range(50, 0, -1))
        assert ids((await scheduler.fetch(query)).value) == list(range(50, 0, -1))
        assert (await scheduler.fetch("what nobody wrote")).value == []


@pytest.mark.parametrize("form", ["html", "rss"])
async def test_bounds_end_the_pages(form, site, mirror_of):
    site.timelines["ada"] = [Post(1, pinned=True, at=NOW - timedelta(days=9)), *posts(200)]
    mirror = await mirror_of(site)
    newest = NOW - timedelta(minutes=1)

    async def collect(target):
        before = mirror.arrived
        return ids((await scheduler.fetch(target)).value), mirror.arrived - before

    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url], form=form, max_items=50)]) as scheduler:
        assert await collect("@ada") == ([1, *range(1199, 1150, -1)], 3)
        assert await collect(Timeline("ada", max_items=5)) == ([1, 1199, 1198, 1197, 1196], 1)
        assert await collect(Timeline("@ada", since=newest - timedelta(minutes=24))) == (
            list(range(1199, 1174, -1)), 2 if form == "html" else 3,
        )  # fmt: skip
        recent = Timeline("ada", since=newest - timedelta(minutes=24), until=newest - timedelta(minutes=21))
        assert (await collect(recent))[0] == [1177, 1176, 1175]


async def test_old_tweets_that_are_shown_early_do_not_end_the_pages(site, mirror_of):
    """A thread shows old tweets before its newest one, a retweet an older one, and what is pinned may be of any age."""
    old = NOW - timedelta(days=300)
    thread = Post(0, thread=[Post(11, text="first", at=old), Post(500, text="once more", at=NOW)])
    every = posts(30)
    site.timelines["ada"] = [Post(10, at=old, pinned=True), thread, Post(12, "bob", at=old, retweeted_by="ada"), *every]
    mirror = await mirror_of(site)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url])]) as scheduler:
        reply = await scheduler.fetch(Timeline("ada", since=NOW - timedelta(days=1)))
    assert ids(reply.value) == [500, *(post.id for post in every)]
    assert mirror.arrived == 3


async def test_pages_without_end_end(serve):
    """A server whose every page leads on shows nothing new for long."""
    arrived = []

    async def answer(request):
        arrived.append(request.query_string)
        return page(timeline(item(Post(1)), f'<div class="show-more"><a href="?cursor=c{len(arrived)}">Load more</a></div>'))

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)], max_items=None)]) as scheduler:
        assert ids((await scheduler.fetch("@ada")).value) == [1]
    assert arrived == ["", "cursor=c1"]


WITHHELD = '<div class="timeline-item"><div class="tweet-body"><div class="unavailable-box">Unavailable</div></div></div>'


@pytest.mark.parametrize("withheld, messages", [(1, 3), (4, 6), (5, 6), (100, 6)])
async def test_pages_whose_tweets_are_withheld_are_passed_over(withheld, messages, serve):
    """The first page and the last one have a tweet; of those between them five at most are read."""
    arrived = []

    async def answer(request):
        arrived.append(request.query_string)
        shown = WITHHELD * 20 if 1 < len(arrived) <= withheld + 1 else item(Post(len(arrived)))
        more = (
            f'<div class="show-more"><a href="?cursor=c{len(arrived)}">Load more</a></div>' if len(arrived) < withheld + 2 else ""
        )
        return page(timeline(shown, more))

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)])]) as scheduler:
        assert ids((await scheduler.fetch("@ada")).value) == ([1, withheld + 2] if withheld < 5 else [1])
    assert len(arrived) == messages


async def test_replies_are_a_page_of_their_own(serve):
    paths = []

    async def answer(request):
        paths.append(request.path)
        return page(timeline(""))

    url = await serve(answer)
    async with RateLimitScheduler([NitterBackend("nitter", [f"{url}under/a/path/"])]) as scheduler:
        assert (await scheduler.fetch(Timeline("ada", replies=True))).value == []
    assert paths == ["/under/a/path/ada/with_replies"]


@dataclass
class Described:
    """A target of another program."""

    target_type: str
    value: object


async def test_targets_of_other_kinds(site, mirror_of):
    site.timelines["ada"] = posts(3)
    mirror = await mirror_of(site)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url], "30/min")]) as scheduler:
        assert len((await scheduler.fetch(Described("user", "ada"))).value) == 3
        assert len((await scheduler.fetch(Described("search", "tweet 1"))).value) == 1
        before = mirror.arrived
        for target in (7, None, "@", "@a/b", "", " ", Described("user", "a b"), Described("user", 7), Described("list", "x")):
            assert isinstance(await failure(scheduler, target), NitterTargetError)
        assert mirror.arrived == before


# ---- Pages that are none


CHALLENGE = "<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"
PARKED = "<html><head><title>nitter.example is for sale</title></head><body><a href='/'>Buy this domain</a></body></html>"
PROTECTED = main('<div class="timeline-header timeline-protected"><h2>This account\'s tweets are protected.</h2></div>')


@pytest.mark.parametrize(
    "status, body, said",
    [
        (404, panel('User "ada" not found'), 'User "ada" not found'),
        (200, panel('User "ada" has been suspended'), "suspended"),
        (200, PROTECTED, "protected"),
        (400, panel("Search input too long."), "too long"),
    ],
)
@pytest.mark.parametrize("form", ["html", "rss"])
async def test_target_at_fault_is_told_at_once(form, status, body, said, serve):
    arrived = []

    async def answer(request):
        arrived.append(request.path)
        return page(body, status)

    url = await serve(answer)
    async with RateLimitScheduler([NitterBackend("nitter", [url, f"{url}other"], "30/min", form=form)]) as scheduler:
        error = await failure(scheduler, "@ada")
        assert scheduler.snapshot().backends["nitter"].rejected == 0
    assert isinstance(error, NitterTargetError)
    assert said in str(error)
    assert len(arrived) == 1


async def test_search_that_is_too_long_is_told_in_short(serve):
    async def answer(request):
        return page(panel("Search input too long."), 400)

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)])]) as scheduler:
        error = await failure(scheduler, "x" * 2000)
    assert str(error).endswith("…: Search input too long.")
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    "status, body, reason",
    [
        (500, "", "status 500, an empty page"),
        (502, "<html><title>502 Bad Gateway</title></html>", "status 502, no page of Nitter, but '502 Bad Gateway'"),
        (500, panel("Network error occurred, please try again."), "status 500, an error page: Network error"),
        (404, panel("Page not found"), "status 404, an error page: Page not found"),
        (403, CHALLENGE, "status 403, no page of Nitter, but 'Just a moment...'"),
        (403, "RSS feed is disabled", "status 403, no page of Nitter, but 'RSS feed is disabled'"),
        (200, CHALLENGE, "no page of Nitter, but 'Just a moment...'"),
        (200, PARKED, "no page of Nitter, but 'nitter.example is for sale'"),
        (200, panel("An error occurred"), "an error page: An error occurred"),
        (200, "", "an empty page"),
        (200, "{}", "no page of Nitter, but '{}'"),
        (200, main(""), "no page of Nitter, but 'nitter'"),
        (200, timeline(item(Post(1)))[:-20], "a page that breaks off"),
        (200, timeline(item(Post(1)).replace("/status/", "/")), "a tweet that does not say which it is"),
        (200, timeline(item(Post(1)).replace("UTC", "")), "a tweet without a date that can be read"),
        (200, timeline("x" * (2 << 20)), "a page of more than 1 MiB"),
        (200, timeline(item(Post(1)) * 501), "a page of more than 500 tweets"),
    ],
)
async def test_mirror_at_fault_is_retried_elsewhere(status, body, reason, site, mirror_of):
    site.timelines["ada"] = posts(3)

    async def instead(request):
        return page(body, status)

    bad, good = await mirror_of(site, instead), await mirror_of(site)
    backend = NitterBackend("nitter", [bad.url, good.url], "30/min")
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        error = await failure(scheduler, "@ada")
        assert scheduler.snapshot().backends["nitter"].rejected == 0
    assert isinstance(error, MirrorError)
    assert error.mirror == bad.url
    assert error.reason.startswith(reason)
    async with RateLimitScheduler([backend], retry=QUICK) as scheduler:
        reply = await scheduler.fetch("@ada")
    assert (len(reply.value), reply.attempts) == (3, 2)
    assert (bad.arrived, good.arrived) == (2, 2)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<rss",
        CHALLENGE,
        feed("<item/>" * 501),
        "<html/>",
        feed("<item><title>x</title></item>"),
        feed("").replace("<channel>", "<channel>&bomb;"),
        timeline(item(Post(1, text="Instance has been rate limited."))),
    ],
)
async def test_what_is_no_feed_is_the_mirrors_fault(body, serve):
    async def answer(request):
        return page(body)

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)], form="rss")], retry=ONCE) as scheduler:
        assert isinstance(await failure(scheduler, "@ada"), MirrorError)


@pytest.mark.parametrize("date", ["Fri, 31 Dec 9999 23:59:59 -2300", f"Thu, 11 Sep 2025 12:31:05 +{'9' * 20}", "1 Jan 99999", ""])
async def test_date_of_a_feed_that_is_none_is_that_of_the_number(date, serve):
    entry = f"<item><link>http://n.example/ada/status/1966120000000000000</link><pubDate>{date}</pubDate></item>"

    async def answer(request):
        return page(feed(entry))

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)], form="rss")], retry=ONCE) as scheduler:
        (tweet,) = (await scheduler.fetch("@ada")).value
    assert tweet.created_at == datetime(2025, 9, 11, 12, 41, 51, 400000, tzinfo=UTC)


async def test_feed_reads_no_entity(serve, tmp_path):
    (tmp_path / "secret").write_text("word")
    declared = f'<!DOCTYPE rss [<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
    entry = (
        "<item><title>t</title><description>a&x;b</description><link>http://n.example/ada/status/5</link>"
        "<pubDate>Thu, 11 Sep 2025 12:31:05 GMT</pubDate></item>"
    )
    text = feed(entry).replace("?><rss", f"?>{declared}<rss")

    async def answer(request):
        return page(text)

    async with RateLimitScheduler([NitterBackend("nitter", [await serve(answer)], form="rss")]) as scheduler:
        assert "word" not in (await scheduler.fetch("@ada")).value[0].text


@pytest.mark.parametrize("form", ["html", "rss"])
@pytest.mark.parametrize("status", [200, 429, 500])
async def test_limited_mirror_rests_and_another_one_is_asked(status, form, site, mirror_of):
    site.timelines["ada"] = posts(3)

    async def instead(request):
        return page(LIMITED, status)

    limited, good = await mirror_of(site, instead), await mirror_of(site)
    backend = NitterBackend("nitter", [limited.url, good.url], "30/min", form=form)
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        replies = [await scheduler.fetch("@ada") for _ in range(5)]
        state = scheduler.snapshot().backends["nitter"]
    assert [(len(reply.value), reply.attempts) for reply in replies] == [(3, 1)] * 5
    assert limited.arrived == state.rejected == 1


async def test_limited_mirror_opens_again_after_what_it_says(site, mirror_of):
    site.timelines["ada"] = posts(3)

    async def instead(request):
        return None if mirror.arrived > 1 else web.Response(status=503, headers={"Retry-After": "1"})

    mirror = await mirror_of(site, instead)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url], "30/min")], retry=ONCE) as scheduler:
        assert len((await scheduler.fetch("@ada")).value) == 3
    assert mirror.at[1] - mirror.at[0] >= 1


async def test_limited_mirror_without_declared_limits_rests_too(site, mirror_of):
    site.timelines["ada"] = posts(3)

    async def instead(request):
        return page(LIMITED) if limited.arrived <= 2 else None

    limited = await mirror_of(site, instead)
    async with RateLimitScheduler([NitterBackend("nitter", [limited.url])], retry=ONCE) as scheduler:
        reply = await scheduler.fetch("@ada")
        assert scheduler.snapshot().backends["nitter"].rejected == 2
    assert len(reply.value) == 3


async def test_words_of_a_tweet_are_no_message_of_the_mirror(site, mirror_of):
    said = "Instance has been rate limited. User not found. has been suspended"
    site.timelines["ada"] = [Post(1, text=said)]
    mirror = await mirror_of(site)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url])], retry=ONCE) as scheduler:
        assert (await scheduler.fetch("@ada")).value[0].text == said


async def test_words_of_a_tweet_on_an_error_page_are_no_message_of_the_mirror(site, mirror_of):
    async def instead(request):
        return page(timeline(item(Post(1, text="Instance has been rate limited."))), 500)

    mirror = await mirror_of(site, instead)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url])], retry=ONCE) as scheduler:
        assert isinstance(await failure(scheduler, "@ada"), MirrorError)
        assert scheduler.snapshot().backends["nitter"].rejected == 0


async def test_redirects_are_charged_and_a_ring_is_the_mirrors_fault(site, mirror_of):
    site.timelines["ada"] = posts(3)

    async def instead(request):
        if request.path == "/ring":
            return web.Response(status=302, headers={"Location": "/ring?token=secret"})
        return web.Response(status=302, headers={"Location": "/ada"}) if request.path == "/ADA" else None

    mirror = await mirror_of(site, instead)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url], "30/min", max_redirects=2)], retry=ONCE) as scheduler:
        assert len((await scheduler.fetch("@ADA")).value) == 3
        assert used(scheduler) == mirror.arrived == 4
        error = await failure(scheduler, "@ring")
        assert used(scheduler) == mirror.arrived == 7
    assert isinstance(error, MirrorError)
    assert "secret" not in str(error)


async def test_silent_mirror_is_left(site, mirror_of):
    site.timelines["ada"] = posts(3)
    never = web.StreamResponse()

    async def instead(request):
        await never.prepare(request)
        await never.write(b"<!DOCTYPE html>")
        await asyncio.sleep(60)

    silent, good = await mirror_of(site, instead), await mirror_of(site)
    backend = NitterBackend("nitter", [silent.url, good.url], read_timeout=0.2)
    async with RateLimitScheduler([backend], retry=QUICK) as scheduler:
        reply = await scheduler.fetch("@ada")
    assert (len(reply.value), reply.attempts, silent.arrived) == (3, 2, 1)


async def test_no_message_shows_a_password(site, mirror_of):
    async def instead(request):
        return page(panel("An error occurred"), 500)

    mirror = await mirror_of(site, instead)
    backend = NitterBackend("nitter", [mirror.url.replace("http://", "http://user:word@")], headers={"X-Key": "word"})
    async with RateLimitScheduler([backend], retry=ONCE) as scheduler:
        error = await failure(scheduler, "@ada")
    assert "word" not in f"{backend!r} {error!r} {vars(error)}"


@pytest.mark.parametrize("form", ["html", "rss"])
async def test_media_shows_no_password(form, site, mirror_of):
    site.timelines["ada"] = [Post(1, text="x", picture="media/F1.jpg")]
    mirror = await mirror_of(site)
    backend = NitterBackend("nitter", [mirror.url.replace("http://", "http://user:word@")], form=form)
    async with RateLimitScheduler([backend]) as scheduler:
        (tweet,) = (await scheduler.fetch("@ada")).value
    assert tweet.media[0].startswith(f"{mirror.url}/pic/")


MARKS = st.sampled_from(
    ["timeline", "timeline-item", "tweet-link", "tweet-content", "show-more", "error-panel", "thread-line", "quote"]
)


@st.composite
def pieces(draw):
    """Elements of Nitter's classes in any order and depth, with anything in them."""
    text = ""
    for _ in range(draw(st.integers(0, 12))):
        href = draw(st.sampled_from(["", "/a/status/5", "?cursor=x", "http://[", "?cursor=%ff", "/a/status/" + "9" * 5000]))
        text += f'<div class="{draw(MARKS)}"><a class="{draw(MARKS)}" href="{href}" title="{draw(st.text(max_size=5))}">'
        text += draw(st.sampled_from(["</div>", "</a>", "<br>", "<video src='http://[:'>", ""]))
    return text + draw(st.sampled_from(["", "</html>"]))


@given(
    body=st.one_of(st.binary(max_size=300), pieces().map(lambda text: text.encode("utf-8", "replace"))),
    form=st.sampled_from(["html", "rss"]),
)
def test_any_page_is_tweets_or_one_of_the_errors(body, form):
    async def collect():
        async def answer(request):
            return web.Response(body=body, content_type="text/html")

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with RateLimitScheduler([NitterBackend("nitter", [url], form=form, max_items=3)], retry=ONCE) as scheduler:
            ticket = await scheduler.submit("@ada")
            try:
                return (await ticket).value
            except RequestFailedError as error:
                return error.__cause__
            finally:
                await runner.cleanup()

    result = asyncio.run(collect())
    # A client error is of the line: nothing that reads a page raises one.
    assert isinstance(result, list | MirrorError | NitterTargetError | BackendRateLimitedError | ClientError), repr(result)


# ---- Several mirrors


def many(site, users, each=45):
    """Timelines of many users; gives the targets."""
    for n in range(users):
        site.timelines[f"u{n}"] = posts(each, f"u{n}", start=1000 * n)
    return [f"@u{n}" for n in range(users)]


def all_there(site, replies):
    """Whether each target gave each of its tweets once, in the order of the pages."""
    given = {reply.target: ids(reply.value) for reply in replies}
    return given == {f"@{user}": [post.id for post in found] for user, found in site.timelines.items()}


async def test_failed_page_is_asked_of_another_mirror_and_none_twice(site, mirror_of):
    site.timelines["ada"] = posts(65)

    async def instead(request):
        return page("", 500) if "cursor" in request.query else None

    begins, ends = await mirror_of(site, instead), await mirror_of(site)
    async with RateLimitScheduler([NitterBackend("nitter", [begins.url, ends.url], "30/min")], retry=QUICK) as scheduler:
        reply = await scheduler.fetch("@ada")
    assert all_there(site, [reply])
    assert reply.attempts == 2
    assert (begins.arrived, ends.arrived) == (2, 4)  # the second page is asked for twice, the fifth says that there is no more


async def test_page_that_is_rejected_goes_on_at_another_mirror(site, mirror_of):
    site.timelines["ada"] = posts(65)

    async def instead(request):
        return page(LIMITED, 429) if "cursor" in request.query else None

    begins, ends = await mirror_of(site, instead), await mirror_of(site)
    async with RateLimitScheduler([NitterBackend("nitter", [begins.url, ends.url], "30/min")], retry=ONCE) as scheduler:
        reply = await scheduler.fetch("@ada")
    assert all_there(site, [reply])
    assert (reply.attempts, begins.arrived, ends.arrived) == (1, 2, 4)


async def test_nobody_waits_for_a_mirror_that_is_limited_for_long(site, mirror_of):
    """It says so when many wait for their next page there."""
    targets = many(site, 20)

    async def until_then(request):
        if limited.arrived > 20:
            return web.Response(status=429, headers={"Retry-After": "3600"})
        await asyncio.sleep(0.03 * (limited.arrived % 10))  # so that its window opens bit by bit
        return None

    limited, good = await mirror_of(site, until_then), await mirror_of(site)
    quota = BackendQuota("20/s", concurrency=10)
    async with RateLimitScheduler([NitterBackend("nitter", [limited.url, good.url], quota)], retry=ONCE) as scheduler:
        replies = [reply async for reply in scheduler.map(targets)]
        state = scheduler.snapshot().backends["nitter"]
    assert all_there(site, replies)
    assert all(reply.attempts == 1 for reply in replies)
    assert limited.statuses[200] == 20
    assert limited.statuses[429] == state.rejected <= 10


async def test_mirror_alone_goes_on_when_it_is_open_again(site, mirror_of):
    targets = many(site, 6)

    async def once(request):
        return web.Response(status=429, headers={"Retry-After": "1"}) if mirror.arrived == 8 else None

    mirror = await mirror_of(site, once)
    quota = BackendQuota("20/s", concurrency=6)
    async with RateLimitScheduler([NitterBackend("nitter", [mirror.url], quota)], retry=ONCE) as scheduler:
        replies = [reply async for reply in scheduler.map(targets)]
        assert scheduler.ledger().balanced
    assert all_there(site, replies)
    assert mirror.statuses == {200: 24, 429: 1}


@pytest.mark.e2e
async def test_all_tweets_once_from_mirrors_of_all_kinds(site, mirror_of, strict):
    """Two that reject what is beyond their declared limits, a slow one, one that allows less than is declared, a sick one."""
    loop = asyncio.get_running_loop()
    targets = many(site, 40)

    async def slowly(request):
        await asyncio.sleep(0.2)

    async def stingy(request):
        recent = [at for at in limited.at[:-1] if loop.time() - at < 1]
        return page(LIMITED) if len(recent) >= 2 else None

    async def ill(request):
        return page(panel("Network error occurred, please try again."), 500)

    kept = [strict(await mirror_of(site), 20, 4) for _ in range(2)]
    slow, limited, sick = await mirror_of(site, slowly), await mirror_of(site, stingy), await mirror_of(site, ill)
    quota = BackendQuota("20/s burst 5", concurrency=4)
    backend = NitterBackend("nitter", [sick.url, limited.url, slow.url, *(mirror.url for mirror in kept)], quota)
    async with RateLimitScheduler([backend], retry=Retry(base=0.05)) as scheduler:
        replies = [reply async for reply in scheduler.map(targets)]
        state = scheduler.snapshot().backends["nitter"]
        assert scheduler.ledger().balanced
    assert all_there(site, replies)
    for mirror in kept:
        assert set(mirror.statuses) == {200}, "nothing is rejected by limits that are declared"
        assert len(mirror.statuses) > 10
    assert slow.arrived > 0
    assert sick.arrived <= 4 + 6, "those at once, then one after each rest"
    # Those that failed while it was known to be down cost none.
    assert 0 < sum(reply.attempts - 1 for reply in replies) <= sick.arrived

    assert state.rejected <= 20, "after a rejection it rests, and then takes what it allows"


async def test_dead_mirror_costs_few_attempts(site, mirror_of, free_port):
    """Nobody listens there, so that it is always the least busy one."""
    targets = many(site, 60, each=5)
    good = [await mirror_of(site) for _ in range(2)]
    quota = BackendQuota(concurrency=4)
    backend = NitterBackend("nitter", [f"http://127.0.0.1:{free_port()}", *(mirror.url for mirror in good)], quota)
    async with RateLimitScheduler([backend], retry=Retry(base=0.01)) as scheduler:
        replies = [reply async for reply in scheduler.map(targets)]
    assert all_there(site, replies)
    assert sum(reply.attempts for reply in replies) <= 60 + 4 + 6
    assert all(mirror.arrived > 30 for mirror in good)


# ---- Streams


async def test_stream_gives_each_tweet_as_it_comes(site, mirror_of):
    site.timelines["ada"] = posts(65)

    async def instead(request):
        return page("", 500) if "cursor" in request.query else None

    begins, ends = await mirror_of(site, instead), await mirror_of(site)
    backend = NitterBackend("nitter", [begins.url, ends.url], "30/min")
    async with RateLimitScheduler([backend], retry=QUICK) as scheduler:
        got = [tweet async for tweet in backend.stream(scheduler, "@ada")]
    assert ids(got) == [post.id for post in site.timelines["ada"]]


async def test_left_stream_asks_for_no_more_pages(site, mirror_of):
    site.timelines["ada"] = posts(400)
    mirror = await mirror_of(site)
    backend = NitterBackend("nitter", [mirror.url], max_items=None)
    async with RateLimitScheduler([backend]) as scheduler, backend.stream(scheduler, "@ada", buffer=5) as tweets:
        assert (await anext(tweets)).id == 1399
        await asyncio.sleep(0.05)
    assert mirror.arrived == 1


async def test_stream_raises_what_its_request_fails_with(site, mirror_of):
    mirror = await mirror_of(site)
    backend = NitterBackend("nitter", [mirror.url])
    async with RateLimitScheduler([backend]) as scheduler:
        with pytest.raises(RequestFailedError, match="not found"):
            await anext(backend.stream(scheduler, "@nobody"))


# ---- Options


@pytest.mark.parametrize(
    "option, value",
    [
        ("mirrors", []), ("mirrors", "https://nitter.example"), ("mirrors", None), ("mirrors", [7]),
        ("mirrors", ["nitter.example"]), ("mirrors", ["ftp://nitter.example"]), ("mirrors", ["http://"]), ("mirrors", ["http://[/"]),
        ("mirrors", ["http://nitter.example:99999"]), ("mirrors", ["https://nitter.example/?x=1"]),
        ("mirrors", ["https://a.example", "https://a.example/"]),
        ("max_items", 0), ("max_items", True), ("max_items", 1.5), ("form", "json"), ("read_timeout", 0), ("read_timeout", "1"),
        ("headers", {"X": "a\n"}), ("client", 3), ("max_redirects", -1),
    ],
)  # fmt: skip
def test_unusable_option_is_refused(option, value):
    with pytest.raises(ConfigError, match=option):
        NitterBackend("nitter", **{"mirrors": ["https://nitter.example"], option: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeline(""), lambda: Timeline("a b"), lambda: Timeline(7), lambda: Search(""), lambda: Search(None),
        lambda: Timeline("ada", max_items=0), lambda: Search("x", since=datetime(2026, 1, 1)), lambda: Search("x", until="2026"),  # noqa: DTZ001
    ],
)  # fmt: skip
def test_unusable_target_is_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_missing_lxml_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lxml", None)
    monkeypatch.delitem(sys.modules, "lxml.html", raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install 'lxml"):
        NitterBackend("nitter", ["https://nitter.example"])
