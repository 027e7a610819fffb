"""The gateway's table of routes, and what a route is for one exposure, for routing, OpenAPI and FastAPI.

A ``Route`` is a row of the table. An ``Endpoint`` is a route of one exposure, with the name of a signal, query or
update filled in: each has its own path and types.
"""

import datetime as dt
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from http import HTTPStatus
from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from temporalio.common import SearchAttributeKey

from .exposure import Exposure, Operation, type_name
from .inputs import Handler, JsonBody, check_id
from .messages import (
    Accepted,
    Completed,
    Description,
    GatewayResponse,
    HistoryPage,
    Page,
    ProblemDocument,
    QueryAnswer,
    RawHistoryPage,
    Reason,
    ResetRequest,
    Started,
    UpdateAccepted,
    UpdateDone,
    WorkflowStatus,
)
from .problems import Problem, invalid_values, not_found, shorten

PROBLEM = ProblemDocument
SUCCESSES = {
    HTTPStatus.OK: "Done",
    HTTPStatus.ACCEPTED: "Accepted",
    HTTPStatus.NO_CONTENT: "The stream has ended",
}
PROBLEMS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.FAILED_DEPENDENCY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
"""Statuses of problems that every endpoint can have."""


@dataclass(frozen=True)
class EndpointParameter:
    name: str
    place: Literal["query", "header", "path"]
    type: Any
    description: str = ""
    default: Any = None
    is_required: bool = False

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.type)


class Key(Enum):
    """The meaning of an ``Idempotency-Key`` for an endpoint."""

    USED = "used"
    IGNORED = "ignored"
    """A repeated request has no further effect."""
    REFUSED = "refused"
    """A repeated request has a further effect, and the server cannot recognise it."""


class Bodies(Enum):
    """Bodies that depend on the exposure."""

    INPUT = "input"
    """The input of the workflow, or of the signal, query or update in the path."""
    WITH_START = "with_start"
    """The inputs of the workflow and the signal."""
    STREAM = "stream"
    """Server-sent events."""
    NONE = "none"


@dataclass(frozen=True)
class Route:
    """A row of the table.

    ``template`` follows the exposure's name; ``{name}`` is the name of a signal, query or update. In ``summary``,
    ``{workflow}``, ``{exposure}`` and ``{name}`` are names. ``responses`` has the type of the body for each status that
    is not a problem. Those of ``Completed``, ``QueryAnswer`` and ``UpdateDone`` contain the result of the workflow,
    query or update.
    """

    operation: Operation
    method: str
    template: str
    summary: str
    responses: Mapping[HTTPStatus, type[BaseModel] | Bodies]
    parameters: tuple[EndpointParameter, ...] = ()
    body: type[BaseModel] | Bodies = Bodies.NONE
    key: Key = Key.IGNORED
    problems: tuple[HTTPStatus, ...] = ()


# The table of endpoints, in the order of routing

OK, ACCEPTED = HTTPStatus.OK, HTTPStatus.ACCEPTED

_RUN = EndpointParameter("run_id", "query", str, "A run of the workflow; by default the latest.")
_WAIT = EndpointParameter("wait", "query", Annotated[int, Field(ge=0)], "Seconds to wait for a result.", 0)
_PREFER = EndpointParameter("Prefer", "header", str, "wait=N waits N seconds for the result.")
_KEY = EndpointParameter("Idempotency-Key", "header", str, "A repeated request with this key is executed once.")
_PAGE = EndpointParameter("page", "query", str, "The next_page of the previous page.")
_LAST_EVENT = EndpointParameter("Last-Event-ID", "header", str, "The id of the last event that was received.")


def _page_size(maximum: int, default: int) -> EndpointParameter:
    kind = Annotated[int, Field(ge=1, le=maximum)]
    return EndpointParameter("page_size", "query", kind, f"1 to {maximum}.", default)


_STATUSES: Any = Literal[tuple(each for each in get_args(WorkflowStatus) if each != "unknown")]
_LIST = (
    EndpointParameter("status", "query", _STATUSES),
    EndpointParameter("started_after", "query", AwareDatetime, "With an offset from UTC."),
    EndpointParameter("started_before", "query", AwareDatetime, "With an offset from UTC."),
    _page_size(500, 50),
    _PAGE,
)
_UNSUPPORTED = (HTTPStatus.NOT_IMPLEMENTED,)

