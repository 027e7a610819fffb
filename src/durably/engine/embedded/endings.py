"""Those who wait for runs to end, on the event loop. Which have ended already, the database knows."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from durably.engine.errors import EngineClosedError


class Endings:
    def __init__(self) -> None:
        self._awaited: dict[int, set[asyncio.Future[None]]] = {}
        self._is_closed = False

    @contextmanager
    def awaiting(self, run_key: int) -> Iterator[asyncio.Future[None]]:
        """Done once the run has ended; fails with ``EngineClosedError`` where the engine is closed before."""
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(run_key, set()).add(ended)
        try:
            yield ended
        finally:
            ended.cancel()
            if (others := self._awaited.get(run_key)) is not None:
                others.discard(ended)
                if not others:
                    del self._awaited[run_key]

    def tell(self, run_key: int) -> None:
        for ended in self._awaited.pop(run_key, ()):
            if not ended.done():
                ended.set_result(None)

    def close(self) -> None:
        self._is_closed = True
        for awaiting in self._awaited.values():
            for ended in awaiting:
                if not ended.done():
                    ended.set_exception(EngineClosedError("the engine is closed"))
