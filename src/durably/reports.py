"""What executed steps put on the wire: their results as JSON inside their ops (spec §5.3.1)."""

from typing import Any

import msgspec

from durably.encoding import encode_json
from durably.errors import OutputUnserializableError
from durably.execution import StepReport
from durably.protocol.errors import describe_error, is_retriable
from durably.protocol.opcodes import Opcode


def encode_output(value: Any, source: str) -> bytes:
    """JSON of what a function or step returned. Raises ``OutputUnserializableError`` naming the source."""
    if value is msgspec.UNSET:
        return b"null"
    try:
        return encode_json(value)
    except ValueError as error:
        raise OutputUnserializableError(
            f"{source} returned unserializable data: {error}. Return what JSON can express, "
            "or set output_type and give the client a serializer"
        ) from None


def encode_step_output(report: StepReport) -> bytes:
    """Raises ``OutputUnserializableError``."""
    return encode_output(report.output, f'step "{report.info.id}"')


def finish(report: StepReport) -> None:
    """Put what the step returned or raised into its op, once."""
    op = report.op
    if report.error is None and op.op == Opcode.STEP_RUN and op.data is msgspec.UNSET:
        try:
            op.data = msgspec.Raw(encode_step_output(report))
        except OutputUnserializableError as error:
            report.error = error
    if report.error is not None and op.error is None:
        if op.op == Opcode.STEP_RUN or (op.op == Opcode.STEP_ERROR and not is_retriable(report.error)):
            op.op = Opcode.STEP_ERROR if is_retriable(report.error) else Opcode.STEP_FAILED
        op.error = describe_error(report.error)
