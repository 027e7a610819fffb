"""A run: the page with all that is known of it, its values, and its actions.

The page has the waterfall, steps, events, logs and related runs. Actions cancel the run, wake it, run it again, or send
its event again."""

import datetime as dt
from typing import Any

import msgspec

from durably.engine.model.runs import FromStep, Relation, RunReport, Step, StepStatus, StoredEvent
from durably.protocol.engine_errors import AnswerRefusedError
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode

from .events import send_copies
from .messages import DashboardResponse
from .questions import AnswerForm, answer_forms, deliver, find_form, make_form
from .values import answer_value, build_tree, tree_of
from .visit import Live, PageError, Route, Visit
from .waterfall import KIND_WORDS, Waterfall, lay_out

_RELATIONS = {
    Relation.INVOKED: "Invoked by",
    Relation.SENT_EVENT: "Started by an event of",
    Relation.DEFERRED: "Deferred by",
    Relation.RERUN: "Rerun of",
    Relation.ENDED: "Started by the end of",
}
_IDLE = (StepStatus.SLEEPING, StepStatus.WAITING)
_EXECUTED = (Opcode.STEP, Opcode.STEP_RUN)
_MOST_SHOWN = 500_000
"""Characters of a text that the page of a value shows."""


async def read_report(visit: Visit) -> RunReport:
    """The run that the path names. Raises ``PageError``."""
    report = await visit.engine.inspect_run(visit.arguments["run_id"])
    if report is None:
        raise PageError(404, "There is no such run", "The id may be mistyped, or the run was deleted after its time.")
    return report


async def show_run(
    visit: Visit, *, refused: str | None = None, error: str | None = None, answered: AnswerForm | None = None
) -> DashboardResponse:
    """The page of a run.

    ``refused`` is the input of the form to run a step again, with the ``error`` that it has. ``answered`` is the form
    of an answer that was refused.
    """
    report = await read_report(visit)
    run = report.run
    now = dt.datetime.now(dt.UTC)
    waterfall = lay_out(report, now, visit.query.get("zoom"))
    given = visit.query if error is None and answered is None else visit.form
    questions = [
        answered if answered and answered.step.hashed_id == form.step.hashed_id else form
        for form in answer_forms(report)
    ]
    own = {name: given[name] for name in ("step", "zoom") if name in given}
    chosen = next((step for step in report.steps if step.hashed_id == own.get("step")), None)
    may = {action: await visit.may(action, run.id) for action in ("cancel_run", "rerun", "skip_delays", "ask_run")}
    may["receive_events"] = await visit.may("receive_events")
    return await visit.page(
        "run.html",
        status=200 if error is None and answered is None else 422,
        questions=questions,
        refused=refused,
        error=error,
        report=report,
        run=run,
        waterfall=waterfall,
        zooms=_zooms(waterfall),
        chosen=chosen,
        failed_step=failed_step(report),
        kind_of=lambda step: KIND_WORDS.get(step.op, "step"),
        is_executed=lambda step: step.op in _EXECUTED,
        tree_of=tree_of,
        build_tree=build_tree,
        can_send=any(map(is_sent, report.events)),
        may=may,
        growth=_growth(report, waterfall),
        relations=_RELATIONS,
        retrying=[step for step in report.steps if step.failed_attempts and step.ended_at is None],
        own_attempts=min(waterfall.rows[0].failures + 1, run.max_attempts),
        step_failures=sum(row.failures for row in waterfall.rows[1:]),
        own=own,
        pretty=pretty,
        chosen_row=next((row for row in waterfall.rows if chosen and row.key == chosen.hashed_id), None),
    )


def pretty(encoded: msgspec.Raw) -> str:
    """JSON with line ends, for editing."""
    return msgspec.json.format(bytes(encoded), indent=2).decode(errors="replace")


def failed_step(report: RunReport) -> Step | None:
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


def is_sent(event: StoredEvent) -> bool:
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


# values


