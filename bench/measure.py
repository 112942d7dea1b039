"""Rounds, ratios and rows: how every bench measures and reports."""

import asyncio
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count
from pathlib import Path
from typing import Self

import uvloop

from tidegate import _core

ROOT = Path(__file__).parents[1]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

# Something to measure: does its work and returns the nanoseconds of the timed part.
Contender = Callable[[], Awaitable[int]]


def refuse_debug_build() -> None:
    """End the program unless the compiled module was built for speed."""
    if _core.build_profile != "release":
        sys.exit(f"tidegate is a {_core.build_profile} build, and its figures would mean nothing: run 'make build'")


class Timed:
    """CPU time of this process between entering and leaving, with the collector off."""

    def __enter__(self) -> Self:
        gc.collect()
        gc.disable()
        self._start = time.process_time_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self.nanos = time.process_time_ns() - self._start
        gc.enable()


def rounds(loop: str, contenders: Mapping[str, Contender], *, count: int, operations: int) -> dict[str, list[float]]:
    """Run all contenders in turn, `count` times; nanoseconds an operation of each, by round.

    The first round warms up and is not counted, and each round starts with another contender.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(count + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                nanos = runner.run(_awaited(contenders[name]))
            if turn:
                figures[name].append(nanos / operations)
    return figures


async def _awaited(contender: Contender) -> int:
    return await contender()


@dataclass
class Row:
    """One line of the report. `spread` holds the least and the largest value among the rounds, where there are any."""

    bench: str
    what: str
    value: float
    unit: str = "x"
    goal: str = ""
    reached: bool | None = None
    spread: tuple[float, float] | None = None
    detail: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        mark = {None: "", True: "reached", False: "MISSED"}[self.reached]
        spread = "" if self.spread is None else f"{_short(self.spread[0])}-{_short(self.spread[1])}"
        detail = ", ".join(f"{name} {_short(value)}" for name, value in self.detail.items())
        return f"{self.what:<52} {_short(self.value):>7} {self.unit:<5} {spread:>13}  {self.goal:<10} {mark:<8} {detail}"


HEADER = f"{'':<52} {'value':>7} {'':<5} {'rounds':>13}  {'goal':<10} {'':<8} ns an operation, least"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(
    bench: str,
    what: str,
    figures: Mapping[str, Sequence[float]],
    ours: str,
    theirs: str,
    *,
    floor: str | None = None,
    at_most: float | None = None,
) -> Row:
    """`(ours - floor) / (theirs - floor)`: of the least figures, with the ratios of the single rounds as its spread."""
    zeros = [0.0] * len(figures[ours])

    def share(mine: float, other: float, base: float) -> float:
        return (mine - base) / (other - base)

    base = figures[floor] if floor else zeros
    value = share(min(figures[ours]), min(figures[theirs]), min(base))
    singles = [share(*trio) for trio in zip(figures[ours], figures[theirs], base, strict=True)]
    detail = {name: min(values) for name, values in figures.items() if name in {ours, theirs, floor}}
    detail["median ratio"] = statistics.median(singles)
    goal = "" if at_most is None else f"<= {at_most:g}"
    reached = None if at_most is None else value <= at_most
    return Row(bench, what, value, "x", goal, reached, (min(singles), max(singles)), detail)


def versions() -> dict[str, str]:
    """What the figures depend on; nothing that tells whose machine it was."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": str(cpu_count()),
        "build": _core.build_profile,
        "tidegate": version("tidegate"),
    }
    for package in ("uvloop", "aiolimiter"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return found | ({"commit": commit} if commit else {})


def as_record(row: Row) -> dict[str, object]:
    """A row for the file of results, numbers rounded."""

    def rounded(value: object) -> object:
        match value:
            case float():
                return float(f"{value:.4g}")
            case dict():
                return {key: rounded(item) for key, item in value.items()}
            case tuple():
                return [rounded(item) for item in value]
        return value

    return {key: rounded(value) for key, value in asdict(row).items() if value not in (None, "", {})}
