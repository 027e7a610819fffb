"""Permissions of the dashboard, and requests that try to bypass them."""

import datetime as dt
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from durably.engine.api.dashboard.dashboard import ROUTES, Dashboard, DashboardConfigError
from durably.engine.api.dashboard.messages import CSRF_COOKIE, CSRF_FIELD, Action, DashboardResponse, make_token
from durably.engine.api.dashboard.visit import Route
from durably.engine.model.runs import RunStatus
from durably.engine.sqlite.engine import SqliteEngine

from ...conftest import only_run, send
from ...small_app import SmallApp, Steps
from .dashboard_client import get, header, post, token_of


async def allow(action: Action) -> bool:
    return action.name == "view"


class Policy:
    async def __call__(self, action: Action) -> bool:
        return await allow(action)


POLICIES: list[Any] = [allow, Policy(), lambda action: action.name == "view", lambda action: allow(action)]


@pytest.mark.parametrize("authorize", POLICIES, ids=["async", "object", "sync", "awaitable"])
async def test_a_policy_may_be_async_or_not(engine: SqliteEngine, authorize: Any) -> None:
    dashboard = Dashboard(engine, authorize=authorize)
    assert (await get(dashboard, "/runs")).status_code == 200
    token, cookie = await token_of(Dashboard(engine, allow_anonymous=True), "/events/send")
    assert (await post(dashboard, "/events/send", token, cookie)).status_code == 403


async def test_refusal_names_the_missing_permission(engine: SqliteEngine) -> None:
    dashboard = Dashboard(engine, authorize=lambda action: False)
    assert b"It needs the permission view, which" in (await get(dashboard, "/runs")).body


