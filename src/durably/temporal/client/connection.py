"""The connection of an app to its Temporal server.

There is one client per process. A ``Temporal`` is created at import time, before any event loop and before a fork, even
if the server is unreachable. The first use connects, on the background event loop. The client then serves every event
loop and thread of the process, and reconnects by itself.

There is also one ``temporalio`` runtime per process. It is a pool of native threads, which do not exist in a forked
child. A client of the parent's runtime never answers in a child, and freeing it would wait for those threads forever.
So a child starts its own runtime, and never frees what it inherited.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from temporalio import workflow
from temporalio.client import Client, Interceptor, Plugin, ScheduleIntervalSpec, SchedulePolicy, ScheduleSpec
from temporalio.common import MetricMeter, SearchAttributeKey
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, PayloadCodec
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.service import KeepAliveConfig, RetryConfig, RPCError, TLSConfig

from durably.io.background_loop import get_background_loop
from durably.temporal.compat import never_free
from durably.temporal.declarations import (
    ScheduleDeclaration,
    WorkerDeclaration,
    WorkerOptions,
)
from durably.temporal.errors import TemporalSettingsError, TemporalUnreachableError
from durably.temporal.namespace import DeclaredAttribute, log_errors, namespace_problem
from durably.temporal.settings import ConnectionSettings, check_address, prefix_of, resolve
from durably.temporal.worker.workers import Lifespan

from .connect_failures import connect_error, unreachable
from .interceptors import CallInterceptor, tracing_interceptor
from .sync import SyncClient

WEB_RETRY = RetryConfig(max_interval_millis=1_000, max_elapsed_time_millis=3_000)
"""Retries of a web app's calls while the server is unreachable. Users wait three seconds, not the SDK's ten."""

DEFAULT_CONNECT_TIMEOUT = timedelta(seconds=5)
DEFAULT_RPC_TIMEOUT = timedelta(seconds=10)

RuntimeFactory = Callable[[], Runtime]


def plain_runtime() -> Runtime:
    return Runtime(telemetry=TelemetryConfig())


@dataclass(frozen=True)
class Health:
    """The health of a connection and of the web process's workers.

    ``ok``: the server answers for the namespace, and the workers run. Otherwise ``problem`` is the reason.
    """

    ok: bool
    address: str
    namespace: str
    problem: str | None = None


class Temporal:
    """An app's connection to Temporal.

    Defaults are from ``TEMPORAL_…`` environment variables, Temporal's configuration file (``profile``, ``config_file``)
    and the framework's settings; see ``durably.temporal.settings``.

    - ``address``: ``host:port``.
    - ``task_queue``: the default of workers and of the gateway.
    - ``data_converter``: by default the pydantic one if pydantic is installed.
    - ``encryption``: a codec for the converter, which also hides the messages of failures. By default it is made of the
      settings' encryption keys, if there are any.
    - ``deployment_name``, ``build_id``, ``versioning_behavior`` (``pinned``, ``auto-upgrade``): the version of the
      app's workers.
    - ``tracing``: makes spans of OpenTelemetry for calls, workflows and activities, in the trace of the web request.
    - ``runtime``: makes the process's ``temporalio`` runtime, with its telemetry.
    - ``retry_config``: limits the retries of calls while the server is unreachable.
    - ``connect_timeout``: for the first connection as a whole.
    - ``rpc_timeout``: the default timeout of calls, except waits for results and updates. With ``None`` it is the SDK's
      half minute.
    - ``name``: for an app with several connections. The environment variables of ``Temporal(name="billing")`` begin
      with ``TEMPORAL_BILLING_``.
    - ``same_server_as``: a connection that gives its address, TLS and credentials if this one names no server, and its
      encryption keys if this one has none.

    The constructor does not connect and reads no settings. ``await temporal.client()`` gives the client;
    ``temporal.sync`` is the same for synchronous code.
    """

    def __init__(
        self,
        address: str | None = None,
        namespace: str | None = None,
        *,
        task_queue: str | None = None,
        api_key: str | None = None,
        tls: bool | TLSConfig | None = None,
        rpc_metadata: Mapping[str, str] | None = None,
        data_converter: DataConverter | None = None,
        encryption: PayloadCodec | None = None,
        deployment_name: str | None = None,
        build_id: str | None = None,
        versioning_behavior: str | None = None,
        interceptors: Sequence[Interceptor] = (),
        plugins: Sequence[Plugin] = (),
        identity: str | None = None,
        retry_config: RetryConfig | None = WEB_RETRY,
        keep_alive_config: KeepAliveConfig | None = KeepAliveConfig.default,
        connect_timeout: timedelta = DEFAULT_CONNECT_TIMEOUT,
        rpc_timeout: timedelta | None = DEFAULT_RPC_TIMEOUT,
        runtime: RuntimeFactory = plain_runtime,
        tracing: bool = False,
        profile: str | None = None,
        config_file: str | Path | None = None,
        configuration: Callable[[], Mapping[str, Any]] | None = None,
        name: str | None = None,
        same_server_as: "Temporal | None" = None,
    ) -> None:
        if encryption is not None and not isinstance(encryption, PayloadCodec):  # Nothing would be encrypted.
            raise TypeError(f"encryption must be a PayloadCodec, such as EncryptionCodec(…), not {type(encryption)!r}")
        self.name = name
        self.variable_prefix = prefix_of(name)
        self._same_server_as = same_server_as
        self._arguments = {
            "address": address,
            "namespace": namespace,
            "task_queue": task_queue,
            "api_key": api_key,
            "tls": tls,
            "rpc_metadata": rpc_metadata,
            "deployment_name": deployment_name,
            "build_id": build_id,
            "versioning_behavior": versioning_behavior,
        }
        self._profile = profile
        self._config_file = config_file
        self._configuration = configuration
        self._given_converter = data_converter
        self._encryption = encryption
        traced = [tracing_interceptor()] if tracing else []
        self.interceptors = [CallInterceptor(self.client, rpc_timeout), *traced, *interceptors]
        self.plugins = plugins
        self._identity = identity
        self._keep_alive_config = keep_alive_config
        self._retry_config = retry_config
        self._connect_timeout = connect_timeout.total_seconds()
        self._own_runtime = runtime
        self.workers: list[WorkerDeclaration] = []
        self.schedules: list[ScheduleDeclaration] = []
        self.search_attributes: list[DeclaredAttribute] = []
        self.owner_attributes: list[DeclaredAttribute] = []
        self.web_worker: Lifespan | None = None
        self._override: Client | None = None
        self._reset()
        _connections.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._connecting: concurrent.futures.Future[Client] | None = None

    def _after_fork(self) -> None:
        for inherited in (self._client, self._connecting):
            if inherited is not None:
                never_free(inherited)
        self._reset()

    # Declarations and settings

    def configure(self, configuration: Callable[[], Mapping[str, Any]]) -> None:
        """Set the source of the framework's settings, which is read at first use.

        It has the keys ``durably.temporal.settings.FRAMEWORK_KEYS``. Raises ``TemporalSettingsError`` if the settings
        have been read already.
        """
        if "settings" in self.__dict__:
            raise TemporalSettingsError(
                "the settings for Temporal are already in use: configure it before its first use"
            )
        self._configuration = configuration

    def add_worker(
        self,
        task_queue: str | None = None,
        *,
        workflows: Sequence[type] = (),
        activities: Sequence[Callable[..., Any]] = (),
        **options: Unpack[WorkerOptions],
    ) -> None:
        """Declare a worker of this app.

        ``durably temporal worker module:temporal`` runs all declared workers. The default ``task_queue`` is the
        connection's. All declarations for one task queue are one worker. Sync activities run in threads.
        """
        if workflow.unsafe.in_sandbox():
            return  # The sandbox imports a workflow's module again; its declarations exist already.
        self.workers.append(
            WorkerDeclaration(
                task_queue=task_queue, workflows=tuple(workflows), activities=tuple(activities), options=dict(options)
            )
        )

    def add_schedule(
        self,
        id: str,
        start: str | Callable[..., Any],
        *args: Any,
        cron: str | None = None,
        every: timedelta | None = None,
        time_zone: str | None = None,
        policy: SchedulePolicy | None = None,
        task_queue: str | None = None,
    ) -> None:
        """Declare a schedule, which starts a workflow.

        An example: ``temporal.add_schedule("report", ReportWorkflow.run, "sales", cron="0 3 * * *")``. Either ``cron``
        or ``every`` gives the times, in ``time_zone`` (default: UTC). Workflow ids consist of ``id`` and the time. Give
        all arguments of ``start``, because a worker reads fewer ones without their types.

        ``durably temporal sync-schedules module:temporal`` writes schedules to the server. Raises
        ``TemporalSettingsError`` unless exactly one of ``cron`` and ``every`` is given.
        """
        if workflow.unsafe.in_sandbox():
            return
        if (cron is None) == (every is None):
            raise TemporalSettingsError(f'the schedule "{id}" needs either cron= or every=')
        spec = ScheduleSpec(
            cron_expressions=[cron] if cron is not None else [],
            intervals=[ScheduleIntervalSpec(every)] if every is not None else [],
            time_zone_name=time_zone,
        )
        self.schedules.append(
            ScheduleDeclaration(
                id=id, workflow=start, args=args, spec=spec, policy=policy or SchedulePolicy(), task_queue=task_queue
            )
        )

    def add_search_attributes(
        self, *keys: SearchAttributeKey[Any], where: str = "Temporal.add_search_attributes()"
    ) -> None:
        """Declare search attributes that the app sets.

        Gateways add the attributes that exposures declare by key. When the process connects, attributes that the
        namespace does not know are logged as errors. The log line has the command that registers them, and ``where``,
        the code that sets them.
        """
        if workflow.unsafe.in_sandbox() or not keys:
            return
        added = [DeclaredAttribute(key, where) for key in keys]
        self.search_attributes += added
        if self._client is not None:
            self._check_attributes(self._client, added)

    def _check_attributes(self, client: Client, declared: Sequence[DeclaredAttribute]) -> None:
        """Check search attributes in the background, so that no request waits for it."""
        if declared:
            get_background_loop().submit(log_errors(client, tuple(declared), DEFAULT_RPC_TIMEOUT))

    @cached_property
    def settings(self) -> ConnectionSettings:
        """The settings, read at first use. Raises ``TemporalSettingsError``."""
        return resolve(
            self._arguments,
            self._configuration() if self._configuration is not None else {},
            profile=self._profile,
            config_file=self._config_file,
            name=self.name,
            same_server_as=None if self._same_server_as is None else self._same_server_as.settings,
        )

    @property
    def task_queue(self) -> str:
        """The task queue of the settings. Raises ``TemporalSettingsError`` if there is none."""
        if not self.settings.task_queue:
            raise TemporalSettingsError(
                f"there is no task queue: give task_queue=, here or to Temporal(), or set {self.variable_prefix}"
                "TASK_QUEUE"
            )
        return self.settings.task_queue

    @cached_property
    def data_converter(self) -> DataConverter:
        """The converter of values into payloads, the same for all workers.

        Raises ``TemporalSettingsError``.
        """
        codec, converter = self._encryption, self._given_converter
        if converter is None:
            try:
                from temporalio.contrib.pydantic import pydantic_data_converter
            except ImportError:
                converter = DataConverter.default
            else:
                converter = pydantic_data_converter
        if codec is None and self.settings.encryption_keys:
            from durably.temporal.encryption import EncryptionCodec, EncryptionKey

            codec = EncryptionCodec(*EncryptionKey.parse_all(self.settings.encryption_keys))
        if codec is None:
            return converter
        return replace(
            converter,
            payload_codec=codec,
            failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
        )

    # The client

    async def client(self) -> Client:
        """The process's client, connected. Works as ``fastapi.Depends(temporal.client)``.

        Raises ``TemporalUnreachableError`` or ``TemporalSettingsError``; the next call tries again.
        """
        client = self._override or self._client
        if client is not None:
            return client
        # All callers share the attempt, and its client once it has succeeded.
        with self._lock:
            if self._connecting is None:
                self._connecting = get_background_loop().submit(self._connect_shared())
            connecting = self._connecting
        # A caller that is cancelled must not cancel the connection of the others.
        return await asyncio.shield(asyncio.wrap_future(connecting))

    @cached_property
    def sync(self) -> SyncClient:
        """The client for synchronous code.

        An example: ``temporal.sync.start_workflow(OrderWorkflow.run, order, id="order-7", task_queue="orders")``.
        """
        return SyncClient(self.client)

    async def _connect_shared(self) -> Client:
        try:
            client = await self.connect()
        except BaseException:
            with self._lock:
                self._connecting = None
            raise
        self._client = client
        self._check_attributes(client, self.search_attributes)
        return client

    async def connect(
        self, *, retry_config: RetryConfig | None = None, interceptors: Sequence[Interceptor] | None = None
    ) -> Client:
        """Make a new client with the same settings.

        An example is the client of a worker, whose calls are retried for longer. Raises the errors of ``client``, and
        ``TemporalSettingsError`` if the runtime cannot be started.
        """
        if self._override is not None:
            return self._override
        settings = self.settings
        connecting = Client.connect(
            settings.address,
            namespace=settings.namespace,
            api_key=settings.api_key,
            tls=settings.tls,
            rpc_metadata=settings.rpc_metadata,
            data_converter=self.data_converter,
            interceptors=self.interceptors if interceptors is None else interceptors,
            plugins=self.plugins,
            identity=self._identity,
            retry_config=retry_config or self._retry_config,
            keep_alive_config=self._keep_alive_config,
            runtime=runtime_of_process(self._runtime),
        )
        try:
            return await asyncio.wait_for(connecting, self._connect_timeout)
        except TimeoutError as error:
            raise unreachable(settings, f"no answer in {self._connect_timeout:g} seconds") from error
        except (RuntimeError, RPCError) as error:
            raise connect_error(settings, error)  # noqa: B904  It sets the cause.

    @contextlib.contextmanager
    def override(self, client: Client) -> Iterator[None]:
        """Use another client within ``with``, in the whole process.

        An example is the client of a test environment.
        """
        before, self._override = self._override, client
        try:
            yield
        finally:
            self._override = before

    # The process

    def lifespan(self, app: object = None, *, worker: bool = False) -> Lifespan:
        """The lifespan of a web app: ``FastAPI(lifespan=temporal.lifespan)``.

        It connects in the background, so the app starts without a server.

        ``FastAPI(lifespan=temporal.lifespan(worker=True))`` also runs the declared workers in the web process. This is
        for development: in production, workers would take processor time from requests.
        """
        return Lifespan(self, worker=worker)

    @property
    def worker_problem(self) -> str | None:
        """The reason why workers of ``lifespan(worker=True)`` do not run.

        Returns ``None`` if they run, or if there are none.
        """
        return None if self.web_worker is None else self.web_worker.worker_problem

    async def check_health(self, timeout: timedelta = timedelta(seconds=2)) -> Health:
        """Ask the server for the namespace, and check the web process's workers.

        These are the workers of ``lifespan(worker=True)``. It does not raise if the server is unreachable or refuses:
        see ``Health``.
        """
        settings = self.settings
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                problem = await namespace_problem(await self.client()) or self.worker_problem
        except TimeoutError:
            problem = "the server does not answer"
        except TemporalUnreachableError as error:
            problem = error.message
        return Health(problem is None, settings.address, settings.namespace, problem)

    def serve_metrics(self, address: str, *, processes: int = 1) -> None:
        """Serve the process's metrics to Prometheus at ``http://{address}/metrics``.

        ``address`` is ``host:port``. If several ``processes`` of a web server call this, each takes the next free port.
        Raises ``TemporalSettingsError`` for an invalid address, and if a ``runtime`` was given, which has its own
        telemetry.
        """
        if self._own_runtime is not plain_runtime:
            raise TemporalSettingsError("Temporal(runtime=…) decides on metrics itself: add a PrometheusConfig there")
        check_address(address, "the address to serve metrics at", to_listen_at=True)
        self._own_runtime = measured_runtime(address, processes)

    @property
    def _runtime(self) -> RuntimeFactory:
        """The runtime. Connections to one server share its metrics."""
        if self._own_runtime is plain_runtime and self._same_server_as is not None:
            return self._same_server_as._runtime
        return self._own_runtime

    @property
    def meter(self) -> MetricMeter:
        """The meter of the process's metrics, for the app's own metrics too.

        Without an exporter it does nothing. Raises ``TemporalSettingsError`` if the runtime cannot be started.
        """
        return MetricMeter.noop if self._runtime is plain_runtime else runtime_of_process(self._runtime).metric_meter


# Runtimes

GATEWAY_LATENCY = "durably_gateway_latency"
_WEB_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""The SDK's own buckets start at 50 milliseconds, within which most requests are answered, and end at ten seconds."""

