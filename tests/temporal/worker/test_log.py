"""The worker's log: workflows that start and end, activities that fail, with the id of the web request."""

import io
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import flask
import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from temporalio.client import WorkflowFailureError

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal, Workers
from durably.temporal.fast_api import router
from durably.temporal.flask import blueprint
from durably.temporal.gateway import Gateway, expose
from durably.temporal.request_log import RequestIdFilter, RequestLogMiddleware, web_request

from ...variants import variants
from ..dev_server import DevServer
from .logged_workflows import BuyWorkflow, ChildWorkflow, charge


class Lines(logging.Handler):
    """Records of the worker and of the activities."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, id: str) -> list[tuple[str, str]]:
        """The levels and outcomes of a workflow and its activities."""
        return [(each.levelname, each.outcome) for each in self.records if getattr(each, "workflow_id", None) == id]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    handler.addFilter(RequestIdFilter())
    loggers = [logging.getLogger(name) for name in ("durably.temporal", "shop")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield handler
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def connected(server: DevServer, **options: Any) -> Iterator[Temporal]:
    """A connection with its own worker."""
    temporal = Temporal(server.address, task_queue=f"logged-{uuid.uuid4().hex[:8]}")
    temporal.add_worker(workflows=[BuyWorkflow, ChildWorkflow], activities=[charge], **options)
    workers = Workers(temporal, grace=timedelta(seconds=1))
    running = get_background_loop().submit(workers.run())
    get_background_loop().run(workers.started())
    yield temporal
    running.cancel()


@pytest.fixture(scope="module")
def connection(server: DevServer) -> Iterator[Temporal]:
    with connected(server) as temporal:
        yield temporal


def buy(connection: Temporal, order_id: str) -> str:
    """Run a workflow. Returns its id."""
    id = uuid.uuid4().hex
    connection.sync.execute_workflow(BuyWorkflow.run, order_id, id=id, task_queue=connection.task_queue)
    return id


def test_start_and_completion_are_logged_once_although_tasks_are_replayed(server: DevServer, lines: Lines) -> None:
    with connected(server, max_cached_workflows=0) as connection:  # Each workflow task replays the earlier ones.
        id = buy(connection, "7")
    assert lines.of(id) == [("INFO", "started"), ("INFO", "completed")]
    started, completed = [each for each in lines.records if getattr(each, "workflow_id", None) == id]
    assert started.getMessage() == f"workflow BuyWorkflow started: id {id}, run {started.run_id}"
    assert (completed.workflow_type, completed.run_id) == ("BuyWorkflow", started.run_id)
    assert completed.duration_seconds >= 0
    text = f"workflow BuyWorkflow completed after {completed.duration_seconds:.3f} s: id {id}, run {started.run_id}"
    assert completed.getMessage() == text


def test_failures_are_logged_with_their_cause_and_without_secrets(connection: Temporal, lines: Lines) -> None:
    id = uuid.uuid4().hex
    with pytest.raises(WorkflowFailureError):
        connection.sync.execute_workflow(BuyWorkflow.run, "declined", id=id, task_queue=connection.task_queue)
    assert lines.of(id) == [("INFO", "started"), ("ERROR", "failed")]
    assert lines.of(f"{id}-child") == [("INFO", "started"), ("ERROR", "failed"), ("ERROR", "failed")]
    failed = [each for each in lines.records if getattr(each, "outcome", "") == "failed"]
    assert {each.error_type for each in failed} == {"CardDeclined"}
    assert all(each.getMessage().endswith(": CardDeclined: the card was declined, password=***") for each in failed)
    assert failed[0].getMessage().startswith("activity charge failed after ")


def test_an_id_cannot_forge_a_line(connection: Temporal, lines: Lines) -> None:
    id = f"{uuid.uuid4().hex}\nERROR forged"
    connection.sync.execute_workflow(BuyWorkflow.run, "7", id=id, task_queue=connection.task_queue)
    [started, *_] = [each for each in lines.records if getattr(each, "workflow_id", None) == id]
    assert "\\nERROR forged" in started.getMessage()
    assert len(started.getMessage().splitlines()) == 1


def test_an_attempt_that_will_be_repeated_is_a_warning(connection: Temporal, lines: Lines) -> None:
    id = buy(connection, "flaky")
    assert lines.of(f"{id}-child") == [("INFO", "started"), ("WARNING", "failed"), ("INFO", "completed")]
    [failed] = [each for each in lines.records if getattr(each, "outcome", "") == "failed"]
    assert (failed.activity_type, failed.attempt, failed.error) == ("charge", 1, "the bank is away")


@pytest.mark.slow
def test_cancelled_and_continued_workflows_are_distinguished(connection: Temporal, lines: Lines) -> None:
    id = buy(connection, "again")
    outcomes = [outcome for _, outcome in lines.of(id)]
    assert outcomes == ["started", "continued_as_new", "started", "completed"]
    handle = connection.sync.start_workflow(
        BuyWorkflow.run, "waits", id=uuid.uuid4().hex, task_queue=connection.task_queue
    )
    handle.cancel()
    with pytest.raises(WorkflowFailureError):
        handle.result()
    assert lines.of(handle.id) == [("INFO", "started"), ("INFO", "cancelled")]


def make_gateway(connection: Temporal) -> Gateway:
    return Gateway(connection, [expose(BuyWorkflow, name="orders")], allow_anonymous=True)


def post_fast_api(connection: Temporal, headers: dict[str, str]) -> str:
    app = FastAPI()
    app.include_router(router(make_gateway(connection)))
    app.add_middleware(RequestLogMiddleware)
    return str(TestClient(app).post("/orders", json={"order_id": "7"}, headers=headers).json()["workflow_id"])


def post_flask(connection: Temporal, headers: dict[str, str]) -> str:
    """Without middleware: the gateway itself reads the header."""
    app = flask.Flask(__name__)
    app.register_blueprint(blueprint(make_gateway(connection)))
    return str(app.test_client().post("/orders", json={"order_id": "7"}, headers=headers).get_json()["workflow_id"])


def post_own(connection: Temporal, headers: dict[str, str]) -> str:
    """An app's own view, with its own request ids."""
    with web_request(headers["X-Request-ID"]):
        return connection.sync.start_workflow(
            BuyWorkflow.run, "7", id=uuid.uuid4().hex, task_queue=connection.task_queue
        ).id


