"""Questions: a function receives messages while it waits, and replies to them.

``ctx.step.receive`` waits for a signal of its run, whose data is the message, and ``question.reply`` is a step whose
memo is the reply. Both are durable as all steps are. A message that was delivered twice has the same id, and is ignored
the second time. ``RunQuestions`` decides all this once, for async and sync functions.
"""

import secrets
from collections.abc import Coroutine, Generator
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from durably.protocol.durations import Duration, format_duration, to_timedelta
from durably.protocol.engine_errors import AnswerRefusedError
from durably.protocol.limits import MAX_WAIT
from durably.protocol.opcodes import Opcode
from durably.protocol.questions import (
    MAX_NAME_CHARACTERS,
    MAX_QUESTION_BYTES,
    Ask,
    QuestionInfo,
    read_ask,
    reply_step,
    signal_of,
)
from durably.values.codecs import Codec, TypeUnsupportedError, ValueRefusedError, checking_codec_for, json_schema
from durably.values.outputs import encode_as, to_json

from .app import App
from .errors import DurationInvalidError, FunctionConfigInvalidError, MemoInvalidError, StepError
from .execution import AsyncCall, StepRequest, SyncCall, drive

T = TypeVar("T")
Steps = Generator[StepRequest, Any, T]
"""Yields steps, and gets their results."""


class Received(msgspec.Struct, frozen=True):
    """A message that fits its type."""

    name: str
    id: str
    data: Any


class Question(Generic[T]):
    """A message that an async function has received.

    - ``id``: Of the message, unique among those of this name in the run.
    - ``data``: The message, an instance of the type that was given to ``receive``.
    """

    def __init__(self, questions: "RunQuestions", received: Received) -> None:
        self._questions = questions
        self.name = received.name
        self.id = received.id
        self.data: T = received.data

    async def reply(self, value: Any = None) -> None:
        """Reply to the sender, once. The reply is stored as the result of a step."""
        await self._questions.run(self._questions.reply(self.name, self.id, value))


class QuestionSync(Generic[T]):
    """A message that a sync function has received. See ``Question``."""

    def __init__(self, questions: "RunQuestions", received: Received) -> None:
        self._questions = questions
        self.name = received.name
        self.id = received.id
        self.data: T = received.data

    def reply(self, value: Any = None) -> None:
        """See ``Question.reply``."""
        self._questions.run_sync(self._questions.reply(self.name, self.id, value))


class RunQuestions:
    """The questions of a run, as one call sees them."""

    def __init__(self, app: App, call: AsyncCall | SyncCall, run_id: str) -> None:
        self._app = app
        self._call = call
        self._run_id = run_id
        self._seen: set[tuple[str, str]] = set()
        """Names and ids of messages."""
        self._accepted: set[str] = set()
        """The names of questions of which the run has accepted a message."""
        self._replied: set[tuple[str, str]] = set()

    def receive(self, name: str, typ: Any, prompt: str | None, timeout: Duration | None) -> Steps[Received | None]:
        """Receive a message of a type. The result is ``None`` after the timeout.

        Refuses messages that do not fit, and waits for the next one.
        """
        until, codec = _duration(name, timeout), _codec(name, typ, self._app)
        info = _describe(name, typ, prompt)
        while True:
            opts: dict[str, Any] = {"signal": signal_of(self._run_id, name), "conflict": "fail"}
            opts |= {"question": msgspec.to_builtins(info)} | ({} if until is None else {"timeout": until})
            request = StepRequest(name, Opcode.WAIT_FOR_SIGNAL, name, opts, encode=partial(_mocked, codec, name))
            signal = yield request
            if signal is None and timeout is not None:
                return None
            ask = read_ask(signal)
            # A wait lasts at most a year, a question as long as its run. A signal may be another program's, and a
            # message may be delivered again.
            if ask is None or (name, ask.id) in self._seen:
                continue
            self._seen.add((name, ask.id))
            try:
                data = ask.data if codec is None else codec.decode(ask.data)
                if not ask.is_only or name not in self._accepted:
                    self._accepted.add(name)
                    return Received(name, ask.id, data)
                refused = f"{name!r} has been answered already"
            except ValueRefusedError as error:
                refused = f"the message does not fit {codec and codec.name}, which {name!r} receives: {error}"
            with suppress(StepError):
                yield self._reply_request(name, ask.id, AnswerRefusedError(refused))
            info, until = msgspec.structs.replace(info, refused=refused), ask.until or until

    def reply(self, name: str, ask_id: str, value: Any) -> Steps[None]:
        if (name, ask_id) in self._replied:
            raise FunctionConfigInvalidError(f'step "{reply_step(name, ask_id)}": a question is replied to once')
        self._replied.add((name, ask_id))
        yield self._reply_request(name, ask_id, value)

    def _reply_request(self, name: str, ask_id: str, value: Any) -> StepRequest:
        """The step of a reply, or of a refusal if the value is an error."""

        def reply() -> Any:
            if isinstance(value, AnswerRefusedError):
                raise value
            return value

        async def reply_async() -> Any:
            return reply()

        step_id = reply_step(name, ask_id)
        handler = reply_async if isinstance(self._call, AsyncCall) else reply
        request = StepRequest(step_id, Opcode.STEP_RUN, handler=handler)
        with suppress(TypeUnsupportedError, NameError):  # The encoder of outputs explains them.
            if value is not None and (codec := checking_codec_for(type(value), self._app.serializer)) is not None:
                request.encode = partial(encode_as, codec, f'step "{step_id}"')
        return request

    def create(self, name: str, steps: Steps[T]) -> Coroutine[Any, Any, T]:
        """The awaitable of steps, for an async function."""
        assert isinstance(self._call, AsyncCall)
        return self._call.group(name, partial(self.run, steps))

    async def run(self, steps: Steps[T]) -> T:
        """Make steps. In a sync function it never suspends."""
        answer = partial(next, steps)
        while True:
            try:
                request = answer()
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            try:
                result = self._call.step(request)
                answer = partial(steps.send, await result if isinstance(self._call, AsyncCall) else result)
            except StepError as error:
                answer = partial(steps.throw, error)

    def run_sync(self, steps: Steps[T]) -> T:
        """``run`` for sync functions."""
        return drive(self.run(steps))


