"""On which line of a TOML text each key stands; `tomllib` reads the values alone."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections import Counter

Path = tuple[str | int, ...]
"""Keys, and places in arrays from 0: `("backend", 0, "quota")`."""

BLANK = re.compile(r"[ \t]*")
BETWEEN = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2}) | \'\'\'.*?\'\'\'(?:\'{0,2}) | "(?:\\.|[^"\\])*" | \'[^\']*\'',
    re.VERBOSE | re.DOTALL,
)
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
BARE_VALUE = re.compile(r"[^,\]}#\n]+")


def lines_of(text: str) -> dict[Path, int]:
    """The line, from 1, of each table, key and element, by its path.

    Args:
        text: What `tomllib` has read without complaint: nothing is checked here.
    """
    return _Scan(text).found


class _Scan:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Path, int] = {}
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._elements: Counter[Path] = Counter()
        table: Path = ()
        while self._skip(BETWEEN) < len(text):
            if text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        """`[a.b]` or `[[a.b]]`: the table that follows."""
        line = self._line()
        is_element = self.text.startswith("[[", self.at)
        self.at += 1 + is_element
        *parents, last = self._key()
        path: Path = ()
        for part in parents:
            path = (*path, part)
            self.found.setdefault(path, line)
            path = self._inside(path)
        path = (*path, last)
        self.at += 1 + is_element
        self.found.setdefault(path, line)
        if is_element:
            self._elements[path] += 1
        path = self._inside(path)
        self.found[path] = line
        return path

    def _inside(self, path: Path) -> Path:
        """The table of a name: of an array of tables the last one."""
        return (*path, self._elements[path] - 1) if path in self._elements else path

    def _pair(self, table: Path) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self.found.setdefault(path, line)
        self.at += 1  # the equals sign
        self._skip(BLANK)
        self._value(path)

    def _key(self) -> list[str]:
        """`a."b c".d`, with the blanks around it."""
        parts = []
        while True:
            self._skip(BLANK)
            if quoted := STRING.match(self.text, self.at):
                parts.append(tomllib.loads(f"key = {quoted[0]}")["key"])
                self.at = quoted.end()
            else:
                parts.append(self._take(BARE_KEY))
            self._skip(BLANK)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, path: Path) -> None:
        self.found.setdefault(path, self._line())
        start = self.text[self.at]
        if start == "[":
            self.at += 1
            place = 0
            while self._more("]"):
                self._value((*path, place))
                place += 1
        elif start == "{":
            self.at += 1
            while self._more("}"):
                self._pair(path)
        else:
            self._take(STRING if start in "\"'" else BARE_VALUE)

    def _more(self, end: str) -> bool:
        """Go to the next element, or past the end."""
        self._skip(BETWEEN)
        if self.text[self.at] == ",":
            self.at += 1
            self._skip(BETWEEN)
        if self.text[self.at] != end:
            return True
        self.at += 1
        return False

    def _skip(self, what: re.Pattern[str]) -> int:
        self._take(what)
        return self.at

    def _take(self, what: re.Pattern[str]) -> str:
        found = what.match(self.text, self.at)
        assert found is not None, "tomllib has read it"
        self.at = found.end()
        return found[0]

    def _line(self) -> int:
        return bisect_left(self._ends, self.at) + 1
