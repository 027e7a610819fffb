"""``CommHandler``: answers an engine's requests for one app, in any web framework.

Each method has an async and a sync front over one coroutine. A sync server drives the coroutine without an event loop,
over blocking I/O. Asynchronous code then runs on the background loop.
"""

import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import msgspec

from durably.app import App
from durably.errors import (
    BodyInvalidError,
    Error,
    FunctionConfigInvalidError,
    FunctionNotServedError,
    MethodUnsupportedError,
    QueryParamMissingError,
    SignatureError,
    TransportError,
    URLInvalidError,
)
from durably.events import sending_run
from durably.execution import FoundSteps, Outcome, Raised, Returned, drive
from durably.functions.checkpoints import HttpCheckpoints
from durably.functions.diagnostics import find_unserved, note_served, warn_of_unserved
from durably.functions.function import Function, FunctionCall
from durably.io.http_client import IO, AsyncIO, BlockingIO, Request, request_with_keys
from durably.io.worker_threads import RequestContext, WorkerThreads
from durably.protocol.call import CallRequest, decode_call, decode_events, decode_steps
from durably.protocol.errors import RUNAWAY_ERROR, StepError, is_quiet
from durably.protocol.headers import DISCOVER, ENGINE_USER_AGENT, Header, Probe, Query, SyncKind, read_trace
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.options import check_switch, check_text
from durably.protocol.text import printable
from durably.settings import (
    ALLOW_IN_BAND_SYNC,
    ENABLE_UNAUTHED_SYNC,
    SERVE_ORIGIN,
    SERVE_PATH,
    STREAMING,
    Environment,
    Streaming,
)
from durably.web import check_size

from .requests import CommRequest, CommResponse, stream
from .serve_options import (
    StreamingOption,
    check_arguments,
    check_production,
    index_functions,
    read_path,
    read_serve_origin,
    read_streaming,
    thread_count,
    warn_of_other_apps,
)
from .syncer import Endpoint, Syncer, UnsignedSyncs, inspect_signed, inspect_unsigned
from .verification import PAGE_HEADERS, Signer, check_addressee, refuse_forms, refuse_pages, verify_request

T = TypeVar("T")

_ASYNC_IO = AsyncIO()
_BLOCKING_IO = BlockingIO()
_NO_CONTEXT = nullcontext()


RAISED_MESSAGE = "%s raised %s"
"""The log message of an error of a function or step. Its arguments are the source, and the error's name."""

Key = str | SignatureError | None
"""The key that signed a request, or the error of its signature. ``None``: unsigned, where that is allowed."""
Method = Callable[[CommRequest, Key, IO], Awaitable[CommResponse]]


