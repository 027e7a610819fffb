"""Which declared schedules a web app's users may reach, and how: closed by default."""

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
from .problems import Problem

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
        """The open schedules by id, in the order of their declaration. Raises ``TemporalSettingsError``."""
        declared = declared_schedules(temporal)
        if missing := sorted((self.ids or frozenset()) - declared.keys()):
            raise TemporalSettingsError(
                f'expose_schedules() names the schedule "{missing[0]}", which this process does not declare: import '
                "the module that calls add_schedule(), or remove the id"
            )
        opened = {id: each for id, each in declared.items() if self.ids is None or id in self.ids}
        for id in opened:
            _check_fits_in_url(id)
        return opened


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
        _check_fits_in_url(id)
    return ScheduleExposure(
        name=check_place(name),
        ids=frozenset(ids) or None,
        operations=check_operations(operations, FOR_SCHEDULE_OPERATORS, "expose_schedules()"),
        app=app,
    )


def _check_fits_in_url(id: str) -> None:
    try:
        check_id(id, "the id")
    except Problem as problem:
        raise TemporalSettingsError(
            f'the schedule "{id}" cannot be reached over HTTP: {problem.detail}. Rename it, or give '
            "expose_schedules() the ids of the others"
        ) from None
