"""The server is killed under load and started again, seen by clients of each framework and by workers."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..waiting import eventually
from .app_server import running
from .dev_server import DevServer
from .outage_load import FOR_WORKERS, Load
from .serve import SERVERS
from .worker_process import WorkerProcess

pytestmark = pytest.mark.slow

WORKER = """
    from durably.temporal import Temporal
    from tests.temporal.workflows import ACTIVITIES, TASK_QUEUE, WORKFLOWS

    temporal = Temporal(task_queue=TASK_QUEUE)
    temporal.add_worker(workflows=WORKFLOWS, activities=ACTIVITIES)
"""


@contextmanager
def server_and_worker(directory: Path) -> Iterator[tuple[DevServer, WorkerProcess]]:
    server = DevServer(directory / "server.db")
    server.start()
    try:
        worker = WorkerProcess(directory, server, WORKER)
        try:
            yield server, worker
        finally:
            worker.kill()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Load]]:
    """One outage for all frameworks, each with its app and its load. Tests read the results afterwards."""
    with server_and_worker(tmp_path_factory.mktemp("outage")) as (server, worker), ExitStack() as stack:
        loads = [Load(stack.enter_context(running(name, server.address))) for name in SERVERS]
        for load in loads:
            load.start()
        enter(loads, "before", 200, 202)
        server.kill()
        enter(loads, "away", 503)
        assert worker.ready()[0] == 503
        assert "UNAVAILABLE" in worker.ready()[1]["problem"]
        server.start()
        enter(loads, "after", 200, 202)
        eventually(lambda: worker.ready()[0] == 200, "a worker that is ready again")
        for load in loads:
            load.end()
        for load in loads:
            load.join()
        assert worker.command.process.poll() is None
        yield {load.app.name: load for load in loads}


def enter(loads: list[Load], phase: str, *statuses: int) -> None:
    for load in loads:
        load.phase = phase
    for load in loads:
        load.wait_until_each_kind_had(*statuses)


@pytest.fixture(params=SERVERS)
def load(request: pytest.FixtureRequest, loads: dict[str, Load]) -> Load:
    return loads[request.param]


def test_requests_succeed_or_get_retry_after(load: Load) -> None:
    for outcome in load.outcomes:
        # While the server is away, a busy machine may pass a request's deadline before the connection fails.
        expected = {200, 202, 503, 504} if outcome.kind in FOR_WORKERS or outcome.phase != "before" else {200, 202, 503}
        assert outcome.status in expected, outcome
        if outcome.status == 503:
            assert int(outcome.headers["Retry-After"]) > 0
            assert outcome.headers["Content-Type"] == "application/problem+json"
            assert json.loads(outcome.body)["type"] == "urn:durably:problem:server-unavailable"


def test_open_long_poll_ends_cleanly(load: Load) -> None:
    [held] = [outcome for outcome in load.outcomes if outcome.kind == "long poll"]
    assert held.status in (200, 503), held


def test_open_event_stream_continues_to_the_result(load: Load) -> None:
    kinds = [event["event"] for event in load.events if "event" in event]
    assert kinds[-2:] == ["workflow_execution_completed", "result"]
    assert "problem" not in kinds
    *ids, last = [event["id"] for event in load.events if "id" in event]
    runs, numbers = {id.partition(":")[0] for id in ids}, [int(id.partition(":")[2]) for id in ids]
    assert numbers == sorted(set(numbers)), "each event once"
    assert {f"{run}:end" for run in runs} == {last}
