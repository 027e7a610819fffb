"""Memos: the results of finished steps, as the engine sent them (spec §5.2)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from durably.protocol.errors import ErrorData

_decode = msgspec.json.Decoder().decode


class Memo:
    """One finished step. ``data`` and ``error`` may be replaced, which is how middleware decrypts them.

    Decoded when first looked at: a call of a function with a thousand memos may need only a few.
    """

    __slots__ = ("_data", "_error", "_raw")

    def __init__(self, raw: msgspec.Raw | None = None, *, data: Any = None, error: ErrorData | None = None) -> None:
        self._raw = raw
        self._data = data
        self._error = error

    def __repr__(self) -> str:
        return f"Memo(data={self.data!r}, error={self.error!r})"

    @property
    def data(self) -> Any:
        if self._raw is not None:
            self._load()
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        if self._raw is not None:
            self._load()
        self._data = value

    @property
    def error(self) -> ErrorData | None:
        if self._raw is not None:
            self._load()
        return self._error

    @error.setter
    def error(self, value: ErrorData | None) -> None:
        if self._raw is not None:
            self._load()
        self._error = value

    def _load(self) -> None:
        value = _decode(self._raw)  # type: ignore[arg-type]
        self._raw = None
        if isinstance(value, dict) and value and value.keys() <= {"data", "error", "type"}:
            if value.get("error") is not None:
                self._error = _to_error(value["error"])
            else:
                self._data = value.get("data")
        else:
            # Waits memoise the event itself, sleeps null: neither is wrapped in an object.
            self._data = value


def _to_error(value: Any) -> ErrorData:
    try:
        return msgspec.convert(value, ErrorData)
    except msgspec.ValidationError:
        return ErrorData(name="Error", message=str(value))


class StepMemos:
    """The memos of a call that no step has taken yet, by hashed step id."""

    __slots__ = ("_inputs", "_memos")

    def __init__(self, steps: Mapping[str, msgspec.Raw | Memo] | None = None) -> None:
        self._memos: dict[str, Memo] = {}
        self._inputs: dict[str, Any] = {}
        for hashed_id, value in (steps or {}).items():
            if isinstance(value, Memo):
                self._memos[hashed_id] = value
            elif bytes(memoryview(value)[:12]).replace(b" ", b"").startswith(b'{"input"'):
                # Not a result: the step is to be run, with this input in place of its own.
                self._inputs[hashed_id] = _decode(value)["input"]
            else:
                self._memos[hashed_id] = Memo(value)

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
