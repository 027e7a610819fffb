"""Schedules declared in code: commands sync them to the real server, and write only changes."""

import asyncio
import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.encryption import EncryptionCodec, EncryptionKey
from durably.temporal.namespace.schedules import sync_schedules

from ...cli.conftest import Run, directory, run, write
from ...waiting import async_eventually
from ..dev_server import DevServer
from ..django.django_site import DjangoSite
from ..workflows import Order, OrderWorkflow, Pair, SumWorkflow

__all__ = ["directory", "run"]


@pytest.fixture
def app() -> str:
    return f"app-{uuid.uuid4().hex[:8]}"


def connect(server: DevServer, app: str, **options: Any) -> Temporal:
    return Temporal(server.address, task_queue=app, **options)


def sync(temporal: Temporal, **options: Any) -> dict[str, str]:
    async def collect() -> dict[str, str]:
        return {id: str(outcome) async for id, outcome in sync_schedules(temporal, **options)}

    return asyncio.run(collect())


def declare(temporal: Temporal, app: str, amount: float = 1, cron: str = "0 3 * * *") -> None:
    order = Order(order_id="7", amount=amount)
    temporal.add_schedule(f"{app}-nightly", OrderWorkflow.run, order, cron=cron, time_zone="Europe/Berlin")


def describe(temporal: Temporal, id: str) -> Any:
    return temporal.sync.run(lambda client: client.get_schedule_handle(id).describe())


def test_only_changed_schedules_are_written(server: DevServer, app: str) -> None:
    first = connect(server, app)
    declare(first, app)
    first.add_schedule(f"{app}-often", "sum-of-pair", every=timedelta(minutes=5), workflow_id="sum")
    assert sync(first, dry_run=True) == {f"{app}-nightly": "created", f"{app}-often": "created"}
    assert sync(first) == {f"{app}-nightly": "created", f"{app}-often": "created"}
    assert sync(first) == {f"{app}-nightly": "unchanged", f"{app}-often": "unchanged"}
    described = describe(first, f"{app}-nightly")
    assert described.schedule.spec.time_zone_name == "Europe/Berlin"
    assert described.schedule.action.workflow == "OrderWorkflow"
    assert described.schedule.action.task_queue == app
    assert described.schedule.action.id == f"{app}-nightly"

    first.sync.run(lambda client: client.get_schedule_handle(f"{app}-nightly").pause(note="holidays"))
    second = connect(server, app)
    declare(second, app, amount=2)
    assert sync(second, dry_run=True)[f"{app}-nightly"] == "updated"
    assert sync(second)[f"{app}-nightly"] == "updated"
    state = describe(second, f"{app}-nightly").schedule.state
    assert (state.paused, state.note) == (True, "holidays")


def test_undeclared_schedules_are_reported_and_deleted_with_prune(server: DevServer, app: str) -> None:
    first = connect(server, app)
    declare(first, app)
    other = connect(server, f"{app}-other")
    declare(other, f"{app}-other")
    sync(first)
    sync(other)
    empty = connect(server, app)
    wait_until_listed(empty, f"{app}-nightly")
    assert sync(empty) == {f"{app}-nightly": "no longer declared"}
    assert sync(empty, prune=True, dry_run=True) == {f"{app}-nightly": "deleted"}
    assert sync(empty, prune=True) == {f"{app}-nightly": "deleted"}
    assert sync(other) == {f"{app}-other-nightly": "unchanged"}


def wait_until_listed(temporal: Temporal, id: str) -> None:
    async def wait() -> None:
        client = await temporal.client()

        async def listed() -> list[str]:
            return [each.id async for each in await client.list_schedules()]

        await async_eventually(listed, f"the schedule {id} is listed", is_right=lambda ids: id in ids)

    asyncio.run(wait())


def test_encrypted_schedules_are_synced_only_where_they_differ(server: DevServer, app: str) -> None:
    for expected in ("created", "unchanged"):
        temporal = connect(server, app, encryption=EncryptionCodec(EncryptionKey("one", b"k" * 32)))
        declare(temporal, app)
        assert sync(temporal) == {f"{app}-nightly": expected}


def test_schedule_of_another_app_is_not_changed(server: DevServer, app: str) -> None:
    declare(first := connect(server, app), app)
    sync(first)
    declare(other := connect(server, f"{app}-other"), app)
    with pytest.raises(TemporalSettingsError, match=f"not declared by {app}-other but by {app}: give this one another"):
        sync(other)


