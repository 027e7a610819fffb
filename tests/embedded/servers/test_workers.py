"""Several worker processes of real servers: one leads, all run functions, and any may end at any time."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from ...variants import variants
from ...waiting import eventually
from ..cluster import Cluster, gunicorn, serving, uvicorn

SERVERS = {
    "gunicorn-flask": gunicorn("flask_app", 3),
    "gunicorn-preloaded": gunicorn("flask_app", 3, "--preload"),
    "uvicorn-fast_api": uvicorn("fast_api_app", 3),
}

PRELOADED = SERVERS["gunicorn-preloaded"]
"""The server whose workers start fastest, for tests of common behaviour."""


def numbered(count: int, name: str = "count") -> list[dict[str, str]]:
    return [{"name": name, "id": f"{name}-{number}"} for number in range(count)]


def assert_each_step_ran_once(cluster: Cluster) -> None:
    steps = Counter((entry["run"], entry["step"]) for entry in cluster.diary.entries("step"))
    assert set(steps.values()) == {1}


@pytest.mark.parametrize("server", variants(SERVERS, ["gunicorn-preloaded"]))
def test_every_worker_runs_functions_and_one_owns_the_database(server: str, tmp_path: Path) -> None:
    with serving(SERVERS[server], tmp_path) as cluster:
        leader = cluster.wait_joined(3)
        cluster.send(*numbered(60), *numbered(60, "count-sync"))
        cluster.wait_completed(120)
        assert_each_step_ran_once(cluster)
        ran = {entry["process"] for entry in cluster.diary.entries("step")}
        assert ran == cluster.workers()
        assert leader in ran
        assert cluster.log().count("(epoch ") == 1


@pytest.mark.parametrize(
    ("server", "how"),
    variants(
        [
            ("gunicorn-flask", signal.SIGKILL),
            ("uvicorn-fast_api", signal.SIGKILL),
            ("uvicorn-fast_api", signal.SIGTERM),
        ],
        [("gunicorn-flask", signal.SIGKILL)],
    ),
)
def test_another_process_becomes_leader_when_the_leader_ends(server: str, how: signal.Signals, tmp_path: Path) -> None:
    with serving(SERVERS[server], tmp_path) as cluster:
        leader = cluster.wait_joined(3)
        cluster.send(*numbered(30))
        os.kill(leader, how)
        cluster.send(*numbered(30, "count-sync"))
        cluster.wait_completed(60)
        assert cluster.wait_leader(but=leader) != leader


def test_takeover_takes_less_than_a_second(tmp_path: Path) -> None:
    with serving(PRELOADED, tmp_path) as cluster:
        took = []
        for _ in range(3):
            leader = cluster.wait_joined(3)
            os.kill(leader, signal.SIGKILL)
            began = time.monotonic()
            cluster.wait_leader(but=leader)
            took.append(time.monotonic() - began)
        assert min(took) < 1, took


@pytest.mark.slow
def test_a_stopped_leader_loses_the_database_and_follows_once_revived(tmp_path: Path) -> None:
    with serving(PRELOADED, tmp_path) as cluster:
        stopped = cluster.wait_joined(3)
        cluster.send(*numbered(10))
        cluster.wait_completed(10)
        cluster.stop_between_transactions(stopped)
        cluster.wait_leader(but=stopped)
        cluster.send(*numbered(20, "count-sync"))
        cluster.wait_completed(30)
        follows = cluster.log().count("follows the leader")
        os.kill(stopped, signal.SIGCONT)
        eventually(lambda: cluster.log().count("follows the leader") > follows, "the old leader follows")
        assert "another engine has taken over the database" in cluster.log()
        cluster.send(*numbered(60))
        cluster.wait_completed(80)
        assert_each_step_ran_once(cluster)


@pytest.mark.parametrize("how", variants([signal.SIGKILL, signal.SIGSTOP], [signal.SIGKILL]))
def test_the_calls_of_a_lost_worker_are_made_elsewhere(how: signal.Signals, tmp_path: Path) -> None:
    with serving(PRELOADED, tmp_path) as cluster:
        leader = cluster.wait_joined(3)
        until = tmp_path / "until"
        cluster.send(*({"name": "hold", "id": str(number), "data": {"until": str(until)}} for number in range(3)))
        held = eventually(lambda: held if len(held := cluster.diary.entries("held")) == 3 else None, "all hold")
        lost = next(entry for entry in held if entry["process"] != leader)
        os.kill(lost["process"], how)
        again = eventually(lambda: cluster.diary.entries("held")[3:], "the lost call is made again")[0]
        assert again["run"] == lost["run"]
        assert again["attempt"] == lost["attempt"] + 1
        assert again["process"] != lost["process"]
        os.kill(lost["process"], signal.SIGCONT) if how == signal.SIGSTOP else None
        until.touch()
        cluster.wait_completed(3)
        [(memo,)] = cluster.query(
            "SELECT memo FROM memos JOIN runs ON runs.key = run_key WHERE runs.id = ?", lost["run"]
        )
        assert memo == b'{"data":%d}' % again["process"]


@pytest.mark.parametrize("is_leader", variants([True, False], [True]))
def test_a_worker_that_gets_sigterm_returns_its_calls(is_leader: bool, tmp_path: Path) -> None:
    with serving(PRELOADED, tmp_path) as cluster:
        leader = cluster.wait_joined(3)
        until = tmp_path / "until"
        events = [{"name": "hold-async", "id": str(number), "data": {"until": str(until)}} for number in range(3)]
        cluster.send(*events)
        held = eventually(lambda: held if len(held := cluster.diary.entries("held")) == 3 else None, "all hold")
        ending = next(entry for entry in held if (entry["process"] == leader) is is_leader)
        os.kill(ending["process"], signal.SIGTERM)
        again = eventually(
            lambda: [entry for entry in cluster.diary.entries("held")[3:] if entry["run"] == ending["run"]],
            "the call is made again",
        )
        assert again[0]["process"] != ending["process"]
        assert again[0]["attempt"] == ending["attempt"]
        until.touch()
        cluster.wait_completed(3)


def test_an_idle_server_ends_at_once(tmp_path: Path) -> None:
    """Long before the grace period of running calls."""
    server = gunicorn("flask_app", 3, "--preload", "--graceful-timeout", "120")
    with serving(server, tmp_path, TEST_CLOSE_GRACE="120") as cluster:
        cluster.wait_joined(3)
        cluster.send(*numbered(5))
        cluster.wait_completed(5)
        cluster.process.terminate()
        cluster.process.wait(60)
        assert "Traceback" not in cluster.log()
