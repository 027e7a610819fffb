"""Processes that end with their parent process.

``python -m durably.cli.guard program argument…`` ends a program with its parent. The guarded program also ends by
SIGTERM. Ctrl-C, which the terminal sends to all processes, does not reach it: the parent ends it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

EXIT_REPORTED = 3
"""Exit status of a child process that has printed its error."""
EXPLANATION = "explanation: "
"""The beginning of the last line that a child process prints for its parent. The app may print others before."""
GRACE_SECONDS = 2
PARENT_VARIABLE = "_DURABLY_PARENT_PID"
"""Environment variable with the id of the process that starts another one, which must end with it.

Without it, a process whose parent ends before it first looks takes its next parent for the first one.
"""
_PARENT_CHECK_SECONDS = 0.5


def follow_parent() -> None:
    """End this process when its parent ends. Ctrl-C is ignored: the parent handles it."""
    _at_end_of_parent(lambda: os._exit(1))


def _at_end_of_parent(end: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = int(os.environ.pop(PARENT_VARIABLE, 0)) or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True, name="durably-parent-watch").start()


def main() -> None:
    environment = {name: value for name, value in os.environ.items() if name != PARENT_VARIABLE}
    program = subprocess.Popen(sys.argv[1:], env=environment, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: _end(program))
    _at_end_of_parent(lambda: _end(program))
    # A shell passes on the status of a signal like this.
    status = program.wait()
    sys.exit(128 - status if status < 0 else status)


def _end(program: "subprocess.Popen[bytes]") -> None:
    program.terminate()
    try:
        program.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
