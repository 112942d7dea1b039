"""Mirrors of Nitter on loopback: pages in its shape, of our own making, from tweets of our own making."""

import asyncio
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from html import escape
from urllib.parse import quote

from aiohttp import web

NOW = datetime(2026, 3, 14, 15, 9, tzinfo=UTC)
PER_PAGE = 20


@dataclass
class Post:
    """A tweet as the site knows it; the defaults make plain ones."""

    id: int
    user: str = "ada"
    name: str = "Ada L"
    text: str = ""
    at: datetime = NOW
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    retweeted_by: str | None = None
    pinned: bool = False
    replying_to: str | None = None
    quoted: "Post | None" = None
    link: str | None = None
    picture: str | None = None
    video: str | None = None
    thread: list["Post"] = field(default_factory=list)


def posts(count: int, user: str = "ada", start: int = 1000) -> list[Post]:
    """Plain tweets, newest first, a minute apart."""
    return [Post(start + n, user, text=f"tweet {n} of {user}", at=NOW - timedelta(minutes=count - n)) for n in range(count)][::-1]


def stat(icon: str, number: int) -> str:
    shown = f" {number:,}" if number else ""
    return f'<span class="tweet-stat"><div class="icon-container"><span class="icon-{icon}" title=""></span>{shown}</div></span>'


def date(post: Post) -> str:
    title = f"{post.at:%b} {post.at.day}, {post.at.year} · {post.at.hour % 12 or 12}:{post.at:%M} {post.at:%p} UTC"
    return f'<span class="tweet-date"><a href="/{post.user}/status/{post.id}#m" title="{title}">2h</a></span>'


def names(post: Post) -> str:
    return (
        f'<div class="fullname-and-username"><a class="fullname" href="/{post.user}" title="{post.name}">{escape(post.name)}</a>'
        f'<a class="username" href="/{post.user}" title="@{post.user}">@{post.user}</a></div>'
    )


def attachments(post: Post) -> str:
    shown = ""
    if post.picture:
        shown += (
            '<div class="attachments"><div class="gallery-row"><div class="attachment image">'
            f'<a class="still-image" href="/pic/orig/{quote(post.picture, safe="")}" target="_blank">'
            f'<img src="/pic/{quote(post.picture + "?name=small", safe="")}" alt=""></a></div></div></div>'
        )
    if post.video:
        shown += (
            '<div class="attachments card"><div class="gallery-video"><div class="attachment video-container">'
            f'<video src="{post.video}" poster="/pic/thumb" controls=""></video></div></div></div>'
        )
    return shown


def quoted(post: Post) -> str:
    return (
        f'<div class="quote quote-big"><a class="quote-link" href="/{post.user}/status/{post.id}#m"></a>'
        f'<div class="tweet-name-row">{names(post)}{date(post)}</div>'
        f'<div class="quote-text" dir="auto">{escape(post.text)}</div>'
        f'<div class="quote-media-container">{attachments(post)}</div></div>'
    )


def item(post: Post, extra: str = "") -> str:
    """A place of the timeline."""
    header = f'<div class="retweet-header"><span>{post.retweeted_by} retweeted</span></div>' if post.retweeted_by else ""
    header += '<div class="pinned"><span>Pinned Tweet</span></div>' if post.pinned else ""
    reply = (
        f'<div class="replying-to">Replying to <a href="/{post.replying_to}">@{post.replying_to}</a></div>'
        if post.replying_to
        else ""
    )
    link = f' <a href="{post.link}">{escape(post.link[:20])}…</a>' if post.link else ""
    counts = "".join(stat(*pair) for pair in zip(("comment", "retweet", "quote", "heart"), post.counts, strict=True))
    return (
        f'<div class="timeline-item {extra}" data-username="{post.user}">'
        f'<a class="tweet-link" href="/{post.user}/status/{post.id}#m"></a><div class="tweet-body"><div>{header}'
        f'<div class="tweet-header"><a class="tweet-avatar" href="/{post.user}"><img class="avatar round" src="/pic/a.jpg"></a>'
        f'<div class="tweet-name-row">{names(post)}{date(post)}</div></div></div>{reply}'
        f'<div class="tweet-content media-body" dir="auto">{escape(post.text)}{link}</div>{attachments(post)}'
        f'{quoted(post.quoted) if post.quoted else ""}<div class="tweet-stats">{counts}</div></div></div>'
    )


def main(body: str, title: str = "nitter") -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><title>{escape(title)}</title></head><body><nav></nav>'
        f'<div class="container">{body}</div></body></html>'
    )


def panel(said: str) -> str:
    """Nitter's error page."""
    return main(f'<div class="panel-container"><div class="error-panel"><span>{said}</span></div></div>', "Error | nitter")


