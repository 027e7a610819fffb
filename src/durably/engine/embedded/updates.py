"""Telling those who watch what happened to runs."""

import datetime as dt

import msgspec

from durably.engine.head import Call, RunStatus
from durably.engine.inputs import EndRun, WriteMemo
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Opcode

from .effects import Effects
from .store import RunRow
from .views import RunUpdate, UpdateKind

_ENDS = {
    RunStatus.COMPLETED: UpdateKind.RUN_COMPLETED,
    RunStatus.FAILED: UpdateKind.RUN_FAILED,
    RunStatus.CANCELLED: UpdateKind.RUN_CANCELLED,
}
_MEMO = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ERROR = msgspec.json.Decoder(ErrorData)


def to_datetime(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)


def describe_error(encoded: bytes) -> str:
    """``Name: message`` of an error as JSON."""
    error = _ERROR.decode(encoded)
    return f"{error.name or 'Error'}: {error.message or ''}"


class Updates:
    def __init__(self, effects: Effects, now: int) -> None:
        self._effects = effects
        self._at = to_datetime(now)

    def run_started(self, run: RunRow) -> None:
        self._add(run, UpdateKind.RUN_STARTED)

    def call_made(self, run: RunRow, call: Call) -> None:
        """Only calls that are made again are worth telling."""
        if call.unreached:
            self._add(run, UpdateKind.UNREACHED, due_at=to_datetime(call.due), error=call.error)
        elif call.error:
            self._add(
                run,
                UpdateKind.RETRYING,
                step=call.name or None,
                attempt=call.attempt - 1,
                due_at=to_datetime(call.due),
                error=call.error,
            )

    def waiting(self, run: RunRow, step: str, op: Opcode, until: int) -> None:
        kind = UpdateKind.SLEEPING if op == Opcode.SLEEP else UpdateKind.WAITING
        self._add(run, kind, step=step, op=op, due_at=to_datetime(until))

    def step_ended(self, run: RunRow, written: WriteMemo) -> None:
        output = error = None
        if written.failed:
            error = describe_error(_MEMO.decode(written.memo)["error"])
        else:
            output = msgspec.Raw(written.memo)
        kind = UpdateKind.STEP_FAILED if written.failed else UpdateKind.STEP_COMPLETED
        attempt = written.attempts - 1
        self._add(run, kind, step=written.name, op=written.op, attempt=attempt, output=output, error=error)

    def run_ended(self, run: RunRow, end: EndRun) -> None:
        if end.status == RunStatus.FAILED:
            self._add(run, _ENDS[end.status], error=describe_error(end.output))
        else:
            output = msgspec.Raw(end.output) if end.status == RunStatus.COMPLETED else None
            self._add(run, _ENDS[end.status], output=output)

    def _add(
        self,
        run: RunRow,
        kind: UpdateKind,
        *,
        step: str | None = None,
        op: Opcode | None = None,
        attempt: int | None = None,
        due_at: dt.datetime | None = None,
        output: msgspec.Raw | None = None,
        error: str | None = None,
    ) -> None:
        self._effects.updates.append(
            RunUpdate(
                kind=kind,
                at=self._at,
                run_id=run.id,
                function_id=run.function_id,
                step=step,
                op=op,
                attempt=attempt,
                due_at=due_at,
                output=output,
                error=error,
            )
        )
