"""Starting programs that serve HTTP, and waiting until they do."""

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 120.0


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of the protocol, and with those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DURABLY_", "INNGEST_"))}
    return kept | variables


@contextmanager
def running(
    command: Sequence[str], port: int, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The program while it listens at the port. Where it does not come up, the error holds what it printed."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_listening(process, port, log.fileno())
            yield process
        finally:
            _stop(process)


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    pause = threading.Event()
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            pause.wait(0.02)
    printed = os.pread(log, 100_000, 0).decode(errors="replace")
    raise RuntimeError(f"the program does not listen at port {port}: {process.args!r}\n{printed}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
