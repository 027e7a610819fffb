"""Runs, as tests look at them. All that can be seen of a run is of now; nothing is remembered here."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec

from durably.engine.core.errors import EngineClosedError
from durably.engine.views import RunStatus, RunView, to_datetime
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event

from .clock import VirtualClock
from .errors import RunStuckError, RunUnknownError
from .inspection import Inspector
from .steps import TestStep, to_steps
from .text import format_value
from .timeline import Recorder, describe_run

_ANY: Any = object()


class Records(msgspec.Struct, frozen=True):
    """The parts of an engine that report its runs."""

    inspector: Inspector
    recorder: Recorder
    clock: VirtualClock

    @property
    def now(self) -> dt.datetime:
        return to_datetime(self.clock.now())


class RunRef(msgspec.Struct, frozen=True):
    """Which run: by its id, or by the event that starts it, now or (debounced, batched) later."""

    run_id: str | None = None
    event_id: str | None = None
    event_name: str = ""


class RunFacts:
    """What a run has come to by now, and assertions on it, whose messages end with the run's timeline."""

    __test__ = False

    def __init__(self, records: Records, ref: RunRef) -> None:
        self._records = records
        self._ref = ref

    @property
    def id(self) -> str:
        """Raises ``RunUnknownError`` where the event has not started just one run."""
        if self._ref.run_id is None:
            self._ref = RunRef(self._find().id)
        assert self._ref.run_id is not None
        return self._ref.run_id

    @property
    def has_begun(self) -> bool:
        """Whether the run exists; one that is debounced or batched does only after a while."""
        return self._ref.run_id is not None or bool(self._of_event())

    @property
    def function_id(self) -> str:
        """The function's id as engines know it: ``<app>-<fn_id>``."""
        return self._view.function_id

    @property
    def status(self) -> RunStatus:
        return self._view.status

    @property
    def has_ended(self) -> bool:
        return self.has_begun and self.status.has_ended

    @property
    def created_at(self) -> dt.datetime:
        """UTC, on the engine's clock, as all times."""
        return self._view.created_at

    @property
    def started_at(self) -> dt.datetime | None:
        """When its function was called for the first time."""
        return self._view.started_at

    @property
    def ended_at(self) -> dt.datetime | None:
        return self._view.ended_at

    @property
    def output(self) -> Any:
        """What the function returned, from JSON; ``None`` unless the run is completed."""
        view = self._view
        return view.decode_output() if view.status is RunStatus.COMPLETED else None

    @property
    def error(self) -> ErrorData | None:
        """Name, message and stack of what ended a failed run."""
        view = self._view
        if view.output is None or view.status is not RunStatus.FAILED:
            return None
        return msgspec.json.decode(view.output, type=ErrorData)

    @property
    def events(self) -> list[Event]:
        """The event that triggered the run; several where it takes batches."""
        return self._records.inspector.events(self.id)

    @property
    def steps(self) -> Mapping[str, TestStep]:
        """By id, in the order in which they finished, then those outstanding. Repetitions are ``id:1``, ``id:2`` …"""
        return to_steps(self._records.inspector.steps(self.id))

    def timeline(self) -> str:
        """What happened to the run, a line each, at virtual times relative to its beginning."""
        return describe_run(self._view, self.events, self._records.recorder.of_run(self.id), self._records.now)

    def __repr__(self) -> str:
        try:
            return f"<{self.timeline()}>"
        except (RunUnknownError, EngineClosedError) as error:
            return f"<run: {error}>"

    # assertions

    def assert_completed(self, *, output: Any = _ANY) -> None:
        self._check(self.status is RunStatus.COMPLETED, f"the run is not completed but {self.status.value}")
        self._check_equal("the run's output", self.output, output)

    def assert_failed(self, *, error: str | None = None, message: str | None = None) -> None:
        """``error`` is the name of the exception's class, ``message`` a part of its message."""
        self._check(self.status is RunStatus.FAILED, f"the run is not failed but {self.status.value}")
        assert self.error is not None
        self._check_error("the run", self.error, error, message)

    def assert_cancelled(self) -> None:
        self._check(self.status is RunStatus.CANCELLED, f"the run is not cancelled but {self.status.value}")

    def assert_step(
        self, step_id: str, *, output: Any = _ANY, error: str | None = None, attempts: int | None = None
    ) -> TestStep:
        """The step has finished: with that output, or with that error (the name of the exception's class), after so
        many attempts, where they are given."""
        steps = self.steps
        step = steps.get(step_id)
        if step is None:
            known = ", ".join(map(repr, steps)) or "none"
            raise self._failure(f"there is no step {step_id!r}; the run's steps are: {known}")
        self._check(step.has_ended, f"step {step_id!r} has not finished: it is {step.status.value}")
        if error is None:
            self._check(step.error is None, f"step {step_id!r} failed: {step.error and step.error.message}")
        else:
            self._check(
                step.error is not None, f"step {step_id!r} did not fail: it came to {format_value(step.output)}"
            )
            assert step.error is not None
            self._check_error(f"step {step_id!r}", step.error, error, None)
        self._check_equal(f"step {step_id!r}", step.output, output)
        if attempts is not None:
            self._check_equal(f"the number of attempts of step {step_id!r}", step.attempts, attempts)
        return step

    def assert_no_step(self, step_id: str) -> None:
        """No such step has been found, in whatever state."""
        self._check(step_id not in self.steps, f"there is a step {step_id!r}")

    def _check_error(self, what: str, found: ErrorData, name: str | None, message: str | None) -> None:
        is_so = name in (None, found.name) and (message is None or message in (found.message or ""))
        self._check(is_so, f"{what} failed otherwise: {found.name}: {found.message}")

    def _check_equal(self, what: str, found: Any, wanted: Any) -> None:
        if wanted is not _ANY:
            is_so = found == wanted or found == msgspec.to_builtins(wanted)
            self._check(is_so, f"{what} is {format_value(found)}, not {wanted!r}")

    def _check(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            raise self._failure(otherwise)

    def _failure(self, message: str) -> AssertionError:
        return AssertionError(f"{message}\n\n{self.timeline()}")

    # waiting

    def why_stuck(self, reason: str) -> RunStuckError:
        """The error for a run that was waited for in vain."""
        if not self.has_begun:
            return RunStuckError(f"event {self._ref.event_name!r} starts no run, {reason}")
        waits = self._records.inspector.waits(self.id)
        lines = [
            f"  step {step.id!r} ({step.op.value}) {step.status.value}"
            for step in self.steps.values()
            if not step.has_ended
        ]
        lines += [f"    for {wait.topic!r}{_condition(wait.expression)}" for wait in waits.values() if wait.topic]
        outstanding = "\n".join(lines) or "  its turn to be called: flow control holds it back"
        return RunStuckError(f"the run does not end, {reason}. It waits for:\n{outstanding}\n\n{self.timeline()}")

    @property
    def _view(self) -> RunView:
        return self._records.inspector.run(self.id)

    def _of_event(self) -> list[RunView]:
        assert self._ref.event_id is not None
        return self._records.inspector.runs_of_event(self._ref.event_id)

    def _find(self) -> RunView:
        runs = self._of_event()
        if len(runs) == 1:
            return runs[0]
        name = self._ref.event_name
        if not runs:
            raise RunUnknownError(
                f"event {name!r} has started no run: is it the trigger of one of the functions under test?"
            )
        functions = ", ".join(run.function_id for run in runs)
        raise RunUnknownError(
            f"event {name!r} has started {len(runs)} runs, of {functions}: send it in a list to get them all, or pick "
            "one by engine.runs(function)"
        )


def _condition(expression: str | None) -> str:
    return f" if {expression}" if expression else ""
