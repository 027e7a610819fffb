"""CommHandler: answers an engine's requests for one app, whatever the web framework.

Each method has an async and a sync front over one coroutine: under a sync server it is driven without an
event loop over blocking I/O, and asynchronous code runs on the background loop.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar
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
    SigningKeyMissingError,
    TransportError,
    URLInvalidError,
)
from durably.execution import Found, Outcome, Raised, drive
from durably.functions.checkpoints import HttpCheckpoints
from durably.functions.function import Function, FunctionCall
from durably.functions.step_results import Timings
from durably.io.http_client import IO, AsyncIO, BlockingIO, Request, request_with_keys
from durably.io.worker_threads import Surroundings, WorkerThreads
from durably.protocol.call import CallRequest, decode_call, decode_events, decode_steps
from durably.protocol.errors import is_quiet
from durably.protocol.events import Event
from durably.protocol.headers import Header, Probe, Query, SyncKind
from durably.protocol.text import printable
from durably.sending import SentBy
from durably.settings import SERVE_ORIGIN, Environment, Streaming, is_test_run

from . import inspection
from .bodies import check_size
from .inspection import Endpoint
from .requests import CommRequest, CommResponse, StreamingOption, read_path, read_serve_origin, read_streaming, stream
from .syncer import Syncer, UnsignedSyncs
from .verification import Signer, check_addressee, refuse_forms, refuse_pages, verify_request

T = TypeVar("T")

_ASYNC_IO = AsyncIO()

Key = str | SignatureError | None
"""The key that signed a request; why it was refused; or ``None`` where nothing is signed nor need be."""
Method = Callable[[CommRequest, Key, IO], Awaitable[CommResponse]]


class CommHandler:
    """Serves ``functions`` of one client's app.

    ``framework`` is the name that engines show. ``streaming`` is a ``Streaming``, its text or a ``bool``, and overrides
    ``DURABLY_STREAMING``. ``serve_origin``, ``serve_path`` and ``public_path`` are parts of the URL that engines
    call. ``enable_unauthed_sync=False`` refuses unsigned syncs in production. ``thread_pool`` runs sync functions, and
    sync handlers of async functions, if they would block an event loop; by default it has
    ``DURABLY_THREAD_POOL_MAX_WORKERS`` threads. ``surroundings`` returns the framework's context of a request, for
    calls without a request; ``thread_surroundings`` returns the context for everything that runs in the pool.

    Raises ``EngineNotConfiguredError`` and ``SigningKeyMissingError`` in production mode without an engine or a
    signing key, ``URLInvalidError`` for an invalid ``serve_origin``, and ``FunctionConfigInvalidError`` for two
    functions with one id or a wrong option.
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
        surroundings: Surroundings = nullcontext,
        thread_surroundings: Surroundings = nullcontext,
    ) -> None:
        _check_arguments(client, functions)
        environment = Environment()
        self.client = client
        self.framework = framework
        self.functions = list(functions)
        self.serve_origin = serve_origin or environment.serve_origin
        self.serve_path = read_path(serve_path, "serve_path") or environment.serve_path
        self.public_path = read_path(public_path, "public_path")
        self.unsigned_syncs = UnsignedSyncs()
        if self.serve_origin is not None:
            read_serve_origin(self.serve_origin, "serve_origin" if serve_origin else environment.name_of(SERVE_ORIGIN))
        self.endpoint = Endpoint(
            client, framework, self.functions, self.serve_origin, self.serve_path, self.public_path
        )
        self._by_id = _index(self.functions)
        _warn_of_other_apps(client, self.functions)
        self._headers = client.headers(framework) | {Header.EXPECTED_SERVER_KIND.value: client.mode.value}
        self._checkpoints = HttpCheckpoints(client)
        self._is_streaming = (read_streaming(streaming) or environment.streaming) is Streaming.FORCE
        self._allows_in_band = environment.allows_in_band_sync
        self._allows_unsigned_sync = (
            environment.allows_unsigned_sync if enable_unauthed_sync is None else enable_unauthed_sync
        )
        size = None
        if thread_pool is None and (size := _thread_count(environment, is_in_process=client.in_process is not None)):
            thread_pool = ThreadPoolExecutor(size, thread_name_prefix="durably-call")
        self._threads = None if thread_pool is None else WorkerThreads(thread_pool, thread_surroundings, size)
        self._surroundings = surroundings
        if client.in_process is not None:
            client.in_process.add_handler(self)
        elif client.is_production:
            _check_production(client)

    @property
    def function_ids(self) -> frozenset[str]:
        """Of the functions and of their failure handlers."""
        return frozenset(self._by_id)

    def is_async(self, function_id: str) -> bool:
        """Whether the function is async. False if the handler does not serve it."""
        function = self._by_id.get(function_id)
        return function is not None and function.is_async(function_id)

    @property
    def threads(self) -> WorkerThreads | None:
        """Where sync functions run instead of blocking an event loop; ``None`` for the request's thread."""
        return self._threads

    # -- fronts

    def post(self, req: CommRequest) -> Awaitable[CommResponse]:
        """Answer a call."""
        return self._answer(req, self._post, _ASYNC_IO)

    def post_sync(self, req: CommRequest) -> CommResponse:
        """Answer a call, in this thread."""
        return drive(self._answer(req, self._post, BlockingIO()))

    def put(self, req: CommRequest) -> Awaitable[CommResponse]:
        """Sync the app."""
        return self._answer(req, self._put, AsyncIO())

    def put_sync(self, req: CommRequest) -> CommResponse:
        """Sync the app, in this thread."""
        return drive(self._answer(req, self._put, BlockingIO()))

    def get_sync(self, req: CommRequest) -> CommResponse:
        """Inspect the app; does no I/O."""
        return drive(self._answer(req, self._get, BlockingIO()))

    def handle(self, method: str, req: CommRequest) -> Awaitable[CommResponse]:
        """Answer a request by its HTTP method."""
        return self._answer(req, self._method(method), AsyncIO())

    def handle_sync(self, method: str, req: CommRequest) -> CommResponse:
        """Answer a request by its HTTP method, in this thread."""
        return drive(self._answer(req, self._method(method), BlockingIO()))

    async def call(self, call: FunctionCall, io: IO) -> Outcome:
        """Run a function for an engine in this process. Errors are in the outcome."""
        try:
            outcome = await self._run(self._find(call.function_id), call, io)
        except Exception as error:
            self._log_refusal(f'a call of function "{call.function_id}"', error)
            return Raised(error)
        self._log_errors(call, outcome)
        return outcome

    def refuse(self, error: Exception) -> CommResponse:
        """Answer a request of which not even a ``CommRequest`` could be made."""
        self._log_refusal("a request", error)
        return self._seal(CommResponse.from_error(error), Timings())

    # -- what all requests have in common

    def _method(self, method: str) -> Method:
        return {"GET": self._get, "POST": self._post, "PUT": self._put}.get(method.upper(), self._unsupported)

    async def _answer(self, req: CommRequest, method: Method, io: IO) -> CommResponse:
        """Verify and answer. Never raises for what a request contains."""
        key: Key = None
        began = req.timings.begin("comm_handler")
        try:
            check_size(len(req.body))
            key = None if req.is_connect else await self._verify(req, io)
            response = await method(req, key, io)
        except Exception as error:
            self._log_refusal(_place_of(req), error)
            response = CommResponse.from_error(error)
        req.timings.end("comm_handler", began)
        return self._seal(response, req.timings, _signer(req, key))

    async def _verify(self, req: CommRequest, io: IO) -> Key:
        """In development nothing need be signed, but what is signed is verified."""
        client = self.client
        if not client.is_production and not (req.header(Header.SIGNATURE) and client.signing_key):
            return None
        try:
            verified = await verify_request(req, client.signing_keys, io)
        except SignatureError as error:
            return error
        req.body = verified.body
        return verified.key

    def _seal(self, response: CommResponse, timings: Timings, signer: Signer | None = None) -> CommResponse:
        """Put on what every answer carries, and sign it with the key that signed the request."""
        response.headers = self._headers | response.headers
        response.headers[Header.SERVER_TIMING.value] = timings.to_header()
        if signer is not None and response.stream is None:
            signer.sign(response)
        return response

    def _log_refusal(self, what: str, error: Exception) -> None:
        """Refusals explain themselves; what is no ``Error`` of ours is a fault, and needs its traceback."""
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
            return CommResponse.from_json(inspection.authenticated(self.endpoint, req))
        was_signed = isinstance(key, SignatureError) and req.header(Header.SIGNATURE) is not None
        return CommResponse.from_json(inspection.unauthenticated(self.endpoint, False if was_signed else None))

    async def _put(self, req: CommRequest, key: Key, io: IO) -> CommResponse:
        self._refuse_strangers(req)
        is_in_band = self._allows_in_band and req.header(Header.SYNC_KIND) == SyncKind.IN_BAND
        if isinstance(key, SignatureError) and (is_in_band or self._needs_signature(req)):
            raise key
        syncer = Syncer(self.endpoint, self.unsigned_syncs)
        if is_in_band and key is not None:
            return syncer.in_band(req)
        return await syncer.out_of_band(req, io, is_signed=isinstance(key, str))

    def _needs_signature(self, req: CommRequest) -> bool:
        """Whether an out-of-band sync with a missing or invalid signature is refused."""
        was_signed = req.header(Header.SIGNATURE) is not None
        return not self._allows_unsigned_sync or (was_signed and self.client.is_production)

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
        if not self.client.is_production:
            refuse_pages(req)

    async def _post(self, req: CommRequest, key: Key, io: IO) -> CommResponse:
        self._refuse_strangers(req)
        if isinstance(key, SignatureError) and self.client.is_production:
            raise key
        if not self.client.is_production:
            refuse_forms(req)
        if req.probe is Probe.TRUST:
            return CommResponse(body=b"")
        function_id = req.query(Query.FUNCTION_ID)
        if function_id is None:
            raise QueryParamMissingError("the query parameter fnId is missing; it names the function to call")
        step_id = req.query(Query.STEP_ID)
        if step_id is None:
            raise QueryParamMissingError('the query parameter stepId is missing; it is "step" to discover steps')
        function = self._find(function_id)
        call = await self._decode(req, function_id, step_id, io)
        if self._can_stream(function, call) and not req.is_connect:
            return self._stream(function, call, _signer(req, key), io)
        return self._respond(call, await self._run(function, call, io))

    async def _unsupported(self, req: CommRequest, key: Key, io: IO) -> CommResponse:
        self._refuse_strangers(req)
        raise MethodUnsupportedError("this endpoint answers GET, POST and PUT", "GET, POST, PUT")

    # -- calls

    def _find(self, function_id: str) -> Function[Any]:
        function = self._by_id.get(function_id)
        if function is None:
            known = ", ".join(sorted(self._by_id)) or "none"
            raise FunctionNotServedError(f"function {function_id!r} not found; this app serves: {known}")
        return function

    async def _decode(self, req: CommRequest, function_id: str, step_id: str, io: IO) -> FunctionCall:
        try:
            request = decode_call(req.body)
        except msgspec.MsgspecError as error:
            raise BodyInvalidError(f"invalid call: {error}") from None
        check_addressee(request.ctx, function_id, step_id)
        steps, events, event = request.steps or {}, request.events, request.event
        if request.use_api or request.ctx.use_api:
            with req.timings.measure("use_api"):
                steps, events = await self._fetch(request, io)
            event = events[0] if events else event
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
            checkpoints=self._checkpoints_for(request),
            threads=self._threads,
            disable_immediate=request.ctx.disable_immediate_execution or req.header(Header.FORCE_STEP_PLAN) == "true",
        )

    def _checkpoints_for(self, request: CallRequest) -> HttpCheckpoints | None:
        """``None`` if the engine takes no checkpoints: an engine that takes them sends the ids of the call."""
        has_call_ids = request.ctx.qi_id is not None or request.ctx.generation_id is not None
        return self._checkpoints if has_call_ids and self._checkpoints.are_possible else None

    async def _fetch(self, request: CallRequest, io: IO) -> tuple[dict[str, msgspec.Raw], list[Event]]:
        """Memos and events of a call that was too large to carry them (spec §4.4.2)."""
        steps = await self._fetch_part(request, "actions", decode_steps, io)
        return steps, await self._fetch_part(request, "batch", decode_events, io)

    async def _fetch_part(self, request: CallRequest, part: str, decode: Callable[[bytes], T], io: IO) -> T:
        try:
            return decode(await self._request_part(request.ctx.run_id, part, io))
        except msgspec.MsgspecError as error:
            raise TransportError(f"cannot read the run's {part} that the engine sent: {error}") from None

    async def _request_part(self, run_id: str, part: str, io: IO) -> bytes:
        client = self.client
        url = f"{client.api_origin}/v0/runs/{quote(run_id, safe='')}/{part}"
        fetch = Request("GET", url, client.headers(), timeout=client.request_timeout)
        response = await request_with_keys(io, fetch, client.signing_keys)
        if response.status != HTTPStatus.OK:
            raise TransportError(f"cannot fetch the run's {part}: the engine answered {response.status}")
        return response.body

    async def _run(self, function: Function[Any], call: FunctionCall, io: IO) -> Outcome:
        surroundings = self._surroundings if call.raw_request is None else nullcontext
        if not function.is_async(call.function_id):
            return await io.run(self._threads, partial(self._call_sync, function, call, surroundings))
        with SentBy(call.context.run_id):
            if surroundings is nullcontext:
                return await io.resolve(function.call(self.client, call, _ASYNC_IO))
            with surroundings():
                return await io.resolve(function.call(self.client, call, _ASYNC_IO))

    def _call_sync(self, function: Function[Any], call: FunctionCall, surroundings: Surroundings) -> Outcome:
        with surroundings(), SentBy(call.context.run_id):
            return function.call_sync(self.client, call, BlockingIO())

    def _can_stream(self, function: Function[Any], call: FunctionCall) -> bool:
        """A sync function without a pool blocks what would send the spaces."""
        return self._is_streaming and (function.is_async(call.function_id) or self._threads is not None)

    def _stream(self, function: Function[Any], call: FunctionCall, signer: Signer | None, io: IO) -> CommResponse:
        return CommResponse.create_streaming(
            lambda: stream(lambda: io.start(self._complete(function, call, signer)), io)
        )

    async def _complete(self, function: Function[Any], call: FunctionCall, signer: Signer | None) -> CommResponse:
        """The answer inside a streamed one, whose own status and headers are long sent."""
        try:
            response = self._respond(call, await self._run(function, call, AsyncIO()))
        except Exception as error:
            self._log_refusal(f'a call of function "{function.id}"', error)
            response = CommResponse.from_error(error)
        return self._seal(response, call.timings, signer)

    def _respond(self, call: FunctionCall, outcome: Outcome) -> CommResponse:
        self._log_errors(call, outcome)
        return CommResponse.from_call_result(outcome)

    def _log_errors(self, call: FunctionCall, outcome: Outcome) -> None:
        where = f'function "{call.function_id}", run {call.context.run_id},'
        raised: list[tuple[str, BaseException]] = []
        if isinstance(outcome, Raised):
            raised = [(where, outcome.error)]
        elif isinstance(outcome, Found):
            raised = [(f'step "{r.info.id}" of {where}', r.error) for r in outcome.reports if r.error is not None]
        for source, error in raised:
            if not is_quiet(error):
                self.client.logger.error("%s raised %s", printable(source), type(error).__name__, exc_info=error)


