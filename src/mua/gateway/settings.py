"""What a gateway is told: routes with their limits, prices, budget, cache, breaker.

Invariant: settings never hold a key, and an error about them never prints what stood in the wrong field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import MuaError
from ..transport import checked_env, checked_url

_FILES = (".yaml", ".yml")


class _Settings(BaseModel):
    # Inputs stay out of validation errors: a key put into the wrong field must not be printed.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RouteSettings(_Settings):
    """One way to an answer: an address, a key, a model."""

    base_url: str = Field(description="Address up to /v1, without any key.")
    api_key_env: str = Field(
        default="", description="NAME of the environment variable that holds the key; empty sends none."
    )
    model: str = Field(default="", description="Model name there; empty: the name that is asked for.")
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one whole request.")
    concurrency: int = Field(default=16, ge=1, description="Most requests in flight.")
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="Of the key, over all routes that have it; null: any."
    )
    tokens_per_minute: int | None = Field(default=None, ge=1, description="Likewise, prompt and answer.")

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_url(cls, url: str) -> str:
        return checked_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return checked_env(name)

    @property
    def key(self) -> tuple[str, str]:
        """What a limit is of."""
        return self.base_url, self.api_key_env

    def share(self, of: int) -> RouteSettings:
        """What one of so many processes may do: all together no more than this. Raises MuaError where a limit
        is smaller than their number; requests in flight are at least one each."""
        less: dict[str, Any] = {"concurrency": max(1, self.concurrency // of)}
        for name in ("requests_per_minute", "tokens_per_minute"):
            most = getattr(self, name)
            if most is not None and most < of:
                raise MuaError(
                    f"{of} processes cannot share {name}={most} of {self.base_url}: let fewer of them play "
                    "(train.processes; with verl, verl.workers), or raise it."
                )
            less[name] = most and most // of
        return self.model_copy(update=less)


class Price(_Settings):
    """US dollars per million tokens."""

    prompt: float = Field(default=0.0, ge=0, description="Tokens sent.")
    completion: float = Field(default=0.0, ge=0, description="Tokens answered.")


class BreakerSettings(_Settings):
    """When a route is left alone for a while."""

    failures: int = Field(default=5, ge=1, description="Failures in a row after which it is not asked.")
    seconds: float = Field(
        default=30.0, gt=0, description="Until one request tries it again; the others wait for that one."
    )


class CacheSettings(_Settings):
    """Answers that are kept."""

    folder: str = Field(description="Where; on a disk of this machine. Processes may share it.")
    megabytes: int = Field(
        default=2000, ge=1, description="What was not used for longest goes when it is full."
    )


class BudgetSettings(_Settings):
    """What a run may spend, all its commands and processes together."""

    tokens: int | None = Field(default=None, ge=1, description="Prompt and answers; null: any number.")
    dollars: float | None = Field(default=None, gt=0, description="By `prices`; null: any sum.")

    @property
    def is_set(self) -> bool:
        return self.tokens is not None or self.dollars is not None

    def allows(self, tokens: int, dollars: float) -> bool:
        """Whether so much in all is within it."""
        return (self.tokens is None or tokens <= self.tokens) and (
            self.dollars is None or dollars <= self.dollars
        )

    def share(self, of: int) -> BudgetSettings:
        """That of one of so many processes which cannot see what the others spend. Raises MuaError."""
        if self.tokens is not None and self.tokens < of:
            raise MuaError(f"{of} processes cannot share a budget of {self.tokens} tokens; raise it.")
        return BudgetSettings(
            tokens=self.tokens and self.tokens // of, dollars=self.dollars and self.dollars / of
        )


class GatewaySettings(_Settings):
    """Servers that are asked as one (docs/scale-out.md)."""

    routes: tuple[RouteSettings, ...] = Field(
        description="Of equals in load, the first is asked; a failure goes on to the next."
    )
    prices: dict[str, Price] = Field(default={}, description="By model name, as the routes have it.")
    budget: BudgetSettings = Field(default=BudgetSettings())
    cache: CacheSettings | None = Field(default=None, description="null keeps no answers.")
    breaker: BreakerSettings | None = Field(default=BreakerSettings(), description="null never leaves off.")

    @model_validator(mode="after")
    def _one_limit_a_key(self) -> GatewaySettings:
        if not self.routes:
            raise ValueError("routes is empty: a gateway needs at least one")
        limits: dict[tuple[str, str], tuple[int | None, int | None]] = {}
        for route in self.routes:
            mine = route.requests_per_minute, route.tokens_per_minute
            if limits.setdefault(route.key, mine) != mine:
                raise ValueError(
                    f"two routes to {route.base_url} have one key and different limits a minute: limits are "
                    "of a key, so give both the same"
                )
        return self

    def share(self, of: int, *, one_ledger: bool) -> GatewaySettings:
        """Those of one of so many processes. With `one_ledger` they see what the others spend, so the budget
        stays whole. Raises MuaError."""
        return self.model_copy(
            update={
                "routes": tuple(route.share(of) for route in self.routes),
                "budget": self.budget if one_ledger else self.budget.share(of),
            }
        )


def gateway_settings(name: str, known: Mapping[str, GatewaySettings]) -> GatewaySettings:
    """Those of a name in the configuration, or of a YAML file. Raises MuaError."""
    if name in known:
        return known[name]
    if not is_file(name):
        there = f"it has {', '.join(known)}" if known else "it has none"
        raise MuaError(
            f"there is no gateway '{name}' under `gateways` of the configuration ({there}); add it there, or "
            "name a YAML file with its settings: gateway:FILE.yaml."
        )
    import yaml

    try:
        data = yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8"))
        return GatewaySettings.model_validate(data)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as exc:
        raise MuaError(f"the gateway {name} cannot be read ({' '.join(str(exc).split())}).") from None
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise MuaError(f"the gateway {name}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def is_file(name: str) -> bool:
    """Whether a gateway's name is that of a file."""
    return name.endswith(_FILES)
