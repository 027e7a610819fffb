"""What the SDK asks of an engine that runs in the app's own processes, in place of requests to its HTTP API."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from durably.comm import CommHandler
    from durably.protocol.events import EventReceipt


class EngineHandle(Protocol):
    """What users give to ``Client(engine=…)``: ``durably.Embedded``. Its own methods are for them."""

    def __in_process__(self) -> "InProcessEngine":
        """What is behind it, for the SDK."""
        ...


class InProcessEngine(Protocol):
    """An engine, as the client, ``CommHandler`` and the adapters use it.

    What is awaited may be awaited on any event loop, and raises ``durably.errors.Error``: what the engine refuses,
    and ``TransportError`` where none could be reached.
    """

    async def send_events(self, body: bytes, seed: str, timeout: float, sender: str | None) -> "EventReceipt":
        """Store events, a JSON list, and answer after the commit. ``seed`` makes sending again
        harmless, as ``x-inngest-event-id-seed`` does; ``timeout`` is seconds; ``sender`` is the id of the run that
        sends them, if one does."""
        ...

    async def fetch_part(self, run_id: str, part: str) -> bytes | None:
        """JSON of a run's ``batch`` or ``actions`` (spec §4.4.2); ``None`` where there is no such run."""
        ...

    def refuse_to_block(self) -> None:
        """Raises ``RuntimeError`` in the thread whose event loop runs the engine: blocked, it would never answer."""
        ...

    # for CommHandler and the adapters

    def add_handler(self, handler: "CommHandler") -> None:
        """Let the engine call the handler's functions, once it is started."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Start on the running event loop, and stop at the end."""
        ...

    def start_when_served(self) -> None:
        """Start in the background once a web server has loaded the app, in this process or in those that it forks."""
        ...

    def ensure_started(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Start soon, where nothing is started yet: on ``loop``, which is that of the thread, or in the background."""
        ...
