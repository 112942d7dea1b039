"""What a page of Nitter says, as HTML and as RSS; and what it says when it is no page of tweets.

The shape is that of zedeus/nitter: its classes, the texts of its error panel, its feed. Nothing is guessed: a page that has
neither a timeline nor an error panel is not Nitter's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urljoin

if TYPE_CHECKING:
    from lxml.etree import _Element as XmlElement
    from lxml.html import HtmlElement

    Parts = defaultdict[str, list[HtmlElement]]


@dataclass(frozen=True, slots=True)
class Tweet:
    """One tweet, as a timeline shows it. What a form of the page does not show is None.

    Attributes:
        id: Its number, the same on every mirror; of a retweet, that of the tweet that was retweeted.
        user: Who wrote it, without the @.
        name: What they call themselves; None in RSS.
        text: As shown, with line breaks; links in it may be shortened.
        created_at: In UTC, to the minute, in RSS to the second. Of a retweet, when the tweet was written.
        url: Where it is at x.com, the same on every mirror.
        replies: How many; None in RSS, and where a mirror hides or rounds it.
        retweets: As `replies`.
        quotes: As `replies`.
        likes: As `replies`.
        is_retweet: It is in this timeline because its user retweeted it.
        is_pinned: It was pinned to the top of the timeline.
        is_reply: It answers somebody else.
        quoted: The number of the tweet that it quotes.
        links: The http(s) links of its text, in full.
        media: Pictures and videos, as URLs on the mirror that was asked, without user and password.
    """

    id: int
    user: str
    name: str | None
    text: str
    created_at: datetime
    url: str
    replies: int | None = None
    retweets: int | None = None
    quotes: int | None = None
    likes: int | None = None
    is_retweet: bool = False
    is_pinned: bool = False
    is_reply: bool = False
    quoted: int | None = None
    links: tuple[str, ...] = ()
    media: tuple[str, ...] = ()


class Page(NamedTuple):
    """The tweets of one page, in its order."""

    tweets: tuple[Tweet, ...] = ()
    cursor: str | None = None
    """Where the next page begins; None when this is the last."""
    reached: datetime | None = None
    """Nothing on the pages after this one is newer; None when the page does not tell."""


class Refusal(Enum):
    """Why a page has no tweets."""

    LIMITED = "the mirror has used up its own limits"
    UNAVAILABLE = "the target is at fault: no mirror will show it"
    ABSENT = "there is nothing, or nothing more, as RSS says it"
    BROKEN = "the mirror is at fault"


class RefusedError(Exception):
    """A page without tweets; the message says what the mirror said."""

    def __init__(self, refusal: Refusal, said: str) -> None:
        super().__init__(said)
        self.refusal = refusal
        self.said = said


# A page of Nitter has 20, and some more where it shows threads.
MOST_ITEMS = 500
# Of what a tweet has at most a few of, no more are looked at: they may lie in each other, a thousand deep.
FEW = 8
STATUS_PATH = re.compile(r"/(\w+)/status/(\d{1,19})")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TITLE = re.compile(r"(\w{3}) (\d{1,2}), (\d{4}) · (\d{1,2}):(\d{2}) ([AP]M) UTC")
# Since November 2010 the upper bits of a number are the milliseconds from this instant.
SNOWFLAKES_FROM = datetime(2010, 11, 4, 1, 42, 54, 657000, tzinfo=UTC)
FIRST_SNOWFLAKE = 29_700_859_247
COUNTS = {"icon-comment": "replies", "icon-retweet": "retweets", "icon-quote": "quotes", "icon-heart": "likes"}
CREATOR = "{http://purl.org/dc/elements/1.1/}creator"
# What a feed puts before the text, and what it means.
PREFIXES = {
    "is_pinned": re.compile(r"Pinned: "),
    "is_retweet": re.compile(r"RT(?: by @\w+)?: "),
    "is_reply": re.compile(r"R to @\w+: "),
}


def read_html(body: bytes, base: str) -> Page:
    """The page that a timeline or a search is shown on; `base` is the mirror's URL, which links are read from.

    Raises:
        RefusedError: It has no tweets, for another reason than that there are none.
    """
    document = _document(body)
    parts = _by_class(document)
    if not parts["timeline"] or parts["timeline-protected"]:
        raise _refusal(document)
    tweets: list[Tweet] = []
    # A thread stands where its newest tweet does and shows older ones before it: it is one step down the page.
    steps: dict[object, datetime] = {}
    if len(parts["timeline-item"]) > MOST_ITEMS:
        raise RefusedError(Refusal.BROKEN, f"a page of more than {MOST_ITEMS} tweets")
    threads = set(parts["thread-line"])
    inner: set[HtmlElement] = set()
    for item in parts["timeline-item"]:
        if item in inner:
            continue
        inside = _by_class(item)
        inner.update(inside["timeline-item"])
        tweet = _tweet(item, inside, base)
        if tweet is None:
            continue
        tweets.append(tweet)
        if not (tweet.is_pinned or tweet.is_retweet):
            parent = item.getparent()
            step = parent if parent is not None and parent in threads else item
            steps[step] = max(tweet.created_at, steps.get(step, tweet.created_at))
    cursor = _cursor(parts)
    if cursor is None and b"</html>" not in body[-1024:].lower():
        raise RefusedError(Refusal.BROKEN, "a page that breaks off")
    return Page(tuple(tweets), cursor, min(steps.values(), default=None))


def read_rss(body: bytes, base: str, cursor: str | None) -> Page:
    """The feed of a timeline or a search; `cursor` is what its `Min-Id` header says.

    Raises:
        RefusedError: It is no feed.
    """
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(body, parser)
    except (etree.XMLSyntaxError, ValueError):
        root = None
    if root is None or root.tag != "rss":
        raise _refusal(_document(body))
    items = list(root.iter("item"))
    if len(items) > MOST_ITEMS:
        raise RefusedError(Refusal.BROKEN, f"a feed of more than {MOST_ITEMS} tweets")
    tweets = tuple(_entry(item, base) for item in items)
    # Which of them make a thread is not told: nothing after this page is newer than the newest on it.
    dates = [tweet.created_at for tweet in tweets if not (tweet.is_pinned or tweet.is_retweet)]
    return Page(tweets, cursor or None, max(dates, default=None))


def read_refusal(body: bytes) -> RefusedError:
    """What a page says that came with a status of 400 or more."""
    try:
        return _refusal(_document(body))
    except RefusedError as error:
        return error


def _document(body: bytes) -> HtmlElement:
    from lxml import etree, html

    try:
        return html.document_fromstring(body, parser=html.HTMLParser(encoding="utf-8", no_network=True))
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        raise RefusedError(Refusal.BROKEN, "an empty page") from None


def _refusal(document: HtmlElement) -> RefusedError:
    """What a page that has no timeline says instead."""
    parts = _by_class(document)
    if parts["timeline-protected"]:
        return RefusedError(Refusal.UNAVAILABLE, "the account is protected")
    panels = parts["error-panel"]
    said = _line(panels[0] if panels else document)
    lowered = said.lower()
    if "has been rate limited" in lowered and (panels or not parts["timeline"]):  # there they are the words of a tweet
        return RefusedError(Refusal.LIMITED, _short(said))
    if not panels:
        title = document.findtext(".//title")
        return RefusedError(Refusal.BROKEN, f"no page of Nitter, but {_short(title or said or 'an empty one')!r}")
    if lowered == "search not found":
        return RefusedError(Refusal.ABSENT, said)
    at_fault = (r"user\b.* not found", r"user\b.* has been suspended", r"search input too long")
    if any(re.match(pattern, lowered) for pattern in at_fault):
        return RefusedError(Refusal.UNAVAILABLE, _short(said))
    return RefusedError(Refusal.BROKEN, f"an error page: {_short(said)}")


def _tweet(item: HtmlElement, parts: Parts, base: str) -> Tweet | None:
    """The tweet of a place in the timeline; None when something else is there: a link to more, a user, what is withheld."""
    if not parts["tweet-content"] or parts["profile-result"]:
        return None
    quoted = None
    if parts["quote"]:
        quoted = _take_quotes(item, parts)
        parts = _by_class(item)  # its date, names and pictures are not this one's
    found = next(filter(None, (STATUS_PATH.search(link.get("href", "")) for link in parts["tweet-link"])), None)
    if found is None:
        raise RefusedError(Refusal.BROKEN, "a tweet that does not say which it is")
    number = int(found[2])
    title = next((link.get("title", "") for date in parts["tweet-date"][:FEW] for link in date.iter("a")), "")
    names, content = parts["fullname"], parts["tweet-content"][0]
    return Tweet(
        id=number,
        user=found[1],
        name=_line(names[0]) if names else None,
        text=_text(content),
        created_at=_written_at(title) or _numbered_at(number),
        url=f"https://x.com/{found[1]}/status/{number}",
        is_retweet=bool(parts["retweet-header"]),
        is_pinned=bool(parts["pinned"]),
        is_reply=bool(parts["replying-to"]),
        quoted=quoted,
        links=_links(content),
        media=_media([*parts["attachments"][:FEW], *parts["card"][:FEW]], parts["still-image"][:FEW], base),
        **_counts(parts["tweet-stat"][:FEW]),
    )


def _entry(item: XmlElement, base: str) -> Tweet:
    """The tweet of an entry of a feed."""
    from lxml import html

    found = STATUS_PATH.search(item.findtext("link") or "")
    if found is None:
        raise RefusedError(Refusal.BROKEN, "a tweet that does not say which it is")
    number = int(found[2])
    content = html.fragment_fromstring(item.findtext("description") or "", create_parent="div")
    quotes = [STATUS_PATH.search(link.get("href", "")) for quote in content.iter("blockquote") for link in quote.iter("a")]
    for element in [*content.iter("blockquote"), *content.iter("hr")]:
        element.drop_tree()
    text = _text(content)
    title = item.findtext("title") or ""
    marks = {mark: bool(prefix.match(title)) and not prefix.match(text) for mark, prefix in PREFIXES.items()}
    return Tweet(
        id=number,
        user=(item.findtext(CREATOR) or found[1]).removeprefix("@"),
        name=None,
        text=text,
        created_at=_published_at(item.findtext("pubDate") or "") or _numbered_at(number),
        url=f"https://x.com/{found[1]}/status/{number}",
        quoted=next((int(quote[2]) for quote in quotes if quote), None),
        links=_links(content),
        media=_media([content], [], base),
        **marks,
    )


def _by_class(element: HtmlElement) -> Parts:
    """What is in an element, by the classes that it has, in one go: searches for each would cost a page 30 ms."""
    found: Parts = defaultdict(list)
    for part in element.iter("*"):
        for name in part.get("class", "").split():
            found[name].append(part)
    return found


def _take_quotes(item: HtmlElement, parts: Parts) -> int | None:
    """Remove the tweet that is quoted; gives its number."""
    links = (STATUS_PATH.search(link.get("href", "")) for link in parts["quote-link"])
    for quote in parts["quote"]:
        if quote is not item:
            quote.drop_tree()
    return next((int(link[2]) for link in links if link), None)


def _counts(stats: Iterable[HtmlElement]) -> dict[str, int | None]:
    """The numbers below a tweet. None is shown for 0; what is rounded, as 1.2K, is not a number."""
    counts: dict[str, int | None] = {}
    for stat in stats:
        for icon in _by_class(stat).keys() & COUNTS.keys():
            digits = _line(stat).replace(",", "") or "0"
            counts[COUNTS[icon]] = int(digits) if re.fullmatch(r"[0-9]{1,15}", digits) else None
    return counts


def _cursor(parts: Parts) -> str | None:
    """Where the next page begins. A link at the top leads to the newest, and has no cursor."""
    for more in reversed(parts["show-more"][-FEW:]):
        for link in more.iter("a"):
            href = link.get("href", "")
            if "cursor=" in href and (cursor := parse_qs(href.partition("#")[0].partition("?")[2]).get("cursor")):
                return cursor[0]
    return None


def _links(content: HtmlElement) -> tuple[str, ...]:
    found = (link.get("href", "") for link in content.iter("a"))
    return tuple(dict.fromkeys(link for link in found if link.startswith(("http://", "https://"))))


def _media(places: Iterable[HtmlElement], pictures: list[HtmlElement], base: str) -> tuple[str, ...]:
    """What is attached; a picture's link leads to it in full, what it is shown by is smaller."""
    smaller = {image for picture in pictures for image in picture.iter("img")}
    found = [picture.get("href") for picture in pictures]
    for place in places:
        shown = (element for element in place.iter("video", "source", "img") if element not in smaller)
        found.extend(element.get("src") or element.get("data-url") for element in shown)
    return tuple(dict.fromkeys(filter(None, (_joined(base, url) for url in found if url))))


