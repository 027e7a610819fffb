"""Telling apps apart by their objects alone."""

import asyncio
import functools
from collections.abc import Iterator
from typing import Any

import django
import django.conf
import fastapi
import flask
import pytest
import tornado.web
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

from durably.cli.app_loading import AppKind, NotAnAppError, detect_kind


@pytest.fixture(scope="module", autouse=True)
def django_settings() -> Iterator[None]:
    """A process has one set of settings: other tests' stay, and these are taken back for other tests' sake."""
    if django.conf.settings.configured:
        yield
        return
    django.conf.settings.configure(ROOT_URLCONF=__name__)
    django.setup()
    yield
    django.conf.settings._wrapped = django.conf.empty


async def raw_asgi(scope: Any, receive: Any, send: Any) -> None: ...


def raw_wsgi(environ: Any, start_response: Any) -> Any: ...


def main(event: Any, context: Any) -> Any: ...


class AsgiMiddleware:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class WsgiMiddleware:
    def __call__(self, env: Any, start: Any) -> Any: ...


def test_apps_are_recognised() -> None:
    apps: list[tuple[object, AppKind]] = [
        (fastapi.FastAPI(), AppKind.ASGI),
        (get_asgi_application(), AppKind.ASGI),
        (raw_asgi, AppKind.ASGI),
        (AsgiMiddleware(), AppKind.ASGI),
        (functools.partial(raw_asgi), AppKind.ASGI),
        (flask.Flask(__name__), AppKind.WSGI),
        (get_wsgi_application(), AppKind.WSGI),
        (raw_wsgi, AppKind.WSGI),
        (WsgiMiddleware(), AppKind.WSGI),
        (tornado.web.Application(), AppKind.TORNADO),
        (main, AppKind.DIGITAL_OCEAN),
        (lambda event, context: {}, AppKind.DIGITAL_OCEAN),
    ]
    for app, kind in apps:
        assert detect_kind(app) is kind, app


@pytest.mark.parametrize(
    ("found", "described"),
    [
        ({"a": 1}, "builtins.dict"),
        (fastapi.FastAPI, "the class FastAPI"),
        (asyncio, "the module asyncio"),
        (lambda: None, r"the function <lambda>\(\)"),
        (None, "NoneType"),
        (asyncio.sleep, r"the function sleep\(delay\)"),
    ],
)
def test_other_objects_are_described(found: object, described: str) -> None:
    with pytest.raises(NotAnAppError, match=described):
        detect_kind(found)
