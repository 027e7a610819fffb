"""What commands for development share: ports, and the directory that keeps their state. It needs no engine."""

import contextlib
import random
import socket
from pathlib import Path

from durably.protocol.text import describe_os_error

from .child_process import AppFailedError

STATE_DIRECTORY = Path(".durably")


def check_port_free(host: str, port: int, *, option: str = "--app-port") -> None:
    """Raises ``AppFailedError``, which names the option to give another with."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise AppFailedError(
            f"port {port} of {host} is taken ({describe_os_error(error)}); choose another with {option}"
        ) from None


def free_port(host: str) -> int:
    """A free port, for a program that is started next.

    It is below the range of ports for outgoing connections, so that none of these takes it first.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server((host, port), family=family):
            return port


def state_directory() -> Path:
    """``.durably``, which keeps itself out of version control."""
    STATE_DIRECTORY.mkdir(exist_ok=True)
    ignore = STATE_DIRECTORY / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return STATE_DIRECTORY
