"""The gateway: from a request to a response, independent of frameworks.

First a request is matched with an endpoint and validated, without the server. Then ``authorize`` decides. Then the
endpoint's function calls the server.
"""

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from http import HTTPStatus
from types import NoneType
from typing import Any, NoReturn

from pydantic import ValidationError
from temporalio.common import MetricMeter, SearchAttributeKey, TypedSearchAttributes

from durably.execution import drive
from durably.io.http_client import IO, BlockingIO
from durably.protocol.headers import is_of_another_site
from durably.protocol.options import check_function, check_text, check_type
from durably.temporal.client.connection import GATEWAY_LATENCY, Temporal
from durably.temporal.errors import TemporalSettingsError, TemporalUnreachableError
from durably.temporal.namespace.search_attributes import OWNER_ATTRIBUTE, DeclaredAttribute, ensure_keyword
from durably.temporal.request_ids import HTTP_HEADER, current_request_id, usable_request_id, web_request
from durably.temporal.request_log import note_workflow

from .authorization import (
    EVERYTHING,
    Access,
    Action,
    ActionSubject,
    Authorize,
    Guard,
    Identify,
    Unauthenticated,
    access_of,
    check_attribute_name,
    check_owners,
    check_principal,
    is_anonymous,
    principal_key,
)
from .call import Call, Limits, Target
from .endpoints import Endpoint, Endpoints, Key, Match
from .exposure import AnyExposure, Exposure, Operation, ScheduleExposure
from .idempotency import KeyedRequest, keyed_request
from .messages import (
    GatewayRequest,
    GatewayResponse,
    has_more_values,
    without_body,
)
from .openapi import Documents, SecuritySchemes, answer_page, check_security_schemes
from .operations.events import StreamSlots
from .operations.schedules import ScheduleCall
from .operations.starting import choose_id, start_options
from .pages import Pages, PageTokens, Secret
from .problems import (
    Problem,
    bad_request,
    invalid_body,
    no_principal,
    repeated_parameter,
    to_problem,
    too_large,
    too_many_values,
    unauthenticated,
    unknown_parameter,
)
from .start_options import StartOptions, check_id, declared_keys

_STARTS = frozenset({Operation.START, Operation.SIGNAL_WITH_START})
_BATCHES = frozenset({Operation.BATCH_CANCEL, Operation.BATCH_TERMINATE, Operation.BATCH_SIGNAL})
_REQUEST_ID = HTTP_HEADER.lower()
_SENT_BY_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


