"""`tidegate.toml`: read, checked as a whole, and made into backends and a scheduler.

Everything that is wrong is told at once. What a table may hold is the structure of its name below; docs/guides/command-line.md
says what it means.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from tidegate import Aging, Backend, BackendQuota, ConfigError, Fair, HealthMonitor, Order, RateLimitScheduler, Request, Retry
from tidegate._cli.lines import Path as Place
from tidegate._cli.lines import lines_of
from tidegate._cli.problems import BadFileError, Problem, nearest, quoted
from tidegate._cli.words import Cap, Limits, Seconds, Size, Urgency, Variables, WordError, choices_of
from tidegate._scopes import HOST
from tidegate.backends._address import Address, shown
from tidegate.backends.http import HttpBackend

T = TypeVar("T", bound=msgspec.Struct)

SYNONYMS = {
    "limit": "quota", "limits": "quota", "rate": "quota", "rate_limit": "quota", "quotas": "quota", "rps": "quota",
    "base_url": "url", "endpoint": "url", "address": "url", "id": "name", "header": "headers", "keys": "accounts",
    "max_concurrency": "concurrency", "max_connections": "concurrency", "workers": "concurrency", "every": "interval",
    "period": "interval", "retries": "retry", "deadline": "timeout", "urls": "list", "items": "list", "path": "file",
    "sink": "output", "result": "output", "results": "output", "source": "targets", "schedule": "run", "settings": "run",
    "server": "backend", "api": "backend", "format": "save", "fsync": "sync", "max_size": "rotate",
}  # fmt: skip
"""What other programs call a key; only offered where the key exists."""

SECRET = ("headers", "accounts", "url")
"""Keys whose values are never shown."""

HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

KINDS = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "an array",
         "object": "a table", "null": "nothing"}  # fmt: skip


class BackendTable(msgspec.Struct, frozen=True, kw_only=True):
    """`[[backend]]`: a server, and what it allows."""

    name: str
    url: str
    quota: Limits = Limits()
    concurrency: Cap = Cap(32)
    group: str | None = None
    accounts: list[str | dict[str, str]] | None = None
    method: str = "GET"
    headers: dict[str, str] = {}
    timeout: Seconds = Seconds(60)
    weight: float = 1
    cold_start: Literal["assume_empty", "assume_full"] = "assume_empty"
    max_redirects: int = 10


class TargetsTable(msgspec.Struct, frozen=True, kw_only=True):
    """`[targets]`: what to collect."""

    inline: list[str | int] | None = msgspec.field(default=None, name="list")
    file: str | None = None
    format: Literal["text", "csv", "jsonl"] | None = None
    column: str | None = None
    field: str | None = None
    options: list[Literal["priority", "timeout", "backends", "flow", "interval"]] = []
    scopes: list[str] = []
    strict: bool = False


class RetryTable(msgspec.Struct, frozen=True, kw_only=True):
    """`[run.retry]`: how failed attempts are repeated."""

    attempts: int = 4
    base: Seconds = Seconds(0.5)
    cap: Seconds = Seconds(60)
    budget: float = 0.1


class RunTable(msgspec.Struct, frozen=True, kw_only=True):
    """`[run]`: how it is collected."""

    interval: Seconds | None = None
    overrun: Literal["coalesce", "skip", "all", "delay"] = "coalesce"
    spread: bool = True
    timeout: Seconds | None = None
    priority: Urgency = Urgency(128)
    order: Literal["strict", "edf", "aging", "fair"] = "strict"
    health: bool = True
    step: Seconds | None = None
    weights: dict[str, float] | None = None
    retry: dict[str, Any] = {}


class OutputTable(msgspec.Struct, frozen=True, kw_only=True):
    """`[output]`: where replies go."""

    file: str = "-"
    save: Literal["body", "json", "text", "status"] = "body"
    rotate: Size | None = None
    sync: bool = False


SECTIONS = {"backend": BackendTable, "targets": TargetsTable, "run": RunTable, "output": OutputTable}


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration without a flaw.

    Attributes:
        file: Where it stands; relative paths in it are relative to its folder.
        scheduler: New, with all backends.
        backends: They, in order of declaration.
        addresses: Of them, where targets lead.
        shown: The same as it is written, without what may be secret.
        scopes: What limits count by.
        variables: Those that it refers to, and whether they are set.
    """

    file: Path
    scheduler: RateLimitScheduler
    backends: tuple[Backend, ...]
    addresses: tuple[Address, ...]
    shown: tuple[str, ...]
    targets: TargetsTable
    run: RunTable
    output: OutputTable
    order: Order
    retry: Retry
    scopes: frozenset[str]
    variables: Mapping[str, bool]

    def beside(self, name: str) -> str:
        """A path of the configuration, from here; `-` is what it is."""
        return name if name == "-" else str(self.file.parent / name)


