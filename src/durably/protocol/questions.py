"""Questions of runs: how ``receive`` and ``ask`` use signals and steps.

A run that receives waits for a signal of its own. The signal's data is an ``Ask``. The reply is the memo of a step
whose id has the id of the ask, so that the sender can find it. Any server of the protocol carries both.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from .opcodes import hash_step_id

MAX_QUESTION_BYTES = 64 * 1024
"""The largest description of a question: its name, prompt and schema."""
MAX_NAME_CHARACTERS = 256


class QuestionInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The description of a question: the option ``question`` of the op of a wait for a signal.

    ``schema`` is the JSON schema of answers. ``refused`` is why the previous answer was refused.
    """

    name: str
    prompt: str | None = None
    schema: dict[str, Any] | None = None
    refused: str | None = None


class Ask(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The data of the signal: a message for a run.

    ``id`` identifies it, so that a repeated delivery is recognised. ``is_only``: it is refused if the run has accepted
    another message of the same name. ``until`` is the end of the wait that it ended, if there is one (an RFC 3339
    time), which the engine adds.
    """

    id: str
    data: Any = None
    is_only: bool = False
    until: str | None = None


def signal_of(run_id: str, name: str) -> str:
    """The signal for which a run waits to receive a message."""
    return f"ask/{run_id}/{name}"


def without_run(signal: str) -> str:
    """A signal for display: of one that brings a message, the name of the message."""
    kind, _, rest = signal.partition("/")
    return rest.partition("/")[2] or signal if kind == "ask" else signal


def reply_step(name: str, ask_id: str) -> str:
    """The id of the step that replies to a message."""
    return f"{name}: reply to {ask_id}"


def reply_key(name: str, ask_id: str) -> str:
    """The hashed id of the step that replies to a message."""
    return hash_step_id(reply_step(name, ask_id))


def read_ask(signal: Any) -> Ask | None:
    """The message in a wait's result; ``None`` if the signal was not sent by an ask."""
    data = signal.get("data") if isinstance(signal, Mapping) else None
    try:
        return msgspec.convert(data, Ask)
    except msgspec.ValidationError:
        return None
