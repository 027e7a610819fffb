"""Log lines for events that may happen thousands of times a second.

At most one line is logged in ten seconds.
"""

import logging
import math
import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 10.0


class SparseLog:
    """Logs at most one line in ``SECONDS_BETWEEN_LINES``.

    The line has the number of lines dropped since the last one.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._clock = logger, clock
        self._last = -math.inf
        self._left_out = 0

    def log(self, level: int, message: str, *arguments: object) -> None:
        now = self._clock()
        if now - self._last < SECONDS_BETWEEN_LINES:
            self._left_out += 1
            return
        if self._left_out:
            message, arguments = f"{message} (%d like this were not logged)", (*arguments, self._left_out)
        self._last, self._left_out = now, 0
        self._logger.log(level, message, *arguments)
