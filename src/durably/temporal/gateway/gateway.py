"""The gateway: from a request to a response, whatever the framework.

``Gateway.handle`` is for event loops, ``handle_sync`` for threads. What a request means and whether it is valid is
found out first, without the server; then the app says whether it is allowed; only then the server is asked.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError
from temporalio.common import SearchAttributeKey, TypedSearchAttributes

from durably.execution import drive
from durably.io.background_loop import get_background_loop
from durably.io.http_client import IO, AsyncIO, BlockingIO
from durably.temporal.connection import Temporal
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.inspection import Inspector
from durably.temporal.owners import OWNER_ATTRIBUTE
from durably.temporal.request_ids import HTTP_HEADER, current_request_id, usable_request_id, web_request
from durably.temporal.request_log import note_workflow
from durably.temporal.search_attributes import DeclaredAttribute, ensure_keyword
from durably.temporal.surroundings import is_async

from . import acting, batches, events, history, pausing, reading, results, schedules, starting
from .attributes import declared_keys
from .authorization import (
    Action,
    ActionSubject,
    Authorize,
    Unauthenticated,
    ask,
    check_owners,
    check_policy,
    check_verdict,
)
from .call import Call, Limits
from .endpoints import query_parameters
from .exposure import Exposure, Operation
from .idempotency import KeyedRequest, keyed_request
from .inputs import check_id, has_more_values
from .messages import (
    JSON,
    CallBlocking,
    GatewayRequest,
    GatewayResponse,
    call_here,
    is_of_another_site,
    without_body,
)
from .metrics import GatewayMetrics
from .models import (
    BatchRequest,
    Reason,
    ResetRequest,
    ScheduleBackfillRequest,
    ScheduleNote,
    ScheduleTriggerRequest,
)
from .openapi import openapi
from .ownership import EVERYTHING, Access, check_attribute_name
from .pages import PageTokens, Secret
from .principals import Identify, check_principal, is_anonymous, principal_key
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
from .routes import AnyMatch, Match, ScheduleMatch, answer_get_only, match, options
from .schedule_exposure import Place, ScheduleExposure
from .security import SecuritySchemes, check_security_schemes
from .start_options import StartOptions
from .stream_slots import StreamSlots
from .swagger import swagger_page
from .target import Target

_DO = {
    Operation.START: starting.start,
    Operation.SIGNAL_WITH_START: starting.signal_with_start,
    Operation.LIST: reading.list_workflows,
    Operation.DESCRIBE: reading.describe,
    Operation.RESULT: results.result,
    Operation.SIGNAL: acting.signal,
    Operation.QUERY: acting.query,
    Operation.UPDATE: acting.update,
    Operation.CANCEL: acting.cancel,
    Operation.TERMINATE: acting.terminate,
    Operation.RESET: acting.reset,
    Operation.PAUSE: pausing.pause,
    Operation.RESUME: pausing.resume,
    Operation.BATCH_CANCEL: batches.batch,
    Operation.BATCH_TERMINATE: batches.batch,
    Operation.BATCH_SIGNAL: batches.batch,
    Operation.BATCH_STATUS: batches.batch_status,
    Operation.HISTORY: history.history,
    Operation.RAW_HISTORY: history.raw_history,
    Operation.EVENTS: events.events,
}
_BATCHES = frozenset({Operation.BATCH_CANCEL, Operation.BATCH_TERMINATE, Operation.BATCH_SIGNAL})
_TAKE_KEYS = _BATCHES | {Operation.START, Operation.SIGNAL_WITH_START, Operation.SIGNAL, Operation.UPDATE}
_REFUSE_KEYS = frozenset({Operation.RESET, Operation.TRIGGER_SCHEDULE, Operation.BACKFILL_SCHEDULE})
"""Each such request starts something, and the server keeps nothing by which a repetition is known."""
_MAXIMUM_DOCUMENTS = 8
_SENT_BY_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
_BODIES: dict[Operation, type[BaseModel]] = {
    Operation.CANCEL: Reason,
    Operation.TERMINATE: Reason,
    Operation.RESET: ResetRequest,
    Operation.PAUSE: Reason,
    Operation.RESUME: Reason,
    Operation.BATCH_CANCEL: BatchRequest,
    Operation.BATCH_TERMINATE: BatchRequest,
    Operation.PAUSE_SCHEDULE: ScheduleNote,
    Operation.RESUME_SCHEDULE: ScheduleNote,
    Operation.TRIGGER_SCHEDULE: ScheduleTriggerRequest,
    Operation.BACKFILL_SCHEDULE: ScheduleBackfillRequest,
}


class Gateway:
    """HTTP endpoints for the workflows that ``exposures`` open (see ``expose``).

    ``authorize`` is told of each action before anything happens and returns whether it is allowed. A synchronous one
    may block: it runs in the request's thread, and where requests are on an event loop in a thread of its own. Without
    one, ``allow_anonymous=True`` must say so.
    ``identify`` gives a text of its own for each principal (``None`` is anonymous), where ``pk``, ``id`` and ``sub``
    do not tell principals apart: see ``principals.principal_key``.
    ``secret``, 16 characters or more, signs the tokens of pages; unless it is given, the environment's
    ``TEMPORAL_GATEWAY_SECRET``, else the framework's own secret, else a random one of the process.
    ``owner_attribute`` is the search attribute, a Keyword, that holds the owner of a workflow (``expose(owner=…)``).
    ``security_schemes`` maps names to OpenAPI security schemes. A request needs one of them. They only document the
    API: ``authorize`` must enforce them.
    ``limits`` bounds waits, bodies and streams.
    ``schedules`` opens declared schedules (see ``expose_schedules``), none unless given.

    ``app_parameters`` are names of query parameters that the app itself reads, such as in ``authorize``. The gateway
    answers 400 to others than its own. Those of FastAPI's dependencies are known without it.

    Raises ``TemporalSettingsError`` without ``authorize`` or ``allow_anonymous``, for two exposures with one
    name, and for a short secret.
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
        self.temporal = temporal
        self.exposures: Mapping[str, Exposure] = {exposure.name: exposure for exposure in exposures}
        check_policy(authorize, allow_anonymous, "Gateway", "do all that is exposed")
        check_owners(allow_anonymous, self.exposures)
        if len(self.exposures) < len(exposures):
            raise TemporalSettingsError("two exposures have the same name: give one of them name=")
        self.places: Mapping[str, Place] = self.exposures
        if schedules is not None:
            if not isinstance(schedules, ScheduleExposure):
                raise TemporalSettingsError(f"Gateway(schedules=…) takes expose_schedules(…), and not {schedules!r}")
            if schedules.name in self.exposures:
                raise TemporalSettingsError(
                    f'a workflow has the name "{schedules.name}" too: give name= to expose_schedules() or expose()'
                )
            self.places = {**self.exposures, schedules.name: schedules}
        for exposure in exposures:
            keys = declared_keys(exposure.search_attributes)
            temporal.add_search_attributes(*keys, where=f"expose({exposure.definition.name})")
            if exposure.ownership is not None:
                # Registered at the first request too, so that it is no fault if the namespace does not have it yet.
                key = SearchAttributeKey.for_keyword(check_attribute_name(owner_attribute))
                temporal.owner_attributes.append(DeclaredAttribute(key, f"expose({exposure.definition.name}, owner=…)"))
        self.allow_anonymous = allow_anonymous
        self.security_schemes = check_security_schemes(security_schemes)
        self.limits = limits or Limits()
        self._authorize = authorize
        self._identify = identify
        self._owner_attribute = check_attribute_name(owner_attribute)
        self._is_authorize_async = authorize is not None and is_async(authorize)
        self._inspector = Inspector(temporal)
        self._page_tokens = PageTokens(secret)
        self._metrics = GatewayMetrics(temporal)
        self._declared_attributes: set[tuple[str, str, Any]] = set()
        self._app_parameters = frozenset([app_parameters] if isinstance(app_parameters, str) else app_parameters)
        self._query_parameters: dict[str, tuple[str, ...]] = {}
        self._stream_slots = StreamSlots(self.limits.max_streams)
        self._documents: dict[tuple[str, str], bytes] = {}

    async def handle(self, request: GatewayRequest, found: AnyMatch | None = None) -> GatewayResponse:
        """Never raises for what a client does, nor for a server that is away: those are responses.

        ``found`` is the route, if the framework has matched it already.
        """
        return await self._answer(request, found, AsyncIO(), request.call_blocking or asyncio.to_thread)

    def handle_sync(self, request: GatewayRequest) -> GatewayResponse:
        """``handle`` for threads."""
        return drive(self._answer(request, None, BlockingIO(), call_here))

    def answer_document(self, method: str, *, mount: str, title: str) -> GatewayResponse:
        """The answer to a request for the OpenAPI document; ``mount`` is the path before the gateway's own."""
        return _answer_get(method, JSON, lambda: self.document(mount=mount, title=title))

    def answer_docs(self, method: str, *, title: str, docs: bool | str) -> GatewayResponse:
        """The answer to a request for a page with Swagger UI beside the document.

        ``docs`` is the URL of the app's own copy of ``swagger-ui-dist``, or ``True`` for a CDN.
        """
        assets = docs if isinstance(docs, str) else None
        return _answer_get(method, "text/html; charset=utf-8", lambda: swagger_page(title=title, assets=assets))

    def document(self, *, mount: str, title: str) -> bytes:
        """The OpenAPI document as JSON, made once; ``mount`` is the path before the gateway's own."""
        key = (mount, title)
        if key not in self._documents:
            made = openapi(self.places, mount=mount, title=title, version="1", security_schemes=self.security_schemes)
            if len(self._documents) >= _MAXIMUM_DOCUMENTS:
                self._documents.clear()
            self._documents[key] = msgspec.json.encode(made)
        return self._documents[key]

    def refuse(self, method: str, path: str, problem: Problem) -> GatewayResponse:
        """For adapters: answer a request in which the framework itself has found something wrong."""
        response = problem.response()
        self._metrics.count(_match_or_none(method, path, self.places), response.status_code, time.perf_counter())
        return without_body(response) if method == "HEAD" else response

    async def _answer(
        self, request: GatewayRequest, found: AnyMatch | None, io: IO, call_blocking: CallBlocking
    ) -> GatewayResponse:
        start = time.perf_counter()
        try:
            if request.method == "OPTIONS":
                return options(request.path, self.places)
            found = found or match(request.method, request.path, self.places)
            request.principal = check_principal(request.principal)
            with web_request(current_request_id() or usable_request_id(request.headers.get(HTTP_HEADER.lower()))):
                if isinstance(found, ScheduleMatch):
                    response = await self._carry_out_schedule(request, found, io, call_blocking)
                else:
                    response = await self._carry_out(request, found, io, call_blocking)
        except Unauthenticated as error:
            response = unauthenticated(error.challenge).response()
        except Exception as error:
            response = to_problem(error).response()
        self._metrics.count(found, response.status_code, start)
        return without_body(response) if request.method == "HEAD" else response

    async def _carry_out(
        self, request: GatewayRequest, found: Match, io: IO, call_blocking: CallBlocking
    ) -> GatewayResponse:
        ownership = found.exposure.ownership
        # Before the body is read, which costs more than to say 401.
        access = EVERYTHING if ownership is None else ownership.access(request.principal)
        _refuse_key(request, found)
        value = self._read(request, found)
        target = self._target(request, found, access)
        keyed = self._keyed(request, found, value)
        workflow_id = found.workflow_id
        starts = found.operation in (Operation.START, Operation.SIGNAL_WITH_START)
        start_input = value.input if found.operation is Operation.SIGNAL_WITH_START else value
        if starts:
            workflow_id = starting.choose_id(found.exposure, keyed, start_input, request.principal, access)
        is_unlimited = found.operation in _BATCHES and access.sees_all
        new_owner = None if is_unlimited else access.owner
        subject = ActionSubject(target, self._owner_attribute, new_owner=new_owner)
        await self._check_allowed(_action(request, found, workflow_id, value, subject), io, call_blocking)
        if self._authorize is not None and keyed is not None and is_anonymous(request.principal):
            # All such callers would share their keys: one with another's key would get that one's workflow.
            raise no_principal()
        options = StartOptions()
        if starts:
            options = starting.start_options(found.exposure, start_input, request.principal)
            self._declare_attributes(found.exposure, options.search_attributes)
        return await io.resolve(self._perform(request, found, workflow_id or "", value, access, target, keyed, options))

    def _declare_attributes(self, exposure: Exposure, made: TypedSearchAttributes | None) -> None:
        """Have each attribute that a function sets for the first time looked for in the namespace.

        Those that an exposure declares by key have been declared when the gateway was made.
        """
        known = declared_keys(exposure.search_attributes)
        for key in [pair.key for pair in made or () if pair.key not in known]:
            place = (exposure.name, key.name, key.indexed_value_type)
            if place not in self._declared_attributes:
                self._declared_attributes.add(place)
                self.temporal.add_search_attributes(key, where=f"expose({exposure.definition.name})")

    async def _carry_out_schedule(
        self, request: GatewayRequest, found: ScheduleMatch, io: IO, call_blocking: CallBlocking
    ) -> GatewayResponse:
        _refuse_key(request, found)
        value = self._read(request, found)
        await self._check_allowed(_action(request, found, None, value, ActionSubject()), io, call_blocking)
        call = schedules.ScheduleCall(
            temporal=self.temporal,
            match=found,
            value=value,
            mount=request.mount,
            rpc_timeout=self.limits.rpc_timeout,
        )
        return await io.resolve(schedules.perform(call))

    async def _check_allowed(self, action: Action, io: IO, call_blocking: CallBlocking) -> None:
        if self._authorize is not None:
            check_verdict(
                await ask(self._authorize, action, self._is_authorize_async, io, call_blocking), action.principal
            )

    def _keyed(self, request: GatewayRequest, found: Match, value: Any) -> KeyedRequest | None:
        if found.operation not in _TAKE_KEYS:
            return None
        handler = "" if found.handler is None else found.handler.name
        place = (found.exposure.definition.name, found.operation.value, handler)
        return keyed_request(request, lambda: principal_key(request.principal, self._identify), place, value)

    def _target(self, request: GatewayRequest, found: Match, access: Access) -> Target | None:
        if found.workflow_id is None:
            return None
        run_id = request.query("run_id") or None
        if run_id is not None:
            check_id(run_id, "run_id")
        return Target(
            self.temporal.client,
            found.exposure,
            found.workflow_id,
            run_id,
            access,
            self._owner_attribute,
            self.limits.rpc_timeout,
        )

    def _read(self, request: GatewayRequest, found: AnyMatch) -> Any:
        """The validated input. Raises a problem."""
        self._check_query(request, found)
        try:
            return self._validate(request, found)
        except ValidationError as error:
            # Only here: whatever does not validate later is not the caller's.
            body = _BODIES.get(found.operation)
            raise invalid_body(error, () if body is None else tuple(body.model_fields)) from None

    def _check_query(self, request: GatewayRequest, found: AnyMatch) -> None:
        """Raises a problem for a query parameter that would be ignored, such as a misspelt ``page_size``, and for one
        that is given twice. Parameters of the app's own may be."""
        if not request.query_params:
            return
        if found.place not in self._query_parameters:
            self._query_parameters[found.place] = query_parameters(found)
        known = self._query_parameters[found.place]
        for name in request.query_names():
            if name not in known and name not in request.app_parameters and name not in self._app_parameters:
                raise unknown_parameter(name, known)
            if name in known and request.is_repeated(name):
                raise repeated_parameter(name)

    def _validate(self, request: GatewayRequest, found: AnyMatch) -> Any:
        """Raises problems and ``ValidationError``."""
        if found.route.method == "GET":
            if isinstance(found, Match) and found.operation is Operation.QUERY and found.handler is not None:
                names = {parameter.name for parameter in found.handler.arguments.parameters}
                given = {name: request.query(name) or "" for name in request.query_names() if name in names}
                return found.handler.arguments.parse_strings(given)
            return None
        self._check_body(request)
        if found.operation in _BODIES:
            return _BODIES[found.operation].model_validate_json(request.body.strip() or b"{}")
        assert isinstance(found, Match), "the bodies of schedules' operations are all in the table"
        if found.operation is Operation.START:
            return found.exposure.arguments.parse(request.body)
        assert found.handler is not None, "the other routes with a body name a handler"
        if found.operation is Operation.BATCH_SIGNAL and found.handler.batch is not None:
            return found.handler.batch.model_validate_json(request.body.strip() or b"{}")
        if found.operation is Operation.SIGNAL_WITH_START and found.handler.with_start is not None:
            return found.handler.with_start.model_validate_json(request.body.strip() or b"{}")
        return found.handler.arguments.parse(request.body)

    def _check_body(self, request: GatewayRequest) -> None:
        """Only JSON, which a page of another site cannot send with its visitor's cookies unless it is allowed to; or
        nothing, of any type, unless the browser reports that the request is of such a page."""
        self.check_length(len(request.body))
        if has_more_values(request.body, self.limits.max_values):
            raise too_many_values(self.limits.max_values)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = media_type == "application/json" or media_type.endswith("+json")
        is_empty = not request.body and media_type not in _SENT_BY_FORMS
        if not is_json and (not is_empty or is_of_another_site(request.headers)):
            raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "no-json", "send JSON, as application/json")

    def check_length(self, length: int | None) -> None:
        """For adapters too, before they read a body of that many bytes. Raises a problem."""
        if length is not None and length > self.limits.max_body:
            raise too_large(self.limits.max_body)

    async def _perform(
        self,
        request: GatewayRequest,
        found: Match,
        workflow_id: str,
        value: Any,
        access: Access,
        target: Target | None,
        keyed: KeyedRequest | None,
        start_options: StartOptions,
    ) -> GatewayResponse:
        if workflow_id:
            note_workflow(workflow_id)
        call = Call(
            request=request,
            match=found,
            value=value,
            workflow_id=workflow_id,
            client=await self.temporal.client(),
            task_queue=self._task_queue(found.exposure),
            limits=self.limits,
            inspector=self._inspector,
            metrics=self._metrics,
            page_tokens=self._page_tokens,
            access=access,
            owner_attribute=self._owner_attribute,
            target=target,
            keyed=keyed,
            identify=self._identify,
            start_options=start_options,
            # A gateway that is open to all does not distinguish its callers.
            stream_slots=None if self.allow_anonymous else self._stream_slots,
        )
        if target is not None:
            await target.check()
        elif found.exposure.ownership is not None:
            await ensure_keyword(call.client, self._owner_attribute, self.limits.rpc_timeout)
        return await _DO[found.operation](call)

    def _task_queue(self, exposure: Exposure) -> str:
        queue = exposure.task_queue or self.temporal.settings.task_queue
        if queue is None:
            raise TemporalSettingsError(
                f"on which task queue does {exposure.name} start? Give task_queue= to expose() or to Temporal(), "
                f"or set {self.temporal.variable_prefix}TASK_QUEUE"
            )
        return queue


