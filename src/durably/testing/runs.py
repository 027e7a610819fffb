"""Runs and steps as tests see them.

They are read from the test engine's database at each access. Reads work on any thread, and return the current state.
"""

import datetime as dt
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from durably.engine.model.run_report import report_steps
from durably.engine.model.runs import Run, RunStatus, RunUpdate, Step, StepStatus, UpdateKind, to_datetime
from durably.engine.sqlite.call_dispatch import CallDispatcher
from durably.engine.sqlite.database import connect_reader
from durably.engine.sqlite.queries import runs
from durably.protocol.engine_errors import EngineClosedError
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event
from durably.protocol.opcodes import MAY_TIME_OUT, Opcode, unwrap_memo
from durably.protocol.text import printable
from durably.protocol.usage import ModelUsage

from .determinism import PastStep
from .link import VirtualClock

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_WIDTH = 100


def format_span(span: dt.timedelta) -> str:
    """A span of time: ``0s``, ``15s``, ``3d 4h 15s``, ``1s 500ms``.

    It is not rounded, because times on a virtual clock are exact.
    """
    rest = round(span / dt.timedelta(milliseconds=1))
    parts = []
    for unit, length in _UNITS:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def format_value(value: Any) -> str:
    return shorten(msgspec.json.encode(value).decode())


