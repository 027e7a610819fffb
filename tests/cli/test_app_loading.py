"""Imports of ``module:app``, with errors that name the user's line, and the kinds of apps."""

import asyncio
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import django.conf
import fastapi
import flask
import pytest
import quart
import sanic
import tornado.web
from aiohttp import web
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from litestar import Litestar

import durably.aws_lambda
from durably.cli.app_server import AppImportError, find_server, import_app

Write = Callable[[str], None]


@pytest.fixture
def write_module(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the module ``usershop`` into the working directory, which is on the path as it is for ``python -m``."""
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))

    def write_(source: str) -> None:
        (directory / "usershop.py").write_text(source)
        monkeypatch.delitem(sys.modules, "usershop", raising=False)
        importlib.invalidate_caches()

    return write_


def test_app_is_found_by_its_target(write_module: Write) -> None:
    write_module("class x:\n    app = 1\napp = 2")
    assert import_app("usershop:app") == 2
    assert import_app("usershop") == 2
    assert import_app("usershop:x.app") == 1
    write_module("application = 3")
    assert import_app("usershop") == 3


@pytest.mark.parametrize(
    ("source", "target", "pattern"),
    [
        ("app = 1", "usershopp:app", "no module 'usershopp' in .*project"),
        ("app = 1", "usershop.sub:app", "there is no module 'usershop.sub'"),
        ("app = 1", "usershop.py:app", "there is no module 'usershop.py' in .*; did you mean 'usershop'?"),
        ("app = 1", "usershop.app", "there is no module 'usershop.app' in .*; did you mean 'usershop:app'?"),
        ("app = 1", "usershop:ap", "usershop has no 'ap'; did you mean 'app'?"),
        ("x = 1", "usershop", "usershop has no 'app'; name the object in it: module:name"),
        ("app = 1", "usershop:app.x", "usershop has no 'x'"),
        ("x = 1\nimport nothere", "usershop:x", r"No module named 'nothere'\n.*usershop\.py, line 2: import nothere"),
        (
            "def f():\n    raise ValueError('no config')\nf()",
            "usershop:x",
            r"ValueError: no config\n.*usershop\.py, line 2",
        ),
        ("app = (", "usershop:app", r"SyntaxError: .*\n.*usershop\.py, line 1"),
        ("raise SystemExit('bye')", "usershop:app", r"SystemExit: bye\n.*usershop\.py, line 1"),
        ("import json\njson.loads('{')", "usershop:app", r"JSONDecodeError: .*\n.*usershop\.py, line 2"),
        ("app = 1", "./usershop.py:app", "not the name of a module"),
        ("app = 1", ":app", "not the name of a module"),
    ],
)
def test_import_error_has_the_reason(write_module: Write, source: str, target: str, pattern: str) -> None:
    write_module(source)
    with pytest.raises(AppImportError) as caught:
        import_app(target)
    assert re.search(pattern, str(caught.value)), str(caught.value)


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


def test_kind_of_an_app_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "durably.aws_lambda", raising=False)
    apps: list[tuple[object, str]] = [
        (fastapi.FastAPI(), "asgi"),
        (get_asgi_application(), "asgi"),
        (raw_asgi, "asgi"),
        (AsgiMiddleware(), "asgi"),
        (functools.partial(raw_asgi), "asgi"),
        (flask.Flask(__name__), "wsgi"),
        (get_wsgi_application(), "wsgi"),
        (raw_wsgi, "wsgi"),
        (WsgiMiddleware(), "wsgi"),
        (Litestar([]), "asgi"),
        (quart.Quart(__name__), "asgi"),
        (sanic.Sanic("loaded", configure_logging=False), "asgi"),
        (tornado.web.Application(), "tornado"),
        (web.Application(), "aiohttp"),
        (main, "digital_ocean"),
        (lambda event, context: {}, "digital_ocean"),
        (lambda request: "", "google_cloud"),
    ]
    for app, kind in apps:
        assert find_server(app).__name__ == f"serve_{kind}", app
    monkeypatch.setitem(sys.modules, "durably.aws_lambda", durably.aws_lambda)
    assert find_server(main).__name__ == "serve_lambda"


@pytest.mark.parametrize("found", [{"a": 1}, fastapi.FastAPI, asyncio, lambda: None, None, asyncio.sleep])
def test_other_objects_are_no_apps(found: object) -> None:
    with pytest.raises(AppImportError, match="is not an app"):
        find_server(found)
