"""Results of executed steps as JSON in their ops (spec §5.3.1), and the time that parts of a call took."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from durably.errors import OutputUnserializableError
from durably.execution import StepReport
from durably.protocol.errors import describe_error, is_retriable
from durably.protocol.opcodes import Opcode
from durably.values.annotations import tell_change
from durably.values.json_values import encode_checked


def encode_output(value: Any, source: str) -> bytes:
    """JSON of what a function or step returned. Raises ``OutputUnserializableError`` naming the source."""
    return to_json(value, source)[0]


def to_json(value: Any, source: str, function_id: str = "") -> tuple[bytes, Any]:
    """JSON of the output of a function or step, and the value decoded from it.

    Warns if the decoded value has another form; ``function_id`` names the step's function in the warning. Raises
    ``OutputUnserializableError`` naming the source, and the place.
    """
    if value is msgspec.UNSET:
        return b"null", None
    try:
        data, returned, change = encode_checked(value)
    except ValueError as error:
        raise _unserializable(source, str(error)) from None
    if change is not None:
        tell_change(f'{source} of function "{function_id}"' if function_id else source, change)
    return data, returned


def _unserializable(source: str, problem: str) -> OutputUnserializableError:
    return OutputUnserializableError(
        f"{source} returned unserializable data: {problem}. Return JSON values, annotate the handler with its "
        "return type, or set output_type"
    )


def encode_step_output(report: StepReport) -> tuple[bytes, Any]:
    """See ``to_json``."""
    return to_json(report.output, f'step "{report.info.id}"', report.function_id)


def check_found(reports: Sequence[StepReport]) -> None:
    """Check the data of steps that the engine executes, such as invocations.

    Raises ``OutputUnserializableError`` naming the step.
    """
    for report in reports:
        if report.op.opts and report.info.op != Opcode.STEP_RUN:
            try:
                encode_checked(report.op.opts)
            except ValueError as error:
                raise OutputUnserializableError(
                    f'step "{report.info.id}" was given data that JSON cannot express: {error}'
                ) from None


def finish(report: StepReport) -> None:
    """Put what the step returned or raised into its op, once."""
    op = report.op
    if report.error is None and op.op == Opcode.STEP_RUN and op.data is msgspec.UNSET:
        try:
            op.data = msgspec.Raw(encode_step_output(report)[0])
        except OutputUnserializableError as error:
            report.error = error
    if report.error is not None and op.error is None:
        if op.op == Opcode.STEP_RUN or (op.op == Opcode.STEP_ERROR and not is_retriable(report.error)):
            op.op = Opcode.STEP_ERROR if is_retriable(report.error) else Opcode.STEP_FAILED
        op.error = describe_error(report.error)


class Timings:
    """Measured parts in the order in which they began. Durations are whole milliseconds."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def measure(self, name: str) -> "Part":
        """Measure a ``with`` block; what blocks of one name took is added up."""
        self._seconds.setdefault(name, 0.0)
        return Part(self._seconds, name)

    def begin(self, name: str) -> float:
        """``measure`` without a ``with`` block: pass the result to ``end``."""
        self._seconds.setdefault(name, 0.0)
        return time.perf_counter()

    def end(self, name: str, began: float) -> None:
        self._seconds[name] += time.perf_counter() - began

    def to_header(self) -> str:
        return ", ".join([f"{name};dur={int(seconds * 1000)}" for name, seconds in self._seconds.items()])


class Part:
    """One measurement. A class, as generators make slow context managers and every call has several."""

    __slots__ = ("_name", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds = seconds
        self._name = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._start
