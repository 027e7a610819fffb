"""The engine's operations over a link: arguments and results as JSON.

Users' JSON is part of it as it is, so that it stays byte for byte the same.
"""

import functools
from collections.abc import Mapping
from typing import Any

import msgspec

import durably.engine.core.errors
from durably.engine.core.errors import EngineError
from durably.engine.http.codec import decoder_of, from_wire
from durably.engine.interface import Engine
from durably.engine.operations import Operation, operations_of

OPERATIONS = operations_of(Engine)

_ABSENT = msgspec.Raw(b"")


def encode_arguments(arguments: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(
        {name: msgspec.Raw(value) if isinstance(value, bytes) else value for name, value in arguments.items()}
    )


async def answer(operation: Operation, engine: Engine, encoded: bytes) -> bytes:
    """Execute an operation for another process. Raises ``EngineError``."""
    decoded = _arguments_type(operation)(encoded)
    arguments = {
        argument.name: bytes(value) if argument.type is bytes else value
        for argument in operation.arguments
        if (value := getattr(decoded, argument.name)) is not msgspec.UNSET and value != _ABSENT
    }
    return msgspec.json.encode(await operation.execute(engine, arguments))


@functools.cache
def _arguments_type(operation: Operation) -> Any:
    fields = [
        (argument.name, msgspec.Raw, _ABSENT)
        if argument.type in (bytes, msgspec.Raw)
        else (argument.name, argument.type | None | msgspec.UnsetType, msgspec.UNSET)
        for argument in operation.arguments
    ]
    return msgspec.json.Decoder(msgspec.defstruct(operation.name, fields, kw_only=True)).decode


def decode_result(operation: Operation, encoded: bytes) -> Any:
    return from_wire(decoder_of(operation.result).decode(encoded))


def to_error(name: str, message: str) -> EngineError:
    """The engine's error that the leader reported."""
    kind = getattr(durably.engine.core.errors, name, EngineError)
    is_known = isinstance(kind, type) and issubclass(kind, EngineError)
    return kind(message) if is_known else EngineError(f"{name}: {message}")
