"""The steps that users can take, each as a ``StepRequest``: its op, its options, what its memo means (spec §5.3).

Written once, for ``Step`` and ``StepSync``. Checks arguments, so that a mistake names the step.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from durably.functions.config import FunctionDefinition
from durably.protocol.durations import Duration, format_duration, format_moment, to_timedelta
from durably.protocol.events import Event
from durably.protocol.limits import MAX_WAIT
from durably.protocol.opcodes import Opcode
from durably.values.annotations import decode_as, encode_as, handler_codec
from durably.values.codecs import Codec

from .app import App
from .errors import DurationInvalidError, FunctionConfigInvalidError
from .events import as_data
from .execution import StepRequest
from .serializers import Unset

_SMALL_MILLISECONDS = 1000


class Signal(msgspec.Struct, frozen=True):
    """What ``wait_for_signal`` returns: the signal's name and the data sent with it."""

    signal: str
    data: Any = None


class FetchResponse(msgspec.Struct, frozen=True):
    """The answer to ``step.fetch``: ``body`` is text; ``json()`` decodes it."""

    status_code: int = 0
    headers: dict[str, Any] = {}
    body: str = ""

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class AIAdapter(Protocol):
    """How to reach an AI provider; ``durably.ai`` has adapters, and those of ``inngest.experimental.ai`` fit too."""

    def auth_key(self) -> str: ...
    def format(self) -> str: ...
    def headers(self) -> dict[str, str]: ...
    def on_call(self, body: dict[str, Any]) -> None: ...
    def url_infer(self) -> str: ...


def run(
    app: App,
    step_id: str,
    handler: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output_type: Any,
    opts: Mapping[str, Any] | None = None,
) -> StepRequest:
    if getattr(handler, "is_durable_function", False):
        raise FunctionConfigInvalidError(
            f'step "{step_id}": the handler is the durable function {handler!r}: call it with '
            f'ctx.step.invoke("{step_id}", function=…), or give the step an ordinary function'
        )
    if not callable(handler):
        raise FunctionConfigInvalidError(f'step "{step_id}": the handler must be callable, not {handler!r}')
    request = StepRequest(_checked(step_id), Opcode.STEP_RUN, opts=opts, handler=handler, args=args, kwargs=kwargs)
    codec = handler_codec(step_id, handler, args, output_type, app.serializer)
    if codec is not None:
        _convert(request, codec)
    return request


def _convert(request: StepRequest, codec: Codec) -> None:
    source = f'step "{request.step_id}"'
    request.encode = partial(encode_as, codec, source)
    request.decode = partial(decode_as, codec, source)


