"""Ports for programs that tests start."""

import contextlib
import os
import random
import socket
from collections.abc import Iterator

_FIRST, _LAST = 20_000, 32_000
"""Below the range from which systems take ports for outgoing connections and for port 0, so that no connection and no
other test takes the port before the program binds it."""

_choice = random.SystemRandom()
_WORKERS = 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
"""Processes that run tests side by side take different ports."""
_given: set[int] = set()


def free_port() -> int:
    """A free port of 127.0.0.1."""
    while True:
        port = _choice.randrange(_FIRST + _worker, _LAST, _WORKERS)
        if port in _given:
            continue
        if len(_given) > 500:
            _given.clear()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _given.add(port)
            return port


@contextlib.contextmanager
def listening_socket() -> Iterator[tuple[socket.socket, str]]:
    """A listening socket for a server that inherits it, and its origin."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}"
