"""The files of a database: private to their owner, and checked against the files that the engine has open."""

import asyncio
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durably.engine.sqlite import runtime
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.maintenance import back_up
from durably.protocol.engine_errors import (
    DatabaseLinkedError,
    DatabaseLockedError,
    DatabaseNotOwnedError,
    DatabasePathError,
    DatabaseReplacedError,
    EngineClosedError,
)

from ..conftest import QUICK, opened, send


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Files get exactly the mode that they are created with."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(directory: Path) -> None:
    for file in directory.iterdir():
        file.chmod(0o664)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


@pytest.mark.usefixtures("open_umask")
async def test_files_are_created_for_their_owner_alone(path: Path, tmp_path: Path) -> None:
    async with opened(path) as engine:
        await send(engine, "a")
        await engine.list_events()
        await asyncio.to_thread(back_up, path, tmp_path / "copy.db")
        assert modes(tmp_path) == dict.fromkeys(
            ["engine.db", "engine.db-wal", "engine.db-shm", "engine.db.lock", "copy.db"], 0o600
        )


@pytest.mark.usefixtures("open_umask")
async def test_a_database_that_others_can_open_is_closed_to_them(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path):
        pass
    open_to_others(tmp_path)
    async with opened(path) as engine:
        await send(engine, "a")
        assert set(modes(tmp_path).values()) == {0o600}
    assert "engine.db could be opened by other users (mode 664): it is 0600 now" in caplog.text


