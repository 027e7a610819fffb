"""``durably temporal worker``: the real command on the real server."""

import json
import signal
import urllib.error
import urllib.request
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from durably.temporal import Temporal

from ...cli.conftest import Command, Run, Start, directory, run, start, write
from ...ports import free_port
from ...variants import variants
from ..dev_server import DevServer
from ..user_projects import write_shop

__all__ = ["directory", "run", "start"]


@pytest.fixture
def id() -> str:
    return uuid.uuid4().hex[:8]


@pytest.fixture
def shop(directory: Path, id: str) -> Path:
    write_shop(directory, id)
    return directory


def work(start: Start, server: DevServer, *arguments: str) -> Command:
    command = start("temporal", "worker", "shop:temporal", *arguments, TEMPORAL_ADDRESS=server.address)
    command.until("working on slow")
    return command


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_works_on_every_declared_task_queue(
    start: Start, shop: Path, server: DevServer, temporal: Temporal, id: str
) -> None:
    command = work(start, server)
    assert f"working on orders-{id}: OrderWorkflow; process_order" in command.output
    first = temporal.sync.execute_workflow("OrderWorkflow", "7", id=f"order-{id}", task_queue=f"orders-{id}")
    assert first == f"processed 7 in activities-orders-{id}"
    second = temporal.sync.execute_workflow("SlowWorkflow", 0.0, id=f"slow-{id}", task_queue=f"slow-{id}")
    assert second == "slow is done"
    assert command.stop() == 0
    assert command.output.endswith("stopped\n\n(end of output)\n")
    assert "Traceback" not in command.output


def test_some_task_queues_of_many(start: Start, shop: Path, server: DevServer, id: str) -> None:
    command = work(start, server, "--task-queue", f"slow-{id}")
    assert command.stop() == 0
    assert "working on orders" not in command.output


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_activities_end_after_a_signal(
    start: Start, shop: Path, server: DevServer, temporal: Temporal, id: str, how: signal.Signals
) -> None:
    command = work(start, server)
    handle = temporal.sync.start_workflow("SlowWorkflow", 1.0, id=f"slow-{id}", task_queue=f"slow-{id}")
    command.until("slow begins")
    assert command.stop(how) == 0
    assert "activities have 30 seconds to end" in command.output
    history = handle.fetch_history().to_json()
    assert "EVENT_TYPE_ACTIVITY_TASK_COMPLETED" in history
    assert "slow is done" not in command.output


def test_a_second_signal_ends_it_at_once(
    start: Start, shop: Path, server: DevServer, temporal: Temporal, id: str
) -> None:
    command = work(start, server)
    temporal.sync.start_workflow("SlowWorkflow", 50.0, id=f"slow-{id}", task_queue=f"slow-{id}")
    command.until("slow begins")
    command.process.send_signal(signal.SIGTERM)
    command.until("activities have 30 seconds to end")
    assert command.stop(signal.SIGTERM) == 1
    assert "interrupted; running activities will be retried" in command.output


@pytest.mark.slow
def test_activities_that_do_not_end_are_left_to_be_retried(
    start: Start, shop: Path, server: DevServer, temporal: Temporal, id: str
) -> None:
    command = work(start, server, "--grace", "0")
    temporal.sync.start_workflow("SlowWorkflow", 50.0, id=f"slow-{id}", task_queue=f"slow-{id}")
    command.until("slow begins")
    assert command.stop(signal.SIGTERM) == 1
    assert "activities do not end despite their cancellation; the process ends without them" in command.output


@pytest.mark.slow
def test_another_worker_continues_after_a_kill(
    start: Start, shop: Path, server: DevServer, temporal: Temporal, id: str
) -> None:
    killed = work(start, server)
    handle = temporal.sync.start_workflow("OutliveWorkflow", id=f"outlive-{id}", task_queue=f"slow-{id}")
    killed.until("attempt 1")
    killed.stop(signal.SIGKILL)
    work(start, server)
    assert handle.result(timeout=timedelta(seconds=30)) == "attempt 2"


