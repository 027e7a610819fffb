"""One client per process: under asyncio on any loop, under threads, after a fork, without the server."""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from durably.temporal import Temporal, TemporalUnreachableError

from ...ports import free_port
from ...variants import variants
from ...waiting import eventually
from ..dev_server import DevServer
from ..proxy import Proxy


@pytest.fixture
def proxy(server: DevServer) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


async def ask(temporal: Temporal) -> None:
    client = await temporal.client()
    with pytest.raises(RPCError) as failure:
        await client.get_workflow_handle("none").describe()
    assert failure.value.status is RPCStatusCode.NOT_FOUND


async def test_many_tasks_share_one_connection(proxy: Proxy) -> None:
    temporal = Temporal(proxy.address)
    await asyncio.gather(*(ask(temporal) for _ in range(50)))
    assert proxy.opened == 1


def test_many_threads_share_one_connection(proxy: Proxy) -> None:
    temporal = Temporal(proxy.address)

    def use(_: int) -> None:
        with pytest.raises(RPCError):
            temporal.sync.get_workflow_handle("none").describe()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(64)))
    assert proxy.opened == 1


def test_event_loops_of_several_threads_share_one_connection(proxy: Proxy) -> None:
    temporal = Temporal(proxy.address)

    def loop(_: int) -> None:
        asyncio.run(ask(temporal))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(loop, range(32)))
    assert proxy.opened == 1


def test_callers_that_come_as_the_connection_is_made_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    async def connect(self: Temporal) -> object:
        made.append(object())
        return made[-1]

    monkeypatch.setattr(Temporal, "connect", connect)
    for _ in range(50):
        made.clear()
        temporal = Temporal("127.0.0.1:1")
        with ThreadPoolExecutor(12) as pool:
            used = list(pool.map(lambda _, temporal=temporal: asyncio.run(temporal.client()), range(12)))
        assert len(made) == len(set(used)) == 1


async def test_cancelled_caller_keeps_the_connection_of_the_others(proxy: Proxy) -> None:
    temporal = Temporal(proxy.address)
    impatient = asyncio.create_task(temporal.client())
    patient = asyncio.create_task(temporal.client())
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient is await temporal.client()
    assert proxy.opened == 1


async def test_synchronous_calls_on_an_event_loop_are_refused(temporal: Temporal) -> None:
    with pytest.raises(RuntimeError, match=r"await temporal\.client\(\)"):
        temporal.sync.start_workflow("any", id="any", task_queue="q")


async def test_unreachable_server_is_named_and_found_once_it_starts() -> None:
    server = DevServer()
    temporal = Temporal(server.address)
    async with temporal.lifespan():  # The app starts anyway.
        with pytest.raises(TemporalUnreachableError, match=f"{server.address} cannot be reached: Connection refused"):
            await temporal.client()
        health = await temporal.check_health()
        assert not health.ok
        assert server.address in (health.problem or "")
        server.start()
        try:
            await ask(temporal)
            assert (await temporal.check_health()).ok
        finally:
            server.kill()


async def test_a_server_that_accepts_and_stays_silent_is_given_up_on() -> None:
    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    temporal = Temporal(f"127.0.0.1:{port}", connect_timeout=timedelta(milliseconds=200))
    with pytest.raises(TemporalUnreachableError, match=r"no answer in 0\.2 seconds"):
        await temporal.client()
    listener.close()


async def test_a_namespace_that_does_not_exist_is_unhealthy(server: DevServer) -> None:
    health = await Temporal(server.address, "nowhere").check_health()
    assert health.problem == 'the server has no namespace "nowhere"'


def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    server = DevServer(tmp_path / "server.db")
    server.start()
    temporal = Temporal(server.address, task_queue="q", retry_config=RetryConfig(max_elapsed_time_millis=100))
    try:
        temporal.sync.start_workflow("Kept", id="kept", task_queue="q")
        client = temporal.sync.client
        server.kill()
        with pytest.raises(RPCError) as failure:
            temporal.sync.get_workflow_handle("kept").describe()
        # UNKNOWN, "transport error", or CANCELLED if the connection breaks in the middle of the request.
        lost = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.UNKNOWN, RPCStatusCode.CANCELLED)
        assert failure.value.status in lost
        server.start()
        eventually(
            lambda: temporal.sync.get_workflow_handle("kept").describe().id == "kept",
            "the server describes the workflow",
            ignore=(RPCError,),
        )
        assert temporal.sync.client is client
    finally:
        server.kill()


FORK = """
    import asyncio, os, sys
    from temporalio.service import RPCError
    from durably.temporal import Temporal

    temporal = Temporal(sys.argv[1])

    def ask():
        try:
            temporal.sync.get_workflow_handle("none").describe()
        except RPCError as error:
            os.write(1, f"{error.status.name}\\n".encode())  # at once: the processes share the pipe

    if sys.argv[2] == "used":
        ask()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            ask()
            asyncio.run(temporal.check_health())
            sys.exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    ask()
"""


@pytest.mark.parametrize("before", variants(["used", "unused"], ["used"]))
def test_forked_children_connect_by_themselves_and_end(server: DevServer, before: str) -> None:
    """As under ``gunicorn --preload``. A child that frees its parent's runtime would never end."""
    command = [sys.executable, "-c", textwrap.dedent(FORK), server.address, before]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["NOT_FOUND"] * (4 if before == "used" else 3)


def test_making_one_starts_nothing() -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    Temporal(f"127.0.0.1:{free_port()}")
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, descriptors)


async def test_another_client_stands_in_for_the_connection(temporal: Temporal) -> None:
    other = await temporal.connect()
    app = Temporal("127.0.0.1:1")
    with app.override(other):
        assert await app.client() is other
        assert await asyncio.to_thread(lambda: app.sync.client) is other
    with pytest.raises(TemporalUnreachableError):
        await app.client()


ASK_AND_EXIT = """
import sys
from durably.temporal import Temporal
Temporal(sys.argv[1]).sync.count_workflows()
"""


@pytest.mark.slow
def test_a_process_that_exits_right_after_its_last_call_ends_well(server: DevServer) -> None:
    """Without a pause at exit, about one in four is killed by a native thread during the interpreter's end."""
    processes = [subprocess.Popen([sys.executable, "-c", ASK_AND_EXIT, server.address]) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
