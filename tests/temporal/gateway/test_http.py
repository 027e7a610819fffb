"""The same responses in each framework: methods, content types, trailing slashes, sizes, missing paths."""

import http.client
import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from durably.temporal import Temporal

from ...variants import variants
from ...wire import Answer
from ..app_server import QUICK, AppServer, running
from ..apps import LIMITS
from ..dev_server import DevServer
from ..serve import ALIKE
from ..workflows import TASK_QUEUE, SleepingWorkflow

PROBLEM, JSON, STREAM = "application/problem+json", "application/json", "text/event-stream"
FORM = "application/x-www-form-urlencoded"
NOT_FOUND, NOT_ALLOWED, TOO_LARGE, NO_JSON = "not-found", "method-not-allowed", "too-large", "no-json"

ORDER = {"order_id": "idle-starts-this", "amount": 1, "lines": []}
LARGE = b"[" + b" " * LIMITS.max_body + b"]"

CASES: list[tuple[str, str, Any, str | None, int, str | None, str | None]] = [
    # method, path, body, its content type, then: status, kind of the problem or content type, Allow
    ("GET", "/sleeping/{id}", None, None, 200, JSON, None),
    ("GET", "/sleeping/{id}/", None, None, 200, JSON, None),
    ("GET", "/sleeping/{id}/events", None, None, 200, STREAM, None),
    ("GET", "/sleeping/{id}/result", None, None, 202, JSON, None),
    ("GET", "/sleeping/absent", None, None, 404, NOT_FOUND, None),
    ("GET", "/sleeping/{id}//result", None, None, 404, NOT_FOUND, None),
    ("GET", "/nothing", None, None, 404, NOT_FOUND, None),
    ("GET", "/", None, None, 404, NOT_FOUND, None),
    ("POST", "/nothing/x", {}, JSON, 404, NOT_FOUND, None),
    ("GET", "/sleeping/{id}/nothing", None, None, 404, NOT_FOUND, None),
    ("GET", "/sleeping/{id}/signals/unknown", None, None, 404, NOT_FOUND, None),
    ("GET", "/sleeping/{id}/terminate", None, None, 404, NOT_FOUND, None),
    ("PUT", "/sleeping/{id}", {}, JSON, 405, NOT_ALLOWED, "GET, HEAD, OPTIONS"),
    ("DELETE", "/sleeping/{id}/", None, None, 405, NOT_ALLOWED, "GET, HEAD, OPTIONS"),
    ("PATCH", "/sleeping/{id}/cancel", {}, JSON, 405, NOT_ALLOWED, "OPTIONS, POST"),
    ("GET", "/sleeping/{id}/cancel", None, None, 405, NOT_ALLOWED, "OPTIONS, POST"),
    ("TRACE", "/orders", None, None, 405, NOT_ALLOWED, "GET, HEAD, OPTIONS, POST"),
    ("DELETE", "/orders", None, None, 405, NOT_ALLOWED, "GET, HEAD, OPTIONS, POST"),
    ("HEAD", "/sleeping/{id}/cancel", None, None, 405, NOT_ALLOWED, "OPTIONS, POST"),
    ("HEAD", "/sleeping", None, None, 405, NOT_ALLOWED, "OPTIONS, POST"),
    ("OPTIONS", "/orders", None, None, 204, None, "GET, HEAD, OPTIONS, POST"),
    ("OPTIONS", "/orders/x/queries/note", None, None, 204, None, "GET, HEAD, OPTIONS, POST"),
    ("OPTIONS", "/orders/x/queries/has_lines/", None, None, 204, None, "OPTIONS, POST"),
    ("OPTIONS", "/sleeping/x/events", None, None, 204, None, "GET, HEAD, OPTIONS"),
    ("OPTIONS", "/nothing", None, None, 404, NOT_FOUND, None),
    ("POST", "/orders", b"{}", "text/plain", 415, NO_JSON, None),
    ("POST", "/orders", b"{}", None, 415, NO_JSON, None),
    ("POST", "/orders", b"order_id=1", FORM, 415, NO_JSON, None),
    ("POST", "/sleeping/{id}/cancel", b"", FORM, 415, NO_JSON, None),
    ("POST", "/orders", b"{", "application/json; charset=utf-8", 400, "invalid-input", None),
    ("POST", "/orders", b"{}", "application/vnd.api+json", 400, "invalid-input", None),
    ("POST", "/orders", b"", JSON, 400, "bad-request", None),
    ("POST", "/orders", b"\xff", JSON, 400, "invalid-input", None),
    ("POST", "/orders/", b"[]", JSON, 400, "invalid-input", None),
    ("POST", "/orders", {**ORDER, "amount": "many"}, JSON, 400, "invalid-input", None),
    ("POST", "/orders/%00/cancel", {}, JSON, 400, "bad-request", None),
    ("GET", "/orders/x/queries/note?index=many", None, None, 400, "invalid-input", None),
    ("GET", "/orders?page_size=many", None, None, 400, "invalid-input", None),
    ("GET", "/orders?status=odd", None, None, 400, "invalid-input", None),
    ("POST", "/orders", LARGE, JSON, 413, TOO_LARGE, None),
    ("POST", "/orders/x/signals/ship", LARGE, "text/plain", 413, TOO_LARGE, None),
]
HEADS = ("/sleeping/{id}", "/sleeping/{id}/events", "/sleeping/{id}/result/", "/sleeping/absent", "/nothing", "/orders")
_answers: dict[str, dict[int, object]] = {}


