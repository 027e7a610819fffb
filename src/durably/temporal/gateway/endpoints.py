"""Each endpoint of a gateway as data: path, parameters, body, responses. Documents and FastAPI's routes come from it.

The paths are those of ``routes``, with the names of workflows, signals, queries and updates filled in, so that each has
its own types.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, create_model

from .exposure import Exposure, HandlerExposure, Operation, type_name
from .models import (
    Accepted,
    BackfillAccepted,
    BatchAccepted,
    BatchDryRun,
    BatchJob,
    BatchRequest,
    Completed,
    Description,
    HistoryPage,
    Page,
    ProblemDocument,
    QueryAnswer,
    RawHistoryPage,
    Reason,
    ResetRequest,
    ScheduleAccepted,
    ScheduleBackfillRequest,
    ScheduleList,
    ScheduleNote,
    ScheduleState,
    ScheduleTriggerRequest,
    Started,
    UpdateAccepted,
    UpdateDone,
)
from .reading import FILTERS
from .routes import ROUTES, SCHEDULE_ROUTES, AnyMatch, Match, Route, ScheduleMatch, offers
from .schedule_exposure import Place, ScheduleExposure

SUCCESSES = {HTTPStatus.OK: "Done", HTTPStatus.ACCEPTED: "Accepted", HTTPStatus.NO_CONTENT: "Nothing more will come"}
NO_BODY = "no body"
"""Stands for the type of a response without a body."""
PROBLEM = ProblemDocument


@dataclass(frozen=True)
class EndpointParameter:
    name: str
    place: Literal["query", "header", "path"]
    type: Any
    description: str = ""
    default: Any = None
    is_required: bool = False


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """``responses`` gives the type of each status; ``None`` for a stream of events, and ``NO_BODY``. All others are
    problems.

    ``match`` says what a request to the endpoint means, from the values of the path's parameters. It raises a problem
    for an id that cannot be one.
    """

    match: Callable[[Mapping[str, str]], AnyMatch]
    method: str
    path: str
    operation_id: str
    summary: str
    tag: str
    description: str = ""
    parameters: tuple[EndpointParameter, ...] = ()
    body: Any = None
    is_body_required: bool = False
    responses: Mapping[HTTPStatus, Any] = field(default_factory=dict)
    problems: tuple[HTTPStatus, ...] = ()


_RUN = EndpointParameter("run_id", "query", str, "One run of the workflow; the latest unless given.")
_WAIT = EndpointParameter("wait", "query", int, "Seconds to wait for a result.", 0)
_PREFER = EndpointParameter("Prefer", "header", str, "wait=N answers with the result if it comes in N seconds.")
_KEY = EndpointParameter("Idempotency-Key", "header", str, "A request that is repeated with it is carried out once.")
_PAGE = EndpointParameter("page", "query", str, "The next_page of the page before.")

_COMMON = (
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


def endpoints(places: Mapping[str, Place]) -> list[Endpoint]:
    """In the order in which routes must be tried."""
    return [
        endpoint
        for place in places.values()
        for endpoint in (_of_schedules(place) if isinstance(place, ScheduleExposure) else _of(place))
    ]


def query_parameters(found: AnyMatch) -> tuple[str, ...]:
    """Names of the query parameters that a request may have."""
    if isinstance(found, ScheduleMatch):
        return ()
    shape = _SHAPES[found.operation](found.exposure, found.route, found.handler)
    return tuple(parameter.name for parameter in shape.get("parameters", ()) if parameter.place == "query")


def _of(exposure: Exposure) -> Iterator[Endpoint]:
    for route in ROUTES:
        if route.operation not in exposure.operations:
            continue
        if "{name}" not in route.segments:
            yield _endpoint(exposure, route, None)
            continue
        for handler in _handlers(exposure, route.operation).values():
            if offers(route, handler):
                yield _endpoint(exposure, route, handler)


def _handlers(exposure: Exposure, operation: Operation) -> Mapping[str, HandlerExposure]:
    if operation is Operation.QUERY:
        return exposure.queries
    return exposure.updates if operation is Operation.UPDATE else exposure.signals


def _endpoint(exposure: Exposure, route: Route, handler: HandlerExposure | None) -> Endpoint:
    template = route.template.replace("{id}", "{workflow_id}")
    parts = [
        exposure.name,
        *(template.replace("{name}", handler.name if handler else "").split("/") if template else []),
    ]
    shape = _SHAPES[route.operation](exposure, route, handler)
    name = handler.name if handler else ""
    words = [route.operation.value, exposure.name, name, *(["get"] if _is_second(route) else [])]
    path_parameters = tuple(
        EndpointParameter(part[1:-1], "path", str, is_required=True) for part in parts if part.startswith("{")
    )

    def match(values: Mapping[str, str]) -> Match:
        ids = values.get("update_id"), values.get("job_id")
        found = Match(route, exposure, values.get("workflow_id"), handler, *ids)
        found.check()
        return found

    return Endpoint(
        match=match,
        method=route.method,
        path="/" + "/".join(parts),
        operation_id="_".join(word.replace("-", "_") for word in words if word),
        tag=exposure.name,
        problems=_COMMON + shape.pop("problems", ()),
        description=shape.pop("description", "") or (handler.handler.doc if handler else ""),
        parameters=path_parameters + shape.pop("parameters", ()),
        **shape,
    )


def _is_second(route: Route) -> bool:
    """A GET beside a POST of the same operation."""
    return route.method == "GET" and route.operation in (Operation.QUERY, Operation.UPDATE)


Shape = dict[str, Any]


def _result_body(exposure: Exposure) -> type[BaseModel]:
    return _named(f"{type_name(exposure.name)}Result", Completed[exposure.result])  # type: ignore[name-defined]


def _body_of(exposure: Exposure, handler: HandlerExposure, suffix: str, body: Any) -> type[BaseModel]:
    name = f"{type_name(exposure.name)}{type_name(handler.name)}{suffix}"
    return _named(name, body[handler.handler.result])


@functools.lru_cache(maxsize=1024)
def _named(name: str, body: type[BaseModel]) -> type[BaseModel]:
    """A body under a name of its own: pydantic would name it ``Completed_Receipt_``."""
    return create_model(name, __base__=body, __doc__=body.__doc__)


def _start(exposure: Exposure, route: Route, handler: HandlerExposure | None) -> Shape:
    return {
        "summary": f"Start {exposure.definition.name}",
        "description": exposure.definition.doc,
        "parameters": (_KEY, _PREFER),
        "body": None if exposure.arguments.is_empty else exposure.arguments.type,
        "is_body_required": exposure.arguments.is_required,
        "responses": {HTTPStatus.ACCEPTED: Started, HTTPStatus.OK: _result_body(exposure)},
    }


def _list(exposure: Exposure, route: Route, handler: HandlerExposure | None) -> Shape:
    return {
        "summary": f"List {exposure.name}",
        "parameters": (
            EndpointParameter("query", "query", str, "A visibility query of Temporal's."),
            EndpointParameter("status", "query", Literal[tuple(FILTERS)]),
            EndpointParameter("page_size", "query", int, "1 to 500.", 50),
            _PAGE,
        ),
        "responses": {HTTPStatus.OK: Page},
    }


def _signal_with_start(exposure: Exposure, route: Route, handler: HandlerExposure | None) -> Shape:
    assert handler is not None
    return {
        "summary": f"Signal {handler.name}, starting {exposure.definition.name} first unless it runs",
        "parameters": (_KEY,),
        "body": handler.with_start,
        "is_body_required": True,
        "responses": {HTTPStatus.ACCEPTED: Accepted},
    }


def _result(exposure: Exposure, route: Route, handler: HandlerExposure | None) -> Shape:
    return {
        "summary": "The result, as soon as there is one",
        "parameters": (_RUN, _WAIT),
        "responses": {HTTPStatus.OK: _result_body(exposure), HTTPStatus.ACCEPTED: Started},
    }


def _signal(exposure: Exposure, route: Route, handler: HandlerExposure | None) -> Shape:
    assert handler is not None
    return {
        "summary": f"Signal {handler.name}",
        "parameters": (_RUN, _KEY),
        **_body(handler),
        "responses": {HTTPStatus.ACCEPTED: Accepted},
    }


def _query(exposure: Exposure, route: Route, handler: HandlerExposure | None) -> Shape:
    assert handler is not None
    shape: Shape = {
        "summary": f"Query {handler.name}",
        "parameters": (_RUN,),
        "responses": {HTTPStatus.OK: _body_of(exposure, handler, "Answer", QueryAnswer)},
    }
    if route.method == "POST":
        return {**shape, **_body(handler)}
    own = tuple(
        EndpointParameter(
            parameter.name,
            "query",
            parameter.type,
            default=None if parameter.is_required else parameter.default,
            is_required=parameter.is_required,
        )
        for parameter in handler.arguments.parameters
    )
    return {**shape, "parameters": (_RUN, *own)}


def _update(exposure: Exposure, route: Route, handler: HandlerExposure | None) -> Shape:
    assert handler is not None
    done = _body_of(exposure, handler, "Done", UpdateDone)
    responses = {HTTPStatus.OK: done, HTTPStatus.ACCEPTED: UpdateAccepted}
    if route.method == "GET":
        return {
            "summary": f"The result of an update {handler.name}",
            "parameters": (_RUN, _WAIT),
            "responses": responses,
        }
    return {
        "summary": f"Update {handler.name}",
        "parameters": (_RUN, _KEY, _PREFER),
        **_body(handler),
        "responses": responses,
    }


def _body(handler: HandlerExposure) -> Shape:
    arguments = handler.arguments
    return {"body": None if arguments.is_empty else arguments.type, "is_body_required": arguments.is_required}


def _plain(
    summary: str,
    response: Any,
    *parameters: EndpointParameter,
    body: Any = None,
    problems: tuple[HTTPStatus, ...] = (),
) -> Callable[..., Shape]:
    """An operation that is the same for each workflow."""
    status = HTTPStatus.ACCEPTED if response is Accepted else HTTPStatus.OK
    return lambda exposure, route, handler: {
        "summary": summary,
        "parameters": (_RUN, *parameters),
        "body": body,
        "responses": {status: response},
        "problems": problems,
    }


def _batch(summary: str) -> Callable[..., Shape]:
    return lambda exposure, route, handler: {
        "summary": summary if handler is None else f"{summary} {handler.name}",
        "parameters": (_KEY,),
        "body": BatchRequest if handler is None else handler.batch,
        "is_body_required": True,
        "responses": {HTTPStatus.ACCEPTED: BatchAccepted, HTTPStatus.OK: BatchDryRun},
        "problems": _UNSUPPORTED,
    }


_UNSUPPORTED = (HTTPStatus.NOT_IMPLEMENTED,)
_LAST_EVENT = EndpointParameter("Last-Event-ID", "header", str, "The id of the last event that was seen.")

_SHAPES: Mapping[Operation, Callable[[Exposure, Route, HandlerExposure | None], Shape]] = {
    Operation.START: _start,
    Operation.LIST: _list,
    Operation.SIGNAL_WITH_START: _signal_with_start,
    Operation.DESCRIBE: _plain("Status, times, pending activities", Description),
    Operation.RESULT: _result,
    Operation.SIGNAL: _signal,
    Operation.QUERY: _query,
    Operation.UPDATE: _update,
    Operation.CANCEL: _plain("Ask it to cancel itself", Accepted, body=Reason),
    Operation.TERMINATE: _plain("End it at once", Accepted, body=Reason),
    Operation.RESET: _plain("Go on from an earlier point, in a new run", Accepted, body=ResetRequest),
    Operation.PAUSE: _plain(
        "Hold it: it does nothing until it is resumed", Accepted, body=Reason, problems=_UNSUPPORTED
    ),
    Operation.RESUME: _plain("Let it go on after a pause", Accepted, body=Reason, problems=_UNSUPPORTED),
    Operation.BATCH_CANCEL: _batch("Ask all running and paused workflows that a query finds to cancel themselves"),
    Operation.BATCH_TERMINATE: _batch("End all running and paused workflows that a query finds"),
    Operation.BATCH_SIGNAL: _batch("Signal all running and paused workflows that a query finds:"),
    Operation.BATCH_STATUS: lambda exposure, route, handler: {
        "summary": "How far a batch is",
        "responses": {HTTPStatus.OK: BatchJob},
        "problems": _UNSUPPORTED,
    },
    Operation.HISTORY: _plain(
        "What happened, in brief",
        HistoryPage,
        EndpointParameter("page_size", "query", int, "1 to 1000.", 100),
        _PAGE,
    ),
    Operation.RAW_HISTORY: _plain(
        "All that happened, with inputs and results, as replayers read it",
        RawHistoryPage,
        EndpointParameter("page_size", "query", int, "1 to 1000.", 1000),
        _PAGE,
    ),
    Operation.EVENTS: lambda exposure, route, handler: {
        "summary": "Live progress, as server-sent events",
        "parameters": (_RUN, _LAST_EVENT),
        "responses": {HTTPStatus.OK: None, HTTPStatus.NO_CONTENT: NO_BODY},
    },
}


def _of_schedules(exposure: ScheduleExposure) -> Iterator[Endpoint]:
    for route in SCHEDULE_ROUTES:
        if route.operation in exposure.operations:
            yield _schedule_endpoint(exposure, route)


def _schedule_endpoint(exposure: ScheduleExposure, route: Route) -> Endpoint:
    def match(values: Mapping[str, str]) -> ScheduleMatch:
        found = ScheduleMatch(route, exposure, values.get("schedule_id"))
        found.check()
        return found

    summary, body, status, response = _SCHEDULE_SHAPES[route.operation]
    has_id = "{id}" in route.segments
    return Endpoint(
        match=match,
        method=route.method,
        path=f"/{exposure.name}/{route.template}".rstrip("/").replace("{id}", "{schedule_id}"),
        operation_id=f"{route.operation}_{exposure.name}".replace("-", "_"),
        summary=summary,
        tag=exposure.name,
        parameters=(EndpointParameter("schedule_id", "path", str, is_required=True),) if has_id else (),
        body=body,
        is_body_required=body is ScheduleBackfillRequest,
        responses={status: response},
        problems=_COMMON,
    )


_SCHEDULE_SHAPES: Mapping[Operation, tuple[str, Any, HTTPStatus, Any]] = {
    Operation.LIST_SCHEDULES: ("The declared schedules", None, HTTPStatus.OK, ScheduleList),
    Operation.DESCRIBE_SCHEDULE: ("When it is due, and what it started", None, HTTPStatus.OK, ScheduleState),
    Operation.PAUSE_SCHEDULE: (
        "Start nothing until it is resumed",
        ScheduleNote,
        HTTPStatus.ACCEPTED,
        ScheduleAccepted,
    ),
    Operation.RESUME_SCHEDULE: ("Start workflows again", ScheduleNote, HTTPStatus.ACCEPTED, ScheduleAccepted),
    Operation.TRIGGER_SCHEDULE: (
        "Start its workflow now",
        ScheduleTriggerRequest,
        HTTPStatus.ACCEPTED,
        ScheduleAccepted,
    ),
    Operation.BACKFILL_SCHEDULE: (
        "Start its workflow for times that have passed",
        ScheduleBackfillRequest,
        HTTPStatus.ACCEPTED,
        BackfillAccepted,
    ),
}
