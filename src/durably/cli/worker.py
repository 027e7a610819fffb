"""``durably worker``."""

import asyncio
import importlib
import os
import sys
from typing import Any

import click

from durably.client import Client
from durably.embedded.handle import InProcessHandle
from durably.protocol.text import get_logger

from .app_server import AppImportError, import_app
from .event_loop import run_until_stopped
from .log import LogFormat, leave_to_own_handlers, write_log
from .text import CliError

_logger = get_logger("durably.worker")


@click.command()
@click.argument("target", metavar="MODULE:CLIENT")
@click.option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    default="text",
    show_default=True,
    envvar="DURABLY_LOG_FORMAT",
    show_envvar=True,
    help="The form of the log: JSON objects, or text for people.",
)
def worker(target: str, log_format: str) -> None:
    """Run an app's functions in a process of its own.

    MODULE:CLIENT is the app's Client, whose engine is a TemporalEngine(…), an Embedded(…), or a URL like
    temporal://localhost:7233. The module must serve the functions, or import what does. Web processes that shall run
    none have TemporalEngine(workers=False). In a Django project, set DJANGO_SETTINGS_MODULE. SIGTERM ends it: calls
    have 5 seconds to end, and continue elsewhere then.
    """
    write_log(LogFormat(log_format))
    engine = _load_engine(target)
    leave_to_own_handlers()
    run_until_stopped(_work(engine))


async def _work(engine: InProcessHandle[Any]) -> None:
    try:
        await engine.start_worker()
        _logger.info("process %d runs the functions %s", os.getpid(), ", ".join(engine.function_ids))
        await asyncio.Event().wait()
    finally:
        await engine.stop()
        _logger.info("process %d has stopped", os.getpid())


def _load_engine(target: str) -> InProcessHandle[Any]:
    """The handle of the client's engine. Raises ``CliError``."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        importlib.import_module("django").setup()
    try:
        found = import_app(target, ("client",))
    except AppImportError as error:
        hint = ""
        if "DJANGO_SETTINGS_MODULE" in str(error) and not os.environ.get("DJANGO_SETTINGS_MODULE"):
            hint = f": call `DJANGO_SETTINGS_MODULE=myproject.settings durably worker {target}`"
        raise CliError(f"{error}{hint}") from None
    if not isinstance(found, Client):
        raise CliError(f"{target} is an object of type {type(found).__qualname__}, not a durably.Client")
    engine = found.engine
    if not isinstance(engine, InProcessHandle):
        raise CliError(
            f"the engine of {target} is not in the app's own processes, so it needs no worker: it calls the app over "
            "HTTP"
        )
    if not engine.function_ids:
        raise CliError(f"{target} serves no functions: name a client in the module that calls serve(…)")
    return engine
