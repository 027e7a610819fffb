"""Durable endpoints: routes that run a function in the request, and answer with its result.

``durably.fast_api.endpoint(app, checkout, "/checkout", authorize=…)``, and the same in each framework, adds one. A POST
starts a run, whose data is the JSON of the body, and waits for its result. If the run takes longer, the answer is 202
with a link: a GET that waits again. The token of the link also opens the stream of the run.
"""

import asyncio
import hashlib
import inspect
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Unpack
from urllib.parse import quote, urlsplit

import msgspec

from .client import Client
from .comm import CommRequest, CommResponse
from .comm.mounts import Mount
from .comm.serve_options import DurableEndpointOptions
from .engine_client import block
from .errors import (
    BodyInvalidError,
    BodyTooLargeError,
    Error,
    EventInvalidError,
    EventTooLargeError,
    FunctionConfigInvalidError,
    MethodUnsupportedError,
    RunError,
    RunNotFoundError,
    RunSkippedError,
    URLInvalidError,
)
from .execution import is_async
from .functions.function import Function
from .io.background_loop import CallBlocking
from .io.http_client import IO, AsyncIO
from .protocol.channels import RUN_TOPIC
from .protocol.durations import DurationWithUnit, to_seconds
from .protocol.limits import MAX_FORM_BYTES
from .protocol.options import check_type
from .protocol.stream_tokens import StreamTokenError, covers, verify_token
from .runs import RunHandle, start_run, wait_for_output
from .settings import check_serve_path

_ASYNC_IO = AsyncIO()
_HEADERS = {"content-type": "application/json", "cache-control": "no-store"}


def check_size(size: int) -> None:
    """Raises ``BodyTooLargeError``. ``size`` is in bytes. Engines have limits of their own below this one."""
    if size > MAX_FORM_BYTES:
        raise BodyTooLargeError(f"the body is larger than {MAX_FORM_BYTES} bytes")


async def call_here(function: Callable[[], Any]) -> Any:
    return function()


def mount_endpoint(
    function: Function[Any],
    path: str,
    caller: str,
    call_blocking: CallBlocking = asyncio.to_thread,
    **options: Unpack[DurableEndpointOptions],
) -> Mount:
    """The endpoint of a function, for the adapters.

    ``caller`` is the function that users call, for errors. ``call_blocking`` calls a plain ``authorize`` of an
    asynchronous framework.
    """
    if not isinstance(function, Function) or not isinstance(function.client, Client):
        raise FunctionConfigInvalidError(f"{caller} takes a function made by client.create_function, not {function!r}")
    check_type(path, f"{caller}(path=…)", str, 'a string, such as "/checkout"', FunctionConfigInvalidError)
    path = "/" + check_serve_path(path, f"{caller}(path=…)").strip("/")
    return Mount(path, DurableEndpoint(function, function.client, caller, call_blocking, **options), check_size, True)