def shorten(text: str, width: int = _WIDTH) -> str:
    """One line of at most ``width`` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 1]}…"


_MOST_REMEMBERED = 10_000
_MOST_OUTPUT_BYTES = 1000
_FIRST = {UpdateKind.RUN_STARTED, UpdateKind.RUN_SKIPPED}


class Recorder:
    """Keeps the latest updates of all runs, up to a limit."""

    def __init__(self) -> None:
        self._updates: deque[RunUpdate] = deque(maxlen=_MOST_REMEMBERED)

    def note(self, update: RunUpdate) -> None:
        if update.output is not None and len(update.output) > _MOST_OUTPUT_BYTES:
            update = msgspec.structs.replace(update, output=msgspec.Raw(bytes(update.output)[:_MOST_OUTPUT_BYTES]))
        self._updates.append(update)

    def of_run(self, run_id: str) -> list[RunUpdate]:
        return [update for update in self._updates.copy() if update.run_id == run_id]


def describe_run(run: Run, events: list[Event], updates: list[RunUpdate], now: dt.datetime) -> str:
    """A heading, and a line for each update of the run."""
    span = format_span((run.ended_at or now) - run.created_at)
    heading = (
        f"run {run.id} of {printable(run.function_id)}: {run.status.value} {'after' if run.ended_at else 'for'} {span}"
    )
    rows = [tuple(map(printable, _row(run, events, update))) for update in updates]
    if not updates or updates[0].kind not in _FIRST:
        rows.insert(0, ("…", "(run)", "the first updates are no longer kept"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[2]}".rstrip() for row in rows]
    return "\n".join([heading, *lines])


def _row(run: Run, events: list[Event], update: RunUpdate) -> tuple[str, str, str]:
    at = f"+{format_span(update.at - run.created_at)}"
    if update.kind is UpdateKind.RUN_STARTED:
        return at, "(run)", "began: " + ", ".join(f"{event.name} {format_value(event.data)}" for event in events)
    return at, update.step or "(run)", _describe(run, update)


def _describe(run: Run, update: RunUpdate) -> str:
    due = "" if update.due_at is None else f"+{format_span(update.due_at - run.created_at)}"
    match update.kind:
        case UpdateKind.RETRYING:
            return f"attempt {(update.attempt or 0) + 1} failed, again at {due}: {update.error}"
        case UpdateKind.UNREACHED:
            return f"the app was not reached, again at {due}: {update.error}"
        case UpdateKind.SLEEPING:
            return f"sleeps until {due}"
        case UpdateKind.WAITING:
            return f"waits until {due}"
        case UpdateKind.STEP_FAILED | UpdateKind.RUN_FAILED:
            return f"failed: {update.error}"
        case UpdateKind.RUN_CANCELLED:
            return f"cancelled: {update.error}"
        case UpdateKind.RUN_SKIPPED:
            return f"skipped: {update.error}"
        case UpdateKind.STEP_COMPLETED:
            return _describe_memo(update)
        case UpdateKind.RUN_COMPLETED:
            return f"completed → {_text(update)}"
        case _:
            return update.kind.value


def _describe_memo(update: RunUpdate) -> str:
    text = _text(update)
    if update.op == Opcode.SLEEP:
        return "woke"
    if text == "null" and update.op in MAY_TIME_OUT:
        return "timed out"
    tries = f" (attempt {update.attempt + 1})" if update.attempt else ""
    return f"→ {_inside(update)}{tries}"


def _text(update: RunUpdate) -> str:
    return shorten(bytes(update.output or b"null").decode(errors="replace"))


def _inside(update: RunUpdate) -> str:
    """A step's result, or the event's name and data of a wait, taken from its memo."""
    try:
        memo = msgspec.json.decode(update.output or b"null")
    except msgspec.DecodeError:  # only its beginning was kept
        return _text(update)
    if update.op == Opcode.WAIT_FOR_EVENT:
        return f"{memo.get('name')} {format_value(memo.get('data'))}"
    return format_value(unwrap_memo(memo))


T = TypeVar("T")


class RunUnknownError(AssertionError):
    """An event started no run or several runs, and the test needs exactly one."""


class RunStuckError(AssertionError):
    """A test waits for a run that does not end.

    The run is blocked, or did not end within ``max_time``.
    """


class OutstandingWait(msgspec.Struct, frozen=True):
    """A step's wait.

    ``topic`` is an event's name, a signal, or the id of a run; ``None`` for a sleep.
    """

    step_id: str
    topic: str | None
    expression: str | None


class Inspector:
    """Reads the database, over a connection that is open until ``close``."""

    def __init__(self, path: Path, call_dispatcher: CallDispatcher) -> None:
        self._connection = connect_reader(path)
        self._call_dispatcher = call_dispatcher
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._connection.close()

    def run(self, run_id: str) -> Run:
        run = self._read(lambda connection: runs.find_run(connection, run_id, self._call_dispatcher.first_call_at))
        assert run is not None, f"the engine no longer has run {run_id}"
        return run

    def runs_of_event(self, event_id: str) -> list[Run]:
        return self._read(lambda connection: runs.event_runs(connection, event_id, self._call_dispatcher.first_call_at))

    def runs(self, function_id: str | None) -> list[Run]:
        """All runs, oldest first."""
        first_call_at = self._call_dispatcher.first_call_at
        return self._read(lambda connection: runs.list_runs(connection, function_id, first_call_at))[::-1]

    def latest_runs(self, limit: int) -> list[Run]:
        """The latest runs, oldest first."""
        first_call_at = self._call_dispatcher.first_call_at
        return self._read(lambda connection: runs.list_runs(connection, None, first_call_at, limit))[::-1]

    def steps(self, run_id: str) -> list[Step]:
        dispatcher = self._call_dispatcher
        rows = self._read(
            lambda connection: runs.read_run_rows(
                connection, run_id, dispatcher.first_call_at, dispatcher.called_at, False
            )
        )
        return [] if rows is None else report_steps(rows)

    def events(self, run_id: str) -> list[Event]:
        batch = self._read(lambda connection: runs.run_batch(connection, run_id))
        return msgspec.json.decode(batch or b"[]", type=list[Event])

    def waits(self, run_id: str) -> dict[str, OutstandingWait]:
        """The waits of a run, by hashed step id."""
        query = "SELECT step_id, topic, expression FROM waits JOIN runs ON runs.key = waits.run_key WHERE runs.id = ?"
        rows = self._read(lambda connection: connection.execute(query, (run_id,)).fetchall())
        return {row[0]: OutstandingWait(*row) for row in rows}

    def finished_steps(self, run_id: str) -> list[PastStep]:
        """The finished steps of a run, in the order of their memos."""
        query = (
            "SELECT step_id, name, memo FROM memos JOIN runs ON runs.key = memos.run_key WHERE runs.id = ? ORDER BY seq"
        )
        rows = self._read(lambda connection: connection.execute(query, (run_id,)).fetchall())
        return [PastStep(step_id, name, msgspec.Raw(memo)) for step_id, name, memo in rows]

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._is_closed:
                raise EngineClosedError("the test engine is closed: use its runs inside its `with` block")
            self._connection.execute("BEGIN")
            try:
                return query(self._connection)
            finally:
                self._connection.execute("COMMIT")


class TestStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a run. Times are UTC, on the engine's clock.

    - ``id``: The step's own id. Its n-th repetition has ``id:n``, as on the wire (n from 1).
    - ``output``: The result, from JSON: of the handler or the invoked function, or the event or signal as a dictionary;
      ``None`` after a sleep and after a timeout.
    - ``error``: Set if the step failed.
    - ``attempts``: The number of attempts of any outcome.
    - ``due_at``: The end of a sleep, the timeout of a wait, or the time of the next attempt.
    - ``usage``: The tokens that all attempts have recorded, by model.
    """

    __test__ = False

    id: str
    op: Opcode
    status: StepStatus
    attempts: int
    output: Any
    error: ErrorData | None
    created_at: dt.datetime
    ended_at: dt.datetime | None
    due_at: dt.datetime | None
    usage: list[ModelUsage] = []

    @property
    def has_ended(self) -> bool:
        return self.ended_at is not None


def to_steps(steps: list[Step]) -> dict[str, TestStep]:
    """Steps by id: finished ones in the order of their memos, then unfinished ones."""
    return {
        step.id: TestStep(
            id=step.id,
            op=step.op,
            status=step.status,
            attempts=step.attempts,
            output=None if step.output is None else msgspec.json.decode(step.output),
            error=step.error,
            created_at=step.created_at,
            ended_at=step.ended_at,
            due_at=step.due_at,
            usage=step.usage,
        )
        for step in steps
    }


