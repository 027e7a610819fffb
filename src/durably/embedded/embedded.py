"""``Embedded``, the public handle of an engine in the app's own processes."""

import contextlib
import datetime as dt
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from durably.engine.api.interface import OPERATIONS
from durably.engine.api.metrics import Metric
from durably.engine.log.log import LEASE_SECONDS
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.database import refuse_foreign
from durably.engine.sqlite.files import check_place, resolve_path
from durably.functions.diagnostics import find_unserved, report_unserved
from durably.io.background_loop import get_engine_loop
from durably.protocol.durations import Duration, to_timedelta
from durably.protocol.events import EventReceipt
from durably.protocol.options import check_count, check_type
from durably.protocol.text import get_logger
from durably.settings import Environment

from . import sockets
from .handle import InProcessHandle
from .log_node import LogNode
from .network import Network, TlsFiles
from .node import Node
from .process import TIMEOUT_SECONDS, EngineMovedError, ProcessEngine
from .server_start import refuse_green_threads
from .worker import LocalWorker
from .worker_resource import Timing

if TYPE_CHECKING:
    from durably.engine.api.http.metrics import EngineCollector

_HEARTBEATS_PER_LEASE = 10

_logger = get_logger("durably.engine")


class EmbeddedProcess(ProcessEngine[Node]):
    """The ``InProcessEngine`` of ``Embedded``."""

    def __init__(
        self,
        path: Path,
        max_calls: int,
        lease_seconds: float,
        settings: EngineSettings | None,
        network: Network | None,
    ) -> None:
        super().__init__(f"the engine on {path}", settings, max_calls, longest_gap=lease_seconds / 2)
        self._path = path
        self._network = network
        self._timing = Timing(lease_seconds, lease_seconds / _HEARTBEATS_PER_LEASE)
        self._may_lead = True
        self._secret = b""

    @property
    def node(self) -> Node | None:
        return self._node

    @property
    def shared_secrets(self) -> Sequence[bytes]:
        """The key of the log, as soon as it is known; the secret of this machine's processes."""
        if self._is_test_run():
            return ()
        self._secret = self._secret or sockets.read_secret(sockets.directory_of(self._path))
        log_key = self._node.log_key if isinstance(self._node, LogNode) else None
        return [self._secret] if log_key is None else [log_key.encode(), self._secret]

    @property
    def is_leader(self) -> bool:
        return self._node is not None and self._node.leader is not None

    def _may_relay(self) -> bool:
        return self.is_leader

    async def _send_directly(self, arguments: Mapping[str, Any]) -> EventReceipt | None:
        """In the leader, pass sends directly to the writer's thread.

        This saves two thread switches.
        """
        leader = None if self._node is None else self._node.leader
        if self._runs_functions and leader is not None:
            with contextlib.suppress(EngineMovedError):
                receipt: EventReceipt = await leader.request(OPERATIONS["receive_events"], arguments)
                return receipt
        return None

    async def _warn_if_nothing_runs(self) -> bool:
        """Warn the sender of an event if no other process runs functions.

        This process runs no functions. Returns whether the database has no functions at all.
        """
        has_functions = bool(await self._request("list_functions", {}, TIMEOUT_SECONDS))
        leader = None if self._node is None else self._node.leader
        if has_functions and (leader is None or not leader.runs_nothing):
            return False
        path, unserved = self._path, find_unserved(engine=self)
        advice = ""
        if unserved:
            advice = f". But {report_unserved(unserved)}. If another process serves with this path, start it first"
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
        return f"a test run starts no engine and creates no database {self._path}"

    def _check_place(self) -> None:
        check_place(self._path)
        refuse_foreign(self._path)

    def _make_node(self, worker: LocalWorker, settings: EngineSettings) -> Node:
        arguments = (self._path, settings, worker, self._timing, get_engine_loop())
        if self._network is not None:
            return LogNode(*arguments, self._network, may_lead=self._may_lead)
        return Node(*arguments, may_lead=self._may_lead)

    def _note_fork(self, node: Node) -> None:
        self._may_lead = self._may_lead and not node.holds_database


_SHORTEST_LEASE = dt.timedelta(seconds=0.5)
_LEASE = dt.timedelta(seconds=2.5)
_LEASE_WITH_LOG = dt.timedelta(seconds=LEASE_SECONDS)


