"""Starting with a server that has no hook for it: in the background, once the server has loaded the app."""

import sys
import threading
from collections.abc import Callable

_LOOK_SECONDS = 0.05
_SETTLE_SECONDS = 1.0
"""Delay from the last import to the start. By then an app factory has run, and the server has forked its
workers."""


class BackgroundStart:
    """Calls ``start`` in a separate thread when all imports are done, unless it is cancelled."""

    def __init__(self, start: Callable[[], None]) -> None:
        self._start = start
        self._is_cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="durably-start", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Returns when the thread has ended, so that it does not exist when the process forks."""
        self._is_cancelled.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_SETTLE_SECONDS)

    def _run(self) -> None:
        while is_importing():
            if self._is_cancelled.wait(_LOOK_SECONDS):
                return
        if not self._is_cancelled.wait(_SETTLE_SECONDS):
            self._start()


def is_importing() -> bool:
    """Whether a module of this process is being imported."""
    return any(
        getattr(getattr(module, "__spec__", None), "_initializing", False) for module in list(sys.modules.values())
    )