_ANY: Any = object()


class Records(msgspec.Struct, frozen=True):
    """The parts of a test engine that report its runs."""

    inspector: Inspector
    recorder: Recorder
    clock: VirtualClock

    @property
    def now(self) -> dt.datetime:
        return to_datetime(self.clock.now())


class RunRef(msgspec.Struct, frozen=True):
    """A run by its id, or by the event that starts it.

    The event starts it immediately or later (debounced, batched).
    """

    run_id: str | None = None
    event_id: str | None = None
    event_name: str = ""


class RunFacts:
    """The current state of a run, and assertions on it.

    The messages of the assertions end with the run's timeline.
    """

    __test__ = False

    def __init__(self, records: Records, ref: RunRef) -> None:
        self._records = records
        self._ref = ref

    @property
    def id(self) -> str:
        """Raises ``RunUnknownError`` unless the event has started exactly one run."""
        if self._ref.run_id is None:
            self._ref = RunRef(self._find().id)
        assert self._ref.run_id is not None
        return self._ref.run_id

    @property
    def has_begun(self) -> bool:
        """Whether the run exists. A debounced or batched run starts later than its event."""
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
        """UTC, on the engine's clock, like all times."""
        return self._view.created_at

    @property
    def started_at(self) -> dt.datetime | None:
        """The time of the first call of its function."""
        return self._view.started_at

    @property
    def ended_at(self) -> dt.datetime | None:
        return self._view.ended_at

    @property
    def output(self) -> Any:
        """The function's result, from JSON; ``None`` unless the run is completed."""
        view = self._view
        return view.decode_output() if view.status is RunStatus.COMPLETED else None

    @property
    def error(self) -> ErrorData | None:
        """Name, message and stack of the error of a failed run."""
        view = self._view
        if view.output is None or view.status is not RunStatus.FAILED:
            return None
        return msgspec.json.decode(view.output, type=ErrorData)

    @property
    def usage(self) -> list[ModelUsage]:
        """The tokens that its steps have recorded, by model."""
        return self._view.usage or []

    @property
    def events(self) -> list[Event]:
        """The events that triggered the run: one, or a batch."""
        return self._records.inspector.events(self.id)

    @property
    def steps(self) -> Mapping[str, TestStep]:
        """Steps by id: finished ones in their order, then unfinished ones.

        Repetitions are ``id:1``, ``id:2`` …
        """
        return to_steps(self._records.inspector.steps(self.id))

    def timeline(self) -> str:
        """A line for each event in the run's life, with the virtual time since its start."""
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
        """Assert that the run has failed, with that error and message if given.

        ``error`` is the name of the exception's class. ``message`` is a part of its message.
        """
        self._check(self.status is RunStatus.FAILED, f"the run is not failed but {self.status.value}")
        assert self.error is not None
        self._check_error("the run", self.error, error, message)

    def assert_cancelled(self) -> None:
        self._check(self.status is RunStatus.CANCELLED, f"the run is not cancelled but {self.status.value}")

    def assert_step(
        self, step_id: str, *, output: Any = _ANY, error: str | None = None, attempts: int | None = None
    ) -> TestStep:
        """Assert that the step has finished, and return it.

        If they are given, also assert the output, the error (the name of the exception's class) and the number of
        attempts.
        """
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
                step.error is not None, f"step {step_id!r} did not fail: its output is {format_value(step.output)}"
            )
            assert step.error is not None
            self._check_error(f"step {step_id!r}", step.error, error, None)
        self._check_equal(f"step {step_id!r}", step.output, output)
        if attempts is not None:
            self._check_equal(f"the number of attempts of step {step_id!r}", step.attempts, attempts)
        return step

    def assert_no_step(self, step_id: str) -> None:
        """Assert that the run has no such step, in any state."""
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
        """The error for a run that does not end."""
        if not self.has_begun:
            return RunStuckError(f"event {self._ref.event_name!r} started no run: {reason}")
        waits = self._records.inspector.waits(self.id)
        lines = [
            f"  step {step.id!r} ({step.op.value}) {step.status.value}"
            for step in self.steps.values()
            if not step.has_ended
        ]
        lines += [f"    for {wait.topic!r}{_condition(wait.expression)}" for wait in waits.values() if wait.topic]
        outstanding = "\n".join(lines) or "  its first call: flow control delays it"
        return RunStuckError(f"the run did not end: {reason}. It waits for:\n{outstanding}\n\n{self.timeline()}")

    @property
    def _view(self) -> Run:
        return self._records.inspector.run(self.id)

    def _of_event(self) -> list[Run]:
        assert self._ref.event_id is not None
        return self._records.inspector.runs_of_event(self._ref.event_id)

    def _find(self) -> Run:
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
