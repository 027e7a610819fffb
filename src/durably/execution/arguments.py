"""Arguments of a step, sent to the engine to be shown and edited."""

from collections.abc import Sequence
from typing import Any

import msgspec

from durably.protocol.call import check_nesting

_MAX_NESTING = 64


def sendable_arguments(arguments: Sequence[Any], max_bytes: int) -> list[Any] | None:
    """A copy of a step's arguments, or ``None`` if they are not sent.

    They are sent if each equals the value that its JSON stands for, so that an edited copy has the same types, and if
    their JSON has at most ``max_bytes``. The copy is made before the handler can change them.
    """
    for argument in arguments:
        if type(argument) in (str, list, dict) and len(argument) > max_bytes:
            return None  # without the cost of its JSON
    try:
        encoded = msgspec.json.encode(arguments)
        if len(encoded) > max_bytes:
            return None
        check_nesting(encoded, _MAX_NESTING)
        copied: list[Any] = msgspec.json.decode(encoded)
        return copied if all(copy == given for copy, given in zip(copied, arguments, strict=True)) else None
    except Exception:
        # A value without JSON, or one that refuses to be compared. The step runs all the same.
        return None
