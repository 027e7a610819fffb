"""An app with an engine in the test's own process."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from durably import Client, Embedded, Event, Function, TriggerEvent
from durably.comm import CommHandler
from durably.engine.model.runs import Run


class App:
    """A client on a database, and its functions."""

    def __init__(self, path: Path, *, is_production: bool | None = None, **options: Any) -> None:
        self.engine = Embedded(path, **options)
        self.client = Client(app_id="app", engine=self.engine, is_production=is_production)
        self.functions: list[Function[Any]] = []

    def function(self, fn_id: str, **options: Any) -> Callable[[Any], Function[Any]]:
        def decorate(handler: Any) -> Function[Any]:
            make = self.client.create_function(fn_id=fn_id, trigger=TriggerEvent(event=fn_id), **options)
            self.functions.append(make(handler))
            return self.functions[-1]

        return decorate

    def serve(self) -> CommHandler:
        return CommHandler(client=self.client, framework="test", functions=self.functions)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.serve()
        async with self.engine.running():
            yield

    async def run(self, event: Event) -> Run:
        """The first run that the event starts, once it has ended."""
        [event_id] = await self.client.send(event)
        return await self.ended(event_id)

    async def ended(self, event_id: str) -> Run:
        [run, *_] = await self.engine.event_runs(event_id)
        return await self.engine.wait_for_run(run.id)


def output_of(run: Run) -> Any:
    assert run.output is not None
    return json.loads(bytes(run.output))
