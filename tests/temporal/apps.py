"""The same gateways in each framework: one open to all, one guarded, and an endpoint of the app."""

import asyncio
import os
from datetime import timedelta
from types import ModuleType
from typing import Annotated, Any

from temporalio.client import Client
from temporalio.common import RetryPolicy, WorkflowIDConflictPolicy

from durably.temporal import Temporal
from durably.temporal.gateway import (
    FOR_OPERATORS,
    Action,
    Exposure,
    Gateway,
    Limits,
    Operation,
    Unauthenticated,
    expose,
)

from .workflows import (
    TASK_QUEUE,
    MistypedWorkflow,
    OrderWorkflow,
    SleepingWorkflow,
    StepsWorkflow,
    SumWorkflow,
)

MAX_WAIT = float(os.environ.get("TEST_MAX_WAIT", "60"))
RPC_TIMEOUT = timedelta(seconds=30)
"""Timeout of the gateways and of the apps' own calls. Only a busy machine reaches it."""
LIMITS = Limits(rpc_timeout=RPC_TIMEOUT, max_wait=MAX_WAIT, stream_limit=10 * MAX_WAIT, keep_alive=1.0, max_streams=4)


def exposures() -> list[Exposure]:
    return [
        expose(
            OrderWorkflow,
            name="orders",
            id="order-{order_id}",
            signals=[OrderWorkflow.ship, OrderWorkflow.add_note],
            queries="all",
            updates=[OrderWorkflow.change_address],
            operations=FOR_OPERATORS,
            memo=lambda order: {"lines": len(order.lines)},
        ),
        expose(SumWorkflow),
        expose(SleepingWorkflow),
        expose(
            OrderWorkflow,
            name="carts",
            id="cart-{order_id}",
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            operations=FOR_OPERATORS,
        ),
    ]


def guarded_exposures() -> list[Exposure]:
    retry_policy = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=2)
    return [
        *exposures(),
        expose(MistypedWorkflow, name="mistyped", queries="all", updates="all"),
        expose(StepsWorkflow, name="chains", signals="all", operations=FOR_OPERATORS, retry_policy=retry_policy),
    ]


def open_gateway(temporal: Temporal) -> Gateway:
    return Gateway(temporal, exposures(), allow_anonymous=True, limits=LIMITS, docs=True)


def authorize(action: Action) -> bool:
    """Readers may look, owners may do everything. It could query a database, because nothing else waits for it."""
    assert asyncio._get_running_loop() is None
    if action.principal is None:
        raise Unauthenticated
    return action.principal == "owner" or action.operation is Operation.DESCRIBE


def guarded_gateway(temporal: Temporal) -> Gateway:
    return Gateway(temporal, guarded_exposures(), authorize=authorize, limits=LIMITS)


def owned_gateway(temporal: Temporal) -> Gateway:
    """Users are strings. Each has its own workflows, and "staff" reaches all of them."""
    owned: dict[str, Any] = {"owner": str, "staff": lambda user: user == "staff", "operations": FOR_OPERATORS}
    return Gateway(
        temporal,
        [
            expose(
                OrderWorkflow,
                name="orders",
                id="order-{order_id}",
                signals=[OrderWorkflow.ship, OrderWorkflow.add_note],
                queries="all",
                updates=[OrderWorkflow.change_address],
                memo=lambda order, user: {"by": user, "lines": len(order.lines)},
                **owned,
            ),
            expose(SumWorkflow, **owned),
            expose(SleepingWorkflow, **owned),
        ],
        authorize=lambda action: action.principal is not None,
        limits=LIMITS,
    )


