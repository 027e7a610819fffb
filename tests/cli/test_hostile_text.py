"""Names, errors and outputs of apps that are made to harm a terminal or a log."""

import datetime as dt
import json
import logging
import re
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

import durably
from durably.cli import text
from durably.cli.events import describe_failure, function_row
from durably.cli.run_text import Activity, describe_attempts, describe_links, describe_logs, describe_run, draw
from durably.cli.service import JsonFormatter, TextFormatter
from durably.cli.text import CliError, Console
from durably.engine.model.overview import FunctionInfo
from durably.engine.model.runs import (
    Attempt,
    Run,
    RunReport,
    RunStatus,
    RunUpdate,
    Span,
    SpanKind,
    Step,
    StepStatus,
    UpdateKind,
)
from durably.protocol.call import LogLine
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event
from durably.protocol.opcodes import Opcode
from durably.protocol.sync import FunctionConfig, Trigger
from durably.testing.runs import describe_run as describe_timeline

from ..protocol.test_text import UNSAFE, hostile
from . import apps
from .conftest import TIMEOUT_SECONDS, Start, write
from .conftest import Run as RunCommand

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
json_values = st.recursive(hostile, lambda inner: st.dictionaries(hostile, inner, max_size=2), max_leaves=3)


def as_json(value: object) -> msgspec.Raw:
    text = json.dumps(value, ensure_ascii=False).encode(errors="replace")
    return msgspec.Raw(text)


def run_view(**fields: Any) -> Run:
    """A run with the fields given."""
    others: dict[str, Any] = {
        "id": "r",
        "app_id": "shop",
        "status": RunStatus.RUNNING,
        "event_ids": [],
        "created_at": NOW,
        "started_at": None,
        "ended_at": None,
        "output": None,
        "attempt": 0,
        "max_attempts": 4,
        "rerun_of": None,
    }
    return Run(**(others | fields))


def assert_fit(shown: str, *, lines: int | None = None) -> None:
    """Without Durably's colours, no invisible character is left, except tabs in multi-line text."""
    bare = COLOURS.sub("", shown)
    if lines is None:
        bare = bare.replace("\t", "")
    assert not UNSAFE.search(bare), ascii(bare)
    if lines is not None:
        assert bare.count("\n") == lines - 1, ascii(bare)


@given(st.sampled_from(UpdateKind), hostile, hostile, hostile, json_values)
def test_a_line_for_each_update(kind: UpdateKind, function_id: str, step: str, error: str, output: object) -> None:
    update = RunUpdate(
        kind=kind,
        run_id="01JGZZZZZZZZZZZZZZZZZZZZZZ",
        function_id=function_id,
        at=NOW,
        step=step,
        op=Opcode.STEP_RUN,
        attempt=0,
        error=error,
        due_at=NOW,
        output=msgspec.Raw(json.dumps({"data": output}).encode()),
    )
    shown = Activity().format(update)
    is_cut = shown.endswith("the whole error: durably runs show ZZZZZZ\x1b[0m")
    assert is_cut <= (kind is UpdateKind.RUN_FAILED)
    assert_fit(shown, lines=2 if is_cut else 1)


@given(hostile, hostile, hostile, json_values, st.sampled_from(["Completed", "Failed", "Cancelled", "Skipped"]))
def test_a_run_and_its_steps(function_id: str, step_id: str, message: str, output: object, status: str) -> None:
    error = {"name": message, "message": message, "stack": message}
    run = run_view(
        function_id=function_id,
        app_id=message,
        status=RunStatus(status),
        ended_at=NOW,
        output=as_json(output if status == "Completed" else error),
        event_ids=[message],
        rerun_of=message,
    )
    failed = Attempt(attempt=0, ended_at=NOW, error=ErrorData(name=message, message=message, stack=message))
    step = Step(
        id=step_id,
        hashed_id=message,
        op=Opcode.STEP_RUN,
        status=StepStatus.FAILED if status == "Failed" else StepStatus.COMPLETED,
        attempts=2,
        created_at=NOW,
        ended_at=NOW,
        due_at=None,
        spans=[Span(kind=SpanKind.RUNNING, start=NOW, end=NOW)],
        failed_attempts=[failed],
        output=as_json(output),
        error=failed.error if status == "Failed" else None,
        awaited=message,
    )
    link = run_view(id=message, function_id=function_id, status=RunStatus(status), step=message)
    report = RunReport(
        run=run,
        function_name=message,
        app_version=message,
        spans=[],
        steps=[step],
        failed_attempts=[failed],
        events=[],
        parent=link,
        children=[link],
        has_more_children=False,
        logs=[LogLine(at=NOW, level=message, message=message, step=step_id)],
    )
    assert_fit(describe_run(run, message))
    assert_fit(draw(report, NOW), lines=4)
    assert_fit(describe_attempts(report), lines=3)
    assert_fit(describe_links(report), lines=3)
    assert_fit(describe_logs(report), lines=2)
    assert_fit(describe_failure(run), lines=1)


