"""The gateway in a FastAPI app, and errors of Temporal."""

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
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
    from pydantic import BaseModel, SkipValidation
    from starlette.routing import Match as RouteMatch
except ImportError as error:
    raise ImportError('durably.temporal.fast_api needs FastAPI: pip install "durably[fast-api,temporal]"') from error

from durably.temporal.gateway.endpoints import PROBLEM, PROBLEMS, SUCCESSES, Bodies, Endpoint
from durably.temporal.gateway.problems import MEDIA_TYPE, Problem, invalid_values
from durably.web import METHODS
from durably.web.starlette import to_response

from .gateway import Gateway
from .starlette import add_exception_handlers, answer

__all__ = ["add_exception_handlers", "router"]

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
    made = fastapi.APIRouter(prefix=prefix, dependencies=list(dependencies), include_in_schema=include_in_schema)
    # First, because the first one of several partial matches is used. Without a prefix, only paths that start with the
    # name of an exposure are the gateway's.
    for place in [""] if prefix else [f"/{name}" for name in gateway.exposures]:
        for path in (place, f"{place}/{{rest:path}}"):
            made.add_api_route(
                path,
                _make_view(gateway, principal, path.replace(":path", "")),
                methods=list(METHODS),
                include_in_schema=False,
                response_model=None,
                route_class_override=_route_class(gateway, None),
            )
    for endpoint in gateway.endpoints:
        required = (
            {"requestBody": {"required": True}} if endpoint.body is not None and endpoint.body.is_required else {}
        )
        view = _make_view(
            gateway,
            principal,
            endpoint.path,
            [*_documented_parameters(endpoint), *_documented_schemes(gateway)],
        )
        view.__name__ = endpoint.operation_id
        made.add_api_route(
            endpoint.path,
            view,
            methods=[endpoint.method],
            operation_id=endpoint.operation_id,
            summary=endpoint.summary,
            description=endpoint.description or None,
            tags=list(tags or [endpoint.exposure.name]),
            responses=_documented_responses(endpoint),
            status_code=int(next(iter(endpoint.responses))),
            response_class=StreamingResponse if Bodies.STREAM in endpoint.responses.values() else JSONResponse,
            response_model=None,
            openapi_extra=required,
            route_class_override=_route_class(gateway, endpoint),
        )
    return made


def _make_view(
    server: Gateway,
    principal: Callable[..., Any] | None,
    path: str,
    documented: Sequence[inspect.Parameter] = (),
) -> Callable[..., Any]:
    """A view for a path below the mount point. The server validates the ``documented`` parameters itself."""

    async def view(request: fastapi.Request, principal: Any = None, **documented: Any) -> fastapi.Response:
        inner = path.format(**request.path_params)
        return await answer(server, request, inner, principal, request.scope.get(_APP_PARAMETERS, ()))

    parameters = [_keyword("request", fastapi.Request), *documented]
    if principal is not None:
        parameters.append(_keyword("principal", Annotated[Any, fastapi.Depends(principal)]))
    view.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return view


_APP_PARAMETERS = "durably.app_parameters"
_IS_ASKED = "durably.is_asked_for_body"


class _Request(fastapi.Request):
    """A request for FastAPI, which first asks for the body, to parse it.

    It gets none: the gateway parses it, within its limits and after the dependencies, which can read it too.
    """

    async def body(self) -> bytes:
        # In the scope, which the copies of a request share.
        if self.scope.setdefault(_IS_ASKED, False):
            return await super().body()
        self.scope[_IS_ASKED] = True
        return b""


def _route_class(gateway: Gateway, endpoint: Endpoint | None) -> type[APIRoute]:
    """The class of the route for an endpoint, or for all other paths and methods of the gateway."""

    class GatewayRoute(APIRoute):
        def get_route_handler(self) -> _Handle:
            """A handler that returns problems for errors in parameters of dependencies."""
            handle, names = super().get_route_handler(), _query_names(self.dependant)
            has_body = self.body_field is not None

            async def handle_with_problems(request: fastapi.Request) -> fastapi.Response:
                request.scope[_APP_PARAMETERS] = names
                if has_body:
                    request = _Request(request.scope, request.receive)
                try:
                    return await handle(request)
                except RequestValidationError as error:
                    problem = invalid_values([{**found, "loc": found["loc"][1:]} for found in error.errors()])
                try:
                    if endpoint is not None:  # A parameter may be missing because its name is misspelt.
                        query = {name: request.query_params.getlist(name) for name in request.query_params}
                        endpoint.check_names(query, names)
                except Problem as found:
                    problem = found
                return to_response(gateway.refuse(request.method, "", problem))

            return handle_with_problems

        def matches(self, scope: Any) -> tuple[RouteMatch, Any]:
            """The app's own routes precede those that are not for an endpoint."""
            match, child_scope = super().matches(scope)
            is_partial = match is RouteMatch.FULL and endpoint is None
            return (RouteMatch.PARTIAL if is_partial else match), child_scope

    return GatewayRoute


def _query_names(dependant: Dependant) -> frozenset[str]:
    """Names of the query parameters of a view and its dependencies."""
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


# The app's document


def _documented_parameters(endpoint: Endpoint) -> list[inspect.Parameter]:
    """Parameters that FastAPI passes as they are."""
    places: Any = {"query": fastapi.Query, "header": fastapi.Header, "path": fastapi.Path}
    parameters = []
    for number, each in enumerate(endpoint.parameters):
        if each.place == "path":
            parameters.append(_keyword(each.name, Annotated[each.type, fastapi.Path()]))
            continue
        place = places[each.place](alias=each.name, description=each.description or None)
        hint = each.type if each.is_required or each.default is not None else each.type | None
        default = inspect.Parameter.empty if each.is_required else each.default
        parameters.append(_keyword(f"parameter_{number}", Annotated[hint, SkipValidation, place], default))
    if (body := endpoint.body) is not None and not body.is_empty:
        parameters.append(_keyword("body", Annotated[body.type, fastapi.Body()], None))
    return parameters


def _keyword(name: str, hint: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)


def _documented_schemes(gateway: Gateway) -> list[inspect.Parameter]:
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


def _documented_responses(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    contents: Mapping[Any, dict[str, Any]] = {
        Bodies.NONE: {},
        Bodies.STREAM: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    }
    responses: dict[int | str, dict[str, Any]] = {
        int(status): {
            "description": SUCCESSES[status],
            **(contents[body] if isinstance(body, Bodies) else {"model": body}),
        }
        for status, body in endpoint.responses.items()
    }
    reference = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{PROBLEM.__name__}"}}}
    for status in (*PROBLEMS, *endpoint.route.problems):
        responses[int(status)] = {"description": HTTPStatus(status).phrase, "content": reference}
    # FastAPI puts the model of this one among the components.
    responses["default"] = {"description": "A problem", "model": PROBLEM}
    return responses