class Account:
    """One of a backend's accounts: the headers that tell the server whose requests these are. Its `repr` has none of them."""

    __slots__ = ("headers",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers


def load(
    file: Path, environ: Mapping[str, str], *, complete: bool, targets: str | None = None, output: str | None = None
) -> Plan:
    """Read a configuration.

    Args:
        file: Where it stands.
        environ: The environment's variables.
        complete: All that it refers to must be there: variables, and aiohttp. Without them nothing can be sent.
        targets: A file to take the targets from instead.
        output: A file to write the replies to instead.

    Raises:
        BadFileError: It cannot be used; all that is wrong is told.
    """
    text = ""
    try:
        text = file.read_bytes().decode()
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise BadFileError.of(str(file), Problem(0, "", "", "there is no such file; `tidegate init` writes one")) from None
    except OSError as error:
        raise BadFileError.of(str(file), Problem(0, "", "", f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadFileError.of(str(file), Problem(line, "", "", "is not UTF-8")) from None
    except tomllib.TOMLDecodeError as error:
        raise BadFileError.of(str(file), _of_toml(error, text)) from None
    return _Reading(file, document, lines_of(text), environ, complete, targets, output).plan()


def _of_toml(error: tomllib.TOMLDecodeError, text: str) -> Problem:
    """What `tomllib` found, at its line."""
    message = str(error)
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if found is None:
        return Problem(text.rstrip().count("\n") + 1, "", "", message.replace(" (at end of document)", ": the file ends here"))
    return Problem(int(found[1]), "", "", f"{message[: found.start()]}, in column {found[2]}")


@dataclass(slots=True)
class _Reading:
    """One pass over a document, collecting what is wrong."""

    file: Path
    document: Mapping[str, Any]
    lines: Mapping[Place, int]
    environ: Mapping[str, str]
    complete: bool
    targets: str | None
    output: str | None
    problems: list[Problem] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    counted: dict[str, tuple[Place, str]] = field(default_factory=dict)
    variables: Variables = field(init=False)

    def __post_init__(self) -> None:
        self.variables = Variables(self.environ)

    def plan(self) -> Plan:
        """The plan, if nothing is wrong."""
        self._check_sections()
        backends = list(self._backends())
        targets = self._table(TargetsTable, "targets")
        run = self._table(RunTable, "run")
        output = self._table(OutputTable, "output") or OutputTable()
        if targets is not None and self.targets is not None:
            targets = msgspec.structs.replace(targets, inline=None, file=self.targets)
        elif targets is not None:
            self._check_targets(targets)
        if targets is not None:
            self._check_scopes(targets)
        if self.output is not None:
            output = msgspec.structs.replace(output, file=self.output)
        if targets is not None and run is not None and "interval" in targets.options and run.interval is None:
            self._wrong(
                ("targets", "options"), "[targets]", "options", 'for "interval" give [run] one, which is that of all others'
            )
        order, retry = (self._order(run), self._retry(run)) if run is not None else (None, None)
        if self.complete and find_spec("aiohttp") is None:
            self._wrong((), "", "", "aiohttp, which sends over HTTP, is not installed: pip install 'aiohttp>=3.12'")
        if not self.problems and targets is not None and run is not None:
            assert order is not None
            assert retry is not None
            try:
                health = HealthMonitor(enabled=run.health)
                scheduler = RateLimitScheduler(backends, order=order, retry=retry, health=health)
            except ConfigError as error:  # between backends, such as a group with two quotas
                self._wrong(("backend",), "[[backend]]", "", str(error))
            else:
                texts = tuple(shown(table["url"]) for _, _, table in self._tables())
                return Plan(
                    self.file,
                    scheduler,
                    tuple(backends),
                    tuple(self.addresses),
                    texts,
                    targets,
                    run,
                    output,
                    order,
                    retry,
                    frozenset(self.counted),
                    self.variables.is_set,
                )
        raise BadFileError.of(str(self.file), *self.problems)

    # ---- sections

    def _check_sections(self) -> None:
        for key, value in self.document.items():
            kind = SECTIONS.get(key)
            if kind is None:
                self._unknown((key,), "", f"[{key}]" if isinstance(value, dict) else key, SECTIONS, "no section", key)
            elif kind is BackendTable and not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
                self._wrong((key,), "[backend]", "", "write [[backend]], with two brackets: there may be several")
            elif kind is not BackendTable and not isinstance(value, dict):
                self._wrong((key,), f"[{key}]", "", f"is a table: write [{key}] on a line of its own")
        if "backend" not in self.document:
            self._wrong((), "", "", "there is no [[backend]]; give at least one, with name, url and quota")

    def _tables(self) -> Iterator[tuple[Place, str, Mapping[str, Any]]]:
        tables = self.document.get("backend")
        for nth, table in enumerate(tables if isinstance(tables, list) else []):
            if isinstance(table, dict):
                name = table.get("name")
                yield ("backend", nth), f"[[backend]] {quoted(name)}" if isinstance(name, str) else "[[backend]]", table

    def _table(self, kind: type[T], key: str) -> T | None:
        """A section that there is once; one that is left out has its defaults."""
        table = self.document.get(key, {})
        return self._read(kind, (key,), f"[{key}]", table) if isinstance(table, dict) else None

    def _read(self, kind: type[T], at: Place, section: str, table: Mapping[str, Any]) -> T | None:
        """A table as its structure, with defaults for what is wrong with it, which is told; nothing if there is none."""
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        values = {}
        for key, value in table.items():
            if key not in fields:
                self._unknown((*at, key), section, key, fields, "no key of this section")
                continue
            try:
                values[fields[key].name] = msgspec.convert(value, fields[key].type, dec_hook=_read_word)
            except msgspec.ValidationError as error:
                self._mistyped((*at, key), section, key, value, fields[key].type, error)
        for key, declared in fields.items():
            if declared.required and key not in table:
                self._wrong(at, section, key, "is missing")
        has_all = all(declared.name in values for declared in fields.values() if declared.required)
        return kind(**values) if has_all else None

    # ---- backends

    def _backends(self) -> Iterator[Backend]:
        seen: dict[str, int] = {}
        for at, section, table in self._tables():
            read = self._read(BackendTable, at, section, table)
            if read is None:
                continue
            if read.name in seen:
                self._wrong((*at, "name"), section, "name", f"the backend of line {seen[read.name]} has this name; give another")
            seen.setdefault(read.name, self._line((*at, "name")))
            for limit in read.quota:
                if limit.per is not None:
                    self.counted.setdefault(limit.per, (at, section))
            backend = self._backend(at, section, read)
            if backend is not None:
                yield backend

    def _backend(self, at: Place, section: str, table: BackendTable) -> Backend | None:
        url, unset = self._fill((*at, "url"), section, "url", table.url)
        if unset:
            url = "https://unset.invalid/{target}"
        accounts = self._accounts(at, section, table)
        try:
            self.addresses.append(Address(url))
            options: dict[str, Any] = {
                "accounts": accounts,
                "timeout": float(table.timeout),
                "weight": table.weight,
                "cold_start": table.cold_start,
            }
            quota = BackendQuota(*table.quota, concurrency=table.concurrency or None, group=table.group)
            if find_spec("aiohttp") is None:
                return Backend(table.name, _send_nothing, quota, **options)
            headers = _headers_of if accounts else self._headers(at, section, table, None)
            return HttpBackend(
                table.name, url, quota, method=table.method, headers=headers, max_redirects=table.max_redirects, **options
            )
        except ConfigError as error:
            if (key := error.option) in BackendTable.__struct_fields__:
                written = self.document["backend"][at[1]].get(key, error.value)
                self._wrong((*at, key), section, key, _way_out(error), written)
            else:
                self._wrong(at, section, "", str(error))
            return None

    def _accounts(self, at: Place, section: str, table: BackendTable) -> Sequence[Account] | None:
        if table.accounts is None:
            return None
        if not any("${account" in value for value in table.headers.values()):
            self._wrong((*at, "accounts"), section, "accounts", "no header of this backend has ${account} in it; give it one")
        accounts = []
        for nth, given in enumerate(table.accounts):
            place = (*at, "accounts", nth)
            parts = {"account": given} if isinstance(given, str) else {f"account.{key}": value for key, value in given.items()}
            filled = {key: self._fill(place, section, f"accounts[{nth}]", value)[0] for key, value in parts.items()}
            accounts.append(Account(self._headers(at, section, table, filled)))
        return accounts

    def _headers(self, at: Place, section: str, table: BackendTable, account: Mapping[str, str] | None) -> Mapping[str, str]:
        headers = {}
        for name, text in table.headers.items():
            key = f"headers.{name}"
            place = (*at, "headers", name)
            value, _ = self._fill(place, section, key, text, account)
            if not HEADER.fullmatch(name):
                self._wrong(place, section, key, "a header's name has letters, digits and hyphens")
            elif CONTROL.search(value):
                self._wrong(place, section, key, "its value has a line break, or something else that no header may hold")
            else:
                headers[name] = value
        return headers

    def _fill(
        self, at: Place, section: str, key: str, text: str, account: Mapping[str, str] | None = None
    ) -> tuple[str, list[str]]:
        """A text with its variables; those that are not set are wrong if all must be there."""
        try:
            filled, unset = self.variables.fill(text, account)
        except WordError as error:
            self._wrong(at, section, key, str(error))
            return "", []
        if self.complete:
            for name in unset:
                self._wrong(at, section, key, f"the variable {name} is not set; set it: export {name}=...")
        return filled, unset

    # ---- the rest

    def _check_targets(self, table: TargetsTable) -> None:
        at: Place = ("targets",)
        if not {"list", "file"} & self.document.get("targets", {}).keys():
            self._wrong(at, "[targets]", "", 'give what to collect: list = ["one", "two"] or file = "targets.txt"')
        elif table.inline is not None and table.file is not None:
            self._wrong((*at, "file"), "[targets]", "file", "there is a list already; leave one of them out")
        elif table.inline is not None and not table.inline:
            self._wrong((*at, "list"), "[targets]", "list", "is empty; give at least one target")
        for key, needed in (("column", "csv"), ("field", "jsonl")):
            if getattr(table, key) is not None and table.file is not None and format_of(table) != needed:
                self._wrong((*at, key), "[targets]", key, f'is for {needed} files; leave it out, or give format = "{needed}"')

        for key in ("options", "scopes"):
            if getattr(table, key) and (table.file is None or format_of(table) == "text"):
                self._wrong((*at, key), "[targets]", key, "are columns of csv files or fields of jsonl files; leave it out")

    def _check_scopes(self, table: TargetsTable) -> None:
        """Whether targets say what limits count by. Their host they say themselves, or it is that of the backend."""
        for scope in table.scopes:
            if scope not in self.counted:
                near = nearest(scope, self.counted)
                self._wrong(("targets", "scopes"), "[targets]", "scopes", f"no limit is per {scope}; leave it out", None, near)
        for scope, (at, section) in self.counted.items():
            if scope not in {HOST, *table.scopes}:
                way_out = (
                    f'no target says its {scope}; give [targets] a file with such a column or field, and scopes = ["{scope}"]'
                )
                self._wrong((*at, "quota"), section, "quota", way_out)

    def _order(self, run: RunTable) -> Order:
        at: Place = ("run",)
        for key, order in (("step", "aging"), ("weights", "fair")):
            if getattr(run, key) is not None and run.order != order:
                self._wrong((*at, key), "[run]", key, f'is of order = "{order}"; leave it out, or give that order')
        if run.order == "aging":
            if run.step is None:
                self._wrong(
                    (*at, "order"), "[run]", "order", 'give step too: the waiting that is worth one level, as step = "1s"'
                )
            return Aging(run.step or 1.0)
        if run.order == "fair":
            try:
                return Fair(run.weights)
            except ConfigError as error:
                self._wrong((*at, "weights"), "[run]", "weights", _way_out(error))
                return "strict"
        return run.order

    def _retry(self, run: RunTable) -> Retry:
        at: Place = ("run", "retry")
        table = self._read(RetryTable, at, "[run.retry]", run.retry)
        if table is not None:
            try:
                return Retry(table.attempts, table.base, table.cap, table.budget)
            except ConfigError as error:
                self._wrong((*at, error.option), "[run.retry]", error.option, _way_out(error), error.value)
        return Retry()

    # ---- telling

    def _line(self, at: Place) -> int:
        while at and at not in self.lines:
            at = at[:-1]
        return self.lines.get(at, 1)

    def _wrong(self, at: Place, section: str, key: str, way_out: str, value: object = None, near: str | None = None) -> None:
        shown = None if value is None or key.partition(".")[0].partition("[")[0] in SECRET else quoted(value)
        problem = Problem(self._line(at), section, key, way_out, shown, near)
        if problem not in self.problems:  # each account fills the same headers
            self.problems.append(problem)

    def _unknown(
        self, at: Place, section: str, key: str, known: Mapping[str, object], way_out: str, word: str | None = None
    ) -> None:
        word = (word or key).lower()
        near = SYNONYMS.get(word)
        near = near if near in known else nearest(word, known)
        self._wrong(at, section, key, way_out if near else f"{way_out}; there are {', '.join(known)}", None, near)

    def _mistyped(
        self, at: Place, section: str, key: str, value: Any, annotation: object, error: msgspec.ValidationError
    ) -> None:
        """A value that its key cannot have."""
        message, _, path = str(error).partition(" - at `$")
        if (found := re.match(r"\[(\d+)\]", path)) and isinstance(value, list):
            at, key, value = (*at, int(found[1])), f"{key}{found[0]}", value[int(found[1])]
        near = None
        if isinstance(cause := error.__cause__, WordError):
            near = cause.near
            if cause.element is not None:
                at, key, value = (*at, cause.element), f"{key}[{cause.element}]", value[cause.element]
        elif message.startswith("Invalid enum value"):
            words = list(choices_of(annotation))
            message, near = f"give one of {', '.join(words)}", nearest(str(value), words)
        elif found := re.match(r"Expected `(.*?)`, got `(.*?)`", message):
            expected = " or ".join(KINDS.get(kind, kind) for kind in found[1].split(" | "))
            message = f"give {expected}, not {KINDS.get(found[2], found[2])}"
        self._wrong(at, section, key, message, value, near)


def format_of(table: TargetsTable) -> Literal["text", "csv", "jsonl"]:
    """How the file of targets is written: as it says, else by the end of its name."""
    if table.format is not None:
        return table.format
    match Path(table.file or "").suffix.lower():
        case ".csv":
            return "csv"
        case ".jsonl" | ".ndjson":
            return "jsonl"
        case _:
            return "text"


def _way_out(error: ConfigError) -> str:
    """The message without its option and value, which are told as the file has them."""
    return str(error).removeprefix(f"{error.option}={error.value!r}: ")


def _read_word(kind: type, value: object) -> object:
    """What `msgspec` asks about types of ours."""
    return kind.read(value)  # type: ignore[attr-defined]


def _headers_of(request: Request) -> Mapping[str, str]:
    assert isinstance(request.account, Account)
    return request.account.headers


async def _send_nothing(request: Request) -> None:
    """The handler of a plan that is only looked at."""
