"""An app with streams in each framework, on real servers, whose function talks when the test says so."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import msgspec
import urllib3

import durably
from durably.protocol.channels import NewMessage

from ..embedded.stock import Server, make_project, running
from ..waiting import eventually

MAX_LISTENERS = 6

_DURABLE = """
import datetime as dt
import os

import durably

client = durably.Client(app_id="shop", engine=durably.Embedded("durably.db"))


@client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="talk"))
async def greet(ctx):
    await ctx.step.wait_for_signal("go", signal=ctx.run_id, timeout=dt.timedelta(hours=1))
    return await ctx.step.run("say", lambda: "done")


def may_read(request, channel):
    user = request.headers.get("x-user")
    if user == "broken":
        raise ValueError("a secret of the app")
    return {"ada": True, "odd": "yes"}.get(user, channel == "public")


WORKER = str(os.getpid())
"""
_FRAMEWORKS = {
    "FastAPI": """
import fastapi
import durably.fast_api
from durable import WORKER, client, greet, may_read

app = fastapi.FastAPI()
durably.fast_api.serve(app, client, [greet])
durably.fast_api.streams(app, client, authorize=may_read, max_listeners=6)


class Mark:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def marked(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-worker", WORKER.encode())]
            await send(message)

        await self.app(scope, receive, marked)


app.add_middleware(Mark)


@app.get("/token")
async def token(run: str):
    return client.stream_token(run, ["words", "$run"])
""",
    "Litestar": """
import json

import durably.litestar
from durable import WORKER, client, greet, may_read
from litestar import Litestar, get


@get("/token")
async def token(run: str) -> bytes:
    return json.dumps(client.stream_token(run, ["words", "$run"])).encode()


class Mark:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def marked(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-worker", WORKER.encode())]
            await send(message)

        await self.app(scope, receive, marked)


plugins = [
    durably.litestar.serve(client, [greet]),
    durably.litestar.streams(client, authorize=may_read, max_listeners=6),
]
app = Litestar([token], middleware=[Mark], plugins=plugins)
""",
    "Quart": """
import quart
import durably.quart
from durable import WORKER, client, greet, may_read

app = quart.Quart(__name__)
durably.quart.serve(app, client, [greet])
durably.quart.streams(app, client, authorize=may_read, max_listeners=6)


@app.after_request
async def mark(response):
    response.headers["x-worker"] = WORKER
    return response


@app.get("/token")
async def token():
    return quart.jsonify(client.stream_token(quart.request.args["run"], ["words", "$run"]))
""",
    "aiohttp": """
import logging
import sys

from aiohttp import web
import durably.aiohttp
from durable import WORKER, client, greet, may_read

logging.basicConfig(level=logging.INFO)


async def token(request):
    return web.json_response(client.stream_token(request.query["run"], ["words", "$run"]))


async def mark(request, response):
    response.headers["x-worker"] = WORKER


app = web.Application()
app.router.add_get("/token", token)
app.on_response_prepare.append(mark)
durably.aiohttp.serve(app, client, [greet])
durably.aiohttp.streams(app, client, authorize=may_read, max_listeners=6)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
""",
    "Sanic": """
import sanic
import durably.sanic
from durable import WORKER, client, greet, may_read

app = sanic.Sanic("streams")
durably.sanic.serve(app, client, [greet])
durably.sanic.streams(app, client, authorize=may_read, max_listeners=6)


@app.on_response
async def mark(request, response):
    response.headers["x-worker"] = WORKER


@app.get("/token")
async def token(request):
    return sanic.json(client.stream_token(request.args.get("run"), ["words", "$run"]))
""",
    "WSGI": """
import json
from urllib.parse import parse_qs

import durably.wsgi
from durable import WORKER, client, greet, may_read


class Request:
    def __init__(self, environ):
        self.headers = {"x-user": environ.get("HTTP_X_USER")}


def app(environ, start_response):
    token = client.stream_token(parse_qs(environ["QUERY_STRING"])["run"][0], ["words", "$run"])
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps(token).encode()]


app = durably.wsgi.serve(app, client, [greet])
unmarked = durably.wsgi.streams(
    app, client, authorize=lambda environ, channel: may_read(Request(environ), channel), max_listeners=6
)


def app(environ, start_response):
    def marked(status, headers):
        return start_response(status, [*headers, ("x-worker", WORKER)])

    return unmarked(environ, marked)
""",
    "Flask": """
import flask
import durably.flask
from durable import WORKER, client, greet, may_read

app = flask.Flask(__name__)
durably.flask.serve(app, client, [greet])
durably.flask.streams(app, client, authorize=may_read, max_listeners=6)


@app.after_request
def mark(response):
    response.headers["x-worker"] = WORKER
    return response


@app.get("/token")
def token():
    return flask.jsonify(client.stream_token(flask.request.args["run"], ["words", "$run"]))
""",
    "Django": """
from django.http import JsonResponse
from django.urls import path

import durably.django
from durable import client, greet, may_read


def token(request):
    return JsonResponse(client.stream_token(request.GET["run"], ["words", "$run"]), safe=False)


urlpatterns = [
    durably.django.serve(client, [greet]),
    durably.django.streams(client, authorize=may_read, max_listeners=6),
    path("token", token),
]
""",
    "Tornado": """
import asyncio
import signal
import sys

import tornado.escape
import tornado.web
import durably.tornado
from durable import WORKER, client, greet, may_read


class Token(tornado.web.RequestHandler):
    def get(self):
        self.write(tornado.escape.json_encode(client.stream_token(self.get_argument("run"), ["words", "$run"])))


def of_handler(handler, channel):
    return may_read(handler.request, channel)


app = tornado.web.Application([("/token", Token)], xsrf_cookies=True, cookie_secret="for tests only")
durably.tornado.serve(app, client, [greet])
durably.tornado.streams(app, client, authorize=of_handler, max_listeners=6)


async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    app.listen(int(sys.argv[1]), "127.0.0.1")
    await ended.wait()
    await client.in_process.stop()


asyncio.run(main())
""",
}
_MARK = """
from durable import WORKER


def mark(get_response):
    def marking(request):
        response = get_response(request)
        response["x-worker"] = WORKER
        return response

    return marking
"""
SERVERS = {
    "fastapi-uvicorn": ("FastAPI", "uvicorn main:app --port {port} --workers 2"),
    "fastapi-reload": ("FastAPI", "uvicorn main:app --port {port} --reload"),
    "fastapi-hypercorn": ("FastAPI", "hypercorn main:app -b 127.0.0.1:{port}"),
    "fastapi-gunicorn": ("FastAPI", "gunicorn main:app -b 127.0.0.1:{port} -w 2 -k uvicorn_worker.UvicornWorker"),
    "flask-gunicorn": (
        "Flask",
        "gunicorn main:app -b 127.0.0.1:{port} -w 2 -k gthread --threads 8 --access-logfile -",
    ),
    "flask-run": ("Flask", "flask --app main run --port {port}"),
    "flask-waitress": ("Flask", "waitress-serve --listen 127.0.0.1:{port} --threads 10 main:app"),
    "django-runserver": ("Django", "python manage.py runserver {port} --noreload"),
    "django-gunicorn": ("Django", "gunicorn myproject.wsgi -b 127.0.0.1:{port} -w 2 --threads 8 --access-logfile -"),
    "django-uvicorn": ("Django", "uvicorn myproject.asgi:application --port {port}"),
    "django-daphne": ("Django", "daphne myproject.asgi:application -p {port}"),
    "tornado": ("Tornado", "python main.py {port}"),
    "litestar-uvicorn": ("Litestar", "uvicorn main:app --port {port} --workers 2"),
    "quart-hypercorn": ("Quart", "hypercorn main:app -b 127.0.0.1:{port} --workers 2 --access-logfile -"),
    "aiohttp": ("aiohttp", "python main.py {port}"),
    # One process: the manager of several does not end if it is told so while they start (Sanic 25).
    "sanic": ("Sanic", "sanic main:app --port {port} --single-process --access-logs"),
    "wsgi-gunicorn": ("WSGI", "gunicorn main:app -b 127.0.0.1:{port} -w 2 --threads 8 --access-logfile -"),
    "aiohttp-gunicorn": (
        "aiohttp",
        "gunicorn main:app -b 127.0.0.1:{port} -w 2 -k aiohttp.GunicornWebWorker --access-logfile -",
    ),
}
LOGS_URLS = {
    *("fastapi-reload", "fastapi-uvicorn", "flask-gunicorn", "django-gunicorn", "django-uvicorn", "tornado"),
    *("litestar-uvicorn", "aiohttp", "aiohttp-gunicorn", "sanic", "wsgi-gunicorn"),
}
"""Servers whose access log has the URL as the app leaves it."""


@dataclass(frozen=True)
class ServerSentEvent:
    id: str
    event: str
    data: Any


class Stream:
    """An open response."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status, self.headers, self._response = response.status, response.headers, response
        self.text = "" if response.status == 200 else response.read().decode()
        self.last_id = ""

    def events(self) -> Iterator[ServerSentEvent]:
        """As the standard's algorithm reads them, until the response ends."""
        fields: dict[str, str] = {}
        for line in (read.decode().removesuffix("\n") for read in self._response):
            name, _, value = line.partition(":")
            if line == "":
                self.last_id = fields.get("id", self.last_id)
                if "data" in fields:
                    data = msgspec.json.decode(fields["data"])
                    yield ServerSentEvent(self.last_id, fields.get("event", "message"), data)
                fields = {}
            elif name:
                assert name not in fields or name != "data", line
                fields[name] = value.removeprefix(" ")

    def close(self) -> None:
        self._response.close()


class Site:
    """A running app, and the engine in its processes. ``engine`` is another process of it, which runs no functions."""

    def __init__(self, name: str, server: Server, engine: durably.Embedded) -> None:
        self.name, self.server, self.engine = name, server, engine
        self._client = durably.Client(app_id="shop", engine=engine, is_production=False)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Stream:
        sent = {"x-user": "ada", "connection": "close"} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        connection = HTTPConnection(self.server.origin.removeprefix("http://"), timeout=30)
        connection.putrequest(method, path)
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders()
        return Stream(connection.getresponse())

    def start(self) -> str:
        """The id of a new run, which waits for ``go``."""
        [event_id] = self._client.send_sync(durably.Event(name="talk"))
        runs = eventually(
            lambda: self.engine.event_runs_sync(event_id),
            "the run waits",
            is_right=lambda runs: runs and runs[0].waiting,
        )
        return str(runs[0].id)

    def go(self, run_id: str) -> None:
        self.engine.signal_sync(run_id)

    def publish(self, channel: str, topic: str, data: Any) -> None:
        message = NewMessage(channel, topic, msgspec.Raw(msgspec.json.encode(data)))
        self.engine.block(self.engine.publish_messages([message]))

    def token(self, run_id: str) -> str:
        answer = urllib3.request("GET", f"{self.server.origin}/token?run={run_id}")
        return str(answer.json())


@contextmanager
def serving(name: str, directory: Path) -> Iterator[Site]:
    framework, command = SERVERS[name]
    directory.mkdir(exist_ok=True)
    make_project(framework, directory, durable=_DURABLE)
    if framework == "Django":
        (directory / "myproject" / "urls.py").write_text(_FRAMEWORKS[framework])
        (directory / "marking.py").write_text(_MARK)
        settings = directory / "myproject" / "settings.py"
        middleware = 'MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware", *MIDDLEWARE, "marking.mark"]\n'
        settings.write_text(settings.read_text() + middleware)
    else:
        (directory / "main.py").write_text(_FRAMEWORKS[framework])
    with running(command, directory, DURABLY_DEV="1") as server:
        eventually(lambda: server.get("/token?run=x") == 200, server.log)
        engine = durably.Embedded(directory / "durably.db")
        engine.start_sync()
        try:
            eventually(engine.list_functions_sync, f"the functions are known\n{server.log()}")
            yield Site(name, server, engine)
        finally:
            with suppress(durably.errors.Error):
                engine.stop_sync()