def make_fast_api(address: str) -> Any:
    import fastapi

    import durably.temporal.fast_api

    temporal = Temporal(address, task_queue=TASK_QUEUE, rpc_timeout=RPC_TIMEOUT)
    app = fastapi.FastAPI(lifespan=temporal.lifespan)
    durably.temporal.fast_api.add_exception_handlers(app)

    def user(x_user: Annotated[str | None, fastapi.Header()] = None) -> str | None:
        return x_user

    app.include_router(durably.temporal.fast_api.router(open_gateway(temporal), prefix="/open"))
    app.include_router(
        durably.temporal.fast_api.router(
            guarded_gateway(temporal), prefix="/guarded", principal=user, include_in_schema=False
        ),
    )

    app.include_router(
        durably.temporal.fast_api.router(
            owned_gateway(temporal), prefix="/mine", principal=user, include_in_schema=False
        ),
    )

    @app.get("/direct/{workflow_id}")
    async def direct(workflow_id: str, client: Annotated[Client, fastapi.Depends(temporal.client)]) -> str:
        description = await client.get_workflow_handle(workflow_id).describe()
        return description.id

    return app


def make_starlette(address: str) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Mount, Route

    from durably.temporal.starlette import add_exception_handlers, routes

    temporal = Temporal(address, task_queue=TASK_QUEUE, rpc_timeout=RPC_TIMEOUT)

    async def direct(request: Request) -> Response:
        client = await temporal.client()
        description = await client.get_workflow_handle(request.path_params["workflow_id"]).describe()
        return JSONResponse(description.id)

    def user(request: Request) -> str | None:
        return request.headers.get("x-user")

    guarded = routes(guarded_gateway(temporal), principal=user)
    app = Starlette(
        lifespan=temporal.lifespan,
        routes=[
            *routes(open_gateway(temporal), prefix="/open"),
            Mount("/guarded", routes=guarded),
            *routes(owned_gateway(temporal), prefix="/mine", principal=user),
            Route("/direct/{workflow_id}", direct),
        ],
    )
    add_exception_handlers(app)
    return app


def make_litestar(address: str) -> Any:
    from examples.other_frameworks.litestar_gateway import gateway_at
    from litestar import Litestar, Request, get
    from litestar.response import Response

    from durably.temporal.gateway.problems import EXCEPTIONS, to_problem

    temporal = Temporal(address, task_queue=TASK_QUEUE, rpc_timeout=RPC_TIMEOUT)

    @get("/direct/{workflow_id:str}", sync_to_thread=False)
    async def direct(workflow_id: str) -> str:
        client = await temporal.client()
        return (await client.get_workflow_handle(workflow_id).describe()).id

    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        made = to_problem(error).response()
        return Response(made.body, status_code=made.status_code, headers=made.headers)

    return Litestar(
        [
            gateway_at("/open", open_gateway(temporal)),
            gateway_at("/guarded", guarded_gateway(temporal), lambda request: request.headers.get("x-user")),
            direct,
        ],
        exception_handlers=dict.fromkeys(EXCEPTIONS, handle),
        openapi_config=None,
    )


def make_quart(address: str) -> Any:
    import quart
    from examples.other_frameworks.quart_gateway import gateway_blueprint

    from durably.temporal.gateway.problems import EXCEPTIONS, to_problem

    temporal = Temporal(address, task_queue=TASK_QUEUE, rpc_timeout=RPC_TIMEOUT)
    app = quart.Quart(__name__)
    app.register_blueprint(gateway_blueprint(open_gateway(temporal), "open"), url_prefix="/open")
    guarded = gateway_blueprint(
        guarded_gateway(temporal), "guarded", principal=lambda: quart.request.headers.get("x-user")
    )
    app.register_blueprint(guarded, url_prefix="/guarded")

    @app.get("/direct/<workflow_id>")
    async def direct(workflow_id: str) -> str:
        client = await temporal.client()
        return (await client.get_workflow_handle(workflow_id).describe()).id

    async def handle(error: Exception) -> quart.Response:
        made = to_problem(error).response()
        return quart.Response(made.body, made.status_code, made.headers)

    for kind in EXCEPTIONS:
        app.register_error_handler(kind, handle)
    return app


