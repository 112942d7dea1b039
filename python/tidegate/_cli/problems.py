"""What is wrong with a file of the user's: every line of it at once, with the nearest right word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import IO, Any, Self

import click
import msgspec

LONGEST = 60
"""Characters of a wrong value that are quoted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and the way out.

    Attributes:
        line: Where, from 1; 0 for the file as a whole.
        section: `[targets]`, or `[[backend]] "api"`.
        key: Inside the section; empty for the section itself.
        way_out: What to do about it.
        value: What was given, as it may be shown; None when it is not to be shown.
        nearest: The right word that is nearest to it.
    """

    line: int
    section: str
    key: str
    way_out: str
    value: str | None = None
    nearest: str | None = None

    def told(self, file: str) -> str:
        """In one line."""
        place = " ".join(filter(None, (self.section, self.key)))
        value = "" if self.value is None else f" = {self.value}"
        nearest = "" if self.nearest is None else f'. Did you mean "{self.nearest}"?'
        where = f"{file}:{self.line} " if self.line else f"{file}:"
        return f"{where} {f'{place}{value}: '.lstrip(' :')}{self.way_out}{nearest}"


class BadFileError(click.ClickException):
    """A file that cannot be used; nothing has been sent."""

    exit_code = 2

    @classmethod
    def of(cls, file: str, *problems: Problem) -> Self:
        """With all that is wrong with a file."""
        return cls("\n".join(problem.told(file) for problem in sorted(problems, key=lambda problem: problem.line)))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print one line for each problem: they begin with file and line, as editors read them."""
        click.echo(self.message, file=file, err=True)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that is meant, if it is plain."""
    return next(iter(get_close_matches(word.lower(), list(words), n=1, cutoff=0.6)), None)


def quoted(value: object) -> str:
    """A value as TOML writes it, briefly."""
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, UnicodeError):
        text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
