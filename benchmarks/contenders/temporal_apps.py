"""The endpoints for orders in each framework: ``POST /orders`` starts one, ``GET /orders/{workflow_id}`` describes it.

They are written as their framework's users write them, over what ``temporal_orders`` has for each way; the gateway has
them of its own.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Annotated, Any

from temporalio.client import Client

from durably.temporal import Temporal

from . import temporal_orders as orders
from .temporal_orders import DIRECT, GATEWAY, Order, Server


@asynccontextmanager
async def open_fast_api(server: Server, way: str) -> AsyncIterator[Any]:
    import fastapi

    from durably.temporal.fast_api import add_exception_handlers, router

    app = fastapi.FastAPI()
    if way == GATEWAY:
        app.include_router(router(orders.make_gateway(_temporal(server))))
        yield app
        return
    if way == DIRECT:
        add_exception_handlers(app)
    get_client = await server.get_client(way)

    @app.post("/orders", status_code=202)
    async def start(order: Order, client: Annotated[Client, fastapi.Depends(get_client)]) -> dict[str, Any]:
        return await orders.start(client, order)

    @app.get("/orders/{id}")
    async def describe(id: str, client: Annotated[Client, fastapi.Depends(get_client)]) -> dict[str, Any]:
        return await orders.describe(client, id)

    yield app


@asynccontextmanager
async def open_flask(server: Server, way: str) -> AsyncIterator[Any]:
    import flask

    from durably.temporal.flask import blueprint, init_app

    app, temporal = flask.Flask(__name__), _temporal(server)
    if way == GATEWAY:
        init_app(app, temporal)
        app.register_blueprint(blueprint(orders.make_gateway(temporal)))
        yield app
        return
    async with orders.open_orders(server, way, temporal) as opened:

        @app.post("/orders")
        def start() -> Any:
            return opened.start(Order(**flask.request.get_json())), 202

        @app.get("/orders/<id>")
        def describe(id: str) -> Any:
            return opened.describe(id)

        yield app


@asynccontextmanager
async def open_django_wsgi(server: Server, way: str) -> AsyncIterator[Any]:
    urls = _set_up_django(server)
    from django.core.wsgi import get_wsgi_application
    from django.http import JsonResponse
    from django.urls import path

    from durably.temporal.django import temporal
    from durably.temporal.django import urls as gateway_urls

    if way == GATEWAY:
        urls.urlpatterns = [path("", gateway_urls(orders.make_gateway(temporal)))]
        yield get_wsgi_application()
        return
    async with orders.open_orders(server, way, temporal) as opened:

        def start(request: Any) -> Any:
            return JsonResponse(opened.start(Order(**json.loads(request.body))), status=202)

        def describe(request: Any, id: str) -> Any:
            return JsonResponse(opened.describe(id))

        urls.urlpatterns = [path("orders", start), path("orders/<id>", describe)]
        yield get_wsgi_application()


@asynccontextmanager
async def open_django_asgi(server: Server, way: str) -> AsyncIterator[Any]:
    urls = _set_up_django(server)
    from django.core.asgi import get_asgi_application
    from django.http import JsonResponse
    from django.urls import path

    from durably.temporal.django import temporal
    from durably.temporal.django import urls as gateway_urls

    if way == GATEWAY:
        urls.urlpatterns = [path("", gateway_urls(orders.make_gateway(temporal)))]
        yield get_asgi_application()
        return
    get_client = temporal.client if way == DIRECT else await server.get_client(way)

    async def start(request: Any) -> Any:
        return JsonResponse(await orders.start(await get_client(), Order(**json.loads(request.body))), status=202)

    async def describe(request: Any, id: str) -> Any:
        return JsonResponse(await orders.describe(await get_client(), id))

    urls.urlpatterns = [path("orders", start), path("orders/<id>", describe)]
    yield get_asgi_application()


@asynccontextmanager
async def open_tornado(server: Server, way: str) -> AsyncIterator[Any]:
    import tornado.web

    from durably.temporal.tornado import routes

    if way == GATEWAY:
        yield tornado.web.Application(routes(orders.make_gateway(_temporal(server))))
        return
    get_client = await server.get_client(way)

    class Orders(tornado.web.RequestHandler):
        async def post(self) -> None:
            self.set_status(202)
            self.finish(await orders.start(await get_client(), Order(**json.loads(self.request.body))))

    class OneOrder(tornado.web.RequestHandler):
        async def get(self, id: str) -> None:
            self.finish(await orders.describe(await get_client(), id))

    yield tornado.web.Application([("/orders", Orders), ("/orders/(.+)", OneOrder)])


def _temporal(server: Server) -> Temporal:
    return Temporal(server.address, task_queue=orders.QUEUE)


def _set_up_django(server: Server) -> Any:
    """Without middleware and without a database. Returns the module whose ``urlpatterns`` are the project's."""
    import django
    from django.conf import settings

    urls = ModuleType("benchmark_urls")
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=urls,
        SECRET_KEY="of the benchmark",
        TEMPORAL_SERVER=server.address,
        TEMPORAL_TASK_QUEUE=orders.QUEUE,
    )
    django.setup()
    return urls


OPEN: dict[str, Callable[[Server, str], Any]] = {
    "fastapi": open_fast_api,
    "flask": open_flask,
    "django-asgi": open_django_asgi,
    "django-wsgi": open_django_wsgi,
    "tornado": open_tornado,
}
