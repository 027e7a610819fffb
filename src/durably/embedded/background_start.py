"""Starting with a server that has no hook for it: in the background, once the server has loaded the app."""

import sys
import threading
from collections.abc import Callable

_LOOK_SECONDS = 0.05
_SETTLE_SECONDS = 1.0
"""From the last import to the start. What follows the imports (an app factory) is done by then, and a server that
forks its workers has forked them."""


class BackgroundStart:
    """Calls ``start`` in a thread of its own once nothing is being imported any more, unless it is cancelled."""

    def __init__(self, start: Callable[[], None]) -> None:
        self._start = start
        self._is_cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="durably-start", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Returns once the thread has ended, so that it is not there when the process forks."""
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
