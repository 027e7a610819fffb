"""Calls of an instrumented client continue the engine's trace, in every framework and its threads."""

import pytest

from . import app_calls
from .servers import Server

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.mark.parametrize("user_agent", ["durably", "inngest"])
def test_a_step_runs_in_its_span(server: Server, kind: str, user_agent: str) -> None:
    headers = {"traceparent": TRACEPARENT, "user-agent": user_agent}
    answer = app_calls.call(server.url("traced"), f"app-traced-traces-{kind}", app_calls.call_body(), headers=headers)
    [op] = answer.json
    span = op["data"]
    assert span["name"] == "step spans"
    # Another engine's trace is its own: spans of the app would be lost in it.
    assert (span["trace_id"] == TRACE_ID) is (user_agent == "durably")


def test_a_client_that_is_not_instrumented_makes_no_span(server: Server, kind: str) -> None:
    headers = {"traceparent": TRACEPARENT, "user-agent": "durably"}
    [op] = app_calls.call(server.url("dev"), f"app-dev-traces-{kind}", app_calls.call_body(), headers=headers).json
    assert op["data"] == {"name": None, "trace_id": "0" * 32}
