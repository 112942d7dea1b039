"""Which backend serves a request when several have room."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from tidegate._errors import ConfigError
from tidegate._health import LONGEST
from tidegate._quota import is_number

_STRATEGIES = ("adaptive", "least_in_flight")


@dataclass(frozen=True, slots=True)
class LoadBalancer:
    """Chooses among the backends that have room for a request; a scheduler has one by default, which needs no tuning.

    A request goes to a backend only when the limits of that one have room: nothing waits in line for one backend while another
    is free. Of those with room, one where its last attempt did not fail is chosen, then the one that it prefers (`prefer=`),
    then the first one in `order`, then by the strategy:

    * `"adaptive"`: the least seconds until an answer is expected. That is the latency of late (a peak EWMA to the response
      headers, in which a failure counts as slow) times requests in flight over `Backend.weight`, plus the likelihood of a
      failure times what trying again takes, plus the price, plus how much longer requests may have to wait that have fewer
      backends to go to (`backends=`), from what they asked for in the last minute and what limits have left. A backend of
      which nothing is known is tried as soon as nothing runs there. A request with a `timeout` leaves alone a backend that is
      likely to answer too late, as long as another one behind it, of the same cost and for the same backends, has use for it;
      then that one goes first. At most 64 of those that came in order and 64 others are looked at for that; with
      `order="edf"` any number of these others.
    * `"least_in_flight"`: the fewest requests in flight over `Backend.weight`, then the one that was declared first. It learns
      nothing and knows no price.

    Args:
        strategy: How the choice is made, in the end.
        prices: What a request costs at a backend, in seconds: so much longer an answer from elsewhere may take. Backends
            without a price cost nothing. It decides among backends that have room; nothing waits for a cheaper one.
        order: Names of backends, the first choice first; all others come after them, alike.

    Both may name backends that are added later.

    Raises:
        ConfigError: A value is of the wrong type or out of range.

    Source: Finagle's and linkerd's peak EWMA, with linkerd's penalty for failures.

    Example:
        >>> LoadBalancer(prices={"paid": 2.5}).price("paid")
        2.5
    """

    strategy: Literal["adaptive", "least_in_flight"] = "adaptive"
    prices: Mapping[str, float] = field(default_factory=dict, hash=False)
    order: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.strategy not in _STRATEGIES:
            msg = f"strategy={self.strategy!r}: give 'adaptive' or 'least_in_flight'"
            raise ConfigError(msg, option="strategy", value=self.strategy)
        if not isinstance(self.prices, Mapping):
            msg = f"prices={self.prices!r}: give seconds by name, such as {{'paid': 2.5}}"
            raise ConfigError(msg, option="prices", value=self.prices)
        for name, price in self.prices.items():
            if not isinstance(name, str) or not is_number(price) or not 0 <= price <= LONGEST:
                msg = f"prices: {name!r}: {price!r}: give the name of a backend and seconds from 0 to ten years"
                raise ConfigError(msg, option="prices", value=self.prices)
        if self.prices and self.strategy != "adaptive":
            msg = f"prices={dict(self.prices)!r}: only strategy='adaptive' knows prices; leave them out, or the strategy"
            raise ConfigError(msg, option="prices", value=self.prices)
        if isinstance(self.order, str) or not isinstance(self.order, Sequence):
            msg = f"order={self.order!r}: give a list of names of backends, such as ['free', 'paid']"
            raise ConfigError(msg, option="order", value=self.order)
        if len(set(map(repr, self.order))) < len(self.order) or not all(isinstance(name, str) for name in self.order):
            msg = f"order={self.order!r}: give names of backends, each once"
            raise ConfigError(msg, option="order", value=self.order)
        object.__setattr__(self, "prices", MappingProxyType(dict(self.prices)))
        object.__setattr__(self, "order", tuple(self.order))

    def price(self, name: str) -> float:
        """What a request costs at a backend, in seconds."""
        return self.prices.get(name, 0.0)

    def rank(self, name: str) -> int:
        """The place of a backend in the order of preference, from 0; all that are not in it have the same one, the last."""
        return self.order.index(name) if name in self.order else len(self.order)
