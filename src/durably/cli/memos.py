"""What a finished step came to, in a few words: the inside of its memo."""

from typing import Any

from durably.protocol.opcodes import MAY_TIME_OUT, Opcode, unwrap_memo

from .text import format_json


def describe_memo(op: str | None, memo: Any) -> str:
    """``memo`` is as apps get it: ``{"data": …}``, ``{"error": …}``, an event that was waited for, or null."""
    if memo is None:
        return "timed out" if op in MAY_TIME_OUT else ""
    if op == Opcode.WAIT_FOR_EVENT:
        return f"{memo.get('name')} {format_json(memo.get('data'))}"
    return format_json(unwrap_memo(memo))
