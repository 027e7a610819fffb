"""Bulk cancellation and replay of runs, with a preview of their number."""

import datetime as dt
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from durably.engine.api.dashboard.messages import DashboardResponse
from durably.engine.api.dashboard.rendering.formats import FormError, read_time, write_time
from durably.engine.api.dashboard.visit import Route, Visit
from durably.engine.model.runs import RunStatus
from durably.protocol.engine_errors import EngineError

from .functions import find_function, function_path

LIVE = (RunStatus.SCHEDULED, RunStatus.RUNNING)
ENDED = (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.SKIPPED, RunStatus.COMPLETED)


class BulkForm(msgspec.Struct, frozen=True):
    """The runs that a person has selected.

    ``before`` is by default the time of the preview, so that runs that are created later do not count.
    """

    statuses: tuple[RunStatus, ...]
    after: dt.datetime | None
    before: dt.datetime
    expression: str | None

    @classmethod
    def read(cls, fields: Mapping[str, str], *, is_replay: bool, now: dt.datetime) -> "BulkForm":
        """Raises ``FormError``."""
        chosen = tuple(status for status in ENDED if f"status-{status.lower()}" in fields)
        if is_replay and not chosen and fields:
            raise FormError("Choose at least one status of the runs to replay.")
        return cls(
            statuses=(chosen or (RunStatus.FAILED,)) if is_replay else LIVE,
            after=read_time("Created from", fields.get("after")),
            before=read_time("Created before", fields.get("before")) or now,
            expression=fields.get("if"),
        )

    @property
    def fields(self) -> dict[str, str]:
        """The fields of the form that has this selection."""
        chosen = {f"status-{status.lower()}": "1" for status in self.statuses if status in ENDED}
        times = {"after": write_time(self.after), "before": write_time(self.before)}
        return {**times, "if": self.expression or "", **chosen}


async def show(
    visit: Visit, fields: Mapping[str, str] | None = None, *, is_replay: bool, error: str | None = None
) -> DashboardResponse:
    """The form and, if it was filled in, the number of runs that it selects.

    ``fields`` are by default those of the URL.
    """
    fields = visit.query if fields is None else fields
    function_id = visit.arguments["function_id"]
    function = find_function(await visit.engine.list_functions(), function_id)
    form, matches = None, None
    if fields and error is None:
        try:
            form = BulkForm.read(fields, is_replay=is_replay, now=_end_of_second())
            matches = await visit.engine.count_matching_runs(
                function_id,
                statuses=form.statuses,
                started_after=form.after,
                started_before=form.before,
                if_exp=form.expression,
            )
        except FormError as invalid:
            error = str(invalid)
        except EngineError as refusal:
            error = refusal.message
    values: dict[str, Any] = {
        "function": function,
        "is_replay": is_replay,
        "ended_statuses": ENDED,
        "fields": fields or {"status-failed": "1"},
        "selection": form.fields if form else {},
        "matches": matches,
        "error": error,
        "may_resume": is_replay and await visit.may("resume_function", function_id),
        "may": await visit.may("replay_runs" if is_replay else "cancel_runs", function_id),
    }
    return await visit.page("bulk.html", status=200 if error is None else 422, **values)


def _end_of_second() -> dt.datetime:
    """The present, rounded up to the seconds that the form's field has."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)).replace(microsecond=0)


async def start(visit: Visit, *, is_replay: bool) -> DashboardResponse:
    function_id, engine = visit.arguments["function_id"], visit.engine
    fields = {name: value for name, value in visit.form.items() if name not in ("csrf", "count")}
    try:
        form = BulkForm.read(fields, is_replay=is_replay, now=_end_of_second())
        selection: dict[str, Any] = {
            "started_after": form.after,
            "started_before": form.before,
            "if_exp": form.expression,
        }
        if is_replay:
            await engine.replay_runs(function_id, statuses=form.statuses, **selection)
        else:
            await engine.cancel_runs(function_id, **selection)
    except FormError as error:
        return await show(visit, fields, is_replay=is_replay, error=str(error))
    except EngineError as error:
        return await show(visit, fields, is_replay=is_replay, error=error.message)
    did = "replay" if is_replay else "cancel"
    return visit.redirect(function_path(function_id), did=did, done=visit.form.get("count"))


_ONE = "/functions/{function_id}"
ROUTES = (
    Route("GET", f"{_ONE}/cancel", partial(show, is_replay=False)),
    Route("POST", f"{_ONE}/cancel", partial(start, is_replay=False), action="cancel_runs", subject="function_id"),
    Route("GET", f"{_ONE}/replay", partial(show, is_replay=True)),
    Route("POST", f"{_ONE}/replay", partial(start, is_replay=True), action="replay_runs", subject="function_id"),
)
