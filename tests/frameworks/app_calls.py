"""Requests to apps under test, as an engine makes them; ``tests/wire.py`` has the protocol."""

from collections.abc import Mapping
from typing import Any

import urllib3

from .. import wire
from ..wire import EVENT_KEY, FALLBACK_KEY, SIGNING_KEY, WRONG_KEY, bearer, canonical, sign, step_hash

__all__ = ["EVENT_KEY", "FALLBACK_KEY", "SIGNING_KEY", "WRONG_KEY", "bearer", "canonical", "sign", "step_hash"]

SECRETS = (SIGNING_KEY, FALLBACK_KEY, SIGNING_KEY[-64:], FALLBACK_KEY[-64:], EVENT_KEY)

_FUNCTION_ID = "00000000-0000-0000-0000-000000000000"
_pool = urllib3.PoolManager(maxsize=16, retries=False, timeout=urllib3.Timeout(total=20))


class Answer(wire.Answer):
    @property
    def ops(self) -> list[tuple[str, str]]:
        """Opcode and name of each op of a 206."""
        assert self.status == 206, (self.status, self.body)
        return [(op["op"], op["displayName"]) for op in self.json]

    @property
    def inner(self) -> "Answer":
        """The answer inside a streamed one."""
        assert self.status == 201, (self.status, self.body)
        envelope = self.json
        return Answer(envelope["status"], urllib3.HTTPHeaderDict(envelope["headers"]), envelope["body"].encode())


def request(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, timeout: float = 20
) -> Answer:
    sent = {"content-type": "application/json", "connection": "close", **(headers or {})}
    answer = _pool.request(method, url, body=body, headers=sent, redirect=False, timeout=timeout)
    return Answer(answer.status, answer.headers, answer.data)


def is_signed(answer: Answer, key: str = SIGNING_KEY) -> bool:
    return wire.is_signed(answer.body, answer.headers.get("x-inngest-signature"), key)


def call_body(
    data: Mapping[str, Any] | None = None,
    *,
    steps: Mapping[str, Any] | None = None,
    use_api: bool = False,
    **ctx: Any,
) -> dict[str, Any]:
    """A call as an engine makes it; ``steps`` maps step ids, as users write them, to memos."""
    memos = {step_hash(step_id): memo for step_id, memo in (steps or {}).items()}
    event = wire.event("test/event", data, id="01EVENT", ts=1_700_000_000_000)
    body = wire.call_body(event, steps=memos, use_api=use_api, **{"run_id": "01RUN", "fn_id": _FUNCTION_ID} | ctx)
    return body | {"event": {"name": "", "data": {}}} if use_api else body


def call(
    url: str,
    function_id: str,
    body: Mapping[str, Any] | bytes,
    *,
    target: str = "step",
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """POST a call; ``target`` is the hashed id of a step, or ``step``; signed if there is a key."""
    content = body if isinstance(body, bytes) else canonical(body)
    signed = {"x-inngest-signature": sign(content, key)} if key else {}
    return request("POST", f"{url}?fnId={function_id}&stepId={target}", content, {**signed, **(headers or {})})
