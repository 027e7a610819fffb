"""Questions of runs, and messages for them, as every engine handles them: outcomes, the loop of an ask, and types.

A message is delivered as a signal (see ``durably.protocol.questions``). The outcome of a message is computed from the
run's memos, so an engine stores nothing else.
"""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from durably.protocol.call import check_nesting
from durably.protocol.durations import format_timestamp
from durably.protocol.engine_errors import (
    AnswerRefusedError,
    QuestionClosedError,
    SelectionInvalidError,
    TooLargeError,
)
from durably.protocol.errors import ErrorData
from durably.protocol.questions import MAX_NAME_CHARACTERS, Ask, read_ask, signal_of

from .runs import Run, RunStatus, Step

LONGEST_ASK_SECONDS = 20.0
MAX_ASK_ID_CHARACTERS = 256


class OpenQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A question that a run asks: it waits for a message."""

    run_id: str
    function_id: str
    app_id: str
    name: str
    """The name by which it is answered."""
    step_id: str
    """The hashed id of the step that waits. It tells repeated questions of one name apart."""
    asked_at: dt.datetime
    due_at: dt.datetime | None = None
    """When the wait times out."""
    prompt: str | None = None
    schema: dict[str, Any] | None = None
    """The JSON schema of an answer, if it is known."""
    refused: str | None = None
    """Why the previous answer was refused."""


def open_questions(run: Run, steps: Iterable[Step]) -> list[OpenQuestion]:
    """The open questions among the steps of a run."""
    return [
        OpenQuestion(
            run_id=run.id,
            function_id=run.function_id,
            app_id=run.app_id,
            name=step.question.name,
            step_id=step.hashed_id,
            asked_at=step.created_at,
            due_at=step.due_at,
            prompt=step.question.prompt,
            schema=step.question.schema,
            refused=step.question.refused,
        )
        for step in steps
        if step.question is not None and step.ended_at is None
    ]


class AskState(StrEnum):
    WAITING = "waiting"
    """The run does not receive messages of this name yet. Nothing is stored."""
    DELIVERED = "delivered"
    REPLIED = "replied"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message so far."""

    state: AskState
    reply: msgspec.Raw | None = None
    """JSON; ``None`` also for null."""
    status: RunStatus = RunStatus.RUNNING
    """Of the run."""

    def is_final(self, *, needs_reply: bool) -> bool:
        return self.state is AskState.REPLIED or (self.state is AskState.DELIVERED and not needs_reply)


def find_outcome(name: str, ask: Ask, memos: Iterable[bytes], reply_to: Callable[[str], bytes | None]) -> Asked | None:
    """What became of a message; ``None`` if it was not delivered.

    ``memos`` are those of the run's waits for messages of this name. ``reply_to`` finds the memo of the reply to a
    message, by its id. Raises ``AnswerRefusedError``, ``QuestionClosedError``.
    """
    if (reply := reply_to(ask.id)) is not None:
        if (error := _error_of(reply)) is None:
            data = msgspec.json.decode(reply, type=dict[str, msgspec.Raw]).get("data", msgspec.Raw(b"null"))
            return Asked(state=AskState.REPLIED, reply=None if bytes(data) == b"null" else msgspec.Raw(bytes(data)))
        if error.name == AnswerRefusedError.__name__:
            raise AnswerRefusedError(error.message or "the message was refused")
        raise QuestionClosedError(f"the function received {name!r}, but its reply failed: {error.message}")
    received = [found.id for memo in memos if (found := _ask_of(memo)) is not None]
    if ask.id in received:
        return Asked(state=AskState.DELIVERED)
    if ask.is_only:
        replies = (reply_to(each) for each in received)
        if any(memo is None or _error_of(memo) is None for memo in replies):
            raise QuestionClosedError(f"{name!r} has been answered already")
    return None


class _Failed(msgspec.Struct):
    error: ErrorData | None = None


def _error_of(memo: bytes) -> ErrorData | None:
    return msgspec.json.decode(memo, type=_Failed).error


def _ask_of(memo: bytes) -> Ask | None:
    """The message in the memo of a wait."""
    found = msgspec.json.decode(memo)
    return read_ask(found.get("data")) if isinstance(found, dict) else None


def make_ask(name: str, ask_id: str, data: Any, is_only: bool, max_bytes: int) -> Ask:
    """A message, checked. Raises ``SelectionInvalidError``, ``TooLargeError``."""
    if not name.strip() or len(name) > MAX_NAME_CHARACTERS:
        raise SelectionInvalidError(f"a message needs a name of at most {MAX_NAME_CHARACTERS} characters")
    if not ask_id.strip() or len(ask_id) > MAX_ASK_ID_CHARACTERS:
        raise SelectionInvalidError(f"a message for {name!r} needs an id of at most {MAX_ASK_ID_CHARACTERS} characters")
    encoded = msgspec.json.encode(data)
    check_nesting(encoded)
    if len(encoded) > max_bytes:
        raise TooLargeError(f"the message for {name!r} has {len(encoded)} bytes; at most {max_bytes} are allowed")
    return Ask(id=ask_id, data=data, is_only=is_only)


