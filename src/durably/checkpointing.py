"""Checkpoints: how a call hands finished steps to the engine while it goes on (spec §10.3.1).

``Checkpoints`` is the way to the engine; ``HttpCheckpoints`` is the one over its API. Which steps are handed over
when, and what becomes of them otherwise, is ``durably.handover``'s to decide.
"""

import time
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import msgspec

from durably.errors import CallStaleError, CheckpointRefusedError, TransportError
from durably.protocol.checkpoint import CheckpointRequest
from durably.transport import AsyncIO, Request, request_with_keys

if TYPE_CHECKING:
    from durably.client import Client

_ABSENCE_SECONDS = 60.0
"""How long an engine that has no such endpoint is not asked again."""


class Checkpoints(Protocol):
    """The way by which finished steps reach the engine that made the call."""

    @property
    def are_default(self) -> bool:
        """Whether functions that do not say hand their steps over."""
        ...

    @property
    def join_answers(self) -> bool:
        """Whether the engine takes steps and an op that follows them in one answer for just that.

        Others take several ops for parallel branches, and plan each step of the run from then on.
        """
        ...

    def certain_at_arrival(self) -> float:
        """The latest moment (``time.monotonic()``) at which the engine certainly wanted a call that arrives now: it may
        have been on its way for long."""
        ...

    def may_be_stale(self, since: float) -> bool:
        """Whether the engine may have given up, without this process knowing, a call that it wanted at ``since``. A
        checkpoint, which may be without steps, tells for certain."""
        ...

    def commit(self, request: CheckpointRequest) -> Awaitable[None]:
        """Send finished steps to the engine. They are stored durably when this returns; repetitions change nothing.

        Pass the result to ``IO.resolve``. Raises ``CallStaleError`` if the call must stop because the engine has
        given it up, and ``CheckpointRefusedError`` if the engine does not take the steps for any other reason: then
        they go into the call's answer.
        """
        ...


class HttpCheckpoints:
    """Hands steps over by the engine's HTTP API, on behalf of one app.

    Nothing is tried twice: the answer of the call is a second way for the same steps, and known to work.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._absent_until = 0.0
        self.are_default = False
        self.join_answers = False

    @property
    def are_possible(self) -> bool:
        """Whether the engine is not known to lack the endpoint."""
        return time.monotonic() >= self._absent_until

    def certain_at_arrival(self) -> float:
        """See ``Checkpoints``."""
        return time.monotonic()

    def may_be_stale(self, since: float) -> bool:
        """An engine at the other end of a request waits for its answer; what else it gives up, it tells at the next
        checkpoint."""
        return False

    async def commit(self, request: CheckpointRequest) -> None:
        """See ``Checkpoints``."""
        client = self._client
        url = f"{client.api_origin}/v1/checkpoint/{quote(request.run_id, safe='')}/async"
        body = msgspec.json.encode(request)
        http = Request("POST", url, client.headers(), body, client.request_timeout)
        try:
            response = await request_with_keys(AsyncIO(), http, client.signing_keys)
        except TransportError as error:
            raise CheckpointRefusedError(str(error)) from None
        if response.status == HTTPStatus.CONFLICT:
            raise CallStaleError(f"run {request.run_id}: the engine has given this call up, so it stops")
        if response.status == HTTPStatus.NOT_FOUND:
            self._absent_until = time.monotonic() + _ABSENCE_SECONDS
        if response.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise CheckpointRefusedError(f"the engine answered a checkpoint with {response.status}")
