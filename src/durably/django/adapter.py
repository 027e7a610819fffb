"""Serving functions in a Django project: the endpoint, the functions of each ``durable.py``, the engine's start."""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Unpack, cast

try:
    import django.apps
    import django.core.signals
    import django.db
    import django.http
    import django.urls
except ImportError as error:
    raise ImportError('durably.django needs Django: pip install "durably[django]"') from error

from asgiref.sync import sync_to_async
from django.utils.module_loading import module_has_submodule

from durably.browser_streams import hide_token, hide_token_of
from durably.client import Client
from durably.comm import CommHandler, CommRequest, CommResponse
from durably.comm.mounts import Mount, add_mount, mounts_of
from durably.comm.serve_options import DurableEndpointOptions, ServeOptions
from durably.endpoints import mount_endpoint
from durably.engines import InProcessEngine
from durably.errors import FunctionConfigInvalidError
from durably.functions.diagnostics import find_unserved, warn_of_unserved
from durably.functions.function import Function
from durably.web import UNREADABLE, check_length, is_chunked, read_body
from durably.web.django import SyncAndAsyncView, in_djangos_thread, is_body_read, set_body
from durably.webhooks import Source, mount_webhook

FRAMEWORK = "django"


def serve(
    client: Client,
    functions: Sequence[Function[Any]] | None = None,
    **options: Unpack[ServeOptions],
) -> django.urls.URLPattern:
    """The URL pattern of the endpoint that engines call, for ``urlpatterns``.

    The default path is ``api/inngest``. With ``durably.django`` in ``INSTALLED_APPS`` the functions of each app's
    ``durable.py`` are served, too. The other arguments are those of ``durably.starlette.serve``.

    The view is async under ASGI and sync under WSGI. It is exempt from CSRF checks, because requests are signed, and
    from ``ATOMIC_REQUESTS``, because functions define their own transactions. Before 5.0, Django under ASGI does not
    notice a disconnected client of a streamed answer, so the call runs to its end.
    """
    all_functions = _with_discovered(client, functions)
    mount = add_mount(mounts_of(client), FRAMEWORK, client, all_functions, options, **_handler_options())
    if client.in_process is not None:
        start_with_project(client, client.in_process)
    return _pattern(mount, "durably")


def webhook(client: Client, source: Source, path: str | None = None) -> django.urls.URLPattern:
    """The URL pattern of the endpoint of a source of webhooks, by default ``webhooks/NAME``, for ``urlpatterns``.

    See ``durably.starlette.webhook``. The view is async under ASGI and sync under WSGI, and exempt from CSRF checks.
    """
    return _pattern(mount_webhook(client, source, path, "durably.django.webhook"), "durably-webhook")


def endpoint(function: Function[Any], path: str, **options: Unpack[DurableEndpointOptions]) -> django.urls.URLPattern:
    """The URL pattern of a durable endpoint of a function, for ``urlpatterns``.

    See ``durably.starlette.endpoint``. ``authorize`` may use the ORM. The view is async under ASGI and sync under WSGI,
    where a request holds a thread while it waits. It is exempt from CSRF checks, because pages of other sites cannot
    send JSON.
    """
    mount = mount_endpoint(function, path, "durably.django.endpoint", in_djangos_thread, **options)
    return _pattern(mount, "durably-endpoint")


def _pattern(mount: Mount, name: str) -> django.urls.URLPattern:
    def to_request(request: Any) -> CommRequest:
        return CommRequest(
            body=_read_body(request, mount.check_size),
            headers=request.headers,
            query_params=request.GET,
            raw_request=request,
            request_url=request.build_absolute_uri,
        )

    view: Any = _make_view(mount, to_request)
    return cast(django.urls.URLPattern, django.urls.path(mount.path.lstrip("/"), view, name=name))


def _handler_options() -> dict[str, Any]:
    return {"thread_context": _usable_connections, "before_async_call": _drop_broken_connections}


def make_handler(client: Client, functions: Sequence[Function[Any]]) -> CommHandler:
    """Create the handler for functions that no URL serves."""
    handler = CommHandler(client=client, framework=FRAMEWORK, functions=functions, **_handler_options())
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


