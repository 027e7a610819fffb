"""One trace from the web request through workflow and activities; workflow ids in the log of requests."""

import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import opentelemetry.trace
import pytest
import tornado.web
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from temporalio.client import Client
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from durably.temporal import Temporal
from durably.temporal.gateway import Gateway, expose
from durably.temporal.request_log import (
    RequestLog,
    RequestLogMiddleware,
    WorkflowIdFilter,
    WsgiRequestLogMiddleware,
    note_workflow,
    noting_workflows,
)
from durably.temporal.tornado import RequestLogMixin, routes
from durably.testing.temporal import TemporalServer

from .django.django_site import DjangoSite
from .workflows import ACTIVITIES, WORKFLOWS, Order, OrderWorkflow


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Spans of the test; the provider is global, and OpenTelemetry sets it once for a process."""
    provider = opentelemetry.trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        opentelemetry.trace.set_tracer_provider(provider)
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    yield exporter
    processor.shutdown()


def make_temporal(**options: Any) -> Temporal:
    temporal = Temporal(task_queue=f"watched-{uuid.uuid4().hex}", **options)
    temporal.add_worker(workflows=WORKFLOWS, activities=ACTIVITIES)
    return temporal


def make_fast_api(temporal: Temporal) -> FastAPI:
    app = FastAPI()

    @app.post("/orders/{id}")
    async def place(id: str, client: Client = Depends(temporal.client)) -> str:  # noqa: B008
        with opentelemetry.trace.get_tracer("web").start_as_current_span("POST /orders"):
            queue = temporal.settings.task_queue or ""
            await client.execute_workflow(OrderWorkflow.run, Order(order_id=id, amount=1), id=id, task_queue=queue)
        logging.getLogger("shop").info("placed")
        return "done"

    return app


def make_flask(temporal: Temporal) -> flask.Flask:
    app = flask.Flask(__name__)

    @app.post("/orders/<id>")
    def place(id: str) -> tuple[str, int]:
        with opentelemetry.trace.get_tracer("web").start_as_current_span("POST /orders"):
            temporal.sync.execute_workflow(
                OrderWorkflow.run, Order(order_id=id, amount=1), id=id, task_queue=temporal.task_queue
            )
        return "done", 202

    return app


BENEATH = {
    "StartWorkflow:OrderWorkflow": "POST /orders",
    "RunWorkflow:OrderWorkflow": "StartWorkflow:OrderWorkflow",
    "StartActivity:charge": "StartWorkflow:OrderWorkflow",
    "RunActivity:charge": "StartActivity:charge",
}
"""The spans of an order, and those that they are in."""


def check_trace(spans: tuple[ReadableSpan, ...]) -> None:
    by_name = {span.name: span for span in spans}
    for name, outer in BENEATH.items():
        span, parent = by_name[name], by_name[outer]
        assert span.parent is not None
        assert parent.context is not None
        assert (span.parent.trace_id, span.parent.span_id) == (parent.context.trace_id, parent.context.span_id), name


def test_one_trace_in_fast_api(exporter: InMemorySpanExporter, temporal_server: TemporalServer) -> None:
    temporal = make_temporal(tracing=True)
    with temporal_server.working(temporal), TestClient(make_fast_api(temporal)) as client:
        assert client.post(f"/orders/{uuid.uuid4().hex}").status_code == 200
    check_trace(exporter.get_finished_spans())


def test_one_trace_in_flask(exporter: InMemorySpanExporter, temporal_server: TemporalServer) -> None:
    temporal = make_temporal(tracing=True)
    with temporal_server.working(temporal):
        assert make_flask(temporal).test_client().post(f"/orders/{uuid.uuid4().hex}").status_code == 202
    check_trace(exporter.get_finished_spans())


def test_tracing_without_open_telemetry_names_its_extra() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; from durably.temporal import *; Temporal(tracing=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert 'pip install "durably[temporal-otel]"' in done.stderr.splitlines()[-1]


def test_requests_are_logged_with_their_workflows(
    temporal_server: TemporalServer, caplog: pytest.LogCaptureFixture
) -> None:
    temporal = make_temporal()
    app = make_fast_api(temporal)
    app.add_middleware(RequestLogMiddleware)
    wsgi = make_flask(temporal)
    wsgi.wsgi_app = WsgiRequestLogMiddleware(wsgi.wsgi_app)  # type: ignore[method-assign]
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(own := WorkflowIdFilter())
    ids = [uuid.uuid4().hex, uuid.uuid4().hex]
    with temporal_server.working(temporal), TestClient(app) as client:
        client.post(f"/orders/{ids[0]}")
        wsgi.test_client().post(f"/orders/{ids[1]}")
        client.get("/nothing")
    caplog.handler.removeFilter(own)
    [placed] = [record for record in caplog.records if record.name == "shop"]
    assert placed.workflow_ids == [ids[0]]  # type: ignore[attr-defined]
    first, second, third = [record.getMessage() for record in caplog.records if record.name.endswith("requests")]
    assert first.startswith(f"POST /orders/{ids[0]} 200 in ")
    assert first.endswith(f" ms workflows: {ids[0]}")
    assert second.startswith(f"POST /orders/{ids[1]} 202 in ")
    assert second.endswith(f"workflows: {ids[1]}")
    assert third.startswith("GET /nothing 404 in ")
    assert third.endswith(" ms")


def test_a_path_with_line_ends_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with RequestLog("GET", "/orders/x\nPOST /login 200\x1b[2J") as log:
        note_workflow("x\ny")
        log.status = 404
    [record] = [record for record in caplog.records if record.name.endswith("requests")]
    assert record.getMessage().startswith(r"GET /orders/x\nPOST /login 200\x1b[2J 404 in ")
    assert record.getMessage().endswith(r" workflows: x\ny")
    assert record.path == "/orders/x\nPOST /login 200\x1b[2J"  # type: ignore[attr-defined]


def test_django_logs_a_refusal_of_csrf_in_one_line() -> None:
    code = """
