"""Each framework's app, with all variants mounted, and around it what a real app has: something that sets
context variables for each request."""

import inspect
import os
import threading
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import ModuleType
from typing import Any

from .endpoints import add_endpoint, without_path
from .functions import request_name, request_thread
from .variants import serve_all
from .webhooks import receive_all


def make_fast_api(engine: str) -> Any:
    import fastapi

    import durably.fast_api

    app = fastapi.FastAPI()
    serve_all(engine, partial(durably.fast_api.serve, app))
    receive_all(engine, partial(durably.fast_api.webhook, app))
    add_endpoint(engine, partial(durably.fast_api.endpoint, app))
    return _marking_asgi(app)


def make_starlette(engine: str) -> Any:
    from starlette.applications import Starlette

    import durably.starlette

    app = Starlette()
    serve_all(engine, partial(durably.starlette.serve, app))
    receive_all(engine, partial(durably.starlette.webhook, app))
    add_endpoint(engine, partial(durably.starlette.endpoint, app))
    return _marking_asgi(app)


def make_asgi(engine: str) -> Any:
    import durably.asgi

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def serve(*args: Any, **options: Any) -> None:
        nonlocal app
        app = durably.asgi.serve(app, *args, **options)  # type: ignore[assignment]

    def receive(*args: Any) -> None:
        nonlocal app
        app = durably.asgi.webhook(app, *args)  # type: ignore[assignment]

    def add(*args: Any, **options: Any) -> None:
        nonlocal app
        app = durably.asgi.endpoint(app, *args, **options)  # type: ignore[assignment]

    serve_all(engine, serve)
    receive_all(engine, receive)
    add_endpoint(engine, add)
    return _marking_asgi(app)


def make_litestar(engine: str) -> Any:
    from litestar import Litestar
    from litestar.config.csrf import CSRFConfig

    import durably.litestar

    plugins = [
        *serve_all(engine, durably.litestar.serve).values(),
        *receive_all(engine, durably.litestar.webhook).values(),
        *add_endpoint(engine, durably.litestar.endpoint).values(),
    ]
    return _marking_asgi(Litestar(plugins=plugins, csrf_config=CSRFConfig(secret="for tests only")))


def make_quart(engine: str) -> Any:
    import quart

    import durably.quart

    app = quart.Quart(__name__)
    serve_all(engine, partial(durably.quart.serve, app))
    receive_all(engine, partial(durably.quart.webhook, app))
    add_endpoint(engine, partial(durably.quart.endpoint, app))
    return _marking_asgi(app)


def make_aiohttp(engine: str) -> Any:
    from aiohttp import web

    import durably.aiohttp

    @web.middleware
    async def mark(request: web.Request, handler: Any) -> Any:
        mark_request(request.headers.get("x-name"))
        return await handler(request)

    app = web.Application(middlewares=[mark])
    serve_all(engine, partial(durably.aiohttp.serve, app))
    receive_all(engine, partial(durably.aiohttp.webhook, app))
    add_endpoint(engine, partial(durably.aiohttp.endpoint, app))
    return app


def make_sanic(engine: str) -> Any:
    import sanic

    import durably.sanic

    sanic.Sanic.test_mode = True  # Another app may have run in this process.
    app: Any = sanic.Sanic("frameworks", configure_logging=False)

    @app.on_request
    async def mark(request: Any) -> None:
        mark_request(request.headers.get("x-name"))

    serve_all(engine, partial(durably.sanic.serve, app))
    receive_all(engine, partial(durably.sanic.webhook, app))
    add_endpoint(engine, partial(durably.sanic.endpoint, app))
    return app


