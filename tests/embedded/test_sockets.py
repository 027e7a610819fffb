"""Where processes meet: for the user alone, and found by all who know the database's path."""

import os
import socket
from pathlib import Path

import pytest

from durably.embedded import sockets
from durably.engine.errors import EngineError


def test_beside_the_database_where_the_path_is_short(tmp_path: Path) -> None:
    database = Path("/srv/app/durably.db")
    assert sockets.directory_of(database) == Path("/srv/app/durably.db.sockets")


def test_elsewhere_where_the_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    database = tmp_path / ("long" * 40) / "durably.db"
    directory = sockets.directory_of(database)
    assert directory == sockets.directory_of(database)
    assert directory != sockets.directory_of(database.with_name("other.db"))
    sockets.make_directory(directory)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sockets.path_of(directory, 2**63)))
    sockets.remove_older(directory, 2**64)
    directory.rmdir()


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


def test_a_link_instead_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "sockets").symlink_to(tmp_path / "target")
    with pytest.raises(EngineError, match="must be a directory"):
        sockets.make_directory(tmp_path / "sockets")
