"""Schedules: declared in code, and written to the server.

A written schedule has the name of its app, so that a schedule without a declaration can be found. Its workflows have a
fingerprint of the declaration, so that only changes are written. A paused schedule stays paused.
"""

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleDescription,
    ScheduleHandle,
    ScheduleListDescription,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.client.connection import Temporal
from durably.temporal.declarations import ScheduleDeclaration
from durably.temporal.errors import TemporalSettingsError

_OWNER = "durably-app"
_FINGERPRINT = "durably-schedule"


class SyncOutcome(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    UNDECLARED = "no longer declared"
    DELETED = "deleted"


def spec_in_words(spec: ScheduleSpec) -> str:
    """The times of a schedule, on one line: ``cron 0 3 * * *, in Europe/Berlin``."""
    words = [f"cron {expression}" for expression in spec.cron_expressions]
    for interval in spec.intervals:
        offset = f", offset by {_duration(interval.offset)}" if interval.offset else ""
        words.append(f"every {_duration(interval.every)}{offset}")
    words += [f"calendar {calendar.comment or 'without a comment'}" for calendar in spec.calendars]
    limits = [f"except {len(spec.skip)} calendars"] if spec.skip else []
    limits += [f"from {spec.start_at.isoformat()}"] if spec.start_at else []
    limits += [f"until {spec.end_at.isoformat()}"] if spec.end_at else []
    limits += [f"up to {_duration(spec.jitter)} later"] if spec.jitter else []
    limits += [f"in {spec.time_zone_name}"] if spec.time_zone_name else []
    return ", ".join([" and ".join(words) or "never", *limits])


def check_spec(declaration: ScheduleDeclaration) -> None:
    """Check a declaration without the server.

    The server accepts more forms of cron expressions. Raises ``TemporalSettingsError`` for an unknown time zone, if
    this machine has a time zone database, and for an invalid expression of five fields, if cronsim is installed.
    """
    zone = declaration.spec.time_zone_name
    if zone and not _is_zone(zone):
        raise TemporalSettingsError(f'the schedule "{declaration.id}" has an unknown time zone: {zone!r}')
    for expression in declaration.spec.cron_expressions:
        if (error := _cron_error(expression)) is not None:
            raise TemporalSettingsError(
                f'the schedule "{declaration.id}" has an invalid cron expression: {expression!r} ({error})'
            )


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return not available_timezones()
    return True


def _cron_error(expression: str) -> str | None:
    fields = expression.split("#")[0].split()
    if not fields or fields[0].startswith(("@", "CRON_TZ=", "TZ=")) or len(fields) in (6, 7):
        return None
    if len(fields) != 5:
        return "it needs five to seven fields"
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        return None
    try:
        CronSim(" ".join(fields), datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        return str(error)
    return None


def _duration(span: timedelta) -> str:
    """``1 h 30 min``."""
    minutes, seconds = divmod(span.total_seconds(), 60)
    hours, minutes = divmod(int(minutes), 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{number:g} {unit}" for number, unit in parts if number) or "0 s"


async def sync_schedules(
    temporal: Temporal, *, app: str | None = None, prune: bool = False, dry_run: bool = False
) -> AsyncIterator[tuple[str, SyncOutcome]]:
    """Create and update the server's schedules as they are declared.

    Yields the id and outcome of each. With ``prune``, deletes schedules of the same ``app`` without a declaration. With
    ``dry_run``, changes nothing. ``app`` distinguishes the apps of a namespace; the default is the connection's task
    queue. Raises ``TemporalSettingsError``, ``TemporalUnreachableError``, ``RPCError``.
    """
    app = app or default_app(temporal)
    declared = declared_schedules(temporal)
    client = await temporal.client()
    for declaration in declared.values():
        yield declaration.id, await _sync(temporal, client, declaration, app, dry_run)
    async for listed in await client.list_schedules():
        if listed.id in declared or await schedule_owner(listed) != app:
            continue
        if prune and not dry_run:
            await client.get_schedule_handle(listed.id).delete()
        yield listed.id, SyncOutcome.DELETED if prune else SyncOutcome.UNDECLARED


async def schedule_owner(schedule: ScheduleDescription | ScheduleListDescription) -> str | None:
    """The app that declared a schedule.

    Returns ``None`` if its name cannot be read, because another data converter has written it.
    """
    try:
        return str(await schedule.memo_value(_OWNER, None) or "") or None
    except Exception:
        return None


def default_app(temporal: Temporal) -> str:
    """The default ``app`` of ``sync_schedules``."""
    return temporal.settings.task_queue or "default"


def declared_schedules(temporal: Temporal) -> dict[str, ScheduleDeclaration]:
    """The schedules by id. Raises ``TemporalSettingsError`` for a duplicate id."""
    by_id: dict[str, ScheduleDeclaration] = {}
    for declaration in temporal.schedules:
        if declaration.id in by_id:
            raise TemporalSettingsError(f'the schedule "{declaration.id}" is declared twice')
        by_id[declaration.id] = declaration
    return by_id


async def _sync(
    temporal: Temporal, client: Client, declaration: ScheduleDeclaration, app: str, dry_run: bool
) -> SyncOutcome:
    fingerprint = _fingerprint(temporal, declaration)
    schedule = _schedule(temporal, declaration, fingerprint)
    handle = client.get_schedule_handle(declaration.id)
    try:
        described = await handle.describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        if dry_run:
            check_spec(declaration)
        else:
            with _refusals(declaration.id):
                await _create(client, declaration.id, schedule, app)
        return SyncOutcome.CREATED
    owner = await schedule_owner(described)
    if owner != app:
        raise TemporalSettingsError(
            f'the schedule "{declaration.id}" already exists, and is not declared by {app}'
            + (f" but by {owner}" if owner else "")
            + ": give this one another id, or delete that one"
        )
    if await _known_fingerprint(client, described) == fingerprint:
        return SyncOutcome.UNCHANGED
    if dry_run:
        check_spec(declaration)
    else:
        with _refusals(declaration.id):
            await _update(handle, schedule)
    return SyncOutcome.UPDATED


async def is_synced(
    temporal: Temporal, client: Client, declaration: ScheduleDeclaration, described: ScheduleDescription
) -> bool:
    """Whether the server's schedule is as it is declared.

    Raises ``TemporalSettingsError`` without a task queue.
    """
    return bool(await _known_fingerprint(client, described) == _fingerprint(temporal, declaration))


@contextmanager
def _refusals(id: str) -> Iterator[None]:
    """Names the schedule if the server refuses its declaration.

    The server may refuse a cron expression, for example.
    """
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.INVALID_ARGUMENT:
            raise
        raise TemporalSettingsError(f'the server refuses the schedule "{id}": {error.message}') from error


async def _create(client: Client, id: str, schedule: Schedule, app: str) -> None:
    try:
        await client.create_schedule(id, schedule, memo={_OWNER: app})
    except ScheduleAlreadyRunningError:
        raise TemporalSettingsError(
            f'the schedule "{id}" was created by another process at the same time: sync again'
        ) from None


async def _update(handle: ScheduleHandle, schedule: Schedule) -> None:
    def update(now: ScheduleUpdateInput) -> ScheduleUpdate:
        schedule.state = now.description.schedule.state
        return ScheduleUpdate(schedule)

    await handle.update(update)


def _queue(temporal: Temporal, declaration: ScheduleDeclaration) -> str:
    queue = declaration.task_queue or temporal.settings.task_queue
    if not queue:
        raise TemporalSettingsError(
            f'the schedule "{declaration.id}" has no task queue: give task_queue=, here or to '
            f"Temporal(), or set {temporal.variable_prefix}TASK_QUEUE"
        )
    return queue


def _schedule(temporal: Temporal, declaration: ScheduleDeclaration, fingerprint: str) -> Schedule:
    queue = _queue(temporal, declaration)
    options = dict(declaration.options)
    options["memo"] = {**options.get("memo", {}), _FINGERPRINT: fingerprint}
    workflow: Any = declaration.workflow
    return Schedule(
        action=ScheduleActionStartWorkflow(
            workflow, args=declaration.args, id=declaration.workflow_id, task_queue=queue, **options
        ),
        spec=declaration.spec,
        policy=declaration.policy,
    )


def _fingerprint(temporal: Temporal, declaration: ScheduleDeclaration) -> str:
    """A hash of the declaration.

    Arguments are hashed before encryption, which differs each time.
    """
    arguments = [each.data for each in temporal.data_converter.payload_converter.to_payloads(declaration.args)]
    name = declaration.workflow if isinstance(declaration.workflow, str) else declaration.workflow.__qualname__
    queue = _queue(temporal, declaration)
    parts = (name, arguments, declaration.spec, declaration.policy, declaration.workflow_id, queue, declaration.options)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


async def _known_fingerprint(client: Client, described: ScheduleDescription) -> Any:
    action = described.schedule.action
    memo: Mapping[str, Any] = (action.memo or {}) if isinstance(action, ScheduleActionStartWorkflow) else {}
    if _FINGERPRINT not in memo:
        return None
    [fingerprint] = await client.data_converter.decode([memo[_FINGERPRINT]])
    return fingerprint
