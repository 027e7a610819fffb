"""Bulk operations on a function's runs: pause, cancel, replay.

An operation on many runs takes a transaction for a few runs at a time, and continues after a restart. If the time range
of a bulk cancellation ends in the future, it also cancels runs that start until then. For an hour it also cancels runs
of the function that descend from a run that it cancelled, so a function that starts itself repeatedly cannot escape it.
"""

from collections.abc import Callable, Collection

from durably.engine.core.expressions import Expression, ExpressionInvalidError, Kind, compile_expression
from durably.engine.core.run_state import RunStatus
from durably.engine.model.registry import (
    CANCELLED_IN_BULK,
    FOLLOWED_FOR,
    BulkCancellation,
    FunctionControls,
    SyncedFunction,
)
from durably.engine.model.runs import Selection, to_milliseconds
from durably.engine.sqlite.outbox import ContinueBulkOperation, ControlsChanged
from durably.engine.sqlite.tables.apps import BulkOperation, BulkOperationKind
from durably.engine.sqlite.tables.runs import RunStore
from durably.protocol.engine_errors import CancellationNotFoundError, FunctionPausedError, SelectionInvalidError

from . import triggers
from .reruns import descends_from_cancelled, plan_rerun
from .transaction import Transaction

_TOGETHER = 200
"""The number of runs per transaction. It is small, so that other transactions do not wait long."""
_ALL_RUNS = 2**62


def check_selection(selection: Selection) -> None:
    """Check a selection. Raises ``SelectionInvalidError``."""
    if selection.started_after is not None and selection.started_after >= selection.started_before:
        raise SelectionInvalidError("started_after must be before started_before")
    if selection.expression:
        check_condition(selection.expression)


def check_condition(text: str, *, has_output: bool = False) -> Expression:
    """A condition over ``event`` and, if it ``has_output``, ``output``.

    Raises ``SelectionInvalidError``.
    """
    try:
        expression = compile_expression(text, has_async=False, has_output=has_output)
    except ExpressionInvalidError as error:
        raise SelectionInvalidError(f"the expression is not valid: {error}") from error
    if expression.missing_field:
        raise SelectionInvalidError(f"the expression `{text}` {expression.missing_field}")
    if Kind.BOOL not in expression.kinds:
        raise SelectionInvalidError(f"the expression `{text}` can never give {Kind.BOOL}, as it must")
    return expression


def check_statuses(statuses: Collection[RunStatus]) -> None:
    """Check the statuses of a replay. Raises ``SelectionInvalidError``."""
    if not statuses or not all(status.has_ended for status in statuses):
        raise SelectionInvalidError("only runs that have ended can be replayed: give at least one such status")


def cancel_runs(transaction: Transaction, selection: Selection) -> BulkOperation:
    """Begin to cancel runs. Raises ``FunctionNotFoundError``."""
    if transaction.registry.functions.get(selection.function_id) is None:
        raise transaction.registry.not_found(selection.function_id)
    operation = _begin(transaction, BulkOperationKind.CANCEL, selection, statuses=None, until_key=_ALL_RUNS)
    _publish_controls(transaction, selection.function_id)
    return operation


def replay_runs(transaction: Transaction, selection: Selection, statuses: Collection[RunStatus]) -> BulkOperation:
    """Begin to rerun finished runs.

    Raises ``FunctionNotFoundError`` and ``FunctionPausedError``.
    """
    refuse_paused(transaction, transaction.registry.get_active(selection.function_id))
    last_key = transaction.store.apps.last_run_key()
    return _begin(transaction, BulkOperationKind.REPLAY, selection, tuple(statuses), until_key=last_key)


def delete_cancellation(transaction: Transaction, cancellation_id: str) -> None:
    """End a bulk cancellation. Its cancelled runs stay cancelled.

    Raises ``CancellationNotFoundError``.
    """
    operation = transaction.store.apps.find(cancellation_id)
    if operation is None or operation.kind is not BulkOperationKind.CANCEL:
        raise CancellationNotFoundError(f"there is no bulk cancellation with the id {cancellation_id!r}")
    transaction.store.apps.delete(operation.id)
    _publish_controls(transaction, operation.function_id)


def pause(transaction: Transaction, function_id: str) -> None:
    transaction.store.apps.set_paused(function_id, transaction.now)
    _publish_controls(transaction, function_id)


def resume(transaction: Transaction, function_id: str) -> None:
    transaction.store.apps.set_resumed(function_id)
    _publish_controls(transaction, function_id)
    # Continue replays that the pause has stopped.
    transaction.outbox.extend(map(ContinueBulkOperation, transaction.store.apps.open_bulk_operations(function_id)))


