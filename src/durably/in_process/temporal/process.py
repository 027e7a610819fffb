"""The engine on Temporal as one process uses it."""

import msgspec

from durably.engine.settings import EngineSettings
from durably.in_process.calls import EngineCheckpoints
from durably.in_process.process import ProcessEngine
from durably.in_process.worker import LocalWorker
from durably.io.background_loop import get_engine_loop
from durably.temporal import Temporal

from .node import TemporalNode, make_heartbeat


class TemporalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of ``TemporalEngine``.

    ``workers``: this process runs functions if it serves.
    """

    temporal: Temporal
    name: str
    max_calls: int
    workers: bool
    settings: EngineSettings | None


class TemporalProcess(ProcessEngine[TemporalNode]):
    """The ``InProcessEngine`` of ``TemporalEngine``."""

    def __init__(self, options: TemporalOptions) -> None:
        super().__init__(options.name, options.settings)
        self._options = options
        self.runs_workers = options.workers

    @property
    def _test_run_text(self) -> str:
        return f"a test run does not connect to {self.name}"

    @property
    def _needs_threads(self) -> bool:
        return False

    def _make_node(self) -> TemporalNode:
        options = self._options
        heartbeat = make_heartbeat()
        checkpoints = EngineCheckpoints(self._checkpoint, self.run, heartbeat)
        runs_functions = self._is_serving and self.runs_workers
        handlers = self._handlers if runs_functions else {}
        elsewhere = () if runs_functions else self._handlers
        settings = msgspec.structs.replace(self._engine_settings(), max_calls=options.max_calls)
        self._warn_of_long_delays(settings)
        worker = LocalWorker(handlers, options.max_calls, checkpoints, heartbeat, self._app_loop, settings.clock)
        return TemporalNode(options.temporal, settings, worker, get_engine_loop(), run_elsewhere=elsewhere)
