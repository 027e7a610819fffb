"""The apps, their last syncs, and whether they answer."""

from durably.engine.dashboard.messages import DashboardResponse
from durably.engine.dashboard.routing import Live, Route
from durably.engine.dashboard.visit import Visit
from durably.engine.reports import AppReport


async def show_apps(visit: Visit) -> DashboardResponse:
    reports: list[AppReport] = await visit.engine.inspect_apps()
    functions = await visit.engine.list_functions()
    by_app = {report.app.id: [each for each in functions if each.app_id == report.app.id] for report in reports}
    return await visit.page("apps.html", reports=reports, by_app=by_app, chosen=visit.query.get("app"))


ROUTES = (Route("GET", "/apps", show_apps, live=Live.ALL),)
