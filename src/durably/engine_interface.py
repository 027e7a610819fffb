"""What the SDK asks of an engine in the app's own processes."""

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from durably.protocol.events import EventReceipt


class EngineHandle(Protocol):
    """What users give to ``Client(engine=…)``: ``durably.Embedded``. Its own methods are for them."""

    def __in_process__(self) -> "InProcessEngine":
        """What is behind it, for the SDK."""
        ...


class InProcessEngine(Protocol):
    """An engine, as the client, ``CommHandler`` and the adapters use it.

    Awaitables may be awaited on any event loop, or given to ``IO.resolve``. They raise ``durably.errors.Error``:
    the engine's errors, ``TransportError`` if no engine could be reached, ``EngineNotStartedError`` in a test run.
    In a test run the hooks of servers start nothing.
    """

    def send_events(self, body: bytes, seed: str, timeout: float, sender: str | None) -> Awaitable[EventReceipt]:
        """Store events, a JSON list, and return after the commit. ``seed`` makes a repeated send
        harmless, as ``x-inngest-event-id-seed`` does; ``timeout`` is in seconds; ``sender`` is the id of the run that
        sends them, if any."""
        ...

    def refuse_to_block(self) -> None:
        """Raises ``RuntimeError`` in a thread that the engine needs for its answer."""
        ...

    # for CommHandler and the adapters

    def add_handler(self, handler: Any) -> None:
        """Let the engine call the functions of a ``CommHandler`` when it is started."""
        ...

    def running_with_server(self) -> AbstractAsyncContextManager[None]:
        """Start now, and stop at the end; async functions run on the running event loop."""
        ...

    def expect_start(self) -> None:
        """The server is starting, and enters ``running_with_server`` soon. Until then, sending an event does not start
        the engine."""
        ...

    def start_with_server(self) -> None:
        """The app is being loaded: start in the background if this process is a web server."""
        ...

    def start_with_request(self, loop: asyncio.AbstractEventLoop | None = None) -> bool:
        """Start soon, if nothing has started yet. Async functions run on ``loop``, or on a background one.

        Returns whether the engine starts, or has started, without a call of its ``start``."""
        ...