def make_flask(address: str) -> Any:
    import flask

    import durably.temporal.flask

    app = flask.Flask(__name__)
    app.config.update(SECRET_KEY="for tests only", TEMPORAL_ADDRESS=address, TEMPORAL_TASK_QUEUE=TASK_QUEUE)
    temporal = Temporal(rpc_timeout=RPC_TIMEOUT)
    durably.temporal.flask.init_app(app, temporal)
    app.register_blueprint(durably.temporal.flask.blueprint(open_gateway(temporal), name="open"), url_prefix="/open")
    guarded = durably.temporal.flask.blueprint(
        guarded_gateway(temporal), name="guarded", principal=lambda: flask.request.headers.get("x-user")
    )
    app.register_blueprint(guarded, url_prefix="/guarded")
    owned = durably.temporal.flask.blueprint(
        owned_gateway(temporal), name="mine", principal=lambda: flask.request.headers.get("x-user")
    )
    app.register_blueprint(owned, url_prefix="/mine")

    @app.get("/direct/<workflow_id>")
    def direct(workflow_id: str) -> str:
        return temporal.sync.get_workflow_handle(workflow_id).describe().id

    return app


def make_tornado(address: str) -> Any:
    import tornado.web

    from durably.temporal.tornado import ProblemMixin, routes

    temporal = Temporal(address, task_queue=TASK_QUEUE, rpc_timeout=RPC_TIMEOUT)

    class Base(tornado.web.RequestHandler):
        def get_current_user(self) -> str | None:
            return self.request.headers.get("x-user")

    class Direct(ProblemMixin):
        async def get(self, workflow_id: str) -> None:
            client = await temporal.client()
            description = await client.get_workflow_handle(workflow_id).describe()
            await self.finish(description.id)

        def log_exception(self, *args: Any) -> None:
            """Do nothing."""

    return tornado.web.Application(
        [
            *routes(open_gateway(temporal), prefix="/open"),
            *routes(guarded_gateway(temporal), prefix="/guarded", base=Base, check_xsrf=False),
            *routes(owned_gateway(temporal), prefix="/mine", base=Base, check_xsrf=False),
            (r"/direct/(.+)", Direct),
        ],
        xsrf_cookies=True,
        cookie_secret="for tests only",
    )


def make_django_asgi(address: str) -> Any:
    _set_up_django(address)
    from django.core.asgi import get_asgi_application

    return get_asgi_application()


def make_django_wsgi(address: str) -> Any:
    _set_up_django(address)
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


def _set_up_django(address: str) -> None:
    import django
    from django.conf import settings

    urls = ModuleType("tests_temporal_urls")
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "ATOMIC_REQUESTS": True}},
        MIDDLEWARE=[
            "django.middleware.csrf.CsrfViewMiddleware",
            "durably.temporal.django.TemporalErrorMiddleware",
        ],
        ROOT_URLCONF=urls,
        SECRET_KEY="for tests only",
        TEMPORAL_SERVER=address,
        TEMPORAL_TASK_QUEUE=TASK_QUEUE,
        TEMPORAL={"OPTIONS": {"rpc_timeout": RPC_TIMEOUT}},
        DEBUG_PROPAGATE_EXCEPTIONS=os.environ.get("TEST_DEBUG") == "1",
    )
    django.setup()
    from django.db import connection
    from django.http import HttpResponse
    from django.urls import path

    from durably.temporal.django import temporal
    from durably.temporal.django import urls as gateway_urls

    def authorize_with_orm(action: Action) -> bool:
        """Hooks may use the database, which Django does not allow on an event loop."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return authorize(action)

    guarded = Gateway(temporal, guarded_exposures(), authorize=authorize_with_orm, limits=LIMITS)

    def direct(request: Any, workflow_id: str) -> HttpResponse:
        return HttpResponse(temporal.sync.get_workflow_handle(workflow_id).describe().id)

    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("open/", gateway_urls(open_gateway(temporal), namespace="open")),
        path(
            "guarded/",
            gateway_urls(
                guarded,
                namespace="guarded",
                principal=lambda request: request.headers.get("x-user"),
                csrf_exempt=True,
            ),
        ),
        path(
            "mine/",
            gateway_urls(
                owned_gateway(temporal),
                namespace="mine",
                principal=lambda request: request.headers.get("x-user"),
                csrf_exempt=True,
            ),
        ),
        path("csrf/", gateway_urls(guarded, namespace="csrf", principal=lambda request: "owner")),
        path("direct/<workflow_id>", direct),
    ]