# fmt: off
ROUTES = (
    Route(Operation.START, "POST", "", "Start {workflow}",
          {ACCEPTED: Started, OK: Completed}, (_KEY, _PREFER), Bodies.INPUT, Key.USED),
    Route(Operation.LIST, "GET", "", "List {exposure}",
          {OK: Page}, _LIST),
    # Before the routes with an id, which it shadows.
    Route(Operation.SIGNAL_WITH_START, "POST", "signal-with-start/{name}",
          "Signal {name}, and first start {workflow} if it is not running",
          {ACCEPTED: Accepted}, (_KEY,), Bodies.WITH_START, Key.USED),
    Route(Operation.DESCRIBE, "GET", "{workflow_id}", "Status, times and pending activities",
          {OK: Description}, (_RUN,)),
    Route(Operation.RESULT, "GET", "{workflow_id}/result", "The result, as soon as it is known",
          {OK: Completed, ACCEPTED: Started}, (_RUN, _WAIT)),
    Route(Operation.SIGNAL, "POST", "{workflow_id}/signals/{name}", "Signal {name}",
          {ACCEPTED: Accepted}, (_RUN, _KEY), Bodies.INPUT, Key.USED),
    Route(Operation.QUERY, "GET", "{workflow_id}/queries/{name}", "Query {name}",
          {OK: QueryAnswer}, (_RUN,)),
    Route(Operation.QUERY, "POST", "{workflow_id}/queries/{name}", "Query {name}",
          {OK: QueryAnswer}, (_RUN,), Bodies.INPUT),
    Route(Operation.UPDATE, "POST", "{workflow_id}/updates/{name}", "Update {name}",
          {OK: UpdateDone, ACCEPTED: UpdateAccepted}, (_RUN, _KEY, _PREFER), Bodies.INPUT, Key.USED),
    Route(Operation.UPDATE, "GET", "{workflow_id}/updates/{name}/{update_id}",
          "The result of an update {name}",
          {OK: UpdateDone, ACCEPTED: UpdateAccepted}, (_RUN, _WAIT)),
    Route(Operation.CANCEL, "POST", "{workflow_id}/cancel", "Request its cancellation",
          {ACCEPTED: Accepted}, (_RUN,), Reason),
    Route(Operation.TERMINATE, "POST", "{workflow_id}/terminate", "End it immediately",
          {ACCEPTED: Accepted}, (_RUN,), Reason),
    Route(Operation.RESET, "POST", "{workflow_id}/reset", "Continue from an earlier point, in a new run",
          {ACCEPTED: Accepted}, (_RUN,), ResetRequest, Key.REFUSED),
    Route(Operation.PAUSE, "POST", "{workflow_id}/pause", "Pause it until it is resumed",
          {ACCEPTED: Accepted}, (_RUN,), Reason, problems=_UNSUPPORTED),
    Route(Operation.RESUME, "POST", "{workflow_id}/resume", "Resume it after a pause",
          {ACCEPTED: Accepted}, (_RUN,), Reason, problems=_UNSUPPORTED),
    Route(Operation.HISTORY, "GET", "{workflow_id}/history", "Its events, in brief",
          {OK: HistoryPage}, (_RUN, _page_size(1000, 100), _PAGE)),
    Route(Operation.RAW_HISTORY, "GET", "{workflow_id}/history/raw",
          "Its events with inputs and results, for replayers",
          {OK: RawHistoryPage}, (_RUN, _page_size(1000, 1000), _PAGE)),
    Route(Operation.EVENTS, "GET", "{workflow_id}/events", "Live progress, as server-sent events",
          {OK: Bodies.STREAM, HTTPStatus.NO_CONTENT: Bodies.NONE}, (_RUN, _LAST_EVENT)),
)
# fmt: on


_SUFFIXES: Mapping[Any, str] = {Completed: "Result", QueryAnswer: "Answer", UpdateDone: "Done"}
_ID_NAMES = {"workflow_id": "the workflow id", "update_id": "the update id"}


