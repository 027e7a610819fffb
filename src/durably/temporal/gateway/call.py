"""One request on its way: what it means, and what it needs to be carried out."""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowHandle

from durably.temporal.inspection import Inspector

from .exposure import Exposure, HandlerExposure
from .idempotency import KeyedRequest
from .messages import GatewayRequest
from .metrics import GatewayMetrics
from .models import Links
from .ownership import Access, no_such_workflow, owner_of
from .pages import Pages, PageTokens
from .principals import Identify, principal_key
from .problems import bad_request
from .routes import Match
from .start_options import StartOptions
from .stream_slots import StreamSlot, StreamSlots
from .target import Target


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``rpc_timeout`` bounds each request to the server, ``max_wait`` (seconds) how long a client may wait for a
    result, ``max_body`` (bytes) and ``max_values`` (elements of lists and objects, of all
    levels) what it may send, ``stream_limit`` (seconds) how long one event stream stays open,
    ``keep_alive`` (seconds) how long it may be silent, ``max_streams`` how many one principal may have open in
    each process, and ``max_batch`` how many workflows a batch may have."""

    rpc_timeout: timedelta = timedelta(seconds=10)
    max_wait: float = 60.0
    max_body: int = 2 * 1024 * 1024
    max_values: int = 100_000
    stream_limit: float = 600.0
    keep_alive: float = 5.0
    max_streams: int = 100
    max_batch: int = 1000


@dataclass(kw_only=True)
class Call:
    """``value`` is the validated input; ``workflow_id`` the one in the URL, or the one to start. ``target`` is the
    workflow that the URL names, ``access`` what the principal may reach, ``keyed`` tells of an idempotency key.
    ``start_options`` are for operations that start a workflow."""

    request: GatewayRequest
    match: Match
    value: Any
    workflow_id: str
    client: Client
    task_queue: str
    limits: Limits
    inspector: Inspector
    metrics: GatewayMetrics
    page_tokens: PageTokens
    access: Access
    owner_attribute: str
    target: Target | None
    keyed: KeyedRequest | None = None
    identify: Identify | None = None
    start_options: StartOptions = field(default_factory=StartOptions)
    stream_slots: StreamSlots | None = None

    @property
    def exposure(self) -> Exposure:
        return self.match.exposure

    @property
    def handler(self) -> HandlerExposure:
        assert self.match.handler is not None, "only routes with a handler ask for one"
        return self.match.handler

    @cached_property
    def principal_key(self) -> str:
        """The key that identifies the principal. Raises ``UnknownPrincipalError``."""
        return principal_key(self.request.principal, self.identify)

    @property
    def rpc_timeout(self) -> timedelta:
        return self.limits.rpc_timeout

    def waiting(self) -> AbstractContextManager[None]:
        """For the time in which the request is held until something happens."""
        return self.metrics.waiting(self.match)

    def take_stream(self) -> StreamSlot:
        """Count an event stream. Raises the problem 429 for one too many, and ``UnknownPrincipalError``."""
        if self.stream_slots is None:
            return StreamSlot(WeakSet())
        return self.stream_slots.take(self.principal_key)

    def handle(self, run_id: str | None = None) -> WorkflowHandle[Any, Any]:
        """To the run that was described and checked, or to another one of the workflow."""
        run_id = run_id or self.existing.run_id
        return self.client.get_workflow_handle(self.workflow_id, run_id=run_id, result_type=self.exposure.result)

    def reaches(self, execution: WorkflowExecution) -> bool:
        """Whether the principal may reach a workflow that the server has described or listed."""
        return self.access.reaches(owner_of(execution, self.owner_attribute))

    def owner_for_staff(self, execution: WorkflowExecution) -> str | None:
        """The owner of a workflow that the server told of, for a principal that sees those of several."""
        owned = self.exposure.ownership is not None and self.access.sees_all
        return owner_of(execution, self.owner_attribute) if owned else None

    @property
    def existing(self) -> Target:
        """The workflow that the URL names."""
        assert self.target is not None, "only routes with an id ask for it"
        return self.target

    async def describe(self) -> WorkflowExecutionDescription:
        """The description of the workflow, or of the run that the request names. The server is asked once in a call.

        Raises the problem 404 for a workflow that the principal may not reach.
        """
        return await self.existing.check()

    async def describe_run(self, run_id: str | None) -> WorkflowExecutionDescription:
        """Another run of the workflow, the latest for ``None``.

        Raises the problem 404 for one of another type, and for one that the principal may not reach.
        """
        handle = self.client.get_workflow_handle(self.workflow_id, run_id=run_id)
        description = await handle.describe(rpc_timeout=self.rpc_timeout)
        if description.workflow_type != self.exposure.definition.name or not self.reaches(description):
            raise no_such_workflow()
        return description

    def pages(self, *more: str) -> Pages:
        """Page tokens that are valid for this namespace, principal, exposure and operation, and for ``more``."""
        scope = (self.client.namespace, self.principal_key, self.exposure.name, self.match.operation, *more)
        return self.page_tokens.of(scope, self.request.secrets)

    def links(self, workflow_id: str | None = None) -> Links:
        location = self.location(workflow_id)
        return Links(self=location, result=f"{location}/result", events=f"{location}/events")

    def location(self, workflow_id: str | None = None) -> str:
        return f"{self.request.mount}/{self.exposure.name}/{quote(workflow_id or self.workflow_id, safe='')}"

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A query parameter. Raises a problem."""
        text = self.request.query(name)
        if text is None or text == "":
            return default
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise bad_request(f"{name} is a whole number from {low} to {high}")
        return int(text)

    def preferred_wait(self) -> float | None:
        """Seconds that the client would wait for a result (``Prefer: wait``, RFC 7240), within the limit."""
        found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})", self.request.headers.get("prefer", ""))
        return None if found is None else min(float(found[1]), self.limits.max_wait)