def delete(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    shutil.copy(file, file.with_name("other"))
    file.with_name("other").replace(file)


def link(file: Path) -> None:
    os.link(file, file.with_name("link"))


HARM = [
    (delete, "", "the database was deleted"),
    (replace, "", "the database was replaced"),
    (link, "", "the database was given another name"),
    (delete, "-wal", "the write-ahead log was deleted"),
    (replace, "-shm", "the shared memory file was replaced"),
]


@pytest.mark.parametrize(("harm", "suffix", "reason"), HARM)
async def test_nothing_is_acknowledged_once_the_files_are_not_there(
    path: Path, harm: Callable[[Path], None], suffix: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_CHECK_SECONDS", 3600.0)
    async with opened(path) as engine:
        await send(engine, "before")
        harm(path.with_name(path.name + suffix))
        with pytest.raises(DatabaseReplacedError, match=reason):
            await send(engine, "after")
        await engine.wait_closed()
        with pytest.raises(EngineClosedError):
            await send(engine, "later")


@pytest.mark.parametrize(("harm", "suffix", "reason"), HARM)
async def test_an_engine_without_work_notices_too(
    path: Path,
    harm: Callable[[Path], None],
    suffix: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_CHECK_SECONDS", 0.02)
    async with opened(path) as engine:
        harm(path.with_name(path.name + suffix))
        await asyncio.wait_for(engine.wait_closed(), 60)
        assert engine.stop_error is not None
        assert reason in engine.stop_error.message
    assert reason in caplog.text
    assert str(path) in caplog.text


@pytest.mark.parametrize("how", ["link to the file", "link to the directory"])
async def test_a_second_engine_by_a_symbolic_link_is_refused(path: Path, tmp_path: Path, how: str) -> None:
    if how == "link to the file":
        other = tmp_path / "other.db"
        other.symlink_to(path)
    else:
        (tmp_path / "directory").symlink_to(tmp_path)
        other = tmp_path / "directory" / path.name
    async with opened(path) as engine:
        with pytest.raises(DatabaseLockedError):
            await SqliteEngine.open(other, QUICK)
        await send(engine, "still at work")


async def test_a_second_engine_by_a_hard_link_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    async with opened(path):
        os.link(path, other)
        with pytest.raises(DatabaseLinkedError, match="2 hard links"):
            await SqliteEngine.open(other, QUICK)
    for name in (path, other):
        with pytest.raises(DatabaseLinkedError):
            await SqliteEngine.open(name, QUICK)
    other.unlink()
    async with opened(path) as engine:
        await send(engine, "again")


async def test_engine_continues_while_others_read_and_copy_the_database(path: Path, tmp_path: Path) -> None:
    """They open the same files, and delete none of them when they close theirs."""
    async with opened(path) as engine:
        for number in range(3):
            await send(engine, "a")
            await asyncio.to_thread(back_up, path, tmp_path / f"copy{number}.db")
        await engine.verify()
        assert engine.stop_error is None


async def test_unwritable_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabasePathError, match="no file can be created in /proc"):
        await SqliteEngine.open(Path("/proc/no-directory/engine.db"), QUICK)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
async def test_a_database_of_another_user_is_refused(path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path):
        pass
    file = path.with_name(path.name + suffix)
    file.touch()
    owner, lstat = os.geteuid(), Path.lstat

    def of_another(each: Path) -> os.stat_result:
        status = list(lstat(each))
        if each == file:
            status[stat.ST_UID] = owner + 1
        return os.stat_result(status)

    monkeypatch.setattr(Path, "lstat", of_another)
    with pytest.raises(DatabaseNotOwnedError, match=rf"engine\.db{suffix} belongs to the user .*chown"):
        await SqliteEngine.open(path, QUICK)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_root_uses_only_databases_of_their_directorys_owner(path: Path) -> None:
    async with opened(path):
        pass
    os.chown(path, 12345, -1)
    with pytest.raises(DatabaseNotOwnedError, match="belongs to the user 12345"):
        await SqliteEngine.open(path, QUICK)
    os.chown(path.parent, 12345, -1)
    async with opened(path) as engine:
        await send(engine, "a")


async def test_a_log_that_is_a_symbolic_link_is_refused(path: Path, tmp_path: Path) -> None:
    async with opened(path):
        pass
    path.with_name("engine.db-wal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatabasePathError, match=r"engine\.db-wal is a symbolic link"):
        await SqliteEngine.open(path, QUICK)


async def test_file_whose_mode_cannot_be_changed_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path):
        pass
    open_to_others(path.parent)

    def refuse(file: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(DatabaseNotOwnedError, match=r"can be opened by other users \(mode 664\).*0600"):
        await SqliteEngine.open(path, QUICK)


def plant_fifo(file: Path) -> None:
    os.mkfifo(file)


def plant_directory(file: Path) -> None:
    file.mkdir()


def plant_link(file: Path) -> None:
    file.symlink_to(file.with_name("elsewhere"))


@pytest.mark.parametrize("plant", [plant_fifo, plant_directory, plant_link])
async def test_a_lock_file_that_is_not_a_file_is_refused(path: Path, plant: Callable[[Path], None]) -> None:
    plant(path.with_name("engine.db.lock"))
    with pytest.raises(DatabasePathError, match=r"engine\.db\.lock is .*remove it"):
        await SqliteEngine.open(path, QUICK)
    assert not path.with_name("elsewhere").exists()


async def test_a_lock_file_that_is_a_hard_link_empties_no_file(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    await asyncio.to_thread(precious.write_text, "precious")
    os.link(precious, path.with_name("engine.db.lock"))
    with pytest.raises(DatabaseLinkedError, match=r"engine\.db\.lock has 2 hard links"):
        await SqliteEngine.open(path, QUICK)
    assert await asyncio.to_thread(precious.read_text) == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_lock_file_of_another_user_is_refused(path: Path) -> None:
    """Its owner could lock it, and so stop each start."""
    lock = path.with_name("engine.db.lock")
    os.close(os.open(lock, os.O_CREAT, 0o644))
    os.chmod(lock, 0o666)
    os.chown(lock, 12345, -1)
    with pytest.raises(DatabaseNotOwnedError, match=r"engine\.db\.lock belongs to the user 12345"):
        await SqliteEngine.open(path, QUICK)


@pytest.mark.parametrize("plant", [plant_fifo, plant_directory])
async def test_a_path_that_is_not_a_file_is_refused_and_keeps_its_mode(
    path: Path, plant: Callable[[Path], None]
) -> None:
    plant(path)
    os.chmod(path, 0o666)
    with pytest.raises(DatabasePathError, match=r"engine\.db is .*another path"):
        await SqliteEngine.open(path, QUICK)
    assert modes(path.parent) == {"engine.db": 0o666}


async def test_a_directory_that_is_created_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        async with opened(tmp_path / "new" / "engine.db"):
            pass
    assert caplog.text.count("new did not exist: it was created for the database") == 1
