"""Which declared schedules a web app's users may reach, and how: closed by default."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from durably.temporal.declarations import ScheduleDeclaration
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.schedules import declared_schedules

from .exposure import (
    FOR_SCHEDULE_OPERATORS,
    FOR_SCHEDULE_READERS,
    Exposure,
    Operation,
    check_operations,
    check_place,
)
from .inputs import check_id
from .problems import Problem, logger

if TYPE_CHECKING:
    from durably.temporal.connection import Temporal


@dataclass(frozen=True, kw_only=True)
class ScheduleExposure:
    """Schedules that are open; made by ``expose_schedules``. ``name`` is their place in URLs.

    ``ids`` are the open ones, ``None`` for all that are declared. ``app`` is that of ``sync-schedules --app``.
    """

    name: str
    ids: frozenset[str] | None
    operations: frozenset[Operation]
    app: str | None

    def declared(self, temporal: "Temporal") -> Mapping[str, ScheduleDeclaration]:
        """The open schedules by id, in the order of their declaration, without those that have a fault.

        Logs an error for each fault, once in a process. Raises ``TemporalSettingsError`` for an id declared twice.
        """
        declared = declared_schedules(temporal)
        opened = dict.fromkeys(declared if self.ids is None else [id for id in declared if id in self.ids])
        faults = {id: self._fault(id, declared) for id in [*opened, *sorted((self.ids or frozenset()) - opened.keys())]}
        for fault in filter(None, faults.values()):
            _log_fault(fault)
        return {id: declared[id] for id in opened if faults[id] is None}

    def check(self, temporal: "Temporal", id: str) -> None:
        """Raises ``TemporalSettingsError`` for a schedule that is open and has a fault."""
        declared = declared_schedules(temporal)
        is_open = id in declared if self.ids is None else id in self.ids
        if is_open and (fault := self._fault(id, declared)) is not None:
            raise TemporalSettingsError(fault)

    def _fault(self, id: str, declared: Mapping[str, ScheduleDeclaration]) -> str | None:
        if id in declared:
            return _url_fault(id)
        return (
            f'expose_schedules() names the schedule "{id}", which this process does not declare: import the module '
            "that calls add_schedule(), or remove the id"
        )


@functools.cache
def _log_fault(fault: str) -> None:
    logger.error("%s", fault)


Place = Exposure | ScheduleExposure
"""What a gateway has at the first segment of its paths."""


def expose_schedules(
    *ids: str,
    name: str = "schedules",
    operations: Iterable[Operation | str] = FOR_SCHEDULE_READERS,
    app: str | None = None,
) -> ScheduleExposure:
    """Open schedules that ``Temporal.add_schedule`` declares: those with these ids, all of them without ids.

    Give it to ``Gateway(schedules=…)``. ``name`` is their place in URLs. ``operations`` are those of
    ``FOR_SCHEDULE_READERS`` (list and describe, the default), ``FOR_SCHEDULE_OPERATORS`` (also pause, resume, trigger
    and backfill), or any set. ``app`` is the ``--app`` of ``sync-schedules``, if that is given there: schedules of
    other apps are not reached. Schedules have no owners: ``authorize`` alone decides who may do what.

    Raises ``TemporalSettingsError``.
    """
    for id in ids:
        if not isinstance(id, str):
            raise TemporalSettingsError(f'expose_schedules("nightly", "hourly") takes ids one by one, and not {id!r}')
        if (fault := _url_fault(id)) is not None:
            raise TemporalSettingsError(fault)
    return ScheduleExposure(
        name=check_place(name),
        ids=frozenset(ids) or None,
        operations=check_operations(operations, FOR_SCHEDULE_OPERATORS, "expose_schedules()"),
        app=app,
    )


def _url_fault(id: str) -> str | None:
    """Why a schedule cannot be reached over HTTP; ``None`` if it can."""
    try:
        check_id(id, "the id")
    except Problem as problem:
        return (
            f'the schedule "{id}" cannot be reached over HTTP: {problem.detail}. Rename it, or give '
            "expose_schedules() the ids of the others"
        )
    return None