def test_declarations_that_make_no_sense_are_refused(server: DevServer, app: str) -> None:
    temporal = connect(server, app)
    with pytest.raises(TemporalSettingsError, match="one of cron=, every= and spec="):
        temporal.add_schedule("a", "b", cron="0 3 * * *", every=timedelta(hours=1))
    declare(temporal, app)
    declare(temporal, app)
    with pytest.raises(TemporalSettingsError, match="is declared twice"):
        sync(temporal)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cron": "every day"}, r"'every day' \(it needs five to seven fields"),
        ({"cron": "61 3 * * *"}, "'61 3 \\* \\* \\*'"),
        ({"cron": "0 3 * * *", "time_zone": "Europe/Berlyn"}, "an unknown time zone: 'Europe/Berlyn'"),
    ],
)
def test_dry_run_finds_declarations_that_the_server_would_refuse(
    server: DevServer, app: str, options: dict[str, Any], words: str
) -> None:
    temporal = connect(server, app)
    temporal.add_schedule(f"{app}-a", "sum-of-pair", **options)
    with pytest.raises(TemporalSettingsError, match=f'the schedule "{app}-a" has .*{words}'):
        sync(temporal, dry_run=True)


def test_dry_run_accepts_declarations_that_the_server_accepts(server: DevServer, app: str) -> None:
    temporal = connect(server, app)
    spec = [
        "@daily",
        "@every 5m",
        "CRON_TZ=Europe/Berlin 0 3 * * *",
        "0 0 3 * * * *",
        "0 3 * * * 2026",
        "0 3 * * 1 # a",
    ]
    for number, cron in enumerate([*spec, "*/5 1-3 * jan-mar MON-FRI", "0 3 * * sun"]):
        temporal.add_schedule(f"{app}-{number}", "sum-of-pair", cron=cron, time_zone="Europe/Berlin")
    assert set(sync(temporal, dry_run=True).values()) == {"created"}
    assert set(sync(temporal).values()) == {"created"}
    assert set(sync(connect(server, app), prune=True).values()) == {"deleted"}


def test_arguments_fit_the_workflow(server: DevServer, app: str) -> None:
    temporal = connect(server, app)
    temporal.add_schedule("a", SumWorkflow.run, Pair(1), every=timedelta(hours=1))
    temporal.add_schedule("b", "sum-of-pair", Pair(1), every=timedelta(hours=1))
    assert [each.args for each in temporal.schedules] == [(Pair(1), 1), (Pair(1),)]
    for args, words in (((), "needs an argument for pair"), ((Pair(1), 2, 3), "takes 2 arguments, and 3 were given")):
        with pytest.raises(TemporalSettingsError, match=f'the schedule "c" cannot start its workflow: .*{words}'):
            temporal.add_schedule("c", SumWorkflow.run, *args, every=timedelta(hours=1))


@pytest.mark.slow
def test_command_syncs_schedules(run: Run, directory: Path, server: DevServer, app: str) -> None:
    source = """
        from durably.temporal import Temporal
        temporal = Temporal()
        temporal.add_schedule("{app}-nightly", "Report", "sales", cron="{cron}")
    """
    settings = {"TEMPORAL_ADDRESS": server.address, "TEMPORAL_TASK_QUEUE": app}
    write(directory / "shop.py", source.format(app=app, cron="0 3 * * *"))
    unchecked = "\nnothing was changed, and the server has not checked the declarations"
    for options, expected in ((["--dry-run"], f"created (dry run){unchecked}"), ([], "created"), ([], "unchanged")):
        result = run("temporal", "sync-schedules", "shop", *options, **settings)
        assert (result.status, result.stdout) == (0, f"{app}-nightly: {expected}\n"), result.stderr
    result = run("temporal", "sync-schedules", "shop", "--json", **settings)
    assert json.loads(result.stdout) == [{"id": f"{app}-nightly", "outcome": "unchanged", "is_dry_run": False}]
    write(directory / "shop.py", source.format(app=app, cron="every day"))
    result = run("temporal", "sync-schedules", "shop", **settings)
    assert (result.status, f'the server refuses the schedule "{app}-nightly": ' in result.stderr) == (1, True)
    assert "Traceback" not in result.stderr


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
        for expected in ("created", "unchanged"):
            done = site.run("sync_temporal_schedules")
            assert (done.returncode, done.stdout) == (0, f"{app}-report: {expected}\n"), done.stderr
    finally:
        site.stop()
