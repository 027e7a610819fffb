"""The connection of an app to its Temporal server.

There is one client per process. A ``Temporal`` is created at import time, before any event loop and before a fork, even
if the server is unreachable. The first use connects, on the background event loop. The client then serves every event
loop and thread of the process, and reconnects by itself.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, Unpack

import temporalio.api.workflowservice.v1 as workflowservice
from temporalio import workflow
from temporalio.client import Client, Interceptor, Plugin, SchedulePolicy, ScheduleSpec
from temporalio.common import MetricMeter, SearchAttributeKey
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, PayloadCodec
from temporalio.service import KeepAliveConfig, RetryConfig, RPCError, RPCStatusCode, TLSConfig

from durably.io.background_loop import get_background_loop
from durably.protocol.options import check_function, check_switch, check_text, check_time_span, check_type
from durably.protocol.text import get_logger, printable
from durably.temporal.compat import never_free
from durably.temporal.declarations import (
    ScheduleDeclaration,
    ScheduledWorkflowOptions,
    WorkerDeclaration,
    WorkerOptions,
    check_memo,
    make_spec,
    scheduled_arguments,
)
from durably.temporal.errors import TemporalSettingsError, TemporalUnreachableError
from durably.temporal.namespace.search_attributes import DeclaredAttribute, log_errors
from durably.temporal.settings import ConnectionSettings, check_address, misspelt_variables, prefix_of, resolve
from durably.temporal.worker.workers import Lifespan

from .connect_failures import cause_to_show, connect_error, unreachable
from .interceptors import CallInterceptor, tracing_interceptor
from .runtimes import RuntimeFactory, measured_runtime, plain_runtime, runtime_of_process
from .sync import SyncClient

WEB_RETRY = RetryConfig(max_interval_millis=1_000, max_elapsed_time_millis=3_000)
"""Retries of a web app's calls while the server is unreachable. Users wait three seconds, not the SDK's ten."""

DEFAULT_CONNECT_TIMEOUT = timedelta(seconds=5)
DEFAULT_RPC_TIMEOUT = timedelta(seconds=10)

_logger = get_logger("durably.temporal")


T = TypeVar("T")


@dataclass(frozen=True)
class Health:
    """The health of a connection and of the web process's workers.

    ``ok``: the server answers for the namespace, and the workers run. Otherwise ``problem`` is the reason.
    """

    ok: bool
    address: str
    namespace: str
    problem: str | None = None


def _listed(given: Iterable[T], argument: str) -> list[T]:
    """The items of a list.

    Raises ``TypeError`` for a value that is not a list, and for items that cannot be interceptors or plugins.
    """
    if isinstance(given, str | bytes | Mapping | type) or not isinstance(given, Iterable):
        raise TypeError(f"{argument} must be a list, not a value of type {type(given).__name__}")
    items = list(given)
    for item in items:
        if isinstance(item, str | bytes | int | float | type | None):
            raise TypeError(f"{argument} must be a list of objects with the methods of {argument}, and has {item!r}")
    return items


class Temporal:
    """An app's connection to Temporal.

    Defaults are from ``TEMPORAL_…`` environment variables, Temporal's configuration file (``profile``, ``config_file``)
    and the framework's settings; see ``durably.temporal.settings``.

    - ``address``: ``host:port``.
    - ``task_queue``: the default for starts of workflows.
    - ``data_converter``: by default the pydantic one if pydantic is installed.
    - ``encryption``: a codec for the converter, which also hides the messages of failures. By default it is made of the
      settings' encryption keys, if there are any.
    - ``deployment_name``, ``build_id``, ``versioning_behavior`` (``pinned``, ``auto-upgrade``): the version of the
      app's workers; see ``durably.temporal.worker.deployments``.
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
        texts = {"name": name, "profile": profile, "identity": identity}
        self.name = name
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
        for argument, value in (texts | self._arguments).items():
            if argument not in ("tls", "rpc_metadata"):
                check_text(value, argument)
                if value is not None and printable(value) != value:
                    raise ValueError(f"{argument} must be one line of printable characters")
        self._check_types(tls, rpc_metadata, config_file, same_server_as)
        check_switch(tracing, "tracing")
        check_function(runtime, "runtime")
        check_function(configuration, "configuration")
        interceptors, plugins = _listed(interceptors, "interceptors"), _listed(plugins, "plugins")
        if data_converter is not None:
            check_type(data_converter, "data_converter", DataConverter, "a DataConverter(…)")
        if retry_config is not None:
            check_type(retry_config, "retry_config", RetryConfig, "a RetryConfig(…)")
        if keep_alive_config is not None:
            check_type(keep_alive_config, "keep_alive_config", KeepAliveConfig, "a KeepAliveConfig(…)")
        check_time_span(connect_timeout, "connect_timeout")
        if rpc_timeout is not None:
            check_time_span(rpc_timeout, "rpc_timeout")
        self.variable_prefix = prefix_of(name)
        self._profile = profile
        self._config_file = config_file
        self._configuration = configuration
        self._given_converter = data_converter
        if encryption is not None and not isinstance(encryption, PayloadCodec):  # Nothing would be encrypted.
            raise TypeError(f"encryption must be a PayloadCodec, such as EncryptionCodec(…), not {type(encryption)!r}")
        self._encryption = encryption
        traced = [tracing_interceptor()] if tracing else []
        self.interceptors = [CallInterceptor(self.client, rpc_timeout), *traced, *interceptors]
        self.plugins = plugins
        self._identity = identity
        self._retry_config = retry_config
        self._keep_alive_config = keep_alive_config
        self._connect_timeout = connect_timeout
        self._own_runtime = runtime
        self.workers: list[WorkerDeclaration] = []
        self.schedules: list[ScheduleDeclaration] = []
        self.search_attributes: list[DeclaredAttribute] = []
        self.owner_attributes: list[DeclaredAttribute] = []
        self.web_worker: Lifespan | None = None
        self._override: Client | None = None
        self._reset()
        _connections.add(self)

    @staticmethod
    def _check_types(
        tls: object, rpc_metadata: Mapping[str, str] | None, config_file: object, same_server_as: object
    ) -> None:
        """Raises ``TypeError``. A string such as ``"false"`` would turn TLS on."""
        if tls is not None and not isinstance(tls, bool):
            check_type(tls, "tls", TLSConfig, "True, False or a TLSConfig(…)")
        if rpc_metadata is not None:
            check_type(rpc_metadata, "rpc_metadata", Mapping, 'a mapping, such as {"header": "value"}')
            if not all(isinstance(value, str | bytes) for value in rpc_metadata.values()):
                raise TypeError("rpc_metadata must be a mapping of strings to strings")
        if config_file is not None:
            check_type(config_file, "config_file", (str, os.PathLike), "the path of a file")
        if same_server_as is not None:
            check_type(same_server_as, "same_server_as", Temporal, "a Temporal(…)")

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._connecting: concurrent.futures.Future[Client] | None = None

    def _after_fork(self) -> None:
        for inherited in (self._client, self._connecting):
            if inherited is not None:
                never_free(inherited)
        self._reset()

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
        cron: str | Sequence[str] | None = None,
        every: timedelta | None = None,
        spec: ScheduleSpec | None = None,
        time_zone: str | None = None,
        policy: SchedulePolicy | None = None,
        workflow_id: str | None = None,
        task_queue: str | None = None,
        **options: Unpack[ScheduledWorkflowOptions],
    ) -> None:
        """Declare a schedule, which starts a workflow.

        An example: ``temporal.add_schedule("report", ReportWorkflow.run, "sales", cron="0 3 * * *")``.

        - Exactly one of ``cron``, ``every`` and ``spec`` gives the times, in ``time_zone`` (default: UTC).
        - Workflow ids consist of ``workflow_id`` (default: the schedule's id) and the time.
        - Parameters of ``start`` without an argument get their current defaults.

        ``durably temporal sync-schedules module:temporal`` writes schedules to the server. Raises
        ``TemporalSettingsError``, also for arguments that do not fit.
        """
        if workflow.unsafe.in_sandbox():
            return
        check_memo(options.get("memo", {}), f'add_schedule("{id}")')
        self.schedules.append(
            ScheduleDeclaration(
                id=id,
                workflow=start,
                args=scheduled_arguments(id, start, args),
                spec=make_spec(cron, every, spec, time_zone),
                policy=policy or SchedulePolicy(),
                workflow_id=workflow_id or id,
                task_queue=task_queue,
                options=dict(options),
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

    def serve_metrics(self, address: str, *, processes: int = 1) -> None:
        """Serve the process's metrics to Prometheus at ``http://{address}/metrics``.

        ``address`` is ``host:port``. If several ``processes`` of a web server call this, each takes the next free port.
        Raises ``TemporalSettingsError`` for an invalid address, and if a ``runtime`` was given, which has its own
        telemetry.
        """
        if self._own_runtime is not plain_runtime:
            raise TemporalSettingsError("Temporal(runtime=…) decides on metrics itself: add a PrometheusConfig there")
        check_address(address, "the address to serve metrics at", to_listen_at=True)
        if processes < 1:
            raise TemporalSettingsError(f"metrics are served by one process or more, not by {processes}")
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

    @cached_property
    def settings(self) -> ConnectionSettings:
        """Raises ``TemporalSettingsError``. Logs a warning for each misspelt variable."""
        self._warn_of_misspelt_variables()
        framework = self._configuration() if self._configuration is not None else {}
        return resolve(
            self._arguments,
            framework,
            profile=self._profile,
            config_file=self._config_file,
            name=self.name,
            same_server_as=None if self._same_server_as is None else self._same_server_as.settings,
        )

    def _warn_of_misspelt_variables(self) -> None:
        others = [each.variable_prefix for each in _connections]
        for variable, meant in misspelt_variables(self.name, os.environ, others).items():
            _logger.warning("The environment variable %s is not used. Is %s meant?", variable, meant)

    @cached_property
    def data_converter(self) -> DataConverter:
        """The converter of values into payloads, the same for all workers.

        Raises ``TemporalSettingsError``.
        """
        converter = self._given_converter or _default_converter()
        codec = self._encryption or _codec_of(self.settings)
        if codec is None:
            return converter
        return replace(
            converter,
            payload_codec=codec,
            failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
        )

    @cached_property
    def sync(self) -> SyncClient:
        """The client for synchronous code.

        An example: ``temporal.sync.start_workflow(OrderWorkflow.run, order)``.
        """
        return SyncClient(self.client, lambda: self.settings.task_queue, f"{self.variable_prefix}TASK_QUEUE")

    async def client(self) -> Client:
        """The process's client, connected. Works as ``fastapi.Depends(temporal.client)``.

        Raises ``TemporalUnreachableError`` or ``TemporalSettingsError``; the next call tries again.
        """
        client = self._override or self._client
        if client is not None:
            return client
        # A caller that is cancelled must not cancel the connection of the others.
        return await asyncio.shield(asyncio.wrap_future(self._connect_once()))

    def start_connecting(self) -> concurrent.futures.Future[Client] | None:
        """Connect in the background before the first request.

        Returns ``None`` if there is a client.
        """
        return self._connect_once() if self._client is None and self._override is None else None

    def _connect_once(self) -> concurrent.futures.Future[Client]:
        with self._lock:
            if self._connecting is None:
                self._connecting = get_background_loop().submit(self._connect_shared())
            return self._connecting

    async def _connect_shared(self) -> Client:
        try:
            client = await self.connect()
            self._client = client
            self._check_attributes(client, self.search_attributes)
            return client
        finally:
            with self._lock:
                self._connecting = None

    def _check_attributes(self, client: Client, declared: Sequence[DeclaredAttribute]) -> None:
        """Check search attributes in the background, so that no request waits for it."""
        if declared:
            get_background_loop().submit(log_errors(client, tuple(declared), DEFAULT_RPC_TIMEOUT))

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
            return await asyncio.wait_for(connecting, self._connect_timeout.total_seconds())
        except TimeoutError as error:
            seconds = self._connect_timeout.total_seconds()
            raise unreachable(settings, f"no answer in {seconds:g} seconds") from error
        except (RuntimeError, RPCError) as error:
            raise connect_error(settings, error) from cause_to_show(settings, error)

    async def check_health(self, timeout: timedelta = timedelta(seconds=2)) -> Health:
        """Ask the server for the namespace, and check the web process's workers.

        These are the workers of ``lifespan(worker=True)``. It does not raise if the server is unreachable or refuses:
        see ``Health``.
        """
        settings = self.settings
        request = workflowservice.DescribeNamespaceRequest(namespace=settings.namespace)
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                client = await self.client()
                await client.workflow_service.describe_namespace(request)
        except TimeoutError:
            return Health(False, settings.address, settings.namespace, "the server does not answer")
        except TemporalUnreachableError as error:
            return Health(False, settings.address, settings.namespace, error.message)
        except RPCError as error:
            problem = f"{error.status.name}: {error.message}"
            if error.status is RPCStatusCode.NOT_FOUND:
                problem = f'the server has no namespace "{settings.namespace}"'
            return Health(False, settings.address, settings.namespace, problem)
        ended = self.worker_problem
        return Health(ended is None, settings.address, settings.namespace, ended)

    @property
    def worker_problem(self) -> str | None:
        """The reason why workers of ``lifespan(worker=True)`` do not run.

        Returns ``None`` if they run, or if there are none.
        """
        return None if self.web_worker is None else self.web_worker.worker_problem

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

    def lifespan(self, app: object = None, *, worker: bool = False) -> Lifespan:
        """The lifespan of a web app: ``FastAPI(lifespan=temporal.lifespan)``.

        It connects in the background, so the app starts without a server.

        ``FastAPI(lifespan=temporal.lifespan(worker=True))`` also runs the declared workers in the web process. This is
        for development: in production, workers would take processor time from requests.
        """
        return Lifespan(self, worker=worker)


def _default_converter() -> DataConverter:
    try:
        from temporalio.contrib.pydantic import pydantic_data_converter
    except ImportError:
        return DataConverter.default
    return pydantic_data_converter


def _codec_of(settings: ConnectionSettings) -> PayloadCodec | None:
    if not settings.encryption_keys:
        return None
    from durably.temporal.encryption import EncryptionCodec, EncryptionKey

    return EncryptionCodec(*EncryptionKey.parse_all(settings.encryption_keys))


_connections: "weakref.WeakSet[Temporal]" = weakref.WeakSet()


def _after_fork() -> None:
    for temporal in list(_connections):
        temporal._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
