"""Worker versions: from settings to workers, and the commands that roll a version out, on a real server."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click.testing
import flask
import pytest
from temporalio.common import VersioningBehavior

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal, TemporalSettingsError, TemporalWorkerError, Workers
from durably.temporal.commands.deployment import make_deployment_group
from durably.temporal.flask import init_app
from durably.temporal.worker.deployments import worker_version

from ...cli.conftest import Run, directory, run, write
from ...variants import variants
from ...waiting import eventually
from ..dev_server import DevServer
from ..django.django_site import DjangoSite
from ..worker_process import WorkerProcess
from .versioned_workflows import FirstVersion, SecondVersion

__all__ = ["directory", "run"]


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

    async def make() -> "tuple[Workers, asyncio.Task[None]]":
        workers = Workers(temporal)
        working = asyncio.create_task(workers.run())
        await workers.started()
        return workers, working

    async def stop(working: "asyncio.Task[None]") -> None:
        working.cancel()
        await asyncio.wait([working])

    _, working = get_background_loop().run(make())
    try:
        yield
    finally:
        get_background_loop().run(stop(working))


def deploy(temporal: Temporal, *arguments: str, status: int = 0) -> str:
    """The output of ``deployment …``."""
    done = click.testing.CliRunner().invoke(make_deployment_group(lambda: temporal), arguments)
    assert done.exit_code == status, done.output
    return str(done.output)


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
        assert f"{name}: current 1, before workers without versions" in deploy(first, "set-current-version")
        end_old = begin(first, name)
        assert f"{name}: ramping 2 (100 %)" in deploy(second, "set-ramping-version", "--percentage", "100")
        assert f"{name}: current 1, ramping 2 (100 %)" in deploy(first, "describe")
        assert begin(first, name)() == "second"
        assert f"{name}: no ramping version" in deploy(second, "set-ramping-version", "--delete")
        assert begin(first, name)() == "first"
        assert f"{name}: current 2, before 1" in deploy(second, "set-current-version")
        assert begin(first, name)() == "second"
        assert end_old() == result
        found = json.loads(deploy(first, "describe", "--json"))
        assert (found["name"], found["current"], found["ramping"]) == (name, "2", None)
        assert {each["build_id"]: each["status"] for each in found["versions"]} == {"1": "draining", "2": "current"}
        assert f"{name}.1: draining" in deploy(first, "wait-until-drained", "--timeout", "0", status=1)
        assert "gets new workflows" in deploy(second, "wait-until-drained", status=2)
        assert "cannot be deleted since it is draining" in deploy(first, "delete-version", "--build-id", "1", status=2)
        eventually(lambda: name in deploy(first, "list"), "the list of deployments, which the server updates later")


def test_set_current_version_waits_for_the_versions_workers(server: DevServer, name: str) -> None:
    temporal = connection(server, name, "1", FirstVersion, "pinned")
    with running(temporal):
        assert f"{name}: current 1" in deploy(temporal, "set-current-version", "--wait", "60")
    options = ("set-current-version", "--build-id", "unknown", "--wait", "0")
    assert f'Error: the deployment "{name}": ' in deploy(temporal, *options, status=2)
    unknown = ("describe", "--deployment-name", "nothing")
    assert "knows a deployment and its versions from the workers" in deploy(temporal, *unknown, status=2)
    assert "it has 1" in deploy(temporal, "wait-until-drained", "--build-id", "3", status=2)


def test_commands_report_missing_options(server: DevServer) -> None:
    temporal = Temporal(server.address)
    for arguments, expected in (
        (("describe",), "set TEMPORAL_DEPLOYMENT_NAME"),
        (("set-current-version", "--deployment-name", "x"), "set TEMPORAL_WORKER_BUILD_ID"),
        (("set-current-version", "--deployment-name", "x", "--build-id", "1", "--unversioned"), "cannot be combined"),
        (("set-ramping-version", "--deployment-name", "x", "--build-id", "1"), "--percentage 10"),
    ):
        assert expected in deploy(temporal, *arguments, status=2)
    assert "cannot be reached" in deploy(Temporal("127.0.0.1:1"), "list", status=2)


WORKER = """
    from durably.temporal import Temporal
    from tests.temporal.worker.versioned_workflows import FirstVersion

    temporal = Temporal(task_queue="{name}")
    temporal.add_worker(workflows=[FirstVersion])
