"""Apps with views, workflow and activity in one module, as in tutorials of the frameworks."""

import importlib
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

from durably.io.background_loop import get_background_loop
from durably.temporal import TemporalWorkerError, Workers

from ..cli.conftest import directory, start, write
from .dev_server import DevServer

__all__ = ["directory", "start"]

ORDERS = """
    from datetime import timedelta
    from temporalio import activity, workflow
    from temporalio.common import RetryPolicy
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway, expose

    @activity.defn
    async def process_order(order_id: str) -> str:
        return f"Processed order {order_id}"

    @workflow.defn
    class OrderWorkflow:
        @workflow.run
        async def run(self, order_id: str) -> str:
            return await workflow.execute_activity(
                process_order,
                order_id,
                start_to_close_timeout=timedelta(minutes=5),
                retry_policy=RetryPolicy(maximum_attempts=3),
            )

    temporal = Temporal(task_queue="{queue}")
    temporal.add_worker(workflows=[OrderWorkflow], activities=[process_order])
    gateway = Gateway(temporal, [expose(OrderWorkflow, name="orders")], allow_anonymous=True)
"""
FAST_API = """
    from pathlib import Path
    import httpx
    import requests
    from fastapi import FastAPI, HTTPException
    from fastapi.staticfiles import StaticFiles
    from pydantic import BaseModel, Field
    from sqlalchemy import String, create_engine, select
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
    {orders}
    from durably.temporal.fast_api import router

    BASE = Path(__file__).resolve().parent

    class Base(DeclarativeBase):
        pass

    class Hero(Base):
        __tablename__ = "heroes"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(30))

    class HeroIn(BaseModel):
        name: str = Field(min_length=1)

    class ApiError(requests.RequestException):
        pass

    engine = create_engine(f"sqlite:///{BASE}/heroes.db")
    app = FastAPI(lifespan=temporal.lifespan(worker=True))
    app.include_router(router(gateway))

    @app.post("/heroes")
    def add(hero: HeroIn) -> str:
        with Session(engine) as session:
            session.add(Hero(name=hero.name))
            session.commit()
        return hero.name
"""
FLASK = """
    import sqlite3
    import requests
    from flask import Flask, g, jsonify, request
    {orders}
    from durably.temporal.flask import blueprint, init_app

    app = Flask(__name__)
    init_app(app, temporal)
    app.register_blueprint(blueprint(gateway, url_prefix="/api"))

    @app.post("/orders")
    def create_order():
        order_id = request.json["order_id"]
        handle = temporal.sync.start_workflow(
            OrderWorkflow.run, order_id, id=f"order-{order_id}", task_queue=temporal.task_queue
        )
        return jsonify({"workflow_id": handle.id, "status": "started"})

    if __name__ == "__main__":
        app.run(debug=True)
"""
TORNADO = """
    import tornado.ioloop
    import tornado.web
    from tornado.httpclient import AsyncHTTPClient
    {orders}
    from durably.temporal.tornado import routes

    class MainHandler(tornado.web.RequestHandler):
        def get(self):
            self.write("Hello, world")

    app = tornado.web.Application([(r"/", MainHandler), *routes(gateway, prefix="/api")])
"""
APPS = {"fast_api": FAST_API, "flask": FLASK, "tornado": TORNADO}
CALLS_A_SERVER = """
    import requests
    {orders}
    @workflow.defn
    class CallingWorkflow:
        @workflow.run
        async def run(self) -> None:
            requests.get("http://127.0.0.1:9/")

    temporal.add_worker(workflows=[CallingWorkflow])
"""
BROKEN_LIBRARY = """
    import http.client

    class Connection(http.client.HTTPConnection):
        pass
"""


@pytest.fixture
def queue() -> str:
    return f"one-file-{uuid.uuid4().hex[:8]}"


def write_app(path: Path, source: str, queue: str) -> None:
    """Its module's source, with the workflow in it."""
    source = textwrap.dedent(source).replace("{orders}", textwrap.dedent(ORDERS).replace("{queue}", queue))
    write(path, source)


@pytest.fixture
def load(
    directory: Path, server: DevServer, queue: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ModuleType]]:
    """Imports an app of the given source."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
    monkeypatch.syspath_prepend(directory)
    name = queue.replace("-", "_")

    def load_(source: str) -> ModuleType:
        write_app(directory / f"{name}.py", source, queue)
        return importlib.import_module(name)

    yield load_
    sys.modules.pop(name, None)


async def run_workers(app: ModuleType, workflow: str, *arguments: str) -> object:
    """The result of a workflow of the app, with its workers running."""
    async with app.temporal.lifespan(worker=True):
        client = await app.temporal.client()
        queue = app.temporal.settings.task_queue
        return await client.execute_workflow(
            workflow,
            args=arguments,
            id=uuid.uuid4().hex,
            task_queue=queue,
            execution_timeout=timedelta(seconds=60),
        )


@pytest.mark.parametrize("framework", APPS)
def test_a_worker_runs_the_workflow_of_a_single_file_app(load: Callable[[str], ModuleType], framework: str) -> None:
    app = load(APPS[framework])
    assert get_background_loop().run(run_workers(app, "OrderWorkflow", "7")) == "Processed order 7"


def test_a_web_process_runs_the_worker_of_a_single_file_app(load: Callable[[str], ModuleType]) -> None:
    with TestClient(load(FAST_API).app) as client:
        started = client.post("/orders", json={"order_id": "7"})
        result = client.get(started.json()["links"]["result"], params={"wait": 30})
        assert result.json()["result"] == "Processed order 7"


def test_a_workflow_that_calls_another_server_fails_although_the_library_is_shared(
    load: Callable[[str], ModuleType], caplog: pytest.LogCaptureFixture
) -> None:
    app = load(CALLS_A_SERVER)

    async def run() -> str:
        async with app.temporal.lifespan(worker=True):
            client = await app.temporal.client()
            handle = await client.start_workflow(
                "CallingWorkflow", id=uuid.uuid4().hex, task_queue=app.temporal.settings.task_queue
            )
            async for event in handle.fetch_history_events(wait_new_event=True):
                if event.HasField("workflow_task_failed_event_attributes"):
                    await handle.terminate()
                    return event.workflow_task_failed_event_attributes.failure.message
        return "the workflow ended"

    assert "Cannot access requests.get" in get_background_loop().run(run())


def failure_of(app: ModuleType) -> str:
    with pytest.raises(TemporalWorkerError) as failed:
        get_background_loop().run(Workers(app.temporal).run())
    return str(failed.value)


def test_an_import_that_fails_in_the_sandbox_is_named(load: Callable[[str], ModuleType], directory: Path) -> None:
    write(directory / "odd_library.py", BROKEN_LIBRARY)
    app = load("import odd_library\n{orders}")
    said = failure_of(app)
    assert f"At {app.__file__}, line 1: import odd_library" in said
    assert "workflow.unsafe.imports_passed_through()" in said
    assert "http.client.HTTPConnection" in said


def test_a_line_that_the_sandbox_forbids_is_named(load: Callable[[str], ModuleType]) -> None:
    app = load("import secrets\nKEY = secrets.token_hex()\n{orders}")
    said = failure_of(app)
    assert f"At {app.__file__}, line 2: KEY = secrets.token_hex()" in said
