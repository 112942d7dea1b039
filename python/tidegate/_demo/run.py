"""The demo's collecting side: 500 targets, three servers, one queue; judged by what the servers counted."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TextIO

import aiohttp

from tidegate import BackendQuota, RateLimitScheduler, Reply, RequestCancelledError, Retry
from tidegate._demo.servers import fleet
from tidegate._interrupt import CODE as INTERRUPTED
from tidegate._interrupt import Interruption
from tidegate._progress import line
from tidegate._snapshot import BackendState
from tidegate.backends.http import HttpBackend

DECLARED = ("window", "bucket")
"""The servers that must be used whole and never reject; the third falls ill."""
REQUIRED_SHARE = 0.97
JUDGED_FROM = 8.0
"""Seconds of demand from which a share says something: two of the longest windows."""

Stats = Mapping[str, Mapping[str, float]]


async def demo(count: int = 500, out: TextIO | None = None) -> int:
    """Collect `count` targets from the three servers, and report.

    Returns:
        The exit code: 0 when the servers' own counts and the ledger are as promised, else 1; 130 after Ctrl-C.
    """
    out = out or sys.stdout
    async with local_servers() as ports:
        backends = [
            HttpBackend(
                server.name,
                f"http://127.0.0.1:{ports[server.name]}/{{target}}",
                BackendQuota(server.quota, concurrency=64),
                parse=lambda response: response.json(),
            )
            for server in fleet().servers
        ]
        # The sick server may fail a request more than once before another has room for it.
        async with RateLimitScheduler(backends, retry=Retry(attempts=10)) as scheduler:
            run = Run(scheduler, count)
            interruption = Interruption(lambda: scheduler.drain(cancel_waiting=True), lambda text: out.write(f"\n{text}\n"))
            interruption.concerns()
            with interruption.heeded():
                await run.collect(out)
            run.interrupted = interruption.happened
            stats = await read_stats(ports[DECLARED[0]])
    out.write(run.table(stats))
    problems = run.problems(stats)
    for problem in problems:
        out.write(f"not as promised: {problem}\n")
    return INTERRUPTED if run.interrupted else 1 if problems else 0


@asynccontextmanager
async def local_servers() -> AsyncIterator[Mapping[str, int]]:
    """The servers' ports, by name; they end with the block, or with this process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tidegate._demo.servers",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,  # Ctrl-C is ours alone
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the local servers did not start")
        yield json.loads(line)
    finally:
        process.stdin.close()
        await process.wait()


async def read_stats(port: int) -> Stats:
    """What the servers counted."""
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/stats") as response:
        stats: Stats = await response.json()
        return stats


@dataclass
class Run:
    """One run: what has come back so far, and how it ended."""

    scheduler: RateLimitScheduler
    count: int
    collected: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    seconds: float = 0
    interrupted: bool = False
    backends: Mapping[str, BackendState] = field(default_factory=dict)

    async def collect(self, out: TextIO) -> None:
        """Take each reply as it comes, and show how far it is."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        targets = [f"item-{number:03}" for number in range(1, self.count + 1)]
        with line(out, lambda: self._line(loop.time() - started_at), every=5):
            # All are accepted at once: so there is more demand than the servers allow until the last one is sent.
            async with self.scheduler.map(targets, ahead=self.count) as replies:
                async for reply in replies:
                    self._take(reply)
        self.seconds = loop.time() - started_at
        self.backends = self.scheduler.snapshot().backends

    def _take(self, reply: Reply) -> None:
        if reply.ok:
            self.collected[reply.backend or ""] += 1
        elif not isinstance(reply.error, RequestCancelledError):
            self.failed += 1
        self.waits.update(reply.waits)

    def _line(self, seconds: float) -> str:
        """How far it is, in one line."""
        done = self.collected.total()
        bar = "#" * (20 * done // self.count)
        backends = self.scheduler.snapshot().backends
        parts = "  ".join(f"{name} {self.collected[name]} (+{backends[name].in_flight})" for name in backends)
        return f"[{bar:20}] {done}/{self.count}  {seconds:4.1f} s  {parts}"

    def table(self, stats: Stats) -> str:
        """What was collected, where, and what it waited for."""
        quotas = {server.name: server.quota for server in fleet().servers}
        lines = [
            "",
            f"{'server':8}{'limit':15}{'collected':>10}{'requests':>10}{'rejected':>10}{'failed':>8}{'allowed':>9}{'used':>6}{'share':>9}",
        ]
        for name, counts in stats.items():
            requests = counts["accepted"] + counts["rejected"] + counts["failed"]
            lines.append(
                f"{name:8}{quotas[name]:15}{self.collected[name]:10}{requests:10}{counts['rejected']:10}{counts['failed']:8}"
                f"{counts['allowed']:9}{counts['used']:6}{share(counts):9.1%}"
            )
        total = sum(self.waits.values()) or 1
        causes = ", ".join(f"{cause} {seconds / total:.1%}" for cause, seconds in self.waits.most_common() if seconds)
        ledger = self.scheduler.ledger()
        possible = ", ".join(
            f"{name} {state.utilisation:.1%}" for name, state in self.backends.items() if state.utilisation is not None
        )
        lines += [
            "",
            f"used     of what was possible, by the client's own count: {possible}",
            f"time     {self.seconds:.1f} s; of the requests' time: {causes}",
            f"ledger   {ledger.accepted} accepted = "
            + " + ".join(f"{getattr(ledger, end)} {end}" for end in ("delivered", "dead", "expired", "cancelled", "pending")),
            "",
        ]
        return "\n".join(lines)

    def problems(self, stats: Stats) -> list[str]:
        """What is not as promised, by the servers' counts and the ledger."""
        found = []
        for name in DECLARED:
            if rejected := stats[name]["rejected"]:
                found.append(f"{name} rejected {rejected} requests")
            if stats[name]["seconds"] >= JUDGED_FROM and share(stats[name]) < REQUIRED_SHARE:
                found.append(f"{name} was used to {share(stats[name]):.1%}, below {REQUIRED_SHARE:.0%}")
        ledger = self.scheduler.ledger()
        if not ledger.balanced:
            found.append("the ledger does not balance")
        if not self.interrupted and ledger.delivered != self.count:
            found.append(f"{self.count - ledger.delivered} of {self.count} targets were not collected")
        return found


def share(counts: Mapping[str, float]) -> float:
    """The part of what a server allowed that was used, while there was demand."""
    return counts["used"] / counts["allowed"] if counts["allowed"] else 1.0
