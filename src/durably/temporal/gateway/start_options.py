"""The options of ``expose`` for starts: memos, delays, and what happens if the id is in use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio.common import TypedSearchAttributes, WorkflowIDConflictPolicy

from durably.temporal.call_options import check_memo
from durably.temporal.errors import TemporalSettingsError

from .inputs import input_function

MARK = "durably-idempotency"
"""The memo's field that says which request started a workflow."""


@dataclass(frozen=True)
class StartOptions:
    """What the app's functions make of one request that starts a workflow."""

    memo: Mapping[str, Any] = field(default_factory=dict)
    search_attributes: TypedSearchAttributes | None = None
    start_delay: timedelta | None = None


def memo_function(memo: Callable[..., Mapping[str, Any]], title: str) -> Callable[[Any, Any], Mapping[str, Any]]:
    """``memo=`` of ``expose``; ``title`` is the workflow's. Both raise ``TemporalSettingsError``."""
    called = input_function(memo, "memo=")
    return lambda value, principal: check_memo(called(value, principal), f"expose({title})")


def delay_function(delay: timedelta | Callable[..., timedelta]) -> Callable[[Any, Any], timedelta]:
    """``start_delay=`` as a function of the input and the principal. Raises ``TemporalSettingsError``."""
    if isinstance(delay, timedelta):
        fixed = _check_delay(delay, "start_delay= of expose()")
        return lambda value, principal: fixed
    if not callable(delay):
        raise TemporalSettingsError(f"start_delay= of expose() is {delay!r}: give a timedelta, or a function")
    called = input_function(delay, "start_delay=")
    return lambda value, principal: _check_delay(called(value, principal), "what expose(start_delay=…) returned")


def _check_delay(delay: Any, what: str) -> timedelta:
    if not isinstance(delay, timedelta):
        raise TemporalSettingsError(f"{what} is of the type {type(delay).__name__}: it must be a timedelta")
    if delay < timedelta():
        raise TemporalSettingsError(f"{what} is negative: {delay}")
    return delay


def check_attach(attach: bool, id: Any, policy: WorkflowIDConflictPolicy, title: str) -> bool:
    """Whether starts attach to a workflow that runs. Raises ``TemporalSettingsError``."""
    uses_existing = policy is WorkflowIDConflictPolicy.USE_EXISTING
    if attach and id is None:
        raise TemporalSettingsError(
            f"{title} has attach= without id=: the ids of its workflows are made up, so that none is in use already"
        )
    if attach and not uses_existing and policy is not WorkflowIDConflictPolicy.FAIL:
        raise TemporalSettingsError(
            f"{title} has attach= and id_conflict_policy={policy.name}, which exclude each other"
        )
    return attach or uses_existing
