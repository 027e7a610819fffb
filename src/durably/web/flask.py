"""What Flask's adapter, dashboard and gateway share."""

import io
from collections.abc import Callable
from typing import Any

import flask
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException
from werkzeug.routing import PathConverter

from durably.io.background_loop import iterate_sync
from durably.web import read_body as read_in_chunks

from . import METHODS, ServerResponse, header_pairs


class AnyPath(PathConverter):
    """Matches any path, also with empty segments: the server reports errors in it."""

    regex = r"[\s\S]*?"
    part_isolating = False


ANY_PATH = "durably_any_path"


def add_rule(blueprint: flask.Blueprint, view: Callable[[str], flask.Response], endpoint: str) -> None:
    """A rule for all paths and methods of a blueprint.

    ``view`` is called with the path after the mount point, which begins with a slash.
    """

    def answer(path: str) -> flask.Response:
        return view(f"/{path}")

    def add_converter(state: BlueprintSetupState) -> None:
        state.app.url_map.converters[ANY_PATH] = AnyPath

    blueprint.record(add_converter)
    blueprint.add_url_rule(
        f"/<{ANY_PATH}:path>",
        endpoint,
        answer,
        methods=list(METHODS),
        merge_slashes=False,
        provide_automatic_options=False,
    )


def read_body(request: flask.Request, check: Callable[[int], None], errors: tuple[type[Exception], ...] = ()) -> bytes:
    """Read the body, which the app's own code can read again.

    ``check`` raises one of ``errors`` for a size in bytes that is too large. Raises ``HTTPException``,
    ``BodyInvalidError`` and ``OSError``. Werkzeug has no limit for a body in chunks.
    """
    if request.content_length is not None:
        check(request.content_length)
        return request.get_data()
    body = read_in_chunks(request.stream.read, None, (HTTPException, *errors), check)
    request.__dict__["stream"] = io.BytesIO(body)  # the cached property
    return body


def mount_point(request: flask.Request, inner: str) -> str:
    """The path before ``inner``, which is the path after the mount point."""
    return request.script_root + request.path.removesuffix(inner).rstrip("/")


def to_response(response: ServerResponse) -> flask.Response:
    # For HEAD, Werkzeug would replace Content-Length by that of an empty body.
    content: Any = response.body or None if response.stream is None else iterate_sync(response.stream())
    return flask.Response(content, response.status_code, list(header_pairs(response)))


def current_object(proxy: Any) -> Any:
    """The object behind a ``LocalProxy`` such as ``flask.request``.

    Other threads can use it.
    """
    return proxy._get_current_object()


def run_with_reloader(run: Callable[[], None]) -> None:
    """Call ``run``, and restart the process when source changes.

    Raises ``RuntimeError``.
    """
    try:
        from werkzeug._reloader import run_with_reloader as run_reloaded
    except ImportError as error:
        raise RuntimeError(
            "--reload does not work with this version of Werkzeug, which has no werkzeug._reloader.run_with_reloader: "
            "run the command without it"
        ) from error
    # Watchdog also queues each opening of a file of Python's library, and loses changes if many programs start.
    run_reloaded(run, reloader_type="stat")