class Endpoint:
    """A route of an exposure. ``label``, without ids, is for logs and metrics.

    ``body`` is ``None`` for requests without one.
    """

    def __init__(self, route: Route, exposure: Exposure, handler: Handler | None) -> None:
        self.route, self.exposure, self.handler = route, exposure, handler
        self.operation, self.method, self.workflow_type = route.operation, route.method, exposure.workflow_type
        name = "" if handler is None else handler.name
        segments = [part.replace("{name}", name) for part in route.template.split("/") if part]
        self.literals = tuple(None if part in ("{workflow_id}", "{update_id}") else part for part in segments)
        """The segments of the path after the exposure's name; ``None`` for an id."""
        self.id_names = tuple(part[1:-1] for part, text in zip(segments, self.literals, strict=True) if text is None)
        self.path = "/" + "/".join([exposure.name, *segments])
        self.label = f"{self.method} {self.path}".replace("{workflow_id}", "{id}")
        self.summary = route.summary.format(workflow=self.workflow_type, exposure=exposure.name, name=name)
        self.takes_arguments = self.operation is Operation.QUERY and self.method == "GET"
        """Whether the arguments of a query are query parameters."""
        # A GET in addition to a POST of the same operation.
        is_second = self.method == "GET" and self.operation in (Operation.QUERY, Operation.UPDATE)
        words = [self.operation.value, exposure.name, name, "get" if is_second else ""]
        self.operation_id = "_".join(word.replace("-", "_") for word in words if word)
        self.body = self._make_body()

    def _make_body(self) -> JsonBody | None:
        match self.route.body:
            case Bodies.NONE:
                return None
            case Bodies.INPUT:
                return self.subject.body
            case Bodies.WITH_START:
                assert self.handler is not None, "the path has its name"
                title = f"{type_name(self.exposure.name)}And{type_name(self.handler.name)}Input"
                config = ConfigDict(extra="forbid", validate_default=True)
                fields: Any = {"input": self.exposure.run.as_field, "signal": self.handler.as_field}
                return JsonBody.of_model(create_model(title, __config__=config, **fields))
            case model:
                return JsonBody.of_model(model)  # type: ignore[arg-type]

    @property
    def subject(self) -> Handler:
        """The signal, query or update in the path, or the run method."""
        return self.handler or self.exposure.run

    @property
    def description(self) -> str:
        if self.handler is not None:
            return self.handler.doc
        return self.exposure.doc if self.operation is Operation.START else ""

    @cached_property
    def responses(self) -> Mapping[HTTPStatus, Any]:
        """The type of the body for each status, or a member of ``Bodies``."""
        name = "" if self.handler is None else type_name(self.handler.name)
        return {
            # Pydantic would name it ``Completed_Receipt_``.
            status: _renamed(f"{type_name(self.exposure.name)}{name}{_SUFFIXES[body]}", body[self.subject.result])  # type: ignore[index]
            if body in _SUFFIXES
            else body
            for status, body in self.route.responses.items()
        }

    @cached_property
    def parameters(self) -> Sequence[EndpointParameter]:
        made = [EndpointParameter(name, "path", str, is_required=True) for name in self.id_names]
        made += self.route.parameters
        if self.operation is Operation.LIST:
            if self.exposure.owner is not None:
                about = "The owner, for principals that see workflows of several."
                made.append(EndpointParameter("owner", "query", str, about))
            for key in filter_keys(self.exposure):
                # A list of keywords is found by one of them.
                kind = key.origin_value_type if key.origin_value_type in (int, float, bool) else str
                made.append(EndpointParameter(ATTRIBUTE + key.name, "query", kind, f"The search attribute {key.name}."))
        if self.takes_arguments:
            for each in self.subject.parameters:
                is_required = each.default is each.empty
                default = None if is_required else each.default
                made.append(EndpointParameter(each.name, "query", each.annotation, "", default, is_required))
        return made

    @cached_property
    def query_parameters(self) -> Mapping[str, EndpointParameter]:
        return {each.name: each for each in self.parameters if each.place == "query"}

    def check_names(self, query: Mapping[str, Sequence[str]], app_parameters: Collection[str]) -> None:
        """Raises a problem for an unknown or repeated query parameter: frameworks and proxies read different ones.

        The app's own parameters are allowed.
        """
        known = self.query_parameters
        for name, values in query.items():
            if name in known and len(values) > 1:
                detail = f"the query parameter {name!a} is given more than once: give it once"
                raise Problem(HTTPStatus.BAD_REQUEST, "repeated-parameter", detail)
            if name not in known and name not in app_parameters:
                there_are = f"there are {', '.join(known)}" if known else "there are none"
                detail = f"there is no query parameter {shorten(name)!a} here: {there_are}"
                raise Problem(HTTPStatus.BAD_REQUEST, "unknown-parameter", detail, parameters=list(known))

    def parse_query(self, query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The gateway's own query parameters, validated, with their defaults. Raises a problem."""
        arguments = {each.name for each in self.subject.parameters} if self.takes_arguments else set()
        parsed, errors = {}, list[Any]()
        for name, parameter in self.query_parameters.items():
            if name in arguments:
                continue
            parsed[name] = parameter.default
            if text := (query.get(name) or ("",))[0]:
                try:
                    parsed[name] = parameter.adapter.validate_strings(text)
                except ValidationError as error:
                    errors += [{"loc": (name, *each["loc"]), "msg": each["msg"]} for each in error.errors()]
        if errors:
            raise invalid_values(errors)
        return parsed

    def parse_arguments(self, query: Mapping[str, Sequence[str]]) -> Any:
        """The arguments of a query in the URL. Raises ``ValidationError``."""
        names = {each.name for each in self.subject.parameters}
        given = {name: values[0] if values else "" for name, values in query.items() if name in names}
        return self.subject.body.parse_strings(given)


@functools.lru_cache(maxsize=1024)
def _renamed(name: str, body: type[BaseModel]) -> type[BaseModel]:
    return create_model(name, __base__=body, __doc__=body.__doc__)


ATTRIBUTE = "attribute."
"""The beginning of the names of parameters that filter a list by a search attribute."""


def filter_keys(exposure: Exposure) -> list[SearchAttributeKey[Any]]:
    """Search attributes by which a list can be filtered: those that are declared by key, without times.

    SQLite does not find a time that is equal to another one.
    """
    return [key for key in exposure.attribute_keys if key.origin_value_type is not dt.datetime]


class Endpoints:
    """All endpoints of a gateway."""

    def __init__(self, routes: Iterable[Route], exposures: Iterable[Exposure]) -> None:
        self._by_exposure = {each.name: list(_of(routes, each)) for each in exposures}

    def __iter__(self) -> Iterator[Endpoint]:
        """In the order of routing."""
        for endpoints in self._by_exposure.values():
            yield from endpoints

    def find(self, method: str, path: str) -> tuple[Endpoint, Mapping[str, str]]:
        """The endpoint of a request, and the ids in the path; HEAD is a GET.

        Raises the problem 404 or 405, and 400 for an invalid id.
        """
        offered = self._at(path)
        for endpoint, ids in offered:
            if endpoint.method == ("GET" if method == "HEAD" else method):
                for name, id in ids.items():
                    check_id(id, _ID_NAMES[name])
                return endpoint, ids
        raise not_allowed({endpoint.method for endpoint, _ in offered})

    def options(self, path: str) -> GatewayResponse:
        """The response to OPTIONS. Raises the problem 404."""
        return options({endpoint.method for endpoint, _ in self._at(path)})

    def _at(self, path: str) -> list[tuple[Endpoint, Mapping[str, str]]]:
        """The endpoints at a path, with any method. Raises a problem if there are none."""
        name, *parts = path.strip("/").split("/")
        if name not in self._by_exposure:
            raise not_found("there is no such workflow here")
        found: list[tuple[Endpoint, Mapping[str, str]]] = []
        for endpoint in self._by_exposure[name]:
            literals = endpoint.literals
            if len(literals) == len(parts) and all(a in (None, b) for a, b in zip(literals, parts, strict=True)):
                ids = (part for literal, part in zip(literals, parts, strict=True) if literal is None)
                found.append((endpoint, dict(zip(endpoint.id_names, ids, strict=True))))
        if not found:
            # All clients may know them: openapi.json has them.
            paths = sorted({endpoint.path for endpoint in self._by_exposure[name]})
            raise not_found(f"{name} offers nothing here; there are {', '.join(paths)}")
        return found


def _of(routes: Iterable[Route], exposure: Exposure) -> Iterator[Endpoint]:
    handlers: Mapping[Operation, Mapping[str, Handler]] = {
        Operation.SIGNAL: exposure.signals,
        Operation.SIGNAL_WITH_START: exposure.signals,
        Operation.QUERY: exposure.queries,
        Operation.UPDATE: exposure.updates,
    }
    for route in routes:
        if route.operation not in exposure.operations:
            continue
        if route.operation not in handlers:
            yield Endpoint(route, exposure, None)
            continue
        for handler in handlers[route.operation].values():
            # The parameters of a query with GET must fit in a URL.
            if route.operation is not Operation.QUERY or route.method != "GET" or handler.fits_in_url:
                yield Endpoint(route, exposure, handler)


def options(allowed: set[str]) -> GatewayResponse:
    """The response to OPTIONS."""
    return GatewayResponse(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": _allow(allowed)})


def not_allowed(allowed: set[str]) -> Problem:
    detail, headers = f"use {' or '.join(sorted(allowed))} here", {"Allow": _allow(allowed)}
    return Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", detail, headers=headers)


def _allow(methods: Iterable[str]) -> str:
    """The ``Allow`` header: all paths have OPTIONS, and HEAD if they have GET."""
    return ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))
