"""Start of the engine: with servers, before the first request; not if the app is only imported."""

import datetime as dt
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from durably import Embedded
from durably.engine.sqlite.database import APPLICATION_ID

from ...variants import variants
from ...waiting import eventually
from ..cluster import ROOT, Cluster, gunicorn, hypercorn, serving, uvicorn

TORNADO = """
import asyncio, socket, sys
from tornado.httpserver import HTTPServer
from tests.embedded.apps import tornado_app

async def main():
    app = tornado_app() if sys.argv[2] == "inside" else made
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.setblocking(False)
    HTTPServer(app).add_socket(listener)
    await asyncio.Event().wait()

made = None if sys.argv[2] == "inside" else tornado_app()
if sys.argv[2] == "listening":
    from tornado.ioloop import IOLoop
    made.listen(0, "127.0.0.1")
    IOLoop.current().start()
asyncio.run(main())
"""
WERKZEUG = """
import socket, sys
from werkzeug.serving import make_server
from tests.embedded.apps import flask_app
make_server("127.0.0.1", 0, flask_app(), threaded=True, fd=int(sys.argv[1])).serve_forever()
"""
AIOHTTP = """
import socket, sys
from aiohttp import web
from tests.embedded.apps import aiohttp_app
web.run_app(aiohttp_app(), sock=socket.socket(fileno=int(sys.argv[1])))
"""


def aiohttp(descriptor: int) -> list[str]:
    return ["-c", AIOHTTP, str(descriptor)]


def tornado(where: str) -> Callable[[int], list[str]]:
    return lambda descriptor: ["-c", TORNADO, str(descriptor), where]


def werkzeug(descriptor: int) -> list[str]:
    return ["-c", WERKZEUG, str(descriptor)]


def flask_run(*options: str) -> Callable[[int], list[str]]:
    app = "tests.embedded.apps:flask_app"
    # It accepts a listening socket from its reloader only, so the test cannot send requests to it.
    return lambda _: ["-m", "flask", "--app", app, *options, "run", "--port", "0"]


def run_to_its_end(cluster: Cluster) -> None:
    cluster.send({"name": "count"}, {"name": "count-sync"}, {"name": "relay"})
    cluster.wait_completed(5)


AT_ONCE = {
    "flask-gunicorn": gunicorn("flask_app", 1),
    "fast_api-uvicorn": uvicorn("fast_api_app", 1),
    "django-gunicorn": gunicorn("django_wsgi", 1),
    "django-uvicorn": uvicorn("django_asgi", 1),
    "tornado-in-its-loop": tornado("inside"),
    "litestar-uvicorn": uvicorn("litestar_app", 1),
    "quart-hypercorn": hypercorn("quart_app", 1),
    "aiohttp": aiohttp,
}
APPS = ["flask_app", "fast_api_app", "django_wsgi", "tornado_app", "litestar_app", "quart_app", "aiohttp_app"]
AT_THE_FIRST_REQUEST = {"flask-werkzeug": werkzeug, "tornado-outside-of-its-loop": tornado("outside")}


@pytest.mark.parametrize("server", variants(AT_ONCE, ["fast_api-uvicorn", "quart-hypercorn", "aiohttp"]))
def test_the_engine_starts_with_the_server(server: str, tmp_path: Path) -> None:
    with serving(AT_ONCE[server], tmp_path) as cluster:
        eventually(lambda: "is now the leader" in cluster.log(), "the engine starts without a request")
        run_to_its_end(cluster)


