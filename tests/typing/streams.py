"""Right and wrong uses of streams for browsers. `make lint` checks it with mypy and pyright; nothing runs it."""

import datetime as dt
from typing import Any, assert_type

import django.http
import django.urls
import fastapi
import flask
import starlette.applications
import tornado.web

import durably
import durably.digital_ocean
import durably.django
import durably.fast_api
import durably.flask
import durably.starlette
import durably.tornado

client = durably.Client(app_id="typing", is_production=False)


def may_read(request: Any, run_id: str) -> bool:
    return bool(run_id)


async def may_read_async(request: fastapi.Request, run_id: str) -> bool:
    return bool(run_id)


def may_read_in_django(request: django.http.HttpRequest, run_id: str) -> bool:
    return bool(run_id)


def names_user(request: Any, run_id: str) -> str:
    return run_id


def takes_request(request: Any) -> bool:
    return bool(request)


durably.fast_api.streams(fastapi.FastAPI(), client, authorize=may_read_async)
durably.starlette.streams(starlette.applications.Starlette(), client, "/events", allow_anonymous=True)
durably.flask.streams(flask.Flask("app"), client, authorize=may_read, max_listeners=50)
durably.tornado.streams(tornado.web.Application(), client, authorize=may_read, base=tornado.web.RequestHandler)
assert_type(durably.django.streams(client, authorize=may_read_in_django), django.urls.URLPattern)
durably.flask.streams(flask.Flask("app"), client, authorize=names_user)  # type: ignore[arg-type]  # pyright: ignore
durably.flask.streams(flask.Flask("app"), client, authorize=takes_request)  # type: ignore[arg-type]  # pyright: ignore
durably.fast_api.streams(flask.Flask("app"), client, authorize=may_read)  # type: ignore[arg-type]  # pyright: ignore

assert_type(client.stream_token("run"), str)
client.stream_token(["run", "orders"], ["$run", "text"], expires=dt.timedelta(minutes=5))
client.stream_token("run", expires="10m")
client.stream_token("run", expires=600)  # type: ignore[arg-type]  # pyright: ignore
client.stream_token(1)  # type: ignore[arg-type]  # pyright: ignore
client.stream_token("run", expires="soon", topic="text")  # type: ignore[call-arg]  # pyright: ignore
