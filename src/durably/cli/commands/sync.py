"""The commands ``durably sync`` and ``durably health``.

``durably sync`` is the last step of a deployment. ``durably health`` is for supervisors of containers.
"""

import time
from typing import TYPE_CHECKING

import click

from durably.cli.options import client_options, json_option, read_age, read_app_url
from durably.cli.output.text import Styled, echo, echo_json
from durably.protocol.text import printable, redact_url

if TYPE_CHECKING:
    import datetime as dt

    from durably.cli.clients.engine_client import EngineClient
    from durably.protocol.events import AppSyncBody

_PAUSE_SECONDS = 0.5
_APP_UNREACHED = 502


@click.command()
@click.argument("app_url", metavar="APP_URL", callback=read_app_url)
@click.option(
    "--wait",
    callback=read_age,
    metavar="TIME",
    help="Keep trying for this long, like 30s, while the app or the engine does not answer.",
)
@json_option("the app's functions, and what changed")
@client_options
def sync(client: "EngineClient", app_url: str, wait: "dt.timedelta | None", as_json: bool) -> None:
    """Sync the app at APP_URL with the engine: the last step of a deployment.

    The engine reads the app's functions and stores the changes. APP_URL is the URL of the app's endpoint as
    the engine reaches it, like http://127.0.0.1:8000/api/inngest. Exits with 1, and changes nothing, if the app does
    not answer or the engine refuses its functions.
    """
    done = _sync(client, app_url, 0.0 if wait is None else wait.total_seconds())
    if as_json:
        echo_json(done)
    else:
        echo(describe_sync(done))
    if done.warning is not None:
        echo(f"warning: {done.warning}", err=True)


def _sync(client: "EngineClient", app_url: str, patience: float) -> "AppSyncBody":
    from durably.cli.clients.engine_client import AnswerError, EngineUnreachedError

    deadline = time.monotonic() + patience
    while True:
        try:
            return client.sync_app_at(app_url)
        except (AnswerError, EngineUnreachedError) as error:
            is_final = isinstance(error, AnswerError) and error.status != _APP_UNREACHED
            if is_final or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def describe_sync(done: "AppSyncBody") -> Styled:
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
@json_option("an object with the status, ready")
@client_options
def health(client: "EngineClient", as_json: bool) -> None:
    """Exit with 0 if the engine accepts events and calls apps, with 1 if not.

    The command requests /ready of the engine, which needs no keys.
    """
    client.check_ready()
    if as_json:
        echo_json({"status": "ready"})
    else:
        echo("ready")
