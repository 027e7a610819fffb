"""The embedded engine as one process uses it."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from durably.engine.settings import EngineSettings
from durably.functions.unserved import find_unserved, report
from durably.io.background_loop import get_engine_loop
from durably.protocol.events import EventReceipt
from durably.protocol.text import get_logger

from .calls import EngineCheckpoints
from .nodes.follower import EngineMovedError
from .nodes.link import Heartbeat, Timing
from .nodes.node import Node
from .process import TIMEOUT_SECONDS, ProcessEngine
from .worker import LocalWorker

_HEARTBEATS_PER_LEASE = 10

_logger = get_logger("durably.engine")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of ``Embedded``."""

    path: Path
    max_calls: int
    lease_seconds: float
    settings: EngineSettings | None


class EmbeddedProcess(ProcessEngine[Node]):
    """The ``InProcessEngine`` of ``Embedded``."""

    def __init__(self, options: Options) -> None:
        super().__init__(f"the engine on {options.path}", options.settings)
        self._options = options
        self._may_lead = True

    @property
    def is_leader(self) -> bool:
        return self._node is not None and self._node.is_leader

    async def _send_directly(self, arguments: Mapping[str, Any]) -> EventReceipt | None:
        """In the leader, sends go straight to the writer's thread.

        That saves two changes of threads.
        """
        if self._runs_functions and self._node is not None:
            with contextlib.suppress(EngineMovedError):
                receipt: EventReceipt = await self._node.request_directly("receive_events", arguments)
                return receipt
        return None

    async def _warn_if_nothing_runs(self) -> bool:
        """Warn the sender of an event if no other process runs functions.

        This process runs no functions. Returns whether the database has no functions at all.
        """
        has_functions = bool(await self._request("list_functions", {}, TIMEOUT_SECONDS))
        if has_functions and (self._node is None or not self._node.runs_nothing):
            return False
        path, unserved = self._options.path, find_unserved(engine=self)
        advice = ""
        if unserved:
            advice = f". But {report(unserved)}. If another process serves with this path, start it first"
        elif not has_functions:
            advice = f". Start the app that serves functions with Embedded({str(path)!r}) first, or correct the path"
        if has_functions:
            text = (
                "no process that serves functions is running: events are stored in %s, and their functions run once "
                "the app starts%s"
            )
        else:
            text = "the database %s has no functions: events that are sent to it are stored and start no runs%s"
        _logger.warning(text, path, advice)
        return not has_functions

    @property
    def _test_run_text(self) -> str:
        return f"a test run starts no engine and creates no database {self._options.path}"

    def _make_node(self) -> Node:
        options = self._options
        heartbeat = Heartbeat(longest_gap=options.lease_seconds / 2)
        checkpoints = EngineCheckpoints(self._checkpoint, self.run, heartbeat)
        handlers = self._handlers if self._is_serving else {}
        settings = self._engine_settings()
        self._warn_of_long_delays(settings)
        worker = LocalWorker(handlers, options.max_calls, checkpoints, heartbeat, self._app_loop, settings.clock)
        return Node(
            options.path,
            settings,
            worker,
            Timing(options.lease_seconds, options.lease_seconds / _HEARTBEATS_PER_LEASE),
            get_engine_loop(),
            may_lead=self._may_lead,
        )

    def _note_fork(self, node: Node) -> None:
        self._may_lead = self._may_lead and not node.holds_database
