"""``HttpEngine``: an engine that is reached over HTTP, by TCP or over a Unix socket.

It implements ``Engine`` by the table of operations, and leaves the exchange of a request to the function that it is
given. Over a Unix socket, on an event loop::

    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector("…/1.http")) as session:
        engine = HttpEngine(aiohttp_exchange(session))
        run = await engine.get_run(run_id)

The command line gives one that uses urllib3 and never suspends (``cli/engine_client.py``).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from durably.engine.interface import Engine
from durably.engine.operations import Operation

from .codec import HttpRequest, HttpResponse, read_result, write_request

if TYPE_CHECKING:
    import aiohttp

Exchange = Callable[[HttpRequest], Awaitable[HttpResponse]]
"""Sends a request to the engine and returns its answer. Raises an error of its own if no engine answers."""

ANY_EVENT_KEY = "dev"
"""An engine in dev mode takes any event key."""


class HttpEngine(Engine):
    """``event_key`` is a key of the engine, for ``receive_events``.

    Raises the engine's errors, those of ``exchange``, and ``EngineRefusedError`` for other refusals.
    """

    def __init__(self, exchange: Exchange, *, event_key: str = ANY_EVENT_KEY) -> None:
        self._exchange = exchange
        self._event_key = event_key

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        request = write_request(operation, arguments, key=self._event_key)
        return read_result(operation, arguments, await self._exchange(request))


def aiohttp_exchange(session: "aiohttp.ClientSession", origin: str = "http://localhost") -> Exchange:
    """Exchanges by an aiohttp session, whose connector may be that of a Unix socket. Raises ``aiohttp.ClientError``."""
    from yarl import URL

    async def exchange(request: HttpRequest) -> HttpResponse:
        async with session.request(
            request.method, URL(origin + request.target, encoded=True), data=request.body, headers=request.headers
        ) as response:
            return HttpResponse(response.status, await response.read())

    return exchange
