"""Each framework's app, with all variants mounted, and around it what a real app has: something that sets
context variables for each request."""

import inspect
import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

from .functions import request_name, request_thread
from .variants import serve_all


def make_fast_api(engine: str) -> Any:
    import fastapi

    import durably.fast_api

    app = fastapi.FastAPI()
    serve_all(engine, partial(durably.fast_api.serve, app))
    return _marking_asgi(app)


def make_flask(engine: str) -> Any:
    import flask

    import durably.flask

    app = flask.Flask(__name__)

    @app.before_request
    def mark() -> None:
        _mark(flask.request.headers.get("x-name"))

    serve_all(engine, partial(durably.flask.serve, app))
    return app


def make_flask_of_environment() -> Any:
    """For servers in processes of their own."""
    return make_flask(os.environ["TEST_ENGINE"])


def make_tornado(engine: str) -> Any:
    import tornado.web

    import durably.tornado

    class App(tornado.web.Application):
        def find_handler(self, request: Any, **kwargs: Any) -> Any:
            _mark(request.headers.get("x-name"))
            return super().find_handler(request, **kwargs)

    app = App(xsrf_cookies=True, cookie_secret="for tests only")
    serve_all(engine, partial(durably.tornado.serve, app))
    return app


def make_django_wsgi(engine: str) -> Any:
    _set_up_django(engine)
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


def make_django_asgi(engine: str) -> Any:
    _set_up_django(engine)
    from django.core.asgi import get_asgi_application

    return get_asgi_application()


def make_digital_ocean(engine: str) -> Any:
    import durably.digital_ocean
    from durably.testing import DigitalOceanSimulator

    mains = serve_all(engine, durably.digital_ocean.serve, can_stream=False)
    simulators = {path: DigitalOceanSimulator(main) for path, main in mains.items()}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        _mark(environ.get("HTTP_X_NAME"))
        return simulators[environ["PATH_INFO"]](environ, start_response)

    return app


def mark_django(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Middleware of both kinds: Django would run a sync one of an async app in another thread."""

    def mark(request: Any) -> Any:
        _mark(request.headers.get("x-name"))
        return get_response(request)

    async def mark_async(request: Any) -> Any:
        _mark(request.headers.get("x-name"))
        return await get_response(request)

    return mark_async if inspect.iscoroutinefunction(get_response) else mark


mark_django.sync_capable = mark_django.async_capable = True  # type: ignore[attr-defined]


def _set_up_django(engine: str) -> None:
    """One set of settings for both, since a process has only one; the middleware stands in both apps' way."""
    import django
    from django.conf import settings

    if settings.configured:
        return
    import durably.django

    urls = ModuleType("tests_frameworks_urls")
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "ATOMIC_REQUESTS": True}},
        DATA_UPLOAD_MAX_MEMORY_SIZE=10_000,
        DEBUG=False,
        LOGGING_CONFIG=None,
        MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware", f"{__name__}.mark_django"],
        ROOT_URLCONF=urls,
        SECRET_KEY="for tests only",
    )
    django.setup()
    urls.urlpatterns = list(serve_all(engine, durably.django.serve).values())  # type: ignore[attr-defined]


def _mark(name: str | None) -> None:
    request_name.set(name or "unset")
    request_thread.set(threading.get_ident())


def _marking_asgi(app: Any) -> Any:
    async def marking(scope: Any, receive: Any, send: Any) -> None:
        names = [value.decode() for name, value in scope.get("headers", ()) if name == b"x-name"]
        _mark(names[0] if names else None)
        await app(scope, receive, send)

    return marking
