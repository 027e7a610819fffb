"""Inputs and results as text for people: decoded, decrypted, and bounded in size."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter

MAX_BYTES = 256 * 1024
"""Of a payload that is decoded; the server takes two megabytes."""

MAX_CHARACTERS = 10_000
"""Of a text that is shown."""


@dataclass(frozen=True)
class PayloadText:
    """``note`` says what is missing of ``text``, or why there is none."""

    text: str
    note: str | None = None


async def payload_texts(converter: DataConverter, payloads: Iterable[Payload]) -> list[PayloadText]:
    """Never raises for a payload that cannot be read: its note says why."""
    return [await _payload_text(converter, payload) for payload in payloads]


async def _payload_text(converter: DataConverter, payload: Payload) -> PayloadText:
    if payload.ByteSize() > MAX_BYTES:
        return PayloadText("", f"{payload.ByteSize():,} bytes: too large to show")
    try:
        [value] = await converter.decode([payload])
        text = _to_text(value)
    except Exception as error:
        return PayloadText("", f"it cannot be decoded: {type(error).__name__}: {error}"[:1000])
    if len(text) > MAX_CHARACTERS:
        return PayloadText(text[:MAX_CHARACTERS], f"the first {MAX_CHARACTERS:,} of {len(text):,} characters")
    return PayloadText(text)


def _to_text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
