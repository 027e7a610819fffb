"""Stock projects: created by the framework's own command, with the code of the documentation."""

import atexit
import functools
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import urllib3

from ..ports import free_port
from ..waiting import eventually
from .cluster import ROOT

SENDING = {
    "FastAPI": """
import durably

@app.get("/send")
async def send():
    return await client.send(durably.Event(name="shop/visitor.came", data={"name": "Ada"}))
""",
    "Flask": """
import durably

@app.get("/send")
def send():
    return client.send_sync(durably.Event(name="shop/visitor.came", data={"name": "Ada"}))
""",
    "Django": """
import durably
from django.http import JsonResponse
from django.urls import path

def send(request):
    return JsonResponse(client.send_sync(durably.Event(name="shop/visitor.came", data={"name": "Ada"})), safe=False)

urlpatterns += [path("send", send)]
""",
    "Litestar": """
import durably
from litestar import get

@get("/send")
async def send() -> list[str]:
    return await client.send(durably.Event(name="shop/visitor.came", data={"name": "Ada"}))

app.register(send)
""",
    "Quart": """
import durably

@app.get("/send")
async def send():
    return await client.send(durably.Event(name="shop/visitor.came", data={"name": "Ada"}))
""",
    "aiohttp": """
import sys

import durably

async def send(request):
    return web.json_response(await client.send(durably.Event(name="shop/visitor.came", data={"name": "Ada"})))

app.router.add_get("/send", send)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
""",
    "Sanic": """
import durably
import sanic

@app.get("/send")
async def send(request):
    return sanic.json(await client.send(durably.Event(name="shop/visitor.came", data={"name": "Ada"})))
""",
    "Tornado": """
import asyncio
import signal
import sys

import durably

class Send(tornado.web.RequestHandler):
    async def get(self):
        ids = await client.send(durably.Event(name="shop/visitor.came", data={"name": "Ada"}))
        self.write({"ids": ids})

app.add_handlers(".*", [("/send", Send)])

async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    app.listen(int(sys.argv[1]), "127.0.0.1")
    await ended.wait()
    if client.in_process is not None:
        await client.in_process.stop()

asyncio.run(main())
""",
}
"""A view that sends an event, for each of the apps."""
WSGI = """
import json

import durably
import durably.wsgi
from durable import client, greet

def app(environ, start_response):
    if environ["PATH_INFO"] != "/send":
        start_response("404 Not Found", [])
        return [b""]
    ids = client.send_sync(durably.Event(name="shop/visitor.came", data={"name": "Ada"}))
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps(ids).encode()]

app = durably.wsgi.serve(app, client, [greet])
"""
"""An app without a framework."""
_OWN_CLIENT = 'client = durably.Client(app_id="shop")\n'


def code_of(page: str, heading: str) -> str:
    """The first block of Python after ``heading`` in a page of ``docs/how-to``."""
    text = (ROOT / "docs" / "how-to" / page).read_text()
    found = re.search(r"```python\n(.*?)```", text[text.index(heading) :], re.DOTALL)
    assert found is not None
    return found.group(1)


def with_embedded() -> str:
    in_process = code_of("run-inside-your-app.md", "# Run the engine inside your app")
    durable = code_of("serve.md", "Put these into `durable.py`")
    assert _OWN_CLIENT in durable
    return durable.replace(_OWN_CLIENT, in_process)


def make_project(
    framework: str, directory: Path, *, is_installed_app: bool = False, durable: str | None = None
) -> None:
    """``is_installed_app``: with ``durably.django`` in ``INSTALLED_APPS``, and the functions in an app's
    ``durable.py``. ``durable`` is that module, by default with ``Embedded``; it has ``client`` and ``greet``."""
    durable = with_embedded() if durable is None else durable
    main = WSGI if framework == "WSGI" else code_of("serve.md", f"\n**{framework}**") + SENDING[framework]
    if framework != "Django":
        (directory / "durable.py").write_text(durable)
        (directory / "main.py").write_text(main)
        return
    shutil.copytree(_stock_django(), directory, dirs_exist_ok=True)
    urls, settings = directory / "myproject" / "urls.py", directory / "myproject" / "settings.py"
    if is_installed_app:
        (directory / "greetings" / "durable.py").write_text(durable)
        settings.write_text(settings.read_text() + 'INSTALLED_APPS += ["greetings", "durably.django"]\n')
        urls.write_text("from greetings.durable import client\nurlpatterns = []\n" + SENDING[framework])
    else:
        (directory / "durable.py").write_text(durable)
        urls.write_text(main)


@functools.cache
def _stock_django() -> Path:
    """A project with an app, as Django's own commands make them."""
    directory = Path(tempfile.mkdtemp(prefix="durably-stock-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for command in (["startproject", "myproject", "."], ["startapp", "greetings"]):
        subprocess.run([sys.executable, "-m", "django", *command], cwd=directory, check=True, timeout=60)
    return directory


class Server:
    """A server of a stock project, started by its usual command."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes], origin: str) -> None:
        self.directory = directory
        self.process = process
        self.origin = origin
        self._http = urllib3.PoolManager(retries=False, timeout=10, headers={"connection": "close"})

    def get(self, path: str) -> int:
        """The status of the answer; 0 if there is none yet."""
        assert self.process.poll() is None, self.log()
        with suppress(urllib3.exceptions.HTTPError):
            return self._http.request("GET", f"{self.origin}{path}").status
        return 0

    def send(self) -> None:
        eventually(lambda: self.get("/send") == 200, f"a view sends an event\n{self.log()}")

    def query(self, sql: str) -> list[str]:
        database = self.directory / "durably.db"
        if not database.exists():
            return []
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        with closing(connection), suppress(sqlite3.OperationalError):  # Its tables are being created.
            return [row[0] for row in connection.execute(sql)]
        return []

    def wait_asleep(self) -> None:
        """Wait until the function's first step has run."""
        eventually(lambda: self.query("SELECT step_id FROM memos"), f"the function runs\n{self.log()}")

    def wait_completed(self) -> None:
        eventually(lambda: self.query("SELECT status FROM runs") == ["Completed"], f"the run goes on\n{self.log()}")

    def log(self) -> str:
        return (self.directory / "log").read_text()


@contextmanager
def running(command: str, directory: Path, **environment: str) -> Iterator[Server]:
    """``command`` is a user's command line; ``{port}`` in it is a free port."""
    port = free_port()
    program, *arguments = command.format(port=port).split()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("DURABLY_", "INNGEST_"))}
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *arguments],
            cwd=directory,
            env={**outside, "PATH": path, "PYTHONPATH": str(directory), **environment},
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
    try:
        yield Server(directory, process, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
