"""Serving functions as a function of Google Cloud, with Google's ``functions-framework``."""

from collections.abc import Sequence
from typing import Any, Unpack

try:
    import flask
except ImportError as error:
    raise ImportError('durably.google_cloud needs Flask: pip install "durably[google-cloud]"') from error

from durably.comm.events import refuse_engine_in_process
from durably.comm.mounts import add_mount, mounts_of
from durably.comm.serve_options import DashboardOptions, DurableEndpointOptions, ServeOptions, StreamsOptions
from durably.functions.function import Function

from .client import Client
from .endpoints import mount_endpoint
from .flask import Endpoint, make_dashboard, make_endpoint, make_streams
from .webhooks import Source, mount_webhook

FRAMEWORK = "google-cloud"
PLATFORM = "Google Cloud Functions"


def serve(client: Client, functions: Sequence[Function[Any]], **options: Unpack[ServeOptions]) -> Endpoint:
    """The ``main(request)`` of a function that answers engines, at every path.

    The options are those of ``durably.starlette.serve``. Sync functions run in the request's thread (with streaming in
    a pool), async ones on a background event loop.
    """
    refuse_engine_in_process(client, PLATFORM)
    return make_endpoint(add_mount(mounts_of(client), FRAMEWORK, client, functions, options))


def webhook(client: Client, source: Source) -> Endpoint:
    """The ``main(request)`` of a function that receives the webhooks of a source, at every path.

    See ``durably.starlette.webhook``.
    """
    refuse_engine_in_process(client, PLATFORM)
    return make_endpoint(mount_webhook(client, source, None, "durably.google_cloud.webhook"))


def endpoint(function: Function[Any], **options: Unpack[DurableEndpointOptions]) -> Endpoint:
    """The ``main(request)`` of a durable endpoint of a function, at every path.

    See ``durably.flask.endpoint``. The engine is elsewhere.
    """
    mount = mount_endpoint(function, "/", "durably.google_cloud.endpoint", **options)
    refuse_engine_in_process(function.client, PLATFORM)
    return make_endpoint(mount)


def dashboard(client: Client, **options: Unpack[DashboardOptions]) -> Endpoint:
    """The ``main(request)`` of a function that is the dashboard of the client's engine, at its root.

    The options are those of ``durably.flask.dashboard``.
    """
    refuse_engine_in_process(client, PLATFORM)
    _, answer = make_dashboard(client, "/", "durably.google_cloud.dashboard", options)

    def main(request: flask.Request) -> flask.Response:
        return answer(request, request.path)

    return main


def streams(client: Client, **options: Unpack[StreamsOptions]) -> Endpoint:
    """The ``main(request)`` of a function that has the streams of runs and other channels for browsers, at every path.

    The options are those of ``durably.flask.streams``. Each stream holds one of the requests that an instance of the
    function answers at a time.
    """
    refuse_engine_in_process(client, PLATFORM)
    return make_streams(client, "/streams", "durably.google_cloud.streams", options)[1]
