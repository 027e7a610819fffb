"""The ``durably`` command and its parts."""

import click

from durably.settings import Environment, describe_unknown_name

from .database import backup, check
from .dev import dev
from .events import events, send, signal
from .functions import functions, invoke
from .keys import keys
from .logs import logs
from .runs import cancellations, runs
from .start import start
from .sync import health, sync
from .temporal import temporal
from .text import Group, echo
from .top import top
from .worker import worker


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="durably")
def durably() -> None:
    """Durable functions in Python web apps: run an engine, and talk to one."""
    for name, nearest in Environment().unknown_names().items():
        echo(f"Warning: {describe_unknown_name(name, nearest)}", err=True)


for command in (
    dev,
    start,
    keys,
    sync,
    health,
    send,
    signal,
    events,
    runs,
    logs,
    cancellations,
    functions,
    invoke,
    top,
    worker,
    backup,
    check,
    temporal,
):
    durably.add_command(command)
