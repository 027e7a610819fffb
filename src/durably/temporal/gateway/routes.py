"""Which request means which operation: the gateway's table of routes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from .exposure import Exposure, HandlerExposure, Operation
from .inputs import check_id
from .messages import GatewayResponse
from .problems import Problem, not_found
from .schedule_exposure import Place, ScheduleExposure


@dataclass(frozen=True)
class Route:
    """``template`` follows the place's name; ``{id}`` is a workflow's or schedule's id, ``{name}`` a handler's name."""

    operation: Operation
    method: str
    template: str

    @property
    def segments(self) -> list[str]:
        return self.template.split("/") if self.template else []


ROUTES = (
    Route(Operation.START, "POST", ""),
    Route(Operation.LIST, "GET", ""),
    Route(Operation.SIGNAL_WITH_START, "POST", "signal-with-start/{name}"),
    # Before the routes with an id: a workflow with the id "batch" gives way.
    Route(Operation.BATCH_CANCEL, "POST", "batch/cancel"),
    Route(Operation.BATCH_TERMINATE, "POST", "batch/terminate"),
    Route(Operation.BATCH_SIGNAL, "POST", "batch/signals/{name}"),
    Route(Operation.BATCH_STATUS, "GET", "batch/jobs/{job_id}"),
    Route(Operation.DESCRIBE, "GET", "{id}"),
    Route(Operation.RESULT, "GET", "{id}/result"),
    Route(Operation.SIGNAL, "POST", "{id}/signals/{name}"),
    Route(Operation.QUERY, "GET", "{id}/queries/{name}"),
    Route(Operation.QUERY, "POST", "{id}/queries/{name}"),
    Route(Operation.UPDATE, "POST", "{id}/updates/{name}"),
    Route(Operation.UPDATE, "GET", "{id}/updates/{name}/{update_id}"),
    Route(Operation.CANCEL, "POST", "{id}/cancel"),
    Route(Operation.TERMINATE, "POST", "{id}/terminate"),
    Route(Operation.RESET, "POST", "{id}/reset"),
    Route(Operation.PAUSE, "POST", "{id}/pause"),
    Route(Operation.RESUME, "POST", "{id}/resume"),
    Route(Operation.HISTORY, "GET", "{id}/history"),
    Route(Operation.RAW_HISTORY, "GET", "{id}/history/raw"),
    Route(Operation.EVENTS, "GET", "{id}/events"),
)
SCHEDULE_ROUTES = (
    Route(Operation.LIST_SCHEDULES, "GET", ""),
    Route(Operation.DESCRIBE_SCHEDULE, "GET", "{id}"),
    Route(Operation.PAUSE_SCHEDULE, "POST", "{id}/pause"),
    Route(Operation.RESUME_SCHEDULE, "POST", "{id}/resume"),
    Route(Operation.TRIGGER_SCHEDULE, "POST", "{id}/trigger"),
    Route(Operation.BACKFILL_SCHEDULE, "POST", "{id}/backfill"),
)


_BATCH = "batch"
"""In the place of an id. A workflow with this id can be read, and not be changed, if the exposure has batches."""
_BATCHES = frozenset({Operation.BATCH_CANCEL, Operation.BATCH_TERMINATE, Operation.BATCH_SIGNAL})


@dataclass(frozen=True)
class Match:
    route: Route
    exposure: Exposure
    workflow_id: str | None = None
    handler: HandlerExposure | None = None
    update_id: str | None = None
    job_id: str | None = None

    @property
    def operation(self) -> Operation:
        return self.route.operation

    @property
    def place(self) -> str:
        """``POST /orders/{id}/signals/ship``: the route with all names, and without ids."""
        template = self.route.template.replace("{name}", self.handler.name) if self.handler else self.route.template
        return f"{self.route.method} /{self.exposure.name}/{template}".rstrip("/")

    @property
    def workflow_type(self) -> str:
        return self.exposure.definition.name

    def check(self) -> None:
        """Raises a problem for an id that no workflow can have, and for a batch that does not exist."""
        if self.workflow_id == _BATCH and self.route.method == "POST" and self.exposure.operations & _BATCHES:
            raise not_found(
                "there is no such batch: the path after batch/ is cancel, terminate or signals/{name}, as far as "
                f"{self.exposure.name} offers them. The id batch is reserved"
            )
        for id, what in (
            (self.workflow_id, "the workflow id"),
            (self.update_id, "the update id"),
            (self.job_id, "the job id"),
        ):
            if id is not None:
                check_id(id, what)


@dataclass(frozen=True)
class ScheduleMatch:
    """A request about schedules."""

    route: Route
    exposure: ScheduleExposure
    schedule_id: str | None = None

    @property
    def operation(self) -> Operation:
        return self.route.operation

    @property
    def place(self) -> str:
        """``POST /schedules/{id}/pause``: the route without ids."""
        return f"{self.route.method} /{self.exposure.name}/{self.route.template}".rstrip("/")

    @property
    def workflow_type(self) -> str:
        """Empty: a schedule is no workflow."""
        return ""

    def check(self) -> None:
        """Raises a problem for an id that no schedule can have."""
        if self.schedule_id is not None:
            check_id(self.schedule_id, "the schedule id")


AnyMatch = Match | ScheduleMatch


def match(method: str, path: str, places: Mapping[str, Place]) -> AnyMatch:
    """HEAD is matched as GET. Raises a problem: 404 for what is not there or not open, 405 for another method."""
    offered = _offered(path, places)
    for found in offered:
        if found.route.method == ("GET" if method == "HEAD" else method):
            found.check()
            return found
    raise _not_allowed({found.route.method for found in offered})


def options(path: str, places: Mapping[str, Place]) -> GatewayResponse:
    """The answer to OPTIONS, which ``authorize`` is not asked for. Raises a problem for a path that is not there."""
    return _options({found.route.method for found in _offered(path, places)})


def answer_get_only(method: str) -> GatewayResponse | None:
    """The answer of a place that has GET only, to OPTIONS; ``None`` for GET and HEAD. Raises a problem for others."""
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
    """The ``Allow`` header: HEAD works where GET does, OPTIONS everywhere."""
    return ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))


def _offered(path: str, places: Mapping[str, Place]) -> Sequence[AnyMatch]:
    """What the exposures offer at a path, by whichever method. Raises a problem if that is nothing."""
    name, *rest = path.strip("/").split("/")
    place = places.get(name)
    if place is None:
        raise not_found("there is no such workflow here")
    offered: Sequence[AnyMatch]
    if isinstance(place, ScheduleExposure):
        offered = _offered_schedules(place, rest)
    else:
        offered = _offered_workflows(place, rest)
    if not offered:
        raise not_found(f"{place.name} offers nothing here")
    return offered


def _offered_schedules(exposure: ScheduleExposure, rest: list[str]) -> list[ScheduleMatch]:
    return [
        ScheduleMatch(route, exposure, values.get("id"))
        for route in SCHEDULE_ROUTES
        if route.operation in exposure.operations and (values := _values(route, rest)) is not None
    ]


def _offered_workflows(exposure: Exposure, rest: list[str]) -> list[Match]:
    offered = []
    for route in ROUTES:
        values = _values(route, rest)
        if values is None or route.operation not in exposure.operations:
            continue
        handler = _handler(route.operation, exposure, values.get("name"))
        if "name" in values and (handler is None or not offers(route, handler)):
            continue
        ids = values.get("update_id"), values.get("job_id")
        offered.append(Match(route, exposure, values.get("id"), handler, *ids))
    return offered


def offers(route: Route, handler: HandlerExposure) -> bool:
    """A query can be asked with GET if its parameters fit in a URL."""
    return route.operation is not Operation.QUERY or route.method != "GET" or handler.arguments.fit_in_url


def _values(route: Route, parts: list[str]) -> dict[str, str] | None:
    segments = route.segments
    if len(segments) != len(parts):
        return None
    values = {}
    for segment, part in zip(segments, parts, strict=True):
        if segment.startswith("{"):
            values[segment[1:-1]] = part
        elif segment != part:
            return None
    return values


def _handler(operation: Operation, exposure: Exposure, name: str | None) -> HandlerExposure | None:
    if name is None:
        return None
    if operation is Operation.QUERY:
        return exposure.queries.get(name)
    if operation is Operation.UPDATE:
        return exposure.updates.get(name)
    return exposure.signals.get(name)
