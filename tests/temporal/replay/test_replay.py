"""Histories are replayed against changed code: the commands and the pytest helper name the event."""

import importlib
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click.testing
import pytest
import temporalio.client
import temporalio.worker
from temporalio.api.workflowservice.v1 import PauseWorkflowExecutionRequest, UnpauseWorkflowExecutionRequest

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal
from durably.temporal.commands.replay import ReplayTarget, make_replay_command
from durably.temporal.encryption import EncryptionCodec, EncryptionKey
from durably.temporal.gateway import Gateway, expose
from durably.temporal.replay import (
    HistoryError,
    HistoryQuery,
    HistoryReplayer,
    ReplayResult,
    StoredHistory,
    TypeReport,
    fetch_histories,
    read_histories,
    replay_all,
    save_history,
)
from durably.temporal.replay.replayer import REPLAYS_AT_ONCE
from durably.testing.temporal import replay_histories

from ...cli.conftest import Command, Run, directory, environment, run, write
from ...waiting import async_eventually, eventually
from ..dev_server import DevServer
from ..django.django_site import DjangoSite
from ..worker_thread import working
from . import replayed_workflows
from .replayed_workflows import ReplayedWorkflow, charge, ship

__all__ = ["directory", "run"]

SOURCE = Path(str(replayed_workflows.__file__)).read_text()
CHARGE = "await workflow.execute_activity(charge, order_id, start_to_close_timeout=timedelta(seconds=10))"
SLEEP = "await workflow.sleep(0.01)"
CHANGES = {
    "another activity": (
        (CHARGE, CHARGE.replace("(charge,", "(ship,")),
        ["event 5 ActivityTaskScheduled (charge)", "the code schedules an activity (ship) instead"],
    ),
    "a timer before": (
        (CHARGE, f"await workflow.sleep(1)\n        {CHARGE}"),
        ["event 5 ActivityTaskScheduled (charge)", "the code starts a timer instead"],
    ),
    "no activity": (
        (CHARGE, "pass"),
        ["event 5 ActivityTaskScheduled (charge)", "the code does nothing instead"],
    ),
    "an end": (
        (CHARGE, "return 'done'"),
        ["event 5 ActivityTaskScheduled (charge)", "the code completes the workflow instead"],
    ),
    "an exception": (
        (CHARGE, "raise KeyError('boom')"),
        ["event 3 WorkflowTaskStarted", "KeyError: 'boom' at ", "changed_"],
    ),
}
"""A change of the source, and the error for a history of the former source."""

TIMER_CHANGE = (SLEEP, "await workflow.execute_activity(charge, 'again', start_to_close_timeout=timedelta(seconds=10))")
SHOP = """
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway, expose
    from shop_workflows import ReplayedWorkflow

    temporal = Temporal()
    temporal.add_worker("replayed", workflows=[ReplayedWorkflow])
    gateway = Gateway(Temporal(), [expose(ReplayedWorkflow)], allow_anonymous=True)
"""


@pytest.fixture(scope="module")
def queue() -> str:
    return f"replayed-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def played(temporal: Temporal, queue: str) -> Iterator[dict[str, str]]:
    """Workflow ids by state: ``done``, ``waiting``, and ``unstarted``, which no worker executed."""
    sync = temporal.sync
    ids = {name: f"{queue}-{name}" for name in ("done", "waiting", "unstarted")}
    with working(temporal, queue, workflows=[ReplayedWorkflow], activities=[charge, ship]):
        for name in ("done", "waiting"):
            sync.start_workflow(ReplayedWorkflow.run, name, id=ids[name], task_queue=queue)
        done = sync.get_workflow_handle(ids["done"])
        done.signal("release")
        assert done.result() == "shipped done"
        sync.get_workflow_handle(ids["waiting"]).query("__stack_trace")  # Answered once the workflow waits.
    sync.start_workflow(ReplayedWorkflow.run, "unstarted", id=ids["unstarted"], task_queue=f"{queue}-unpolled")
    yield ids
    for name in ("waiting", "unstarted"):
        sync.get_workflow_handle(ids[name]).terminate()


