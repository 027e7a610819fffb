"""The engine of the crash tests: ``python -m tests.crash.engine_process PORT DATABASE [SPEED]``. SIGTERM closes it.

Its clock goes ``SPEED`` times as fast as the machine's, so that what takes minutes can be seen in seconds.
"""

import datetime as dt
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from durably.cli.service import run_until_stopped
from durably.engine.model.settings import EngineSettings, SystemClock, Timer
from durably.engine.sqlite.server import serve_database

LEASE = dt.timedelta(seconds=1.5)
"""Timeout of calls. An app that is stopped for longer has lost its calls when it continues."""
_FIRST_DELAY = dt.timedelta(milliseconds=50)
_DOUBLINGS = 6


def backoff(attempt: int, jitter: float) -> dt.timedelta:
    """Short, but growing: an app that is slow for a while, on a busy machine, must not use up all attempts by that."""
    return _FIRST_DELAY * 2 ** min(attempt, _DOUBLINGS) * (1 + jitter)


class FastClock(SystemClock):
    """The same timestamp shows the same time in every process."""

    ANCHOR = 1_790_000_000_000

    def __init__(self, speed: int) -> None:
        self._speed = speed

    def now(self) -> int:
        return self.shows(super().now())

    def shows(self, timestamp: int) -> int:
        """The time of a timestamp of the machine's clock."""
        return self.ANCHOR + (timestamp - self.ANCHOR) * self._speed

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        now = self.now()
        return super().call_at(super().now() + max(when - now, 0) // self._speed, callback)


def settings(speed: int) -> EngineSettings:
    return EngineSettings(
        backoff=backoff,
        unreached_backoff=lambda failures, jitter: _FIRST_DELAY,
        call_timeout=LEASE,
        close_grace=dt.timedelta(milliseconds=300),
        clock=FastClock(speed) if speed > 1 else SystemClock(),
    )


async def main(port: int, database: Path, speed: int = 1) -> None:
    async with await serve_database(database, settings(speed), port=port) as server:
        await server.engine.wait_closed()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run_until_stopped(main(int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])))