def _codec(name: str, typ: Any, app: App) -> Codec | None:
    try:
        return checking_codec_for(typ, app.serializer)
    except (TypeUnsupportedError, NameError) as error:
        raise FunctionConfigInvalidError(f'receive "{name}": type={typ!r} cannot be used: {error}') from None


def _describe(name: str, typ: Any, prompt: str | None) -> QuestionInfo:
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARACTERS:
        raise FunctionConfigInvalidError(
            f"receive takes a name of at most {MAX_NAME_CHARACTERS} characters, by which it is asked, not {name!r}"
        )
    info = QuestionInfo(name=name, prompt=prompt, schema=json_schema(typ))
    if (size := len(msgspec.json.encode(info))) > MAX_QUESTION_BYTES:
        raise FunctionConfigInvalidError(
            f'receive "{name}": the prompt and the JSON schema of the type have {size} bytes; at most '
            f"{MAX_QUESTION_BYTES} are allowed"
        )
    return info


def _duration(name: str, timeout: Duration | None) -> str | None:
    if timeout is None:
        return None
    try:
        delta = to_timedelta(timeout)
    except DurationInvalidError as error:
        raise DurationInvalidError(f'receive "{name}": {error}') from None
    if delta > MAX_WAIT:
        raise DurationInvalidError(
            f'receive "{name}": {format_duration(delta)} is longer than the maximum of {MAX_WAIT.days} days; '
            "without a timeout it waits for as long as the run lasts"
        )
    return format_duration(delta)


def _mocked(codec: Codec | None, name: str, value: Any) -> Any:
    """The signal for a message with which a test replaces the step."""
    if value is None:
        return None
    data = value if codec is None else codec.encode(value, lambda change: None)
    return {"signal": name, "data": msgspec.to_builtins(Ask(id=f"mock-{secrets.token_hex(4)}", data=data))}


# for senders


def encode_message(name: str, data: Any, app: App) -> Any:
    """A message as JSON values. Raises ``OutputUnserializableError``."""
    codec = None
    with suppress(TypeUnsupportedError, NameError):  # The encoder explains them.
        codec = None if data is None else checking_codec_for(type(data), app.serializer)
    source = f"the message for {name!r}"
    return to_json(data, source)[1] if codec is None else encode_as(codec, source, data)


def decode_reply(name: str, data: Any, reply_type: Any, app: App) -> Any:
    """A reply as an instance of its type. Raises ``MemoInvalidError`` if it does not fit."""
    codec = None if reply_type is Any else _codec(name, reply_type, app)
    try:
        return data if codec is None else codec.decode(data)
    except ValueRefusedError as error:
        raise MemoInvalidError(f"the reply to {name!r} does not fit {codec and codec.name}: {error}") from None