@pytest.fixture(scope="module")
def histories(played: dict[str, str], temporal: Temporal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three histories, saved."""
    path = tmp_path_factory.mktemp("histories")

    async def fetch() -> list[Any]:
        return [each async for each in fetch_histories(await temporal.client(), "ReplayedWorkflow", HistoryQuery())]

    found = eventually(
        lambda: get_background_loop().run(fetch()),
        "three histories are indexed",
        is_right=lambda found: len(found) >= 3,
    )
    for each in found:
        save_history(each, path)
    return path


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of modules that ``change`` created."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []
    yield made
    for name in made:
        sys.modules.pop(name, None)


def change(directory: Path, made: list[str], old: str, new: str, *, source: str = SOURCE) -> ModuleType:
    assert source.count(old) == 1
    made.append(f"changed_{uuid.uuid4().hex[:8]}")
    (directory / f"{made[-1]}.py").write_text(source.replace(old, new))
    return importlib.import_module(made[-1])


def offline(module: ModuleType = replayed_workflows, encryption: EncryptionCodec | None = None) -> Temporal:
    """A connection without a server: stored histories need none."""
    temporal = Temporal("127.0.0.1:1", encryption=encryption)
    temporal.add_worker(workflows=[module.ReplayedWorkflow])
    return temporal


def write_shop(directory: Path, source: str = SOURCE) -> None:
    write(directory / "shop_workflows.py", source)
    write(directory / "shop.py", SHOP)


def counts(reports: list[TypeReport]) -> list[tuple[str, int, int, int]]:
    return [(each.workflow_type, each.replayed, each.skipped, len(each.failures)) for each in reports]


def test_stored_histories_of_the_same_code_replay_without_a_server(histories: Path) -> None:
    assert counts(replay_histories(offline(), histories)) == [("ReplayedWorkflow", 2, 1, 0)]
    gateway = Gateway(Temporal("127.0.0.1:1"), [expose(ReplayedWorkflow)], allow_anonymous=True)
    assert counts(replay_histories(gateway, histories)) == [("ReplayedWorkflow", 2, 1, 0)]


class SeenOnWorker(temporalio.worker.Interceptor):
    def __init__(self) -> None:
        self.is_seen = False

    def workflow_interceptor_class(
        self, input: temporalio.worker.WorkflowInterceptorClassInput
    ) -> type[temporalio.worker.WorkflowInboundInterceptor] | None:
        self.is_seen = True
        return None


class SeenOnConnection(temporalio.client.Interceptor, SeenOnWorker):
    """A client's interceptor that is also a worker's, such as that of traces."""


def test_interceptors_of_the_connection_and_of_the_worker_are_used(histories: Path) -> None:
    of_connection, of_worker = SeenOnConnection(), SeenOnWorker()
    temporal = Temporal("127.0.0.1:1", interceptors=[of_connection])
    temporal.add_worker(workflows=[ReplayedWorkflow], interceptors=[of_worker])
    replay_histories(temporal, histories)
    assert (of_connection.is_seen, of_worker.is_seen) == (True, True)


async def test_histories_are_replayed_in_asynchronous_tests_too(histories: Path) -> None:
    assert counts(replay_histories(offline(), histories)) == [("ReplayedWorkflow", 2, 1, 0)]


@pytest.mark.parametrize("name", CHANGES)
def test_the_helper_names_the_event_that_changed_code_does_not_produce(
    histories: Path, played: dict[str, str], tmp_path: Path, changed: list[str], name: str
) -> None:
    (old, new), expected = CHANGES[name]
    with pytest.raises(AssertionError, match="2 of 3 histories do not fit the code") as failure:
        replay_histories(offline(change(tmp_path, changed, old, new)), histories)
    lines = {line.split()[1]: line for line in str(failure.value).splitlines()[1:]}
    assert lines.keys() == {played["done"], played["waiting"]}
    assert [each for each in expected if each not in lines[played["waiting"]]] == []


def test_a_change_that_only_some_histories_reach(
    histories: Path, played: dict[str, str], tmp_path: Path, changed: list[str]
) -> None:
    with pytest.raises(AssertionError, match="1 of 3 histories do not fit the code") as failure:
        replay_histories(offline(change(tmp_path, changed, *TIMER_CHANGE)), histories)
    said = str(failure.value)
    assert played["done"] in said
    assert "TimerStarted: the code schedules an activity (charge) instead: [TMPRL1100]" in said


def test_a_workflow_that_the_app_has_no_more(histories: Path, tmp_path: Path, changed: list[str]) -> None:
    module = change(tmp_path, changed, "@workflow.defn", '@workflow.defn(name="RenamedWorkflow")')
    with pytest.raises(AssertionError, match="the app has no workflow ReplayedWorkflow, only RenamedWorkflow"):
        replay_histories(offline(module), histories)


async def test_no_more_histories_are_read_than_are_replayed_at_once(histories: Path) -> None:
    stored = next(iter(read_histories(histories)))
    count = {"read": 0, "done": 0, "most": 0}

    def endless() -> Iterator[StoredHistory]:
        for _ in range(30):
            count["read"] += 1
            count["most"] = max(count["most"], count["read"] - count["done"])
            yield stored

    class Counting(HistoryReplayer):
        async def replay(self, stored: StoredHistory) -> ReplayResult:
            result = await super().replay(stored)
            count["done"] += 1
            return result

    [report] = await replay_all(Counting(offline()), endless())
    assert report.replayed == 30
    assert count["most"] <= REPLAYS_AT_ONCE


async def test_encrypted_histories_need_their_key(
    server: DevServer, queue: str, tmp_path: Path, changed: list[str]
) -> None:
    encryption = EncryptionCodec(EncryptionKey.generate("a"))
    temporal = Temporal(server.address, encryption=encryption)
    own, named = f"{queue}-encrypted", '@workflow.defn(name="EncryptedWorkflow")'
    module = change(tmp_path, changed, "@workflow.defn", named)
    client = await temporal.client()
    with working(temporal, own, workflows=[module.ReplayedWorkflow], activities=[charge, ship]):
        handle = await client.start_workflow(
            "EncryptedWorkflow", "secret-order", id=own, task_queue=own, start_signal="release"
        )
        await handle.result()
    path = save_history(StoredHistory(await handle.fetch_history()), tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret-order" not in path.read_text()
    assert counts(replay_histories(offline(module, encryption), tmp_path)) == [("EncryptedWorkflow", 1, 0, 0)]
    broken = change(tmp_path, changed, *CHANGES["an exception"][0], source=SOURCE.replace("@workflow.defn", named))
    with pytest.raises(AssertionError, match=r"KeyError: 'boom' at .*changed_"):
        replay_histories(offline(broken, encryption), tmp_path)
    with pytest.raises(AssertionError, match="do not fit"):
        replay_histories(offline(module, EncryptionCodec(EncryptionKey.generate("b"))), tmp_path)


@pytest.mark.slow
def test_the_command_fetches_and_saves_histories_and_finds_changed_code(
    played: dict[str, str], server: DevServer, directory: Path, run: Run
) -> None:
    write_shop(directory)
    done = run("temporal", "replay", "shop:gateway", "--save", "histories", TEMPORAL_ADDRESS=server.address)
    assert (done.status, done.stderr) == (0, "")
    assert "ReplayedWorkflow: 2 replayed, 0 failed, 1 skipped" in done.stdout
    [_] = directory.glob(f"histories/ReplayedWorkflow/{played['done']}.*.json")
    write_shop(directory, SOURCE.replace(*TIMER_CHANGE))
    done = run("temporal", "replay", "shop:temporal", TEMPORAL_ADDRESS=server.address)
    assert done.status == 1
    assert "ReplayedWorkflow: 1 replayed, 1 failed, 1 skipped" in done.stdout
    assert f"  FAILED ReplayedWorkflow {played['done']} (run " in done.stdout
    assert "TimerStarted: the code schedules an activity (charge) instead: [TMPRL1100]" in done.stdout
    assert "workflow.patched()" in done.stdout


def test_histories_that_temporals_own_command_prints(played: dict[str, str], server: DevServer, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(server.run("workflow", "show", "-w", played["done"], "-o", "json"))
    done = replay(offline(), "--from", str(tmp_path), "--json")
    expected = {"workflow_type": "ReplayedWorkflow", "replayed": 1, "skipped": 0, "failures": []}
    assert (done.exit_code, json.loads(done.output)) == (0, {"ok": True, "types": [expected]})


def test_json_has_the_event_at_fault(
    histories: Path, played: dict[str, str], tmp_path: Path, changed: list[str]
) -> None:
    done = replay(offline(change(tmp_path, changed, *TIMER_CHANGE)), "--from", str(histories), "--json")
    assert done.exit_code == 1
    [report] = json.loads(done.output)["types"]
    [failure] = report["failures"]
    assert failure["outcome"] == "nondeterministic"
    assert failure["workflow_id"] == played["done"]
    assert failure["event"] == "TimerStarted"
    assert failure["instead"] == "schedules an activity (charge)"
    events = json.loads(Path(failure["source"]).read_text())["events"]
    assert events[failure["event_id"] - 1]["eventType"] == "EVENT_TYPE_TIMER_STARTED"


def replay(temporal: Temporal, *options: str) -> click.testing.Result:
    """Run the command in this process, which is faster."""
    command = make_replay_command(lambda: ReplayTarget(temporal, temporal.workers))
    return click.testing.CliRunner().invoke(command, options)


@pytest.fixture
def online(server: DevServer) -> Temporal:
    temporal = Temporal(server.address)
    temporal.add_worker(workflows=[ReplayedWorkflow])
    return temporal


def test_command_filters_the_fetched_histories(played: dict[str, str], online: Temporal) -> None:
    for options, expected in (
        (("--query", f"WorkflowId = '{played['waiting']}'"), "1 replayed, 0 failed"),
        (("--status", "closed"), "1 replayed, 0 failed"),
        (("--status", "running", "--limit", "1"), "0 replayed, 0 failed, 1 skipped"),
        (("--since", "2999-01-01"), "no histories\nNothing was replayed."),
        (("--since", "1h", "--type", "ReplayedWorkflow"), "2 replayed, 0 failed, 1 skipped"),
    ):
        done = replay(online, *options)
        assert done.exit_code == 0, done.output
        assert f"ReplayedWorkflow: {expected}" in done.output


def test_a_paused_workflow_counts_as_running(played: dict[str, str], online: Temporal) -> None:
    workflow_id = played["waiting"]
    execution: dict[str, Any] = {"workflow_id": workflow_id, "namespace": "default", "request_id": uuid.uuid4().hex}
    only = f"WorkflowId = '{workflow_id}'"
    service = online.sync.client.workflow_service

    async def is_indexed() -> bool:
        listed = (await online.client()).list_workflows(f"{only} AND ExecutionStatus = 'Paused'")
        return bool([each async for each in listed])

    async def pause() -> None:
        await service.pause_workflow_execution(PauseWorkflowExecutionRequest(**execution))
        await async_eventually(is_indexed, "the paused workflow is indexed")

    get_background_loop().run(pause())
    try:
        assert "1 replayed" in replay(online, "--query", only, "--status", "running").output
        assert "Nothing was replayed" in replay(online, "--query", only, "--status", "closed").output
    finally:
        get_background_loop().run(service.unpause_workflow_execution(UnpauseWorkflowExecutionRequest(**execution)))


def test_the_exit_code_is_2_if_nothing_could_be_found_out(online: Temporal, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "some.json").write_text('{"events": []}')
    for options, expected in (
        (("--from", f"{tmp_path}/nowhere"), "nowhere is not a directory"),
        (("--from", f"{tmp_path}/empty"), "empty has no *.json files"),
        (("--from", f"{tmp_path}/bad"), "bad/some.json is not a workflow's history"),
        (("--from", "bad", "--query", "x"), "--from reads stored histories"),
        (("--type", "Other"), "the app has no workflow Other; it has ReplayedWorkflow"),
        (("--since", "yesterday"), "'yesterday' is neither a duration"),
        (("--query", "Nothing = 1"), "the server refuses the query"),
    ):
        done = replay(online, *options)
        assert done.exit_code == 2, (options, done.output)
        assert expected in done.output
    done = replay(Temporal("127.0.0.1:1"))
    assert done.exit_code == 2
    assert "there is nothing to run" in done.output
    done = replay(offline())
    assert done.exit_code == 2
    assert "cannot be reached" in done.output


def test_missing_target_is_named(directory: Path, run: Run) -> None:
    write_shop(directory)
    done = run("temporal", "replay", "shop:nothing")
    assert done.status == 2
    assert "shop has no 'nothing'" in done.stderr


def test_file_without_a_history_is_named(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text("[")
    with pytest.raises(HistoryError, match=r"some\.json is not a workflow's history"):
        replay_histories(offline(), tmp_path)


FLASK_APP = """
    import flask
    from durably.temporal.flask import init_app
    from shop import temporal

    app = flask.Flask(__name__)
    init_app(app, temporal)
"""


@pytest.mark.slow
def test_flask_command_replays_histories(histories: Path, directory: Path) -> None:
    write_shop(directory, SOURCE.replace(*TIMER_CHANGE))
    write(directory / "app.py", FLASK_APP)
    command = Command(
        ("temporal", "replay", "--from", str(histories)), directory, environment(), [sys.executable, "-m", "flask"]
    )
    assert command.wait() == 1
    assert "TimerStarted: the code schedules an activity (charge) instead" in command.output


@pytest.mark.slow
def test_django_command_replays_histories(histories: Path, tmp_path: Path, server: DevServer) -> None:
    site = DjangoSite(tmp_path, server.address)
    module = site.directory / "temporal_app" / "workflows.py"
    module.write_text(f"{module.read_text()}\n\n{SOURCE.replace(*TIMER_CHANGE)}")
    done = site.run("replay_temporal_workflows", "--from", str(histories), "--no-color", "--type=ReplayedWorkflow")
    assert done.returncode == 1, done.stderr
    assert "ReplayedWorkflow: 1 replayed, 1 failed, 1 skipped" in done.stdout
    assert "TimerStarted: the code schedules an activity (charge) instead" in done.stdout
