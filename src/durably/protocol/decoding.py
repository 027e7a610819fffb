"""Decoding of received JSON: every fault raises a ``msgspec.DecodeError``.

msgspec raises other exceptions for two faults, and does not check text inside ``msgspec.Raw``.
"""

from typing import TypeVar

import msgspec

T = TypeVar("T")


class TooDeepError(msgspec.DecodeError):
    """The JSON is nested more deeply than Python can decode. Sending it again does not help."""

    def __init__(self) -> None:
        super().__init__("JSON is nested too deeply")


class NotUtf8Error(msgspec.DecodeError):
    """The JSON is not encoded in UTF-8."""

    def __init__(self) -> None:
        super().__init__("JSON is malformed: it is not encoded in UTF-8")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` with the place of the fault, ``TooDeepError``."""
    try:
        decoded = decoder.decode(body)
        if not body.isascii():
            body.decode()
        return decoded
    except UnicodeDecodeError:
        raise NotUtf8Error from None
    except RecursionError:
        raise TooDeepError from None
