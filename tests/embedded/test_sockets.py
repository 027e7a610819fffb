"""The directory of sockets: for the user alone, and found by the database's path."""

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3

from durably import Embedded
from durably.cli.client import SocketPool
from durably.embedded import sockets
from durably.protocol.engine_errors import DatabasePathError, EngineError


def test_socket_is_next_to_the_database_even_if_its_path_is_too_long_for_one(tmp_path: Path) -> None:
    assert sockets.directory_of(Path("/srv/app/durably.db")) == Path("/srv/app/durably.db.sockets")
    database = tmp_path / ("long" * 40) / "durably.db"
    directory = sockets.directory_of(database)
    assert directory != sockets.directory_of(database.with_name("other.db"))
    sockets.make_directory(directory)
    path = sockets.path_of(directory, 2**63)
    with sockets.listen(path) as listener, socket.socket(socket.AF_UNIX) as connection:
        with sockets.address_of(path) as address:
            connection.connect(address)
        listener.setblocking(True)
        listener.accept()[0].close()
    assert path.stat().st_mode & 0o777 == 0o600
    sockets.remove_others(directory, 2**64)
    directory.rmdir()


def test_the_newest_is_that_of_the_highest_epoch(tmp_path: Path) -> None:
    assert sockets.newest(tmp_path / "none") is None
    assert sockets.newest(tmp_path) is None
    for name in ("9", "10", "2", "other"):
        (tmp_path / name).touch()
    assert sockets.newest(tmp_path) == tmp_path / "10"
    (tmp_path / "11").touch()
    with sockets.listen(tmp_path / "12"):
        sockets.remove_others(tmp_path, 10)
        assert sorted(os.listdir(tmp_path)) == ["10", "12", "other"]
    sockets.remove_others(tmp_path, 10)
    assert sorted(os.listdir(tmp_path)) == ["10", "other"]


def test_a_directory_that_is_not_private_is_refused(tmp_path: Path) -> None:
    sockets.make_directory(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for directory in ("open", "link"):
        with pytest.raises(EngineError, match="mode 700"):
            sockets.make_directory(tmp_path / directory)
    with pytest.raises(DatabasePathError, match=r"durably\.db\.sockets"):
        sockets.make_directory(Path("/proc/nowhere/durably.db.sockets"))


async def test_leader_has_one_socket(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db")
    directory = sockets.directory_of(engine.path)
    sockets.make_directory(directory)
    for epoch in (0, 7):  # of a database that was replaced
        sockets.listen(directory / str(epoch)).close()
    async with engine.running():
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


def test_processes_that_share_a_directory_have_one_secret(tmp_path: Path) -> None:
    directory = tmp_path / "shop.db.sockets"
    with ThreadPoolExecutor(8) as threads:
        secrets = set(threads.map(lambda _: sockets.read_secret(directory), range(32)))
    assert [len(secret) for secret in secrets] == [32]
    assert stat.S_IMODE((directory / "secret").stat().st_mode) == 0o600
    assert os.listdir(directory) == ["secret"]
    assert sockets.newest(directory) is None
    assert sockets.read_secret(tmp_path / "other.db.sockets") not in secrets
