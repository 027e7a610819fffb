"""The protocol as tests speak it: ids, signatures, bodies of calls, ops.

Nothing here imports the package under test, so that a mistake there cannot hide behind the same mistake here.
"""

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Op = dict[str, Any]

SIGNING_KEY = "signkey-test-" + "8ee2262a15e8d3c42d6a840db7af3de2aab08ef632b32a37a687f24b34dba3ff"
FALLBACK_KEY = "signkey-test-" + "3b0c1f7bd1e6ad0c0e2b1a8a3c9f5d4e6b7a8c9d0e1f2a3b4c5d6e7f8091a2b3"
WRONG_KEY = "signkey-test-" + "00" * 32
EVENT_KEY = "event-key-that-must-stay-secret"


@dataclass(frozen=True)
class Answer:
    """An HTTP response of an app or an engine."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def step_hash(step_id: str, index: int = 0) -> str:
    """The id of a step on the wire; ``index`` counts repetitions of the id from 0."""
    return hashlib.sha1((f"{step_id}:{index}" if index else step_id).encode()).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON in the form that engines sign: enough of RFC 8785 for what these tests send."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _bare(key: str) -> str:
    return key.rsplit("-", 1)[-1]


def sign(body: bytes, key: str = SIGNING_KEY, at: float | None = None) -> str:
    stamp = str(int(time.time() if at is None else at))
    return f"t={stamp}&s={hmac.new(_bare(key).encode(), body + stamp.encode(), hashlib.sha256).hexdigest()}"


def is_signed(body: bytes, header: str | None, key: str = SIGNING_KEY) -> bool:
    """Whether the header signs the bytes as they are."""
    if not header:
        return False
    stamp = header.split("&")[0].removeprefix("t=")
    return stamp.isdigit() and abs(time.time() - int(stamp)) < 60 and sign(body, key, int(stamp)) == header


def bearer(key: str = SIGNING_KEY) -> str:
    bare = _bare(key)
    return f"Bearer {key.removesuffix(bare)}{hashlib.sha256(bytes.fromhex(bare)).hexdigest()}"


BEARERS = {bearer(), f"Bearer {bearer().rsplit('-', 1)[-1]}"}
"""With the key's prefix, as the JavaScript SDK sends it, and without, as the Python SDK does."""


def event(name: str, data: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"name": name, "data": dict(data or {}), **fields}


def call_body(
    trigger: Mapping[str, Any],
    *,
    steps: Mapping[str, Any] | None = None,
    stack: Sequence[str] | None = None,
    events: Sequence[Mapping[str, Any]] | None = None,
    use_api: bool = False,
    **ctx: Any,
) -> dict[str, Any]:
    """A call as an engine makes it. ``steps`` are memos by hashed id, ``ctx`` more fields of the context."""
    memos = dict(steps or {})
    order = list(memos) if stack is None else list(stack)
    run_id = ctx.pop("run_id", f"01{uuid.uuid4().hex[:24].upper()}")
    context = {
        "run_id": run_id,
        "env": "local",
        "fn_id": str(uuid.uuid4()),
        "step_id": "step",
        "attempt": 0,
        "max_attempts": 5,
        "disable_immediate_execution": False,
        "use_api": use_api,
        "stack": {"stack": order, "current": len(order)},
        **ctx,
    }
    body: dict[str, Any] = {"ctx": context, "event": trigger, "use_api": use_api, "version": 1}
    return body | {"events": [] if use_api else list(events or [trigger]), "steps": {} if use_api else memos}


# -- ops, in the spellings of the SDKs that are named


def op(kind: str, step_id: str, index: int = 0, **fields: Any) -> Op:
    return {
        "id": step_hash(step_id, index),
        "op": kind,
        "name": step_id,
        "displayName": step_id,
        "userland": {"id": step_id, **({"index": index} if index else {})},
    } | fields


def ran(step_id: str, data: Any = None, index: int = 0) -> Op:
    return op("StepRun", step_id, index, data=data)


def errored(step_id: str, message: str, kind: str = "StepError") -> Op:
    return op(kind, step_id, error=error(message))


def planned(step_id: str, *, race: bool = False) -> Op:
    return op("StepPlanned", step_id, opts={"parallelMode": "race"}) if race else op("StepPlanned", step_id)


def error(message: str, name: str = "ValueError") -> dict[str, Any]:
    return {"code": "unknown", "name": name, "message": message, "stack": f"Traceback: {name}: {message}"}
