"""Faults of an engine's environment: full disks, false answers, broken connections, moved clocks."""

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from durably.engine.model.runs import RunStatus
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.maintenance import check_database
from durably.protocol.engine_errors import DatabaseCorruptError, DatabaseUnavailableError
from durably.protocol.events import Event

from ..conftest import QUICK, ShiftedClock, ended, only_run, opened, output, run_to_end, send, step_is, until
from ..small_app import SDK_HEADERS, SmallApp, Steps
from .test_error_handling import trying_again as trying_again

HOUR = 3_600_000


# the disk


async def fill(engine: SqliteEngine, accepted: list[str]) -> None:
    for number in range(100):
        accepted += await engine.send_events([Event(name="e", id=f"{number}", data={"text": "x" * 5000})])


async def test_database_that_becomes_read_only_is_logged(engine: SqliteEngine) -> None:
    """As when the system remounts a disk with errors."""

    def set_read_only(value: int) -> None:
        engine._runtime._connection.execute(f"PRAGMA query_only = {value}")

    await send(engine, "before")
    await engine._transactions.transact(lambda _: set_read_only(1))
    with pytest.raises(DatabaseUnavailableError, match="readonly"):
        await send(engine, "refused")
    set_read_only(0)
    await send(engine, "after")
    assert sorted(event.event.name for event in await engine.list_events()) == ["after", "before"]


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """The superuser may write everything, whatever its permissions."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """In a directory that others may use."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory) / "engine.db"


async def test_a_database_that_is_read_only_is_refused(open_path: Path) -> None:
    async with opened(open_path):
        pass
    os.chmod(open_path, 0o444)
    for path in open_path.parent.glob("engine.db*"):
        shutil.chown(path, 65_534)  # a database of another user is refused for that
    with as_nobody(), pytest.raises(DatabaseUnavailableError, match=r"engine\.db cannot be written: .*readonly"):
        await SqliteEngine.open(open_path, QUICK)
    assert check_database(open_path) == []


@pytest.mark.parametrize("seed", range(6))
async def test_damaged_pages_are_found_by_the_check(path: Path, app: SmallApp, seed: int) -> None:
    """Whichever of those that hold something: none is passed over."""

    @app.function("f")
    def f(steps: Steps) -> None:
        steps.wait_for_event("wait", "go", timeout="1h")

    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        for _ in range(20):
            run_id = await only_run(engine, await send(engine, "f"))
            await step_is(engine, run_id, "wait", "waiting")
    await asyncio.to_thread(damage, path, random.Random(seed))
    try:
        findings = check_database(path)
    except DatabaseCorruptError as error:
        findings = [error.message]
    assert findings


def damage(path: Path, rng: random.Random) -> None:
    """Overwrite the inside of some page with noise."""
    with path.open("r+b") as file:
        page = rng.randrange(path.stat().st_size // 4096)
        file.seek(page * 4096)
        file.write(rng.randbytes(4096))


# the app


async def test_an_app_that_redirects_is_not_followed(engine: SqliteEngine, app: SmallApp) -> None:
    """A call is signed for one URL, and contains the run's data."""
    app.function("f", retries=0)(lambda steps: None)
    app.before = lambda call: web.Response(status=307, headers={**SDK_HEADERS, "location": f"{app.url}?elsewhere"})
    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "f")
    assert (run.status, "status 307" in output(run)["message"], len(app.calls)) == (RunStatus.FAILED, True, 1)


# the clock


class JumpyClock(ShiftedClock):
    """Notices within milliseconds, and not within a minute, that it was set."""

    _MAX_TIMER_SECONDS = 0.02


async def test_clock_step_forward_fires_due_timers(path: Path, app: SmallApp) -> None:
    @app.function("f")
    def f(steps: Steps) -> object:
        steps.sleep("nap", "1h")
        return steps.wait_for_event("wait", "never", timeout="1h")

    clock = JumpyClock()
    async with opened(path, msgspec.structs.replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "f"))
        await step_is(engine, run_id, "nap", "sleeping")
        clock.offset += HOUR
        await step_is(engine, run_id, "wait", "waiting")
        clock.offset += HOUR
        assert output(await ended(engine, run_id)) is None


async def test_clock_step_backward_delays_only_later_timers(path: Path, app: SmallApp) -> None:
    """A sleep ends at a time of day. New runs, retries and new sleeps go by the clock as it is now."""

    @app.function("f")
    def f(steps: Steps) -> object:
        steps.sleep("nap", steps.event.data["nap"])
        if steps.attempt == 0 and not steps.has("after"):
            raise ValueError("once")
        return steps.run("after", lambda: "fine")

    clock = JumpyClock()
    async with opened(path, msgspec.structs.replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        before = await only_run(engine, await send(engine, "f", nap="10m"))
        await step_is(engine, before, "nap", "sleeping")
        clock.offset -= HOUR
        assert output(await run_to_end(engine, "f", nap="20ms")) == "fine"
        clock.offset += HOUR + 600_000
        assert output(await ended(engine, before)) == "fine"


async def test_whichever_way_the_clock_steps_a_tick_fires_once(path: Path, app: SmallApp) -> None:
    """Of those that a step forward jumps over, the latest."""
    fired: list[str] = []

    @app.function("hourly", triggers=[{"cron": "0 * * * *"}, {"event": "check"}])
    def hourly(steps: Steps) -> object:
        fired.append(steps.event.data.get("scheduledAt", "")[11:16] or "checked")
        return None

    noon = 1_790_000_000_000 // (24 * HOUR) * 24 * HOUR + 12 * HOUR
    clock = JumpyClock()
    clock.offset = noon + HOUR // 2 - clock.now()

    async with opened(path, msgspec.structs.replace(QUICK, clock=clock)) as engine:

        async def until_fired(count: int) -> None:
            async def has_fired() -> bool:
                return len(fired) >= count

            await until(engine, has_fired)

        await engine.sync_app(app.sync_request())
        clock.offset += HOUR
        await until_fired(1)
        clock.offset -= HOUR
        await run_to_end(engine, "check")
        clock.offset += HOUR
        await run_to_end(engine, "check")
        clock.offset += HOUR
        await until_fired(4)
        clock.offset += 5 * HOUR
        await until_fired(5)
    assert fired == ["13:00", "checked", "checked", "14:00", "19:00"]


async def test_a_clock_that_is_set_back_while_the_engine_is_down(path: Path, app: SmallApp) -> None:
    app.function("f")(lambda steps: "fine")
    clock = JumpyClock()
    app.gate.clear()
    async with opened(path, msgspec.structs.replace(QUICK, clock=clock)) as engine:
        await engine.sync_app(app.sync_request())
        run_id = await only_run(engine, await send(engine, "f"))
        await app.wait_for_calls(1)
    clock.offset -= HOUR
    app.gate.set()
    async with opened(path, msgspec.structs.replace(QUICK, clock=clock)) as engine:
        assert output(await ended(engine, run_id)) == "fine"
