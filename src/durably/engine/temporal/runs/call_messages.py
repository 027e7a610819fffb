"""Messages: calls of runs and their answers, checkpoints, memos and requests.

Messages are in histories, so a field may be added with a default, and none may be renamed or removed.
"""

import msgspec

from durably.engine.core.calls import Answer, AttemptFailed, ReportedOps, Returned, Unreached
from durably.engine.core.run_state import Call, Deferred
from durably.engine.model.records import StepRow
from durably.engine.temporal.messages import MemoRecord
from durably.protocol.errors import ErrorData
from durably.protocol.limits import MAX_COUNT
from durably.protocol.opcodes import Op, Opcode


class CallInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A call, without its memos.

    Memos in inputs would make histories grow with the square of the steps. ``memos`` is their number, and ``digest``
    that of ``RunContent``.
    """

    run_id: str
    function_id: str
    app_id: str
    call: Call
    max_attempts: int
    disable_immediate: bool = False
    memos: int = 0
    digest: int = 0
    defers: tuple[Deferred, ...] = ()
    traceparent: str | None = None


class ReturnedResult(msgspec.Struct, frozen=True, tag="returned"):
    output: msgspec.Raw
    called_at: int | None = None


class OpsResult(msgspec.Struct, frozen=True, tag="ops", omit_defaults=True):
    """An answer with ops.

    ``requests_queue``: the task queue of the process that has the options of requests among the ops.
    """

    ops: list[Op]
    no_retry: bool = False
    retry_at: int | None = None
    races: bool = False
    requests_queue: str | None = None
    called_at: int | None = None


class FailedResult(msgspec.Struct, frozen=True, tag="failed", omit_defaults=True):
    error: ErrorData
    no_retry: bool = False
    retry_at: int | None = None
    written: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    called_at: int | None = None


CallResult = ReturnedResult | OpsResult | FailedResult
"""An answer as readable JSON. The activity repeats calls that do not reach the app, so they have no answer.
``called_at`` is the start time of the call, in milliseconds since the epoch."""


def result_of(answer: Answer, requests_queue: str | None = None) -> CallResult:
    match answer:
        case Returned(output):
            return ReturnedResult(msgspec.Raw(output))
        case ReportedOps(ops, no_retry, retry_at, races):
            return OpsResult(ops, no_retry, retry_at, races, requests_queue)
        case AttemptFailed(error, no_retry, retry_at, written):
            return FailedResult(error, no_retry, retry_at, msgspec.UNSET if written is None else msgspec.Raw(written))
        case Unreached(error):
            raise AssertionError(f"the activity repeats calls that do not reach the app: {error}")


def answer_of(result: CallResult) -> Answer:
    match result:
        case ReturnedResult(output):
            return Returned(bytes(output))
        case OpsResult(ops, no_retry, retry_at, races):
            return ReportedOps(ops, no_retry, retry_at, races)
        case FailedResult(error, no_retry, retry_at, written):
            return AttemptFailed(
                error, no_retry, retry_at, bytes(written) if isinstance(written, msgspec.Raw) else None
            )


class CheckpointInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """Steps that a call has finished: the argument of the Update ``checkpoint``.

    ``execution`` is the ``execution_of`` the workflow that made the call, or 0 if the request identifies it in another
    way.
    """

    generation: int
    steps: list[Op]
    called_at: int | None = None
    execution: int = 0


class ContentPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page of a run's memos, from the answer of the query ``content``.

    Only page 0 has ``events`` and ``step_input``. ``total`` is the number of memos.
    """

    total: int
    memos: list[MemoRecord] = []
    events: list[msgspec.Raw] = []
    step_input: MemoRecord | None = None
    steps: list[StepRow] = []


class ContentRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A range of memos: the argument of the query ``content``.

    ``has_steps``: the page also has the rows of the memos.
    """

    after: int
    until: int = MAX_COUNT
    has_steps: bool = False


class MemosToCopy(msgspec.Struct, frozen=True):
    """A page of the memos of another run, which a rerun reads."""

    run_id: str
    request: ContentRequest


class RequestInput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A request for a step, without its options, which may contain credentials."""

    run_id: str
    step_id: str
    name: str
    op: Opcode
    generation: int


class RequestResult(msgspec.Struct, frozen=True, omit_defaults=True):
    memo: msgspec.Raw
    failed: bool = False
    is_retriable: bool = False
