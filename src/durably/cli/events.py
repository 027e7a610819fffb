"""The commands ``durably send``, ``signal``, ``invoke``, ``events`` and ``functions``."""

import datetime as dt
import time
from http import HTTPStatus
from typing import Any

import click

from durably.engine.model.overview import FunctionInfo
from durably.engine.model.runs import Run, StoredEvent
from durably.protocol.events import Event
from durably.protocol.text import printable

from .client import AnswerError, EngineClient, echo_notes, existing, is_short_id, only_id
from .options import client_options, json_option, read_json, read_time
from .text import (
    CliError,
    coloured_status,
    describe_facts,
    echo,
    echo_json,
    fit,
    format_json,
    format_local,
    shorten,
    style,
    table,
)

_NOT_LISTED = (
    "no run of it is listed yet: an engine on Temporal lists runs about a second after their start, and does not list "
    "what else an event does, such as the end of a wait"
)


@click.command()
@click.argument("name")
@click.option("--data", metavar="JSON|@FILE|-", help="The event's data: a JSON object, a file, or - for stdin.")
@click.option("--id", "event_id", metavar="ID", help="Sending the same id again within 24 hours changes nothing.")
@click.option("--ts", type=click.IntRange(1), metavar="MS", help="When it happened, in milliseconds since the epoch.")
@click.option("--v", "version", metavar="TEXT", help="The version of the data's shape.")
@json_option("the event's id, and the runs that it started so far, null if the keys allow only to send")
@client_options
def send(
    client: EngineClient,
    name: str,
    data: str | None,
    event_id: str | None,
    ts: int | None,
    version: str | None,
    as_json: bool,
) -> None:
    """Send the event NAME and print its id.

    The runs that it starts at once are named on stderr.
    """
    event = Event(name=name, data=read_json(data, dict), id=event_id or "", ts=ts or 0, v=version)
    sent = client.send_event(event)
    event_id = sent.ids[0]
    unmatched = next(iter(sent.unmatched.values()), None)
    if not as_json:
        echo(event_id)
    runs, notes = ([], []) if unmatched is not None else _read_runs(client, event_id)
    if as_json:
        echo_json({"id": event_id, "unmatched": unmatched, "runs": runs, "notes": notes})
        return
    for run in runs or ():
        verb = "skipped" if run.status == "Skipped" else "started"
        echo(f"{verb} run {run.id} of {run.function_id}", err=True)
    if unmatched is not None:
        notes = [f"it starts nothing: {unmatched}"]
    elif runs == [] == notes:
        notes = ["it has started no run yet"]
    for note in notes or ():
        echo(note, err=True)


def _read_runs(client: EngineClient, event_id: str) -> tuple[list[Run] | None, list[str] | None]:
    """The runs that an event started, and notes about it, if the keys allow it.

    In production, an event key allows only to send.
    """
    runs: list[Run] = []
    try:
        runs = client.event_runs_sync(event_id)
        notes = existing(client.get_event_sync(event_id)).notes
        # The list of an engine on Temporal lags: it may have runs, and so the event, since.
        return runs or client.event_runs_sync(event_id), notes
    except AnswerError as error:
        if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return None, None
        if error.status == HTTPStatus.NOT_IMPLEMENTED:  # The engine keeps events in the runs that they start.
            return runs, [_NOT_LISTED]
        raise


@click.command()
@click.argument("name")
@click.option("--data", metavar="JSON|@FILE|-", help="The result of the waiting step: JSON, a file, or - for stdin.")
@json_option("the run's id")
@client_options
def signal(client: EngineClient, name: str, data: str | None, as_json: bool) -> None:
    """Wake the run that waits for the signal NAME, and print its id.

    Exit code 1 if no run waits for it.
    """
    value: Any = None if data is None else read_json(data, object)
    run_id = client.signal_sync(name, value)
    if as_json:
        echo_json({"run_id": run_id})
    else:
        echo(run_id)


@click.group()
def events() -> None:
    """List and show received events."""


@events.command("list")
@click.option("--name", metavar="NAME", help="Only events of this name.")
@click.option(
    "--since",
    type=read_time,
    metavar="TIME",
    help="Only events received since: RFC 3339, or how long ago, like 2h.",
)
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1, 100), help="The largest number of events."
)
@json_option("an array in place of the table")
@client_options
def list_events(client: EngineClient, name: str | None, since: dt.datetime | None, limit: int, as_json: bool) -> None:
    """List events, newest first."""
    found = client.list_events_sync(name=name, received_after=since, limit=limit)
    if as_json:
        echo_json(found)
    elif not found:
        echo("no events", err=True)
    else:
        rows = [
            [each.id, each.name, format_local(each.received_at), shorten(format_json(each.data), 60)] for each in found
        ]
        echo(table(["EVENT", "NAME", "RECEIVED", "DATA"], rows))
        echo_notes(client)


