"""What is to be collected, from a configuration, a file or standard input; and the lines of it that are no targets."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from tidegate._cli.config import Plan, format_of
from tidegate._cli.words import Seconds, Urgency, WordError
from tidegate._scopes import HOST, host_of
from tidegate.backends._address import AddressError

OF_BACKEND = "*"
"""The host of targets that are no URLs: that of their backend, which is one and the same."""
MOST_TOLD = 5
"""Bad lines that are told one by one."""
CHUNK = 64 * 1024
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class LineError(ValueError):
    """A line that is no target; the message says why."""


@dataclass(slots=True)
class Targets:
    """What was read of them so far.

    Attributes:
        source: Where they come from, as messages name it.
        options: Of those that have any of their own, by target.
        bad: Lines that were left out; of the first few, what is wrong.
        duplicates: Those that were there before, and were left out.
        tell: Told of each of the first few bad lines, when they come while it is collected.
    """

    source: str
    options: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    bad: int = 0
    told: list[str] = field(default_factory=list)
    duplicates: int = 0
    tell: Callable[[str], object] | None = None

    def leave_out(self, line: int, reason: str) -> None:
        """Note a bad line."""
        self.bad += 1
        if self.bad <= MOST_TOLD:
            text = f"{self.source}:{line}  {reason}"
            self.told.append(text)
            if self.tell is not None:
                self.tell(text)

    @property
    def left_out(self) -> str:
        """How many lines were, as the end of a sentence; empty for none."""
        counts = ((self.bad, "bad line"), (self.duplicates, "duplicate"))
        words = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
        return f", without {' and '.join(words)}" if words else ""

    def scopes(self, target: object) -> Mapping[str, str]:
        """What limits count a target by: what its line says, and its host."""
        own: Mapping[str, str] = self.options.get(str(target), {}).get("scopes", {})
        return own if HOST in own or host_of(target) is not None else {**own, HOST: OF_BACKEND}

    def option(self, name: str, default: object) -> Callable[[object], Any]:
        """An option as a function of the target."""
        return lambda target: self.options.get(str(target), {}).get(name, default)


Item = tuple[int, str | LineError, Mapping[str, Any]]
"""Of a target: its line, itself or why it is none, and its own options."""
Parse = Callable[[Iterable[bytes]], Iterator[Item]]
"""Lines as bytes -> what there is in them."""


def read_all(plan: Plan, path: str) -> tuple[list[str], Targets]:
    """All targets, each once.

    Args:
        plan: Which says where they are.
        path: Of their file, if they are in one; `-` for standard input.

    Raises:
        OSError: The file cannot be read.
        LineError: It has no header, or not the column that is wanted.
    """
    targets = Targets("[targets] list" if plan.targets.inline is not None else "standard input" if path == "-" else path)
    found: dict[str, None] = {}
    with ExitStack() as stack:
        if plan.targets.inline is not None:
            items: Iterator[Item] = ((place, str(target), {}) for place, target in enumerate(plan.targets.inline, 1))
        else:
            items = _parser(plan)(stack.enter_context(open(0 if path == "-" else path, "rb", closefd=path != "-")))
        for line, target, options in _reachable(items, plan):
            if isinstance(target, LineError):
                targets.leave_out(line, str(target))
            elif target in found:
                targets.duplicates += 1
            else:
                found[target] = None
                if options:
                    targets.options[target] = options
    return list(found), targets


async def read_as_they_come(plan: Plan, targets: Targets) -> AsyncIterator[str]:
    """The targets of standard input, which may go on for as long as it likes; one that comes again is collected again."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Item | BaseException | None] = asyncio.Queue(1000)

    def hand_over(item: Item | BaseException | None) -> None:
        asyncio.run_coroutine_threadsafe(arrived.put(item), loop).result()

    def read() -> None:
        end: BaseException | None = None
        try:
            for item in _reachable(_parser(plan)(_lines_of(sys.stdin.fileno())), plan):
                hand_over(item)
        except (OSError, LineError) as error:
            end = error
        hand_over(end)

    # A daemon: nobody can wake it from its reading when the program ends.
    threading.Thread(target=read, name="tidegate-targets", daemon=True).start()
    while (item := await arrived.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        line, target, options = item
        if isinstance(target, LineError):
            targets.leave_out(line, str(target))
            if plan.targets.strict:
                raise LineError(f"line {line} {target}")
            continue
        if options:
            targets.options[target] = options
        yield target


def _lines_of(file: int) -> Iterator[bytes]:
    """The lines of a pipe or a terminal, as soon as each is whole."""
    rest = b""
    while chunk := os.read(file, CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _reachable(items: Iterator[Item], plan: Plan) -> Iterator[Item]:
    """Leave out what leads nowhere: where targets are URLs themselves, what is none."""
    addresses = [address for address in plan.addresses if not address.template or address.whole]
    if not addresses or find_spec("yarl") is None:
        yield from items
        return
    for line, target, options in items:
        try:
            if not isinstance(target, LineError):
                for address in addresses:
                    address.of(target)
        except AddressError as error:
            yield line, LineError(str(error)), options
        else:
            yield line, target, options


def _parser(plan: Plan) -> Parse:
    table, known = plan.targets, [backend.name for backend in plan.backends]
    form = format_of(table)
    if form == "text":
        return _text
    options = _Options(table.options, table.scopes, known)
    return _Csv(table.column, options) if form == "csv" else _JsonLines(table.field or "target", options)


def _text(lines: Iterable[bytes]) -> Iterator[Item]:
    """One target a line; blank lines and those that begin with `#` are none."""
    for number, line in enumerate(lines, 1):
        try:
            target = _decoded(line).strip()
            if CONTROL.search(target):
                raise LineError("has a control character")
        except LineError as error:
            yield number, error, {}
            continue
        if target and not target.startswith("#"):
            yield number, target, {}


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LineError("is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class _Options:
    """Options that each target may have for itself."""

    names: Sequence[str]
    scopes: Sequence[str]
    known: Sequence[str]

    def read(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of one row; an empty field is none."""
        options: dict[str, object] = {}
        if missing := [name for name in self.scopes if row.get(name) in {None, ""}]:
            raise LineError(f"has no {missing[0]}, by which a limit counts")
        if self.scopes:
            options["scopes"] = {name: str(row[name]) for name in self.scopes}
        for name in self.names:
            value = row.get(name)
            if value is None or value == "":
                continue
            try:
                options[name] = self._value(name, value)
            except WordError as error:
                raise LineError(f"{name} = {json.dumps(value)}: {error}") from None
        return options

    def _value(self, name: str, value: Any) -> object:
        if name == "priority":
            return int(Urgency.read(value))
        if name in {"timeout", "interval"}:
            if isinstance(value, str) and value.replace(".", "", 1).isdigit():
                value = float(value)  # CSV has text alone
            return float(Seconds.read(value))
        if name == "backends":
            names = value.split() if isinstance(value, str) else value
            if not isinstance(names, list) or not names or not all(name in self.known for name in names):
                raise WordError(f"give names of backends, with blanks between them; there are {', '.join(self.known)}")
            return names
        return str(value)


@dataclass(frozen=True, slots=True)
class _Csv:
    column: str | None
    options: _Options

    def __call__(self, lines: Iterable[bytes]) -> Iterator[Item]:
        broken: list[int] = []  # a line that is not UTF-8 is read, and its row then left out

        def decoded() -> Iterator[str]:
            for number, line in enumerate(lines, 1):
                try:
                    yield _decoded(line)
                except LineError:
                    broken.append(number)
                    yield line.decode("utf-8", "replace")

        rows = csv.reader(decoded())
        header = next(rows, None)
        if header is None:
            raise LineError("is empty; its first line names the columns")
        column = self.column or ("target" if "target" in header or len(header) > 1 else header[0])
        for name in [column, *self.options.names, *self.options.scopes]:
            if name not in header:
                raise LineError(f"has no column {name!r}; it has {', '.join(header)}")
        while True:
            number = rows.line_num + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield number, LineError(str(error)), {}
                continue
            if row is None:
                return
            if not row:
                continue
            try:
                if broken and broken[-1] >= number:
                    raise LineError("is not UTF-8")
                if len(row) != len(header):
                    raise LineError(f"has {len(row)} field{'s' if len(row) > 1 else ''}, the header {len(header)}")
                fields = dict(zip(header, row, strict=True))
                target = fields[column].strip()
                if not target:
                    raise LineError(f"its {column} is empty")
                if "\n" in target:  # rather than to swallow the rest of the file as one target
                    raise LineError(f"its {column} goes on to line {rows.line_num}; close the quotes that it opens")
                if CONTROL.search(target):
                    raise LineError(f"its {column} has a control character")
                yield number, target, self.options.read(fields)
            except LineError as error:
                yield number, error, {}


@dataclass(frozen=True, slots=True)
class _JsonLines:
    field: str
    options: _Options

    def __call__(self, lines: Iterable[bytes]) -> Iterator[Item]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                target, row = self._read(_decoded(line))
                yield number, target, self.options.read(row)
            except LineError as error:
                yield number, error, {}

    def _read(self, line: str) -> tuple[str, Mapping[str, Any]]:
        try:
            value = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise LineError(f"is no JSON: {error.msg}, in column {error.pos + 1}") from None
        except (ValueError, RecursionError):  # a number of thousands of digits, brackets by the thousand
            raise LineError("is no JSON that can be read") from None
        row = value if isinstance(value, dict) else {self.field: value}
        target = row.get(self.field)
        if isinstance(target, bool) or not isinstance(target, str | int) or target == "":
            what = f"has no {self.field!r}" if target is None or target == "" else f"its {self.field!r} is no text"
            raise LineError(what)
        return str(target), row
