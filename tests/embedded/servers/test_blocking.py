"""Functions that block: they delay the functions of their own process, and nothing else."""

import datetime as dt
import signal
from collections import Counter
from pathlib import Path

import pytest

from durably import Client, ContextSync, Embedded, Event, TriggerEvent
from durably.comm import CommHandler

from ...variants import variants
from ...waiting import eventually
from ..apps import LEASE
from ..cluster import gunicorn, serving, uvicorn

SECONDS = 2 * LEASE.total_seconds()


@pytest.mark.parametrize("blocks_loop", variants([False, True], [True]))
def test_a_step_that_blocks_for_longer_than_the_lease_runs_once(blocks_loop: bool, tmp_path: Path) -> None:
    with serving(uvicorn("fast_api_app", 2), tmp_path) as cluster:
        leader = cluster.wait_joined(2)
        data = {"seconds": SECONDS, "blocks_loop": blocks_loop}
        cluster.send(*({"name": "pay", "id": str(number), "data": data} for number in range(2)))
        cluster.wait_completed(2)
        assert set(Counter(entry["run"] for entry in cluster.diary.entries("charged")).values()) == {1}
        assert cluster.leader() == leader
        assert "no heartbeat" not in cluster.log()


async def test_a_blocked_event_loop_delays_no_timer_and_no_sync_function(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db")
    client = Client(app_id="app", engine=engine)

    @client.create_function(fn_id="nap", trigger=TriggerEvent(event="nap"))
    def nap(ctx: ContextSync) -> str:
        ctx.step.sleep("nap", dt.timedelta(milliseconds=10))
        return ctx.step.run("wake", lambda: "awake")

    CommHandler(client=client, framework="test", functions=[nap])
    async with engine.running():
        [event_id] = client.send_sync(Event(name="nap"))
        # From here on the app's event loop does not run until the run has ended.
        [run] = engine.event_runs_sync(event_id)
        assert engine.wait_for_run_sync(run.id, timeout=dt.timedelta(seconds=20)).decode_output() == "awake"


@pytest.mark.slow
@pytest.mark.parametrize("how", variants([signal.SIGKILL, signal.SIGSTOP], [signal.SIGKILL]))
def test_a_step_that_brings_its_process_down_uses_up_its_attempts(how: signal.Signals, tmp_path: Path) -> None:
    """The killed processes may be two leaders, or a leader and a follower."""
    with serving(gunicorn("flask_app", 1 if how == signal.SIGKILL else 3), tmp_path) as cluster:
        cluster.wait_leader()
        cluster.send({"name": "signal", "id": "one", "data": {"signal": how}})
        eventually(lambda: "Failed" in cluster.run_statuses().values(), "the run fails", timeout=60)
        assert [entry["attempt"] for entry in cluster.diary.entries("signalled")] == [0, 1]
