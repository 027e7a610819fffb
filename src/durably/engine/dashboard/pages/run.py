"""A run with all that is known of it."""

from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.routing import Live, Route
from durably.engine.dashboard.visit import PageError, Visit


async def show_run(visit: Visit) -> DashboardResponse:
    run_id = visit.arguments["run_id"]
    run = await visit.engine.get_run(run_id)
    if run is None:
        raise PageError(404, "There is no such run", "The id may be mistyped, or the run was purged.")
    steps = await visit.engine.run_steps(run_id)
    may_cancel = not run.status.has_ended and await visit.may("cancel_run", run_id)
    return await visit.page("run.html", run=run, steps=steps, may_cancel=may_cancel)


async def cancel(visit: Visit) -> DashboardResponse:
    run_id = visit.arguments["run_id"]
    await visit.engine.cancel_run(run_id)
    return visit.redirect(f"/runs/{run_id}")


ROUTES = (
    Route("GET", "/runs/{run_id}", show_run, live=Live.RUN),
    Route("POST", "/runs/{run_id}/cancel", cancel, action="cancel_run", subject="run_id"),
)
