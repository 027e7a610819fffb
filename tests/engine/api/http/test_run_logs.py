"""Lines of ``ctx.logger``, which the engine keeps in development."""

import asyncio
import datetime as dt
import logging
from typing import Any

import pytest

import durably
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.transactions import operations
from durably.functions import checkpoints
from durably.protocol.call import LogLine
from durably.protocol.headers import ServerKind

from ...conftest import ShiftedClock
from .conftest import SIGNING_KEY, Harness, OpenServer, ServeFunctions, client_of

Shown = tuple[str, str, str | None, int | None]


async def lines_of(harness: Harness, run_id: str, count: int) -> list[Shown]:
    """The lines of a run, once there are as many."""
    position = None
    async with asyncio.timeout(60):
        while True:
            report = await harness.engine.inspect_run(run_id)
            assert report is not None
            if len(report.logs) >= count:
                assert [line.at for line in report.logs] == sorted(line.at for line in report.logs)
                return [(line.level, line.message, line.step, line.attempt) for line in report.logs]
            changes = await harness.engine.wait_for_changes(after=position, run_id=run_id)
            position = changes.position


async def run(harness: Harness, serve_functions: ServeFunctions, logger: Any, handler: Any) -> str:
    """The id of a run of a function, which has ended."""
    client = client_of(harness, logger=logger)
    function = client.create_function(fn_id="f", trigger=durably.TriggerEvent(event="go"))(handler)
    await harness.server.discovery.sync(await serve_functions(client, [function]))
    return (await harness.ended((await harness.run_of(await harness.send("go"))).id)).id


async def logs(ctx: durably.Context) -> None:
    async def pay() -> None:
        ctx.logger.warning("card %s", "declined", extra={"card": 1})
        if ctx.attempt == 0:
            raise durably.RetryAfterError("again", 1000)

    def write(text: str) -> None:
        ctx.logger.info("50%% of %(what)s", {"what": text})

    ctx.logger.info("top")
    ctx.logger.debug("not enabled")
    await ctx.step.run("pay", pay)
    await ctx.step.run("write", write, "a letter")
    await ctx.step.run("write", write, "another")
    try:
        raise KeyError("odd")
    except KeyError:
        ctx.logger.exception("end: 100%")


def logs_sync(ctx: durably.ContextSync) -> None:
    ctx.logger.info("top")
    ctx.step.run("pay", ctx.logger.warning, "card %s", "declined")


@pytest.fixture
def logger(caplog: pytest.LogCaptureFixture) -> logging.Logger:
    caplog.set_level(logging.INFO, "shop")
    return logging.getLogger("shop")


async def test_lines_of_an_app_arrive_with_their_step_and_attempt(
    dev: Harness, serve_functions: ServeFunctions, logger: logging.Logger
) -> None:
    lines = await lines_of(dev, await run(dev, serve_functions, logger, logs), 7)
    assert lines[:-1] == [
        ("INFO", "top", None, 0),
        ("WARNING", "card declined", "pay", 0),
        ("INFO", "top", None, 1),
        ("WARNING", "card declined", "pay", 1),
        ("INFO", "50% of a letter", "write", 0),
        ("INFO", "50% of another", "write:1", 0),
    ]
    level, message, step, attempt = lines[-1]
    assert (level, step, attempt) == ("ERROR", None, 0)
    assert message.startswith("end: 100%\nTraceback")
    assert message.endswith("KeyError: 'odd'")


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_invalid_log_line_affects_nothing(dev: Harness, serve_functions: ServeFunctions) -> None:
    class Silent:
        def info(self, *args: object, **values: object) -> None:
            """Takes anything."""

        error = info

    async def function(ctx: durably.Context) -> None:
        ctx.logger.info(Hostile())
        ctx.logger.info("%d", "no number")
        ctx.logger.info("paid", order=3)
        ctx.logger.info("x" * (checkpoints.MAX_LINE_LENGTH + 5))

    lines = [
        message for _, message, _, _ in await lines_of(dev, await run(dev, serve_functions, Silent(), function), 3)
    ]
    assert lines[:2] == ["%d no number", "paid order=3"]
    assert lines[2].endswith("… (5 characters are not kept)")


