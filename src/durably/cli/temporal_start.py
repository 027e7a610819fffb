"""The engine of ``durably start --temporal``, and the options that it refuses."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from durably.protocol.text import get_logger

from .temporal import require_temporal
from .text import CliError

if TYPE_CHECKING:
    from durably.engine.http.server import EngineServer
    from durably.engine.interface import LocalEngine
    from durably.engine.settings import EngineSettings

_ALERTS = "Temporal stores the ends of runs, and this process does not see those of others. Alert on Temporal's metrics"
_REFUSED = {
    "retention": "the retention of Temporal's namespace decides: `temporal operator namespace update --retention`",
    "alert_url": _ALERTS,
    "alert_emails": _ALERTS,
    "smtp_url": _ALERTS,
    "alert_from": _ALERTS,
    "alert_interval": _ALERTS,
    "dashboard_url": _ALERTS,
    "metrics_address": "Temporal's server has the metrics of workflows and activities",
    "otel": "runs on Temporal are not traced by the engine yet; spans of the app and its steps are",
}
"""Options that do nothing on Temporal, with the reasons."""

_NOT_SEEN = (
    "runs are executed by all processes on this Temporal server, so this one does not log them, and its /metrics has "
    "only the number of live runs: Temporal's UI and metrics have the rest"
)

_logger = get_logger("durably.start")


def refuse_options(context: click.Context) -> None:
    """Raises ``CliError`` for an option that the engine on Temporal does not have."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in _REFUSED and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise CliError(f"{parameter.opts[0]} cannot be used with --temporal: {_REFUSED[name]}")


def server_on_temporal(
    address: str, settings: "EngineSettings"
) -> "tuple[Callable[..., Awaitable[EngineServer]], dict[str, str]]":
    """A function that opens the server, and the server's names for the log.

    Raises ``CliError`` for invalid settings of the connection.
    """
    require_temporal()
    from durably.engine.http.server import EngineServer
    from durably.engine.temporal.converter import DATA_CONVERTER
    from durably.engine.temporal.http_engine import HttpWorkflowEngine
    from durably.temporal import Temporal, TemporalSettingsError, TemporalUnreachableError
    from durably.temporal.patience import connect_patiently

    temporal = Temporal(address, data_converter=DATA_CONVERTER)
    try:
        connection = temporal.settings
    except TemporalSettingsError as error:
        raise CliError(error.message) from None

    def note(error: TemporalUnreachableError) -> None:
        if str(error) not in known:
            _logger.warning("%s Trying again until it answers.", error.message)
            known.add(str(error))

    known: set[str] = set()

    async def open_engine() -> "LocalEngine":
        return await HttpWorkflowEngine.open(await connect_patiently(temporal, note), settings)

    async def open_server(**options: Any) -> EngineServer:
        server = await EngineServer.open_on(open_engine, settings, **options)
        _logger.info(_NOT_SEEN)
        return server

    return open_server, {"temporal": connection.address, "namespace": connection.namespace}