@pytest.mark.parametrize("server", variants(AT_ONCE, ["flask-gunicorn", "fast_api-uvicorn"]))
def test_server_does_not_start_on_an_impossible_path(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    database = str(tmp_path / "file" / "durably.db")
    if "tornado" in server:
        pytest.skip("its app is made in the program's own event loop, which goes on")
    errors = tmp_path / "errors"
    with errors.open("w") as file, serving(AT_ONCE[server], tmp_path, stderr=file, TEST_DATABASE=database) as cluster:
        status = cluster.process.wait(60)
        assert status != 0 or "hypercorn" in server  # which hides the error of its worker
    assert f"cannot use the database {database}" in errors.read_text() + cluster.log()


@pytest.mark.parametrize("server", AT_THE_FIRST_REQUEST)
def test_the_engine_starts_with_the_first_request(server: str, tmp_path: Path) -> None:
    with serving(AT_THE_FIRST_REQUEST[server], tmp_path) as cluster:
        eventually(cluster.answers, "the server answers")
        run_to_its_end(cluster)


def test_tornado_starts_the_engine_once_its_loop_runs_after_listen(tmp_path: Path) -> None:
    with serving(tornado("listening"), tmp_path) as cluster:
        eventually(lambda: "is now the leader" in cluster.log(), "the engine starts without a request")


@pytest.mark.parametrize(
    "options", [(), pytest.param(("--debug",), marks=pytest.mark.slow)], ids=["plain", "with reloader"]
)
def test_flask_run_starts_the_engine_once(options: tuple[str, ...], tmp_path: Path) -> None:
    with serving(flask_run(*options), tmp_path) as cluster:
        leader = cluster.wait_leader()
        assert (leader == cluster.process.pid) is (options == ())


def python(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TEST_DIRECTORY": str(directory), "DURABLY_DEV": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("app", variants(APPS, ["django_wsgi"]))
def test_importing_an_app_starts_nothing(app: str, tmp_path: Path) -> None:
    code = f"import threading; from tests.embedded import apps; apps.{app}(); print(threading.active_count())"
    assert python(code, tmp_path) == "1"
    assert not (tmp_path / "durably.db").exists()


SCRIPT = """
import os
from durably import Event
from tests.embedded import apps
client, functions = apps.make_client()
{serve}
client.send_sync([Event(name="count", id="{id}")])
print(os.getpid())
"""


@pytest.mark.slow
def test_a_script_that_serves_nothing_sends_and_runs_nothing(tmp_path: Path) -> None:
    """Whether the app is running or not. Its events wait for the app."""
    with serving(AT_ONCE["flask-gunicorn"], tmp_path) as cluster:
        cluster.wait_leader()
        first = python(SCRIPT.format(serve="", id="first"), tmp_path)
        cluster.wait_completed(1)
        assert "events are stored" not in cluster.log()
    second = python(SCRIPT.format(serve="", id="second"), tmp_path)
    assert f"no process that serves functions is running: events are stored in {tmp_path}/durably.db" in cluster.log()
    with serving(AT_ONCE["flask-gunicorn"], tmp_path) as cluster:
        cluster.wait_completed(2)
    assert not {int(first), int(second)} & {entry["process"] for entry in cluster.diary.entries("step")}


def test_serving_process_runs_the_functions_of_its_events(tmp_path: Path) -> None:
    """In any program, without a known server or a request."""
    serve = "import flask, durably.flask; durably.flask.serve(flask.Flask('x'), client, functions)"
    wait = "; import time\nwhile client.engine.list_runs_sync()[0].ended_at is None: time.sleep(0.01)"
    process = python(SCRIPT.format(serve=serve, id="mine") + wait.removeprefix("; "), tmp_path)
    cluster = Cluster(tmp_path, "", None)  # type: ignore[arg-type]
    assert {entry["process"] for entry in cluster.diary.entries("step")} == {int(process)}


BEFORE_THE_START = """
import asyncio
from durably import Event
from tests.embedded import apps
client, functions = apps.make_client()

async def main():
    await client.send(Event(name="count", id="early"))
    from durably.comm import CommHandler
    CommHandler(client=client, framework="test", functions=functions)
    async with client.engine.running():
        await client.send(Event(name="count", id="late"))
        while not [run for run in await client.engine.list_runs() if run.ended_at]:
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_process_that_sent_before_its_start_serves_afterwards(tmp_path: Path) -> None:
    python(BEFORE_THE_START, tmp_path)
    cluster = Cluster(tmp_path, "", None)  # type: ignore[arg-type]
    assert list(cluster.run_statuses().values()) == [
        "Completed"
    ]  # The early event was sent before there were functions.
    assert f"the database {tmp_path}/durably.db has no functions" in cluster.log()


NO_ANSWER = """
from durably import Embedded
from durably.engine.sqlite.database import APPLICATION_ID
from durably.errors import Error
engine = Embedded({database!r})
try:
    engine._process.request("list_runs", dict(), timeout=3).result()
except Error as error:
    print(error)
"""


def test_timeout_error_has_the_reason(tmp_path: Path) -> None:
    database = tmp_path / "durably.db"
    with sqlite3.connect(database) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 999999")
    said = python(NO_ANSWER.format(database=str(database)), tmp_path)
    assert "did not answer within 3 s: " in said
    assert said.count("durably.db") == 2


@pytest.mark.parametrize("place", ["file/durably.db", "file"])
def test_send_to_an_unusable_database_fails_at_once(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database")
    said = python(NO_ANSWER.format(database=str(tmp_path / place)), tmp_path)
    assert "did not answer" not in said
    assert "file is not a database" in said or "cannot use the database" in said


FORKING = """
import datetime as dt, os, time
from durably import Embedded
from durably.engine.sqlite.database import APPLICATION_ID
engine = Embedded({database!r}, lease=dt.timedelta(seconds=60))
engine.start_sync()
ours, theirs = os.pipe()
if os.fork():
    os.read(ours, 1)
    os._exit(0)
null = os.open(os.devnull, os.O_RDWR)
[os.dup2(null, descriptor) for descriptor in (0, 1, 2)]
parent = os.getppid()
os.write(theirs, b".")
while os.getppid() == parent:
    time.sleep(0.01)
answer = str(engine.list_runs_sync())
open({answer!r}, "w").write(answer)
os._exit(0)
"""


def test_forked_child_keeps_no_descriptors(tmp_path: Path) -> None:
    """Its parent's end is seen at once, not after the lease. It does not open the database that its parent had open,
    but follows the leader."""
    database, answer = tmp_path / "durably.db", tmp_path / "answer"
    python(FORKING.format(database=str(database), answer=str(answer)), tmp_path)
    engine = Embedded(database, lease=dt.timedelta(seconds=60))
    engine.start_sync()
    try:
        assert engine.list_runs_sync() == []
        eventually(lambda: answer.exists() and answer.read_text() == "[]", "the child has an answer")
    finally:
        engine.stop_sync()
