"""Serving functions in a Django project."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

try:
    import django.db
    import django.http
    import django.urls
except ImportError as error:
    raise ImportError('durably.django needs Django: pip install "durably[django]"') from error

from asgiref.sync import sync_to_async

from durably.client import Client
from durably.comm import CommHandler, CommRequest, CommResponse
from durably.comm.mounts import Mount, check_mount, mounts_of
from durably.comm.serve_options import StreamingOption, mount_path
from durably.errors import FunctionConfigInvalidError
from durably.functions.function import Function
from durably.io.bodies import UNREADABLE, check_length, is_chunked, read_body
from durably.web.django import SyncAndAsyncView, is_body_read, set_body

from .discovery import discovered, start_with_project

FRAMEWORK = "django"


def serve(
    client: Client,
    functions: Sequence[Function[Any]] | None = None,
    *,
    enable_unauthed_sync: bool | None = None,
    public_path: str | None = None,
    serve_origin: str | None = None,
    serve_path: str | None = None,
    streaming: StreamingOption = None,
) -> django.urls.URLPattern:
    """The URL pattern of the endpoint that engines call, for ``urlpatterns``.

    The default path is ``api/inngest``. With ``durably.django`` in ``INSTALLED_APPS`` the functions of each app's
    ``durable.py`` are served, too. The other arguments are those of ``durably.fast_api.serve``.

    The view is async under ASGI and sync under WSGI. It is exempt from CSRF checks, because requests are signed, and
    from ``ATOMIC_REQUESTS``, because functions define their own transactions. Before 5.0, Django under ASGI does not
    notice a disconnected client of a streamed answer, so the call runs to its end.
    """
    path, mounts, all_functions = mount_path(serve_path), mounts_of(client), _with_discovered(client, functions)
    check_mount(mounts, path, client, all_functions)
    handler = make_handler(
        client,
        all_functions,
        streaming=streaming,
        enable_unauthed_sync=enable_unauthed_sync,
        serve_origin=serve_origin,
        serve_path=serve_path,
        public_path=public_path,
    )
    mounts[path] = Mount(handler)

    def to_request(request: Any) -> CommRequest:
        return CommRequest(
            body=_read_body(request),
            headers=request.headers,
            query_params=request.GET,
            raw_request=request,
            request_url=request.build_absolute_uri,
        )

    view: Any = _make_view(handler, to_request)
    return cast(django.urls.URLPattern, django.urls.path(path.lstrip("/"), view, name="durably"))


def make_handler(client: Client, functions: Sequence[Function[Any]], **options: Any) -> CommHandler:
    """Create the handler. ``options`` are those of ``CommHandler``."""
    handler = CommHandler(
        client=client,
        framework=FRAMEWORK,
        functions=functions,
        thread_context=_usable_connections,
        before_async_call=_drop_broken_connections,
        **options,
    )
    if client.in_process is not None:
        start_with_project(client, client.in_process)
    return handler


def _with_discovered(client: Client, functions: Sequence[Function[Any]] | None) -> Sequence[Function[Any]]:
    if not isinstance(functions, Sequence | None):
        return functions  # CommHandler raises the error
    found = discovered.functions_of(client) if isinstance(client, Client) else []
    if functions is None and not found:
        raise FunctionConfigInvalidError(
            'durably.django.serve(client) without functions needs "durably.django" in INSTALLED_APPS, and functions in '
            "the durable.py of an app; or give the functions: serve(client, [greet])"
        )
    given = list(functions or ())
    return [*given, *(function for function in found if function not in given)]


def _make_view(handler: CommHandler, to_request: Callable[[Any], CommRequest]) -> SyncAndAsyncView:
    def answer(request: Any) -> Any:
        try:
            response = handler.handle_sync(request.method, to_request(request))
        except UNREADABLE as error:
            response = handler.refuse(error)
        return _to_django(response, None if response.stream is None else response.stream_sync())

    async def answer_async(request: Any) -> Any:
        try:
            response = await handler.handle(request.method, to_request(request))
        except UNREADABLE as error:
            response = handler.refuse(error)
        return _to_django(response, None if response.stream is None else response.stream())

    return SyncAndAsyncView(answer, answer_async, csrf_exempt=True)


def _read_body(request: Any) -> bytes:
    """``request.body``, limited to the size of the largest call.

    ``DATA_UPLOAD_MAX_MEMORY_SIZE`` does not apply, because it is meant for forms and too small for calls. Raises the
    errors in ``UNREADABLE``.
    """
    length = request.headers.get("content-length")
    check_length(length)
    if not is_body_read(request):
        environ = getattr(request, "environ", {})  # absent under ASGI
        # Under WSGI, Django takes a chunked body for an empty one.
        read = environ["wsgi.input"].read if is_chunked(environ) else request.read
        set_body(request, read_body(read, length))
    return cast(bytes, request.body)


def _to_django(response: CommResponse, chunks: Any) -> Any:
    if chunks is not None:
        return django.http.StreamingHttpResponse(chunks, status=response.status_code, headers=response.headers)
    return django.http.HttpResponse(response.body, status=response.status_code, headers=response.headers)


@sync_to_async
def _drop_broken_connections() -> None:
    """Close the connections that a database has ended.

    It is called in the thread in which async functions use the ORM. Django does so around a request, but calls of an
    engine in process have no request. Other connections stay open, because concurrent async functions may be reading
    from them.
    """
    for connection in django.db.connections.all(initialized_only=True):
        if connection.errors_occurred:
            connection.close_if_unusable_or_obsolete()


@contextmanager
def _usable_connections() -> Iterator[None]:
    """Close old connections in a worker thread, as Django does around a request."""
    django.db.close_old_connections()
    try:
        yield
    finally:
        django.db.close_old_connections()
