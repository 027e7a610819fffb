"""Steps for users: ``Step`` of async functions, ``StepSync`` of sync ones.

The two differ only in their types. Each step makes a ``StepRequest``: its op, its options, and the meaning of its memo
(spec §5.3). Arguments are checked, so that an error names the step.
"""

import datetime as dt
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

import msgspec

from durably.functions.config import FunctionDefinition
from durably.protocol.durations import Duration, format_duration, format_timestamp, to_timedelta
from durably.protocol.events import Event, inherit_sessions
from durably.protocol.limits import MAX_WAIT
from durably.protocol.opcodes import Opcode
from durably.protocol.usage import read_answer_usage
from durably.values.codecs import Codec
from durably.values.outputs import decode_as, encode_as, handler_codec

from .app import App
from .errors import DurationInvalidError, FunctionConfigInvalidError
from .events import Model, as_data
from .execution import AsyncCall, StepRequest, SyncCall, in_step, value_of
from .questions import Question, QuestionSync, RunQuestions, Steps
from .values.codecs import Unset

T = TypeVar("T")
P = ParamSpec("P")
_PLAIN = (FunctionType, MethodType)
"""The types of nearly all handlers, which need no check."""
OnConflict = Literal["fail", "replace"]
Events = Event | Sequence[Event]


class Signal(msgspec.Struct, frozen=True):
    """The result of ``wait_for_signal``: the signal's name and the data sent with it."""

    signal: str
    data: Any = None


class FetchResponse(msgspec.Struct, frozen=True):
    """The answer to ``step.fetch``. ``body`` is a string; ``json()`` decodes it."""

    status_code: int = 0
    headers: dict[str, Any] = {}
    body: str = ""

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class AIAdapter(Protocol):
    """An AI provider's address and format.

    ``durably.ai`` has adapters; those of ``inngest.experimental.ai`` fit too.
    """

    def auth_key(self) -> str: ...
    def format(self) -> str: ...
    def headers(self) -> dict[str, str]: ...
    def on_call(self, body: dict[str, Any]) -> None: ...
    def url_infer(self) -> str: ...


