"""How a run went: in numbers that add up, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tidegate import ContinuousCollector
from tidegate._cli.targets import Targets
from tidegate._snapshot import Snapshot

if TYPE_CHECKING:
    from tidegate._cli.run import Run


def sum_up(run: Run, snapshot: Snapshot) -> dict[str, Any]:
    """How it went, in numbers."""
    ledger = run.scheduler.ledger()
    total = run.total
    return {
        "targets": {
            "from": run.source.source,
            "distinct": total,
            "duplicates": run.source.duplicates,
            "bad_lines": run.source.bad,
            "not_taken": None if total is None or run.collector is not None else total - ledger.accepted,
        },
        "requests": {
            "accepted": ledger.accepted,
            "collected": run.collected.total(),
            "failed": run.failures.total(),
            "expired": run.expired,
            "cancelled": ledger.accepted - run.done,
        },
        "polls": None if run.collector is None else _polls(run.collector),
        "failures": dict(run.failures.most_common()),
        "output": {
            "file": run.plan.output.file if run.plan.output.file == "-" else str(run.sink.path),
            "written": run.written,
            "not_written": run.unwritten,
        },
        "backends": {
            name: {
                "collected": run.collected[name],
                "sent": state.sent,
                "rejected": state.rejected,
                "utilisation": state.utilisation,
            }
            for name, state in snapshot.backends.items()
        },
        "waits": {cause: round(seconds, 6) for cause, seconds in run.waits.items()},
        "seconds": round(run.seconds, 3),
        "ledger": {**msgspec.to_builtins(ledger), "pending": ledger.pending, "balanced": ledger.balanced},
        "interrupted": run.interrupted,
        "problem": run.problem,
    }


def _polls(collector: ContinuousCollector) -> dict[str, Any]:
    statistics = collector.statistics()
    return {**msgspec.to_builtins(statistics), "balanced": statistics.balanced}


def unfinished(summary: Mapping[str, Any]) -> str:
    """What failed and what expired, in one line."""
    requests = summary["requests"]
    reasons = [f"{count} {reason}" for reason, count in summary["failures"].items()]
    reasons += [f"{requests['expired']} expired"] if requests["expired"] else []
    count = requests["failed"] + requests["expired"]
    return f"{count} of {counted(requests['accepted'], 'request')} not collected: {', '.join(reasons)}"


def counted(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def told(summary: Mapping[str, Any], examples: Mapping[str, str]) -> str:
    """A summary in words; with what one error of each reason said."""
    requests, targets, output = summary["requests"], summary["targets"], summary["output"]
    distinct = "targets" if targets["distinct"] is None else counted(targets["distinct"], "target")
    left_out = Targets("", bad=targets["bad_lines"], duplicates=targets["duplicates"]).left_out
    lines = [f"targets   {distinct} from {targets['from']}{left_out}"]
    if targets["not_taken"]:
        lines.append(f"          {targets['not_taken']} of them not taken")
    ends = " + ".join(f"{requests[end]} {end}" for end in ("collected", "failed", "expired", "cancelled"))
    lines.append(f"requests  {requests['accepted']} accepted = {ends}")
    if (polls := summary["polls"]) is not None:
        left_out = f"{polls['coalesced']} coalesced, {polls['skipped']} skipped"
        lag = polls["lag"]
        lines.append(f"polls     {polls['planned']} planned, {left_out}; {lag['p50']:.2f} s late, at most {lag['max']:.2f} s")
    for nth, (reason, count) in enumerate(summary["failures"].items()):
        example = f": {examples[reason]}" if examples.get(reason) else ""
        lines.append(f"{'' if nth else 'failed':10}{count} {reason}{example}")
    not_written = f", {output['not_written']} not written" if output["not_written"] else ""
    where = "on standard output" if output["file"] == "-" else f"in {output['file']}"
    lines.append(f"output    {counted(output['written'], 'line')} {where}{not_written}")
    lines.append("")
    width = max([len("backend"), *map(len, summary["backends"])])
    lines.append(f"{'backend':{width}}  collected      sent  rejected  used of what was possible")
    for name, row in summary["backends"].items():
        used = "-" if row["utilisation"] is None else f"{row['utilisation']:.1%}"
        lines.append(f"{name:{width}}  {row['collected']:9}  {row['sent']:8}  {row['rejected']:8}  {used}")
    total = sum(summary["waits"].values()) or 1
    causes = sorted(summary["waits"].items(), key=lambda item: -item[1])
    shares = ", ".join(f"{cause} {seconds / total:.1%}" for cause, seconds in causes if seconds)
    ledger = summary["ledger"]
    lines += [
        "",
        f"time      {summary['seconds']:.1f} s" + (f"; of the requests' time: {shares}" if shares else ""),
        f"ledger    {ledger['accepted']} accepted = "
        + " + ".join(f"{ledger[end]} {end}" for end in ("delivered", "dead", "expired", "cancelled", "pending"))
        + ("" if ledger["balanced"] else ": DOES NOT BALANCE"),
    ]
    return "\n".join(["", *lines, ""])
