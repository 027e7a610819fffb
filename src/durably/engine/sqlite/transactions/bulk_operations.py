"""Bulk operations on a function's runs: pause, cancel, replay.

An operation on many runs takes a transaction for a few runs at a time, and continues after a restart. If the time range
of a bulk cancellation ends in the future, it also cancels runs that start until then. For an hour it also cancels runs
of the function that descend from a run that it cancelled, so a function that starts itself repeatedly cannot escape it.
"""

import sqlite3
from collections.abc import Collection
from enum import StrEnum
from typing import Any

import msgspec

from durably.engine.core.expressions import compile_expression
from durably.engine.core.run_state import RunStatus
from durably.engine.model.functions import (
    CANCELLED_IN_BULK,
    FOLLOWED_FOR,
    BulkCancellation,
    FunctionControls,
    SyncedFunction,
)
from durably.engine.model.runs import RunFilter, to_milliseconds, to_optional_milliseconds
from durably.engine.sqlite.after_commit import ContinueBulkOperation, ControlsChanged
from durably.engine.sqlite.queries.search import check_condition
from durably.protocol.engine_errors import CancellationNotFoundError, FunctionPausedError, SelectionInvalidError

from . import triggers
from .transaction import Transaction
from .triggers import descends_from_cancelled

_TOGETHER = 200
"""The number of runs per transaction. It is small, so that other transactions do not wait long."""
_ALL_RUNS = 2**62


class BulkOperationKind(StrEnum):
    CANCEL = "cancel"
    REPLAY = "replay"


class BulkOperationRow(msgspec.Struct, frozen=True):
    """A bulk cancellation or replay, and its progress.

    ``affected`` is the number of runs changed so far. For the other fields see ``schema``.
    """

    id: str
    kind: BulkOperationKind
    function_id: str
    started_after: int | None
    started_before: int
    expression: str | None
    statuses: tuple[RunStatus, ...] | None
    created_at: int
    until_key: int
    ended_at: int | None = None
    cursor: int = 0
    affected: int = 0


_COLUMNS = (
    "id, kind, function_id, started_after, started_before, expression, statuses, created_at, until_key, ended_at, "
    "cursor, affected"
)
_statuses = msgspec.json.Decoder(tuple[RunStatus, ...])


