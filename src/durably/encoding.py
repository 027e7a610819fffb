"""Users' values as JSON: fast for what is common, complete for what Python's own encoder also takes."""

import json
from typing import Any

import msgspec


def encode_json(value: Any) -> bytes:
    """Raises ``ValueError`` with what is wrong with the value."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = error
    try:
        # Subclasses of str, int and float (Django's SafeString, numpy's float64), None and bool as keys, surrogates.
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(str(reason)) from None
