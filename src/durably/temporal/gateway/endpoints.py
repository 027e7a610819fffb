"""The table of endpoints, for routing, the OpenAPI document and FastAPI's routes.

A ``Route`` is a row of the table. An ``Endpoint`` is a route of one exposure, with the name of a signal, query or
update filled in: each has its own path and types.
"""

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, create_model

from . import models
from .exposure import AnyExposure, Exposure, HandlerExposure, Operation, ScheduleExposure, type_name
from .handlers import Body, ModelBody
from .messages import GatewayResponse
from .operations import actions, batches, events, lists, runs, schedules, starting
from .problems import Problem, not_found
from .start_options import check_id

NO_BODY = "no body"
"""The type of a response without a body."""
PROBLEM = models.ProblemDocument
SUCCESSES = {
    HTTPStatus.OK: "Done",
    HTTPStatus.ACCEPTED: "Accepted",
    HTTPStatus.NO_CONTENT: "The stream has ended",
}
_PROBLEMS = (
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


class Key(Enum):
    """The meaning of an ``Idempotency-Key`` for an endpoint."""

    USED = "used"
    IGNORED = "ignored"
    """A repeated request has no further effect."""
    REFUSED = "refused"
    """A repeated request has a further effect, and the server cannot recognise it."""


Responses = Mapping[HTTPStatus, Any]
"""The type of the body for each status; ``None`` for a stream of events. All other statuses are problems."""


@dataclass(frozen=True)
class Route:
    """A row of the table.

    ``template`` follows the exposure's name; ``{name}`` is the name of a signal, query or update. ``perform`` takes a
    ``Call`` or ``ScheduleCall``. In ``summary``, ``{workflow}``, ``{exposure}`` and ``{name}`` are names. The other
    fields are functions of the exposure and the handler where they depend on them.
    """

    operation: Operation
    method: str
    template: str
    perform: Callable[[Any], Awaitable[GatewayResponse]]
    summary: str
    responses: Callable[[Any, HandlerExposure | None], Responses]
    parameters: tuple[EndpointParameter, ...] = ()
    body: Callable[[Any, HandlerExposure | None], Body | None] = lambda exposure, handler: None
    key: Key = Key.IGNORED
    problems: tuple[HTTPStatus, ...] = ()


_RUN = EndpointParameter("run_id", "query", str, "A run of the workflow; by default the latest.")
_WAIT = EndpointParameter("wait", "query", int, "Seconds to wait for a result.", 0)
_PREFER = EndpointParameter("Prefer", "header", str, "wait=N waits N seconds for the result.")
_KEY = EndpointParameter("Idempotency-Key", "header", str, "A repeated request with this key is executed once.")
_PAGE = EndpointParameter("page", "query", str, "The next_page of the previous page.")
_LAST_EVENT = EndpointParameter("Last-Event-ID", "header", str, "The id of the last event that was received.")


def _page_size(maximum: int, default: int) -> EndpointParameter:
    return EndpointParameter("page_size", "query", int, f"1 to {maximum}.", default)


_LIST = (
    EndpointParameter("query", "query", str, "A visibility query of Temporal."),
    EndpointParameter("status", "query", Literal[tuple(lists.FILTERS)]),
    _page_size(lists.MAX_PAGE_SIZE, lists.PAGE_SIZE),
    _PAGE,
)
_UNSUPPORTED = (HTTPStatus.NOT_IMPLEMENTED,)


def _ok(body: Any) -> Callable[..., Responses]:
    return lambda exposure, handler: {HTTPStatus.OK: body}


def _accepted(body: Any) -> Callable[..., Responses]:
    return lambda exposure, handler: {HTTPStatus.ACCEPTED: body}


def _model(model: type[BaseModel]) -> Callable[..., Body]:
    body = ModelBody(model, tuple(model.model_fields))
    return lambda exposure, handler: body


def _input(exposure: Exposure, handler: HandlerExposure | None) -> Body:
    return exposure.arguments if handler is None else handler.arguments


_REASON = _model(models.Reason)
_NOTE = _model(models.ScheduleNote)


@functools.lru_cache(maxsize=1024)
def _renamed(name: str, body: type[BaseModel]) -> type[BaseModel]:
    """A body with its own name. Pydantic would name it ``Completed_Receipt_``."""
    return create_model(name, __base__=body, __doc__=body.__doc__)


def _result_of(exposure: Exposure) -> type[BaseModel]:
    result = exposure.definition.run.result
    return _renamed(f"{type_name(exposure.name)}Result", models.Completed[result])  # type: ignore[valid-type]


def _reply(exposure: Exposure, handler: HandlerExposure | None, suffix: str, body: Any) -> type[BaseModel]:
    """The body with the result of a query or update."""
    assert handler is not None
    name = f"{type_name(exposure.name)}{type_name(handler.name)}{suffix}"
    return _renamed(name, body[handler.handler.result])


def _started(exposure: Exposure, handler: HandlerExposure | None) -> Responses:
    return {HTTPStatus.ACCEPTED: models.Started, HTTPStatus.OK: _result_of(exposure)}


def _result(exposure: Exposure, handler: HandlerExposure | None) -> Responses:
    return {HTTPStatus.OK: _result_of(exposure), HTTPStatus.ACCEPTED: models.Started}


def _answer(exposure: Exposure, handler: HandlerExposure | None) -> Responses:
    return {HTTPStatus.OK: _reply(exposure, handler, "Answer", models.QueryAnswer)}


def _updated(exposure: Exposure, handler: HandlerExposure | None) -> Responses:
    return {
        HTTPStatus.OK: _reply(exposure, handler, "Done", models.UpdateDone),
        HTTPStatus.ACCEPTED: models.UpdateAccepted,
    }


def _batched(exposure: Exposure, handler: HandlerExposure | None) -> Responses:
    return {HTTPStatus.ACCEPTED: models.BatchAccepted, HTTPStatus.OK: models.BatchDryRun}


def _stream(exposure: Exposure, handler: HandlerExposure | None) -> Responses:
    return {HTTPStatus.OK: None, HTTPStatus.NO_CONTENT: NO_BODY}


def _with_start(exposure: Exposure, handler: HandlerExposure | None) -> Body:
    assert handler is not None
    assert handler.with_start is not None, "each exposed signal has it"
    return ModelBody(handler.with_start)


def _batch_of_signals(exposure: Exposure, handler: HandlerExposure | None) -> Body:
    assert handler is not None
    assert handler.batch is not None, "each exposed signal has it"
    return ModelBody(handler.batch)


# fmt: off
ROUTES = (
    Route(Operation.START, "POST", "", starting.start, "Start {workflow}",
          _started, (_KEY, _PREFER), _input, Key.USED),
    Route(Operation.LIST, "GET", "", lists.list_workflows, "List {exposure}",
          _ok(models.Page), _LIST),
    Route(Operation.SIGNAL_WITH_START, "POST", "signal-with-start/{name}", starting.signal_with_start,
          "Signal {name}, and first start {workflow} if it is not running",
          _accepted(models.Accepted), (_KEY,), _with_start, Key.USED),
    # Before the routes with an id, which they shadow: the id "batch" is reserved.
    Route(Operation.BATCH_CANCEL, "POST", "batch/cancel", batches.batch, "Cancel all open workflows that match a query",
          _batched, (_KEY,), _model(models.BatchRequest), Key.USED, _UNSUPPORTED),
    Route(Operation.BATCH_TERMINATE, "POST", "batch/terminate", batches.batch,
          "Terminate all open workflows that match a query",
          _batched, (_KEY,), _model(models.BatchRequest), Key.USED, _UNSUPPORTED),
    Route(Operation.BATCH_SIGNAL, "POST", "batch/signals/{name}", batches.batch,
          "Send the signal {name} to all open workflows that match a query",
          _batched, (_KEY,), _batch_of_signals, Key.USED, _UNSUPPORTED),
    Route(Operation.BATCH_STATUS, "GET", "batch/jobs/{job_id}", batches.batch_status, "The progress of a batch",
          _ok(models.BatchJob), problems=_UNSUPPORTED),
    Route(Operation.DESCRIBE, "GET", "{workflow_id}", lists.describe, "Status, times and pending activities",
          _ok(models.Description), (_RUN,)),
    Route(Operation.RESULT, "GET", "{workflow_id}/result", runs.result, "The result, as soon as it is known",
          _result, (_RUN, _WAIT)),
    Route(Operation.SIGNAL, "POST", "{workflow_id}/signals/{name}", actions.signal, "Signal {name}",
          _accepted(models.Accepted), (_RUN, _KEY), _input, Key.USED),
    Route(Operation.QUERY, "GET", "{workflow_id}/queries/{name}", actions.query, "Query {name}", _answer, (_RUN,)),
    Route(Operation.QUERY, "POST", "{workflow_id}/queries/{name}", actions.query,
          "Query {name}", _answer, (_RUN,), _input),
    Route(Operation.UPDATE, "POST", "{workflow_id}/updates/{name}", actions.update, "Update {name}",
          _updated, (_RUN, _KEY, _PREFER), _input, Key.USED),
    Route(Operation.UPDATE, "GET", "{workflow_id}/updates/{name}/{update_id}", actions.update,
          "The result of an update {name}",
          _updated, (_RUN, _WAIT)),
    Route(Operation.CANCEL, "POST", "{workflow_id}/cancel", actions.cancel, "Request its cancellation",
          _accepted(models.Accepted), (_RUN,), _REASON),
    Route(Operation.TERMINATE, "POST", "{workflow_id}/terminate", actions.terminate, "End it immediately",
          _accepted(models.Accepted), (_RUN,), _REASON),
    Route(Operation.RESET, "POST", "{workflow_id}/reset", actions.reset, "Continue from an earlier point, in a new run",
          _accepted(models.Accepted), (_RUN,), _model(models.ResetRequest), Key.REFUSED),
    Route(Operation.PAUSE, "POST", "{workflow_id}/pause", actions.pause, "Pause it until it is resumed",
          _accepted(models.Accepted), (_RUN,), _REASON, problems=_UNSUPPORTED),
    Route(Operation.RESUME, "POST", "{workflow_id}/resume", actions.resume, "Resume it after a pause",
          _accepted(models.Accepted), (_RUN,), _REASON, problems=_UNSUPPORTED),
    Route(Operation.HISTORY, "GET", "{workflow_id}/history", events.history, "Its events, in brief",
          _ok(models.HistoryPage), (_RUN, _page_size(events.MAX_PAGE_SIZE, events.PAGE_SIZE), _PAGE)),
    Route(Operation.RAW_HISTORY, "GET", "{workflow_id}/history/raw", events.raw_history,
          "Its events with inputs and results, for replayers",
          _ok(models.RawHistoryPage), (_RUN, _page_size(events.MAX_PAGE_SIZE, events.MAX_PAGE_SIZE), _PAGE)),
    Route(Operation.EVENTS, "GET", "{workflow_id}/events", events.events, "Live progress, as server-sent events",
          _stream, (_RUN, _LAST_EVENT)),
)
SCHEDULE_ROUTES = (
    Route(Operation.LIST_SCHEDULES, "GET", "", schedules.list_schedules, "The declared schedules",
          _ok(models.ScheduleList)),
    Route(Operation.DESCRIBE_SCHEDULE, "GET", "{schedule_id}", schedules.describe,
          "Its times, and the workflows that it started",
          _ok(models.ScheduleState)),
    Route(Operation.PAUSE_SCHEDULE, "POST", "{schedule_id}/pause", schedules.pause,
          "Start no workflows until it is resumed",
          _accepted(models.ScheduleAccepted), body=_NOTE),
    Route(Operation.RESUME_SCHEDULE, "POST", "{schedule_id}/resume", schedules.resume, "Start workflows again",
          _accepted(models.ScheduleAccepted), body=_NOTE),
    Route(Operation.TRIGGER_SCHEDULE, "POST", "{schedule_id}/trigger", schedules.trigger, "Start its workflow now",
          _accepted(models.ScheduleAccepted), body=_model(models.ScheduleTriggerRequest), key=Key.REFUSED),
    Route(Operation.BACKFILL_SCHEDULE, "POST", "{schedule_id}/backfill", schedules.backfill,
          "Start its workflow for past times",
          _accepted(models.BackfillAccepted), body=_model(models.ScheduleBackfillRequest), key=Key.REFUSED),
)
# fmt: on
_BATCHES = frozenset({Operation.BATCH_CANCEL, Operation.BATCH_TERMINATE, Operation.BATCH_SIGNAL})
_ID_NAMES = {
    "workflow_id": "the workflow id",
    "update_id": "the update id",
    "job_id": "the job id",
    "schedule_id": "the schedule id",
}


@dataclass(frozen=True)
class Endpoint:
    """A route of an exposure. ``label``, without ids, is for logs and metrics."""

    route: Route
    exposure: AnyExposure
    handler: HandlerExposure | None
    label: str
    path: str
    workflow_type: str
    """Empty for schedules."""
    body: Body | None
    literals: tuple[str | None, ...]
    """The segments of the path after the exposure's name; ``None`` for an id."""
    id_names: tuple[str, ...]

    @classmethod
    def of(cls, route: Route, exposure: AnyExposure, handler: HandlerExposure | None = None) -> "Endpoint":
        parts = route.template.split("/") if route.template else []
        named = [handler.name if handler and part == "{name}" else part for part in parts]
        template = route.template if handler is None else route.template.replace("{name}", handler.name)
        for name in ("workflow_id", "schedule_id"):
            template = template.replace(f"{{{name}}}", "{id}")
        is_id = [part.startswith("{") and part != "{name}" for part in parts]
        return cls(
            route=route,
            exposure=exposure,
            handler=handler,
            label=f"{route.method} /{exposure.name}/{template}".rstrip("/"),
            path="/" + "/".join([exposure.name, *named]),
            workflow_type=exposure.definition.name if isinstance(exposure, Exposure) else "",
            body=route.body(exposure, handler),
            literals=tuple(None if each else name for each, name in zip(is_id, named, strict=True)),
            id_names=tuple(part[1:-1] for each, part in zip(is_id, parts, strict=True) if each),
        )

    @property
    def method(self) -> str:
        return self.route.method

    @cached_property
    def operation_id(self) -> str:
        # A GET in addition to a POST of the same operation.
        is_second = self.method == "GET" and self.route.operation in (Operation.QUERY, Operation.UPDATE)
        name = "" if self.handler is None else self.handler.name
        words = [self.route.operation.value, self.exposure.name, name, "get" if is_second else ""]
        return "_".join(word.replace("-", "_") for word in words if word)

    @property
    def summary(self) -> str:
        name = "" if self.handler is None else self.handler.name
        return self.route.summary.format(workflow=self.workflow_type, exposure=self.exposure.name, name=name)

    @property
    def description(self) -> str:
        if self.handler is not None:
            return self.handler.handler.doc
        is_start = self.route.operation is Operation.START
        return self.exposure.definition.doc if is_start and isinstance(self.exposure, Exposure) else ""

    @cached_property
    def parameters(self) -> tuple[EndpointParameter, ...]:
        ids = (EndpointParameter(name, "path", str, is_required=True) for name in self.id_names)
        return (*ids, *self.route.parameters, *self._query_arguments)

    @property
    def _query_arguments(self) -> Iterator[EndpointParameter]:
        """The arguments of a query that is asked with GET."""
        if self.takes_query_arguments and self.handler is not None:
            for each in self.handler.arguments.parameters:
                default = None if each.is_required else each.default
                yield EndpointParameter(each.name, "query", each.type, default=default, is_required=each.is_required)

    @property
    def takes_query_arguments(self) -> bool:
        return self.route.operation is Operation.QUERY and self.method == "GET"

    @cached_property
    def query_names(self) -> tuple[str, ...]:
        """Names of the query parameters."""
        return tuple(parameter.name for parameter in self.parameters if parameter.place == "query")

    @property
    def responses(self) -> Responses:
        return self.route.responses(self.exposure, self.handler)

    @property
    def problems(self) -> tuple[HTTPStatus, ...]:
        return _PROBLEMS + self.route.problems


@dataclass(frozen=True)
class Match:
    """An endpoint with the ids in the URL of a request."""

    endpoint: Endpoint
    ids: Mapping[str, str] = field(default_factory=dict)

    def check_ids(self) -> None:
        """Raises a problem for an invalid id, and for a batch that does not exist."""
        exposure, id = self.endpoint.exposure, self.ids.get("workflow_id")
        if id == "batch" and self.endpoint.method == "POST" and exposure.operations & _BATCHES:
            raise not_found(
                "there is no such batch: the path after batch/ is cancel, terminate or signals/{name}, as far as "
                f"{exposure.name} offers them. The id batch is reserved"
            )
        for name in self.endpoint.id_names:
            check_id(self.ids[name], _ID_NAMES[name])


class Endpoints:
    """All endpoints of a gateway."""

    def __init__(self, exposures: Iterable[AnyExposure]) -> None:
        self._by_exposure = {exposure.name: list(_of(exposure)) for exposure in exposures}

    def __iter__(self) -> Iterator[Endpoint]:
        """In the order of routing."""
        for endpoints in self._by_exposure.values():
            yield from endpoints

    def find(self, method: str, path: str) -> Match:
        """The endpoint of a request; HEAD is a GET. Raises the problem 404 or 405."""
        offered = self._at(path)
        for match in offered:
            if match.endpoint.method == ("GET" if method == "HEAD" else method):
                return match
        raise _not_allowed({match.endpoint.method for match in offered})

    def options(self, path: str) -> GatewayResponse:
        """The response to OPTIONS. Raises the problem 404."""
        return _options({match.endpoint.method for match in self._at(path)})

    def _at(self, path: str) -> list[Match]:
        """The endpoints at a path, with any method. Raises a problem if there are none."""
        name, *parts = path.strip("/").split("/")
        if name not in self._by_exposure:
            raise not_found("there is no such workflow here")
        found = []
        for endpoint in self._by_exposure[name]:
            literals = endpoint.literals
            if len(literals) == len(parts) and all(a in (None, b) for a, b in zip(literals, parts, strict=True)):
                ids = (part for literal, part in zip(literals, parts, strict=True) if literal is None)
                found.append(Match(endpoint, dict(zip(endpoint.id_names, ids, strict=True))))
        if not found:
            raise not_found(f"{name} offers nothing here")
        return found


def _of(exposure: AnyExposure) -> Iterator[Endpoint]:
    for route in SCHEDULE_ROUTES if isinstance(exposure, ScheduleExposure) else ROUTES:
        if route.operation not in exposure.operations:
            continue
        if isinstance(exposure, Exposure) and "{name}" in route.template:
            for handler in _handlers(exposure, route.operation).values():
                # The parameters of a query with GET must fit in a URL.
                if route.operation is not Operation.QUERY or route.method != "GET" or handler.arguments.fit_in_url:
                    yield Endpoint.of(route, exposure, handler)
        else:
            yield Endpoint.of(route, exposure)


def _handlers(exposure: Exposure, operation: Operation) -> Mapping[str, HandlerExposure]:
    if operation is Operation.QUERY:
        return exposure.queries
    return exposure.updates if operation is Operation.UPDATE else exposure.signals


def options_of_get(method: str) -> GatewayResponse | None:
    """The response to OPTIONS at a page; ``None`` for GET. Raises a problem."""
    if method in ("GET", "HEAD"):
        return None
    if method == "OPTIONS":
        return _options({"GET"})
    raise _not_allowed({"GET"})


def _options(allowed: set[str]) -> GatewayResponse:
    return GatewayResponse(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": _allow(allowed)})


def _not_allowed(allowed: set[str]) -> Problem:
    return Problem(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method-not-allowed",
        f"use {' or '.join(sorted(allowed))} here",
        headers={"Allow": _allow(allowed)},
    )


def _allow(methods: Iterable[str]) -> str:
    """The ``Allow`` header: all paths have OPTIONS, and HEAD if they have GET."""
    return ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))
