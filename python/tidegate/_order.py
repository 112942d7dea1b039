"""In which order requests go that wait for the same backends."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from tidegate._errors import ConfigError
from tidegate._quota import is_number, seconds_of

LIGHTEST, HEAVIEST = 0.001, 1000


@dataclass(frozen=True, slots=True, init=False)
class Aging:
    """The order in which waiting makes urgent: a request goes by when it was accepted plus `priority * step` seconds.

    So a request that has waited `step` seconds longer is one level of priority more urgent. Nobody starves: one of priority
    `p` goes before all that are accepted later than `p * step` seconds after it. `Priority.HIGH` is 64 levels above
    `Priority.NORMAL`. That is linear aging as a key that never changes, since all who wait age alike.

    Args:
        step: Seconds that a level of priority is worth, or a timedelta; above 0.

    Raises:
        ConfigError: `step` is not above 0.

    Example:
        >>> Aging(0.25)  # a normal request goes before an urgent one that comes 32 seconds later
        Aging(step=0.25)
    """

    step: float

    def __init__(self, step: float | timedelta) -> None:
        object.__setattr__(self, "step", seconds_of("step", step))


@dataclass(frozen=True, slots=True, init=False)
class Fair:
    """The order in which flows share: a more urgent priority goes first, and inside a priority flows take turns by their weights.

    A flow is all requests with the same `flow=`; those without are one flow more. Inside a flow the first in is the first out.
    While two flows both wait, what they take of a limit in any span of time differs by no more than one request of each, by
    weight: with weights 3 and 1 it is three to one, whatever their requests cost. One with nothing waiting leaves its share to
    the others, and saves up nothing. An attempt that is repeated counts again. Flows that wait for different backends share at
    each of them.

    This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).

    Args:
        weights: Of some flows, by name, from 0.001 to 1000; all others weigh 1.

    Raises:
        ConfigError: A name is no text, or a weight is out of range.

    Example:
        >>> Fair({"paying": 3})
        Fair(weights={'paying': 3.0})
    """

    weights: Mapping[str, float]

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        if weights is not None and not isinstance(weights, Mapping):
            msg = f"weights={weights!r}: give a mapping from names of flows to numbers, or None"
            raise ConfigError(msg, option="weights", value=weights)
        checked = {}
        for name, weight in (weights or {}).items():
            if not (isinstance(name, str) and name and name.isprintable()):
                msg = f"weights={weights!r}: {name!r} names no flow; give a text that can be printed and is not empty"
                raise ConfigError(msg, option="weights", value=weights)
            if not is_number(weight) or not LIGHTEST <= weight <= HEAVIEST:
                msg = f"weights={weights!r}: {weight!r} is no weight; give a number from {LIGHTEST} to {HEAVIEST}"
                raise ConfigError(msg, option="weights", value=weights)
            checked[name] = float(weight)
        object.__setattr__(self, "weights", checked)


# `"strict"`: a more urgent priority goes first; inside a priority the first in is the first out. `"edf"`: inside a priority the
# earliest deadline goes first, and a request without one counts as due an hour after it was accepted.
Order = Literal["strict", "edf"] | Aging | Fair


def checked(order: object) -> Order:
    """An order that a user gave.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(order, Aging | Fair):
        return order
    if isinstance(order, str):  # a `Literal`, as it is compared
        for name in ("strict", "edf"):
            if order == name:
                return name
    msg = f"order={order!r}: give 'strict', 'edf', Aging(step) or Fair(weights)"
    raise ConfigError(msg, option="order", value=order)
