"""The operations of a client's engine, for the SDK.

In process they go to the ``InProcessEngine``, otherwise over HTTP. The declarations of operations are imported at the
first request over HTTP: importing ``durably`` imports no engine.
"""

import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import msgspec

from durably.io.http_client import IO, BlockingIO, Request, request_with_keys

from .app import App
from .errors import (
    EngineError,
    NotSupportedError,
    RunNotFoundError,
    TransportError,
)
from .execution import drive

if TYPE_CHECKING:
    from durably.engine.api.codec import HttpRequest, HttpResponse
    from durably.engine.api.operations import Operation
    from durably.engine.model.runs import InvokeReceipt, Run

T = TypeVar("T")

POLL_SECONDS = 20.0
"""Seconds that a request waits for the end of a run. Proxies close connections that are silent for longer."""
_GRACE_SECONDS = 10.0
"""Seconds for the answer to such a request after its wait."""
_RETRY_SECONDS = 0.5
_FOREIGN_POLL_SECONDS = 1.0
"""Seconds between requests for a run to a server that has no long poll."""
_MOST_SILENT_SECONDS = 300.0
"""Seconds without an answer of the engine after which a wait without a timeout fails."""
_LONG_POLLS = ("wait_for_run", "wait_for_changes", "read_messages", "ask_run")
_ABSENT = (404, 405, 501)
MAX_ATTEMPTS = 5
BASE_DELAY = 0.1
"""Seconds before the second attempt of a start, doubled before each later one."""


async def execute(app: App, operation: str, arguments: Mapping[str, Any], io: IO, timeout: float | None = None) -> Any:
    """Execute an operation of ``Engine`` (``engine/api/interface.py``) by its name. Returns its result.

    ``timeout``: seconds, by default the client's ``request_timeout``. Raises the engine's errors, ``TransportError`` if
    no engine answers, ``NotSupportedError``, which names the operation, if another server of the protocol lacks it,
    ``EngineNotConfiguredError``, and ``EngineNotStartedError`` in a test run.
    """
    timeout = app.request_timeout if timeout is None else timeout
    if app.in_process is not None:
        return await io.resolve(app.in_process.execute(operation, arguments, timeout))
    from durably.engine.api import codec

    declared = codec.OPERATIONS[operation]
    written = codec.write_request(declared, arguments, key=app.event_key or codec.ANY_EVENT_KEY)
    response = await exchange(app, written, io, timeout, is_long_poll=operation in _LONG_POLLS)
    try:
        return codec.read_result(declared, arguments, response)
    except codec.NotAnEngineError as error:
        if response.status < 300 and operation in _FOREIGN:
            with contextlib.suppress(msgspec.DecodeError):
                return _FOREIGN[operation](response.body)
        if response.status in _ABSENT:
            raise _not_supported(app, declared) from None
        raise TransportError(f"{app.api_origin}: {error}") from None
    except codec.EngineRefusedError:
        if response.status == 404 and declared.missing is not None:  # of another server of the protocol
            return [] if operation == "event_runs" else None
        if response.status in _ABSENT:
            raise _not_supported(app, declared) from None
        raise


async def exchange(
    app: App, request: "HttpRequest", io: IO, timeout: float, *, is_long_poll: bool = False
) -> "HttpResponse":
    """Send a request of ``engine/api/codec.py`` to the engine at the client's URL, with its keys.

    ``timeout``: seconds. ``is_long_poll``: see ``Request``. Raises ``TransportError``, ``EngineNotConfiguredError``.
    """
    from durably.engine.api.codec import HttpResponse

    headers = {**app.headers(), **request.headers}
    url = f"{app.api_origin}{request.target}"
    sent = Request(request.method, url, headers, request.body, timeout, is_long_poll)
    response = await request_with_keys(io, sent, app.signing_keys)
    return HttpResponse(response.status, response.body)


class _ForeignSignal(msgspec.Struct):
    run_id: str


class _ForeignSignalAnswer(msgspec.Struct):
    data: _ForeignSignal


def _cancelled(body: bytes) -> bool:
    return True


def _signalled(body: bytes) -> str:
    return msgspec.json.decode(body, type=_ForeignSignalAnswer).data.run_id


_FOREIGN: Mapping[str, Callable[[bytes], Any]] = {"cancel_run": _cancelled, "signal": _signalled}
"""Read the answers of other servers of the protocol that differ from ours."""


def _not_supported(app: App, operation: "Operation") -> NotSupportedError:
    return NotSupportedError(
        f"the engine at {app.api_origin} does not offer {operation.name.replace('_', ' ')} ({operation.route})"
    )