async def show_value(visit: Visit) -> DashboardResponse:
    """The value that ``of`` names, or its part at the JSON pointer ``at``.

    Children are shown from the number ``from`` on. ``raw`` downloads the whole value.
    """
    report = await read_report(visit)
    of = visit.query.get("of", "output")
    return await answer_value(visit, report.run.id, _encoded(report, of), of, run=report.run)


def _encoded(report: RunReport, of: str) -> bytes:
    """The JSON of a value.

    ``output``, ``event:<id>``, ``input:<hashed step id>`` or ``output:<hashed step id>``.
    """
    kind, _, id = of.partition(":")
    found: Any = None
    if of == "output":
        found = report.run.output
    elif kind == "event":
        found = next((msgspec.json.encode(event.data) for event in report.events if event.id == id), None)
    elif kind in ("input", "output"):
        step = next((step for step in report.steps if step.hashed_id == id), None)
        found = step and (step.input if kind == "input" else step.output)
    if found is None:
        raise PageError(404, "There is no such value", "The run has no such event or step, or it has no value.")
    return bytes(found)


# actions


async def cancel(visit: Visit) -> DashboardResponse:
    run_id = visit.arguments["run_id"]
    was_live = await visit.engine.cancel_run(run_id)
    return visit.redirect(f"/runs/{run_id}", notice="cancelled" if was_live else "ended")


async def skip_delays(visit: Visit) -> DashboardResponse:
    """End sleeps and delays of retries now.

    Those of the step in the field ``step``, or all of the run.
    """
    run_id, step = visit.arguments["run_id"], visit.form.get("step")
    count = await visit.engine.skip_delays(run_id, step_id=step)
    return visit.redirect(f"/runs/{run_id}", notice="woken" if count else "awake", step=step)


async def rerun(visit: Visit) -> DashboardResponse:
    """Run it again.

    It starts from the step of the field ``step`` with the arguments of ``input``, if they are given.
    """
    step, given = visit.form.get("step"), visit.form.get("input")
    try:
        arguments = None if given is None else msgspec.json.decode(given, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        wanted = 'The input must be a JSON array of the arguments of the step, such as [{"id": 7}, true]'
        return await show_run(visit, refused=given, error=f"{wanted}: {error}.")
    from_step = None if step is None else FromStep(step, arguments)
    new_id = await visit.engine.rerun(visit.arguments["run_id"], from_step=from_step)
    return visit.redirect(f"/runs/{new_id}", notice="rerun")


async def send_event(visit: Visit) -> DashboardResponse:
    """Send the events of the run again."""
    events = [event for event in (await read_report(visit)).events if is_sent(event)]
    if not events:
        raise PageError(400, "The event cannot be sent", "An engine made it: rerun the run instead.")
    return await send_copies(visit, events)


async def answer(visit: Visit) -> DashboardResponse:
    """Answer the question of the step in the field ``step``."""
    run_id = visit.arguments["run_id"]
    form = find_form(await read_report(visit), visit.form.get("step"))
    if form is None:
        return visit.redirect(f"/runs/{run_id}", notice="closed")
    try:
        notice = await deliver(visit, form)
    except AnswerRefusedError as error:
        return await show_run(visit, answered=make_form(form.step, form.question, visit.form, error.message))
    return visit.redirect(f"/runs/{run_id}", notice=notice)


ROUTES = (
    Route("GET", "/runs/{run_id}", show_run, live=Live.RUN),
    Route("GET", "/runs/{run_id}/value", show_value),
    Route("POST", "/runs/{run_id}/cancel", cancel, action="cancel_run", subject="run_id"),
    Route("POST", "/runs/{run_id}/wake", skip_delays, action="skip_delays", subject="run_id"),
    Route("POST", "/runs/{run_id}/rerun", rerun, action="rerun", subject="run_id"),
    Route("POST", "/runs/{run_id}/answer", answer, action="ask_run", subject="run_id"),
    Route("POST", "/runs/{run_id}/send-event", send_event, action="receive_events"),
)
