"""Questions in the database: lists of open ones, and the delivery of messages."""

import sqlite3
from typing import Any

import msgspec

from durably.engine.core.inputs import WaitResolved
from durably.engine.model.questions import (
    Asked,
    AskState,
    OpenQuestion,
    check_question,
    find_outcome,
    message_memo,
)
from durably.engine.model.runs import RunStatus, to_datetime, to_optional_datetime
from durably.protocol.engine_errors import RunNotFoundError
from durably.protocol.opcodes import Opcode
from durably.protocol.questions import Ask, QuestionInfo, reply_key, signal_of

from .transactions import runs
from .transactions.transaction import Transaction

_COLUMNS = "runs.id, function_id, app_id, waits.step_id, waits.created_at, due, question"
_decode_info = msgspec.json.Decoder(QuestionInfo).decode


def look_up(
    connection: sqlite3.Connection, run_id: str, name: str, ask: Ask, step_id: str | None
) -> tuple[Asked, OpenQuestion | None]:
    """What became of a message so far, and the question that it can answer now. See ``deliver``."""
    row = connection.execute("SELECT key, status FROM runs WHERE id = ?", (run_id,)).fetchone()
    if row is None:
        raise RunNotFoundError(f"there is no run with the id {run_id!r}")
    run_key, status = row[0], RunStatus(row[1])

    def find_memo(ask_id: str) -> bytes | None:
        query = "SELECT memo FROM memos WHERE run_key = ? AND step_id = ?"
        found = connection.execute(query, (run_key, reply_key(name, ask_id))).fetchone()
        return found[0] if found else None

    memos = connection.execute(
        "SELECT memo FROM memos WHERE run_key = ? AND op = ? AND topic = ?",
        (run_key, Opcode.WAIT_FOR_SIGNAL, signal_of(run_id, name)),
    )
    outcome = find_outcome(name, ask, (memo for (memo,) in memos), find_memo)
    if outcome is not None:
        return msgspec.structs.replace(outcome, status=status), None
    question = _find_open(connection, run_id, name)
    check_question(question, run_id, name, ask, step_id)
    return Asked(state=AskState.WAITING, status=status), question


def deliver(transaction: Transaction, run_id: str, name: str, ask: Ask, step_id: str | None) -> Asked:
    """Deliver a message to the step of a run that waits for it, if there is one.

    With ``step_id`` only that step may receive it. Raises ``AnswerRefusedError``, ``QuestionClosedError``,
    ``RunNotFoundError``.
    """
    asked, question = look_up(transaction.connection, run_id, name, ask, step_id)
    run_key = transaction.find_run_key(run_id)
    if question is None or run_key is None:
        return asked
    runs.apply(transaction, run_key, WaitResolved(question.step_id, message_memo(question, ask)))
    return Asked(state=AskState.DELIVERED)


def _find_open(connection: sqlite3.Connection, run_id: str, name: str) -> OpenQuestion | None:
    """The question that a message of this name answers."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM waits JOIN runs ON runs.key = run_key "
        "WHERE op = ? AND topic = ? AND question IS NOT NULL",
        (Opcode.WAIT_FOR_SIGNAL, signal_of(run_id, name)),
    ).fetchone()
    return _to_question(*row) if row else None


def list_questions(
    connection: sqlite3.Connection, run_id: str | None, function_id: str | None, limit: int, cursor: str | None
) -> list[OpenQuestion]:
    """Open questions, those of the newest runs first. ``cursor`` is the id of a run and the hashed id of a step."""
    conditions, values = ["waits.question IS NOT NULL"], list[Any]()
    for condition, value in (("runs.id = ?", run_id), ("runs.function_id = ?", function_id)):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if cursor is not None:
        before, _, step_id = cursor.partition(".")
        row = connection.execute("SELECT key FROM runs WHERE id = ?", (before,)).fetchone()
        if row is None:
            return []
        conditions.append("(waits.run_key, waits.step_id) < (?, ?)")
        values += [row[0], step_id]
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM waits JOIN runs ON runs.key = waits.run_key WHERE {' AND '.join(conditions)} "
        "ORDER BY waits.run_key DESC, waits.step_id DESC LIMIT ?",
        (*values, limit),
    )
    return [_to_question(*row) for row in rows]


def _to_question(
    run_id: str, function_id: str, app_id: str, step_id: str, asked_at: int, due: int | None, question: bytes
) -> OpenQuestion:
    info = _decode_info(question)
    return OpenQuestion(
        run_id=run_id,
        function_id=function_id,
        app_id=app_id,
        name=info.name,
        step_id=step_id,
        asked_at=to_datetime(asked_at),
        due_at=to_optional_datetime(due),
        prompt=info.prompt,
        schema=info.schema,
        refused=info.refused,
    )
