"""Two engines on one database, as when a leader is wrongly declared dead. Only the newest epoch writes."""

import asyncio
from pathlib import Path

import pytest

from durably import Event
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.files import DatabaseLock, read_note
from durably.protocol.engine_errors import DatabaseLockedError, DatabaseLostError, EngineClosedError

_LOST = (DatabaseLostError, EngineClosedError)
"""An engine that counts its runs may notice this and close before the request."""


async def open_engine(path: Path, after_epoch: int | None = None) -> tuple[SqliteEngine, int]:
    epochs: list[int] = []

    async def note(epoch: int) -> None:
        epochs.append(epoch)

    engine = await SqliteEngine.open(path, takes_lock=False, after_epoch=after_epoch, on_owned=note)
    return engine, epochs[0]


async def test_the_earlier_engine_can_write_nothing_any_more_and_closes(tmp_path: Path) -> None:
    path = tmp_path / "durably.db"
    earlier, epoch = await open_engine(path)
    later, _ = await open_engine(path, after_epoch=epoch)
    with pytest.raises(_LOST):
        await earlier.send_events([Event(name="lost")])
    await asyncio.wait_for(earlier.wait_closed(), 60)
    assert isinstance(earlier.stop_error, DatabaseLostError)
    with pytest.raises(EngineClosedError):
        await earlier.send_events([Event(name="lost")])
    await later.send_events([Event(name="kept")])
    assert [view.event.name for view in await later.list_events()] == ["kept"]
    await later.close()


async def test_verify_fails_after_a_takeover(tmp_path: Path) -> None:
    earlier, epoch = await open_engine(tmp_path / "durably.db")
    await earlier.verify()
    later, _ = await open_engine(tmp_path / "durably.db", after_epoch=epoch)
    with pytest.raises(_LOST):
        await earlier.verify()
    await earlier.wait_closed()
    assert isinstance(earlier.stop_error, DatabaseLostError)
    await later.verify()
    await later.close()


async def test_one_of_two_successors_of_a_leader_becomes_leader(tmp_path: Path) -> None:
    path = tmp_path / "durably.db"
    stopped, epoch = await open_engine(path)
    taken = await asyncio.gather(*(open_engine(path, after_epoch=epoch) for _ in range(4)), return_exceptions=True)
    engines = [each[0] for each in taken if isinstance(each, tuple)]
    assert len(engines) == 1
    assert all(isinstance(each, tuple | DatabaseLostError) for each in taken)
    await engines[0].verify()
    await engines[0].close()
    await stopped.close()


def test_the_lock_file_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "durably.db"
    assert read_note(path) == ""
    lock = DatabaseLock(path, "in-process")
    with pytest.raises(DatabaseLockedError):
        DatabaseLock(path)
    assert read_note(path) == "in-process"
    lock.release()
    DatabaseLock(path).release()
    assert read_note(path) == ""
