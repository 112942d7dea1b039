"""The backends of one scheduler: what runs their attempts, and what each owns from its first attempt to after its last."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle

from tidegate import _core
from tidegate._backend import Backend
from tidegate._balancer import LoadBalancer
from tidegate._errors import ConfigError
from tidegate._health import Health
from tidegate._quota import BackendQuota, Limit
from tidegate._runner import Runner, runner_of
from tidegate._snapshot import BackendState, Event, LimitState, Step
from tidegate._threads import HandlerThreads

logger = logging.getLogger("tidegate")


@dataclass(slots=True)
class _Entry:
    backend: Backend
    quota: BackendQuota  # as it is now
    threads: HandlerThreads | None
    is_here: bool = True
    is_open: bool = False
    opening: "asyncio.Task[None] | None" = None


class Backends:
    """All of them, by name; those that were removed as long as something runs on them."""

    def __init__(self, core: _core.Core, backends: Iterable[Backend], balancer: LoadBalancer) -> None:
        if not isinstance(backends, Iterable):
            msg = f"backends={backends!r}: give an iterable of Backend(name, handler, quota)"
            raise ConfigError(msg, option="backends", value=backends)
        self._core = core
        self._balancer = balancer
        self._entries: dict[str, _Entry] = {}
        self._scopes: frozenset[str] = frozenset()
        self._runners: dict[str, Runner] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._is_open = False
        self._changes = 0
        for backend in backends:
            self.add(backend)

    @property
    def changes(self) -> int:
        """How often one was added or removed, or its quota replaced: who remembers something of them looks again."""
        return self._changes

    @property
    def runners(self) -> Mapping[str, Runner]:
        """What runs an attempt, by the name of its backend."""
        return self._runners

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes that limits count by."""
        return self._scopes

    @property
    def caps(self) -> Iterator[int | None]:
        """The cap on concurrency of each account."""
        for entry in self._here():
            yield from [entry.quota.concurrency] * len(entry.backend.accounts or [None])

    def add(self, backend: Backend) -> None:
        """Have one more.

        Raises:
            ConfigError: It is no backend, has the name of another one, or another quota than its group.
        """
        if not isinstance(backend, Backend):
            msg = f"backends={backend!r}: give Backend(name, handler, quota)"
            raise ConfigError(msg, option="backends", value=backend)
        if (other := self._entries.get(backend.name)) is not None:
            msg = (
                f"backends={backend.name!r}: two backends have this name; give each its own"
                if other.is_here
                else f"backends={backend.name!r}: the one that was removed still works; give the new one another name, or wait"
            )
            raise ConfigError(msg, option="backends", value=backend.name)
        self._check_group(backend)
        runner, threads = runner_of(backend)
        entry = _Entry(backend, backend.quota, threads)
        if self._is_open and type(backend).aopen is not Backend.aopen:
            entry.opening = asyncio.get_running_loop().create_task(backend.aopen())
            runner = _after(entry.opening, runner)
        entry.is_open = self._is_open
        name = backend.name
        self._core.add_backend(backend, runner, self._balancer.rank(name), self._balancer.price(name))
        self._runners[backend.name] = runner
        self._entries[backend.name] = entry
        self._note_scopes(backend.quota)
        self._changes += 1

    def remove(self, name: str, *, drain: bool) -> None:
        """Take one out; see `RateLimitScheduler.remove_backend`."""
        entry = self._named(name)
        self._core.remove_backend(name, drain)
        entry.is_here = False
        self._changes += 1

    def set_quota(self, name: str, quota: BackendQuota | str) -> None:
        """Replace what one, and those of its group, may do; see `RateLimitScheduler.set_quota`."""
        entry = self._named(name)
        group = entry.quota.group
        if not isinstance(quota, BackendQuota | str):
            msg = f"quota={quota!r}: give a BackendQuota, or a text such as '100/min'"
            raise ConfigError(msg, option="quota", value=quota)
        if isinstance(quota, str):
            quota = BackendQuota(quota, concurrency=entry.quota.concurrency)
        if quota.group not in (None, group):
            msg = f"group={quota.group!r}: backend {name!r} stays in its group, {group!r}; leave it out"
            raise ConfigError(msg, option="group", value=quota.group)
        quota = BackendQuota(*quota.limits, concurrency=quota.concurrency, group=group)
        self._core.set_quota(name, quota)
        self._note_scopes(quota)
        for other in self._entries.values():
            if other is entry or (group is not None and other.quota.group == group):
                other.quota = quota
        self._changes += 1

    def quota(self, name: str) -> BackendQuota | None:
        """What one may do now; None for one that is not there."""
        entry = self._entries.get(name)
        return None if entry is None else entry.quota

    async def open(self) -> None:
        """Let each open what it owns, in order of declaration."""
        for entry in list(self._entries.values()):
            await entry.backend.aopen()
            entry.is_open = True
        self._is_open = True

    async def close(self) -> None:
        """Let threads end, and each backend close what it owns, the last one first."""
        self._is_open = False
        async with AsyncExitStack() as stack:
            for entry in self._entries.values():
                stack.push_async_callback(_close, entry)
            if self._closing:
                await asyncio.wait(self._closing)

    def event(
        self,
        kind: str,
        backend: str | None,
        seconds: float | None,
        step: tuple[int, str, str, int] | None,
        scope: tuple[str, str] | None,
        evidence: tuple[int | None, tuple[int, int] | None],
    ) -> Event:
        """A change of state, in words."""
        if step is None or backend is None:
            account, of = evidence
            failed, attempts = of or (0, 0)
            return Event(kind, backend, seconds, scope=scope, account=account, failed=failed, attempts=attempts)
        number, before, after, used = step
        per = scope and scope[0]
        limits = [limit for limit in self._entries[backend].quota.limits if limit.per == per]
        # Its quota may have changed since.
        name = limits[number].name if number < len(limits) else ""
        return Event(kind, backend, seconds, Step(name, before, after, used), scope)

    def hear(self, event: Event | None) -> None:
        """Close one on which nothing runs any more."""
        if event is None or event.kind != "backend_gone" or event.backend is None:
            return
        entry = self._entries.pop(event.backend)
        del self._runners[event.backend]
        closing = asyncio.get_running_loop().create_task(_close_quietly(entry))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def states(self) -> dict[str, BackendState]:
        """How each stands now, and its limits."""
        states = {}
        for name, (state, until), counts, share, (health, latency), of_all, of_each in self._core.status():
            entry = self._entries.get(name)
            if entry is None:  # its end is about to be told
                continue
            limits = entry.quota.limits
            scopes = dict.fromkeys(limit.per for limit in limits if limit.per is not None)
            declared = cycle([limit for limit in limits if limit.per is None])
            each = cycle([limit for scope in scopes for limit in limits if limit.per == scope])
            has_accounts = entry.backend.accounts is not None
            rows = [
                _limit_state(limit, account if has_accounts else None, *usage)
                for limit, (account, usage) in zip(declared, of_all, strict=False)
            ]
            rows += [
                _limit_state(limit, account if has_accounts else None, *usage, scopes=values, waiting=blocked)
                for limit, (account, usage, values, blocked) in zip(each, of_each, strict=False)
            ]
            of_accounts = tuple(Health(*row) for row in health)
            best = max(of_accounts, key=lambda health: health.score)
            states[name] = BackendState(state, until, *counts, share, tuple(rows), best, of_accounts, latency)
        return states

    def supplies(self) -> "tuple[list[tuple[tuple[str, ...], BackendQuota, int]], dict[str, int]]":
        """Each quota, with the backends that spend it and how many accounts have it; and by name, the place of its quota."""
        supplies: list[tuple[tuple[str, ...], BackendQuota, int]] = []
        places: dict[str, int] = {}
        groups: dict[str, int] = {}
        for entry in self._here():
            name, group = entry.backend.name, entry.quota.group
            place = len(supplies) if group is None else groups.setdefault(group, len(supplies))
            if place < len(supplies):
                names, quota, accounts = supplies[place]
                supplies[place] = (*names, name), quota, accounts
            else:
                supplies.append(((name,), entry.quota, len(entry.backend.accounts or [None])))
            places[name] = place
        return supplies, places

    def __iter__(self) -> Iterator[str]:
        """The names of those that were not removed."""
        return (entry.backend.name for entry in self._here())

    def _note_scopes(self, quota: BackendQuota) -> None:
        # What a removed backend was limited by is said all the same: it does no harm.
        self._scopes |= {limit.per for limit in quota.limits if limit.per is not None}

    def _here(self) -> Iterator[_Entry]:
        return (entry for entry in self._entries.values() if entry.is_here)

    def _named(self, name: str) -> _Entry:
        entry = self._entries.get(name) if isinstance(name, str) else None
        if entry is None or not entry.is_here:
            msg = f"name={name!r}: there is no such backend; there are {', '.join(self) or 'none'}"
            raise ConfigError(msg, option="name", value=name)
        return entry

    def _check_group(self, backend: Backend) -> None:
        group = backend.quota.group
        if group is None:
            return
        for entry in self._entries.values():
            theirs = (entry.quota, entry.backend.accounts)
            if entry.quota.group == group and (backend.quota, backend.accounts) != theirs:
                msg = (
                    f"group={group!r}: backends {entry.backend.name!r} and {backend.name!r} spend one quota, so give them the "
                    "same limits, concurrency and accounts, or different groups"
                )
                raise ConfigError(msg, option="group", value=group)


def _limit_state(
    limit: Limit,
    account: int | None,
    kind: str,
    used: int,
    available: int,
    next_eligible_in: float | None,
    *,
    scopes: int | None = None,
    waiting: int | None = None,
) -> LimitState:
    return LimitState(
        name=limit.name,
        kind=kind,
        amount=limit.amount,
        period=limit.period,
        burst=limit.burst,
        used=used,
        available=available,
        next_eligible_in=next_eligible_in,
        account=account,
        per=limit.per,
        scopes=scopes,
        waiting=waiting,
    )


def _after(opening: "asyncio.Task[None]", runner: Runner) -> Runner:
    async def run(request: _core.Request) -> object:
        # An attempt that is cancelled meanwhile is no reason not to open.
        await asyncio.shield(opening)
        return await runner(request)

    return run


async def _close(entry: _Entry) -> None:
    if entry.threads is not None:
        entry.threads.close()
    if entry.opening is not None:
        await asyncio.wait([entry.opening])
    if entry.is_open:
        await entry.backend.aclose()


async def _close_quietly(entry: _Entry) -> None:
    try:
        await _close(entry)
    except Exception:
        logger.exception("%s was removed, and failed to close", entry.backend.name)
