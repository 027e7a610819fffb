"""``TemporalEngine``, the public handle of the engine on a Temporal cluster."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

import msgspec

from durably.engine.api.http.metrics import EngineCollector
from durably.engine.model.settings import EngineSettings, SystemClock
from durably.engines import parse_temporal_url
from durably.io.background_loop import get_engine_loop
from durably.protocol.options import check_count, check_type

from .handle import InProcessHandle
from .process import ProcessEngine
from .server_start import refuse_green_threads
from .worker import LocalWorker

try:
    import temporalio
except ImportError as missing:
    raise ImportError('durably.TemporalEngine needs temporalio: pip install "durably[engine,temporal]"') from missing

from durably.engine.temporal.client import DATA_CONVERTER
from durably.engine.temporal.support import UNUSED_SETTINGS
from durably.temporal import Temporal

from .temporal_node import LONGEST_GAP_SECONDS, TemporalNode

if TYPE_CHECKING:
    from temporalio.converter import PayloadCodec
    from temporalio.service import TLSConfig

del temporalio


_UNUSED_SETTINGS = UNUSED_SETTINGS | {
    "max_calls": "give TemporalEngine(max_calls=…)",
    "unreached_backoff": "calls in process always reach their app",
}
"""Settings that have no effect here, with the reasons."""


def _refuse_unused(settings: EngineSettings) -> None:
    """Raises ``ValueError`` for settings without effect."""
    default = EngineSettings(clock=settings.clock if isinstance(settings.clock, SystemClock) else SystemClock())
    for name, reason in _UNUSED_SETTINGS.items():
        if getattr(settings, name) != getattr(default, name):
            raise ValueError(f"EngineSettings({name}=…) has no effect in TemporalEngine: {reason}")


class TemporalProcess(ProcessEngine[TemporalNode]):
    """The ``InProcessEngine`` of ``TemporalEngine``.

    ``runs_workers``: this process runs functions if it serves.
    """

    def __init__(
        self, temporal: Temporal, name: str, max_calls: int, settings: EngineSettings | None, *, runs_workers: bool
    ) -> None:
        super().__init__(name, settings, max_calls, LONGEST_GAP_SECONDS)
        self._temporal = temporal
        self.runs_workers = runs_workers

    @property
    def _test_run_text(self) -> str:
        return f"a test run does not connect to {self.name}"

    @property
    def keeps_logs(self) -> bool:
        return False

    @property
    def _needs_threads(self) -> bool:
        return False

    @property
    def _takes_calls(self) -> bool:
        return self._is_serving and self.runs_workers

    def _make_node(self, worker: LocalWorker, settings: EngineSettings) -> TemporalNode:
        settings = msgspec.structs.replace(settings, max_calls=self._max_calls)
        elsewhere = () if self._takes_calls else self._handlers
        return TemporalNode(self._temporal, settings, worker, get_engine_loop(), run_elsewhere=elsewhere)


class TemporalEngine(InProcessHandle[TemporalProcess]):
    """The engine on a Temporal cluster, and this app's functions in its own processes.

    Every process of the app creates one. Pass it to the client, and serve functions as usual::

        client = Client(app_id="shop", engine=TemporalEngine("localhost:7233"))

    - ``address``: ``host:port``. It, ``namespace``, ``api_key``, ``tls``, ``rpc_metadata``, ``profile``,
      ``config_file``, ``name`` and ``same_server_as`` are those of ``durably.temporal.Temporal``. Their defaults are
      the ``TEMPORAL_…`` variables.
    - ``encryption``: a codec for events, memos and outputs.
    - ``max_calls``: the maximum number of concurrent calls of this process.
    - ``workers``: if false, this process sends events and runs no functions. `durably worker module:client` runs them
      in a separate process.
    - ``settings``: settings of the engine. ``log_runs`` applies to runs that this process executes. The
      others are ``backoff``, ``call_timeout``, ``close_grace``, ``max_depth``, ``max_event_bytes``, ``max_steps``,
      ``allow_private_addresses`` and ``temporal_ui``.

    Other methods are the operations of an engine, for any event loop. Methods ending in ``_sync`` are the same for
    synchronous code. They raise ``durably.errors.TransportError`` if the server does not answer within 30 s.

    Raises:

    - ``ValueError`` for ``max_calls`` below 1, and for settings without effect on Temporal
    - ``TypeError`` for a value of another type
    - ``ImportError`` if an extra is not installed
    - ``RuntimeError`` under gevent and eventlet

    Invalid settings of the connection are reported at its start.
    """

    def __init__(
        self,
        address: str | None = None,
        namespace: str | None = None,
        *,
        api_key: str | None = None,
        tls: "bool | TLSConfig | None" = None,
        rpc_metadata: Mapping[str, str] | None = None,
        encryption: "PayloadCodec | None" = None,
        profile: str | None = None,
        config_file: str | Path | None = None,
        name: str | None = None,
        same_server_as: Temporal | None = None,
        max_calls: int = 500,
        workers: bool = True,
        settings: EngineSettings | None = None,
    ) -> None:
        refuse_green_threads()
        if isinstance(address, str) and "://" in address:
            raise ValueError(
                "TemporalEngine.address is host:port, such as localhost:7233. A URL such as temporal://localhost:7233 "
                "is for Client(engine=…) and DURABLY_ENGINE_URL"
            )
        check_count(max_calls, "TemporalEngine.max_calls")
        check_type(workers, "TemporalEngine.workers", bool, "True or False")
        check_type(settings, "TemporalEngine.settings", (EngineSettings, NoneType), "EngineSettings(…)")
        if settings is not None:
            _refuse_unused(settings)
        self.temporal = Temporal(
            address,
            namespace,
            api_key=api_key,
            tls=tls,
            rpc_metadata=rpc_metadata,
            data_converter=DATA_CONVERTER,
            encryption=encryption,
            profile=profile,
            config_file=config_file,
            name=name,
            same_server_as=same_server_as,
        )
        self._address = address
        name = "the engine on Temporal" if address is None else f"the engine on Temporal at {address}"
        self._process = TemporalProcess(self.temporal, name, max_calls, settings, runs_workers=workers)

    def __repr__(self) -> str:
        return "TemporalEngine()" if self._address is None else f"TemporalEngine({self._address!r})"

    async def start(self) -> None:
        """Sync the functions of this process, and accept calls.

        Async functions run on the running event loop, sync ones in a thread pool. Returns when the functions are
        synced. If the server is unreachable, it returns as well, and the start continues in the background. Raises
        ``ConfigInvalidError`` for options of a function that are invalid or impossible on Temporal, and
        ``durably.temporal.TemporalSettingsError``.
        """
        await super().start()

    async def start_worker(self) -> None:
        """``start`` in a process that runs functions despite ``workers=False``."""
        self._process.runs_workers = True
        await self.start()

    # metrics

    def prometheus_collector(self) -> EngineCollector:
        """A collector of the metrics for ``prometheus_client``::

            prometheus_client.REGISTRY.register(engine.prometheus_collector())

        They are counts of this process, so scrape each process at its own port. If the engine does not answer within
        5 s, ``durably_up`` is 0.
        """
        return EngineCollector(self.scrape)


@cache
def _shared_engine(address: str, namespace: str | None, workers: bool) -> TemporalEngine:
    return TemporalEngine(address, namespace, workers=workers)


def engine_at(url: str, setting: str) -> TemporalEngine:
    """The engine of this process for a URL.

    A URL is ``temporal://HOST:PORT[/NAMESPACE][?workers=false]``. Clients with the same URL share the engine. TLS, API
    key and encryption come from the ``TEMPORAL_…`` variables. ``setting`` is what gives the URL. Raises
    ``URLInvalidError``.
    """
    parts = parse_temporal_url(url, setting)
    return _shared_engine(parts.address, parts.namespace, parts.workers)