def ai_wrap(
    app: App, step_id: str, handler: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> StepRequest:
    return run(app, step_id, handler, args, kwargs, Unset, {"type": "step.ai.wrap"})


def sleep(step_id: str, duration: Duration) -> StepRequest:
    text = _duration(step_id, duration)
    request = StepRequest(_checked(step_id), Opcode.SLEEP, text, {"duration": text}, decode=_nothing)
    return _with_duration(request, duration)


def sleep_until(step_id: str, until: dt.datetime) -> StepRequest:
    if not isinstance(until, dt.datetime):
        raise DurationInvalidError(f'step "{step_id}": sleep_until takes a datetime, not {until!r}')
    text = format_moment(until)
    return StepRequest(_checked(step_id), Opcode.SLEEP, text, {"duration": text}, decode=_nothing)


def wait_for_event(step_id: str, event: str, if_exp: str | None, timeout: Duration) -> StepRequest:
    opts = {"event": event, "timeout": _duration(step_id, timeout)}
    if if_exp is not None:
        opts["if"] = if_exp
    return _with_duration(StepRequest(_checked(step_id), Opcode.WAIT_FOR_EVENT, event, opts, decode=_event), timeout)


def wait_for_signal(step_id: str, signal: str, timeout: Duration | None, on_conflict: str) -> StepRequest:
    if on_conflict not in ("fail", "replace"):
        raise FunctionConfigInvalidError(
            f'step "{step_id}": on_conflict must be "fail" or "replace", not {on_conflict!r}'
        )
    opts = {"signal": signal, "conflict": on_conflict}
    if timeout is not None:
        opts["timeout"] = _duration(step_id, timeout)
    request = StepRequest(_checked(step_id), Opcode.WAIT_FOR_SIGNAL, signal, opts, decode=_signal)
    return _with_duration(request, timeout)


def invoke(
    app: App,
    step_id: str,
    app_id: str | None,
    function_id: str,
    data: Any,
    timeout: Duration | None,
    v: str | None,
    user: Any,
    codec: Codec | None = None,
) -> StepRequest:
    payload: dict[str, Any] = {"data": as_data(data)}
    payload |= {name: value for name, value in (("v", v), ("user", user)) if value is not None}
    opts: dict[str, Any] = {"function_id": f"{app_id or app.app_id}-{function_id}", "payload": payload}
    if timeout is not None:
        opts["timeout"] = _duration(step_id, timeout)
    request = _with_duration(StepRequest(_checked(step_id), Opcode.INVOKE_FUNCTION, opts=opts), timeout)
    if codec is not None:
        _convert(request, codec)
    return request


def invoke_function(
    app: App,
    step_id: str,
    function: FunctionDefinition[Any],
    data: Any,
    timeout: Duration | None,
    v: str | None,
    user: Any,
) -> StepRequest:
    if not isinstance(function, FunctionDefinition):
        raise FunctionConfigInvalidError(
            f'step "{step_id}": function must be a durable function, not {function!r}; '
            "to invoke one by its id use invoke_by_id"
        )
    opts = function.opts
    codec = function.output_codec(app.serializer)
    return invoke(app, step_id, opts.app_id, opts.local_id, data, timeout, v, user, codec)


def fetch(step_id: str, url: str, method: str, headers: Mapping[str, str] | None, body: Any) -> StepRequest:
    opts: dict[str, Any] = {"url": url, "method": method.upper(), "headers": dict(headers or {})}
    if body is not None:
        opts["body"] = body if isinstance(body, str) else msgspec.json.encode(body).decode()
    return StepRequest(_checked(step_id), Opcode.GATEWAY, opts=opts, decode=_response)


def infer(step_id: str, adapter: AIAdapter, body: Mapping[str, Any]) -> StepRequest:
    sent = dict(body)
    adapter.on_call(sent)
    opts = {
        "type": "step.ai.infer",
        "url": adapter.url_infer(),
        "headers": adapter.headers(),
        "auth_key": adapter.auth_key(),
        "format": adapter.format(),
        "body": sent,
    }
    return StepRequest(_checked(step_id), Opcode.AI_GATEWAY, opts=opts)


def _checked(step_id: str) -> str:
    if not isinstance(step_id, str) or not step_id:
        raise FunctionConfigInvalidError(f"a step's id must be text that names it, not {step_id!r}")
    return step_id


def _duration(step_id: str, duration: Duration) -> str:
    try:
        delta = to_timedelta(duration)
    except DurationInvalidError as error:
        raise DurationInvalidError(f'step "{step_id}": {error}') from None
    if delta > MAX_WAIT:
        raise DurationInvalidError(f'step "{step_id}": {delta} is longer than the {MAX_WAIT.days} days allowed')
    return format_duration(delta)


def _with_duration(request: StepRequest, duration: Duration | None) -> StepRequest:
    """Note a number of milliseconds that was perhaps meant as seconds."""
    if isinstance(duration, int) and 0 < duration < _SMALL_MILLISECONDS:
        request.small_duration = duration
    return request


def _nothing(data: Any) -> None:
    return None


def _event(data: Any) -> Event | None:
    return None if data is None else msgspec.convert(data, Event)


def _signal(data: Any) -> Signal | None:
    return None if data is None else msgspec.convert(data, Signal)


def _response(data: Any) -> FetchResponse:
    return msgspec.convert(data, FetchResponse, strict=False)
