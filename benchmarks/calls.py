"""The calls that are sent: bodies as an engine writes them, with any number of memos, signed or not."""

import hashlib
import hmac
import json
import time
from dataclasses import dataclass, field
from typing import Any

APP_ID = "benchmark"
PATH = "/api/inngest"
SIGNING_KEY = "signkey-test-" + "0123456789abcdef" * 4


@dataclass(frozen=True)
class Call:
    """A request to advance a run: ``body`` is in RFC 8785 form, as engines send it."""

    body: bytes
    query: str
    headers: dict[str, str] = field(default_factory=dict)

    def signed(self) -> "Call":
        """The call with a current signature; apps refuse those older than five minutes."""
        stamp = str(int(time.time()))
        key = SIGNING_KEY.removeprefix("signkey-test-").encode()
        digest = hmac.new(key, self.body + stamp.encode(), hashlib.sha256).hexdigest()
        headers = {"x-inngest-signature": f"t={stamp}&s={digest}", "x-inngest-server-kind": "cloud"}
        return Call(self.body, self.query, self.headers | headers)


def make_call(function: str, memos: int, *, is_immediate: bool = True) -> Call:
    """A call of a run that has finished ``memos`` steps and has one more to do.

    The next step is executed by the call, or, unless ``is_immediate``, planned.
    """
    memoized = {_hashed(f"step-{number}"): {"data": _output(number), "type": "data"} for number in range(memos)}
    function_id = f"{APP_ID}-{function}"
    event = {"data": {"steps": memos + 1}, "id": "01JQZ", "name": "benchmark/run", "ts": 1767225600000, "user": {}}
    body = {
        "ctx": {
            "attempt": 0,
            "disable_immediate_execution": not is_immediate,
            "env": "local",
            "fn_id": function_id,
            "max_attempts": 4,
            "qi_id": "",
            "run_id": "01JQZ8Y7C3X5W9V1T2S4R6Q8PN",
            "stack": {"current": memos, "stack": list(memoized)},
            "step_id": "step",
            "use_api": False,
        },
        "event": event,
        "events": [event],
        "steps": memoized,
        "use_api": False,
        "version": 1,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    headers = {
        "host": "127.0.0.1:8000",
        "user-agent": "Go-http-client/1.1",
        "content-length": str(len(text)),
        "content-type": "application/json",
        "accept-encoding": "gzip",
        "x-inngest-server-kind": "dev",
        "x-request-id": "01JQZ8Y7C3X5W9V1T2S4R6Q8PM",
        "x-run-id": "01JQZ8Y7C3X5W9V1T2S4R6Q8PN",
    }
    return Call(text.encode(), f"fnId={function_id}&stepId=step", headers)


def _hashed(step_id: str) -> str:
    return hashlib.sha1(step_id.encode(), usedforsecurity=False).hexdigest()


def _output(number: int) -> dict[str, Any]:
    return {"amount": 4200 + number, "currency": "EUR", "id": f"charge-{number}", "paid": True}
