"""Routes, permissions, tokens of forms, headers, errors and static files of all pages."""

import re
from typing import Any

import pytest

from durably.engine.api.dashboard.dashboard import Dashboard, DashboardConfigError
from durably.engine.api.dashboard.messages import Action
from durably.engine.model.runs import RunStatus
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.engine_errors import EngineClosedError

from ...conftest import only_run, send
from ...small_app import SmallApp, Steps
from .dashboard_client import get, header, page, post, token_of


@pytest.fixture
def dashboard(engine: SqliteEngine) -> Dashboard:
    return Dashboard(engine, allow_anonymous=True)


async def sleeping_run(app: SmallApp, engine: SqliteEngine) -> str:
    @app.function("nap")
    def nap(step: Steps) -> None:
        step.sleep("long", "1h")

    await engine.sync_app(app.sync_request())
    return await only_run(engine, await send(engine, "nap"))


@pytest.mark.parametrize("policy", [{}, {"authorize": lambda action: True, "allow_anonymous": True}])
async def test_a_dashboard_needs_exactly_one_policy(engine: SqliteEngine, policy: dict[str, Any]) -> None:
    with pytest.raises(DashboardConfigError, match="allow_anonymous=True"):
        Dashboard(engine, **policy)


async def test_each_answer_has_a_strict_policy(dashboard: Dashboard) -> None:
    for path in ("/runs", "/nowhere", "/assets/x/app.js"):
        response = await get(dashboard, path)
        policy = header(response, "content-security-policy")
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert header(response, "x-content-type-options") == "nosniff"


async def test_pages_are_not_kept_by_caches(dashboard: Dashboard) -> None:
    assert header(await get(dashboard, "/runs"), "cache-control") == "no-store"


async def test_static_files_have_a_hash_and_are_kept(dashboard: Dashboard) -> None:
    text = await page(dashboard, "/runs", mount="/durably")
    paths = re.findall(r'(?:href|src)="/durably(/assets/[^"]+)"', text)
    assert {path.rpartition(".")[2] for path in paths} == {"css", "js", "svg"}
    for path in paths:
        response = await get(dashboard, path)
        assert response.status_code == 200
        assert "immutable" in (header(response, "cache-control") or "")
    other = await get(dashboard, "/assets/another-version/app.js")
    assert (other.status_code, header(other, "cache-control")) == (200, "no-store")


@pytest.mark.parametrize(
    "address", ["/assets/x/nothing.js", "/assets/x/../dashboard.py", "/assets/app.js", "/runs/a/b/c"]
)
async def test_unknown_page_is_404(dashboard: Dashboard, address: str) -> None:
    response = await get(dashboard, address)
    assert response.status_code == 404
    assert b"There is no such" in response.body


async def test_pages_have_no_inline_script_or_style(app: SmallApp, engine: SqliteEngine, dashboard: Dashboard) -> None:
    run_id = await sleeping_run(app, engine)
    for path in ("/runs", f"/runs/{run_id}"):
        text = await page(dashboard, path)
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text)


async def test_a_form_with_its_token_is_accepted(app: SmallApp, engine: SqliteEngine, dashboard: Dashboard) -> None:
    run_id = await sleeping_run(app, engine)
    token, cookie = await token_of(dashboard, f"/runs/{run_id}")
    answer = await post(dashboard, f"/runs/{run_id}/cancel", token, cookie, {"sec-fetch-site": "same-origin"})
    assert answer.status_code == 303
    assert (header(answer, "location") or "").startswith(f"/runs/{run_id}")
    run = await engine.get_run(run_id)
    assert run is not None
    assert run.status is RunStatus.CANCELLED


@pytest.mark.parametrize("forgery", ["no cookie", "no token", "wrong token", "other site", "other origin", "no form"])
async def test_a_forged_form_changes_nothing(
    app: SmallApp, engine: SqliteEngine, dashboard: Dashboard, forgery: str
) -> None:
    run_id = await sleeping_run(app, engine)
    token: str | None
    cookie: str | None
    token, cookie = await token_of(dashboard, f"/runs/{run_id}")
    headers = dict[str, str]()
    match forgery:
        case "no cookie":
            cookie = None
        case "no token":
            token = None
        case "wrong token":
            token = token[:-1] + ("A" if token[-1] != "A" else "B")
        case "other site":
            headers = {"sec-fetch-site": "same-site"}
        case "other origin":
            headers = {"origin": "http://localhost:3000"}
        case "no form":
            headers = {"content-type": "text/plain"}
    answer = await post(dashboard, f"/runs/{run_id}/cancel", token, cookie, headers)
    assert answer.status_code == (415 if forgery == "no form" else 403)
    run = await engine.get_run(run_id)
    assert run is not None
    assert not run.status.has_ended


async def test_a_viewer_changes_nothing_and_sees_no_button(app: SmallApp, engine: SqliteEngine) -> None:
    run_id = await sleeping_run(app, engine)
    asked = list[tuple[str, str | None]]()

    async def authorize(action: Action) -> bool:
        asked.append((action.name, action.subject))
        return not action.is_change

    dashboard = Dashboard(engine, authorize=authorize)
    assert "/cancel" not in await page(dashboard, f"/runs/{run_id}")
    assert ("cancel_run", run_id) in asked
    token, cookie = "t" * 43, f"durably-csrf={'t' * 43}"
    assert (await post(dashboard, f"/runs/{run_id}/cancel", token, cookie)).status_code == 403
    run = await engine.get_run(run_id)
    assert run is not None
    assert not run.status.has_ended


async def test_policy_result_that_is_not_a_bool_is_an_error_without_details(engine: SqliteEngine) -> None:
    dashboard = Dashboard(engine, authorize=lambda action: "yes")  # type: ignore[arg-type,return-value]
    response = await get(dashboard, "/runs")
    assert response.status_code == 500
    assert b"yes" not in response.body
    assert b"log" in response.body


async def test_a_closed_engine_is_a_page_with_503(engine: SqliteEngine, dashboard: Dashboard) -> None:
    await engine.close()
    with pytest.raises(EngineClosedError):
        await engine.list_runs()
    assert (await get(dashboard, "/runs")).status_code == 503


async def test_a_function_whose_id_has_a_slash_has_its_pages_and_actions(
    app: SmallApp, engine: SqliteEngine, dashboard: Dashboard
) -> None:
    @app.function("billing/charge")
    def charge(step: Steps) -> None: ...

    await engine.sync_app(app.sync_request())
    [function] = await engine.list_functions()
    assert function.id.endswith("billing/charge")
    path = f"/functions/{function.id}"
    assert function.id in await page(dashboard, path)
    assert function.id in await page(dashboard, f"{path}/cancel")
    paused = await post(dashboard, f"{path}/pause", *await token_of(dashboard, path))
    assert (paused.status_code, header(paused, "location")) == (303, f"{path}?notice=paused")
    [function] = await engine.list_functions()
    assert function.is_paused
