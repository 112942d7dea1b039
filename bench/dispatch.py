"""What a request costs beside its handler: dispatch alone, through `map`, and by `await fetch()`."""

from functools import partial

import workload
from measure import Row, ratio, rounds

# Targets of each run: as many as in the experiments that the goals come from.
MANY = 20_000
ONE_BY_ONE = 5_000


def rows(loop: str, count: int) -> list[Row]:
    """Measure on one loop."""
    found = []
    for kind, at_once in (("suspends once", 64), ("suspends once", 1000), ("does not suspend", 64)):
        targets = list(range(MANY))
        contenders = {
            "bare": partial(workload.bare, kind, targets, at_once),
            "idiom": partial(workload.idiom, kind, targets, at_once),
            "idiom, replies": partial(workload.idiom_with_replies, kind, targets, at_once),
            "dispatch": partial(workload.dispatched, kind, targets, at_once),
            "map": partial(workload.mapped, kind, targets, at_once),
        }
        figures = rounds(loop, contenders, count=count, operations=MANY)
        where = f"{loop}, {kind}, {at_once} at once"
        share = partial(ratio, "dispatch", figures=figures, floor="bare")
        found += [
            share(f"dispatch alone: {where}", ours="dispatch", theirs="idiom", at_most=0.06),
            share(f"map: {where}", ours="map", theirs="idiom", at_most=0.15),
            share("  the same, against an idiom that hands replies over", ours="map", theirs="idiom, replies"),
            throughput(figures, kind),
        ]
    return found


def throughput(figures: dict[str, list[float]], kind: str) -> Row:
    """Requests a second as a share of what the bare handler reaches."""
    goal = 0.75 if kind == "suspends once" else 0.45
    row = ratio("dispatch", "  throughput of dispatch alone against bare", figures, "bare", "dispatch")
    row.goal, row.reached = f">= {goal:g}", row.value >= goal
    return row


def fetch_rows(loop: str, count: int) -> list[Row]:
    """`await fetch()`, one request at a time: a wake of a worker and of the caller each; listed apart, without a goal."""
    found = []
    for kind in workload.KINDS:
        targets = list(range(ONE_BY_ONE))
        contenders = {
            "bare": partial(workload.bare_one_at_a_time, kind, targets),
            "idiom": partial(workload.idiom_one_at_a_time, kind, targets, 64),
            "fetch": partial(workload.fetched_one_at_a_time, kind, targets, 64),
        }
        figures = rounds(loop, contenders, count=count, operations=ONE_BY_ONE)
        found.append(ratio("fetch", f"await fetch(): {loop}, {kind}", figures, "fetch", "idiom", floor="bare"))
    return found
