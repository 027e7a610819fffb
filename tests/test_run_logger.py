"""``ctx.logger``: the fields of its lines, and support for any logger."""

import logging
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import structlog
from tests.execution.engine import Run, engine_for

from durably import Client, Context, ContextSync
from durably.errors import FunctionConfigInvalidError

LINE = "[app-function 01RUN] "
IN_STEP = "[app-function 01RUN pay] "


async def function(ctx: Context) -> None:
    async def pay() -> None:
        ctx.logger.warning("in %s", "pay")

    ctx.logger.info("top")
    await ctx.step.run("pay", pay)
    try:
        raise KeyError("odd")
    except KeyError:
        ctx.logger.exception("end: 100%")


def function_sync(ctx: ContextSync) -> None:
    ctx.logger.info("top")
    ctx.step.run("pay", ctx.logger.warning, "in %s", "pay")
    try:
        raise KeyError("odd")
    except KeyError:
        ctx.logger.exception("end: 100%")


function_sync.__name__ = "function"


@pytest.fixture(params=["async", "sync"])
def handler(request: pytest.FixtureRequest) -> Any:
    return function if request.param == "async" else function_sync


async def run_with(logger: Any, handler: Any) -> Run:
    run = await engine_for(handler, client=Client(app_id="app", is_production=False, logger=logger)).run()
    assert run.status == "Completed", run.output
    return run


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


async def test_each_line_names_function_run_and_step(handler: Any) -> None:
    logger, kept = logging.Logger("mine", logging.INFO), Kept()
    logger.addHandler(kept)
    await run_with(logger, handler)
    top, _, end = kept.records
    assert [record.getMessage() for record in kept.records] == [
        f"{LINE}top",
        f"{IN_STEP}in pay",
        f"{LINE}end: 100%",
    ]
    fields = [{name: vars(record).get(name) for name in ("app_id", "function_id", "run_id")} for record in kept.records]
    assert fields == [{"app_id": "app", "function_id": "app-function", "run_id": "01RUN"}] * 3
    assert [vars(record).get("step_id") for record in kept.records] == [None, "pay", None]
    assert top.filename == end.filename == "test_run_logger.py"
    assert top.msg == "[%s] top", "tools group lines by the template"
    assert end.exc_info is not None


async def test_extra_and_mappings_are_kept() -> None:
    async def function(ctx: Context) -> None:
        ctx.logger.info("%(a)s", {"a": 1}, extra={"order": 7, "run_id": "mine"})

    logger, kept = logging.Logger("mine", logging.INFO), Kept()
    logger.addHandler(kept)
    await run_with(logger, function)
    (record,) = kept.records
    assert record.getMessage() == f"{LINE}1"
    assert (vars(record)["order"], vars(record)["run_id"]) == (7, "mine")


@pytest.mark.parametrize(("level", "lines"), [(logging.NOTSET, 3), (logging.DEBUG, 3), (logging.WARNING, 2)])
async def test_without_a_handler_no_line_is_lost(
    level: int, lines: int, handler: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await run_with(logging.Logger("mine", level), handler)
    written = capsys.readouterr().err
    assert written.count(LINE) + written.count(IN_STEP) == lines
    assert f"WARNING {IN_STEP}in pay" in written
    assert "KeyError: 'odd'" in written
    assert (f"INFO {LINE}top" in written) == (lines == 3)


SCRIPT = """
import durably
from durably.testing import TestEngine

client = durably.Client(app_id="shop", is_production=False)

@client.create_function(fn_id="order", trigger=durably.TriggerEvent(event="e"))
async def order(ctx):
    ctx.logger.debug("quiet")
    ctx.logger.info("hello")
    await ctx.step.run("pay", ctx.logger.info, "paid")

with TestEngine(client, [order]).sync() as engine:
    engine.send(durably.Event(name="e")).wait()
"""


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ("", ["hello", "paid"]),
        ("import logging; logging.basicConfig(level='INFO')", ["hello", "paid"]),
        ("import logging; logging.basicConfig(level='WARNING')", []),
        ("import os; os.environ['DURABLY_LOG_LEVEL'] = 'DEBUG'", ["quiet", "hello", "paid"]),
        ("import os; os.environ['DURABLY_LOG_LEVEL'] = 'ERROR'", []),
    ],
)
def test_program_prints_run_lines_as_its_logging_is_configured(configuration: str, expected: list[str]) -> None:
    program = f"{configuration}\n{textwrap.dedent(SCRIPT)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in done.stderr.splitlines() if "[shop-order " in line]
    assert [line.rpartition("] ")[2] for line in lines] == expected


# -- other loggers


class Custom:
    """An object that has some methods of a logger, and takes nothing but text."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, message: str) -> None:
        self.lines.append(f"info {message}")

    def error(self, message: str) -> None:
        self.lines.append(f"error {message}")


async def test_a_custom_object_logs_lines_with_function_run_and_step() -> None:
    async def function(ctx: Context) -> None:
        ctx.logger.info("top")
        await ctx.step.run("pay", ctx.logger.error, "in pay")
        ctx.logger.info("end")

    logger = Custom()
    await run_with(logger, function)
    assert logger.lines == [f"info {LINE}top", f"error {IN_STEP}in pay", f"info {LINE}end"]


async def test_the_sdk_logs_to_a_custom_object() -> None:
    async def function(ctx: Context) -> None:
        raise KeyError("odd")

    logger = Custom()
    client = Client(app_id="app", is_production=False, logger=logger)
    run = await engine_for(function, client=client, max_attempts=1).run()
    assert run.status == "Failed"
    (line,) = logger.lines
    assert line.startswith('error function "app-function", run 01RUN, raised KeyError')
    assert "Traceback" in line


class Broken(Custom):
    def error(self, message: str) -> None:
        raise OSError("the log is full")


async def test_a_logger_that_raises_changes_no_run() -> None:
    async def function(ctx: Context) -> None:
        raise KeyError("odd")

    client = Client(app_id="app", is_production=False, logger=Broken())
    run = await engine_for(function, client=client, max_attempts=1).run()
    assert run.output["name"] == "KeyError"


async def test_structlog_is_bound_to_function_run_and_step() -> None:
    async def function(ctx: Context) -> None:
        ctx.logger.info("top", order=7)
        await ctx.step.run("pay", ctx.logger.bind(customer=3).warning, "in pay")
        await ctx.logger.ainfo("end")

    with structlog.testing.capture_logs() as lines:
        await run_with(structlog.get_logger(), function)
    fields = {"app_id": "app", "function_id": "app-function", "run_id": "01RUN"}
    assert lines == [
        {"event": "top", "log_level": "info", "order": 7, **fields},
        {"event": "in pay", "log_level": "warning", "customer": 3, "step_id": "pay", **fields},
        {"event": "end", "log_level": "info", **fields},
    ]


@pytest.mark.parametrize("logger", ["durably", object(), logging])
def test_non_logger_is_refused(logger: Any) -> None:
    if logger is logging:
        Client(app_id="app", is_production=False, logger=logger)  # a module with functions will do
        return
    with pytest.raises(FunctionConfigInvalidError, match=r"Client\.logger must have methods"):
        Client(app_id="app", is_production=False, logger=logger)
