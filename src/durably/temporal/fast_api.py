"""The gateway in a FastAPI app, and errors of Temporal."""

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any

try:
    import fastapi
    from fastapi.dependencies.models import Dependant
    from fastapi.exceptions import RequestValidationError
    from fastapi.openapi.models import APIKey, APIKeyIn
    from fastapi.openapi.models import SecurityBase as SecurityBaseModel
    from fastapi.responses import JSONResponse, StreamingResponse
    from fastapi.routing import APIRoute
    from fastapi.security.base import SecurityBase
    from pydantic import BaseModel
except ImportError as error:
    raise ImportError('durably.temporal.fast_api needs FastAPI: pip install "durably[fast-api,temporal]"') from error

from durably.temporal.gateway.endpoints import NO_BODY, PROBLEM, SUCCESSES, Endpoint, EndpointParameter, Match
from durably.temporal.gateway.problems import MEDIA_TYPE, Problem, invalid_input
from durably.web.starlette import to_response

from .codec_server import CodecOperation, CodecServer
from .gateway import Gateway
from .starlette_messages import add_exception_handlers, answer, to_request

__all__ = ["add_exception_handlers", "codec_router", "router"]

_CODEC_METHODS = ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"]

_PLACES: dict[str, Any] = {"query": fastapi.Query, "header": fastapi.Header, "path": fastapi.Path}
_Handle = Callable[[fastapi.Request], Coroutine[Any, Any, fastapi.Response]]


def router(
    gateway: Gateway,
    *,
    prefix: str = "",
    principal: Callable[..., Any] | None = None,
    dependencies: Sequence[Any] = (),
    tags: Sequence[str] | None = None,
    include_in_schema: bool = True,
) -> fastapi.APIRouter:
    """The gateway's endpoints, typed in the app's document, for ``include_router``.

    ``principal`` is a dependency: ``authorize`` gets its value as ``action.principal``. ``dependencies`` run before
    each request, as in any router.
    """
    made = fastapi.APIRouter(
        prefix=prefix,
        dependencies=list(dependencies),
        include_in_schema=include_in_schema,
    )
    _add_fallbacks(made, gateway, prefix, principal)
    for endpoint in gateway.endpoints:
        made.add_api_route(
            endpoint.path,
            _documented_view(gateway, endpoint, principal),
            methods=[endpoint.method],
            operation_id=endpoint.operation_id,
            summary=endpoint.summary,
            description=endpoint.description or None,
            tags=list(tags or [endpoint.exposure.name]),
            responses=_responses(endpoint),
            status_code=int(next(iter(endpoint.responses))),
            response_class=StreamingResponse if None in endpoint.responses.values() else JSONResponse,
            response_model=None,
            route_class_override=_route_class(gateway, _view(gateway, endpoint, principal)),
        )
    return made


def codec_router(
    server: CodecServer,
    *,
    prefix: str = "",
    principal: Callable[..., Any] | None = None,
    dependencies: Sequence[Any] = (),
) -> fastapi.APIRouter:
    """A codec server for Temporal's web UI and CLI: ``/encode`` and ``/decode``.

    ``principal`` and ``dependencies`` are as for ``router``. Preflight requests run neither. Raises
    ``TemporalSettingsError`` for a connection without a codec.
    """
    server.check()
    made = fastapi.APIRouter(prefix=prefix, include_in_schema=False)

    async def preflight(request: fastapi.Request) -> fastapi.Response:
        return await answer(server, request, _last_segment(request), None)

    async def view(request: fastapi.Request, principal: Any = None) -> fastapi.Response:
        return await answer(server, request, _last_segment(request), principal)

    view.__signature__ = inspect.Signature(_common_parameters(principal))  # type: ignore[attr-defined]
    for operation in CodecOperation:
        path = f"/{operation}"
        made.add_api_route(path, preflight, methods=["OPTIONS"], response_model=None)
        made.add_api_route(path, view, methods=_CODEC_METHODS, dependencies=list(dependencies), response_model=None)
    return made


def _last_segment(request: fastapi.Request) -> str:
    return "/" + request.url.path.rpartition("/")[2]


def _route_class(gateway: Gateway, view: Callable[..., Any]) -> type[APIRoute]:
    """A route with types of another view in the document. The gateway validates."""

    class GatewayRoute(APIRoute):
        def get_route_handler(self) -> _Handle:
            served = APIRoute(
                self.path,
                view,
                dependencies=self.dependencies,
                dependency_overrides_provider=self.dependency_overrides_provider,
                response_model=None,
            )
            return _with_problems(gateway, served.get_route_handler(), _query_names(served.dependant))

    return GatewayRoute


def _add_fallbacks(
    router: fastapi.APIRouter, gateway: Gateway, prefix: str, principal: Callable[..., Any] | None
) -> None:
    """Routes for paths and methods that are not endpoints: they return problems.

    They have no real method and so match each request partially: the app's own routes have precedence. They are the
    first routes of the router: an endpoint with another method matches partially too, and the first match is used.
    """

    class FallbackRoute(APIRoute):
        def get_route_handler(self) -> _Handle:
            return _with_problems(gateway, super().get_route_handler(), _query_names(self.dependant))

        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    # Without a prefix, only paths that start with the name of an exposure are the gateway's.
    names = dict.fromkeys(endpoint.exposure.name for endpoint in gateway.endpoints)
    for place in [""] if prefix else [f"/{name}" for name in names]:
        for path in (place, f"{place}/{{rest:path}}"):
            router.add_api_route(
                path,
                _fallback_view(gateway, place, principal),
                methods=["none"],
                include_in_schema=False,
                response_model=None,
                route_class_override=FallbackRoute,
            )