@events.command()
@click.argument("event_id", metavar="EVENT")
@json_option("the event, with the runs that it started")
@client_options
def show(client: EngineClient, event_id: str, as_json: bool) -> None:
    """Show an event and the runs that it started.

    EVENT is the event's id, or the end of the id.
    """
    event = _find_event(client, event_id)
    runs = client.event_runs_sync(event.id)
    if as_json:
        echo_json({"event": event, "runs": runs})
        return
    facts = [("Event", event.id), ("Name", event.name), ("Received", format_local(event.received_at))]
    if event.event_id != event.id:
        facts.insert(1, ("Sent as", event.event_id))
    facts.append(("Data", format_json(event.data)))
    echo(describe_facts(facts))
    rows = [[run.id, run.function_id, coloured_status(run.status)] for run in runs]
    echo("")
    echo(table(["RUN", "FUNCTION", "STATUS"], rows) if runs else "It started no run.")
    for note in event.notes:
        echo(f"{note[:1].upper()}{note[1:]}.")


def _find_event(client: EngineClient, text: str) -> StoredEvent:
    """The event with this id, or the sender's id, or an id that ends with the text.

    Raises ``CliError``.
    """
    try:
        return existing(client.get_event_sync(text))
    except AnswerError as error:
        if error.status != HTTPStatus.NOT_FOUND or not is_short_id(text):
            raise
    found = client.list_events_sync(id_suffix=text, limit=5)
    return existing(client.get_event_sync(only_id("event", text, [event.id for event in found])))


@click.group()
def functions() -> None:
    """List, pause and resume functions."""


@functions.command("list")
@json_option("an array in place of the table")
@client_options
def list_functions(client: EngineClient, as_json: bool) -> None:
    """List the functions that apps have synced."""
    found = client.list_functions_sync()
    if as_json:
        echo_json(found)
    elif not found:
        echo("no functions", err=True)
    else:
        echo(table(["FUNCTION", "APP", "TRIGGERS", "STATE"], [function_row(each) for each in found]))


def function_row(function: FunctionInfo) -> list[str]:
    triggers = [trigger.event or trigger.cron or "" for trigger in function.config.triggers]
    state = style("paused", fg="yellow") if function.is_paused else style("active", fg="green")
    return [function.id, function.app_id, ", ".join(triggers) or "invoked only", state]


@functions.command()
@click.argument("function_id", metavar="FUNCTION")
@json_option("the function")
@client_options
def pause(client: EngineClient, function_id: str, as_json: bool) -> None:
    """Pause FUNCTION: it starts no more runs.

    An event that would start a run gives a skipped run, which `durably runs replay --status skipped` runs later.
    Present runs continue.
    """
    client.pause_function_sync(function_id)
    _report_state(client, function_id, "paused", as_json)


@functions.command()
@click.argument("function_id", metavar="FUNCTION")
@json_option("the function")
@client_options
def resume(client: EngineClient, function_id: str, as_json: bool) -> None:
    """Resume a paused FUNCTION: it starts runs again."""
    client.resume_function_sync(function_id)
    _report_state(client, function_id, "active", as_json)


def _report_state(client: EngineClient, function_id: str, state: str, as_json: bool) -> None:
    if as_json:
        echo_json(next((each for each in client.list_functions_sync() if each.id == function_id), None))
    else:
        echo(f"{fit(function_id)} is {state}")


@click.command()
@click.argument("function_id", metavar="FUNCTION")
@click.option("--data", metavar="JSON|@FILE|-", help="The event's data: a JSON object, a file, or - for stdin.")
@click.option("--no-wait", is_flag=True, help="Print the run's id, and do not wait for its end.")
@json_option("the whole run, also if it fails")
@client_options
def invoke(client: EngineClient, function_id: str, data: str | None, no_wait: bool, as_json: bool) -> None:
    """Run FUNCTION (<app>-<function>) and print its output, which is JSON.

    Exit code 1 if the run fails or is cancelled.
    """
    receipt = client.invoke_sync(function_id, read_json(data, dict))
    if receipt.run_id is None:
        raise CliError(f"no run of {function_id} was started, or not yet: its flow control delays or drops the event")
    if no_wait:
        if as_json:
            echo_json(existing(client.get_run_sync(receipt.run_id)))
        else:
            echo(receipt.run_id)
        return
    echo(f"run {receipt.run_id}", err=True)
    pause = 0.02
    while (run := existing(client.get_run_sync(receipt.run_id))).ended_at is None:
        time.sleep(pause)
        pause = min(pause * 1.5, 1.0)
    if as_json:
        echo_json(run)
    if run.status != "Completed":
        raise CliError(describe_failure(run))
    if not as_json:
        echo(format_json(run.decode_output()))


def describe_failure(run: Run) -> str:
    output = run.decode_output()
    error = output if isinstance(output, dict) else {}
    if run.status == "Cancelled":
        return printable(error.get("message"))
    if run.status == "Skipped":
        return printable(f"the run was skipped: {error.get('message')}")
    return printable(f"the run failed: {error.get('name') or 'Error'}: {error.get('message') or 'no message'}")
