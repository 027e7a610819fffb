"""Serving functions in a Flask app."""

from collections.abc import Sequence
from typing import Any

try:
    import flask
except ImportError as error:
    raise ImportError('durably.flask needs Flask: pip install "durably[flask]"') from error

from durably.client import Client
from durably.comm import CommHandler, CommRequest
from durably.comm.paths import mount_path
from durably.functions import Function
from durably.settings import Streaming

FRAMEWORK = "flask"


def serve(
    app: flask.Flask,
    client: Client,
    functions: Sequence[Function[Any]],
    *,
    enable_unauthed_sync: bool | None = None,
    public_path: str | None = None,
    serve_origin: str | None = None,
    serve_path: str | None = None,
    streaming: Streaming | None = None,
) -> None:
    """Add the endpoint that engines call, by default at ``/api/inngest``.

    The arguments are those of ``durably.fast_api.serve``. Sync functions run in the request's thread (with
    streaming in a pool), async ones on the process's background event loop.
    """
    handler = CommHandler(
        client=client,
        framework=FRAMEWORK,
        functions=functions,
        streaming=streaming,
        enable_unauthed_sync=enable_unauthed_sync,
    )

    def durably_endpoint() -> flask.Response:
        request = flask.request
        comm_request = CommRequest(
            body=request.get_data(),
            headers=dict(request.headers),
            query_params=request.args,
            raw_request=request,
            request_url=request.url,
            public_path=public_path,
            serve_origin=serve_origin,
            serve_path=serve_path,
        )
        response = handler.handle_sync(request.method, comm_request)
        body = response.body_bytes() if response.stream is None else response.stream_sync()
        return flask.Response(body, response.status_code, response.headers)

    app.add_url_rule(
        mount_path(serve_path),
        "durably",
        durably_endpoint,
        methods=["GET", "POST", "PUT"],
        provide_automatic_options=False,
    )
