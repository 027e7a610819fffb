"""CommHandler: answers an engine's requests for one app, whatever the web framework.

Each method has an async and a sync front over one coroutine: under a sync server it is driven without an
event loop over blocking I/O, and whatever is really asynchronous goes to the portal.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from durably.client import Client
from durably.errors import (
    BodyInvalidError,
    BodyTooLargeError,
    FunctionConfigInvalidError,
    FunctionNotFoundError,
    MethodUnsupportedError,
    QueryParamMissingError,
    SignatureError,
    SigningKeyMissingError,
)
from durably.execution import Found, Outcome, Raised, drive
from durably.functions import Function, FunctionCall
from durably.protocol import signatures
from durably.protocol.call import CallRequest, decode_call, decode_events, decode_steps
from durably.protocol.errors import is_quiet
from durably.protocol.headers import Header, Probe, Query, SyncKind
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.settings import Environment, Streaming
from durably.transport import IO, AsyncIO, BlockingIO, Request, request_with_keys

from . import inspection
from .models import CommRequest, CommResponse
from .streaming import stream
from .syncer import Syncer

Method = Callable[[CommRequest, str | SignatureError | None, IO], Awaitable[CommResponse]]


class CommHandler:
    """Serves ``functions`` of one client's app.

    ``framework`` is the name that engines show. ``streaming`` wins over ``INNGEST_STREAMING``. Raises
    ``SigningKeyMissingError`` in production mode without a signing key, and ``FunctionConfigInvalidError``
    for two functions with one id.
    """

    def __init__(
        self,
        *,
        client: Client,
        framework: str,
        functions: Sequence[Function[Any]],
        streaming: Streaming | None = None,
        enable_unauthed_sync: bool | None = None,
    ) -> None:
        environment = Environment()
        self.client = client
        self.framework = framework
        self.functions = list(functions)
        self._by_id = _index(self.functions)
        self._is_streaming = (streaming or environment.streaming) is Streaming.FORCE
        self._allows_in_band = environment.allows_in_band_sync
        self._allows_unsigned_sync = (
            environment.allows_unsigned_sync if enable_unauthed_sync is None else enable_unauthed_sync
        )
        workers = environment.thread_pool_max_workers
        self._thread_pool = None if workers == 0 else ThreadPoolExecutor(workers, thread_name_prefix="durably-call")
        if client.is_production and client.signing_key is None:
            raise SigningKeyMissingError

    # -- fronts

    async def post(self, req: CommRequest) -> CommResponse:
        """Answer a call."""
        return await self._answer(req, self._post, AsyncIO())

    def post_sync(self, req: CommRequest) -> CommResponse:
        """Answer a call, in this thread."""
        return drive(self._answer(req, self._post, BlockingIO()))

    async def put(self, req: CommRequest) -> CommResponse:
        """Sync the app."""
        return await self._answer(req, self._put, AsyncIO())

    def put_sync(self, req: CommRequest) -> CommResponse:
        """Sync the app, in this thread."""
        return drive(self._answer(req, self._put, BlockingIO()))

    def get_sync(self, req: CommRequest) -> CommResponse:
        """Inspect the app; does no I/O."""
        return drive(self._answer(req, self._get, BlockingIO()))

    async def handle(self, method: str, req: CommRequest) -> CommResponse:
        """Answer a request by its HTTP method."""
        return await self._answer(req, self._method(method), AsyncIO())

    def handle_sync(self, method: str, req: CommRequest) -> CommResponse:
        """Answer a request by its HTTP method, in this thread."""
        return drive(self._answer(req, self._method(method), BlockingIO()))

    # -- what all requests have in common

    def _method(self, method: str) -> Method:
        return {"GET": self._get, "POST": self._post, "PUT": self._put}.get(method.upper(), self._unsupported)

    async def _answer(self, req: CommRequest, method: Method, io: IO) -> CommResponse:
        """Verify, answer, and put on what every answer carries. Never raises for what a request contains."""
        key: str | SignatureError | None = None
        with req.timings.measure("comm_handler"):
            try:
                if len(req.body) > MAX_REQUEST_BYTES:
                    raise BodyTooLargeError(f"the request's body is larger than {MAX_REQUEST_BYTES} bytes")
                key = self._verify(req)
                response = await method(req, key, io)
            except Exception as error:
                self._log(f"{req.request_url.partition('?')[0]} refused: {error}", error)
                response = CommResponse.from_error(error)
        response.headers = self._base_headers() | response.headers
        response.headers[Header.SERVER_TIMING.value] = req.timings.to_header()
        if isinstance(key, str) and response.stream is None:
            response.headers[Header.SIGNATURE.value] = signatures.sign(response.body_bytes(), key, int(time.time()))
        return response

    def _verify(self, req: CommRequest) -> str | SignatureError | None:
        """The key that signed the request; an error if none did although one must; ``None`` where none need."""
        client = self.client
        header = req.header(Header.SIGNATURE)
        if req.is_connect or (not client.is_production and not (header and client.signing_key)):
            return None
        try:
            return signatures.verify(req.body, header, client.signing_keys, time.time())
        except SignatureError as error:
            return error

    def _base_headers(self) -> dict[str, str]:
        headers = self.client.headers(self.framework)
        headers[Header.EXPECTED_SERVER_KIND.value] = self.client.mode.value
        return headers

    def _log(self, message: str, error: BaseException, *, with_traceback: bool = False) -> None:
        if not is_quiet(error):
            self.client.logger.error(message, exc_info=error if with_traceback else None)

    # -- the methods

    async def _get(self, req: CommRequest, key: str | SignatureError | None, io: IO) -> CommResponse:
        kind = req.server_kind
        if kind is not None and kind is not self.client.mode:
            return CommResponse(body={}, status_code=403)
        if isinstance(key, str):
            return CommResponse(body=inspection.authenticated(self, req))
        was_signed = req.header(Header.SIGNATURE) is not None and isinstance(key, SignatureError)
        return CommResponse(body=inspection.unauthenticated(self, False if was_signed else None))

    async def _put(self, req: CommRequest, key: str | SignatureError | None, io: IO) -> CommResponse:
        if req.header(Header.SYNC_KIND) == SyncKind.IN_BAND and self._allows_in_band:
            if isinstance(key, SignatureError):
                raise key
            if key is not None:
                return Syncer(self).in_band(req)
        if isinstance(key, SignatureError) and not self._allows_unsigned_sync:
            raise key
        return await Syncer(self).out_of_band(req, io)

    async def _post(self, req: CommRequest, key: str | SignatureError | None, io: IO) -> CommResponse:
        if isinstance(key, SignatureError):
            raise key
        if req.probe is Probe.TRUST:
            return CommResponse(body=b"")
        function_id = req.query(Query.FUNCTION_ID)
        if function_id is None:
            raise QueryParamMissingError("the query parameter fnId is missing; it names the function to call")
        if req.query(Query.STEP_ID) is None:
            raise QueryParamMissingError('the query parameter stepId is missing; it is "step" to discover steps')
        function, function_id = self._find(function_id)
        call = await self._decode(req, function_id, io)
        if self._is_streaming:
            job = io.start(self._run(function, call, AsyncIO()))
            return CommResponse.create_streaming(partial(stream, job, io, partial(self._finish, req, function, key)))
        return self._respond(function, await self._run(function, call, io))

    async def _unsupported(self, req: CommRequest, key: str | SignatureError | None, io: IO) -> CommResponse:
        raise MethodUnsupportedError("this endpoint answers GET, POST and PUT")

    # -- calls

    def _find(self, function_id: str) -> tuple[Function[Any], str]:
        function = self._by_id.get(function_id)
        if function is None:
            known = ", ".join(sorted(self._by_id)) or "none"
            raise FunctionNotFoundError(f'function "{function_id}" not found; this app serves: {known}')
        return function, function_id

    async def _decode(self, req: CommRequest, function_id: str, io: IO) -> FunctionCall:
        try:
            request = decode_call(req.body)
            steps, events, event = request.steps or {}, request.events, request.event
            if request.use_api or request.ctx.use_api:
                with req.timings.measure("use_api"):
                    steps, events = await self._fetch(request, io)
                event = events[0] if events else event
        except msgspec.MsgspecError as error:
            raise BodyInvalidError(f"invalid call: {error}") from None
        events = events or ([event] if event is not None else [])
        if not events:
            raise BodyInvalidError("invalid call: it contains no event, and does not say to fetch it (use_api)")
        return FunctionCall(
            function_id=function_id,
            context=request.ctx,
            event=event or events[0],
            events=events,
            steps=steps,
            target=req.target,
            raw_request=req.raw_request,
            timings=req.timings,
            request_id=req.header(Header.REQUEST_ID) or request.ctx.request_id,
            job_id=req.header(Header.JOB_ID) or request.ctx.job_id,
            disable_immediate=request.ctx.disable_immediate_execution or req.header(Header.FORCE_STEP_PLAN) == "true",
        )

    async def _fetch(self, request: CallRequest, io: IO) -> tuple[dict[str, msgspec.Raw], list[Any]]:
        """Memos and events of a call that was too large to carry them (spec §4.4.2)."""
        base = f"{self.client.api_origin}/v0/runs/{request.ctx.run_id}"
        bodies = []
        for part in ("actions", "batch"):
            fetch = Request("GET", f"{base}/{part}", self.client.headers(), timeout=self.client.request_timeout)
            response = await request_with_keys(io, fetch, self.client.signing_keys)
            if response.status != 200:
                raise BodyInvalidError(f"the engine answered {response.status} to the request for the run's {part}")
            bodies.append(response.body)
        return decode_steps(bodies[0]), decode_events(bodies[1])

    async def _run(self, function: Function[Any], call: FunctionCall, io: IO) -> Outcome:
        if function.is_async(call.function_id):
            return await io.resolve(function.call(self.client, call, AsyncIO()))
        return await io.run(self._thread_pool, partial(function.call_sync, self.client, call, BlockingIO()))

    def _respond(self, function: Function[Any], outcome: Outcome) -> CommResponse:
        if isinstance(outcome, Raised):
            self._log(
                f'function "{function.id}" raised {type(outcome.error).__name__}', outcome.error, with_traceback=True
            )
        elif isinstance(outcome, Found):
            for report in outcome.reports:
                if report.error is not None:
                    message = (
                        f'step "{report.info.id}" of function "{function.id}" raised {type(report.error).__name__}'
                    )
                    self._log(message, report.error, with_traceback=True)
        return CommResponse.from_call_result(outcome)

    def _finish(
        self, req: CommRequest, function: Function[Any], key: str | SignatureError | None, outcome: Outcome
    ) -> tuple[int, dict[str, str], bytes]:
        """The answer inside a streamed one."""
        response = self._respond(function, outcome)
        headers = self._base_headers() | response.headers
        headers[Header.SERVER_TIMING.value] = req.timings.to_header()
        if isinstance(key, str):
            headers[Header.SIGNATURE.value] = signatures.sign(response.body_bytes(), key, int(time.time()))
        return response.status_code, headers, response.body_bytes()


def _index(functions: Sequence[Function[Any]]) -> dict[str, Function[Any]]:
    by_id: dict[str, Function[Any]] = {}
    for function in functions:
        if not isinstance(function, Function):
            raise FunctionConfigInvalidError(f"serve takes functions made by client.create_function, not {function!r}")
        for function_id in (function.id, function.on_failure_fn_id):
            if function_id is None:
                continue
            if function_id in by_id:
                raise FunctionConfigInvalidError(f'two functions have the id "{function_id}"; fn_id must be unique')
            by_id[function_id] = function
    return by_id
