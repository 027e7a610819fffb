"""The table of transitions: complete, in use, and the same as in CONTRIBUTING.md."""

import typing

import pytest

from durably.engine.core import machine
from durably.engine.core.inputs import Input, TimerFired
from durably.engine.core.machine import TRANSITIONS, advance, start
from durably.engine.core.run_state import Policy, RunStatus
from durably.engine.core.transition import Transition

POLICY = Policy(retry_delay=lambda attempt: 0, unreached_delay=lambda failures: 0)


def test_every_pair_of_status_and_input_has_a_handler() -> None:
    pairs = {(status, kind) for status in RunStatus for kind in typing.get_args(Input)}
    assert set(machine._HANDLERS) == pairs


@pytest.mark.parametrize("status", RunStatus)
def test_the_handlers_are_those_of_the_table(status: RunStatus) -> None:
    column = 2 if status.has_ended else ("Scheduled", "Running").index(status)
    assert {kind: row[column] for kind, row in TRANSITIONS.items()} == {
        kind: handler for (each, kind), handler in machine._HANDLERS.items() if each is status
    }


def test_the_machine_calls_the_handlers_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(transition: Transition, run_input: Input) -> None:
        transition.end(RunStatus.SKIPPED, b"{}")

    state = start(1, 0)
    monkeypatch.setitem(machine._HANDLERS, (RunStatus.SCHEDULED, TimerFired), end)
    assert advance(state, TimerFired("step"), 0, POLICY)[0].status == RunStatus.SKIPPED
