"""The lock file beside a database: one engine at a time owns it.

The operating system drops the lock when its process dies, however it dies, so there is nothing to clean up.
"""

import os
import sys
from pathlib import Path

from durably.engine.errors import DatabaseLockedError

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class DatabaseLock:
    """Holds the lock from its construction to ``release``. Raises ``DatabaseLockedError``."""

    def __init__(self, database: Path) -> None:
        path = database.with_name(database.name + ".lock")
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _try_lock(self._descriptor)
        except OSError:
            os.close(self._descriptor)
            raise DatabaseLockedError(
                f"the database {database} belongs to another engine that is running; stop that one, or give this "
                "one a database of its own"
            ) from None

    def release(self) -> None:
        os.close(self._descriptor)
