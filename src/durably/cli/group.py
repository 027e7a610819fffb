"""The ``durably`` command and its parts."""

import click

from .commands.database import backup, check
from .commands.dev import dev
from .commands.events import events, send, signal
from .commands.functions import functions, invoke
from .commands.keys import keys
from .commands.logs import logs
from .commands.runs import cancellations, runs
from .commands.start import start
from .commands.sync import health, sync
from .commands.temporal import temporal
from .commands.top import top
from .commands.worker import worker
from .output.text import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="durably")
def durably() -> None:
    """Durable functions in Python web apps: run an engine, and talk to one."""


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
