"""Idempotency keys: a repeated request has no further effect.

A key is valid for one principal, workflow type, operation and handler: its scope. The request's id is derived from the
scope, and the server executes a request once by its id. For a start it compares the id with the latest run of the
workflow id. For a signal or update it compares the id with the requests that the run has had.

The server does not compare inputs. So the gateway stores a fingerprint of the input with the request: in the memo for a
start, in the headers for signals and updates. Scope and fingerprint are hashes that contain the key. They do not reveal
the principal, the key or the input.

The server does not report repetitions of signals and updates. The gateway searches the history for them, newest events
first. A new request is found quickly, with one more request to the server.
"""

import asyncio
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydantic_core import to_json
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.update.v1 import Request
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import RPCError

from durably.temporal.compat import request_id

from .problems import Problem, bad_request, to_problem

HEADER = "durably-idempotency"
"""A header of signals and updates in the history."""
MARK = "durably-idempotency"
"""A field of the memo of a workflow that was started with a key."""


async def shown_memo(description: WorkflowExecutionDescription) -> dict[str, Any]:
    """The workflow's memo, decoded, without the gateway's own field."""
    return {name: value for name, value in (await description.memo()).items() if name != MARK}


@dataclass(frozen=True)
class KeyedRequest:
    """A request with an ``Idempotency-Key``. Its repetitions have other nonces."""

    scope: str
    fingerprint: str
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def id(self) -> str:
        """The request's id on the server, and the default id of a workflow or update."""
        return str(uuid5(NAMESPACE_OID, self.scope))

    @property
    def mark(self) -> dict[str, str]:
        """The value of ``MARK``."""
        return {"key": self.scope, "input": self.fingerprint}

    def is_repeated_by(self, event: HistoryEvent) -> bool | None:
        """Whether an earlier request with this key has made the event.

        Returns ``None`` for an event without this key, ``False`` for one of this same request. Raises a problem for
        another input.
        """
        request = _update_request(event)
        header = event.workflow_execution_signaled_event_attributes.header if request is None else request.input.header
        stored = json.loads(header.fields[HEADER].data) if HEADER in header.fields else {}
        if stored.get("key") != self.scope:
            return None
        self.check_input(stored)
        return bool(stored.get("request") != self.nonce)

    def check_input(self, stored: Mapping[str, Any]) -> None:
        """Raises a problem if the stored request with this key had another input."""
        if stored.get("input") != self.fingerprint:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "this Idempotency-Key came with another input before",
            )


def keyed_request(key: str, principal_key: str, place: tuple[str, str, str], value: Any) -> KeyedRequest:
    """``place`` is workflow type, operation and handler. Raises a problem."""
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise bad_request("Idempotency-Key is 1 to 255 visible ASCII characters")
    parts = json.dumps([principal_key, *place, key]).encode()
    # The fingerprint is keyed: without the client's key, a reader of the history cannot guess the input.
    fingerprint = hmac.new(parts, to_json(value, fallback=str), hashlib.sha256).hexdigest()
    return KeyedRequest(hashlib.sha256(parts).hexdigest(), fingerprint)


@contextmanager
def one_request(client: Client, keyed: KeyedRequest | None) -> Iterator[None]:
    """A context in which ``client`` sends requests with the key's id."""
    if keyed is None:
        yield
        return
    content = json.dumps({**keyed.mark, "request": keyed.nonce}).encode()
    with request_id(client, keyed.id, {HEADER: Payload(metadata={"encoding": b"json/plain"}, data=content)}):
        yield


@dataclass(frozen=True)
class RunHistory:
    """The history of one run, read from its end."""

    client: Client
    workflow_id: str
    run_id: str
    rpc_timeout: timedelta

    async def pages(self) -> AsyncIterator[Sequence[HistoryEvent]]:
        """The events, newest first. The first page is short."""
        request = GetWorkflowExecutionHistoryReverseRequest(
            namespace=self.client.namespace,
            execution=WorkflowExecution(workflow_id=self.workflow_id, run_id=self.run_id),
            maximum_page_size=_FIRST_PAGE,
        )
        service = self.client.workflow_service
        while True:
            page = await service.get_workflow_execution_history_reverse(request, timeout=self.rpc_timeout)
            if page.history.events:
                yield page.history.events
            if not page.next_page_token:
                return
            request.next_page_token, request.maximum_page_size = page.next_page_token, _PAGE


_FIRST_PAGE, _PAGE = 20, 500
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds between two searches. The server withholds signals while a worker processes a task of the workflow."""


async def is_repetition(history: RunHistory, keyed: KeyedRequest) -> bool:
    """Whether an earlier request with this key has made the stored signal or update.

    It is also ``False`` if the server withholds it for more than a second or goes down: the server has accepted the
    request. Raises a problem for another input.
    """
    try:
        return await _search(history, keyed)
    except RPCError as error:
        if to_problem(error).passes:
            return False
        raise


async def _search(history: RunHistory, keyed: KeyedRequest) -> bool:
    seen = 0
    for pause in (*_PAUSES, None):
        newest: HistoryEvent | None = None
        async for events in history.pages():
            newest = newest or events[0]
            if (found := _find(events, keyed)) is not None:
                return found
            if events[-1].event_id <= seen:
                break
            if pause is not None and newest.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED:
                break  # It is probably withheld, not older. The rest of the history is read in the last search.
        else:
            seen = newest.event_id if newest is not None else 0
        if pause is not None:
            await asyncio.sleep(pause)
    return False


async def find_repetition(history: RunHistory, keyed: KeyedRequest) -> bool:
    """Whether a closed run has had a request with this key. Raises a problem."""
    async for events in history.pages():
        if _find(events, keyed) is not None:
            return True
    return False


def _find(events: Sequence[HistoryEvent], keyed: KeyedRequest) -> bool | None:
    return next((found for each in events if (found := keyed.is_repeated_by(each)) is not None), None)


async def find_update_name(history: RunHistory, update_id: str) -> str | None:
    """The name of an accepted update, or ``None`` if the history does not contain it."""
    async for events in history.pages():
        for request in map(_update_request, events):
            if request is not None and request.meta.update_id == update_id:
                return request.input.name
    return None


def _update_request(event: HistoryEvent) -> Request | None:
    if event.HasField("workflow_execution_update_accepted_event_attributes"):
        return event.workflow_execution_update_accepted_event_attributes.accepted_request
    if event.HasField("workflow_execution_update_admitted_event_attributes"):  # A reset has copied it.
        return event.workflow_execution_update_admitted_event_attributes.request
    return None