class Step(msgspec.Struct, eq=False):
    """The steps of an async function. Await each of them.

    ``step_id`` names the step within its function. Repeated ids are numbered in the order in which they are made.
    Durations are milliseconds or ``timedelta``. A step that failed permanently raises ``StepError``.
    """

    # Coroutines are typed with None, not Any: if an argument's type contains Any, mypy does not choose among the
    # overloads of asyncio.gather and group.parallel, and infers Any.

    _app: App
    _call: AsyncCall
    _send: Callable[[Events], Awaitable[list[str]]]
    _run_id: str = ""
    _sessions: Mapping[str, str] = {}
    _questions: RunQuestions | None = None

    @property
    def ai(self) -> "AI":
        """Steps that call AI models."""
        return AI(self._app, self._call)

    @overload
    def run(
        self, step_id: str, handler: Callable[..., Awaitable[T]], *args: Any, output_type: Any, **kwargs: Any
    ) -> Coroutine[None, None, T]: ...
    @overload
    def run(
        self, step_id: str, handler: Callable[..., T], *args: Any, output_type: Any, **kwargs: Any
    ) -> Coroutine[None, None, T]: ...
    @overload
    def run(
        self, step_id: str, handler: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[None, None, T]: ...
    @overload
    def run(
        self, step_id: str, handler: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[None, None, T]: ...
    def run(
        self, step_id: str, handler: Callable[..., Any], *args: Any, output_type: Any = Unset, **kwargs: Any
    ) -> Coroutine[None, None, Any]:
        """Run ``handler(*args, **kwargs)`` until it succeeds once, and return its result.

        The result is stored as JSON, and is an instance of the handler's return annotation. ``output_type`` replaces
        the annotation. An async handler runs on the event loop, a sync one in a worker thread.
        """
        return self._call.step(_run(self._app, step_id, handler, args, kwargs, output_type))

    def sleep(self, step_id: str, duration: Duration) -> Coroutine[None, None, None]:
        """Sleep for at most 366 days. The app need not run until the sleep ends."""
        return self._call.step(sleep_request(step_id, duration))

    def sleep_until(self, step_id: str, until: dt.datetime) -> Coroutine[None, None, None]:
        """Sleep until a time (naive ones are local time)."""
        return self._call.step(_sleep_until(step_id, until))

    def wait_for_event(
        self, step_id: str, *, event: str, if_exp: str | None = None, timeout: Duration
    ) -> Coroutine[None, None, Event | None]:
        """The next event of that name, or ``None`` after ``timeout``.

        In ``if_exp`` the run's own event is ``event``, the new one ``async``.
        """
        return self._call.step(_wait_for_event(step_id, event, if_exp, timeout))

    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: Duration | None = None, on_conflict: OnConflict = "fail"
    ) -> Coroutine[None, None, Signal | None]:
        """The signal once it is sent, or ``None`` after ``timeout`` (default a year).

        One run at a time waits for a signal; ``on_conflict="replace"`` takes it over from another run.
        """
        return self._call.step(_wait_for_signal(step_id, signal, timeout, on_conflict))

    @overload
    def receive(self, name: str, *, type: type[T], prompt: str | None = None) -> Coroutine[None, None, Question[T]]: ...
    @overload
    def receive(
        self, name: str, *, type: type[T], timeout: Duration, prompt: str | None = None
    ) -> Coroutine[None, None, Question[T] | None]: ...
    @overload
    def receive(
        self, name: str, *, type: Any = Any, prompt: str | None = None
    ) -> Coroutine[None, None, Question[Any]]: ...
    @overload
    def receive(
        self, name: str, *, type: Any = Any, timeout: Duration, prompt: str | None = None
    ) -> Coroutine[None, None, Question[Any] | None]: ...
    def receive(
        self, name: str, *, type: Any = Any, timeout: Duration | None = None, prompt: str | None = None
    ) -> Coroutine[None, None, Question[Any] | None]:
        """The next message of that name to this run, or ``None`` after ``timeout``.

        ``handle.ask(name, …)`` sends it and waits for ``question.reply(…)``. Lists of open questions show the
        ``prompt``. A message that does not fit ``type`` is refused, and the step waits on. A message that is sent
        earlier waits for this step.
        """
        return self._all_questions.create(f'receive "{name}"', self._receive(name, type, prompt, timeout))

    @property
    def _all_questions(self) -> RunQuestions:
        if self._questions is None:
            self._questions = RunQuestions(self._app, self._call, self._run_id)
        return self._questions

    def _receive(self, name: str, typ: Any, prompt: str | None, timeout: Duration | None) -> Steps[Any]:
        received = yield from self._all_questions.receive(name, typ, prompt, timeout)
        return None if received is None else Question(self._all_questions, received)

    def invoke(
        self,
        step_id: str,
        *,
        function: FunctionDefinition[T],
        data: Mapping[str, Any] | Model | None = None,
        timeout: Duration | None = None,
        user: Any = None,
        v: str | None = None,
    ) -> Coroutine[None, None, T]:
        """Run another function, and return its result.

        ``data`` is the data of the function's event, a mapping or a pydantic model.
        """
        return self._call.step(_invoke_function(self._app, step_id, function, data, timeout, v, user, self._sessions))

    def invoke_by_id(
        self,
        step_id: str,
        *,
        app_id: str | None = None,
        function_id: str,
        data: Mapping[str, Any] | Model | None = None,
        timeout: Duration | None = None,
        user: Any = None,
        v: str | None = None,
    ) -> Coroutine[None, None, Any]:
        """Run a function of this app or another, given its id, and return its result."""
        return self._call.step(_invoke(self._app, step_id, app_id, function_id, data, timeout, v, user, self._sessions))

    def send_event(self, step_id: str, events: Events) -> Coroutine[None, None, list[str]]:
        """Send events once; returns their ids."""
        return self.run(step_id, self._send, events)

    def fetch(
        self,
        step_id: str,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Coroutine[None, None, FetchResponse]:
        """Have the engine make an HTTP request.

        ``body`` is a string, or any JSON value.
        """
        return self._call.step(_fetch(step_id, url, method, headers, body))


class AI(msgspec.Struct, eq=False):
    """Steps that call AI models."""

    _app: App
    _call: AsyncCall

    def infer(
        self, step_id: str, *, adapter: AIAdapter, body: Mapping[str, Any], stream: bool = False, topic: str = "text"
    ) -> Coroutine[None, None, Any]:
        """Have the engine make the request to the model. Returns the provider's JSON.

        With ``stream`` the engine publishes the text as it comes to ``topic`` of the run's channel, in messages with
        ``step`` and ``text``. The result is the same as without.
        """
        return self._call.step(_infer(step_id, adapter, body, topic if stream else None))

    def wrap(
        self, step_id: str, handler: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[None, None, T]:
        """``run`` for a model's own client library; engines show such steps as AI calls.

        The tokens in the answer of OpenAI, Anthropic or Gemini are recorded as by ``durably.ai.record_usage``.
        """
        return self._call.step(_wrap(self._app, step_id, handler, args, kwargs))


class StepSync(msgspec.Struct, eq=False):
    """The steps of a sync function; the methods are those of ``Step``."""

    _app: App
    _call: SyncCall
    _send: Callable[[Events], list[str]]
    _run_id: str = ""
    _sessions: Mapping[str, str] = {}
    _questions: RunQuestions | None = None

    @property
    def ai(self) -> "AISync":
        """Steps that call AI models."""
        return AISync(self._app, self._call)

    @overload
    def run(self, step_id: str, handler: Callable[..., T], *args: Any, output_type: Any, **kwargs: Any) -> T: ...
    @overload
    def run(self, step_id: str, handler: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    def run(
        self, step_id: str, handler: Callable[..., Any], *args: Any, output_type: Any = Unset, **kwargs: Any
    ) -> Any:
        """See ``Step.run``."""
        if type(handler) in _PLAIN and type(step_id) is str and (memo := self._call.recall(step_id)) is not None:
            codec = handler_codec(step_id, handler, args, output_type, self._app.serializer)
            if codec is None and memo.error is None:
                return memo.data
            return value_of(memo, None if codec is None else partial(decode_as, codec, f'step "{step_id}"'))
        return self._call.step(_run(self._app, step_id, handler, args, kwargs, output_type))

    def sleep(self, step_id: str, duration: Duration) -> None:
        """See ``Step.sleep``."""
        self._call.step(sleep_request(step_id, duration))

    def sleep_until(self, step_id: str, until: dt.datetime) -> None:
        """See ``Step.sleep_until``."""
        self._call.step(_sleep_until(step_id, until))

    def wait_for_event(self, step_id: str, *, event: str, if_exp: str | None = None, timeout: Duration) -> Event | None:
        """See ``Step.wait_for_event``."""
        return self._call.step(_wait_for_event(step_id, event, if_exp, timeout))  # type: ignore[no-any-return]

    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: Duration | None = None, on_conflict: OnConflict = "fail"
    ) -> Signal | None:
        """See ``Step.wait_for_signal``."""
        return self._call.step(_wait_for_signal(step_id, signal, timeout, on_conflict))  # type: ignore[no-any-return]

    @overload
    def receive(self, name: str, *, type: type[T], prompt: str | None = None) -> QuestionSync[T]: ...
    @overload
    def receive(
        self, name: str, *, type: type[T], timeout: Duration, prompt: str | None = None
    ) -> QuestionSync[T] | None: ...
    @overload
    def receive(self, name: str, *, type: Any = Any, prompt: str | None = None) -> QuestionSync[Any]: ...
    @overload
    def receive(
        self, name: str, *, type: Any = Any, timeout: Duration, prompt: str | None = None
    ) -> QuestionSync[Any] | None: ...
    def receive(
        self, name: str, *, type: Any = Any, timeout: Duration | None = None, prompt: str | None = None
    ) -> QuestionSync[Any] | None:
        """See ``Step.receive``."""
        if self._questions is None:
            self._questions = RunQuestions(self._app, self._call, self._run_id)
        received = self._questions.run_sync(self._questions.receive(name, type, prompt, timeout))
        return None if received is None else QuestionSync(self._questions, received)

    def invoke(
        self,
        step_id: str,
        *,
        function: FunctionDefinition[T],
        data: Mapping[str, Any] | Model | None = None,
        timeout: Duration | None = None,
        user: Any = None,
        v: str | None = None,
    ) -> T:
        """See ``Step.invoke``."""
        request = _invoke_function(self._app, step_id, function, data, timeout, v, user, self._sessions)
        return self._call.step(request)  # type: ignore[no-any-return]

    def invoke_by_id(
        self,
        step_id: str,
        *,
        app_id: str | None = None,
        function_id: str,
        data: Mapping[str, Any] | Model | None = None,
        timeout: Duration | None = None,
        user: Any = None,
        v: str | None = None,
    ) -> Any:
        """See ``Step.invoke_by_id``."""
        return self._call.step(_invoke(self._app, step_id, app_id, function_id, data, timeout, v, user, self._sessions))

    def send_event(self, step_id: str, events: Events) -> list[str]:
        """See ``Step.send_event``."""
        return self.run(step_id, self._send, events)

    def fetch(
        self,
        step_id: str,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> FetchResponse:
        """See ``Step.fetch``."""
        return self._call.step(_fetch(step_id, url, method, headers, body))  # type: ignore[no-any-return]


class AISync(msgspec.Struct, eq=False):
    """See ``AI``."""

    _app: App
    _call: SyncCall

    def infer(
        self, step_id: str, *, adapter: AIAdapter, body: Mapping[str, Any], stream: bool = False, topic: str = "text"
    ) -> Any:
        """See ``AI.infer``."""
        return self._call.step(_infer(step_id, adapter, body, topic if stream else None))

    def wrap(self, step_id: str, handler: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See ``AI.wrap``."""
        return self._call.step(_wrap(self._app, step_id, handler, args, kwargs))  # type: ignore[no-any-return]


# -- requests


def _run(
    app: App,
    step_id: str,
    handler: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output_type: Any,
    opts: Mapping[str, Any] | None = None,
) -> StepRequest:
    if type(handler) not in _PLAIN:
        if getattr(handler, "is_durable_function", False):
            raise FunctionConfigInvalidError(
                f'step "{step_id}": the handler is the durable function {handler!r}: call it with '
                f'ctx.step.invoke("{step_id}", function=…), or give the step an ordinary function'
            )
        if not callable(handler):
            raise FunctionConfigInvalidError(f'step "{step_id}": the handler must be callable, not {handler!r}')
    request = StepRequest(_checked(step_id), Opcode.STEP_RUN, None, opts, handler, args, kwargs)
    codec = handler_codec(step_id, handler, args, output_type, app.serializer)
    if codec is not None:
        _convert(request, codec)
    return request


def _wrap(
    app: App, step_id: str, handler: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> StepRequest:
    request = _run(app, step_id, handler, args, kwargs, Unset, {"type": "step.ai.wrap"})
    request.encode = partial(_record_answer, request.encode)
    return request


def _record_answer(encode: Callable[[Any], Any] | None, answer: Any) -> Any:
    """Record the usage in a model's answer, unless the handler has recorded it."""
    step = in_step.get()
    recorded = None if step is None else step.usage
    if recorded is not None and not recorded and (usage := read_answer_usage(answer)) is not None:
        recorded.append(usage)
    return answer if encode is None else encode(answer)


def _convert(request: StepRequest, codec: Codec) -> None:
    source = f'step "{request.step_id}"'
    request.encode = partial(encode_as, codec, source)
    request.decode = partial(decode_as, codec, source)


def sleep_request(step_id: str, duration: Duration) -> StepRequest:
    text = _duration(step_id, duration)
    return StepRequest(_checked(step_id), Opcode.SLEEP, text, {"duration": text}, decode=lambda _: None)


def _sleep_until(step_id: str, until: dt.datetime) -> StepRequest:
    if not isinstance(until, dt.datetime):
        raise DurationInvalidError(f'step "{step_id}": sleep_until takes a datetime, not {until!r}')
    try:
        text = format_timestamp(until)
    except OverflowError:
        raise DurationInvalidError(f'step "{step_id}": {until} is outside of the years 1 to 9999 in UTC') from None
    return StepRequest(_checked(step_id), Opcode.SLEEP, text, {"duration": text}, decode=lambda _: None)


def _wait_for_event(step_id: str, event: str, if_exp: str | None, timeout: Duration) -> StepRequest:
    opts = {"event": _named(step_id, "event", event), "timeout": _duration(step_id, timeout)}
    if if_exp is not None:
        opts["if"] = if_exp
    return StepRequest(_checked(step_id), Opcode.WAIT_FOR_EVENT, event, opts, decode=partial(_optional, Event))


def _wait_for_signal(step_id: str, signal: str, timeout: Duration | None, on_conflict: str) -> StepRequest:
    if on_conflict not in ("fail", "replace"):
        raise FunctionConfigInvalidError(
            f'step "{step_id}": on_conflict must be "fail" or "replace", not {on_conflict!r}'
        )
    opts = {"signal": _named(step_id, "signal", signal), "conflict": on_conflict}
    if timeout is not None:
        opts["timeout"] = _duration(step_id, timeout)
    return StepRequest(_checked(step_id), Opcode.WAIT_FOR_SIGNAL, signal, opts, decode=partial(_optional, Signal))


def _invoke(
    app: App,
    step_id: str,
    app_id: str | None,
    function_id: str,
    data: Any,
    timeout: Duration | None,
    v: str | None,
    user: Any,
    sessions: Mapping[str, str],
    codec: Codec | None = None,
) -> StepRequest:
    payload: dict[str, Any] = {"data": as_data(data)}
    optional = (("v", v), ("user", user), ("meta", inherit_sessions(None, sessions)))
    payload |= {name: value for name, value in optional if value is not None}
    opts: dict[str, Any] = {"function_id": f"{app_id or app.app_id}-{function_id}", "payload": payload}
    if timeout is not None:
        opts["timeout"] = _duration(step_id, timeout)
    request = StepRequest(_checked(step_id), Opcode.INVOKE_FUNCTION, opts=opts)
    if codec is not None:
        _convert(request, codec)
    return request


def _invoke_function(
    app: App,
    step_id: str,
    function: FunctionDefinition[Any],
    data: Any,
    timeout: Duration | None,
    v: str | None,
    user: Any,
    sessions: Mapping[str, str],
) -> StepRequest:
    if not isinstance(function, FunctionDefinition):
        raise FunctionConfigInvalidError(
            f'step "{step_id}": function must be a durable function, not {function!r}; '
            "to invoke one by its id use invoke_by_id"
        )
    opts = function.opts
    codec = function.output_codec(app.serializer)
    return _invoke(app, step_id, opts.app_id, opts.local_id, data, timeout, v, user, sessions, codec)


def _fetch(step_id: str, url: str, method: str, headers: Mapping[str, str] | None, body: Any) -> StepRequest:
    opts: dict[str, Any] = {"url": url, "method": method.upper(), "headers": dict(headers or {})}
    if body is not None:
        opts["body"] = body if isinstance(body, str) else msgspec.json.encode(body).decode()
    return StepRequest(
        _checked(step_id), Opcode.GATEWAY, opts=opts, decode=partial(msgspec.convert, type=FetchResponse, strict=False)
    )


def _infer(step_id: str, adapter: AIAdapter, body: Mapping[str, Any], topic: str | None) -> StepRequest:
    if body.get("stream"):
        raise FunctionConfigInvalidError(
            f'step "{step_id}": the body has "stream": leave it out, and give ai.infer stream=True'
        )
    if topic is not None and _named(step_id, "topic", topic).startswith("$"):
        raise FunctionConfigInvalidError(f'step "{step_id}": the topic {topic!r} is the engine\'s: leave out the $')
    sent = dict(body)
    adapter.on_call(sent)
    opts: dict[str, Any] = {
        "type": "step.ai.infer",
        "url": adapter.url_infer(),
        "headers": adapter.headers(),
        "auth_key": adapter.auth_key(),
        "format": adapter.format(),
        "body": sent,
    }
    if topic is not None:
        opts["stream"] = {"topic": topic}
    return StepRequest(_checked(step_id), Opcode.AI_GATEWAY, opts=opts)


def _checked(step_id: str) -> str:
    if not isinstance(step_id, str) or not step_id:
        raise FunctionConfigInvalidError(f"a step's id must be a string that names it, not {step_id!r}")
    return step_id


def _named(step_id: str, argument: str, name: str) -> str:
    """The name of an event or a signal.

    A wait for a blank one would end only by its timeout.
    """
    if not isinstance(name, str) or not name.strip():
        raise FunctionConfigInvalidError(f'step "{step_id}": {argument} must be a string that names it, not {name!r}')
    return name


def _duration(step_id: str, duration: Duration) -> str:
    try:
        delta = to_timedelta(duration)
    except DurationInvalidError as error:
        raise DurationInvalidError(f'step "{step_id}": {error}') from None
    if delta > MAX_WAIT:
        raise DurationInvalidError(
            f'step "{step_id}": {format_duration(delta)} is longer than the maximum of {MAX_WAIT.days} days'
        )
    return format_duration(delta)


def _optional(kind: type[T], data: Any) -> T | None:
    return None if data is None else msgspec.convert(data, kind)
