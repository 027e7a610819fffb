"""The commands ``durably questions`` and ``durably answer``."""

import secrets
from typing import Any

import click

from durably.engine.model.questions import AskState

from .client import EngineClient, echo_notes
from .options import client_options, json_option, read_json
from .runs import find_run_id, function_option
from .text import CliError, echo, echo_json, fit, format_local, shorten, style, table


@click.command()
@function_option
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1, 500), help="The largest number of questions."
)
@json_option("an array in place of the table")
@client_options
def questions(client: EngineClient, function_id: str | None, limit: int, as_json: bool) -> None:
    """List the open questions of runs, those of the newest runs first.

    A run asks with ctx.step.receive. `durably answer` answers.
    """
    found = client.list_questions_sync(function_id=function_id, limit=limit)
    if as_json:
        echo_json(found)
    elif not found:
        echo("no open questions", err=True)
    else:
        rows = [
            [each.run_id, each.name, shorten(each.prompt or "", 60), each.function_id, format_local(each.asked_at)]
            for each in found
        ]
        echo(table(["RUN", "NAME", "QUESTION", "FUNCTION", "ASKED"], rows))
        if len(found) == limit:
            echo(style(f"the newest {limit}; --limit shows more", dim=True), err=True)
    echo_notes(client)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("name")
@click.option("--data", metavar="JSON|@FILE|-", required=True, help="The answer: JSON, a file, or - for stdin.")
@json_option("what became of it")
@client_options
def answer(client: EngineClient, run_id: str, name: str, data: str, as_json: bool) -> None:
    """Answer the question NAME of a run.

    RUN is the run's id, or the end of the id. Exits with 1, and changes nothing, if the run does not wait for it, or
    the answer does not fit.
    """
    value: Any = read_json(data, object)
    run_id = find_run_id(client, run_id)
    asked = client.ask_run_sync(run_id, name, value, id=f"cli-{secrets.token_hex(8)}", needs_reply=False, within=0)
    if asked.state is AskState.WAITING:
        raise CliError(f"run {fit(run_id)} does not wait for {fit(name)!r}: `durably questions` lists open questions")
    if as_json:
        echo_json({"run_id": run_id, "state": asked.state})
    else:
        echo(f"run {fit(run_id)} has received the answer")
