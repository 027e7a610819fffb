"""How many event streams each principal has open in this process, and the problem for one too many."""

import threading
from http import HTTPStatus
from weakref import WeakSet, WeakValueDictionary

from .problems import RETRY_AFTER, Problem


class StreamSlot:
    """Counts as one open stream until it is released, or garbage: a stream that nothing reads is never closed."""

    def __init__(self, others: "WeakSet[StreamSlot]") -> None:
        self._others = others
        others.add(self)

    def release(self) -> None:
        """May be called several times."""
        self._others.discard(self)


class StreamSlots:
    """The open streams by principal. Safe in threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        # A principal's set is kept by its slots, so that nothing is kept of principals without streams.
        self._open: WeakValueDictionary[str, WeakSet[StreamSlot]] = WeakValueDictionary()

    def take(self, principal_key: str) -> StreamSlot:
        """Raises the problem 429 if the principal has as many streams as are allowed."""
        with self._lock:
            slots = self._open.get(principal_key)
            if slots is None:
                slots = self._open[principal_key] = WeakSet()
            if len(slots) >= self._limit:
                raise Problem(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "too-many-streams",
                    f"{self._limit} event streams are open, which is as many as one principal may have: close one, or "
                    "raise Limits(max_streams=…) in the app",
                    headers={"Retry-After": RETRY_AFTER},
                    limit=self._limit,
                )
            return StreamSlot(slots)
