"""Actions on a run: cancel it, wake it, run it again, send its event again."""

import msgspec

from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.routing import Route
from durably.engine.dashboard.visit import PageError, Visit
from durably.engine.views import FromStep

from .run import is_sent, read_report


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
    from_step = None if step is None else FromStep(step, None if given is None else read_arguments(given))
    new_id = await visit.engine.rerun(visit.arguments["run_id"], from_step=from_step)
    return visit.redirect(f"/runs/{new_id}", notice="rerun")


def read_arguments(text: str) -> list[msgspec.Raw]:
    """The arguments of a step from a JSON array. Raises ``PageError``."""
    try:
        return msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise PageError(
            400,
            "The input is not valid",
            f'It must be a JSON array of the arguments of the step, such as [{{"id": 7}}, true]: {error}. Go back to '
            "change it.",
        ) from None


async def send_event(visit: Visit) -> DashboardResponse:
    """Send the events of the run again, with new ids.

    The first one's page shows what it starts.
    """
    report = await read_report(visit)
    events = [
        {"name": event.name, "data": event.data}
        | ({} if event.user is None else {"user": event.user})
        | ({} if event.v is None else {"v": event.v})
        for event in report.events
        if is_sent(event)
    ]
    if not events:
        raise PageError(400, "The event cannot be sent", "An engine made it: rerun the run instead.")
    receipt = await visit.engine.receive_events(msgspec.json.encode(events))
    return visit.redirect(f"/events/{receipt.ids[0]}")


ROUTES = (
    Route("POST", "/runs/{run_id}/cancel", cancel, action="cancel_run", subject="run_id"),
    Route("POST", "/runs/{run_id}/wake", skip_delays, action="skip_delays", subject="run_id"),
    Route("POST", "/runs/{run_id}/rerun", rerun, action="rerun", subject="run_id"),
    Route("POST", "/runs/{run_id}/send-event", send_event, action="receive_events"),
)