class Embedded(InProcessHandle[EmbeddedProcess]):
    """The engine, in this app's own processes, on the SQLite database at ``path``.

    Every process of the app creates one with the same path. Pass it to the client, and serve functions as usual::

        client = Client(app_id="shop", engine=Embedded("durably.db"))

    - ``max_calls``: the maximum number of concurrent calls of this process.
    - ``lease``: the time without a heartbeat after which other processes treat a process as dead. 2.5 s by default, 5 s
      with a log.
    - ``settings``: settings of the engine, such as backoff of retries, durability, and limits.

    To survive the loss of a machine or its disk, and to run on several machines, give all processes the same log. The
    file at ``path`` is then each machine's own copy, and a machine with an empty disk gets the log's database::

        engine=Embedded("durably.db", log="postgresql://durably@db.internal/durably")

    - ``log``: where each commit goes before it is acknowledged: ``postgresql://…`` (the extra ``postgres``;
      ``?log=NAME`` for several logs in one database), or ``s3://bucket/prefix`` (the extra ``s3``; configured as boto3
      is). By default the variable ``DURABLY_LOG``, if it is set. One process of all machines leads. The others reach it
      over TCP, with a key that the log holds: everybody who can read the log can do what the app's processes can. If
      the leader ends, another machine takes over, at the latest when ``lease`` is over.
    - ``address``: where other machines reach this one while it leads, like ``"10.0.0.5:8290"``, or ``":8290"`` for the
      port alone. By default the machine's address towards the store, and a free port. The leader listens at all
      addresses of its machine.
    - ``tls``: encrypt between machines. The paths of three PEM files: this machine's certificate, its key, and the
      certificate of a CA of your own that has signed the certificates of all machines. Both sides verify it. Names in
      the certificates do not matter.

    Other methods are the operations of an engine, for any event loop. Methods ending in ``_sync`` are the same for
    synchronous code. They raise ``durably.errors.TransportError`` if no engine answers within 30 s, or if the leader
    ended during an operation that starts something: it is then unclear whether the operation was executed.

    Raises:

    - ``ValueError`` for a lease that is too short, ``max_calls`` below 1, ``":memory:"``, a ``log`` of another kind, a
      wrong ``address``, files of ``tls`` that cannot be used, or one of these two without a log
    - ``TypeError`` for a value of another type
    - ``ImportError`` if an extra is not installed
    - ``OSError`` on Windows
    - ``RuntimeError`` under gevent and eventlet
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_calls: int = 500,
        lease: Duration | None = None,
        settings: EngineSettings | None = None,
        log: str | None = None,
        address: str | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        if sys.platform == "win32":
            raise OSError("Embedded needs Unix sockets and file locks, which Windows lacks: run `durably start` there")
        refuse_green_threads()
        check_type(path, "Embedded.path", (str, os.PathLike), "the path of a file")
        log = Environment().log_url if log is None else log
        if lease is None:
            lease = _LEASE if log is None else _LEASE_WITH_LOG
        lease = to_timedelta(lease, "Embedded.lease")
        if lease < _SHORTEST_LEASE:
            raise ValueError(f"Embedded.lease must be {_SHORTEST_LEASE} or more, not {lease}")
        if os.fspath(path) == ":memory:":
            raise ValueError(
                'Embedded does not support ":memory:": the processes of an app share a file. Give a '
                "path; tests use durably.testing.TestEngine, which keeps nothing"
            )
        check_count(max_calls, "Embedded.max_calls")
        check_type(settings, "Embedded.settings", (EngineSettings, NoneType), "EngineSettings(…)")
        if log is None and not (address is None and tls is None):
            raise ValueError("Embedded.address and Embedded.tls are for several machines, which need a log: give log=…")
        seconds = lease.total_seconds()
        network = None if log is None else Network.read(log, address, tls, seconds)
        self.path = resolve_path(path)
        self._process = EmbeddedProcess(self.path, max_calls, seconds, settings, network)

    def __repr__(self) -> str:
        return f"Embedded({str(self.path)!r})"

    async def start(self) -> None:
        """Start in this process, on the running event loop, and accept calls.

        Async functions run on this loop, sync ones in a thread pool. Returns when this process is the leader or is
        connected to it. Raises ``DatabaseLockedError``, ``DatabaseTooNewError``, ``DatabaseCorruptError``,
        ``DatabasePathError`` for a path that cannot be used, ``ConfigInvalidError`` for invalid options of a function,
        and ``OSError``.
        """
        await super().start()

    # metrics

    def prometheus_collector(self, *, in_leader_only: bool = False) -> "EngineCollector":
        """A collector of the engine's metrics for ``prometheus_client``::

            prometheus_client.REGISTRY.register(engine.prometheus_collector())

        Each process of the app exposes the same values, those of the whole engine, except that ``durably_log_…`` are
        its own. ``in_leader_only``: only the leader
        exposes them, for apps whose processes are all scraped. If no engine answers within 5 s, ``durably_up`` is 0.
        """
        from durably.engine.api.http.metrics import EngineCollector

        return EngineCollector(lambda: self._read_metrics(in_leader_only=in_leader_only))

    def _read_metrics(self, *, in_leader_only: bool) -> list[Metric] | None:
        if in_leader_only and not self._process.is_leader:
            return []
        metrics, node = self.scrape(), self._process.node
        if not metrics or not isinstance(node, LogNode) or node.leader is not None:
            return metrics
        return [each for each in metrics if not each.name.startswith("log_")] + node.read_log_metrics()