async def test_a_cancellation_is_stopped_only_with_its_function(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("mine")
    def mine(steps: Steps) -> None: ...

    @app.function("other")
    def other(steps: Steps) -> None: ...

    await engine.sync_app(app.sync_request())
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    found = [await engine.cancel_runs(f"app-{name}", started_before=until) for name in ("mine", "other")]
    dashboard = Dashboard(engine, authorize=lambda action: action.subject in (None, "app-mine"))
    token, cookie = await token_of(Dashboard(engine, allow_anonymous=True), "/events/send")
    for name, cancellation, status in (("other", 1, 403), ("mine", 1, 404), ("mine", 0, 303)):
        path = f"/functions/app-{name}/cancellations/{found[cancellation].id}/stop"
        assert (await post(dashboard, path, token, cookie)).status_code == status
    assert [each.id for each in await engine.list_cancellations()] == [found[1].id]


async def test_a_synchronous_policy_runs_in_the_frameworks_thread(engine: SqliteEngine) -> None:
    threads: list[int] = []

    def authorize(action: Action) -> bool:
        threads.append(threading.get_ident())
        return True

    async def here(function: Callable[[], Any]) -> Any:
        return function()

    await get(Dashboard(engine, authorize=authorize), "/runs", call_blocking=here)
    assert set(threads) == {threading.get_ident()}
    threads.clear()
    await get(Dashboard(engine, authorize=authorize), "/runs")
    assert threading.get_ident() not in threads


async def test_an_error_of_the_policy_is_a_page_without_details(
    engine: SqliteEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def authorize(action: Action) -> bool:
        raise DashboardConfigError("the password is hunter2")

    answer = await get(Dashboard(engine, authorize=authorize), "/runs")
    assert answer.status_code == 500
    assert b"hunter2" not in answer.body
    assert "hunter2" in caplog.text


async def test_errors_of_the_framework_are_for_the_caller(engine: SqliteEngine) -> None:
    class HTTPException(Exception):
        pass

    def authorize(action: Action) -> bool:
        raise HTTPException(401)

    with pytest.raises(HTTPException):
        await get(Dashboard(engine, authorize=authorize, raises=(HTTPException,)), "/runs")


@pytest.mark.parametrize("policy", [{"allow_anonymous": "yes"}, {"authorize": "ada"}, {"authorize": True}])
async def test_a_policy_of_another_type_is_refused(engine: SqliteEngine, policy: dict[str, Any]) -> None:
    with pytest.raises(DashboardConfigError, match=r"shop\.dashboard"):
        Dashboard(engine, caller="shop.dashboard", **policy)


ARGUMENT = re.compile(r"\{\w+\}")
CHANGES = [route for route in ROUTES if route.method == "POST"]


@pytest.mark.parametrize("route", CHANGES, ids=lambda route: route.pattern)
async def test_each_action_needs_its_permission_and_its_token(engine: SqliteEngine, route: Route) -> None:
    asked: list[Action] = []

    def authorize(action: Action) -> bool:
        asked.append(action)
        return action.name == "view"

    path = ARGUMENT.sub("01KAX0000000000000000000X1", route.pattern)
    token = make_token()
    cookie = f"{CSRF_COOKIE}={token}"
    refused = await post(Dashboard(engine, authorize=authorize), path, token, cookie)
    assert refused.status_code == 403
    assert [action.name for action in asked] == ["view", route.action]
    assert asked[-1].is_change
    assert asked[-1].subject == ("01KAX0000000000000000000X1" if route.subject else None)
    anyone = Dashboard(engine, allow_anonymous=True)
    for sent, kept in ((None, cookie), (token, None), (make_token(), cookie)):
        assert (await post(anyone, path, sent, kept)).status_code == 403
    assert (await post(anyone, path, token, cookie, {"sec-fetch-site": "cross-site"})).status_code == 403
    assert (await get(anyone, path)).status_code in (200, 303, 404, 405)


def test_the_documentation_names_each_action() -> None:
    page = (Path(__file__).parents[4] / "docs" / "how-to" / "dashboard.md").read_text()
    for name in {route.action for route in ROUTES} | {"view"}:
        assert f"`{name}`" in page or f'`"{name}"`' in page
        assert f'"{name}"' in (Action.__doc__ or "")


# attacks

COOKIES = ['theme={"dark": true, "x": [1]}; ', "a=b; =; ;; ", 'q="; ', "é=ü; ", "durably-csrf2=x; xdurably-csrf=x; "]


async def test_paths_cannot_forge_headers_or_lead_elsewhere(app: SmallApp, engine: SqliteEngine) -> None:
    run_id = await sleeping_run(app, engine)
    dashboard = Dashboard(engine, allow_anonymous=True)
    token, cookie = await token_of(dashboard, f"/runs/{run_id}")
    names = [
        "x\r\nset-cookie: a=b",
        "/evil.example.com",
        "\\evil.example.com",
        "..",
        "\x00",
        "\ud800",
        "é",
        "x" * 50_000,
    ]
    for name in names:
        for path in (f"/runs/{name}/cancel", f"/runs/{name}/rerun", f"/{name}", f"/assets/{name}/app.js"):
            for answer in (await post(dashboard, path, token, cookie), await get(dashboard, path)):
                assert_safe(answer)
    for query in (
        "q=//evil.example.com",
        "q=%0d%0aset-cookie:a=b",
        f"q={run_id}%0d%0a",
        "q=../..",
        "q=%ff",
        "q=" + "x" * 9000,
    ):
        answer = await get(dashboard, "/search", query)
        assert_safe(answer)
    for query in ("step=%00&zoom=x", "cursor=%0a", "status=x", "function=%22%3E%3Cscript%3E", "if=%3Cscript%3E"):
        for path in ("/runs", f"/runs/{run_id}", "/events"):
            assert_safe(await get(dashboard, path, query))


def assert_safe(answer: DashboardResponse) -> None:
    assert answer.status_code < 500, answer.body.decode()[:3000]
    for name, value in answer.headers:
        assert (name + value).isascii()
        assert (name + value).isprintable(), (name, value)
    location = header(answer, "location")
    assert location is None or (location.startswith("/") and not location.startswith(("//", "/\\")))
    assert b"<script>" not in answer.body


async def test_a_form_may_have_any_bytes(app: SmallApp, engine: SqliteEngine) -> None:
    run_id = await sleeping_run(app, engine)
    dashboard = Dashboard(engine, allow_anonymous=True)
    token, cookie = await token_of(dashboard, f"/runs/{run_id}")
    for value in ("\x00", "\ud800".encode(errors="replace").decode(), "[" * 100_000, "<script>", '"' * 1000):
        for path in (f"/runs/{run_id}/rerun", f"/runs/{run_id}/cancel", "/events/send"):
            form = {"data": value, "name": value, "input": value, "step": value, "from": value}
            assert_safe(await post(dashboard, path, token, cookie, **form))
    wrong = await post(dashboard, f"/runs/{run_id}/cancel", "é\x00", cookie)
    assert wrong.status_code == 403
    twice = await post(dashboard, f"/runs/{run_id}/cancel", "x", cookie, **{CSRF_FIELD + "2": token})
    assert twice.status_code == 403


async def test_no_page_shows_a_secret_of_an_app(app: SmallApp, engine: SqliteEngine) -> None:
    @app.function("nap")
    def nap(step: Steps) -> None:
        step.sleep("long", "1h")

    request = app.sync_request()
    secret = f"{request.url.replace('://', '://ada:hunter2@')}?token=hunter2"
    request.url = secret
    for function in request.functions:
        for each in function.steps.values():
            each.runtime.url = f"{secret}&{each.runtime.url.partition('?')[2]}"
    await engine.sync_app(request)
    [event] = (await engine.receive_events(b'{"name": "nap", "data": {}}')).ids
    [run] = await engine.event_runs(event)
    [function_view] = await engine.list_functions()
    ids = {"run_id": run.id, "event_id": event, "function_id": function_view.id, "step": "x"}
    dashboard = Dashboard(engine, allow_anonymous=True)
    seen = 0
    for route in ROUTES:
        if route.method == "GET" and route.pattern != "/live":
            path = ARGUMENT.sub(lambda found: ids.get(found[0][1:-1], "x"), route.pattern)
            answer = await get(dashboard, path)
            assert answer.status_code < 500, path
            assert b"hunter2" not in answer.body, path
            seen += answer.status_code == 200
    assert seen >= 5


# streams


async def chunks_of(answer: DashboardResponse) -> str:
    assert answer.stream is not None
    stream: AsyncGenerator[bytes, None] = answer.stream()
    return b"".join([chunk async for chunk in stream]).decode()


async def test_a_stream_ends_in_time_and_at_once_if_the_worker_may_not_wait(engine: SqliteEngine) -> None:
    dashboard = Dashboard(engine, allow_anonymous=True)
    for seconds in (0.0, 0.2):
        answer = await get(dashboard, "/live", stream_seconds=seconds)
        assert header(answer, "content-type") == "text/event-stream; charset=utf-8"
        began = time.monotonic()
        first = await chunks_of(answer)
        assert time.monotonic() - began < 15  # a wait for changes takes longer
        assert "retry: " in first
    *_, position = [line.removeprefix("id: ") for line in first.splitlines() if line.startswith("id: ")]
    again = await get(dashboard, "/live", stream_seconds=0.0, headers={"last-event-id": position})
    assert "no change" in await chunks_of(again)


async def test_a_stream_needs_the_permission_to_view(engine: SqliteEngine) -> None:
    dashboard = Dashboard(engine, authorize=lambda action: False)
    assert (await get(dashboard, "/live")).status_code == 403


async def sleeping_run(app: SmallApp, engine: SqliteEngine) -> str:
    @app.function("nap")
    def nap(step: Steps) -> None:
        step.sleep("long", "1h")

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "nap"))
    run = await engine.get_run(run_id)
    assert run is not None
    assert run.status is not RunStatus.FAILED
    return run_id
