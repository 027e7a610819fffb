"""The signatures that one side of the wire has made, so that it recognises them when they come back.

The protocol signs a body and a time, and does not tell a call from an answer: both are signed with the same key. So a
side that gets one of its own signatures knows that somebody has sent its own message back.
"""

from array import array

from .limits import SIGNATURE_TOLERANCE
from .signatures import parse_header

_KEPT_SECONDS = 2 * int(SIGNATURE_TOLERANCE.total_seconds())
"""Longer than a signature is accepted, in case the clock is set back."""
_DIGITS = 16


class SentSignatures:
    """Signature headers of the last ten minutes, by the second in which they were made.

    Each takes eight bytes, the start of its HMAC. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._by_second: dict[int, array[int]] = {}

    def add(self, header: str) -> None:
        """Raises ``SignatureError`` for a malformed header."""
        timestamp, signature = parse_header(header)
        made = self._by_second.get(timestamp)
        if made is None:
            self._forget(before=timestamp - _KEPT_SECONDS)
            made = self._by_second.setdefault(timestamp, array("Q"))
        made.append(int(signature[:_DIGITS], 16))

    def __contains__(self, header: str) -> bool:
        """Raises ``SignatureError`` for a malformed header."""
        timestamp, signature = parse_header(header)
        return int(signature[:_DIGITS], 16) in self._by_second.get(timestamp, ())

    def __len__(self) -> int:
        return sum(map(len, self._by_second.copy().values()))

    def _forget(self, before: int) -> None:
        for second in [second for second in self._by_second.copy() if second < before]:
            self._by_second.pop(second, None)
