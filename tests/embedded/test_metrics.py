"""The engine's metrics in the app's own registry, in the leader and in a follower."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from durably import Context, Embedded, Event

from .app import App

FOLLOWER = """
import sys
import time
from prometheus_client import CollectorRegistry, generate_latest
from durably import Embedded
for options in ({}, {"in_leader_only": True}):
    registry = CollectorRegistry()
    registry.register(Embedded(sys.argv[1]).prometheus_collector(**options))
    print(generate_latest(registry).decode(), end="\\0")
"""


def values(text: str) -> dict[str, float]:
    return {
        ",".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(engine: Embedded) -> dict[str, float]:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(engine.prometheus_collector())
    return values(generate_latest(registry).decode())


async def test_leader_and_follower_show_the_same_metrics_and_only_the_leader_if_asked(tmp_path: Path) -> None:
    app = App(tmp_path / "durably.db", is_production=False)
    engine = app.engine

    @app.function("order")
    async def order(ctx: Context) -> int:
        await ctx.step.run("slow", lambda: time.sleep(0.06))
        return await ctx.step.run("price", lambda: 42)

    async with app.running():
        await app.run(Event(name="order"))
        own = await asyncio.to_thread(scrape, engine)
        follower = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FOLLOWER, engine.path, stdout=subprocess.PIPE
        )
        output, _ = await follower.communicate()
    of_follower, only_of_leaders = (values(text) for text in output.decode().split("\0")[:2])
    for shown in (own, of_follower):
        assert shown["durably_runs_ended_total,app-order,completed"] == 1
        assert shown["durably_steps_ended_total,app-order,completed"] == 2
        assert 0.06 <= shown["durably_step_duration_seconds_sum,app-order"] < 60
        assert shown["durably_up"] == 1
    assert own["durably_processes,follower"] == 0
    assert of_follower["durably_processes,follower"] == 1
    assert only_of_leaders == {}


def test_collector_that_is_registered_before_the_start_shows_no_engine(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db")
    assert scrape(engine) == {"durably_up": 0}, "a test run starts no engine"
    assert not (tmp_path / "durably.db").exists()
