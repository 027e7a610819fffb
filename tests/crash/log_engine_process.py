"""An engine of the storms with a commit log: ``python -m tests.crash.log_engine_process PORT DATABASE LOG_URL``.

It is a standby until it leads, and again after it has lost the database. SIGUSR1 sets its clock back by some seconds.
"""

import contextlib
import logging
import signal
import sys
from pathlib import Path

import msgspec

from durably.cli.service import run_until_stopped
from durably.engine.log.log import CommitLog
from durably.engine.model.settings import SystemClock
from durably.engine.sqlite.server import serve_database
from durably.protocol.engine_errors import DatabaseLostError

from .engine_process import settings

LEASE_SECONDS = 1.0
SNAPSHOT_BYTES = 100_000
SET_BACK_SECONDS = 5


class SettableClock(SystemClock):
    behind = 0

    def now(self) -> int:
        return super().now() - self.behind

    def set_back(self) -> None:
        self.behind += SET_BACK_SECONDS * 1000


async def main(port: int, database: Path, url: str) -> None:
    clock = SettableClock()
    signal.signal(signal.SIGUSR1, lambda *_: clock.set_back())
    log = CommitLog(url, lease=LEASE_SECONDS, snapshot_bytes=SNAPSHOT_BYTES)
    with_clock = msgspec.structs.replace(settings(1), clock=clock)
    while True:
        with contextlib.suppress(DatabaseLostError):
            async with await serve_database(database, with_clock, log=log, port=port) as server:
                await server.engine.wait_closed()
                if server.engine.stop_error is not None:
                    raise server.engine.stop_error


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(levelname)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    run_until_stopped(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
