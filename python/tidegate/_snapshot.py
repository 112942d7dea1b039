"""Frozen views of a scheduler, for humans, tests and encoders."""

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate._health import Health


@dataclass(frozen=True, slots=True)
class Ledger:
    """What became of every request: `accepted = delivered + dead + expired + cancelled + pending`, at every instant."""

    accepted: int
    delivered: int
    dead: int
    expired: int
    cancelled: int
    queued: int
    leased: int
    done: int

    @property
    def pending(self) -> int:
        """Requests that have not ended."""
        return self.queued + self.leased + self.done

    @property
    def balanced(self) -> bool:
        """Whether the identity holds."""
        return self.accepted == self.delivered + self.dead + self.expired + self.cancelled + self.pending


@dataclass(frozen=True, slots=True)
class LimitState:
    """One limit at one moment.

    `kind` is what it is treated as now: as declared, or a step of the kind ladder. `used` counts units in flight too;
    `next_eligible_in` is in seconds, None until something is acknowledged; `account` is the place of its account in `accounts=`,
    from 0, None for a backend without them.

    With `per` each value of that scope has the limit to itself: `scopes` of them have sent something lately, requests wait for
    `waiting` of those, and the rest tells of the one that has used most of it.
    """

    name: str
    kind: str
    amount: int
    period: float
    burst: int | None
    used: int
    available: int
    next_eligible_in: float | None
    account: int | None = None
    per: str | None = None
    scopes: int | None = None
    waiting: int | None = None


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend at one moment; with accounts, as the one that takes a request first.

    `state` is `"open"`, `"limited"`, `"full"` (concurrency), `"closed"` (by the server), `"down"` (it fails) or `"draining"`
    (removed); `next_eligible_in` the seconds until that may change, None when only an event can; `strays` the attempts in flight
    that were given up. `sent` is how many messages went there so far, redirects and pages too, and `rejected` how many of them
    the server rejected for its limits. `utilisation` is the share of what was possible, from 0 to 1: units sent and not
    rejected, of those that the declared limits let through in the time during which something waited for it; since its quota
    was last changed; None without limits, or as long as nothing has waited. `health` is that of the account that does best,
    `accounts` have the health of each, in order; `latency` are the seconds that it takes to answer, as far as is known now.
    """

    state: str
    next_eligible_in: float | None
    in_flight: int
    strays: int
    sent: int
    rejected: int
    utilisation: float | None
    limits: tuple[LimitState, ...]
    health: Health
    accounts: tuple[Health, ...]
    latency: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A scheduler at one moment; `msgspec.json.encode` writes it."""

    backends: Mapping[str, BackendState]
    queued: int
    leased: int
    done: int
    workers: int


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the kind ladder.

    The limit `limit`, which was treated as a `before`, rejected a request although that conformed, with `used` units counting
    against it then; from now on it is treated as an `after`.
    """

    limit: str
    before: str
    after: str
    used: int


@dataclass(frozen=True, slots=True)
class Event:
    """A change of state.

    `kind` is `"limit_closed"` (until `seconds` later), `"limit_reopened"`, `"limit_stepped"` (by `step`: the server counts
    otherwise than was thought), `"backend_down"` (it fails: nothing is sent for `seconds`), `"backend_recovering"`,
    `"backend_up"`, or `"backend_gone"` (it was removed, and nothing runs on it any more). With those of health, `failed` of
    `attempts` are those that spoke against it, and `account` is the place of its account, from 0, if it has several.
    `"own_fault"`: `failed` of `attempts` backends fail on this side of the line at once, as when names are not found, so that
    none is held back for it; until `"own_fault_over"`. Both are of no `backend`.
    `scope` is the name and the value of the scope whose limits these are, for a limit that is `per` something.
    """

    kind: str
    backend: str | None
    seconds: float | None
    step: Step | None = None
    scope: tuple[str, str] | None = None
    account: int | None = None
    failed: int = 0
    attempts: int = 0
