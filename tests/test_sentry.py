"""Errors that Sentry's middleware reports, with a real client of ``sentry_sdk`` and its integrations."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from durably import Client
from durably.errors import FunctionConfigInvalidError
from durably.sentry import Sentry

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("DURABLY_", "INNGEST_"))}
    program = [sys.executable, "-m", "tests.sentry_app"]
    result = subprocess.run(program, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, list)
    return found


def of_app(events: list[dict[str, Any]], app: str) -> list[dict[str, Any]]:
    return [event for event in events if event["tags"].get("durably.app") == app]


def reported(events: list[dict[str, Any]]) -> list[tuple[str, str | None, str]]:
    """Function, step and attempt of each event, in order."""
    tags = [event["tags"] for event in events]
    return [(each["durably.function"], each.get("durably.step"), each["durably.attempt"]) for each in tags]


@pytest.mark.slow
def test_each_failed_run_is_reported_once(events: list[dict[str, Any]]) -> None:
    own = of_app(events, "run")
    assert reported(own) == [("run-step-fails", None, "0"), ("run-function-fails", None, "1")]
    assert [event["errors"] for event in own] == [["StepError"], ["OrderError"]]
    assert own[0]["context"]["name"] == "OrderError"
    assert "no such card" in own[0]["context"]["stack"]


def test_each_failed_attempt_is_reported_once(events: list[dict[str, Any]]) -> None:
    own = of_app(events, "attempt")
    assert reported(own) == [
        ("attempt-step-fails", "charge", "0"),
        ("attempt-step-fails", "charge", "1"),
        ("attempt-function-fails", None, "0"),
        ("attempt-function-fails", None, "1"),
        ("attempt-recovers", "charge", "0"),
        ("attempt-catches", "charge", "0"),
        ("attempt-catches", "charge", "1"),
    ]
    assert {tuple(event["errors"]) for event in own} == {("OrderError",)}
    assert len({event["tags"]["durably.run"] for event in own}) == 4


def test_integrations_of_frameworks_and_logging_report_nothing_twice(events: list[dict[str, Any]]) -> None:
    own = of_app(events, "http")
    assert Counter(event["tags"]["durably.run"] for event in own) == {"run-async": 2, "run-sync": 2}
    others = [event for event in events if "durably.app" not in event["tags"]]
    assert [event["message"] for event in others if event["errors"]] == []
    # What a function logs itself is Sentry's, with both clients.
    assert ["the card was refused" in event["message"] for event in others].count(True) == 2


def test_a_wrong_option_is_refused() -> None:
    with pytest.raises(FunctionConfigInvalidError, match=r'Sentry\.capture must be "run" or "attempt"'):
        Sentry(capture="always")  # type: ignore[arg-type]
    with pytest.raises(FunctionConfigInvalidError, match="Sentry"):
        Client(app_id="shop", is_production=False, middleware=[Sentry])  # type: ignore[list-item]