LIMITED = panel(
    'Instance has been rate limited.<br>Use <a href="https://instances.example">another instance</a> or try again later.'
)


def timeline(items: str, more: str = "", newest: str = "") -> str:
    """A page with a timeline: what leads to the newest, its places, what leads on."""
    none = '<div class="timeline-header"><h2 class="timeline-none">No items found</h2></div>'
    end = '<div class="timeline-footer"><h2 class="timeline-end">No more items</h2></div>'
    middle = items or (end if newest else none)
    return main(f'<div class="timeline-container"><div class="timeline">{newest}{middle}{more}</div></div>')


def entry(post: Post, host: str) -> str:
    """An entry of the feed."""
    prefix = f"RT by @{post.retweeted_by}: " if post.retweeted_by else "Pinned: " if post.pinned else ""
    prefix = prefix or (f"R to @{post.replying_to}: " if post.replying_to else "")
    text = escape(post.text).replace("\n", "<br>\n") + (f' <a href="{post.link}">{post.link[:20]}…</a>' if post.link else "")
    media = f'<img src="http://{host}/pic/{quote(post.picture, safe="")}" style="max-width:250px;" />' if post.picture else ""
    if post.quoted:
        link = f"http://{host}/{post.quoted.user}/status/{post.quoted.id}#m"
        media += f"<hr/><blockquote><b>{post.quoted.name}</b><p>{post.quoted.text}</p>"
        media += f'<footer>— <a href="{link}">{link}</a></footer></blockquote>'
    return (
        f"<item><title>{escape(prefix + post.text)}</title><dc:creator>@{post.user}</dc:creator>"
        f"<description><![CDATA[<p>{text}</p>\n{media}]]></description><pubDate>{format_datetime(post.at, usegmt=True)}</pubDate>"
        f"<guid>http://{host}/{post.user}/status/{post.id}#m</guid><link>http://{host}/{post.user}/status/{post.id}#m</link></item>"
    )


def feed(entries: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><rss xmlns:atom="http://www.w3.org/2005/Atom" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" version="2.0"><channel><title>feed</title>'
        f"<link>http://nitter.example</link><ttl>40</ttl>{entries}</channel></rss>"
    )


class Site:
    """What all mirrors show: timelines by user, and searches over them. Cursors mean the same on each."""

    def __init__(self) -> None:
        self.timelines: dict[str, list[Post]] = {}

    def found(self, request: web.Request) -> list[Post] | None:
        """The tweets that a path leads to; None when there is no such user."""
        parts = request.path.strip("/").removesuffix("/rss").split("/")
        if parts[0] == "search":
            every = [post for found in self.timelines.values() for post in found if request.query["q"] in post.text]
            return sorted(every, key=lambda post: post.at, reverse=True)
        return self.timelines.get(parts[0])

    def answer(self, request: web.Request) -> web.Response:
        """The page that is asked for."""
        is_rss = request.path.endswith("/rss")
        found = self.found(request)
        cursor = request.query.get("cursor")
        first = int(b64decode(cursor)) if cursor else 0
        if found is None or (is_rss and not found[first:]):
            name = request.path.strip("/").split("/")[0]
            return page(panel("Search not found" if name == "search" else f'User "{name}" not found'), 404)
        shown = found[first : first + PER_PAGE]
        following = b64encode(f"{first + PER_PAGE:07}".encode()).decode() if shown else ""
        if is_rss:
            text = feed("".join(entry(post, request.host) for post in shown))
            return web.Response(text=text, content_type="application/rss+xml", headers={"Min-Id": following})
        query = "".join(f"{name}={quote(request.query[name], safe='')}&" for name in ("f", "q") if name in request.query)
        more = f'<div class="show-more"><a href="?{query}cursor={quote(following, safe="")}">Load more</a></div>' if shown else ""
        newest = f'<div class="timeline-item show-more"><a href="{request.path}">Load newest</a></div>' if cursor else ""
        return page(timeline("".join(place(post) for post in shown), more, newest))


def place(post: Post) -> str:
    """One tweet, or a thread with its oldest first."""
    if not post.thread:
        return item(post)
    return f'<div class="thread-line">{"".join(item(part, "thread") for part in post.thread)}</div>'


def page(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html")


@dataclass
class Mirror:
    """One mirror of a site. It counts what arrives, and what it says instead of a page, by what that was."""

    site: Site
    instead: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None
    url: str = ""
    arrived: int = 0
    at: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.arrived += 1
        self.at.append(asyncio.get_running_loop().time())
        response = await self.instead(request) if self.instead else None
        response = response or self.site.answer(request)
        self.statuses[response.status] += 1
        return response
