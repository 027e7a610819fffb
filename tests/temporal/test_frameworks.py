"""The gateway in each framework, with a real web server, Temporal server and worker."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from durably.temporal import Temporal

from ..variants import variants
from ..waiting import eventually
from .app_server import AppServer, running
from .apps import open_gateway
from .dev_server import DevServer
from .serve import ALIKE, SERVERS

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(params=variants(ALIKE, ["fastapi", "flask", "django-wsgi"]))
def app(request: pytest.FixtureRequest, apps: Callable[..., AppServer]) -> AppServer:
    return apps(request.param)


@pytest.fixture(params=variants(ALIKE, ["fastapi", "django-wsgi"]))
def some_app(request: pytest.FixtureRequest, apps: Callable[..., AppServer]) -> AppServer:
    return apps(request.param)


@pytest.fixture
def order() -> dict[str, object]:
    """An order that waits until it is shipped."""
    return {"order_id": uuid.uuid4().hex, "amount": 3, "lines": ["wait"]}


def test_an_order_from_start_to_end(app: AppServer, order: dict[str, object]) -> None:
    started = app.post("/open/orders", order)
    assert started.status == 202, started.body
    place = started.headers["Location"]
    assert place == f"/open/orders/order-{order['order_id']}"
    assert started.json["links"] == {"self": place, "result": f"{place}/result", "events": f"{place}/events"}

    described = app.get(place).json
    assert (described["workflow"], described["status"], described["memo"]) == ("OrderWorkflow", "running", {"lines": 1})
    assert app.get(f"{place}/result").status == 202

    assert app.post(f"{place}/signals/add_note", {"text": "fragile"}).status == 202
    assert app.get(f"{place}/queries/note", index=0).json == {"result": "fragile"}
    assert app.post(f"{place}/queries/note", {"index": 0}).json == {"result": "fragile"}
    assert app.post(f"{place}/queries/has_lines", {"lines": ["wait"]}).json == {"result": True}
    assert app.get(f"{place}/queries/has_lines", lines="wait").status == 405
    updated = app.post(f"{place}/updates/change_address", {"address": "here"}).json
    assert (updated["status"], updated["result"]) == ("completed", "")
    again = app.get(f"{place}/updates/change_address/{updated['update_id']}").json
    assert again == updated

    assert app.post(f"{place}/signals/ship").status == 202
    done = app.get(f"{place}/result", wait=30)
    assert done.status == 200
    assert done.json["result"] == {"order_id": order["order_id"], "paid": 3.0, "note": "fragile"}


def test_a_start_can_wait_for_the_result(app: AppServer) -> None:
    body = {"pair": {"left": 1, "right": [2, 3]}, "factor": 2}
    done = app.post("/open/sum-of-pair", body, {"Prefer": "wait=30"})
    assert (done.status, done.json["result"], done.headers["Preference-Applied"]) == (200, 12, "wait=30")
    assert app.post("/open/sleeping", headers={"Prefer": "wait=0"}).status == 202


def test_refusals_name_what_is_wrong(app: AppServer, order: dict[str, object]) -> None:
    """``gateway/test_http.py`` has a table of the others."""
    invalid = app.post("/open/orders", {**order, "amount": -1, "lines": "none"})
    assert [error["location"] for error in invalid.json["errors"]] == [["amount"], ["lines"]]
    broken = app.post("/open/orders", b"[" * 100_000, {"Content-Type": "application/json"})
    assert (broken.status, broken.headers["Content-Type"]) == (400, "application/problem+json")
    assert app.post("/open/orders", order).status == 202
    twice = app.post("/open/orders", order)
    assert (twice.status, twice.json["type"]) == (409, "urn:durably:problem:already-started")


def test_pages_of_other_sites_are_refused(app: AppServer) -> None:
    text = {"Content-Type": "text/plain"}
    for headers, status in (
        (text, 202),
        ({"Sec-Fetch-Site": "cross-site"}, 415),
        ({"Sec-Fetch-Site": "same-site"}, 415),
        # Over plain HTTP, browsers send no Sec-Fetch-Site.
        ({"Origin": "http://evil.example.com", **text}, 415),
        ({"Origin": "null", **text}, 415),
        ({"Origin": f"{app.origin}.example.com", **text}, 415),
        ({"Origin": app.origin}, 202),
        ({"Origin": "https://shop.example.com", "X-Forwarded-Host": "shop.example.com, internal"}, 202),
        ({"Origin": "https://shop.example.com", "X-Forwarded-Host": "shop.example.com:443"}, 202),
    ):
        assert app.post("/open/sleeping", b"", headers).status == status, headers
    json_of_another = {"Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}
    assert app.post("/open/sleeping", {}, json_of_another).status == 202  # CORS allows the site to send JSON.


def test_a_failed_workflow_shows_causes_without_details(app: AppServer, order: dict[str, object]) -> None:
    failed = app.post("/open/orders", {**order, "lines": ["decline"]}, {"Prefer": "wait=30"})
    assert (failed.status, failed.json["type"]) == (424, "urn:durably:problem:workflow-failed")
    assert [cause["type"] for cause in failed.json["failure"]] == ["ActivityError", "CardDeclined"]
    assert b"secret" not in failed.body


def test_authorize_decides_about_users(app: AppServer, order: dict[str, object]) -> None:
    anonymous = app.post("/guarded/orders", order)
    assert (anonymous.status, anonymous.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert app.post("/guarded/orders", order, {"X-User": "reader"}).status == 403
    started = app.post("/guarded/orders", order, {"X-User": "owner"})
    assert started.status == 202
    place = started.headers["Location"]
    assert app.get(place, {"X-User": "reader"}).status == 200
    assert app.post(f"{place}/terminate", headers={"X-User": "reader"}).status == 403
    assert app.post(f"{place}/terminate", headers={"X-User": "owner"}).status == 202


def test_live_progress_can_be_resumed(app: AppServer, order: dict[str, object]) -> None:
    place = app.post("/open/orders", order).headers["Location"]
    seen = []
    for event in app.events(f"{place}/events"):
        seen.append(event)
        if event.get("event") == "activity_task_completed":
            app.post(f"{place}/signals/ship")
    kinds = [event["event"] for event in seen if "event" in event]
    assert kinds[:2] == ["run", "workflow_execution_started"]
    assert kinds[-2:] == ["workflow_execution_completed", "result"]
    scheduled = next(event for event in seen if event.get("event") == "activity_task_scheduled")
    rest = [
        event["event"] for event in app.events(f"{place}/events", {"Last-Event-ID": scheduled["id"]}) if "id" in event
    ]
    assert rest == kinds[kinds.index("activity_task_scheduled") + 1 :]


def test_live_progress_continues_from_run_to_run(some_app: AppServer) -> None:
    owner = {"X-User": "owner"}
    place = some_app.post("/guarded/chains", {"steps": ["wait", "again", "fail", "wait"]}, owner).headers["Location"]
    seen: list[dict[str, str]] = []
    causes: list[str | None] = []
    for event in some_app.events(f"{place}/events", owner):
        if "id" in event:
            seen.append(event)
        if event.get("event") != "run":
            continue
        causes.append(json.loads(event["data"]).get("cause"))
        if causes[-1] == "retry":
            eventually(
                lambda: some_app.get(f"{place}/history", owner).json["events"][-1]["type"],
                "the workflow task has completed",
                is_right=lambda kind: kind == "workflow_task_completed",
            )
            assert some_app.post(f"{place}/reset", {"to": "last_workflow_task"}, owner).status == 202
        if causes[-1] in (None, "reset"):  # Each run continues only while it is followed.
            assert some_app.post(f"{place}/signals/go", {}, owner).status == 202
    assert causes == [None, "continue_as_new", "retry", "reset"]
    assert (seen[-1]["event"], json.loads(seen[-1]["data"])["result"]) == ("result", "done")

    ids = [event["id"] for event in seen]
    assert len(set(ids)) == len(ids)
    runs = [number for number, event in enumerate(seen) if event["event"] == "run"]
    for number in {number + step for number in runs for step in (-1, 0, 1)} - {-1}:
        rest = some_app.events(f"{place}/events", {**owner, "Last-Event-ID": ids[number]})
        assert [event["id"] for event in rest if "id" in event] == ids[number + 1 :], ids[number]
    ended = some_app.get(f"{place}/events", {**owner, "Last-Event-ID": ids[-1]})
    assert (ended.status, ended.body) == (204, b"")


def test_each_serves_the_same_document(app: AppServer, temporal: Temporal) -> None:
    from durably.temporal.gateway.openapi import openapi

    mine = openapi(open_gateway(temporal).endpoints, mount="/open", title="", version="")
    document = app.get("/openapi.json" if app.name == "fastapi" else "/open/openapi.json").json
    for path, operations in mine["paths"].items():
        for method, operation in operations.items():
            theirs = document["paths"][path][method]
            for part in ("operationId", "requestBody", "summary", "tags"):
                assert theirs.get(part) == operation.get(part)
            assert theirs["responses"].keys() - {"default"} == operation["responses"].keys()
            for status in ("200", "202"):
                if status in operation["responses"] and "events" not in path:
                    assert theirs["responses"][status] == operation["responses"][status]
    names = mine["components"]["schemas"].keys()
    theirs = {name: document["components"]["schemas"][name] for name in names}
    assert without_null_defaults(theirs) == without_null_defaults(mine["components"]["schemas"])


def without_null_defaults(document: Any) -> Any:
    """FastAPI leaves them out."""
    if isinstance(document, dict):
        kept = {name: value for name, value in document.items() if (name, value) != ("default", None)}
        return {name: without_null_defaults(value) for name, value in kept.items()}
    return document


def test_errors_in_the_apps_own_endpoints_are_problem_documents(app: AppServer, order: dict[str, object]) -> None:
    problem = app.get("/direct/none")
    assert (problem.status, problem.headers["Content-Type"]) == (404, "application/problem+json")
    app.post("/open/orders", order)
    assert f"order-{order['order_id']}" in app.get(f"/direct/order-{order['order_id']}").body.decode()


@pytest.mark.parametrize("name", variants(SERVERS, ["fastapi", "django-wsgi"]))
def test_without_a_server_an_app_starts_and_answers_503(name: str) -> None:
    absent = DevServer()
    with running(name, absent.address) as app:
        for path in ("/open/sleeping/x", "/direct/x"):
            problem = app.get(path)
            assert (problem.status, problem.json["type"]) == (503, "urn:durably:problem:server-unavailable")
            assert int(problem.headers["Retry-After"]) > 0
            assert absent.address not in problem.body.decode()
        absent.start()
        try:
            assert app.get("/open/sleeping/x").status == 404
        finally:
            absent.kill()


@pytest.mark.parametrize("name", ["django-wsgi", "django-asgi"])
def test_django_checks_csrf_for_sessions(name: str, apps: Callable[..., AppServer]) -> None:
    app = apps(name)
    token = "t" * 32
    form = f"csrfmiddlewaretoken={token}".encode()
    cookie, form_type = {"Cookie": f"csrftoken={token}"}, {"Content-Type": "application/x-www-form-urlencoded"}
    parts = b'--x\r\nContent-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n%s\r\n--x--\r\n' % token.encode()
    for headers in ({}, cookie, {"X-CSRFToken": token}, {**cookie, "X-CSRFToken": "f" * 32}):
        refused = app.post("/csrf/sleeping", headers=headers)
        assert (refused.status, refused.headers["Content-Type"]) == (403, "application/problem+json")
        assert refused.json["type"] == "urn:durably:problem:csrf"
        assert "X-Csrftoken" in refused.json["detail"]
    assert app.post("/csrf/sleeping", headers={**cookie, "X-CSRFToken": token}).status == 202
    assert app.post("/csrf/sleeping", form, {**cookie, **form_type}).status == 415
    assert (
        app.post("/csrf/sleeping", parts, {**cookie, "Content-Type": "multipart/form-data; boundary=x"}).status == 415
    )
    assert app.post("/csrf/sleeping", b"--", {**cookie, "Content-Type": "multipart/form-data"}).status == 400
    assert app.get("/csrf/sleeping/none").status == 404


UNKNOWN, REPEATED = "unknown-parameter", "repeated-parameter"
PARAMETERS = [
    ("GET", "orders?limit=5", UNKNOWN, "status, started_after, started_before, page_size, page"),
    ("HEAD", "orders?limit=5", None, None),
    ("GET", "orders/none/history?page_sise=5", UNKNOWN, "run_id, page_size, page"),
    ("GET", "orders/none/queries/note?indx=5", UNKNOWN, "run_id, index"),
    ("POST", "orders/none/cancel?reason=5", UNKNOWN, "run_id"),
    ("POST", "sum-of-pair?wait=5", UNKNOWN, "none"),
    ("GET", "orders?page_size=5&page_size=5", REPEATED, None),
    ("GET", "orders/none/result?wait=1&run_id=1&wait=2", REPEATED, None),
    ("GET", "orders/none/queries/note?index=1&index=2", REPEATED, None),
]
"""Requests that are refused: the kind of the problem, and the parameters that are known."""


def test_unknown_and_repeated_query_parameters_are_refused(app: AppServer) -> None:
    """Of a repeated one, frameworks read different values."""
    headers = {"X-User": "owner", "Content-Type": "application/json"}
    for method, path, kind, known in PARAMETERS:
        refused = app.ask(method, f"/guarded/{path}", b"{}" if method == "POST" else None, headers)
        assert refused.status == 400, path
        assert kind is None or refused.json["type"] == f"urn:durably:problem:{kind}", path
        assert known is None or refused.json["detail"].endswith(f": there are {known}"), path
    assert app.get("/guarded/orders", headers, page_size="5").status == 200
