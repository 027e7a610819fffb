"""``gunicorn --preload``: the app and its connection are created before the workers are forked."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ..app_server import AppServer
from ..dev_server import DevServer

APP = """
import os
import flask
from durably.temporal import Temporal
from durably.temporal.flask import blueprint, init_app
from tests.temporal.apps import open_gateway

temporal = Temporal(os.environ["TEST_TEMPORAL"], task_queue="orders")
app = flask.Flask(__name__)
init_app(app, temporal)
app.register_blueprint(blueprint(open_gateway(temporal)), url_prefix="/open")
temporal.sync.count_workflows()  # Connected before the fork, as by a module that warms up a cache.

@app.get("/process")
def process():
    return {"process": os.getpid(), "count": temporal.sync.count_workflows().count}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_workers_forked_from_a_connected_app_serve_and_end(server: DevServer, tmp_path: Path) -> None:
    (tmp_path / "preloaded_app.py").write_text(textwrap.dedent(APP))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "4", "--worker-class"]
        command += ["gthread", "--bind", f"fd://{listener.fileno()}", "--graceful-timeout", "60", "--no-control-socket"]
        process = subprocess.Popen(
            [*command, "preloaded_app:app"],
            pass_fds=[listener.fileno()],
            cwd=tmp_path,
            env={**os.environ, "TEST_TEMPORAL": server.address, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        try:
            app = AppServer("flask", f"http://127.0.0.1:{listener.getsockname()[1]}")
            done = app.post("/open/sum-of-pair", {"pair": {"left": 1}}, {"Prefer": "wait=30"})
            assert (done.status, done.json["result"]) == (200, 1)
            answers = [app.get("/process", {"Connection": "close"}).json for _ in range(20)]
            assert process.pid not in {answer["process"] for answer in answers}
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
