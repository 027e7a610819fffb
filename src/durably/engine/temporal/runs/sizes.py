"""Temporal's limits of sizes, histories and signals, and answers that fit them.

The server accepts payloads of up to 2 MB, messages of up to 4 MB, and histories of up to 51,200 events and 50 MB.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from durably.engine.core.calls import Answer, AttemptFailed, ReportedOps, Returned, Unreached, failed
from durably.engine.core.ops import EXECUTED, executed_memo, step_name
from durably.engine.core.transition import excerpt
from durably.protocol.engine_errors import TooLargeError
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op, Opcode

MAX_OUTPUT_BYTES = 1_500_000
"""Maximum size of an output of a step or of a run."""
MAX_EVENT_BYTES = 1_000_000
"""Maximum size of an event, regardless of the engine's settings."""
MAX_PAYLOAD_BYTES = 1_900_000
"""Maximum size of an answer or checkpoint, including everything around the outputs."""
_MAX_ARGUMENT_BYTES = 256 * 1024
MAX_HISTORY_EVENTS = 50_000
MAX_HISTORY_BYTES = 45_000_000
MAX_SIGNALS = 9_000
"""The server refuses more than 10,000 signals of a workflow."""


class FittedAnswer(msgspec.Struct, frozen=True):
    """An answer that fits into a payload.

    ``checkpoints`` are steps of the answer that are committed before it.
    """

    answer: Answer
    checkpoints: Sequence[list[Op]] = ()


def fit_answer(answer: Answer) -> FittedAnswer:
    match answer:
        case Returned(output) if len(output) > MAX_OUTPUT_BYTES:
            message = f"the function returned {len(output)} bytes; at most {MAX_OUTPUT_BYTES} are allowed"
            return FittedAnswer(failed("OutputTooLargeError", message, no_retry=True))
        case AttemptFailed(error, no_retry, retry_at, written):
            if len(written or b"") + size_of(error) > MAX_PAYLOAD_BYTES:
                return FittedAnswer(AttemptFailed(_shorten(error), no_retry, retry_at))
        case Unreached():
            pass
        case ReportedOps():
            return _fit_ops(answer)
    return FittedAnswer(answer)


def _fit_ops(answer: ReportedOps) -> FittedAnswer:
    ops = [_fit_op(op) for op in answer.ops]
    if len(ops) == 1 and ops[0].op == Opcode.RUN_COMPLETE and size_of(ops[0].data) > MAX_OUTPUT_BYTES:
        message = f"the function returned {size_of(ops[0].data)} bytes; at most {MAX_OUTPUT_BYTES} are allowed"
        return FittedAnswer(failed("OutputTooLargeError", message, no_retry=True))
    checkpoints: Sequence[list[Op]] = ()
    if size_of(ops) > MAX_PAYLOAD_BYTES:
        checkpoints = split_steps([op for op in ops if op.op in EXECUTED])
        ops = [op for op in ops if op.op not in EXECUTED]
        # The run already knows the ends of these steps, so the answer must request discovery.
        ops.append(Op(id="", op=Opcode.DISCOVERY_REQUEST))
        size = size_of(ops)
        if size > MAX_PAYLOAD_BYTES:
            names = ", ".join(repr(step_name(op)) for op in ops if op.id)
            message = (
                f"the app's answer with the steps {names} has {size} bytes; at most {MAX_PAYLOAD_BYTES} are allowed"
            )
            return FittedAnswer(failed("AnswerTooLargeError", message, no_retry=True))
    return FittedAnswer(msgspec.structs.replace(answer, ops=ops), checkpoints)


def check_step(op: Op) -> None:
    """Raises ``TooLargeError`` if the step cannot be checkpointed."""
    size = size_of(op.data)
    if size > MAX_OUTPUT_BYTES:
        raise TooLargeError(f"step {step_name(op)!r} returned {size} bytes; at most {MAX_OUTPUT_BYTES} are allowed")


def without_large_arguments(op: Op) -> Op:
    """The op of an executed step, without arguments if they are large.

    Arguments are only shown.
    """
    opts = op.opts or {}
    if size_of(opts.get("input")) <= _MAX_ARGUMENT_BYTES:
        return op
    return msgspec.structs.replace(op, opts={name: value for name, value in opts.items() if name != "input"})


def _fit_op(op: Op) -> Op:
    """The op, or one that reports its failure if it is too large for any payload."""
    if op.op in EXECUTED:
        op = without_large_arguments(op)
    if op.op in EXECUTED:
        memo, is_too_large = executed_memo(op, MAX_OUTPUT_BYTES)
        if is_too_large:
            error = msgspec.json.decode(memo, type=dict[str, ErrorData])["error"]
            return msgspec.structs.replace(op, op=Opcode.STEP_FAILED, data=msgspec.UNSET, error=error)
    if op.error is not None and size_of(op.error) > MAX_OUTPUT_BYTES:
        return msgspec.structs.replace(op, error=_shorten(op.error), data=msgspec.UNSET)
    return op


def split_steps(steps: list[Op]) -> list[list[Op]]:
    """Steps in groups that each fit into a payload."""
    groups: list[list[Op]] = []
    size = MAX_PAYLOAD_BYTES
    for step in steps:
        added = size_of(step) + 1
        if size + added > MAX_PAYLOAD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(step)
        size += added
    return groups


def fit_end_event(data: bytes) -> tuple[bytes, list[str]]:
    """The data of an event about a run's end, and the names of omitted fields.

    Fields are omitted if the event would be too large.
    """
    omitted: list[str] = []
    fields = None
    for name in ("events", "result", "event", "error"):
        if len(data) <= MAX_OUTPUT_BYTES:
            break
        fields = fields or msgspec.json.decode(data, type=dict[str, Any])
        if name in fields:
            omitted.append(name)
            fields[name] = None
            fields["_inngest"] = {**fields["_inngest"], "omitted": omitted}
            data = msgspec.json.encode(fields)
    return data, omitted


def size_of(value: object) -> int:
    return 0 if value is msgspec.UNSET else len(msgspec.json.encode(value))


def _shorten(error: ErrorData) -> ErrorData:
    return ErrorData(name=error.name, message=excerpt(error))