@given(st.sampled_from(UpdateKind), hostile, hostile, hostile)
def test_the_timeline_of_a_test(kind: UpdateKind, function_id: str, step: str, error: str) -> None:
    clean = error.encode(errors="replace").decode()
    update = RunUpdate(kind=kind, run_id="r", function_id=function_id, at=NOW, step=step, error=error, due_at=NOW)
    run = run_view(function_id=function_id)
    events = [Event(name=step, data={"text": clean})]
    assert_fit(describe_timeline(run, events, [update], NOW))


@given(hostile)
def test_commands_escape_control_characters(name: str) -> None:
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click, "echo", lambda message=None, **options: printed.append(str(message)))
        patch.setattr(click, "secho", lambda message=None, **options: printed.append(str(message)))
        console = Console()
        for say in (console.say, console.note, console.warn, text.echo):
            say(name)
        text.echo_json({"name": name.encode(errors="replace").decode()})
    for each in printed[:-1]:
        assert_fit(each, lines=1)
    assert_fit(printed[-1], lines=3)


@given(hostile, hostile, hostile)
def test_each_fact_has_one_line(name: str, value: str, stack: str) -> None:
    facts = [("Name", name), ("Sent as", value)]
    assert_fit(text.describe_facts(facts), lines=2)
    run = run_view(
        function_id=name,
        status=RunStatus.FAILED,
        ended_at=NOW,
        output=as_json({"name": name, "message": value, "stack": stack}),
        event_ids=[name],
    )
    shown, _, shown_stack = COLOURS.sub("", describe_run(run)).partition("\n\n")
    assert [line.split()[0] for line in shown.split("\n")] == [
        "Run",
        "Function",
        "Status",
        "Event",
        "Started",
        "Duration",
        "Error",
    ]
    assert all(line.startswith("  ") for line in shown_stack.split("\n") if line)


@given(hostile, hostile)
def test_lines_of_the_production_log(message: str, field: str) -> None:
    clean = field.encode(errors="replace").decode()
    record = logging.LogRecord("durably.runs", logging.INFO, "", 0, message.encode(errors="replace").decode(), (), None)
    record.fields = {"error": clean}
    line = JsonFormatter().format(record)
    assert_fit(line, lines=1)
    assert json.loads(line)["error"] == clean
    assert_fit(TextFormatter().format(record), lines=1)


@given(hostile)
def test_tables_messages_and_errors(name: str) -> None:
    config = FunctionConfig(id=name, triggers=[Trigger(event=name or "e")], steps={})
    function = FunctionInfo(id=name, name=name, config=config, app_id=name, is_paused=True)
    assert_fit(text.table(["A", "B", "C", "D"], [function_row(function)]), lines=2)
    assert_fit(text.table(["NAME"], [[name], [text.coloured_status(name)]]), lines=3)
    assert_fit(CliError(name).format_message())
    assert_fit(text.shorten(name, 20), lines=1)
    assert_fit(text.format_json({name: name}), lines=1)


def sources(*packages: str) -> list[Path]:
    root = Path(durably.__file__).parent
    return [path for package in packages for path in root.joinpath(package).rglob("*.py")]


def test_all_output_goes_through_the_escaping_functions() -> None:
    printers = {"text.py", "operate.py"}  # keys are no text from others
    commands = [path for path in sources("cli") if not path.name.startswith("temporal") and path.name not in printers]
    found = [path.name for path in commands if re.search(r"click\.(echo|secho|style)\(", path.read_text())]
    assert found == []
    loggers = [
        path.name
        for path in sources("engine", "embedded", "cli")
        if re.search(r"logging\.getLogger\([^)]", path.read_text())
    ]
    assert loggers == []


def test_nothing_but_tracebacks_is_printed_in_several_lines() -> None:
    """A value with line breaks could forge lines."""
    permitted = {"text.py", "run_text.py", "app_server.py", "service.py"}
    commands = [path for path in sources("cli") if path.name not in permitted]
    assert [path.name for path in commands if re.search(r"\b(fit|printable)_lines\b", path.read_text())] == []


HARMFUL = r"\x1b]0;owned\x07\x1b[2J\nforged \u202eline"


