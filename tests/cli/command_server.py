"""Run ``durably`` commands in forks of one process, which has imported the command line once.

A command's process differs from one that a shell starts only in that its imports are there already. They take most of
its time, and tests run hundreds of commands. Run as a program; the socket is its standard input.
"""

import gc
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

_NUMBER = struct.Struct("!i")
_STREAMS = 3


class CommandServer:
    """The process that forks, as seen by tests."""

    def __init__(self, environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def run(
        self,
        arguments: tuple[str, ...],
        directory: Path,
        environment: dict[str, str],
        streams: list[int],
        timeout_seconds: float,
    ) -> int:
        """The exit status of ``durably ARGUMENTS``. ``streams`` are the descriptors 0, 1 and 2 of the command."""
        what = json.dumps({"arguments": arguments, "directory": str(directory), "environment": environment}).encode()
        socket.send_fds(self._socket, [_NUMBER.pack(len(what))], streams)
        self._socket.sendall(what)
        process_id = self._read_number()
        self._socket.settimeout(timeout_seconds)
        try:
            return self._read_number()
        except TimeoutError:
            os.kill(process_id, signal.SIGKILL)
            self._socket.settimeout(None)
            self._read_number()
            raise AssertionError(f"`durably {' '.join(arguments)}` did not end within {timeout_seconds} s") from None
        finally:
            self._socket.settimeout(None)

    def _read_number(self) -> int:
        number = self._socket.recv(_NUMBER.size, socket.MSG_WAITALL)
        assert number, "the command server ended"
        return int(_NUMBER.unpack(number)[0])

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


class _Request(NamedTuple):
    arguments: list[str]
    directory: str
    environment: dict[str, str]
    streams: list[int]


def _receive(connection: socket.socket) -> _Request | None:
    size, streams, _, _ = socket.recv_fds(connection, _NUMBER.size, _STREAMS)
    if not size:
        return None
    what: dict[str, Any] = json.loads(connection.recv(_NUMBER.unpack(size)[0], socket.MSG_WAITALL))
    return _Request(**what, streams=streams)


def _become(request: _Request) -> None:
    """Make this process the command's."""
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.argv[1:] = request.arguments


def _serve() -> None:
    """Returns in the processes of commands."""
    with socket.socket(fileno=os.dup(0)) as connection:
        while request := _receive(connection):
            child = os.fork()
            if not child:
                connection.close()
                _become(request)
                return
            connection.sendall(_NUMBER.pack(child))
            for stream in request.streams:
                os.close(stream)
            _, status = os.waitpid(child, 0)
            connection.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
    sys.exit()


if __name__ == "__main__":
    import durably.cli.client
    import durably.cli.group
    import durably.cli.start

    gc.freeze()  # Otherwise the collection at a command's end copies all pages that it shares with this process.
    _serve()
    durably.cli.main()
