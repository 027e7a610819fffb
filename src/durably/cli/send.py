"""``durably send``."""

from typing import TYPE_CHECKING

import click

from .data import read_data
from .options import client_options
from .text import echo

if TYPE_CHECKING:
    from .engine_client import EngineClient


@click.command()
@click.argument("name")
@click.option("--data", metavar="JSON|@FILE|-", help="The event's data: a JSON object, a file, or - for stdin.")
@click.option("--id", "event_id", metavar="ID", help="Sending the same id again within 24 hours changes nothing.")
@click.option("--ts", type=click.IntRange(1), metavar="MS", help="When it happened, in milliseconds since the epoch.")
@click.option("--v", "version", metavar="TEXT", help="The version of the data's shape.")
@client_options
def send(
    client: "EngineClient",
    name: str,
    data: str | None,
    event_id: str | None,
    ts: int | None,
    version: str | None,
) -> None:
    """Send the event NAME and print its id. The runs that it starts at once are named on stderr."""
    from durably.protocol.events import Event

    event = Event(name=name, data=read_data(data), id=event_id or "", ts=ts or 0, v=version)
    sent = client.send_event(event)
    echo(sent.ids[0])
    for reason in sent.unmatched.values():
        echo(f"it starts nothing: {reason}", err=True)
    if not sent.unmatched:
        _report_runs(client, sent.ids[0])


def _report_runs(client: "EngineClient", event_id: str) -> None:
    """Where the keys at hand allow it: in production, senders of events need no more than an event key."""
    from .engine_client import AnswerError, existing

    try:
        runs = client.event_runs_sync(event_id)
        notes = existing(client.get_event_sync(event_id)).notes
    except AnswerError as error:
        if error.status in (401, 403):
            return
        raise
    for run in runs:
        verb = "skipped" if run.status == "Skipped" else "started"
        echo(f"{verb} run {run.id} of {run.function_id}", err=True)
    for note in notes:
        echo(note, err=True)
    if not runs and not notes:
        echo("it has started no run yet", err=True)