def _make_view(mount: Mount, to_request: Callable[[Any], CommRequest]) -> SyncAndAsyncView:
    def answer(request: Any) -> Any:
        try:
            response = mount.handler.handle_sync(request.method, to_request(request))
            if mount.has_tokens:
                hide_token_of(request.environ)
        except UNREADABLE as error:
            response = mount.handler.refuse(error)
        return _to_django(response, None if response.stream is None else response.stream_sync())

    async def answer_async(request: Any) -> Any:
        try:
            response = await mount.handler.handle(request.method, to_request(request))
            if mount.has_tokens:
                request.scope["query_string"] = hide_token(request.META["QUERY_STRING"]).encode("latin-1")
        except UNREADABLE as error:
            response = mount.handler.refuse(error)
        return _to_django(response, None if response.stream is None else response.stream())

    return SyncAndAsyncView(answer, answer_async, csrf_exempt=True)


def _read_body(request: Any, check: Callable[[int], None]) -> bytes:
    """``request.body``, limited by ``check``, which refuses a size in bytes.

    ``DATA_UPLOAD_MAX_MEMORY_SIZE`` does not apply, because it is meant for forms and too small for calls. Raises the
    errors in ``UNREADABLE``.
    """
    length = request.headers.get("content-length")
    check_length(length, check)
    if not is_body_read(request):
        environ = getattr(request, "environ", {})  # absent under ASGI
        # Under WSGI, Django takes a chunked body for an empty one.
        read = environ["wsgi.input"].read if is_chunked(environ) else request.read
        set_body(request, read_body(read, length, check=check))
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


MODULE = "durable"

_logger = logging.getLogger("durably.django")


class Discovered:
    """The discovered clients and functions, in the order of ``INSTALLED_APPS``."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.modules: list[ModuleType] = []
        self._functions: dict[str, list[Function[Any]]] = {}

    def find(self) -> None:
        """Import the modules.

        Raises ``FunctionConfigInvalidError`` for a function whose client is in no such module.
        """
        self.clients.clear()
        self._functions.clear()
        self.modules = list(_modules())
        clients = {
            id(value): value for module in self.modules for value in vars(module).values() if isinstance(value, Client)
        }
        self.clients.extend(clients.values())
        app_ids = {client.app_id for client in self.clients}
        for module in self.modules:
            for name, value in vars(module).items():
                # A list is what integrations make, such as that of Celery's tasks.
                for each in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(each, Function):
                        self._add(each, f"{module.__name__}.{name}", app_ids)

    def functions_of(self, client: Client) -> list[Function[Any]]:
        return list(self._functions.get(client.app_id, ()))

    def _add(self, function: Function[Any], name: str, app_ids: set[str]) -> None:
        app_id = function.opts.app_id
        if app_id not in app_ids:
            raise FunctionConfigInvalidError(
                f"{name} is a function of the app {app_id!r}, whose client is in no {MODULE}.py: import it there"
            )
        self.add(function)

    def add(self, function: Function[Any]) -> None:
        functions = self._functions.setdefault(function.opts.app_id, [])
        if function not in functions:
            functions.append(function)


def _modules() -> Iterator[ModuleType]:
    """Import the modules that exist. Errors in a module are raised."""
    for config in django.apps.apps.get_app_configs():
        if module_has_submodule(config.module, MODULE):
            yield importlib.import_module(f"{config.name}.{MODULE}")


def report_unserved(**_: Any) -> None:
    """Warn of functions that are in no ``durable.py`` and no ``serve``.

    It is called after the first request, which has loaded ``urls.py``. Without functions the engine of this process
    does not start, and sleeping runs do not continue.
    """
    django.core.signals.request_finished.disconnect(report_unserved)
    warn_of_unserved(find_unserved(is_in_process=True), _logger)


discovered = Discovered()
"""Filled once all apps are loaded, if ``durably.django`` is installed."""


def start_with_project(client: Client, engine: InProcessEngine) -> None:
    """Start the engine with the server, or with the first request to any URL.

    The request starts it if the server is unknown. If the first request loads ``urls.py``, the engine starts at the
    request's end, and a warning names the way to start with the server.
    """
    was_loaded_before_requests = False

    def start_at_begin(**_: Any) -> None:
        nonlocal was_loaded_before_requests
        was_loaded_before_requests = True
        engine.start_with_request()

    def start_at_end(**_: Any) -> None:
        nonlocal was_loaded_before_requests
        if engine.start_with_request() and not was_loaded_before_requests:
            was_loaded_before_requests = True
            client.logger.warning(
                "the engine of the app %r starts only now, because Django has loaded urls.py with the first request. "
                "Until then no runs continue. To start the engine with the server, write "
                'INSTALLED_APPS += ["durably.django"] in the settings, and put the functions and their client into '
                "the durable.py of an installed app",
                client.app_id,
            )

    django.core.signals.request_started.connect(start_at_begin, weak=False)
    django.core.signals.request_finished.connect(start_at_end, weak=False)
    engine.start_with_server()
