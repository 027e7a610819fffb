"""Serving functions in a Starlette app."""

from collections.abc import Sequence
from typing import Any, Unpack

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.routing import Route
except ImportError as error:
    raise ImportError('durably.starlette needs Starlette: pip install "durably[starlette]"') from error

from durably.comm.mounts import add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function
from durably.web.starlette import ANY_PATH, path_of

from .asgi import DashboardEndpoint, Endpoint, EngineLifespan, StreamsEndpoint
from .client import Client
from .endpoints import mount_endpoint
from .webhooks import Source, mount_webhook

FRAMEWORK = "starlette"


def serve(app: Starlette, client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    - ``serve_path``: Mounts it elsewhere.
    - ``serve_origin``, ``public_path``: Replace parts of the app's URL for the engine, for example behind a proxy.
    - ``streaming``: Keeps connections of long calls alive.
    - ``enable_unauthed_sync``: ``False`` refuses unsigned syncs in production mode.

    Async functions run on the server's event loop, sync ones in a thread pool.
    """
    serve_as(FRAMEWORK, app, client, functions, options)


def serve_as(
    framework: str, app: Starlette, client: Client, functions: Sequence[Function[Any]], options: ServeOptions
) -> None:
    """``serve`` for a framework that is made of Starlette."""
    mount = add_mount(mounts_of(app), framework, client, functions, options)
    if mount.is_repeated:
        return
    if client.in_process is not None:
        app.add_middleware(EngineLifespan, engine=client.in_process)
    _add(app, mount.path, Endpoint(mount, Request), "durably", methods=["GET", "POST", "PUT"])


def dashboard(
    app: Starlette,
    client: Client,
    path: str = "/durably",
    **options: Unpack[DashboardOptions],
) -> None:
    """Add the dashboard of the client's engine, by default at ``/durably``.

    - ``authorize``: Gets a ``durably.dashboard.Action`` and returns whether it is allowed. It may be async; a plain
      function runs in a thread. An ``HTTPException`` that it raises is the response.
    - ``allow_anonymous``: ``True`` shows all data to every visitor, who can also change runs.

    Raises ``DashboardConfigError`` unless exactly one of them is given.
    """
    from durably.dashboard import ROOT_PATHS

    endpoint = DashboardEndpoint(client, path, Request, raises=(HTTPException,), **options)
    mount = endpoint.mount
    for pattern in (mount, f"{mount}/{ANY_PATH}") if mount else (path_of(ROOT_PATHS),):
        _add(app, pattern, endpoint, "durably-dashboard")


def streams(
    app: Starlette,
    client: Client,
    path: str = "/streams",
    **options: Unpack[StreamsOptions],
) -> None:
    """Add the streams of runs and other channels for browsers, by default at ``/streams``.

    A page reads them with ``new EventSource("/streams?channel=RUN_ID")``, or with a token of ``client.stream_token``.

    - ``authorize``: Gets the request and a run's id (or another channel), and returns whether the visitor may read its
      messages. It may be async; a plain function runs in a thread. An ``HTTPException`` that it raises is the response.
      Requests with a token are not passed to it.
    - ``allow_anonymous``: ``True`` lets everybody read who knows the id of a run.
    - ``max_listeners``: The most open streams of this process (default 1,000). Others get 503.

    Raises ``FunctionConfigInvalidError`` unless exactly one of the first two is given.
    """
    endpoint = StreamsEndpoint(client, path, Request, raises=(HTTPException,), **options)
    _add(app, endpoint.path, endpoint, "durably-streams")


def endpoint(app: Starlette, function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]) -> None:
    """Add a durable endpoint of a function at ``path``.

    A POST with a JSON object starts a run with this data, and is answered with the run's result. If that takes longer,
    the answer is 202 with a link. A GET of it waits again. A POST with an ``Idempotency-Key`` starts one run, however
    often it is repeated with the same data.

    - ``authorize``: Gets the request and the data, and returns whether the caller may start the run. It may be async; a
      plain function runs in a thread. An ``HTTPException`` that it raises is the response. Links have a token, and are
      not passed to it.
    - ``allow_anonymous``: ``True`` lets everybody start runs whom the app's middleware lets through.
    - ``wait``: The time that a request waits for the result (``"10s"`` by default).
    - ``expires``: The life of a link (``"1d"`` by default).

    Raises ``FunctionConfigInvalidError`` unless exactly one of the first two is given.
    """
    mount = mount_endpoint(function, path, "endpoint", **options)
    _add(app, mount.path, Endpoint(mount, Request), "durably-endpoint")


def webhook(app: Starlette, client: Client, source: Source, path: str | None = None) -> None:
    """Add the endpoint of a source of webhooks, by default at ``/webhooks/NAME`` with the name of the source.

    ``source`` is one of ``durably.webhooks``. Each webhook whose signature is valid is sent as an event, and answered
    with 200 when the engine has stored it. Another one gets 401.
    """
    mount = mount_webhook(client, source, path, "webhook")
    _add(app, mount.path, Endpoint(mount, Request), "durably-webhook")


def _add(app: Starlette, path: str, endpoint: Any, name: str, methods: list[str] | None = None) -> None:
    app.router.routes.append(Route(path, endpoint, methods=methods, include_in_schema=False, name=name))