def _query_names(dependant: Dependant) -> frozenset[str]:
    """Names of the query parameters of the app's dependencies."""
    names: set[str] = set()
    for field in dependant.query_params:
        model: Any = field.field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            names |= {each.alias or name for name, each in model.model_fields.items()}
        else:
            names.add(field.alias)
    scheme = getattr(dependant.call, "model", None)
    if isinstance(scheme, APIKey) and scheme.in_ is APIKeyIn.query:
        names.add(scheme.name)
    return frozenset(names).union(*map(_query_names, dependant.dependencies))


_APP_PARAMETERS = "durably.app_parameters"


def _with_problems(gateway: Gateway, handle: _Handle, app_parameters: frozenset[str]) -> _Handle:
    """A handler that returns problems for errors in parameters of dependencies."""

    async def handle_with_problems(request: fastapi.Request) -> fastapi.Response:
        request.scope[_APP_PARAMETERS] = app_parameters
        try:
            return await handle(request)
        except RequestValidationError as error:
            problem = invalid_input([{**found, "loc": found["loc"][1:]} for found in error.errors()])
            return to_response(gateway.refuse(request.method, "", problem))

    return handle_with_problems


def _documented_view(gateway: Gateway, endpoint: Endpoint, principal: Callable[..., Any] | None) -> Callable[..., Any]:
    """A view with the types of the document. It is never called."""

    def view() -> None: ...

    view.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*_parameters(endpoint, principal), *_schemes(gateway)]
    )
    view.__name__ = endpoint.operation_id
    return view


def _schemes(gateway: Gateway) -> list[inspect.Parameter]:
    return [
        _keyword(f"scheme_{number}", Annotated[None, fastapi.Depends(_DocumentedScheme(name, scheme))])
        for number, (name, scheme) in enumerate(gateway.security_schemes.items())
    ]


class _DocumentedScheme(SecurityBase):
    """A security scheme in the app's document. ``authorize`` must enforce it."""

    def __init__(self, name: str, scheme: Mapping[str, Any]) -> None:
        self.scheme_name = name
        self.model = SecurityBaseModel.model_validate(scheme)

    async def __call__(self) -> None: ...


def _view(gateway: Gateway, endpoint: Endpoint, principal: Callable[..., Any] | None) -> Callable[..., Any]:
    segments = endpoint.path.count("/")

    async def view(request: fastapi.Request, principal: Any = None) -> fastapi.Response:
        try:
            made = await to_request(gateway, request, principal, segments=segments)
        except Problem as problem:
            return to_response(gateway.refuse(request.method, endpoint.path, problem))
        made.app_parameters = request.scope[_APP_PARAMETERS]
        return to_response(await gateway.handle(made, Match(endpoint, request.path_params)))

    view.__signature__ = inspect.Signature(_common_parameters(principal))  # type: ignore[attr-defined]
    view.__name__ = endpoint.operation_id
    return view


def _fallback_view(gateway: Gateway, place: str, principal: Callable[..., Any] | None) -> Callable[..., Any]:
    async def view(request: fastapi.Request, principal: Any = None) -> fastapi.Response:
        path = f"{place}/{request.path_params.get('rest', '')}"
        return await answer(gateway, request, path, principal, request.scope[_APP_PARAMETERS])

    view.__signature__ = inspect.Signature(_common_parameters(principal))  # type: ignore[attr-defined]
    return view


def _parameters(endpoint: Endpoint, principal: Callable[..., Any] | None) -> list[inspect.Parameter]:
    parameters = _common_parameters(principal)
    for number, parameter in enumerate(endpoint.parameters):
        parameters.append(_parameter(f"parameter_{number}", parameter))
    if (body := endpoint.body) is not None and not body.is_empty:
        default = inspect.Parameter.empty if body.is_required else None
        parameters.append(_keyword("body", Annotated[body.type, fastapi.Body()], default))
    return parameters


def _common_parameters(principal: Callable[..., Any] | None) -> list[inspect.Parameter]:
    parameters = [_keyword("request", fastapi.Request)]
    if principal is not None:
        parameters.append(_keyword("principal", Annotated[Any, fastapi.Depends(principal)]))
    return parameters


def _parameter(name: str, parameter: EndpointParameter) -> inspect.Parameter:
    place = _PLACES[parameter.place](alias=parameter.name, description=parameter.description or None)
    if parameter.place == "path":
        return _keyword(parameter.name, Annotated[parameter.type, fastapi.Path()])
    default = inspect.Parameter.empty if parameter.is_required else parameter.default
    hint = parameter.type if default is not None else parameter.type | None
    return _keyword(name, Annotated[hint, place], default)


def _keyword(name: str, hint: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)


def _responses(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {}
    for status, body in endpoint.responses.items():
        stream = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
        content = {} if body is NO_BODY else stream if body is None else {"model": body}
        responses[int(status)] = {"description": SUCCESSES[status], **content}
    reference = {"$ref": f"#/components/schemas/{PROBLEM.__name__}"}
    for status in endpoint.problems:
        responses[int(status)] = {"description": status.phrase, "content": {MEDIA_TYPE: {"schema": reference}}}
    # FastAPI puts the model of this one among the components.
    responses["default"] = {"description": "A problem", "model": PROBLEM}
    return responses
