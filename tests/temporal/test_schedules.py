"""Schedules declared in code: commands write them to the real server."""

import asyncio
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.commands import sync_schedules

from ..cli.conftest import Run, directory, run, write
from .dev_server import DevServer
from .django.django_site import DjangoSite
from .workflows import Order, OrderWorkflow

__all__ = ["directory", "run"]


@pytest.fixture
def app() -> str:
    return f"app-{uuid.uuid4().hex[:8]}"


def sync(temporal: Temporal) -> dict[str, str]:
    async def collect() -> dict[str, str]:
        return {id: outcome async for id, outcome in sync_schedules(temporal)}

    return asyncio.run(collect())


def declared(server: DevServer, app: str, amount: float) -> Temporal:
    temporal = Temporal(server.address, task_queue=app)
    order = Order(order_id="7", amount=amount)
    temporal.add_schedule(f"{app}-nightly", OrderWorkflow.run, order, cron="0 3 * * *", time_zone="Europe/Berlin")
    temporal.add_schedule(f"{app}-often", "sum-of-pair", every=timedelta(minutes=5), task_queue="sums")
    return temporal


def test_schedules_are_created_and_updated(server: DevServer, app: str) -> None:
    def describe(temporal: Temporal, id: str) -> Any:
        return temporal.sync.run(lambda client: client.get_schedule_handle(id).describe()).schedule

    first = declared(server, app, amount=1)
    assert sync(first) == {f"{app}-nightly": "created", f"{app}-often": "created"}
    nightly, often = (describe(first, f"{app}-{name}") for name in ("nightly", "often"))
    assert nightly.spec.time_zone_name == "Europe/Berlin"
    assert (nightly.action.workflow, nightly.action.task_queue) == ("OrderWorkflow", app)
    assert (often.action.id, often.action.task_queue) == (f"{app}-often", "sums")

    first.sync.run(lambda client: client.get_schedule_handle(f"{app}-nightly").pause(note="holidays"))
    second = declared(server, app, amount=2)
    assert sync(second) == {f"{app}-nightly": "updated", f"{app}-often": "updated"}
    changed = describe(second, f"{app}-nightly")
    assert (changed.state.paused, changed.state.note) == (True, "holidays")
    assert b'"amount":2' in changed.action.args[0].data.replace(b" ", b"")


def test_declarations_that_make_no_sense_are_refused(server: DevServer, app: str) -> None:
    temporal = Temporal(server.address, task_queue=app)
    for times in ({}, {"cron": "0 3 * * *", "every": timedelta(hours=1)}):
        with pytest.raises(TemporalSettingsError, match="cron= or every="):
            temporal.add_schedule("a", "b", **times)  # type: ignore[arg-type]
    temporal.add_schedule("a", "b", cron="every day")
    with pytest.raises(TemporalSettingsError, match='refuses the schedule "a"'):
        sync(temporal)
    temporal.add_schedule("a", "b", cron="0 3 * * *")
    with pytest.raises(TemporalSettingsError, match="is declared twice"):
        sync(temporal)


@pytest.mark.slow
def test_command_syncs_schedules(run: Run, directory: Path, server: DevServer, app: str) -> None:
    source = f"""
        from durably.temporal import Temporal
        temporal = Temporal()
        temporal.add_schedule("{app}-nightly", "Report", "sales", cron="0 3 * * *")
    """
    write(directory / "shop.py", source)
    settings = {"TEMPORAL_ADDRESS": server.address, "TEMPORAL_TASK_QUEUE": app}
    for options, expected in (
        ([], f"{app}-nightly: created\n"),
        (["--json"], f'[{{"id":"{app}-nightly","outcome":"updated"}}]\n'),
    ):
        result = run("temporal", "sync-schedules", "shop", *options, **settings)
        assert (result.status, result.stdout) == (0, expected), result.stderr


DECLARES = """
from temporalio import workflow
from durably.temporal.django import temporal

@workflow.defn
class ReportWorkflow:
    @workflow.run
    async def run(self) -> str:
        return "reported"

temporal.add_schedule("{app}-report", ReportWorkflow.run, cron="0 3 * * *")
"""


@pytest.mark.slow
def test_djangos_command_with_a_workflow_next_to_its_schedule(tmp_path: Path, server: DevServer, app: str) -> None:
    site = DjangoSite(tmp_path, server.address)
    (site.directory / "mails" / "workflows.py").write_text(DECLARES.format(app=app))
    try:
        done = site.run("sync_temporal_schedules")
        assert (done.returncode, done.stdout) == (0, f"{app}-report: created\n"), done.stderr
    finally:
        site.stop()
