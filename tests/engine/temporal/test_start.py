"""``durably start --temporal`` and ``durably worker``: the commands, on a Temporal server."""

import json
import re
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import urllib3

from durably.protocol.signatures import bearer_token

from ...cli import apps
from ...cli.conftest import Command, Run, Start, command_server, directory, environment, run, start, write
from ...cli.test_start import EVENT_KEY, KEYS, SIGNING_KEY, logged
from ...ports import free_port
from ...temporal.dev_server import DevServer

__all__ = ["command_server", "directory", "run", "start"]

WORKER = """
    import os
    import durably
    import durably.flask
    import flask

    client = durably.Client(app_id="worker", engine=durably.TemporalEngine(os.environ["ADDRESS"], workers=False))


    @client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="worker/greet"))
    def greet(ctx: durably.ContextSync) -> str:
        return ctx.step.run("greet", lambda: print("hello from a worker", flush=True))


    app = flask.Flask(__name__)
    durably.flask.serve(app, client, [greet])
"""
NOT_FOR_WORKERS = """
    import durably

    unserved = durably.Client(app_id="unserved", engine=durably.Embedded("engine.db"))
    remote = durably.Client(app_id="remote", engine="http://localhost:1")
    app = object()
"""


def get(origin: str, path: str) -> Any:
    headers = {"authorization": f"Bearer {bearer_token(SIGNING_KEY)}"}
    return urllib3.request("GET", f"{origin}{path}", headers=headers, timeout=30).json()["data"]


def ended_run(engine: Command, origin: str, function_id: str) -> Any:
    while True:
        for found in get(origin, f"/v1/runs?function_id={function_id}"):
            if found["status"] not in ("Running", "Scheduled"):
                return found
        assert engine.process.poll() is None, engine.output


def test_apps_are_synced_and_called_over_http(start: Start, directory: Path, server: DevServer) -> None:
    source = apps.FASTAPI.format(sdk="durably").replace("is_production=False", "is_production=True")
    write(directory / "shop.py", source)
    app_port, port = free_port(), free_port()
    origin, url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{app_port}/api/inngest"
    start_app = [sys.executable, "-m", "uvicorn", "--port", str(app_port), "shop:app"]
    app = Command((), directory, {**environment(), **KEYS, "DURABLY_ENGINE_URL": origin}, program=start_app)
    try:
        arguments = ("start", "--temporal", server.address, "--port", str(port), "-u", url, "--poll-interval", "1")
        engine = start(*arguments, "--metrics-address", "127.0.0.1:0", **KEYS)
        started = logged(engine, "engine started")
        assert started["temporal"] == server.address
        assert "each logs and counts those that it executes" in engine.output
        assert logged(engine, "app synced")["app_id"] == "shop"
        event = json.dumps({"name": "order/placed", "data": {"total": 42}})
        sent = urllib3.request("POST", f"{origin}/e/{EVENT_KEY}", body=event, timeout=30)
        assert sent.status == 200, sent.data
        found = ended_run(engine, origin, "shop-place")
        assert found["status"] == "Completed", found
        assert get(origin, f"/v1/runs/{found['run_id']}")["output"] == {"charged": 42}
        for message in ("step completed", "run completed"):  # Other tests may have left runs on the server.
            engine.until(f'"message":"{message}".*"run_id":"{found["run_id"]}"')
        metrics = urllib3.request("GET", str(started["metrics"]), timeout=30).data.decode()
        assert re.search(r'durably_runs_ended_total{function="shop-place",outcome="completed"} [1-9]', metrics), metrics
        assert engine.stop(signal.SIGTERM) == 0
    finally:
        app.stop(signal.SIGKILL)


@pytest.mark.slow
def test_the_development_engine_prints_the_steps_of_runs(start: Start, directory: Path, server: DevServer) -> None:
    write(directory / "shop.py", apps.FLASK.format(sdk="durably").replace('"shop"', '"devshop"'))
    dev = start("dev", "--temporal", server.address, "shop:app", "--port", "0", "--app-port", "0")
    dev.until("synced devshop: devshop-place")
    event = json.dumps({"name": "order/placed", "data": {"total": 42}})
    assert urllib3.request("POST", f"{dev.origin}/e/dev", body=event, timeout=30).status == 200
    dev.until(r"devshop-place.*✓  charge")
    dev.until(r"devshop-place.*run completed")
    assert dev.stop() == 0


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--retention", "30d"), "namespace"),
    ],
)
def test_options_without_an_effect_on_temporal_are_refused(run: Run, option: tuple[str, ...], reason: str) -> None:
    result = run("start", "--temporal", "localhost:1", *option, **KEYS)
    said = " ".join(result.stderr.split())
    assert result.status == 1
    assert f"{option[0]} cannot be used with --temporal" in said
    assert reason in said


def test_the_engines_state_is_kept_in_one_place(run: Run) -> None:
    result = run("start", "--temporal", "localhost:1", "--db", "engine.db", **KEYS)
    assert result.status == 2
    assert "give one of --db PATH and --temporal HOST:PORT" in " ".join(result.stderr.split())


def test_a_worker_runs_an_apps_functions(start: Start, directory: Path, server: DevServer) -> None:
    write(directory / "shop.py", WORKER)
    worker = start("worker", "shop:client", ADDRESS=server.address)
    worker.until("runs the functions worker-greet")
    send = "import shop, durably; shop.client.send_sync(durably.Event(name='worker/greet'))"
    sender = Command((), directory, {**environment(), "ADDRESS": server.address}, program=[sys.executable, "-c", send])
    assert sender.wait() == 0, sender.output
    worker.until("hello from a worker")
    assert worker.stop(signal.SIGTERM) == 0


OWN_LOG = """
import logging

handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("own: %(message)s"))
logging.getLogger("durably").addHandler(handler)
"""


def test_an_app_with_log_handlers_of_its_own_gets_each_line_once(
    start: Start, directory: Path, server: DevServer
) -> None:
    """As Django's LOGGING has them."""
    write(directory / "shop.py", textwrap.dedent(WORKER) + OWN_LOG)
    worker = start("worker", "shop:client", ADDRESS=server.address)
    worker.until("runs the functions worker-greet")
    assert worker.stop(signal.SIGTERM) == 0
    lines = [line for line in worker.output.splitlines() if "runs the functions" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("own: ")


def test_a_django_project_without_its_settings_gets_the_command(run: Run, directory: Path) -> None:
    write(directory / "shop.py", "from django.conf import settings\nsettings.DEBUG\n")
    result = run("worker", "shop:client")
    assert result.status == 1
    assert "`DJANGO_SETTINGS_MODULE=myproject.settings durably worker shop:client`" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("shop:unserved", "serves no functions"),
        ("shop:remote", "needs no worker"),
        ("shop:app", "not a durably.Client"),
    ],
)
def test_worker_refuses_functions_that_it_cannot_run(run: Run, directory: Path, target: str, reason: str) -> None:
    write(directory / "shop.py", NOT_FOR_WORKERS)
    result = run("worker", target, DURABLY_DEV="1")
    assert result.status == 1
    assert reason in " ".join(result.stderr.split())
