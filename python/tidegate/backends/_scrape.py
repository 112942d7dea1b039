"""A scrape as it is asked for, and how it fails."""

from __future__ import annotations

from tidegate import TidegateError


class Scrape:
    """A target that names its scraper: `Scrape("twitter-search", "python", maxEmptyPages=5)`.

    Args:
        scraper: Its name, as snscrape's command line has it.
        *args: Of the scraper's class.
        **kwargs: The same by name.
    """

    __slots__ = ("args", "kwargs", "scraper")

    def __init__(self, scraper: str, /, *args: object, **kwargs: object) -> None:
        self.scraper = scraper
        self.args = args
        self.kwargs = kwargs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scrape):
            return NotImplemented
        return (self.scraper, self.args, self.kwargs) == (other.scraper, other.args, other.kwargs)

    def __hash__(self) -> int:
        return hash((self.scraper, self.args))

    def __repr__(self) -> str:
        parts = [repr(part) for part in (self.scraper, *self.args)] + [f"{name}=..." for name in self.kwargs]
        return f"Scrape({', '.join(parts)})"


class ScrapeError(TidegateError):
    """A scrape that failed: a message without a good answer, or a page that snscrape cannot read.

    Attributes:
        url: Where the last message went, without user, password and query; None when none was sent.
        status: Of the answer, from 400 on, when it is what failed; the scheduler tells by it what the failure means.
    """

    def __init__(self, problem: str, *, url: str | None = None, status: int | None = None) -> None:
        super().__init__(problem if url is None else f"{url}: {problem}")
        self.url = url
        self.status = status
