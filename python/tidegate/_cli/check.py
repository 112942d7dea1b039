"""`tidegate check`: what a configuration comes to, without sending anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidegate import Aging, Backend, Fair, Limit, Order, bound
from tidegate._cli.config import Plan
from tidegate._cli.run import collector_of, targets_of
from tidegate._cli.targets import Targets
from tidegate._quote import shown

ROUND_TRIP = 0.1
"""Seconds for which the bound of a backend is told: nobody knows yet what it is."""
SHORTEST_ROUND = 0.001
"""Seconds to which a round is told."""
PERIODS = 1000
"""Of the longest limit, over which a bound is taken."""


def report(plan: Plan) -> str:
    """The effective plan, in words.

    Raises:
        BadFileError: The targets cannot be read.
    """
    targets, source = (None, Targets("standard input")) if plan.targets.file == "-" else targets_of(plan)
    lines = [f"{plan.file}: can be run", ""]
    lines += _table(plan)
    lines += ["", f"targets   {_targets(targets, source)}", f"run       {_run(plan)}", f"output    {_output(plan)}"]
    if targets is not None:
        lines += _round(plan, targets, source)
    lines += [
        f"variable  {name} {'is set' if is_set else 'is not set: `tidegate run` needs it'}"
        for name, is_set in plan.variables.items()
    ]
    return "\n".join([*source.told, *lines, ""])


def span(seconds: float) -> str:
    """Seconds as a text that a person reads: `90 s`, `5 min`, `2.5 h`."""
    for unit, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit or (seconds >= unit and seconds % unit == 0):
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s" if seconds >= SHORTEST_ROUND else f"{seconds * 1000:.3g} ms"


def size(count: int) -> str:
    """A number of bytes as a text that a person reads, if it is a round one: `100 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (1000, "kB")):
        if count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"


def _table(plan: Plan) -> Iterator[str]:
    rows = [("backend", "allows", "at once", "accounts", "usable", "address")]
    for backend, address in zip(plan.backends, plan.shown, strict=True):
        usable = _usable(backend)
        rows.append((
            backend.name,
            " and ".join(map(_limit, backend.quota.limits)) or "anything",
            "any" if backend.quota.concurrency is None else str(backend.quota.concurrency),
            "-" if backend.accounts is None else f"{len(backend.accounts)}, each",
            "-" if usable is None else f"{usable:.1%}",
            address,
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    yield f"usable: of what its limits allow, the most that can be sent at a round trip of {ROUND_TRIP * 1000:.0f} ms"


def _limit(limit: Limit) -> str:
    """A limit as it is understood."""
    kind = f"{limit.kind} of {limit.burst}" if limit.kind == "bucket" else limit.kind
    guessed = ", to begin with" if limit.guessed else ""
    per = f" for each {limit.per}" if limit.per else ""
    return f"{limit.amount}/{span(limit.period).removeprefix('1 ')}{per} ({kind}{guessed})"


def _usable(backend: Backend) -> float | None:
    """The bound of its utilisation: what keeps to its limits behind a line, and its own cap, of what the server allows."""
    horizon = PERIODS * max((limit.period for limit in backend.quota.limits), default=0)
    if not horizon:
        return None
    allowed, sent = bound(backend.quota, horizon), bound(backend.quota, horizon, round_trip=ROUND_TRIP)
    return sent / allowed if allowed and sent is not None else None


def _targets(targets: Sequence[str] | None, source: Targets) -> str:
    if targets is None:
        return "from standard input"
    first = ", ".join(shown(target) for target in targets[:3])
    more = ", …" if len(targets) > 3 else ""
    return f"{len(targets)} from {source.source}" + source.left_out + f": {first}{more}"


def _run(plan: Plan) -> str:
    run, retry = plan.run, plan.retry
    parts = [
        "once"
        if run.interval is None
        else f"every {span(run.interval)}, {run.overrun} what is late, {'spread' if run.spread else 'all at once'}",
        f"order {_order(plan.order)}",
        f"priority {run.priority:d}",
        f"at most {retry.attempts} attempts",
        "no deadline" if run.timeout is None else f"a deadline after {span(run.timeout)}",
    ]
    return "; ".join(parts)


def _order(order: Order) -> str:
    match order:
        case Aging(step):
            return f"aging, a level each {span(step)}"
        case Fair(weights):
            return f"fair{''.join(f', {name} {weight:g}' for name, weight in weights.items())}"
        case _:
            return order


def _output(plan: Plan) -> str:
    output = plan.output
    where = "standard output" if output.file == "-" else plan.beside(output.file)
    rotated = "" if output.rotate is None else f", a new file after {size(output.rotate)}"
    return f"{where}: {output.save} of each reply as a line of JSON{rotated}{', synced' if output.sync else ''}"


def _round(plan: Plan, targets: Sequence[str], source: Targets) -> Iterator[str]:
    """How long all targets take once, and whether an interval can be kept."""
    found = collector_of(plan, targets, source).feasibility()
    whole = "the one target" if len(targets) == 1 else f"all {len(targets)} targets"
    if found.round is None:
        yield "round     some targets can never be sent: their limits admit nothing"
    elif found.bottleneck is None:
        yield "round     has no limit but the concurrency and the servers' speed"
    elif found.round < SHORTEST_ROUND:
        yield f"round     {whole} may go at once"
    else:
        yield f"round     {whole} {'takes' if len(targets) == 1 else 'take'} at least {span(found.round)}, from idle"
    if plan.run.interval is not None:
        yield f"interval  {'can' if found.feasible else 'CANNOT'} be kept: {found}"
