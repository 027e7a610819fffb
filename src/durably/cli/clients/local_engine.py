"""The engine in an app's own processes, by the path of its database.

Requests are HTTP over the socket of its leader.
"""

import socket
from pathlib import Path
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from durably.cli.output.text import CliError
from durably.in_process.nodes import sockets


class _SocketConnection(HTTPConnection):
    def __init__(self, *args: Any, path: Path, **options: Any) -> None:
        super().__init__(*args, **options)
        self._path = path

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(5.0)
            with sockets.address_of(self._path) as address:
                connection.connect(address)
        except OSError as error:
            connection.close()
            raise urllib3.exceptions.NewConnectionError(self, str(error)) from error
        return connection


class SocketPool(HTTPConnectionPool):
    """A pool of HTTP connections to the socket of a database's leader.

    Raises ``CliError`` if no process has ever led the database, or its path is wrong.
    """

    ConnectionCls = _SocketConnection  # pyright: ignore[reportAssignmentType] (so it is in urllib3 itself)

    def __init__(self, database: Path, timeout: urllib3.Timeout) -> None:
        path = Path(database).resolve()
        directory = sockets.directory_of(path)
        newest = sockets.newest(directory)
        if newest is not None:
            sockets.check_directory(directory, path.stat().st_uid)
        if newest is None:
            raise CliError(
                f"no app runs its engine on {database}: start the app, or check that this is what its Embedded(…) says"
            )
        super().__init__("localhost", retries=False, timeout=timeout, path=newest)
