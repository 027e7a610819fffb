"""Starting programs that serve HTTP, and waiting until they do."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..waiting import wait_until_listening


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
            wait_until_listening(port, process, lambda: os.pread(log.fileno(), 100_000, 0).decode(errors="replace"))
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
