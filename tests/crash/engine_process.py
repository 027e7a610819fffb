"""The engine of the crash tests: ``python -m tests.crash.engine_process PORT DATABASE``. SIGTERM closes it."""

import datetime as dt
import logging
import sys
from pathlib import Path

from durably.cli.running import run_until_stopped
from durably.engine.embedded.api.server import EngineServer
from durably.engine.embedded.settings import EngineSettings

LEASE = dt.timedelta(seconds=1.5)
"""How long a call may take. An app that is stopped for longer has lost its calls when it goes on."""
_FIRST_DELAY = dt.timedelta(milliseconds=50)
_DOUBLINGS = 6


def backoff(attempt: int, jitter: float) -> dt.timedelta:
    """Short, but growing: an app that is slow for a while, on a busy machine, must not use up all attempts by that."""
    return _FIRST_DELAY * 2 ** min(attempt, _DOUBLINGS) * (1 + jitter)


SETTINGS = EngineSettings(
    backoff=backoff,
    unreached_backoff=lambda failures, jitter: _FIRST_DELAY,
    call_timeout=LEASE,
    close_grace=dt.timedelta(milliseconds=300),
)


async def main(port: int, database: Path) -> None:
    async with await EngineServer.open(database, SETTINGS, port=port) as server:
        await server.engine.wait_closed()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run_until_stopped(main(int(sys.argv[1]), Path(sys.argv[2])))
