"""``durably temporal dev``: server, worker and app by one command; and the worker inside a web process."""

import asyncio
import json
import os
import select
import signal
import urllib.parse
import urllib.request
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durably.temporal import Temporal
from durably.temporal.gateway import FOR_OPERATORS, Gateway, expose

from ..cli.conftest import Command, Run, Start, directory, run, start, write
from .dev_server import DevServer
from .django.django_site import DjangoSite
from .gateway.gateway_client import ask
from .user_projects import ACTIVITIES, WORKFLOWS, descendants
from .workflows import SleepingWorkflow

__all__ = ["directory", "run", "start"]

APP = """
    from fastapi import FastAPI
    from durably.temporal import Temporal
    from activities import process_order, slow
    from workflows import OrderWorkflow, SlowWorkflow

    temporal = Temporal(task_queue="{queue}")
    temporal.add_worker(workflows=[OrderWorkflow, SlowWorkflow], activities=[process_order, slow])
    app = FastAPI(lifespan=temporal.lifespan{worker})

    @app.post("/orders/{order_id}")
    async def place(order_id: str) -> dict[str, str]:
        client = await temporal.client()
        id = f"order-{order_id}"
        return {"result": await client.execute_workflow(OrderWorkflow.run, order_id, id=id, task_queue="{queue}")}
"""


def write_app(directory: Path, worker: str = "") -> None:
    write(directory / "workflows.py", WORKFLOWS)
    write(directory / "activities.py", ACTIVITIES)
    write(directory / "main.py", APP.replace("{queue}", uuid.uuid4().hex).replace("{worker}", worker))


def place(origin: str, order_id: str) -> str:
    request = urllib.request.Request(f"{origin}/orders/{order_id}", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["result"])


def dev(start: Start, *arguments: str) -> Command:
    return start("temporal", "dev", *arguments, "--port", "0", "--ui-port", "0", "--app-port", "0")


@pytest.mark.slow
def test_one_command_starts_all_of_it(start: Start, directory: Path) -> None:
    write_app(directory)
    command = dev(start, "main:app")
    command.until(r"Temporal at 127.0.0.1:\d+, its web UI at http://127.0.0.1:\d+, state in .durably/temporal.db")
    origin = command.until(r"main:app is up at (http://[\d.:]+)")[1]
    command.until(r"working on \w+: OrderWorkflow, SlowWorkflow; process_order, slow")
    assert place(origin, "1").startswith("processed 1")

    end = len(command.output)
    write(directory / "activities.py", ACTIVITIES.replace("processed", "handled"))
    command.until("restarting main:app", after=end)
    command.until("restarting main\n", after=end)
    command.until("working on", after=end)
    origin = command.until(r"main:app is up at (http://[\d.:]+)", after=end)[1]
    assert place(origin, "2").startswith("handled 2")
    assert command.stop() == 0
    assert "Traceback" not in command.output


@pytest.mark.slow
def test_several_connections_are_started_together(start: Start, directory: Path) -> None:
    write(directory / "workflows.py", WORKFLOWS)
    write(directory / "activities.py", ACTIVITIES)
    connections = """
        import os
        from durably.temporal import Temporal
        from activities import process_order
        from workflows import OrderWorkflow

        temporal = Temporal(task_queue="shop")
        queue = os.environ["TEMPORAL_UI_URL"]
        billing = Temporal(name="billing", namespace="billing", task_queue=queue, same_server_as=temporal)
        temporal.add_worker(workflows=[OrderWorkflow], activities=[process_order])
        billing.add_worker(workflows=[OrderWorkflow], activities=[process_order])
    """
    write(directory / "shop.py", connections)
    command = dev(start, "--worker", "shop:temporal", "--worker", "shop:billing", "--namespace", "billing")
    ui = command.until(r"its web UI at (http://127.0.0.1:\d+)")[1]
    command.until("namespace billing")
    command.until("working on shop: OrderWorkflow")
    command.until(f"working on {ui}: OrderWorkflow")
    assert command.stop() == 0


@pytest.mark.slow
def test_workflows_are_paused_and_resumed_on_the_server(start: Start, directory: Path) -> None:
    write_app(directory)
    command = dev(start, "--worker", "main:temporal")
    temporal = Temporal(command.until(r"Temporal at ([\d.:]+),")[1], task_queue="unpolled")
    gateway = Gateway(temporal, [expose(SleepingWorkflow, operations=FOR_OPERATORS)], allow_anonymous=True)

    async def pause_and_resume() -> list[Any]:
        place = (await ask(gateway, None, "POST", "sleeping")).json["links"]["self"].removeprefix("/api/")
        found = [(await ask(gateway, None, "POST", f"{place}/pause")).status]
        found.append((await ask(gateway, None, "GET", place)).json["status"])
        found.append((await ask(gateway, None, "POST", f"{place}/resume")).status)
        return [*found, (await ask(gateway, None, "GET", place)).json["status"]]

    assert asyncio.run(pause_and_resume()) == [202, "paused", 202, "running"]
    assert command.stop() == 0


