"""A process that continues after a stop of more than the lease starts no step of repeated calls."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from ...variants import variants
from ...waiting import eventually
from ..cluster import gunicorn, serving, uvicorn

WORKERS = 3
SERVERS = {"between": gunicorn("flask_app", WORKERS, "--preload"), "between-async": uvicorn("fast_api_app", WORKERS)}


@pytest.mark.parametrize("is_leader", [True, False], ids=["the leader", "a follower"])
@pytest.mark.parametrize("name", variants(SERVERS, ["between"]))
def test_a_revived_process_begins_no_step(name: str, is_leader: bool, tmp_path: Path) -> None:
    # The process that becomes leader may get all calls in addition to its own. On two cores it has six threads.
    with serving(SERVERS[name], tmp_path, DURABLY_THREAD_POOL_MAX_WORKERS="32") as cluster:
        leader = cluster.wait_joined(WORKERS)
        until = tmp_path / "until"
        cluster.send(*({"name": name, "id": str(number), "data": {"until": str(until)}} for number in range(6)))
        begun = eventually(lambda: seen if len(seen := cluster.diary.entries("between")) == 6 else None, "all wait")
        processes = {entry["process"] for entry in begun}
        stopped = leader if is_leader else next(iter(processes - {leader}))
        runs = {entry["run"] for entry in begun if entry["process"] == stopped}
        assert runs
        cluster.stop_between_transactions(stopped)

        def are_made_elsewhere() -> bool:
            again = cluster.diary.entries("between")
            return runs <= {entry["run"] for entry in again if entry["process"] != stopped}

        try:
            eventually(are_made_elsewhere, "the calls are made elsewhere")
        except AssertionError:
            calls = cluster.diary.entries("between")
            raise AssertionError(
                f"{stopped=} {runs=} {calls=}\n{cluster.run_statuses()}\n{cluster.log()[-4000:]}"
            ) from None
        until.touch()
        cluster.wait_completed(6)
        os.kill(stopped, signal.SIGCONT)

        def have_left() -> bool:
            return runs <= {entry["run"] for entry in cluster.diary.entries("left") if entry["process"] == stopped}

        eventually(have_left, "the revived process has ended its calls")
        assert set(Counter(entry["run"] for entry in cluster.diary.entries("second")).values()) == {1}
