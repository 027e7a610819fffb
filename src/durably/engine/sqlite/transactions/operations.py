"""The engine's operations as transactions."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence

import msgspec

from durably.engine.core.calls import Answer, ReportedOps, generation_of_checkpoint, shorten_op_error
from durably.engine.core.flow.admission import FINISHED_LATE, STARTED_LATE
from durably.engine.core.flow.config import Schedule, Tick, fire, plan_tick
from durably.engine.core.inputs import (
    Answered,
    AnsweredTogether,
    CancelRequested,
    Checkpointed,
    DelaysSkipped,
    Recovered,
    TimerFired,
    WaitResolved,
)
from durably.engine.core.machine import find_delays
from durably.engine.model.events import IdSeed, make_internal_event, tick_data
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.overview import SyncReport, SyncResult
from durably.engine.model.questions import signal_memo
from durably.engine.model.records import MAX_LOG_CHARACTERS, MAX_LOG_LINES, MAX_METADATA_BYTES
from durably.engine.model.runs import FromStep, InvokeReceipt, Progress, to_datetime, to_microseconds
from durably.engine.sqlite.after_commit import (
    BucketTimer,
    CronTimer,
    DeadlineTimer,
    ScheduledCall,
    StepTimer,
    StoredTimer,
    Synced,
    ThrottleTimer,
)
from durably.engine.sqlite.tables.flow import DeadlineKind
from durably.protocol.call import CheckpointRequest, LogLine
from durably.protocol.engine_errors import (
    ConfigInvalidError,
    RunNotFoundError,
)
from durably.protocol.events import Event, InternalEvent
from durably.protocol.opcodes import Opcode
from durably.protocol.sync import SyncRequest
from durably.protocol.text import get_logger

from . import event_routing, runs, triggers
from .bulk_operations import refuse_paused
from .transaction import Transaction

_LONGEST_ERROR = 2_000
_LOOKED_AT = 1_000
"""Number of delayed calls of which those of an app that is back are made at once. Others end their delay."""
_logger = get_logger("durably.engine")


def _find_run(transaction: Transaction, run_id: str) -> int:
    key = transaction.find_run_key(run_id)
    if key is None:
        raise RunNotFoundError(f"there is no run with the id {run_id!r}")
    return key


def answer(transaction: Transaction, answers: Sequence[tuple[ScheduledCall, Answer]], called_at: int | None) -> None:
    """Apply the answers of calls of one run that were made in one request at ``called_at``.

    Raises ``StaleCallError`` if all are stale.
    """
    run_key = answers[0][0].run_key
    step_ids: set[str] = set()
    for scheduled, answered in answers:
        if isinstance(answered, ReportedOps):
            step_ids.update([op.id for op in answered.ops if op.id])
            if not scheduled.call.is_discovery:
                step_ids.add(scheduled.call.step_id)
    memoised = transaction.memoised(run_key, step_ids) if step_ids else frozenset[str]()
    parts = [Answered(scheduled.call.generation, answered, memoised, called_at) for scheduled, answered in answers]
    runs.apply(transaction, run_key, parts[0] if len(parts) == 1 else AnsweredTogether(tuple(parts)))


def checkpoint(transaction: Transaction, run_id: str, request: CheckpointRequest) -> bool:
    """Store a checkpoint. Returns ``False`` if the run is damaged, and has failed.

    Raises ``StaleCallError``, ``CheckpointInvalidError``, ``TooLargeError``, ``RunNotFoundError``.
    """
    generation = generation_of_checkpoint(request)
    run_key = _find_run(transaction, run_id)
    memoised = transaction.memoised(run_key, {op.id for op in request.steps})
    steps = [shorten_op_error(op) for op in request.steps]
    return runs.apply(transaction, run_key, Checkpointed(generation, steps, memoised, request.request_started_at))


def fire_timer(transaction: Transaction, timer: StoredTimer) -> None:
    """Apply a due timer."""
    match timer:
        case StepTimer(run_key, step_id):
            runs.apply(transaction, run_key, TimerFired(step_id))
        case DeadlineTimer(run_key):
            deadline = transaction.flow.deadline(run_key)
            if deadline is not None and deadline[1] <= transaction.now:
                transaction.cancel(run_key, STARTED_LATE if deadline[0] is DeadlineKind.START else FINISHED_LATE)
        case BucketTimer(bucket_id):
            triggers.end_bucket(transaction, bucket_id)
        case CronTimer():
            _fire_tick(transaction, timer)
        case ThrottleTimer():
            transaction.queue.check_throttles()


def cancel(transaction: Transaction, run_id: str) -> bool:
    """Cancel a run. Returns ``False`` if it has ended.

    Raises ``RunNotFoundError``.
    """
    return runs.apply(transaction, _find_run(transaction, run_id), CancelRequested())


def skip_delays(transaction: Transaction, run_id: str, step_id: str | None) -> int:
    """Skip delays. Returns their number. Raises ``RunNotFoundError``."""
    run_key = _find_run(transaction, run_id)
    if not runs.apply(transaction, run_key, DelaysSkipped(step_id)):
        return 0
    sleeps, calls = find_delays(transaction.runs[run_key].before, step_id, transaction.now)
    return len(sleeps) + len(calls)


def reach(transaction: Transaction, function_ids: Collection[str]) -> None:
    """Make calls of functions now that did not reach their app, because it is back."""
    for run_key in transaction.store.delayed_runs(function_ids, _LOOKED_AT):
        runs.apply(transaction, run_key, DelaysSkipped(only_unreached=True))


def rerun(transaction: Transaction, run_id: str, from_step: FromStep | None) -> str:
    """Repeat a run. Returns the new run's id.

    Raises ``RunNotFoundError``, ``FunctionNotFoundError``, ``FunctionPausedError``, ``StepNotFoundError``.
    """
    run = transaction.store.run(_find_run(transaction, run_id))
    function = transaction.registry.get_active(run.function_id)
    refuse_paused(transaction, function)
    return triggers.start_rerun(transaction, function, run, from_step).id


def invoke(
    transaction: Transaction,
    function_id: str,
    event: Event,
    seed: IdSeed | None,
    sender: str | None,
    traceparent: str | None,
) -> InvokeReceipt:
    """Invoke a function, or find the run of an earlier invocation with the same id of the event, or the same seed.

    Raises ``FunctionNotFoundError``, ``FunctionPausedError``.
    """
    event_id = transaction.new_id() if seed is None else seed.id_of(0)
    if (event.id or seed is not None) and (
        known := transaction.store.find_invocation(function_id, event.id, event_id)
    ) is not None:
        return known
    function = transaction.registry.get_active(function_id)
    refuse_paused(transaction, function)
    origin, traceparent = event_routing.lineage(transaction, sender, traceparent)
    run = event_routing.invoke(transaction, function, event, event_id, {"fn_id": function_id}, origin, traceparent)
    return InvokeReceipt(event_id=event_id, run_id=None if run is None else run.id)


def signal(transaction: Transaction, name: str, data: bytes, only: str | None = None) -> str | None:
    """Send a signal with JSON ``data``. Returns the id of the run that waited for it.

    ``only``: the id of the run to which it is sent. Raises ``RunNotFoundError`` if there is none.
    """
    if only is not None:
        _find_run(transaction, only)
    for run_key, step_id in transaction.store.waits_for(Opcode.WAIT_FOR_SIGNAL, name):
        if only is not None and transaction.store.run(run_key).id != only:
            continue
        runs.apply(transaction, run_key, WaitResolved(step_id, signal_memo(name, data)))
        return transaction.store.run(run_key).id
    return None


def recover(transaction: Transaction, run_keys: Collection[int]) -> None:
    for run_key in run_keys:
        runs.apply(transaction, run_key, Recovered())


# annotations from SDKs, which are stored for display only: what is too large is dropped


MAX_TRACES_BYTES = 16 * 1024 * 1024
"""The limit of all spans. The oldest are deleted first."""
_TOO_MANY_LINES = f"further lines are not kept: a run may have {MAX_LOG_LINES} with {MAX_LOG_CHARACTERS} characters"


def add_metadata(transaction: Transaction, run_id: str, body: bytes) -> bool:
    """Add metadata. Returns ``False`` if the run already has too much.

    Raises ``RunNotFoundError``.
    """
    run_key, connection = _find_run(transaction, run_id), transaction.connection
    (size,) = connection.execute(
        "SELECT coalesce(sum(length(body)), 0) FROM run_metadata WHERE run_key = ?", (run_key,)
    ).fetchone()
    if size + len(body) > MAX_METADATA_BYTES:
        _logger.warning(
            "run %s: metadata of %d bytes is dropped: a run may have %d", run_id, len(body), MAX_METADATA_BYTES
        )
        return False
    connection.execute(
        "INSERT INTO run_metadata (run_key, received_at, body) VALUES (?, ?, ?)", (run_key, transaction.now, body)
    )
    return True


def add_run_logs(transaction: Transaction, run_id: str, lines: Sequence[LogLine]) -> bool:
    """Add lines. Returns ``False`` if the run has too many, and not all are kept.

    Raises ``RunNotFoundError``.
    """
    run_key, connection = _find_run(transaction, run_id), transaction.connection
    count, size, is_full = connection.execute(
        "SELECT count(*), coalesce(sum(length(message)), 0), coalesce(max(message = ? AND attempt IS NULL), 0) "
        "FROM run_logs WHERE run_key = ?",
        (_TOO_MANY_LINES, run_key),
    ).fetchone()
    if is_full:
        return False
    kept: list[LogLine] = []
    for line in lines:
        size += len(line.message)
        is_full = count + len(kept) >= MAX_LOG_LINES or size > MAX_LOG_CHARACTERS
        kept.append(LogLine(at=line.at, level="WARNING", message=_TOO_MANY_LINES) if is_full else line)
        if is_full:
            break
    connection.executemany(
        "INSERT INTO run_logs (run_key, at, level, message, step, attempt) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (run_key, to_microseconds(line.at), line.level, line.message, line.step, line.attempt)
            for line in sorted(kept, key=lambda line: line.at)
        ],
    )
    return not is_full


def report_progress(transaction: Transaction, run_id: str, progress: Progress) -> bool:
    """Store the progress of a run. Returns ``False`` if the run has ended.

    Raises ``RunNotFoundError``.
    """
    run_key, connection = _find_run(transaction, run_id), transaction.connection
    if connection.execute("SELECT ended_at FROM runs WHERE key = ?", (run_key,)).fetchone() != (None,):
        return False
    connection.execute(
        "INSERT OR REPLACE INTO run_progress (run_key, progress) VALUES (?, ?)",
        (run_key, msgspec.json.encode(progress)),
    )
    return True


def add_traces(transaction: Transaction, content_type: str, body: bytes) -> bool:
    """Add an export of spans. Returns ``False`` if it is too large."""
    if len(body) > MAX_TRACES_BYTES // 4:
        _logger.warning("spans of %d bytes are dropped: at most %d are kept", len(body), MAX_TRACES_BYTES // 4)
        return False
    connection = transaction.connection
    connection.execute(
        "INSERT INTO traces (received_at, content_type, body) VALUES (?, ?, ?)", (transaction.now, content_type, body)
    )
    connection.execute(
        "DELETE FROM traces WHERE key IN (SELECT key FROM ("
        "SELECT key, sum(length(body)) OVER (ORDER BY key DESC) AS size FROM traces) WHERE size > ?)",
        (MAX_TRACES_BYTES,),
    )
    return True


# apps


def read_functions(connection: sqlite3.Connection) -> list[tuple[str, str, bool, bytes, str | None]]:
    """Ids, apps, whether active, configurations, and apps' versions of all functions.

    They are in the order of apps and of functions within them.
    """
    return connection.execute(
        "SELECT functions.id, app_id, is_active, config, version FROM functions "
        "LEFT JOIN apps ON apps.id = app_id ORDER BY app_id, position"
    ).fetchall()


def sync(transaction: Transaction, request: SyncRequest, functions: Sequence[SyncedFunction]) -> SyncResult:
    """Replace the app's functions by those of the sync.

    ``functions`` are already checked. Raises ``ConfigInvalidError`` if another app has a function with the same id.
    """
    connection, app_id = transaction.connection, request.app_id
    after = {function.id: msgspec.json.encode(function.config) for function in functions}
    before: dict[str, bytes] = dict(
        connection.execute(
            "SELECT id, config FROM functions WHERE app_id = ? AND is_active ORDER BY position", (app_id,)
        ).fetchall()
    )
    row = connection.execute("SELECT version, url FROM apps WHERE id = ?", (app_id,)).fetchone()
    previous_version, previous_url = row or (None, None)
    result = SyncResult(
        app_id=app_id,
        modified=list(before.items()) != list(after.items()),
        added=tuple(each for each in after if each not in before),
        changed=tuple(each for each, config in after.items() if before.get(each, config) != config),
        removed=tuple(each for each in before if each not in after),
        version=request.app_version,
        previous_version=previous_version,
        previous_url=previous_url if previous_url != request.url else None,
    )
    if result.modified:
        _put_functions(transaction, app_id, after)
        for function in functions:
            _plan_schedules(transaction, function)
            transaction.queue.update_limits(function.flow)
    if result.modified or previous_version != request.app_version:
        transaction.after_commit.append(Synced(app_id, functions))
    connection.execute(
        "INSERT OR REPLACE INTO apps (id, url, sdk, framework, version, synced_at) VALUES (?, ?, ?, ?, ?, ?)",
        (app_id, request.url, request.sdk, request.framework, request.app_version, transaction.now),
    )
    changes = {"added": result.added, "changed": result.changed, "removed": result.removed}
    _put_sync(transaction, app_id, SyncReport(at=to_datetime(transaction.now), error=None, **changes))
    return result


def _put_functions(transaction: Transaction, app_id: str, configs: Mapping[str, bytes]) -> None:
    """Make these the app's active functions."""
    connection = transaction.connection
    for function_id in configs:
        other = connection.execute(
            "SELECT app_id FROM functions WHERE id = ? AND is_active AND app_id != ?", (function_id, app_id)
        ).fetchone()
        if other is not None:
            raise ConfigInvalidError(
                f"app {app_id!r}: the function id {function_id!r} is taken by a function of app {other[0]!r}: an id "
                "is the app's id, a hyphen and the function's own, so two apps may have the same id; rename the "
                "function"
            )
    connection.execute("UPDATE functions SET is_active = 0 WHERE app_id = ?", (app_id,))
    connection.executemany(
        "INSERT OR REPLACE INTO functions (id, app_id, position, is_active, config) VALUES (?, ?, ?, 1, ?)",
        [(function_id, app_id, position, config) for position, (function_id, config) in enumerate(configs.items())],
    )
    transaction.flow.drop_schedules_of_others(app_id)