def _joined(base: str, url: str) -> str | None:
    try:
        return urljoin(f"{base}/", url)
    except ValueError:  # no URL, as `http://[`
        return None


def _text(content: HtmlElement) -> str:
    """The text of a tweet, with its line breaks."""
    for line_break in content.iter("br"):
        line_break.tail = "\n" + (line_break.tail or "").lstrip("\n")
    return content.text_content().strip()


def _line(element: HtmlElement) -> str:
    return " ".join(element.text_content().split())


def _short(said: str) -> str:
    return said if len(said) <= 100 else said[:99] + "…"


def _written_at(title: str) -> datetime | None:
    """The date that a tweet's link is titled with, as `Sep 11, 2025 · 12:31 PM UTC`."""
    found = TITLE.fullmatch(title.strip())
    if found is None or found[1] not in MONTHS:
        return None
    hour = int(found[4]) % 12 + (12 if found[6] == "PM" else 0)
    try:
        return datetime(int(found[3]), MONTHS.index(found[1]) + 1, int(found[2]), hour, int(found[5]), tzinfo=UTC)
    except ValueError:
        return None


def _published_at(date: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(date)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the latter for the year 10000 in UTC, and for a time zone of many digits
        return None


def _numbered_at(number: int) -> datetime:
    """When a number was given out, for a page that writes dates in another way."""
    if number < FIRST_SNOWFLAKE:
        raise RefusedError(Refusal.BROKEN, "a tweet without a date that can be read")
    return SNOWFLAKES_FROM + timedelta(milliseconds=number >> 22)
