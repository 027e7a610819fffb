"""``durably dev``."""

from pathlib import Path

import click

from durably.cli.options import open_tracing, read_allowed_hosts, server_options


@click.command()
@click.argument("target", metavar="[MODULE:APP]", required=False)
@server_options(poll_interval=5, allow_private_addresses=True, log_format="text")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    callback=read_allowed_hosts,
    envvar="DURABLY_ALLOWED_HOSTS",
    show_envvar=True,
    metavar="NAME",
    help="A host besides localhost by which clients and web pages may reach the engine, like host.docker.internal; "
    "* allows all. May be repeated; in the environment, separated by spaces.",
)
@click.option(
    "--app-port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of MODULE:APP; 0 takes a free one.",
)
@click.option("--app-path", metavar="PATH", help="Path of the functions of MODULE:APP, if it is not a usual one.")
@click.option(
    "--db",
    "database",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="File that keeps the engine's state; :memory: keeps none.  [default: .durably/dev.db]",
)
@click.option(
    "--temporal",
    "temporal_address",
    metavar="HOST:PORT",
    help="Temporal server that keeps the engine's state, in place of --db. `temporal server start-dev` starts one. "
    "Namespace, TLS, API key and encryption come from environment variables whose names begin with TEMPORAL.",
)
@click.option("--no-reload", is_flag=True, help="Do not restart MODULE:APP when its source changes.")
def dev(
    target: str | None,
    urls: tuple[str, ...],
    poll_interval: float,
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    app_port: int,
    app_path: str | None,
    database: Path | None,
    temporal_address: str | None,
    no_reload: bool,
    max_connections: int,
    allow_private_addresses: bool,
    max_steps: int,
    max_depth: int,
    otel: bool,
    log_format: str,
) -> None:
    """Run an engine for development, and MODULE:APP with it.

    MODULE:APP is an ASGI app (FastAPI, Django), a WSGI app (Flask, Django), a tornado.web.Application or a
    DigitalOcean main(event, context). It gets the engine's URL in DURABLY_DEV, is restarted when Python source below
    the working directory changes, and is synced. For an app that runs separately, give the URL of its endpoint with -u,
    like http://127.0.0.1:3000/api/inngest.

    Updates of runs are printed, on Temporal those of the runs that it executes. The state is kept between starts, so
    that runs continue.
    """
    if temporal_address is not None and database is not None:
        raise click.UsageError("give one of --db and --temporal, where the engine's state is kept")
    from durably.cli.output.log_lines import LogFormat
    from durably.cli.servers.dev_server import DevOptions, DevServer
    from durably.cli.servers.event_loop import run_until_stopped

    options = DevOptions(
        target=target,
        urls=urls,
        poll_interval=poll_interval,
        host=host,
        port=port,
        allowed_hosts=allowed_hosts,
        app_port=app_port,
        app_path=app_path,
        database=database,
        temporal_address=temporal_address,
        reload=not no_reload,
        max_connections=max_connections,
        allow_private_addresses=allow_private_addresses,
        max_steps=max_steps,
        max_depth=max_depth,
        log_format=LogFormat(log_format),
    )

    with open_tracing(otel) as tracing:

        async def serve() -> None:
            async with DevServer(options, tracing=tracing) as server:
                await server.run()

        run_until_stopped(serve())
