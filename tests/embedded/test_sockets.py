"""The directory of sockets: for the user alone, and found by the database's path."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest
import urllib3

from durably import Embedded
from durably.cli.client import SocketPool
from durably.embedded import sockets
from durably.protocol.engine_errors import DatabasePathError, EngineError


def test_sockets_are_next_to_the_database_if_the_path_is_short(tmp_path: Path) -> None:
    database = Path("/srv/app/durably.db")
    assert sockets.directory_of(database) == Path("/srv/app/durably.db.sockets")


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    directory = sockets.directory_of(tmp_path / ("long" * 40) / "durably.db")
    sockets.make_directory(directory)
    path = sockets.path_of(directory, 2**63)
    with sockets.listen(path) as listener, socket.socket(socket.AF_UNIX) as connection:
        with sockets.address_of(path) as address:
            connection.connect(address)
        listener.setblocking(True)
        listener.accept()[0].close()
    assert path.stat().st_mode & 0o777 == 0o600
    sockets.remove_older(directory, 2**64)
    directory.rmdir()


@pytest.mark.skipif(sys.platform == "linux", reason="on Linux it is always beside the database")
def test_elsewhere_where_the_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    database = tmp_path / ("long" * 40) / "durably.db"
    directory = sockets.directory_of(database)
    assert directory != sockets.directory_of(database.with_name("other.db"))


def test_the_newest_is_that_of_the_highest_epoch(tmp_path: Path) -> None:
    assert sockets.newest(tmp_path / "none") is None
    assert sockets.newest(tmp_path) is None
    for name in ("9", "10", "2", "other"):
        (tmp_path / name).touch()
    assert sockets.newest(tmp_path) == tmp_path / "10"
    sockets.remove_older(tmp_path, 10)
    assert sorted(os.listdir(tmp_path)) == ["10", "other"]


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "sockets"
    sockets.make_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(EngineError, match="mode 700"):
        sockets.make_directory(directory)


def test_symbolic_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "sockets").symlink_to(tmp_path / "target")
    with pytest.raises(EngineError, match="must be a directory"):
        sockets.make_directory(tmp_path / "sockets")


async def test_leader_has_one_socket(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db")
    async with engine.running():
        directory = sockets.directory_of(engine.path)
        assert [path.name for path in directory.iterdir() if path.is_socket()] == ["1"]
    assert not [path for path in directory.iterdir() if path.is_socket()]


def test_command_line_refuses_a_directory_that_others_can_enter(tmp_path: Path) -> None:
    database = tmp_path / "durably.db"
    database.touch()
    directory = sockets.directory_of(database)
    sockets.make_directory(directory)
    with sockets.listen(sockets.path_of(directory, 1)):
        SocketPool(database, urllib3.Timeout(1)).close()
        directory.chmod(0o777)
        with pytest.raises(EngineError, match="mode 700"):
            SocketPool(database, urllib3.Timeout(1))


async def test_connections_that_send_nothing_end_with_the_leader(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db")
    async with engine.running():
        path = sockets.path_of(sockets.directory_of(engine.path), 1)
        reader, writer = await asyncio.open_unix_connection(path)
        with socket.socket(
            socket.AF_UNIX
        ) as probe:  # The leader has accepted the previous connection when this one is answered.
            probe.connect(str(path))
            probe.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            await asyncio.get_running_loop().run_in_executor(None, probe.recv, 1)
    assert await reader.read() == b""
    writer.close()


def test_a_directory_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    directory = Path("/proc/nowhere/durably.db.sockets")
    with pytest.raises(DatabasePathError, match=r"durably\.db\.sockets .* give the user of this process the right"):
        sockets.make_directory(directory)
