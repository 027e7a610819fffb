"""Workers are killed and stopped at random under load. No event is lost, and no committed step runs again."""

import os
import random
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from ...variants import variants
from ..cluster import Cluster, gunicorn, serving, uvicorn
from ..functions import STEPS

WORKERS = 3
ROUNDS = int(os.environ.get("DURABLY_CHAOS_ROUNDS", "4"))
"""Set this to hundreds for hours of it, with a matching timeout of pytest (``-o timeout=``)."""
EVENTS = 30


def pick(cluster: Cluster, random_: random.Random) -> int:
    """The leader, or another worker."""
    leader = cluster.wait_leader()
    others = sorted(cluster.workers() - {leader})
    return leader if not others or random_.random() < 0.5 else random_.choice(others)


def send_load(cluster: Cluster, round_: int) -> None:
    for part in range(3):
        names = ("count", "count-sync")
        cluster.send(
            *({"name": name, "id": f"{name}-{round_}-{part}-{n}"} for n in range(EVENTS // 6) for name in names)
        )


def assert_all_is_there(cluster: Cluster) -> None:
    cluster.wait_completed(ROUNDS * EVENTS, seconds=60 + ROUNDS)
    memos = cluster.query("SELECT runs.id, count(*) FROM memos JOIN runs ON runs.key = run_key GROUP BY runs.id")
    assert Counter(count for _, count in memos) == {STEPS: ROUNDS * EVENTS}
    assert cluster.query("SELECT count(*) FROM events WHERE sender_id IS NOT NULL") == [(ROUNDS * EVENTS,)]


def runs_after_commit(cluster: Cluster) -> list[tuple[str, int]]:
    """Steps that began a second time although they had been committed. What is written down has its time from the
    engine's clock, just before its commit."""
    committed = {
        (run, name): ended_at
        for run, name, ended_at in cluster.query(
            "SELECT runs.id, memos.name, memos.ended_at FROM memos JOIN runs ON runs.key = run_key"
        )
    }
    return [
        (entry["run"], entry["step"])
        for entry in cluster.diary.entries("step")
        if entry["at"] * 1000 > committed[entry["run"], f"step-{entry['step']}"] + 500
    ]


SERVERS = {"gunicorn": gunicorn("flask_app", WORKERS), "uvicorn": uvicorn("fast_api_app", WORKERS)}


@pytest.mark.parametrize("server", variants(SERVERS, []))
def test_killed_and_stopped_workers_lose_no_event(server: str, tmp_path: Path) -> None:
    random_ = random.Random(7)
    with serving(SERVERS[server], tmp_path) as cluster:
        cluster.wait_joined(WORKERS)
        for round_ in range(ROUNDS):
            send_load(cluster, round_)
            with suppress(ProcessLookupError):
                os.kill(pick(cluster, random_), signal.SIGKILL)
        assert_all_is_there(cluster)
        assert runs_after_commit(cluster) == []


@pytest.mark.parametrize("server", variants(SERVERS, []))
def test_workers_are_stopped_and_revived(server: str, tmp_path: Path) -> None:
    random_ = random.Random(8)
    with serving(SERVERS[server], tmp_path) as cluster:
        cluster.wait_joined(WORKERS)
        for round_ in range(ROUNDS):
            send_load(cluster, round_)
            leader, stopped = cluster.wait_leader(), pick(cluster, random_)
            cluster.stop_between_transactions(stopped)
            if stopped == leader:
                cluster.wait_leader(but=leader)
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
        assert_all_is_there(cluster)
        assert runs_after_commit(cluster) == []
