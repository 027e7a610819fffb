"""Memos: the results of finished steps (spec §5.2), and replays that differ from them."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from durably.protocol.errors import Error, ErrorCode, ErrorData

_RESULT_KEYS = frozenset(("data", "error", "type"))
_NONE: Mapping[str, Any] = {}
_INPUT_KEYS = frozenset(("input", "type"))


class Memo(msgspec.Struct):
    """One finished step. ``data`` and ``error`` may be replaced, which is how middleware decrypts them."""

    data: Any = None
    error: ErrorData | None = None


class MemoUnreadableError(Error):
    """A step's stored output cannot be restored; the message names the step and the reason.

    It ends the call, and the function cannot catch it: the step itself has succeeded.
    """

    code = ErrorCode.MEMO_UNREADABLE
    include_stack = False


class StepMemos:
    """The memos of a call that no step has taken yet, by hashed step id.

    Each is decoded when it is taken: to hold the Python objects of a thousand memos at once would set off the
    garbage collector, which costs more than all the rest of the replay.
    """

    __slots__ = ("_inputs", "_memos", "refusals")

    def __init__(self, steps: Mapping[str, msgspec.Raw] | None = None) -> None:
        self._memos: dict[str, msgspec.Raw | Memo] = dict(steps) if steps else {}
        self._inputs: Mapping[str, Any] = _NONE
        self.refusals: Mapping[str, str] = _NONE
        """The reasons why memos cannot be restored, by hashed step id."""
        if steps and b'"input"' in b"".join(steps.values()):
            self._take_inputs(steps)

    def _take_inputs(self, steps: Mapping[str, msgspec.Raw]) -> None:
        """Not results: these steps are to be run, with these inputs in place of their own."""
        inputs = {}
        for hashed_id, raw in steps.items():
            value = _decode(raw)
            if isinstance(value, dict) and "input" in value and _INPUT_KEYS.issuperset(value):
                inputs[hashed_id] = value["input"]
                del self._memos[hashed_id]
        self._inputs = inputs

    def __contains__(self, hashed_id: str) -> bool:
        return hashed_id in self._memos

    def __len__(self) -> int:
        return len(self._memos)

    @property
    def size(self) -> int:
        return len(self._memos)

    def ids(self) -> Collection[str]:
        return self._memos.keys()

    def values(self) -> Iterator[Memo]:
        return (memo for _, memo in self.items())

    def items(self) -> Iterator[tuple[str, Memo]]:
        for hashed_id, value in list(self._memos.items()):
            memo = self._memos[hashed_id] = value if isinstance(value, Memo) else _to_memo(value)
            yield hashed_id, memo

    def pop(self, hashed_id: str) -> Memo | None:
        """Take the memo, so that it is returned once; ``None`` if there is none."""
        value = self._memos.pop(hashed_id, None)
        return value if value is None or isinstance(value, Memo) else _to_memo(value)

    def refuse(self, hashed_id: str, reason: str) -> None:
        """Mark a memo that cannot be restored. If the function reaches its step, the call ends with the reason."""
        self.refusals = {**self.refusals, hashed_id: reason}

    def input_of(self, hashed_id: str) -> Sequence[Any] | None:
        """Arguments that replace those of a step that is run again with another input."""
        value = self._inputs.get(hashed_id)
        return value if value is None or isinstance(value, list) else [value]


class _Result(Memo, forbid_unknown_fields=True):
    """The shape of nearly all memos."""

    type: Any = None


_decode_strictly = msgspec.json.Decoder().decode
_decode_result = msgspec.json.Decoder(_Result | None).decode


def _to_memo(raw: msgspec.Raw) -> Memo:
    try:
        return _decode_result(raw) or Memo()  # sleeps and timeouts memoise null
    except msgspec.DecodeError:
        return _to_rare_memo(_decode(raw))


def _decode(raw: msgspec.Raw) -> Any:
    try:
        return _decode_strictly(raw)
    except msgspec.DecodeError:
        return json.loads(bytes(raw))  # half of a surrogate pair, which JavaScript and Python can write


def _to_rare_memo(value: Any) -> Memo:
    if isinstance(value, dict) and "data" in value and _RESULT_KEYS.issuperset(value):
        return Memo(value["data"])
    if isinstance(value, dict) and "error" in value and _RESULT_KEYS.issuperset(value):
        return Memo(error=ErrorData(name="Error", message=str(value["error"])))  # not as errors are written
    return Memo(value)  # waits memoise the event itself


class ReplayDivergedError(Error):
    """The function no longer reaches steps that its run has finished, and strict replay is on."""

    code = ErrorCode.REPLAY_DIVERGED
    is_retriable = False
    include_stack = False


class StepIdUnstableError(Error):
    """The ids of a function's steps change from call to call, so their handlers would run again and again."""

    code = ErrorCode.STEP_ID_UNSTABLE
    is_retriable = False
    include_stack = False


@dataclass(frozen=True, slots=True)
class Divergence:
    """``unreached`` are the hashed ids of finished steps that were not reached, in the order in which they finished.

    ``found`` is the new step that is about to run; ``None`` if the function returned. ``early`` names a finished step
    that was reached earlier than in the call that finished it.
    """

    unreached: Sequence[str]
    found: str | None = None
    early: str | None = None
