"""Tests of the protocol on the engine on Temporal, one of each kind; a slow test runs all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from durably.io.background_loop import get_background_loop

from ...conformance.conftest import script
from ...conformance.engine_under_test import Engine
from ...conformance.temporal_engine import open_engine
from ...conformance.test_engine_api import test_a_function_that_is_synced_no_more_is_triggered_no_more
from ...conformance.test_engine_calls import test_run_complete_completes_the_run_with_its_data
from ...conformance.test_engine_checkpoints import test_steps_are_stored_while_the_call_continues
from ...conformance.test_engine_defers import later, test_a_deferred_function_starts_once_the_run_has_ended
from ...conformance.test_engine_events import (
    test_a_completed_run_is_finished,
)
from ...conformance.test_engine_steps import (
    test_planned_steps_are_called_each_and_discovery_follows_once_all_have_ended,
)
from ...conformance.test_engine_waits import (
    test_an_invoked_function_gets_the_data_and_its_output_is_the_memo,
    test_the_event_that_was_waited_for_is_the_memo,
)
from ...temporal.dev_server import DevServer

__all__ = [
    "later",
    "script",
    "test_a_completed_run_is_finished",
    "test_a_deferred_function_starts_once_the_run_has_ended",
    "test_a_function_that_is_synced_no_more_is_triggered_no_more",
    "test_an_invoked_function_gets_the_data_and_its_output_is_the_memo",
    "test_planned_steps_are_called_each_and_discovery_follows_once_all_have_ended",
    "test_run_complete_completes_the_run_with_its_data",
    "test_steps_are_stored_while_the_call_continues",
    "test_the_event_that_was_waited_for_is_the_memo",
]


ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def engine(server: DevServer) -> Iterator[Engine]:
    loop = get_background_loop()
    opened = loop.run(open_engine(server.address))
    yield Engine(opened.origin)
    loop.run(opened.close())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_tests_of_the_protocol_pass() -> None:
    """In a pytest of their own, because they choose the engine by an option."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    tests = sorted(map(str, (ROOT / "tests" / "conformance").glob("test_engine_*.py")))
    command = [sys.executable, "-m", "pytest", "--numprocesses", "2", "--engine", "temporal", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
