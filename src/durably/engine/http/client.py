"""``HttpEngine``, an engine that is reached over HTTP.

The connection is TCP or a Unix socket. ``HttpEngine`` implements ``Engine`` by the table of operations. The exchange of
a request is a function that it is given, such as one of an aiohttp session with a ``UnixConnector``, or that of the
command line, which uses urllib3 and never suspends (``cli/clients/http_client.py``).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from durably.engine.interface import Engine
from durably.engine.operations import Operation

from .codec import HttpRequest, HttpResponse, read_result, write_request

Exchange = Callable[[HttpRequest], Awaitable[HttpResponse]]
"""Sends a request to the engine and returns its answer. Raises an error of its own if no engine answers."""

ANY_EVENT_KEY = "dev"
"""An engine in dev mode takes any event key."""


class HttpEngine(Engine):
    """An engine that is reached over HTTP.

    ``event_key`` is a key of the engine, for ``receive_events``. Raises the engine's errors, those of
    ``exchange``, and ``EngineRefusedError`` for other refusals.
    """

    def __init__(self, exchange: Exchange, *, event_key: str = ANY_EVENT_KEY) -> None:
        self._exchange = exchange
        self._event_key = event_key

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        request = write_request(operation, arguments, key=self._event_key)
        return read_result(operation, arguments, await self._exchange(request))