def _signer(req: CommRequest, key: Key) -> Signer | None:
    return Signer(key, req.header(Header.SIGNATURE) or "") if isinstance(key, str) else None


def _place_of(req: CommRequest) -> str:
    """The URL less its query, for the log. Its parts come from the sender of the request."""
    try:
        place = req.request_url.partition("?")[0]
    except URLInvalidError:
        return "a request"
    return place if place.isprintable() else ascii(place)


def _thread_count(environment: Environment, *, is_in_process: bool) -> int:
    """The number of threads for sync functions; 0 for none. The default is that of ``ThreadPoolExecutor``."""
    workers = environment.thread_pool_max_workers
    if workers == 0 and is_in_process:
        workers = None  # There is no request in whose thread a sync function could run.
    return min(32, (os.cpu_count() or 1) + 4) if workers is None else workers


def _check_arguments(client: object, functions: object) -> None:
    """Those of ``serve``, which are easily given in the wrong order."""
    if not isinstance(client, App):
        raise FunctionConfigInvalidError(f"serve takes a durably.Client as its client, not {client!r}")
    if not isinstance(functions, Iterable):
        raise FunctionConfigInvalidError(f"serve takes a list of functions, not {functions!r}")


def _check_production(client: App) -> None:
    """Raises the error that prevents serving the app. In a test run no engine is needed."""
    if is_test_run():
        return
    _ = client.api_origin
    if client.signing_key is None:
        raise SigningKeyMissingError


def _warn_of_other_apps(client: App, functions: Sequence[Function[Any]]) -> None:
    """Warn of functions of a client with another id: they lack its middleware, and keep its id as their prefix."""
    for function in functions:
        if function.opts.app_id != client.app_id:
            client.logger.warning(
                "the app %r serves the function %r, which a client of the app %r made; middleware and settings of "
                "that client are not used",
                client.app_id,
                function.id,
                function.opts.app_id,
            )


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