def test_a_namespace_is_made_in_a_server_of_ones_own_only(run: Run) -> None:
    result = run("temporal", "dev", "main:app", "--namespace", "billing", "--server", "127.0.0.1:1")
    assert result.status == 1
    assert "leave it out with --server" in result.stderr


@pytest.mark.slow
def test_one_command_starts_a_django_project(start: Start, tmp_path: Path) -> None:
    site = DjangoSite(tmp_path, "127.0.0.1:1")  # The environment comes before the settings.
    ports = ("--port", "0", "--ui-port", "0", "--app-port", "0")
    project = ("--django", f"{site.directory}/manage.py", "--migrate")
    connections = {"billing": {"NAMESPACE": "billing", "TASK_QUEUE": "invoices"}}
    site.variables["TEST_CONNECTIONS"] = json.dumps(connections)
    command = start("temporal", "dev", *project, *ports, **site.environment({}))
    origin = command.until(r"runserver is up at (http://[\d.:]+)")[1]
    command.until(f"working on {site.task_queue}:")
    command.until("working on invoices: InvoiceWorkflow; send_invoice")
    body = urllib.parse.urlencode({"name": "ada"}).encode()
    with urllib.request.urlopen(f"{origin}/signup/", data=body, timeout=30) as answer:
        assert json.load(answer) == {"status": "started", "workflow_id": "signup-1"}
    address = command.until(r"Temporal at ([\d.:]+),")[1]
    handle = Temporal(address).sync.get_workflow_handle("signup-1")
    assert handle.result(timeout=timedelta(seconds=30)) == "Email sent to ada@example.com"
    billing = Temporal(address, namespace="billing")
    done = billing.sync.execute_workflow("InvoiceWorkflow", "ada", id="invoice-1", task_queue="invoices")
    assert done.startswith("invoice to ada in billing")
    assert "not working for the connection" not in command.output
    assert command.stop() == 0


def test_django_project_that_cannot_list_its_connections_is_reported(
    run: Run, directory: Path, server: DevServer
) -> None:
    write(directory / "manage.py", "import sys; print('hello'); sys.exit('list' in ' '.join(sys.argv))")
    result = run("temporal", "dev", "--django", "manage.py", "--server", server.address, "--no-reload")
    assert result.status == 1
    assert "manage.py does not list the connections to Temporal (exit status 1): only the worker" in result.stdout


@pytest.mark.slow
def test_a_crash_of_the_server_ends_it(start: Start, directory: Path) -> None:
    write_app(directory)
    command = dev(start, "main:app")
    command.until("main:app is up")
    [server] = [pid for pid in descendants(command.process.pid) if name_of(pid) == "temporal"]
    os.kill(server, signal.SIGKILL)
    assert command.wait() == 1
    assert "the process that serves Temporal ended" in command.output


@pytest.mark.slow
def test_nothing_outlives_a_killed_command(start: Start, directory: Path) -> None:
    write_app(directory)
    command = dev(start, "main:app")
    command.until("main:app is up")
    handles = [os.pidfd_open(pid) for pid in descendants(command.process.pid)]
    assert len(handles) >= 4
    command.stop(signal.SIGKILL)
    for handle in handles:
        select.select([handle], [], [], 20)[0] or pytest.fail("a process goes on")
        os.close(handle)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.slow
def test_a_server_that_runs_already_is_used(start: Start, directory: Path, server: DevServer) -> None:
    write_app(directory)
    command = start("temporal", "dev", "main:app", "--server", server.address, "--app-port", "0", "--no-reload")
    origin = command.until(r"main:app is up at (http://[\d.:]+)")[1]
    assert place(origin, uuid.uuid4().hex).startswith("processed")
    assert command.stop() == 0
    assert "Temporal at" not in command.output


def test_port_in_use_is_reported(run: Run, directory: Path, server: DevServer) -> None:
    write_app(directory)
    result = run("temporal", "dev", "main:app", "--port", str(server.port))
    assert result.status == 1
    assert f"port {server.port} of 127.0.0.1 is taken" in result.stderr
    assert "--server" in result.stderr


def test_a_migration_that_fails_ends_it(run: Run, directory: Path, server: DevServer) -> None:
    write(directory / "manage.py", "import sys; sys.exit('no such table')")
    result = run("temporal", "dev", "--django", "manage.py", "--migrate", "--server", server.address)
    assert (result.status, "no such table" in result.stderr) == (1, True)
    assert "the process that does migrate ended with exit status 1" in result.stderr
