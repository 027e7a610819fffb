"""An engine under test, as apps and senders of events see it."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from .. import wire
from ..waiting import eventually
from .client import Answer, request

T = TypeVar("T")

WAIT_SECONDS = 120.0
ENDED = ("Completed", "Failed", "Cancelled", "Skipped")
NO_EVENT_LOG = pytest.mark.differs(
    temporal="it stores events in the runs that they start, and no others (docs/reference/engine-on-temporal.md)"
)
_pause = threading.Event()


@dataclass
class Engine:
    """``key`` is the signing key, ``None`` in dev mode."""

    origin: str
    event_key: str = "any"
    key: str | None = None

    @property
    def _auth(self) -> dict[str, str]:
        return {"authorization": wire.bearer(self.key)} if self.key else {}

    def api(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        content = None if body is None else json.dumps(body).encode()
        return request(method, self.origin + path, content, self._auth | dict(headers or {}))

    def data(self, path: str) -> Any:
        """The API's answer to a GET, without its envelope."""
        answer = self.api("GET", path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json["data"]

    def register(self, payload: Any, query: str = "") -> Answer:
        return self.api("POST", f"/fn/register{query}", payload)

    def post_events(self, body: Any, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return request("POST", f"{self.origin}/e/{self.event_key}", content, named)

    def send(self, *events: Mapping[str, Any], **headers: str) -> list[str]:
        answer = self.post_events(list(events), **headers)
        assert answer.status == 200, answer.body
        return answer.json["ids"]  # type: ignore[no-any-return]

    def run(self, run_id: str) -> Any:
        return self.data(f"/v1/runs/{run_id}")

    def ended(self, run_id: str) -> Any:
        """The run, once it has ended."""
        return eventually(lambda: _if_ended(self.run(run_id)), f"run {run_id} to end")

    def completed(self, run_id: str) -> Any:
        """The output of the run, which has to complete."""
        run = self.ended(run_id)
        assert run["status"] == "Completed", run
        return run["output"]

    def failed(self, run_id: str) -> Any:
        """The error of the run, which has to fail."""
        run = self.ended(run_id)
        assert run["status"] == "Failed", run
        return run["output"]


def _if_ended(run: Any) -> Any:
    return run if run["status"] in ENDED else None
