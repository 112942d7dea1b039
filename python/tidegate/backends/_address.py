"""How a target becomes a URL, and how a URL is shown without its secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from tidegate import ConfigError

if TYPE_CHECKING:
    from yarl import URL

PLACE = "{target}"
FORMS = "give a base that ends in '/', a URL with {target} in its path or query, or '{target}' for targets that are URLs"


class AddressError(ValueError):
    """A target that makes no URL of its backend's; the message does not contain the target."""


class Address:
    """Where the requests of one backend go.

    One of three forms, told apart by the text:

    * ``"https://api.example/users/{target}"``: the target's text is percent-encoded and put in its place, in the path or
      the query, so no target can change anything else of the URL.
    * ``"https://api.example/v1/"``: the target is a reference, resolved as a browser would: ``"users/7"``, ``"?page=2"``,
      ``"/v2/users"``, or an absolute URL of the same origin, as "next page" links are.
    * ``"{target}"``: each target is a whole http(s) URL and is used as it is.
    """

    def __init__(self, text: str) -> None:
        _check(text)
        self.text = text
        self.whole = text == PLACE
        self.template = PLACE in text
        # A segment of its own must not be "." or "..", which would climb out of the template's path.
        self._segment = re.search(r"/\{target\}(?=[/?#]|$)", text) is not None

    def of(self, target: object) -> URL:
        """The URL of a target.

        Raises:
            AddressError: The target is of a wrong type, no URL, or leads away from the backend's origin.
        """
        from yarl import URL

        if self.template and not self.whole:
            text = str(target)
            if self._segment and text in {".", ".."}:
                raise AddressError(f"target {text!r} is a step in the path, not a name")
            return URL(self.text.replace(PLACE, quote(text, safe="")))
        if not isinstance(target, (str, URL)):
            raise AddressError(f"target is of type {type(target).__name__}, not a URL; to insert it, put {PLACE} into the url")
        try:
            url = URL(target)
            base = None if self.whole else URL(self.text)
            if base is not None:
                url = base.join(url)
                if url.user is None:  # an absolute link of the same origin
                    url = url.with_user(base.user).with_password(base.password) if base.user else url
            fits = url.scheme in {"http", "https"} and bool(url.host) and (base is None or url.origin() == base.origin())
        except ValueError:
            url, fits = None, False  # its text may hold secrets: the cause is not chained
        if url is None or not fits:
            expected = "an http(s) URL" if self.whole else f"a reference within {shown(self.text)}"
            raise AddressError(f"target of length {len(str(target))} is not {expected}")
        return url

    def __repr__(self) -> str:
        return shown(self.text)


def shown(url: str | URL) -> str:
    """A URL as it may appear in messages: without user, password, query and fragment."""
    text = str(url)
    if text == PLACE:
        return text
    parts = urlsplit(text)
    if not parts.netloc:  # no URL yet: `api.example/items/`, `localhost:8080/items/`
        _, at, path = parts.path.rpartition("@")
        return f"{parts.scheme}:{path}" if parts.scheme and not at else path
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def refused(option: str, value: object, way_out: str) -> ConfigError:
    """The error of an option; `value` as it may be shown."""
    return ConfigError(f"{option}={value!r}: {way_out}", option=option, value=value)


def _check(text: str) -> None:
    """Refuse what could not become a URL, before anything is sent."""
    if not isinstance(text, str):
        raise refused("url", text, FORMS)
    if text == PLACE:
        return
    try:
        parts = urlsplit(text)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port  # raises when it is no number below 65536
    except ValueError:
        raise refused("url", "an unreadable URL", FORMS) from None
    value = shown(text)
    if not fits:
        raise refused("url", value, f"start it with http:// or https:// and a host; {FORMS}")
    if parts.fragment or "#" in text:
        raise refused("url", value, "leave out the fragment ('#...'): it is never sent")
    if names := set(re.findall(r"\{[^{}]*\}", text)) - {PLACE}:
        raise refused("url", value, f"the only field is {PLACE}, not {', '.join(sorted(names))}")
    if PLACE in parts.netloc:
        raise refused("url", value, f"put {PLACE} into the path or the query; for many hosts use url='{PLACE}'")
    if PLACE not in text and (parts.query or not parts.path.endswith("/")):
        raise refused("url", value, FORMS)
