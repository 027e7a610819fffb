"""The protocol as an engine speaks it to apps: bodies of calls, signatures, requests.

Written apart from the product, so that a mistake there is not made here too.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import urllib3

SIGNING_KEY = "signkey-test-" + "12" * 32
FALLBACK_KEY = "signkey-test-" + "34" * 32
WRONG_KEY = "signkey-test-" + "56" * 32
EVENT_KEY = "event-key-that-must-stay-secret"
SECRETS = (SIGNING_KEY, FALLBACK_KEY, SIGNING_KEY[-64:], FALLBACK_KEY[-64:], EVENT_KEY)

_pool = urllib3.PoolManager(maxsize=16, retries=False, timeout=urllib3.Timeout(total=20))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

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


def hashed(step_id: str, index: int = 0) -> str:
    return hashlib.sha1((f"{step_id}:{index}" if index else step_id).encode()).hexdigest()


def sign(body: bytes, key: str = SIGNING_KEY, at: float | None = None) -> str:
    stamp = str(int(time.time() if at is None else at))
    digest = hmac.new(key.rsplit("-", 1)[-1].encode(), body + stamp.encode(), hashlib.sha256)
    return f"t={stamp}&s={digest.hexdigest()}"


def is_signed(answer: Answer, key: str = SIGNING_KEY) -> bool:
    header = answer.headers.get("x-inngest-signature")
    if not header:
        return False
    stamp = int(header.partition("&")[0].removeprefix("t="))
    return abs(time.time() - stamp) < 60 and header == sign(answer.body, key, stamp)


def bearer(key: str = SIGNING_KEY) -> str:
    prefix, _, bare = key.rpartition("-")
    return f"Bearer {prefix}-{hashlib.sha256(bytes.fromhex(bare)).hexdigest()}"


def call_body(
    data: Mapping[str, Any] | None = None,
    *,
    steps: Mapping[str, Any] | None = None,
    use_api: bool = False,
    **ctx: Any,
) -> dict[str, Any]:
    """A call as an engine makes it; ``steps`` maps step ids, as users write them, to memos."""
    memos = {hashed(step_id): memo for step_id, memo in (steps or {}).items()}
    event = {"name": "test/event", "data": dict(data or {}), "id": "01EVENT", "ts": 1_700_000_000_000}
    context = {
        "run_id": "01RUN",
        "fn_id": "00000000-0000-0000-0000-000000000000",
        "step_id": "step",
        "env": "local",
        "attempt": 0,
        "max_attempts": 5,
        "disable_immediate_execution": False,
        "use_api": use_api,
        "stack": {"stack": list(memos), "current": len(memos)},
        **ctx,
    }
    if use_api:
        stripped = {"event": {"name": "", "data": {}}, "events": [], "steps": {}}
        return {"ctx": context, **stripped, "use_api": True, "version": 1}
    return {"ctx": context, "event": event, "events": [event], "steps": memos, "use_api": False, "version": 1}


def encode(value: Any) -> bytes:
    """Compact JSON with sorted keys, which is canonical for what these tests send."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def step_ids(ops: Sequence[Mapping[str, Any]]) -> list[str]:
    return [op["id"] for op in ops]


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
    content = body if isinstance(body, bytes) else encode(body)
    signed = {"x-inngest-signature": sign(content, key)} if key else {}
    return request("POST", f"{url}?fnId={function_id}&stepId={target}", content, {**signed, **(headers or {})})
