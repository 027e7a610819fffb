"""Numbers of live runs, read in the background."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from durably.protocol.text import get_logger

_FRESH_SECONDS, _KEPT_SECONDS = 15.0, 120.0
"""Ages after which numbers are read again, and are no longer shown."""
_FIRST_SECONDS, _READ_SECONDS = 1.0, 10.0
"""Times for the first answer, and for one read."""

_logger = get_logger("durably.engine")


class LiveRuns:
    """``get`` starts a read if the last one is old, and waits only for the first.

    One read costs a request for each function, and the scrapes of all processes add up.
    """

    def __init__(self, read: Callable[[], Awaitable[Mapping[str, int]]]) -> None:
        self._read = read
        self._numbers: Mapping[str, int] | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._has_failed = False

    async def get(self) -> Mapping[str, int] | None:
        """The numbers by function; ``None`` if they are unknown."""
        age = time.monotonic() - self._read_at
        if (self._numbers is None or age > _FRESH_SECONDS) and self._reading is None:
            self._reading = asyncio.create_task(self._refresh())
        if self._numbers is None and self._reading is not None:
            await asyncio.wait([self._reading], timeout=_FIRST_SECONDS)
        is_old = time.monotonic() - self._read_at > _KEPT_SECONDS
        return None if is_old else self._numbers

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                self._numbers = await self._read()
            self._read_at = time.monotonic()
            self._has_failed = False
        except Exception as error:  # The other metrics are of use then, and so are the app's own.
            if not self._has_failed:
                _logger.warning(
                    "durably_runs_live is missing in the metrics until it can be read again: %s: %s",
                    type(error).__name__,
                    error,
                )
            self._has_failed = True
        finally:
            self._reading = None

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