def check_question(question: OpenQuestion | None, run_id: str, name: str, ask: Ask, step_id: str | None) -> None:
    """Check that a message fits the open question of its name, if there is one.

    With ``step_id`` the question must be that step's. Raises ``QuestionClosedError``, ``AnswerRefusedError``.
    """
    if step_id is not None and (question is None or question.step_id != step_id):
        raise QuestionClosedError(f"the question {name!r} of the run {run_id} is not open any more")
    is_encrypted = isinstance(ask.data, dict) and ask.data.get("__ENCRYPTED__") is True  # The function checks it.
    if question is not None and question.schema is not None and not is_encrypted:
        problem = find_mismatch(question.schema, ask.data)
        if problem is not None:
            raise AnswerRefusedError(f"the message does not fit what {name!r} receives: {problem}")


def message_memo(question: OpenQuestion, ask: Ask) -> bytes:
    """The memo of the step that waits for a message."""
    until = None if question.due_at is None else format_timestamp(question.due_at)
    data = msgspec.json.encode(msgspec.structs.replace(ask, until=until))
    return signal_memo(signal_of(question.run_id, question.name), data)


def signal_memo(signal: str, data: bytes) -> bytes:
    """The memo of a wait for a signal that was sent with JSON ``data``."""
    return b'{"data":{"data":' + data + b',"signal":' + msgspec.json.encode(signal) + b"}}"


async def ask_until(
    run_id: str,
    name: str,
    try_once: Callable[[], Awaitable[Asked]],
    wait_for_change: Callable[[float], Awaitable[object]],
    *,
    needs_reply: bool,
    within: float,
) -> Asked:
    """Try to deliver a message, and to get its reply, until both is done or the time is over.

    ``wait_for_change`` returns after the run's next change, or after that time. Raises ``QuestionClosedError`` if the
    run has ended.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + min(max(within, 0.0), LONGEST_ASK_SECONDS)
    while True:
        asked = await try_once()
        if asked.is_final(needs_reply=needs_reply):
            return asked
        if asked.status.has_ended:
            what = f"takes no {name!r} any more" if asked.state is AskState.WAITING else f"did not reply to {name!r}"
            raise QuestionClosedError(f"the run {run_id} {what}: it has ended ({asked.status.value})")
        if (left := until - loop.time()) <= 0:
            return asked
        await wait_for_change(left)


# types of messages


def find_mismatch(schema: Mapping[str, Any], value: Any) -> str | None:
    """Why a value does not fit a JSON schema; ``None`` if it may fit.

    Only what schemas of Python types say about types, fields and choices is checked, and only so many parts: the
    function checks messages completely, and this spares it most of the wrong ones.
    """
    return _Check(schema).mismatch(schema, value, "$", 0)


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
_MOST_LEVELS = 50
_MOST_PARTS = 10_000


class _Check:
    """One check of a value. ``parts`` are those that may still be looked at."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.parts = _MOST_PARTS

    def mismatch(self, schema: Any, value: Any, path: str, level: int) -> str | None:
        self.parts -= 1
        if not isinstance(schema, Mapping) or level > _MOST_LEVELS or self.parts < 0:
            return None
        if isinstance(ref := schema.get("$ref"), str):
            return self.mismatch(resolve(self.root, ref), value, path, level + 1)
        for keyword in ("anyOf", "oneOf"):
            if isinstance(choices := schema.get(keyword), list) and choices:
                problems = [self.mismatch(each, value, path, level + 1) for each in choices]
                if all(problem is not None for problem in problems):
                    return problems[0] if len(problems) == 1 else f"no allowed form fits - at `{path}`"
        types = schema.get("type")
        names = [types] if isinstance(types, str) else types if isinstance(types, list) else []
        if names and not any(_is_of(name, value) for name in names):
            return f"Expected {' or '.join(f'`{name}`' for name in names)} - at `{path}`"
        if isinstance(allowed := schema.get("enum"), list) and value not in allowed:
            return f"Expected one of {', '.join(map(repr, allowed))} - at `{path}`"
        if "const" in schema and value != schema["const"]:
            return f"Expected {schema['const']!r} - at `{path}`"
        if isinstance(value, dict):
            return self._mismatch_of_object(schema, value, path, level)
        if isinstance(value, list) and "items" in schema:
            for index, each in enumerate(value):
                problem = self.mismatch(schema["items"], each, f"{path}[{index}]", level + 1)
                if problem is not None or self.parts < 0:
                    return problem
        return None

    def _mismatch_of_object(
        self, schema: Mapping[str, Any], value: dict[str, Any], path: str, level: int
    ) -> str | None:
        properties, required = schema.get("properties"), schema.get("required")
        properties = properties if isinstance(properties, Mapping) else {}
        # A field that the schema does not know may be another name (alias) of one that it requires.
        if isinstance(required, list) and value.keys() <= properties.keys():
            for field in required:
                if isinstance(field, str) and field not in value:
                    return f"the field `{field}` is missing - at `{path}`"
        for field, each in value.items():
            if field in properties:
                problem = self.mismatch(properties[field], each, f"{path}.{field}", level + 1)
                if problem is not None:
                    return problem
            elif schema.get("additionalProperties") is False:
                return f"the field `{field}` is unknown - at `{path}`"
        return None


def resolve(root: Mapping[str, Any], ref: str) -> Any:
    """The part of a schema to which a reference points; ``None`` if there is none."""
    target: Any = root
    for part in ref.removeprefix("#/").split("/") if ref != "#" else ():
        target = target.get(part) if isinstance(target, Mapping) else None
    return target


def _is_of(name: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return bool(name == "boolean")
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, (object,)) if isinstance(name, str) else object)
