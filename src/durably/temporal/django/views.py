"""The gateway as Django views: async under ASGI, sync under WSGI."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import django.http
import django.urls
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http.multipartparser import MultiPartParserError
from django.utils.functional import SimpleLazyObject
from django.views.decorators.csrf import csrf_exempt as without_csrf_check

from durably.django_compat import SyncAndAsyncView
from durably.temporal.codec_server import CodecServer
from durably.temporal.connection import Temporal
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway import Gateway, GatewayRequest, GatewayResponse, iterate_sync
from durably.temporal.gateway.problems import Problem, refused, too_large, unreadable

from .conf import connections, project_secrets
from .csrf import csrf_check
from .permissions import require_codec_permission

Urls = tuple[list[Any], str, str]
Server = Gateway | CodecServer

codec_servers: list[CodecServer] = []
"""Those that the project's URLs mount, for ``manage.py check``."""


def urls(
    gateway: Gateway,
    *,
    namespace: str = "temporal",
    principal: Callable[[Any], Any] | None = None,
    csrf_exempt: bool | None = None,
    title: str = "Workflows",
    docs: bool | str = False,
) -> Urls:
    """The gateway's URLs, for ``path("api/", durably.temporal.django.urls(gateway))``, as with ``admin.site.urls``.

    Their OpenAPI document is at ``openapi.json``. ``authorize`` gets ``request.user`` as ``action.principal`` unless
    ``principal`` gives something else of the request; it may use the ORM. CSRF is checked, where the project's
    middleware does so, unless the gateway allows anonymous use, which has no session to protect; ``csrf_exempt=True``
    is for APIs whose users come with tokens.
    ``docs=True`` adds a page with Swagger UI at ``docs``, whose code comes from a CDN; a URL is that of the app's own
    copy of the npm package ``swagger-ui-dist``.
    """

    def document(request: Any) -> Any:
        mount = request.path.removesuffix("/openapi.json")
        return _to_django(gateway.answer_document(request.method, mount=mount, title=title), None)

    def docs_page(request: Any) -> Any:
        return _to_django(gateway.answer_docs(request.method, title=title, docs=docs), None)

    view: Any = _make_view(gateway, principal, gateway.allow_anonymous if csrf_exempt is None else csrf_exempt)
    patterns = [
        *([django.urls.path("docs", without_csrf_check(docs_page), name="docs")] if docs else []),
        django.urls.path("openapi.json", without_csrf_check(document), name="openapi"),
        django.urls.re_path(r"^(?P<path>[\s\S]*)\Z", view, name="gateway"),
    ]
    return patterns, "durably_temporal", namespace


def codec_urls(
    server: CodecServer | None = None,
    *,
    origins: Sequence[str] = (),
    permission: str = "durably_temporal.view_payloads",
    namespace: str = "temporal-codec",
    principal: Callable[[Any], Any] | None = None,
) -> Urls:
    """A codec server for Temporal's web UI and CLI, for ``path("codec/", codec_urls(origins=[…]))``.

    It decodes for users with ``permission``, in the namespaces of all of the project's connections that have a codec;
    ``manage.py check`` finds a project without any. ``origins`` are the web UI's. ``server`` replaces all of that.
    ``principal`` is as for ``urls``. CSRF is not checked, since the web UI is another site: the server checks the
    origin and the content type.
    """
    if server is None:
        # Not before the first request: a bad setting is an error of `manage.py check`.
        several: Any = SimpleLazyObject(_connections_with_codec)
        server = CodecServer(several, origins=origins, authorize=require_codec_permission(permission))
    elif origins:
        raise TemporalSettingsError("codec_urls: give origins= to the CodecServer, or no server")
    codec_servers.append(server)
    view: Any = _make_view(server, principal, csrf_exempt=True)
    return [django.urls.re_path(r"^(?P<path>[\s\S]*)\Z", view, name="codec")], "durably_temporal_codec", namespace


