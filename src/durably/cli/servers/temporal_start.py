"""Engines of ``durably start`` and ``durably dev`` with ``--temporal``.

The options that they refuse are here too.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from durably.cli.options import require_temporal
from durably.cli.output.text import CliError
from durably.protocol.text import get_logger

if TYPE_CHECKING:
    from durably.engine.api.http.server import EngineServer
    from durably.engine.api.interface import LocalEngine
    from durably.engine.model.settings import EngineSettings
    from durably.temporal import Temporal

_SETTINGS = {"retention": "retention"}
"""Options that give settings of an engine."""

_SHARED = (
    "the processes on this Temporal server share its runs: each logs, counts and alerts for those that it executes, so "
    "collect the logs and metrics of all"
)

_logger = get_logger("durably.start")


def refuse_options(context: click.Context) -> None:
    """Raises ``CliError`` for an option that the engine on Temporal does not have."""
    from durably.engine.temporal.support import UNUSED_SETTINGS

    reasons = {option: UNUSED_SETTINGS[setting] for option, setting in _SETTINGS.items()}
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in reasons and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise CliError(f"{parameter.opts[0]} cannot be used with --temporal: {reasons[name]}")


def server_on_temporal(
    address: str, settings: "EngineSettings"
) -> "tuple[Callable[..., Awaitable[EngineServer]], dict[str, str]]":
    """A function that opens the server, and the server's names for the log.

    Raises ``CliError`` for invalid settings of the connection.
    """
    temporal = _connection_to(address)
    from durably.engine.api.http.server import EngineServer
    from durably.engine.temporal.engine import HttpWorkflowEngine
    from durably.temporal import TemporalUnreachableError
    from durably.temporal.client.connect_failures import connect_with_retries

    def note(error: TemporalUnreachableError) -> None:
        if str(error) not in known:
            _logger.warning("%s Trying again until it answers.", error.message)
            known.add(str(error))

    known: set[str] = set()

    async def open_engine() -> "LocalEngine":
        return await HttpWorkflowEngine.open(await connect_with_retries(temporal.connect, note), settings)

    async def open_server(**options: Any) -> EngineServer:
        server = await EngineServer.open_on(open_engine, settings, **options)
        _logger.info(_SHARED)
        return server

    return open_server, {"temporal": temporal.settings.address, "namespace": temporal.settings.namespace}


def dev_engine_on_temporal(
    address: str, settings: "EngineSettings"
) -> "tuple[Callable[[], Awaitable[LocalEngine]], str]":
    """A function that opens the engine, and the place of its state in words.

    Raises ``CliError`` for invalid settings of the connection. The function raises it if no server answers.
    """
    temporal = _connection_to(address)
    from durably.engine.temporal.engine import HttpWorkflowEngine
    from durably.temporal import TemporalUnreachableError
    from durably.temporal.errors import SearchAttributeError

    async def open_engine() -> "LocalEngine":
        try:
            return await HttpWorkflowEngine.open(await temporal.connect(interceptors=()), settings)
        except (TemporalUnreachableError, SearchAttributeError) as error:
            raise CliError(error.message) from None

    where = f"the Temporal server at {temporal.settings.address}, namespace {temporal.settings.namespace}"
    return open_engine, where


def _connection_to(address: str) -> "Temporal":
    """Raises ``CliError`` for invalid settings, or if the extra is not installed."""
    require_temporal()
    from durably.engine.temporal.client import DATA_CONVERTER
    from durably.temporal import Temporal, TemporalSettingsError

    temporal = Temporal(address, data_converter=DATA_CONVERTER)
    try:
        _ = temporal.settings
    except TemporalSettingsError as error:
        raise CliError(error.message) from None
    return temporal
