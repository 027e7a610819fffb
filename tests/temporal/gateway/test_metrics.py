"""Metrics of the gateway and of the SDK for Prometheus, in each process."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import textwrap
import urllib.request
import uuid
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.fast_api import router
from durably.temporal.gateway import Gateway

from ...ports import free_port
from ...waiting import async_eventually
from ..apps import LIMITS, exposures
from ..dev_server import DevServer
from ..workflows import TASK_QUEUE
from .gateway_client import get
from .test_gateway import ORDER, ask

pytestmark = pytest.mark.usefixtures("worker")


class Measured:
    """A gateway that serves its metrics, in its own runtime."""

    def __init__(self, server: DevServer) -> None:
        self.port = free_port()
        temporal = Temporal(server.address, task_queue=TASK_QUEUE)
        temporal.serve_metrics(f"127.0.0.1:{self.port}")
        self.gateway = Gateway(temporal, exposures(), allow_anonymous=True, limits=LIMITS)

    def value(self, name: str, **labels: str) -> float | None:
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            lines = response.read().decode().splitlines()
        found = [line for line in lines if line.startswith(f"{name}{{") and all(each in line for each in wanted)]
        return sum(float(line.rpartition(" ")[2]) for line in found) if found else None

    def requests(self, route: str, status: int) -> float | None:
        return self.value("durably_gateway_requests_total", route=route, status=str(status))


@pytest.fixture
def measured(server: DevServer) -> Measured:
    return Measured(server)


async def test_requests_are_counted_by_route_workflow_and_status(measured: Measured) -> None:
    started = await ask(measured.gateway, "POST", "orders", {"order_id": uuid.uuid4().hex, **ORDER})
    place = f"orders/{started.json['workflow_id']}"
    for text in ("a", "b"):
        await ask(measured.gateway, "POST", f"{place}/signals/add_note", {"text": text})
    await ask(measured.gateway, "POST", f"{place}/signals/add_note", {"text": 3})
    await ask(measured.gateway, "GET", "nothing")
    assert measured.requests("POST /orders", 202) == 1
    assert measured.requests("POST /orders/{id}/signals/add_note", 202) == 2
    assert measured.requests("POST /orders/{id}/signals/add_note", 400) == 1
    assert measured.requests("unmatched", 404) == 1
    latency, route = "durably_gateway_latency_seconds", "POST /orders/{id}/signals/add_note"
    assert measured.value(f"{latency}_count", route=route, workflow_type="OrderWorkflow", status="202") == 2
    assert measured.value(f"{latency}_bucket", route=route, status="202", le="60") == 2
    assert (measured.value("temporal_request_total", operation="SignalWorkflowExecution") or 0) >= 2


async def test_open_long_polls_and_streams_are_counted(measured: Measured) -> None:
    def waiting(what: str) -> float | None:
        return measured.value("durably_gateway_waiting", route=f"GET /orders/{{id}}/{what}")

    async def are_waiting() -> bool:
        return (waiting("result"), waiting("events")) == (2, 1)

    async def follow() -> None:
        response = await measured.gateway.handle(get(f"{place}/events"))
        assert response.stream is not None
        assert [chunk async for chunk in response.stream()]

    started = await ask(measured.gateway, "POST", "orders", {"order_id": uuid.uuid4().hex, **ORDER})
    place = f"orders/{started.json['workflow_id']}"
    async with asyncio.TaskGroup() as clients:
        polls = [clients.create_task(ask(measured.gateway, "GET", f"{place}/result", wait="30")) for _ in range(2)]
        clients.create_task(follow())
        await async_eventually(are_waiting, "the requests are waiting")
        await ask(measured.gateway, "POST", f"{place}/signals/ship")
    assert [poll.result().status for poll in polls] == [200, 200]
    assert (waiting("result"), waiting("events")) == (0, 0)


def test_requests_that_fastapi_refuses_are_counted(measured: Measured) -> None:
    app = FastAPI()
    app.include_router(router(measured.gateway, prefix="/api"), prefix="/v1")
    client = TestClient(app)
    assert client.post("/v1/api/orders", json={"order_id": 3}).status_code == 400
    assert client.post("/v1/api/orders", content=b"\xff", headers={"Content-Type": "application/json"}).is_error
    assert measured.requests("POST /orders", 400) == 2


def two_free_ports() -> int:
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


@pytest.mark.slow
def test_each_process_serves_its_own(server: DevServer) -> None:
    """A fork after the parent has counted, as under gunicorn with --preload. It exits without a delay."""
    code = """
        import os, sys, urllib.request
        from durably.temporal import Temporal
        from durably.temporal.gateway import Gateway
        from tests.temporal.apps import exposures
        from tests.temporal.gateway.gateway_client import get

        port = int(sys.argv[2])
        temporal = Temporal(sys.argv[1], task_queue="orders")
        temporal.serve_metrics(f"127.0.0.1:{port}", processes=2)
        gateway = Gateway(temporal, exposures(), allow_anonymous=True)
        gateway.handle_sync(get("orders/parent"))
        child = os.fork()
        if not child:
            port += 1
            gateway.handle_sync(get("nothing"))
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        lines = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode().splitlines()
        counted = [line for line in lines if line.startswith("durably_gateway_requests_total")]
        assert len(counted) == 1, counted
        assert ("unmatched" if not child else "/orders/{id}") in counted[0]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), server.address, str(two_free_ports())],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


async def test_an_address_in_use_is_an_error(measured: Measured, server: DevServer) -> None:
    await ask(measured.gateway, "GET", "nothing")
    second = Temporal(server.address)
    second.serve_metrics(f"localhost:{measured.port}")
    with pytest.raises(TemporalSettingsError, match=f"metrics cannot be served at localhost:{measured.port}: "):
        await second.client()
    gateway = Gateway(second, exposures(), allow_anonymous=True)
    assert (await ask(gateway, "GET", "nothing")).status == 404
