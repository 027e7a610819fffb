"""The private parts of Django and Werkzeug that the adapters use: they exist, and do what is expected."""

import inspect

import flask
import pytest
import werkzeug.local
from django.test import RequestFactory
from werkzeug._reloader import run_with_reloader as run_reloaded

from durably.web.django import is_body_read, set_body
from durably.web.flask import current_object, run_with_reloader

from ..fake_engine import FakeEngine
from .apps import make_django_wsgi


@pytest.fixture
def settings(engine: FakeEngine) -> None:
    """Those of the other tests: a process has only one."""
    make_django_wsgi(engine.origin)


def test_object_behind_a_proxy_is_returned() -> None:
    app = flask.Flask(__name__)
    with app.test_request_context("/there"):
        request = current_object(flask.request)
    assert (type(request), request.path) == (flask.Request, "/there")
    assert isinstance(flask.request, werkzeug.local.LocalProxy)


def test_reloader_of_werkzeug_takes_a_function() -> None:
    assert next(iter(inspect.signature(run_reloaded).parameters)) == "main_func"


def test_reloader_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("werkzeug._reloader.run_with_reloader")
    with pytest.raises(RuntimeError, match="--reload does not work with this version of Werkzeug"):
        run_with_reloader(lambda: None)


@pytest.mark.usefixtures("settings")
def test_body_of_a_django_request_is_set() -> None:
    request = RequestFactory().post("/", b"sent", content_type="application/json")
    assert not is_body_read(request)
    set_body(request, b"read elsewhere")
    assert is_body_read(request)
    assert request.body == b"read elsewhere"


@pytest.mark.usefixtures("settings")
def test_django_reads_which_views_are_not_atomic() -> None:
    from django.core.handlers.base import BaseHandler

    assert "_non_atomic_requests" in inspect.getsource(BaseHandler.make_view_atomic)