def _answer_get(method: str, content_type: str, make: Callable[[], bytes]) -> GatewayResponse:
    try:
        if (response := answer_get_only(method)) is not None:
            return response
    except Problem as problem:
        return problem.response()
    made = GatewayResponse(status_code=HTTPStatus.OK, headers={"Content-Type": content_type}, body=make())
    return without_body(made) if method == "HEAD" else made


def _refuse_key(request: GatewayRequest, found: AnyMatch) -> None:
    if found.operation in _REFUSE_KEYS and "idempotency-key" in request.headers:
        raise bad_request(
            "Idempotency-Key does not work here, and the request would be carried out each time: leave it out. If a "
            "request was not answered, look whether it was carried out before you repeat it"
        )


def _match_or_none(method: str, path: str, places: Mapping[str, Place]) -> AnyMatch | None:
    try:
        return match(method, path, places)
    except Problem:
        return None


def _action(
    request: GatewayRequest, found: AnyMatch, workflow_id: str | None, value: Any, subject: ActionSubject
) -> Action:
    if isinstance(found, ScheduleMatch):
        name = found.schedule_id
    else:
        name = None if found.handler is None else found.handler.name
    return Action(
        operation=found.operation,
        exposure=found.exposure,
        workflow_id=workflow_id,
        name=name,
        input=value,
        principal=request.principal,
        request=request.raw_request,
        subject=subject,
    )


def iterate_sync(stream: AsyncGenerator[bytes, None]) -> Iterator[bytes]:
    """A response's stream in a thread: each chunk is waited for on the background loop."""
    loop = get_background_loop()
    try:
        while (chunk := loop.run(anext(stream, None))) is not None:
            yield chunk
    finally:
        loop.run(stream.aclose())