def make_wsgi(engine: str) -> Any:
    import durably.wsgi

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("404 Not Found", [])
        return [b""]

    def serve(*args: Any, **options: Any) -> None:
        nonlocal app
        app = durably.wsgi.serve(app, *args, **options)  # type: ignore[assignment]

    def receive(*args: Any) -> None:
        nonlocal app
        app = durably.wsgi.webhook(app, *args)  # type: ignore[assignment]

    def add(*args: Any, **options: Any) -> None:
        nonlocal app
        app = durably.wsgi.endpoint(app, *args, **options)  # type: ignore[assignment]

    serve_all(engine, serve)
    receive_all(engine, receive)
    add_endpoint(engine, add)

    def marking(environ: Any, start_response: Any) -> Iterable[bytes]:
        mark_request(environ.get("HTTP_X_NAME"))
        return app(environ, start_response)

    return marking


def make_flask(engine: str) -> Any:
    import flask

    import durably.flask

    app = flask.Flask(__name__)

    @app.before_request
    def mark() -> None:
        mark_request(flask.request.headers.get("x-name"))

    serve_all(engine, partial(durably.flask.serve, app))
    receive_all(engine, partial(durably.flask.webhook, app))
    add_endpoint(engine, partial(durably.flask.endpoint, app))
    return app


def make_flask_of_environment() -> Any:
    """For servers in processes of their own."""
    return make_flask(os.environ["TEST_ENGINE"])


def make_tornado(engine: str) -> Any:
    import tornado.web

    import durably.tornado

    class App(tornado.web.Application):
        def find_handler(self, request: Any, **kwargs: Any) -> Any:
            mark_request(request.headers.get("x-name"))
            return super().find_handler(request, **kwargs)

    app = App(xsrf_cookies=True, cookie_secret="for tests only")
    serve_all(engine, partial(durably.tornado.serve, app))
    receive_all(engine, partial(durably.tornado.webhook, app))
    add_endpoint(engine, partial(durably.tornado.endpoint, app))
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

    served = serve_all(engine, durably.digital_ocean.serve, can_stream=False)
    served |= receive_all(engine, durably.digital_ocean.webhook)
    return _by_path(served | add_endpoint(engine, without_path(durably.digital_ocean.endpoint)), DigitalOceanSimulator)


def make_lambda(engine: str) -> Any:
    from durably.testing import LambdaSimulator

    return _by_path(_lambda_handlers(engine), LambdaSimulator)


@cache
def _lambda_handlers(engine: str) -> dict[str, Any]:
    import durably.aws_lambda

    served = serve_all(engine, durably.aws_lambda.serve, can_stream=False)
    served |= receive_all(engine, durably.aws_lambda.webhook)
    return served | add_endpoint(engine, without_path(durably.aws_lambda.endpoint))


def handle_lambda(event: dict[str, Any], context: Any) -> Any:
    """For Lambda's own runtime, in processes of its own."""
    mark_request(event["headers"].get("x-name"))
    return _lambda_handlers(os.environ["TEST_ENGINE"])[event["rawPath"]](event, context)


def _by_path(functions: dict[str, Any], simulate: Callable[[Any], Any]) -> Any:
    simulators = {path: simulate(function) for path, function in functions.items()}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        mark_request(environ.get("HTTP_X_NAME"))
        return simulators[environ["PATH_INFO"]](environ, start_response)

    return app


def mark_django(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Middleware of both kinds: Django would run a sync one of an async app in another thread."""

    def mark(request: Any) -> Any:
        mark_request(request.headers.get("x-name"))
        return get_response(request)

    async def mark_async(request: Any) -> Any:
        mark_request(request.headers.get("x-name"))
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
    urls.urlpatterns = [  # type: ignore[attr-defined]
        *serve_all(engine, durably.django.serve).values(),
        *receive_all(engine, durably.django.webhook).values(),
        *add_endpoint(engine, durably.django.endpoint).values(),
    ]


def mark_request(name: str | None) -> None:
    request_name.set(name or "unset")
    request_thread.set(threading.get_ident())


def _marking_asgi(app: Any) -> Any:
    async def marking(scope: Any, receive: Any, send: Any) -> None:
        names = [value.decode() for name, value in scope.get("headers", ()) if name == b"x-name"]
        mark_request(names[0] if names else None)
        await app(scope, receive, send)

    return marking
