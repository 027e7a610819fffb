"""Ids of events and runs: ULIDs, random ones and those that follow from a sender's seed."""

import base64
import binascii
from collections.abc import Callable

from ulid import ULID

from durably.engine.errors import EventInvalidError

ENTROPY_BYTES = 10
Entropy = Callable[[int], bytes]
"""So many bytes that nobody guesses; in tests, ones that are the same each time."""
_COUNTER_BYTES = 4
_MAX_MILLISECONDS = 2**48 - 1


def new_id(now: int, entropy: Entropy) -> str:
    """``now`` is milliseconds since the epoch: ids sort by it."""
    return _ulid(now, entropy(ENTROPY_BYTES))


class IdSeed:
    """The value of ``x-inngest-event-id-seed``: ``<milliseconds>,<base64 of 10 bytes>``.

    The n-th event of a request adds n to the last four bytes, so that one seed makes many ids.
    """

    def __init__(self, text: str) -> None:
        """Raises ``EventInvalidError``."""
        milliseconds, _, encoded = text.partition(",")
        try:
            self._milliseconds = int(milliseconds)
            self._entropy = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            self._entropy = b""
        if len(self._entropy) != ENTROPY_BYTES or not 0 < self._milliseconds <= _MAX_MILLISECONDS:
            raise EventInvalidError(
                "the event id seed is malformed; it must be <milliseconds since the epoch>,<base64 of 10 bytes>"
            )

    def id_of(self, index: int) -> str:
        head, tail = self._entropy[:-_COUNTER_BYTES], self._entropy[-_COUNTER_BYTES:]
        counter = (int.from_bytes(tail) + index) % 2 ** (8 * _COUNTER_BYTES)
        return _ulid(self._milliseconds, head + counter.to_bytes(_COUNTER_BYTES))


def _ulid(milliseconds: int, entropy: bytes) -> str:
    return str(ULID.from_bytes(milliseconds.to_bytes(6) + entropy))
