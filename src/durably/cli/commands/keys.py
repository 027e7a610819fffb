"""``durably keys``: make the keys of an engine in production and its apps."""

import os
import secrets
from pathlib import Path

import click

from durably.cli.options import json_option
from durably.cli.output.text import CliError, echo_json
from durably.settings import DASHBOARD_KEY, EVENT_KEY, SIGNING_KEY

_KEY_BYTES = 32


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
    made = make_keys() | ({DASHBOARD_KEY: secrets.token_hex(_KEY_BYTES)} if dashboard else {})
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


def make_keys() -> dict[str, str]:
    """New keys by the names of their variables.

    The values have no characters that a shell or systemd would treat specially.
    """
    return {
        SIGNING_KEY.name: f"signkey-prod-{secrets.token_hex(_KEY_BYTES)}",
        EVENT_KEY.name: secrets.token_hex(_KEY_BYTES),
    }


def _write_new(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CliError(f"{path} exists, and may hold keys that are in use; choose another file") from None
    except OSError as error:
        raise CliError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