"""


@pytest.mark.slow
def test_the_environment_gives_workers_their_version(
    server: DevServer, name: str, directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_DEPLOYMENT_NAME", name)
    monkeypatch.setenv("TEMPORAL_WORKER_BUILD_ID", "2026-01-31")
    monkeypatch.setenv("TEMPORAL_VERSIONING_BEHAVIOR", "pinned")
    worker = WorkerProcess(directory, server, WORKER.replace("{name}", name))
    try:
        assert f"version {name}.2026-01-31 (pinned)" in worker.command.output
        write(directory / "shop.py", "from durably.temporal import Temporal\ntemporal = Temporal()\n")
        address = {"TEMPORAL_ADDRESS": server.address}
        done = run("temporal", "deployment", "set-current-version", "shop:temporal", **address)
        assert (done.status, done.stderr) == (0, "")
        assert f"{name}: current 2026-01-31, before workers without versions" in done.stdout
        assert begin(Temporal(server.address), name)() == "first"
    finally:
        worker.kill()


@pytest.mark.slow
def test_flask_and_django_have_the_same_commands_and_settings(server: DevServer, name: str, tmp_path: Path) -> None:
    first = connection(server, name, "1", FirstVersion, "pinned")
    with running(first):
        deploy(first, "set-current-version")
        app = flask.Flask("shop")
        app.config.update(TEMPORAL_ADDRESS=server.address, TEMPORAL_DEPLOYMENT_NAME=name, TEMPORAL_WORKER_BUILD_ID="1")
        init_app(app, Temporal())
        done = app.test_cli_runner().invoke(args=["temporal", "deployment", "describe"])
        assert (done.exit_code, done.output) == (0, f"{name}: current 1\n  1: current\n")
        site = DjangoSite(tmp_path, server.address)
        settings = site.directory / "project" / "settings.py"
        settings.write_text(f'{settings.read_text()}\nTEMPORAL = {{"DEPLOYMENT_NAME": "{name}"}}\n')
        answered = site.run("temporal_deployment", "describe")
        assert (answered.returncode, answered.stdout) == (0, f"{name}: current 1\n  1: current\n"), answered.stderr


def test_settings_of_a_version() -> None:
    given = Temporal("x:1", deployment_name="shop", build_id="a.b", versioning_behavior="AUTO_UPGRADE")
    version = worker_version(given.settings)
    assert version is not None
    assert version.version.to_canonical_string() == "shop.a.b"
    assert version.default_versioning_behavior == VersioningBehavior.AUTO_UPGRADE
    assert worker_version(Temporal("x:1").settings) is None


def test_named_connection_has_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_DEPLOYMENT_NAME", "shop")
    monkeypatch.setenv("TEMPORAL_WORKER_BUILD_ID", "1")
    assert worker_version(Temporal(name="billing").settings) is None
    monkeypatch.setenv("TEMPORAL_BILLING_WORKER_BUILD_ID", "2")
    with pytest.raises(TemporalSettingsError, match="TEMPORAL_BILLING_DEPLOYMENT_NAME is not"):
        worker_version(Temporal(name="billing").settings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"deployment_name": "shop"}, "TEMPORAL_DEPLOYMENT_NAME is set, but TEMPORAL_WORKER_BUILD_ID is not"),
        ({"build_id": "1"}, "TEMPORAL_WORKER_BUILD_ID is set, but TEMPORAL_DEPLOYMENT_NAME is not"),
        ({"versioning_behavior": "pinned"}, "TEMPORAL_VERSIONING_BEHAVIOR has no effect without"),
        ({"deployment_name": "my.shop", "build_id": "1"}, "has no dots"),
        (
            {"deployment_name": "shop", "build_id": "1", "versioning_behavior": "stay"},
            "TEMPORAL_VERSIONING_BEHAVIOR is 'stay'; known are pinned, auto-upgrade",
        ),
    ],
)
def test_settings_that_are_missing_or_wrong(given: dict[str, str], expected: str) -> None:
    temporal = Temporal("127.0.0.1:1", task_queue="q", **given)  # type: ignore[arg-type]
    temporal.add_worker(workflows=[FirstVersion])

    async def make() -> None:
        Workers(temporal)

    with pytest.raises(TemporalSettingsError, match=expected):
        get_background_loop().run(make())


async def test_a_workflow_without_a_behavior_is_named(server: DevServer, name: str) -> None:
    temporal = Temporal(server.address, task_queue=name, deployment_name=name, build_id="1")
    temporal.add_worker(workflows=[FirstVersion])
    with pytest.raises(TemporalWorkerError, match=r"VersionedWorkflow.*Set TEMPORAL_VERSIONING_BEHAVIOR"):
        await Workers(temporal).run()