async def find_run(app: App, run_id: str, io: IO) -> "Run":
    """The run as it is now. ``run_id`` may be the id of the event that started it. Raises ``RunNotFoundError``."""
    run: Run | None = None
    refused: EngineError | None = None
    try:
        run = await execute(app, "get_run", {"run_id": run_id}, io)
    except EngineError as error:  # Other servers of the protocol answer 500 for the id of an event.
        if getattr(error, "status", 0) < 500:
            raise
        refused = error
    if run is None and app.in_process is None:  # Engines of Durably find it by the event's id themselves.
        runs: Sequence[Run] = await execute(app, "event_runs", {"event_id": run_id}, io)
        run = runs[0] if runs else None
    if run is None:
        raise refused or RunNotFoundError(f"the engine has no run with the id {run_id!r}")
    return run


async def wait_for_run(app: App, run_id: str, timeout: float | None, io: IO) -> "Run":
    """The run, when it has ended with any status.

    It survives restarts of the engine. ``timeout``: seconds, ``None`` for no limit. Raises ``TimeoutError``,
    ``RunNotFoundError``, and ``TransportError`` if the engine has not answered for five minutes.
    """
    if app.in_process is not None:
        ended: Run = await io.resolve(app.in_process.wait_for_run(run_id, timeout))
        return ended
    began = answered = time.monotonic()
    has_waits = True
    while True:
        now = time.monotonic()
        rest = POLL_SECONDS if timeout is None else max(began + timeout - now, 0.0)
        within = min(rest, POLL_SECONDS)
        try:
            if not has_waits:
                await io.sleep(min(rest, _FOREIGN_POLL_SECONDS))
            run = await (
                execute(app, "wait_for_run", {"run_id": run_id, "within": within}, io, within + _GRACE_SECONDS)
                if has_waits
                else find_run(app, run_id, io)
            )
        except NotSupportedError:  # another server of the protocol
            if not has_waits:
                raise
            has_waits = False
            continue
        except (TransportError, EngineError) as error:
            now = time.monotonic()
            if not may_help(error) or now - answered > _MOST_SILENT_SECONDS:
                raise
            if timeout is None or now < began + timeout:
                await io.sleep(_RETRY_SECONDS)
                continue
        else:
            answered = time.monotonic()
            if run.status.has_ended:
                return run
        if timeout is not None and time.monotonic() >= began + timeout:
            raise TimeoutError(f"run {run_id} has not ended within {timeout:g} s")


async def start(app: App, arguments: Mapping[str, Any], io: IO) -> "InvokeReceipt":
    """Execute the operation ``invoke``, which starts one run however often it is repeated.

    Over HTTP, it is repeated on network errors and 5xx. Raises ``NotSupportedError`` if another server of the protocol
    cannot start functions, or does not know the argument ``id``.
    """
    if app.in_process is not None:
        receipt: InvokeReceipt = await execute(app, "invoke", arguments, io)
        return receipt
    if arguments.get("id") is not None and app not in _with_ids:
        try:
            await execute(app, "describe_engine", {}, io)
        except NotSupportedError:
            raise NotSupportedError(
                f"the engine at {app.api_origin} is another server of the protocol, which does not deduplicate starts: "
                "start without an id, or send an event with an id, which it deduplicates for 24 hours"
            ) from None
        _with_ids.add(app)
    attempt = 0
    while True:
        try:
            receipt = await execute(app, "invoke", arguments, io)
            break
        except (TransportError, EngineError) as error:
            attempt += 1
            if attempt == MAX_ATTEMPTS or not may_help(error):
                raise
        await io.sleep(BASE_DELAY * 2 ** (attempt - 1) + random.random() * BASE_DELAY)
    return receipt


def may_help(error: Exception) -> bool:
    """Whether a repetition can help: the engine did not answer, or it stops, or cannot read or write now."""
    from durably.engine.api.codec import EngineRefusedError, status_of

    if isinstance(error, EngineRefusedError):
        return error.status >= 500
    return not isinstance(error, EngineError) or status_of(error) == 503


_with_ids: WeakSet[App] = WeakSet()
"""Apps whose engines over HTTP are of Durably, and know the ids of starts."""


def block(app: App, work: Callable[[IO], Coroutine[Any, Any, T]]) -> T:
    """Do the work of an asynchronous method for synchronous code, in this thread."""
    if app.in_process is not None:
        app.in_process.refuse_to_block()
    return drive(work(BlockingIO()))
