"""`python -m conformance`: tries Tidegate and its peers on the whole grid, and prints docs/conformance-peers.md.

Fails when Tidegate was rejected.
"""

import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import product
from pathlib import Path

from conformance.grid import LINES, SHAPES, Declared, Kind
from conformance.peers import PACKAGES, PEERS
from conformance.trial import TASKS, Outcome, delivered, sent, tidegate

SEEDS = range(3)
OURS = "Tidegate"
CLIENTS = (*PEERS, OURS)
UNSAID = "-"
PAGE = Path(__file__).with_name("page.md")

# Of each line the outcome of each seed; None where a client has no words for the limit.
Cells = dict[str, list[Outcome]] | None
Grid = Mapping[tuple[Kind, str, str], Cells]


def cells(declared: Declared, client: str) -> Cells:
    """A client against a server over every line, with every seed."""
    if client == OURS:
        return {name: [tidegate(declared, line, seed) for seed in SEEDS] for name, line in LINES.items()}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in LINES}
    for seed in SEEDS:
        step = PEERS[client](declared)
        if step is None:
            return None
        # Deaf to replies, it sends at the same instants whatever the line.
        instants = sent(step, declared, seed)
        for name, line in LINES.items():
            outcomes[name].append(delivered(instants, declared, line, seed))
    return outcomes


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As Markdown has it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(found: Sequence[Sequence[Outcome]]) -> str:
    """Use on average, messages rejected, and cells without a rejection."""
    if not found:
        return UNSAID
    outcomes = [outcome for cell in found for outcome in cell]
    use = statistics.fmean(outcome.use for outcome in outcomes)
    rejected = sum(outcome.rejected for outcome in outcomes)
    arrived = rejected + sum(outcome.accepted for outcome in outcomes)
    clean = sum(all(outcome.rejected == 0 for outcome in cell) for cell in found)
    return f"{100 * use:.1f} / {100 * rejected / arrived:.2f} ({clean} of {len(found)})"


def detail(outcomes: Sequence[Outcome] | None) -> str:
    """The least use, and all rejections."""
    if outcomes is None:
        return UNSAID
    return f"{100 * min(outcome.use for outcome in outcomes):.1f} / {sum(outcome.rejected for outcome in outcomes)}"


def summaries(grid: Grid) -> Iterable[Sequence[str]]:
    """A row for each kind of server, and one for what every client has words for."""
    for kind in Kind:
        found = [[cell for shape in SHAPES for cell in (grid[kind, shape.text, client] or {}).values()] for client in CLIENTS]
        yield kind.value, *map(summary, found)
    common = [
        (kind, shape.text) for kind, shape in product(Kind, SHAPES) if all(grid[kind, shape.text, name] for name in CLIENTS)
    ]
    found = [[cell for case in common for cell in (grid[*case, client] or {}).values()] for client in CLIENTS]
    yield "those that all have words for", *map(summary, found)


def details(grid: Grid) -> Iterable[Sequence[str]]:
    """A row for each server, limit and line."""
    for kind, shape, line in product(Kind, SHAPES, LINES):
        columns = [grid[kind, shape.text, client] for client in CLIENTS]
        yield kind.value, shape.text, line, *[detail(column and column[line]) for column in columns]


def main() -> int:
    """Try, and print."""
    cases = [(Declared(kind, shape), client) for kind, shape, client in product(Kind, SHAPES, CLIENTS)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        tried = pool.map(cells, *zip(*cases, strict=True))
        grid = {
            (declared.kind, declared.shape.text, client): found for (declared, client), found in zip(cases, tried, strict=True)
        }
    print(
        PAGE.read_text().format(
            versions=", ".join(f"{name} {version(name)}" for name in (*PACKAGES, "tidegate")),
            unsaid=UNSAID,
            seeds=len(SEEDS),
            tasks=TASKS,
            horizons=", ".join(f"{shape.text} {shape.horizon:g} s" for shape in SHAPES),
            summary=table(("server", *CLIENTS), summaries(grid)),
            details=table(("server", "limit", "line", *CLIENTS), details(grid)),
        ),
        end="",
    )
    ours = [cell for (_, _, client), found in grid.items() if client == OURS for cell in (found or {}).values()]
    return int(any(outcome.rejected for cell in ours for outcome in cell))


if __name__ == "__main__":
    sys.exit(main())
