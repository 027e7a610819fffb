"""Workers are killed during an activity: another worker repeats it, and the workflow completes."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durably.temporal import Temporal
from durably.temporal.gateway import Gateway, expose

from ...cli.conftest import Command
from ...waiting import eventually
from ..dev_server import DevServer
from ..django.django_site import DjangoSite
from ..django.test_worker import start_workflow
from ..gateway.gateway_client import get
from ..worker_process import WorkerProcess
from .long_activity import EnduringWorkflow

WORKER = """
    from durably.temporal import Temporal
    from tests.temporal.worker.long_activity import declare

    temporal = Temporal(task_queue="{queue}")
    declare(temporal)
"""


WITHOUT_CACHE = """
from durably.temporal.django import temporal
temporal.add_worker(max_cached_workflows=0)
"""


@pytest.fixture
def task_queue() -> str:
    return f"enduring-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def work(tmp_path: Path, server: DevServer, task_queue: str) -> Iterator[Callable[[], WorkerProcess]]:
    """Starts one more worker process."""
    started: list[WorkerProcess] = []

    def work() -> WorkerProcess:
        started.append(WorkerProcess(tmp_path, server, WORKER.replace("{queue}", task_queue)))
        return started[-1]

    yield work
    for worker in started:
        worker.kill()


@pytest.fixture
def describe(server: DevServer, task_queue: str) -> Callable[[str], Any]:
    temporal = Temporal(server.address, task_queue=task_queue)
    gateway = Gateway(temporal, [expose(EnduringWorkflow, name="enduring")], allow_anonymous=True)

    def describe(id: str) -> Any:
        return json.loads(gateway.handle_sync(get(f"enduring/{id}")).body)

    return describe


@pytest.mark.slow
def test_an_activity_whose_worker_was_killed_is_done_by_another(
    work: Callable[[], WorkerProcess],
    describe: Callable[[str], Any],
    temporal: Temporal,
    task_queue: str,
    tmp_path: Path,
) -> None:
    first = work()
    id = uuid.uuid4().hex
    handle = temporal.sync.start_workflow(EnduringWorkflow.run, str(tmp_path), id=id, task_queue=task_queue)
    eventually((tmp_path / "attempt-1").exists, "the first attempt")
    [pending] = describe(id)["pending_activities"]
    assert (pending["type"], pending["state"], pending["attempt"]) == ("endure", "started", 1)
    assert "last_failure" not in pending
    second = work()
    first.kill()
    eventually((tmp_path / "attempt-2").exists, "the second attempt")
    [pending] = describe(id)["pending_activities"]
    assert (pending["state"], pending["attempt"]) == ("started", 2)
    assert [cause["type"] for cause in pending["last_failure"]] == ["TimeoutError"], pending
    assert "eartbeat" in pending["last_failure"][0]["message"]
    (tmp_path / "go").touch()
    assert handle.result() == [2, second.command.process.pid]
    assert (tmp_path / "attempt-1").read_text() == str(first.command.process.pid)


@pytest.fixture
def site(tmp_path: Path, server: DevServer) -> Iterator[DjangoSite]:
    site = DjangoSite(tmp_path, server.address)
    site.migrate()
    path = site.directory / "temporal_app" / "activities.py"
    path.write_text(path.read_text() + WITHOUT_CACHE)
    yield site
    site.stop()


@pytest.mark.slow
def test_transaction_of_a_killed_worker_is_rolled_back(site: DjangoSite, temporal: Temporal) -> None:
    note = uuid.uuid4().hex
    first = site.work()
    handle = start_workflow(temporal, site, "AnyWorkflow", [("visit_or_be_killed", [note])])
    first.until(f"visiting {note}")
    second = site.work()
    kill(first)
    assert handle.result() == [["1 visits", 2]]
    assert len(site.query(f"select * from temporal_app_visit where note = '{note}'")) == 1
    assert second.process.poll() is None


def kill(command: Command) -> None:
    command.process.kill()
    command.wait()
