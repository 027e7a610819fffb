"""The ``durably`` command. A command's module is imported when the command is called, so that each starts quickly."""

import importlib
from typing import Any

import click

from durably.protocol.errors import Error

from .text import CliError

COMMANDS = {
    "dev": ("dev", "Run an engine for development, and MODULE:APP with it."),
    "start": ("start", "Run an engine for production."),
    "worker": ("start", "Run an app's functions in a process of its own."),
    "relay": ("start", "Send the events that an app writes in the transactions of its database."),
    "keys": ("operate", "Make a signing key and an event key, as lines for an environment file."),
    "sync": ("operate", "Sync the app at APP_URL with the engine: the last step of a deployment."),
    "health": ("operate", "Exit with 0 if the engine accepts events and calls apps, with 1 if not."),
    "backup": ("operate", "Copy the database --db to the new file DEST."),
    "restore": ("operate", "Make the file --db from the commit log --log."),
    "check": ("operate", "Check the database --db: the file's integrity, and the consistency of its rows."),
    "send": ("events", "Send an event."),
    "signal": ("events", "Wake the run that waits for a signal."),
    "questions": ("questions", "List the open questions of runs."),
    "answer": ("questions", "Answer a question of a run."),
    "events": ("events", "List and show events."),
    "invoke": ("events", "Start a run of one function."),
    "functions": ("events", "List, pause and resume functions."),
    "runs": ("runs", "List, show, cancel, wake and rerun runs."),
    "logs": ("runs", "Print lines of ctx.logger."),
    "temporal": ("temporal", "Temporal workflows: a development server, and workers."),
}
"""The module of each command, and its line in ``durably --help``."""


class _Commands(click.Group):
    """Shows errors of Durably without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Error as error:
            if not error.message:  # A child process has printed the error.
                raise click.exceptions.Exit(1) from error
            raise CliError(error.message) from error
        except ModuleNotFoundError as error:
            if (error.name or "durably").partition(".")[0] == "durably":
                raise
            raise CliError(f'{error.name} is not installed; it comes with pip install "durably[engine]"') from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        except ModuleNotFoundError:
            raise
        except ImportError as error:  # Of an extra, which it names.
            raise CliError(str(error)) from error
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="durably")
def durably() -> None:
    """Durable functions in Python web apps: run an engine, and talk to one."""
