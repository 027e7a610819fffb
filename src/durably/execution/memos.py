"""Memos, the results of finished steps, and replays that differ from them.

Spec §5.2 defines memos.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from durably.protocol.errors import Error, ErrorCode, ErrorData

_RESULT_KEYS = frozenset(("data", "error", "type"))
_INPUT_KEYS = frozenset(("input", "type"))
_NOTHING: Mapping[str, Any] = {}


class Memo(msgspec.Struct):
    """One finished step.

    ``data`` and ``error`` may be replaced, which is how middleware decrypts them.
    """

    data: Any = None
    error: ErrorData | None = None


Memos = dict[str, msgspec.Raw | Memo]
"""The memos that no step has taken yet, by hashed step id.

Each is decoded when it is taken. A thousand memos as Python objects would trigger the garbage collector, which costs
more than the rest of the replay.
"""


class MemoUnreadableError(Error):
    """A step's stored output cannot be restored.

    The message names the step and the reason. The error ends the call, and the function cannot catch it, because the
    step itself has succeeded.
    """

    code = ErrorCode.MEMO_UNREADABLE
    include_stack = False


class StepMemos:
    """The memos of a call, by hashed step id, as middleware sees and changes them."""

    __slots__ = ("memos", "refusals")

    def __init__(self, memos: Mapping[str, msgspec.Raw | Memo] | None = None) -> None:
        self.memos: Memos = memos if isinstance(memos, dict) else dict(memos or {})
        self.refusals: Mapping[str, str] = _NOTHING
        """The reasons why memos cannot be restored, by hashed step id."""

    def __contains__(self, hashed_id: str) -> bool:
        return hashed_id in self.memos

    def __len__(self) -> int:
        return len(self.memos)

    @property
    def size(self) -> int:
        return len(self.memos)

    def ids(self) -> Collection[str]:
        return self.memos.keys()

    def values(self) -> Iterator[Memo]:
        return (memo for _, memo in self.items())

    def items(self) -> Iterator[tuple[str, Memo]]:
        for hashed_id, value in list(self.memos.items()):
            memo = self.memos[hashed_id] = to_memo(value)
            yield hashed_id, memo

    def pop(self, hashed_id: str) -> Memo | None:
        """Take the memo; ``None`` if there is none."""
        value = self.memos.pop(hashed_id, None)
        return None if value is None else to_memo(value)

    def refuse(self, hashed_id: str, reason: str) -> None:
        """Mark a memo that cannot be restored.

        If the function reaches its step, the call ends with the reason.
        """
        self.refusals = {**self.refusals, hashed_id: reason}


def take_inputs(memos: Memos) -> Mapping[str, Sequence[Any]]:
    """Take inputs out of the memos, by hashed step id.

    Inputs are arguments for steps that run again with another input.
    """
    inputs: dict[str, Sequence[Any]] = {}
    for hashed_id, raw in list(memos.items()):
        value = None if isinstance(raw, Memo) else _decode(raw)
        if isinstance(value, dict) and "input" in value and _INPUT_KEYS.issuperset(value):
            inputs[hashed_id] = value["input"] if isinstance(value["input"], list) else [value["input"]]
            del memos[hashed_id]
    return inputs


class _Result(Memo, forbid_unknown_fields=True):
    """The shape of nearly all memos."""

    type: Any = None


decode_result = msgspec.json.Decoder(_Result | None).decode
"""Decode nearly all memos. Raises ``msgspec.DecodeError`` for the others."""
_decode_strictly = msgspec.json.Decoder().decode


def to_memo(value: msgspec.Raw | Memo) -> Memo:
    """Decode a memo. Sleeps and timeouts have null as their memo."""
    if isinstance(value, Memo):
        return value
    try:
        return decode_result(value) or Memo()
    except msgspec.DecodeError:
        return to_rare_memo(value)


def to_rare_memo(raw: msgspec.Raw) -> Memo:
    """Decode a memo that ``decode_result`` refuses."""
    value = _decode(raw)
    if isinstance(value, dict) and "data" in value and _RESULT_KEYS.issuperset(value):
        return Memo(value["data"])
    if isinstance(value, dict) and "error" in value and _RESULT_KEYS.issuperset(value):
        return Memo(error=ErrorData(name="Error", message=str(value["error"])))  # not the usual form of an error
    return Memo(value)  # the memo of a wait is the event itself


def _decode(raw: msgspec.Raw) -> Any:
    try:
        return _decode_strictly(raw)
    except msgspec.DecodeError:
        return json.loads(bytes(raw))  # an unpaired surrogate, which JavaScript and Python can write


class ReplayDivergedError(Error):
    """The function no longer reaches steps that its run has finished.

    Raised with strict replay only.
    """

    code = ErrorCode.REPLAY_DIVERGED
    is_retriable = False
    include_stack = False


class StepIdUnstableError(Error):
    """The ids of a function's steps change from call to call.

    The steps' handlers would run again and again.
    """

    code = ErrorCode.STEP_ID_UNSTABLE
    is_retriable = False
    include_stack = False


class Divergence(msgspec.Struct, frozen=True):
    """A replay that differs from the run's memos.

    - ``unreached``: Hashed ids of finished steps that were not reached, in the order in which they finished.
    - ``found``: The new step that is about to run; ``None`` if the function returned.
    - ``early``: A finished step that was reached earlier than in the call that finished it.
    """

    unreached: Sequence[str]
    found: str | None = None
    early: str | None = None
