"""An engine with the showcase's app and its dashboard, for tests in a browser."""

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from durably import Event
from durably.cli.child_process import AppProcess
from durably.cli.dev import DevOptions, DevServer
from durably.cli.text import Console
from durably.engine.api.interface import Engine
from durably.engine.model.runs import Run, RunStatus
from durably.io.background_loop import BackgroundLoop

from ..ports import free_port
from ..waiting import TIMEOUT_SECONDS

T = TypeVar("T")


class Quiet(Console):
    """A console that prints nothing."""

    def say(self, line: str) -> None: ...

    note = warn = say


class Site:
    """``durably dev`` in a thread of its own. ``origin`` is the dashboard's."""

    def __init__(self, database: Path, *targets: str) -> None:
        self._loop = BackgroundLoop("site")
        self._apps: dict[str, AppProcess] = {}
        self._dev = DevServer(DevOptions(port=0, database=database), Quiet())
        self._loop.run(self._dev.__aenter__())
        for target in targets:
            self.add(target)

    def add(self, target: str) -> None:
        """Start an app and sync it, unless it runs."""
        if target not in self._apps:
            self._loop.run(self._start_app(target))

    def stop(self, target: str) -> None:
        """Stop an app. ``add`` starts it again at another port."""
        self._loop.run(self._apps.pop(target).stop())

    async def _start_app(self, target: str) -> None:
        app = AppProcess(target, host="127.0.0.1", port=free_port(), path=None, engine_origin=self.origin)
        self._apps[target] = app
        await app.start()
        await app.sync(self._dev.server.discovery)

    @property
    def origin(self) -> str:
        return self._dev.server.origin

    @property
    def engine(self) -> Engine:
        return self._dev.engine

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of an operation of the engine."""
        return self._loop.run(coroutine)

    def send(self, name: str, data: dict[str, Any] | None = None) -> str:
        """Send an event; its id."""
        body = msgspec.json.encode([Event(name=name, data=data or {})])
        return self.run(self.engine.receive_events(body)).ids[0]

    def run_of(self, event_id: str, *, until: Callable[[Run], object] = lambda run: run.ended_at) -> Run:
        """The run that an event started, once ``until`` holds for it."""
        return self.wait(
            lambda: next((run for run in self.run(self.engine.event_runs(event_id)) if until(run)), None),
            f"the run of {event_id}",
        )

    def wait(self, look: Callable[[], T | None], what: str) -> T:
        """The first value of ``look`` that is true, looked at after each change of a run."""
        position = self.run(self.engine.wait_for_changes()).position
        ends = time.monotonic() + TIMEOUT_SECONDS
        while not (found := look()):
            assert time.monotonic() < ends, f"{what}: not after {TIMEOUT_SECONDS:.0f} s"
            position = self.run(self.engine.wait_for_changes(after=position)).position
        return found

    def runs(self, function: str, status: RunStatus | None = None) -> list[Run]:
        """The showcase's runs of a function, newest first."""
        return self.run(self.engine.list_runs(function_id=f"back-office-{function}", status=status))

    def close(self) -> None:
        for app in self._apps.values():
            self._loop.run(app.stop())
        self._loop.run(self._dev.__aexit__(None, None, None))
