"""``durably start``."""

import datetime as dt
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from durably.cli.options import (
    dashboard_options,
    open_tracing,
    read_address,
    read_age,
    read_names,
    read_web_address,
    server_options,
    setting_option,
    signing_key_options,
)
from durably.cli.output.text import CliError
from durably.cli.servers.temporal_start import refuse_options, server_on_temporal
from durably.protocol.text import get_logger, is_name
from durably.settings import EVENT_KEY, SIGNING_KEY, warn_of_short_signing_keys

if TYPE_CHECKING:
    pass

_ADVICE = "; `durably keys` makes one of each"


@click.command()
@server_options(poll_interval=60, allow_private_addresses=False, log_format="json")
@click.option(
    "--db",
    "database",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="File that keeps the engine's state. This or --temporal is required.",
)
@click.option(
    "--temporal",
    "temporal_address",
    metavar="HOST:PORT",
    help="Temporal server that keeps the engine's state, in place of --db. Namespace, TLS, API key and encryption come "
    "from environment variables whose names begin with TEMPORAL.",
)
@signing_key_options
@setting_option(
    "--event-key",
    "event_keys",
    setting=EVENT_KEY,
    read=str.split,
    multiple=True,
    metavar="KEY",
    help="A key that senders of events must have. May be repeated; in the environment, separated by spaces.",
)
@click.option(
    "--unsigned-answers-of",
    "unsigned_apps",
    multiple=True,
    callback=read_names,
    metavar="APP",
    help="Accept unsigned answers of the app with this id, if its SDK does not sign. May be repeated.",
)
@dashboard_options
@click.option(
    "--metrics-address",
    callback=read_address,
    envvar="DURABLY_METRICS_ADDRESS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Serve the metrics for Prometheus, /metrics, without a key at this address too, like 127.0.0.1:9464. Every "
    "client that can connect to it can read them.",
)
@click.option(
    "--dashboard-url",
    callback=read_web_address,
    envvar="DURABLY_DASHBOARD_URL",
    show_envvar=True,
    metavar="URL",
    help="The dashboard's address as people reach it. Its path is a prefix that a proxy removes.",
)
@click.option(
    "--retention",
    callback=read_age,
    metavar="AGE",
    help="Purge finished runs, and events that no run needs, at this age, like 30d or 12h.  [default: keep them]",
)
def start(
    urls: tuple[str, ...],
    host: str,
    port: int,
    database: Path | None,
    temporal_address: str | None,
    signing_key: str | None,
    signing_key_fallback: str | None,
    event_keys: tuple[str, ...],
    poll_interval: float,
    max_connections: int,
    allow_private_addresses: bool,
    max_steps: int,
    max_depth: int,
    unsigned_apps: tuple[str, ...],
    metrics_address: tuple[str, int] | None,
    dashboard_url: str | None,
    retention: dt.timedelta | None,
    otel: bool,
    log_format: str,
    dashboard_key: str | None,
    dashboard_viewer_key: str | None,
    dashboard_proxy_header: str | None,
    dashboard_proxies: tuple[str, ...],
) -> None:
    """Run an engine for production.

    The engine is one process with its state in the file --db, or one of several on the Temporal server --temporal.
    Calls to apps and their answers are signed with the signing key, which the API requires too. Events need an event
    key. `durably keys` makes both. Apps are synced by `durably sync URL`, a part of their deployment, or every minute
    if -u names them. The log is on stderr, one JSON object a line.
    """
    if (database is None) == (temporal_address is None):
        raise click.UsageError("give one of --db PATH and --temporal HOST:PORT, where the engine's state is kept")
    if database is not None:
        database = _check_database(database)
    else:
        refuse_options(click.get_current_context())
    if not signing_key:
        raise CliError(f"no signing key: set {SIGNING_KEY.name}, the same as the apps'{_ADVICE}")
    if not event_keys or not any(key.strip() for key in event_keys):
        raise CliError(f"no event key: set {EVENT_KEY.name}, the same as the senders'{_ADVICE}")
    if not all(map(is_name, event_keys)):
        raise CliError(
            f"an event key is blank, or has characters that are not printable: anybody could send events with it. "
            f"Correct {EVENT_KEY.name} or --event-key{_ADVICE}"
        )
    from durably.cli.output.log_lines import LogFormat, write_log
    from durably.cli.servers.event_loop import run_until_stopped
    from durably.cli.servers.production_server import OpenServer, read_sign_in, serve
    from durably.engine.api.http.connections import ConnectionLimits
    from durably.engine.core.run_state import standard_backoff
    from durably.engine.model.settings import EngineSettings
    from durably.engine.sqlite.server import serve_database
    from durably.protocol.headers import ServerKind

    keys = (signing_key, signing_key_fallback, *event_keys)
    sign_in = read_sign_in(
        dashboard_key,
        dashboard_proxy_header,
        dashboard_proxies,
        viewer_key=dashboard_viewer_key,
        url=dashboard_url,
        other_keys=keys,
    )
    write_log(LogFormat(log_format))
    warn_of_short_signing_keys((signing_key, signing_key_fallback), get_logger("durably.start"))
    limits = ConnectionLimits(max_connections=max_connections)
    with open_tracing(otel) as tracing:
        settings = EngineSettings(
            server_kind=ServerKind.CLOUD,
            signing_key=signing_key,
            signing_key_fallback=signing_key_fallback,
            unsigned_apps=frozenset(unsigned_apps),
            backoff=standard_backoff,
            allow_private_addresses=allow_private_addresses,
            max_steps=max_steps,
            max_depth=max_depth,
            retention=retention,
            tracing=tracing,
        )
        open_server: OpenServer
        if database is not None:
            open_server, store = partial(serve_database, database, settings), {"database": str(database)}
        else:
            assert temporal_address is not None
            open_server, store = server_on_temporal(temporal_address, settings)
        run_until_stopped(
            serve(
                open_server,
                store,
                is_new=database is not None and not database.exists(),
                event_keys=event_keys,
                host=host,
                port=port,
                metrics_address=metrics_address,
                limits=limits,
                urls=urls,
                poll_interval=poll_interval,
                sign_in=sign_in,
            )
        )


def _check_database(database: Path) -> Path:
    """The absolute path. Raises ``CliError``."""
    if str(database) == ":memory:":
        raise CliError("--db :memory: would lose all runs at the end: give a file, or use `durably dev --db :memory:`")
    database = database.absolute()
    if not database.resolve().parent.is_dir():
        raise CliError(
            f"--db {database}: there is no directory {database.resolve().parent}: create it, or correct the path"
        )
    return database