@pytest.fixture(scope="module", params=variants(ALIKE, ["fastapi", "flask", "django-wsgi", "tornado"]))
def app(request: pytest.FixtureRequest, server: DevServer) -> Iterator[AppServer]:
    with running(request.param, server.address, **QUICK) as app:
        yield app


@pytest.fixture(scope="session")
def workflow_id(temporal: Temporal) -> Iterator[str]:
    """A workflow on a queue without a worker: responses about it do not change."""
    handle = temporal.sync.start_workflow(
        SleepingWorkflow.run, id=f"sleeping-{uuid.uuid4()}", task_queue=f"{TASK_QUEUE}-without-worker"
    )
    yield handle.id
    handle.terminate()


def ask(app: AppServer, method: str, path: str, body: Any = None, content_type: str | None = None) -> Answer:
    """A request without the headers of a client library."""
    connection = http.client.HTTPConnection(urlsplit(app.origin).netloc, timeout=60)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": content_type} if content_type else {}
    try:
        connection.request(method, f"/open{path}", content, headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def test_each_framework_answers_alike(app: AppServer, workflow_id: str) -> None:
    for method, path, body, content_type, status, kind, allow in CASES:
        answer = ask(app, method, path.replace("{id}", workflow_id), body, content_type)
        case = f"{method} {path} {body if body is None else body[:20] if isinstance(body, bytes) else body}"
        assert answer.status == status, (case, answer.body)
        assert answer.headers["Allow"] == allow, case
        found = answer.headers["Content-Type"]
        if method == "HEAD":
            assert (found, answer.body) == (PROBLEM, b""), case
        elif kind is None:
            assert answer.body == b"", case
        elif kind in (JSON, STREAM):
            assert found.partition(";")[0] == kind, case
            assert answer.headers["Cache-Control"].startswith("no-"), case
        else:
            assert found == PROBLEM, case
            assert answer.json["type"] == f"urn:durably:problem:{kind}", case
            assert answer.json["status"] == status, case


def test_problems_are_the_same_documents(app: AppServer, workflow_id: str) -> None:
    """The responses of all frameworks are equal to those of the first."""
    for number, (method, path, body, content_type, status, _, _) in enumerate(CASES):
        if status < 400 or method == "HEAD":
            continue
        found = ask(app, method, path.replace("{id}", workflow_id), body, content_type).json
        expected = _answers.setdefault("problems", {}).setdefault(number, found)
        assert found == expected, f"{app.name}: {method} {path}"


@pytest.mark.parametrize("path", HEADS)
def test_head_is_get_without_the_body(app: AppServer, workflow_id: str, path: str) -> None:
    path = path.replace("{id}", workflow_id)
    get, head = ask(app, "GET", path), ask(app, "HEAD", path)
    assert (head.status, head.headers["Content-Type"], head.body) == (get.status, get.headers["Content-Type"], b"")
    if "events" not in path:
        assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(get.body))


def test_the_document_has_get_only(app: AppServer) -> None:
    get, head = ask(app, "GET", "/openapi.json"), ask(app, "HEAD", "/openapi.json")
    assert (get.status, get.headers["Content-Type"], "paths" in get.json) == (200, JSON, True)
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(get.body)), b"")
    other, options = ask(app, "POST", "/openapi.json", {}), ask(app, "OPTIONS", "/openapi.json")
    assert (other.status, other.headers["Content-Type"]) == (405, PROBLEM)
    assert (options.status, options.body) == (204, b"")
    assert other.headers["Allow"] == options.headers["Allow"] == "GET, HEAD, OPTIONS"
