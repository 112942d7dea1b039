"""`make bench`: measures, prints a table, and keeps it in bench/results. See README.md."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import collector
import dispatch
import idle
import limiter
import memory
import submit
from measure import HEADER, LOOPS, Row, as_record, refuse_debug_build, versions

import dropin

RESULTS = Path(__file__).parent / "results"
BENCHES = ("dispatch", "fetch", "submit", "limiter", "memory", "idle", "collector", "dropin")
LEAST_ROUNDS = 5
METHOD = (
    "All contenders of a row run in one process, in turn. A value is the ratio of their least CPU times over the rounds, "
    "with the floor taken off where there is one. Single times hold for this machine only."
)


def measured(benches: list[str], loops: list[str], rounds: int) -> Iterator[Row]:
    """The rows of each bench, as they come."""
    for loop in loops:
        if "dispatch" in benches:
            yield from dispatch.rows(loop, rounds)
        if "fetch" in benches:
            yield from dispatch.fetch_rows(loop, rounds)
    if "submit" in benches:
        yield from submit.rows(loops[-1], rounds)
    if "limiter" in benches:
        yield from limiter.rows(loops[-1], rounds)
    if "memory" in benches:
        yield from memory.rows()
    if "idle" in benches:
        yield from idle.rows()
    if "collector" in benches:
        yield from collector.rows(loops)
    if "dropin" in benches:
        yield from dropin.rows(loops[-1], rounds)


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("benches", nargs="*", choices=[*BENCHES, []], help=f"default: all of {', '.join(BENCHES)}")
    parser.add_argument("--loop", choices=LOOPS, action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=7, help=f"at least {LEAST_ROUNDS}")
    parser.add_argument("--keep", metavar="NAME", help="write the table to bench/results/NAME.json")
    given = parser.parse_args()
    if given.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds {given.rounds}: fewer than {LEAST_ROUNDS} say nothing on a busy machine")
    refuse_debug_build()
    about = versions()
    print(", ".join(f"{name} {value}" for name, value in about.items()), f"{given.rounds} rounds", sep=", ")
    print(HEADER)
    rows = []
    for row in measured(given.benches or list(BENCHES), given.loop or list(LOOPS), given.rounds):
        print(row, flush=True)
        rows.append(row)
    missed = sum(row.reached is False for row in rows)
    print(f"{missed} of {sum(row.reached is not None for row in rows)} goals missed" if missed else "all goals reached")
    if given.keep:
        RESULTS.mkdir(exist_ok=True)
        record = {"method": METHOD, "rounds": given.rounds, **about, "rows": [as_record(row) for row in rows]}
        path = RESULTS / f"{given.keep}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"kept as {path.relative_to(RESULTS.parents[1])}", file=sys.stderr)


main()