class Gateway:
    """HTTP endpoints for the workflows of ``exposures`` (see ``expose``).

    - ``authorize``: gets each action before the server is called, and returns whether it is allowed. A synchronous one
      may block: it runs in the request's thread, or in another thread if requests are on an event loop.
    - ``allow_anonymous=True``: required without ``authorize``.
    - ``identify``: returns a unique string for each principal (``None`` is anonymous). It is needed if ``pk``, ``id``
      and ``sub`` do not distinguish principals: see ``authorization.principal_key``.
    - ``secret``: 16 characters or more; signs page tokens. The default is the environment variable
      ``TEMPORAL_GATEWAY_SECRET``, the framework's own secret, or a random secret of the process.
    - ``owner_attribute``: the search attribute, a Keyword, with the owner of a workflow (``expose(owner=…)``).
    - ``security_schemes``: maps names to OpenAPI security schemes. A request needs one of them. They only document the
      API: ``authorize`` must enforce them.
    - ``limits``: limits of waits, bodies and streams.
    - ``schedules``: opens declared schedules (see ``expose_schedules``).
    - ``app_parameters``: names of query parameters that the app itself reads, such as in ``authorize``. The gateway
      answers 400 to unknown ones. It knows the parameters of FastAPI's dependencies.

    Raises ``TemporalSettingsError`` without ``authorize`` or ``allow_anonymous``, for two exposures with one name, and
    for a short secret.
    """

    def __init__(
        self,
        temporal: Temporal,
        exposures: Sequence[Exposure],
        *,
        authorize: Authorize | None = None,
        allow_anonymous: bool = False,
        identify: Identify | None = None,
        secret: Secret | None = None,
        owner_attribute: str = OWNER_ATTRIBUTE,
        security_schemes: SecuritySchemes | None = None,
        limits: Limits | None = None,
        schedules: ScheduleExposure | None = None,
        app_parameters: Iterable[str] = (),
    ) -> None:
        check_function(identify, "Gateway: identify", TemporalSettingsError)
        check_text(owner_attribute, "Gateway: owner_attribute", TemporalSettingsError)
        check_type(limits, "Gateway: limits", (Limits, NoneType), "Limits(…)", TemporalSettingsError)
        self.temporal = temporal
        self.exposures: Mapping[str, Exposure] = {exposure.name: exposure for exposure in exposures}
        self._guard = Guard(authorize, allow_anonymous, server="Gateway", permission="do everything that is exposed")
        self.allow_anonymous = allow_anonymous
        check_owners(allow_anonymous, self.exposures)
        if len(self.exposures) < len(exposures):
            raise TemporalSettingsError("two exposures have the same name: give one of them name=")
        self.endpoints = Endpoints([*exposures, *self._check_schedules(schedules)])
        self._owner_attribute = check_attribute_name(owner_attribute)
        for exposure in exposures:
            self._declare_attributes_of(exposure)
        self.security_schemes = check_security_schemes(security_schemes)
        self.limits = limits or Limits()
        self._identify = identify
        self._page_tokens = PageTokens(secret)
        self._metrics = _Metrics(temporal)
        self._declared_attributes: set[tuple[str, str, Any]] = set()
        self._app_parameters = frozenset([app_parameters] if isinstance(app_parameters, str) else app_parameters)
        self._stream_slots = StreamSlots(self.limits.max_streams)
        self._documents = Documents(self.endpoints, self.security_schemes)

    def _check_schedules(self, schedules: ScheduleExposure | None) -> Sequence[AnyExposure]:
        """Raises ``TemporalSettingsError``."""
        if schedules is None:
            return []
        if not isinstance(schedules, ScheduleExposure):
            raise TemporalSettingsError(f"Gateway(schedules=…) takes expose_schedules(…), not {schedules!r}")
        if schedules.name in self.exposures:
            raise TemporalSettingsError(
                f'a workflow has the name "{schedules.name}" too: give name= to expose_schedules() or expose()'
            )
        return [schedules]

    def _declare_attributes_of(self, exposure: Exposure) -> None:
        keys, title = declared_keys(exposure.search_attributes), exposure.definition.name
        self.temporal.add_search_attributes(*keys, where=f"expose({title})")
        if exposure.ownership is not None:
            # The first request registers it: a namespace without it is not an error yet.
            key = SearchAttributeKey.for_keyword(self._owner_attribute)
            self.temporal.owner_attributes.append(DeclaredAttribute(key, f"expose({title}, owner=…)"))

    async def handle(
        self, request: GatewayRequest, match: Match | None = None, *, io: IO | None = None
    ) -> GatewayResponse:
        """The response to a request. Errors of clients and of the server are responses.

        ``match`` is the endpoint, if the framework has found it. ``io`` is for ``handle_sync``.
        """
        start = time.perf_counter()
        try:
            if request.method == "OPTIONS":
                return self.endpoints.options(request.path)
            match = match or self.endpoints.find(request.method, request.path)
            with _request_id_of(request) if _REQUEST_ID in request.headers else nullcontext():
                response = await self._respond(request, match, io)
        except Unauthenticated as error:
            response = unauthenticated(error.challenge).response()
        except Exception as error:
            response = to_problem(error).response()
        self._metrics.count(None if match is None else match.endpoint, response.status_code, start)
        return without_body(response) if request.method == "HEAD" else response

    def handle_sync(self, request: GatewayRequest) -> GatewayResponse:
        """``handle`` for threads."""
        return drive(self.handle(request, io=BlockingIO()))

    async def _respond(self, request: GatewayRequest, match: Match, io: IO | None) -> GatewayResponse:
        endpoint, ids = match.endpoint, match.ids
        exposure, operation = endpoint.exposure, endpoint.route.operation
        if endpoint.id_names:
            match.check_ids()
        principal = request.principal = check_principal(request.principal)
        if isinstance(exposure, ScheduleExposure):
            return await self._respond_to_schedule(request, endpoint, exposure, ids.get("schedule_id"), io)
        # Before the body is read, because a 401 costs less.
        access = EVERYTHING if exposure.ownership is None else access_of(exposure.ownership, principal)
        value = self._read(request, endpoint)
        workflow_id = ids.get("workflow_id")
        target = None if workflow_id is None else self._target(request, exposure, workflow_id, access)
        keyed = self._keyed(request, endpoint, value) if "idempotency-key" in request.headers else None
        start_input = value.input if operation is Operation.SIGNAL_WITH_START else value
        if operation in _STARTS:
            workflow_id = choose_id(exposure, keyed, start_input, principal, access)
        if not self._guard.is_open:
            subject = ActionSubject(
                None if target is None else target.check,
                self._owner_attribute,
                None if operation in _BATCHES and access.sees_all else access.owner,
            )
            name = None if endpoint.handler is None else endpoint.handler.name
            action = Action(
                operation=operation,
                exposure=exposure,
                workflow_id=workflow_id,
                name=name,
                input=value,
                principal=principal,
                request=request.raw_request,
                subject=subject,
            )
            await self._guard.check(action, io, request.call_blocking)
            if keyed is not None and is_anonymous(principal):
                # All such callers would share their keys, and get each other's workflows.
                raise no_principal()
        options = StartOptions()
        if operation in _STARTS:
            options = start_options(exposure, start_input, principal)
            if options.search_attributes is not None:
                self._declare_attributes(exposure, options.search_attributes)
        call = Call(
            request=request,
            operation=operation,
            exposure=exposure,
            found_handler=endpoint.handler,
            ids=ids,
            label=endpoint.label,
            value=value,
            workflow_id=workflow_id or "",
            location="" if workflow_id is None else request.location(exposure.name, workflow_id),
            task_queue=exposure.task_queue or self.temporal.settings.task_queue or self._no_task_queue(exposure),
            limits=self.limits,
            rpc_timeout=self.limits.rpc_timeout,
            access=access,
            owner_attribute=self._owner_attribute,
            target=target,
            keyed=keyed,
            waiting=functools.partial(self._metrics.waiting, endpoint),
            take_stream=functools.partial(self._take_stream, principal),
            make_pages=functools.partial(self._pages, request),
            start_options=options,
        )
        work = self._perform(call, endpoint)
        return await (work if io is None else io.resolve(work))

    async def _perform(self, call: Call, endpoint: Endpoint) -> GatewayResponse:
        try:
            call.client = await self.temporal.client()
        except TemporalUnreachableError:
            note_workflow(call.workflow_id)  # Otherwise the client notes it.
            raise
        if call.target is not None:
            await call.target.check()
        elif call.exposure.ownership is not None:
            await ensure_keyword(call.client, self._owner_attribute, self.limits.rpc_timeout)
        return await endpoint.route.perform(call)

    async def _respond_to_schedule(
        self, request: GatewayRequest, endpoint: Endpoint, exposure: ScheduleExposure, id: str | None, io: IO | None
    ) -> GatewayResponse:
        call = ScheduleCall(
            temporal=self.temporal,
            request=request,
            exposure=exposure,
            id=id,
            value=self._read(request, endpoint),
            rpc_timeout=self.limits.rpc_timeout,
        )
        action = Action(
            operation=endpoint.route.operation,
            exposure=exposure,
            workflow_id=None,
            name=id,
            input=call.value,
            principal=request.principal,
            request=request.raw_request,
        )
        await self._guard.check(action, io, request.call_blocking)
        work = endpoint.route.perform(call)
        return await (work if io is None else io.resolve(work))

    def _read(self, request: GatewayRequest, endpoint: Endpoint) -> Any:
        """The validated input. Raises a problem."""
        if endpoint.route.key is Key.REFUSED and "idempotency-key" in request.headers:
            raise bad_request(
                "Idempotency-Key does not work here, and each request would be executed: omit it. Before you repeat a "
                "request without a response, check whether it was executed"
            )
        if request.query_params:
            self._check_query(request, endpoint)
        try:
            if endpoint.body is None:
                return self._query_arguments(request, endpoint) if endpoint.takes_query_arguments else None
            self._check_body(request)
            return endpoint.body.parse(request.body)
        except ValidationError as error:
            # Only here: a later validation error is not the client's.
            raise invalid_body(error, () if endpoint.body is None else endpoint.body.members) from None

    def _check_query(self, request: GatewayRequest, endpoint: Endpoint) -> None:
        """Raises a problem for an unknown or repeated query parameter.

        The app's own parameters are allowed.
        """
        known = endpoint.query_names
        for name in request.query_names():
            if name not in known and name not in request.app_parameters and name not in self._app_parameters:
                raise unknown_parameter(name, known)
            if name in known and request.is_repeated(name):
                raise repeated_parameter(name)

    def _query_arguments(self, request: GatewayRequest, endpoint: Endpoint) -> Any:
        """Raises ``ValidationError``."""
        assert endpoint.handler is not None, "only endpoints of queries take them"
        arguments = endpoint.handler.arguments
        names = {parameter.name for parameter in arguments.parameters}
        return arguments.parse_strings(
            {name: request.query(name) or "" for name in request.query_names() if name in names}
        )

    def _check_body(self, request: GatewayRequest) -> None:
        """Raises a problem for a body that is too large or not JSON.

        A page of another site cannot send JSON with its user's cookies, unless the app allows it. An empty body may
        have any type, except if the browser reports that such a page sends it.
        """
        body, limits = request.body, self.limits
        if len(body) > limits.max_body:
            raise too_large(limits.max_body)
        if len(body) > limits.max_values and has_more_values(body, limits.max_values):
            raise too_many_values(limits.max_values)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = media_type == "application/json" or media_type.endswith("+json")
        is_empty = not body and media_type not in _SENT_BY_FORMS
        if not is_json and (not is_empty or is_of_another_site(request.headers)):
            raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "no-json", "send JSON, as application/json")

    def check_length(self, length: int | None) -> None:
        """Raises a problem for a body over the limit. Adapters call it before they read."""
        if length is not None and length > self.limits.max_body:
            raise too_large(self.limits.max_body)

    def _target(self, request: GatewayRequest, exposure: Exposure, workflow_id: str, access: Access) -> Target:
        run_id = request.query("run_id") or None
        if run_id is not None:
            check_id(run_id, "run_id")
        connect, rpc_timeout = self.temporal.client, self.limits.rpc_timeout
        return Target(connect, exposure, workflow_id, run_id, access, self._owner_attribute, rpc_timeout)

    def _keyed(self, request: GatewayRequest, endpoint: Endpoint, value: Any) -> KeyedRequest | None:
        if endpoint.route.key is not Key.USED:
            return None
        handler = "" if endpoint.handler is None else endpoint.handler.name
        place = (endpoint.workflow_type, endpoint.route.operation.value, handler)
        key = principal_key(request.principal, self._identify)
        return keyed_request(request.headers["idempotency-key"], key, place, value)

    def _declare_attributes(self, exposure: Exposure, made: TypedSearchAttributes) -> None:
        """Check an attribute in the namespace when a function first sets it.

        ``__init__`` has declared the attributes that an exposure declares by key.
        """
        known = declared_keys(exposure.search_attributes)
        for key in [pair.key for pair in made if pair.key not in known]:
            place = (exposure.name, key.name, key.indexed_value_type)
            if place not in self._declared_attributes:
                self._declared_attributes.add(place)
                self.temporal.add_search_attributes(key, where=f"expose({exposure.definition.name})")

    def _no_task_queue(self, exposure: Exposure) -> NoReturn:
        raise TemporalSettingsError(
            f"{exposure.name} has no task queue: give task_queue= to expose() or to Temporal(), or set "
            f"{self.temporal.variable_prefix}TASK_QUEUE"
        )

    def _take_stream(self, principal: Any) -> Callable[[], None]:
        """Raises the problem 429 for one stream too many, and ``UnknownPrincipalError``."""
        if self._guard.is_open:
            return lambda: None  # Its callers are not distinguished.
        return self._stream_slots.take(principal_key(principal, self._identify))

    def _pages(self, request: GatewayRequest, namespace: str, *scope: str) -> Pages:
        """Raises ``UnknownPrincipalError``."""
        key = principal_key(request.principal, self._identify)
        return self._page_tokens.of((namespace, key, *scope), request.secrets)

    def refuse(self, method: str, path: str, problem: Problem) -> GatewayResponse:
        """For adapters: the response to a request that the framework refuses."""
        response = problem.response()
        try:
            endpoint = self.endpoints.find(method, path).endpoint
        except Problem:
            endpoint = None
        self._metrics.count(endpoint, response.status_code, time.perf_counter())
        return without_body(response) if method == "HEAD" else response

    def answer_document(self, method: str, *, mount: str, title: str) -> GatewayResponse:
        """The response with the document. ``mount`` is the path before the gateway's."""
        return self._documents.answer(method, mount=mount, title=title)

    def answer_docs(self, method: str, *, title: str, docs: bool | str) -> GatewayResponse:
        """The response to a request for the page with Swagger UI, next to the document.

        ``docs`` is the URL of the app's own copy of ``swagger-ui-dist``, or ``True`` for a CDN.
        """
        return answer_page(method, title=title, assets=docs if isinstance(docs, str) else None)


