"""The apps under test, in each framework. The environment configures them, because servers run in processes."""

import datetime as dt
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from durably import Client, Embedded, Event
from durably.engine.model.settings import EngineSettings

from .functions import Diary, make_functions

LEASE = dt.timedelta(seconds=1)


def make_client() -> tuple[Client, list[Any]]:
    directory = Path(os.environ["TEST_DIRECTORY"])
    logging.basicConfig(filename=directory / "log", level=logging.INFO, format="%(process)d %(message)s")
    close_grace = dt.timedelta(seconds=float(os.environ.get("TEST_CLOSE_GRACE", "2")))
    settings = EngineSettings(close_grace=close_grace)
    database, log = os.environ.get("TEST_DATABASE", directory / "durably.db"), os.environ.get("TEST_LOG")
    engine = Embedded(database, lease=LEASE, settings=settings, log=log)
    client = Client(app_id="app", engine=engine)
    diary = Diary(directory / "diary")
    diary.note("made")
    return client, make_functions(client, diary)


def flask_app() -> Any:
    import flask

    import durably.flask

    app = flask.Flask(__name__)
    client, functions = make_client()
    durably.flask.serve(app, client, functions)

    @app.post("/send")
    def send() -> Any:
        return client.send_sync([Event(**each) for each in flask.request.get_json()])

    @app.get("/process")
    def process() -> Any:
        return {"process": os.getpid()}

    return app


def fast_api_app() -> Any:
    import fastapi

    import durably.fast_api

    app = fastapi.FastAPI()
    client, functions = make_client()
    durably.fast_api.serve(app, client, functions)

    @app.post("/send")
    async def send(request: fastapi.Request) -> Any:
        return await client.send([Event(**each) for each in await request.json()])

    @app.get("/process")
    async def process() -> Any:
        return {"process": os.getpid()}

    return app


def django_urls() -> ModuleType:
    import json

    import django
    from django.conf import settings
    from django.http import JsonResponse
    from django.urls import path

    import durably.django

    urls = ModuleType("tests_embedded_urls")
    settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=urls, SECRET_KEY="for tests only", LOGGING_CONFIG=None)
    django.setup()
    client, functions = make_client()

    def send(request: Any) -> Any:
        return JsonResponse(client.send_sync([Event(**each) for each in json.loads(request.body)]), safe=False)

    def process(request: Any) -> Any:
        return JsonResponse({"process": os.getpid()})

    urls.urlpatterns = [  # type: ignore[attr-defined]
        durably.django.serve(client, functions),
        path("send", send),
        path("process", process),
    ]
    return urls


def django_wsgi() -> Any:
    django_urls()
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


def django_asgi() -> Any:
    django_urls()
    from django.core.asgi import get_asgi_application

    return get_asgi_application()


def tornado_app() -> Any:
    import json

    import tornado.web

    import durably.tornado

    client, functions = make_client()

    class Send(tornado.web.RequestHandler):
        async def post(self) -> None:
            self.finish(json.dumps(await client.send([Event(**each) for each in json.loads(self.request.body)])))

    class Process(tornado.web.RequestHandler):
        def get(self) -> None:
            self.finish({"process": os.getpid()})

    app = tornado.web.Application([("/send", Send), ("/process", Process)])
    durably.tornado.serve(app, client, functions)
    return app


def litestar_app() -> Any:
    from litestar import Litestar, Request, get, post

    import durably.litestar

    client, functions = make_client()

    @post("/send", status_code=200)
    async def send(request: Request[Any, Any, Any]) -> list[str]:
        return await client.send([Event(**each) for each in await request.json()])

    @get("/process")
    async def process() -> dict[str, int]:
        return {"process": os.getpid()}

    return Litestar([send, process], plugins=[durably.litestar.serve(client, functions)], logging_config=None)


def quart_app() -> Any:
    import quart

    import durably.quart

    app = quart.Quart(__name__)
    client, functions = make_client()
    durably.quart.serve(app, client, functions)

    @app.post("/send")
    async def send() -> Any:
        return await client.send([Event(**each) for each in await quart.request.get_json()])

    @app.get("/process")
    async def process() -> Any:
        return {"process": os.getpid()}

    return app


def aiohttp_app() -> Any:
    from aiohttp import web

    import durably.aiohttp

    app = web.Application()
    client, functions = make_client()
    durably.aiohttp.serve(app, client, functions)

    async def send(request: web.Request) -> web.Response:
        return web.json_response(await client.send([Event(**each) for each in await request.json()]))

    async def process(request: web.Request) -> web.Response:
        return web.json_response({"process": os.getpid()})

    app.add_routes([web.post("/send", send), web.get("/process", process)])
    return app