import logging
from django.conf import settings
settings.configure(MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"], SECRET_KEY="s", ALLOWED_HOSTS=["*"])
from django.test import RequestFactory
from durably.temporal.django.views import csrf_check
from durably.temporal.gateway.problems import Problem
request = RequestFactory(enforce_csrf_checks=True).post("/x%0aForged: %1b[2J")
request._dont_enforce_csrf_checks = False
logging.basicConfig(format="%(message)s")
try:
    csrf_check()(request)
except Problem as problem:
    print(problem.status.value)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "403\n", done.stderr
    assert done.stderr == "Forbidden (CSRF cookie not set.): /x\\nForged: \\x1b[2J\n"


async def test_tornado_logs_requests_too(temporal_server: TemporalServer, caplog: pytest.LogCaptureFixture) -> None:
    temporal = make_temporal()

    class Own(RequestLogMixin):
        async def prepare(self) -> None:
            """Handlers have their own method, which does not always call that of their bases."""

        async def post(self, id: str) -> None:
            client = await temporal.client()
            await client.start_workflow("SleepingWorkflow", id=id, task_queue="unpolled")
            logging.getLogger("shop").info("placed")
            raise tornado.web.HTTPError(402)

        def log_exception(self, *args: Any) -> None:
            """Do nothing."""

    gateway = Gateway(temporal, [expose(OrderWorkflow, name="orders")], allow_anonymous=True)
    app = tornado.web.Application([(r"/own/(.+)", Own), *routes(gateway, prefix="/api", base=RequestLogMixin)])
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(own := WorkflowIdFilter())
    ids = [uuid.uuid4().hex, uuid.uuid4().hex]
    [listener] = bind_sockets(0, "127.0.0.1")
    (server := HTTPServer(app)).add_socket(listener)
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with temporal_server.connected(temporal):
        for method, path in (("POST", f"/own/{ids[0]}"), ("GET", f"/api/orders/{ids[1]}")):
            body = b"" if method == "POST" else None
            sent = {"X-Request-ID": f"req-{method}"}
            await AsyncHTTPClient().fetch(origin + path, method=method, body=body, headers=sent, raise_error=False)
    server.stop()
    caplog.handler.removeFilter(own)
    [placed] = [record for record in caplog.records if record.name == "shop"]
    assert placed.workflow_ids == [ids[0]]  # type: ignore[attr-defined]
    records = [record for record in caplog.records if record.name.endswith("temporal.requests")]
    assert [record.request_id for record in records] == ["req-POST", "req-GET"]  # type: ignore[attr-defined]
    first, second = [record.getMessage() for record in records]
    assert first.startswith(f"POST /own/{ids[0]} 402 in ")
    assert first.endswith(f" ms workflows: {ids[0]}")
    assert second.startswith(f"GET /api/orders/{ids[1]} 404 in ")
    assert second.endswith(f" ms workflows: {ids[1]}")


def test_all_calls_are_noted(temporal_server: TemporalServer) -> None:
    temporal = make_temporal()
    with temporal_server.connected(temporal):
        with noting_workflows() as noted:
            started = temporal.sync.start_workflow(
                "SleepingWorkflow", id=uuid.uuid4().hex, task_queue=temporal.task_queue
            )
        assert noted == [started.id]
        for act in (
            lambda handle: handle.describe(),
            lambda handle: handle.signal("anything"),
            lambda handle: handle.fetch_history(),
            lambda handle: handle.cancel(),
            lambda handle: handle.terminate(),
        ):
            with noting_workflows() as noted:
                act(started)
            assert noted == [started.id]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["wsgi", "asgi"])
def test_django_logs_requests_too(tmp_path: Path, server: str) -> None:
    with TemporalServer() as temporal_server:
        check_log_of_django(DjangoSite(tmp_path, temporal_server.address), server)


def check_log_of_django(site: DjangoSite, server: str) -> None:
    settings = site.directory / "project" / "settings.py"
    settings.write_text(
        settings.read_text()
        + 'MIDDLEWARE.insert(0, "durably.temporal.django.request_log_middleware")\n'
        + 'LOGGING = {"version": 1, "formatters": {"line": {"format": "%(message)s of %(request_id)s"}}, '
        + '"handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line"}}, '
        + '"loggers": {"durably.temporal.requests": {"handlers": ["out"], "level": "INFO"}}}\n'
    )
    site.migrate()
    client = "AsyncClient" if server == "asgi" else "Client"
    post = f"{client}().post('/signup/', {{'name': 'ada'}}, headers={{'X-Request-ID': 'req-1'}})"
    call = f"import asyncio; response = asyncio.run({post})" if server == "asgi" else f"response = {post}"
    done = site.run("shell", "--command", f"from django.test import {client}\n{call}\nprint(response.status_code)")
    assert done.stdout.strip().endswith("200"), done.stderr
    assert "POST /signup/ 200 in " in done.stderr
    assert done.stderr.strip().endswith("workflows: signup-1 of req-1")