def _connections_with_codec() -> Sequence[Temporal]:
    """Raises ``TemporalSettingsError`` if none has one."""
    found = [each for each in map(connections.__getitem__, connections) if each.data_converter.payload_codec]
    if not found:
        raise TemporalSettingsError(
            "codec_urls() has nothing to decode with: none of the project's connections to Temporal has a codec. Set "
            'TEMPORAL_ENCRYPTION_KEYS, or TEMPORAL = {"ENCRYPTION_KEYS": […]}: see durably.temporal.encryption'
        )
    return found


def _make_view(server: Server, principal: Callable[[Any], Any] | None, csrf_exempt: bool) -> SyncAndAsyncView:
    is_open = server.allow_anonymous
    principal_of = _nobody if is_open else principal or _user_of
    check_csrf = _let_pass if csrf_exempt else csrf_check()
    may_block = not (is_open and csrf_exempt)

    def read(request: Any, path: str) -> GatewayRequest:
        """Raises a problem."""
        made = _to_gateway(request, path, check_csrf)
        made.principal = principal_of(request)
        return made

    def answer(request: Any, path: str) -> Any:
        try:
            gateway_request = read(request, path)
        except Problem as problem:
            return _to_django(server.refuse(request.method, path, problem), None)
        response = server.handle_sync(gateway_request)
        return _to_django(response, None if response.stream is None else iterate_sync(response.stream()))

    async def answer_async(request: Any, path: str) -> Any:
        try:
            gateway_request = await sync_to_async(read)(request, path) if may_block else read(request, path)
        except Problem as problem:
            return _to_django(server.refuse(request.method, path, problem), None)
        gateway_request.call_blocking = _in_djangos_thread
        response = await server.handle(gateway_request)
        return _to_django(response, None if response.stream is None else response.stream())

    return SyncAndAsyncView(answer, answer_async, csrf_exempt=True)


def _nobody(request: Any) -> None:
    """Where all are allowed it is not worth a thread, a session and a query to know who asks."""


def _let_pass(request: Any) -> None:
    """Where there is no session that pages of other sites could use."""


def _user_of(request: Any) -> Any:
    """``request.user``, evaluated: it is lazy, and later the ORM may be out of reach. Not ``auser``, which does not
    know the user that a middleware of the project's has put there."""
    user = getattr(request, "user", None)
    getattr(user, "is_authenticated", None)
    return user


async def _in_djangos_thread(hook: Callable[[], Any]) -> Any:
    return await sync_to_async(hook)()


def _to_gateway(request: Any, path: str, check_csrf: Callable[[Any], None]) -> GatewayRequest:
    """The body is read before the check, which may look for a token in a form. Raises a problem."""
    try:
        query_params, body = dict(request.GET.lists()), request.body
        is_cut_off = len(body) < int(request.META.get("CONTENT_LENGTH") or 0)
        check_csrf(request)
    except RequestDataTooBig as error:
        raise too_large(settings.DATA_UPLOAD_MAX_MEMORY_SIZE) from error
    except (SuspiciousOperation, MultiPartParserError) as error:
        raise refused(HTTPStatus.BAD_REQUEST) from error
    except (OSError, ValueError) as error:
        raise unreadable() from error
    if is_cut_off:
        raise unreadable()
    return GatewayRequest(
        method=request.method,
        path=path,
        mount=request.path.removesuffix(path).rstrip("/"),
        headers=request.headers,
        query_params=query_params,
        body=body,
        raw_request=request,
        secrets=project_secrets(),
    )


def _to_django(response: GatewayResponse, chunks: Any) -> Any:
    if chunks is not None:
        return django.http.StreamingHttpResponse(chunks, status=response.status_code, headers=response.headers)
    headers = {"Content-Length": str(len(response.body)), **response.headers}
    return django.http.HttpResponse(response.body, status=response.status_code, headers=headers)
