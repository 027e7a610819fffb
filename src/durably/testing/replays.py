"""Calling a function again with memos of a run that has been, to see which steps it finds. No step is executed.

Needs no engine, so that a process of its own can do it as well.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from durably.comm import CommHandler, CommRequest
from durably.protocol.events import Event
from durably.protocol.headers import DISCOVER, Query
from durably.protocol.opcodes import Op


class PastStep(msgspec.Struct, frozen=True):
    """A step that has finished: its hashed id, its own id, and its memo as JSON."""

    hashed_id: str
    name: str
    memo: msgspec.Raw


class Past(msgspec.Struct, frozen=True):
    """A run that has been; ``steps`` are in the order of their memos."""

    run_id: str
    function_id: str
    events: list[Event]
    steps: list[PastStep]


class Found(msgspec.Struct, frozen=True):
    """What a call came to: steps without memos, by hashed id their own ids, or how the function ended."""

    steps: dict[str, str]
    end: str | None = None

    def is_like(self, other: "Found") -> bool:
        return self.steps.keys() == other.steps.keys() and self.end == other.end

    def __str__(self) -> str:
        return self.end or ", ".join(f"step {name!r}" for name in self.steps.values())


RETURNED = "that it returned"
_ops_decoder = msgspec.json.Decoder(list[Op])


def call_body(past: Past, memos: Sequence[PastStep]) -> bytes:
    """A call that discovers (spec §4.4.1), with these memos in this order, and in which each step is planned only."""
    ids = [step.hashed_id for step in memos]
    body: dict[str, Any] = {
        "ctx": {
            "run_id": past.run_id,
            "fn_id": past.function_id,
            "step_id": DISCOVER,
            "disable_immediate_execution": True,
            "stack": {"stack": ids, "current": len(ids)},
        },
        "event": past.events[0],
        "events": past.events,
        "steps": {step.hashed_id: step.memo for step in memos},
    }
    return msgspec.json.encode(body)


async def replay(handler: CommHandler, function_id: str, body: bytes) -> Found:
    request = CommRequest(
        body=body,
        headers={},
        query_params={Query.FUNCTION_ID.value: function_id, Query.STEP_ID.value: DISCOVER},
        raw_request=None,
        request_url="test://replay",
        is_connect=True,
    )
    response = await handler.post(request)
    answer = response.body_bytes()
    if response.status_code == HTTPStatus.OK:
        return Found({}, RETURNED)
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return Found({}, f"that it raised {msgspec.json.decode(answer)['name']}")
    return Found({op.id: _name_of(op) for op in _ops_decoder.decode(answer)})


def _name_of(op: Op) -> str:
    if op.userland is None:
        return op.display_name or op.id
    return f"{op.userland.id}:{op.userland.index}" if op.userland.index else op.userland.id
