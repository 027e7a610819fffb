"""Answers to calls: status, headers, JSON (spec §4.4.3, §5.1.1)."""

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from durably.errors import OutputUnserializableError, RetryAfterError
from durably.execution import Found, Outcome, Raised, StepReport
from durably.functions.step_results import encode_output, finish
from durably.protocol.durations import format_moment
from durably.protocol.errors import describe_error, is_retriable
from durably.protocol.headers import Header
from durably.protocol.opcodes import RETRY_AFTER_OPT


@dataclass(slots=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def encode(outcome: Outcome) -> Answer:
    if isinstance(outcome, Found):
        return _encode_found(outcome)
    if isinstance(outcome, Raised):
        return _encode_error(outcome.error)
    try:
        return Answer(HTTPStatus.OK, encode_output(outcome.value, outcome.source))
    except OutputUnserializableError as error:
        return _encode_error(error)


def _encode_error(error: BaseException) -> Answer:
    body = msgspec.json.encode(describe_error(error).to_wire())
    return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, body, _error_headers(error))


def _error_headers(error: BaseException) -> dict[str, str]:
    headers = {Header.NO_RETRY.value: "false" if is_retriable(error) else "true"}
    if isinstance(error, RetryAfterError):
        headers[Header.RETRY_AFTER.value] = retry_after_text(error)
    return headers


def retry_after_text(error: RetryAfterError) -> str:
    """Whole seconds for a delay, which the engine adds to its own clock; a moment is sent as it is."""
    delay = error.retry_after
    if isinstance(delay, dt.datetime):
        return format_moment(delay)
    return str(max(0, math.ceil(delay.total_seconds())))


def _encode_found(found: Found) -> Answer:
    for report in found.reports:
        finish(report)
    failed = [report for report in found.reports if report.error is not None]
    headers = _error_headers(failed[0].error) if len(failed) == 1 and failed[0].error is not None else {}
    if len(failed) > 1:
        state_retries(failed)
    return Answer(HTTPStatus.PARTIAL_CONTENT, msgspec.json.encode([report.op for report in found.reports]), headers)


def state_retries(failed: Sequence[StepReport]) -> None:
    """State in each op when to retry it. A header would apply to all of them, so this is an addition to the protocol,
    as are calls in which several steps are executed."""
    for report in failed:
        if isinstance(report.error, RetryAfterError):
            report.op.opts = {**(report.op.opts or {}), RETRY_AFTER_OPT: retry_after_text(report.error)}
