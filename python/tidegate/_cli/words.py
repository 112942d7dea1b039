"""Values that a configuration writes as text: spans, sizes, priorities, limits, variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from tidegate import ConfigError, Limit, Priority
from tidegate._cli.problems import nearest
from tidegate._quota import UNITS

SIZES = {
    "b": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)
NEARLY_A_LIMIT = re.compile(
    r"\s*(?P<amount>\d[\d_]*k?)\s*(?:requests?\s*)?(?:/|\bper\b|\bp|\ba\b|\ban\b|\bevery\b|\bin\b|\s)\s*"
    r"(?P<count>\d*)\s*(?P<unit>[a-z]+)(?P<rest>.*)",
    re.IGNORECASE,
)
LIMIT_WORDS = ("burst", "window", "bucket", "leaky", "counter", "unknown", "per")
REFERENCE = re.compile(r"\$\$|\$\{([^{}]*)\}|\$\{")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ACCOUNT = re.compile(r"account(\.[A-Za-z_][A-Za-z0-9_]*)?")


class WordError(ValueError):
    """A word that says nothing; the message is the way out."""

    def __init__(self, way_out: str, near: str | None = None, element: int | None = None) -> None:
        super().__init__(way_out)
        self.near = near
        self.element = element  # of an array, from 0


class Seconds(float):
    """A span, above 0."""

    @classmethod
    def read(cls, value: object) -> Seconds:
        """Read `"30s"`, `"15min"`, or a number of seconds."""
        seconds = _quantity(value, UNITS, 'give a span above 0, such as "30s", "15min" or "1h"')
        return cls(seconds)


class Size(int):
    """A number of bytes, above 0."""

    @classmethod
    def read(cls, value: object) -> Size:
        """Read `"100MB"`, `"64KiB"`, or a number of bytes."""
        return cls(_quantity(value, SIZES, 'give a size above 0, such as "100MB" or "64KiB"'))


class Urgency(int):
    """A priority."""

    @classmethod
    def read(cls, value: object) -> Urgency:
        """Read `"high"`, or a number from 0 to 255."""
        words = {priority.name.lower(): int(priority) for priority in Priority}
        if isinstance(value, str):
            word = value.strip().lower()
            value = words.get(word, int(word) if word.isascii() and word.isdigit() else None)
            if value is None:
                raise WordError(f"give one of {', '.join(words)}, or a number from 0 to 255", nearest(word, words))
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
            raise WordError("give a priority from 0 (most urgent) to 255")
        return cls(value)


class Limits(tuple[Limit, ...]):
    """What a backend allows."""

    __slots__ = ()

    @classmethod
    def read(cls, value: object) -> Limits:
        """Read one limit, or an array of them."""
        if not isinstance(value, list):
            return cls([limit_of(value)])
        limits = []
        for place, text in enumerate(value):
            try:
                limits.append(limit_of(text))
            except WordError as error:
                raise WordError(str(error), error.near, place) from None
        return cls(limits)


def limit_of(value: object) -> Limit:
    """A limit, from its text."""
    if not isinstance(value, str):
        raise WordError('give a text such as "100/min", or an array of them')
    try:
        return Limit.parse(value)
    except ConfigError as error:
        raise WordError(str(error).removeprefix(f"quota={value!r}: "), _nearest_limit(value)) from None


def _nearest_limit(text: str) -> str | None:
    """The limit that a text nearly is."""
    found = NEARLY_A_LIMIT.fullmatch(text)
    if found is None:
        return None
    unit = nearest(found["unit"], UNITS)
    rest = " ".join(nearest(word, LIMIT_WORDS) or word for word in found["rest"].split())
    candidate = f"{found['amount']}/{found['count']}{unit} {rest}".strip()
    try:
        Limit.parse(candidate)
    except ConfigError:
        return None
    return candidate


def _quantity(value: object, units: Mapping[str, float], way_out: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number, unit = float(value), 1.0
    elif isinstance(value, str) and (found := QUANTITY.fullmatch(value)):
        word = found[2].lower()
        if word not in units:
            near = nearest(word, [unit for unit in units if len(unit) > 1])
            raise WordError(way_out, None if near is None else f"{found[1]}{near}")
        number, unit = float(found[1]), units[word]
    else:
        is_bare = isinstance(value, str) and value.strip().isdigit() and "s" in units
        raise WordError(way_out, f"{str(value).strip()}s" if is_bare else None)
    if not 0 < number * unit < float("inf"):
        raise WordError(way_out)
    return number * unit


class Cap(int):
    """Attempts at once; 0 stands for no cap."""

    @classmethod
    def read(cls, value: object) -> Cap:
        """Read a number from 1, or `"none"`."""
        if value == "none":
            return cls(0)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**32:
            raise WordError('give a whole number from 1, or "none" for no cap')
        return cls(value)


class Variables:
    """The environment's variables that a configuration refers to.

    Args:
        environ: Where they are looked up; one that is empty counts as not set.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.is_set: dict[str, bool] = {}

    def fill(self, text: str, account: Mapping[str, str] | None = None) -> tuple[str, list[str]]:
        """Put values in the place of `${NAME}`, and `$` in that of `$$`.

        Args:
            text: From the configuration.
            account: What `${account}` and `${account.name}` stand for, by these names.

        Returns:
            The text, and the names of the variables that are not set, each of which is left out.

        Raises:
            WordError: A reference is not closed, names nothing, or is to an account where there is none.
        """
        missing = []

        def value(found: re.Match[str]) -> str:
            if found[0] == "$$":
                return "$"
            name = found[1]
            if name is None:
                raise WordError("a variable begins with ${ and ends with }; write $$ for a dollar sign")
            if account is not None and ACCOUNT.fullmatch(name):
                if name not in account:
                    raise WordError(f"{found[0]} is of no account; there is {', '.join(f'${{{key}}}' for key in account)}")
                return account[name]
            if account is None and ACCOUNT.fullmatch(name):
                raise WordError(f"{found[0]} is for headers of a backend that has accounts; give it accounts = [...]")
            if not NAME.fullmatch(name):
                raise WordError(f"{found[0]} names no variable; give letters, digits and _, such as ${{API_KEY}}")
            self.is_set[name] = bool(self._environ.get(name))
            if not self.is_set[name]:
                missing.append(name)
            return self._environ.get(name, "")

        return REFERENCE.sub(value, text), missing


def choices_of(annotation: Any) -> Iterable[str]:
    """The words of the `Literal`s in an annotation."""
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        else:
            yield from choices_of(argument)