def read_bulk_operations(connection: sqlite3.Connection, kind: BulkOperationKind) -> list[BulkOperationRow]:
    """Operations of one kind, oldest first."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM bulk_operations WHERE kind = ? ORDER BY id", (kind,))
    return [_read_row(row) for row in rows]


def _find(connection: sqlite3.Connection, operation_id: str) -> BulkOperationRow | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM bulk_operations WHERE id = ?", (operation_id,)).fetchone()
    return _read_row(row) if row else None


def _read_row(row: Any) -> BulkOperationRow:
    operation_id, kind, function_id, after, before, expression, statuses, *others = row
    decoded = None if statuses is None else _statuses.decode(statuses)
    return BulkOperationRow(
        operation_id, BulkOperationKind(kind), function_id, after, before, expression, decoded, *others
    )


def open_bulk_operations(connection: sqlite3.Connection, function_id: str | None = None) -> list[str]:
    """The ids of unfinished operations, of one function or of all."""
    rows = connection.execute(
        "SELECT id FROM bulk_operations WHERE ended_at IS NULL AND function_id = coalesce(?, function_id) ORDER BY id",
        (function_id,),
    )
    return [operation_id for (operation_id,) in rows]


def _paused_functions(connection: sqlite3.Connection) -> set[str]:
    return {function_id for (function_id,) in connection.execute("SELECT function_id FROM pauses")}


def cancel_runs(transaction: Transaction, wanted: RunFilter) -> BulkOperationRow:
    """Begin to cancel runs. Raises ``FunctionNotFoundError`` and ``SelectionInvalidError``."""
    function_id = _find_function_id(transaction, wanted)
    if transaction.registry.functions.get(function_id) is None:
        raise transaction.registry.not_found(function_id)
    operation = _begin(transaction, BulkOperationKind.CANCEL, function_id, wanted, statuses=None, until_key=_ALL_RUNS)
    _publish_controls(transaction, function_id)
    return operation


def replay_runs(transaction: Transaction, wanted: RunFilter, statuses: Collection[RunStatus]) -> BulkOperationRow:
    """Begin to rerun finished runs.

    Raises ``FunctionNotFoundError``, ``FunctionPausedError`` and ``SelectionInvalidError``.
    """
    if not statuses or not all(status.has_ended for status in statuses):
        raise SelectionInvalidError("only runs that have ended can be replayed: give at least one such status")
    function_id = _find_function_id(transaction, wanted)
    refuse_paused(transaction, transaction.registry.get_active(function_id))
    (last_key,) = transaction.connection.execute("SELECT coalesce(max(key), 0) FROM runs").fetchone()
    return _begin(transaction, BulkOperationKind.REPLAY, function_id, wanted, tuple(statuses), until_key=last_key)


def _find_function_id(transaction: Transaction, wanted: RunFilter) -> str:
    """The id of the function, which may be the one within the app."""
    function_id = wanted.function_id or ""
    is_known = not wanted.app_id or function_id in transaction.registry.functions
    return function_id if is_known else f"{wanted.app_id}-{function_id}"


def delete_cancellation(transaction: Transaction, cancellation_id: str) -> None:
    """End a bulk cancellation. Its cancelled runs stay cancelled.

    Raises ``CancellationNotFoundError``.
    """
    operation = _find(transaction.connection, cancellation_id)
    if operation is None or operation.kind is not BulkOperationKind.CANCEL:
        raise CancellationNotFoundError(f"there is no bulk cancellation with the id {cancellation_id!r}")
    transaction.connection.execute("DELETE FROM bulk_operations WHERE id = ?", (operation.id,))
    _publish_controls(transaction, operation.function_id)


def pause(transaction: Transaction, function_id: str) -> None:
    """Pause a function. Raises ``FunctionNotFoundError``."""
    function_id = transaction.registry.get_active(function_id).id
    transaction.connection.execute(
        "INSERT OR IGNORE INTO pauses (function_id, paused_at) VALUES (?, ?)", (function_id, transaction.now)
    )
    _publish_controls(transaction, function_id)


def resume(transaction: Transaction, function_id: str) -> None:
    """Resume a function. Raises ``FunctionNotFoundError``."""
    function_id = transaction.registry.get_active(function_id).id
    transaction.connection.execute("DELETE FROM pauses WHERE function_id = ?", (function_id,))
    _publish_controls(transaction, function_id)
    # Continue replays that the pause has stopped.
    transaction.after_commit.extend(
        map(ContinueBulkOperation, open_bulk_operations(transaction.connection, function_id))
    )


def refuse_paused(transaction: Transaction, function: SyncedFunction) -> None:
    """Raises ``FunctionPausedError`` if the function is paused."""
    if function.id in _paused_functions(transaction.connection):
        raise FunctionPausedError(f"the function {function.id!r} is paused; resume it before you run anything")


def read_controls(connection: sqlite3.Connection, now: int) -> dict[str, FunctionControls]:
    """The controls of functions that have any, by function id."""
    cancellations: dict[str, list[BulkCancellation]] = {}
    for operation in read_bulk_operations(connection, BulkOperationKind.CANCEL):
        if max(operation.started_before, operation.created_at + FOLLOWED_FOR) > now:
            condition = compile_expression(operation.expression) if operation.expression else None
            cancellation = BulkCancellation(
                operation.started_after, operation.started_before, condition, operation.created_at
            )
            cancellations.setdefault(operation.function_id, []).append(cancellation)
    paused = _paused_functions(connection)
    return {
        function_id: FunctionControls(function_id in paused, tuple(cancellations.get(function_id, ())))
        for function_id in paused | cancellations.keys()
    }


def _publish_controls(transaction: Transaction, function_id: str) -> None:
    controls = read_controls(transaction.connection, transaction.now).get(function_id, FunctionControls())
    transaction.after_commit.append(ControlsChanged(function_id, controls))


def _begin(
    transaction: Transaction,
    kind: BulkOperationKind,
    function_id: str,
    wanted: RunFilter,
    statuses: tuple[RunStatus, ...] | None,
    until_key: int,
) -> BulkOperationRow:
    """Store an operation. ``started_before`` is by default now. Raises ``SelectionInvalidError``."""
    started_after, started_before = to_optional_milliseconds(wanted.started_after), transaction.now
    if wanted.started_before is not None:
        started_before = to_milliseconds(wanted.started_before)
    if started_after is not None and started_after >= started_before:
        raise SelectionInvalidError("started_after must be before started_before")
    if wanted.if_exp:
        check_condition(wanted.if_exp)
    operation = BulkOperationRow(
        id=transaction.new_id(),
        kind=kind,
        function_id=function_id,
        started_after=started_after,
        started_before=started_before,
        expression=wanted.if_exp or None,
        statuses=statuses,
        created_at=transaction.now,
        until_key=until_key,
    )
    values = {field: getattr(operation, field) for field in operation.__struct_fields__}
    if statuses is not None:
        values["statuses"] = msgspec.json.encode(statuses).decode()
    transaction.connection.execute(
        f"INSERT INTO bulk_operations ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", tuple(values.values())
    )
    transaction.after_commit.append(ContinueBulkOperation(operation.id))
    return operation


def continue_operation(transaction: Transaction, operation_id: str) -> None:
    """Process the next runs of a bulk operation."""
    connection = transaction.connection
    operation = _find(connection, operation_id)
    if operation is None or operation.ended_at is not None:
        return
    is_replay = operation.kind is BulkOperationKind.REPLAY
    if is_replay and operation.function_id in _paused_functions(connection):
        return
    runs = connection.execute(
        "SELECT key, status, created_at FROM runs WHERE function_id = ? AND key > ? AND key <= ? ORDER BY key LIMIT ?",
        (operation.function_id, operation.cursor, operation.until_key, _TOGETHER),
    ).fetchall()
    affected = operation.affected
    for run_key, status, created_at in runs:
        if not _is_meant(transaction, operation, run_key, RunStatus(status), created_at):
            continue
        if not is_replay:
            transaction.cancel(run_key, CANCELLED_IN_BULK)
            affected += 1
        elif (function := transaction.registry.find_active(operation.function_id)) is not None:
            triggers.start_rerun(transaction, function, transaction.store.run(run_key))
            affected += 1
    cursor = runs[-1][0] if runs else operation.cursor
    ended_at = transaction.now if len(runs) < _TOGETHER else None
    connection.execute(
        "UPDATE bulk_operations SET cursor = ?, affected = ?, ended_at = ? WHERE id = ?",
        (cursor, affected, ended_at, operation.id),
    )
    if ended_at is None:
        transaction.after_commit.append(ContinueBulkOperation(operation.id))


def _is_meant(
    transaction: Transaction, operation: BulkOperationRow, run_key: int, status: RunStatus, created_at: int
) -> bool:
    """Whether an operation applies to a run.

    A cancellation also applies to descendants of cancelled runs. Runs are processed in the order of creation, so a run
    follows its ancestors.
    """
    in_time = (
        operation.started_after is None or operation.started_after <= created_at
    ) and created_at < operation.started_before
    if operation.statuses is None:
        if status.has_ended:
            return False
    elif not in_time or status not in operation.statuses:
        return False
    event = transaction.event(transaction.store.run(run_key).event_key)
    if not in_time and not descends_from_cancelled(
        transaction, operation.function_id, event.origin, operation.created_at
    ):
        return False
    return operation.expression is None or compile_expression(operation.expression).matches(
        event.fields, now=transaction.now
    )
