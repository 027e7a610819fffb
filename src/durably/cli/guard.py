"""Runs a program that would outlive us: ``python -m durably.cli.guard program argument…``.

The program ends with this process's parent in any case, and by SIGTERM. Ctrl-C, which the terminal sends
to all, does not reach it: its starter ends it.
"""

import os
import signal
import subprocess
import sys
import threading
import time

from .app_server import GRACE_SECONDS

_PARENT_CHECK_SECONDS = 0.5


def main() -> None:
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    program = subprocess.Popen(sys.argv[1:], start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: _end(program))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        _end(program)

    threading.Thread(target=watch, daemon=True).start()
    # Returning would stop the watch; a status of a signal is passed on as a shell does.
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
