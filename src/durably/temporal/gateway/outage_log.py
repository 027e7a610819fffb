"""What the app's log is told of a server that is away or refuses the app, and visitors are not.

Every request meets the same then, and each open stream again and again, so the same is said once in a while. Knows
texts alone.
"""

import logging
import threading
import time

from durably.temporal.scrubbing import scrub

_PAUSE = 10.0
"""Seconds for which the same is not said again."""

_MAXIMUM_REMEMBERED = 100

_logger = logging.getLogger("durably.temporal")


class OutageLog:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}

    def say(self, text: str) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._said.get(text, -_PAUSE) < _PAUSE:
                return
            if len(self._said) >= _MAXIMUM_REMEMBERED:
                self._said.clear()
            self._said[text] = now
        _logger.error("%s", scrub(text))
