"""Concurrency: how many calls may be under way at once, and which run goes first."""

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from durably.engine.core.expressions import Expression
from durably.protocol import sync
from durably.protocol.limits import MAX_CONCURRENCY

from .buckets import Fields, bucket_id, key_of
from .option_values import OptionReader

_OPTION = "concurrency"


class Scope(StrEnum):
    FN = "fn"
    ENV = "env"
    ACCOUNT = "account"


class ConcurrencyLimit(msgspec.Struct, frozen=True):
    limit: int
    scope: Scope = Scope.FN
    key: Expression | None = None

    @property
    def name(self) -> str:
        """Tells a function's limits apart; stays the same while only the number changes."""
        return f"{self.scope}:{self.key.text if self.key else ''}"

    def bucket_id(self, function_id: str, event: Fields) -> str:
        key = key_of(self.key, event)
        if self.scope is Scope.FN:
            return bucket_id(_OPTION, self.scope, function_id, self.name, key)
        return bucket_id(_OPTION, self.scope, key)


def read_concurrency(
    config: Sequence[sync.Concurrency] | sync.Concurrency | int | None, reader: OptionReader
) -> tuple[ConcurrencyLimit, ...]:
    """A limit of 0 means none, as on the public server."""
    if config is None:
        return ()
    if isinstance(config, int):
        config = [sync.Concurrency(limit=config)]
    elif isinstance(config, sync.Concurrency):
        config = [config]
    if len(config) > MAX_CONCURRENCY:
        raise reader.refuse(_OPTION, f"has {len(config)} entries; at most {MAX_CONCURRENCY} are possible")
    limits = tuple(_read_limit(entry, reader) for entry in config if entry.limit)
    if len({limit.name for limit in limits}) < len(limits):
        raise reader.refuse(_OPTION, "has two limits of the same scope and key; keep the smaller")
    return limits


def _read_limit(config: sync.Concurrency, reader: OptionReader) -> ConcurrencyLimit:
    limit = reader.count(f"{_OPTION}.limit", config.limit)
    scope = reader.choice(f"{_OPTION}.scope", config.scope or Scope.FN, Scope)
    key = reader.expression(f"{_OPTION}.key", config.key)
    if scope is not Scope.FN and key is None:
        raise reader.refuse(
            f"{_OPTION}.key",
            f"is missing: a limit of scope {scope.value!r} is shared by functions whose keys have the same value, "
            """so it needs one, such as '"payments"'""",
        )
    return ConcurrencyLimit(limit, scope, key)


MAX_PRIORITY_SECONDS = 600


def place_of(priority: Expression | None, event: Fields, now: int) -> int:
    """The place of a run admitted ``now``, in milliseconds; the least comes first."""
    return now if priority is None else now - 1000 * priority_of(priority, event)


def priority_of(priority: Expression, event: Fields) -> int:
    """Whole seconds between -600 and 600. What is no number counts as 0; fractions are cut off."""
    value = priority.value(event)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return math.trunc(max(-MAX_PRIORITY_SECONDS, min(value, MAX_PRIORITY_SECONDS)))