@pytest.mark.slow
def test_blocked_event_loop_is_reported(
    start: Start, shop: Path, server: DevServer, temporal: Temporal, id: str
) -> None:
    command = work(start, server, "--health", "127.0.0.1:0")
    origin = command.until(r"health at (http://[\d.:]+)")[1]
    temporal.sync.start_workflow("BlockWorkflow", 30.0, id=f"block-{id}", task_queue=f"slow-{id}")
    command.until("blocking")
    for path in ("live", "ready"):
        status, body = get(f"{origin}/{path}")
        assert status == 503
        assert "the event loop is blocked" in body


def test_worker_serves_health_and_metrics(start: Start, shop: Path, server: DevServer, id: str) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    command = work(start, server, "--health", "127.0.0.1:0", "--metrics", metrics)
    origin = command.until(r"health at (http://[\d.:]+)")[1]
    queues = {f"orders-{id}": True, f"slow-{id}": True}
    assert get(f"{origin}/live") == (200, json.dumps({"workers": queues}))
    assert get(f"{origin}/ready") == (200, json.dumps({"workers": queues}))
    assert get(f"{origin}/other")[0] == 404
    status, body = get(f"http://{metrics}/metrics")
    assert status == 200
    assert "temporal_num_pollers" in body
    assert command.stop() == 0


@pytest.mark.slow
def test_worker_waits_for_an_unreachable_server(start: Start, shop: Path, tmp_path: Path) -> None:
    server = DevServer(tmp_path / "temporal.db")
    command = start("temporal", "worker", "shop", "--health", "127.0.0.1:0", TEMPORAL_ADDRESS=server.address)
    command.until(rf"the Temporal server at {server.address} cannot be reached.* Trying again until it answers")
    origin = command.until(r"health at (http://[\d.:]+)")[1]
    assert get(f"{origin}/live")[0] == 200
    status, body = get(f"{origin}/ready")
    assert status == 503
    assert "no worker runs for orders" in body
    server.start()
    command.until("working on slow")
    assert get(f"{origin}/ready")[0] == 200
    server.kill()
    assert get(f"{origin}/ready")[0] == 503
    assert command.stop() == 0


@pytest.mark.slow
def test_a_change_restarts_it(start: Start, shop: Path, server: DevServer, temporal: Temporal, id: str) -> None:
    command = work(start, server, "--reload")
    end = len(command.output)
    source = (shop / "activities.py").read_text()
    write(shop / "activities.py", source.replace("processed", "handled"))
    command.until("activities.py changed, restarting shop:temporal")
    command.until("working on slow", after=end)
    result = temporal.sync.execute_workflow("OrderWorkflow", "7", id=f"order-{id}", task_queue=f"orders-{id}")
    assert result.startswith("handled 7")
    assert command.stop() == 0


@pytest.mark.slow
def test_grace_with_reload_is_refused(run: Run, shop: Path) -> None:
    result = run("temporal", "worker", "shop", "--reload", "--grace", "5")
    assert result.status == 1
    assert "--reload cancels activities after 1 second: leave out --grace" in result.stderr


BAD_TARGETS = [
    ("absent:temporal", "there is no module 'absent'"),
    ("shop:tempral", "shop has no 'tempral'; did you mean 'temporal'?"),
    ("shop:other", "shop:other is an object of type builtins.int, not a durably.temporal.Temporal"),
    ("empty:temporal", "there is nothing to run: declare workers with temporal.add_worker"),
    ("broken:temporal", "importing broken failed: ZeroDivisionError"),
]


@pytest.mark.parametrize(("target", "message"), variants(BAD_TARGETS, BAD_TARGETS[:1]))
def test_app_that_cannot_be_run_is_reported(run: Run, shop: Path, target: str, message: str) -> None:
    write(shop / "empty.py", "from durably.temporal import Temporal\ntemporal = Temporal()\n")
    write(shop / "broken.py", "1 / 0\n")
    result = run("temporal", "worker", target)
    assert result.status == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_namespace_is_reported(run: Run, shop: Path, server: DevServer) -> None:
    result = run("temporal", "worker", "shop", TEMPORAL_ADDRESS=server.address, TEMPORAL_NAMESPACE="none")
    assert result.status == 1
    error = result.stderr.splitlines()[-1]
    assert f'the server at {server.address} has no namespace "none": check TEMPORAL_NAMESPACE' in error
    assert "`temporal operator namespace create none`" in error
    assert "Status {" not in error
    assert "Traceback" not in result.stderr
