"""Worker versions: workers declare them, and the server routes workflows by them."""

import asyncio
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from temporalio.common import VersioningBehavior

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal, TemporalSettingsError, TemporalWorkerError, Workers
from durably.temporal.worker.workers import worker_version

from ...cli.conftest import directory
from ...variants import variants
from ...waiting import eventually
from ..dev_server import DevServer
from ..worker_process import WorkerProcess
from .versioned_workflows import FirstVersion, SecondVersion

__all__ = ["directory"]


@pytest.fixture
def name() -> str:
    """The name of a deployment and of its task queue."""
    return f"shop-{uuid.uuid4().hex[:8]}"


def connection(server: DevServer, name: str, build_id: str, cls: type, behavior: str) -> Temporal:
    temporal = Temporal(
        server.address, task_queue=name, deployment_name=name, build_id=build_id, versioning_behavior=behavior
    )
    temporal.add_worker(workflows=[cls])
    return temporal


@contextmanager
def running(temporal: Temporal) -> Iterator[None]:
    """The declared workers."""

    async def make() -> "asyncio.Task[None]":
        workers = Workers(temporal)
        working = asyncio.create_task(workers.run())
        await workers.started()
        return working

    async def stop(working: "asyncio.Task[None]") -> None:
        working.cancel()
        await asyncio.wait([working])

    working = get_background_loop().run(make())
    try:
        yield
    finally:
        get_background_loop().run(stop(working))


def set_current(server: DevServer, name: str, build_id: str) -> None:
    """Make a version current by Temporal's own command, once the server knows its workers."""
    version = ("--deployment-name", name, "--build-id", build_id)
    eventually(
        lambda: server.run("worker", "deployment", "set-current-version", *version, "--yes"),
        f"the server knows the workers of {name}.{build_id}",
        is_right=lambda output: True,
        ignore=(subprocess.CalledProcessError,),
    )


def begin(temporal: Temporal, name: str) -> Callable[[], object]:
    """Start a workflow, and wait until a version has it. Returns its result after its release."""
    handle = temporal.sync.start_workflow("VersionedWorkflow", id=f"{name}-{uuid.uuid4().hex[:8]}", task_queue=name)
    handle.query("__stack_trace")

    def end() -> object:
        handle.signal("release")
        return handle.result()

    return end


@pytest.mark.parametrize(("behavior", "result"), variants([("pinned", "first"), ("auto-upgrade", "second")], []))
def test_a_version_is_rolled_out(server: DevServer, name: str, behavior: str, result: str) -> None:
    first = connection(server, name, "1", FirstVersion, behavior)
    second = connection(server, name, "2", SecondVersion, behavior)
    with running(first), running(second):
        set_current(server, name, "1")
        end_old = begin(first, name)
        assert begin(first, name)() == "first"
        set_current(server, name, "2")
        eventually(lambda: begin(first, name)(), "new workflows get the version", is_right=lambda got: got == "second")
        assert end_old() == result


WORKER = """
    from durably.temporal import Temporal
    from tests.temporal.worker.versioned_workflows import FirstVersion

    temporal = Temporal(task_queue="{name}")
    temporal.add_worker(workflows=[FirstVersion])
"""


@pytest.mark.slow
def test_the_environment_gives_workers_their_version(
    server: DevServer, name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_DEPLOYMENT_NAME", name)
    monkeypatch.setenv("TEMPORAL_WORKER_BUILD_ID", "2026-01-31")
    monkeypatch.setenv("TEMPORAL_VERSIONING_BEHAVIOR", "pinned")
    worker = WorkerProcess(directory, server, WORKER.replace("{name}", name))
    try:
        assert f"version {name}.2026-01-31" in worker.command.output
        set_current(server, name, "2026-01-31")
        assert begin(Temporal(server.address), name)() == "first"
    finally:
        worker.kill()


def test_settings_of_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = worker_version(
        Temporal("x:1", deployment_name="shop", build_id="a.b", versioning_behavior="auto-upgrade").settings
    )
    assert version is not None
    assert version.version.to_canonical_string() == "shop.a.b"
    assert version.default_versioning_behavior == VersioningBehavior.AUTO_UPGRADE
    assert worker_version(Temporal("x:1").settings) is None
    monkeypatch.setenv("TEMPORAL_DEPLOYMENT_NAME", "shop")
    monkeypatch.setenv("TEMPORAL_WORKER_BUILD_ID", "1")
    assert worker_version(Temporal(name="billing").settings) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"deployment_name": "shop"}, "TEMPORAL_WORKER_BUILD_ID"),
        ({"build_id": "1"}, "TEMPORAL_DEPLOYMENT_NAME"),
        ({"versioning_behavior": "pinned"}, "TEMPORAL_VERSIONING_BEHAVIOR"),
        ({"name": "billing", "build_id": "1"}, "TEMPORAL_BILLING_DEPLOYMENT_NAME"),
        ({"deployment_name": "shop", "build_id": "1", "versioning_behavior": "stay"}, "'stay'"),
    ],
)
def test_settings_that_are_missing_or_wrong(given: dict[str, str], expected: str) -> None:
    with pytest.raises(TemporalSettingsError, match=expected):
        worker_version(Temporal("127.0.0.1:1", **given).settings)  # type: ignore[arg-type]


async def test_a_workflow_without_a_behavior_is_named(server: DevServer, name: str) -> None:
    temporal = Temporal(server.address, task_queue=name, deployment_name=name, build_id="1")
    temporal.add_worker(workflows=[FirstVersion])
    with pytest.raises(TemporalWorkerError, match="VersionedWorkflow"):
        await Workers(temporal).run()