class CommHandler:
    """Serves ``functions`` of one client's app.

    - ``framework``: The framework's name, which engines show.
    - ``streaming``: A ``Streaming``, its value or a ``bool``. Overrides ``DURABLY_STREAMING``.
    - ``serve_origin``, ``serve_path``, ``public_path``: Parts of the URL that engines call.
    - ``enable_unauthed_sync``: ``False`` refuses unsigned syncs in production.
    - ``thread_pool``: Runs sync functions, and sync handlers of async functions, if they would block an event loop. By
      default it has ``DURABLY_THREAD_POOL_MAX_WORKERS`` threads.
    - ``request_context``: Returns the framework's context of a request, for calls without a request.
    - ``thread_context``: Returns the context for everything that runs in the pool.
    - ``before_async_call``: Awaited before each call of an async function, on its event loop.

    Raises ``EngineNotConfiguredError`` and ``SigningKeyMissingError`` in production mode without an engine or a signing
    key, ``URLInvalidError`` for an invalid ``serve_origin``, and ``FunctionConfigInvalidError`` for two functions with
    one id or a wrong option.
    """

    def __init__(
        self,
        *,
        client: App,
        framework: str,
        functions: Sequence[Function[Any]],
        streaming: StreamingOption = None,
        enable_unauthed_sync: bool | None = None,
        serve_origin: str | None = None,
        serve_path: str | None = None,
        public_path: str | None = None,
        thread_pool: Executor | None = None,
        request_context: RequestContext = nullcontext,
        thread_context: RequestContext = nullcontext,
        before_async_call: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        check_arguments(client, functions)
        check_switch(enable_unauthed_sync, "serve(enable_unauthed_sync=…)", FunctionConfigInvalidError)
        for name, text in (("serve_origin", serve_origin), ("serve_path", serve_path), ("public_path", public_path)):
            check_text(text, f"serve({name}=…)", FunctionConfigInvalidError)
        environment = Environment()
        self.client = client
        self.framework = framework
        self.functions = list(functions)
        self.serve_origin = serve_origin or environment.read(SERVE_ORIGIN)
        self.serve_path = read_path(serve_path, "serve_path") or environment.read(SERVE_PATH)
        self.public_path = read_path(public_path, "public_path")
        self.unsigned_syncs = UnsignedSyncs()
        if self.serve_origin is not None:
            read_serve_origin(self.serve_origin, "serve_origin" if serve_origin else environment.name_of(SERVE_ORIGIN))
        self.endpoint = Endpoint(
            client, framework, self.functions, self.serve_origin, self.serve_path, self.public_path
        )
        self._by_id = index_functions(self.functions)
        self._last_runaway = ""
        warn_of_other_apps(client, self.functions)
        note_served(self.functions)
        client.is_served |= bool(self.functions)
        self._methods: dict[str, Method] = {"GET": self._get, "POST": self._post, "PUT": self._put}
        self._is_production = client.is_production
        self._headers = client.headers(framework) | {Header.EXPECTED_SERVER_KIND.value: client.mode.value}
        self._checkpoints = HttpCheckpoints(client)
        self._is_streaming = (read_streaming(streaming) or environment.read(STREAMING)) is Streaming.FORCE
        self._allows_in_band = environment.read(ALLOW_IN_BAND_SYNC) is not False
        self._allows_unsigned_sync = (
            environment.read(ENABLE_UNAUTHED_SYNC) if enable_unauthed_sync is None else enable_unauthed_sync
        ) is not False
        size = None
        if thread_pool is None and (size := thread_count(environment, is_in_process=client.in_process is not None)):
            thread_pool = ThreadPoolExecutor(size, thread_name_prefix="durably-call")
        self._threads = None if thread_pool is None else WorkerThreads(thread_pool, thread_context, size)
        self._request_context = request_context
        self._before_async_call = before_async_call
        if client.in_process is not None:
            client.in_process.add_handler(self)
            return
        _over_http.add(self)
        if client.is_production:
            check_production(client)

    @property
    def function_ids(self) -> frozenset[str]:
        """Ids of the functions and of their failure handlers."""
        return frozenset(self._by_id)

    def is_async(self, function_id: str) -> bool:
        """Whether the function is async. ``False`` if the handler does not serve it."""
        function = self._by_id.get(function_id)
        return function is not None and function.entries[function_id].is_async

    @property
    def threads(self) -> WorkerThreads | None:
        """Threads for sync functions; ``None`` for the request's thread.

        Sync functions would block an event loop.
        """
        return self._threads

    # -- fronts

    def post(self, req: CommRequest) -> Awaitable[CommResponse]:
        """Answer a call."""
        return self._answer(req, self._post, _ASYNC_IO)

    def post_sync(self, req: CommRequest) -> CommResponse:
        """Answer a call, in this thread."""
        return drive(self._answer(req, self._post, _BLOCKING_IO))

    def put(self, req: CommRequest) -> Awaitable[CommResponse]:
        """Sync the app."""
        return self._answer(req, self._put, _ASYNC_IO)

    def put_sync(self, req: CommRequest) -> CommResponse:
        """Sync the app, in this thread."""
        return drive(self._answer(req, self._put, _BLOCKING_IO))

    def get_sync(self, req: CommRequest) -> CommResponse:
        """Inspect the app; does no I/O."""
        return drive(self._answer(req, self._get, _BLOCKING_IO))

    async def handle(self, method: str, req: CommRequest) -> CommResponse:
        """Answer a request by its HTTP method."""
        return await self._answer(req, self._methods.get(method.upper(), self._unsupported), _ASYNC_IO)

    def handle_sync(self, method: str, req: CommRequest) -> CommResponse:
        """Answer a request by its HTTP method, in this thread."""
        return drive(self._answer(req, self._methods.get(method.upper(), self._unsupported), _BLOCKING_IO))

    async def call(self, call: FunctionCall, io: IO) -> Outcome:
        """Run a function for an engine in this process. Errors are in the outcome."""
        try:
            outcome = await self._run(self._by_id.get(call.function_id) or self._not_found(call.function_id), call, io)
        except Exception as error:
            self._log_refusal(f'a call of function "{call.function_id}"', error)
            return Raised(error)
        self._log_errors(call, outcome)
        return outcome

    def refuse(self, error: Exception) -> CommResponse:
        """Answer a request that cannot be read as a ``CommRequest``."""
        self._log_refusal("a request", error)
        return self._seal(CommResponse.from_error(error), {})

    # -- the part that all requests share

    async def _answer(self, req: CommRequest, method: Method, io: IO) -> CommResponse:
        """Verify and answer. Never raises because of a request's content.

        In development unsigned requests are accepted, but a signature is verified if there is one.
        """
        key: Key = None
        req.seconds["comm_handler"] = 0.0
        began = time.perf_counter()
        try:
            if len(req.body) > MAX_REQUEST_BYTES:
                check_size(len(req.body))
            if not req.is_connect and (self._is_production or Header.SIGNATURE in req.headers):
                key = await self._verify(req, io)
            response = await method(req, key, io)
        except Exception as error:
            self._log_refusal(_place_of(req), error)
            response = CommResponse.from_error(error)
        req.seconds["comm_handler"] = time.perf_counter() - began
        signer = Signer(key, req.headers.get(Header.SIGNATURE) or "") if isinstance(key, str) else None
        return self._seal(response, req.seconds, signer)

    async def _verify(self, req: CommRequest, io: IO) -> Key:
        client = self.client
        if not self._is_production and not (req.headers.get(Header.SIGNATURE) and client.signing_key):
            return None
        try:
            verified = await verify_request(req, client.signing_keys, io)
        except SignatureError as error:
            return error
        req.body = verified.body
        return verified.key

    def _seal(self, response: CommResponse, seconds: dict[str, float], signer: Signer | None = None) -> CommResponse:
        """Add the headers of every answer, and sign it.

        The key is the one that signed the request.
        """
        timing = ""
        for name, duration in seconds.items():
            timing += f"{', ' if timing else ''}{name};dur={int(duration * 1000)}"
        response.headers = {**self._headers, **response.headers, Header.SERVER_TIMING.value: timing}
        if signer is not None and response.stream is None:
            signer.sign(response)
        return response

    def _log_refusal(self, what: str, error: Exception) -> None:
        """Log our errors without a traceback, and unexpected errors with one."""
        self.client.logger.error(
            "%s was refused: %s",
            printable(what),
            printable(error),
            exc_info=None if isinstance(error, Error) else error,
        )

    # -- the methods

    async def _get(self, req: CommRequest, key: Key, io: IO) -> CommResponse:
        kind = req.server_kind
        if kind is not None and kind is not self.client.mode:
            return CommResponse.from_json({}, status_code=HTTPStatus.FORBIDDEN)
        if isinstance(key, str):
            return CommResponse.from_json(inspect_signed(self.endpoint, req))
        was_signed = isinstance(key, SignatureError) and bool(req.headers.get(Header.SIGNATURE))
        return CommResponse.from_json(inspect_unsigned(self.endpoint, False if was_signed else None))

    async def _put(self, req: CommRequest, key: Key, io: IO) -> CommResponse:
        self._refuse_strangers(req)
        is_in_band = self._allows_in_band and req.headers.get(Header.SYNC_KIND) == SyncKind.IN_BAND
        if isinstance(key, SignatureError):
            was_signed = bool(req.headers.get(Header.SIGNATURE))
            if is_in_band or not self._allows_unsigned_sync or (was_signed and self._is_production):
                raise key
        warn_of_unserved(find_unserved(app_id=self.client.app_id), self.client.logger)
        syncer = Syncer(self.endpoint, self.unsigned_syncs)
        if is_in_band and key is not None:
            return syncer.in_band(req)
        return await syncer.out_of_band(req, io, is_signed=isinstance(key, str))

    def _refuse_strangers(self, req: CommRequest) -> None:
        """Raises ``MethodUnsupportedError``, ``BrowserRequestError``."""
        if req.is_connect:
            return
        if self.client.in_process is not None:
            raise MethodUnsupportedError(
                "the app's engine is in its own process, so this endpoint answers only GET, and no other engine may "
                "call its functions: start the app by its own server (uvicorn, gunicorn …), without `durably dev` or "
                "-u",
                "GET",
            )
        if not self._is_production:
            refuse_pages(req)

    async def _post(self, req: CommRequest, key: Key, io: IO) -> CommResponse:
        headers = req.headers
        if self.client.in_process is not None or not (self._is_production or PAGE_HEADERS.isdisjoint(headers)):
            self._refuse_strangers(req)
        if isinstance(key, SignatureError) and self._is_production:
            raise key
        if headers.get(Header.CONTENT_TYPE) != "application/json" and not self._is_production:
            refuse_forms(req)
        if Query.PROBE in req.query_params and req.probe is Probe.TRUST:
            return CommResponse(body=b"")
        function_id = req.query(Query.FUNCTION_ID)
        if function_id is None:
            raise QueryParamMissingError("the query parameter fnId is missing; it names the function to call")
        step_id = req.query(Query.STEP_ID)
        if step_id is None:
            raise QueryParamMissingError('the query parameter stepId is missing; it is "step" to discover steps')
        function = self._by_id.get(function_id) or self._not_found(function_id)
        call = await self._decode(req, function, function_id, step_id, io)
        # A sync function without a pool would block the thread that sends the spaces.
        can_stream = function.entries[function_id].is_async or self._threads is not None
        if self._is_streaming and not req.is_connect and can_stream:
            signer = Signer(key, headers.get(Header.SIGNATURE) or "") if isinstance(key, str) else None
            return CommResponse.create_streaming(
                lambda: stream(lambda: io.start(self._complete(function, call, signer)), io)
            )
        outcome = await self._run(function, call, io)
        if not isinstance(outcome, Returned):
            self._log_errors(call, outcome)
        return CommResponse.from_call_result(outcome)

    async def _unsupported(self, req: CommRequest, key: Key, io: IO) -> CommResponse:
        self._refuse_strangers(req)
        raise MethodUnsupportedError("this endpoint answers GET, POST and PUT", "GET, POST, PUT")

    # -- calls

    def _not_found(self, function_id: str) -> NoReturn:
        known = ", ".join(sorted(self._by_id)) or "none"
        raise FunctionNotServedError(f"function {function_id!r} not found; this app serves: {known}")

    async def _decode(
        self, req: CommRequest, function: Function[Any], function_id: str, step_id: str, io: IO
    ) -> FunctionCall:
        try:
            request = decode_call(req.body)
        except msgspec.MsgspecError as error:
            raise BodyInvalidError(f"invalid call: {error}") from None
        context, headers = request.ctx, req.headers
        check_addressee(context, function_id, step_id)
        steps, events, event = request.steps or {}, request.events, request.event
        if request.use_api or context.use_api:
            began = time.perf_counter()
            # The call was too large to carry its memos and events (spec §4.4.2).
            steps = await self._fetch_part(request, "actions", decode_steps, io)
            events = await self._fetch_part(request, "batch", decode_events, io)
            event = events[0] if events else event
            req.seconds["use_api"] = time.perf_counter() - began
        events = events or ([event] if event is not None else [])
        if not events:
            raise BodyInvalidError("invalid call: it contains no event, and does not say to fetch it (use_api)")
        # An engine that takes checkpoints sends the ids of the call.
        takes_checkpoints = function.sends_checkpoints and not (context.qi_id is None and context.generation_id is None)
        return FunctionCall(
            function_id=function_id,
            context=context,
            event=event or events[0],
            events=events,
            steps=steps,
            defers=request.defers or {},
            target=None if step_id == DISCOVER else step_id,
            raw_request=req.raw_request,
            seconds=req.seconds,
            request_id=headers.get(Header.REQUEST_ID) or context.request_id,
            job_id=headers.get(Header.JOB_ID) or context.job_id,
            checkpoints=self._checkpoints if takes_checkpoints and self._checkpoints.are_possible else None,
            threads=self._threads,
            traceparent=read_trace(headers) if Header.TRACEPARENT in headers else None,
            is_engines_trace=headers.get(Header.USER_AGENT) != ENGINE_USER_AGENT,
            disable_immediate=context.disable_immediate_execution or headers.get(Header.FORCE_STEP_PLAN) == "true",
        )

    async def _fetch_part(self, request: CallRequest, part: str, decode: Callable[[bytes], T], io: IO) -> T:
        client = self.client
        url = f"{client.api_origin}/v0/runs/{quote(request.ctx.run_id, safe='')}/{part}"
        fetch = Request("GET", url, client.headers(), timeout=client.request_timeout)
        response = await request_with_keys(io, fetch, client.signing_keys)
        if response.status != HTTPStatus.OK:
            raise TransportError(f"cannot fetch the run's {part}: the engine answered {response.status}")
        try:
            return decode(response.body)
        except msgspec.MsgspecError as error:
            raise TransportError(f"cannot read the run's {part} that the engine sent: {error}") from None

    async def _run(self, function: Function[Any], call: FunctionCall, io: IO) -> Outcome:
        if not function.entries[call.function_id].is_async:
            if self._threads is None or isinstance(io, BlockingIO):
                return self._call_sync(function, call)
            return await self._threads.run(partial(self._call_sync, function, call))
        if isinstance(io, BlockingIO):
            return await io.resolve(self._run(function, call, _ASYNC_IO))
        token = sending_run.set(call.context.run_id)
        try:
            with self._request_context() if call.raw_request is None else _NO_CONTEXT:
                if self._before_async_call is not None:
                    await self._before_async_call()
                return await function.call(self.client, call, _ASYNC_IO)
        finally:
            sending_run.reset(token)

    def _call_sync(self, function: Function[Any], call: FunctionCall) -> Outcome:
        token = sending_run.set(call.context.run_id)
        try:
            with self._request_context() if call.raw_request is None else _NO_CONTEXT:
                return drive(function.call(self.client, call, _BLOCKING_IO))
        finally:
            sending_run.reset(token)

    async def _complete(self, function: Function[Any], call: FunctionCall, signer: Signer | None) -> CommResponse:
        """The answer inside a streamed response.

        The status and headers of the response were sent before.
        """
        try:
            outcome = await self._run(function, call, _ASYNC_IO)
            self._log_errors(call, outcome)
            response = CommResponse.from_call_result(outcome)
        except Exception as error:
            self._log_refusal(f'a call of function "{function.id}"', error)
            response = CommResponse.from_error(error)
        return self._seal(response, call.seconds, signer)

    def _log_errors(self, call: FunctionCall, outcome: Outcome) -> None:
        if isinstance(outcome, Raised):
            self._log_error("", call, outcome.error)
        elif isinstance(outcome, FoundSteps):
            for report in outcome.reports:
                if report.error is not None:
                    self._log_error("" if report.step is None else f'step "{report.step_id}" of ', call, report.error)

    def _log_error(self, step: str, call: FunctionCall, error: BaseException) -> None:
        source = f'{step}function "{call.function_id}", run {call.context.run_id},'
        if isinstance(error, StepError) and error.name == RUNAWAY_ERROR:
            if error.message != self._last_runaway:  # The whole chain of runs fails with it.
                self.client.logger.error("%s failed: %s", printable(source), printable(error.message))
            self._last_runaway = error.message
        elif not is_quiet(error):
            self.client.logger.error(RAISED_MESSAGE, printable(source), type(error).__name__, exc_info=error)


_over_http: weakref.WeakSet[CommHandler] = weakref.WeakSet()


def functions_of(client: App) -> list[Function[Any]]:
    """The functions of an app that this process has made or serves."""
    served = {
        function.id: function for handler in _over_http if handler.client is client for function in handler.functions
    }
    made = {function.id: function for function in find_unserved(app_id=client.app_id) if isinstance(function, Function)}
    return list({**made, **served}.values())


def serves_over_http() -> bool:
    """Whether an engine in another process can call functions of this process."""
    return bool(_over_http)


def _place_of(req: CommRequest) -> str:
    """The URL without its query, for the log.

    Its parts come from the sender of the request.
    """
    try:
        place = req.request_url.partition("?")[0]
    except URLInvalidError:
        return "a request"
    return place if place.isprintable() else ascii(place)