_EXIT_PAUSE = 0.02
"""Seconds at the interpreter's exit for native threads to finish. They need microseconds, and a thread that passes an
answer to Python during the exit would end the process with a fatal error."""

_runtime_lock = threading.Lock()
_runtimes: dict[RuntimeFactory, Runtime] = {}
_connections: weakref.WeakSet[Temporal] = weakref.WeakSet()


@functools.cache
def measured_runtime(address: str, processes: int = 1) -> RuntimeFactory:
    """A factory of runtimes that serve metrics to Prometheus at ``address``.

    ``address`` is ``host:port``. With several ``processes``, it takes the first free one of as many ports.
    """
    host, _, port = address.rpartition(":")
    addresses = [f"{host}:{int(port) + number}" for number in range(processes)]

    def make() -> Runtime:
        failure: Exception | None = None
        for each in addresses:
            metrics = PrometheusConfig(
                each,
                counters_total_suffix=True,
                unit_suffix=True,
                durations_as_seconds=True,
                histogram_bucket_overrides={GATEWAY_LATENCY: _WEB_SECONDS},
            )
            try:
                return Runtime(telemetry=TelemetryConfig(metrics=metrics))
            except Exception as error:
                failure = error
        raise TemporalSettingsError(f"metrics cannot be served at {', '.join(addresses)}: {failure}") from failure

    return make


def runtime_of_process(factory: RuntimeFactory = plain_runtime) -> Runtime:
    """This process's runtime, made by ``factory`` at its first use.

    All connections share it.
    """
    with _runtime_lock:
        if factory not in _runtimes:
            if not _runtimes:
                atexit.register(time.sleep, _EXIT_PAUSE)
            _runtimes[factory] = factory()
        return _runtimes[factory]


def _after_fork() -> None:
    global _runtime_lock
    _runtime_lock = threading.Lock()
    for runtime in _runtimes.values():
        never_free(runtime)
    _runtimes.clear()
    for temporal in list(_connections):
        temporal._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
