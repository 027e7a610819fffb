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
        surroundings=app.app_context,
    )

    def answer() -> flask.Response:
        # The request itself, not the proxy: it stays what it is in other threads.
        request = flask.request._get_current_object()  # type: ignore[attr-defined]
        comm_request = CommRequest(
            body=request.get_data(),
            headers=dict(request.headers.items()),
            query_params=request.args,
            raw_request=request,
            request_url=lambda: request.url,
            public_path=public_path,
            serve_origin=serve_origin,
            serve_path=serve_path,
        )
        response = handler.handle_sync(request.method, comm_request)
        if response.stream is None:
            return flask.Response(response.body_bytes(), response.status_code, response.headers)
        return flask.Response(flask.stream_with_context(response.stream_sync()), response.status_code, response.headers)

    if client.in_process is not None:
        app.before_request(client.in_process.ensure_started)
        client.in_process.start_when_served()
    path = mount_path(serve_path)
    app.add_url_rule(path, f"durably:{path}", answer, methods=["GET", "POST", "PUT"])
