"""``replay_histories``: stored histories are replayed against changed code, and the error names the event."""

import importlib
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import temporalio.client
import temporalio.worker

from durably.temporal import Temporal, TemporalWorkerError
from durably.temporal.encryption import EncryptionCodec, EncryptionKey
from durably.testing.temporal import HistoryError, replay_histories

from . import replayed_workflows
from .dev_server import DevServer
from .replayed_workflows import ReplayedWorkflow, charge, ship
from .worker_thread import working

SOURCE = Path(str(replayed_workflows.__file__)).read_text()
CHARGE = "await workflow.execute_activity(charge, order_id, start_to_close_timeout=timedelta(seconds=10))"
SLEEP = "await workflow.sleep(0.01)"
CHANGES = {
    "another activity": (CHARGE, CHARGE.replace("(charge,", "(ship,"), "charge"),
    "a timer before": (CHARGE, f"await workflow.sleep(1)\n        {CHARGE}", "ActivityTaskScheduled"),
    "no activity": (CHARGE, "pass", "ActivityTaskScheduled"),
    "an end": (CHARGE, "return 'done'", "ActivityTaskScheduled"),
    "an exception": (CHARGE, "raise KeyError('boom')", "boom"),
}
"""A change of the source, and a word of the error for a history of the former source."""


@pytest.fixture(scope="module")
def histories(server: DevServer, temporal: Temporal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The histories of ``done``, ``waiting``, and of ``unstarted``, which no worker executed.

    They are as Temporal's own command prints them.
    """
    path, sync, queue = tmp_path_factory.mktemp("histories"), temporal.sync, f"replayed-{uuid.uuid4().hex[:8]}"
    ids = {name: f"{queue}-{name}" for name in ("done", "waiting", "unstarted")}
    with working(temporal, queue, workflows=[ReplayedWorkflow], activities=[charge, ship]):
        for name in ("done", "waiting"):
            sync.start_workflow(ReplayedWorkflow.run, name, id=ids[name], task_queue=queue)
        done = sync.get_workflow_handle(ids["done"])
        done.signal("release")
        assert done.result() == "shipped done"
        sync.get_workflow_handle(ids["waiting"]).query("__stack_trace")  # Answered once the workflow waits.
    sync.start_workflow(ReplayedWorkflow.run, "unstarted", id=ids["unstarted"], task_queue=f"{queue}-unpolled")
    for name, id in ids.items():
        (path / f"{name}.json").write_text(server.run("workflow", "show", "-w", id, "-o", "json"))
    for name in ("waiting", "unstarted"):
        sync.get_workflow_handle(ids[name]).terminate()
    return path


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of modules that ``change`` created."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []
    yield made
    for name in made:
        sys.modules.pop(name, None)


def change(directory: Path, made: list[str], old: str, new: str) -> ModuleType:
    assert SOURCE.count(old) == 1
    made.append(f"changed_{uuid.uuid4().hex[:8]}")
    (directory / f"{made[-1]}.py").write_text(SOURCE.replace(old, new))
    return importlib.import_module(made[-1])


def offline(module: ModuleType = replayed_workflows, encryption: EncryptionCodec | None = None) -> Temporal:
    """A connection without a server: stored histories need none."""
    temporal = Temporal("127.0.0.1:1", encryption=encryption)
    temporal.add_worker(workflows=[module.ReplayedWorkflow])
    return temporal


async def test_histories_are_replayed_in_asynchronous_tests_too(histories: Path) -> None:
    assert replay_histories(offline(), histories) == {"ReplayedWorkflow": 2}


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


@pytest.mark.parametrize("name", CHANGES)
def test_changed_code_is_found_in_each_history(histories: Path, tmp_path: Path, changed: list[str], name: str) -> None:
    old, new, word = CHANGES[name]
    with pytest.raises(AssertionError, match="2 of 2 histories do not fit the code") as failure:
        replay_histories(offline(change(tmp_path, changed, old, new)), histories)
    lines = str(failure.value).splitlines()[1:]
    assert ["done.json" in lines[0], "waiting.json" in lines[1]] == [True, True]
    assert all(word in line for line in lines), lines


def test_a_change_that_only_some_histories_reach(histories: Path, tmp_path: Path, changed: list[str]) -> None:
    with pytest.raises(AssertionError, match="1 of 2 histories do not fit the code") as failure:
        replay_histories(offline(change(tmp_path, changed, SLEEP, CHARGE)), histories)
    assert "done.json" in str(failure.value)
    assert "TimerStarted" in str(failure.value)


def test_a_workflow_that_the_app_has_no_more(histories: Path, tmp_path: Path, changed: list[str]) -> None:
    module = change(tmp_path, changed, "@workflow.defn", '@workflow.defn(name="RenamedWorkflow")')
    with pytest.raises(AssertionError, match="no worker has this workflow type, only RenamedWorkflow"):
        replay_histories(offline(module), histories)


async def test_encrypted_histories_need_their_key(server: DevServer, tmp_path: Path) -> None:
    encryption, queue = EncryptionCodec(EncryptionKey.generate("a")), f"encrypted-{uuid.uuid4().hex}"
    client = await Temporal(server.address, encryption=encryption).client()
    temporal = Temporal(server.address, encryption=encryption)
    with working(temporal, queue, workflows=[ReplayedWorkflow], activities=[charge, ship]):
        handle = await client.start_workflow(
            ReplayedWorkflow.run, "secret-order", id=queue, task_queue=queue, start_signal="release"
        )
        await handle.result()
    (tmp_path / "history.json").write_text((await handle.fetch_history()).to_json())
    assert "secret-order" not in (tmp_path / "history.json").read_text()
    assert replay_histories(offline(encryption=encryption), tmp_path) == {"ReplayedWorkflow": 1}
    with pytest.raises(AssertionError, match="do not fit"):
        replay_histories(offline(encryption=EncryptionCodec(EncryptionKey.generate("b"))), tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (None, "", r"has no \*\.json files"),
        ("bad.json", "[", r"bad\.json is not a workflow's history"),
        ("bad.json", '{"events": []}', r"bad\.json is not a workflow's history"),
    ],
)
def test_a_directory_without_histories_is_named(tmp_path: Path, file: str | None, text: str, words: str) -> None:
    if file is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(HistoryError, match=words):
        replay_histories(offline(), tmp_path)


def test_an_app_without_workers_is_named(histories: Path) -> None:
    with pytest.raises(TemporalWorkerError, match="add_worker"):
        replay_histories(Temporal("127.0.0.1:1"), histories)
