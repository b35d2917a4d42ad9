"""Many servers of chat models as one: who is asked next, at what rate, at what price, and what is known
already.

A gateway has routes (an address, a key, a model). Every request takes the least busy one that may be asked
now; a route that fails is left for another. A plain endpoint is a gateway with one route and nothing else.
`settings` is what it is told, `asking` what it does; `route` and `limits` say when a route may be asked,
`store` has what is on disk, `meter` what is reported.

Invariants:
- In no minute does a key get more requests, or tokens as far as they are known, than its limits say.
- A budget is never exceeded, as long as a server bills no more than a token a byte of the request and
  `max_tokens` for the answer: a request that might not fit is not sent, and the run ends. It is of all
  processes and commands of a run; the limits are shared out among its processes (`GatewaySettings.share`).
"""

from .asking import BudgetSpent, Gateway, Gateways, Question
from .limits import Breaker, Window
from .meter import Meter, Seconds
from .route import Route
from .settings import (
    BreakerSettings,
    BudgetSettings,
    CacheSettings,
    GatewaySettings,
    Price,
    RouteSettings,
    gateway_settings,
)
from .store import Cache, Ledger

__all__ = [
    "Breaker",
    "BreakerSettings",
    "BudgetSettings",
    "BudgetSpent",
    "Cache",
    "CacheSettings",
    "Gateway",
    "GatewaySettings",
    "Gateways",
    "Ledger",
    "Meter",
    "Price",
    "Question",
    "Route",
    "RouteSettings",
    "Seconds",
    "Window",
    "gateway_settings",
]
