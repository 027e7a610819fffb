"""A run with all that is known of it.

Waterfall, steps, events, logs and related runs.
"""

import asyncio
import datetime as dt
from collections.abc import Mapping

import msgspec

from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.rendering import json_tree
from durably.engine.dashboard.rendering.run_as_test import write_test
from durably.engine.dashboard.rendering.waterfall import KIND_WORDS, Waterfall, lay_out
from durably.engine.dashboard.routing import Live, Route
from durably.engine.dashboard.visit import PageError, Visit
from durably.engine.reports import Relation, RunReport, StepReport
from durably.engine.views import EventView, StepStatus
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode

_RELATIONS = {
    Relation.INVOKED: "Invoked by",
    Relation.SENT_EVENT: "Started by an event of",
    Relation.DEFERRED: "Deferred by",
    Relation.RERUN: "Rerun of",
    Relation.ENDED: "Started by the end of",
}
_IDLE = (StepStatus.SLEEPING, StepStatus.WAITING)
_EXECUTED = (Opcode.STEP, Opcode.STEP_RUN)


_NOTICES = {
    "cancelled": "The run was cancelled.",
    "ended": "The run had already ended: nothing was changed.",
    "rerun": "This is the new run.",
    "woken": "The run goes on now.",
    "awake": "The run does not sleep, and waits for no other attempt: nothing was changed.",
}
"""Notices after actions. The URL has the name of one, so that no other text can be shown."""


async def read_report(visit: Visit) -> RunReport:
    """The run that the path names. Raises ``PageError``."""
    report = await visit.engine.inspect_run(visit.arguments["run_id"])
    if report is None:
        raise PageError(404, "There is no such run", "The id may be mistyped, or the run was deleted after its time.")
    return report


async def show_run(visit: Visit) -> DashboardResponse:
    report = await read_report(visit)
    run = report.run
    now = dt.datetime.now(dt.UTC)
    waterfall = lay_out(report, now, visit.query.get("zoom"))
    chosen = next((step for step in report.steps if step.hashed_id == visit.query.get("step")), None)
    may = {action: await visit.may(action, run.id) for action in ("cancel_run", "rerun", "skip_delays")}
    may["receive_events"] = await visit.may("receive_events")
    return await visit.page(
        "run.html",
        report=report,
        run=run,
        waterfall=waterfall,
        zooms=_zooms(waterfall),
        chosen=chosen,
        failed_step=failed_step(report),
        kind_of=lambda step: KIND_WORDS.get(step.op, "step"),
        is_executed=lambda step: step.op in _EXECUTED,
        tree_of=json_tree.tree_of,
        build_tree=json_tree.build_tree,
        can_send=any(map(is_sent, report.events)),
        may=may,
        growth=_growth(report, waterfall),
        relations=_RELATIONS,
        notice=_NOTICES.get(visit.query.get("notice", "")),
        retrying=[step for step in report.steps if step.failed_attempts and step.ended_at is None],
        own_attempts=min(len(report.failed_attempts) + 1, run.max_attempts),
        step_failures=sum(row.failures for row in waterfall.rows[1:]),
        own=own_state(visit.query),
        pretty=pretty,
        chosen_row=next((row for row in waterfall.rows if chosen and row.key == chosen.hashed_id), None),
    )


def pretty(encoded: msgspec.Raw) -> str:
    """JSON with line ends, for editing."""
    return msgspec.json.format(bytes(encoded), indent=2).decode(errors="replace")


def own_state(query: Mapping[str, str]) -> dict[str, str]:
    """The parts of the query that choose what the page shows."""
    return {name: query[name] for name in ("step", "zoom") if name in query}


def failed_step(report: RunReport) -> StepReport | None:
    """The step that made the run fail.

    The last one that failed, if the run has failed with its error.
    """
    failed = [step for step in report.steps if step.status is StepStatus.FAILED]
    if report.error is None or not failed:
        return None
    last = max(failed, key=lambda step: step.ended_at or step.created_at)
    # The function may have caught the step's error, and have failed with another.
    is_cause = last.error is not None and last.error.message == report.error.message
    return last if is_cause else None


def is_sent(event: EventView) -> bool:
    """Whether an app sent the event, so that it may be sent again.

    Engines make others.
    """
    return event.name not in set(InternalEvent)


def _zooms(waterfall: Waterfall) -> dict[str, str | None]:
    """The windows after zooming in and out; ``None`` for the whole run."""
    whole = waterfall.whole
    closer, wider = waterfall.window.zoom(0.5, whole), waterfall.window.zoom(2, whole)
    return {"in": str(closer), "out": None if wider == whole else str(wider)}


def _growth(report: RunReport, waterfall: Waterfall) -> int | None:
    """Seconds after which the bars of a run that has not ended have grown visibly."""
    if report.run.ended_at is not None:
        return None
    length = (waterfall.window.end - waterfall.window.start) / 1000
    open_steps = [step.status for step in report.steps if step.ended_at is None]
    is_idle = bool(open_steps) and all(status in _IDLE for status in open_steps)
    return round(max(5.0, length / 50) if is_idle else max(2.0, length / 100))


async def show_test(visit: Visit) -> DashboardResponse:
    report = await read_report(visit)
    try:
        # In a thread: the event loop may be the app's own, and the event may have megabytes.
        code = await asyncio.to_thread(write_test, report)
    except RecursionError:
        raise PageError(
            400, "The run cannot be copied as a test", "A value of it is nested too deeply to be written as code."
        ) from None
    return await visit.page("run_test.html", run=report.run, code=code)


ROUTES = (
    Route("GET", "/runs/{run_id}", show_run, live=Live.RUN),
    Route("GET", "/runs/{run_id}/test", show_test),
)
