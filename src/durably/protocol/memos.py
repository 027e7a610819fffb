"""What a finished step's memo holds, for those who show it (spec §5.2)."""

from typing import Any

from .opcodes import Opcode

MAY_TIME_OUT = (Opcode.WAIT_FOR_EVENT, Opcode.WAIT_FOR_SIGNAL)
"""Ops whose memo is null after a timeout."""
_RESULT_KEYS = frozenset(("data", "type"))


def unwrap_memo(memo: Any) -> Any:
    """A step's result, which all memos but those of event waits wrap; other memos, errors among them, as they are."""
    return memo["data"] if isinstance(memo, dict) and "data" in memo and _RESULT_KEYS.issuperset(memo) else memo
