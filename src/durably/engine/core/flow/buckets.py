"""Buckets: what an option counts separately, such as one user's events of one function.

A bucket is told by the option, the function and the value of the option's key expression. Its state is a small
struct, stored as bytes under the bucket's id; no state means that nothing has been counted yet.
"""

import hashlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Self

import msgspec

from durably.engine.core.expressions import Expression
from durably.engine.core.expressions.values import to_index_key

_LONGEST_ID = 200

Fields = Mapping[str, Any]
"""An event as JSON decodes it."""

ReadState = Callable[[str], bytes | None]
"""From a bucket's id to its state as stored."""


class BucketKind(StrEnum):
    RATE_LIMIT = "rate_limit"
    IDEMPOTENCY = "idempotency"
    DEBOUNCE = "debounce"
    BATCH = "batch"
    SINGLETON = "singleton"
    THROTTLE = "throttle"


class Bucket(msgspec.Struct, frozen=True):
    """``key`` is empty where the option has no key expression."""

    kind: BucketKind
    function_id: str
    key: str = ""

    @property
    def id(self) -> str:
        return bucket_id(self.kind, self.function_id, self.key)


class BucketState(msgspec.Struct, frozen=True, array_like=True):
    """Base of the states."""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, stored: bytes) -> Self:
        """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
        return msgspec.msgpack.decode(stored, type=cls)

    @classmethod
    def load(cls, read: ReadState, bucket: Bucket) -> Self | None:
        stored = read(bucket.id)
        return None if stored is None else cls.decode(stored)


class StateChange(msgspec.Struct, frozen=True):
    """What to store for a bucket; a ``state`` of ``None`` removes it.

    ``due`` is when something has to be done about the bucket, ``expires`` when its state comes to mean the same as
    none and may be removed.
    """

    bucket: Bucket
    state: bytes | None
    due: int | None = None
    expires: int | None = None


def key_of(expression: Expression | None, event: Fields) -> str:
    """The value of a key expression as text; empty where there is no expression. A missing field counts as null."""
    return "" if expression is None else _to_text(expression.value(event))


def key_unless_false(expression: Expression | None, event: Fields) -> str | None:
    """The same for the options that a key of ``false`` switches off for an event: ``None`` then."""
    if expression is None:
        return ""
    value = expression.value(event)
    return None if value is False else _to_text(value)


def bucket_id(*parts: str) -> str:
    """Text that differs where the parts do: readable if short, a hash if long."""
    text = "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)
    return text if len(text) <= _LONGEST_ID else f"{parts[0]}/#{_hash(text.encode())}"


def _to_text(value: object) -> str:
    """The same text for values that expressions hold equal, such as 1 and 1.0, and another for others."""
    if isinstance(value, list | dict):
        return f"composite:{_hash(msgspec.json.encode(_normalise(value)))}"
    return _scalar_text(value)


def _normalise(value: object) -> object:
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    if isinstance(value, dict):
        return {"map": sorted((_scalar_text(name), _normalise(member)) for name, member in value.items())}
    return _scalar_text(value)


def _scalar_text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        # Ids may have more digits than a double; those that differ in the last must not share a bucket.
        return f"number:{value}"
    return to_index_key(value)


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