def _request_id_of(request: GatewayRequest) -> AbstractContextManager[None]:
    """A context with the id in the header, unless a middleware has set another one."""
    return web_request(current_request_id() or usable_request_id(request.headers[_REQUEST_ID]))


_Labels = tuple[tuple[str, str], ...]


class _Instruments:
    def __init__(self, meter: MetricMeter) -> None:
        self.meter = meter
        self.requests = meter.create_counter("durably_gateway_requests", "Requests with a response.")
        self.latency = meter.create_histogram_timedelta(
            GATEWAY_LATENCY, "From a request to its response, or to the start of its stream.", "duration"
        )
        self.waiting = meter.create_gauge("durably_gateway_waiting", "Open long polls and streams.")
        self.held = Counter[_Labels]()


class _Metrics:
    """Metrics of requests, for ``Temporal.serve_metrics``.

    It is created before a fork. Each process has its own meter.
    """

    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal
        self._lock = threading.Lock()
        self._made: _Instruments | None = None

    def count(self, endpoint: Endpoint | None, status: int, start: float) -> None:
        """Count a response. ``start`` is the ``time.perf_counter()`` of the request."""
        instruments = self._instruments()
        place = ("unmatched", "") if endpoint is None else (endpoint.label, endpoint.workflow_type)
        labels = {"route": place[0], "workflow_type": place[1], "status": str(int(status))}
        instruments.requests.add(1, labels)
        instruments.latency.record(timedelta(seconds=time.perf_counter() - start), labels)

    @contextmanager
    def waiting(self, endpoint: Endpoint) -> Iterator[None]:
        """A context in which a request waits for a workflow."""
        instruments = self._instruments()
        labels = (("route", endpoint.label), ("workflow_type", endpoint.workflow_type))
        self._change_waiting(instruments, labels, 1)
        try:
            yield
        finally:
            self._change_waiting(instruments, labels, -1)

    def _change_waiting(self, instruments: _Instruments, labels: _Labels, more: int) -> None:
        with self._lock:
            instruments.held[labels] += more
            instruments.waiting.set(instruments.held[labels], dict(labels))

    def _instruments(self) -> _Instruments:
        try:
            meter = self._temporal.meter
        except TemporalSettingsError:
            meter = MetricMeter.noop  # The connection reports the error.
        made = self._made
        if made is None or made.meter is not meter:
            made = self._made = _Instruments(meter)
        return made
