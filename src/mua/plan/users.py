"""What a configuration says of its endpoint users: how many at once, limits by the minute, prices, budgets.

Invariant: what the rates say wins over the configuration, and what neither says is not made up.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ..config import Config, UserSettings
from ..gateway import gateway_settings
from .rates import EndpointRates


@dataclass(frozen=True)
class Terms:
    """On which an endpoint answers. Prices are in US dollars per million tokens."""

    concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    prompt_price: float
    completion_price: float
    budget_dollars: float | None = None
    budget_tokens: int | None = None
    gateway: str = ""

    def cost(self, prompt: float, answer: float) -> float:
        return (prompt * self.prompt_price + answer * self.completion_price) / 1e6


def terms(config: Config, user: UserSettings, rates: EndpointRates) -> Terms:
    """Of an endpoint's user. A gateway's routes add up; a limit by the minute counts once a key.

    Raises MuaError where the gateway is not there.
    """
    endpoint = user.endpoint
    assert endpoint is not None
    if endpoint.gateway:
        gateway = gateway_settings(endpoint.gateway, config.gateways)
        keys = {route.key: route for route in gateway.routes}
        models = [route.model or endpoint.model for route in gateway.routes]
        prices = [gateway.prices[m] for m in models if m in gateway.prices]
        found = Terms(
            sum(route.concurrency for route in gateway.routes),
            _sum([route.requests_per_minute for route in keys.values()]),
            _sum([route.tokens_per_minute for route in keys.values()]),
            statistics.fmean(p.prompt for p in prices) if prices else 0.0,
            statistics.fmean(p.completion for p in prices) if prices else 0.0,
            gateway.budget.dollars,
            gateway.budget.tokens,
            endpoint.gateway,
        )
    else:
        found = Terms(
            endpoint.concurrency, None, None, endpoint.prompt_price, endpoint.completion_price
        )  # fmt: skip
    given = rates.model_dump(include={"concurrency", "requests_per_minute", "tokens_per_minute"} | _PRICES)
    return Terms(**{**vars(found), **{k: v for k, v in given.items() if v is not None}})


_PRICES = {"prompt_price", "completion_price"}


def _sum(limits: list[int | None]) -> float | None:
    """Of all keys; None when one of them is without a limit."""
    return None if None in limits else float(sum(x for x in limits if x is not None))