def refuse_paused(transaction: Transaction, function: SyncedFunction) -> None:
    """Raises ``FunctionPausedError`` if the function is paused."""
    if function.id in transaction.store.apps.paused_functions():
        raise FunctionPausedError(f"the function {function.id!r} is paused; resume it before you rerun anything")


def continue_operation(operation_id: str) -> Callable[[Transaction], None]:
    """Process the next runs of a bulk operation."""
    return lambda transaction: _continue_operation(transaction, operation_id)


def read_controls(store: RunStore, now: int) -> dict[str, FunctionControls]:
    """The controls of functions that have any, by function id."""
    cancellations: dict[str, list[BulkCancellation]] = {}
    for operation in store.apps.of_kind(BulkOperationKind.CANCEL):
        if max(operation.started_before, operation.created_at + FOLLOWED_FOR) > now:
            condition = compile_expression(operation.expression) if operation.expression else None
            cancellation = BulkCancellation(
                operation.started_after, operation.started_before, condition, operation.created_at
            )
            cancellations.setdefault(operation.function_id, []).append(cancellation)
    paused = store.apps.paused_functions()
    return {
        function_id: FunctionControls(function_id in paused, tuple(cancellations.get(function_id, ())))
        for function_id in paused | cancellations.keys()
    }


def _publish_controls(transaction: Transaction, function_id: str) -> None:
    controls = read_controls(transaction.store, transaction.now).get(function_id, FunctionControls())
    transaction.outbox.append(ControlsChanged(function_id, controls))


def _begin(
    transaction: Transaction,
    kind: BulkOperationKind,
    selection: Selection,
    statuses: tuple[RunStatus, ...] | None,
    until_key: int,
) -> BulkOperation:
    operation = BulkOperation(
        id=transaction.new_id(),
        kind=kind,
        function_id=selection.function_id,
        started_after=None if selection.started_after is None else to_milliseconds(selection.started_after),
        started_before=to_milliseconds(selection.started_before),
        expression=selection.expression or None,
        statuses=statuses,
        created_at=transaction.now,
        until_key=until_key,
    )
    transaction.store.apps.add(operation)
    transaction.outbox.append(ContinueBulkOperation(operation.id))
    return operation


def _continue_operation(transaction: Transaction, operation_id: str) -> None:
    bulk_operations = transaction.store.apps
    operation = bulk_operations.find(operation_id)
    if operation is None or operation.ended_at is not None:
        return
    act = _ACTS[operation.kind]
    if operation.kind is BulkOperationKind.REPLAY and operation.function_id in bulk_operations.paused_functions():
        return
    runs = bulk_operations.runs_between(operation.function_id, operation.cursor, operation.until_key, _TOGETHER)
    affected = sum(
        act(transaction, run_key)
        for run_key, status, created_at in runs
        if _is_meant(transaction, operation, run_key, status, created_at) and _holds(transaction, operation, run_key)
    )
    if runs:
        bulk_operations.note_progress(operation.id, cursor=runs[-1][0], affected=operation.affected + affected)
    if len(runs) < _TOGETHER:
        bulk_operations.end(operation.id, transaction.now)
    else:
        transaction.outbox.append(ContinueBulkOperation(operation.id))


def _is_meant(
    transaction: Transaction, operation: BulkOperation, run_key: int, status: RunStatus, created_at: int
) -> bool:
    in_time = (
        operation.started_after is None or operation.started_after <= created_at
    ) and created_at < operation.started_before
    if operation.statuses is not None:
        return in_time and status in operation.statuses
    return not status.has_ended and (in_time or _follows(transaction, operation, run_key))


def _follows(transaction: Transaction, operation: BulkOperation, run_key: int) -> bool:
    """Whether a run descends from a cancelled run.

    Runs are processed in the order of creation, so a run follows its ancestors.
    """
    origin = transaction.event(transaction.store.run(run_key).event_key).origin
    return descends_from_cancelled(transaction, operation.function_id, origin, operation.created_at)


def _holds(transaction: Transaction, operation: BulkOperation, run_key: int) -> bool:
    if operation.expression is None:
        return True
    event = transaction.event(transaction.store.run(run_key).event_key).fields
    return compile_expression(operation.expression).matches(event, now=transaction.now)


def _cancel(transaction: Transaction, run_key: int) -> bool:
    transaction.cancel(run_key, CANCELLED_IN_BULK)
    return True


def _replay(transaction: Transaction, run_key: int) -> bool:
    run = transaction.store.run(run_key)
    function = transaction.registry.find_active(run.function_id)
    if function is None:
        return False
    triggers.start_rerun(transaction, function, plan_rerun(transaction.store, run, None))
    return True


_ACTS: dict[BulkOperationKind, Callable[[Transaction, int], bool]] = {
    BulkOperationKind.CANCEL: _cancel,
    BulkOperationKind.REPLAY: _replay,
}
