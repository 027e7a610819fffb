"""Engines on a Temporal server: ``TemporalClient`` for commands, and what ``durably start`` and ``durably dev`` run."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

from temporalio.service import RPCError

from durably.engine.api.codec import status_of
from durably.engine.api.local import LocalEngine
from durably.engine.api.operations import Operation
from durably.engine.model.runs import RunUpdate
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.client import DATA_CONVERTER, is_unreachable
from durably.engine.temporal.engine import HttpWorkflowEngine, WorkflowEngine
from durably.engines import parse_temporal_url
from durably.errors import Error
from durably.io.background_loop import get_background_loop
from durably.protocol.engine_errors import EngineError
from durably.protocol.events import AppSyncBody
from durably.protocol.headers import ServerKind
from durably.protocol.text import get_logger, printable
from durably.temporal import Temporal, TemporalUnreachableError
from durably.temporal.client.connect_failures import connect_with_retries, explain_refusal
from durably.temporal.settings import ConnectionSettings

from .client import TIMEOUT_SECONDS, AnswerError, EngineClient, EngineUnreachedError
from .text import CliError

T = TypeVar("T")
_logger = get_logger("durably.start")
_NO_WORKER = (
    "Some commands need a process that runs the workflows of the engine: the app, `durably worker`, or `durably start "
    "--temporal`. Does one run?"
)


class TemporalClient(EngineClient):
    """An ``EngineClient`` that is an engine itself, without workers.

    It connects at the first operation. ``url`` is that of ``durably.engines.parse_temporal_url``; further settings of
    the connection are ``TEMPORAL_…`` variables.
    """

    def __init__(self, url: str) -> None:
        parts = parse_temporal_url(url, "the engine's URL")
        self._temporal = Temporal(parts.address, parts.namespace, data_converter=DATA_CONVERTER)
        self._engine: WorkflowEngine | None = None

    def block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return get_background_loop().run(coroutine)

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                engine = await self._connected()
                result = await operation.execute(engine, arguments)
                is_missing = not result and await operation.is_missing(engine, arguments, result)
        except Exception as error:
            self._explain(error, operation.name)
        if is_missing:
            assert operation.missing is not None
            raise AnswerError(operation.missing.format_map(arguments), HTTPStatus.NOT_FOUND)
        return result

    def sync_app_at(self, url: str) -> AppSyncBody:
        """Raises ``CliError``: a Temporal server calls no apps."""
        raise CliError(
            "a Temporal server calls no apps. For apps over HTTP, give the URL of their engine, `durably start "
            "--temporal`, by --url. Apps with the engine in process sync when they start"
        )

    def check_ready(self) -> None:
        """Raises an error if the server does not answer, or does not know the namespace.

        Workers are not checked.
        """
        self.block(self._verify())

    async def _verify(self) -> None:
        try:
            await (await self._connected()).verify()
        except Exception as error:
            self._explain(error, "health")

    def updates(self, *, function_id: str | None, on_connected: Callable[[], None]) -> Iterator[RunUpdate]:
        """Raises ``CliError``: changes of runs are known in the processes that execute them."""
        raise CliError(
            "a Temporal server reports no changes of runs: see its UI and the logs of the processes that execute the "
            "runs, or give the URL of `durably start --temporal`, by --url"
        )

    async def _connected(self) -> WorkflowEngine:
        if self._engine is None:
            self._engine = WorkflowEngine(await self._temporal.connect(interceptors=()), EngineSettings())
        return self._engine

    def _explain(self, error: Exception, what: str) -> NoReturn:
        """Raise the command's error for an engine's."""
        match error:
            case CliError():
                raise error
            case EngineError():
                raise AnswerError(printable(error.message), status_of(error)) from None
            case TemporalUnreachableError():
                raise EngineUnreachedError(printable(error.message)) from None
            case Error():
                raise CliError(printable(error.message)) from None
            case TimeoutError():
                raise EngineUnreachedError(f"no answer to {what!r} within {TIMEOUT_SECONDS:.0f} s. {_NO_WORKER}")
            case RPCError() if not is_unreachable(error):
                raise CliError(printable(explain_refusal(error.message, self._temporal.settings))) from None
        if is_unreachable(error):
            raise EngineUnreachedError(f"no answer to {what!r} ({printable(str(error))}). {_NO_WORKER}") from None
        raise error


def engine_on_temporal(
    address: str, settings: EngineSettings
) -> tuple[Callable[[], Awaitable[LocalEngine]], ConnectionSettings]:
    """A function that opens the engine, and the settings of its connection.

    In production it waits until a server answers; in development it raises ``TemporalUnreachableError``. Raises
    ``TemporalSettingsError``.
    """
    temporal = Temporal(address, data_converter=DATA_CONVERTER)
    known: set[str] = set()

    def note(error: TemporalUnreachableError) -> None:
        if str(error) not in known:
            _logger.warning("%s Trying again until it answers.", error.message)
            known.add(str(error))

    async def open_engine() -> LocalEngine:
        if settings.server_kind is ServerKind.CLOUD:
            return await HttpWorkflowEngine.open(await connect_with_retries(temporal.connect, note), settings)
        return await HttpWorkflowEngine.open(await temporal.connect(interceptors=()), settings)

    return open_engine, temporal.settings
