"""An app under test, as its engine sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

import pytest

from .. import wire
from ..fake_engine import FakeEngine
from .client import Answer, request

APP_ID = "conformance"


@dataclass
class App:
    """``key`` signs calls; ``None`` in dev mode. ``name`` says which app it is, for differences that are allowed."""

    name: str
    url: str
    engine: FakeEngine
    key: str | None = None

    @cached_property
    def functions(self) -> dict[str, Any]:
        """The synced functions, by id."""
        self.put()
        (sync,) = self.engine.to("/fn/register")[-1:]
        return {function["id"]: function for function in sync.json["functions"]}

    def require(self, function: str) -> None:
        """Skip the test where the app does not serve the function, as the README allows for some."""
        if f"{APP_ID}-{function}" not in self.functions:
            pytest.skip(f"{self.name} does not serve {function}")

    def excuse(self, name: str, reason: str) -> None:
        """Skip the test for an app that is known to differ."""
        if self.name == name:
            pytest.skip(f"{name}: {reason}")

    def get(self, headers: Mapping[str, str] | None = None) -> Answer:
        return request("GET", self.url, headers=headers)

    def put(self, body: bytes = b"", headers: Mapping[str, str] | None = None, query: str = "") -> Answer:
        return request("PUT", self.url + query, body, headers)

    def post(self, query: Mapping[str, str], body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """A request that nothing is added to."""
        return request("POST", f"{self.url}?{urlencode(query)}", body, headers)

    def call(
        self,
        function: str,
        data: Mapping[str, Any] | None = None,
        *,
        step_id: str = "step",
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Answer:
        """A call; ``fields`` are those of ``wire.call_body``. Streamed answers are unwrapped."""
        trigger = fields.pop("trigger", None) or wire.event(
            f"conformance/{function}", data, id="01JCONFORMANCE0000000000EV", ts=1_700_000_000_000
        )
        body = wire.canonical(wire.call_body(trigger, step_id=step_id, **fields))
        sent = {"x-inngest-server-kind": "cloud" if self.key else "dev"}
        if self.key:
            sent["x-inngest-signature"] = wire.sign(body, self.key)
        query = {"fnId": f"{APP_ID}-{function}", "stepId": step_id}
        return self.post(query, body, sent | dict(headers or {})).inner
