"""``durably dev`` over time: reloading, apps that run elsewhere, ending, and going on after a restart."""

import contextlib
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..variants import variants
from . import apps
from .conftest import TIMEOUT_SECONDS, Command, Run, Start, write


def _start_shop(start: Start, directory: Path, *arguments: str) -> Command:
    write(directory / "shop.py", apps.FLASK.format(sdk="durably"))
    dev = start("dev", "shop:app", "--port", "0", "--app-port", "0", *arguments)
    dev.until("shop:app is up at http")
    return dev


def test_a_change_restarts_the_app_and_syncs_it(start: Start, directory: Path) -> None:
    dev = _start_shop(start, directory)
    dev.until("synced shop: shop-place\n")
    source = (directory / "shop.py").read_text()

    write(directory / "shop.py", source.replace('fn_id="place"', 'fn_id="order"'))
    dev.until(r"shop\.py changed, restarting shop:app")
    dev.until("synced shop: shop-order\n")

    write(directory / "shop.py", "import nothere\n" + source)
    dev.until(r"No module named 'nothere'")
    dev.until("shop:app did not start; waiting for a change")

    end = len(dev.output)
    write(directory / "shop.py", source)
    dev.until("synced shop: shop-place\n", after=end)
    assert dev.stop() == 0


def test_crash_of_the_app_is_reported_and_waits_for_a_change(start: Start, directory: Path) -> None:
    dev = _start_shop(start, directory)
    os.kill(_child_of(dev), signal.SIGKILL)
    dev.until("the process that serves shop:app ended with signal SIGKILL; waiting for a change")
    write(directory / "shop.py", (directory / "shop.py").read_text())
    dev.until("shop:app is up at http", after=dev.output.index("SIGKILL"))


def test_without_reload_a_crash_of_the_app_ends_all(start: Start, directory: Path) -> None:
    dev = _start_shop(start, directory, "--no-reload")
    os.kill(_child_of(dev), signal.SIGKILL)
    assert dev.wait() == 1
    assert "Error: the process that serves shop:app ended with signal SIGKILL" in dev.output
    assert "Traceback" not in dev.output


@pytest.mark.parametrize("how", variants([signal.SIGINT, signal.SIGTERM], [signal.SIGTERM]))
def test_a_signal_ends_the_app_too_in_its_own_way(start: Start, directory: Path, how: signal.Signals) -> None:
    lifespan = """
    import contextlib

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        print("the app says goodbye", flush=True)
    """
    source = apps.FASTAPI.replace("fastapi.FastAPI()", "fastapi.FastAPI(lifespan=lifespan)").format(sdk="durably")
    write(directory / "shop.py", lifespan + source)
    dev = start("dev", "shop:app", "--port", "0", "--app-port", "0")
    dev.until("shop:app is up")
    child = _child_of(dev)
    assert dev.stop(how) == 0
    assert "the app says goodbye" in dev.output
    assert "Traceback" not in dev.output
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_app_does_not_outlive_a_killed_command(start: Start, directory: Path) -> None:
    dev = _start_shop(start, directory)
    child = _child_of(dev)
    handle = os.pidfd_open(child)
    dev.stop(signal.SIGKILL)
    ended, _, _ = select.select([handle], [], [], TIMEOUT_SECONDS)
    os.close(handle)
    assert ended


def test_run_continues_after_a_restart(start: Start, run: Run, directory: Path) -> None:
    wait = 'ctx.step.wait_for_event("paid", event="order/paid", timeout=60000)'
    source = apps.FLASK.replace("return ctx", f"{wait}\n        return ctx").format(sdk="durably")
    write(directory / "shop.py", source)
    arguments = ("dev", "shop:app", "--port", "0", "--app-port", "0")
    first = start(*arguments)
    first.until("shop:app is up at http")
    run("send", "order/placed", "--data", '{"total": 3}', "--url", first.origin)
    first.until("paid .* waits")
    assert first.stop() == 0
    assert (directory / ".durably" / ".gitignore").read_text() == "*\n"

    second = start(*arguments)
    second.until("shop:app is up at http")
    run("send", "order/paid", "--url", second.origin)
    second.until("run completed")


def test_an_engine_that_lost_its_database_ends(start: Start, run: Run, directory: Path) -> None:
    dev = start("dev", "--port", "0")
    origin = dev.origin
    with sqlite3.connect(directory / ".durably" / "dev.db") as database:
        database.execute("update owner set epoch = epoch + 1")
    assert run("send", "a", "--url", origin).status == 1
    assert dev.wait() == 1
    assert "another engine has taken over the database" in dev.output
    assert "Error: the engine stopped by itself" in dev.output
    assert "Traceback" not in dev.output


def test_an_engine_whose_database_was_deleted_ends_and_says_why(start: Start, directory: Path) -> None:
    dev = start("dev", "--port", "0")
    assert dev.origin
    (directory / ".durably" / "dev.db").unlink()
    assert dev.wait() == 1
    assert "Error: the engine stopped by itself: the database was deleted" in dev.output


@pytest.mark.slow
def test_an_app_that_runs_elsewhere_is_synced_whenever_it_comes_up(start: Start, directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api/inngest"
    dev = start("dev", "--port", "0", "-u", url, "--poll-interval", "0.2")
    dev.until(f"no app answers at {url}: connection refused; waiting for it")
    source = apps.FASTAPI.format(sdk="inngest")
    with _running_app(directory, source, port, dev.origin):
        dev.until("synced shop: shop-place\n")
        end = dev.until(f"the app at {url} answers").end()
    end = dev.until(f"no app answers at {url}: connection refused; waiting for it", after=end).end()
    with _running_app(directory, source.replace('fn_id="place"', 'fn_id="order"'), port, dev.origin):
        dev.until("synced shop: shop-order\n", after=end)
        dev.until(f"the app at {url} answers", after=end)


RANDOM_STEP = """
    import random
    import durably
    import durably.fast_api
    import fastapi

    client = durably.Client(app_id="shop")

    @client.create_function(fn_id="roll", trigger=durably.TriggerEvent(event="dice/roll"))
    async def roll(ctx: durably.Context) -> None:
        await ctx.step.run(f"roll-{random.random()}", lambda: 1)
        await ctx.step.sleep("pause", "1s")

    app = fastapi.FastAPI()
    durably.fast_api.serve(app, client, [roll])
"""


def test_a_step_id_that_changes_is_pointed_out(start: Start, run: Run, directory: Path) -> None:
    write(directory / "main.py", RANDOM_STEP)
    dev = start("dev", "main:app", "--port", "0", "--app-port", "0", "--no-reload")
    dev.until("main:app is up")
    assert run("send", "dice/roll", DURABLY_DEV=dev.origin).status == 0
    dev.until(r"WARNING: .*shop-roll")


@contextlib.contextmanager
def _running_app(directory: Path, source: str, port: int, engine_origin: str) -> Iterator[None]:
    write(directory / "shop.py", source)
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(port), "--log-level", "error"]
    app = subprocess.Popen(command, cwd=directory, env=os.environ | {"INNGEST_DEV": engine_origin})
    try:
        yield
    finally:
        app.terminate()
        app.wait(TIMEOUT_SECONDS)


def _child_of(command: Command) -> int:
    children = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children").read_text().split()
    [child] = [pid for pid in children if b"app_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(child)