@pytest.mark.parametrize("post", variants([post_fast_api, post_flask, post_own], [post_own]))
def test_the_requests_id_is_in_the_log_of_all_that_it_starts(
    connection: Temporal, lines: Lines, post: Callable[[Temporal, dict[str, str]], str]
) -> None:
    request = f"req-{uuid.uuid4().hex}"
    id = post(connection, {"X-Request-ID": request})
    assert connection.sync.get_workflow_handle(id).result() == f"7 by {request}"
    about = [each for each in lines.records if getattr(each, "workflow_id", "").startswith(id)]
    assert [each.request_id for each in about] == [request] * 4
    assert f", request {request}" in about[0].getMessage()
    own = [each for each in lines.records if each.name == "shop"]
    assert [each.request_id for each in own] == [request]
    assert all(each.request_id == request for each in lines.records if each.name == "durably.temporal.requests")


@pytest.mark.slow
def test_an_id_that_could_forge_lines_is_replaced(connection: Temporal, lines: Lines) -> None:
    id = post_fast_api(connection, {"X-Request-ID": "a b" * 100})
    connection.sync.get_workflow_handle(id).result()
    [request] = [each for each in lines.records if each.name == "durably.temporal.requests"]
    started = next(each for each in lines.records if getattr(each, "workflow_id", None) == id)
    assert started.request_id == request.request_id
    assert " " not in request.request_id


@pytest.mark.slow
def test_structlog_writes_the_fields_as_json(connection: Temporal) -> None:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()], processor=structlog.processors.JSONRenderer()
        )
    )
    logger = logging.getLogger("durably.temporal.workflows")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        id = buy(connection, "7")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    [completed] = [
        row
        for row in map(json.loads, output.getvalue().splitlines())
        if row["workflow_id"] == id and row["outcome"] == "completed"
    ]
    assert completed["workflow_type"] == "BuyWorkflow"
    assert completed["event"].startswith("workflow BuyWorkflow completed after ")
