"""The list of runs: newest first, filtered by the URL."""

from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.routing import Live, Route
from durably.engine.dashboard.visit import Visit
from durably.engine.operations import read_status

PAGE_SIZE = 50


async def show_runs(visit: Visit) -> DashboardResponse:
    query, engine = visit.query, visit.engine
    status = read_status(query["status"]) if "status" in query else None
    runs = await engine.list_runs(
        status=status, function_id=query.get("function"), limit=PAGE_SIZE, cursor=query.get("cursor")
    )
    functions = await engine.list_functions()
    cursor = runs[-1].id if len(runs) == PAGE_SIZE else None
    return await visit.page("runs.html", runs=runs, functions=functions, cursor=cursor)


async def show_start(visit: Visit) -> DashboardResponse:
    return visit.redirect("/runs")


ROUTES = (Route("GET", "/", show_start), Route("GET", "/runs", show_runs, live=Live.ALL))
