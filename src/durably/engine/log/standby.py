"""A standby: a process that follows the commit log in its own file, and takes over when the leader's lease ends."""

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

from durably.engine.model.settings import Durability
from durably.protocol.engine_errors import DatabaseUnavailableError, LogDamagedError
from durably.protocol.text import get_logger

from .log import CommitLog
from .store import LogUnavailableError

_logger = get_logger("durably.engine")


async def follow(log: CommitLog, path: Path, durability: Durability) -> None:
    """Follow the log in the file at ``path`` until this process may lead. The caller has the file's lock.

    Then open the engine with the log. It raises ``DatabaseLostError`` if another standby is faster: follow again. While
    the store cannot be reached, this waits. Raises ``LogRefusedError``, ``LogDamagedError``, and the errors of
    ``CommitLog.open_database``.
    """
    stop = threading.Event()
    following = asyncio.get_running_loop().run_in_executor(None, _follow, log, path, durability, stop)
    try:
        await asyncio.shield(following)
    except asyncio.CancelledError:
        stop.set()
        log.interrupt()
        await asyncio.wait({following})  # Its error must not replace the cancellation.
        raise


def _follow(log: CommitLog, path: Path, durability: Durability, stop: threading.Event) -> None:
    connection: sqlite3.Connection | None = None
    complaint, is_told, patient_until = "", False, 0.0
    try:
        while not stop.is_set():
            try:
                if connection is None:
                    connection = log.open_database(path, durability)
                log.catch_up(connection)
                complaint = ""
                if time.monotonic() >= patient_until and log.may_take_over():
                    return
                if not is_told:
                    _logger.info("this process is a standby of %s; another process leads", log.store.name)
                is_told = True
            except LogDamagedError:
                if connection is None:
                    raise
                connection.close()  # Its next entry may be trimmed. To open it again restores it.
                connection = None
                continue
            except (LogUnavailableError, DatabaseUnavailableError) as error:
                if error.message != complaint:
                    _logger.warning("this standby waits: %s", error.message)
                complaint = error.message
                patient_until = time.monotonic() + log.lease / 2  # The leader could not renew its lease, either.
            stop.wait(log.store.poll_seconds)
    finally:
        if connection is not None:
            connection.close()