def test_an_apps_error_reaches_no_terminal_raw(start: Start, run: RunCommand, directory: Path) -> None:
    source = apps.FLASK.format(sdk="durably").replace(
        'return ctx.step.run("charge", lambda: {"charged": ctx.event.data["total"]})',
        f'raise durably.NonRetriableError("{HARMFUL}")',
    )
    write(directory / "shop.py", source)
    dev = start("dev", "shop:app", "--port", "0", "--app-port", "0")
    dev.until("shop:app is up")
    result = run("invoke", "shop-place", "--data", '{"total": 1}', "--url", dev.origin)
    assert result.status == 1
    dev.until("run failed")
    run_id = result.stderr.split()[1]
    shown = run("runs", "show", run_id, "--url", dev.origin)
    line = next(line for line in dev.output.splitlines() if "run failed" in line)
    for output in (result.stderr, shown.stdout, line):
        assert r"\x1b]0;owned\x07" in output
        assert r"forged \u202eline" in output
        assert_fit(output)


def sync_of(function_id: str, app_id: str, url: str, call_url: str, *, event: str) -> dict[str, Any]:
    """The body of a sync of an app with one function."""
    step = {"id": "step", "name": "step", "runtime": {"type": "http", "url": call_url}}
    function = {"id": function_id, "triggers": [{"event": event}], "steps": {"step": step}}
    return {"url": url, "appName": app_id, "functions": [function]}


def test_an_apps_password_is_not_shown(start: Start, run: RunCommand, directory: Path) -> None:
    dev = start("dev", "--port", "0", "-u", "http://me:pa55word@127.0.0.1:1/api?token=t0ken")
    dev.until(r"no app answers at http://127\.0\.0\.1:1/api\?token=\*\*\*")
    url = "http://me:pa55word@127.0.0.1:1/api"
    sync = sync_of("shop-f", "shop", url, f"{url}?fnId=f&token=t0ken", event="f")
    assert urllib3.request("POST", f"{dev.origin}/fn/register", json=sync, timeout=TIMEOUT_SECONDS).status == 200
    listed = run("functions", "list", "--json", "--url", dev.origin)
    assert "http://127.0.0.1:1/api?fnId=f&token=***" in listed.stdout
    paths = ("/dev", "/v1/functions", "/v1/apps/shop/functions")
    bodies = [urllib3.request("GET", f"{dev.origin}{path}", timeout=TIMEOUT_SECONDS).data.decode() for path in paths]
    run("send", "f", "--url", dev.origin)
    dev.until("the app does not answer")
    for output in (dev.output, listed.stdout, *bodies):
        assert "pa55word" not in output
        assert "t0ken" not in output


def test_line_breaks_of_senders_and_apps_forge_no_lines(start: Start, run: RunCommand) -> None:
    harm = "shop\nforged \x1b[2Jline"
    dev = start("dev", "--port", "0")
    url = "http://127.0.0.1:1/api"
    sync = sync_of(harm, harm, url, url, event=harm)
    synced = urllib3.request("POST", f"{dev.origin}/fn/register", json=sync, timeout=TIMEOUT_SECONDS)
    assert synced.status == 200, synced.data
    sent = run("send", harm, "--id", harm, "--url", dev.origin)
    dev.until("run started")
    [listed] = json.loads(run("events", "list", "--json", "--url", dev.origin).stdout)
    [started] = json.loads(run("runs", "list", "--json", "--url", dev.origin).stdout)
    shown = [
        run("events", "show", listed["internal_id"], "--url", dev.origin),
        run("runs", "show", started["run_id"], "--url", dev.origin),
        run("functions", "pause", harm, "--url", dev.origin),
        run("send", f"{harm}!", "--url", dev.origin),
    ]
    assert [each.status for each in shown] == [0] * 4
    for output in (dev.output, *(each.stdout + each.stderr for each in (sent, *shown))):
        assert r"shop\nforged \x1b[2Jline" in output
        assert not re.search("^ *forged", output, re.MULTILINE), output
        assert_fit(output)


def test_a_senders_text_in_a_traceback_reaches_no_terminal_raw(start: Start, run: RunCommand, directory: Path) -> None:
    """Whether the app configures logging or not: ``ctx.logger`` uses our handler, the traceback that of the app."""
    source = apps.FLASK.format(sdk="durably").replace(
        'return ctx.step.run("charge", lambda: {"charged": ctx.event.data["total"]})',
        'total = ctx.event.data["total"]\n'
        '        ctx.logger.info("total %s", total)\n'
        "        import logging; logging.basicConfig()\n"
        "        raise durably.RetryAfterError(total, 60_000) from ValueError(total)",
    )
    write(directory / "shop.py", source)
    dev = start("dev", "shop:app", "--port", "0", "--app-port", "0")
    dev.until("shop:app is up")
    run("invoke", "shop-place", "--no-wait", "--data", json.dumps({"total": "\x1b[2Jharm"}), "--url", dev.origin)
    dev.until("attempt 1 failed")
    assert r"total \x1b[2Jharm" in dev.output
    assert r"ValueError: \x1b[2Jharm" in dev.output
    assert_fit(dev.output)
