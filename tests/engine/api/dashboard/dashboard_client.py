"""Requests to a ``Dashboard`` without a server, and what is in its pages."""

import re
from typing import Any
from urllib.parse import urlencode

from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.dashboard.messages import CSRF_COOKIE, CSRF_FIELD, DashboardRequest, DashboardResponse

FORM = "application/x-www-form-urlencoded"


async def get(dashboard: Dashboard, path: str, query: str = "", **options: Any) -> DashboardResponse:
    request = {"mount": "", "headers": {"host": "localhost"}, "query": query} | options
    return await dashboard.handle(DashboardRequest(method="GET", path=path, **request))


async def page(dashboard: Dashboard, path: str, query: str = "", **options: Any) -> str:
    """The text of a page that exists."""
    response = await get(dashboard, path, query, **options)
    assert response.status_code == 200, response.body.decode()
    return response.body.decode()


async def token_of(dashboard: Dashboard, path: str) -> tuple[str, str]:
    """The token of the forms of a page, and the cookie that goes with it."""
    response = await get(dashboard, path)
    [token] = set(re.findall(rf'name="{CSRF_FIELD}" value="([^"]+)"', response.body.decode()))
    [cookie] = [value for name, value in response.headers if name == "set-cookie"]
    assert cookie.startswith(f"{CSRF_COOKIE}={token};")
    return token, cookie.partition(";")[0]


async def post(
    dashboard: Dashboard,
    path: str,
    token: str | None,
    cookie: str | None,
    headers: dict[str, str] | None = None,
    query: str = "",
    **form: str,
) -> DashboardResponse:
    sent = {"host": "localhost", "content-type": FORM} | ({"cookie": cookie} if cookie else {}) | (headers or {})
    body = urlencode(form | ({CSRF_FIELD: token} if token else {})).encode()
    request = DashboardRequest(method="POST", path=path, mount="", query=query, headers=sent, body=body)
    return await dashboard.handle(request)


def header(response: DashboardResponse, name: str) -> str | None:
    return next((value for each, value in response.headers if each == name), None)
