"""The commands ``durably keys``, ``sync``, ``health``, ``backup``, ``restore`` and ``check``."""

import datetime as dt
import os
import secrets
import time
from http import HTTPStatus
from pathlib import Path

import click

from durably.engine.log.log import CommitLog
from durably.engine.model.settings import Durability
from durably.engine.sqlite.maintenance import back_up, check_database
from durably.protocol.events import AppSyncBody
from durably.protocol.text import printable, redact_url
from durably.settings import DASHBOARD_KEY, EVENT_KEY, SIGNING_KEY

from .client import AnswerError, EngineClient, EngineUnreachedError
from .options import APP_URL, client_options, database_option, json_option, read_age
from .text import CliError, Styled, bar, echo, echo_json, progress_line


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Write the keys to a new file that only you can read, not to the terminal.",
)
@click.option("--dashboard", is_flag=True, help="Make a key of the dashboard too, which turns it on.")
@json_option("the keys by the names of their variables; with --output the file and the names")
def keys(output: Path | None, dashboard: bool, as_json: bool) -> None:
    """Make a signing key and an event key, as lines for an environment file.

    The engine and its apps need the same keys. The signing key signs calls and their answers, and authenticates
    commands such as `durably runs`. The event key allows only to send events.
    """
    # No value has characters that a shell or systemd would treat specially.
    made = {SIGNING_KEY.name: f"signkey-prod-{secrets.token_hex(32)}", EVENT_KEY.name: secrets.token_hex(32)}
    if dashboard:
        made[DASHBOARD_KEY] = secrets.token_hex(32)
    text = "".join(f"{name}={value}\n" for name, value in made.items())
    if output is not None:
        _write_new(output, text)
    if as_json:
        echo_json(made if output is None else {"output": str(output), "names": list(made)})
    elif output is None:
        click.echo(text, nl=False)
    else:
        *first, last = made
        click.echo(f"wrote {', '.join(first)} and {last} to {output}")


def _write_new(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CliError(f"{path} exists, and may hold keys that are in use; choose another file") from None
    except OSError as error:
        raise CliError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


@click.command()
@click.argument("app_url", metavar="APP_URL", type=APP_URL)
@click.option(
    "--wait",
    type=read_age,
    metavar="TIME",
    help="Keep trying for this long, like 30s, while the app or the engine does not answer.",
)
@json_option("the app's functions, and what changed")
@client_options
def sync(client: EngineClient, app_url: str, wait: dt.timedelta | None, as_json: bool) -> None:
    """Sync the app at APP_URL with the engine: the last step of a deployment.

    The engine reads the app's functions and stores the changes. APP_URL is the URL of the app's endpoint as
    the engine reaches it, like http://127.0.0.1:8000/api/inngest. Exits with 1, and changes nothing, if the app does
    not answer or the engine refuses its functions.
    """
    deadline = time.monotonic() + (wait or dt.timedelta()).total_seconds()
    while True:
        try:
            done = client.sync_app_at(app_url)
            break
        except (AnswerError, EngineUnreachedError) as error:
            is_final = isinstance(error, AnswerError) and error.status != HTTPStatus.BAD_GATEWAY
            if is_final or time.monotonic() >= deadline:
                raise
        time.sleep(0.5)
    if as_json:
        echo_json(done)
    else:
        echo(describe_sync(done))


def describe_sync(done: AppSyncBody) -> Styled:
    """A line about the app, and a line for each function that differs.

    A function was added (+), changed (~) or removed (-).
    """
    name = f"{done.app_id} {done.version}" if done.version else done.app_id
    count = len(done.functions)
    lines = [f"synced {name} at {redact_url(done.url)}: {count} {'function' if count == 1 else 'functions'}"]
    if done.previous_url is not None:
        lines += [f"  moved from {redact_url(done.previous_url)}"]
    lines += [f"  + {each}" for each in done.added]
    lines += [f"  ~ {each}" for each in done.changed]
    lines += [f"  - {each}" for each in done.removed]
    if len(lines) == 1:
        lines[0] += ", unchanged"
    return Styled("\n".join(map(printable, lines)))


@click.command()
@json_option("an object with the status, ready, and the state of the commit log, if there is one")
@client_options
def health(client: EngineClient, as_json: bool) -> None:
    """Exit with 0 if the engine accepts events and calls apps, with 1 if not.

    The command requests /ready of the engine, which needs no keys.
    """
    log = client.check_ready()
    if as_json:
        echo_json({"status": "ready"} | ({} if log is None else {"log": log}))
    else:
        echo("ready" if log is None else f"ready: {log}")


@click.command()
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@json_option("both paths, and the size in bytes")
@database_option
def backup(database: Path, destination: Path, as_json: bool) -> None:
    """Copy the database --db to the new file DEST.

    The engine may be running. The copy contains everything that was acknowledged when it began. To restore it, stop
    the engine, and start one with --db DEST.
    """
    with progress_line() as show_progress:
        size = back_up(
            database,
            destination,
            on_progress=lambda copied, total: show_progress(
                f"{bar(copied, total)}  copied {copied:,} of {total:,} bytes"
            ),
        )
    if as_json:
        echo_json({"database": str(database), "destination": str(destination), "bytes": size})
    else:
        echo(f"{destination}: {size:,} bytes")


@click.command()
@click.option("--log", "log_url", required=True, envvar="DURABLY_LOG", show_envvar=True, metavar="URL", help="The log.")
@json_option("the path, and the number of the log's last entry")
@database_option
def restore(database: Path, log_url: str, as_json: bool) -> None:
    """Make the file --db from the commit log --log: its last snapshot, and the later entries.

    Engines do this themselves at their start. The file belongs to the log: start an engine with it and --log, or make
    a copy that belongs to none with `durably backup`.
    """
    if database.exists():
        raise CliError(f"{database} exists: name a new file")
    log = CommitLog(log_url)
    try:
        log.open_database(database, Durability.FULL, must_exist=True).close()
    finally:
        log.close()
    if as_json:
        echo_json({"database": str(database), "sequence": log.sequence})
    else:
        echo(f"{database}: the log up to entry {log.sequence}")


@click.command()
@json_option("the path, and the faults, an empty array if there are none")
@database_option
def check(database: Path, as_json: bool) -> None:
    """Check the database --db: the file's integrity, and the consistency of its rows.

    The command only reads; the engine may be running. It prints faults; the exit code is 1 if there are any.
    """
    with progress_line() as show_progress:
        findings = check_database(
            database,
            on_progress=lambda part, number, total: show_progress(
                f"{bar(number - 1, total)}  checking {part} ({number} of {total})"
            ),
        )
    if as_json:
        echo_json({"database": str(database), "faults": findings})
    else:
        for finding in findings:
            echo(finding)
    if findings:
        raise click.exceptions.Exit(1)
    if not as_json:
        echo(f"{database}: no fault found")