class DurableEndpoint:
    """Answers the requests of an endpoint: a POST starts a run, the GET of its link waits for it again."""

    def __init__(
        self,
        function: Function[Any],
        client: Client,
        caller: str,
        call_blocking: CallBlocking,
        *,
        authorize: Callable[[Any, dict[str, Any]], Any] | None = None,
        allow_anonymous: bool = False,
        wait: DurationWithUnit = "10s",
        expires: DurationWithUnit = "1d",
    ) -> None:
        if not isinstance(allow_anonymous, bool) or (authorize is None) is not allow_anonymous:
            raise FunctionConfigInvalidError(
                f"{caller} needs a policy: give it either authorize=, a function of the request and the run's data "
                "that returns whether the caller may start the run, or allow_anonymous=True, with which everybody may "
                "whom the app itself lets through"
            )
        if authorize is not None and not callable(authorize):
            raise FunctionConfigInvalidError(f"{caller}: authorize= must be a function, not {authorize!r}")
        self._function, self._client, self._authorize, self._call_blocking = function, client, authorize, call_blocking
        self._seconds = to_seconds(wait, f"{caller}(wait=…)")
        to_seconds(expires, f"{caller}(expires=…)")
        self._expires = expires

    async def handle(self, method: str, request: CommRequest) -> CommResponse:
        """The response, on an event loop."""
        return await self._answer(method, request, _ASYNC_IO, self._call_blocking)

    def handle_sync(self, method: str, request: CommRequest) -> CommResponse:
        """The response, in this thread."""
        return block(self._client, lambda io: self._answer(method, request, io, call_here))

    def refuse(self, error: Exception) -> CommResponse:
        """The response to a request that is not accepted."""
        response = CommResponse.from_error(error)
        response.headers |= _HEADERS
        return response

    async def _answer(self, method: str, request: CommRequest, io: IO, call_blocking: CallBlocking) -> CommResponse:
        try:
            path = "/" + quote(urlsplit(request.request_url).path.lstrip("/"), safe="/%:@!$&'()*+,;=~")
            match method:
                case "POST":
                    data = _read_data(request)
                    if not await self._may_start(request.raw_request, data, io, call_blocking):
                        return _error(HTTPStatus.FORBIDDEN, "you are not allowed to start this run")
                    key = request.headers.get("idempotency-key", "").strip()
                    handle = await start_run(self._client, self._function, data, _id_of(key, data), io)
                    token = self._client.stream_token(handle.id, expires=self._expires)
                case "GET":
                    token = request.query("token") or ""
                    handle = self._find(token)
                case _:
                    raise MethodUnsupportedError(f"an endpoint answers POST and GET, not {method}", "GET, POST")
        except StreamTokenError:
            return _error(HTTPStatus.UNAUTHORIZED, "the link is not valid, or has expired")
        except (BodyInvalidError, BodyTooLargeError, MethodUnsupportedError, URLInvalidError) as error:
            return self.refuse(error)
        except EventInvalidError as error:
            is_too_large = isinstance(error, EventTooLargeError)
            return _error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE if is_too_large else HTTPStatus.BAD_REQUEST, str(error))
        except Error as error:
            # The message is about the engine, and not for strangers.
            self._client.logger.error("an endpoint cannot start a run of %s: %s", self._function.id, error)
            unavailable = HTTPStatus.SERVICE_UNAVAILABLE
            return _error(unavailable, "the run could not be started: see the app's log", **{"retry-after": "5"})
        return await self._answer_for(handle, f"{path}?token={token}", token, io)

    async def _answer_for(self, handle: RunHandle[Any], url: str, token: str, io: IO) -> CommResponse:
        try:
            return _json(HTTPStatus.OK, await wait_for_output(handle, self._seconds, io, function_id=self._function.id))
        except RunError as error:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            if isinstance(error, RunSkippedError):
                status = HTTPStatus.TOO_MANY_REQUESTS
            return _json(status, {"message": error.message, "name": error.name, "run_id": error.run_id})
        except RunNotFoundError:
            return _error(HTTPStatus.NOT_FOUND, "the run does not exist, or no longer")
        except TimeoutError:
            pass
        except Error as error:  # The run goes on when the engine is back.
            self._client.logger.warning("an endpoint cannot wait for run %s: %s", handle.id, error)
        going_on = {"run_id": handle.id, "url": url, "token": token}
        return _json(HTTPStatus.ACCEPTED, going_on, location=url, **{"retry-after": "1"})

    async def _may_start(self, request: Any, data: dict[str, Any], io: IO, call_blocking: CallBlocking) -> bool:
        """Raises what ``authorize`` raises, for the framework to answer."""
        if (authorize := self._authorize) is None:
            return True
        verdict: Any
        if is_async(authorize):
            verdict = authorize(request, data)
        else:
            verdict = await call_blocking(lambda: authorize(request, data))
        if inspect.isawaitable(verdict):
            verdict = await io.resolve(verdict)
        if not isinstance(verdict, bool):
            raise TypeError(f"authorize= returned {type(verdict).__name__}: it must return True or False")
        return verdict

    def _find(self, token: str) -> RunHandle[Any]:
        """The run of a link. Raises ``StreamTokenError``, also for a token that does not show results."""
        grant = verify_token(token, self._client.stream_keys(), time.time())
        if not covers(grant.topics, [RUN_TOPIC]) or len(grant.channels) != 1:
            raise StreamTokenError
        return self._client.run(grant.channels[0], self._function)


def _read_data(request: CommRequest) -> dict[str, Any]:
    """Raises ``BodyInvalidError`` and ``BodyTooLargeError``.

    A page of another site cannot send this content type without the app's permission (CORS), so the cookies of visitors
    do not start runs for it.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BodyInvalidError("the body must be JSON, with the header content-type: application/json")
    check_size(len(request.body))
    try:
        return msgspec.json.decode(request.body or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise BodyInvalidError("the body is not a JSON object") from None


def _id_of(key: str, data: dict[str, Any]) -> str | None:
    """The id of a start. It depends on the data, so that a key reveals no result of another caller's data."""
    if not key:
        return None
    digest = hashlib.sha256(key.encode(errors="replace") + b"\0" + msgspec.json.encode(data, order="deterministic"))
    return f"endpoint-{digest.hexdigest()}"


def _error(status: HTTPStatus, message: str, **headers: str) -> CommResponse:
    return _json(status, {"message": message}, **headers)


def _json(status: HTTPStatus, value: Any, **headers: str) -> CommResponse:
    return CommResponse.from_json(value, headers={**_HEADERS, **headers}, status_code=status)