async def test_the_number_of_lines_at_a_time_is_limited(
    dev: Harness, serve_functions: ServeFunctions, monkeypatch: pytest.MonkeyPatch, logger: logging.Logger
) -> None:
    monkeypatch.setattr(checkpoints, "MAX_LINES", 3)

    async def function(ctx: durably.Context) -> None:
        for number in range(5):
            ctx.logger.info("line %d", number)

    lines = await lines_of(dev, await run(dev, serve_functions, logger, function), 4)
    assert [message for _, message, _, _ in lines] == [
        "line 0",
        "line 1",
        "line 2",
        "2 more lines are not kept: at most 3 of a run at a time",
    ]


async def test_an_engine_keeps_a_limited_number_of_lines(
    dev: Harness, serve_functions: ServeFunctions, monkeypatch: pytest.MonkeyPatch, logger: logging.Logger
) -> None:
    monkeypatch.setattr(operations, "MAX_LOG_LINES", 2)
    run_id = await run(dev, serve_functions, logger, logs_sync)
    await lines_of(dev, run_id, 2)
    line = LogLine(at=dt.datetime.now(dt.UTC), level="INFO", message="more")
    assert [await dev.engine.add_run_logs(run_id, [line, line]) for _ in range(2)] == [False, False]
    lines = await lines_of(dev, run_id, 3)
    assert len(lines) == 3
    assert lines[2][1].startswith("further lines are not kept")


async def test_an_engine_in_production_keeps_no_lines(open_server: OpenServer) -> None:
    cloud = await open_server(EngineSettings(server_kind=ServerKind.CLOUD, signing_key=SIGNING_KEY), ["key"])
    line = LogLine(at=dt.datetime.now(dt.UTC), level="INFO", message="secret")
    assert not await cloud.engine.add_run_logs("any", [line])


async def test_lines_are_purged_with_their_run(
    open_server: OpenServer, serve_functions: ServeFunctions, logger: logging.Logger
) -> None:
    clock = ShiftedClock()
    dev = await open_server(EngineSettings(clock=clock, retention=dt.timedelta(days=1)))
    await lines_of(dev, await run(dev, serve_functions, logger, logs_sync), 2)
    clock.offset = 2 * 24 * 3600 * 1000
    retention = dev.engine._runtime._retention
    assert retention is not None
    assert retention._timer is not None
    retention._timer.cancel()
    retention.start()
    assert retention._purge is not None
    await retention._purge

    def count(connection: Any) -> int:
        return int(connection.execute("SELECT count(*) FROM run_logs").fetchone()[0])

    assert await dev.engine._read(count) == 0


async def test_lines_of_all_runs_are_listed_from_a_position_on(
    dev: Harness, serve_functions: ServeFunctions, logger: logging.Logger
) -> None:
    first = await run(dev, serve_functions, logger, logs_sync)
    await lines_of(dev, first, 2)
    page = await dev.engine.list_logs()
    assert [(entry.run_id, entry.line.message) for entry in page.entries] == [(first, "top"), (first, "card declined")]
    second = (await dev.ended((await dev.run_of(await dev.send("go"))).id)).id
    await lines_of(dev, second, 2)
    following = await dev.engine.list_logs(position=page.position, limit=1)
    assert [(entry.run_id, entry.line.message) for entry in following.entries] == [(second, "top")]
    rest = await dev.engine.list_logs(position=following.position)
    assert [entry.line.message for entry in rest.entries] == ["card declined"]
    assert (await dev.engine.list_logs(position=rest.position)).entries == []
    assert (await dev.engine.list_logs(function_id="shop-other")).entries == []
    assert len((await dev.engine.list_logs(run_id=first)).entries) == 2
    assert [entry.line.message for entry in (await dev.engine.list_logs(limit=1)).entries] == ["card declined"]
