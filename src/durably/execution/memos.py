"""Memos: the results of finished steps, as the engine sent them (spec §5.2)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from durably.protocol.errors import ErrorData

_RESULT_KEYS = frozenset(("data", "error", "type"))
_INPUT_KEYS = frozenset(("input", "type"))


class Memo(msgspec.Struct):
    """One finished step. ``data`` and ``error`` may be replaced, which is how middleware decrypts them."""

    data: Any = None
    error: ErrorData | None = None


class StepMemos:
    """The memos of a call that no step has taken yet, by hashed step id.

    Made of the call's ``steps`` as JSON decodes them.
    """

    __slots__ = ("_inputs", "_memos")

    def __init__(self, steps: Mapping[str, Any] | None = None) -> None:
        self._memos: dict[str, Memo] = {}
        self._inputs: dict[str, Any] = {}
        for hashed_id, value in (steps or {}).items():
            if not isinstance(value, dict) or not value:
                self._memos[hashed_id] = Memo(value)  # sleeps and timeouts memoise null
            elif _RESULT_KEYS.issuperset(value):
                error = value.get("error")
                self._memos[hashed_id] = Memo(value.get("data")) if error is None else Memo(error=_to_error(error))
            elif _INPUT_KEYS.issuperset(value):
                # Not a result: the step is to be run, with this input in place of its own.
                self._inputs[hashed_id] = value["input"]
            else:
                self._memos[hashed_id] = Memo(value)  # waits memoise the event itself

    def __contains__(self, hashed_id: str) -> bool:
        return hashed_id in self._memos

    def __len__(self) -> int:
        return len(self._memos)

    @property
    def size(self) -> int:
        return len(self._memos)

    def values(self) -> Iterator[Memo]:
        return iter(self._memos.values())

    def items(self) -> Iterator[tuple[str, Memo]]:
        return iter(self._memos.items())

    def pop(self, hashed_id: str) -> Memo | None:
        """Take the memo, so that it is returned once; ``None`` if there is none."""
        return self._memos.pop(hashed_id, None)

    def input_of(self, hashed_id: str) -> Sequence[Any] | None:
        """Arguments that replace those of a step that is run again with another input."""
        value = self._inputs.get(hashed_id)
        return value if value is None or isinstance(value, list) else [value]


def _to_error(value: Any) -> ErrorData:
    try:
        return msgspec.convert(value, ErrorData)
    except msgspec.ValidationError:
        return ErrorData(name="Error", message=str(value))
