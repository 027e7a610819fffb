"""``--log-format``: the log of an engine for programs and for people, with one line for each run that ends."""

import json
import logging
import re
import signal
from typing import Any

import pytest

from durably.cli.service import TextFormatter

from .conftest import APP, Run, Start, write


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_a_run_ends_with_one_line_of_json(start: Start, run: Run, directory: Any) -> None:
    write(directory / "shop.py", APP)
    arguments = ("--port", "0", "--app-port", "0", "--no-reload", "--log-format", "json")
    dev = start("dev", "shop:app", *arguments)
    origin = dev.until(r"engine at (http://[\d.:]+)")[1]
    dev.until("shop:app is up")
    for data in ('{"total": 3}', '{"total": 3, "fail": true}'):
        assert run("send", "order/placed", "--data", data, "--url", origin).status == 0
    dev.until('"message":"run completed".*\n')
    dev.until('"message":"run failed".*\n')
    assert dev.stop(signal.SIGINT) == 0
    ends = {line["outcome"]: line for line in lines_of(dev.output) if "outcome" in line}
    assert {"completed", "failed"} == set(ends)
    completed, failed = ends["completed"], ends["failed"]
    assert (completed["level"], failed["level"]) == ("info", "error")
    assert (completed["function_id"], completed["app_id"]) == ("shop-place", "shop")
    assert isinstance(completed["duration_ms"], int)
    assert re.fullmatch("[0-9A-Z]{26}", completed["run_id"])
    assert re.fullmatch("[0-9A-Z]{26}", completed["event_id"])
    assert failed["error"] == "ValueError: out of stock"
    assert "3" not in json.dumps([line.get("output") for line in lines_of(dev.output)])


def test_production_logs_text_on_request(start: Start) -> None:
    keys = {
        "DURABLY_SIGNING_KEY": "signkey-prod-" + "0123456789abcdef" * 4,
        "DURABLY_EVENT_KEY": "event-key-of-the-shop",
        "DURABLY_LOG_FORMAT": "text",
    }
    command = start("start", "--db", "engine.db", "--port", "0", **keys)
    command.until(r"\d\+00:00 INFO durably\.start engine started origin=http://127\.0\.0\.1:\d+ database=/")
    assert command.stop(signal.SIGTERM) == 0
    assert "{" not in command.output


@pytest.mark.parametrize(
    ("value", "shown"),
    [("plain", "plain"), ("two words", '"two words"'), ("", '""'), ('a"b', '"a\\"b"'), (3, "3"), ("a\nb", '"a\\nb"')],
)
def test_text_log_quotes_values_with_special_characters(value: object, shown: str) -> None:
    record = logging.LogRecord("durably.runs", logging.INFO, "", 0, "run failed", (), None)
    record.fields = {"error": value}
    assert TextFormatter().format(record).endswith(f" INFO durably.runs run failed error={shown}")


def test_a_traceback_in_text_cannot_forge_a_line() -> None:
    record = logging.LogRecord("durably.engine", logging.ERROR, "", 0, "broken", (), None)
    try:
        raise ValueError("first\n2026-01-01T00:00:00 INFO durably.runs forged\x1b[2J")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    first, *others = TextFormatter().format(record).split("\n")
    assert first.endswith(" ERROR durably.engine broken")
    assert others
    assert all(line.startswith("  ") and "\x1b" not in line for line in others)