def note_refused_sync(transaction: Transaction, app_id: str, error: str) -> None:
    """Store the reason why the sync of an app that has synced before was refused."""
    if transaction.connection.execute("SELECT 1 FROM apps WHERE id = ?", (app_id,)).fetchone():
        sync = SyncReport(at=to_datetime(transaction.now), error=error[:_LONGEST_ERROR])
        _put_sync(transaction, app_id, sync)


def _put_sync(transaction: Transaction, app_id: str, sync: SyncReport) -> None:
    transaction.connection.execute(
        "INSERT OR REPLACE INTO app_syncs (app_id, sync) VALUES (?, ?)", (app_id, msgspec.json.encode(sync))
    )


def _plan_schedules(transaction: Transaction, function: SyncedFunction) -> None:
    """After a sync: plan the next tick of new schedules, and drop removed schedules."""
    planned = transaction.flow.schedules(function.id)
    wanted = {schedule.text: schedule for schedule in function.flow.schedules}
    for text in planned.keys() - wanted.keys():
        transaction.flow.drop_schedule(function.id, text)
    for text in wanted.keys() - planned.keys():
        _plan(transaction, function, wanted[text], plan_tick(wanted[text], function.id, transaction.now))


def _fire_tick(transaction: Transaction, timer: CronTimer) -> None:
    """Fire a schedule, if the tick is still planned, and plan the next tick.

    A paused function does not start.
    """
    planned = transaction.flow.schedules(timer.function_id).get(timer.schedule)
    function = transaction.registry.functions.get(timer.function_id)
    if planned is None or planned.due > transaction.now or function is None:
        return
    schedule = next((one for one in function.flow.schedules if one.text == timer.schedule), None)
    if schedule is None or not function.is_active:
        return
    fired = fire(schedule, function.id, planned, transaction.now)
    _plan(transaction, function, schedule, fired.upcoming)
    controls = transaction.registry.controls.get(function.id)
    if controls is not None and controls.is_paused:
        return
    data = tick_data(schedule.text, fired.tick.at, fired.tick.due)
    event = make_internal_event(InternalEvent.SCHEDULED_TIMER, data, transaction.new_id(), fired.tick.due)
    event_routing.route_to(transaction, function, event)


def _plan(transaction: Transaction, function: SyncedFunction, schedule: Schedule, tick: Tick | None) -> None:
    if tick is None:
        transaction.flow.drop_schedule(function.id, schedule.text)
    else:
        transaction.flow.put_tick(function.id, schedule.text, tick)
        transaction.after_commit.append(CronTimer(function.id, schedule.text, tick.due))
