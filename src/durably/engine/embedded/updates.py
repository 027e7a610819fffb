"""What happened to runs, as those who watch are told.

A unit of work leaves notes, which are cheap; they become updates only where somebody watches.
"""

import msgspec

from durably.engine.head import Call, RunStatus
from durably.engine.inputs import EndRun, WriteMemo
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Opcode

from .moments import to_datetime
from .store import RunRow
from .views import RunUpdate, UpdateKind

_ENDS = {
    RunStatus.COMPLETED: UpdateKind.RUN_COMPLETED,
    RunStatus.FAILED: UpdateKind.RUN_FAILED,
    RunStatus.CANCELLED: UpdateKind.RUN_CANCELLED,
    RunStatus.SKIPPED: UpdateKind.RUN_SKIPPED,
}
_error_decoder = msgspec.json.Decoder(ErrorData)
_memo_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def describe_error(encoded: bytes | msgspec.Raw) -> str:
    """``Name: message`` of an error as JSON."""
    error = _error_decoder.decode(encoded)
    return f"{error.name or 'Error'}: {error.message or ''}"


def describe_failed_memo(memo: bytes) -> str:
    return describe_error(_memo_decoder.decode(memo)["error"])


class Note(msgspec.Struct, frozen=True, gc=False):
    """Times are milliseconds since the epoch. Of ``memo``, ``output`` and ``error`` one is set at most, the first
    two JSON; ``failed`` says whether that is an error."""

    kind: UpdateKind
    at: int
    run: RunRow
    step: str | None = None
    op: Opcode | None = None
    attempt: int | None = None
    due: int | None = None
    memo: bytes | None = None
    output: bytes | None = None
    error: str | None = None
    failed: bool = False

    def to_update(self) -> RunUpdate:
        shown = None if self.failed else self.memo if self.memo is not None else self.output
        return RunUpdate(
            kind=self.kind,
            at=to_datetime(self.at),
            run_id=self.run.id,
            function_id=self.run.function_id,
            step=self.step,
            op=self.op,
            attempt=self.attempt,
            due_at=None if self.due is None else to_datetime(self.due),
            output=None if shown is None else msgspec.Raw(shown),
            error=self._describe_error() if self.failed else self.error,
        )

    def _describe_error(self) -> str:
        return describe_failed_memo(self.memo) if self.memo is not None else describe_error(self.output or b"{}")


def run_started(run: RunRow, at: int) -> Note:
    return Note(UpdateKind.RUN_STARTED, at, run)


def run_not_started(run: RunRow, output: bytes, at: int) -> Note:
    """The update of a run that was skipped, or failed before it began."""
    return Note(_ENDS[run.status], at, run, output=output, failed=True)


def call_repeated(run: RunRow, call: Call, at: int) -> Note:
    if call.unreached:
        return Note(UpdateKind.UNREACHED, at, run, due=call.due, error=call.error)
    return Note(
        UpdateKind.RETRYING, at, run, step=call.name or None, attempt=call.attempt - 1, due=call.due, error=call.error
    )


def step_waits(run: RunRow, step: str, op: Opcode, until: int, at: int) -> Note:
    kind = UpdateKind.SLEEPING if op == Opcode.SLEEP else UpdateKind.WAITING
    return Note(kind, at, run, step=step, op=op, due=until)


def step_ended(run: RunRow, written: WriteMemo, at: int) -> Note:
    return Note(
        UpdateKind.STEP_FAILED if written.failed else UpdateKind.STEP_COMPLETED,
        at,
        run,
        step=written.name,
        op=written.op,
        attempt=written.attempts - 1,
        memo=written.memo,
        failed=written.failed,
    )


def run_ended(run: RunRow, end: EndRun, at: int) -> Note:
    return Note(_ENDS[end.status], at, run, output=end.output, failed=end.status is not RunStatus.COMPLETED)
